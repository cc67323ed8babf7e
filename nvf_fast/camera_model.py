"""Camera models: intrinsics, image size and lens distortion."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from typing import Any, Self, get_args

import numpy as np
import torch
from torch import Tensor

from nvf_fast.camera import Array, project
from nvf_fast.lens import FISHEYE, PLUMB_BOB, Lens, LensModel, distort
from nvf_fast.runtime.arguments import check_number, read_numbers

# In lengths of the image's longer side. The shortest spans 157 degrees; with the longest, a hand of 0.2 m
# fills the image from 2 km away. A crop to 1/100 of the width of a photograph with an 800 mm lens has 2200.
FOCAL_LIMITS = (0.1, 10_000.0)
# From the optical axis to the nearest pixel. The widest rectilinear lenses reach 65 degrees in the corners.
AXIS_DEGREES = 75.0
MOST_SKEW = 0.25  # of fx; pixels of cameras are rectangles, whose skew is 0
SMALLEST_FOV = 5.0  # degrees, larger than any angle in radians


@dataclass(frozen=True, eq=False)
class Camera:
    """A calibrated camera, accepted wherever K is.

    Integer pixel coordinates are pixel centres, so the middle of an image is ((width - 1) / 2,
    (height - 1) / 2). The models and the order of their coefficients are OpenCV's.

    Args:
        K: (3, 3) px, [[fx, s, cx], [0, fy, cy], [0, 0, 1]].
        size: (width, height) px of its images.
        distortion: for "plumb_bob" k1, k2, p1, p2[, k3[, k4, k5, k6[, s1, s2, s3, s4]]], for "fisheye" k1,
            k2, k3, k4; empty for a pinhole camera.
        model: "plumb_bob" (rational and thin-prism terms included) or "fisheye".

    Raises:
        ValueError: a shape or a value is invalid, or K cannot belong to an image of this size.
        TypeError: an argument has the wrong type.

    Examples:
        >>> import numpy as np
        >>> camera = Camera.from_fov(90, (640, 480))
        >>> camera.project(np.array([50.0, 0.0, 500.0]))
        array([351.5, 239.5])
        >>> camera.resized(320, 240).project(np.array([50.0, 0.0, 500.0]))
        array([175.5, 119.5])
    """

    K: np.ndarray
    size: tuple[int, int]
    distortion: tuple[float, ...] = ()
    model: LensModel = "plumb_bob"

    def __post_init__(self) -> None:
        K = read_numbers("K", self.K, "numbers of px")
        if K.shape != (3, 3):
            raise ValueError(f"K must be (3, 3) px, got shape {K.shape}")
        width, height = checked_size(self.size)
        check_intrinsics(K.tolist(), width, height)
        K.flags.writeable = False
        object.__setattr__(self, "K", K)
        object.__setattr__(self, "size", (width, height))
        object.__setattr__(self, "distortion", _coefficients(self.distortion, self.model))

    @classmethod
    def from_fov(cls, degrees: float, size: tuple[int, int]) -> Self:
        """Make a pinhole camera from its horizontal field of view, with its axis in the middle of the image.

        Raises:
            ValueError: the angle is not between 5 and 180 degrees, or the size is invalid.
            TypeError: an argument has the wrong type.
        """
        check_number("degrees", degrees)
        width, height = checked_size(size)
        focal = fov_focal(degrees, width)
        return cls(np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]]), size)

    def resized(self, width: int, height: int) -> Camera:
        """The camera of the images resized to a width and height in px."""
        across, down = width / self.size[0], height / self.size[1]
        # Pixel borders, at halves, scale; pixel centres therefore shift.
        change = np.array([[across, 0, (across - 1) / 2], [0, down, (down - 1) / 2], [0, 0, 1]])
        return Camera(change @ self.K, (width, height), self.distortion, self.model)

    def cropped(self, x0: int, y0: int, x1: int, y1: int) -> Camera:
        """The camera of the crops image[y0:y1, x0:x1], padded where they extend beyond the image."""
        shift = np.array([[1, 0, -x0], [0, 1, -y0], [0, 0, 1]])
        return Camera(shift @ self.K, (x1 - x0, y1 - y0), self.distortion, self.model)

    def rotated(self, quarters: int = 1) -> Camera:
        """The camera of np.rot90(image, quarters), turned counterclockwise by 90 degrees each.

        Its frame turns with the image: a quarter takes a point (x, y, z) to (y, -x, z).

        Raises:
            ValueError: K has a skew, and the number of quarters is odd.
            TypeError: the number of quarters is not a whole number.
        """
        if not isinstance(quarters, Integral):
            raise TypeError(f"quarters must be a whole number, got {quarters!r}")
        if quarters % 4 == 0:
            return self
        if self.K[0, 1] != 0:
            raise ValueError(f"a camera with a skew, here of {self.K[0, 1]} px, cannot be rotated")
        (fx, _, cx), (_, fy, cy), _ = self.K
        width, height = self.size
        K = np.array([[fy, 0, cy], [0, fx, width - 1 - cx], [0, 0, 1]])
        distortion = self.distortion
        if self.model == "plumb_bob" and distortion:
            k1, k2, p1, p2, k3, k4, k5, k6, s1, s2, s3, s4 = distortion
            # These terms move a point along the vectors (p2, p1), (s1, s3) and (s2, s4), which turn.
            distortion = (k1, k2, -p2, p1, k3, k4, k5, k6, s3, s4, -s1, -s2)
        return Camera(K, (height, width), distortion, self.model).rotated(quarters - 1)

    def project(self, points: Array) -> Array:
        """Project points to pixels, with distortion.

        Args:
            points: (..., 3) float, torch or numpy, any unit, in the camera's frame; integers and lists count
                as float64.

        Returns:
            (..., 2) px in their dtype, with torch's gradients; NaN behind the camera or out of sight.

        Raises:
            ValueError: the points have another shape.
            TypeError: they are not numbers.
        """
        points = _vectors("points", points, 3)
        given = points if isinstance(points, Tensor) else torch.from_numpy(points.astype(np.float64))
        camera = Cameras(self.K[None], (self._lens,))
        pixels = camera.project(given.double().reshape(1, -1, 3)).reshape(*given.shape[:-1], 2)
        pixels = pixels.where(given[..., 2:] > 0, math.nan)
        return pixels.to(points.dtype) if isinstance(points, Tensor) else pixels.numpy().astype(points.dtype)

    def rays(self, pixels: Array) -> Array:
        """The rays through pixels, undistorted by Newton's method.

        Args:
            pixels: (..., 2) float px, torch or numpy; integers and lists count as float64.

        Returns:
            (..., 3) in their dtype, (x, y, 1) in the camera's frame, without gradients; NaN where no ray
            leads to a pixel.

        Raises:
            ValueError: the pixels have another shape.
            TypeError: they are not numbers.
        """
        pixels = _vectors("pixels", pixels, 2)
        given = read_numbers("pixels", pixels, "(..., 2) numbers", most=2**31)
        slopes = _slopes(given, self.K)
        slopes = slopes if self._lens is None else self._lens.undistort(slopes)
        rays = np.append(slopes, np.ones_like(slopes[..., :1]), -1)
        if isinstance(pixels, Tensor):
            return torch.from_numpy(rays).to(pixels)
        return rays.astype(pixels.dtype)

    def to_dict(self) -> dict[str, Any]:
        """Convert to JSON values: K, size and, with distortion, the coefficients and the model."""
        lens = {} if self._lens is None else {"distortion": list(self.distortion), "model": self.model}
        return {"K": self.K.tolist(), "size": list(self.size), **lens}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Camera) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash((self.K.tobytes(), self.size, self.distortion, self.model))

    @cached_property
    def _lens(self) -> Lens | None:
        """None for a pinhole camera."""
        return Lens(self.distortion) if self.distortion else None


@dataclass(frozen=True)
class Cameras:
    """Validated cameras of images or hands.

    Attributes:
        intrinsics: (B, 3, 3) float64 px.
        lenses: B, None for pinhole cameras.
    """

    intrinsics: np.ndarray
    lenses: tuple[Lens | None, ...]

    @classmethod
    def of(cls, cameras: Sequence[Camera]) -> Self:
        """Join cameras."""
        return cls(np.stack([each.K for each in cameras]), tuple(each._lens for each in cameras))

    def __len__(self) -> int:
        return len(self.lenses)

    def __iter__(self) -> Iterator[tuple[np.ndarray, Lens | None]]:
        return zip(self.intrinsics, self.lenses, strict=True)

    def chosen(self, rows: Sequence[int]) -> Cameras:
        """Select cameras by their indices."""
        return Cameras(self.intrinsics[list(rows)], tuple(self.lenses[row] for row in rows))

    @property
    def distorted(self) -> bool:
        """Whether one of the cameras has a lens with distortion."""
        return self.lenses.count(None) < len(self.lenses)

    def project(self, points: Array) -> Array:
        """Project points (B, N, 3) float64 of each camera's frame to pixels (B, N, 2); NaN out of sight.

        torch, with gradients, or numpy.
        """
        if self.distorted:
            return self._bent(points)
        return project(points, self._intrinsics_like(points))

    def _bent(self, points: Any) -> Any:
        """`project` through lenses."""
        if not isinstance(points, Tensor):
            return self._bent(torch.from_numpy(points)).numpy()
        bent = []
        for each, lens in zip(points, self.lenses, strict=True):
            slopes = each[:, :2] / each[:, 2:]
            if lens is not None:
                slopes = torch.stack(distort(slopes[:, 0], slopes[:, 1], lens.row), -1)
                slopes = slopes.where(each[:, 2:] > 0, math.nan)
            bent.append(torch.cat([slopes, torch.ones_like(slopes[:, :1])], -1))
        return project(torch.stack(bent), self._intrinsics_like(points))

    def _intrinsics_like(self, points: Array) -> Array:
        if isinstance(points, Tensor):
            return torch.tensor(self.intrinsics, dtype=points.dtype, device=points.device)
        return self.intrinsics

    def straight(self, pixels: np.ndarray) -> np.ndarray:
        """Undistort pixels (B, N, 2): those at which pinhole cameras of the same K see the same points.

        For a pixel without a ray, the outermost ray in its direction is used.
        """
        straight = pixels.copy()
        for place, lens, K in zip(straight, self.lenses, self.intrinsics, strict=True):
            if lens is not None:
                slopes = lens.undistort(_slopes(place, K), nearest=True)
                place[:] = slopes @ K[:2, :2].T + K[:2, 2]
        return straight


def fov_focal(degrees: float, extent: float) -> float:
    """The focal length in px of a field of view across an extent in px."""
    if not SMALLEST_FOV <= degrees < 180:
        raise ValueError(
            f"the field of view must be {SMALLEST_FOV:g} to 180 degrees, got {degrees:g}: convert radians by "
            "math.degrees, and give the focal length in px of a longer lens"
        )
    return extent / 2 / math.tan(math.radians(degrees) / 2)


def checked_size(size: Any) -> tuple[int, int]:
    """Validate the (width, height) px of images."""
    try:
        width, height = (int(each) for each in size)
        whole = (width, height) == tuple(size) and all(0 < each < 2**31 for each in (width, height))
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(f"size must be (width, height) in px, got {size!r}") from error
    if not whole:
        raise ValueError(f"size must be (width, height), positive whole numbers of px, got {size}")
    return width, height


def check_intrinsics(K: Sequence[Sequence[float]], width: int, height: int) -> None:
    """Refuse a matrix K that cannot belong to an image of width x height px."""
    # For nine values, Python numbers are faster than tensors.
    (fx, skew, cx), (zero, fy, cy), last = K
    if not all(map(math.isfinite, (fx, skew, cx, zero, fy, cy, *last))):
        raise ValueError(f"K must be finite, got {K}")
    if zero != 0 or list(last) != [0, 0, 1]:
        hint = "; it is transposed" if (skew, cx, K[2][2]) == (0, 0, 1) else ""
        raise ValueError(f"K must be [[fx, s, cx], [0, fy, cy], [0, 0, 1]] in px, got {K}{hint}")
    if fx <= 0 or fy <= 0:
        raise ValueError(f"K must have positive focal lengths fx and fy in px, got {K}")
    if abs(skew) > MOST_SKEW * fx:
        raise ValueError(f"K must have a skew s of at most {MOST_SKEW:g} fx, got {K}: cx ends the first row")
    longer = max(width, height)
    shortest, longest = (factor * longer for factor in FOCAL_LIMITS)
    if not (shortest <= min(fx, fy) and max(fx, fy) <= longest):
        hint = "focal lengths in px are those in mm times the image's width / the sensor's width in mm"
        if (fx, fy, cx, cy) == (1, 1, 0, 0):
            hint = "it is the identity matrix; Camera.from_fov makes a camera of an angle"
        elif max(fx, fy, abs(cx), abs(cy)) <= 10:
            hint = "it is normalised: multiply its first row by the width and its second by the height"
        raise ValueError(
            f"K must have focal lengths of {shortest:g} to {longest:g} px for an image of {width} x {height} "
            f"px, got {K}: {hint}"
        )
    beyond = (max(-cx, cx - width + 1, 0) / fx, max(-cy, cy - height + 1, 0) / fy)
    degrees = math.degrees(math.atan(math.hypot(*beyond)))
    if degrees > AXIS_DEGREES:
        raise ValueError(
            f"K must have its principal point (cx, cy) within {AXIS_DEGREES:g} degrees of the image, got {K} "
            f"for {width} x {height} px, {degrees:.0f} degrees away: it belongs to another image or has "
            "other units; Camera.resized and Camera.cropped adapt a camera to a changed image"
        )


def _slopes(pixels: np.ndarray, K: np.ndarray) -> np.ndarray:
    """Slopes (..., 2), distorted by the lens, at pixels (..., 2) of a camera with intrinsics (3, 3)."""
    slopes: np.ndarray = (pixels - K[:2, 2]) @ np.linalg.inv(K[:2, :2]).T
    return slopes


def _vectors(name: str, values: Any, length: int) -> Any:
    """Vectors (..., length) as an array or a tensor of floating-point numbers."""
    if isinstance(values, Tensor):
        values = values if values.is_floating_point() else values.double()
    elif not (isinstance(values, np.ndarray) and values.dtype.kind == "f"):
        values = read_numbers(name, values, f"(..., {length}) numbers", most=2**31)
    if not values.ndim or values.shape[-1] != length:
        raise ValueError(f"{name} must be (..., {length}) numbers, got shape {tuple(values.shape)}")
    return values


def _coefficients(given: Any, model: Any) -> tuple[float, ...]:
    """The coefficients of a lens, completed with zeros; none for a pinhole camera."""
    if model not in get_args(LensModel):
        raise ValueError(f"model must be one of {get_args(LensModel)}, got {model!r}")
    counts = (FISHEYE,) if model == "fisheye" else (0, 4, 5, 8, PLUMB_BOB, PLUMB_BOB + 2)
    values = read_numbers("distortion", () if given is None else given, "numbers").ravel()
    if len(values) not in counts:
        allowed = " or ".join(map(str, counts))
        raise ValueError(f"distortion of a {model!r} camera must be {allowed} numbers, got {len(values)}")
    if not np.isfinite(values).all():
        raise ValueError(f"distortion must be finite, got {values.tolist()}")
    if values[PLUMB_BOB:].any():
        raise ValueError(f"a tilted sensor (the last two of 14 coefficients) is not supported, got {values}")
    if model == "plumb_bob":
        values = np.append(values, np.zeros(PLUMB_BOB))[:PLUMB_BOB] if values.any() else values[:0]
    return tuple(values.tolist())
