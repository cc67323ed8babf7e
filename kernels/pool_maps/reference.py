"""The pooled description of hand views in plain PyTorch: the definition of `pool_maps`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def pooled_inputs(maps: Tensor, slopes: Tensor) -> Tensor:
    """Means and maxima of maps (B, C, H, W) and the views' angles, concatenated as (B, 2 C + 1)."""
    angle = ((slopes - 0.2) * 5)[:, None].to(maps.dtype)
    return torch.cat([maps.mean((2, 3)), maps.amax((2, 3)), angle], 1)


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
    """The map plus its pooled description, and the outputs of a view, as in `nvf_fast.ops.pool_maps`."""
    slopes = slopes.repeat(maps.shape[0] // max(slopes.shape[0], 1))
    pooled = F.relu(F.linear(pooled_inputs(maps, slopes), pooled_weight, pooled_bias))
    added = F.linear(pooled, unpooled_weight, unpooled_bias)
    views = F.linear(pooled.to(view_weight.dtype), view_weight, view_bias)
    return (maps + added[:, :, None, None]).contiguous(memory_format=torch.channels_last), views
