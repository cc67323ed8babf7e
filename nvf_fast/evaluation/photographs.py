"""Scores on labelled photographs by group, with the mean pose as baseline."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from nvf_fast.camera import project
from nvf_fast.data.photographs import RELIABLE_SIDE, Photographs, mirrored
from nvf_fast.data.sample import HandSample
from nvf_fast.estimator import PoseEstimator
from nvf_fast.evaluation import metrics
from nvf_fast.evaluation.mean_pose import mean_pose, mean_shape
from nvf_fast.evaluation.report_files import table_lines, write_report_files
from nvf_fast.evaluation.scores import rank_correlation, rate
from nvf_fast.joint_definitions import scale_to_unit
from nvf_fast.pose import HandPose
from nvf_fast.runtime.progress import progress_bar

Predict = Callable[[Sequence[HandSample], Sequence[str | None]], HandPose]
"""Predictor of hands from samples and the side or None of each: a batch of numpy arrays, unit hand's mm."""

BATCH = 32  # samples predicted at once
# Apparent skin tones by least individual typology angle in degrees (Chardon, Cretois and Hourseau 1991).
TONES = {"light": 41.0, "intermediate": 28.0, "tan": 10.0, "brown": -30.0, "dark": -90.0}
FIRST_GROUPS = ("gestures", "xeng5220")  # many people and rooms; a person that training does not show
COLUMNS = {
    "photographs": "photographs",
    "error_2d": "2D error %",
    "aligned": "aligned mm",
    "relative": "relative mm",
    "present": "present %",
    "side": "side right %",
    "correlation": "expected vs error",
    "constant_2d": "constant: 2D %",
    "constant_aligned": "aligned mm",
    "constant_relative": "relative mm",
}


class Poses(NamedTuple):
    """Poses of N hands by one method, float64 in the images' cameras; NaN where none is found.

    joints (N, 21, 3) mm of the unit hand; joints_2d (N, 21, 2) px; expected errors (N, 21) mm, NaN without;
    valid (N,) bool; and the N sides.
    """

    joints: np.ndarray
    joints_2d: np.ndarray
    expected: np.ndarray
    valid: np.ndarray
    sides: tuple[str, ...]


def predict_with(estimator: PoseEstimator) -> Predict:
    """Predict with an estimator from each sample's box, without hand scale."""

    def predict(samples: Sequence[HandSample], sides: Sequence[str | None]) -> HandPose:
        return estimator(
            [sample.image for sample in samples],
            np.stack([sample.intrinsics for sample in samples]),
            None,
            np.stack([np.asarray(sample.box) for sample in samples]),
            list(sides),
        )

    return predict


def predicted(
    predict: Predict,
    samples: Sequence[HandSample] | Photographs,
    batch: int = BATCH,
    *,
    indices: Sequence[int] | None = None,
    sides_given: bool = True,
) -> Poses:
    """Predict the poses of samples with boxes.

    Args:
        predict: the method.
        samples: N samples.
        batch: samples predicted at once.
        indices: of those to predict, all when None.
        sides_given: whether the method is given their sides.
    """
    rows, parts = range(len(samples)) if indices is None else indices, []
    for first in progress_bar(range(0, len(rows), batch), desc="poses"):
        part = [samples[row] for row in rows[first : first + batch]]
        pose = predict(part, [sample.side if sides_given else None for sample in part])
        errors = np.full((len(part), 21), np.nan) if pose.expected_error is None else pose.expected_error
        parts.append((pose.joints, pose.joints_2d, errors, pose.valid, pose.side or ()))
    *arrays, valid, sides = zip(*parts, strict=True)
    joints, joints_2d, expected = (np.concatenate(each).astype(np.float64) for each in arrays)
    return Poses(joints, joints_2d, expected, np.concatenate(valid).astype(bool), tuple(chain(*sides)))


def evaluate_photographs(
    predict: Predict,
    data: Photographs,
    others: Photographs,
    *,
    batch: int = BATCH,
    predicts_sides: bool = True,
) -> dict[str, dict[str, float]]:
    """Score predictions against the labels, each hand scaled to the unit hand.

    Poses are predicted with the side given. Where no hand is found, the mean pose counts: the geometric
    median of `others`, its box moved and scaled onto the photograph's.

    Args:
        predict: the method.
        data: photographs to score it on.
        others: photographs that determine the mean pose.
        batch: photographs predicted at once.
        predicts_sides: whether to predict again without a side, for the rate of correct sides.

    Returns:
        By group, `FIRST_GROUPS` first, then the largest, "all", and the hands of either side and of each
        apparent skin tone (`typology_angle`): photographs; error_2d, mean distance of projected joints in per
        cent of the longer side of the joints' box; aligned, mean distance in mm after a similarity; relative,
        mean distance in mm with wrists moved together; present and side, in per cent; correlation,
        Spearman's, of expected and relative error of each joint (NaN without); and error_2d, aligned and
        relative of the mean pose, as constant_2d, constant_aligned and constant_relative.
    """
    labels = data.labels
    poses = predicted(predict, data, batch)
    expected, present = poses.expected, poses.valid
    truth = scale_to_unit(np.stack([label.joints for label in labels]).astype(np.float64))
    intrinsics = np.stack([label.intrinsics for label in labels])
    truth_2d = project(truth, intrinsics)
    boxes = np.stack([label.box for label in labels]).astype(np.float64)
    sizes = (boxes[:, 2:] - boxes[:, :2]).max(1)
    left = np.array([label.side == "left" for label in labels])
    always, always_2d, shape = _constants(others, boxes, left)
    joints = np.where(present[:, None, None], poses.joints, always)
    joints_2d = np.where(present[:, None, None], poses.joints_2d, always_2d)

    def errors(joints: np.ndarray, joints_2d: np.ndarray, shape: np.ndarray) -> dict[str, np.ndarray]:
        """Errors of each photograph and joint, (N, 21)."""
        aligned = metrics.rigid_align(shape, truth)
        return {
            "error_2d": 100 * np.linalg.norm(joints_2d - truth_2d, axis=-1) / sizes[:, None],
            "aligned": np.linalg.norm(aligned - truth, axis=-1),
            "relative": np.linalg.norm(metrics.root_align(joints, truth) - truth, axis=-1),
        }

    found, constant = errors(joints, joints_2d, joints), errors(always, always_2d, shape)
    right = np.full(len(labels), np.nan)
    reliable = [index for index, label in enumerate(labels) if label.side_score >= RELIABLE_SIDE]
    if predicts_sides and reliable:
        sides = predicted(predict, data, batch, indices=reliable, sides_given=False).sides
        right[reliable] = [labels[row].side == side for row, side in zip(reliable, sides, strict=True)]
    groups = np.array([label.group for label in labels])

    def scores(rows: np.ndarray) -> dict[str, float]:
        with_error = rows & present & np.isfinite(expected).all(1)
        relative = found["relative"][with_error]
        return {
            "photographs": int(rows.sum()),
            **{name: float(values[rows].mean()) for name, values in found.items()},
            "present": rate(present[rows]),
            "side": rate(right[rows & np.isfinite(right)]),
            "correlation": rank_correlation(expected[with_error].ravel(), relative.ravel()),
            "constant_2d": float(constant["error_2d"][rows].mean()),
            "constant_aligned": float(constant["aligned"][rows].mean()),
            "constant_relative": float(constant["relative"][rows].mean()),
        }

    names = sorted(set(groups.tolist()), key=lambda name: (-int((groups == name).sum()), name))
    ordered = [name for name in FIRST_GROUPS if name in names]
    ordered += [name for name in names if name not in ordered]
    tones = np.array([_tone(typology_angle(data.image(row), each)) for row, each in enumerate(truth_2d)])
    strata = {"right hands": ~left, "left hands": left} | {f"{name} skin": tones == name for name in TONES}
    return (
        {name: scores(groups == name) for name in ordered}
        | {"all": scores(groups != "")}
        | {name: scores(rows) for name, rows in strata.items() if rows.any()}
    )


def write_photograph_report(
    folder: Path, scores: Mapping[str, Mapping[str, float]], context: Mapping[str, Any]
) -> list[Path]:
    """Write report.json and report.md, and return their paths.

    Args:
        folder: made when missing.
        scores: of `evaluate_photographs`.
        context: conditions of the measurement.
    """
    explanation = (
        "Errors against the labels, each hand scaled to the unit hand. The 2D error is in per cent of the "
        "longer side of the joints' box; the mean pose is fitted on other photographs."
    )
    lines = [explanation, "", *table_lines(*score_rows(scores))]
    return write_report_files(folder / "report", "Labelled photographs", lines, context, {"scores": scores})


def typology_angle(image: np.ndarray, joints_2d: np.ndarray) -> float:
    """The individual typology angle of a palm's median colour in degrees, larger for lighter skin.

    It is arctan((L* - 50) / b*) of the colour in CIELAB (D65). Light and camera change it, hence it describes
    the image rather than the person.

    Args:
        image: (H, W, 3) uint8 sRGB.
        joints_2d: (21, 2) px; the wrist and the first joints of index and little finger bound the palm.

    Returns:
        The angle; NaN where the palm has no pixel, or is bluish (b* is not positive).
    """
    palm = Image.new("1", image.shape[1::-1])
    ImageDraw.Draw(palm).polygon([tuple(joints_2d[joint]) for joint in (0, 5, 17)], fill=1, outline=1)
    inside = image[np.asarray(palm)]
    if not len(inside):
        return float("nan")
    display = np.median(inside, axis=0) / 255
    linear = np.where(display <= 0.04045, display / 12.92, ((display + 0.055) / 1.055) ** 2.4)
    y, z = linear @ [0.2126, 0.7152, 0.0722], linear @ [0.0193, 0.1192, 0.9505] / 1.089
    response = [value ** (1 / 3) if value > (6 / 29) ** 3 else value * 841 / 108 + 4 / 29 for value in (y, z)]
    lightness, blue_yellow = 116 * response[0] - 16, 200 * (response[0] - response[1])
    return float(np.degrees(np.arctan2(lightness - 50, blue_yellow))) if blue_yellow > 0 else float("nan")


def _tone(angle: float) -> str:
    return next((name for name, least in TONES.items() if angle >= least), "")


def score_rows(scores: Mapping[str, Mapping[str, float]]) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of the table, a row for each group."""
    rows = [[name, *(found[column] for column in COLUMNS)] for name, found in scores.items()]
    return ["group", *COLUMNS.values()], rows


def _constants(
    others: Photographs, boxes: np.ndarray, left: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mean pose (N, 21, 3) mm, mirrored for left hands, its joints (N, 21, 2) px in the boxes, and the
    mean shape (N, 21, 3) mm that is best after alignment."""
    hands = [mirrored(label.joints) if label.side == "left" else label.joints for label in others.labels]
    unit = scale_to_unit(np.stack(hands).astype(np.float64))
    unit = unit - unit[:, :1]

    def of_each(pose: np.ndarray) -> np.ndarray:
        return np.where(left[:, None, None], mirrored(pose), pose)

    pose, shape = of_each(mean_pose(unit)), of_each(mean_shape(unit))
    low, high = pose[..., :2].min(1), pose[..., :2].max(1)
    scale = (boxes[:, 2:] - boxes[:, :2]).max(1) / (high - low).max(1)
    flat = (pose[..., :2] - ((low + high) / 2)[:, None]) * scale[:, None, None]
    return pose, flat + ((boxes[:, :2] + boxes[:, 2:]) / 2)[:, None], shape
