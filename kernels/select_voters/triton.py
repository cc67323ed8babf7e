"""The positions of marked or near-surface entries, without synchronising: count, prefix sum, write;
of short rows in one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024
_SHORT = 4096  # entries of the longest row that one program processes in a single launch


@triton.jit
def _marked(values_ptr, first, count, surface_mm, THRESHOLD: tl.constexpr, BLOCK: tl.constexpr):
    """Which entries of a block are true, or near with THRESHOLD; `first` may take 64 bits."""
    lane = tl.arange(0, BLOCK)
    valid = lane < tl.minimum(count - first, BLOCK).to(tl.int32)
    if THRESHOLD:
        sdf = tl.load(values_ptr + first + lane, mask=valid, other=float("inf"))
        return tl.abs(sdf) < surface_mm  # false for NaN and infinity
    else:
        return tl.load(values_ptr + first + lane, mask=valid, other=0) != 0


@triton.jit
def count_marked(
    values_ptr, block_counts_ptr, count, blocks, surface_mm, THRESHOLD: tl.constexpr, BLOCK: tl.constexpr
):
    # One axis for rows and blocks: CUDA allows only 65535 programs along the others.
    row = (tl.program_id(0) // blocks).to(tl.int64)
    start = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK
    marked = _marked(values_ptr + row * count, start, count, surface_mm, THRESHOLD, BLOCK)
    tl.store(block_counts_ptr + tl.program_id(0), tl.sum(marked.to(tl.int32), 0))


@triton.jit
def write_indices(
    values_ptr,
    block_ends_ptr,
    indices_ptr,
    count,
    blocks,
    capacity,
    surface_mm,
    THRESHOLD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = (tl.program_id(0) // blocks).to(tl.int64)
    start = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK
    marked = _marked(values_ptr + row * count, start, count, surface_mm, THRESHOLD, BLOCK)
    ones = marked.to(tl.int32)
    first = tl.load(block_ends_ptr + tl.program_id(0)) - tl.sum(ones, 0)
    slot = first + tl.cumsum(ones, 0) - ones
    position = start + tl.arange(0, BLOCK)
    tl.store(indices_ptr + row * capacity + slot, position, mask=marked & (slot < capacity))


@triton.jit
def select_rows(
    values_ptr,
    indices_ptr,
    counts_ptr,
    overflow_ptr,
    count,
    capacity,
    surface_mm,
    THRESHOLD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """All of a short row, with the unused slots, in one program."""
    row = tl.program_id(0).to(tl.int64)
    indices_ptr += row * capacity
    lane = tl.arange(0, BLOCK)
    found = 0
    start = 0
    while start < count:
        marked = _marked(values_ptr + row * count, start, count, surface_mm, THRESHOLD, BLOCK)
        ones = marked.to(tl.int32)
        slot = found + tl.cumsum(ones, 0) - ones
        tl.store(indices_ptr + slot, (start + lane).to(tl.int64), mask=marked & (slot < capacity))
        found += tl.sum(ones, 0)
        start += BLOCK
    slot = tl.minimum(found, capacity)
    while slot < capacity:
        tl.store(indices_ptr + slot + lane, tl.full((BLOCK,), -1, tl.int64), mask=slot + lane < capacity)
        slot += BLOCK
    tl.store(counts_ptr + row, found)
    tl.store(overflow_ptr + row, (found > capacity).to(tl.uint8))


def compact(mask: Tensor, capacity: int) -> tuple[Tensor, Tensor, Tensor]:
    """The positions where a mask (B, N) bool is true, in ascending order, as in the reference."""
    return _compact(mask.view(torch.uint8), None, capacity)


def select_voters(sdf: Tensor, surface_mm: float, capacity: int) -> tuple[Tensor, Tensor, Tensor]:
    """The points with abs(sdf) < surface_mm, of sdf (B, N) float32 mm, in the form of `compact`."""
    return _compact(sdf, surface_mm, capacity)


def _compact(values: Tensor, surface_mm: float | None, capacity: int) -> tuple[Tensor, Tensor, Tensor]:
    batch, count = values.shape
    values = values.contiguous()
    threshold, options = surface_mm or 0.0, {"THRESHOLD": surface_mm is not None, "BLOCK": _BLOCK}
    if count <= _SHORT:
        indices = torch.empty(batch, capacity, dtype=torch.int64, device=values.device)
        counts = torch.empty(batch, dtype=torch.int32, device=values.device)
        overflow = torch.empty(batch, dtype=torch.bool, device=values.device)
        if batch > 0:
            select_rows[(batch,)](
                *(values, indices, counts, overflow.view(torch.uint8), count, capacity, threshold),
                **options,
                enable_fp_fusion=True,
            )
        return indices, counts, overflow
    indices = torch.full((batch, capacity), -1, dtype=torch.int64, device=values.device)
    blocks = triton.cdiv(count, _BLOCK)
    block_counts = torch.empty(batch, blocks, dtype=torch.int32, device=values.device)
    if block_counts.numel() > 0:
        grid = (batch * blocks,)
        count_marked[grid](values, block_counts, count, blocks, threshold, **options, enable_fp_fusion=True)
        block_ends = block_counts.cumsum(1, dtype=torch.int32)
        write_indices[grid](
            values,
            block_ends,
            indices,
            count,
            blocks,
            capacity,
            threshold,
            **options,
            enable_fp_fusion=True,
        )
    counts = block_counts.sum(1, dtype=torch.int32)
    return indices, counts, counts > capacity
