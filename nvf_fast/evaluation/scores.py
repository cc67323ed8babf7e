"""Scores of predictions: of whole poses, of each joint, and as curves over the error."""

from __future__ import annotations

import numpy as np

from nvf_fast.config import Task
from nvf_fast.conventions import ORDERS
from nvf_fast.evaluation import metrics
from nvf_fast.evaluation.metrics import Floats, KeypointScores
from nvf_fast.evaluation.predictors import Predictions
from nvf_fast.evaluation.submission import Server
from nvf_fast.pose import JOINT_NAMES

CAMERA_SPACE_ONLY = ("cs_mje", "cs_auc", "te", "de")


def completed(predictions: Predictions, fallback: np.ndarray) -> Floats:
    """Joints (N, 21, 3) mm, those of `fallback` (21, 3) or (N, 21, 3) mm where no prediction is valid."""
    return np.where(predictions.valid[:, None, None], predictions.joints, fallback).astype(np.float64)


def score_predictions(
    predictions: Predictions, truth: np.ndarray, fallback: np.ndarray, task: Task = "camera-space"
) -> dict[str, float]:
    """Errors of predictions, under the names of `nvf_fast.metrics`, and the correlation of their scores.

    `fallback` replaces invalid predictions, so that refusing to predict is never an advantage; `invalid`
    counts them. `rs_mje` is the root-relative mean error, the wrist moved onto the true one.
    `score_correlation` is Spearman's rank correlation of a joint's score with its error,
    `frame_score_correlation` that of their means over a hand (negative: higher scores, smaller errors), both
    over valid predictions and NaN without any.

    Args:
        predictions: of N images.
        truth: (N, 21, 3) mm.
        fallback: (21, 3) or (N, 21, 3) mm.
        task: of the network; root-relative predictions use the true wrist and get no camera-space scores.

    Returns:
        Errors in mm; areas and correlations; `voters`, the median; `invalid` and `images`.
    """
    valid = predictions.valid.astype(bool)
    joints = completed(predictions, fallback)
    errors = metrics.joint_errors(joints, truth)
    camera = metrics.camera_space_scores(joints, truth)
    if task == "root-relative":
        camera = {name: value for name, value in camera.items() if name not in CAMERA_SPACE_ONLY}
    scores = predictions.scores[valid]
    return {
        **camera,
        **metrics.root_relative_scores(joints, truth),
        "median_joint_error": float(np.median(errors)),
        "score_correlation": rank_correlation(scores.ravel(), errors[valid].ravel()),
        "frame_score_correlation": rank_correlation(scores.mean(1), errors[valid].mean(1)),
        "voters": float(np.median(predictions.voters)),
        "invalid": int((~valid).sum()),
        "images": len(valid),
    }


def server_scores(joints: np.ndarray, truth: np.ndarray, server: Server) -> dict[str, float]:
    """The scores of a data set's server for joints (N, 21, 3) mm, in mm; no mesh scores."""
    if server == "freihand":
        return metrics.freihand_scores(joints, truth)
    return metrics.ho3d_scores(joints[:, ORDERS["ho3d"]], truth[:, ORDERS["ho3d"]])


def joint_statistics(joints: np.ndarray, truth: np.ndarray) -> dict[str, dict[str, float]]:
    """Mean and median error of each joint by name, mm, in place and with the wrist on the true one."""
    errors = metrics.joint_errors(joints, truth)
    moved = metrics.joint_errors(metrics.root_align(joints, truth), truth)
    return {
        name: {
            "mean": float(errors[:, index].mean()),
            "median": float(np.median(errors[:, index])),
            "root_relative_mean": float(moved[:, index].mean()),
            "root_relative_median": float(np.median(moved[:, index])),
        }
        for index, name in enumerate(JOINT_NAMES)
    }


def curves(joints: np.ndarray, truth: np.ndarray, task: Task) -> dict[str, KeypointScores]:
    """PCK curves by alignment: none, the wrist moved, scale and wrist, and the best proper similarity."""
    aligned = {
        "camera space": joints,
        "root-relative": metrics.root_align(joints, truth),
        "scale and root aligned": metrics.scale_translation_align(joints, truth),
        "Procrustes aligned": metrics.rigid_align(joints, truth),
    }
    if task == "root-relative":
        del aligned["camera space"]
    errors = {name: metrics.joint_errors(moved, truth) for name, moved in aligned.items()}
    return {name: metrics.keypoint_scores(each) for name, each in errors.items()}


def rate(hits: np.ndarray) -> float:
    """Per cent of (N,) bool that are true; NaN of none."""
    return 100 * float(hits.mean()) if len(hits) else float("nan")


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's correlation of two equally long samples; NaN where either is constant."""
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return float("nan")
    return float(np.corrcoef(_ranks(first), _ranks(second))[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks, tied values with their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]
