"""Signed distance to a closed triangle mesh."""

from __future__ import annotations

import torch
from torch import Tensor

from nvf_fast.kernels.mesh_distance import cpu
from nvf_fast.ops.operation import Backend, Operation, check_tensor, readable


def mesh_distance(
    vertices: Tensor, faces: Tensor, points: Tensor, *, backend: Backend | None = None
) -> Tensor:
    """Signed Euclidean distance of points to closed triangle meshes of one topology, negative inside.

    A point is inside where the mesh's winding number is not 0, which includes overlapping parts. Edges and
    vertices are watertight. Distances are as exact as the float32 coordinates: subtract a centre before
    rounding coordinates of higher precision. No gradient is computed.

    Args:
        vertices: (B, V, 3) float32 mm.
        faces: (F, 3) int64 indices of vertices, F of 1 or more, common to the batch; every edge belongs to
            two faces, in opposite directions. A face may have no area.
        points: (B, N, 3) float32 mm.
        backend: None, "triton" or "torch".

    Returns:
        (B, N) float32 mm; NaN for a point that is not finite.

    Raises:
        ValueError: a shape does not fit, or, on a CPU, an index of a vertex is out of range; on CUDA a device
            assertion checks the indices without synchronisation.
        TypeError, RuntimeError: as every operation (`nvf_fast.ops`).
    """
    check_mesh("mesh_distance", vertices, faces, points=points)
    return _run(backend, vertices, faces, points)


_run = Operation(
    "mesh_distance", cpu.mesh_distance, lambda vertices, faces, points: points.new_empty(points.shape[:2])
)


def check_mesh(name: str, vertices: Tensor, faces: Tensor, **queries: Tensor) -> None:
    check_tensor(name, "vertices", vertices, [("B", "V", 3)], torch.float32, unit="mm")
    check_tensor(name, "faces", faces, [("F", 3)], torch.int64)
    if len(faces) < 1:
        raise ValueError(f"{name}: faces must be (F, 3) with F of 1 or more, got {tuple(faces.shape)}")
    count: int | str = "N"
    for key, tensor in queries.items():
        check_tensor(name, key, tensor, [(len(vertices), count, 3)], torch.float32, unit="mm")
        count = tensor.shape[1]
    # On CUDA reading the indices would synchronise, and compiled code has no values to read.
    if readable(faces):
        low, high = (bound.item() for bound in faces.aminmax())
        if low < 0 or high >= vertices.shape[1]:
            raise ValueError(
                f"{name}: faces must name vertices 0 to {vertices.shape[1] - 1}, got {low} to {high}"
            )
