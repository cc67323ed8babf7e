"""Volumes of query points and their placement before a camera.

A camera-space network of the paper is queried in the reference camera's frustum, a root-relative one in a
cube about the wrist with a parallel projection. Points of the cube are mapped to points with the same
projection in the reference camera, so that one field and one kernel serve both. A network of hand views is
queried in a slab of the view, at the depth that the network predicts.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Generic, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from nvf_fast.camera import REFERENCE_FOCAL, REFERENCE_SLOPE, Array, turn
from nvf_fast.camera_model import Cameras
from nvf_fast.config import NVFConfig
from nvf_fast.grid import BOX_MM, Lattice

# A point exactly on the edge may round to either side of it: points keep this distance, in half views.
EDGE = 1e-4

HAND_VIEW_FILL = 0.75  # ratio of a hand view that the longer side of the box spans
HAND_REACH_MM = 112.0  # of the query points before and behind the middle of a unit hand
FINEST_CELLS = 128  # along each axis of a hand view's lattice


class Placement(NamedTuple, Generic[Array]):
    """A volume before each of B cameras, torch or numpy.

    A point p of a camera's frame is frame @ (p - origin) in the volume's frame.
    """

    matrices: Array  # (B, 3, 3) float64, from homogeneous px of the network's view to px of the image
    frames: Array  # (B, 3, 3) float64, orthogonal; the frame of a left hand mirrors x
    origins: Array  # (B, 3) float64 mm, origin of the volume's frame in the camera's
    # (B,) float64, tangents of half the angles that hand views span, infinite for a box that no view holds;
    # None for the other volumes, whose views span one angle.
    slopes: Array | None = None

    @property
    def homographies(self) -> Tensor:
        """(B, 3, 3) float64, from image px to px of the network's view."""
        inverse: Tensor = torch.linalg.inv(torch.as_tensor(self.matrices))
        return inverse


class PlacedVolume(ABC):
    """A volume that can be placed before each camera."""

    needs_root: bool  # whether the wrist places it, instead of a box

    def place(
        self,
        intrinsics: Array,
        size: int,
        left: Array | None = None,
        *,
        boxes: Array | None = None,
        roots: Array | None = None,
        cameras: Cameras | None = None,
    ) -> Placement[Array]:
        """Place the volume before each camera.

        Args:
            intrinsics: (B, 3, 3) float64 px of the images, numpy or torch like the result. For few numbers
                numpy's operations take a fifth of the time of torch's.
            size: px, side of the network's view.
            left: (B,) bool, left hands; None if all hands are right hands.
            boxes: (B, 4) float64 px, (x0, y0, x1, y1) around the hands; None looks along the optical axis. A
                volume that the wrist places ignores them.
            roots: (B, 3) float64 mm, the wrists in the cameras' frames. A volume that a box places ignores
                them.
            cameras: of the images, with their lenses; None without distortion. The matrices end at the pixels
                of pinhole cameras of the same intrinsics.

        All tensors are on the CPU.
        """
        lenses = cameras if cameras is not None and cameras.distorted else None
        sign: Any = 1.0
        if left is not None:
            sign = np.where(left, -1.0, 1.0) if len(left) != 1 else -1.0 if left[0] else 1.0
        K = _Intrinsics(*_columns(np.asarray(intrinsics))[:6])
        at, wrists = (None if each is None else np.asarray(each) for each in (boxes, roots))
        found = self._placement(_Given(K, len(intrinsics), size, sign, at, wrists, lenses))
        if isinstance(intrinsics, Tensor):
            parts = (None if each is None else torch.from_numpy(each) for each in found)
            return cast("Placement[Array]", Placement(*parts))
        return found

    @abstractmethod
    def _placement(self, given: _Given) -> Placement[np.ndarray]: ...


class Volume(PlacedVolume):
    """A kind of volume. Points are (B, N, 3) mm in the volume's frame unless noted otherwise."""

    # centre and half-extent of the volume's bounding box
    centre_mm: tuple[float, ...]
    half_mm: tuple[float, ...]

    @abstractmethod
    def network_points(self, points: Tensor) -> Tensor:
        """The points in the frame of the network's camera, which is the reference camera."""

    @abstractmethod
    def lattice(self, step_mm: float, device: torch.device | str | None = None) -> Lattice:
        """The query points of inference.

        Raises:
            ValueError: the step is not a positive number, or leaves no point.
        """

    @abstractmethod
    def contains(self, points: Tensor) -> Tensor:
        """(B, N) bool: inside the network's view and clear of its edge."""

    @abstractmethod
    def spread(self, uniform: Tensor) -> Tensor:
        """Points uniform in the volume, from numbers (B, N, 3) uniform in [0, 1]."""

    @abstractmethod
    def other_depths(self, depth: Tensor, uniform: Tensor, log_range: float) -> Tensor:
        """Random depths on the rays through points of `depth`, from numbers uniform in [0, 1]; all (B, N)."""

    @abstractmethod
    def moved_to(self, points: Tensor, depth: Tensor) -> Tensor:
        """Points slid along their rays to depths (B, N) mm, kept inside the volume's."""

    @abstractmethod
    def rays(self, side: int, device: torch.device | str | None = None) -> tuple[Tensor, Tensor]:
        """Origins and directions, both (side * side, 3), of the rays through the texels of a feature map."""


class FrustumVolume(Volume):
    """The reference camera's frustum within `nvf_fast.grid.BOX_MM`; the camera turns to the hand's box."""

    needs_root = False
    centre_mm = tuple((low + high) / 2 for low, high in BOX_MM)
    half_mm = tuple((high - low) / 2 for low, high in BOX_MM)
    nearest_mm, farthest_mm = BOX_MM[2]

    def _placement(self, given: _Given) -> Placement[np.ndarray]:
        K = given.K
        x0, y0, x1, y1 = (K.cx, K.cy, K.cx, K.cy) if given.boxes is None else _columns(given.boxes)
        (middle,) = _straight([((x0 + x1) / 2, (y0 + y1) / 2)], given.lenses)
        return _turned(given, turn(*K.slopes(*middle)), REFERENCE_SLOPE)

    def network_points(self, points: Tensor) -> Tensor:
        return points

    def warn_at_ends(self, joints: np.ndarray) -> None:
        """Warn of hands whose joints (B, 21, 3) mm, in the volume's frame, reach an end of its depths."""
        depths = joints[..., 2]
        for low, high in zip(depths.min(1).tolist(), depths.max(1).tolist(), strict=True):
            if low <= self.nearest_mm or high >= self.farthest_mm:
                warnings.warn(
                    f"a hand between {low:.0f} and {high:.0f} mm reaches the end of the queried depths, "
                    f"{self.nearest_mm:g} to {self.farthest_mm:g} mm: it may be nearer or farther",
                    stacklevel=5,
                )

    def lattice(self, step_mm: float, device: torch.device | str | None = None) -> Lattice:
        return Lattice(step_mm, device)

    def contains(self, points: Tensor) -> Tensor:
        x, y, z = points.unbind(-1)
        limit = z * (REFERENCE_SLOPE * (1 - EDGE))
        return (z > 0) & (x.abs() <= limit) & (y.abs() <= limit)

    def spread(self, uniform: Tensor) -> Tensor:
        # Uniform by volume: the cross-section grows with depth squared until it reaches the box's sides.
        slope, width, near = REFERENCE_SLOPE * (1 - EDGE), self.half_mm[0], self.nearest_mm
        widest = width / slope
        widening = (widest**3 - near**3) / (3 * widest**2)  # volumes in units of the full cross-section
        volume = uniform[..., 2] * (widening + self.farthest_mm - widest)
        depth = torch.where(
            volume < widening,
            (near**3 + 3 * widest**2 * volume.clamp_max(widening)).pow(1 / 3),
            widest + volume - widening,
        )
        half = (depth * slope).clamp_max(width)
        return torch.cat([(2 * uniform[..., :2] - 1) * half[..., None], depth[..., None]], -1)

    def other_depths(self, depth: Tensor, uniform: Tensor, log_range: float) -> Tensor:
        """`depth` times exp(u), u uniform in plus or minus `log_range`, within the volume."""
        depth = depth.clamp(self.nearest_mm, self.farthest_mm)
        low = (self.nearest_mm / depth).log().clamp_min(-log_range)
        high = (self.farthest_mm / depth).log().clamp_max(log_range)
        return depth * (low + (high - low) * uniform).exp()

    def moved_to(self, points: Tensor, depth: Tensor) -> Tensor:
        return points * (depth.clamp(self.nearest_mm, self.farthest_mm) / points[..., 2])[..., None]

    def rays(self, side: int, device: torch.device | str | None = None) -> tuple[Tensor, Tensor]:
        """From the camera's centre; directions have z = 1, so that a ray's parameter is the depth."""
        uv = _texels(side, device)
        directions = torch.cat([uv * REFERENCE_SLOPE, torch.ones_like(uv[:, :1])], 1)
        return torch.zeros_like(directions), directions


class RootCube(Volume):
    """A cube of 340 mm about the wrist, axes as the camera's, seen along z by a scaled-orthographic camera.

    The paper does not specify RS-NVF's projection. Here u = x / 170 and v = y / 170 in [-1, 1]. The network's
    depth input is 2 + z / 170, in the same range as for a frustum; the first bias absorbs the offset. The
    image is cropped to a square of f * 340 mm / Z of the wrist, which shows the cube.
    """

    needs_root = True
    half_side_mm = 170.0
    centre_mm = (0.0, 0.0, 0.0)
    half_mm = (half_side_mm, half_side_mm, half_side_mm)
    _depth_offset = 2.0

    def _placement(self, given: _Given) -> Placement[np.ndarray]:
        assert given.roots is not None
        K, sign, size, (x, y, z) = given.K, given.sign, given.size, _columns(given.roots)
        u, v, _ = K.pixel(x / z, y / z, 1.0)
        across, down = (focal * 2 * self.half_side_mm / (size * z) for focal in (K.fx, K.fy))
        matrix = [sign * across, 0.0, u - sign * across * size / 2, 0.0, down, v - down * size / 2, 0, 0, 1.0]
        frame = [sign, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
        matrices, frames = (_matrices(each, given.batch) for each in (matrix, frame))
        return Placement(matrices, frames, given.roots)

    def network_points(self, points: Tensor) -> Tensor:
        inputs = points / self.half_side_mm
        depth = REFERENCE_FOCAL * (inputs[..., 2:] + self._depth_offset)
        return torch.cat([inputs[..., :2] * (REFERENCE_SLOPE * depth), depth], -1)

    def lattice(self, step_mm: float, device: torch.device | str | None = None) -> Lattice:
        """The centres of the cube's voxels, int(340 / step) along each axis."""
        side = (-self.half_side_mm, self.half_side_mm)
        return Lattice(step_mm, device, (side, side, side), slope=None, centred=True)

    def contains(self, points: Tensor) -> Tensor:
        return (points.abs() <= self.half_side_mm * (1 - EDGE)).all(-1)

    def spread(self, uniform: Tensor) -> Tensor:
        return (2 * uniform - 1) * (self.half_side_mm * (1 - EDGE))

    def other_depths(self, depth: Tensor, uniform: Tensor, log_range: float) -> Tensor:
        """Depths uniform in the cube, since parallel rays have no ratio of depths."""
        return self.spread(uniform)

    def moved_to(self, points: Tensor, depth: Tensor) -> Tensor:
        limit = self.half_side_mm * (1 - EDGE)
        return torch.cat([points[..., :2], depth.clamp(-limit, limit)[..., None]], -1)

    def rays(self, side: int, device: torch.device | str | None = None) -> tuple[Tensor, Tensor]:
        """From the cube's front; directions have z = 1, so that parameters are depths from there."""
        uv = _texels(side, device) * self.half_side_mm
        origins = torch.cat([uv, torch.full_like(uv[:, :1], -self.half_side_mm)], 1)
        return origins, origins.new_tensor([0.0, 0.0, 1.0]).expand_as(origins)


class HandVolume(PlacedVolume):
    """A slab of the hand view, the view of a virtual camera that turns to a box and zooms to its size.

    The camera turns by the smallest rotation to the box's centre, and its focal length makes the box's longer
    side span `fill` of the view. The slab lies about the depth that the network predicts for the hand.
    """

    fill = HAND_VIEW_FILL
    needs_root = False

    def _placement(self, given: _Given) -> Placement[np.ndarray]:
        assert given.boxes is not None
        K, (x0, y0, x1, y1) = given.K, _columns(given.boxes)
        u, v = (x0 + x1) / 2, (y0 + y1) / 2
        # The box's middle and the midpoints of its sides; the latter at depth 1 of the turned camera.
        middle, *ends = _straight([(u, v), (x0, v), (x1, v), (u, y0), (u, y1)], given.lenses)
        rotation = turn(*K.slopes(*middle))
        a, b, c, d, e, f, g, h, i = rotation
        places: list[tuple[Any, Any]] = []
        ahead: Any = True
        one = isinstance(x0, float)
        with nullcontext() if one else np.errstate(divide="ignore", invalid="ignore"):
            for end in ends:
                x, y = K.slopes(*end)
                depth = g * x + h * y + i
                ahead = ahead & (depth > 0)
                if one:
                    depth = depth or math.inf  # Python raises where numpy divides by zero
                places.append(((a * x + b * y + c) / depth, (d * x + e * y + f) / depth))
            left, right, top, bottom = places
            across = (right[0] - left[0]) ** 2 + (right[1] - left[1]) ** 2
            down = (bottom[0] - top[0]) ** 2 + (bottom[1] - top[1]) ** 2
            slope = (max if one else np.maximum)(across, down) ** 0.5 / (2 * self.fill)
            if one:
                slope = slope if ahead else math.inf
            else:
                slope = np.where(ahead, slope, math.inf)
            return _turned(given, rotation, slope, sized=True)

    def lattice(self, step_mm: float, device: torch.device | str | None = None) -> HandLattice:
        """The query points of inference, round(224 / step) along each axis.

        Raises:
            ValueError: the step is not a positive number, leaves no point, or is finer than 1.75 mm.
        """
        if not (math.isfinite(step_mm) and step_mm > 0):
            raise ValueError(f"step_mm must be a positive number of mm, got {step_mm}")
        count = round(2 * HAND_REACH_MM / step_mm)
        if not 1 <= count <= FINEST_CELLS:
            raise ValueError(
                f"step_mm must be {2 * HAND_REACH_MM / FINEST_CELLS:g} to {2 * HAND_REACH_MM:g} mm in a hand "
                f"view, got {step_mm}; 16 mm is the usual step"
            )
        cells = torch.arange(count, dtype=torch.float32, device=device)
        axis = (cells + 0.5) * (2 / count) - 1  # centres of cells in [-1, 1]
        v, u, w = torch.meshgrid(axis, axis, axis, indexing="ij")
        depths = (w * (count * step_mm / 2)).flatten()
        return HandLattice(torch.stack([u, v], -1).flatten(0, 2), depths, count)


class HandLattice(NamedTuple):
    """Query points that are regular in the hand view and in depth, so that all hands use the same texels."""

    uv: Tensor  # (N, 2) float32 in the view, in [-1, 1], row by row
    depths: Tensor  # (N,) float32 mm, relative to the middle of the slab
    per_ray: int  # consecutive points that lie on one ray, the farthest last

    def __len__(self) -> int:
        return len(self.depths)

    def points(self, middles: Tensor, slopes: Tensor) -> Tensor:
        """Points (B, N, 3) mm of slabs whose middles have depths (B,) mm, in views of half slopes (B,)."""
        depths = middles[:, None] + self.depths
        return torch.cat([self.uv * (slopes[:, None] * depths)[..., None], depths[..., None]], -1)


def volume_of(config: NVFConfig) -> FrustumVolume | RootCube:
    """The volume of a network that takes reference views or crops about the wrist.

    Raises:
        ValueError: the network takes hand views, whose volume is `HandVolume`.
    """
    if config.view == "hand":
        raise ValueError("a network of hand views needs a HandVolume")
    return FrustumVolume() if config.task == "camera-space" else RootCube()


class _Intrinsics(NamedTuple):
    """Intrinsics of one camera as numbers, or of B as arrays (B,)."""

    fx: Any
    skew: Any
    cx: Any
    zero: Any
    fy: Any
    cy: Any

    def slopes(self, u: Any, v: Any) -> tuple[Any, Any]:
        """Slopes x / z and y / z of the ray through a pixel."""
        y = (v - self.cy) / self.fy
        return (u - self.cx - self.skew * y) / self.fx, y

    def pixel(self, x: Any, y: Any, z: Any) -> tuple[Any, Any, Any]:
        """The homogeneous pixel of a point."""
        return self.fx * x + self.skew * y + self.cx * z, self.fy * y + self.cy * z, z


class _Given(NamedTuple):
    """B cameras and hands before which a volume is placed."""

    K: _Intrinsics  # of the cameras
    batch: int  # B
    size: int  # px, side of the network's view
    sign: Any  # -1 for left hands, else 1; a number or (B,)
    boxes: np.ndarray | None
    roots: np.ndarray | None
    lenses: Cameras | None


def _columns(array: np.ndarray) -> list[Any]:
    """The entries of a batch of one as numbers, those of a larger batch as arrays (B,)."""
    if len(array) == 1:
        numbers: list[Any] = array.ravel().tolist()
        return numbers
    return list(array.reshape(len(array), math.prod(array.shape[1:])).T)


def _matrices(entries: Sequence[Any], count: int) -> np.ndarray:
    """(B, 3, 3) float64 of nine numbers or arrays."""
    if count == 1:
        return np.array(entries, dtype=np.float64).reshape(1, 3, 3)
    matrices = np.empty((count, 9))
    for column, values in enumerate(entries):
        matrices[:, column] = values
    return matrices.reshape(count, 3, 3)


def _straight(pixels: list[tuple[Any, Any]], lenses: Cameras | None) -> Sequence[tuple[Any, Any]]:
    """Pixels of pinhole cameras for pixels of cameras with lenses."""
    if lenses is None:
        return pixels
    given = np.array([np.broadcast_arrays(*pixel) for pixel in pixels], dtype=np.float64)
    straight = lenses.straight(given.reshape(len(pixels), 2, -1).transpose(2, 0, 1))
    return straight[0].tolist() if len(straight) == 1 else list(straight.transpose(1, 2, 0))


def _turned(given: _Given, rotation: list[Any], slope: Any, sized: bool = False) -> Placement[np.ndarray]:
    """The placement of a turned camera whose square view reaches `slope` from its axis.

    Args:
        rotation: nine entries, from `turn`.
        sized: whether slopes differ, so that the placement holds them.
    """
    K, count, size, sign = given[:4]
    a, b, c, d, e, f, g, h, i = rotation
    a, b, c = sign * a, sign * b, sign * c  # -1 mirrors the view
    # A view's pixel (u, v) shows the ray F' ((u - size / 2) step, (v - size / 2) step, 1).
    step = slope / (size / 2)
    columns = (
        K.pixel(step * a, step * b, step * c),
        K.pixel(step * d, step * e, step * f),
        K.pixel(g - slope * (a + d), h - slope * (b + e), i - slope * (c + f)),
    )
    matrix = [column[row] for row in range(3) for column in columns]
    frames = _matrices([a, b, c, d, e, f, g, h, i], count)
    slopes = None if not sized else np.array([slope]) if count == 1 else slope
    return Placement(_matrices(matrix, count), frames, np.zeros((count, 3)), slopes)


def _texels(side: int, device: torch.device | str | None) -> Tensor:
    """(side * side, 2): u and v in [-1, 1] of a map's texels, row by row, from corner to corner."""
    axis = torch.linspace(-1, 1, side, dtype=torch.float32, device=device)
    v, u = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack([u, v], -1).flatten(0, 1)
