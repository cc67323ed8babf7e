"""Group normalisation and ReLU of channels-last maps: one launch measures blocks, the next applies it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 8192  # values per program
_MEANS = tl.constexpr(2048)  # that a program combines at a time
_WARPS = 8


@triton.jit
def _tile(
    block,
    texel_count,
    CHANNELS: tl.constexpr,
    GROUPS: tl.constexpr,
    TEXELS: tl.constexpr,
    GROUP_LANES: tl.constexpr,
    CHANNEL_LANES: tl.constexpr,
):
    """Of a block of whole texels (TEXELS, lanes): offsets in it, which are valid, and the lanes' channels."""
    PER_GROUP: tl.constexpr = CHANNELS // GROUPS
    lane = tl.arange(0, GROUP_LANES * CHANNEL_LANES)
    if PER_GROUP == CHANNEL_LANES:
        channel = lane  # as it stands, so that the compiler sees one contiguous row
        used = lane < CHANNELS
    else:
        channel = lane // CHANNEL_LANES * PER_GROUP + lane % CHANNEL_LANES
        used = (lane // CHANNEL_LANES < GROUPS) & (lane % CHANNEL_LANES < PER_GROUP)
    texel = tl.arange(0, TEXELS)
    offsets = texel[:, None] * CHANNELS + channel[None, :]
    return offsets, (texel < texel_count - block * TEXELS)[:, None] & used[None, :], channel, used


@triton.jit
def _sum_groups(values, TEXELS: tl.constexpr, GROUP_LANES: tl.constexpr, CHANNEL_LANES: tl.constexpr):
    return tl.sum(tl.sum(tl.reshape(values, (TEXELS, GROUP_LANES, CHANNEL_LANES)), 2), 0)


@triton.jit
def _spread(values, GROUP_LANES: tl.constexpr, CHANNEL_LANES: tl.constexpr):
    """A value per group to one per lane."""
    wide = tl.broadcast_to(values[:, None], (GROUP_LANES, CHANNEL_LANES))
    return tl.reshape(wide, (GROUP_LANES * CHANNEL_LANES,))


@triton.jit
def measure_blocks(
    x_ptr,
    moments_ptr,
    texel_count,
    blocks,
    CHANNELS: tl.constexpr,
    GROUPS: tl.constexpr,
    TEXELS: tl.constexpr,
    GROUP_LANES: tl.constexpr,
    CHANNEL_LANES: tl.constexpr,
):
    """Each group's mean and sum of squared deviations over one block: moments (B, blocks, 2, GROUPS)."""
    # One axis for images and blocks: CUDA takes 65535 programs along the others.
    block = (tl.program_id(0) % blocks).to(tl.int64)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    offsets, valid, _, _ = _tile(block, texel_count, CHANNELS, GROUPS, TEXELS, GROUP_LANES, CHANNEL_LANES)
    x_ptr += (image * texel_count + block * TEXELS) * CHANNELS
    x = tl.load(x_ptr + offsets, mask=valid, other=0.0).to(tl.float32)
    count = tl.minimum(texel_count - block * TEXELS, TEXELS) * (CHANNELS // GROUPS)
    mean = _sum_groups(x, TEXELS, GROUP_LANES, CHANNEL_LANES) / count
    deviation = tl.where(valid, x - _spread(mean, GROUP_LANES, CHANNEL_LANES)[None, :], 0.0)
    # A second round for what rounding left of the mean, which shows where the mean is many deviations from 0.
    rest = _sum_groups(deviation, TEXELS, GROUP_LANES, CHANNEL_LANES) / count
    mean += rest
    deviation = tl.where(valid, deviation - _spread(rest, GROUP_LANES, CHANNEL_LANES)[None, :], 0.0)
    squares = _sum_groups(deviation * deviation, TEXELS, GROUP_LANES, CHANNEL_LANES)
    group = tl.arange(0, GROUP_LANES)
    row = moments_ptr + tl.program_id(0).to(tl.int64) * (2 * GROUPS) + group
    tl.store(row, mean, mask=group < GROUPS)
    tl.store(row + GROUPS, squares, mask=group < GROUPS)


@triton.jit
def normalise_blocks(
    x_ptr,
    moments_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    texel_count,
    blocks,
    eps,
    CHANNELS: tl.constexpr,
    GROUPS: tl.constexpr,
    TEXELS: tl.constexpr,
    GROUP_LANES: tl.constexpr,
    CHANNEL_LANES: tl.constexpr,
):
    """Every program combines the moments of all blocks, in one order, and applies them to its own."""
    block = (tl.program_id(0) % blocks).to(tl.int64)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    offsets, valid, channel, used = _tile(
        block, texel_count, CHANNELS, GROUPS, TEXELS, GROUP_LANES, CHANNEL_LANES
    )
    x_ptr += (image * texel_count + block * TEXELS) * CHANNELS
    y_ptr += (image * texel_count + block * TEXELS) * CHANNELS
    x = tl.load(x_ptr + offsets, mask=valid, other=0.0).to(tl.float32)

    # Chan et al. 1983, for BLOCKS blocks at a time. Means are summed as differences from the mean so far: far
    # from 0 their own sum would round away what they differ in.
    PER_GROUP: tl.constexpr = CHANNELS // GROUPS
    BLOCKS: tl.constexpr = (_MEANS + GROUP_LANES - 1) // GROUP_LANES
    group = tl.arange(0, GROUP_LANES)
    moments_ptr += image * blocks * (2 * GROUPS)
    mean = tl.load(moments_ptr + group, mask=group < GROUPS, other=0.0)
    squares = tl.zeros((GROUP_LANES,), tl.float32)
    total = tl.zeros((), tl.float32)
    first = 0
    while first < blocks:
        some = first + tl.arange(0, BLOCKS).to(tl.int64)
        known = (some < blocks)[:, None] & (group < GROUPS)[None, :]
        rows = moments_ptr + some[:, None] * (2 * GROUPS) + group[None, :]
        counts = tl.maximum(tl.minimum(texel_count - some * TEXELS, TEXELS), 0).to(tl.float32) * PER_GROUP
        count = tl.sum(counts, 0)
        apart = tl.where(known, tl.load(rows, mask=known, other=0.0) - mean[None, :], 0.0)
        step = tl.sum(apart * counts[:, None], 0) / count
        apart -= step[None, :]
        squares += tl.sum(tl.load(rows + GROUPS, mask=known, other=0.0) + apart * apart * counts[:, None], 0)
        squares += step * step * (total * count / (total + count))
        mean += step * (count / (total + count))
        total += count
        first += BLOCKS

    scale = 1.0 / tl.sqrt(squares / total + eps)
    weight = tl.load(weight_ptr + channel, mask=used, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + channel, mask=used, other=0.0).to(tl.float32)
    weight *= _spread(scale, GROUP_LANES, CHANNEL_LANES)
    # The difference before the product: with a mean far from 0, x * weight and mean * weight would cancel.
    y = (x - _spread(mean, GROUP_LANES, CHANNEL_LANES)[None, :]) * weight[None, :] + bias[None, :]
    y = tl.where(y < 0.0, 0.0, y)  # as ReLU, and unlike a maximum, keeps NaN
    tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty), mask=valid)


def group_norm_relu(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float = 1e-5) -> Tensor:
    """max(0, group norm), as in the reference, with sums in float32.

    The kernels need channels-last maps; others are converted, and contiguous ones converted back.
    """
    batch, channels, height, width = x.shape
    texels = height * width
    memory_format = torch.contiguous_format
    if x.is_contiguous(memory_format=torch.channels_last):
        memory_format = torch.channels_last
    x = x.contiguous(memory_format=torch.channels_last)
    y = torch.empty_like(x)
    if x.numel() > 0:
        constants = tiling(channels, groups)
        blocks = triton.cdiv(texels, constants["TEXELS"])
        moments = torch.empty(batch, blocks, 2, groups, dtype=torch.float32, device=x.device)
        constants["num_warps"] = _WARPS
        measure_blocks[(batch * blocks,)](x, moments, texels, blocks, **constants)
        weight, bias = weight.contiguous(), bias.contiguous()
        normalise_blocks[(batch * blocks,)](x, moments, weight, bias, y, texels, blocks, eps, **constants)
    return y.contiguous(memory_format=memory_format)


def tiling(channels: int, groups: int) -> dict[str, int]:
    """The kernels' compile-time choices; groups and the channels of each are padded to powers of two."""
    group_lanes = triton.next_power_of_2(groups)
    channel_lanes = triton.next_power_of_2(channels // groups)
    return {
        "CHANNELS": channels,
        "GROUPS": groups,
        "TEXELS": max(1, _TILE // (group_lanes * channel_lanes)),
        "GROUP_LANES": group_lanes,
        "CHANNEL_LANES": channel_lanes,
    }
