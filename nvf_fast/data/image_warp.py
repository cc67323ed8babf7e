"""Image resampling on a CPU: perspective warp with anti-aliasing, views of panoramas, Gaussian blur.

Pixel centres are at integers. Images are (H, W) or (H, W, C), uint8 or float32; results have the same dtype.
All functions release the GIL and use one thread.
"""

from __future__ import annotations

import math
from typing import Literal

import numba
import numpy as np

MOST_SAMPLES = 8  # along each axis of an output pixel
BLUR_REACH = 3.0  # standard deviations


def warp_perspective(
    image: np.ndarray,
    homography: np.ndarray,
    size: int | tuple[int, int],
    border: Literal["edge", "zero"] = "edge",
) -> np.ndarray:
    """Resample an image through a homography.

    Each output pixel is the mean of n x n bilinear samples, with n the number of input pixels that an output
    pixel spans (at most `MOST_SAMPLES`), so that a shrunk image does not alias.

    Args:
        image: (H, W) or (H, W, C) uint8 or float32.
        homography: (3, 3), from pixels of the image to pixels of the output.
        size: height and width of the output, or its side.
        border: outside the image, "edge" repeats its border and "zero" is 0.

    Returns:
        (height, width) or (height, width, C), dtype of the image.
    """
    if border not in ("edge", "zero"):
        raise ValueError(f"border must be 'edge' or 'zero', got {border!r}")
    source = _checked(image)
    height, width = (size, size) if isinstance(size, int) else size
    inverse = np.linalg.inv(np.asarray(homography, np.float64))
    samples = _samples_per_pixel(inverse, source.shape, height, width)
    output = np.empty((height, width, source.shape[2]), source.dtype)
    _warp(source, inverse, samples, border == "zero", _rounding(source), output)
    return output.reshape(height, width, *image.shape[2:])


def panorama_view(
    panorama: np.ndarray, rotation: np.ndarray, focal: float, size: int | tuple[int, int]
) -> np.ndarray:
    """Look into an equirectangular panorama with a pinhole camera.

    Args:
        panorama: (H, W, C) uint8 or float32; columns span 360 degrees, rows 180 degrees from top to bottom.
        rotation: (3, 3), from the camera's frame (x right, y down, z forward) to the panorama's, whose centre
            lies along z.
        focal: px.
        size: height and width of the view, or its side.

    Returns:
        (height, width, C), dtype of the panorama.
    """
    source = _checked(panorama)
    height, width = (size, size) if isinstance(size, int) else size
    samples = min(MOST_SAMPLES, max(1, math.ceil(source.shape[1] / (2 * math.pi * focal) - 0.25)))
    output = np.empty((height, width, source.shape[2]), source.dtype)
    _look(
        source, np.ascontiguousarray(rotation, np.float64), float(focal), samples, _rounding(source), output
    )
    return output.reshape(height, width, *panorama.shape[2:])


def gaussian_blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Convolve an image with a Gaussian of `sigma` px; its border is repeated outwards."""
    if sigma <= 0:
        return image.copy()
    source = _checked(image)
    reach = max(1, math.ceil(BLUR_REACH * sigma))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    output = np.empty_like(source)
    _blur(source, (kernel / kernel.sum()).astype(np.float32), _rounding(source), output)
    return output.reshape(image.shape)


def _checked(image: np.ndarray) -> np.ndarray:
    if image.dtype not in (np.uint8, np.float32) or image.ndim not in (2, 3) or not image.size:
        raise ValueError(
            f"image must be (H, W) or (H, W, C), uint8 or float32, got {image.shape} {image.dtype}"
        )
    return np.ascontiguousarray(image.reshape(*image.shape[:2], -1))


def _rounding(image: np.ndarray) -> np.float32:
    """Added before truncation to the image's dtype."""
    return np.float32(0.5 if image.dtype == np.uint8 else 0)


def _samples_per_pixel(inverse: np.ndarray, shape: tuple[int, ...], height: int, width: int) -> int:
    """Input pixels that the output pixel at the middle of the image, or of the output, spans."""
    middle = np.linalg.inv(inverse) @ [(shape[1] - 1) / 2, (shape[0] - 1) / 2, 1]
    x, y = middle[:2] / middle[2]
    if not (middle[2] > 0 and 0 <= x < width and 0 <= y < height):
        x, y = (width - 1) / 2, (height - 1) / 2
    corners = inverse @ np.array([[x, x + 1, x], [y, y, y + 1], [1, 1, 1]])
    corners = corners[:2] / corners[2]
    span = np.linalg.norm(corners[:, 1:] - corners[:, :1], axis=0).max()
    return min(MOST_SAMPLES, max(1, math.ceil(span - 0.25)))


@numba.njit(cache=True, nogil=True)
def _add_bilinear(source, x, y, wrap, total):
    """Add the source at (x, y) to `total`; rows repeat at the border, and columns too unless they wrap."""
    height, width = source.shape[0], source.shape[1]
    y = min(max(y, 0.0), height - 1.0)
    row = min(int(y), max(height - 2, 0))
    below = min(row + 1, height - 1)
    if wrap:
        x = x % width
        column = min(int(x), width - 1)
        right = (column + 1) % width
    else:
        x = min(max(x, 0.0), width - 1.0)
        column = min(int(x), max(width - 2, 0))
        right = min(column + 1, width - 1)
    u, v = np.float32(x - column), np.float32(y - row)
    one = np.float32(1)
    for channel in range(source.shape[2]):
        top = source[row, column, channel] * (one - u) + source[row, right, channel] * u
        bottom = source[below, column, channel] * (one - u) + source[below, right, channel] * u
        total[channel] += top * (one - v) + bottom * v


@numba.njit(cache=True, nogil=True)
def _store(total, scale, rounding, output):
    for channel in range(len(total)):
        output[channel] = total[channel] * scale + rounding


@numba.njit(cache=True, nogil=True)
def _warp(source, inverse, samples, zero_outside, rounding, output):
    height, width = source.shape[0], source.shape[1]
    total = np.zeros(source.shape[2], np.float32)
    scale = np.float32(1 / (samples * samples))
    for row in range(output.shape[0]):
        for column in range(output.shape[1]):
            total[:] = 0
            for sample in range(samples * samples):
                u = column + (sample % samples + 0.5) / samples - 0.5
                v = row + (sample // samples + 0.5) / samples - 0.5
                z = inverse[2, 0] * u + inverse[2, 1] * v + inverse[2, 2]
                x = (inverse[0, 0] * u + inverse[0, 1] * v + inverse[0, 2]) / z
                y = (inverse[1, 0] * u + inverse[1, 1] * v + inverse[1, 2]) / z
                inside = z > 0 and -0.5 <= x <= width - 0.5 and -0.5 <= y <= height - 0.5
                if inside or not zero_outside:
                    _add_bilinear(source, x, y, False, total)
            _store(total, scale, rounding, output[row, column])


@numba.njit(cache=True, nogil=True)
def _look(source, rotation, focal, samples, rounding, output):
    height, width = source.shape[0], source.shape[1]
    total = np.zeros(source.shape[2], np.float32)
    scale = np.float32(1 / (samples * samples))
    for row in range(output.shape[0]):
        for column in range(output.shape[1]):
            total[:] = 0
            for sample in range(samples * samples):
                u = (column + (sample % samples + 0.5) / samples - output.shape[1] / 2) / focal
                v = (row + (sample // samples + 0.5) / samples - output.shape[0] / 2) / focal
                x = rotation[0, 0] * u + rotation[0, 1] * v + rotation[0, 2]
                y = rotation[1, 0] * u + rotation[1, 1] * v + rotation[1, 2]
                z = rotation[2, 0] * u + rotation[2, 1] * v + rotation[2, 2]
                longitude = math.atan2(x, z) / (2 * math.pi)
                latitude = math.asin(y / math.sqrt(x * x + y * y + z * z)) / math.pi
                _add_bilinear(
                    source, (0.5 + longitude) * width - 0.5, (0.5 + latitude) * height - 0.5, True, total
                )
            _store(total, scale, rounding, output[row, column])


@numba.njit(cache=True, nogil=True)
def _blur(source, kernel, rounding, output):
    height, width, channels = source.shape
    reach = len(kernel) // 2
    across = np.empty((height, width, channels), np.float32)
    for row in range(height):
        for column in range(width):
            for channel in range(channels):
                total = np.float32(0)
                for tap in range(-reach, reach + 1):
                    at = min(max(column + tap, 0), width - 1)
                    total += kernel[tap + reach] * source[row, at, channel]
                across[row, column, channel] = total
    lines = np.empty((width, channels), np.float32)
    for row in range(height):
        lines[:] = 0
        for tap in range(-reach, reach + 1):
            lines += kernel[tap + reach] * across[min(max(row + tap, 0), height - 1)]
        for column in range(width):
            for channel in range(channels):
                output[row, column, channel] = lines[column, channel] + rounding
