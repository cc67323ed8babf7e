"""The sum of a block's branches and input in one launch, with the moments that the next norm needs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from nvf_fast.kernels.group_norm_relu.triton import store_moments, tile, tiling
from nvf_fast.kernels.join_branches.reference import block_moments_shape

_WARPS, _UPSAMPLING_WARPS = 8, 16
_TAPS = tl.constexpr(4)  # of bicubic interpolation along an axis


@triton.jit
def _axis(place, size):
    """The first of the texels that interpolation along an axis reads, to 2 x size from size."""
    # The small addition keeps rounding from moving whole quotients below their integer.
    return tl.floor(place.to(tl.float32) * (size - 1) / (2 * size - 1) + 1e-4).to(tl.int32) - 1


@triton.jit
def join_blocks(
    x_ptr,
    first_ptr,
    second_ptr,
    third_ptr,
    bias_ptr,
    lower_ptr,
    upsampling_ptr,
    y_ptr,
    moments_ptr,
    texel_count,
    blocks,
    width,
    CHANNELS: tl.constexpr,
    FIRST: tl.constexpr,  # channels of the first two branches; the third has the rest
    SECOND: tl.constexpr,
    BIASED: tl.constexpr,
    UPSAMPLED: tl.constexpr,
    MEASURED: tl.constexpr,
    GROUPS: tl.constexpr,
    TEXELS: tl.constexpr,
    GROUP_LANES: tl.constexpr,
    CHANNEL_LANES: tl.constexpr,
):
    """A block of whole texels of one image."""
    THIRD: tl.constexpr = CHANNELS - FIRST - SECOND
    PER_GROUP: tl.constexpr = CHANNELS // GROUPS
    block = (tl.program_id(0) % blocks).to(tl.int64)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    texel = tl.arange(0, TEXELS)
    rest = texel_count - block * TEXELS
    offsets, valid, channel, used = tile(0, rest, CHANNELS, GROUPS, TEXELS, GROUP_LANES, CHANNEL_LANES)
    inside = (texel < rest)[:, None]
    origin = image * texel_count + block * TEXELS

    total = tl.zeros((TEXELS, GROUP_LANES * CHANNEL_LANES), tl.float32)
    if UPSAMPLED:
        size = width // 2
        place = (block * TEXELS).to(tl.int32) + texel
        down, across = tl.minimum(place // width, width - 1), place % width
        top, left = _axis(down, size), _axis(across, size)
        lower_ptr += image * size * size * CHANNELS
        # Loops, since unrolled ones would load all taps at once and spill.
        for i in tl.range(0, _TAPS, num_stages=1):
            row = top + i
            known = (row >= 0) & (row < size)
            weight_y = tl.load(upsampling_ptr + down * size + row, mask=known, other=0.0).to(tl.float32)
            line = tl.zeros((TEXELS, GROUP_LANES * CHANNEL_LANES), tl.float32)
            for j in tl.range(0, _TAPS, num_stages=1):
                column = left + j
                there = known & (column >= 0) & (column < size)
                at = upsampling_ptr + across * size + column
                weight_x = tl.load(at, mask=there, other=0.0).to(tl.float32)
                at = lower_ptr + (row * size + column)[:, None] * CHANNELS + channel[None, :]
                line += weight_x[:, None] * tl.load(at, mask=there[:, None] & valid, other=0.0).to(tl.float32)
            total += weight_y[:, None] * line
    total += tl.load(x_ptr + origin * CHANNELS + offsets, mask=valid, other=0.0).to(tl.float32)
    own = (used & (channel < FIRST))[None, :] & inside
    at = first_ptr + origin * FIRST + texel[:, None] * FIRST + channel[None, :]
    total += tl.load(at, mask=own, other=0.0).to(tl.float32)
    if SECOND > 0:
        own = (used & (channel >= FIRST) & (channel < FIRST + SECOND))[None, :] & inside
        at = second_ptr + origin * SECOND + texel[:, None] * SECOND + (channel - FIRST)[None, :]
        total += tl.load(at, mask=own, other=0.0).to(tl.float32)
    if THIRD > 0:
        own = (used & (channel >= FIRST + SECOND))[None, :] & inside
        at = third_ptr + origin * THIRD + texel[:, None] * THIRD + (channel - FIRST - SECOND)[None, :]
        total += tl.load(at, mask=own, other=0.0).to(tl.float32)
    if BIASED:
        total += tl.load(bias_ptr + channel, mask=used, other=0.0).to(tl.float32)[None, :]
    y = total.to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + origin * CHANNELS + offsets, y, mask=valid)
    if MEASURED:
        moments_ptr += tl.program_id(0).to(tl.int64) * (2 * GROUPS)
        y = tl.where(valid, y.to(tl.float32), 0.0)
        store_moments(moments_ptr, y, valid, rest, GROUPS, PER_GROUP, TEXELS, GROUP_LANES, CHANNEL_LANES)


def join_branches(
    x: Tensor,
    branches: Sequence[Tensor],
    bias: Tensor | None = None,
    lower: Tensor | None = None,
    upsampling: Tensor | None = None,
    groups: int = 0,
) -> tuple[Tensor, Tensor]:
    """The sum and its moments, as in the reference, with sums in float32.

    The kernel needs channels-last maps; others are converted, and the sum to the format of `x`.
    """
    batch, channels, height, width = x.shape
    texels = height * width
    memory_format = torch.contiguous_format
    if x.is_contiguous(memory_format=torch.channels_last):
        memory_format = torch.channels_last
    x = x.contiguous(memory_format=torch.channels_last)
    branches = [branch.contiguous(memory_format=torch.channels_last) for branch in branches]
    y = torch.empty_like(x)
    shape = block_moments_shape(channels, height, width, groups)
    moments = torch.empty(batch, *shape, dtype=torch.float32, device=x.device)
    if x.numel() > 0:
        constants = tiling(channels, groups or 1)
        blocks = triton.cdiv(texels, constants["TEXELS"])
        widths = [branch.shape[1] for branch in branches] + [0, 0]
        if lower is not None and upsampling is not None and torch.version.hip:
            # When compiled for AMD GPUs, the loop over the taps spills.
            upsampling = upsampling.to(lower.dtype)
            x = x + upsampling @ lower @ upsampling.mT
            x, lower = x.contiguous(memory_format=torch.channels_last), None
        elif lower is not None and upsampling is not None:
            lower = lower.contiguous(memory_format=torch.channels_last)
            upsampling = upsampling.contiguous()
        join_blocks[(batch * blocks,)](
            x,
            *(branches + [x, x])[:3],
            x if bias is None else bias.contiguous(),
            x if lower is None else lower,
            x if upsampling is None else upsampling,
            y,
            moments,
            texels,
            blocks,
            width,
            FIRST=widths[0],
            SECOND=widths[1],
            BIASED=bias is not None,
            UPSAMPLED=lower is not None,
            MEASURED=groups > 0,
            **constants,
            num_warps=_WARPS if lower is None else _UPSAMPLING_WARPS,
            enable_fp_fusion=True,
        )
    return y.contiguous(memory_format=memory_format), moments
