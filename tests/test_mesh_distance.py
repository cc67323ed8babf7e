"""mesh_distance: every implementation against trimesh, closed forms and float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import trimesh
from torch import Tensor

from nvf_fast import ops
from nvf_fast.kernels.mesh_distance import triton as kernel_file
from nvf_fast.kernels.mesh_distance.cpu import mesh_distance as culled
from nvf_fast.kernels.mesh_distance.reference import mesh_distance as reference
from nvf_fast.kernels.mesh_distance.triton import mesh_distance as kernel
from tests.kernel_cases import closed_meshes, mesh_tensors, rms

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TETRAHEDRON = trimesh.Trimesh(
    [[0, 0, 0], [50, 0, 5], [0, 40, 9], [3, 4, 30]], [[0, 2, 1], [0, 1, 3], [1, 2, 3], [2, 0, 3]]
)
EVERY = pytest.mark.parametrize("function", [kernel, reference, culled])
pytestmark = [
    # Faces without area, corners at infinity.
    pytest.mark.filterwarnings("ignore:.*(divide by zero|invalid value|overflow).*:RuntimeWarning"),
    pytest.mark.usefixtures("poisoned_memory"),
]


@pytest.fixture(autouse=True)
def large_blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use large blocks: the interpreter takes as long for a small block as for a large one."""
    if DEVICE == "cpu" and "own_blocks" not in request.fixturenames:
        monkeypatch.setattr(kernel_file, "_POINTS", 256)
        monkeypatch.setattr(kernel_file, "_FACES", 64)


def lattice_box() -> tuple[Tensor, Tensor]:
    """Return the box from (-1, -2, -1) to (1, 2, 1) with a vertex on every integer of its surface."""
    box = trimesh.creation.box((2, 2, 2)).subdivide()
    box.vertices[:, 1] *= 2
    return mesh_tensors(box, device=DEVICE)


def to_box(points: Tensor) -> Tensor:
    q = points.abs() - torch.tensor([1.0, 2, 1], device=points.device)
    return q.clamp(min=0).norm(dim=-1) + q.amax(-1).clamp(max=0)


def near(mesh: trimesh.Trimesh, count: int, offset_mm: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return points (2 count, 3) off random face positions, outward then inward, and their signs."""
    places, face = trimesh.sample.sample_surface(mesh, count, seed=seed)
    step = offset_mm * mesh.face_normals[face]
    return np.concatenate([places + step, places - step]), np.repeat([1, -1], count)


def signed_distance(mesh: trimesh.Trimesh, points: np.ndarray) -> np.ndarray:
    """Call the public operation on centred coordinates."""
    centred = torch.tensor(points - mesh.vertices.mean(0), dtype=torch.float32, device=DEVICE)[None]
    return ops.mesh_distance(*mesh_tensors(mesh, device=DEVICE), centred)[0].cpu().double().numpy()


@pytest.mark.slow
def test_equals_trimesh() -> None:
    """20 closed meshes, points near the surface and far from it: equal to 1e-4 mm, signs identical."""
    meshes, random = closed_meshes(), np.random.default_rng(1)
    assert len(meshes) == 20
    for index, mesh in enumerate(meshes):
        around = mesh.bounds.mean(0) + 1.5 * random.uniform(-0.5, 0.5, (100, 3)) * mesh.extents
        points = np.concatenate([near(mesh, 40, 3.0, index)[0], near(mesh, 20, 0.05, index)[0], around])
        expected = -trimesh.proximity.signed_distance(mesh, points)  # trimesh is positive inside
        found = signed_distance(mesh, points)
        # Measured: 1.9e-5 mm, no wrong sign.
        assert np.abs(np.abs(found) - np.abs(expected)).max() <= 1e-4, index
        assert (np.sign(found) == np.sign(expected)).all(), index


@pytest.mark.slow
def test_signs_close_to_the_surface() -> None:
    """At 1e-3 mm from the surface at least 99.99 % of the signs are correct, as in trimesh."""
    agree = total = 0
    for index, mesh in enumerate(closed_meshes()):
        points, side = near(mesh, 2000, 1e-3, index)
        # In a concave edge a point 1e-3 mm off one face may lie beyond the other.
        clear = np.abs(trimesh.proximity.closest_point(mesh, points)[1] - 1e-3) < 1e-5
        agree += (np.sign(signed_distance(mesh, points)) == side)[clear].sum()
        total += clear.sum()
        few = np.flatnonzero(clear)[::40]
        assert (np.sign(-trimesh.proximity.signed_distance(mesh, points[few])) == side[few]).all()
    # Measured: all 79 998 correct.
    assert total > 70_000
    assert agree >= 0.9999 * total


@EVERY
def test_box_exactly(function: Callable) -> None:
    """Points on a half-integer lattice, in the planes of edges, vertices and faces."""
    axis = torch.arange(-4, 5) / 2
    points = torch.stack(torch.meshgrid(axis, 1.25 * axis, axis, indexing="ij"), -1).reshape(1, -1, 3)
    points = points.to(DEVICE)
    # The distance has two roundings of values up to 4.
    torch.testing.assert_close(function(*lattice_box(), points), to_box(points), rtol=0, atol=5e-7)


@EVERY
def test_on_the_surface(function: Callable) -> None:
    vertices, faces = mesh_tensors(trimesh.creation.icosphere(subdivisions=1, radius=50), device=DEVICE)
    assert (function(vertices, faces, vertices) == 0).all()
    corners = vertices[:, faces]
    for places in (corners[:, :, :2].mean(2), corners.mean(2)):
        # Face centres are rounded: measured 4.2e-6 mm.
        assert function(vertices, faces, places).abs().max() <= 1e-5


def test_sphere() -> None:
    """An inscribed polyhedron deviates from its sphere by at most the depth of its face centres."""
    vertices, faces = mesh_tensors(trimesh.creation.icosphere(subdivisions=3, radius=50), torch.float64)
    points = 40 * torch.randn(1, 300, 3, dtype=torch.float64)
    sagitta = 50 - vertices[0, faces].mean(1).norm(dim=1).min()
    off = reference(vertices, faces, points) - (points.norm(dim=-1) - 50)
    assert off.min() >= -1e-9 and off.max() <= sagitta


@pytest.mark.parametrize("count", [1, 63, 1000])
@pytest.mark.parametrize("mesh", [TETRAHEDRON, trimesh.creation.torus(40, 15, 10, 7)], ids=["4", "140"])
def test_kernel_errs_at_most_twice_as_much_as_pytorch(mesh: trimesh.Trimesh, count: int) -> None:
    check_kernel(mesh, count)


@pytest.mark.usefixtures("own_blocks")
def test_kernel_in_its_own_blocks() -> None:
    check_kernel(trimesh.creation.torus(40, 15, 6, 5), 20)


def check_kernel(mesh: trimesh.Trimesh, count: int) -> None:
    vertices, faces = mesh_tensors(mesh, device=DEVICE)
    vertices = torch.cat([vertices, vertices * 1.3 + 5])
    points = 40 * torch.randn(2, count, 3, device=DEVICE)
    check_result(kernel(vertices, faces, points), vertices, faces, points)


def check_result(found: Tensor, vertices: Tensor, faces: Tensor, points: Tensor) -> None:
    exact = reference(vertices.double(), faces, points.double())
    expected = reference(vertices, faces, points)
    assert torch.equal(found.sign(), exact.sign().float())
    # Allows one rounding of the coordinates in case PyTorch's result is exact.
    rounding = torch.finfo(torch.float32).eps * rms(points)
    assert rms(found - exact) <= max(2 * rms(expected - exact), rounding)


@pytest.mark.cuda
def test_more_images_than_one_launch_grid_allows() -> None:
    vertices, faces = mesh_tensors(TETRAHEDRON, device="cuda")
    vertices = vertices * (0.5 + torch.rand(70_000, 1, 1, device="cuda"))
    points = 40 * torch.randn(70_000, 5, 3, device="cuda")
    found = kernel(vertices, faces, points)
    few = torch.tensor([0, 1, 32_767, 32_768, 65_535, 65_536, 69_999], device="cuda")
    check_result(found[few], vertices[few], faces, points[few])


@pytest.mark.cuda
@pytest.mark.parametrize(
    ("batch", "count"), [(1, 2**31 + 17), (3, 240_000_001)], ids=["one image", "three images"]
)
def test_more_points_than_32_bits_count(batch: int, count: int) -> None:
    """Both ends, around the 2^31st coordinate and the 2^31st point; bitwise equal runs."""
    assert batch * count * 3 > 2**31
    vertices, faces = mesh_tensors(TETRAHEDRON, device="cuda")
    vertices = vertices * torch.linspace(1, 2, batch, device="cuda")[:, None, None]
    points = torch.full((batch, count, 3), 200.0, device="cuda")
    starts = (0, 1000, 2**31 // 3 % count - 32, (2**31 - 47) % count, count - 64)
    slices = [slice(start, start + 64) for start in starts]
    for some in slices:
        points[:, some] = 40 * torch.randn(batch, 64, 3, device="cuda")
    found = kernel(vertices, faces, points)
    assert not found.isnan().any()
    assert torch.equal(found, kernel(vertices, faces, points))
    for some in slices:
        check_result(found[:, some], vertices, faces, points[:, some])


@pytest.mark.parametrize("index", [0, 1, 2, 3, 4, 17])
def test_culled_form_equals_the_reference(index: int) -> None:
    """An unused vertex near the points does not belong to the mesh."""
    mesh = closed_meshes()[index]
    vertices, faces = mesh_tensors(mesh)
    points = torch.cat([vertices[:, ::7] + 3 * torch.randn(1, 1, 3), 80 * torch.randn(1, 500, 3)], 1)
    expected = reference(vertices, faces, points)
    found = culled(torch.cat([vertices, points[:, -1:]], 1), faces, points)
    # Both evaluate the same formulas: measured 0.
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-5)
    assert torch.equal(found < 0, expected < 0)


@EVERY
@pytest.mark.parametrize("turn", [0, 1, 2])
def test_on_slivers(function: Callable, turn: int) -> None:
    """A tetrahedron with an edge of 0.1 mm: the distance on its faces is 0 for every order of corners."""
    corners = [[0, 0, 0], [0.08, 0, 0.06], [30, 40, 5], [-20, 35, -30]]
    vertices = torch.tensor([corners], device=DEVICE)
    faces = torch.tensor([[0, 2, 1], [0, 1, 3], [1, 2, 3], [2, 0, 3]], device=DEVICE).roll(turn, 1)
    weights = torch.rand(200, 4, 3, 1, device=DEVICE)
    points = (weights * vertices[0, faces]).sum(2) / weights.sum(2)
    # Measured: 6e-6 mm, from rounding the points; 4e-4 mm from the wrong corner.
    assert function(vertices, faces, points.reshape(1, -1, 3)).abs().max() <= 2e-5


@EVERY
def test_faces_without_area(function: Callable) -> None:
    vertices, faces = lattice_box()
    first, second = faces[0, :2].tolist()
    between = vertices.shape[1]
    vertices = torch.cat([vertices, vertices[:, faces[0, :2]].mean(1, keepdim=True)], 1)
    extra = [[first] * 3, [first, second, second], [first, between, second], [second, between, first]]
    faces = torch.cat([faces, torch.tensor(extra, device=DEVICE)])
    points = 2 * torch.randn(1, 60, 3, device=DEVICE)
    torch.testing.assert_close(function(vertices, faces, points), to_box(points), rtol=0, atol=1e-6)


@EVERY
def test_overlap_and_orientation(function: Callable) -> None:
    """The winding number is 2 where two boxes overlap and -1 for inward faces: both are inside."""
    vertices, faces = lattice_box()
    both = torch.cat([vertices, vertices + torch.tensor([1.0, 0, 0], device=DEVICE)], 1)
    points = torch.tensor([[[0.75, 0.1, 0], [-0.5, 0.1, 0], [1.5, 0.1, 0], [2.5, 0.1, 0]]], device=DEVICE)
    found = function(both, torch.cat([faces, faces + vertices.shape[1]]), points)
    torch.testing.assert_close(found, torch.tensor([[-0.25, -0.5, -0.5, 0.5]], device=DEVICE))
    inward = function(vertices, faces.flip(1), points)
    torch.testing.assert_close(inward, to_box(points))


@EVERY
def test_nearest_vertices_of_other_faces_and_of_none(function: Callable) -> None:
    """Two faces back to back enclose nothing; each point is nearest to their middle or their edge."""
    radius, above = 12**0.5, [2.01, 0, 0]
    corners = [[0, radius, 0], [0, -radius / 2, 3], [0, -radius / 2, -3]]  # equilateral
    points = torch.tensor(
        [[[1.0, 0, 0], [-2, 0.5, 0.5], [0, -radius / 2 - 4, 1], [0, 0.5, 0.5]]], device=DEVICE
    )
    expected = torch.tensor([[1.0, 2, 4, 0]], device=DEVICE)
    faces = torch.tensor([[0, 1, 2], [0, 2, 1]], device=DEVICE)
    vertices = torch.tensor([[*corners, [1.1, 0, 0]]], device=DEVICE)  # the last vertex belongs to no face
    torch.testing.assert_close(function(vertices, faces, points), expected)
    small = [[2.02, 0.01, 0], [2.02, 0, 0.01]]  # of a small face beside the first point
    vertices = torch.tensor([[*corners, above, *small]], device=DEVICE)
    faces = torch.cat([faces, torch.tensor([[3, 4, 5], [3, 5, 4]], device=DEVICE)])
    torch.testing.assert_close(function(vertices, faces, points), expected)


@EVERY
def test_batch_and_strides(function: Callable) -> None:
    vertices, faces = lattice_box()
    vertices = torch.cat([vertices, 2 * vertices, vertices + 1]).mT.contiguous().mT
    points = torch.randn(3, 3, 21, device=DEVICE).mT
    found = function(vertices, faces, points)
    for image in range(3):
        one = slice(image, image + 1)
        assert torch.equal(found[one], function(vertices[one].contiguous(), faces, points[one].contiguous()))


@EVERY
def test_points_that_are_not_finite_and_no_points(function: Callable) -> None:
    vertices, faces = lattice_box()
    for axis in range(3):
        points = torch.zeros(1, 4, 3, device=DEVICE)
        points[0, :3, axis] = torch.tensor([torch.nan, torch.inf, -torch.inf])
        assert function(vertices, faces, points).isnan().tolist() == [[True, True, True, False]]
    assert function(vertices, faces, points[:, :0]).shape == (1, 0)
    assert function(vertices[:0], faces, points[:0]).shape == (0, 4)


@pytest.mark.cuda
def test_training_batch_without_synchronising() -> None:
    vertices, faces = mesh_tensors(closed_meshes()[0], device="cuda")
    vertices, points = vertices.expand(24, -1, -1), 100 * torch.randn(24, 14_500, 3, device="cuda")
    kernel(vertices, faces, points)  # compile first
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = kernel(vertices, faces, points)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(found, kernel(vertices, faces, points))
    exact = reference(vertices[:1].double(), faces, points[:1].double())
    assert rms(found[:1] - exact) <= 2 * rms(reference(vertices[:1], faces, points[:1]) - exact)
