"""Noise from an integer hash, and the textures made of it: equal on every machine, whatever the batch."""

from __future__ import annotations

import math
from functools import cache
from statistics import NormalDist

import torch
from torch import Tensor

TEXTURES = ("plain", "checker", "stripes", "noise", "wood")
LEVELS = 1024  # of pixel noise


def integer_noise(seed: Tensor, *coordinates: Tensor) -> Tensor:
    """Hashes whole numbers to int64 in [0, 2^32); seed and coordinates, int64, broadcast.

    Each round multiplies 32 bits by an odd constant below 2^31 and folds the upper half in, which no int64
    overflows and every device computes alike.
    """
    state = seed & 0xFFFFFFFF
    for coordinate in coordinates:
        state = state ^ ((coordinate * 0x27D4EB2F) & 0xFFFFFFFF)
        state = (state ^ (state >> 15)) * 0x2C1B3C6D & 0xFFFFFFFF
        state = (state ^ (state >> 12)) * 0x297A2D39 & 0xFFFFFFFF
        state = state ^ (state >> 15)
    return state


def uniform_noise(seed: Tensor, *coordinates: Tensor) -> Tensor:
    """`integer_noise` as float32 in [-1/2, 1/2)."""
    return (integer_noise(seed, *coordinates) >> 8).float() * 2.0**-24 - 0.5


def normal_noise(seed: Tensor, size: int) -> Tensor:
    """(B, 3, size, size) float32 standard normal, 1 024 levels, one hash per pixel; seed (B,) int64."""
    line = torch.arange(size, device=seed.device)
    bits = integer_noise(seed[:, None, None], line[None, :, None], line[None, None, :])
    levels = torch.stack([bits >> shift & (LEVELS - 1) for shift in (0, 11, 22)], 1)
    return _normal_levels().to(seed.device)[levels]


@cache
def _normal_levels() -> Tensor:
    normal = NormalDist()
    return torch.tensor([normal.inv_cdf((level + 0.5) / LEVELS) for level in range(LEVELS)])


def value_noise(seed: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Smooth noise in [-1/2, 1/2] at (x, y), one value per corner of unit squares; seed int64 broadcasts."""
    column, row = x.floor(), y.floor()
    # The fade is flat at the corners, so that it does not matter to which square a corner is counted.
    across, down = (part * part * (3 - 2 * part) for part in (x - column, y - row))
    left, top = column.long(), row.long()
    corners = [uniform_noise(seed, left + i, top + j).to(x.dtype) for j in (0, 1) for i in (0, 1)]
    upper = torch.lerp(corners[0], corners[1], across)
    return torch.lerp(upper, torch.lerp(corners[2], corners[3], across), down)


def texture(kind: Tensor, seed: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Share of the second colour in [0, 1] at (x, y), some units of which make one period.

    Args:
        kind: index into `TEXTURES`; broadcasts with x and y, as does seed.
        seed: int64.
        x, y: coordinates.
    """
    wave_x, wave_y = torch.sin(math.pi * x), torch.sin(math.pi * y)
    noise = value_noise(seed, x, y)
    rings = torch.sin(2 * math.pi * (y + 1.5 * value_noise(seed + 1, 0.3 * x, y)) + 4 * noise)
    patterns = (
        torch.zeros_like(noise),
        0.5 + 0.5 * torch.tanh(4 * wave_x) * torch.tanh(4 * wave_y),
        0.5 + 0.5 * torch.tanh(3 * wave_y),
        0.5 + 0.6 * noise + 0.4 * value_noise(seed + 2, 2.7 * x, 2.7 * y),
        0.5 + 0.3 * rings + 0.2 * value_noise(seed + 3, x, 12 * y),
    )
    return sum((kind == number) * pattern for number, pattern in enumerate(patterns))  # type: ignore[return-value]


def cells(seed: Tensor, count: int, size: int, sharp: Tensor, grey: Tensor) -> Tensor:
    """(B, 3, size, size): count x count random cells, blended smoothly or with edges one pixel wide.

    Args:
        seed: (B,) int64.
        sharp: (B,) bool.
        grey: (B,) size of what all three channels share.
    """
    line = torch.arange(count, device=seed.device)
    channel = torch.arange(4, device=seed.device)[:, None, None]
    noise = uniform_noise(seed[:, None, None, None], channel, line[:, None], line)
    layer = noise[:, :3] + 2 * grey[:, None, None, None] * noise[:, 3:]
    middle = torch.arange(size, device=seed.device, dtype=layer.dtype) + 0.5
    at = (middle * (count / size) - 0.5).clamp(0, count - 1)
    steepness = torch.where(sharp, max(1.0, size / count), 1.0).to(layer.dtype)[:, None, None]
    weight = (0.5 - steepness * ((at[:, None] - line).abs() - 0.5)).clamp(0, 1)  # (B, size, count)
    return weight[:, None] @ layer @ weight.transpose(1, 2)[:, None]
