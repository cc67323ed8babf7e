"""Cameras: projection, the reference camera, and remapping an image into its view.

Pixel coordinates are those of pixel centres: the first pixel of a row is centred at 0. Frames are OpenCV's.
"""

from __future__ import annotations

import math
from typing import NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Array = TypeVar("Array", Tensor, np.ndarray)

REFERENCE_SIZE = 224  # px, side of the released model's view
REFERENCE_FOCAL = 480.0  # px at that size
REFERENCE_SLOPE = REFERENCE_SIZE / 2 / REFERENCE_FOCAL  # half the view's width at depth 1, whatever its size


def reference_intrinsics(
    size: int = REFERENCE_SIZE,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Intrinsics (3, 3) of the reference camera with a square view of `size` px; it spans 26.3 degrees."""
    focal, centre = REFERENCE_FOCAL * size / REFERENCE_SIZE, size / 2
    return torch.tensor([[focal, 0, centre], [0, focal, centre], [0, 0, 1]], dtype=dtype, device=device)


def view_intrinsics(slopes: Tensor, size: int) -> Tensor:
    """Intrinsics (B, 3, 3) px of square views of `size` px whose half angles have tangents `slopes` (B,)."""
    focal, centre = size / 2 / slopes, torch.full_like(slopes, size / 2)
    zero, one = torch.zeros_like(slopes), torch.ones_like(slopes)
    return torch.stack([focal, zero, centre, zero, focal, centre, zero, zero, one], -1).unflatten(-1, (3, 3))


def project(points: Tensor, intrinsics: Tensor) -> Tensor:
    """Pixels of camera-space points, uv1 ~ K xyz.

    Args:
        points: (..., N, 3) float, any unit, in front of the camera.
        intrinsics: (3, 3), or (..., 3, 3) with the points' leading dimensions; same dtype, px.

    Returns:
        (..., N, 2) px.
    """
    pixels = points @ intrinsics.mT
    return pixels[..., :2] / pixels[..., 2:]


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
    z = (x * x + y * y + 1) ** -0.5
    x, y = x * z, y * z
    # Rodrigues' formula about the axis ray x (0, 0, 1); z > 0, so that 1 + z is never small.
    share = 1 / (1 + z)
    rows = [1 - share * x * x, -share * x * y, -x, -share * x * y, 1 - share * y * y, -y, x, y, z]
    stacked = torch.stack(rows, -1) if isinstance(pixels, Tensor) else np.stack(rows, -1)
    return stacked.reshape(*stacked.shape[:-1], 3, 3)


def view_frame(rotation: Tensor, mirror: Tensor) -> Tensor:
    """The matrix F from a camera's frame to the model's, p_view = F p: R, or diag(-1, 1, 1) R where mirrored.

    A mirrored view shows a left hand as the right one that the model knows. The inverse of F is its
    transpose.

    Args:
        rotation: (..., 3, 3) float64 R from the frame of the camera to that of the rotated one.
        mirror: (...) bool.

    Returns:
        (..., 3, 3) float64.
    """
    mirrored = rotation.new_tensor([[-1.0], [1.0], [1.0]]) * rotation
    return torch.where(mirror[..., None, None], mirrored, rotation)


def reference_homography(
    intrinsics: Tensor, size: int = REFERENCE_SIZE, frame: Tensor | None = None
) -> Tensor:
    """From pixels of an image to pixels of the reference view, K_ref F K^-1.

    Args:
        intrinsics: (..., 3, 3) float64, K of the image, px.
        size: px, side of the reference view.
        frame: (..., 3, 3) float64 F as `view_frame` gives it; None looks along the optical axis.

    Returns:
        (..., 3, 3) float64.
    """
    target = reference_intrinsics(size, dtype=intrinsics.dtype, device=intrinsics.device)
    if frame is not None:
        target = target @ frame
    return target @ torch.linalg.inv(intrinsics)


def remap(images: Tensor, homographies: Tensor, size: int) -> Tensor:
    """Look at images through homographies: bilinear, zero outside, differentiable in the images.

    An image more than twice as fine as the view is first averaged over squares of as many whole pixels as
    fit into a pixel at the view's middle.

    Args:
        images: (B, C, H, W) float32 or float64, or uint8, of which only what is seen is made float32.
        homographies: (B, 3, 3) float64 from image to view px, as `reference_homography` makes them; best on
            the CPU, where reading them waits for no device.
        size: px, side of the square view.

    Returns:
        (B, C, size, size) on the images' device; float32 where they are uint8, else their dtype.
    """
    height, width = images.shape[-2:]
    plans = [plan_view(homography, size, height, width) for homography in homographies.cpu()]
    matrices = torch.stack([plan.matrix for plan in plans]).to(images.device)
    together = all(plan[:3] == plans[0][:3] for plan in plans)  # the same is cut out of each image
    part = len(plans) if together else 1
    views = []
    for start in range(0, len(plans), part):
        rows, columns, factor, _ = plans[start]
        cuts = images[start : start + part, :, rows, columns]
        views.append(sample_views(cuts, matrices[start : start + part], size, factor))
    return torch.cat(views)


def network_view(image: Tensor, homography: Tensor, size: int) -> Tensor:
    """The view of an image that a network takes.

    Args:
        image: (H, W, 3) uint8 RGB, on the device of the result.
        homography: (3, 3) float64 from image px to view px.
        size: px, side of the view.

    Returns:
        (1, 3, size, size) float32, (x / 255 - 0.5) / 0.5.
    """
    return remap(image.permute(2, 0, 1)[None], homography[None], size).div_(127.5).sub_(1)


class ViewPlan(NamedTuple):
    """How one image is looked at: what to cut out of it, and where the pixels of the view lie in that."""

    rows: slice  # of the image, from a multiple of `factor` on; at least one
    columns: slice  # likewise
    factor: int  # px, side of the squares over which the cut-out is averaged; 1 leaves it as it is
    matrix: Tensor  # (3, 3) float64 on the CPU, from homogeneous view px to px of the averaged cut-out


def plan_view(homography: Tensor, size: int, height: int, width: int, margin: float = 0.0) -> ViewPlan:
    """Plan how an image is sampled: the part of `remap` that needs the host, before an image is read.

    Args:
        homography: (3, 3) float64 on the CPU, from image to view px.
        size: px, side of the square view.
        height: px, of the image.
        width: px, of the image.
        margin: px of the view about it that the cut-out holds too.

    Returns:
        The plan. Its rows and columns hold all that is seen, and at least one pixel where nothing is.
    """
    # Python's numbers: nine of them are no work for tensors.
    first, second, third = homography.tolist()
    cofactors = _cross(second, third), _cross(third, first), _cross(first, second)
    determinant = sum(a * b for a, b in zip(first, cofactors[0], strict=True))
    to_x, to_y, to_depth = ([c / determinant for c in row] for row in zip(*cofactors, strict=True))
    # Picture pixels per pixel at the view's middle, whose depth is 0 where that lies on the horizon. The
    # Jacobian determinant of a homography H is det(H) / w^3; here H is the inverse.
    depth = _dot(to_depth, (size - 1) / 2, (size - 1) / 2)
    fine = min(max(abs(determinant * depth**3), 1e-300) ** -0.5, height, width)
    factor = int(fine + 1e-9) if fine > 2 + 1e-9 else 1  # the same for all roundings of a whole number

    edges = (-margin, size - 1 + margin)
    corners = [(u, v) for u in edges for v in edges]
    depths = [_dot(to_depth, u, v) for u, v in corners]
    if min(depths) > 0:
        x = [_dot(to_x, u, v) / depth for (u, v), depth in zip(corners, depths, strict=True)]
        y = [_dot(to_y, u, v) / depth for (u, v), depth in zip(corners, depths, strict=True)]
        rows, columns = _seen(min(y), max(y), height, factor), _seen(min(x), max(x), width, factor)
    else:
        rows, columns = slice(0, height), slice(0, width)

    # The centre of averaged pixel u is pixel factor * u + (factor - 1) / 2 of what was cut out.
    left, top = (start + (factor - 1) / 2 for start in (columns.start, rows.start))
    matrix = [
        [(x - left * depth) / factor for x, depth in zip(to_x, to_depth, strict=True)],
        [(y - top * depth) / factor for y, depth in zip(to_y, to_depth, strict=True)],
        to_depth,
    ]
    return ViewPlan(rows, columns, factor, torch.tensor(matrix, dtype=torch.float64))


def sample_views(cuts: Tensor, matrices: Tensor, size: int, factor: int) -> Tensor:
    """Views of what was cut out of images as planned: the part that never waits for the device.

    Where a pixel of the view lies in the averaged cut-out is right to 1e-3 px in up to 8000 px. Zeros below
    and to the right of a cut-out change nothing, so that cut-outs of different sizes can go together.

    Args:
        cuts: (B, C, h, w) float32, float64 or uint8, `rows` and `columns` of each image.
        matrices: (B, 3, 3) float64 on the cuts' device, the `matrix` of each plan.
        size: px, side of the square views.
        factor: px, the `factor` that the plans share.

    Returns:
        (B, C, size, size); float32 where the cuts are uint8, else their dtype.
    """
    if factor > 1:
        cuts = averaged(cuts, factor)
    elif not cuts.is_floating_point():
        cuts = cuts.float()
    height, width = cuts.shape[-2:]
    grid = _grid(matrices, size, height, width, cuts.dtype)
    return F.grid_sample(cuts, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def averaged(cuts: Tensor, factor: int) -> Tensor:
    """Means (B, C, h', w') over squares of `factor` px of images (B, C, h, w); float32 of uint8.

    Zeros fill up the last squares, as they surround the image: the divisor is that of whole ones.
    """
    if cuts.is_floating_point() or cuts.is_cuda:
        # Pooling is slow where channels lie interleaved.
        cuts = cuts.contiguous() if cuts.is_floating_point() else cuts.contiguous().float()
        return F.avg_pool2d(cuts, factor, ceil_mode=True, divisor_override=factor**2)
    # Rows of interleaved channels, then columns: the same sums of whole numbers in at most half the time.
    height, width = cuts.shape[2:]
    pixels = F.pad(cuts.permute(0, 2, 3, 1), (0, 0, 0, -width % factor, 0, -height % factor)).float()
    rows = pixels.flatten(2).unflatten(1, (-1, factor)).sum(2)
    columns = rows.unflatten(2, (-1, factor, cuts.shape[1])).permute(0, 4, 1, 2, 3).unbind(-1)
    return sum(columns[1:], columns[0]).div(factor**2)


def _cross(a: list[float], b: list[float]) -> list[float]:
    return [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]


def _dot(row: list[float], u: float, v: float) -> float:
    """A row of a homography times (u, v, 1)."""
    return row[0] * u + row[1] * v + row[2]


def _seen(low: float, high: float, extent: int, factor: int) -> slice:
    """The pixels of `extent` that hold all from `low` to `high` px, from a multiple of `factor` on."""
    margin = 2 * factor  # what interpolation between averages reaches
    first, last = (min(max(edge, 0), extent - 1) for edge in (low - margin, high + margin))
    return slice(int(first) // factor * factor, math.ceil(last) + 1)


def _grid(matrices: Tensor, size: int, height: int, width: int, dtype: torch.dtype) -> Tensor:
    """(B, size, size, 2) where views are sampled, through matrices (B, 3, 3) from view px to images' px.

    Coordinates are `grid_sample`'s, from -1 to 1 between the outer borders of the image.
    """
    x, y, depth = matrices.unbind(1)
    rows = torch.stack([(2 * x + depth) / width - depth, (2 * y + depth) / height - depth, depth], 1)
    # A pixel's product with the matrix is a sum of what its column and its row give: little work in float64.
    axis = torch.arange(size, dtype=matrices.dtype, device=matrices.device)
    across, down, constant = rows[..., None].unbind(2)  # (B, 3, 1) each
    places = (across * axis)[:, :, None] + (down * axis + constant)[..., None]  # (B, 3, size, size)
    coordinates, depths = places[:, :2], places[:, 2:]
    # What lies behind the camera is outside.
    return (coordinates / depths).to(dtype).masked_fill(depths <= 0, 3.0).permute(0, 2, 3, 1)
