"""Query points: counts, distributions, and determinism."""

from __future__ import annotations

import pytest
import torch

from nvf_fast.camera import REFERENCE_SLOPE
from nvf_fast.data.surfaces import MeshHands
from nvf_fast.synthetic.rig import built_in_surface
from nvf_fast.training.points import PointSampling, sample_points
from nvf_fast.volumes import FrustumVolume
from tests.sampled_hands import sample_hands

VOLUME = FrustumVolume()
COARSE_MM = 10.0  # for hands of 1000 faces
SMALL_PAPER = PointSampling(surface=500, sphere=100, frustum=300, inside=200, outside=200)


@pytest.fixture(scope="module")
def hands() -> MeshHands:
    return sample_hands(6, torch.Generator().manual_seed(3), surface=built_in_surface(COARSE_MM))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def beside_the_image(hands: MeshHands) -> MeshHands:
    """Rotate the hands about the camera out of the image."""
    angle = torch.tensor(1.0)
    turn = torch.tensor([[angle.cos(), 0, angle.sin()], [0, 1, 0], [-angle.sin(), 0, angle.cos()]])
    return hands.rotated(turn.expand(len(hands), 3, 3))


@pytest.mark.parametrize(
    "sampling",
    [
        SMALL_PAPER,
        PointSampling(surface=40, sphere=10, frustum=10, inside=None, outside=None),
        PointSampling(surface=40, sphere=0, frustum=1, inside=None, outside=None, ray_points=70),
        PointSampling(surface=300, sphere=10, frustum=10, inside=63, outside=1000, ray_points=5),
    ],
)
def test_shape_view_and_distance(hands: MeshHands, sampling: PointSampling) -> None:
    for some in (hands, beside_the_image(hands)):
        points, sdf = sample_points(some, VOLUME, sampling, seeded())
        assert points.shape == (6, sampling.total, 3)
        uv = points[..., :2] / points[..., 2:] / REFERENCE_SLOPE
        assert (points[..., 2] > 0).all()
        assert uv.abs().max() <= 1
        torch.testing.assert_close(sdf, some.signed_distance(points), atol=2e-3, rtol=0)


def test_draws_without_replacement_where_possible(hands: MeshHands) -> None:
    points, _ = sample_points(hands, VOLUME, SMALL_PAPER, seeded())
    assert len(points[0, 200:].unique(dim=0)) == 200
    scarce = PointSampling(surface=20, sphere=0, frustum=5, inside=100, outside=100)
    points, sdf = sample_points(hands, VOLUME, scarce, seeded())
    assert (sdf[:, :100] < 0).all()
    assert len(points[0, :100].unique(dim=0)) < 100


def test_surface_points_spread_by_sigma(hands: MeshHands) -> None:
    near = PointSampling(surface=4000, surface_sigma_mm=3.0, sphere=0, frustum=1, inside=None, outside=None)
    distance = torch.cat([sample_points(hands, VOLUME, near, seeded(seed))[1] for seed in range(2)])
    assert (
        2.4 < distance[distance.abs() < 30].std() < 3.3
    )  # fingers thinner than the spread truncate its inner side
    exact = PointSampling(surface=400, surface_sigma_mm=0.0, sphere=0, frustum=1, inside=None, outside=None)
    assert sample_points(hands, VOLUME, exact, seeded())[1].abs().median() < 0.1


def test_sphere_points_are_uniform_about_joint_nine(hands: MeshHands) -> None:
    sampling = PointSampling(
        surface=1, sphere=3000, sphere_radius_mm=20.0, frustum=1, inside=None, outside=None
    )
    points, _ = sample_points(hands, VOLUME, sampling, seeded())
    distance = (points - hands.joints[:, 9, None]).norm(dim=-1)
    inside = distance <= 20.001
    assert inside.float().mean() > 0.99
    assert abs((distance[inside] / 20).pow(3).mean() - 0.5) < 0.02  # uniform by volume


def test_frustum_points_are_uniform(hands: MeshHands) -> None:
    sampling = PointSampling(surface=1, sphere=0, frustum=20_000, inside=None, outside=None)
    points, _ = sample_points(hands[:1], VOLUME, sampling, seeded(4))
    box = torch.rand(400_000, 3, generator=seeded(1)) * torch.tensor([500.0, 500.0, 1050.0]) + torch.tensor(
        [-250, -250, 150.0]
    )
    expected = box[(box[:, :2].abs() <= box[:, 2:] * REFERENCE_SLOPE).all(-1)]
    levels = torch.linspace(0.1, 0.9, 9)
    for axis in range(3):
        measured = torch.quantile(points[0, :, axis], levels)
        # quantiles of 20 000 draws scatter by about 3 mm here
        torch.testing.assert_close(measured, torch.quantile(expected[:, axis], levels), atol=12.0, rtol=0)


def test_ray_points_lie_behind_and_before_the_surface(hands: MeshHands) -> None:
    sampling = PointSampling(
        surface=300, sphere=0, frustum=1, inside=None, outside=None,
        ray_points=400, ray_log_depth=0.7, ray_sigma_mm=40.0,
    )  # fmt: skip
    points, sdf = sample_points(hands, VOLUME, sampling, seeded())
    rays = points[:, -400:]
    assert rays[..., 2].min() >= VOLUME.nearest_mm - 1e-3
    assert rays[..., 2].max() <= VOLUME.farthest_mm + 1e-3
    pixels = hands.joints[..., :2] / hands.joints[..., 2:]
    beside = (rays[..., :2] / rays[..., 2:])[:, :, None] - pixels[:, None]
    assert (
        beside.norm(dim=-1).amin(2).quantile(0.95) < 0.12
    )  # every ray meets the hand: within 50 mm of a joint at 420 mm
    depth = hands.joints[:, :, 2].mean(1, keepdim=True)
    far = (rays[:, :200, 2] / depth).log().abs()
    assert far.max() < 1.2
    assert far.median() > 0.15
    assert sdf[:, 300:].abs().median() > sdf[:, :300].abs().median()


def test_paper_defaults_give_5000_points() -> None:
    assert PointSampling().total == 5000


@pytest.mark.parametrize(
    "wrong",
    [{"inside": None}, {"frustum": 0}, {"ray_points": -1}, {"surface_sigma_mm": -3.0}, {"inside": -1}],
)
def test_refuses_invalid_counts_and_ranges(wrong: dict) -> None:
    with pytest.raises(ValueError, match="got"):
        PointSampling(**wrong)


@pytest.mark.cuda
def test_runs_on_the_gpu(hands: MeshHands) -> None:
    points, sdf = sample_points(hands.to("cuda"), VOLUME, SMALL_PAPER, torch.Generator("cuda").manual_seed(0))
    assert points.shape == (6, 400, 3)
    assert points.is_cuda
    assert (sdf[:, :200] < 0).all()
