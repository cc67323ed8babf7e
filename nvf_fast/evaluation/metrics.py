"""Evaluation metrics of the field, as FreiHAND, HO-3D and the Neural Voting Field paper define them.

numpy in, numpy out, float64, millimetres, vectorised over samples. `predicted` and `truth` are `Poses` of one
shape, else a ValueError names the fault. The public evaluators work in metres; where one of their constants
has a unit, a comment names the conversion. Inference never imports metrics.

Sources: FreiHAND's and HO-3D's public `eval.py` and `utils/eval_util.py`; the paper's section 4.2.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from numbers import Integral, Real

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nvf_fast.runtime.arguments import read_numbers

Floats = NDArray[np.float64]
Poses = ArrayLike
"""(..., K, 3) mm, in camera space for camera-space scores. Finite and not empty."""

THRESHOLDS_MM: Floats = np.linspace(0.0, 50.0, 100)
"""Thresholds of the PCK curve and its area (EvalUtil: 100 steps from 0 to 50 mm, both ends included)."""

FREIHAND_BONE = (0, 9)
"""Wrist and base of the middle finger in FreiHAND's joint order: the bone that scale alignment measures."""

HO3D_BONE = (0, 4)
"""The same bone in HO-3D's joint order."""

MANO_VERTICES = 778

_NORM_EPSILON_MM = 1e-5  # the evaluators add 1e-8 m to each norm
_METRE_MM = 1000.0


@dataclass(frozen=True)
class KeypointScores:
    """Errors of one set of predictions, averaged per keypoint first, as EvalUtil does.

    Attributes:
        mean: mm; mean over keypoints of the mean over samples.
        median: mm; mean over keypoints of the median over samples (not the median of all errors).
        auc: in [0, 1]; area under `pck` over the thresholds' range.
        pck: (T,) fraction of errors at or below each threshold, mean over keypoints.
        thresholds: (T,) mm.
    """

    mean: float
    median: float
    auc: float
    pck: Floats
    thresholds: Floats


def joint_errors(predicted: Poses, truth: Poses) -> Floats:
    """Euclidean distance of each keypoint to its truth, (..., K) mm."""
    predicted, truth = _pair(predicted, truth)
    return np.linalg.norm(predicted - truth, axis=-1)


def keypoint_scores(
    errors: ArrayLike, visible: ArrayLike | None = None, thresholds: ArrayLike = THRESHOLDS_MM
) -> KeypointScores:
    """Mean, median, PCK curve and its area (EvalUtil, the same in FreiHAND and HO-3D).

    Args:
        errors: (N, K) mm, N samples of K keypoints.
        visible: (N, K) bool, the errors that count; all when None. A keypoint never visible is left out.
        thresholds: (T,) mm, ascending, at least two.

    Returns:
        KeypointScores.

    Raises:
        TypeError: errors or thresholds are not numbers.
        ValueError: a shape is wrong, an error that counts is negative or not finite, or none counts.
    """
    errors = read_numbers("errors", errors, "numbers (samples, keypoints) in mm", most=sys.maxsize)
    if errors.ndim != 2 or errors.size == 0:
        raise ValueError(f"errors must be (samples, keypoints) in mm and not empty, got shape {errors.shape}")
    counted = np.ones(errors.shape, bool) if visible is None else np.asarray(visible, dtype=bool)
    if counted.shape != errors.shape:
        raise ValueError(f"visible must have the shape of errors {errors.shape}, got {counted.shape}")
    thresholds = read_numbers("thresholds", thresholds, "numbers (T,) in mm")
    steps = np.diff(thresholds)
    if thresholds.ndim != 1 or len(thresholds) < 2 or not np.all((steps > 0) & np.isfinite(steps)):
        raise ValueError(f"thresholds must be at least two ascending finite values in mm, got {thresholds}")
    if not np.all((errors[counted] >= 0) & np.isfinite(errors[counted])):
        raise ValueError(
            "errors holds values that are negative or not finite; drop them through `visible` or set them"
        )

    seen = counted.any(axis=0)
    if not seen.any():
        raise ValueError("no keypoint is visible in any sample: nothing to score")
    errors, counted = errors[:, seen], counted[:, seen]
    valid = np.where(counted, errors, np.nan)

    ascending = [np.sort(each[shown]) for each, shown in zip(errors.T, counted.T, strict=True)]
    pck = np.mean([np.searchsorted(each, thresholds, "right") / len(each) for each in ascending], axis=0)
    return KeypointScores(
        mean=float(np.nanmean(valid, axis=0).mean()),
        median=float(np.nanmedian(valid, axis=0).mean()),
        auc=float(np.trapezoid(pck, thresholds) / (thresholds[-1] - thresholds[0])),
        pck=pck,
        thresholds=thresholds,
    )


def mpjpe(predicted: Poses, truth: Poses) -> float:
    """Mean per-joint position error, mm, unaligned: CS-MJE on camera-space joints (section 4.2).

    Examples:
        >>> truth = np.random.default_rng(0).normal([0, 0, 500], 50, (4, 21, 3))
        >>> predicted = 1.1 * truth + [0, 0, 12]
        >>> round(mpjpe(truth + [0, 0, 12], truth), 3)
        12.0
        >>> round(pa_mpjpe(predicted, truth), 3)  # a similarity
        0.0
    """
    return float(joint_errors(predicted, truth).mean())


def pa_mpjpe(predicted: Poses, truth: Poses, *, reflection: bool = False) -> float:
    """Mean per-joint position error after Procrustes alignment of each sample.

    Args:
        reflection: False aligns by a proper similarity (`rigid_align`, as the NVF release does); True allows
            reflections (`procrustes_align`, as the FreiHAND and HO-3D servers do).

    Returns:
        mm.
    """
    align = procrustes_align if reflection else rigid_align
    return mpjpe(align(predicted, truth), truth)


def translation_error(predicted: Poses, truth: Poses) -> float:
    """TE, mm: mean distance between the camera-space poses' centroids, the means of joints (section 4.2)."""
    predicted, truth = _pair(predicted, truth)
    return float(np.linalg.norm(predicted.mean(axis=-2) - truth.mean(axis=-2), axis=-1).mean())


def depth_error(predicted: Poses, truth: Poses) -> float:
    """DE, mm: mean difference of the camera-space poses' centroids along the optical axis (section 4.2)."""
    predicted, truth = _pair(predicted, truth)
    return float(np.abs(predicted[..., 2].mean(axis=-1) - truth[..., 2].mean(axis=-1)).mean())


def procrustes_align(predicted: Poses, truth: Poses) -> Floats:
    """Align each sample by scale, rotation and translation, reflections allowed (servers' `align_w_scale`).

    Since a mirrored hand aligns well, these errors are not comparable with those after `rigid_align`.

    Returns:
        `predicted` moved onto `truth`.
    """
    predicted, truth = _pair(predicted, truth)
    rotation, scale, truth_norm, predicted_norm = _procrustes(predicted, truth)
    centred = predicted - _centroid(predicted)
    return centred / predicted_norm @ rotation * scale * truth_norm + _centroid(truth)


def rigid_align(predicted: Poses, truth: Poses) -> Floats:
    """Align each sample by the least-squares similarity with a proper rotation (Umeyama 1991, NVF release).

    A prediction collapsed to one point has no scale; it lands on the truth's centroid.

    Returns:
        `predicted` moved onto `truth`.
    """
    predicted, truth = _pair(predicted, truth)
    centred, target = predicted - _centroid(predicted), truth - _centroid(truth)
    u, singular, vt = np.linalg.svd(centred.swapaxes(-1, -2) @ target)
    signs = np.ones_like(singular)
    signs[..., 2] = np.where(np.linalg.det(u @ vt) < 0, -1.0, 1.0)
    rotation = (u * signs[..., None, :]) @ vt
    spread = np.square(centred).sum(axis=(-1, -2))
    # The scale of a point is arbitrary; any finite value leaves it in place.
    scale = (singular * signs).sum(axis=-1) / np.where(spread > 0, spread, 1.0)
    return scale[..., None, None] * (centred @ rotation) + _centroid(truth)


def scale_translation_align(predicted: Poses, truth: Poses, bone: tuple[int, int] = FREIHAND_BONE) -> Floats:
    """Scale each sample to one bone's true length, its root on the true root (HO-3D's `xyz_scale_trans_al`).

    Args:
        bone: (root, end) keypoints whose distance sets the scale; `HO3D_BONE` for HO-3D's joint order.

    Returns:
        (..., K, 3) mm.
    """
    predicted, truth = _pair(predicted, truth)
    for index in bone:
        _check_root(index, truth)
    root, end = bone
    length = np.linalg.norm(predicted[..., end, :] - predicted[..., root, :], axis=-1)
    expected = np.linalg.norm(truth[..., end, :] - truth[..., root, :], axis=-1)
    # The evaluator multiplies by the true length in metres where the predicted bone has no length.
    factor = expected / np.where(length > 0, length, _METRE_MM)
    return root_align(predicted * factor[..., None, None], truth, root)


def root_align(predicted: Poses, truth: Poses, root: int = 0) -> Floats:
    """Move each sample's root onto the true root; the error is then the paper's RS-MJE (table 4).

    Args:
        root: keypoint that is moved onto its truth.

    Returns:
        (..., K, 3) mm.
    """
    predicted, truth = _pair(predicted, truth)
    _check_root(root, truth)
    return predicted - predicted[..., root : root + 1, :] + truth[..., root : root + 1, :]


def align_vertices_by_joints(vertices: ArrayLike, predicted: Poses, truth: Poses) -> Floats:
    """Move meshes of any topology by the joints' Procrustes alignment, as the servers do (`align_by_trafo`).

    The evaluators leave out the division by the prediction's norm, so that their "aligned" meshes are scaled
    by a length in metres and come out too small. It is repeated here because published scores contain it.

    Args:
        vertices: (..., V, 3) mm, predicted mesh.
        predicted: (..., K, 3) mm, predicted joints.
        truth: (..., K, 3) mm, true joints.

    Returns:
        (..., V, 3) mm.
    """
    predicted, truth = _pair(predicted, truth)
    points = _points(vertices, "vertices")
    rotation, scale, truth_norm, _ = _procrustes(predicted, truth)
    centre = _centroid(points)
    moved = (points - centre) @ rotation * scale * (truth_norm / _METRE_MM)
    return moved + _centroid(truth) - _centroid(predicted) + centre


def f_score(predicted: Poses, truth: Poses, threshold_mm: float) -> float:
    """F-score of two vertex sets: harmonic mean of the fractions of each that lie near the other.

    Args:
        predicted: (V, 3) mm.
        truth: (W, 3) mm; V and W may differ.
        threshold_mm: mm; a distance must be strictly below. The servers use 5 and 15.

    Returns:
        In [0, 1]; 0 where neither set has a close neighbour.

    Raises:
        ValueError: an argument is a batch of sets, empty or not finite, or the threshold is not positive.
    """
    predicted, truth = _points(predicted, "predicted"), _points(truth, "truth")
    if predicted.ndim != 2 or truth.ndim != 2:
        raise ValueError(
            f"predicted and truth must be single sets (V, 3) in mm, got {predicted.shape} and {truth.shape}"
        )
    return _f_scores(predicted, truth, (threshold_mm,))[0]


def camera_space_scores(predicted: Poses, truth: Poses) -> dict[str, float]:
    """The paper's camera-space scores (section 4.2, tables 1 to 3) and the pose error after alignment.

    Args:
        predicted, truth: (N, 21, 3) mm, camera space.

    Returns:
        cs_mje, te, de, pa_mpjpe (proper rotations) in mm; cs_auc, pa_auc in [0, 1].
    """
    predicted, truth = _hands(predicted, truth)
    plain = _scores(predicted, truth)
    aligned = _scores(rigid_align(predicted, truth), truth)
    return {
        "cs_mje": plain.mean,
        "cs_auc": plain.auc,
        "te": translation_error(predicted, truth),
        "de": depth_error(predicted, truth),
        "pa_mpjpe": aligned.mean,
        "pa_auc": aligned.auc,
    }


def root_relative_scores(predicted: Poses, truth: Poses) -> dict[str, float]:
    """The paper's root-relative scores on HO-3D (table 4).

    Args:
        predicted: (N, 21, 3) mm, up to translation.
        truth: (N, 21, 3) mm.

    Returns:
        mje (after scale-translation alignment), rs_mje (after moving the root) in mm; auc of mje in [0, 1].
    """
    predicted, truth = _hands(predicted, truth)
    scaled = _scores(scale_translation_align(predicted, truth), truth)
    relative = mpjpe(root_align(predicted, truth), truth)
    return {"mje": scaled.mean, "auc": scaled.auc, "rs_mje": relative}


def freihand_scores(
    predicted: ArrayLike,
    truth: ArrayLike,
    predicted_vertices: ArrayLike | None = None,
    true_vertices: ArrayLike | None = None,
) -> dict[str, float]:
    """Every score of FreiHAND's server, under the server's names, in millimetres (it prints centimetres).

    Args:
        predicted: (N, 21, 3) mm, camera space, FreiHAND's joint order.
        truth: (N, 21, 3) mm.
        predicted_vertices: (N, V, 3) mm, or None to score joints alone.
        true_vertices: (N, 778, 3) mm; needed with predicted_vertices.

    Returns:
        xyz_* and xyz_al_*; with vertices also f_score_* and f_al_score_*, and where V is 778 mesh_* and
        mesh_al_*.
    """
    predicted, truth = _hands(predicted, truth)
    alignments = {"xyz": predicted, "xyz_al": procrustes_align(predicted, truth)}
    return _server_scores(alignments, predicted, truth, predicted_vertices, true_vertices)


def ho3d_scores(
    predicted: ArrayLike,
    truth: ArrayLike,
    predicted_vertices: ArrayLike | None = None,
    true_vertices: ArrayLike | None = None,
) -> dict[str, float]:
    """Every score of HO-3D's server, in the form of `freihand_scores`, of joints in HO-3D's order.

    Returns:
        xyz_*, xyz_procrustes_al_*, xyz_scale_trans_al_*; with vertices also those of `freihand_scores`.
    """
    predicted, truth = _hands(predicted, truth)
    alignments = {
        "xyz": predicted,
        "xyz_procrustes_al": procrustes_align(predicted, truth),
        "xyz_scale_trans_al": scale_translation_align(predicted, truth, HO3D_BONE),
    }
    return _server_scores(alignments, predicted, truth, predicted_vertices, true_vertices)


def _server_scores(
    alignments: dict[str, Floats],
    predicted: Floats,
    truth: Floats,
    predicted_vertices: ArrayLike | None,
    true_vertices: ArrayLike | None,
) -> dict[str, float]:
    result: dict[str, float] = {}
    for name, aligned in alignments.items():
        scores = _scores(aligned, truth)
        result |= {f"{name}_mean3d": scores.mean, f"{name}_auc3d": scores.auc}
    if predicted_vertices is None and true_vertices is None:
        return result
    if predicted_vertices is None or true_vertices is None:
        raise ValueError("mesh scores need both predicted_vertices and true_vertices, got one of them")

    mesh = _points(predicted_vertices, "predicted_vertices")
    true_mesh = _points(true_vertices, "true_vertices")
    if mesh.ndim != 3 or true_mesh.ndim != 3 or not len(mesh) == len(true_mesh) == len(truth):
        raise ValueError(
            f"vertices must be (N, V, 3) in mm with N = {len(truth)} as the joints, "
            f"got {mesh.shape} and {true_mesh.shape}"
        )
    if mesh.shape[1] == MANO_VERTICES:
        aligned_mesh = procrustes_align(mesh, true_mesh)
        for name, vertices in {"mesh": mesh, "mesh_al": aligned_mesh}.items():
            scores = _scores(vertices, true_mesh)
            result |= {f"{name}_mean3d": scores.mean, f"{name}_auc3d": scores.auc}
    else:
        aligned_mesh = align_vertices_by_joints(mesh, predicted, truth)
    limits = (5.0, 15.0)
    for name, vertices in {"f_score": mesh, "f_al_score": aligned_mesh}.items():
        per_sample = [_f_scores(one, target, limits) for one, target in zip(vertices, true_mesh, strict=True)]
        for limit, value in zip(limits, np.mean(per_sample, axis=0), strict=True):
            result[f"{name}_{limit:.0f}"] = float(value)
    return result


def _scores(predicted: Poses, truth: Poses) -> KeypointScores:
    errors = joint_errors(predicted, truth)
    return keypoint_scores(errors.reshape(-1, errors.shape[-1]))


def _procrustes(predicted: Floats, truth: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Orthogonal Procrustes of the centred, norm-scaled sets: rotation for row vectors, scale, both norms."""
    centred, target = predicted - _centroid(predicted), truth - _centroid(truth)
    predicted_norm = np.linalg.norm(centred, axis=(-1, -2), keepdims=True) + _NORM_EPSILON_MM
    truth_norm = np.linalg.norm(target, axis=(-1, -2), keepdims=True) + _NORM_EPSILON_MM
    u, singular, vt = np.linalg.svd((centred / predicted_norm).swapaxes(-1, -2) @ (target / truth_norm))
    return u @ vt, singular.sum(axis=-1)[..., None, None], truth_norm, predicted_norm


def _f_scores(predicted: Floats, truth: Floats, thresholds_mm: tuple[float, ...]) -> list[float]:
    if not all(isinstance(each, Real) and each > 0 for each in thresholds_mm):
        raise ValueError(f"threshold_mm must be a positive number of mm, got {thresholds_mm}")
    to_predicted, to_truth = _nearest(truth, predicted), _nearest(predicted, truth)
    result = []
    for threshold in thresholds_mm:
        precision, recall = float((to_predicted < threshold).mean()), float((to_truth < threshold).mean())
        both = precision + recall
        result.append(2 * precision * recall / both if both > 0 else 0.0)
    return result


def _nearest(points: Floats, others: Floats) -> Floats:
    """Distance of each point to the nearest of the others, in blocks that bound the memory."""
    blocks = np.array_split(points, max(1, points.shape[0] * others.shape[0] // 2**20))
    return np.concatenate([np.linalg.norm(b[:, None] - others[None], axis=-1).min(axis=1) for b in blocks])


def _centroid(points: Floats) -> Floats:
    return points.mean(axis=-2, keepdims=True)


def _points(points: ArrayLike, name: str) -> Floats:
    array = read_numbers(name, points, "numbers (..., K, 3) in mm", most=sys.maxsize)
    if array.ndim < 2 or array.shape[-1] != 3 or array.size == 0:
        raise ValueError(f"{name} must be (..., K, 3) in mm and not empty, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds values that are not finite: drop or replace missing poses first")
    return array


def _pair(predicted: Poses, truth: Poses) -> tuple[Floats, Floats]:
    first, second = _points(predicted, "predicted"), _points(truth, "truth")
    if first.shape != second.shape:
        raise ValueError(
            f"predicted and truth must have one shape (..., K, 3), got {first.shape} and {second.shape}"
        )
    return first, second


def _check_root(root: int, poses: Floats) -> None:
    if not isinstance(root, Integral) or not 0 <= root < poses.shape[-2]:
        raise ValueError(f"root must be a keypoint, 0 to {poses.shape[-2] - 1} of the poses, got {root!r}")


def _hands(predicted: Poses, truth: Poses) -> tuple[Floats, Floats]:
    first, second = _pair(predicted, truth)
    if first.ndim != 3 or first.shape[1] != 21:
        raise ValueError(f"poses must be (N, 21, 3) in mm, got shape {first.shape}")
    size = float(np.ptp(second, axis=1).max())
    if size < 1.0:
        raise ValueError(
            f"the largest true hand measures {size:.3g} mm: lengths are millimetres here, while the files of "
            "FreiHAND and HO-3D hold metres"
        )
    return first, second
