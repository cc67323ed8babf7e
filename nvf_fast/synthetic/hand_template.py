"""The built-in skinned hand: the capsule hand's surface as one mesh with smooth skinning weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from trimesh.geometry import faces_to_edges

from nvf_fast.hand_surface import blend
from nvf_fast.surface import level_mesh
from nvf_fast.synthetic.capsule_hand import BASES, CAPSULES, capsule_distances, mean_nodes
from nvf_fast.synthetic.hand_skeleton import CHAINS

SPACING_MM = 2.4
WRIST_MM = -6.0  # where the hand ends, along its own y axis
SMOOTHING, SHRINK, SWELL = 6, 0.5, -0.53  # passes and factors of Taubin's smoothing
DIFFUSION, THUMB_DIFFUSION = 14, 60  # steps over the mesh's edges
THENAR = CAPSULES.index((1, 5))


class Template(NamedTuple):
    """A right hand in the hand frame, mm."""

    vertices: np.ndarray  # (V, 3) float64
    faces: np.ndarray  # (F, 3) int64, outward, open at the wrist
    weights: np.ndarray  # (V, 25) float64 of WebXR's joints
    joints: np.ndarray  # (25, 3) float64


def build_template(spacing_mm: float = SPACING_MM) -> Template:
    """Mesh the mean capsule hand on a lattice of `spacing_mm`."""
    nodes = mean_nodes()
    low, high = nodes.amin(0).float() - 22, nodes.amax(0).float() + 22
    low[1] = WRIST_MM  # marching cubes leaves the surface open where its box ends

    def distance(points: Tensor) -> Tensor:
        return blend(capsule_distances(nodes, points.double())).float()

    mesh = level_mesh(distance, low, high, spacing_mm)
    neighbours = _neighbours(mesh.faces, len(mesh.vertices))
    vertices, rim = mesh.vertices, mesh.vertices[:, 1] < WRIST_MM + 1e-3
    for _ in range(SMOOTHING):
        for factor in (SHRINK, SWELL):
            moved = vertices + factor * (neighbours(vertices) - vertices)
            vertices = np.where(rim[:, None], vertices, moved)
    points = [nodes[0], *nodes[1:5]]
    for finger in range(4):
        points += [nodes[BASES[finger]], *nodes[5 + 4 * finger : 9 + 4 * finger]]
    joints = torch.stack(points).numpy()
    return Template(vertices, mesh.faces, _weights(nodes, vertices, neighbours, spacing_mm), joints)


def _weights(
    nodes: Tensor, vertices: np.ndarray, neighbours: Callable[[np.ndarray], np.ndarray], spacing_mm: float
) -> np.ndarray:
    """(V, 25): the joint of the nearest cone, diffused over the surface, so that no finger moves another."""
    nearest = capsule_distances(nodes, torch.from_numpy(vertices)).argmin(1).numpy()
    owner = np.concatenate([CHAINS[:, :3].flatten().numpy(), np.zeros(len(CAPSULES) - 15, int)])
    start = np.eye(25)[owner[nearest]]
    start[nearest == THENAR, 1] = start[nearest == THENAR, 0] = 0.5
    weights, coarser = start, (SPACING_MM / spacing_mm) ** 2  # a step goes as far as an edge is long
    for _ in range(round(coarser * DIFFUSION)):
        weights = neighbours(weights)
    wide = start[:, :2]
    for _ in range(round(coarser * THUMB_DIFFUSION)):
        wide = neighbours(wide)
    both = weights[:, 0] + weights[:, 1]  # the thumb's base carries the palm along over a wider stretch
    ratio = wide[:, 1] / np.maximum(wide.sum(1), 1e-9)
    weights[:, 0], weights[:, 1] = both * (1 - ratio), both * ratio
    return weights


def _neighbours(faces: np.ndarray, count: int) -> Callable[[np.ndarray], np.ndarray]:
    """The mean of values (V, ...) over each vertex and its neighbours on a mesh, as a function."""
    pairs = faces_to_edges(faces)
    first, second = np.unique(np.concatenate([pairs, pairs[:, ::-1]]), axis=0).T
    members = 1 + np.bincount(first, minlength=count)[:, None]

    def mean(values: np.ndarray) -> np.ndarray:
        total = values.copy()
        np.add.at(total, first, values[second])
        return total / members

    return mean
