"""Joints from voters: a program per joint and image selects exactly the best and sums their votes."""

from __future__ import annotations

import struct

import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024
_DIGIT_BITS = 8
_WARPS = 8


@triton.jit
def _weights(votes_ptr, indices_ptr, first, voters, stride, INDEXED: tl.constexpr, BLOCK: tl.constexpr):
    """A block of voters' rows, their weights, and which are valid; `votes_ptr` is at the joint's weight."""
    voter = first + tl.arange(0, BLOCK)
    valid = voter < voters
    if INDEXED:
        voter = tl.load(indices_ptr + voter, mask=valid, other=0)
    else:
        voter = voter.to(tl.int64)
    return voter, tl.load(votes_ptr + voter * stride, mask=valid, other=0.0), valid


@triton.jit
def _sortable(weight):
    """Float32 to uint32 with the same order; NaN becomes minus infinity, and -0 becomes 0."""
    weight = tl.where(weight == weight, weight, float("-inf"))
    weight = tl.where(weight == 0.0, 0.0, weight)
    bits = weight.to(tl.uint32, bitcast=True)
    return bits ^ tl.where((bits >> 31) != 0, 0xFFFFFFFF, 0x80000000).to(tl.uint32)


@triton.jit
def _select(weight, valid, threshold, ties_needed, ties_seen):
    """The voters above the threshold, and the first `ties_needed` of those on it."""
    key = _sortable(weight)
    tie = (valid & (key == threshold)).to(tl.int32)
    rank = ties_seen + tl.cumsum(tie, 0) - tie
    selected = valid & ((key > threshold) | ((tie != 0) & (rank < ties_needed)))
    return selected, ties_seen + tl.sum(tie, 0)


@triton.jit
def _targets(points_ptr, votes_ptr, point, weight, selected, stride, ball_mm):
    """The voted positions p + ball_mm (1 - w) d."""
    reach = ball_mm * (1.0 - weight)
    x = tl.load(points_ptr + point * 3, mask=selected, other=0.0)
    y = tl.load(points_ptr + point * 3 + 1, mask=selected, other=0.0)
    z = tl.load(points_ptr + point * 3 + 2, mask=selected, other=0.0)
    x += reach * tl.load(votes_ptr + point * stride + 1, mask=selected, other=0.0)
    y += reach * tl.load(votes_ptr + point * stride + 2, mask=selected, other=0.0)
    z += reach * tl.load(votes_ptr + point * stride + 3, mask=selected, other=0.0)
    return x, y, z


@triton.jit(do_not_specialize=["fraction_bits"])
def vote(
    points_ptr,
    votes_ptr,
    counts_ptr,
    indices_ptr,  # (B, capacity) rows of points and votes; unused unless INDEXED
    joints_ptr,
    weight_ptr,
    spread_ptr,
    rows,  # of points and votes per image
    capacity,  # most voters per image
    joint_count,
    ball_mm,
    fraction_bits,  # of a float64: a scalar argument would be float32
    INDEXED: tl.constexpr,
    BLOCK: tl.constexpr,
    DIGIT_BITS: tl.constexpr,
):
    # One axis for images and joints: CUDA allows only 65535 programs along the others.
    row = tl.program_id(0).to(tl.int64)
    image = row // joint_count
    joint = row % joint_count
    stride = joint_count * 4
    points_ptr += image * rows * 3
    votes_ptr += image * rows * stride + joint * 4
    indices_ptr += image * capacity
    voters = tl.maximum(tl.minimum(tl.load(counts_ptr + image), capacity), 0)
    # int(M * fraction), as Python rounds it.
    selected_count = (voters.to(tl.float64) * fraction_bits.to(tl.float64, bitcast=True)).to(tl.int32)
    selected_count = tl.maximum(selected_count, 1)

    # Radix select: the key of the selected_count-th largest weight, one digit per pass from the highest on.
    DIGITS: tl.constexpr = 1 << DIGIT_BITS
    digits = tl.arange(0, DIGITS)
    threshold = tl.zeros((), tl.uint32)
    remaining = selected_count
    for digit_index in tl.static_range(32 // DIGIT_BITS):
        histogram = tl.zeros((DIGITS,), tl.int32)
        first = 0
        while first < voters:
            _, weight, candidate = _weights(votes_ptr, indices_ptr, first, voters, stride, INDEXED, BLOCK)
            key = _sortable(weight)
            if digit_index > 0:
                candidate = candidate & ((key >> (32 - DIGIT_BITS * digit_index)) == threshold)
            digit = (key >> (32 - DIGIT_BITS * (digit_index + 1))) & (DIGITS - 1)
            histogram += tl.histogram(digit.to(tl.int32), DIGITS, mask=candidate)
            first += BLOCK
        at_least = tl.cumsum(histogram, 0, reverse=True)
        best = tl.max(tl.where(at_least >= remaining, digits, 0), 0)
        remaining -= tl.sum(tl.where(digits > best, histogram, 0), 0)
        threshold = (threshold << DIGIT_BITS) | best.to(tl.uint32)

    # Sums in a fixed order: the same input gives the same bits.
    sum_weight = tl.zeros((BLOCK,), tl.float32)
    sum_x = tl.zeros((BLOCK,), tl.float32)
    sum_y = tl.zeros((BLOCK,), tl.float32)
    sum_z = tl.zeros((BLOCK,), tl.float32)
    ties_seen = 0
    first = 0
    while first < voters:
        point, weight, valid = _weights(votes_ptr, indices_ptr, first, voters, stride, INDEXED, BLOCK)
        selected, ties_seen = _select(weight, valid, threshold, remaining, ties_seen)
        x, y, z = _targets(points_ptr, votes_ptr, point, weight, selected, stride, ball_mm)
        sum_weight += tl.where(selected, weight, 0.0)
        sum_x += tl.where(selected, weight * x, 0.0)
        sum_y += tl.where(selected, weight * y, 0.0)
        sum_z += tl.where(selected, weight * z, 0.0)
        first += BLOCK
    total = tl.sum(sum_weight, 0)
    joint_x = tl.sum(sum_x, 0) / total  # 0 / 0 = NaN without voters
    joint_y = tl.sum(sum_y, 0) / total
    joint_z = tl.sum(sum_z, 0) / total
    tl.store(joints_ptr + row * 3, joint_x)
    tl.store(joints_ptr + row * 3 + 1, joint_y)
    tl.store(joints_ptr + row * 3 + 2, joint_z)
    tl.store(weight_ptr + row, total / selected_count)

    # A second pass for the spread about the joint, which a difference of two large sums would round away.
    sum_weight = tl.zeros((BLOCK,), tl.float32)
    sum_squares = tl.zeros((BLOCK,), tl.float32)
    ties_seen = 0
    first = 0
    while first < voters:
        point, weight, valid = _weights(votes_ptr, indices_ptr, first, voters, stride, INDEXED, BLOCK)
        selected, ties_seen = _select(weight, valid, threshold, remaining, ties_seen)
        x, y, z = _targets(points_ptr, votes_ptr, point, weight, selected, stride, ball_mm)
        squared = (
            (x - joint_x) * (x - joint_x) + (y - joint_y) * (y - joint_y) + (z - joint_z) * (z - joint_z)
        )
        clamped = tl.where(selected & (weight > 0.0), weight, 0.0)
        sum_weight += clamped
        sum_squares += tl.where(selected, clamped * squared, 0.0)
        first += BLOCK
    tl.store(spread_ptr + row, tl.sqrt(tl.sum(sum_squares, 0) / tl.sum(sum_weight, 0)))


def cast_votes(
    points: Tensor,
    votes: Tensor,
    counts: Tensor,
    indices: Tensor | None = None,
    *,
    ball_mm: float = 80.0,
    fraction: float = 0.5,
) -> tuple[Tensor, Tensor, Tensor]:
    """Joints, weight and spread, as in the reference; all float32."""
    batch, rows, joint_count, _ = votes.shape
    joints = votes.new_empty(batch, joint_count, 3)
    weight = votes.new_empty(batch, joint_count)
    spread = votes.new_empty(batch, joint_count)
    if weight.numel() == 0:
        return joints, weight, spread
    vote[(joint_count * batch,)](
        points.contiguous(),
        votes.contiguous(),
        counts.contiguous(),
        counts if indices is None else indices.contiguous(),  # else unused
        joints,
        weight,
        spread,
        rows,
        rows if indices is None else indices.shape[1],
        joint_count,
        ball_mm,
        struct.unpack("q", struct.pack("d", fraction))[0],
        INDEXED=indices is not None,
        BLOCK=_BLOCK,
        DIGIT_BITS=_DIGIT_BITS,
        num_warps=_WARPS,
        enable_fp_fusion=True,
    )
    return joints, weight, spread
