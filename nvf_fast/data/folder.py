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
    """A data set in a folder, checked on opening.

    Attributes:
        name, split: which data set.
        folder: where it is.
        ids: of its samples, in order.
        expected: number of samples of the official release.
        why_no_surfaces: reason for missing closed surfaces, or None.
    """

    name: str
    split: str
    folder: Path
    ids: Sequence[str]
    expected: int
    why_no_surfaces: str | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def complete(self) -> bool:
        """Whether it has the official number of samples."""
        return len(self) == self.expected

    @property
    def has_surfaces(self) -> bool:
        return self.why_no_surfaces is None

    @property
    def fingerprint(self) -> str:
        """Hash of the samples' names."""
        return hashlib.sha256("\n".join(self.ids).encode()).hexdigest()[:16]

    def describe(self) -> str:
        """Summarise the number of samples and whether they have surfaces in one line."""
        count = f"{len(self)} samples" + ("" if self.complete else f" of the official {self.expected}")
        surfaces = "closed surfaces" if self.has_surfaces else f"no surfaces ({self.why_no_surfaces})"
        return f"{self.name} {self.split} in {self.folder}: {count}, {surfaces}"

    def _check_official(self, official: bool, faults: Faults) -> None:
        if official and not self.complete:
            faults.add(self.folder, f"{len(self)} samples", f"the official {self.expected}")

    def _checked(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} {self.split} has samples 0 to {len(self) - 1}, got index {index}")
        return index


def mesh_of(vertices: Tensor | None, joints: Tensor | None, faces: Tensor | None) -> MeshHands | None:
    """Make a closed surface, a batch of one, if vertices (V, 3), joints (21, 3) and faces are given."""
    if vertices is None or joints is None or faces is None:
        return None
    return MeshHands(vertices[None], faces, joints[None])


def bone_mm(joints: Tensor) -> float:
    """Hand scale of joints (21, 3) mm: length of the bone between joints 9 and 10."""
    return float((joints[10] - joints[9]).norm())


def joints_m(sample: HandSample) -> np.ndarray:
    """Joints (21, 3) float64 m, the unit of the data sets' files.

    Raises:
        ValueError: the sample has no joints, or is a left hand, which the files cannot store.
    """
    if sample.side != "right":
        raise ValueError(
            f"{sample.id} must be a right hand (mirror image and joints first), got a {sample.side} one"
        )
    if sample.joints is None:
        raise ValueError(f"{sample.id} must have joints, got None")
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
