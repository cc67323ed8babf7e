"""The definition of the 21 joints, the unit hand, and the conversion from other definitions.

FreiHAND's definition is MANO's: the wrist and the three joints of each finger are the pivots of MANO's
skeleton, the fingertips are points on its skin. The unit hand is MANO's mean shape (all shape coefficients
zero): J. Romero, D. Tzionas and M. J. Black, "Embodied Hands", ACM Transactions on Graphics 36(6), 2017. Its
lengths are measured between the mean joint positions in the flat pose, as published by users of MANO.

Other sources place the same joints elsewhere: MANO's knuckles lie about 10 mm nearer to the fingertips than
the anatomical ones. A `JointConversion` moves each joint by a constant offset in the hand's own frame, so
that the mean bone lengths and the mean shape of the palm over many poses of a source become those of the unit
hand. Quantities that no source shows, such as the depth of a joint in a straight finger, remain unknown.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

Source = Literal["freihand", "anatomical", "openxr", "mediapipe", "ge2019"]

PARENTS = (-1, 0, 1, 2, 3, 0, 5, 6, 7, 0, 9, 10, 11, 0, 13, 14, 15, 0, 17, 18, 19)
"""The parent of each joint, towards the wrist; bone j runs from `PARENTS[j]` to j."""
PALM = (0, 1, 5, 9, 13, 17)
"""The wrist and the first joint of each finger, rigid with the palm in MANO."""
TIPS = (4, 8, 12, 16, 20)

UNIT_SCALE_MM = 31.74
"""Length of bone 9-10 of the unit hand."""

UNIT_BONES_MM = np.array(
    [
        *(38.57, 30.79, 27.09, 34.70),
        *(90.64, 33.00, 22.19, 23.62),
        *(94.73, 31.74, 23.28, 26.47),
        *(86.07, 28.84, 24.79, 24.37),
        *(81.84, 21.11, 18.95, 19.11),
    ]
)
"""(20,) lengths of the unit hand's bones; bone j ends at joint j + 1."""
UNIT_LENGTH_MM = float(UNIT_BONES_MM.sum())

UNIT_PALM_MM = np.array(
    [(0, 0, 0), (25.4, 23.4, 17.2), (23.4, 87.4, 5.7), (0, 94.7, 0), (-23.9, 82.7, 0.8), (-41.3, 70.4, 5.7)]
)
"""(6, 3) joints `PALM` of the unit hand in the palm's frame (`palm_frame`), origin at the wrist."""

ITERATIONS = 15  # the fit converges in five
SPREAD_WEIGHT = 0.3  # of a bone's variation over poses, relative to its mean length
OFFSET_WEIGHT, TIP_WEIGHT = 0.15, 1.0  # penalties; fingertips lie on the skin in every definition


def bone_lengths(joints: np.ndarray) -> np.ndarray:
    """Lengths of the bones of joints (..., 21, 3), as (..., 20); bone j ends at joint j + 1."""
    return np.linalg.norm(joints[..., 1:, :] - joints[..., PARENTS[1:], :], axis=-1)


def scale_to_unit(joints: np.ndarray) -> np.ndarray:
    """Scale hands (..., 21, 3) about the camera's centre to the unit hand's total bone length.

    The image does not change.
    """
    return joints * (UNIT_LENGTH_MM / bone_lengths(joints).sum(-1))[..., None, None]


def palm_frame(joints: np.ndarray) -> np.ndarray:
    """Axes of the palm's frame as rows, (..., 3, 3), from right hands (..., 21, 3).

    x points towards the thumb's side, y from the wrist to joint 9, z out of the palm.
    """
    ahead = _unit(joints[..., 9, :] - joints[..., 0, :])
    out = _unit(np.cross(joints[..., 5, :] - joints[..., 17, :], ahead))
    return np.stack([np.cross(ahead, out), ahead, out], axis=-2)


def to_freihand(joints: np.ndarray, source: Source) -> np.ndarray:
    """Convert joints of another definition to FreiHAND's.

    Mean errors over many poses after conversion, in mm of the unit hand: 0.1 to 0.4 in the lengths of bones
    (4 to 9 before) and in the palm's joints (4 to 8 before). As before conversion, bone lengths vary by 0.6
    (openxr) or 1.6 (anatomical) with pose and person, and by 3 with the noise of teacher and annotators.

    Args:
        joints: (..., 21, 3) right hands in any unit and frame; mirror left hands first.
        source: "freihand" (no change), "anatomical" (the built-in hand), "openxr"
            (rigged hands with OpenXR's joints, fingertips on the skin), "mediapipe" (MediaPipe Hands),
            "ge2019" (annotators of the photographs of Ge et al., CVPR 2019).

    Returns:
        (..., 21, 3), same unit, frame and dtype; the size changes by a few per cent at most.
    """
    if source == "freihand":
        return joints.copy()
    return CONVERSIONS[source](joints)


@dataclass(frozen=True)
class JointConversion:
    """Constant offsets in the hand's own frame, in mm of a hand of the unit hand's total bone length.

    Attributes:
        along: (21,) of each joint along its finger, half in the direction of the bone that ends there and
            half in that of the bone that starts there, so that at a bent knuckle the difference between the
            two pivots is divided between palm and finger.
        palm: (6, 3) of the joints `PALM`, in the palm's frame.
    """

    along: np.ndarray
    palm: np.ndarray

    def __call__(self, joints: np.ndarray) -> np.ndarray:
        """Convert right hands (..., 21, 3) in any unit."""
        if joints.shape[-2:] != (21, 3):
            raise ValueError(f"joints must be (..., 21, 3), got {joints.shape}")
        precise = joints.astype(np.float64)
        size = bone_lengths(precise).sum(-1)[..., None, None] / UNIT_LENGTH_MM
        ends = np.zeros_like(precise)
        ends[..., 1:, :] = _unit(precise[..., 1:, :] - precise[..., PARENTS[1:], :])
        starts = np.concatenate([ends[..., 1:, :], ends[..., -1:, :]], axis=-2)
        starts[..., TIPS, :] = ends[..., TIPS, :]
        moved = precise + size * self.along[:, None] * 0.5 * (ends + starts)
        moved[..., PALM, :] += size * (self.palm @ palm_frame(precise))
        return moved.astype(joints.dtype)

    @classmethod
    def fit(cls, joints: np.ndarray) -> JointConversion:
        """Measure the offsets of a source over many poses.

        Minimise the squared differences of the mean bone lengths and the mean palm from the unit hand's, each
        hand scaled to the unit hand's total bone length, with a penalty on the offsets (Gauss-Newton).

        Args:
            joints: (B, 21, 3) right hands of the source, in any unit and frame.
        """
        joints = joints.astype(np.float64)
        penalty = np.full(33, OFFSET_WEIGHT)
        penalty[[tip - 2 for tip in TIPS]] = TIP_WEIGHT

        def residuals(offsets: np.ndarray) -> np.ndarray:
            converted = scale_to_unit(cls._unpack(offsets)(joints))
            bones = bone_lengths(converted) - UNIT_BONES_MM
            palm = _aligned(converted[:, PALM], UNIT_PALM_MM) - UNIT_PALM_MM
            mean = bones.mean(0)
            spread = SPREAD_WEIGHT * (bones - mean) / np.sqrt(len(bones))
            return np.concatenate([mean, palm.mean(0).ravel(), spread.ravel(), penalty * offsets])

        offsets = np.zeros(33)
        for _ in range(ITERATIONS):
            now = residuals(offsets)
            slopes = np.stack([(residuals(offsets + step) - now) / 1e-3 for step in 1e-3 * np.eye(33)], 1)
            offsets = offsets - np.linalg.lstsq(slopes, now, rcond=None)[0]
        return cls._unpack(offsets)

    @classmethod
    def _unpack(cls, offsets: np.ndarray) -> JointConversion:
        """Read the 33 unknowns: joints 2 to 20 along their fingers, wrist and thumb's first joint in the
        palm's frame, the knuckles across it (x and z)."""
        palm = np.zeros((6, 3))
        palm[:2] = offsets[19:25].reshape(2, 3)
        palm[2:, [0, 2]] = offsets[25:].reshape(2, 4).T
        return cls(np.concatenate([np.zeros(2), offsets[:19]]), palm)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9)


def _aligned(points: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Points (B, N, 3) turned and moved onto target (N, 3), without scaling (Kabsch)."""
    centre, target_centre = points.mean(1, keepdims=True), target.mean(0)
    left, _, right = np.linalg.svd((points - centre).transpose(0, 2, 1) @ (target - target_centre))
    left[:, :, 2] *= np.sign(np.linalg.det(left @ right))[:, None]
    return (points - centre) @ (left @ right) + target_centre


# `JointConversion.fit` on 1 000 random capsule hands; on 500 poses of the CC0 hand of Godot XR Tools; on
# every third of 3 127 labelled photographs whose palm or back faces the camera within 26 degrees, where the
# image determines the palm's shape; on six photographs of Ge et al.
_OFFSETS = Path(__file__).parent / "assets/joint_offsets.json"
CONVERSIONS = {
    source: JointConversion(np.array(offsets["along"]), np.array(offsets["palm"]))
    for source, offsets in json.loads(_OFFSETS.read_bytes()).items()
}
