"""Filters of small float images: compositing, motion blur and sensor noise."""

from __future__ import annotations

import math

import numpy as np

from nvf_fast.runtime.compiled import compiled


@compiled()
def soften(layer: np.ndarray) -> np.ndarray:
    """Average an image (H, W, 4) over 1-2-1 pixels along both axes, as a filter before coarser sampling."""
    height, width = layer.shape[:2]
    out, line = np.zeros_like(layer), np.zeros((width, 4), np.float32)
    quarter, half = np.float32(0.25), np.float32(0.5)
    for row in range(1, height - 1):
        above, here, below = layer[row - 1], layer[row], layer[row + 1]
        for column in range(width):
            for k in range(4):
                line[column, k] = quarter * (above[column, k] + below[column, k]) + half * here[column, k]
        for column in range(1, width - 1):
            for k in range(4):
                beside = line[column - 1, k] + line[column + 1, k]
                out[row, column, k] = quarter * beside + half * line[column, k]
    return out


@compiled()
def sample_layer(layer: np.ndarray, linear: np.ndarray, offset: np.ndarray, size: int) -> np.ndarray:
    """Turn and scale a layer: `warp_perspective` for four channels and many empty pixels, one sample each.

    Args:
        layer: (H, W, 4) float32, colours times coverage and coverage.
        linear, offset: (2, 2) and (2,), from pixels of the output to pixels of the layer.
        size: px of the output.

    Returns:
        (size, size, 4) float32.
    """
    height, width = layer.shape[:2]
    flat, out = layer.reshape(-1), np.zeros((size, size, 4), np.float32)
    across, down, one = np.uint64(4), np.uint64(4 * width), np.float32(1)  # unsigned: no index is negative
    for row in range(size):
        for column in range(size):
            x = linear[0, 0] * column + linear[0, 1] * row + offset[0]
            y = linear[1, 0] * column + linear[1, 1] * row + offset[1]
            if x < 0 or y < 0 or x >= width - 1 or y >= height - 1:
                continue
            i, j = int(x), int(y)
            a = np.uint64(4 * (j * width + i))
            b, c, d = a + across, a + down, a + down + across
            k = np.uint64(3)
            if flat[a + k] == 0 and flat[b + k] == 0 and flat[c + k] == 0 and flat[d + k] == 0:
                continue
            u, v = np.float32(x - i), np.float32(y - j)
            for channel in range(4):
                k = np.uint64(channel)
                top = (one - u) * flat[a + k] + u * flat[b + k]
                bottom = (one - u) * flat[c + k] + u * flat[d + k]
                out[row, column, channel] = (one - v) * top + v * bottom
    return out


def motion_blur(image: np.ndarray, x: float, y: float) -> np.ndarray:
    """Blur a square image (S, S, C) along the way (x, y) px that it moves while it is exposed."""
    steps = max(math.ceil(math.hypot(x, y)), 1)
    size, reach = len(image), int(max(abs(x), abs(y)) / 2) + 1
    padded = np.pad(image, ((reach, reach), (reach, reach), (0, 0)), "edge")
    total = np.zeros_like(image)
    for time in (np.arange(steps) + 0.5) / steps - 0.5:
        row, column = math.floor(time * y), math.floor(time * x)
        below, across = np.float32(time * y - row), np.float32(time * x - column)
        row, column = row + reach, column + reach
        shifted = padded[row : row + size + 1, column : column + size + 1]
        shifted = shifted[:, :-1] + across * (shifted[:, 1:] - shifted[:, :-1])
        total += shifted[:-1] + below * (shifted[1:] - shifted[:-1])
    return total / steps


@compiled()
def mean_colour(image: np.ndarray) -> np.ndarray:
    """(3,) float64 mean of an image (H, W, 3)."""
    red = green = blue = 0.0
    for row in range(len(image)):
        for column in range(image.shape[1]):
            red += image[row, column, 0]
            green += image[row, column, 1]
            blue += image[row, column, 2]
    return np.array([red, green, blue]) / (len(image) * image.shape[1])


@compiled()
def over(
    layer: np.ndarray, tint: np.ndarray, shadow: np.ndarray, strength: float, background: np.ndarray
) -> np.ndarray:
    """Lay a tinted layer and its shadow on a background.

    Args:
        layer: (S, S, 4) float32, colours times coverage and coverage.
        tint: (3,), factors of the layer's colours.
        shadow: (S, S) float32 in [0, 1], or (0, 0) for none.
        strength: of the shadow.
        background: (S, S, 3) float32.

    Returns:
        (S, S, 3) float32.
    """
    size = len(background)
    out = np.empty((size, size, 3), np.float32)
    red, green, blue = tint[0], tint[1], tint[2]
    for row in range(size):
        for column in range(size):
            behind = 1.0 - layer[row, column, 3]
            if len(shadow):
                behind *= 1 - strength * shadow[row, column]
            out[row, column, 0] = behind * background[row, column, 0] + red * layer[row, column, 0]
            out[row, column, 1] = behind * background[row, column, 1] + green * layer[row, column, 1]
            out[row, column, 2] = behind * background[row, column, 2] + blue * layer[row, column, 2]
    return out


@compiled()
def develop(
    image: np.ndarray,
    contrast: float,
    brightness: float,
    balance: np.ndarray,
    saturation: float,
    seed: int,
    constant: float,
    proportional: float,
) -> np.ndarray:
    """Convert an image to the pixels of a camera with errors.

    Args:
        image: (H, W, 3) float32, display values in [0, 1].
        contrast, brightness: about the value 0.45.
        balance: (3,), factors of the channels.
        saturation: factor of each pixel's difference from its grey.
        seed: names the noise.
        constant, proportional: the noise's variance is constant² + proportional² * value.

    Returns:
        (H, W, 3) uint8.
    """
    state = np.uint64(seed) * np.uint64(0x9E3779B97F4A7C15)
    height, width, _ = image.shape
    mask = np.uint64(0xFFFF)
    out = np.empty((height, width, 3), np.uint8)
    value = np.empty(3)
    for row in range(height):
        for column in range(width):
            for k in range(3):
                value[k] = ((image[row, column, k] - 0.45) * contrast + 0.45 + brightness) * balance[k]
            grey = (value[0] + value[1] + value[2]) / 3
            for k in range(3):
                state += np.uint64(0x9E3779B97F4A7C15)
                word = state  # splitmix64: G. Steele et al., OOPSLA 2014
                word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
                word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
                word = word ^ (word >> np.uint64(31))
                four = np.int64(
                    (word & mask)
                    + ((word >> np.uint64(16)) & mask)
                    + ((word >> np.uint64(32)) & mask)
                    + (word >> np.uint64(48))
                )
                nearly_normal = (four / 65536 - 2) * 1.7320508
                clean = grey + saturation * (value[k] - grey)
                deviation = np.sqrt(constant * constant + proportional * proportional * max(clean, 0.0))
                noisy = clean + nearly_normal * deviation
                out[row, column, k] = np.uint8(min(max(255 * noisy + 0.5, 0.0), 255.0))
    return out
