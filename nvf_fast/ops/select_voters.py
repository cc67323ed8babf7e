"""The positions of marked entries, and of the points near the surface."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nvf_fast.kernels.select_voters import reference
from nvf_fast.ops.operation import Backend, Operation, check_count, check_positive, check_tensor


class Selection(NamedTuple):
    """Positions chosen in each row of a batch, ascending.

    Attributes:
        indices: (B, capacity) int64, -1 in unused slots.
        counts: (B,) int32, the true number of positions, which may exceed the capacity.
        overflow: (B,) bool, whether it does.
    """

    indices: Tensor
    counts: Tensor
    overflow: Tensor


def compact(mask: Tensor, capacity: int | None, *, backend: Backend | None = None) -> Selection:
    """The positions where a mask is true.

    Args:
        mask: (B, N) bool.
        capacity: slots per row, at least 1, which avoids a synchronisation; None is as many as the fullest
            row needs, and synchronises to count them.
        backend: None, "triton" or "torch".

    Raises:
        ValueError: a shape or `capacity` does not fit.
        TypeError: `mask` is not bool, or `capacity` is not a whole number.
        RuntimeError: the requested backend cannot run here.
    """
    check_tensor("compact", "mask", mask, [("B", "N")], torch.bool)
    if capacity is None:
        return _exact(mask)
    check_count("compact", "capacity", capacity, "slot")
    return Selection(*_compact(backend, mask, capacity))


def select_voters(
    sdf: Tensor, surface_mm: float, capacity: int | None, *, backend: Backend | None = None
) -> Selection:
    """The points with abs(sdf) < surface_mm, 1(|s| < delta) of Eqs. 8 and 9.

    Args:
        sdf: (B, N) float32 mm, or float64, which runs in PyTorch; NaN and infinity are never near.
        surface_mm: positive or infinite, mm, half the thickness of the shell that votes.
        capacity: slots per image, at least 1; None as in `compact`.
        backend: None, "triton" or "torch".

    Raises:
        ValueError: a shape, `surface_mm` or `capacity` does not fit.
        TypeError: `sdf` is neither float32 nor float64, or another argument is not a number.
        RuntimeError: the requested backend cannot run here.

    Examples:
        >>> select_voters(torch.tensor([[9.0, -1.0, 4.0, torch.nan]]), surface_mm=5.0, capacity=None).indices
        tensor([[1, 2]])
    """
    check_tensor("select_voters", "sdf", sdf, [("B", "N")], torch.float32, torch.float64, unit="mm")
    surface_mm = check_positive("select_voters", "surface_mm", surface_mm, "of mm", most=math.inf)
    if capacity is None:
        return _exact(sdf.abs() < surface_mm)
    check_count("select_voters", "capacity", capacity, "slot")
    return Selection(*_select_voters(backend, sdf, surface_mm, capacity))


def _exact(mask: Tensor) -> Selection:
    fullest = int(mask.sum(1).max()) if len(mask) else 0
    return Selection(*reference.compact(mask, fullest))


def _empty_results(values: Tensor, *options: Any) -> tuple[Tensor, Tensor, Tensor]:
    batch, capacity = values.shape[0], options[-1]
    indices = values.new_empty(batch, capacity, dtype=torch.int64)
    return indices, values.new_empty(batch, dtype=torch.int32), values.new_empty(batch, dtype=torch.bool)


_compact = Operation("compact", reference.compact, _empty_results, gradients="none", folder="select_voters")
_select_voters = Operation("select_voters", reference.select_voters, _empty_results, gradients="none")
