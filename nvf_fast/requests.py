"""Validated arguments of the estimator, with the view of each image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nvf_fast.camera import ViewPlan, plan_view
from nvf_fast.camera_model import Cameras
from nvf_fast.config import NVFConfig
from nvf_fast.inputs import (
    check_hand_views,
    check_middles,
    previous_boxes,
    previous_images,
    read_boxes,
    read_cameras,
    read_hand_scale,
    read_images,
    read_previous,
    read_roots,
    read_sides,
    warn_of_wide_boxes,
)
from nvf_fast.pose import HandPose
from nvf_fast.search import Search
from nvf_fast.volumes import FrustumVolume, HandVolume, Placement, RootCube


class Request(NamedTuple):
    """B hands, each with its image and the placement and the sampling of its view."""

    images: list[Any]  # (H, W, 3) uint8 each, numpy or torch
    image_index: list[int]  # of each hand's image among the given ones
    plans: list[ViewPlan]  # of each view's sampling
    placement: Placement  # of the volume before each camera
    cameras: Cameras  # of each hand
    left: Tensor  # (B,) bool, hands given as left ones
    both_sides: list[bool]  # whether to evaluate each mirrored hand view as well
    boxes: Tensor | None  # (B, 4) float64 px
    scale: Tensor | None  # (B,) float32 mm, hand scales
    previous: Tensor | None  # (B, 21, 3) float32 mm in the volume's frame, where a guided search begins
    single: bool  # whether one image and at most one box was given

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
        images, single = read_images(image, self._config.image_channels)
        cameras = read_cameras(K, [each.shape[:2] for each in images])
        hand = isinstance(self._volume, HandVolume)
        self._check_combination(return_votes, box, root, previous)
        boxes, image_index = None, list(range(len(images)))
        if box is not None:
            boxes, image_index = read_boxes(box, len(images), single)
            single = single and len(box) > 0 and getattr(box, "ndim", np.ndim(box)) == 1
        elif previous is not None:
            image_index = previous_images(previous, len(images))
            single = single and previous.joints.ndim == 2
        count, images = len(image_index), [images[i] for i in image_index]
        sizes, cameras = [each.shape[:2] for each in images], cameras.chosen(image_index)
        if previous is not None and hand:
            boxes, previous = previous_boxes(previous, cameras), None
        roots = read_roots(root, count) if self._volume.needs_root else None
        scale = read_hand_scale(hand_scale, count, self._config)
        sides = read_sides(side, count)
        left = torch.tensor([each == "left" for each in sides], dtype=torch.bool)
        size = self._config.input_size
        placement = self._volume.place(
            cameras.intrinsics, size, left, boxes=boxes, roots=roots, cameras=cameras
        )
        if hand and boxes is not None:
            check_hand_views(placement, boxes, cameras, sizes, image_index)
        elif boxes is not None:
            check_middles(boxes, sizes)
            warn_of_wide_boxes(boxes, cameras, image_index)
        both_sides = [hand and each is None for each in sides]
        plans = [
            # The mirrored view, about pixel size / 2, reaches one pixel farther.
            plan_view(homography, size, height, width, float(both), camera)
            for homography, (height, width), both, camera in zip(
                placement.homographies, sizes, both_sides, cameras, strict=True
            )
        ]
        before = read_previous(previous, placement)
        return Request(
            images,
            image_index,
            plans,
            placement,
            cameras,
            left,
            both_sides,
            boxes,
            scale,
            before,
            single,
        )

    def _check_combination(
        self, return_votes: bool, box: Any, root: Any, previous: HandPose[Any] | None
    ) -> None:
        """Refuse arguments that the network does not take, or not together."""
        method = self._config.method
        if not self._volume.needs_root and root is not None:
            raise ValueError("root must be None: it is for root-relative networks, this one is camera-space")
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
            raise ValueError(f'previous is for search="guided" only, this is {self._search!r}')
