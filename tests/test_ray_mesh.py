"""ray_mesh: every implementation against hand computation, trimesh and float64; watertight edges."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import trimesh
from torch import Tensor

from nvf_fast import ops
from nvf_fast.kernels.ray_mesh import triton as kernel_file
from nvf_fast.kernels.ray_mesh.cpu import ray_mesh as culled
from nvf_fast.kernels.ray_mesh.reference import ray_mesh as reference
from nvf_fast.kernels.ray_mesh.triton import ray_mesh as kernel
from tests.kernel_cases import closed_meshes, mesh_tensors, rms

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EVERY = pytest.mark.parametrize("function", [kernel, reference, culled])
pytestmark = [
    # Zero directions, edge-on faces.
    pytest.mark.filterwarnings("ignore:.*(divide by zero|invalid value|overflow).*:RuntimeWarning"),
    pytest.mark.usefixtures("poisoned_memory"),
]


@pytest.fixture(autouse=True)
def large_blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use large blocks: the interpreter takes as long for a small block as for a large one."""
    if DEVICE == "cpu" and "own_blocks" not in request.fixturenames:
        monkeypatch.setattr(kernel_file, "_RAYS", 256)
        monkeypatch.setattr(kernel_file, "_FACES", 64)


def cast(function: Callable, mesh: tuple[Tensor, Tensor], rays: list) -> tuple[list[float], list[int]]:
    origins, directions = torch.tensor(rays, dtype=torch.float32, device=DEVICE).unbind(1)
    t, face = function(*mesh, origins[None], directions[None])
    assert t.dtype == torch.float32 and face.dtype == torch.int64
    return t[0].tolist(), face[0].tolist()


def aimed(mesh: trimesh.Trimesh, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw rays (1, count, 3) at a mesh centred at 0: from all around, a third from near its centre."""
    random = np.random.default_rng(seed)
    size = mesh.extents.max()
    origins = random.standard_normal((count, 3))
    origins *= size / np.linalg.norm(origins, axis=1, keepdims=True)
    origins[::3] *= 0.1
    directions = (0.5 * size * random.uniform(-1, 1, (count, 3)) - origins) * random.uniform(
        0.01, 2, (count, 1)
    )
    return tuple(torch.tensor(a[None], dtype=torch.float32, device=DEVICE) for a in (origins, directions))


@EVERY
def test_by_hand(function: Callable) -> None:
    box = mesh_tensors(trimesh.creation.box((2, 4, 6)), device=DEVICE)
    t, face = cast(
        function,
        box,
        [
            ([-5, 0.1, 0.2], [1, 0, 0]),  # from outside
            ([-5, 0.1, 0.2], [0.5, 0, 0]),  # t is in units of the direction
            ([0.5, 0.1, 0.2], [0, -1, 0]),  # from inside
            ([0.3, 0.1, 5], [0, 0, -1e-3]),
            ([-5, 0.1, 0.2], [-1, 0, 0]),  # behind
            ([-5, 2.1, 0.2], [1, 0, 0]),  # beside
            ([-5, 2.1, 0.2], [0, 0, 1]),  # parallel to faces, outside
            ([0, 0.1, 0.2], [0, 0, 0]),  # zero direction
            ([-3, -3.9, 0], [1, 1, 0]),  # oblique: x = -1 at t = 2, y = -1.9
            ([0, 0, 0], [math.nan, 0, 1]),
            ([-1, 0.1, 0.2], [1, 0, 0]),  # from a face, where t = 0
        ],
    )
    inf = math.inf
    assert t == pytest.approx([4, 8, 2.1, 2000, inf, inf, inf, inf, 2, inf, 2])
    assert [index >= 0 for index in face] == [value < inf for value in t]
    normals = torch.tensor(trimesh.creation.box((2, 4, 6)).face_normals)[face[:4]]
    assert normals.tolist() == [[-1, 0, 0], [-1, 0, 0], [0, -1, 0], [0, 0, 1]]


@EVERY
def test_ties_go_to_the_lowest_face(function: Callable) -> None:
    """Rays hit the diagonal of a square, and copies of one triangle, at last more than a tile holds."""
    vertices = torch.tensor([[[0.0, 0, 0], [4, 0, 0], [4, 4, 0], [0, 4, 0]]], device=DEVICE)
    faces = torch.tensor([[1, 2, 3], [0, 2, 3], [0, 1, 2], [2, 3, 0]], device=DEVICE)
    rays = [([1.0, 1, 8], [0, 0, -1]), ([0.5, 3, 8], [0, 0, -1]), ([2, 2, -8], [0, 0, 1])]
    for many in (faces, faces.repeat(17, 1)):
        assert cast(function, (vertices, many), rays) == ([8, 8, 8], [1, 1, 0])


@EVERY
def test_edge_on_faces_are_not_hit(function: Callable) -> None:
    vertices = torch.tensor([[[0.0, 0, 0], [4, 0, 0], [4, 4, 0]]], device=DEVICE)
    faces = torch.tensor([[0, 1, 2], [0, 1, 1], [2, 2, 2]], device=DEVICE)
    assert cast(function, (vertices, faces), [([9, 2, 0], [-1, 0, 0]), ([2, 0, 9], [0, 0, -1])]) == (
        [math.inf, 9],
        [-1, 0],
    )


@EVERY
@pytest.mark.parametrize("index", [1, 2, 4])
def test_no_ray_slips_between_faces(function: Callable, index: int) -> None:
    """Rays from inside a star-shaped mesh to its vertices and edges, where rounding decides."""
    vertices, faces = mesh_tensors(closed_meshes()[index], device=DEVICE)
    start = torch.tensor([0.1, 0.7, -0.4], device=DEVICE)
    corners = vertices[:, faces]
    fraction = torch.rand(1, len(faces), 1, device=DEVICE)
    edges = corners[:, :, 0] + fraction * (corners[:, :, 1] - corners[:, :, 0])
    directions = torch.cat([vertices, edges], 1) - start
    t, _ = function(vertices, faces, start.expand_as(directions), directions)
    # Measured: 2.4e-7.
    assert (t - 1).abs().max() <= 1e-6


@pytest.mark.slow
def test_equals_trimesh() -> None:
    met = 0
    for index, mesh in enumerate(closed_meshes()):
        origins, directions = aimed(mesh, 150, index)
        t, face = (
            a[0].cpu().numpy() for a in ops.ray_mesh(*mesh_tensors(mesh, device=DEVICE), origins, directions)
        )
        centred = mesh.copy()
        centred.apply_translation(-mesh.vertices.mean(0))
        starts, ways = (a[0].cpu().double().numpy() for a in (origins, directions))
        places, ray, expected = trimesh.ray.ray_triangle.RayMeshIntersector(centred).intersects_location(
            starts, ways, multiple_hits=False
        )[:3]
        assert np.array_equal(np.sort(ray), np.flatnonzero(face >= 0)), index
        # mm, largest at grazing rays. Measured: 1.2e-4.
        assert np.abs(starts[ray] + t[ray, None] * ways[ray] - places).max() <= 5e-4
        assert (face[ray] == expected).mean() >= 0.99, index
        met += len(ray)
    assert met > 1500


@pytest.mark.parametrize("count", [1, 63, 1000])
def test_kernel_errs_at_most_twice_as_much_as_pytorch(count: int) -> None:
    check_kernel(trimesh.creation.torus(40, 15, 10, 7), count)


@pytest.mark.usefixtures("own_blocks")
def test_kernel_in_its_own_blocks() -> None:
    check_kernel(trimesh.creation.torus(40, 15, 6, 5), 20)


def check_kernel(mesh: trimesh.Trimesh, count: int) -> None:
    vertices, faces = mesh_tensors(mesh, device=DEVICE)
    vertices = torch.cat([vertices, vertices * 1.3 + 5])
    rays = [torch.cat([a, a + 1]) for a in aimed(mesh, count, 0)]
    check_result(*kernel(vertices, faces, *rays), vertices, faces, *rays)


def check_result(found: Tensor, face: Tensor, vertices: Tensor, faces: Tensor, *rays: Tensor) -> None:
    exact, exact_face = reference(vertices.double(), faces, *(a.double() for a in rays))
    expected, _ = reference(vertices, faces, *rays)
    assert torch.equal(face, exact_face)
    there = exact_face >= 0
    rounding = torch.finfo(torch.float32).eps * rms(exact[there])
    assert torch.equal(found < math.inf, there)
    if there.any():
        assert rms((found - exact)[there]) <= max(2 * rms((expected - exact)[there]), rounding)


@pytest.mark.cuda
def test_more_images_than_one_launch_grid_allows() -> None:
    mesh = trimesh.creation.torus(40, 15, 6, 5)
    vertices, faces = mesh_tensors(mesh, device="cuda")
    vertices = vertices * (0.5 + torch.rand(70_000, 1, 1, device="cuda"))
    rays = [a.view(70_000, 5, 3) for a in aimed(mesh, 350_000, 0)]
    found = kernel(vertices, faces, *rays)
    few = torch.tensor([0, 1, 32_767, 32_768, 65_535, 65_536, 69_999], device="cuda")
    check_result(*(a[few] for a in found), vertices[few], faces, *(a[few] for a in rays))


@pytest.mark.cuda
@pytest.mark.parametrize("batch", [1, 3], ids=["one image", "three images"])
def test_more_rays_than_32_bits_count(batch: int) -> None:
    """Both ends and around the 2^31st coordinate; the other rays miss. Bitwise equal runs."""
    count = 720_000_003 // batch
    assert batch * count * 3 > 2**31
    mesh = trimesh.creation.torus(40, 15, 6, 5)
    vertices, faces = mesh_tensors(mesh, device="cuda")
    vertices = vertices * torch.linspace(1, 2, batch, device="cuda")[:, None, None]
    rays = [torch.full((batch, count, 3), value, device="cuda") for value in (200.0, 1.0)]
    slices = [slice(start, start + 64) for start in (0, 1000, 2**31 // 3 % count - 32, count - 64)]
    for seed, some in enumerate(slices):
        for whole, part in zip(rays, aimed(mesh, 64 * batch, seed), strict=True):
            whole[:, some] = part.view(batch, 64, 3)
    t, face = kernel(vertices, faces, *rays)
    met = face >= 0
    assert torch.equal(t < math.inf, met) and not t.isnan().any()
    assert met.sum() == sum(met[:, some].sum() for some in slices) > 0
    for got, expected in zip(kernel(vertices, faces, *rays), (t, face), strict=True):
        assert torch.equal(got, expected)
    for some in slices:
        check_result(t[:, some], face[:, some], vertices, faces, *(a[:, some] for a in rays))


@pytest.mark.parametrize("index", [0, 1, 2, 3, 4, 17])
def test_culled_form_equals_the_reference(index: int) -> None:
    mesh = closed_meshes()[index]
    arguments = (*mesh_tensors(mesh), *(ray.cpu() for ray in aimed(mesh, 500, index)))
    for found, expected in zip(culled(*arguments), reference(*arguments), strict=True):
        # Both evaluate the same formulas: measured 0.
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


@EVERY
def test_batch_strides_and_no_rays(function: Callable) -> None:
    mesh = trimesh.creation.box((2, 4, 6))
    vertices, faces = mesh_tensors(mesh, device=DEVICE)
    vertices = torch.cat([vertices, 2 * vertices, vertices + 1]).mT.contiguous().mT
    rays = [torch.randn(3, 3, 21, device=DEVICE).mT for _ in range(2)]
    found = function(vertices, faces, *rays)
    for image in range(3):
        one = slice(image, image + 1)
        alone = function(vertices[one].contiguous(), faces, *(a[one].contiguous() for a in rays))
        for got, expected in zip(found, alone, strict=True):
            assert torch.equal(got[one], expected)
    assert [a.shape for a in function(vertices, faces, *(a[:, :0] for a in rays))] == [(3, 0)] * 2
    assert [a.shape for a in function(vertices[:0], faces, *(a[:0] for a in rays))] == [(0, 21)] * 2


@pytest.mark.cuda
def test_whole_image_without_synchronising() -> None:
    mesh = closed_meshes()[0]
    arguments = (*mesh_tensors(mesh, device="cuda"), *aimed(mesh, 50_176, 0))
    kernel(*arguments)  # compile first
    torch.cuda.set_sync_debug_mode("error")
    try:
        t, face = kernel(*arguments)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for got, again in zip((t, face), kernel(*arguments), strict=True):
        assert torch.equal(got, again)
    expected, expected_face = reference(*arguments)
    assert (face == expected_face).float().mean() >= 0.999
    same = (face == expected_face) & (face >= 0)
    torch.testing.assert_close(t[same], expected[same], rtol=1e-4, atol=1e-5)
