"""Hands from the user's own rigged GLB file, posed and placed as our own hand is.

The file holds WebXR's generic hand: one skinned mesh in metres whose 25 joints bear the names of the WebXR
Hand Input specification, https://www.w3.org/TR/webxr-hand-input-1/. Container and linear blend skinning are
those of glTF 2.0, https://registry.khronos.org/glTF/specs/2.0/glTF-2.0.html. The skeleton goes by the joints'
names, since files may hold them side by side.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from nvf_fast.data.draws import Draws
from nvf_fast.data.faults import Faults
from nvf_fast.data.glb_file import BONES, CHAINS, JOINTS, METACARPALS, GLBFile, Skeleton, SkinnedMesh
from nvf_fast.data.hand import (
    BONE_SPREAD,
    DEEPEST_OVERLAP,
    POSES,
    SIZE_SPREAD,
    THUMB_ACROSS,
    THUMB_AHEAD,
    HandDistribution,
    deepest_overlap,
    draw_angles,
    draw_places,
    rotation_about,
)
from nvf_fast.data.mano import close_surface, outward
from nvf_fast.data.surfaces import MeshHands

PAGE = "https://www.w3.org/TR/webxr-hand-input-1, docs/synthetic.md"
PARENTS = [0 if joint in (0, 1, *METACARPALS) else joint - 1 for joint in range(25)]
OURS = [joint for joint in range(25) if joint not in METACARPALS]
"""Of the 25 joints our 21, in FreiHAND's order."""

ALIKE_M, ALIKE_WEIGHT = 1e-6, 1e-4  # vertices that were split at a seam agree to these
PALM_SHARE = 0.5  # of the palm's normal in a finger's hinge, beside the sine of the finger's own bend


@dataclass(frozen=True)
class RiggedHand:
    """A right hand with its skeleton, float64, joints in the order of `JOINTS`.

    Hand frame (mm): origin at the wrist, y towards the middle knuckle, x towards the thumb's side, z out of
    the palm.

    Attributes:
        vertices: (V, 3) in the file's own frame and unit.
        faces: (F, 3) int64, closed, outward by the right-hand rule.
        weights: (V, 25) of each joint on each vertex.
        bind: (25, 4, 4) for each joint, from the file's vertices to the hand frame in the file's own pose.
        rest: (25, 3) mm, the joints in that pose.
    """

    vertices: Tensor
    faces: Tensor
    weights: Tensor
    bind: Tensor
    rest: Tensor

    @classmethod
    def load(cls, path: Path | str, *, tips: Literal["skeleton", "skin"] = "skin") -> RiggedHand:
        """Reads a GLB file; vertices that were split at seams become one, an open wrist is closed.

        Args:
            path: the file.
            tips: fingertips lie, as our own hand's, where the last bones, made longer, leave the skin; or
                they are the skeleton's tip joints, which may lie a centimetre deep.

        Raises:
            DatasetFaults: the file is missing, cannot be read or holds no such hand, with all that is wrong.
            ImportError: pygltflib is not installed (`pip install nvf-fast[train]`).
        """
        if tips not in ("skeleton", "skin"):
            raise ValueError(f"tips must be 'skeleton' or 'skin', got {tips!r}")
        path = Path(path)
        faults = Faults("A rigged hand", path, PAGE)
        file = GLBFile.open(path, faults)
        skeleton = mesh = None
        try:
            skeleton, mesh = file.skeleton(), file.mesh()
        except (IndexError, TypeError) as error:
            faults.add(path, f"its parts do not fit together ({error})", "valid glTF 2.0")
        hand = None if skeleton is None or mesh is None else _assemble(skeleton, mesh, path, faults)
        faults.check()
        assert hand is not None  # whatever kept it from being made is a fault
        return hand if tips == "skeleton" else hand.with_tips_on_the_skin()

    @cached_property
    def angles(self) -> dict[str, Tensor]:
        """The file's own pose in the terms of `draw_angles`: (1, 4) and (1,) radians."""
        first, bends = self._bones[1:, 0], self._bends
        abduction, opposition = _thumb_angles(self._bones[0, 0])
        return {
            "mcp": first[None, :, 2].asin(),
            "pip": bends[None, 1:, 0],
            "dip": bends[None, 1:, 1],
            "abduction": torch.atan2(first[:, 0], first[:, 1])[None],
            "thumb_abduction": abduction[None],
            "thumb_opposition": opposition[None],
            "thumb_mcp": bends[:1, 0],
            "thumb_ip": bends[:1, 1],
        }

    def pose(
        self, angles: Mapping[str, Tensor], size: Tensor | None = None, stretch: Tensor | None = None
    ) -> MeshHands:
        """Poses hands by linear blend skinning.

        Args:
            angles: what `draw_angles` draws, (B, 4) and (B,) radians: bends from a straight finger, bends and
                directions of the first bones against the palm; `self.angles` leaves all as in the file.
            size: (B,) factors of the whole hand.
            stretch: (B, 25) factors of the bones that end at each joint.

        Returns:
            B hands in the hand frame, mm, float32.
        """
        return _single(self._skinned(self.turns(angles), size, stretch))

    def draw(self, draws: Draws, distribution: HandDistribution | None = None) -> MeshHands:
        """Draws one hand per stream, as `draw_hands` does: its size and bones, pose and place.

        Args:
            draws: B streams.
            distribution: orientations and distances; `HandDistribution()` when absent.

        Returns:
            B hands in the camera frame, mm, float32. Poses whose fingers run through each other are drawn
            again.
        """
        size = (1 + SIZE_SPREAD * draws.normal()).clamp(0.8, 1.22)
        stretch = 1 + BONE_SPREAD * draws.normal(25).clamp(-2.5, 2.5)
        stretch[:, [0, 1, *METACARPALS]] = 1  # these end no bone
        angles, rows = draw_angles(draws), torch.arange(len(draws))
        tries = torch.zeros_like(rows)
        for attempt in range(POSES):
            tries[rows] = attempt
            turns = self.turns({name: value[rows, attempt] for name, value in angles.items()})
            ends = self.joint_positions(turns, stretch[rows])[:, BONES]
            overlap = deepest_overlap(ends, self.radii.expand(len(rows), -1, 2))
            rows = rows[overlap > DEEPEST_OVERLAP]
            if not len(rows):
                break
        chosen = {name: value[torch.arange(len(draws)), tries] for name, value in angles.items()}
        hands = self._skinned(self.turns(chosen), size, stretch)
        rotation, offset, _ = draw_places(hands.joints, draws, distribution or HandDistribution())
        return _single(hands.rotated(rotation).translated(offset))

    @cached_property
    def _bones(self) -> Tensor:
        """(5, 3, 3) directions of each finger's bones at rest, from base to tip."""
        chains = self.rest[CHAINS]
        return normalize(chains[:, 1:] - chains[:, :-1], dim=-1)

    @cached_property
    def hinges(self) -> Tensor:
        """(5, 3) axes of flexion at rest, across the first bone: across the plane in which a finger is bent,
        and the straighter it is the more across the palm's normal."""
        ahead = torch.tensor(THUMB_AHEAD, dtype=torch.float64)
        across = _thumb_turn(*_thumb_angles(self._bones[0, 0])) @ torch.tensor(
            THUMB_ACROSS, dtype=ahead.dtype
        )
        palmar = torch.cat([across[None], ahead.new_tensor([[0.0, 0.0, 1.0]]).expand(4, 3)])
        first, last = self._bones[:, 0], self._bones[:, 2]
        by_palm = normalize(torch.linalg.cross(first, palmar), dim=-1)
        return normalize(torch.linalg.cross(first, last) + PALM_SHARE * by_palm, dim=-1)

    @cached_property
    def _bends(self) -> Tensor:
        """(5, 2) radians at rest, about the hinge, of each finger's second and third bone against the one
        before."""
        before, after = self._bones[:, :-1], self._bones[:, 1:]
        sine = (torch.linalg.cross(before, after) * self.hinges[:, None]).sum(-1)
        return torch.atan2(sine, (before * after).sum(-1))

    @cached_property
    def radii(self) -> Tensor:
        """(19, 1) mm of the flesh around `BONES`: the median over the vertices that a bone moves most."""
        vertices, mover = self._rest_vertices, self.weights.argmax(1)
        start, end = self.rest[BONES].unbind(1)
        radii = torch.zeros(len(BONES), 1, dtype=torch.float64)
        for bone, joint in enumerate(BONES[:, 0].tolist()):
            offset, axis = vertices[mover == joint] - start[bone], end[bone] - start[bone]
            along = ((offset @ axis) / axis.square().sum()).clamp(0, 1)
            if len(offset):  # a metacarpal may move none
                radii[bone] = (offset - along[:, None] * axis).norm(dim=-1).median()
        return radii

    @property
    def _rest_vertices(self) -> Tensor:
        return _blend(self.weights, self.bind[None, :, :3, :3], self.bind[None, :, :3, 3], self.vertices)[0]

    def turns(self, angles: Mapping[str, Tensor]) -> Tensor:
        """(B, 25, 3, 3) rotations of the joints, against the file's own pose."""
        angles = {name: angles[name].double() for name in self.angles}
        change = {name: angles[name] - rest for name, rest in self.angles.items()}
        turns = torch.eye(3, dtype=torch.float64).repeat(len(change["thumb_ip"]), 25, 1, 1)
        at_rest = _thumb_turn(self.angles["thumb_abduction"], self.angles["thumb_opposition"])
        turn = _thumb_turn(angles["thumb_abduction"], angles["thumb_opposition"]) @ at_rest.mT
        bends = [torch.zeros_like(change["thumb_mcp"]), change["thumb_mcp"], change["thumb_ip"]]
        for finger, chain in enumerate(CHAINS.tolist()):
            if finger > 0:
                turn = _about((0, 0, 1), -change["abduction"][:, finger - 1])
                bends = [change[name][:, finger - 1] for name in ("mcp", "pip", "dip")]
            for joint, bend in zip(chain[:3], bends, strict=True):
                turn = turn @ rotation_about(self.hinges[finger].expand(len(bend), 3), bend)
                turns[:, joint] = turn
            turns[:, chain[-1]] = turn
        return turns

    def joint_positions(self, turns: Tensor, stretch: Tensor) -> Tensor:
        """(B, 25, 3) mm, hand frame."""
        joints = [self.rest[0].expand(len(turns), 3)]
        for joint, parent in enumerate(PARENTS[1:], 1):
            bone = turns[:, parent] @ (self.rest[joint] - self.rest[parent])
            joints.append(joints[parent] + stretch[:, joint, None] * bone)
        return torch.stack(joints, 1)

    def _skinned(self, turns: Tensor, size: Tensor | None, stretch: Tensor | None) -> MeshHands:
        """Hands in the hand frame, float64; flesh is stretched with its bone."""
        size = turns.new_ones(len(turns)) if size is None else size
        stretch = turns.new_ones(len(turns), 25) if stretch is None else stretch
        joints = self.joint_positions(turns, stretch)
        start, end = BONES.unbind(1)
        along = normalize(self.rest[end] - self.rest[start], dim=-1)
        more = (stretch[:, end] - 1)[..., None, None] * (along[:, :, None] * along[:, None])
        linear = turns.clone()
        linear[:, start] = turns[:, start] + turns[:, start] @ more
        offset = joints + (linear @ (self.bind[:, :3, 3] - self.rest)[..., None])[..., 0]
        vertices = _blend(self.weights, linear @ self.bind[:, :3, :3], offset, self.vertices)
        return MeshHands(vertices, self.faces, joints[:, OURS]).scaled(size)

    def with_tips_on_the_skin(self) -> RiggedHand:
        """Move the tip joints along the last bones to where these leave the skin."""
        rest, mover = self.rest.clone(), self.weights.argmax(1)
        for (last, tip), ahead in zip(CHAINS[:, 2:].tolist(), self._bones[:, 2], strict=True):
            finger = self._rest_vertices[(mover == last) | (mover == tip)]
            rest[tip] = rest[last] + ahead * ((finger - rest[last]) @ ahead).amax()
        return replace(self, rest=rest)


def _single(hands: MeshHands) -> MeshHands:
    return replace(hands, vertices=hands.vertices.float(), joints=hands.joints.float())


def _blend(weights: Tensor, linear: Tensor, offset: Tensor, vertices: Tensor) -> Tensor:
    """(B, V, 3): vertices (V, 3) under joints' maps (B, J, 3, 3) and (B, J, 3), mixed by weights (V, J)."""
    blended = (weights @ linear.flatten(2)).unflatten(2, (3, 3))
    return (blended @ vertices[..., None])[..., 0] + weights @ offset


def _about(axis: tuple[int, int, int], angle: Tensor) -> Tensor:
    return rotation_about(torch.tensor(axis, dtype=angle.dtype).expand(*angle.shape, 3), angle)


def _thumb_turn(abduction: Tensor, opposition: Tensor) -> Tensor:
    """(..., 3, 3) what the thumb's first joint does to `THUMB_AHEAD`."""
    return _about((0, 1, 0), -opposition) @ _about((0, 0, 1), abduction)


def _thumb_angles(bone: Tensor) -> tuple[Tensor, Tensor]:
    """Abduction and opposition that bring `THUMB_AHEAD` onto a unit bone (3,), or as near as they can."""
    x, y, z = normalize(torch.tensor(THUMB_AHEAD, dtype=bone.dtype), dim=0)
    level = torch.hypot(x, y)
    turned = (bone[1] / level).clamp(-1, 1).asin()
    opposition = torch.atan2(bone[2], bone[0]) - torch.atan2(z, level * turned.cos())
    return turned - torch.atan2(y, x), opposition


def _assemble(skeleton: Skeleton, mesh: SkinnedMesh, path: Path, faults: Faults) -> RiggedHand | None:
    """The hand; None, with faults told, where skin and skeleton do not make one."""
    order = [skeleton.names.index(name) for name in JOINTS]
    moved = mesh.weights.sum(0)
    others = [name for at, name in enumerate(skeleton.names) if at not in order and moved[at] > 0]
    faults.add_many(
        path, "further joints move vertices", others, "the 25 joints of WebXR's generic hand alone"
    )
    still = [JOINTS[joint] for joint in CHAINS[:, :3].flatten().tolist() if moved[order[joint]] == 0]
    faults.add_many(path, "joints move no vertex", still, "skin on every bone of the fingers")

    weights = mesh.weights[:, order]
    key = np.concatenate([mesh.positions / ALIKE_M, weights / ALIKE_WEIGHT], 1).round()
    _, first, merged = np.unique(key, axis=0, return_index=True, return_inverse=True)
    faces = merged.reshape(-1)[mesh.faces]
    faces = faces[(faces != np.roll(faces, 1, 1)).all(1)]
    used, faces = np.unique(faces, return_inverse=True)
    faces = torch.from_numpy(faces.reshape(-1, 3))
    hand = RiggedHand(
        vertices=torch.from_numpy(mesh.positions[first][used]),
        faces=faces,
        weights=torch.from_numpy(weights[first][used]),
        bind=torch.from_numpy(skeleton.maps[order]),
        rest=torch.from_numpy(skeleton.rest),
    )
    try:
        closed = _closed(faces, hand._rest_vertices)
    except ValueError as error:
        faults.add(
            path, f"the skin cannot be closed ({error})", "one sheet, closed or open at the wrist alone"
        )
        return None
    if len(closed) != 2 * len(used) - 4:
        came = f"{len(closed)} triangles on {len(used)} vertices"
        faults.add(path, f"{came}, several pieces or a hole through the hand", "a skin in one piece")
    return replace(hand, faces=closed)


def _closed(faces: Tensor, vertices: Tensor) -> Tensor:
    """Faces (F, 3), outward, with a cap over their opening; ValueError where they are no such sheet."""
    edges = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    if 2 * len(edges.sort(1).values.unique(dim=0)) == len(edges.unique(dim=0)) == len(edges):
        return outward(faces, vertices)
    return close_surface(faces, vertices)
