"""Surfaces as triangle meshes, extracted from signed distances."""

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
