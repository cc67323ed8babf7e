"""mesh_distance: kernel, PyTorch form, its definition (every point with every face) and trimesh, in one run.

Timed: one call, host to finished device; vertices, faces and points lie on the device (trimesh: numpy, its
search tree included). A hand of about as many faces as MANO's; 14 500 points per image as training asks them:
half within some mm of the surface, half in a cube around it. Batch 24 on a GPU only.
"""

from __future__ import annotations

import pytest
import torch
import trimesh
from torch import Tensor

from nvf_fast import ops
from nvf_fast.kernels.mesh_distance_ref import mesh_distance as definition
from tests.kernel_cases import hand_of_mano_size, mesh_tensors

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
POINTS = 14_500


def by_trimesh(vertices: Tensor, faces: Tensor, points: Tensor) -> Tensor:
    mesh = trimesh.Trimesh(vertices[0].double().cpu().numpy(), faces.cpu().numpy(), process=False)
    return torch.tensor(-trimesh.proximity.signed_distance(mesh, points[0].double().cpu().numpy()))[None]


@pytest.mark.parametrize(
    "form", ["definition", "torch", "triton"] if CUDA else ["definition", "torch", "trimesh"]
)
@pytest.mark.parametrize("batch", [1, 24] if CUDA else [1])
def bench_mesh_distance(benchmark, batch: int, form: str) -> None:
    torch.manual_seed(0)
    vertices, faces = mesh_tensors(hand_of_mano_size(), device=DEVICE)
    vertices = vertices.expand(batch, -1, -1).contiguous()
    near = vertices[:, faces].mean(2)[:, torch.randint(len(faces), (POINTS // 2,))]
    near = near + 4 * torch.randn(near.shape, device=DEVICE)
    points = torch.cat([near, 340 * (torch.rand(near.shape, device=DEVICE) - 0.5)], 1)

    def run() -> Tensor:
        if form == "definition":
            distance = definition(vertices, faces, points)
        elif form == "trimesh":
            distance = by_trimesh(vertices, faces, points)
        else:
            distance = ops.mesh_distance(vertices, faces, points, backend=form)
        if CUDA:
            torch.cuda.synchronize()
        return distance

    few = points[:1, ::50]
    exact = definition(vertices[:1].double(), faces, few.double())
    # Measured: 2e-5 mm, as float32 rounds coordinates of some 200 mm.
    torch.testing.assert_close(run()[:1, ::50].double(), exact, rtol=0, atol=1e-4)
    benchmark.group = f"mesh_distance {len(faces)} faces, {POINTS} points, batch {batch}"
    benchmark.extra_info.update(
        device=torch.cuda.get_device_name() if CUDA else f"CPU, {torch.get_num_threads()} threads",
        torch=torch.__version__,
        dtype="torch.float32",
        batch=batch,
    )
    benchmark.pedantic(run, rounds=20 if CUDA else 3, warmup_rounds=2 if CUDA else 0)
