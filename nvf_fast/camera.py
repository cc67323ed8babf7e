"""Cameras: projection, the reference camera, and remapping an image to a view.

Integer pixel coordinates are pixel centres. Frames are OpenCV's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nvf_fast.kernels.network_views.cpu import averaged as view_averages
from nvf_fast.kernels.network_views.cpu import view_grid
from nvf_fast.kernels.network_views.reference import ROW
from nvf_fast.lens import FISHEYE, Lens, distort

Array = TypeVar("Array", Tensor, np.ndarray)

REFERENCE_SIZE = 224  # px, side of the released model's view
REFERENCE_FOCAL = 480.0  # px at that size
REFERENCE_SLOPE = REFERENCE_SIZE / 2 / REFERENCE_FOCAL  # half the view's width at depth 1, for every size
BOUND_SAMPLES = 33  # of a view, along each axis, at which the crop of a distorted image is bounded


def reference_intrinsics(
    size: int = REFERENCE_SIZE,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Intrinsics (3, 3) of the reference camera with a square view of `size` px, 26.3 degrees wide."""
    focal, centre = REFERENCE_FOCAL * size / REFERENCE_SIZE, size / 2
    return torch.tensor([[focal, 0, centre], [0, focal, centre], [0, 0, 1]], dtype=dtype, device=device)


def view_intrinsics(slopes: Tensor, size: int) -> Tensor:
    """Intrinsics (B, 3, 3) px of square views of `size` px and half angles with tangents `slopes` (B,)."""
    focal, centre = size / 2 / slopes, torch.full_like(slopes, size / 2)
    zero, one = torch.zeros_like(slopes), torch.ones_like(slopes)
    rows = [focal, zero, centre, zero, focal, centre, zero, zero, one]
    return torch.stack(rows, -1).view(*slopes.shape, 3, 3)


def project(points: Array, intrinsics: Array) -> Array:
    """Project camera-space points to pixels, uv1 ~ K xyz.

    Args:
        points: (..., N, 3) float, any unit, in front of the camera.
        intrinsics: (3, 3), or (..., 3, 3) with the points' leading dimensions; same dtype, px.

    Returns:
        (..., N, 2) px.
    """
    homogeneous = points @ intrinsics.mT
    pixels: Array = homogeneous[..., :2] / homogeneous[..., 2:]
    return pixels


def look_at_rotation(pixels: Array, intrinsics: Array) -> Array:
    """The smallest rotation R that turns the camera's optical axis onto a pixel: R @ ray(pixel) = (0, 0, 1).

    Args:
        pixels: (..., 2) float px, torch or numpy.
        intrinsics: (3, 3) or (..., 3, 3), same dtype, px; [[fx, s, cx], [0, fy, cy], [0, 0, 1]].

    Returns:
        (..., 3, 3); a point p of the camera's frame is R @ p in the rotated camera's.
    """
    first, second = intrinsics[..., 0, :], intrinsics[..., 1, :]
    y = (pixels[..., 1] - second[..., 2]) / second[..., 1]
    x = (pixels[..., 0] - first[..., 2] - first[..., 1] * y) / first[..., 0]
    rows = turn(x, y)
    stacked = torch.stack(rows, -1) if isinstance(pixels, Tensor) else np.stack(rows, -1)
    return stacked.reshape(*stacked.shape[:-1], 3, 3)


def turn(x: Any, y: Any) -> list[Any]:
    """The nine entries of the smallest rotation that turns a ray (x, y, 1) onto the optical axis.

    x and y are plain numbers, or arrays of equal shapes; for few numbers Python is much faster than numpy.
    """
    z = (x * x + y * y + 1) ** -0.5
    x, y = x * z, y * z
    # Rodrigues' formula about the axis ray x (0, 0, 1); z > 0, so 1 + z is never small.
    factor = 1 / (1 + z)
    across = -factor * x * y
    return [1 - factor * x * x, across, -x, across, 1 - factor * y * y, -y, x, y, z]


def view_frame(rotation: Array, mirror: Array) -> Array:
    """The matrix F from a camera's frame to the model's, p_view = F p: R, or diag(-1, 1, 1) R where mirrored.

    A mirrored view shows a left hand as a right one. The inverse of F is its transpose.

    Args:
        rotation: (..., 3, 3) float64 R from the frame of the camera to that of the rotated one.
        mirror: (...) bool.

    Returns:
        (..., 3, 3) float64.
    """
    mirror = mirror[..., None, None]
    if isinstance(rotation, Tensor):
        return torch.where(mirror, rotation.new_tensor([[-1.0], [1.0], [1.0]]) * rotation, rotation)
    return np.where(mirror, np.array([[-1.0], [1.0], [1.0]]) * rotation, rotation)


def remap(images: Tensor, homographies: Tensor, size: int) -> Tensor:
    """Remap images by homographies: bilinear, zero outside, differentiable with respect to the images.

    An image more than twice as fine as the view is first averaged over squares. Their side is the largest
    whole number of image pixels that fit into a view pixel at the view's middle.

    Args:
        images: (B, C, H, W) float32, float64 or uint8; only the visible part of uint8 is converted.
        homographies: (B, 3, 3) float64 from image to view px, on the CPU to avoid synchronisation.
        size: px, side of the square view.

    Returns:
        (B, C, size, size) on the images' device; float32 for uint8, else their dtype.
    """
    height, width = images.shape[-2:]
    from_view = torch.linalg.inv(homographies.cpu()).flatten(1).tolist()
    views = []
    for image, matrix in zip(images, from_view, strict=True):
        plan = plan_view(matrix, size, height, width)
        crop = image[None, :, plan.rows, plan.columns]
        if plan.factor > 1:
            crop = averaged(crop, plan.factor)
        elif not crop.is_floating_point():
            crop = crop.float()
        numbers = plan.row(0, 0)
        row = torch.tensor(numbers, dtype=torch.float64, device=crop.device)
        grid = view_grid(row, numbers, size, size, crop.shape[3], crop.shape[2], crop.dtype)
        views.append(F.grid_sample(crop, grid, mode="bilinear", padding_mode="zeros", align_corners=False))
    return torch.cat(views)


def network_view(image: Tensor, homography: Tensor, size: int) -> Tensor:
    """Remap an image to a network's input view.

    Args:
        image: (H, W, 3) uint8 RGB, on the device of the result.
        homography: (3, 3) float64 from image px to view px.
        size: px, side of the view.

    Returns:
        (1, 3, size, size) float32, (x / 255 - 0.5) / 0.5.
    """
    return normalised(remap(image.permute(2, 0, 1)[None], homography[None], size))


def normalised(images: Tensor) -> Tensor:
    """Normalise float images of values 0 to 255 for networks, (x / 255 - 0.5) / 0.5, in place."""
    return images.div_(127.5).sub_(1)


class ViewPlan(NamedTuple):
    """The crop of an image that a view samples, and the positions of the view's pixels in that crop."""

    rows: slice  # of the image, from a multiple of `factor` on; at least one
    columns: slice  # likewise
    factor: int  # px, side of the squares over which the crop is averaged; 1 leaves it unchanged
    # nine entries of the matrix from homogeneous view px to px of the averaged crop, or to rays before a lens
    entries: Sequence[float]
    # fx, s, cx, fy, cy in px of the averaged crop, and the row of the image's lens
    lens_row: Sequence[float] | None = None

    def row(self, pitch: int, channels: int) -> list[float]:
        """The view for `ops.network_views`, of an image with `pitch` bytes from row to row at byte 0."""
        model = 0 if self.lens_row is None else 1 + (len(self.lens_row) == 6 + FISHEYE)
        offset = self.rows.start * pitch + self.columns.start * channels
        extents = self.rows.stop - self.rows.start, self.columns.stop - self.columns.start
        row = [*self.entries, self.factor, offset, pitch, *extents, model, *(self.lens_row or ())]
        return row + [0.0] * (ROW - len(row))


def plan_view(
    matrix: Sequence[float],
    size: int,
    height: int,
    width: int,
    margin: float = 0.0,
    lens: tuple[np.ndarray, Lens | None] | None = None,
) -> ViewPlan:
    """Plan the sampling of an image: the step of `remap` that runs on the host without pixels.

    Args:
        matrix: the nine entries, row by row, of the homography from view px to image px.
        size: px, side of the square view.
        height: px, height of the image.
        width: px, width of the image.
        margin: px around the view that the crop includes.
        lens: intrinsics K (3, 3) float64 px and the lens of an image with distortion. The homography then
            ends at the pixels of a pinhole camera of the same K.

    Returns:
        The plan. Its rows and columns hold the visible part of the image, and at least one pixel.
    """
    if lens is not None and lens[1] is not None:
        return _plan_lens(matrix, size, height, width, margin, lens[0], lens[1])
    # For nine values, Python numbers are faster than tensors.
    a, b, c, d, e, f, g, h, i = matrix
    determinant = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)
    # Image pixels per pixel at the view's middle, where depth is 0 on the horizon. The
    # Jacobian determinant of a homography H is det(H) / w^3.
    middle = (size - 1) / 2
    depth = g * middle + h * middle + i
    fine = (abs(determinant) / max(abs(depth) ** 3, 1e-300)) ** 0.5
    factor = _averaged_px(fine, height, width)

    low, high = -margin, size - 1 + margin
    corners = ((low, low), (low, high), (high, low), (high, high))
    depths = [g * u + h * v + i for u, v in corners]
    if min(depths) > 0:
        x = [(a * u + b * v + c) / depth for (u, v), depth in zip(corners, depths, strict=True)]
        y = [(d * u + e * v + f) / depth for (u, v), depth in zip(corners, depths, strict=True)]
        rows, columns = _seen(min(y), max(y), height, factor), _seen(min(x), max(x), width, factor)
    else:
        rows, columns = slice(0, height), slice(0, width)

    # The centre of averaged pixel u is pixel factor * u + (factor - 1) / 2 of the crop.
    left, top = columns.start + (factor - 1) / 2, rows.start + (factor - 1) / 2
    across = (a - left * g) / factor, (b - left * h) / factor, (c - left * i) / factor
    down = (d - top * g) / factor, (e - top * h) / factor, (f - top * i) / factor
    return ViewPlan(rows, columns, factor, (*across, *down, g, h, i))


def averaged(crops: Tensor, factor: int) -> Tensor:
    """Means (B, C, h', w') over squares of `factor` px of images (B, C, h, w); float32 of uint8.

    Zeros fill incomplete squares, as they surround the image: the divisor is always `factor` squared.
    """
    if crops.is_floating_point() or crops.is_cuda:
        # Pooling is slow on interleaved channels.
        crops = crops.contiguous() if crops.is_floating_point() else crops.contiguous().float()
        return F.avg_pool2d(crops, factor, ceil_mode=True, divisor_override=factor**2)
    # The same integers in at most half the time.
    return torch.cat([view_averages(crop.permute(1, 2, 0), factor) for crop in crops])


def _seen(low: float, high: float, extent: int, factor: int) -> slice:
    """The pixels of `extent` needed between `low` and `high` px, from a multiple of `factor` on."""
    margin = 2 * factor  # reach of the interpolation between averages
    first, last = min(max(low - margin, 0), extent - 1), min(max(high + margin, 0), extent - 1)
    return slice(int(first) // factor * factor, math.ceil(last) + 1)


def _averaged_px(fine: float, height: int, width: int) -> int:
    """Side of the averaged squares, for `fine` px of the image per px of the view at its middle."""
    fine = min(fine, height, width)
    return int(fine + 1e-9) if fine > 2 + 1e-9 else 1  # robust to rounding of whole numbers


def _plan_lens(
    matrix: Sequence[float], size: int, height: int, width: int, margin: float, K: np.ndarray, lens: Lens
) -> ViewPlan:
    """`plan_view` of an image with distortion, bounded by samples of the view."""
    to_ray = np.linalg.inv(K) @ np.reshape(matrix, (3, 3))
    middle, (fx, skew, cx), (_, fy, cy) = (size - 1) / 2, K[0], K[1]

    def pixels(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            x, y, z = np.tensordot(to_ray, np.stack([u, v, np.ones_like(u)]), 1)
            x, y = distort(np.where(z > 0, x / z, math.nan), y / z, lens.row)
        return np.stack([fx * x + skew * y + cx, fy * y + cy])

    ends = pixels(middle + np.array([-0.5, 0.5, 0, 0]), middle + np.array([0, 0, -0.5, 0.5]))
    (a, b), (c, d) = (ends[:, 1::2] - ends[:, ::2]).tolist()
    fine = abs(a * d - b * c) ** 0.5
    factor = 1 if math.isnan(fine) else _averaged_px(fine, height, width)
    seen = pixels(*np.meshgrid(*2 * [np.linspace(-margin, size - 1 + margin, BOUND_SAMPLES)]))
    if np.isfinite(seen).all():
        # Between samples the view reaches at most half a step farther.
        reach = max(np.abs(np.diff(seen, axis=axis)).max() for axis in (1, 2)) / 2
        (left, top), (right, bottom) = seen.min((1, 2)) - reach, seen.max((1, 2)) + reach
        rows, columns = _seen(top, bottom, height, factor), _seen(left, right, width, factor)
    else:
        rows, columns = slice(0, height), slice(0, width)
    left, top = (start + (factor - 1) / 2 for start in (columns.start, rows.start))
    camera = np.array([fx, skew, cx - left, fy, cy - top]) / factor
    return ViewPlan(rows, columns, factor, to_ray.ravel().tolist(), (*camera.tolist(), *lens.row))
