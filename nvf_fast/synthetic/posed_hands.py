"""Hands in the hand frame: one person's shape, one pose, and the forearm behind the wrist."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from nvf_fast.data.draws import Draws, Stream
from nvf_fast.joint_definitions import UNIT_SCALE_MM, to_freihand
from nvf_fast.synthetic.forearm import Forearm, draw_forearm, forearm_vertices
from nvf_fast.synthetic.hand_skeleton import METACARPALS
from nvf_fast.synthetic.poses import draw_poses
from nvf_fast.synthetic.rig import Rig

BONE_SPREAD = 0.04  # of each bone on its own, beside the size of the whole hand


@dataclass(frozen=True)
class HandShapes:
    """Shapes and poses of B hands, float64, the arguments of `Rig.posed`."""

    angles: dict[str, Tensor]  # (B, 4) and (B,) radians of the joints
    stretch: Tensor  # (B, 25), factors of the bones
    girth: Tensor  # (B, 6), thickness factors
    breadth: Tensor  # (B,), factors across the palm
    tries: Tensor  # (B,) int64, index of each hand's accepted pose


@dataclass(frozen=True)
class PosedHand:
    """One right hand with its forearm, mm of the unit hand, in the hand frame or the camera's."""

    vertices: np.ndarray  # (V + R, 3), those of the forearm last
    joints: np.ndarray  # (21, 3) in FreiHAND's definition
    forearm: Forearm  # its shape
    palm: np.ndarray  # (3,) unit, out of the palm
    places: np.ndarray  # (R, 3), where the forearm's vertices lie in the hand frame

    def turned(self, rotation: np.ndarray) -> PosedHand:
        """Move the joints' mean to the origin, then rotate."""
        return self.moved(-self.joints.mean(0)).placed(rotation, np.zeros(3))

    def placed(self, rotation: np.ndarray, offset: np.ndarray) -> PosedHand:
        """Rotate about the origin, then translate."""
        return replace(
            self,
            vertices=self.vertices @ rotation.T + offset,
            joints=self.joints @ rotation.T + offset,
            palm=rotation @ self.palm,
        )

    def moved(self, offset: np.ndarray) -> PosedHand:
        return replace(self, vertices=self.vertices + offset, joints=self.joints + offset)

    def seen(self, left: bool) -> PosedHand:
        """This hand, or its mirror image in the camera's vertical plane through it."""
        if not left:
            return self
        flip, shift = np.array([-1.0, 1.0, 1.0]), np.array([2 * self.joints[:, 0].mean(), 0.0, 0.0])
        vertices, joints = self.vertices * flip + shift, self.joints * flip + shift
        return replace(self, vertices=vertices, joints=joints, palm=self.palm * flip)


def draw_shapes(rig: Rig, draws: Draws) -> HandShapes:
    """Draw bone lengths, thickness and a pose for each stream, and redraw poses with overlapping fingers."""
    stretch = 1 + BONE_SPREAD * draws.normal(25).clamp(-2.5, 2.5)
    families = [0] + [0] * 4 + [1] * 5 + [2] * 5 + [3] * 5 + [4] * 5
    stretch += (0.025 * draws.normal(5).clamp(-2.5, 2.5))[:, families]
    stretch[:, [0, 1, *METACARPALS]] = 1  # these end no bone
    thickness = 1 + 0.07 * draws.normal(1).clamp(-2.2, 2.2)
    girth = thickness * (1 + 0.035 * draws.normal(6).clamp(-2.2, 2.2))
    breadth = 1 + 0.05 * draws.normal().clamp(-2.2, 2.2)
    angles, tries = rig.skeleton.first_free_pose(draw_poses(draws), stretch)
    return HandShapes(angles, stretch, girth, breadth, tries)


def posed_vertices(rig: Rig, shapes: HandShapes) -> tuple[np.ndarray, np.ndarray]:
    """Pose B hands: vertices (B, V, 3), and joints (B, 21, 3) in FreiHAND's definition, mm, hand frame."""
    vertices, joints = rig.posed(shapes.angles, shapes.stretch, shapes.girth, shapes.breadth)
    return vertices, to_freihand(joints, rig.definition)


def draw_unit_hands(rig: Rig, draws: Draws, sleeves: float) -> list[PosedHand]:
    """Draw a unit hand in the hand frame by each stream, with a sleeve by the chance `sleeves`."""
    vertices, joints = posed_vertices(rig, draw_shapes(rig, draws))
    scale = (UNIT_SCALE_MM / np.linalg.norm(joints[:, 10] - joints[:, 9], axis=1))[:, None, None]
    hands = zip(scale * vertices, scale * joints, draws.below(2**40).tolist(), strict=True)
    return [with_forearm(rig, skin, bones, Stream(key, "forearm", 0), sleeves) for skin, bones, key in hands]


def with_forearm(
    rig: Rig, vertices: np.ndarray, joints: np.ndarray, stream: Stream, sleeves: float
) -> PosedHand:
    """Set a forearm behind a hand (V, 3) in the hand frame."""
    forearm = draw_forearm(stream, sleeves)
    behind = forearm_vertices(vertices[rig.rim], forearm)
    palm = np.array([0.0, 0.0, 1.0])
    return PosedHand(np.concatenate([vertices, behind]), joints, forearm, palm, behind)
