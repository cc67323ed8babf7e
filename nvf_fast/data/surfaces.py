"""Surfaces of hands as meshes: signed distance, surface points, first hits of rays, openings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from trimesh.geometry import faces_to_edges

from nvf_fast import ops


@dataclass(frozen=True)
class MeshHands:
    """A batch of B right hands in one frame, as closed triangle meshes of one topology."""

    vertices: Tensor  # (B, V, 3) float32 mm
    faces: Tensor  # (F, 3) int64, outward by the right-hand rule, every edge in two faces
    joints: Tensor  # (B, 21, 3) float32 mm, FreiHAND's order

    def __len__(self) -> int:
        return len(self.vertices)

    def __getitem__(self, index: slice | Tensor) -> MeshHands:
        return replace(self, vertices=self.vertices[index], joints=self.joints[index])

    @property
    def hand_scale(self) -> Tensor:
        """(B,) mm: length of the bone between joints 9 and 10."""
        return (self.joints[:, 10] - self.joints[:, 9]).norm(dim=-1)

    def to(self, device: torch.device | str) -> MeshHands:
        return MeshHands(self.vertices.to(device), self.faces.to(device), self.joints.to(device))

    def rotated(self, rotation: Tensor) -> MeshHands:
        """Rotate about the frame's origin by rotation (B, 3, 3)."""
        turn = rotation.transpose(1, 2)
        return replace(self, vertices=self.vertices @ turn, joints=self.joints @ turn)

    def scaled(self, factor: Tensor) -> MeshHands:
        """Scale hand and distance together by factor (B,)."""
        factor = factor[:, None, None]
        return replace(self, vertices=self.vertices * factor, joints=self.joints * factor)

    def translated(self, offset: Tensor) -> MeshHands:
        """Move by offset (B, 3) mm."""
        offset = offset[:, None]
        return replace(self, vertices=self.vertices + offset, joints=self.joints + offset)

    def signed_distance(self, points: Tensor) -> Tensor:
        """(B, N) mm of points (B, N, 3), negative inside."""
        return ops.mesh_distance(self.vertices, self.faces, points)

    def first_hit(self, origins: Tensor, directions: Tensor) -> Tensor:
        """(B, R) multiples of directions (B, R, 3) from origins (B, R, 3); +inf where a ray misses."""
        return ops.ray_mesh(self.vertices, self.faces, origins, directions)[0]

    def sample_surface(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """(B, count, 3) mm: triangles drawn by area, and a uniform point in each."""
        corners = self.vertices[:, self.faces]
        edges = corners[:, :, 1:] - corners[:, :, :1]
        area = torch.linalg.cross(edges[:, :, 0], edges[:, :, 1]).norm(dim=-1)
        face = torch.multinomial(area, count, replacement=True, generator=generator)
        shape = (len(self), count, 2)
        weights = torch.rand(shape, generator=generator, device=area.device, dtype=area.dtype)
        # Folded into the triangle.
        weights = torch.where(weights.sum(-1, keepdim=True) > 1, 1 - weights, weights)
        index = face[..., None, None].expand(-1, -1, 2, 3)
        start = corners[:, :, 0].gather(1, face[..., None].expand(-1, -1, 3))
        return start + (weights[..., None] * edges.gather(1, index)).sum(2)

    @classmethod
    def stack(cls, hands: Sequence[MeshHands]) -> MeshHands:
        """Concatenate batches of equal faces.

        Raises:
            ValueError: the faces differ.
        """
        faces = hands[0].faces
        if any(hand.faces is not faces and not torch.equal(hand.faces, faces) for hand in hands):
            raise ValueError("meshes of one batch must have the same faces")
        vertices, joints = (torch.cat([getattr(h, name) for h in hands]) for name in ("vertices", "joints"))
        return cls(vertices, faces, joints)


def openings(faces: np.ndarray) -> list[list[int]]:
    """Vertices around each opening of a surface of faces (F, 3), in the order in which faces pass them."""
    edges = {(int(start), int(end)) for start, end in faces_to_edges(faces)}
    after = {start: end for start, end in edges if (end, start) not in edges}
    loops: list[list[int]] = []
    while after:
        loops.append([min(after)])
        while (vertex := after.pop(loops[-1][-1], None)) is not None and vertex != loops[-1][0]:
            loops[-1].append(vertex)
    return loops
