"""A rigged hand as plain arrays, ready to be shaped, posed and rendered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import trimesh
from torch import Tensor
from torch.nn.functional import normalize
from trimesh.geometry import faces_to_edges

from nvf_fast.data.faults import DatasetError, counted
from nvf_fast.data.surfaces import openings
from nvf_fast.runtime.files import read_path
from nvf_fast.synthetic.glb_file import GLBFile, require
from nvf_fast.synthetic.hand_skeleton import BONES, CHAINS, JOINTS, METACARPALS, OURS, HandSkeleton
from nvf_fast.synthetic.hand_template import build_template
from nvf_fast.synthetic.point_distance import SearchableMesh
from nvf_fast.synthetic.rasteriser import mesh_normals
from nvf_fast.synthetic.skin import skin_masks
from nvf_fast.synthetic.skinning import blend_maps, blend_motions

PAGE = "https://www.w3.org/TR/webxr-hand-input-1, docs/synthetic.md"
INFLUENCES = 4  # joints of each vertex
SURFACE_SPACING_MM = 5.0  # of the built-in hand's coarser mesh
SMALL_MESH = 8000  # faces; a coarser mesh is subdivided once
ALIKE_M = 1e-6  # vertices that were split at a seam agree to this
LID_MM, LID_COSINE = 20.0, 0.8  # of a closed wrist: how deep it lies, and how sharp the edge around it is


Definition = Literal["anatomical", "openxr"]


@dataclass(frozen=True)
class Rig:
    """A right hand in the hand frame: mm, origin at the wrist, x to the thumb, y to the fingers, z out of the
    palm.
    """

    skeleton: HandSkeleton  # its joints and their motions
    vertices: np.ndarray  # (V, 3) float64, at rest
    faces: np.ndarray  # (F, 3) int32, outward, open at the wrist
    cap: np.ndarray  # (C, 3) int32, closes the wrist
    rim: np.ndarray  # (L,) int32, the vertices around the wrist, in order
    indices: np.ndarray  # (V, 4) int32, the joints that move each vertex, the strongest first
    weights: np.ndarray  # (V, 4) float64, with sums of one
    uv: np.ndarray | None  # (F, 3, 2) float32, texture coordinates of the corners; None without a texture
    masks: np.ndarray  # (V, 5) float32 in [0, 1]: palm, crease, knuckle, nail, tip, from `skin_masks`
    definition: Definition  # of its joints, as in `to_freihand`

    @property
    def closed_faces(self) -> np.ndarray:
        """(F + C, 3) int32."""
        return np.concatenate([self.faces, self.cap])

    @cached_property
    def cumulative_area(self) -> np.ndarray:
        """(F,) of the faces at rest, up to 1."""
        first, second, third = self.vertices[self.faces].transpose(1, 0, 2)
        area = np.linalg.norm(np.cross(second - first, third - first), axis=1)
        return np.cumsum(area) / area.sum()

    @cached_property
    def closed_mesh(self) -> SearchableMesh:
        """The hand, closed at the wrist, for distances in any pose."""
        wide = np.arange(len(self.faces), len(self.closed_faces))
        return SearchableMesh.build(self.vertices, self.closed_faces, wide)

    def distances(self, points: np.ndarray, vertices: np.ndarray) -> np.ndarray:
        """Measure signed distances (N,) mm of points (N, 3) to the closed hand.

        Vertices of a forearm may follow those of the posed hand.
        """
        return self.closed_mesh.distance(points, vertices[: len(self.vertices)])

    def posed(
        self, angles: Mapping[str, Tensor], stretch: Tensor, girth: Tensor, breadth: Tensor
    ) -> tuple[np.ndarray, np.ndarray]:
        """Shape and pose hands.

        Args:
            angles: (B, 4) and (B,) radians.
            stretch: (B, 25), factors of the bones that end at each joint.
            girth: (B, 6), thickness factors of palm, thumb, index, middle, ring and little finger.
            breadth: (B,), factors across the palm.

        Returns:
            Vertices (B, V, 3) and joints (B, 21, 3), float64 mm, hand frame.
        """
        skeleton = self.skeleton
        turns = skeleton.turns(angles)
        still = torch.eye(3, dtype=torch.float64).expand_as(turns)
        rest, joints = (skeleton.joint_positions(turn, stretch) for turn in (still, turns))
        linear = self._shape_maps(stretch, girth)
        offset = rest - (linear @ skeleton.rest[..., None])[..., 0]
        shift = joints - (turns @ rest[..., None])[..., 0]
        vertices = []
        for maps in zip(*(each.numpy() for each in (linear, offset, turns, shift)), strict=True):
            shaped = blend_maps(self.vertices, self.indices, self.weights, *maps[:2])
            vertices.append(blend_motions(shaped, self.indices, self.weights, *maps[2:]))
        across = torch.stack([breadth, torch.ones_like(breadth), torch.ones_like(breadth)], -1).numpy()
        return np.stack(vertices) * across[:, None], self.posed_joints(angles, stretch, breadth)

    def posed_joints(self, angles: Mapping[str, Tensor], stretch: Tensor, breadth: Tensor) -> np.ndarray:
        """Joints (B, 21, 3) float64 mm of hands, as `posed` gives them with their vertices."""
        joints = self.skeleton.joint_positions(self.skeleton.turns(angles), stretch)[:, OURS]
        joints[..., 0] *= breadth[:, None]
        return joints.numpy()

    def _shape_maps(self, stretch: Tensor, girth: Tensor) -> Tensor:
        """(B, 25, 3, 3): each joint's bone is stretched along itself and thickened across."""
        linear = torch.eye(3, dtype=torch.float64).repeat(len(stretch), 25, 1, 1)
        linear[:, [0, *METACARPALS], 2, 2] = girth[:, :1]
        start, end = BONES[:15].unbind(1)
        along = normalize(self.skeleton.rest[end] - self.skeleton.rest[start], dim=-1)
        along = along[:, :, None] * along[:, None]
        wide = girth[:, 1:].repeat_interleave(3, 1)[..., None, None]
        linear[:, start] = stretch[:, end, None, None] * along + wide * (torch.eye(3) - along)
        linear[:, CHAINS[:, 3]] = linear[:, CHAINS[:, 2]]
        return linear


def open_rig(path: Path | str | None) -> Rig:
    """Return the rig of a file, or the built-in one for None."""
    return built_in_rig() if path is None else load_rig(path)


def load_rig(path: Path | str) -> Rig:
    """Read a rigged right hand from a glTF file with WebXR's or OpenXR's names of joints.

    Vertices split at seams are merged, a lid over the wrist is removed, and a coarse mesh is subdivided once
    along its curvature.

    Args:
        path: .glb or .gltf, with its buffers inside or beside it.

    Raises:
        DatasetError: the file is missing, unreadable or without such a hand.
    """
    path = read_path("path", path)
    try:
        return _read_rig(GLBFile(path))
    except (
        ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError, MemoryError,
        OSError,
    ) as error:  # fmt: skip
        fault = str(error)
        if not isinstance(error, ValueError):
            fault = f"its parts do not fit together ({error!r}); expected valid glTF 2.0"
        raise DatasetError("A rigged hand", path, PAGE, [fault]) from error


def _read_rig(file: GLBFile) -> Rig:
    skeleton, mesh = file.skeleton(), file.mesh()
    order = [skeleton.names.index(name) for name in JOINTS]
    moved = mesh.weights.sum(0)
    others = [name for at, name in enumerate(skeleton.names) if at not in order and moved[at] > 0]
    got = counted("further joints move vertices", others)
    require(not others, got, "the 25 of WebXR's generic hand alone")
    still = [JOINTS[joint] for joint in CHAINS[:, :3].flatten().tolist() if moved[order[joint]] == 0]
    require(not still, counted("joints move no vertex", still), "skin on every bone of the fingers")
    key = np.round(mesh.positions / ALIKE_M)
    _, first, merged = np.unique(key, axis=0, return_index=True, return_inverse=True)
    faces = merged.reshape(-1)[mesh.faces]
    whole = (faces != np.roll(faces, 1, 1)).all(1)
    weights = mesh.weights[first][:, order]
    blended = np.einsum("vj,jab->vab", weights, skeleton.maps[order])
    vertices = np.einsum("vab,vb->va", blended[:, :3, :3], mesh.positions[first]) + blended[:, :3, 3]
    uv = None if mesh.uv is None else mesh.uv[mesh.faces[whole]]
    faces = faces[whole]
    first, second, third = vertices[faces].transpose(1, 0, 2)
    if (first * np.cross(second, third)).sum() < 0:  # the volume of an inside-out skin is negative
        faces, uv = faces[:, ::-1], None if uv is None else uv[:, ::-1]
    faces, uv = _without_lid(vertices, faces, uv)
    return assemble(vertices, faces, weights, skeleton.rest, uv, "openxr")


@cache
def built_in_rig() -> Rig:
    """The built-in hand, meshed from the capsule surface once per process."""
    return assemble(*build_template(), uv=None)


@cache
def built_in_surface(spacing_mm: float = SURFACE_SPACING_MM) -> Rig:
    """The built-in hand as a coarser mesh, for fast distances to every triangle."""
    return assemble(*build_template(spacing_mm), uv=None, subdivide=False)


def assemble(
    vertices: np.ndarray,
    faces: np.ndarray,
    weights: np.ndarray,
    joints: np.ndarray,
    uv: np.ndarray | None,
    definition: Definition = "anatomical",
    *,
    subdivide: bool = True,
) -> Rig:
    """Make a rig from a mesh that is open at the wrist.

    Args:
        vertices: (V, 3) mm, hand frame.
        faces: (F, 3), outward.
        weights: (V, 25).
        joints: (25, 3) mm, WebXR's.
        uv: (F, 3, 2) or None.
        definition: of the joints; for "openxr" the tips are moved along the last bones to the skin.
        subdivide: whether a coarse mesh is subdivided once.
    """
    if subdivide and len(faces) < SMALL_MESH:
        vertices, faces, weights, uv = _subdivided(vertices, faces, weights, uv)
    used, compact = np.unique(faces, return_inverse=True)
    faces = compact.reshape(-1, 3)
    vertices, weights = vertices[used], weights[used]
    skeleton = HandSkeleton(
        torch.from_numpy(vertices), torch.from_numpy(weights), torch.from_numpy(np.ascontiguousarray(joints))
    )
    if definition == "openxr":
        skeleton = skeleton.with_tips_on_the_skin()
    indices = np.argsort(-weights, 1, kind="stable")[:, :INFLUENCES].astype(np.int32)
    strongest = np.take_along_axis(weights, indices.astype(np.int64), 1)
    loops = openings(faces)
    require(len(loops) > 0, "no opening at the wrist", "a skin that is open there, or closed by a lid")
    rim = np.array(min(loops, key=lambda loop: vertices[loop, 1].mean()))  # the one farthest back
    fan = np.stack([np.full(len(rim) - 2, rim[0]), rim[2:], rim[1:-1]], -1)
    return Rig(
        skeleton=skeleton,
        vertices=np.ascontiguousarray(vertices),
        faces=faces.astype(np.int32),
        cap=fan.astype(np.int32),
        rim=rim.astype(np.int32),
        indices=indices,
        weights=strongest / strongest.sum(1, keepdims=True),
        uv=None if uv is None else uv.astype(np.float32),
        masks=skin_masks(vertices, mesh_normals(vertices, faces), skeleton),
        definition=definition,
    )


def _without_lid(
    vertices: np.ndarray, faces: np.ndarray, uv: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Remove a lid or a hollow at the wrist: all faces beyond a sharp edge around it."""
    first, second, third = vertices[faces].transpose(1, 0, 2)
    normal = np.cross(second - first, third - first)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    pairs, edges = mesh.face_adjacency, mesh.face_adjacency_edges
    low = vertices[edges][..., 1].max(1) < vertices[:, 1].min() + LID_MM
    sharp = normal[pairs].prod(1).sum(1) < LID_COSINE
    label = trimesh.graph.connected_component_labels(pairs[~(low & sharp)], len(faces))
    kept = label == label[vertices[faces][..., 1].max(1).argmax()]
    kept |= vertices[faces][..., 1].min(1) > vertices[:, 1].min() + LID_MM  # loose nails stay
    return faces[kept], None if uv is None else uv[kept]


def _subdivided(
    vertices: np.ndarray, faces: np.ndarray, weights: np.ndarray, uv: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
    """Split each triangle in four; new vertices follow the curvature (Phong tessellation, T. Boubekeur and
    M. Alexa, "Phong tessellation", SIGGRAPH Asia 2008)."""
    normal = mesh_normals(vertices, faces)
    edges, which = np.unique(np.sort(faces_to_edges(faces), 1), axis=0, return_inverse=True)
    start, end = vertices[edges].transpose(1, 0, 2)
    middle = (start + end) / 2
    lift = np.zeros_like(middle)
    for corner, at in ((edges[:, 0], start), (edges[:, 1], end)):
        lift -= 0.5 * ((middle - at) * normal[corner]).sum(1, keepdims=True) * normal[corner]
    split = _quarters(faces, which.reshape(-1, 3) + len(vertices))
    if uv is not None:
        uv = _quarters(uv, (uv + np.roll(uv, -1, 1)) / 2)
    weights = np.concatenate([weights, weights[edges].mean(1)])
    return np.concatenate([vertices, middle + 0.75 * lift]), split, weights, uv


def _quarters(corners: np.ndarray, middles: np.ndarray) -> np.ndarray:
    """(4 F, 3, ...): the quarters of faces, by their corners and their edges' middles (F, 3, ...)."""
    (a, b, c), (ab, bc, ca) = corners.swapaxes(0, 1), middles.swapaxes(0, 1)
    quarters = (a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca)
    return np.concatenate([np.stack(three, 1) for three in quarters])
