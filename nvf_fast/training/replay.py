"""A store of the latest training views on the device, from which many steps draw their batches."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nvf_fast.data.rotations import rotation_about
from nvf_fast.runtime.arguments import check_ranges
from nvf_fast.training.hand_losses import HandBatch

ROLL, ANY_ROLL = 0.2, 0.1  # standard deviation in radians; ratio of the cameras rolled by any angle
ZOOM, MOST_ZOOM = 0.1, 0.25  # standard deviation and bound of the log of a factor of the focal length
TILT, MOST_TILT = 0.12, 0.3  # the same of a turn to the side and up, in halves of the view
UNIFORM, NORMAL = 7, 8  # random numbers of a view in a batch


@dataclass(frozen=True)
class ReplayConfig:
    """Reuse of hand views, for devices that train faster than views are drawn."""

    # steps that use a view, on average; 1 uses each view once, without a store. A step of B views adds B /
    # uses new ones.
    uses: int = 1
    # views that the device stores: one half for the latest views with a pose, the other for the latest
    # without one; a view of 128 px takes 53 kB
    size: int = 2**17
    first: int = 2**13  # views stored before the first step, and again when a run resumes
    # ratio of the views with a pose that a batch shows through another camera, turned and zoomed
    reframed: float = 0.5

    def __post_init__(self) -> None:
        check_ranges(self, uses="[1, inf)", first=f"[1, {self.size}]", reframed="[0, 1]")


class ViewStore:
    """The latest training views.

    A batch is a function of the stored views and of the random numbers of `randomise`. Its ratio of views
    with a pose, and thus its shapes, are fixed by the first stored views.

    Args:
        config: sizes.
        batch: views of a batch.
        colour: as in `ViewMixtureConfig`.
        device: where the views are stored.

    Attributes:
        added: numbers of views added so far, with a pose and without.
    """

    def __init__(self, config: ReplayConfig, batch: int, colour: float, device: torch.device) -> None:
        self.added = [0, 0]
        self._config, self._half, self._colour, self._device = config, config.size // 2, colour, device
        self._views: dict[str, Tensor] = {}
        self._stored = torch.zeros(2, device=device)  # numbers of views with a pose and without
        self._uniform = torch.empty(batch, UNIFORM, device=device)
        self._normal = torch.empty(batch, NORMAL, device=device)
        self._generator = torch.Generator(device)
        self._posed: int | None = None  # in a batch

    def add(self, parts: Iterable[Mapping[str, Tensor]]) -> None:
        """Store views, the arrays of `HandViews` as tensors, in place of the oldest."""
        for part in parts:
            posed = part["trust"] > 0
            slots = torch.empty(len(posed), dtype=torch.int64)
            for kind, rows in enumerate((posed, ~posed)):
                count, before = int(rows.sum()), self.added[kind]
                slots[rows] = kind * self._half + (before + torch.arange(count)) % self._half
                self.added[kind] += count
                self._stored[kind].fill_(min(self.added[kind], self._half))
            slots = slots.to(self._device, non_blocking=True)
            for name, value in part.items():
                if name not in self._views:
                    shape = (2 * self._half, *value.shape[1:])
                    self._views[name] = torch.empty(shape, dtype=value.dtype, device=self._device)
                self._views[name].index_copy_(0, slots, value.to(self._device, non_blocking=True))

    def randomise(self, seed: int) -> None:
        """Draw the random numbers of the next batch."""
        self._generator.manual_seed(seed)
        self._uniform.uniform_(generator=self._generator)
        self._normal.normal_(generator=self._generator)

    @torch.no_grad()
    def batch(self) -> HandBatch:
        """Draw a batch, its views with a pose first, without synchronising."""
        uniform, normal, posed = self._uniform, self._normal, self._posed_in_batch()
        with_pose, others = uniform[:posed, 0] * self._stored[0], uniform[posed:, 0] * self._stored[1]
        rows = torch.cat([with_pose.long(), others.long() + self._half])
        views = {name: value[rows] for name, value in self._views.items()}
        # In random order: the losses move the first of them.
        drawn = HandBatch.of(views, self._device, uniform[:posed, 1].argsort())
        drawn = drawn.varied(self._colour * normal[:, :4], uniform[:, 2:5])
        count = int(self._config.reframed * posed)
        if count:
            drawn = reframed(drawn, Cameras.random(uniform[:count, 5:], normal[:count, 4:]))
        return drawn._replace(images=drawn.images.contiguous(memory_format=torch.channels_last))

    def _posed_in_batch(self) -> int:
        """The number of views with a pose in each batch, as among the views stored before the first."""
        if self._posed is None:
            batch, (posed, others) = len(self._uniform), self.added
            ratio = posed / (posed + others)
            self._posed = min(max(round(batch * ratio), posed > 0), batch - (others > 0))
        return self._posed


class Cameras(NamedTuple):
    """N cameras relative to those of views."""

    roll: Tensor  # (N,) radians
    zoom: Tensor  # (N,) factor of the focal length
    tilt: Tensor  # (N, 2) turn to the side and up, in halves of the view

    @classmethod
    def random(cls, uniform: Tensor, normal: Tensor) -> Cameras:
        """Draw cameras from random numbers (N, 2) in [0, 1) and (N, 4) of unit variance."""
        roll = torch.where(uniform[:, 0] < ANY_ROLL, 2 * math.pi * uniform[:, 1], ROLL * normal[:, 0])
        zoom = (ZOOM * normal[:, 1]).clamp(-MOST_ZOOM, MOST_ZOOM).exp()
        return cls(roll, zoom, (TILT * normal[:, 2:]).clamp(-MOST_TILT, MOST_TILT))


def reframed(batch: HandBatch, cameras: Cameras) -> HandBatch:
    """Show the first N views, which have a pose, through other cameras at the same place.

    Joints, points, focal length and the box follow exactly, and the image by bilinear interpolation,
    reflected beyond its border. Views of two hands stay as they are: the second has a box alone.
    """
    count, size = len(cameras.roll), batch.images.shape[-1]
    images, slopes, joints, points, boxes = (
        getattr(batch, name)[:count] for name in ("images", "slopes", "joints", "points", "boxes")
    )
    alone = ~boxes[:, 1].isfinite().all(-1)
    turn = _rotations(cameras.roll * alone, cameras.tilt * (slopes * alone)[:, None])
    new_slopes = slopes / torch.where(alone, cameras.zoom, 1.0)

    # Pixel i lies at 2 i / S - 1 halves of the view, and for grid_sample half a pixel farther.
    places = 2 * torch.arange(size, device=images.device) / size - 1
    down, across = torch.meshgrid(places, places, indexing="ij")
    rays = torch.stack([across, down], -1) * new_slopes[:, None, None, None]
    rays = F.pad(rays, (0, 1), value=1.0) @ turn[:, None]
    grid = rays[..., :2] / (rays[..., 2:].clamp_min(1e-3) * slopes[:, None, None, None]) + 1 / size
    images = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)

    joints, points = joints @ turn.mT, points @ turn.mT
    pixels = (joints[..., :2] / joints[..., 2:] / new_slopes[:, None, None] + 1) * size / 2
    around = torch.cat([pixels.amin(1), pixels.amax(1)], -1)
    first = torch.where(alone[:, None], around, boxes[:, 0])
    changed = {
        "images": images,
        "slopes": new_slopes,
        "joints": joints,
        "points": points,
        "boxes": torch.stack([first, boxes[:, 1]], 1),
    }
    rest = {name: getattr(batch, name)[count:] for name in changed}
    return batch._replace(**{name: torch.cat([value, rest[name]]) for name, value in changed.items()})


def _rotations(roll: Tensor, tilt: Tensor) -> Tensor:
    """Rotations (N, 3, 3) about y, x and then z, from the frames of the old cameras to the new ones."""
    x, y, z = torch.eye(3, dtype=roll.dtype, device=roll.device)  # made there: a CUDA graph holds no copy
    return rotation_about(z, roll) @ rotation_about(x, tilt[:, 1]) @ rotation_about(y, tilt[:, 0])
