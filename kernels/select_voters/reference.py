"""The indices of the near-surface points, in plain PyTorch: what `select_voters` means."""

from __future__ import annotations

import torch
from torch import Tensor


def select_voters(sdf: Tensor, surface_mm: float, capacity: int) -> tuple[Tensor, Tensor, Tensor]:
    """The points with abs(sdf) < surface_mm, 1(|s| < delta) of Eqs. 8 and 9, as ascending indices.

    Args:
        sdf: (B, N) mm; NaN and infinity are never near.
        surface_mm: mm, half the thickness of the shell that votes.
        capacity: slots per image.

    Returns:
        indices (B, capacity) int64, ascending, -1 in unused slots; counts (B,) int32, the true number of near
        points, which may exceed the capacity; overflow (B,) bool, where it does.
    """
    near = sdf.abs() < surface_mm
    counts = near.sum(1, dtype=torch.int32)
    indices = torch.full((sdf.shape[0], capacity), -1, dtype=torch.int64, device=sdf.device)
    for image, mask in enumerate(near):
        found = mask.nonzero()[:capacity, 0]
        indices[image, : len(found)] = found
    return indices, counts, counts > capacity
