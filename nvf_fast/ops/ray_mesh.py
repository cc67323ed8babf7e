"""First intersections of rays with a triangle mesh."""

from __future__ import annotations

import torch
from torch import Tensor

from nvf_fast.kernels.ray_mesh import cpu
from nvf_fast.ops.mesh_distance import check_mesh
from nvf_fast.ops.operation import Backend, Operation


def ray_mesh(
    vertices: Tensor, faces: Tensor, origins: Tensor, directions: Tensor, *, backend: Backend | None = None
) -> tuple[Tensor, Tensor]:
    """First intersections of rays origin + t * direction, t > 0, with either side of meshes of one topology.

    Common edges of two faces are watertight; among faces hit at equal t the lowest index wins. A face
    parallel to the ray is never hit, and a direction of zero hits nothing. No gradient is computed.

    Args:
        vertices: (B, V, 3) float32 mm.
        faces: (F, 3) int64 indices of vertices, F of 1 or more, common to the batch.
        origins: (B, R, 3) float32 mm.
        directions: (B, R, 3) float32 mm, of any length.
        backend: None, "triton" or "torch".

    Returns:
        t (B, R) float32 in multiples of the direction, +inf without a hit; face (B, R) int64, -1 without a
        hit.

    Raises:
        ValueError: a shape does not fit, or, on a CPU, an index of a vertex is out of range; on CUDA a device
            assertion checks the indices without synchronisation.
        TypeError, RuntimeError: as every operation (`nvf_fast.ops`).
    """
    check_mesh("ray_mesh", vertices, faces, origins=origins, directions=directions)
    return _run(backend, vertices, faces, origins, directions)


def _empty_results(
    vertices: Tensor, faces: Tensor, origins: Tensor, directions: Tensor
) -> tuple[Tensor, Tensor]:
    shape = origins.shape[:2]
    return origins.new_empty(shape), origins.new_empty(shape, dtype=torch.int64)


_run = Operation("ray_mesh", cpu.ray_mesh, _empty_results)
