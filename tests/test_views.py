"""The tasks' volumes: what they contain, and how their points meet the network's picture."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nvf_fast import ops
from nvf_fast.camera import project, reference_intrinsics
from nvf_fast.views import CameraView, RootView, view_of

VIEWS = [CameraView(), RootView()]
SIZE = 128


def projected(view: CameraView | RootView, points: Tensor) -> Tensor:
    """Pixels of points where the network's camera sees them."""
    return project(view.asked_at(points), reference_intrinsics(SIZE, dtype=points.dtype))


def test_every_task_has_its_view() -> None:
    assert isinstance(view_of("camera-space"), CameraView)
    assert isinstance(view_of("root-relative"), RootView)


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: type(view).__name__)
def test_spread_points_fill_the_volume(view: CameraView | RootView) -> None:
    points = view.spread(torch.rand(1, 20_000, 3, dtype=torch.float64))[0]
    assert view.contains(points).all()
    pixels = projected(view, points)
    assert pixels.min() > 0 and pixels.max() < SIZE
    half = torch.tensor(view.half_mm, dtype=torch.float64)
    inside = (points - torch.tensor(view.centre_mm, dtype=torch.float64)) / half
    assert inside.abs().amax() <= 1
    assert (inside.abs().amax(0) > 0.99).all()
    # Uniform by volume: two halves along the depth, of the volume's own choice, hold what their size says.
    corner = torch.tensor(view.centre_mm, dtype=torch.float64) - half
    box = corner + 2 * half * torch.rand(200_000, 3, dtype=torch.float64)
    kept = box[view.contains(box)]
    share = (kept[:, 2] > points[:, 2].median()).double().mean()
    assert share == pytest.approx(0.5, abs=0.02)  # two standard deviations of the smaller count: 0.007


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: type(view).__name__)
def test_moving_along_the_ray_keeps_the_pixel(view: CameraView | RootView) -> None:
    points = view.spread(torch.rand(1, 500, 3, dtype=torch.float64))
    depth = view.other_depths(points[..., 2], torch.rand(1, 500, dtype=torch.float64), 0.7)
    moved = view.moved_to(points, depth)
    torch.testing.assert_close(projected(view, moved), projected(view, points))
    torch.testing.assert_close(moved[..., 2], depth, rtol=1e-9, atol=1e-9)
    assert (moved[..., 2] - points[..., 2]).abs().mean() > 20


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: type(view).__name__)
def test_rays_pass_through_the_texels(view: CameraView | RootView) -> None:
    side = 5
    origins, directions = view.rays(side)
    near, far = view.centre_mm[2] - 0.9 * view.half_mm[2], view.centre_mm[2] + 0.9 * view.half_mm[2]
    for depth in (near, far):
        along = (depth - origins[:, 2:]) / directions[:, 2:]
        pixels = projected(view, origins + along * directions)
        # A map of `side` texels is sampled with its corner texels on the corners of the picture.
        row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
        wanted = torch.stack([column, row], -1).flatten(0, 1) * (SIZE / (side - 1))
        torch.testing.assert_close(pixels, wanted, rtol=0, atol=1e-3)


def test_root_relative_depth_input_and_projection_are_as_said() -> None:
    points = torch.tensor([[[17.0, -34.0, 85.0], [-170.0, 170.0, -170.0]]])
    asked = RootView().asked_at(points)
    torch.testing.assert_close(asked[..., 2] / 480, 2 + points[..., 2] / 170)
    uv = project(asked, reference_intrinsics(SIZE)) / (SIZE / 2) - 1
    torch.testing.assert_close(uv, points[..., :2] / 170, rtol=0, atol=1e-5)
    features = torch.rand(1, 4, 8, 8)
    weights, biases = [torch.rand(5, 5)], [torch.rand(5)]
    sdf, _ = ops.query_field(
        features, asked, reference_intrinsics(SIZE), None, weights, biases, image_size=SIZE
    )
    assert sdf[0, 0].isfinite()


def test_root_crop_is_metric_and_centred() -> None:
    intrinsics = torch.tensor([[[617.3, 0, 312.4], [0, 610.0, 241.4], [0, 0, 1]]], dtype=torch.float64)
    roots = torch.tensor([[60.0, -40.0, 550.0]], dtype=torch.float64)
    homography = RootView().homographies(intrinsics, roots, SIZE)
    # At the wrist's depth the crop is exact: `offset` from the wrist lies at offset / 170 of half the view.
    for offset in ([0.0, 0.0], [170.0, 0.0], [-85.0, 170.0]):
        point = roots + torch.tensor([[*offset, 0.0]], dtype=torch.float64)
        pixel = torch.cat([project(point[:, None], intrinsics)[:, 0], torch.ones(1, 1)], 1)
        seen = (homography @ pixel[..., None])[0, :2, 0]
        wanted = SIZE / 2 * (1 + torch.tensor(offset, dtype=torch.float64) / 170)
        torch.testing.assert_close(seen, wanted)
    assert torch.equal(RootView().origins(roots), roots)
    assert not CameraView().origins(roots).any()


def test_grid_of_the_cube() -> None:
    grid = RootView().grid(16.0)
    assert grid.shape == (21**3, 3)
    assert RootView().contains(grid).all()
    torch.testing.assert_close(grid.mean(0), torch.zeros(3), rtol=0, atol=1e-4)
    assert grid[1, 2] - grid[0, 2] == pytest.approx(340 / 21)
    for step in (0.0, -1.0, 341.0, float("nan")):
        with pytest.raises(ValueError, match=r"step_mm must lie in \(0, 340\] mm"):
            RootView().grid(step)
