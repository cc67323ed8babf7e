"""A U-Net's merge of two maps in one launch, a program per tile of texels of the lower map and of channels.

The lower map's product is the first summand of each of the four texels that it is upsampled to.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_TEXELS, _COLUMNS, _WARPS = 64, 32, 4


def block_channels(dtype: torch.dtype, channels: int) -> int:
    """Channels of a product; a float32 one, without a matrix unit, keeps its operands in registers."""
    return 16 if dtype == torch.float32 else max(16, min(256, triton.next_power_of_2(channels)))


@triton.jit
def _multiplied(x_ptr, row, valid, weight_ptr, column, sums, CHANNELS: tl.constexpr, BLOCK: tl.constexpr):
    """The sums plus the product of rows (texels, CHANNELS) and a matrix (columns, CHANNELS)."""
    # Triton before 3.9 omits the fence between copies of a pipelined loop and products that read them.
    for first in tl.range(0, CHANNELS, BLOCK, num_stages=1):
        channel = first + tl.arange(0, BLOCK)
        within = channel < CHANNELS
        x = x_ptr + row[:, None] * CHANNELS + channel[None, :]
        x = tl.load(x, mask=valid[:, None] & within[None, :], other=0.0)
        weight = weight_ptr + column[None, :] * CHANNELS + channel[:, None]
        weight = tl.load(weight, mask=within[:, None], other=0.0)
        sums = tl.dot(x, weight, sums, input_precision="ieee")
    return sums


@triton.jit
def merge_texels(
    below_ptr,  # (B, height, width, BELOW)
    beside_ptr,  # (B, 2 height, 2 width, BESIDE)
    below_weight_ptr,  # (OUT, BELOW)
    beside_weight_ptr,  # (OUT, BESIDE)
    bias_ptr,
    y_ptr,  # (B, 2 height, 2 width, OUT)
    texels,
    width,
    BELOW: tl.constexpr,
    BESIDE: tl.constexpr,
    OUT: tl.constexpr,
    TEXELS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BELOW_BLOCK: tl.constexpr,
    BESIDE_BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * TEXELS + tl.arange(0, TEXELS)
    valid = row < texels
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    written = valid[:, None] & (column < OUT)[None, :]
    own = tl.minimum(column, OUT - 1)
    bias = tl.load(bias_ptr + own).to(tl.float32)
    sums = tl.broadcast_to(bias[None, :], TEXELS, COLUMNS)
    sums = _multiplied(below_ptr, row, valid, below_weight_ptr, own, sums, BELOW, BELOW_BLOCK)
    # The first of the four texels that a texel is upsampled to, in a map of twice the width.
    first = row // width * (4 * width) + row % width * 2
    for part in tl.range(4, num_stages=1):
        beside = first + (part // 2) * (2 * width) + part % 2
        y = _multiplied(beside_ptr, beside, valid, beside_weight_ptr, own, sums, BESIDE, BESIDE_BLOCK)
        y = tl.where(y < 0, 0.0, y).to(y_ptr.dtype.element_ty)  # keeps NaN, as PyTorch
        tl.store(y_ptr + beside[:, None] * OUT + column[None, :], y, mask=written)


def merge_maps(
    below: Tensor, beside: Tensor, below_weight: Tensor, beside_weight: Tensor, bias: Tensor
) -> Tensor:
    """The merged map (B, O, 2 H, 2 W), channels-last."""
    batch, channels, height, width = below.shape
    out = len(bias)
    y = beside.new_empty(batch, 2 * height, 2 * width, out).permute(0, 3, 1, 2)
    texels = batch * height * width
    if texels == 0:
        return y
    merge_texels[(triton.cdiv(texels, _TEXELS), triton.cdiv(out, _COLUMNS))](
        below.contiguous(memory_format=torch.channels_last),
        beside.contiguous(memory_format=torch.channels_last),
        below_weight.reshape(out, -1).contiguous(),
        beside_weight.reshape(out, -1).contiguous(),
        bias.contiguous(),
        y,
        texels,
        width,
        BELOW=channels,
        BESIDE=beside.shape[1],
        OUT=out,
        TEXELS=_TEXELS,
        COLUMNS=_COLUMNS,
        BELOW_BLOCK=block_channels(below.dtype, channels),
        BESIDE_BLOCK=block_channels(below.dtype, beside.shape[1]),
        num_warps=_WARPS,
        enable_fp_fusion=True,
    )
    return y
