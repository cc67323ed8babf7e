"""Volumes: extent, placement before a camera, and projection of points to the network's view."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor

from nvf_fast import ops
from nvf_fast.camera import REFERENCE_SLOPE, project, reference_intrinsics
from nvf_fast.config import NVFConfig
from nvf_fast.volumes import EDGE, FrustumVolume, RootCube, volume_of

VOLUMES = [FrustumVolume(), RootCube()]
SIZE = 128


def projected(volume: FrustumVolume | RootCube, points: Tensor) -> Tensor:
    """Project points to pixels of the network's view."""
    return project(volume.network_points(points), reference_intrinsics(SIZE, dtype=points.dtype))


def test_every_task_has_its_volume() -> None:
    assert isinstance(volume_of(NVFConfig()), FrustumVolume)
    assert isinstance(volume_of(NVFConfig(task="root-relative")), RootCube)


@pytest.mark.parametrize("volume", VOLUMES, ids=lambda volume: type(volume).__name__)
def test_spread_points_fill_the_volume(volume: FrustumVolume | RootCube) -> None:
    points = volume.spread(torch.rand(1, 20_000, 3, dtype=torch.float64))[0]
    assert volume.contains(points).all()
    pixels = projected(volume, points)
    assert pixels.min() > 0 and pixels.max() < SIZE
    half = torch.tensor(volume.half_mm, dtype=torch.float64)
    inside = (points - torch.tensor(volume.centre_mm, dtype=torch.float64)) / half
    assert inside.abs().amax() <= 1
    assert (inside.abs().amax(0) > 0.99).all()
    # Uniform by volume: the median depth splits rejection samples in half.
    corner = torch.tensor(volume.centre_mm, dtype=torch.float64) - half
    box = corner + 2 * half * torch.rand(200_000, 3, dtype=torch.float64)
    kept = box[volume.contains(box)]
    ratio = (kept[:, 2] > points[:, 2].median()).double().mean()
    assert ratio == pytest.approx(0.5, abs=0.02)  # two standard deviations of the smaller count: 0.007


@pytest.mark.parametrize("volume", VOLUMES, ids=lambda volume: type(volume).__name__)
def test_moving_along_the_ray_keeps_the_pixel(volume: FrustumVolume | RootCube) -> None:
    points = volume.spread(torch.rand(1, 500, 3, dtype=torch.float64))
    depth = volume.other_depths(points[..., 2], torch.rand(1, 500, dtype=torch.float64), 0.7)
    moved = volume.moved_to(points, depth)
    torch.testing.assert_close(projected(volume, moved), projected(volume, points))
    torch.testing.assert_close(moved[..., 2], depth, rtol=1e-9, atol=1e-9)
    assert (moved[..., 2] - points[..., 2]).abs().mean() > 20
    for side in (-1, 1):
        beyond = volume.moved_to(points, torch.full_like(depth, side * 1e6))
        end = torch.full_like(depth, volume.centre_mm[2] + side * volume.half_mm[2])
        torch.testing.assert_close(beyond[..., 2], end, rtol=2 * EDGE, atol=0)
        torch.testing.assert_close(projected(volume, beyond), projected(volume, points))


def test_other_depths_span_the_given_ratios_within_the_frustum() -> None:
    uniform = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    for depth, nearest, farthest in (
        (450.0, 450 / 1.5, 450 * 1.5),
        (180.0, 150, 270),
        (1000.0, 1000 / 1.5, 1200),
    ):
        depths = FrustumVolume().other_depths(torch.full_like(uniform, depth), uniform, math.log(1.5))
        expected = torch.tensor([nearest, math.sqrt(nearest * farthest), farthest], dtype=torch.float64)
        torch.testing.assert_close(depths, expected)


@pytest.mark.parametrize("volume", VOLUMES, ids=lambda volume: type(volume).__name__)
def test_contains_points_clear_of_the_edge_of_the_view(volume: FrustumVolume | RootCube) -> None:
    half, depth = (REFERENCE_SLOPE * 600, 600.0) if isinstance(volume, FrustumVolume) else (170.0, 60.0)
    for ratio, inside in ((1 - 2 * EDGE, True), (1 - EDGE / 2, False)):
        edge = ratio * half
        points = torch.tensor(
            [[[edge, 0, depth], [-edge, 9, depth], [0, edge, depth], [9, -edge, depth]]], dtype=torch.float64
        )
        assert (volume.contains(points) == inside).all()


@pytest.mark.parametrize("volume", VOLUMES, ids=lambda volume: type(volume).__name__)
def test_rays_pass_through_the_texels(volume: FrustumVolume | RootCube) -> None:
    side = 5
    origins, directions = volume.rays(side)
    near, far = volume.centre_mm[2] - 0.9 * volume.half_mm[2], volume.centre_mm[2] + 0.9 * volume.half_mm[2]
    for depth in (near, far):
        along = (depth - origins[:, 2:]) / directions[:, 2:]
        pixels = projected(volume, origins + along * directions)
        # A map of `side` texels is sampled with its corner texels on the corners of the image.
        row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
        expected = torch.stack([column, row], -1).flatten(0, 1) * (SIZE / (side - 1))
        torch.testing.assert_close(pixels, expected, rtol=0, atol=1e-3)


def test_root_relative_depth_input_and_projection() -> None:
    points = torch.tensor([[[17.0, -34.0, 85.0], [-170.0, 170.0, -170.0]]])
    moved = RootCube().network_points(points)
    torch.testing.assert_close(moved[..., 2] / 480, 2 + points[..., 2] / 170)
    uv = project(moved, reference_intrinsics(SIZE)) / (SIZE / 2) - 1
    torch.testing.assert_close(uv, points[..., :2] / 170, rtol=0, atol=1e-5)
    features = torch.rand(1, 4, 8, 8)
    weights, biases = [torch.rand(5, 5)], [torch.rand(5)]
    sdf, _ = ops.query_field(
        features, moved, reference_intrinsics(SIZE), None, weights, biases, image_size=SIZE
    )
    assert sdf[0, 0].isfinite()


def test_root_crop_is_metric_and_centred() -> None:
    intrinsics = torch.tensor([[[617.3, 0, 312.4], [0, 610.0, 241.4], [0, 0, 1]]], dtype=torch.float64)
    roots = torch.tensor([[60.0, -40.0, 550.0]], dtype=torch.float64)
    placement = RootCube().place(intrinsics, SIZE, roots=roots)
    homography, origins = placement.homographies, placement.origins
    # At the wrist's depth the crop is exact: `offset` from the wrist lies at offset / 170 of half the volume.
    for offset in ([0.0, 0.0], [170.0, 0.0], [-85.0, 170.0]):
        point = roots + torch.tensor([[*offset, 0.0]], dtype=torch.float64)
        pixel = torch.cat([project(point[:, None], intrinsics)[:, 0], torch.ones(1, 1)], 1)
        projected = (homography @ pixel[..., None])[0, :2, 0]
        expected = SIZE / 2 * (1 + torch.tensor(offset, dtype=torch.float64) / 170)
        torch.testing.assert_close(projected, expected)
    assert torch.equal(origins, roots)
    assert not FrustumVolume().place(intrinsics, SIZE, roots=roots).origins.any()


@pytest.mark.parametrize("volume", VOLUMES, ids=lambda volume: type(volume).__name__)
@pytest.mark.parametrize("left", [False, True])
def test_view_and_volume_project_to_the_same_pixel(volume: FrustumVolume | RootCube, left: bool) -> None:
    """A point near the wrist projects to the same pixel through the image and through the volume."""
    intrinsics = torch.tensor([[[617.3, 0, 312.4], [0, 610.0, 241.4], [0, 0, 1]]], dtype=torch.float64)
    root = torch.tensor([[60.0, -40.0, 550.0]], dtype=torch.float64)
    box = torch.tensor([[300.0, 100.0, 420.0, 260.0]], dtype=torch.float64)
    placement = volume.place(intrinsics, SIZE, torch.tensor([left]), boxes=box, roots=root)
    homography, frame, origin = placement.homographies, placement.frames, placement.origins
    point = root + torch.tensor([[25.0, 30.0, 0.0]], dtype=torch.float64)
    pixel = torch.cat([project(point[:, None], intrinsics)[:, 0], torch.ones(1, 1)], 1)
    seen = (homography @ pixel[..., None])[0, :, 0]
    inside = (point - origin) @ frame[0].mT
    torch.testing.assert_close(seen[:2] / seen[2], projected(volume, inside[None])[0, 0])
    torch.testing.assert_close(frame[0] @ frame[0].mT, torch.eye(3, dtype=torch.float64))
    assert torch.linalg.det(frame[0]).item() == pytest.approx(-1 if left else 1)


def test_lattice_of_the_cube() -> None:
    lattice = RootCube().lattice(16.0)
    points = lattice.points(lattice.every(1))
    assert points.shape == (21**3, 3)
    assert RootCube().contains(points).all()
    torch.testing.assert_close(points.mean(0), torch.zeros(3), rtol=0, atol=1e-4)
    assert points[1, 2] - points[0, 2] == pytest.approx(340 / 21)
    for step, message in ((0.0, "positive"), (-1.0, "positive"), (math.nan, "positive"), (341.0, "no point")):
        with pytest.raises(ValueError, match=message):
            RootCube().lattice(step)


@pytest.mark.parametrize("step", [4.0, 16.0, 60.0, 340.0])
def test_unused_slots_lie_outside_the_view(step: float) -> None:
    lattice = RootCube().lattice(step)
    outside = RootCube().network_points(lattice.points(torch.tensor([lattice.nowhere])))
    uv = project(outside, reference_intrinsics(SIZE)) / (SIZE / 2) - 1
    assert outside[0, 2] <= 0 or (uv.abs() > 1).any()


def test_warns_of_hands_at_the_ends_of_the_queried_depths() -> None:
    joints = np.full((3, 21, 3), 600.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FrustumVolume().warn_at_ends(joints)
        FrustumVolume().warn_at_ends(joints[:0])
    joints[1, 4, 2], joints[2, 8, 2] = 149.0, 1230.0
    with pytest.warns(UserWarning, match="end of the queried depths") as caught:
        FrustumVolume().warn_at_ends(joints)
    messages = [str(warning.message) for warning in caught]
    assert [message.split(" reaches")[0] for message in messages] == [
        "a hand between 149 and 600 mm",
        "a hand between 600 and 1230 mm",
    ]
