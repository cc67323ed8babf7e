"""The positions of marked or near-surface entries, without synchronising: count, prefix sum, write."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024
_IMAGES = 2**15  # per launch: CUDA takes 65535 programs along the second axis


@triton.jit
def _marked(values_ptr, first, count, surface_mm, THRESHOLD: tl.constexpr, BLOCK: tl.constexpr):
    """Which entries of a block are true, or near with THRESHOLD; `first` may take 64 bits."""
    lane = tl.arange(0, BLOCK)
    there = lane < tl.minimum(count - first, BLOCK).to(tl.int32)
    if THRESHOLD:
        sdf = tl.load(values_ptr + first + lane, mask=there, other=float("inf"))
        return tl.abs(sdf) < surface_mm  # false for NaN and infinity
    else:
        return tl.load(values_ptr + first + lane, mask=there, other=0) != 0


@triton.jit
def count_marked(
    values_ptr, block_counts_ptr, count, surface_mm, THRESHOLD: tl.constexpr, BLOCK: tl.constexpr
):
    block = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    start = block.to(tl.int64) * BLOCK
    marked = _marked(values_ptr + row * count, start, count, surface_mm, THRESHOLD, BLOCK)
    tl.store(block_counts_ptr + row * tl.num_programs(0) + block, tl.sum(marked.to(tl.int32), 0))


@triton.jit
def write_indices(
    values_ptr,
    block_ends_ptr,
    indices_ptr,
    count,
    capacity,
    surface_mm,
    THRESHOLD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    block = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    start = block.to(tl.int64) * BLOCK
    marked = _marked(values_ptr + row * count, start, count, surface_mm, THRESHOLD, BLOCK)
    ones = marked.to(tl.int32)
    first = tl.load(block_ends_ptr + row * tl.num_programs(0) + block) - tl.sum(ones, 0)
    slot = first + tl.cumsum(ones, 0) - ones
    position = start + tl.arange(0, BLOCK)
    tl.store(indices_ptr + row * capacity + slot, position, mask=marked & (slot < capacity))


def compact(mask: Tensor, capacity: int) -> tuple[Tensor, Tensor, Tensor]:
    """The positions where a mask (B, N) bool is true, in ascending order, as in the reference."""
    return _compact(mask.view(torch.uint8), None, capacity)


def select_voters(sdf: Tensor, surface_mm: float, capacity: int) -> tuple[Tensor, Tensor, Tensor]:
    """The points with abs(sdf) < surface_mm, of sdf (B, N) float32 mm, in the form of `compact`."""
    return _compact(sdf, surface_mm, capacity)


def _compact(values: Tensor, surface_mm: float | None, capacity: int) -> tuple[Tensor, Tensor, Tensor]:
    batch, count = values.shape
    if batch > _IMAGES:
        parts = [_compact(part, surface_mm, capacity) for part in values.split(_IMAGES)]
        indices, counts, overflow = (torch.cat(some) for some in zip(*parts, strict=True))
        return indices, counts, overflow
    values = values.contiguous()
    threshold, options = surface_mm or 0.0, {"THRESHOLD": surface_mm is not None, "BLOCK": _BLOCK}
    indices = torch.full((batch, capacity), -1, dtype=torch.int64, device=values.device)
    grid = (triton.cdiv(count, _BLOCK), batch)
    block_counts = torch.empty(batch, grid[0], dtype=torch.int32, device=values.device)
    if block_counts.numel() > 0:
        count_marked[grid](values, block_counts, count, threshold, **options)
        block_ends = block_counts.cumsum(1, dtype=torch.int32)
        write_indices[grid](values, block_ends, indices, count, capacity, threshold, **options)
    counts = block_counts.sum(1, dtype=torch.int32)
    return indices, counts, counts > capacity
