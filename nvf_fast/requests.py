"""Validated arguments of the estimator, with the view of each image."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
from torch import Tensor

from nvf_fast.camera import ViewPlan, plan_view
from nvf_fast.camera_model import Camera, Cameras
from nvf_fast.config import NVFConfig
from nvf_fast.finding import boxes_and_sides
from nvf_fast.inputs import (
    check_hand_views,
    check_middles,
    check_sight,
    large_boxes,
    previous_boxes,
    previous_images,
    read_boxes,
    read_cameras,
    read_hand_scale,
    read_images,
    read_previous,
    read_roots,
    read_sides,
    wide_boxes,
)
from nvf_fast.kernels.network_views.reference import ROW
from nvf_fast.pose import HandPose
from nvf_fast.search import Search
from nvf_fast.volumes import FrustumVolume, HandVolume, Placement, RootCube

KNOWN_NUMBERS = 2**10  # size of the largest array in a cached request
KNOWN_REQUESTS = 16  # cached, for calls with unchanged cameras and boxes


class Request(NamedTuple):
    """B hands, each with its image and the placement and the sampling of its view."""

    images: list[Any]  # (H, W, 3) uint8 each, numpy or torch
    image_index: list[int]  # of each hand's image among the given ones
    plans: list[ViewPlan]  # of each view's sampling
    rows: np.ndarray  # (B, 33) float64, the plans for `ops.network_views`, of images without padding
    placement: Placement[np.ndarray]  # of the volume before each camera
    cameras: Cameras  # of each hand
    left: np.ndarray  # (B,) bool, hands given as left ones
    both_sides: list[bool]  # whether to evaluate each mirrored hand view as well
    boxes: np.ndarray | None  # (B, 4) float64 px
    scale: np.ndarray | None  # (B,) float32 mm, hand scales
    previous: np.ndarray | None  # (B, 21, 3) float32 mm in the volume's frame, where a guided search begins
    single: bool  # whether one image and at most one box was given
    wide: tuple[str, ...]  # warnings of boxes wider than the view, or far larger than the image

    @property
    def slopes(self) -> np.ndarray | None:
        """(B,) float32, tangents of half the angles of hand views, or None."""
        return None if self.placement.slopes is None else self.placement.slopes.astype(np.float32)

    @property
    def network_scale(self) -> np.ndarray | None:
        """The hand scales as the network's input, which a network of hand views does not take."""
        return self.scale if self.placement.slopes is None else None


class RequestReader:
    """Validation of the arguments of `PoseEstimator.__call__` for one network.

    Args:
        config: of the network.
        volume: the queried volume.
        search: option of the estimator.
    """

    def __init__(
        self, config: NVFConfig, volume: FrustumVolume | RootCube | HandVolume, search: Search
    ) -> None:
        self._config, self._volume, self._search = config, volume, search
        self._known: dict[Any, tuple[Any, ...]] = {}  # requests without images, by the arguments
        self._cameras: tuple[Any, Any] = None, None  # of the last request, by images' sizes and K

    def __call__(
        self,
        image: Any,
        K: Any,
        hand_scale: Any = None,
        box: Any = None,
        side: str | Sequence[str | None] | None = None,
        return_votes: bool = False,
        previous: HandPose[Any] | None = None,
        root: Any = None,
    ) -> Request:
        """Validate the arguments and place the views.

        Raises:
            ValueError: a shape or a value violates the description in `PoseEstimator`.
            TypeError: an argument has the wrong type or dtype.
        """
        images, single = read_images(image, self._config.image_channels)
        sizes = [each.shape[:2] for each in images]
        box, side = boxes_and_sides(box, side, single)
        arguments = K, hand_scale, box, side, return_votes, previous, root
        try:
            key = tuple(sizes), single, _fingerprint(arguments)
        except (TypeError, RuntimeError):  # of a tensor without values, or a list that holds itself
            key = None
        known = self._known.get(key)
        if known is None:
            cameras = self._read_cameras(K, sizes, None if key is None else (key[0], key[2][1]))
            request = self._checked(images, sizes, single, cameras, *arguments[1:])
            if key is not None:
                if len(self._known) >= KNOWN_REQUESTS:
                    self._known.clear()
                self._known[key] = request[1:]
        else:
            request = Request([images[i] for i in known[0]], *known)
        for warning in request.wide:
            warnings.warn(warning, stacklevel=4)  # of the caller of the estimator, past its decorator
        return request

    def _read_cameras(self, K: Any, sizes: Sequence[tuple[int, ...]], key: Any) -> Cameras:
        """The camera of each image; those of the last request where the key is the same."""
        known, cameras = self._cameras
        if key is None or key != known:
            cameras = read_cameras(K, sizes)
            self._cameras = key, cameras
        return cast(Cameras, cameras)

    def _checked(
        self,
        images: list[Any],
        sizes: list[tuple[int, ...]],
        single: bool,
        cameras: Cameras,
        hand_scale: Any,
        box: Any,
        side: str | Sequence[str | None] | None,
        return_votes: bool,
        previous: HandPose[Any] | None,
        root: Any,
    ) -> Request:
        """Validate the arguments other than images and cameras, and place the views."""
        hand = isinstance(self._volume, HandVolume)
        self._check_combination(return_votes, box, root, previous)
        boxes, image_index = None, list(range(len(images)))
        if box is not None:
            boxes, image_index = read_boxes(box, len(images), single)
            single = single and len(box) > 0 and (box.ndim if hasattr(box, "ndim") else np.ndim(box)) == 1
        elif previous is not None:
            image_index = previous_images(previous, len(images))
            single = single and previous.joints.ndim == 2
        if image_index != list(range(len(images))):
            images, sizes = [images[i] for i in image_index], [sizes[i] for i in image_index]
            cameras = cameras.chosen(image_index)
        count = len(image_index)
        if previous is not None and hand:
            boxes, previous = previous_boxes(previous, cameras), None
        roots = read_roots(root, count) if self._volume.needs_root else None
        scale = read_hand_scale(hand_scale, count, self._config)
        sides = read_sides(side, count)
        left = np.array([each == "left" for each in sides], dtype=np.bool_)
        size = self._config.input_size
        placement = self._volume.place(
            cameras.intrinsics, size, left, boxes=boxes, roots=roots, cameras=cameras
        )
        wide: tuple[str, ...] = ()
        if hand and boxes is not None:
            check_hand_views(placement, boxes, cameras, sizes, image_index)
            wide = large_boxes(boxes, sizes, image_index)
        elif boxes is not None:
            check_middles(boxes, sizes)
            wide = wide_boxes(boxes, cameras, image_index)
        elif not hand:
            check_sight(placement, cameras, size, sizes, image_index)
        both_sides = [hand and each is None for each in sides]
        matrices = placement.matrices.reshape(count, 9).tolist()
        lenses = cameras if cameras.distorted else [None] * count
        plans = [
            # The mirrored view, about pixel size / 2, reaches one pixel farther.
            plan_view(matrix, size, height, width, float(both), camera)
            for matrix, (height, width), both, camera in zip(matrices, sizes, both_sides, lenses, strict=True)
        ]
        channels = self._config.image_channels
        rows = [plan.row(width * channels, channels) for plan, (_, width) in zip(plans, sizes, strict=True)]
        before = read_previous(previous, placement)
        return Request(
            images,
            image_index,
            plans,
            np.array(rows, dtype=np.float64).reshape(-1, ROW),
            placement,
            cameras,
            left,
            both_sides,
            boxes,
            scale,
            before,
            single,
            wide,
        )

    def _check_combination(
        self, return_votes: bool, box: Any, root: Any, previous: HandPose[Any] | None
    ) -> None:
        """Refuse arguments that the network does not take, and invalid combinations."""
        method = self._config.method
        if not isinstance(return_votes, bool | np.bool_):
            raise TypeError(f"return_votes must be True or False, got {return_votes!r}")
        if not self._volume.needs_root and root is not None:
            raise ValueError(
                "root must be None: only a root-relative network takes it, not a camera-space one"
            )
        if self._volume.needs_root and box is not None:
            raise ValueError("box must be None: the root places the view of a root-relative network")
        if self._volume.needs_root and root is None:
            raise ValueError(
                "a root-relative network needs root, the wrist (3,) or (B, 3) mm in the camera's frame, "
                "got None"
            )
        if return_votes and method != "nvf":
            raise ValueError(f"return_votes must be False: a {method!r} baseline has no voting points")
        if isinstance(self._volume, HandVolume):
            if box is not None and previous is not None:
                raise ValueError("box and previous both place a hand view: one of them must be None")
        elif previous is not None and self._search != "guided":
            raise ValueError(f'previous requires search="guided", this estimator has {self._search!r}')


def _fingerprint(value: Any) -> Any:
    """A hashable copy of an argument.

    Raises:
        TypeError: the argument is of a type whose values might change.
    """
    kind = type(value)
    if kind is Tensor and value.numel() <= KNOWN_NUMBERS:
        value = value.numpy(force=True)
    if isinstance(value, np.ndarray) and not value.dtype.hasobject and value.size <= KNOWN_NUMBERS:
        return value.dtype, value.shape, value.tobytes()
    if kind is tuple or kind is list:
        return kind, *map(_fingerprint, value)
    if value is None or isinstance(value, str | int | float | np.number | Camera):
        return kind, value
    raise TypeError(kind.__name__)
