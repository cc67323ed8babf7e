"""What a camera adds to small float images, in numba: motion blur and sensor noise."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True)
def motion_blur(image: np.ndarray, x: float, y: float) -> np.ndarray:
    """Blur a square image (S, S, C) along the way (x, y) px that it moves while it is exposed."""
    steps = max(int(np.ceil(np.sqrt(x * x + y * y))), 1)
    out = np.zeros_like(image)
    size, _, channels = image.shape
    for step in range(steps):
        t = (step + 0.5) / steps - 0.5
        dx, dy = t * x, t * y
        ix, iy = int(np.floor(dx)), int(np.floor(dy))
        fx, fy = dx - ix, dy - iy
        for row in range(size):
            r0, r1 = min(max(row + iy, 0), size - 1), min(max(row + iy + 1, 0), size - 1)
            for column in range(size):
                c0, c1 = min(max(column + ix, 0), size - 1), min(max(column + ix + 1, 0), size - 1)
                for k in range(channels):
                    upper = (1 - fx) * image[r0, c0, k] + fx * image[r0, c1, k]
                    lower = (1 - fx) * image[r1, c0, k] + fx * image[r1, c1, k]
                    out[row, column, k] += ((1 - fy) * upper + fy * lower) / steps
    return out


@njit(cache=True)
def add_noise(image: np.ndarray, seed: int, constant: float, proportional: float) -> None:
    """Add sensor noise to an image (H, W, 3) of display values, in place.

    Args:
        image: float32.
        seed: names the noise.
        constant, proportional: variances are constant² + proportional² * value.
    """
    state = np.uint64(seed) * np.uint64(0x9E3779B97F4A7C15)
    height, width, channels = image.shape
    mask = np.uint64(0xFFFF)
    for row in range(height):
        for column in range(width):
            for k in range(channels):
                state += np.uint64(0x9E3779B97F4A7C15)
                word = state  # splitmix64, G. Steele et al., OOPSLA 2014
                word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
                word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
                word = word ^ (word >> np.uint64(31))
                four = (
                    float(word & mask)
                    + float((word >> np.uint64(16)) & mask)
                    + float((word >> np.uint64(32)) & mask)
                    + float(word >> np.uint64(48))
                )
                nearly_normal = (four / 65536.0 - 2.0) * 1.7320508
                value = image[row, column, k]
                image[row, column, k] = value + nearly_normal * np.sqrt(
                    constant * constant + proportional * proportional * max(value, 0.0)
                )
