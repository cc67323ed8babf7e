"""The end of an encoder's block: its concatenated branches plus its input."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nvf_fast.kernels.join_branches import reference
from nvf_fast.ops.operation import FLOATS, Backend, Operation, check_tensor, memory_format


def join_branches(
    x: Tensor,
    branches: Sequence[Tensor],
    bias: Tensor | None = None,
    lower: Tensor | None = None,
    upsampling: Tensor | None = None,
    groups: int = 0,
    *,
    backend: Backend | None = None,
) -> tuple[Tensor, Tensor]:
    """Concatenate branches and add the other maps: y = x + [branches] + bias + U lower U^T, per channel.

    With gradients the PyTorch backend runs, on any device.

    Args:
        x: (B, C, H, W) float32, float16 or bfloat16; or float64, which runs in PyTorch.
        branches: one to three maps (B, Ck, H, W) in the dtype of `x`, with C channels in total.
        bias: (C,) in the dtype of `x`.
        lower: (B, C, S, S) in the dtype of `x`, where H = W = 2 S.
        upsampling: (2 S, S) float32 or in the dtype of `x`, U: the matrix of bicubic interpolation with
            align_corners=True along an axis. Given if and only if `lower` is.
        groups: number of groups of channels whose moments a following `group_norm_relu` needs; 0 for none.
        backend: None, "triton" or "torch".

    Returns:
        y (B, C, H, W) in the dtype of `x`, channels-last if `x` is that, else contiguous; its moments
        (B, blocks, 2, groups) float32: in blocks of texels, the means of the groups and the sums of squared
        deviations from them.

    Raises:
        ValueError: a shape does not fit, or `groups` does not divide C.
        TypeError, RuntimeError: as every operation (`nvf_fast.ops`).
    """
    check_tensor("join_branches", "x", x, [("B", "C", "H", "W")], *FLOATS)
    batch, channels, height, width = x.shape
    for branch in branches:
        check_tensor("join_branches", "a branch", branch, [(batch, "Ck", height, width)], x.dtype)
    found = [branch.shape[1] for branch in branches]
    if not 1 <= len(found) <= 3 or sum(found) != channels:
        raise ValueError(
            f"join_branches: one to three branches must have {channels} channels in total, as x, got {found}"
        )
    if bias is not None:
        check_tensor("join_branches", "bias", bias, [(channels,)], x.dtype)
    if (lower is None) != (upsampling is None):
        raise ValueError("join_branches: lower and upsampling must be given together, got one of them")
    if lower is not None and upsampling is not None:
        size = lower.shape[-1]
        check_tensor("join_branches", "lower", lower, [(batch, channels, size, size)], x.dtype)
        check_tensor("join_branches", "upsampling", upsampling, [(2 * size, size)], torch.float32, x.dtype)
        if not height == width == 2 * size:
            raise ValueError(
                f"join_branches: x must have twice the sides of lower, {2 * size} x {2 * size}, got "
                f"{height} x {width}"
            )
    if groups < 0 or (groups and channels % groups):
        raise ValueError(f"join_branches: groups must be 0 or divide the {channels} channels, got {groups}")
    return _run(backend, x, list(branches), bias, lower, upsampling, groups)


def _torch_form(
    x: Tensor,
    branches: Sequence[Tensor],
    bias: Tensor | None = None,
    lower: Tensor | None = None,
    upsampling: Tensor | None = None,
    groups: int = 0,
) -> tuple[Tensor, Tensor]:
    """The reference in the memory format of `x`."""
    y, moments = reference.join_branches(x, branches, bias, lower, upsampling, groups)
    return y.contiguous(memory_format=memory_format(x)), moments


_run = Operation("join_branches", _torch_form, gradients="torch")
