"""A network's normalised views of uint8 images, in plain PyTorch: the definition of `network_views`.

A row of `ROW` numbers describes each view: the position of its crop in the bytes, and the positions of its
pixels in the crop.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Columns of a row, and their number.
MATRIX, FACTOR, OFFSET, PITCH, HEIGHT, WIDTH, MODEL, CAMERA, LIMIT, LENS = 0, *range(9, 16), 20, 21
ROW = 33
PINHOLE, PLUMB_BOB, FISHEYE = 0, 1, 2


def network_views(
    rows: Tensor, pixels: Sequence[Tensor], size: int, channels: int, mirrored: bool, dtype: torch.dtype
) -> Tensor:
    """Views (B, C, S, S), or with their mirror images after them (2 B, C, S, S), computed in float64.

    The arguments are those of `nvf_fast.ops.network_views`.
    """
    axis = torch.arange(size, dtype=torch.float64, device=rows.device)
    v, u = torch.meshgrid(axis, axis, indexing="ij")
    views = []
    for across in (u, size - u) if mirrored else (u,):
        for image, row in enumerate(rows):
            crop = averaged(pixels[image % len(pixels)], row, channels)
            x, y = places(row, across, v)
            views.append(interpolated(crop, x, y) / 127.5 - 1)
    return torch.stack(views).to(dtype=dtype, memory_format=torch.channels_last)


def averaged(pixels: Tensor, row: Tensor, channels: int) -> Tensor:
    """Means (h, w, C) over squares of the crop's pixels; zeros surround the crop."""
    factor, offset, pitch, height, width = (int(row[each]) for each in range(FACTOR, WIDTH + 1))
    first = offset + pixels.storage_offset()
    crop = pixels.as_strided((height, width, channels), (pitch, channels, 1), first).double()
    down, across = -(-height // factor), -(-width // factor)
    filled = crop.new_zeros(down * factor, across * factor, channels)
    filled[:height, :width] = crop
    return filled.view(down, factor, across, factor, channels).mean((1, 3))


def places(row: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Positions (x, y) in the averaged crop of a view's pixels (u, v); NaN where the image has none."""
    x, y, depth = (row[i] * u + row[i + 1] * v + row[i + 2] for i in (MATRIX, MATRIX + 3, MATRIX + 6))
    x, y = (torch.where(depth > 0, each / depth, torch.nan) for each in (x, y))
    if row[MODEL] == PINHOLE:
        return x, y
    square = x * x + y * y
    k = row[LENS:].tolist()
    if row[MODEL] == FISHEYE:
        radius = (square + 1e-30).sqrt()
        angle = radius.atan()
        a = angle * angle
        ratio = angle * (1 + a * (k[0] + a * (k[1] + a * (k[2] + a * k[3])))) / radius
        bent_x, bent_y = x * ratio, y * ratio
    else:
        k1, k2, p1, p2, k3, k4, k5, k6, s1, s2, s3, s4 = k
        ratio = 1 + square * (k1 + square * (k2 + square * k3))
        ratio = ratio / (1 + square * (k4 + square * (k5 + square * k6)))
        tangential = 2 * (p2 * x + p1 * y)
        bent_x = x * (ratio + tangential) + square * (p2 + s1 + square * s2)
        bent_y = y * (ratio + tangential) + square * (p1 + s3 + square * s4)
    fx, skew, cx, fy, cy = row[CAMERA:LIMIT]
    seen = square <= row[LIMIT]
    x, y = fx * bent_x + skew * bent_y + cx, fy * bent_y + cy
    return torch.where(seen, x, torch.nan), torch.where(seen, y, torch.nan)


def interpolated(crop: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Bilinear samples (C, S, S) of a crop (h, w, C), zero outside."""
    height, width, _ = crop.shape
    total = crop.new_zeros(*x.shape, crop.shape[2])
    left, top = x.floor(), y.floor()
    for column, across in ((left, left + 1 - x), (left + 1, x - left)):
        for line, down in ((top, top + 1 - y), (top + 1, y - top)):
            inside = (column >= 0) & (column < width) & (line >= 0) & (line < height)
            texels = crop[torch.where(inside, line, 0).long(), torch.where(inside, column, 0).long()]
            total += torch.where(inside, across * down, 0)[..., None] * texels
    return total.permute(2, 0, 1)
