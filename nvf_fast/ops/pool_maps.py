"""The pooled description of hand views, added to their maps."""

from __future__ import annotations

import torch
from torch import Tensor

from nvf_fast.kernels.pool_maps import reference
from nvf_fast.ops.operation import FLOATS, Backend, Operation, check_tensor


def pool_maps(
    maps: Tensor,
    slopes: Tensor,
    pooled_weight: Tensor,
    pooled_bias: Tensor,
    unpooled_weight: Tensor,
    unpooled_bias: Tensor,
    view_weight: Tensor,
    view_bias: Tensor,
    *,
    backend: Backend | None = None,
) -> tuple[Tensor, Tensor]:
    """Describe each view by D numbers, add a linear map of them to every texel, and map them to outputs.

    The description is relu(pooled_weight [means, maxima, 5 (slope - 0.2)] + pooled_bias). With gradients the
    PyTorch backend runs, on any device.

    Args:
        maps: (R, C, H, W) float32, float16 or bfloat16; or float64, which runs in PyTorch.
        slopes: (B,) float32, tangents of half the views' angles; R is a multiple of B, and the slopes repeat.
        pooled_weight, pooled_bias: (D, 2 C + 1) and (D,) in the dtype of `maps`.
        unpooled_weight, unpooled_bias: (C, D) and (C,) in the dtype of `maps`.
        view_weight, view_bias: (O, D) and (O,) float32, or float64 for float64 maps.
        backend: None, "triton" or "torch".

    Returns:
        The sum (R, C, H, W), channels-last; outputs (R, O) float32.

    Raises:
        ValueError, TypeError, RuntimeError: as every operation (`nvf_fast.ops`).
    """
    check_tensor("pool_maps", "maps", maps, [("R", "C", "H", "W")], *FLOATS)
    exact = torch.float64 if maps.dtype == torch.float64 else torch.float32
    check_tensor("pool_maps", "slopes", slopes, [("B",)], exact)
    check_tensor("pool_maps", "pooled_bias", pooled_bias, [("D",)], maps.dtype)
    check_tensor("pool_maps", "view_bias", view_bias, [("O",)], exact)
    rows, channels, width = len(maps), maps.shape[1], len(pooled_bias)
    check_tensor("pool_maps", "pooled_weight", pooled_weight, [(width, 2 * channels + 1)], maps.dtype)
    check_tensor("pool_maps", "unpooled_weight", unpooled_weight, [(channels, width)], maps.dtype)
    check_tensor("pool_maps", "unpooled_bias", unpooled_bias, [(channels,)], maps.dtype)
    check_tensor("pool_maps", "view_weight", view_weight, [(len(view_bias), width)], exact)
    if rows and (len(slopes) == 0 or rows % len(slopes)):
        raise ValueError(f"pool_maps: the {rows} maps must be a multiple of the slopes, got {len(slopes)}")
    return _run(
        backend,
        maps,
        slopes,
        pooled_weight,
        pooled_bias,
        unpooled_weight,
        unpooled_bias,
        view_weight,
        view_bias,
    )


_run = Operation("pool_maps", reference.pool_maps, gradients="torch")
