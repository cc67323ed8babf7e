"""Absolute distances from an aligned depth image, and a hand's scale from it or from a known distance.

A small near hand and a large distant one look alike in an image without depth, so a pose can be scaled about
the camera. Rays through the hand meet its modelled surface (round cones, `nvf_fast.hand_surface`) and the
measured one; the ratio of the two depths is the ratio of the scales.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nvf_fast.camera_model import Cameras
from nvf_fast.hand_surface import RADII_MM, cone_ends
from nvf_fast.inputs import METRES, check_hand_scales, read_cameras
from nvf_fast.joint_definitions import UNIT_LENGTH_MM, bone_lengths
from nvf_fast.pose import A, HandPose
from nvf_fast.runtime.arguments import check_dense, read_numbers

RAYS = 32  # across and down, of the grid that covers the hand
SPHERES = 6  # along each cone
GRAZING = 0.7  # of a sphere's radius: rays that pass farther from its centre meet the surface at a slant
LEAST_RAYS = 20  # with a measurement
LEAST_MEASURED = 0.2  # ratio of the rays that meet the hand
AGREEING_MM = 25.0  # between the measured surface and that of the scaled pose
LEAST_AGREEING = 0.5  # ratio of the measurements
ITERATIONS = 3  # of the median over the agreeing measurements
HAND_SCALES_MM = (15.0, 50.0)  # of people, children included


class DepthFit(NamedTuple):
    """The scale of a pose by a depth image.

    Attributes:
        ratio: of the true depth to the pose's.
        fault: reason why the depth image does not determine the scale; empty if it does.
    """

    ratio: float
    fault: str = ""


class HandScale(NamedTuple):
    """A hand's scale, for `hand_scale=` of the estimator.

    Attributes:
        mm: median over the poses.
        spread_mm: median distance of the single estimates from it; 0 for one pose.
        poses: number of poses used.
    """

    mm: float
    spread_mm: float
    poses: int


def scaled_to_depth(pose: HandPose[A], depth: Any, K: Any) -> HandPose[A]:
    """Scale poses about the camera so that their surfaces lie where a depth image measures them.

    `joints_2d` does not change. If the depth image does not measure enough of the hand, or measures another
    surface, the pose does not change, and a warning gives the reason.

    Args:
        pose: one pose or a batch, without a depth image, in the camera of `K`.
        depth: (H, W) mm along the optical axis, aligned with the image; integers or floats, 0 or NaN where
            nothing was measured; numpy or torch. For poses of B images a list of B of them, or (B, H, W).
        K: intrinsics, as the estimator takes them.

    Raises:
        ValueError: a shape is invalid, or the depth is not in mm.
        TypeError: depths are not numbers.
    """
    depths = read_depths(depth)
    fits = _fits(pose, depths, K)
    for index, fit in enumerate(fits):
        if fit.fault:
            warnings.warn(f"depth of hand {index}: {fit.fault}; its pose is unchanged", stacklevel=2)
    ratios = np.array([1.0 if fit.fault else fit.ratio for fit in fits])
    return pose.scaled(ratios if pose.joints.ndim == 3 else ratios[0])


def estimate_hand_scale(
    pose: HandPose[Any], *, depth: Any = None, K: Any = None, distance_mm: Any = None
) -> HandScale:
    """Estimate a person's hand scale from poses, by depth images or by known distances of the wrist.

    Args:
        pose: one pose or a batch, made without a depth image.
        depth: as in `scaled_to_depth`, with `K`.
        K: intrinsics, as the estimator takes them.
        distance_mm: mm from the camera's centre to the wrist: a number, or one per pose.

    Returns:
        The median of the poses' estimates, with its spread. Poses that are invalid, or do not agree with
        their depth image, are not used.

    Raises:
        ValueError: not exactly one of `depth` and `distance_mm` is given, no pose can be used, a shape or a
            number is invalid, or nobody has such a hand scale.
        TypeError: depths or distances are not numbers.

    Examples:
        >>> import numpy as np, nvf_fast
        >>> from nvf_fast.image_files import demo_image
        >>> image, K = demo_image()
        >>> hands = nvf_fast.load(device="cpu")(image, K)  # as of a mean adult hand
        >>> farther = 1.1 * np.linalg.norm(hands.joints[:, 0], axis=-1)
        >>> scale = estimate_hand_scale(hands, distance_mm=farther)
        >>> bool(np.isclose(scale.mm, 1.1 * hands.hand_scale[0]))
        True
    """
    if (depth is None) == (distance_mm is None) or (depth is None) != (K is None):
        raise ValueError("give depth and K, or distance_mm")
    joints = _joints(pose)
    if depth is not None:
        fits = _fits(pose, read_depths(depth), K)
        faults = [fit.fault for fit in fits]
        ratios = np.array([np.nan if fit.fault else fit.ratio for fit in fits])
    else:
        expected = f"a positive number, or one for each of {len(joints)} pose(s)"
        faults = ["it is not valid"] * len(joints)
        distances = read_numbers("distance_mm", distance_mm, expected)
        lengths = np.isfinite(distances) & (distances > 0)
        if distances.shape not in ((), (len(joints),)) or not lengths.all():
            raise ValueError(f"distance_mm must be {expected}, got {distance_mm}")
        ratios = distances / np.linalg.norm(joints[:, 0], axis=-1)
    scales = _hand_scales(pose) * ratios
    scales = scales[np.isfinite(scales)]
    if not len(scales):
        raise ValueError(f"no pose determines the hand's scale: {faults[0] if faults else 'none is given'}")
    median = float(np.median(scales))
    given = "depth" if distance_mm is None else "distance_mm"
    hint = f"{given} must be mm, not metres, of the hands in the poses"
    check_hand_scales(f"hand_scale by {given}", np.array([median]), hint)
    return HandScale(median, float(np.median(np.abs(scales - median))), len(scales))


def read_depths(depth: Any, sizes: Sequence[tuple[int, int]] | None = None) -> list[np.ndarray]:
    """Depth images as arrays, (H, W) mm each, without a copy where they lie on the CPU.

    Args:
        depth: one image, (B, H, W), or a list.
        sizes: (height, width) px of the images that they are aligned with; None where unknown.
    """
    depths = list(depth) if isinstance(depth, list | tuple) or getattr(depth, "ndim", 0) == 3 else [depth]
    if sizes is not None and len(depths) != len(sizes):
        got = f"shape {tuple(depth.shape)}" if hasattr(depth, "shape") else f"{len(depths)} of them"
        raise ValueError(f"depth must be one image (H, W) for each of {len(sizes)}, got {got}")
    for index, each in enumerate(depths):
        if not isinstance(each, np.ndarray | Tensor):
            raise TypeError(f"depth must be a numpy array or a torch tensor, got {type(each).__name__}")
        if isinstance(each, Tensor):
            check_dense("depth", each)
            each = (each.float() if each.dtype == torch.bfloat16 else each).numpy(force=True)
        depths[index] = each = np.ma.filled(each, 0)  # masked values count as not measured
        shape = each.shape
        expected = shape if sizes is None else tuple(sizes[index])
        if each.ndim != 2 or shape != expected:
            size = "(H, W)" if sizes is None else f"(H, W) = {expected} px, aligned with the image"
            raise ValueError(f"depth must be {size}, got shape {shape}")
        if each.dtype.kind not in "iuf" or each.dtype.itemsize == 1:
            raise TypeError(f"depth must be mm as uint16, another integer or a float, got {each.dtype}")
        step = max(4, max(shape) // 1024)
        values = each[::step, ::step]
        values = values[np.isfinite(values)]
        if (values < 0).any():
            raise ValueError(f"depth must be positive mm, 0 or NaN without a measurement, got {values.min()}")
        if 0 < values.max(initial=0) <= METRES:
            raise ValueError(
                f"depth must be in mm, the largest value is {values.max():.3g}: multiply metres by 1000"
            )
    return depths


def _fits(pose: HandPose[Any], depths: list[np.ndarray], K: Any) -> list[DepthFit]:
    """The fit of each pose to the depth image of its own image."""
    joints, scales = _joints(pose), _hand_scales(pose)
    images = np.zeros(1, int) if pose.image_index is None else np.atleast_1d(_numpy(pose.image_index))
    if len(depths) == 1 and (images == images[:1]).all():
        images = np.zeros(len(joints), int)  # poses of one image, with its depth
    if len(joints) and images.max() >= len(depths):
        raise ValueError(f"depth must be an image for each of {images.max() + 1} images, got {len(depths)}")
    cameras = read_cameras(K, [depth.shape for depth in depths])

    return [
        fit_depth(each, depths[image], cameras.chosen([image]), scale)
        for each, image, scale in zip(joints, images.tolist(), scales, strict=True)
    ]


def fit_depth(joints: np.ndarray, depth: np.ndarray, camera: Cameras, hand_scale: float) -> DepthFit:
    """Find the scale of one hand at which its surface lies at the measured depths.

    Args:
        joints: (21, 3) float64 mm; NaN without a hand.
        depth: (H, W) mm, valid.
        camera: one, of the depth image.
        hand_scale: mm, of the joints.
    """
    if not np.isfinite(joints).all() or joints[:, 2].min() <= 0:
        return DepthFit(1.0, "it is not valid")
    rays, surface = surface_depths(joints)
    columns, rows = np.rint(camera.project(rays[None])[0]).T
    inside = (columns >= 0) & (columns < depth.shape[1]) & (rows >= 0) & (rows < depth.shape[0])
    rows, columns = rows[inside].astype(np.int64), columns[inside].astype(np.int64)
    measured = depth[rows, columns].astype(np.float64)
    seen = np.isfinite(measured) & (measured > 0)
    if seen.sum() < max(LEAST_RAYS, LEAST_MEASURED * len(rays)):
        return DepthFit(1.0, f"measured at {seen.sum()} of {len(rays)} pixels of the hand")
    expected = surface[inside][seen]
    logs = np.log(measured[seen] / expected)
    middle = np.median(logs)
    for _ in range(ITERATIONS):
        agreeing = np.abs(expected * np.exp(middle) * np.expm1(logs - middle)) <= AGREEING_MM
        if agreeing.mean() < LEAST_AGREEING:
            return DepthFit(
                1.0,
                f"only {100 * agreeing.mean():.0f} % of {len(logs)} measurements lie within "
                f"{AGREEING_MM:g} mm of one hand's surface: something hides it, or the depth image is not "
                "aligned with the image",
            )
        middle = np.median(logs[agreeing])
    ratio, (low, high) = float(np.exp(middle)), HAND_SCALES_MM
    if not low <= hand_scale * ratio <= high:
        return DepthFit(
            1.0,
            f"a hand there would have a scale of {hand_scale * ratio:.1f} mm, outside people's {low:g} to "
            f"{high:g} mm: the surface is not the hand's, or the depth is not in mm",
        )
    return DepthFit(ratio)


def surface_depths(joints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rays through a hand, and the depths at which they meet its surface.

    Args:
        joints: (21, 3) float64 mm, in front of the camera.

    Returns:
        Points (N, 3) at depth 1, and depths (N,) mm. Rays that graze the surface are left out.
    """
    size = bone_lengths(joints).sum() / UNIT_LENGTH_MM
    starts, ends = (size * each[0] for each in cone_ends(joints[None] / size))
    along = np.linspace(0, 1, SPHERES)[:, None, None]
    centres = (starts + along * (ends - starts)).reshape(-1, 3)
    first, last = size * RADII_MM[:, 0], size * RADII_MM[:, 1]
    radii = (first + along[..., 0] * (last - first)).ravel()
    slopes = joints[:, :2] / joints[:, 2:]
    grid = [np.linspace(low, high, RAYS) for low, high in zip(slopes.min(0), slopes.max(0), strict=True)]
    rays = np.stack([*(each.ravel() for each in np.meshgrid(*grid)), np.ones(RAYS**2)], 1)
    lengths = np.linalg.norm(rays, axis=1)
    reach = (rays / lengths[:, None]) @ centres.T  # of the point of each ray nearest to each centre
    inner = radii**2 - (centres**2).sum(1) + reach**2  # squared, from there to the sphere along the ray
    hits = np.where(inner > 0, reach - np.sqrt(np.maximum(inner, 0)), np.inf)
    nearest = hits.argmin(1)
    rows = np.arange(len(rays))
    steep = inner[rows, nearest] > (1 - GRAZING**2) * radii[nearest] ** 2
    return rays[steep], (hits[rows, nearest] / lengths)[steep]


def _joints(pose: HandPose[Any]) -> np.ndarray:
    """Joints (N, 21, 3) float64 of a pose or a batch."""
    return _numpy(pose.joints).astype(np.float64).reshape(-1, 21, 3)


def _hand_scales(pose: HandPose[Any]) -> np.ndarray:
    """Hand scales (N,) mm: those of the poses, else the lengths of their bones 9-10."""
    if pose.hand_scale is not None:
        return np.atleast_1d(_numpy(pose.hand_scale)).astype(np.float64)
    joints = _joints(pose)
    return np.linalg.norm(joints[:, 10] - joints[:, 9], axis=-1)


def _numpy(values: Any) -> np.ndarray:
    return values.numpy(force=True) if isinstance(values, Tensor) else np.asarray(values)
