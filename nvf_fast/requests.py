"""Validated arguments of the estimator, with the view of each image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from nvf_fast.camera import ViewPlan, plan_view
from nvf_fast.config import NVFConfig
from nvf_fast.inputs import (
    check_hand_views,
    check_middles,
    previous_boxes,
    read_boxes,
    read_hand_scale,
    read_images,
    read_intrinsics,
    read_previous,
    read_roots,
    read_sides,
    warn_of_wide_boxes,
)
from nvf_fast.pose import HandPose
from nvf_fast.search import Search
from nvf_fast.volumes import FrustumVolume, HandVolume, Placement, RootCube


class Request(NamedTuple):
    """B images, one hand in each, with the placement and the sampling of their views."""

    images: list[Any]  # (H, W, 3) uint8 each, numpy or torch
    plans: list[ViewPlan]  # of each image's sampling
    placement: Placement  # of the volume before each camera
    intrinsics: Tensor  # (B, 3, 3) float64 px
    left: Tensor  # (B,) bool, hands given as left ones
    both_sides: list[bool]  # whether to evaluate each image's mirrored hand view as well
    boxes: Tensor | None  # (B, 4) float64 px
    scale: Tensor | None  # (B,) float32 mm, hand scales
    previous: Tensor | None  # (B, 21, 3) float32 mm in the volume's frame, where a guided search begins
    groups: list[Any]  # the images as given, (B, H, W, 3) each
    single: bool  # whether a single image was given

    @property
    def slopes(self) -> Tensor | None:
        """(B,) float32, tangents of half the angles of hand views, or None."""
        return None if self.placement.slopes is None else self.placement.slopes.float()

    @property
    def network_scale(self) -> Tensor | None:
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
        groups, single = read_images(image)
        images = [each for group in groups for each in group]
        count, sizes = len(images), [each.shape[:2] for each in images]
        intrinsics = read_intrinsics(K, count)
        scale = read_hand_scale(hand_scale, count, self._config)
        hand = isinstance(self._volume, HandVolume)
        self._check_field_arguments(return_votes, box, previous)
        if previous is not None and hand:
            box, previous = previous_boxes(previous, intrinsics), None
        boxes, roots = self._read_place(box, root, sizes)
        left, unknown = read_sides(side, count)
        size = self._config.input_size
        placement = self._volume.place(intrinsics, size, left, boxes=boxes, roots=roots)
        if hand and boxes is not None:
            check_hand_views(placement, boxes, intrinsics, sizes)
        elif boxes is not None:
            warn_of_wide_boxes(boxes, intrinsics)
        both_sides = (unknown & hand).tolist()
        plans = [
            # The mirrored view, about pixel size / 2, reaches one pixel farther.
            plan_view(homography, size, height, width, margin=float(both))
            for homography, (height, width), both in zip(
                placement.homographies, sizes, both_sides, strict=True
            )
        ]
        before = read_previous(previous, placement)
        return Request(
            images, plans, placement, intrinsics, left, both_sides, boxes, scale, before, groups, single
        )

    def _read_place(
        self, box: Any, root: Any, sizes: Sequence[Sequence[int]]
    ) -> tuple[Tensor | None, Tensor | None]:
        """Boxes (B, 4) px or None, and roots (B, 3) mm or None, according to the volume."""
        if not self._volume.needs_root:
            if root is not None:
                raise ValueError(
                    "root must be None: it is for root-relative networks, this one is camera-space"
                )
            boxes = read_boxes(box, sizes)
            if boxes is not None and not isinstance(self._volume, HandVolume):
                check_middles(boxes, sizes)
            return boxes, None
        if box is not None:
            raise ValueError("box must be None: the root places the view of a root-relative network")
        if root is None:
            raise ValueError(
                "a root-relative network needs root, the wrist (3,) or (B, 3) mm in the camera's frame, "
                "got None"
            )
        return None, read_roots(root, len(sizes))

    def _check_field_arguments(self, return_votes: bool, box: Any, previous: HandPose[Any] | None) -> None:
        method = self._config.method
        if return_votes and method != "nvf":
            raise ValueError(f"return_votes must be False: a {method!r} baseline has no voting points")
        if isinstance(self._volume, HandVolume):
            if box is not None and previous is not None:
                raise ValueError("box and previous both place a hand view: one of them must be None")
        elif previous is not None and self._search != "guided":
            raise ValueError(f'previous is for search="guided" only, this is {self._search!r}')
