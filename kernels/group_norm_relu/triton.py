"""Group normalisation and ReLU of channels-last maps.

Of a small map a program measures and normalises whole groups, which it reads once. Of a larger one a launch
measures blocks, unless `join_branches` did, and another normalises them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 8192  # values per program, for a larger map
_SMALL_BYTES = 65536  # most bytes per program, for a small map
_SMALL_TEXELS = 4096
_FEW_PROGRAMS = 256  # with fewer, a program has a single group
_ROW = 16  # least channels per program for large batches, so that whole sectors of memory are read
_MEANS = tl.constexpr(2048)  # means that a program combines at a time
_WARPS = 8


@triton.jit
def tile(
    first_group,
    texel_count,  # from the first texel of the tile on
    CHANNELS: tl.constexpr,
    GROUPS: tl.constexpr,
    TEXELS: tl.constexpr,
    GROUP_LANES: tl.constexpr,
    CHANNEL_LANES: tl.constexpr,
):
    """Of some groups in whole texels (TEXELS, lanes): offsets, which are valid, and the lanes' channels."""
    PER_GROUP: tl.constexpr = CHANNELS // GROUPS
    lane = tl.arange(0, GROUP_LANES * CHANNEL_LANES)
    if PER_GROUP == CHANNEL_LANES or GROUPS == 1:
        channel = first_group * PER_GROUP + lane  # so that the compiler sees one contiguous row
        used = channel < CHANNELS
    else:
        group = first_group + lane // CHANNEL_LANES
        channel = group * PER_GROUP + lane % CHANNEL_LANES
        used = (group < GROUPS) & (lane % CHANNEL_LANES < PER_GROUP)
    texel = tl.arange(0, TEXELS)
    offsets = texel[:, None] * CHANNELS + channel[None, :]
    return offsets, (texel < texel_count)[:, None] & used[None, :], channel, used


@triton.jit
def _sum_groups(values, TEXELS: tl.constexpr, GROUP_LANES: tl.constexpr, CHANNEL_LANES: tl.constexpr):
    return tl.sum(tl.sum(tl.reshape(values, (TEXELS, GROUP_LANES, CHANNEL_LANES)), 2), 0)


@triton.jit
def _spread(values, GROUP_LANES: tl.constexpr, CHANNEL_LANES: tl.constexpr):
    """A value per group to one per lane."""
    wide = tl.broadcast_to(values[:, None], (GROUP_LANES, CHANNEL_LANES))
    return tl.reshape(wide, (GROUP_LANES * CHANNEL_LANES,))


@triton.jit
def measure(x, valid, count, TEXELS: tl.constexpr, GROUP_LANES: tl.constexpr, CHANNEL_LANES: tl.constexpr):
    """Means of the groups of a tile, and sums of squared deviations from them."""
    mean = _sum_groups(x, TEXELS, GROUP_LANES, CHANNEL_LANES) / count
    deviation = tl.where(valid, x - _spread(mean, GROUP_LANES, CHANNEL_LANES)[None, :], 0.0)
    # A second pass removes the rounding error of a mean that is many deviations from 0.
    rest = _sum_groups(deviation, TEXELS, GROUP_LANES, CHANNEL_LANES) / count
    mean += rest
    deviation = tl.where(valid, deviation - _spread(rest, GROUP_LANES, CHANNEL_LANES)[None, :], 0.0)
    return mean, _sum_groups(deviation * deviation, TEXELS, GROUP_LANES, CHANNEL_LANES)


@triton.jit
def store_moments(
    moments_ptr,
    x,
    valid,
    texel_count,
    GROUPS: tl.constexpr,
    PER_GROUP: tl.constexpr,
    TEXELS: tl.constexpr,
    GROUP_LANES: tl.constexpr,
    CHANNEL_LANES: tl.constexpr,
):
    """Measure a block of `texel_count` texels of all groups: moments (2, GROUPS)."""
    count = tl.minimum(texel_count, TEXELS) * PER_GROUP
    mean, squares = measure(x, valid, count, TEXELS, GROUP_LANES, CHANNEL_LANES)
    group = tl.arange(0, GROUP_LANES)
    tl.store(moments_ptr + group, mean, mask=group < GROUPS)
    tl.store(moments_ptr + GROUPS + group, squares, mask=group < GROUPS)


@triton.jit
def _apply(
    x,
    mean,
    variance,
    eps,
    weight_ptr,
    bias_ptr,
    channel,
    used,
    GROUP_LANES: tl.constexpr,
    CHANNEL_LANES: tl.constexpr,
):
    """The normalised tile of groups with the given moments."""
    weight = tl.load(weight_ptr + channel, mask=used, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + channel, mask=used, other=0.0).to(tl.float32)
    weight *= _spread(1.0 / tl.sqrt(variance + eps), GROUP_LANES, CHANNEL_LANES)
    # The difference before the product: with a mean far from 0, x * weight and mean * weight would cancel.
    y = (x - _spread(mean, GROUP_LANES, CHANNEL_LANES)[None, :]) * weight[None, :] + bias[None, :]
    return tl.where(y < 0.0, 0.0, y)  # as ReLU, and unlike a maximum, keeps NaN


@triton.jit
def normalise_groups(
    x_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    texel_count,
    eps,
    CHANNELS: tl.constexpr,
    GROUPS: tl.constexpr,
    TEXELS: tl.constexpr,
    GROUP_LANES: tl.constexpr,
    CHANNEL_LANES: tl.constexpr,
    REREAD: tl.constexpr,  # rather than keep a large tile in registers
):
    """Measure and normalise GROUP_LANES groups of a small map."""
    PROGRAMS: tl.constexpr = (GROUPS + GROUP_LANES - 1) // GROUP_LANES  # per image
    image = (tl.program_id(0) // PROGRAMS).to(tl.int64)
    offsets, valid, channel, used = tile(
        tl.program_id(0) % PROGRAMS * GROUP_LANES,
        texel_count,
        CHANNELS,
        GROUPS,
        TEXELS,
        GROUP_LANES,
        CHANNEL_LANES,
    )
    x_ptr += image * texel_count * CHANNELS
    x = tl.load(x_ptr + offsets, mask=valid, other=0.0).to(tl.float32)
    count = texel_count * (CHANNELS // GROUPS)
    mean, squares = measure(x, valid, count, TEXELS, GROUP_LANES, CHANNEL_LANES)
    if REREAD:
        x = tl.load(x_ptr + offsets, mask=valid, other=0.0, eviction_policy="evict_first").to(tl.float32)
    y = _apply(x, mean, squares / count, eps, weight_ptr, bias_ptr, channel, used, GROUP_LANES, CHANNEL_LANES)
    y_ptr += image * texel_count * CHANNELS
    tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty), mask=valid)


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
    # One axis for images and blocks: CUDA allows only 65535 programs along the others.
    block = (tl.program_id(0) % blocks).to(tl.int64)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    rest = texel_count - block * TEXELS
    offsets, valid, _, _ = tile(0, rest, CHANNELS, GROUPS, TEXELS, GROUP_LANES, CHANNEL_LANES)
    x_ptr += (image * texel_count + block * TEXELS) * CHANNELS
    x = tl.load(x_ptr + offsets, mask=valid, other=0.0).to(tl.float32)
    moments_ptr += tl.program_id(0).to(tl.int64) * (2 * GROUPS)
    store_moments(moments_ptr, x, valid, rest, GROUPS, CHANNELS // GROUPS, TEXELS, GROUP_LANES, CHANNEL_LANES)


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
    offsets, valid, channel, used = tile(
        0, texel_count - block * TEXELS, CHANNELS, GROUPS, TEXELS, GROUP_LANES, CHANNEL_LANES
    )
    x_ptr += (image * texel_count + block * TEXELS) * CHANNELS
    y_ptr += (image * texel_count + block * TEXELS) * CHANNELS
    x = tl.load(x_ptr + offsets, mask=valid, other=0.0).to(tl.float32)

    # Chan et al. 1983, for BLOCKS blocks at a time. Means are summed as differences from the mean so far,
    # since a sum of means far from 0 would round their differences away.
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

    y = _apply(x, mean, squares / total, eps, weight_ptr, bias_ptr, channel, used, GROUP_LANES, CHANNEL_LANES)
    tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty), mask=valid)


def group_norm_relu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float = 1e-5,
    moments: Tensor | None = None,
) -> Tensor:
    """max(0, group norm), as in the reference, with sums in float32.

    The kernels need channels-last maps; others are converted, and contiguous ones converted back.
    """
    batch, channels, height, width = x.shape
    texels = height * width
    memory_format = torch.contiguous_format
    if x.is_contiguous(memory_format=torch.channels_last):
        memory_format = torch.channels_last
    x = x.contiguous(memory_format=torch.channels_last)
    weight, bias = weight.contiguous(), bias.contiguous()
    y = torch.empty_like(x)
    constants = small_tiling(batch, channels, groups, texels, x.element_size())
    if x.numel() > 0 and constants is not None and moments is None:
        programs = batch * triton.cdiv(groups, constants["GROUP_LANES"])
        normalise_groups[(programs,)](
            x,
            weight,
            bias,
            y,
            texels,
            eps,
            **constants,
            num_warps=small_warps(constants),
            enable_fp_fusion=True,
        )
    elif x.numel() > 0:
        constants = tiling(channels, groups)
        blocks = triton.cdiv(texels, constants["TEXELS"])
        if moments is None:
            moments = torch.empty(batch, blocks, 2, groups, dtype=torch.float32, device=x.device)
            measure_blocks[(batch * blocks,)](
                x, moments, texels, blocks, **constants, num_warps=_WARPS, enable_fp_fusion=True
            )
        normalise_blocks[(batch * blocks,)](
            x,
            moments,
            weight,
            bias,
            y,
            texels,
            blocks,
            eps,
            **constants,
            num_warps=_WARPS,
            enable_fp_fusion=True,
        )
    return y.contiguous(memory_format=memory_format)


def tiling(channels: int, groups: int) -> dict[str, int]:
    """The compile-time choices of blocks; groups and the channels of each are padded to powers of two."""
    group_lanes = triton.next_power_of_2(groups)
    channel_lanes = triton.next_power_of_2(channels // groups)
    return {
        "CHANNELS": channels,
        "GROUPS": groups,
        "TEXELS": max(1, _TILE // (group_lanes * channel_lanes)),
        "GROUP_LANES": group_lanes,
        "CHANNEL_LANES": channel_lanes,
    }


def small_tiling(
    batch: int, channels: int, groups: int, texels: int, element_size: int
) -> dict[str, int] | None:
    """The compile-time choices of `normalise_groups`; None for a map that is not small."""
    lanes = triton.next_power_of_2(channels // groups)
    rows = triton.next_power_of_2(texels)
    together = 1 if batch * groups < _FEW_PROGRAMS else max(1, _ROW // lanes)
    together = min(together, triton.next_power_of_2(groups))
    if texels > _SMALL_TEXELS or rows * lanes * together * element_size > _SMALL_BYTES:
        return None
    return {
        "CHANNELS": channels,
        "GROUPS": groups,
        "TEXELS": rows,
        "GROUP_LANES": together,
        "CHANNEL_LANES": lanes,
        "REREAD": rows * lanes * together > 2 * _TILE,
    }


def small_warps(constants: dict[str, int]) -> int:
    """Warps of a program of `normalise_groups`, with at most 64 values per lane."""
    return 2 * _WARPS if constants["REREAD"] else _WARPS
