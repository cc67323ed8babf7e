"""Validation of the estimator's arguments, and their conversion to arrays."""

from __future__ import annotations

import math
import numbers
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor, uint8

from nvf_fast.camera import REFERENCE_SLOPE
from nvf_fast.camera_model import Camera, Cameras, check_intrinsics
from nvf_fast.config import NVFConfig
from nvf_fast.joint_definitions import UNIT_SCALE_MM
from nvf_fast.pose import HandPose
from nvf_fast.runtime.arguments import check_dense, read_numbers
from nvf_fast.volumes import Placement

VIEW_DEGREES = 2 * math.degrees(math.atan(REFERENCE_SLOPE))
WIDEST_SLOPE = math.tan(math.radians(75))  # of half a hand view
SMALLEST_BOX_PX = 2
LARGE_BOX = 4.0  # ratio of a box's longer side to the image's, beyond which it hardly surrounds a hand
SIGHT_SAMPLES = 33  # along each axis of a view, to test whether a lens shows it in an image
HAND_SCALE_RANGE_MM = (10.0, 60.0)
USUAL_HAND_SCALES_MM = (20.0, 44.0)  # of nearly all of them
FELT_BONE = "it is shorter than the bone that one feels: nvf_fast.depth.estimate_hand_scale measures it"
METRES = 20.0  # distances no larger than this are not mm
# Corners of a unit square in order, as homogeneous pixels.
_CORNERS = np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 1.0], [1.0, 1.0, 1.0], [0.0, 1.0, 1.0]])


def read_images(image: Any, channels: int = 3) -> tuple[list[Any], bool]:
    """Images (H, W, `channels`) uint8, all numpy or all torch; and whether a single one was given."""
    several = isinstance(image, list | tuple)
    groups = list(image) if several else [image]
    if not groups:
        raise ValueError("image must be an image or a list of images, got an empty list")
    for i, group in enumerate(groups):
        _check_image(group, i if several else None, channels)
    if (
        several
        and len(kinds := {group.device if isinstance(group, Tensor) else "numpy" for group in groups}) > 1
    ):
        raise TypeError(
            f"images must be all numpy, or all torch on one device, got {sorted(map(str, kinds))}"
        )
    single = not several and image.ndim == 3
    return groups if several or single else list(image), single


def read_one_image(caller: str, image: Any, channels: int = 3) -> Any:
    """The image (H, W, `channels`) uint8 given to a function of one image."""
    (image, *_), single = read_images(image, channels)
    if not single:
        raise ValueError(f"{caller} takes one image, got several: call it on each")
    return image


def read_cameras(K: Any, sizes: Sequence[Sequence[int]]) -> Cameras:
    """The camera of each image.

    Args:
        K: intrinsics (3, 3) or (B, 3, 3) px, a `Camera` or a list of B.
        sizes: height and width in px of each image.
    """
    count = len(sizes)
    if isinstance(K, Cameras):
        return K.chosen([0] * count) if len(K) == 1 else K
    if isinstance(K, Camera) or (isinstance(K, list | tuple) and any(isinstance(each, Camera) for each in K)):
        given = [K] * count if isinstance(K, Camera) else list(K)
        if len(given) != count or not all(isinstance(each, Camera) for each in given):
            raise ValueError(f"K must be one Camera, or one for each of {count} image(s), got {given}")
        for i, (camera, (height, width)) in enumerate(zip(given, sizes, strict=True)):
            if camera.size != (width, height):
                raise ValueError(
                    f"the camera is for images of {' x '.join(map(str, camera.size))} px, image {i} has "
                    f"{width} x {height} px: pass camera.resized({width}, {height}), or, for a crop or a "
                    "rotated image, camera.cropped(x0, y0, x1, y1) or camera.rotated(quarters)"
                )
        return Cameras.of(given)
    values = read_numbers("K", K, "a Camera, or (3, 3) or (B, 3, 3) intrinsics in px")
    intrinsics = _expanded("K", values, count, (3, 3), "image")
    if values.ndim == 2:
        matrix = values.tolist()
        for height, width in {tuple(size) for size in sizes}:
            check_intrinsics(matrix, width, height)
    else:
        for matrix, (height, width) in zip(values.tolist(), sizes, strict=True):
            check_intrinsics(matrix, width, height)
    return Cameras(intrinsics, (None,) * count)


def read_sides(side: Any, count: int, of: str = "hand") -> list[str | None]:
    """The side of each of `count` hands or images."""
    side = side.tolist() if isinstance(side, np.ndarray) else side
    sides = list(side) if isinstance(side, list | tuple) else [side] * count
    known = (each is None or (isinstance(each, str) and each in ("left", "right")) for each in sides)
    if len(sides) != count or not all(known):
        raise ValueError(
            f'side must be "right", "left" or None, or a flat list with one for each of {count} {of}(s), '
            f"got {side!r}"
        )
    return sides


def read_hand_scale(hand_scale: Any, count: int, config: NVFConfig, of: str = "hand") -> np.ndarray | None:
    """(count,) float32 mm, or None for a model without this input.

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
    scale = _per_image("hand_scale", hand_scale, f"a number of mm, or one per {of}", count, of=of)
    check_hand_scales("hand_scale", scale)
    return scale.astype(np.float32)


def check_hand_scales(name: str, scales: np.ndarray, hint: str = FELT_BONE) -> None:
    """Refuse hand scales (N,) mm that nobody has, and warn of those that hardly anybody has."""
    meaning = "the length in mm between joints 9 and 10 as FreiHAND defines them"
    for (low, high), refused in ((HAND_SCALE_RANGE_MM, True), (USUAL_HAND_SCALES_MM, False)):
        outside = [value for value in scales.tolist() if not low <= value <= high]
        known = f"{UNIT_SCALE_MM:.1f} on average"
        if outside and refused:
            raise ValueError(
                f"{name} must be {meaning}, {known}, {low:g} to {high:g} mm, got {outside[0]:.4g}; {hint}"
            )
        if outside:  # without the value, since warnings of equal text are shown once
            warnings.warn(
                f"unusual {name}: {meaning} is {known}, nearly always {low:g} to {high:g} mm; {hint}",
                stacklevel=1,
            )


def read_scores(scores: Any, count: int) -> np.ndarray:
    """(count,) float32 in [0, 1]."""
    values = _per_image("scores", scores, "numbers in [0, 1]", count, of="box")
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"scores must be in [0, 1], got {values.tolist()}")
    return values.astype(np.float32)


def read_roots(root: Any, count: int) -> np.ndarray:
    """Wrists (count, 3) float64 mm, in front of their cameras."""
    roots = _per_image("root", root, "(3,) or (B, 3) mm, the wrist in the camera's frame", count, 3)
    if not (np.isfinite(roots).all() and (roots[..., 2] > METRES).all()):
        raise ValueError(
            f"root must be finite and in front of the camera (z > {METRES:g} mm), got {roots.tolist()}: "
            "multiply metres by 1000"
        )
    return roots


def read_boxes(box: Any, count: int, single: bool) -> tuple[np.ndarray, list[int]]:
    """Boxes (N, 4) float64 px, and the image of each.

    Args:
        box: px; for a single image (4,) or (N, 4), for several (B, 4) one each, (B, N, 4), or a list with
            (4,) or (N, 4) of each.
        count: number B of images.
        single: whether a single image was given.
    """
    expected = "(x0, y0, x1, y1) px" + (
        ", or (N, 4)" if single else f", or (4,) or (N, 4) for each of {count} images"
    )
    several = getattr(box, "ndim", 0) > 1 or (
        isinstance(box, list | tuple) and not all(isinstance(each, numbers.Real) for each in box)
    )
    if several and not single:
        array = isinstance(box, np.ndarray | Tensor)
        boxes = (
            [*read_numbers("box", box, expected)]
            if array
            else [read_numbers("box", group, expected) for group in box]
        )
    else:
        boxes = [read_numbers("box", box, expected)] * count
    boxes = [each.reshape(0, 4) if each.shape == (0,) else each for each in boxes]
    if len(boxes) != count or any(each.ndim not in (1, 2) or each.shape[-1] != 4 for each in boxes):
        got = [tuple(each.shape) for each in boxes]
        raise ValueError(f"box must be {expected}, got shape {got[0] if single else got}")
    image_index = [i for i, each in enumerate(boxes) for _ in range(each.size // 4)]
    flat = boxes[0] if count == 1 else np.concatenate(boxes, None)
    flat = flat.reshape(-1, 4)
    # Infinite and NaN extents are not less than infinity.
    if not all(
        SMALLEST_BOX_PX <= x1 - x0 < math.inf and SMALLEST_BOX_PX <= y1 - y0 < math.inf
        for x0, y0, x1, y1 in flat.tolist()
    ):
        raise ValueError(
            f"box must be (x0, y0, x1, y1) in px, x1 and y1 at least {SMALLEST_BOX_PX} px larger, "
            f"got {flat.tolist()}; (x, y, width, height) is (x, y, x + width, y + height) there"
        )
    return flat, image_index


def check_middles(boxes: np.ndarray, sizes: Sequence[Sequence[int]]) -> None:
    """Refuse boxes (B, 4) px whose middles lie outside their images of (height, width) px."""
    if not _meet(boxes, sizes):
        raise ValueError(
            f"the middle of a box must lie in its image, got {boxes.tolist()} px in images of "
            f"(width, height) {[[width, height] for height, width in sizes]} px"
        )


def _meet(boxes: np.ndarray, sizes: Sequence[Sequence[int]]) -> bool:
    """Whether the middles of boxes (B, 4) px lie in their images of (height, width) px."""
    return all(
        -0.5 <= (x0 + x1) / 2 <= width - 0.5 and -0.5 <= (y0 + y1) / 2 <= height - 0.5
        for (x0, y0, x1, y1), (height, width) in zip(boxes.tolist(), sizes, strict=True)
    )


def check_hand_views(
    placement: Placement[np.ndarray],
    boxes: np.ndarray,
    cameras: Cameras,
    sizes: Sequence[Any],
    image_index: Sequence[int],
) -> None:
    """Refuse boxes (N, 4) px whose hand views are too wide or show no pixel of their images.

    Args:
        placement: of the N hand views.
        boxes: that placed them.
        cameras: of the N images.
        sizes: height and width in px of the image of each.
        image_index: its index.
    """
    assert placement.slopes is not None
    for i, slope in enumerate(placement.slopes.tolist()):
        if not slope <= WIDEST_SLOPE:
            degrees = "180" if math.isinf(slope) else f"{2 * math.degrees(math.atan(slope)):.0f}"
            raise ValueError(
                f"the box {boxes[i].tolist()} px of image {image_index[i]} needs a view of {degrees} "
                f"degrees or more, but views have at most {2 * math.degrees(math.atan(WIDEST_SLOPE)):.0f} "
                "degrees: pass a smaller box"
            )
    if _meet(boxes, sizes):  # as do the axes of the views
        return
    shapes = np.array([(width, height) for height, width in sizes], dtype=np.float64).reshape(-1, 2)
    slopes = placement.slopes[:, None, None]
    # Rays of both pyramids' edges in the cameras' frames.
    image = _CORNERS * np.append(shapes, np.ones((len(shapes), 1)), 1)[:, None] - [0.5, 0.5, 0]
    image = image @ np.linalg.inv(cameras.intrinsics).swapaxes(1, 2)
    view = np.concatenate([(2 * _CORNERS[:, :2] - 1) * slopes, np.ones((len(shapes), 4, 1))], 2)
    view = view @ placement.frames
    for i, lens in enumerate(cameras.lenses):
        if lens is not None:
            unseen = _out_of_sight(view[i], cameras.chosen([i]), shapes[i])
        else:
            unseen = _apart(image[i], view[i]) or _apart(view[i], image[i])
        if unseen:
            large = _excess(boxes[i], sizes[i])
            raise ValueError(
                f"the view of the box {boxes[i].tolist()} px touches no pixel of image {image_index[i]}, "
                f"(width, height) {shapes[i].astype(int).tolist()} px" + (large and f": the box {large}")
            )


def _excess(box: np.ndarray, size: Sequence[int]) -> str:
    """How much a box (4,) px is larger than its image of (height, width) px, if it is far larger."""
    ratio = float((box[2:] - box[:2]).max()) / max(size)
    return "" if ratio <= LARGE_BOX else f"is {ratio:.1f} times as long as the image, but surrounds one hand"


def large_boxes(
    boxes: np.ndarray, sizes: Sequence[Sequence[int]], image_index: Sequence[int]
) -> tuple[str, ...]:
    """Warnings of boxes (N, 4) px far larger than their images of (height, width) px."""
    return tuple(
        f"the box {box.tolist()} px of image {i} {large}"
        for box, size, i in zip(boxes, sizes, image_index, strict=True)
        if (large := _excess(box, size))
    )


def check_sight(
    placement: Placement[np.ndarray],
    cameras: Cameras,
    size: int,
    sizes: Sequence[Any],
    image_index: Sequence[int],
) -> None:
    """Refuse views of `size` px, without a box, that show no pixel of their images of (height, width) px."""
    if cameras.distorted:
        return  # the matrices end before the lens
    for matrix, (height, width), i in zip(placement.matrices, sizes, image_index, strict=True):
        corners = (_CORNERS * [size, size, 1] - [0.5, 0.5, 0]) @ matrix.T
        if (corners[:, 2] <= 0).any():
            continue
        pixels = corners[:, :2] / corners[:, 2:]
        low, high = pixels.min(0).round().tolist(), pixels.max(0).round().tolist()
        if min(high) < -0.5 or low[0] > width - 0.5 or low[1] > height - 0.5:
            raise ValueError(
                f"the view touches no pixel of image {i}, {width} x {height} px: it shows x from "
                f"{low[0]:.0f} to {high[0]:.0f} px and y from {low[1]:.0f} to {high[1]:.0f} px"
            )


def _apart(pyramid: np.ndarray, other: np.ndarray) -> bool:
    """Whether a side of a pyramid separates it from another; both by the rays (4, 3) of their edges, in turn.

    Two convex cones have no ray in common where a side of one of them separates them.
    """
    following = pyramid[[1, 2, 3, 0]]
    normals = np.cross(pyramid, following)
    inwards = (normals * following[[1, 2, 3, 0]]).sum(1)
    return bool(((other @ normals.T) * inwards <= 0).all(0).any())


def _out_of_sight(view: np.ndarray, camera: Cameras, shape: np.ndarray) -> bool:
    """Whether a lens shows no ray of a grid between a view's edges (4, 3) in an image of (width, height)."""
    weights = np.linspace(0, 1, SIGHT_SAMPLES)[:, None]
    left, right = (view[a] + weights * (view[b] - view[a]) for a, b in ((0, 3), (1, 2)))
    rays = left[:, None] + weights * (right - left)[:, None]
    pixels = camera.project(rays.reshape(1, -1, 3))[0]
    return not ((pixels >= -0.5) & (pixels <= shape - 0.5)).all(1).any()


def wide_boxes(boxes: np.ndarray, cameras: Cameras, image_index: Sequence[int]) -> tuple[str, ...]:
    """Warnings of boxes (N, 4) px wider than the reference camera's view, for N cameras."""
    middles, extents = (boxes[:, 2:] + boxes[:, :2]) / 2, boxes[:, 2:] - boxes[:, :2]
    # Angles between the rays through the midpoints of opposite sides.
    half = extents[:, None] / 2 * np.eye(2)
    ends = np.stack([middles[:, None] - half, middles[:, None] + half])
    if cameras.distorted:
        ends = np.stack([cameras.straight(each) for each in ends])
    rays = np.concatenate([ends, np.ones_like(ends[..., :1])], -1) @ np.linalg.inv(cameras.intrinsics).mT
    first, second = rays / np.linalg.norm(rays, axis=-1, keepdims=True)
    spans = np.degrees(np.arccos((first * second).sum(-1).clip(-1, 1)))
    return tuple(
        f"the box {boxes[i].tolist()} px of image {image_index[i]} spans {across:.1f} x {down:.1f} "
        f"degrees, the view {VIEW_DEGREES:.1f} x {VIEW_DEGREES:.1f}: the view does not contain the whole box"
        for i, (across, down) in enumerate(spans.tolist())
        if max(across, down) > VIEW_DEGREES + 0.1
    )


def read_previous(previous: HandPose[Any] | None, placement: Placement[np.ndarray]) -> np.ndarray | None:
    """Joints (B, 21, 3) float32 mm in the volume's frames; NaN where a pose is not valid."""
    if previous is None:
        return None
    joints, count = _previous_joints(previous), len(placement.frames)
    if len(joints) != count:
        raise ValueError(f"previous must hold one pose for each of {count} hand(s), got {len(joints)}")
    return ((joints - placement.origins[:, None]) @ placement.frames.mT).astype(np.float32)


def previous_images(previous: HandPose[Any], count: int) -> list[int]:
    """The image of each previous pose: its own where several images were given to it, else one pose each."""
    joints = _previous_joints(previous)
    if count == 1:
        return [0] * len(joints)
    index = previous.image_index
    if index is None or index.ndim == 0:
        if len(joints) != count:
            raise ValueError(f"previous must hold one pose for each of {count} images, got {len(joints)}")
        return list(range(count))
    image_index: list[int] = index.tolist()
    if not all(0 <= each < count for each in image_index):
        raise ValueError(f"previous must hold poses of {count} images, got poses of images {image_index}")
    return image_index


def previous_boxes(previous: HandPose[Any], cameras: Cameras) -> np.ndarray:
    """Boxes (N, 4) float64 px of the joints of poses in the previous frames, for N cameras."""
    joints = _previous_joints(previous)
    placed = np.isfinite(joints).all((1, 2)) & (joints[..., 2] > 0).all(1)
    if not placed.all():
        lost = np.flatnonzero(~placed).tolist()
        raise ValueError(
            f"previous must be valid and in front of the camera, to place the view: pose(s) {lost} are not; "
            "give a box instead, or neither, to find the hands again"
        )
    pixels = cameras.project(joints)
    if np.isnan(pixels).any():
        raise ValueError("previous must hold joints that the camera's lens sees: give a box instead")
    return np.concatenate([pixels.min(1), pixels.max(1)], 1)


def _previous_joints(previous: HandPose[Any]) -> np.ndarray:
    """(N, 21, 3) float64 mm, in the frames of the cameras."""
    if not isinstance(previous, HandPose):
        raise TypeError(
            f"previous must be a HandPose, as the estimator returns it, got {type(previous).__name__}"
        )
    joints = read_numbers("previous.joints", previous.joints, "(21, 3) or (B, 21, 3) mm")
    joints = joints if joints.ndim == 3 else joints[None]
    if joints.shape[1:] != (21, 3):
        raise ValueError(f"previous.joints must be (21, 3) or (N, 21, 3) mm, got {tuple(joints.shape)}")
    return joints


def _check_image(image: Any, index: int | None, channels: int) -> None:
    """Check an image of a list, or, of index None, an image or a batch of them."""
    name = "image" if index is None else f"image {index}"
    if not isinstance(image, np.ndarray | Tensor):
        hint = "; np.asarray(image.convert('RGB')) makes one of it" if hasattr(image, "convert") else ""
        raise TypeError(f"{name} must be a numpy array or a torch tensor, got {type(image).__name__}{hint}")
    if isinstance(image, Tensor):
        check_dense(name, image)
    shape = image.shape
    if not (len(shape) == 3 or (len(shape) == 4 and index is None)) or shape[-1] != channels or 0 in shape:
        shape = tuple(shape)
        expected, hint = f"(H, W, {channels})", ""
        if index is None:
            expected += f", or (B, H, W, {channels}) for a batch"
        if channels != 3:
            raise ValueError(f"{name} must be {expected}, as the network takes it, got shape {shape}")
        if len(shape) == 2 or shape[-1:] == (1,):
            hint = "; repeat the channel of a grey image three times"
        elif len(shape) > 2 and shape[-1] == 4:
            hint = "; leave the alpha channel out"
        elif len(shape) > 2 and shape[-3] == 3:
            hint = "; channels come last"
        raise ValueError(f"{name} must be {expected}, RGB, got shape {shape}{hint}")
    if image.dtype != (uint8 if isinstance(image, Tensor) else np.uint8):
        raise TypeError(f"{name} must be uint8, values 0 to 255, got {image.dtype}")


def _per_image(
    name: str, value: Any, expected: str, count: int, *shape: int, of: str = "image"
) -> np.ndarray:
    """(count, *shape) float64, from one value for all images or one for each."""
    return _expanded(name, read_numbers(name, value, expected), count, shape, of)


def _expanded(name: str, values: np.ndarray, count: int, shape: tuple[int, ...], of: str) -> np.ndarray:
    """(count, *shape) from (*shape) or (count, *shape)."""
    if values.shape not in (shape, (count, *shape)):
        allowed = f"{shape or 'a number'}, or {(count, *shape)} for {count} {of}(s)"
        raise ValueError(f"{name} must be {allowed}, got shape {tuple(values.shape)}")
    if values.ndim > len(shape):
        return values
    return values[None] if count == 1 else np.repeat(values[None], count, 0)
