"""Validation of the estimator's arguments, and their conversion to tensors."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nvf_fast.camera import REFERENCE_SLOPE, project
from nvf_fast.config import NVFConfig
from nvf_fast.pose import HandPose
from nvf_fast.volumes import Placement

VIEW_DEGREES = 2 * math.degrees(math.atan(REFERENCE_SLOPE))
WIDEST_SLOPE = math.tan(math.radians(75))  # of half a hand view
SMALLEST_BOX_PX = 2
HAND_SCALE_RANGE_MM = (10.0, 120.0)
# Corners of a unit square in order, as homogeneous pixels.
_CORNERS = np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 1.0], [1.0, 1.0, 1.0], [0.0, 1.0, 1.0]])


def read_images(image: Any) -> tuple[list[Any], bool]:
    """Images as uint8 arrays (B, H, W, 3), all numpy or all torch; and whether a single one was given."""
    several = isinstance(image, list | tuple)
    groups = list(image) if several else [image]
    if not groups:
        raise ValueError("image must be an image or a list of images, got an empty list")
    for i, group in enumerate(groups):
        _check_image(group, f"image {i}" if several else "image", (3,) if several else (3, 4))
    kinds = {str(group.device) if isinstance(group, Tensor) else "numpy" for group in groups}
    if len(kinds) > 1:
        raise TypeError(f"images must be all numpy, or all torch on one device, got {sorted(kinds)}")
    single = not several and image.ndim == 3
    return [group if group.ndim == 4 else group[None] for group in groups], single


def read_intrinsics(K: Any, count: int) -> Tensor:
    """(count, 3, 3) float64 on the CPU."""
    intrinsics = _per_image("K", K, "(3, 3) or (B, 3, 3) intrinsics in px", count, 3, 3)
    # For nine values, Python numbers are faster than tensors.
    for (fx, skew, cx), (zero, fy, cy), last in intrinsics.tolist():
        if not all(map(math.isfinite, (fx, skew, cx, zero, fy, cy, *last))):
            raise ValueError(f"K must be finite, got {intrinsics.tolist()}")
        if zero != 0 or last != [0, 0, 1]:
            raise ValueError(
                f"K must be [[fx, s, cx], [0, fy, cy], [0, 0, 1]] in px, got {intrinsics.tolist()}"
            )
        if fx <= 0 or fy <= 0:
            raise ValueError(f"K must have positive focal lengths fx and fy in px, got {intrinsics.tolist()}")
    return intrinsics


def read_sides(side: Any, count: int) -> tuple[Tensor, Tensor]:
    """(count,) bool, true for left hands, and (count,) bool, true for unknown sides; both on the CPU."""
    sides = list(side) if isinstance(side, list | tuple) else [side] * count
    if len(sides) != count or any(each not in ("left", "right", None) for each in sides):
        raise ValueError(
            f'side must be "right", "left" or None, or one for each of {count} image(s), got {side!r}'
        )
    return torch.tensor([each == "left" for each in sides]), torch.tensor([each is None for each in sides])


def read_hand_scale(hand_scale: Any, count: int, config: NVFConfig) -> Tensor | None:
    """(count,) float32 mm on the CPU, or None for a model without this input.

    It multiplies the results of a network of hand views, which has no such input.
    """
    if hand_scale is None:
        if config.hand_scale and not config.scale_optional:
            raise ValueError(
                "this model was trained with the hand scale always given: hand_scale must be the length in "
                "mm of the middle finger's proximal phalanx (joints 9 to 10), got None"
            )
        return None
    if not config.hand_scale and config.view != "hand":
        raise ValueError(f"this model takes no hand scale: hand_scale must be None, got {hand_scale}")
    scale = _per_image("hand_scale", hand_scale, "a number of mm, or one per image", count)
    low, high = HAND_SCALE_RANGE_MM
    if not all(low <= value <= high for value in scale.tolist()):
        raise ValueError(
            f"hand_scale must be the length in mm of the middle finger's proximal phalanx, {low:g} to "
            f"{high:g} mm, got {hand_scale}"
        )
    return scale.float()


def read_roots(root: Any, count: int) -> Tensor:
    """Wrists (count, 3) float64 mm on the CPU, in front of their cameras."""
    roots = _per_image("root", root, "(3,) or (B, 3) mm, the wrist in the camera's frame", count, 3)
    if not (roots.isfinite().all() and (roots[..., 2] > 0).all()):
        raise ValueError(f"root must be finite and in front of the camera (z > 0 mm), got {roots.tolist()}")
    return roots


def read_boxes(box: Any, sizes: Sequence[Sequence[int]]) -> Tensor | None:
    """Boxes (B, 4) float64 px on the CPU; None stays None.

    Args:
        box: (4,) or (B, 4) px, or None.
        sizes: height and width in px of each image.
    """
    if box is None:
        return None
    boxes = _per_image("box", box, "(x0, y0, x1, y1) px, or (B, 4)", len(sizes), 4)
    if not (boxes.isfinite().all() and (boxes[:, 2:] - boxes[:, :2] >= SMALLEST_BOX_PX).all()):
        raise ValueError(
            f"box must be (x0, y0, x1, y1) in px, x1 and y1 at least {SMALLEST_BOX_PX} px larger, "
            f"got {boxes.tolist()}"
        )
    return boxes


def check_middles(boxes: Tensor, sizes: Sequence[Sequence[int]]) -> None:
    """Refuse boxes (B, 4) px whose middles lie outside their images of (height, width) px."""
    middles = (boxes[:, 2:] + boxes[:, :2]) / 2
    shapes = torch.tensor([(width, height) for height, width in sizes])
    if not ((middles >= -0.5) & (middles <= shapes - 0.5)).all():
        raise ValueError(
            f"the middle of a box must lie in its image, got {boxes.tolist()} px in images of "
            f"(width, height) {shapes.tolist()} px"
        )


def check_hand_views(placement: Placement, boxes: Tensor, intrinsics: Tensor, sizes: Sequence[Any]) -> None:
    """Refuse boxes (B, 4) px whose hand views are too wide or show no pixel of their images."""
    assert placement.slopes is not None
    for i, slope in enumerate(placement.slopes.tolist()):
        if not slope <= WIDEST_SLOPE:
            degrees = "180" if math.isinf(slope) else f"{2 * math.degrees(math.atan(slope)):.0f}"
            raise ValueError(
                f"the box {boxes[i].tolist()} px of image {i} needs a view of {degrees} degrees or more, the "
                f"widest is {2 * math.degrees(math.atan(WIDEST_SLOPE)):.0f} degrees: it must be smaller"
            )
    # numpy, whose operations on few numbers cost a fifth of torch's.
    shapes = np.array([(width, height) for height, width in sizes], dtype=np.float64)
    middles = (boxes[:, 2:] + boxes[:, :2]).numpy() / 2
    if ((middles >= -0.5) & (middles <= shapes - 0.5)).all():
        return  # the axes of the views meet the images
    slopes = placement.slopes.numpy()[:, None, None]
    # Rays of both pyramids' edges in the cameras' frames.
    image = _CORNERS * np.append(shapes, np.ones((len(shapes), 1)), 1)[:, None] - [0.5, 0.5, 0]
    image = image @ np.linalg.inv(intrinsics.numpy()).swapaxes(1, 2)
    view = np.concatenate([(2 * _CORNERS[:, :2] - 1) * slopes, np.ones((len(shapes), 4, 1))], 2)
    view = view @ placement.frames.numpy()
    for i in range(len(boxes)):
        if _apart(image[i], view[i]) or _apart(view[i], image[i]):
            raise ValueError(
                f"the view of the box {boxes[i].tolist()} px touches no pixel of image {i}, (width, height) "
                f"{shapes[i].astype(int).tolist()} px"
            )


def _apart(pyramid: np.ndarray, other: np.ndarray) -> bool:
    """Whether a side of a pyramid separates it from another; both by the rays (4, 3) of their edges, in turn.

    Two convex cones have no ray in common where a side of one of them separates them.
    """
    following = pyramid[[1, 2, 3, 0]]
    normals = np.cross(pyramid, following)
    inwards = (normals * following[[1, 2, 3, 0]]).sum(1)
    return bool(((other @ normals.T) * inwards <= 0).all(0).any())


def warn_of_wide_boxes(boxes: Tensor, intrinsics: Tensor) -> None:
    """Warn of boxes (B, 4) px wider than the reference camera's view, for intrinsics (B, 3, 3) px."""
    middles, extents = (boxes[:, 2:] + boxes[:, :2]) / 2, boxes[:, 2:] - boxes[:, :2]
    # Angles between the rays through the midpoints of opposite sides.
    half = torch.diag_embed(extents / 2)
    ends = torch.stack([middles[:, None] - half, middles[:, None] + half])
    rays = torch.cat([ends, torch.ones_like(ends[..., :1])], -1) @ torch.linalg.inv(intrinsics).mT
    spans = torch.cosine_similarity(rays[0], rays[1], dim=-1).clamp(-1, 1).acos().rad2deg()
    for i, (across, down) in enumerate(spans.tolist()):
        if max(across, down) > VIEW_DEGREES + 0.1:
            warnings.warn(
                f"the box {boxes[i].tolist()} px of image {i} spans {across:.1f} x {down:.1f} degrees, the "
                f"view {VIEW_DEGREES:.1f} x {VIEW_DEGREES:.1f}; the view does not include all of the box",
                stacklevel=4,  # the caller of the estimator, past its no_grad
            )


def read_previous(previous: HandPose[Any] | None, placement: Placement) -> Tensor | None:
    """Joints (B, 21, 3) float32 mm on the CPU, in the volume's frames; NaN where a pose is not valid."""
    if previous is None:
        return None
    joints = _previous_joints(previous, len(placement.frames))
    return ((joints - placement.origins[:, None]) @ placement.frames.mT).float()


def previous_boxes(previous: HandPose[Any], intrinsics: Tensor) -> Tensor:
    """Boxes (B, 4) float64 px of the joints of poses in the frames before, for intrinsics (B, 3, 3) px."""
    joints = _previous_joints(previous, len(intrinsics))
    if not (joints.isfinite().all() and (joints[..., 2] > 0).all()):
        lost = [i for i, each in enumerate(joints) if not (each.isfinite().all() and (each[:, 2] > 0).all())]
        raise ValueError(
            f"previous must be valid and in front of the camera, to place the view: pose(s) {lost} are not; "
            "give a box instead, or neither, to find the hands again"
        )
    pixels = project(joints, intrinsics)
    return torch.cat([pixels.amin(1), pixels.amax(1)], 1)


def _previous_joints(previous: HandPose[Any], count: int) -> Tensor:
    """(count, 21, 3) float64 mm on the CPU, in the frames of the cameras."""
    if not isinstance(previous, HandPose):
        raise TypeError(
            f"previous must be a HandPose, as the estimator returns it, got {type(previous).__name__}"
        )
    joints = _numbers("previous.joints", previous.joints, "(21, 3) or (B, 21, 3) mm")
    joints = joints if joints.ndim == 3 else joints[None]
    if joints.shape != (count, 21, 3):
        raise ValueError(
            f"previous must hold a pose for each of {count} image(s), got joints {tuple(joints.shape)}"
        )
    return joints


def _check_image(image: Any, name: str, dimensions: tuple[int, ...]) -> None:
    if not isinstance(image, np.ndarray | Tensor):
        hint = "; np.asarray(image.convert('RGB')) makes one of it" if hasattr(image, "convert") else ""
        raise TypeError(f"{name} must be a numpy array or a torch tensor, got {type(image).__name__}{hint}")
    shape = tuple(image.shape)
    if len(shape) not in dimensions or shape[-1] != 3 or 0 in shape:
        expected = "(H, W, 3), or (B, H, W, 3) for a batch" if 4 in dimensions else "(H, W, 3)"
        hint = ""
        if len(shape) == 2:
            hint = "; repeat the channel of a grey image three times"
        elif len(shape) > 2 and shape[-1] == 4:
            hint = "; leave the alpha channel out"
        elif len(shape) > 2 and shape[-3] == 3:
            hint = "; channels come last"
        raise ValueError(f"{name} must be {expected}, RGB, got shape {shape}{hint}")
    if image.dtype not in (np.uint8, torch.uint8):
        raise TypeError(f"{name} must be uint8, values 0 to 255, got {image.dtype}")


def _per_image(name: str, value: Any, expected: str, count: int, *shape: int) -> Tensor:
    """(count, *shape) float64 on the CPU, from one value for all images or one for each."""
    numbers = _numbers(name, value, expected)
    if numbers.shape not in (shape, (count, *shape)):
        allowed = f"{shape or 'a number'}, or {(count, *shape)} for {count} image(s)"
        raise ValueError(f"{name} must be {allowed}, got shape {tuple(numbers.shape)}")
    return numbers.expand(count, *shape)


def _numbers(name: str, value: Any, expected: str) -> Tensor:
    """float64 on the CPU."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", torch.float64)
    try:
        return torch.from_numpy(np.array(value, dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be {expected}, got {value!r}") from error
