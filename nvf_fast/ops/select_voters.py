"""The points near the surface."""

from __future__ import annotations

import torch
from torch import Tensor

from nvf_fast.kernels.select_voters import reference
from nvf_fast.ops.operation import Backend, Operation


def select_voters(
    sdf: Tensor, surface_mm: float, capacity: int, *, backend: Backend | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The points with abs(sdf) < surface_mm, 1(|s| < delta) of Eqs. 8 and 9, without synchronising.

    Args:
        sdf: (B, N) float32 mm; NaN and infinity are never near.
        surface_mm: mm, half the thickness of the shell that votes.
        capacity: slots per image, at least 1.
        backend: None, "triton" or "torch".

    Returns:
        indices (B, capacity) int64, ascending, -1 in unused slots; counts (B,) int32, the true number of near
        points, which may exceed the capacity; overflow (B,) bool, where it does.

    Raises:
        ValueError: a shape or `capacity` does not fit.
        TypeError: `sdf` is not float32.
        RuntimeError: the backend asked for cannot run here.
    """
    if sdf.ndim != 2:
        raise ValueError(f"select_voters: sdf must be (B, N) mm, got {tuple(sdf.shape)}")
    if sdf.dtype != torch.float32:
        raise TypeError(f"select_voters: sdf must be float32, got {sdf.dtype}")
    if capacity < 1:
        raise ValueError(f"select_voters: capacity must be at least 1 slot, got {capacity}")
    return _run(backend, sdf, surface_mm, capacity)


def _empty_results(sdf: Tensor, surface_mm: float, capacity: int) -> tuple[Tensor, Tensor, Tensor]:
    batch = len(sdf)
    indices = sdf.new_empty(batch, capacity, dtype=torch.int64)
    return indices, sdf.new_empty(batch, dtype=torch.int32), sdf.new_empty(batch, dtype=torch.bool)


_run = Operation("select_voters", reference.select_voters, _empty_results)
