"""Cameras: projection, the reference camera, and remapping a picture into its view.

Pixel coordinates are those of pixel centres: the first pixel of a row is centred at 0. Frames are OpenCV's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

REFERENCE_SIZE = 224  # px, side of the released model's view
REFERENCE_FOCAL = 480.0  # px at that size


def reference_intrinsics(
    size: int = REFERENCE_SIZE,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Intrinsics (3, 3) of the reference camera with a square view of `size` px; it spans 26.3 degrees."""
    focal, centre = REFERENCE_FOCAL * size / REFERENCE_SIZE, size / 2
    return torch.tensor([[focal, 0, centre], [0, focal, centre], [0, 0, 1]], dtype=dtype, device=device)


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


def look_at_rotation(pixels: Tensor, intrinsics: Tensor) -> Tensor:
    """The smallest rotation R that turns the camera's optical axis onto a pixel: R @ ray(pixel) = (0, 0, 1).

    Args:
        pixels: (..., 2) float px.
        intrinsics: (3, 3) or (..., 3, 3), same dtype, px.

    Returns:
        (..., 3, 3); a point p of the camera's frame is R @ p in the rotated camera's.
    """
    ray = torch.linalg.solve(intrinsics, torch.cat([pixels, torch.ones_like(pixels[..., :1])], -1)[..., None])
    x, y, z = (ray / torch.linalg.vector_norm(ray, dim=-2, keepdim=True))[..., 0].unbind(-1)
    # Rodrigues' formula about the axis ray x (0, 0, 1); z > 0, so that 1 + z is never small.
    share = 1 / (1 + z)
    rows = [1 - share * x * x, -share * x * y, -x, -share * x * y, 1 - share * y * y, -y, x, y, z]
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


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
    """From pixels of a picture to pixels of the reference view, K_ref F K^-1.

    Args:
        intrinsics: (..., 3, 3) float64, K of the picture, px.
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
    """Looks at pictures through homographies: bilinear, zero outside, differentiable in the pictures.

    A picture more than twice as fine as the view is first averaged over squares of as many whole pixels as
    fit into a pixel at the view's middle.

    Args:
        images: (B, C, H, W) float32 or float64, or uint8, of which only what is seen is made float32.
        homographies: (B, 3, 3) float64 from picture to view px, as `reference_homography` makes them; best on
            the CPU, where reading them waits for no device.
        size: px, side of the square view.

    Returns:
        (B, C, size, size) on the images' device; float32 where they are uint8, else their dtype.
    """
    backwards = torch.linalg.inv(homographies)
    fineness = _fineness(backwards, size).clamp(max=min(images.shape[-2:])).tolist()
    factors = [int(fine) if fine > 2 + 1e-9 else 1 for fine in fineness]
    if len(set(factors)) == 1:
        return _sample(images, backwards, size, factors[0])
    parts = [_sample(images[i, None], backwards[i, None], size, factor) for i, factor in enumerate(factors)]
    return torch.cat(parts)


def _fineness(backwards: Tensor, size: int) -> Tensor:
    """(B,) picture pixels per pixel at the view's middle, of homographies (B, 3, 3) from view to picture."""
    middle = backwards.new_tensor([(size - 1) / 2, (size - 1) / 2, 1])
    depth = (backwards @ middle)[:, 2]
    # The Jacobian determinant of a homography is det(H) / w^3.
    return (torch.linalg.det(backwards) / depth**3).abs().sqrt()


def _seen(backwards: Tensor, size: int, height: int, width: int, factor: int) -> tuple[slice, slice]:
    """Rows and columns of the pictures that hold all that is seen, from multiples of `factor` on."""
    corners = backwards.new_tensor([[u, v, 1] for u in (0, size - 1) for v in (0, size - 1)]) @ backwards.mT
    if not (corners[..., 2] > 0).all():
        return slice(0, height), slice(0, width)
    corners = corners[..., :2] / corners[..., 2:]
    last = corners.new_tensor([width - 1, height - 1])
    margin = 2 * factor  # what interpolation between averages reaches
    start = (corners.amin((0, 1)) - margin).clamp(min=0).minimum(last) // factor * factor
    stop = (corners.amax((0, 1)) + margin).clamp(min=0).minimum(last).ceil() + 1
    (left, top), (right, bottom) = start.int().tolist(), stop.int().tolist()
    return slice(top, bottom), slice(left, right)


def _sample(images: Tensor, backwards: Tensor, size: int, factor: int) -> Tensor:
    rows, columns = _seen(backwards, size, images.shape[-2], images.shape[-1], factor)
    images = images[..., rows, columns].contiguous()
    if not images.is_floating_point():
        images = images.float()
    height, width = images.shape[-2:]
    if factor > 1:
        # Zeros fill up the last cells, as they surround the picture.
        images = F.avg_pool2d(F.pad(images, (0, -width % factor, 0, -height % factor)), factor)
        height, width = images.shape[-2:]
    axis = torch.arange(size, dtype=backwards.dtype, device=images.device)
    view = torch.stack([*torch.meshgrid(axis, axis, indexing="xy"), axis.new_ones(size, size)], -1)
    pixels = view.flatten(0, 1) @ backwards.to(images.device).mT  # (B, size * size, 3)
    depth = pixels[..., 2:]
    # The centre of averaged pixel u is pixel factor * u + (factor - 1) / 2 of what was cut out.
    origin = pixels.new_tensor([columns.start, rows.start])
    pixels = (pixels[..., :2] / depth - origin - (factor - 1) / 2) / factor
    coordinates = torch.stack([(2 * pixels[..., 0] + 1) / width, (2 * pixels[..., 1] + 1) / height], -1) - 1
    coordinates = torch.where(depth > 0, coordinates, 3.0)  # what lies behind the camera is outside
    grid = coordinates.unflatten(1, (size, size)).to(images.dtype)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
