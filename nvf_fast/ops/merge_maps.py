"""The merge of two maps in a U-Net."""

from __future__ import annotations

from torch import Tensor

from nvf_fast.kernels.merge_maps import reference
from nvf_fast.ops.operation import FLOATS, Backend, Operation, check_tensor


def merge_maps(
    below: Tensor,
    beside: Tensor,
    below_weight: Tensor,
    beside_weight: Tensor,
    bias: Tensor,
    *,
    backend: Backend | None = None,
) -> Tensor:
    """Merge a map with one of half its size: relu(below_weight up(below) + beside_weight beside + bias).

    Upsampling repeats texels. With gradients the PyTorch backend runs, on any device.

    Args:
        below: (B, C, H, W) float32, float16 or bfloat16; or float64, which runs in PyTorch.
        beside: (B, D, 2 H, 2 W) in the dtype of `below`, as are all others.
        below_weight: (O, C, 1, 1).
        beside_weight: (O, D, 1, 1).
        bias: (O,).
        backend: None, "triton" or "torch".

    Returns:
        (B, O, 2 H, 2 W), channels-last.

    Raises:
        ValueError, TypeError, RuntimeError: as every operation (`nvf_fast.ops`).
    """
    check_tensor("merge_maps", "below", below, [("B", "C", "H", "W")], *FLOATS)
    batch, channels, height, width = below.shape
    beside_shape = batch, "D", 2 * height, 2 * width
    check_tensor("merge_maps", "beside", beside, [beside_shape], below.dtype)
    check_tensor("merge_maps", "bias", bias, [("O",)], below.dtype)
    out = len(bias)
    check_tensor("merge_maps", "below_weight", below_weight, [(out, channels, 1, 1)], below.dtype)
    check_tensor("merge_maps", "beside_weight", beside_weight, [(out, beside.shape[1], 1, 1)], below.dtype)
    return _run(backend, below, beside, below_weight, beside_weight, bias)


_run = Operation("merge_maps", reference.merge_maps, gradients="torch")
