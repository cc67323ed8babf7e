"""A network's normalised views of uint8 images: averaging, homography, lens, mirror image, normalisation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nvf_fast.kernels.network_views import cpu
from nvf_fast.kernels.network_views.reference import ROW
from nvf_fast.ops.operation import Backend, Operation, check_tensor


def network_views(
    rows: Tensor,
    pixels: Sequence[Tensor],
    *,
    size: int,
    channels: int = 3,
    mirrored: bool = False,
    dtype: torch.dtype = torch.float32,
    backend: Backend | None = None,
) -> Tensor:
    """Sample normalised views, x / 127.5 - 1 of values 0 to 255, from crops of images.

    Values are bilinear between means over squares of pixels, and black outside the crop. Positions are
    computed in float64. No gradient is computed.

    Args:
        rows: (B, 33) float64. A row holds, in order: the nine entries of the matrix from homogeneous view px
            to px of the averaged crop, or to rays before a lens; px, side of the averaged squares; the byte
            at which the crop begins, bytes from row to row, height and width in px; 0 without a lens, 1 for a
            plumb bob, 2 for a fisheye; fx, s, cx, fy, cy in px of the averaged crop; the largest squared
            slope that the lens sees; and the lens's 12 or 4 coefficients (`nvf_fast.lens`).
        pixels: flat, contiguous uint8, channels interleaved: one tensor that holds all crops, or one for each
            view.
        size: px, side S of the views.
        channels: C, of an image.
        mirrored: whether to append the mirror images of the views, whose pixel u has the position of S - u.
        dtype: of the views: float32, float16 or bfloat16.
        backend: None, "triton" or "torch".

    Returns:
        (B, C, S, S) or (2 B, C, S, S) in `dtype`, channels last in memory.

    Raises:
        ValueError: a shape or stride does not fit; the values of rows are not checked.
        TypeError, RuntimeError: as every operation (`nvf_fast.ops`).
    """
    check_tensor("network_views", "rows", rows, [("B", ROW)], torch.float64)
    for each in pixels:
        check_tensor("network_views", "pixels", each, [("N",)], torch.uint8, unit="bytes")
        if not each.is_contiguous():
            raise ValueError(f"network_views: pixels must be contiguous, got a stride of {each.stride(0)}")
    if len(pixels) not in (1, len(rows)):
        raise ValueError(f"network_views: pixels must be 1 or {len(rows)} tensor(s), got {len(pixels)}")
    return _run(backend, rows, list(pixels), size, channels, mirrored, dtype)


def _empty_results(
    rows: Tensor, pixels: Sequence[Tensor], size: int, channels: int, mirrored: bool, dtype: torch.dtype
) -> Tensor:
    shape = len(rows) * (1 + mirrored), channels, size, size
    return torch.empty(shape, dtype=dtype, device=rows.device, memory_format=torch.channels_last)


_run = Operation("network_views", cpu.network_views, _empty_results, gradients="none", float64=True)
