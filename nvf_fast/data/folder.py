"""Base class and helpers of data sets that are read from a folder."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from nvf_fast.data.faults import Faults
from nvf_fast.data.mano import VERTICES
from nvf_fast.data.sample import HandSample
from nvf_fast.data.surfaces import MeshHands


class FolderDataset:
    """A data set in a folder, checked on opening."""

    # which data set
    name: str
    split: str
    folder: Path  # where it is
    ids: Sequence[str]  # of its samples, in order
    expected: int  # number of samples of the official release
    why_no_surfaces: str | None = None  # reason for missing closed surfaces, or None
    faces: Tensor | None = None  # of the closed surfaces, (F, 3) int64, or None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def complete(self) -> bool:
        """Whether it has the official number of samples."""
        return len(self) == self.expected

    @property
    def fingerprint(self) -> str:
        """Hash of the samples' names."""
        return hashlib.sha256("\n".join(self.ids).encode()).hexdigest()[:16]

    def describe(self) -> str:
        """Summarise the number of samples and whether they have surfaces in one line."""
        count = f"{len(self)} samples" + ("" if self.complete else f" of the official {self.expected}")
        missing = self.why_no_surfaces
        surfaces = f"no surfaces ({missing})" if missing else "closed surfaces"
        return f"{self.name} {self.split} in {self.folder}: {count}, {surfaces}"

    def _check(self, faults: Faults, official: bool) -> None:
        """Raise all faults, if any; `official` requires the official number of samples."""
        if official and not self.complete:
            faults.add(self.folder, f"{len(self)} samples", f"the official {self.expected}")
        faults.check()

    def _checked(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} {self.split} has samples 0 to {len(self) - 1}, got index {index}")
        return index

    def _sample(
        self,
        index: int,
        image: np.ndarray,
        intrinsics: np.ndarray,
        joints: Tensor | None,
        vertices: Tensor | None,
        *,
        root: Tensor | None = None,
        hand_scale: float | None = None,
        box: Tensor | None = None,
    ) -> HandSample:
        """Make a right hand's sample of its arrays; joints determine root, hand scale and surface."""
        surface = None
        if joints is not None:
            root, hand_scale = joints[0], float((joints[10] - joints[9]).norm())
            if vertices is not None and self.faces is not None:
                surface = MeshHands(vertices[None], self.faces, joints[None])
        return HandSample(
            self.ids[index], image, intrinsics.copy(), root, joints, surface, vertices, hand_scale, box=box
        )


def row_of(table: Tensor | None, index: int) -> Tensor | None:
    """A copy of one row of a table that may be missing."""
    return None if table is None else table[index].clone()


def joints_m(sample: HandSample) -> np.ndarray:
    """Joints (21, 3) float64 m, the unit of the data sets' files.

    Raises:
        ValueError: the sample has no joints, or is a left hand, which the files cannot store.
    """
    if sample.side != "right" or sample.joints is None:
        got = "none" if sample.joints is None else f"those of a {sample.side} one"
        raise ValueError(f"{sample.id} must have joints of a right hand (mirror a left one first), got {got}")
    return sample.joints.double().numpy() / 1000


def vertices_m(sample: HandSample) -> np.ndarray:
    """Vertices (778, 3) float64 m.

    Raises:
        ValueError: the sample does not have MANO's vertices.
    """
    shape = None if sample.vertices is None else tuple(sample.vertices.shape)
    if sample.vertices is None or shape != (VERTICES, 3):
        raise ValueError(f"{sample.id} must have MANO's vertices, ({VERTICES}, 3), got {shape}")
    return sample.vertices.double().numpy() / 1000
