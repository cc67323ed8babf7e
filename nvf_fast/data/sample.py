"""Samples of data sets: one image of one hand, in the library's units, frame and joint order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from nvf_fast.data.surfaces import MeshHands


@dataclass(frozen=True)
class HandSample:
    """One image and the labels of the hand in it.

    Attributes:
        id: names the image within its data set, such as "training/00032560".
        image: (H, W, 3) uint8 RGB.
        intrinsics: (3, 3) float64 px, the first pixel of a row centred at 0.
        root: (3,) float32 mm, the wrist in the camera's frame, or None.
        joints: (21, 3) float32 mm in the camera's frame, FreiHAND's order; None where they are not released.
        surface: the hand's closed surface, a batch of one in the camera's frame; None without a
            mesh or its faces.
        vertices: (V, 3) float32 mm, the data set's own (MANO's 778 in MANO's order), or None.
        hand_scale: mm, length of the bone between joints 9 and 10, or None where it is unknown.
        side: "right" or "left".
        box: (4,) float32 px, (x0, y0, x1, y1) around the hand where the data set gives one, or None.
    """

    id: str
    image: np.ndarray
    intrinsics: np.ndarray
    root: Tensor | None = None
    joints: Tensor | None = None
    surface: MeshHands | None = None
    vertices: Tensor | None = None
    hand_scale: float | None = None
    side: str = "right"
    box: Tensor | None = None


class HandDataset(Protocol):
    """A map-style data set of `HandSample`s; `name` and `split` identify it.

    An index raises `DamagedImageError` if its image cannot be read. `why_no_surfaces` is None where samples
    have surfaces; sets with different samples have different `fingerprint`s.
    """

    name: str
    split: str

    @property
    def why_no_surfaces(self) -> str | None: ...

    @property
    def fingerprint(self) -> str: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> HandSample: ...


class FirstSamples:
    """The first `count` samples of a data set, or all of a shorter one."""

    def __init__(self, dataset: HandDataset, count: int) -> None:
        self.dataset, self.name, self.split = dataset, dataset.name, dataset.split
        self.why_no_surfaces, self.fingerprint = dataset.why_no_surfaces, dataset.fingerprint
        self._indices = range(min(count, len(dataset)))

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> HandSample:
        return self.dataset[self._indices[index]]


class DamagedImageError(ValueError):
    """An image's file is missing or cannot be decoded; training skips and counts it."""
