"""Image resampling on a CPU: perspective warp with anti-aliasing, views of panoramas, Gaussian blur.

Pixel centres are at integers. Images are (H, W) or (H, W, C), uint8 or float32; results have the same dtype.
All functions release the GIL and use one thread.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from nvf_fast.runtime.compiled import compiled

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
    samples = _samples_per_pixel(np.asarray(homography, np.float64), inverse, source.shape, height, width)
    output = np.empty((height, width, source.shape[2]), source.dtype)
    _warp(source, inverse, samples, border == "zero", _rounding(source), output)
    return output.reshape(height, width, *image.shape[2:])


def panorama_view(
    panorama: np.ndarray, rotation: np.ndarray, focal: float, size: int | tuple[int, int]
) -> np.ndarray:
    """Sample an equirectangular panorama with a pinhole camera.

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
    turn = np.ascontiguousarray(rotation, np.float64)
    _look(source, turn, float(focal), samples, _rounding(source), output)
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


@compiled()
def _samples_per_pixel(homography, inverse, shape, height, width):
    """Input pixels that the output pixel at the middle of the image, or of the output, spans."""
    x, y, z = _mapped(homography, (shape[1] - 1) / 2, (shape[0] - 1) / 2)
    if not (z > 0 and 0 <= x < width and 0 <= y < height):
        x, y = (width - 1) / 2, (height - 1) / 2
    here_x, here_y, _ = _mapped(inverse, x, y)
    right_x, right_y, _ = _mapped(inverse, x + 1, y)
    below_x, below_y, _ = _mapped(inverse, x, y + 1)
    span = max(math.hypot(right_x - here_x, right_y - here_y), math.hypot(below_x - here_x, below_y - here_y))
    return min(MOST_SAMPLES, max(1, math.ceil(span - 0.25)))


@compiled(error_model="numpy")
def _mapped(homography, x, y):
    u = homography[0, 0] * x + homography[0, 1] * y + homography[0, 2]
    v = homography[1, 0] * x + homography[1, 1] * y + homography[1, 2]
    z = homography[2, 0] * x + homography[2, 1] * y + homography[2, 2]
    return u / z, v / z, z


@compiled(error_model="numpy")
def _warp(source, inverse, samples, zero_outside, rounding, output):
    height, width, channels = source.shape
    flat, pixels = source.reshape(-1), output.reshape(-1)
    last_x, last_y = width - 1.0, height - 1.0
    right, down = channels * min(width - 1, 1), width * channels * min(height - 1, 1)
    scale = np.float32(1 / (samples * samples))
    total = np.zeros(channels, np.float32)
    for row in range(output.shape[0]):
        for column in range(output.shape[1]):
            total[:] = 0
            for sample_row in range(samples):
                v = row + (sample_row + 0.5) / samples - 0.5
                x_row = inverse[0, 1] * v + inverse[0, 2]
                y_row = inverse[1, 1] * v + inverse[1, 2]
                z_row = inverse[2, 1] * v + inverse[2, 2]
                for sample_column in range(samples):
                    u = column + (sample_column + 0.5) / samples - 0.5
                    scale_z = 1 / (inverse[2, 0] * u + z_row)
                    x = (inverse[0, 0] * u + x_row) * scale_z
                    y = (inverse[1, 0] * u + y_row) * scale_z
                    inside = scale_z > 0 and -0.5 <= x <= last_x + 0.5 and -0.5 <= y <= last_y + 0.5
                    if zero_outside and not inside:
                        continue
                    x, y = min(max(x, 0.0), last_x), min(max(y, 0.0), last_y)
                    i, j = min(int(x), max(width - 2, 0)), min(int(y), max(height - 2, 0))
                    across, below = np.float32(x - i), np.float32(y - j)
                    # Unsigned, to avoid checks for negative indices.
                    p00 = np.uint64((j * width + i) * channels)
                    p01, p10 = p00 + np.uint64(right), p00 + np.uint64(down)
                    _add_sample(total, flat, p00, p01, p10, p10 + np.uint64(right), across, below)
            at = np.uint64((row * output.shape[1] + column) * channels)
            for channel in range(channels):
                pixels[at + np.uint64(channel)] = total[channel] * scale + rounding


@compiled()
def _look(source, rotation, focal, samples, rounding, output):
    height, width, channels = source.shape
    flat, pixels = source.reshape(-1), output.reshape(-1)
    total = np.zeros(channels, np.float32)
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
                x, y = math.atan2(x, z), math.atan2(y, math.sqrt(x * x + z * z))
                x, y = (0.5 + x / (2 * math.pi)) * width - 0.5, (0.5 + y / math.pi) * height - 0.5
                x, y = x + width if x < 0 else x, min(max(y, 0.0), height - 1.0)
                i, j = min(int(x), width - 1), min(int(y), max(height - 2, 0))
                across, below = np.float32(x - i), np.float32(y - j)
                right = i + 1 if i + 1 < width else 0  # columns wrap, rows repeat at the border
                down = np.uint64(channels * width if j + 1 < height else 0)
                p00, p01 = np.uint64(channels * (j * width + i)), np.uint64(channels * (j * width + right))
                _add_sample(total, flat, p00, p01, p00 + down, p01 + down, across, below)
            at = np.uint64((row * output.shape[1] + column) * channels)
            for channel in range(channels):
                pixels[at + np.uint64(channel)] = total[channel] * scale + rounding


@compiled(inline="always")
def _add_sample(total, flat, p00, p01, p10, p11, across, below):
    """Add the colour at a place between four pixels, from the indices of their first channels."""
    w11 = across * below
    w01, w10 = across - w11, below - w11
    w00 = np.float32(1) - across - w10
    for channel in range(len(total)):
        k = np.uint64(channel)
        total[channel] += w00 * flat[p00 + k] + w01 * flat[p01 + k]
        total[channel] += w10 * flat[p10 + k] + w11 * flat[p11 + k]


@compiled()
def _blur(source, kernel, rounding, output):
    height, width, channels = source.shape
    reach, line = len(kernel) // 2, width * channels
    padded = np.empty((width + 2 * reach) * channels, np.float32)
    across = np.zeros((height, line), np.float32)
    for row in range(height):
        for column in range(-reach, width + reach):
            at = min(max(column, 0), width - 1)
            for channel in range(channels):
                padded[(column + reach) * channels + channel] = source[row, at, channel]
        for tap in range(len(kernel)):
            weight = kernel[tap]
            start = tap * channels
            for k in range(line):
                across[row, k] += weight * padded[start + k]
    total = np.empty(line, np.float32)
    for row in range(height):
        total[:] = rounding
        for tap in range(len(kernel)):
            weight = kernel[tap]
            other = min(max(row + tap - reach, 0), height - 1)
            for k in range(line):
                total[k] += weight * across[other, k]
        for column in range(width):
            for channel in range(channels):
                output[row, column, channel] = total[column * channels + channel]
