"""Meshes gathered for one picture: hands with their forearms, and solids."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from nvf_fast.data.forearm import face_materials, forearm_faces
from nvf_fast.data.point_distance import SearchableMesh
from nvf_fast.data.posed_hands import PosedHand
from nvf_fast.data.rasteriser import rasterise
from nvf_fast.data.rig import Rig
from nvf_fast.data.solids import Solid

COVER_SIZE = 64  # px, of the raster that tells what is covered


class HandGeometry(NamedTuple):
    """What stays the same over all hands of a rig: faces of the forearm (R, 3), the closed hand, and how far
    each of its faces reaches on the way through all of their area (F,)."""

    forearm: np.ndarray
    closed: SearchableMesh
    area: np.ndarray

    @classmethod
    def of(cls, rig: Rig) -> HandGeometry:
        first, second, third = rig.vertices[rig.faces].transpose(1, 0, 2)
        area = np.linalg.norm(np.cross(second - first, third - first), axis=1)
        wide = np.arange(len(rig.faces), len(rig.closed_faces))
        return cls(
            forearm_faces(rig.rim, len(rig.vertices)),
            SearchableMesh.build(rig.vertices, rig.closed_faces, wide),
            np.cumsum(area) / area.sum(),
        )

    def distances(self, points: np.ndarray, hand: PosedHand) -> np.ndarray:
        """Measure signed distances (N,) mm of points (N, 3) to the hand, closed at the wrist."""
        return self.closed.distance(points, hand.vertices[: len(self.closed.starts) - 1])


class Scene:
    """Meshes gathered for one picture; the hands' faces come first, so that they find their texture."""

    def __init__(self) -> None:
        self._vertices: list[np.ndarray] = []
        self._faces: list[np.ndarray] = []
        self._places: list[np.ndarray] = []
        self._masks: list[np.ndarray] = []
        self._materials: list[np.ndarray] = []
        self._uv: list[np.ndarray] = []
        self._count = 0

    def add_hands(
        self, rig: Rig, geometry: HandGeometry, hands: Sequence[PosedHand], left: Sequence[bool]
    ) -> None:
        starts = []
        for hand, side in zip(hands, left, strict=True):
            starts.append(self._count)
            faces = rig.faces if not side else rig.faces[:, ::-1]
            places = np.concatenate([rig.vertices, hand.places])
            masks = np.zeros((len(places), 5))
            masks[: len(rig.masks)] = rig.masks
            masks[len(rig.masks) :, 0] = 0.35
            if rig.uv is not None:
                self._uv.append(rig.uv if not side else rig.uv[:, ::-1])
            self._add(hand.seen(side).vertices, faces, places, masks, np.zeros(len(faces), int))
        for hand, side, start in zip(hands, left, starts, strict=True):
            faces = geometry.forearm if not side else geometry.forearm[:, ::-1]
            self._faces.append(faces + start)
            self._materials.append(face_materials(hand.forearm, len(rig.rim)))

    def add_solid(self, solid: Solid, material: int) -> None:
        middle = solid.vertices.mean(0)
        self._add(
            solid.vertices,
            solid.faces,
            solid.vertices - middle,
            np.zeros((len(solid.vertices), 5)),
            np.full(len(solid.faces), material),
        )

    def _add(
        self,
        vertices: np.ndarray,
        faces: np.ndarray,
        places: np.ndarray,
        masks: np.ndarray,
        materials: np.ndarray,
    ) -> None:
        self._vertices.append(vertices)
        self._faces.append(faces + self._count)
        self._places.append(places)
        self._masks.append(masks)
        self._materials.append(materials)
        self._count += len(vertices)

    @cached_property
    def vertices(self) -> np.ndarray:
        return np.concatenate(self._vertices) if self._vertices else np.zeros((0, 3))

    @cached_property
    def faces(self) -> np.ndarray:
        return np.concatenate(self._faces).astype(np.int32) if self._faces else np.zeros((0, 3), np.int32)

    @cached_property
    def places(self) -> np.ndarray:
        return np.concatenate(self._places)

    @cached_property
    def masks(self) -> np.ndarray:
        return np.concatenate(self._masks)

    @cached_property
    def materials(self) -> np.ndarray:
        return np.concatenate(self._materials).astype(np.int64)

    @cached_property
    def vertex_materials(self) -> np.ndarray:
        """(V,) int64: of the last face around each vertex."""
        materials = np.zeros(self._count, np.int64)
        materials[self.faces] = self.materials[:, None]
        return materials

    @cached_property
    def uv(self) -> np.ndarray:
        return np.concatenate(self._uv) if self._uv else np.zeros((0, 3, 2), np.float32)


def covered_joints(
    rig: Rig,
    geometry: HandGeometry,
    hands: Sequence[PosedHand],
    left: Sequence[bool],
    slope: float,
) -> list[float]:
    """Measure how much of each hand lies behind forearms and the other hand.

    Args:
        rig, geometry: of the hands.
        hands: right hands in the camera frame.
        left: which of them are shown mirrored.
        slope: tangent of half the view's angle.

    Returns:
        For each hand the part of its joints inside the view that something else covers, in [0, 1].
    """
    scene = Scene()
    scene.add_hands(rig, geometry, hands, left)
    focal = COVER_SIZE / 2 / slope
    shown, _, _ = rasterise(scene.vertices, scene.faces, focal, COVER_SIZE)
    covered = []
    for row, (hand, side) in enumerate(zip(hands, left, strict=True)):
        joints = hand.seen(side).joints
        at = np.rint(focal * joints[:, :2] / joints[:, 2:] + COVER_SIZE / 2).astype(int)
        at = at[((at >= 0) & (at < COVER_SIZE)).all(1)]
        face = shown[at[:, 1], at[:, 0]]
        covered.append(float(((face >= 0) & (face // len(rig.faces) != row)).mean()) if len(at) else 0.0)
    return covered
