"""The volumes of the two tasks: which points are asked about a hand, and how they meet the network's picture.

Camera-space points fill the reference camera's frustum and enter the network as they are. Root-relative ones
fill a cube about the wrist, seen along parallel rays; the network takes them where a camera of its own sees
them alike, so that one field and one kernel serve both.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from nvf_fast.camera import REFERENCE_FOCAL, REFERENCE_SIZE, reference_homography, remap
from nvf_fast.config import Task
from nvf_fast.grid import BOX_MM

VIEW_SLOPE = REFERENCE_SIZE / 2 / REFERENCE_FOCAL  # half the view's width at depth 1, whatever its size
# A point on the very edge may round to either side of it; points keep this much of the half view clear.
EDGE = 1e-4


class View(Protocol):
    """One task's volume. Points are mm in the task's frame, (B, N, 3) unless said otherwise."""

    @property
    def centre_mm(self) -> tuple[float, ...]:
        """Of the volume's box."""
        ...

    @property
    def half_mm(self) -> tuple[float, ...]:
        """Half-extent of the volume's box."""
        ...

    def homographies(self, intrinsics: Tensor, roots: Tensor, size: int) -> Tensor:
        """From a picture's pixels to those of the network's picture.

        Args:
            intrinsics: (B, 3, 3) float64 px of the pictures.
            roots: (B, 3) float64 mm, the wrists in the cameras' frames.
            size: px, side of the network's picture.

        Returns:
            (B, 3, 3) float64.
        """
        ...

    def origins(self, roots: Tensor) -> Tensor:
        """(B, 3) mm: where the task's frame has its origin, in the cameras' frames, for wrists (B, 3)."""
        ...

    def asked_at(self, points: Tensor) -> Tensor:
        """The same points where the network, whose camera is the reference one, is asked about them."""
        ...

    def contains(self, points: Tensor) -> Tensor:
        """(B, N) bool: inside the picture and clear of its edge."""
        ...

    def spread(self, uniform: Tensor) -> Tensor:
        """Points uniform in the volume, of numbers (B, N, 3) uniform in [0, 1]."""
        ...

    def other_depths(self, depth: Tensor, uniform: Tensor, log_range: float) -> Tensor:
        """Depths anywhere on the rays through points of `depth`, by numbers uniform in [0, 1]; all (B, N)."""
        ...

    def moved_to(self, points: Tensor, depth: Tensor) -> Tensor:
        """Points slid along their rays to depths (B, N) mm, kept inside the volume's."""
        ...

    def rays(self, side: int, device: torch.device | str | None = None) -> tuple[Tensor, Tensor]:
        """Origins and directions, both (side * side, 3): the rays through the texels of a feature map."""
        ...


class CameraView:
    """The reference camera's frustum, cut to the box that inference fills (`nvf_fast.grid.BOX_MM`)."""

    centre_mm = tuple((low + high) / 2 for low, high in BOX_MM)
    half_mm = tuple((high - low) / 2 for low, high in BOX_MM)
    nearest_mm, farthest_mm = BOX_MM[2]

    def homographies(self, intrinsics: Tensor, roots: Tensor, size: int) -> Tensor:
        return reference_homography(intrinsics, size)

    def origins(self, roots: Tensor) -> Tensor:
        return torch.zeros_like(roots)

    def asked_at(self, points: Tensor) -> Tensor:
        return points

    def contains(self, points: Tensor) -> Tensor:
        x, y, z = points.unbind(-1)
        limit = z * (VIEW_SLOPE * (1 - EDGE))
        return (z > 0) & (x.abs() <= limit) & (y.abs() <= limit)

    def spread(self, uniform: Tensor) -> Tensor:
        # Uniform by volume: the cross-section grows with depth squared until the box's sides cut it off.
        slope, width, near = VIEW_SLOPE * (1 - EDGE), self.half_mm[0], self.nearest_mm
        cut = width / slope
        widening = (cut**3 - near**3) / (3 * cut**2)  # volumes in units of the full cross-section
        volume = uniform[..., 2] * (widening + self.farthest_mm - cut)
        depth = torch.where(
            volume < widening,
            (near**3 + 3 * cut**2 * volume.clamp_max(widening)).pow(1 / 3),
            cut + volume - widening,
        )
        half = (depth * slope).clamp_max(width)
        return torch.cat([(2 * uniform[..., :2] - 1) * half[..., None], depth[..., None]], -1)

    def other_depths(self, depth: Tensor, uniform: Tensor, log_range: float) -> Tensor:
        """`depth` times exp(u), u uniform in plus or minus `log_range`, as far as the volume reaches."""
        depth = depth.clamp(self.nearest_mm, self.farthest_mm)
        low = (self.nearest_mm / depth).log().clamp_min(-log_range)
        high = (self.farthest_mm / depth).log().clamp_max(log_range)
        return depth * (low + (high - low) * uniform).exp()

    def moved_to(self, points: Tensor, depth: Tensor) -> Tensor:
        return points * (depth.clamp(self.nearest_mm, self.farthest_mm) / points[..., 2])[..., None]

    def rays(self, side: int, device: torch.device | str | None = None) -> tuple[Tensor, Tensor]:
        """From the camera's centre; directions have z = 1, so that a ray's parameter is the depth."""
        uv = _texels(side, device)
        directions = torch.cat([uv * VIEW_SLOPE, torch.ones_like(uv[:, :1])], 1)
        return torch.zeros_like(directions), directions


class RootView:
    """A cube of 340 mm about the wrist, axes as the camera's, seen along z by a scaled-orthographic camera.

    The paper leaves RS-NVF's projection open. Here u = x / 170 and v = y / 170 in [-1, 1], and the network's
    depth input is 2 + z / 170, in the range that it knows from the camera's; the offset is one of the first
    bias. The picture is cut with f * 340 mm / Z of the wrist as its side, so that it shows the cube.
    """

    half_side_mm = 170.0
    centre_mm = (0.0, 0.0, 0.0)
    half_mm = (half_side_mm, half_side_mm, half_side_mm)
    _depth_offset = 2.0

    def homographies(self, intrinsics: Tensor, roots: Tensor, size: int) -> Tensor:
        pixel = intrinsics @ roots[..., None]
        pixel = pixel[..., :2, 0] / pixel[..., 2:, 0]
        focal = intrinsics.diagonal(dim1=-2, dim2=-1)[..., :2]
        scale = size * roots[..., 2:] / (focal * 2 * self.half_side_mm)
        result = torch.diag_embed(torch.cat([scale, torch.ones_like(scale[..., :1])], -1))
        result[..., :2, 2] = size / 2 - scale * pixel
        return result

    def origins(self, roots: Tensor) -> Tensor:
        return roots

    def asked_at(self, points: Tensor) -> Tensor:
        inputs = points / self.half_side_mm
        depth = REFERENCE_FOCAL * (inputs[..., 2:] + self._depth_offset)
        return torch.cat([inputs[..., :2] * (VIEW_SLOPE * depth), depth], -1)

    def contains(self, points: Tensor) -> Tensor:
        return (points.abs() <= self.half_side_mm * (1 - EDGE)).all(-1)

    def spread(self, uniform: Tensor) -> Tensor:
        return (2 * uniform - 1) * (self.half_side_mm * (1 - EDGE))

    def other_depths(self, depth: Tensor, uniform: Tensor, log_range: float) -> Tensor:
        """Uniform in the cube; parallel rays know no ratio of depths."""
        return self.spread(uniform)

    def moved_to(self, points: Tensor, depth: Tensor) -> Tensor:
        limit = self.half_side_mm * (1 - EDGE)
        return torch.cat([points[..., :2], depth.clamp(-limit, limit)[..., None]], -1)

    def rays(self, side: int, device: torch.device | str | None = None) -> tuple[Tensor, Tensor]:
        """From the cube's front; directions have z = 1, so that parameters are depths from there."""
        uv = _texels(side, device) * self.half_side_mm
        origins = torch.cat([uv, torch.full_like(uv[:, :1], -self.half_side_mm)], 1)
        return origins, origins.new_tensor([0.0, 0.0, 1.0]).expand_as(origins)

    def grid(self, step_mm: float, device: torch.device | str | None = None) -> Tensor:
        """(N, 3) mm: the centres of the cube's voxels, n = int(340 / step) along each axis.

        Raises:
            ValueError: the step is no positive number of at most 340 mm.
        """
        if not 0 < step_mm <= 2 * self.half_side_mm:
            raise ValueError(f"step_mm must lie in (0, {2 * self.half_side_mm:g}] mm, got {step_mm}")
        count = int(2 * self.half_side_mm / step_mm)
        axis = ((torch.arange(count, device=device) + 0.5) * (2 / count) - 1) * self.half_side_mm
        return torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).flatten(0, 2)


def seen(picture: Tensor, homography: Tensor, size: int) -> Tensor:
    """A picture as the network takes it.

    Args:
        picture: (H, W, 3) uint8 RGB, on the device of the answer.
        homography: (3, 3) float64 from the picture's px to the network's.
        size: px, side of the network's picture.

    Returns:
        (1, 3, size, size) float32, (x / 255 - 0.5) / 0.5.
    """
    return remap(picture.permute(2, 0, 1)[None], homography[None], size).div_(127.5).sub_(1)


def mirrored(homographies: Tensor, left: Tensor, size: int) -> Tensor:
    """Views about the root (B, 3, 3), mirrored where `left` (B,): x of the view becomes size - x."""
    mirror = homographies.new_tensor([[-1.0, 0.0, size], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    return torch.where(left[:, None, None], mirror @ homographies, homographies)


def view_of(task: Task) -> CameraView | RootView:
    """The volume of a task."""
    return CameraView() if task == "camera-space" else RootView()


def _texels(side: int, device: torch.device | str | None) -> Tensor:
    """(side * side, 2): u and v in [-1, 1] of a map's texels, row by row, from corner to corner."""
    axis = torch.linspace(-1, 1, side, device=device)
    v, u = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack([u, v], -1).flatten(0, 1)
