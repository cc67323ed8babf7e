"""Simple solids as triangle meshes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Solid(NamedTuple):
    """vertices (V, 3) float64 and faces (F, 3) int32, outward; sharp edges have their vertices twice."""

    vertices: np.ndarray
    faces: np.ndarray

    def moved(self, offset: np.ndarray, rotation: np.ndarray | None = None) -> Solid:
        """Rotate about the origin, then translate."""
        turned = self.vertices if rotation is None else self.vertices @ rotation.T
        return Solid(turned + offset, self.faces)


def box(size: np.ndarray) -> Solid:
    """A box about the origin with edges size (3,)."""
    vertices: list[np.ndarray] = []
    faces: list[list[int]] = []
    for axis in range(3):
        for sign in (-1.0, 1.0):
            square = [(sign, -1.0, -1.0), (sign, 1.0, -1.0), (sign, 1.0, 1.0), (sign, -1.0, 1.0)]
            a, b, c, d = len(vertices) + np.arange(4)[:: int(sign)]
            vertices += [np.roll(corner, axis) for corner in square]
            faces += [[a, b, c], [a, c, d]]
    return Solid(np.array(vertices) * size / 2, np.array(faces, np.int32))


def cylinder(radius: float, length: float, sides: int = 20, taper: float = 1.0) -> Solid:
    """A cylinder about the x axis; its far end is `taper` times as wide."""
    angle = 2 * np.pi * np.arange(sides) / sides
    ring = np.stack([np.zeros(sides), np.cos(angle), np.sin(angle)], -1) * radius
    near, far = ring - [length / 2, 0, 0], ring * taper + [length / 2, 0, 0]
    ends = np.array([[-length / 2, 0, 0], [length / 2, 0, 0]])
    this, after = np.arange(sides), (np.arange(sides) + 1) % sides
    faces = np.concatenate(
        [
            np.stack([this, after, this + sides], -1),
            np.stack([after, after + sides, this + sides], -1),
            np.stack([after + 2 * sides, this + 2 * sides, np.full(sides, 4 * sides)], -1),
            np.stack([this + 3 * sides, after + 3 * sides, np.full(sides, 4 * sides + 1)], -1),
        ]
    )
    return Solid(np.concatenate([near, far, near, far, ends]), faces.astype(np.int32))


def capsule(radius: float, length: float, taper: float = 1.0) -> Solid:
    """A cylinder about the x axis with round ends at its `length`; the far one is `taper` times as wide."""
    ball = ellipsoid(np.full(3, radius), rings=9, sides=14)  # an odd number of rings has none at the equator
    along = np.array([0.0, 0.0, length / 2])
    far = ball.vertices[:, 2:] > 0
    vertices = np.where(far, taper * ball.vertices + along, ball.vertices - along)
    return Solid(vertices[:, [2, 0, 1]], ball.faces)


def rounded_box(size: np.ndarray, roundness: float) -> Solid:
    """A superellipsoid with edges size (3,) about the origin: an ellipsoid for roundness 1, a box near 0."""
    ball = ellipsoid(np.ones(3), rings=16, sides=24)
    power = 2 / roundness
    norm = (np.abs(ball.vertices) ** power).sum(1, keepdims=True) ** (1 / power)
    return Solid(ball.vertices / norm * np.asarray(size) / 2, ball.faces)


def ellipsoid(radii: np.ndarray, rings: int = 10, sides: int = 16) -> Solid:
    """An ellipsoid about the origin with half axes radii (3,)."""
    polar = np.pi * np.arange(1, rings) / rings
    angle = 2 * np.pi * np.arange(sides) / sides
    wide, along = np.sin(polar)[:, None], np.cos(polar)[:, None] + 0 * angle
    body = np.stack([wide * np.cos(angle), wide * np.sin(angle), along], -1).reshape(-1, 3)
    top, bottom = len(body), len(body) + 1
    this, after = np.arange(sides), (np.arange(sides) + 1) % sides
    faces = [np.stack([np.full(sides, top), this, after], -1)]
    for ring in range(rings - 2):
        a, b = ring * sides, (ring + 1) * sides
        faces.append(np.stack([this + a, this + b, after + b], -1))
        faces.append(np.stack([this + a, after + b, after + a], -1))
    last = (rings - 2) * sides
    faces.append(np.stack([this + last, np.full(sides, bottom), after + last], -1))
    vertices = np.concatenate([body, [[0, 0, 1.0], [0, 0, -1.0]]])
    return Solid(vertices * np.asarray(radii), np.concatenate(faces).astype(np.int32))
