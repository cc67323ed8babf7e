"""Meshes gathered for one picture: hands with their forearms, and solids."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from nvf_fast.synthetic.forearm import face_materials, forearm_faces
from nvf_fast.synthetic.point_distance import SearchableMesh
from nvf_fast.synthetic.posed_hands import PosedHand
from nvf_fast.synthetic.rasteriser import rasterise
from nvf_fast.synthetic.rig import Rig
from nvf_fast.synthetic.skin import PALM
from nvf_fast.synthetic.solids import Solid

COVER_SIZE = 64  # px, of the raster that tells what is covered


class HandGeometry(NamedTuple):
    """What stays the same over all hands of a rig.

    Attributes:
        forearm: (R, 3) int32, its faces.
        masks: (V + R', 5), see `skin_masks`, of the hand's vertices and the forearm's.
        closed: the hand, closed at the wrist.
        area: (F,) how far each of its faces reaches on the way through all of their area.
    """

    forearm: np.ndarray
    masks: np.ndarray
    closed: SearchableMesh
    area: np.ndarray

    @classmethod
    def of(cls, rig: Rig) -> HandGeometry:
        first, second, third = rig.vertices[rig.faces].transpose(1, 0, 2)
        area = np.linalg.norm(np.cross(second - first, third - first), axis=1)
        wide = np.arange(len(rig.faces), len(rig.closed_faces))
        forearm = forearm_faces(rig.rim, len(rig.vertices))
        masks = np.zeros((forearm.max() + 1, 5))
        masks[:, PALM] = 0.35
        masks[: len(rig.vertices)] = rig.masks
        return cls(
            forearm,
            masks,
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
        self._vertex_materials: list[np.ndarray] = []
        self._uv: list[np.ndarray] = []
        self._count = 0

    def add_hands(
        self, rig: Rig, geometry: HandGeometry, hands: Sequence[PosedHand], left: Sequence[bool]
    ) -> None:
        start = self._count
        for hand, side in zip(hands, left, strict=True):
            self._add(hand.seen(side).vertices, rig.faces if not side else rig.faces[:, ::-1])
            self._materials.append(np.zeros(len(rig.faces), np.int64))
            self._places += [rig.vertices, hand.places]
            self._masks.append(geometry.masks)
            if rig.uv is not None:
                self._uv.append(rig.uv if not side else rig.uv[:, ::-1])
        for hand, side in zip(hands, left, strict=True):
            faces = geometry.forearm if not side else geometry.forearm[:, ::-1]
            materials = face_materials(hand.forearm, len(rig.rim))
            self._faces.append(faces + np.int32(start))
            self._materials.append(materials)
            of_vertices = np.zeros(len(hand.vertices), np.int64)
            of_vertices[faces] = materials[:, None]  # of the last face around each
            self._vertex_materials.append(of_vertices)
            start += len(hand.vertices)

    def add_solid(self, solid: Solid, material: int) -> None:
        self._add(solid.vertices, solid.faces)
        self._places.append(solid.vertices - solid.vertices.mean(0))
        self._materials.append(np.full(len(solid.faces), material))
        self._vertex_materials.append(np.full(len(solid.vertices), material))

    def _add(self, vertices: np.ndarray, faces: np.ndarray) -> None:
        self._vertices.append(vertices)
        self._faces.append(faces + np.int32(self._count))
        self._count += len(vertices)

    @cached_property
    def vertices(self) -> np.ndarray:
        return np.concatenate(self._vertices) if self._vertices else np.zeros((0, 3))

    @cached_property
    def faces(self) -> np.ndarray:
        return np.concatenate(self._faces) if self._faces else np.zeros((0, 3), np.int32)

    @cached_property
    def places(self) -> np.ndarray:
        return np.concatenate(self._places)

    @cached_property
    def masks(self) -> np.ndarray:
        """(H, 5), of the hands' vertices, which come first."""
        return np.concatenate(self._masks) if self._masks else np.zeros((0, 5))

    @cached_property
    def materials(self) -> np.ndarray:
        return np.concatenate(self._materials)

    @cached_property
    def vertex_materials(self) -> np.ndarray:
        return np.concatenate(self._vertex_materials)

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
