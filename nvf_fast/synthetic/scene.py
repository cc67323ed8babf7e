"""Meshes gathered for one image: hands with their forearms, and solids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from nvf_fast.synthetic.forearm import face_materials, forearm_faces
from nvf_fast.synthetic.posed_hands import PosedHand
from nvf_fast.synthetic.rasteriser import rasterise
from nvf_fast.synthetic.rig import Rig
from nvf_fast.synthetic.skin import PALM
from nvf_fast.synthetic.solids import Solid

COVER_SIZE = 64  # px, of the raster of covered joints
ARM_PALM = 0.35  # weight of the palm on forearms


class Scene(NamedTuple):
    """Meshes gathered for one image; the hands' faces come first, as in their texture coordinates."""

    vertices: np.ndarray  # (V, 3) mm, camera frame
    faces: np.ndarray  # (F, 3) int32, outward
    places: np.ndarray  # (V, 3) mm, where the vertices lie in the noise
    masks: np.ndarray  # (H, 5), from `skin_masks`, of the hands' vertices, which come first
    materials: np.ndarray  # (F,) int64 of the faces
    vertex_materials: np.ndarray  # (V,) int64, of the last face around each vertex of a hand
    uv: np.ndarray  # (T, 3, 2) float32, texture coordinates of the first T faces

    @classmethod
    def of(
        cls,
        rig: Rig,
        hands: Sequence[PosedHand],
        left: Sequence[bool],
        objects: Sequence[tuple[Solid, int]] = (),
    ) -> Scene:
        """Gather hands and solids.

        Args:
            rig: of the hands.
            hands: right hands in the camera frame.
            left: which of them are shown mirrored.
            objects: solids with their materials.
        """
        solids = [solid for solid, _ in objects]
        forearm = forearm_faces(rig.rim, len(rig.vertices))
        on_forearm = np.zeros((forearm.max() + 1 - len(rig.vertices), rig.masks.shape[1]))
        on_forearm[:, PALM] = ARM_PALM
        meshes = [hand.seen(side).vertices for hand, side in zip(hands, left, strict=True)]
        meshes += [solid.vertices for solid in solids]
        starts = np.cumsum([0, *map(len, meshes)], dtype=np.int32)
        turns = [slice(None, None, -1 if side else 1) for side in left]  # mirrored faces are turned over
        faces = [rig.faces[:, turn] for turn in turns] + [forearm[:, turn] for turn in turns]
        faces += [solid.faces for solid in solids]
        offsets = [*starts[: len(hands)], *starts[:-1]]
        places = [place for hand in hands for place in (rig.vertices, hand.places)]
        arms = [face_materials(hand.forearm, len(rig.rim)) for hand in hands]
        of_vertices = [np.zeros(len(hand.vertices), np.int64) for hand in hands]
        for of_hand, turn, arm in zip(of_vertices, turns, arms, strict=True):
            of_hand[forearm[:, turn]] = arm[:, None]
        of_vertices += [np.full(len(solid.vertices), kind) for solid, kind in objects]
        of_faces = [np.zeros(len(rig.faces), np.int64)] * len(hands) + arms
        return cls(
            vertices=_joined(meshes, 3),
            faces=_joined([f + first for f, first in zip(faces, offsets, strict=True)], 3, kind=np.int32),
            places=_joined(places + [solid.vertices - solid.vertices.mean(0) for solid in solids], 3),
            masks=_joined([rig.masks, on_forearm] * len(hands), 5),
            materials=_joined(of_faces + [np.full(len(s.faces), kind) for s, kind in objects], kind=np.int64),
            vertex_materials=_joined(of_vertices, kind=np.int64),
            uv=_joined([rig.uv[:, turn] for turn in turns if rig.uv is not None], 3, 2, kind=np.float32),
        )


def _joined(parts: Sequence[np.ndarray], *shape: int, kind: type = np.float64) -> np.ndarray:
    """Concatenate parts (N, *shape), possibly none."""
    return np.concatenate([np.empty((0, *shape), kind), *parts])


def covered_joints(rig: Rig, hands: Sequence[PosedHand], left: Sequence[bool], slope: float) -> list[float]:
    """Measure the occlusion of each hand by forearms and the other hand.

    Args:
        rig, hands, left: as in `Scene.of`.
        slope: tangent of half the view's angle.

    Returns:
        Ratio of each hand's joints inside the view that are occluded, in [0, 1].
    """
    scene = Scene.of(rig, hands, left)
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
