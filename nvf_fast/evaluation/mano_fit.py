"""MANO's hand fitted to joints, for its mesh: pose, shape and place by damped least squares.

Joints do not show a finger's twist, and hardly a hand's thickness: weak priors keep both near MANO's mean.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from trimesh.transformations import quaternion_from_matrix, superimposition_matrix

from nvf_fast.conventions import convert_joints
from nvf_fast.data.mano import FINGERTIPS, Mano
from nvf_fast.inputs import METRES

POSE_MM = 4.0  # residual of a joint bent one radian from the mean pose
SHAPE_MM = 2.0  # residual of a shape coefficient of one standard deviation
STEPS = 15  # the fit converges in eight
STEP = 1e-6  # of parameters, for differences
BATCH = 32  # hands at once, which bounds memory
PALM = [0, 5, 9, 13, 17]  # joints that the first rotation aligns
_POSE, _SHAPE = slice(0, 48), slice(48, 58)


@dataclass(frozen=True)
class ManoFit:
    """MANO's right hand fitted to B hands; left hands are fitted as their mirror images."""

    vertices: np.ndarray  # (B, 778, 3) float64 mm, in the frame of the joints, of left hands mirrored back
    joints: np.ndarray  # (B, 21, 3) float64 mm, of these vertices
    # (B, 48) float64 rad, axis-angle from MANO's mean pose, the whole hand's first, as in FreiHAND
    pose: np.ndarray
    shape: np.ndarray  # (B, 10) float64
    translation: np.ndarray  # (B, 3) float64 mm, added to the posed vertices
    error_mm: np.ndarray  # (B,) float64, mean distance of `joints` from the given ones


def fit_mano(
    mano: Mano,
    joints_mm: np.ndarray,
    fingertips: str = "freihand",
    side: Literal["right", "left"] = "right",
) -> ManoFit:
    """Fit MANO's pose, shape and place to joints.

    Args:
        mano: the user's model, `Mano.load("MANO_RIGHT.pkl")`.
        joints_mm: (B, 21, 3) mm, in the library's order.
        fingertips: data set whose definition of the fingertips holds: "freihand", "ho3d" or "complement".
        side: of the hands.

    Raises:
        ValueError: the joints have another shape, are not finite, or not in mm.
    """
    joints = np.asarray(joints_mm, np.float64)
    if joints.ndim != 3 or joints.shape[1:] != (21, 3) or not np.isfinite(joints).all():
        raise ValueError(f"joints_mm must be (B, 21, 3) finite mm, got shape {joints.shape}")
    if len(joints) and np.ptp(joints, 1).max() <= METRES:
        raise ValueError("joints_mm must be in mm, no hand is that small: multiply metres by 1000")
    mirror = np.array([-1.0 if side == "left" else 1.0, 1.0, 1.0])
    targets = torch.from_numpy(joints * mirror)
    small, tips = _joints_only(mano, FINGERTIPS[fingertips])
    with torch.no_grad():
        parameters = torch.cat([_fitted(small, tips, part) for part in targets.split(BATCH)])
        pose, shape, translation = parameters.split([48, 10, 3], -1)
        vertices = mano(pose, shape, flat_hand_mean=False)[0] + translation[:, None]
        found = mano.regress(vertices, fingertips)
    return ManoFit(
        vertices=vertices.numpy() * mirror,
        joints=found.numpy() * mirror,
        pose=pose.numpy(),
        shape=shape.numpy(),
        translation=translation.numpy(),
        error_mm=(found - targets).norm(dim=-1).mean(1).numpy(),
    )


def fitted_vertices(mano: Mano, joints_mm: np.ndarray, fingertips: str) -> Iterator[np.ndarray]:
    """The vertices (778, 3) mm of each of N right hands, fitted as they are consumed."""
    for start in range(0, len(joints_mm), BATCH):
        yield from fit_mano(mano, joints_mm[start : start + BATCH], fingertips).vertices


def _joints_only(mano: Mano, tips: list[int]) -> tuple[Mano, list[int]]:
    """A model of the vertices that joints depend on, and the places of the fingertips among them."""
    used = (mano.joint_regressor != 0).any(0)
    used[tips] = True
    rows = used.nonzero()[:, 0]
    parts = {name: getattr(mano, name)[rows] for name in ("template", "shape_blend", "pose_blend", "weights")}
    places = torch.searchsorted(rows, torch.tensor(tips)).tolist()
    return replace(mano, joint_regressor=mano.joint_regressor[:, rows], **parts), places


def _joints(mano: Mano, tips: list[int], parameters: Tensor) -> Tensor:
    """(B, 21, 3) mm for parameters (B, 61): pose, shape and translation."""
    pose, shape, translation = parameters.split([48, 10, 3], -1)
    vertices, _ = mano(pose, shape, flat_hand_mean=False)
    joints = torch.cat([mano.joint_regressor @ vertices, vertices[:, tips]], 1)
    return convert_joints(joints, "mano21", inverse=True) + translation[:, None]


def _fitted(mano: Mano, tips: list[int], targets: Tensor) -> Tensor:
    """Parameters (B, 61) by Levenberg and Marquardt's method, from the mean hand aligned by the palm."""
    count = len(targets)
    priors = torch.zeros(61, dtype=torch.float64)
    priors[_POSE], priors[:3], priors[_SHAPE] = POSE_MM, 0.0, SHAPE_MM
    parameters = _start(mano, tips, targets)

    def residuals(at: Tensor, goals: Tensor) -> Tensor:
        return torch.cat([(_joints(mano, tips, at) - goals).flatten(1), at * priors], 1)

    damping = torch.full((count, 1), 1e-2, dtype=torch.float64)
    now = residuals(parameters, targets)
    shifts = STEP * torch.eye(61, dtype=torch.float64)
    for _ in range(STEPS):
        moved = (parameters[:, None] + shifts).flatten(0, 1)
        slopes = residuals(moved, targets.repeat_interleave(61, 0)).view(count, 61, -1)
        slopes = (slopes - now[:, None]) / STEP
        normal = slopes @ slopes.mT
        diagonal = normal.diagonal(dim1=1, dim2=2)
        lifted = normal + torch.diag_embed(damping * (diagonal + 1e-3))
        candidate = parameters - torch.linalg.solve(lifted, slopes @ now[..., None])[..., 0]
        ahead = residuals(candidate, targets)
        better = (ahead.square().sum(1) < now.square().sum(1))[:, None]
        parameters, now = torch.where(better, candidate, parameters), torch.where(better, ahead, now)
        damping = torch.where(better, damping / 5, damping * 5)
    return parameters


def _start(mano: Mano, tips: list[int], targets: Tensor) -> Tensor:
    """Parameters (B, 61) of the mean hand, its palm on the targets' by rotation and translation."""
    mean = _joints(mano, tips, torch.zeros(1, 61, dtype=torch.float64))[0]
    start = torch.zeros(len(targets), 61, dtype=torch.float64)
    from_, to = (points[..., PALM, :] for points in (mean, targets))
    for row, palm in enumerate(to.numpy()):
        w, *vector = quaternion_from_matrix(superimposition_matrix(from_.numpy().T, palm.T))
        length = max(float(np.linalg.norm(vector)), 1e-12)
        start[row, :3] = torch.tensor(vector) * (2 * np.arctan2(length, w) / length)
    turned = _joints(mano, tips, start)
    start[:, 58:] = (targets - turned).mean(1)
    return start
