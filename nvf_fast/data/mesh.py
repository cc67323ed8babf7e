"""The surface of a synthetic hand as a triangle mesh."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .hand import Hands


def hand_mesh(hand: Hands, spacing_mm: float = 2.5) -> tuple[np.ndarray, np.ndarray]:
    """Extracts the watertight zero level of one hand's signed distance by marching cubes.

    Args:
        hand: a batch of exactly one hand, camera frame, mm.
        spacing_mm: lattice spacing; the vertices lie on the surface to about spacing² / (8 * radius).

    Returns:
        vertices (V, 3) float64 mm in the camera frame and faces (F, 3) int64, outward by the right-hand rule.

    Raises:
        ImportError: scikit-image is not installed (`pip install nvf-fast[viz]`).
    """
    if len(hand) != 1:
        raise ValueError(f"hand_mesh takes one hand at a time, got a batch of {len(hand)}")
    try:
        from skimage.measure import marching_cubes
    except ImportError as error:
        raise ImportError("meshes need scikit-image: pip install 'nvf-fast[viz]'") from error
    low = hand.nodes[0].amin(0) - 22
    steps = ((hand.nodes[0].amax(0) + 22 - low) / spacing_mm).ceil().int().tolist()
    axes = [torch.arange(count + 1) * spacing_mm for count in steps]
    lattice = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3) + low
    volume = torch.cat([_signed_distance(hand, part) for part in lattice.split(65_536)])
    vertices, faces, _, _ = marching_cubes(
        volume.reshape([count + 1 for count in steps]).double().numpy(),
        0.0,
        spacing=(spacing_mm,) * 3,
        gradient_direction="descent",
    )
    return vertices.astype(np.float64) + low.double().numpy(), faces.astype(np.int64)


def _signed_distance(hand: Hands, points: Tensor) -> Tensor:
    return hand.signed_distance(points[None])[0]
