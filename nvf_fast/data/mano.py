"""MANO's hand model, from the user's file: vertices and joints by shape and pose.

Linear blend skinning as published: M. Loper et al., "SMPL: A Skinned Multi-Person Linear Model", SIGGRAPH
Asia 2015, equations 2 to 10; J. Romero et al., "Embodied Hands", SIGGRAPH Asia 2017. The model itself comes
from https://mano.is.tue.mpg.de: `models/MANO_RIGHT.pkl` of `mano_v1_2`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from trimesh.geometry import faces_to_edges

from nvf_fast.conventions import convert_joints
from nvf_fast.data.faults import DatasetError, Faults
from nvf_fast.data.pickles import load_pickle
from nvf_fast.data.rotations import rotation_about
from nvf_fast.data.surfaces import openings
from nvf_fast.data.tables import finite_array, form
from nvf_fast.runtime.files import read_path

PAGE = "https://mano.is.tue.mpg.de"
VERTICES = 778
FINGERTIPS = {
    "freihand": [744, 320, 443, 555, 672],
    "ho3d": [744, 333, 444, 555, 672],
    "complement": [744, 333, 444, 555, 672],
}
"""Vertices of each data set's tips of thumb, index, middle, ring and little finger."""
SHAPES = {
    "v_template": (VERTICES, 3),
    "shapedirs": (VERTICES, 3, 10),
    "posedirs": (VERTICES, 3, 135),
    "J_regressor": (16, VERTICES),
    "weights": (VERTICES, 16),
    "kintree_table": (2, 16),
    "f": (1538, 3),
    "hands_mean": (45,),
}
"""Arrays read from MANO's file and their shapes."""


@dataclass(frozen=True)
class Mano:
    """MANO's right hand, lengths in mm, all float64 but the faces."""

    template: Tensor  # (778, 3) the mean hand
    shape_blend: Tensor  # (778, 3, 10) per unit of shape
    pose_blend: Tensor  # (778, 3, 135) per entry of the 15 joints' rotation matrices less the identity
    joint_regressor: Tensor  # (16, 778)
    weights: Tensor  # (778, 16) of each joint on each vertex
    parents: Tensor  # (16,) int64, each joint's parent; a parent comes before its children
    faces: Tensor  # (1538, 3) int64, open at the wrist
    mean_pose: Tensor  # (45,) axis-angle of the mean hand's 15 joints

    @classmethod
    def load(cls, path: Path | str) -> Mano:
        """Read `MANO_RIGHT.pkl`, without chumpy and without executing anything in the file.

        Raises:
            DatasetError: the file is missing, cannot be read, or does not hold MANO's arrays.
        """
        path = read_path("path", path)
        faults, arrays = Faults("MANO", path, PAGE), {}
        try:
            content = load_pickle(path)
        except (ValueError, OSError) as error:
            faults.add(path, f"cannot be read ({error})", "the pickle MANO_RIGHT.pkl")
            faults.check()
        if not isinstance(content, Mapping):
            faults.add(path, f"holds {type(content).__name__}", "MANO's dictionary")
            faults.check()
        for name, shape in SHAPES.items():
            arrays[name], fault = finite_array(content.get(name), shape)
            if fault:
                faults.add(path, f"{name} is {fault}", form(shape))
        faults.check()
        parents = arrays["kintree_table"][0].astype(np.int64)
        parents[0] = -1  # the file has 2^32 - 1
        if not ((parents[1:] >= 0) & (parents[1:] < np.arange(1, 16))).all():
            faults.add(path, f"kintree_table has parents {parents.tolist()}", "parents before their children")
        if not ((arrays["f"] >= 0) & (arrays["f"] < VERTICES)).all():
            faults.add(path, "f has other vertices", f"0 to {VERTICES - 1}")
        faults.check()
        model = cls(
            template=torch.from_numpy(arrays["v_template"] * 1000),
            shape_blend=torch.from_numpy(arrays["shapedirs"] * 1000),
            pose_blend=torch.from_numpy(arrays["posedirs"] * 1000),
            joint_regressor=torch.from_numpy(arrays["J_regressor"]),
            weights=torch.from_numpy(arrays["weights"]),
            parents=torch.from_numpy(parents),
            faces=torch.from_numpy(arrays["f"].astype(np.int64)),
            mean_pose=torch.from_numpy(arrays["hands_mean"]),
        )
        try:
            _ = model.closed_faces
        except ValueError as error:
            faults.add(path, f"f cannot be closed ({error})", "MANO's faces, open at the wrist")
        if model.is_left:
            faults.add(path, "holds a left hand, by its mean pose", "a right hand")
        faults.check()
        return model

    def __call__(self, pose: Tensor, shape: Tensor, *, flat_hand_mean: bool) -> tuple[Tensor, Tensor]:
        """Pose hands.

        Args:
            pose: (B, 48) axis-angle in radians, the whole hand's rotation about its wrist first.
            shape: (B, 10).
            flat_hand_mean: whether `pose` counts from the flat hand (HO-3D) or from the mean pose (FreiHAND).

        Returns:
            vertices (B, 778, 3) and MANO's joints (B, 16, 3), mm, float64.
        """
        pose, shape = pose.double().reshape(-1, 16, 3), shape.double()
        if not flat_hand_mean:
            pose = pose + torch.cat([torch.zeros(3), self.mean_pose]).reshape(16, 3)
        angle = pose.norm(dim=-1)
        turns = rotation_about(pose / angle.clamp_min(1e-12)[..., None], angle)
        shaped = self.template + torch.einsum("vck,bk->bvc", self.shape_blend, shape)
        rest = self.joint_regressor @ shaped
        bent = (turns[:, 1:] - torch.eye(3)).flatten(1)
        posed = shaped + torch.einsum("vck,bk->bvc", self.pose_blend, bent)

        rotations, joints = [turns[:, 0]], [rest[:, 0]]
        for joint, parent in enumerate(self.parents.tolist()[1:], 1):
            bone = rest[:, joint] - rest[:, parent]
            joints.append(joints[parent] + (rotations[parent] @ bone[..., None])[..., 0])
            rotations.append(rotations[parent] @ turns[:, joint])
        rotation, moved = torch.stack(rotations, 1), torch.stack(joints, 1)
        offset = moved - (rotation @ rest[..., None])[..., 0]
        blended = torch.einsum("vj,bjcd->bvcd", self.weights, rotation)
        vertices = (blended @ posed[..., None])[..., 0] + self.weights @ offset
        return vertices, moved

    def regress(self, vertices: Tensor, fingertips: str) -> Tensor:
        """Joints of posed vertices (B, 778, 3): (B, 21, 3), FreiHAND's order.

        Args:
            vertices: any unit.
            fingertips: data set of the tips' vertices: "freihand", "ho3d" or "complement".
        """
        joints = self.joint_regressor.to(vertices.dtype) @ vertices
        tips = vertices[:, FINGERTIPS[fingertips]]
        return convert_joints(torch.cat([joints, tips], 1), "mano21", inverse=True)

    @property
    def is_left(self) -> bool:
        """Whether the mean pose bends the fingers as a left hand's."""
        poses = torch.zeros(2, 48, dtype=torch.float64)
        poses[1, 3:] = self.mean_pose
        flat, bent = self(poses, torch.zeros(2, 10), flat_hand_mean=True)[1]
        last = [3, 6, 9, 12]  # joints of index, middle, little and ring finger
        return bends_left(flat[4] - flat[0], flat[1] - flat[7], (bent - flat)[last].mean(0))

    @cached_property
    def closed_faces(self) -> Tensor:
        """(1552, 3) int64: the faces and a cap over the wrist, outward, see `close_surface`."""
        return close_surface(self.faces, self.template)


def bends_left(ahead: Tensor, aside: Tensor, bend: Tensor) -> bool:
    """Whether a hand is a left one.

    Args:
        ahead: (3,) from the wrist to the fingers.
        aside: (3,) from the little to the index finger.
        bend: (3,) from the knuckles to the tips of bent fingers, or their movement.
    """
    return bool(torch.linalg.cross(ahead, aside) @ bend > 0)


def open_mano(mano: Mano | Path | str | None, faults: Faults) -> Mano | None:
    """Load the model for a data set, and add its faults to the data set's."""
    if mano is None or isinstance(mano, Mano):
        return mano
    try:
        return Mano.load(mano)
    except DatasetError as error:
        faults.extend(error.faults)
        return None


def place_freihand(mano: Mano, parameters: Tensor, intrinsics: Tensor) -> tuple[Tensor, Tensor]:
    """Hands of FreiHAND's `*_mano.json` in the camera's frame.

    Args:
        mano: the model.
        parameters: (B, 61): 48 of pose, from the mean pose; 10 of shape; where joint 9 is seen, px; and the
            scale: joint 9 is `focal / scale` metres deep.
        intrinsics: (B, 3, 3) px.

    Returns:
        vertices (B, 778, 3) and joints (B, 21, 3), mm, float64, as `*_verts.json` and `*_xyz.json` have them.
    """
    pose, shape, seen, scale = parameters.double().split([48, 10, 2, 1], -1)
    intrinsics = intrinsics.double()
    vertices, _ = mano(pose, shape, flat_hand_mean=False)
    joints = mano.regress(vertices, "freihand")
    focal = (intrinsics[:, 0, 0] + intrinsics[:, 1, 1])[:, None] / 2
    root = 1000 * torch.cat([seen - intrinsics[:, :2, 2], focal], -1) / scale
    offset = (root - joints[:, 9])[:, None]
    return vertices + offset, joints + offset


def close_surface(faces: Tensor, vertices: Tensor) -> Tensor:
    """Close a hand's surface at its one opening, the wrist, by a fan over the opening's own vertices.

    Args:
        faces: (F, 3) int64, all turned the same way.
        vertices: (V, 3) of one such hand, to find the outside.

    Returns:
        (F + boundary - 2, 3) int64, every edge in two faces, outward by the right-hand rule.

    Raises:
        ValueError: the surface is not one sheet with one opening.
    """
    loops = openings(faces.numpy())
    if len(np.unique(faces_to_edges(faces.numpy()), axis=0)) != 3 * len(faces):
        raise ValueError("two faces pass an edge in the same direction: no surface with one outside")
    if len(loops) != 1:
        raise ValueError(f"the surface must be open at the wrist alone, it has {len(loops)} openings")
    loop = torch.tensor(loops[0])
    fan = torch.stack([loop[0].expand(len(loop) - 2), loop[2:], loop[1:-1]], -1)
    closed = torch.cat([faces, fan])
    if openings(closed.numpy()):
        raise ValueError("the opening at the wrist is no simple loop")
    first, second, third = (vertices.double() - vertices.double().mean(0))[closed].unbind(1)
    volume = (torch.linalg.cross(first, second) * third).sum() / 6
    return closed if volume > 0 else closed.flip(-1)
