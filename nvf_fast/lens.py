"""Lens distortion: OpenCV's plumb-bob and fisheye models, forward and inverse.

Both map the slopes (x / z, y / z) of a ray to distorted ones, which K maps to pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

Number = TypeVar("Number", Tensor, np.ndarray)
LensModel = Literal["plumb_bob", "fisheye"]

FISHEYE = 4  # coefficients k1 to k4; a plumb bob has PLUMB_BOB
PLUMB_BOB = 12  # k1, k2, p1, p2, k3, k4, k5, k6, s1, s2, s3, s4
WIDEST_DEGREES = 89.0  # from the axis to the outermost ray
PROFILE = 1781  # angles at which a lens is sampled, 0.05 degrees apart
TINY = 1e-30  # keeps a square root differentiable at 0
NEWTON_STEPS = 20
STEP = 1e-7  # of slopes, between the ends of a difference
TOLERANCE = 1e-9  # of distorted slopes: 1e-6 px at a focal length of 1000 px


def distort(x: Number, y: Number, row: Sequence[Any]) -> tuple[Number, Number]:
    """Distort slopes by the formulas of OpenCV's `calib3d` and `fisheye` modules.

    Args:
        x: slopes x / z of rays, any shape, torch or numpy.
        y: slopes y / z.
        row: the entries of `Lens.row`, whose number determines the model; tensors broadcast with x.

    Returns:
        The distorted slopes; NaN outside the lens's field of view.
    """
    square = x * x + y * y
    limit, *k = row
    if len(k) == FISHEYE:
        radius = (square + TINY) ** 0.5
        angle = torch.atan(radius) if isinstance(radius, Tensor) else np.arctan(radius)
        a = angle * angle
        ratio = angle * (1 + a * (k[0] + a * (k[1] + a * (k[2] + a * k[3])))) / radius
        bent_x, bent_y = x * ratio, y * ratio
    else:
        k1, k2, p1, p2, k3, k4, k5, k6, s1, s2, s3, s4 = k
        ratio = 1 + square * (k1 + square * (k2 + square * k3))
        ratio = ratio / (1 + square * (k4 + square * (k5 + square * k6)))
        tangential = 2 * (p2 * x + p1 * y)
        bent_x = x * (ratio + tangential) + square * (p2 + s1 + square * s2)
        bent_y = y * (ratio + tangential) + square * (p1 + s3 + square * s4)
    seen = square <= limit
    where: Any = torch.where if isinstance(square, Tensor) else np.where
    return where(seen, bent_x, math.nan), where(seen, bent_y, math.nan)


@dataclass(frozen=True)
class Lens:
    """The distortion of a lens.

    Args:
        coefficients: `PLUMB_BOB` or `FISHEYE` numbers.
    """

    coefficients: tuple[float, ...]

    @cached_property
    def _profile(self) -> tuple[np.ndarray, np.ndarray]:
        """Slopes from 0 on and their distorted radii, up to where two rays would share a pixel."""
        slopes = np.tan(np.radians(np.linspace(0, WIDEST_DEGREES, PROFILE)))
        k = self.coefficients
        if len(k) == PLUMB_BOB:
            k = (*k[:2], 0.0, 0.0, *k[4:8], 0.0, 0.0, 0.0, 0.0)  # the radial part
        with np.errstate(all="ignore"):
            radii: np.ndarray = distort(slopes, np.zeros_like(slopes), (math.inf, *k))[0]
            grows = np.append(radii[1:] > radii[:-1], False)
        count = int(np.argmin(grows)) + 1
        return slopes[:count], radii[:count]

    @cached_property
    def row(self) -> tuple[float, ...]:
        """The largest squared slope of a ray, and the coefficients."""
        return (float(self._profile[0][-1]) ** 2, *self.coefficients)

    def undistort(self, points: np.ndarray, nearest: bool = False) -> np.ndarray:
        """Undistort slopes iteratively.

        Args:
            points: (..., 2) float64 distorted slopes.
            nearest: whether to return the outermost ray in its direction where no ray leads to a point.

        Returns:
            (..., 2) slopes; NaN where no ray leads to a point within `TOLERANCE`.
        """
        slopes, radii = self._profile
        target = np.moveaxis(np.asarray(points, dtype=np.float64), -1, 0)
        radius = np.hypot(*target)
        start = target * (np.interp(radius, radii, slopes) / np.maximum(radius, TINY))

        def distorted(x: np.ndarray, y: np.ndarray) -> np.ndarray:
            return np.stack(distort(x, y, (math.inf, *self.coefficients)))

        x: np.ndarray
        y: np.ndarray
        x, y = start
        with np.errstate(all="ignore"):
            for _ in range(NEWTON_STEPS):
                image = distorted(x, y)
                right, down = target - image
                if not (np.maximum(np.abs(right), np.abs(down)) > 1e-12 * (1 + radius)).any():
                    break
                # The Jacobian by differences, whose errors slow the iteration without moving its end.
                a, c = (distorted(x + STEP, y) - image) / STEP
                b, d = (distorted(x, y + STEP) - image) / STEP
                determinant = a * d - b * c
                x, y = x + (d * right - b * down) / determinant, y + (a * down - c * right) / determinant
            error = np.abs(target - distorted(x, y)).max(0)
            solved = (error <= TOLERANCE) & (x * x + y * y <= self.row[0])
        return np.moveaxis(np.where(solved, np.stack([x, y]), start if nearest else math.nan), 0, -1)
