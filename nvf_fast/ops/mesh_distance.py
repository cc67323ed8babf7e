"""Signed distance to a closed triangle mesh."""

from __future__ import annotations

import torch
from torch import Tensor

from nvf_fast.kernels.mesh_distance import cpu
from nvf_fast.ops.operation import Backend, Operation, check_devices


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
        TypeError: a dtype does not fit.
        RuntimeError: the requested backend cannot run here.
    """
    check_mesh("mesh_distance", vertices, faces, points=points)
    return _run(backend, vertices, faces, points)


_run = Operation(
    "mesh_distance", cpu.mesh_distance, lambda vertices, faces, points: points.new_empty(points.shape[:2])
)


def check_mesh(name: str, vertices: Tensor, faces: Tensor, **queries: Tensor) -> None:
    if vertices.ndim != 3 or vertices.shape[-1] != 3:
        raise ValueError(f"{name}: vertices must be (B, V, 3) mm, got {tuple(vertices.shape)}")
    if faces.ndim != 2 or faces.shape[-1] != 3 or len(faces) < 1:
        raise ValueError(f"{name}: faces must be (F, 3) with F of 1 or more, got {tuple(faces.shape)}")
    if faces.dtype != torch.int64:
        raise TypeError(f"{name}: faces must be int64, got {faces.dtype}")
    for key, tensor in queries.items():
        if tensor.ndim != 3 or tensor.shape[::2] != (len(vertices), 3):
            raise ValueError(f"{name}: {key} must be ({len(vertices)}, N, 3), got {tuple(tensor.shape)}")
    shapes = [tuple(tensor.shape) for tensor in queries.values()]
    if len(set(shapes)) > 1:
        raise ValueError(f"{name}: {' and '.join(queries)} must have one shape, got {shapes}")
    for key, tensor in {"vertices": vertices, **queries}.items():
        if tensor.dtype != torch.float32:
            raise TypeError(f"{name}: {key} must be float32 mm, got {tensor.dtype}")
    check_devices(name, vertices=vertices, faces=faces, **queries)
    # On CUDA reading the indices would synchronise, and compiled code has no values to read.
    if faces.device.type == "cpu" and not torch.compiler.is_compiling():
        low, high = (bound.item() for bound in faces.aminmax())
        if low < 0 or high >= vertices.shape[1]:
            raise ValueError(
                f"{name}: faces must name vertices 0 to {vertices.shape[1] - 1}, got {low} to {high}"
            )
