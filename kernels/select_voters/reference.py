"""The positions of true entries and of near-surface points, in plain PyTorch.

This is the definition of `compact` and `select_voters`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def compact(mask: Tensor, capacity: int) -> tuple[Tensor, Tensor, Tensor]:
    """Indices (B, capacity), counts and overflow (B,), as in `nvf_fast.ops.compact`."""
    positions = [row.nonzero()[:, 0] for row in mask]
    counts = torch.tensor([len(found) for found in positions], dtype=torch.int32, device=mask.device)
    indices = torch.full((len(mask), capacity), -1, dtype=torch.int64, device=mask.device)
    for row, found in zip(indices, positions, strict=True):
        row[: len(found)] = found[:capacity]
    return indices, counts, counts > capacity


def select_voters(sdf: Tensor, surface_mm: float, capacity: int) -> tuple[Tensor, Tensor, Tensor]:
    """The points with abs(sdf) < surface_mm, as in `nvf_fast.ops.select_voters`."""
    return compact(sdf.abs() < surface_mm, capacity)
