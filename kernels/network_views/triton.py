"""A network's normalised views of uint8 images: a program samples a block of a view's pixels.

The interleaved channels of an image lie along the lanes. Positions are float64, a few operations per pixel;
sums over squares of pixels are integers, exact in float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from nvf_fast.kernels.network_views.reference import ROW as ROW

_BLOCK = 128
_WARPS = 4


@triton.jit
def _arctangent(x):
    """Of float64 numbers of 0 and more: three halvings of the angle leave a series of 0.2 at most."""
    x = x / (1 + tl.sqrt(1 + x * x))
    x = x / (1 + tl.sqrt(1 + x * x))
    x = x / (1 + tl.sqrt(1 + x * x))
    s = x * x
    series = 1.0 / 13 - s * (1.0 / 15 - s * (1.0 / 17))
    series = 1.0 / 7 - s * (1.0 / 9 - s * (1.0 / 11 - s * series))
    return 8 * x * (1 - s * (1.0 / 3 - s * (1.0 / 5 - s * series)))


@triton.jit
def sample_views(
    rows_ptr,
    pixels_ptr,
    views_ptr,
    row_count,
    SIZE: tl.constexpr,
    CHANNELS: tl.constexpr,
    PADDED: tl.constexpr,
    ROW: tl.constexpr,
    BLOCK: tl.constexpr,
):
    BLOCKS: tl.constexpr = (SIZE * SIZE + BLOCK - 1) // BLOCK
    view = tl.program_id(0) // BLOCKS
    mirrored = view >= row_count
    row_ptr = rows_ptr + (view % row_count) * ROW
    place = (tl.program_id(0) % BLOCKS) * BLOCK + tl.arange(0, BLOCK)
    valid = place < SIZE * SIZE
    column = place % SIZE
    u = tl.where(mirrored, SIZE - column, column).to(tl.float64)
    v = (place // SIZE).to(tl.float64)
    factor = tl.load(row_ptr + 9).to(tl.int32)
    offset = tl.load(row_ptr + 10).to(tl.int64)
    pitch = tl.load(row_ptr + 11).to(tl.int64)
    height = tl.load(row_ptr + 12).to(tl.int32)
    width = tl.load(row_ptr + 13).to(tl.int32)
    model = tl.load(row_ptr + 14).to(tl.int32)

    x = tl.load(row_ptr) * u + tl.load(row_ptr + 1) * v + tl.load(row_ptr + 2)
    y = tl.load(row_ptr + 3) * u + tl.load(row_ptr + 4) * v + tl.load(row_ptr + 5)
    depth = tl.load(row_ptr + 6) * u + tl.load(row_ptr + 7) * v + tl.load(row_ptr + 8)
    seen = valid & (depth > 0)
    depth = tl.where(seen, depth, 1.0)
    x = x / depth
    y = y / depth
    if model > 0:
        square = x * x + y * y
        seen = seen & (square <= tl.load(row_ptr + 20))
        k1, k2 = tl.load(row_ptr + 21), tl.load(row_ptr + 22)
        k3, k4 = tl.load(row_ptr + 23), tl.load(row_ptr + 24)  # of a plumb bob p1 and p2
        if model == 2:
            radius = tl.sqrt(square + 1e-30)
            angle = _arctangent(radius)
            a = angle * angle
            ratio = angle * (1 + a * (k1 + a * (k2 + a * (k3 + a * k4)))) / radius
            x = x * ratio
            y = y * ratio
        else:
            numerator = 1 + square * (k1 + square * (k2 + square * tl.load(row_ptr + 25)))
            third = tl.load(row_ptr + 27) + square * tl.load(row_ptr + 28)
            ratio = numerator / (1 + square * (tl.load(row_ptr + 26) + square * third))
            factors = ratio + 2 * (k4 * x + k3 * y)
            x = x * factors + square * (k4 + tl.load(row_ptr + 29) + square * tl.load(row_ptr + 30))
            y = y * factors + square * (k3 + tl.load(row_ptr + 31) + square * tl.load(row_ptr + 32))
        x = tl.load(row_ptr + 15) * x + tl.load(row_ptr + 16) * y + tl.load(row_ptr + 17)
        y = tl.load(row_ptr + 18) * y + tl.load(row_ptr + 19)
    seen = seen & (x > -1) & (x < width) & (y > -1) & (y < height)  # false for NaN
    x = tl.where(seen, x, 0.0)
    y = tl.where(seen, y, 0.0)
    left = tl.floor(x)
    top = tl.floor(y)
    across = (x - left).to(tl.float32)
    down = (y - top).to(tl.float32)
    first_x = left.to(tl.int32) * factor
    first_y = top.to(tl.int32) * factor

    channel = tl.arange(0, PADDED)[None, :]
    pixels_ptr += offset
    sums = tl.zeros((BLOCK, PADDED), tl.float32)
    for tap in tl.static_range(4):
        x0 = first_x + (tap % 2) * factor
        y0 = first_y + (tap // 2) * factor
        total = tl.zeros((BLOCK, PADDED), tl.float32)
        step = 0
        while step < factor * factor:
            px = x0 + step % factor
            py = y0 + step // factor
            inside = seen & (px >= 0) & (px < width) & (py >= 0) & (py < height)
            at = py.to(tl.int64) * pitch + px * CHANNELS
            texels = tl.load(
                pixels_ptr + at[:, None] + channel, mask=inside[:, None] & (channel < CHANNELS), other=0
            )
            total += texels.to(tl.float32)
            step += 1
        weight = (across if tap % 2 else 1 - across) * (down if tap // 2 else 1 - down)
        sums += weight[:, None] * total
    result = sums / (127.5 * (factor * factor).to(tl.float32)) - 1
    at = (view.to(tl.int64) * (SIZE * SIZE) + place) * CHANNELS
    tl.store(views_ptr + at[:, None] + channel, result, mask=valid[:, None] & (channel < CHANNELS))


def network_views(
    rows: Tensor, pixels: Sequence[Tensor], size: int, channels: int, mirrored: bool, dtype: torch.dtype
) -> Tensor:
    """Views (B, C, S, S) or (2 B, C, S, S) in `dtype`, as in the reference; a launch for each of `pixels`."""
    count, sides = len(rows), 1 + mirrored
    views = torch.empty(
        (sides * count, channels, size, size),
        dtype=dtype,
        device=rows.device,
        memory_format=torch.channels_last,
    )
    if len(pixels) > 1:
        for image, each in enumerate(pixels):
            row = rows[image : image + 1]
            views[image::count] = network_views(row, [each], size, channels, mirrored, dtype)
        return views
    if count > 0:
        sample_views[(sides * count * triton.cdiv(size * size, _BLOCK),)](
            rows.contiguous(),
            pixels[0],
            views,
            count,
            SIZE=size,
            CHANNELS=channels,
            PADDED=triton.next_power_of_2(channels),
            ROW=ROW,
            BLOCK=_BLOCK,
            num_warps=_WARPS,
            enable_fp_fusion=True,
        )
    return views
