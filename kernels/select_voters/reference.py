"""The positions of marked entries, and the near-surface points, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def compact(mask: Tensor, capacity: int) -> tuple[Tensor, Tensor, Tensor]:
    """The positions where a mask is true, in ascending order.

    Args:
        mask: (B, N) bool.
        capacity: slots per row of the mask.

    Returns:
        indices (B, capacity) int64, ascending, -1 in unused slots; counts (B,) int32, the true number of
        marked entries, which may exceed the capacity; overflow (B,) bool, where it does.
    """
    positions = [row.nonzero()[:, 0] for row in mask]
    counts = torch.tensor([len(found) for found in positions], dtype=torch.int32, device=mask.device)
    indices = torch.full((len(mask), capacity), -1, dtype=torch.int64, device=mask.device)
    for row, found in zip(indices, positions, strict=True):
        row[: len(found)] = found[:capacity]
    return indices, counts, counts > capacity


def select_voters(sdf: Tensor, surface_mm: float, capacity: int) -> tuple[Tensor, Tensor, Tensor]:
    """The points with abs(sdf) < surface_mm, 1(|s| < delta) of Eqs. 8 and 9, in the form of `compact`.

    Args:
        sdf: (B, N) mm; NaN and infinity are never near.
        surface_mm: mm, half the thickness of the shell that votes.
        capacity: slots per image.
    """
    return compact(sdf.abs() < surface_mm, capacity)
