"""ray_mesh and its definition (every ray with every face), interleaved; on a CPU also trimesh.

Timed: one call, measured by `time_operation`; vertices, faces and rays lie on the device (trimesh: numpy,
including its search tree). The hand has about as many faces as MANO's and lies 400 mm before a camera, in a
square image twice as wide as the hand. Batch 24 and 224 x 224 px on a GPU only.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import pytest
import torch
import trimesh
from torch import Tensor

from benchmarks.timing import CUDA, DEVICE, time_operation
from nvf_fast import ops
from nvf_fast.kernels.ray_mesh.reference import ray_mesh as definition
from tests.kernel_cases import hand_of_mano_size, mesh_tensors


def by_trimesh(vertices: Tensor, faces: Tensor, origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    mesh = trimesh.Trimesh(vertices[0].double().cpu().numpy(), faces.cpu().numpy(), process=False)
    o, d = (rays[0].double().cpu().numpy() for rays in (origins, directions))
    intersector = trimesh.ray.ray_triangle.RayMeshIntersector(mesh)
    places, ray, face = intersector.intersects_location(o, d, multiple_hits=False)[:3]
    t, met = np.full(len(o), math.inf), np.full(len(o), -1)
    t[ray], met[ray] = places[:, 2] - o[ray, 2], face  # the directions' z is 1
    return torch.tensor(t)[None], torch.tensor(met)[None]


@pytest.mark.parametrize("form", ["triton", "torch"] if CUDA else ["torch", "trimesh"])
@pytest.mark.parametrize("batch", [1, 24] if CUDA else [1])
@pytest.mark.parametrize("side", [56, 224] if CUDA else [56])
def bench_ray_mesh(benchmark: Any, side: int, batch: int, form: ops.Backend | Literal["trimesh"]) -> None:
    vertices, faces = mesh_tensors(hand_of_mano_size(), device=DEVICE)
    vertices = vertices.expand(batch, -1, -1) + torch.tensor([0, 0, 400.0], device=DEVICE)
    across = torch.linspace(-0.4, 0.4, side, device=DEVICE)
    y, x = torch.meshgrid(across, across, indexing="ij")
    directions = torch.stack([x, y, torch.ones_like(x)], -1).reshape(1, -1, 3).expand(batch, -1, -1)
    directions = directions.contiguous()
    origins = torch.zeros_like(directions)

    def run() -> tuple[Tensor, Tensor]:
        if form == "trimesh":
            return by_trimesh(vertices, faces, origins, directions)
        return ops.ray_mesh(vertices, faces, origins, directions, backend=form)

    exact, face = definition(vertices[:1].double(), faces, origins[:1].double(), directions[:1].double())
    t, met = (result[:1] for result in run())
    assert torch.equal(met >= 0, face >= 0)
    # In mm of 400; most where a ray grazes. Measured: 2e-4.
    torch.testing.assert_close(t.double(), exact, rtol=0, atol=1e-2)

    time_operation(
        *(benchmark, "ray_mesh", f"{len(faces)} faces, {side} x {side} rays", form, torch.float32, batch),
        run=run,
        definition=lambda: definition(vertices, faces, origins, directions),
        rounds=20 if CUDA else 3,
    )
