"""Checks of a network of hand views: poses of rendered hands, presence, stability, and time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from nvf_fast.camera import project
from nvf_fast.data.hand_views import VIEW_SIZE, HandViews
from nvf_fast.data.image_warp import warp_perspective
from nvf_fast.data.sample import HandSample
from nvf_fast.data.sample_views import views_of_boxes
from nvf_fast.evaluation import metrics
from nvf_fast.evaluation.mean_pose import mean_pose, mean_shape
from nvf_fast.evaluation.photographs import BATCH, Poses, Predict, predicted
from nvf_fast.evaluation.scores import rank_correlation, rate
from nvf_fast.joint_definitions import UNIT_SCALE_MM
from nvf_fast.runtime.progress import progress_bar
from nvf_fast.training.calibration import ViewPredictions
from nvf_fast.volumes import HandVolume

PredictViews = Callable[[HandViews], ViewPredictions]

DISTANCES_MM = (300, 400, 500, 600, 700, 800, 1000)  # edges of the bins of depth errors
FACING = {"palm": (0.5, 1.01), "edge": (-0.5, 0.5), "back": (-1.01, -0.5)}  # cosine to the camera's direction
VISIBILITY = ("visible", "behind another part of the hand", "outside the image")
DECILES = 10
BEHIND_MM = 25.0  # farther behind the surface along its ray, a joint is hidden by another part of the hand
MOVED_PX = 0.5  # of the hand view
REPEATS = 15


def exact_views(samples: Sequence[HandSample]) -> tuple[HandViews, np.ndarray]:
    """`views_of_boxes` of the samples' own boxes."""
    boxes = np.stack([np.asarray(sample.box, np.float64) for sample in samples])
    return views_of_boxes(samples, torch.from_numpy(boxes))


def part_joints(predict_views: PredictViews, samples: Sequence[HandSample]) -> dict[str, np.ndarray]:
    """Joints (N, 21, 3) mm of the unit hand by the coarse heads alone and by the votes alone."""
    parts: dict[str, list[np.ndarray]] = {"coarse": [], "votes": []}
    for first in progress_bar(range(0, len(samples), BATCH), desc="parts"):
        views, rotations = exact_views(samples[first : first + BATCH])
        found = predict_views(views)
        for name, joints in (("coarse", found.coarse), ("votes", found.voted)):
            parts[name].append(joints.double().numpy() @ rotations)
    return {name: np.concatenate(joints) for name, joints in parts.items()}


def score_poses(
    poses: Poses, parts: Mapping[str, np.ndarray], samples: Sequence[HandSample], others: np.ndarray
) -> dict[str, Any]:
    """Score poses of right hands of known size.

    Args:
        poses: final poses; the mean pose replaces a hand that is not found.
        parts: joints (N, 21, 3) mm of the unit hand by other methods, by name.
        samples: N hands with labels.
        others: joints (M, 21, 3) mm, camera frame, of the hands that determine the mean pose.

    Returns:
        hands and lost, counts; methods, scores of each by name, see `_scores`; depth, the mean signed depth
        error in mm with the true scale and the number of hands by distance; facing, the final joints' aligned
        and relative error and the number of hands by orientation; visibility, the same for joints by
        visibility, if the samples have surfaces; correlation, Spearman's, of expected and true error; and
        calibration, their means in tenths of the expected errors.
    """
    truth = _truth(samples)
    scales = np.array([sample.hand_scale for sample in samples], np.float64) / UNIT_SCALE_MM
    intrinsics = np.stack([sample.intrinsics for sample in samples])
    constant = np.broadcast_to(mean_pose(others), truth.shape)
    from_wrist = np.broadcast_to(mean_pose(others - others[:, :1]), truth.shape)
    shape = np.broadcast_to(mean_shape(others), truth.shape)
    lost = ~np.isfinite(poses.joints).all((1, 2))
    unit = np.where(lost[:, None, None], constant / scales[:, None, None], poses.joints)

    def scores(
        joints: np.ndarray, unit: np.ndarray, shape: np.ndarray, from_wrist: np.ndarray
    ) -> dict[str, float]:
        return {
            "error_2d": float(_errors_2d(joints, truth, intrinsics).mean()),
            "aligned": metrics.pa_mpjpe(shape, truth),
            "relative": metrics.mpjpe(metrics.root_align(from_wrist, truth), truth),
            "camera": metrics.mpjpe(joints, truth),
            "camera_without_scale": metrics.mpjpe(unit, truth),
        }

    methods = {}
    for name, joints in {"final": unit, **parts}.items():
        sized = joints * scales[:, None, None]
        methods[name] = scores(sized, joints, sized, sized)
    methods["constant pose"] = scores(constant, constant, shape, from_wrist)
    final = unit * scales[:, None, None]
    errors = metrics.joint_errors(final, truth) / scales[:, None]
    known = ~lost & np.isfinite(poses.expected).all(1)
    expected, true = poses.expected[known].ravel(), errors[known].ravel()
    return {
        "hands": len(samples),
        "lost": int(lost.sum()),
        "methods": methods,
        "depth": _by_distance(final, truth),
        "facing": _by_facing(final, truth),
        "visibility": _by_visibility(final, truth, samples),
        "correlation": rank_correlation(expected, true),
        "calibration": calibration_table(expected, true),
    }


def calibration_table(expected: np.ndarray, true: np.ndarray) -> list[dict[str, float]]:
    """Means of expected and true errors (N,) mm, in tenths of N by expected error."""
    order = np.argsort(expected, kind="stable")
    return [
        {"expected": float(expected[rows].mean()), "true": float(true[rows].mean()), "joints": len(rows)}
        for rows in np.array_split(order, DECILES)
        if len(rows)
    ]


def score_presence(predict_views: PredictViews, hands: HandViews, threshold: float) -> dict[str, float]:
    """Measure presence and side as the estimator decides them where the side is unknown.

    Args:
        predict_views: the heads.
        hands: views with one hand of either side each.
        threshold: of presence.

    Returns:
        hands, a count; in per cent lost, undetected hands, and side, correct sides.
    """
    present, left = _presence_and_side(predict_views, hands, threshold)
    return {"hands": len(hands), "lost": rate(~present), "side": rate(left == hands.left[:, 0])}


def score_empty(predict_views: PredictViews, empty: HandViews, threshold: float) -> dict[str, float]:
    """The accepted views without a hand, in per cent, and the number of such views, empty."""
    accepted, _ = _presence_and_side(predict_views, empty, threshold)
    return {"empty": len(empty), "accepted": rate(accepted)}


def score_stability(predict: Predict, samples: Sequence[HandSample]) -> dict[str, float]:
    """Measure the stability of poses over hands found in both of two equivalent inputs.

    Returns:
        turned: mean aligned error of images turned by 180 degrees over that of upright ones; moved: mean
        distance in mm of joints whose boxes are half a pixel of the hand view apart; batch: the largest
        distance in mm of joints predicted one by one and together.
    """
    upright = predicted(predict, samples).joints
    truth = _truth(samples)
    turned = [_turned(sample) for sample in samples]
    upside_down = predicted(predict, turned).joints
    both = np.isfinite(upright).all((1, 2)) & np.isfinite(upside_down).all((1, 2))
    moved = predicted(predict, [_moved(sample) for sample in samples]).joints
    alone = predicted(predict, samples[:BATCH], batch=1).joints
    if not both.any():
        return {"turned": float("nan"), "moved": float("nan"), "batch": float("nan")}
    return {
        "turned": metrics.pa_mpjpe(upside_down[both], _truth(turned)[both])
        / max(metrics.pa_mpjpe(upright[both], truth[both]), 1e-9),
        "moved": float(np.nanmean(np.linalg.norm(moved - upright, axis=-1))),
        "batch": float(np.nanmax(np.linalg.norm(alone - upright[: len(alone)], axis=-1))),
    }


def measure_times(pose: Callable[[], object], find: Callable[[], object]) -> dict[str, float]:
    """Medians in ms of posing one hand in a box and of finding and posing all hands of an image, in turn."""
    for call in (pose, find) * 2:
        call()
    seconds: dict[str, list[float]] = {"pose": [], "find": []}
    for _ in range(REPEATS):
        for name, call in (("pose", pose), ("find", find)):
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    medians = {name: 1000 * float(np.median(values)) for name, values in seconds.items()}
    return medians | {"threads": torch.get_num_threads()}


def _truth(samples: Sequence[HandSample]) -> np.ndarray:
    return np.stack([np.asarray(sample.joints) for sample in samples]).astype(np.float64)


def _errors_2d(joints: np.ndarray, truth: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    """(N, 21) distances in the image, per cent of the longer side of the joints' box."""
    seen, true = project(joints, intrinsics), project(truth, intrinsics)
    sizes = np.ptp(true, axis=1).max(1)
    return 100 * np.linalg.norm(seen - true, axis=-1) / sizes[:, None]


def _by_distance(joints: np.ndarray, truth: np.ndarray) -> dict[str, dict[str, float]]:
    distances = truth[..., 2].mean(1)
    errors = joints[..., 2].mean(1) - distances
    found = {}
    for low, high in pairwise(DISTANCES_MM):
        rows = (distances >= low) & (distances < high)
        found[f"{low} to {high} mm"] = {
            "error": float(errors[rows].mean()) if rows.any() else float("nan"),
            "hands": int(rows.sum()),
        }
    return found


def _by_facing(joints: np.ndarray, truth: np.ndarray) -> dict[str, dict[str, float]]:
    palm = np.cross(truth[:, 5] - truth[:, 0], truth[:, 17] - truth[:, 0])  # out of a right hand's palm
    towards = -truth.mean(1)
    cosine = (palm * towards).sum(1) / (np.linalg.norm(palm, axis=1) * np.linalg.norm(towards, axis=1))
    found = {}
    for name, (low, high) in FACING.items():
        rows = (cosine >= low) & (cosine < high)
        if rows.any():
            moved = metrics.root_align(joints[rows], truth[rows])
            found[name] = {
                "aligned": metrics.pa_mpjpe(joints[rows], truth[rows]),
                "relative": metrics.mpjpe(moved, truth[rows]),
                "hands": int(rows.sum()),
            }
    return found


def _by_visibility(
    joints: np.ndarray, truth: np.ndarray, samples: Sequence[HandSample]
) -> dict[str, dict[str, float]]:
    if any(sample.surface is None for sample in samples):
        return {}
    kinds = np.stack([joint_visibility(sample) for sample in samples])
    aligned = metrics.joint_errors(metrics.rigid_align(joints, truth), truth)
    relative = metrics.joint_errors(metrics.root_align(joints, truth), truth)
    return {
        name: {
            "aligned": float(aligned[kinds == name].mean()),
            "relative": float(relative[kinds == name].mean()),
            "joints": int((kinds == name).sum()),
        }
        for name in VISIBILITY
        if (kinds == name).any()
    }


def joint_visibility(sample: HandSample) -> np.ndarray:
    """(21,) str of `VISIBILITY`, for a hand with a surface that nothing else occludes."""
    assert sample.surface is not None and sample.joints is not None
    joints = sample.joints[None].float()
    behind = (1 - sample.surface.first_hit(torch.zeros_like(joints), joints)) * joints.norm(dim=-1)
    pixels = project(joints.double(), torch.from_numpy(sample.intrinsics)[None])[0].numpy()
    height, width = sample.image.shape[:2]
    inside = ((pixels >= -0.5) & (pixels <= np.array([width, height]) - 0.5)).all(-1)
    visible, hidden, outside = VISIBILITY
    return np.where(~inside, outside, np.where(behind[0].numpy() > BEHIND_MM, hidden, visible))


def _presence_and_side(
    predict_views: PredictViews, views: HandViews, threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """Whether a hand is present and whether it is a left one (N,); a left hand is judged as mirrored."""
    flip = np.array([[-1.0, 0, VIEW_SIZE], [0, 1, 0], [0, 0, 1]])
    images = np.stack([warp_perspective(image, flip, VIEW_SIZE) for image in views.images])
    plain, other = predict_views(views), predict_views(replace(views, images=images))
    left = (plain.left > other.left).numpy()
    present = np.where(left, other.presence.numpy(), plain.presence.numpy()) >= threshold
    return present, left


def _turned(sample: HandSample) -> HandSample:
    """The sample with the camera turned by 180 degrees about its axis."""
    height, width = sample.image.shape[:2]
    intrinsics = sample.intrinsics.copy()
    intrinsics[:2, 2] = [width - 1, height - 1] - intrinsics[:2, 2]
    box = np.asarray(sample.box, np.float64)
    assert sample.joints is not None
    return replace(
        sample,
        image=np.ascontiguousarray(sample.image[::-1, ::-1]),
        intrinsics=intrinsics,
        joints=sample.joints * sample.joints.new_tensor([-1, -1, 1]),
        box=torch.from_numpy(np.array([width - 1, height - 1] * 2) - box[[2, 3, 0, 1]]),
    )


def _moved(sample: HandSample) -> HandSample:
    box = np.asarray(sample.box, np.float64)
    view_px = (box[2:] - box[:2]).max() / HandVolume().fill / VIEW_SIZE
    return replace(sample, box=torch.from_numpy(box + MOVED_PX * view_px * np.array([1, 0, 1, 0])))
