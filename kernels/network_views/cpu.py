"""`network_views` in PyTorch, for CPU tensors; tested against the reference.

A view and its mirror image, whose pixels u and size - u show one place, are sampled once, a column wider.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from nvf_fast.kernels.network_views.reference import (
    FACTOR,
    MATRIX,
    MODEL,
    PINHOLE,
    WIDTH,
    places,
)


def network_views(
    rows: Tensor, pixels: Sequence[Tensor], size: int, channels: int, mirrored: bool, dtype: torch.dtype
) -> Tensor:
    """Views (B, C, S, S) or (2 B, C, S, S) in `dtype`, as in `nvf_fast.ops`, which checks the arguments."""
    views = torch.empty(
        (len(rows) * (1 + mirrored), channels, size, size),
        dtype=dtype,
        device=rows.device,
        memory_format=torch.channels_last,
    )
    black = torch.tensor(-1.0, device=rows.device)
    for image, row in enumerate(rows.tolist()):
        factor, offset, pitch, height, width = (int(each) for each in row[FACTOR : WIDTH + 1])
        given = pixels[image % len(pixels)]
        begin = given.storage_offset() + offset
        crop = given.as_strided((height, width, channels), (pitch, channels, 1), begin)
        crop = averaged(crop, factor) if factor > 1 else crop.permute(2, 0, 1)[None].float()
        grid = view_grid(rows[image], row, size, size + mirrored, crop.shape[3], crop.shape[2])
        sampled = F.grid_sample(crop, grid, mode="bilinear", padding_mode="zeros", align_corners=False)[0]
        torch.add(black, sampled[..., :size], alpha=1 / 127.5, out=views[image])
        if mirrored:
            torch.add(black, sampled[..., 1:].flip(-1), alpha=1 / 127.5, out=views[len(rows) + image])
    return views


def averaged(crop: Tensor, factor: int) -> Tensor:
    """Means (1, C, h', w') float32 over squares of `factor` px of a crop (h, w, C) uint8.

    Zeros fill incomplete squares, as they surround the image: the divisor is always `factor` squared.
    """
    height, width, channels = crop.shape
    # Summing rows of interleaved channels, then columns, is faster than pooling and needs less memory.
    shape = -(-height // factor), -(-width // factor) * factor * channels
    rows = crop.new_zeros(shape, dtype=torch.float32)
    pixels = crop.flatten(1)
    for first in range(factor):
        part = pixels[first::factor]
        rows[: len(part), : part.shape[1]] += part
    columns = rows.unflatten(1, (-1, factor, channels)).permute(3, 0, 1, 2).unbind(-1)
    total: Tensor = sum(columns[1:], columns[0])
    return total[None].div(factor**2)


def view_grid(
    row: Tensor,
    numbers: list[float],
    size: int,
    columns: int,
    width: int,
    height: int,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Positions (1, size, columns, 2) of a view's pixels for `grid_sample`, from -1 to 1 between borders.

    In float32 they are accurate to 1e-3 px in up to 8000 px.
    """
    axis = torch.arange(columns, dtype=torch.float64, device=row.device)
    u, v = axis, axis[:size, None]
    a, b, c, d, e, f, g, h, i = numbers[MATRIX:FACTOR]
    places_xy = torch.empty(2, size, columns, dtype=dtype, device=row.device)
    if (
        numbers[MODEL] == PINHOLE
        and min(g * x + h * y + i for x in (0, columns - 1) for y in (0, size - 1)) > 0
    ):
        # In `grid_sample`'s coordinates, so that float64 ends with one division.
        a, b, c = ((2 * p + q) / width - q for p, q in ((a, g), (b, h), (c, i)))
        d, e, f = ((2 * p + q) / height - q for p, q in ((d, g), (e, h), (f, i)))
        depth = (g * u) + (h * v + i)
        torch.div((a * u) + (b * v + c), depth, out=places_xy[0])
        torch.div((d * u) + (e * v + f), depth, out=places_xy[1])
    else:
        x, y = places(row, u.expand(size, -1), v.expand(-1, columns))
        places_xy[0], places_xy[1] = (2 * x + 1) / width - 1, (2 * y + 1) / height - 1
        places_xy.nan_to_num_(3.0, 3.0, -3.0)
    return places_xy.permute(1, 2, 0)[None]
