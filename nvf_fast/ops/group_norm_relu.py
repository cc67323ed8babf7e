"""Group normalisation and ReLU in one operation."""

from __future__ import annotations

from numbers import Real

import torch
from torch import Tensor

from nvf_fast.kernels.group_norm_relu import reference
from nvf_fast.kernels.join_branches.reference import block_moments_shape
from nvf_fast.ops.operation import FLOATS, Backend, Operation, check_tensor, memory_format


def group_norm_relu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float = 1e-5,
    moments: Tensor | None = None,
    *,
    backend: Backend | None = None,
) -> Tensor:
    """Normalise by groups and apply ReLU: max(0, (x - mean) / sqrt(variance + eps) * weight + bias).

    Mean and (biased) variance of each image are taken over C / groups channels and all texels, in float32.
    With gradients the PyTorch backend runs, on any device.

    Args:
        x: (B, C, H, W) float32, float16 or bfloat16; or float64, which runs in PyTorch.
        weight: (C,) in the dtype of `x` or, unless that is float64, float32.
        bias: (C,) in the dtype of `weight`.
        groups: a divisor of C.
        eps: added to the variance.
        moments: (B, blocks, 2, groups) float32 of `x`, from `join_branches`, which save the kernel a pass
            over `x`; None computes them.
        backend: None, "triton" or "torch".

    Returns:
        (B, C, H, W) in the dtype of `x`; channels-last if `x` is that, else contiguous. NaN stays NaN.

    Raises:
        ValueError: a shape, `groups` or `eps` does not fit.
        TypeError, RuntimeError: as every operation (`nvf_fast.ops`).
    """
    _check(x, weight, bias, groups, eps)
    if moments is None:
        return _run(backend, x, weight, bias, groups, eps)
    batch, channels, height, width = x.shape
    shape = (batch, *block_moments_shape(channels, height, width, groups))
    check_tensor("group_norm_relu", "moments", moments, [shape], torch.float32)
    return _run(backend, x, weight, bias, groups, eps, moments)


def _torch_form(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, moments: Tensor | None = None
) -> Tensor:
    """The reference in the dtype and memory format of `x`, which CUDA and autocast change."""
    y = reference.group_norm_relu(x, weight, bias, groups, eps)
    if y.dtype == x.dtype and y.stride() == x.stride():
        return y
    return y.to(dtype=x.dtype, memory_format=memory_format(x))


_run = Operation(
    "group_norm_relu",
    _torch_form,
    lambda x, *_: torch.empty_like(x, memory_format=memory_format(x)),
    gradients="torch",
    autocast=True,
)


def _check(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> None:
    # Few accesses to tensors: the checks take measurable time in a small network on a CPU.
    if not isinstance(x, Tensor) or not isinstance(weight, Tensor) or not isinstance(bias, Tensor):
        kinds = ", ".join(type(each).__name__ for each in (x, weight, bias))
        raise TypeError(f"group_norm_relu: x, weight and bias must be tensors, got {kinds}")
    shape, dtype = x.shape, x.dtype
    if len(shape) != 4:
        raise ValueError(f"group_norm_relu: x must be (B, C, H, W), got {tuple(shape)}")
    if dtype not in FLOATS:
        raise TypeError(f"group_norm_relu: x must be float32, float16, bfloat16 or float64, got {dtype}")
    if not weight.shape == bias.shape == shape[1:2]:
        raise ValueError(
            f"group_norm_relu: weight and bias must be ({shape[1]},), got {tuple(weight.shape)} and "
            f"{tuple(bias.shape)}"
        )
    dtypes = (dtype,) if dtype == torch.float64 else (dtype, torch.float32)
    if weight.dtype != bias.dtype or weight.dtype not in dtypes:
        raise TypeError(
            f"group_norm_relu: weight and bias must be one of {dtypes} for x in {dtype}, got {weight.dtype} "
            f"and {bias.dtype}"
        )
    if not isinstance(groups, int | torch.SymInt) or isinstance(groups, bool):
        raise TypeError(f"group_norm_relu: groups must be a whole number, got {groups!r}")
    if groups < 1 or shape[1] % groups:
        raise ValueError(f"group_norm_relu: groups must divide the {shape[1]} channels, got {groups}")
    if not isinstance(eps, Real) or not eps > 0:
        raise ValueError(f"group_norm_relu: eps must be positive, got {eps!r}")
