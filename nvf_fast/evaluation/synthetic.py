"""Scores of an estimator on seeded synthetic pictures, beside the best constant pose."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from nvf_fast import metrics
from nvf_fast.camera import reference_intrinsics
from nvf_fast.data.hand import HandDistribution, sample_hands
from nvf_fast.data.synthetic import SyntheticHands
from nvf_fast.estimator import PoseEstimator

BATCH = 16


def predict_set(
    estimator: PoseEstimator, data: SyntheticHands, hand_scale: bool, progress: bool = False
) -> dict[str, np.ndarray]:
    """Runs the estimator over a synthetic set.

    Args:
        estimator: any `PoseEstimator`.
        data: the pictures; each is given with the reference camera's intrinsics of its size.
        hand_scale: whether the true hand scale is given.
        progress: shows a bar.

    Returns:
        joints (N, 21, 3) mm, scores (N, 21), valid (N,), voters (N,) and truth (N, 21, 3) mm.
    """
    intrinsics = reference_intrinsics(data.config.size)
    rows: list[dict[str, Tensor]] = []
    with tqdm(total=len(data), unit="img", desc="evaluating", disable=not progress) as bar:
        for start in range(0, len(data), BATCH):
            indices = range(start, min(start + BATCH, len(data)))
            hands = data.hands(indices)
            pose = estimator(
                data.images(indices).permute(0, 2, 3, 1).contiguous(),
                intrinsics,
                hand_scale=hands.hand_scale if hand_scale else None,
            )
            rows.append(
                {
                    "joints": pose.joints,
                    "scores": pose.scores,
                    "valid": pose.valid,
                    "voters": pose.voters,
                    "truth": hands.joints,
                }
            )
            bar.update(len(indices))
    return {name: torch.cat([row[name] for row in rows]).numpy() for name in rows[0]}


def score_predictions(predictions: dict[str, np.ndarray], fallback: np.ndarray) -> dict[str, float]:
    """Metrics of one run of `predict_set`.

    Pictures without a valid pose count with the constant pose `fallback` (21, 3) mm, and `invalid` says how
    many there were, so that refusing to answer is never an advantage. `score_correlation` is Spearman's rank
    correlation of a joint's score with its error (negative: higher scores, smaller errors).
    """
    valid = predictions["valid"].astype(bool)
    joints = np.where(valid[:, None, None], predictions["joints"], fallback)
    scores = metrics.camera_space_scores(joints, predictions["truth"])
    errors = metrics.joint_errors(joints, predictions["truth"])
    centred = metrics.joint_errors(metrics.root_align(joints, predictions["truth"]), predictions["truth"])
    return scores | {
        "root_relative_mpjpe": float(centred.mean()),
        "median_joint_error": float(np.median(errors)),
        "score_correlation": rank_correlation(predictions["scores"][valid].ravel(), errors[valid].ravel()),
        "frame_score_correlation": rank_correlation(
            predictions["scores"][valid].mean(1), errors[valid].mean(1)
        ),
        "voters": float(np.median(predictions["voters"])),
        "invalid": int((~valid).sum()),
        "images": len(valid),
    }


def constant_pose(truth: np.ndarray) -> np.ndarray:
    """The pose (21, 3) mm of least mean joint error to truth (N, 21, 3): each joint's geometric median."""
    centre = truth.mean(0)
    for _ in range(100):  # Weiszfeld's iteration
        weight = 1 / np.maximum(np.linalg.norm(truth - centre, axis=-1, keepdims=True), 1e-6)
        centre = (truth * weight).sum(0) / weight.sum(0)
    return centre


def constant_shape(truth: np.ndarray) -> np.ndarray:
    """The pose (21, 3) mm best after similarity alignment: the mean of all poses aligned to it, iterated."""
    shape = truth[0]
    for _ in range(10):
        aligned = metrics.rigid_align(truth, np.broadcast_to(shape, truth.shape))
        shape = aligned.mean(0)
        shape = shape * np.linalg.norm(truth[0] - truth[0].mean(0)) / np.linalg.norm(shape - shape.mean(0))
    return shape


def constant_scores(
    distribution: HandDistribution, truth: np.ndarray, fitted_on: int = 4096, seed: int = 123
) -> dict[str, Any]:
    """The best constant pose, fitted on other hands of the same distribution, scored on truth (N, 21, 3)."""
    others = (
        sample_hands(fitted_on, torch.Generator().manual_seed(seed), distribution).joints.double().numpy()
    )
    pose, shape = constant_pose(others), constant_shape(others)
    scores = metrics.camera_space_scores(np.broadcast_to(pose, truth.shape), truth)
    return {
        "scores": scores | {"pa_mpjpe": metrics.pa_mpjpe(np.broadcast_to(shape, truth.shape), truth)},
        "pose": pose,
        "fitted_on": fitted_on,
    }


def evaluate(estimator: PoseEstimator, data: SyntheticHands, progress: bool = False) -> dict[str, Any]:
    """Scores with and without hand scale, beside the best constant pose, as one JSON-ready report."""
    truth = data.hands(range(len(data))).joints.double().numpy()
    constant = constant_scores(data.config.distribution, truth)
    report: dict[str, Any] = {"data": asdict(data.config), "constant": constant["scores"]}
    settings = {}
    if estimator.model.config.hand_scale:
        settings["with_hand_scale"] = True
    if estimator.model.config.scale_optional or not estimator.model.config.hand_scale:
        settings["without_hand_scale"] = False
    for name, given in settings.items():
        report[name] = score_predictions(predict_set(estimator, data, given, progress), constant["pose"])
    return report


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's correlation of two equally long samples; NaN where either is constant."""
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return float("nan")
    return float(np.corrcoef(_ranks(first), _ranks(second))[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks with ties sharing their mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]
