"""The pooled description of hand views in one launch, a program per view.

The weights come from the cache: a row of them is read by one warp, in consecutive addresses.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_TEXELS, _BLOCK, _WARPS = 16, 32, 16


@triton.jit
def _products(
    weight_ptr, bias_ptr, first, rows, hidden, WIDTH: tl.constexpr, LANES: tl.constexpr, BLOCK: tl.constexpr
):
    """Rows `first` to `first + BLOCK` of a linear layer of the hidden activations, 0 beyond `rows`."""
    row, lane = first + tl.arange(0, BLOCK), tl.arange(0, LANES)
    within = row < rows
    mask = within[:, None] & (lane < WIDTH)[None, :]
    weight = tl.load(weight_ptr + row[:, None] * WIDTH + lane[None, :], mask=mask, other=0.0)
    bias = tl.load(bias_ptr + row, mask=within, other=0.0).to(tl.float32)
    return tl.sum(weight.to(tl.float32) * hidden[None, :], 1) + bias


@triton.jit
def pool_view(
    maps_ptr,  # (rows, texels, CHANNELS)
    slopes_ptr,
    pooled_weight_ptr,  # (WIDTH, 2 CHANNELS + 1): means, maxima, angle
    pooled_bias_ptr,
    unpooled_weight_ptr,  # (CHANNELS, WIDTH)
    unpooled_bias_ptr,
    view_weight_ptr,  # (outputs, WIDTH)
    view_bias_ptr,
    y_ptr,  # (rows, texels, CHANNELS)
    views_ptr,  # (rows, outputs)
    slope_count,
    outputs,
    CHANNELS: tl.constexpr,
    WIDTH: tl.constexpr,
    LANES: tl.constexpr,
    ALL_TEXELS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    TEXELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    view = tl.program_id(0).to(tl.int64)
    maps_ptr += view * ALL_TEXELS * CHANNELS
    y_ptr += view * ALL_TEXELS * CHANNELS
    lane, texel = tl.arange(0, LANES), tl.arange(0, TEXELS)
    rows = lane < WIDTH
    weight_ptr = pooled_weight_ptr + lane * (2 * CHANNELS + 1)
    sums = tl.zeros((LANES, BLOCK), tl.float32)
    for first in range(0, CHANNELS, BLOCK):
        channel = first + tl.arange(0, BLOCK)
        within = channel < CHANNELS
        mean = tl.zeros((BLOCK,), tl.float32)
        most = tl.full((BLOCK,), -float("inf"), tl.float32)
        for start in range(0, ALL_TEXELS, TEXELS):
            valid = (start + texel < ALL_TEXELS)[:, None] & within[None, :]
            x = maps_ptr + (start + texel)[:, None] * CHANNELS + channel[None, :]
            x = tl.load(x, mask=valid, other=0.0).to(tl.float32)
            mean += tl.sum(x, 0)
            most = tl.maximum(most, tl.max(tl.where(valid, x, -float("inf")), 0))
        mean = mean / ALL_TEXELS
        most = tl.where(within, most, 0.0)
        mask = rows[:, None] & within[None, :]
        weight = weight_ptr[:, None] + channel[None, :]
        sums += tl.load(weight, mask=mask, other=0.0).to(tl.float32) * mean[None, :]
        sums += tl.load(weight + CHANNELS, mask=mask, other=0.0).to(tl.float32) * most[None, :]
    angle = (tl.load(slopes_ptr + view % slope_count) - 0.2) * 5
    hidden = tl.load(weight_ptr + 2 * CHANNELS, mask=rows, other=0.0).to(tl.float32) * angle
    hidden += tl.load(pooled_bias_ptr + lane, mask=rows, other=0.0).to(tl.float32)
    hidden += tl.sum(sums, 1)
    hidden = tl.where(hidden < 0, 0.0, hidden)  # keeps NaN, as PyTorch
    output = tl.arange(0, OUTPUTS)
    values = _products(view_weight_ptr, view_bias_ptr, 0, outputs, hidden, WIDTH, LANES, OUTPUTS)
    tl.store(views_ptr + view * outputs + output, values, mask=output < outputs)
    for first in range(0, CHANNELS, BLOCK):
        channel = first + tl.arange(0, BLOCK)
        added = _products(
            unpooled_weight_ptr, unpooled_bias_ptr, first, CHANNELS, hidden, WIDTH, LANES, BLOCK
        )
        for start in range(0, ALL_TEXELS, TEXELS):
            valid = (start + texel < ALL_TEXELS)[:, None] & (channel < CHANNELS)[None, :]
            place = (start + texel)[:, None] * CHANNELS + channel[None, :]
            x = tl.load(maps_ptr + place, mask=valid, other=0.0).to(tl.float32) + added[None, :]
            tl.store(y_ptr + place, x.to(y_ptr.dtype.element_ty), mask=valid)


def pool_maps(
    maps: Tensor,
    slopes: Tensor,
    pooled_weight: Tensor,
    pooled_bias: Tensor,
    unpooled_weight: Tensor,
    unpooled_bias: Tensor,
    view_weight: Tensor,
    view_bias: Tensor,
) -> tuple[Tensor, Tensor]:
    """The map plus its pooled description, channels-last, and the outputs of a view, as in the reference."""
    rows, channels, height, width = maps.shape
    maps = maps.contiguous(memory_format=torch.channels_last)
    y = torch.empty_like(maps, memory_format=torch.channels_last)
    views = maps.new_empty(rows, len(view_bias), dtype=view_bias.dtype)
    if rows == 0:
        return y, views
    pool_view[(rows,)](
        maps,
        slopes.contiguous(),
        pooled_weight.contiguous(),
        pooled_bias.contiguous(),
        unpooled_weight.contiguous(),
        unpooled_bias.contiguous(),
        view_weight.contiguous(),
        view_bias.contiguous(),
        y,
        views,
        len(slopes),
        len(view_bias),
        CHANNELS=channels,
        WIDTH=len(pooled_bias),
        LANES=triton.next_power_of_2(len(pooled_bias)),
        ALL_TEXELS=height * width,
        OUTPUTS=triton.next_power_of_2(len(view_bias)),
        TEXELS=_TEXELS,
        BLOCK=_BLOCK,
        num_warps=_WARPS,
        enable_fp_fusion=True,
    )
    return y, views
