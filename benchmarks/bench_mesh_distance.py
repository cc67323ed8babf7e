"""mesh_distance and its definition (every point with every face), interleaved; on a CPU also trimesh.

Timed: one call, measured by `time_operation`; vertices, faces and points lie on the device (trimesh: numpy,
including its search tree). The hand has about as many faces as MANO's, with 14 500 points per image as in
training, half within some mm of the surface, half in a cube around it. Batch 24 on a GPU only.
"""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
import trimesh
from torch import Tensor

from benchmarks.timing import CUDA, DEVICE, time_operation
from nvf_fast import ops
from nvf_fast.kernels.mesh_distance.reference import mesh_distance as definition
from tests.kernel_cases import hand_of_mano_size, mesh_tensors

POINTS = 14_500


def by_trimesh(vertices: Tensor, faces: Tensor, points: Tensor) -> Tensor:
    mesh = trimesh.Trimesh(vertices[0].double().cpu().numpy(), faces.cpu().numpy(), process=False)
    return torch.tensor(-trimesh.proximity.signed_distance(mesh, points[0].double().cpu().numpy()))[None]


@pytest.mark.parametrize("form", ["triton", "torch"] if CUDA else ["torch", "trimesh"])
@pytest.mark.parametrize("batch", [1, 24] if CUDA else [1])
def bench_mesh_distance(benchmark: Any, batch: int, form: ops.Backend | Literal["trimesh"]) -> None:
    torch.manual_seed(0)
    vertices, faces = mesh_tensors(hand_of_mano_size(), device=DEVICE)
    vertices = vertices.expand(batch, -1, -1).contiguous()
    near = vertices[:, faces].mean(2)[:, torch.randint(len(faces), (POINTS // 2,))]
    near = near + 4 * torch.randn(near.shape, device=DEVICE)
    points = torch.cat([near, 340 * (torch.rand(near.shape, device=DEVICE) - 0.5)], 1)

    def run() -> Tensor:
        if form == "trimesh":
            return by_trimesh(vertices, faces, points)
        return ops.mesh_distance(vertices, faces, points, backend=form)

    few = points[:1, ::50]
    exact = definition(vertices[:1].double(), faces, few.double())
    # Measured: 2e-5 mm, as float32 rounds coordinates of some 200 mm.
    torch.testing.assert_close(run()[:1, ::50].double(), exact, rtol=0, atol=1e-4)

    time_operation(
        *(benchmark, "mesh_distance", f"{len(faces)} faces, {POINTS} points", form, torch.float32, batch),
        run=run,
        definition=lambda: definition(vertices, faces, points),
        rounds=20 if CUDA else 3,
    )
