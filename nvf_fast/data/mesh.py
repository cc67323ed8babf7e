"""Surfaces as triangle meshes, extracted from signed distances; their edges and openings."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

OUTSIDE_MM = 50.0  # largest distance of a network, in place of infinity outside its view
CHUNK = 65_536  # points at a time

Distance = Callable[[Tensor], Tensor]


class Mesh(NamedTuple):
    """A surface.

    Attributes:
        vertices: (V, 3) float64 mm.
        faces: (F, 3) int64, outward by the right-hand rule.
    """

    vertices: np.ndarray
    faces: np.ndarray


def directed_edges(faces: np.ndarray) -> np.ndarray:
    """(3 F, 2) edges of faces (F, 3): all first edges, then all second and all third ones."""
    return np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])


def openings(faces: np.ndarray) -> list[list[int]]:
    """Vertices around each opening of a surface of faces (F, 3), in the order in which faces pass them."""
    edges = {(int(start), int(end)) for start, end in directed_edges(faces)}
    after = {start: end for start, end in edges if (end, start) not in edges}
    loops: list[list[int]] = []
    while after:
        loops.append([min(after)])
        while (vertex := after.pop(loops[-1][-1], None)) is not None and vertex != loops[-1][0]:
            loops[-1].append(vertex)
    return loops


NOTHING = Mesh(np.empty((0, 3)), np.empty((0, 3), np.int64))


def level_mesh(distance: Distance, low: Tensor, high: Tensor, spacing_mm: float = 4.0) -> Mesh:
    """Extract the zero level of a signed distance within a box by marching cubes (Sec. D of the supplement).

    Args:
        distance: function of points (N, 3) float32 mm to (N,) mm, negative inside, +inf where unknown, called
            for a part of the lattice at a time.
        low: (3,) float32 mm, the box's lower corner.
        high: (3,) float32 mm, lower bound of the box's upper corner.
        spacing_mm: mm, of the lattice.

    Returns:
        The mesh in the frame of the points, empty where no surface passes through the box.

    Raises:
        ImportError: scikit-image is not installed (`pip install nvf-fast[viz]`).
    """
    try:
        from skimage.measure import marching_cubes
    except ImportError as error:
        raise ImportError("meshes need scikit-image: pip install 'nvf-fast[viz]'") from error
    counts = (((high - low) / spacing_mm).ceil().int() + 1).tolist()
    axes = [
        start + spacing_mm * torch.arange(n, device=low.device) for start, n in zip(low, counts, strict=True)
    ]
    points = torch.cartesian_prod(*axes)
    known = torch.cat([distance(part) for part in points.split(CHUNK)]).clamp(-OUTSIDE_MM, OUTSIDE_MM)
    volume = known.reshape(counts).double().numpy(force=True)
    if not volume.min() < 0 < volume.max():
        return NOTHING
    vertices, faces, _, _ = marching_cubes(
        volume, 0.0, spacing=(spacing_mm,) * 3, gradient_direction="descent"
    )
    return Mesh(vertices + low.double().numpy(force=True), faces.astype(np.int64))
