"""A block's concatenated branches plus its input, in plain PyTorch: the definition of `join_branches`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_TILE = 8192  # values of a block


def join_branches(
    x: Tensor,
    branches: Sequence[Tensor],
    bias: Tensor | None = None,
    lower: Tensor | None = None,
    upsampling: Tensor | None = None,
    groups: int = 0,
) -> tuple[Tensor, Tensor]:
    """The sum x + [branches] + bias + upsampled lower map, and its moments, as in `nvf_fast.ops`."""
    total = x + torch.cat(list(branches), 1)
    if bias is not None:
        total += bias[:, None, None]
    if lower is not None and upsampling is not None:
        upsampling = upsampling.to(lower.dtype)
        total += upsampling @ lower @ upsampling.mT
    return total, block_moments(total, groups)


def block_moments(x: Tensor, groups: int) -> Tensor:
    """Means of groups and sums of squared deviations from them, block by block (B, blocks, 2, groups)."""
    batch, channels, height, width = x.shape
    exact = torch.float64 if x.dtype == torch.float64 else torch.float32
    if groups == 0:
        return x.new_empty(batch, 0, 2, 0, dtype=exact)
    grouped = x.to(exact).flatten(2).mT.reshape(batch, height * width, groups, -1)
    moments = []
    for block in grouped.split(_block_texels(channels, groups), 1):
        variance, mean = torch.var_mean(block, (1, 3), correction=0)
        moments.append(torch.stack([mean, variance * (block.shape[1] * block.shape[3])], 1))
    return torch.stack(moments, 1)


def block_moments_shape(channels: int, height: int, width: int, groups: int) -> tuple[int, int, int]:
    """Shape of an image's moments."""
    blocks = -(-height * width // _block_texels(channels, groups)) if groups else 0
    return blocks, 2, groups


def _block_texels(channels: int, groups: int) -> int:
    """Texels of a block, with groups and the channels of each padded to powers of two."""
    lanes = 1 << (groups - 1).bit_length() << (channels // groups - 1).bit_length()
    return max(1, _TILE // lanes)
