"""Hand placement before the reference camera: distances, orientations, visible joints."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from nvf_fast.data.draws import Draws
from nvf_fast.synthetic.placement import UNIFORM, HandDistribution, draw_places
from nvf_fast.synthetic.rig import built_in_surface


def placed(distribution: HandDistribution, count: int = 512) -> tuple[Tensor, Tensor]:
    """Place one hand many times; return joints (B, 21, 3) and palm normals (B, 3) in the camera frame."""
    rig, one = built_in_surface(), torch.ones(1, dtype=torch.float64)
    joints = torch.from_numpy(
        rig.posed_joints(rig.skeleton.angles, torch.ones(1, 25, dtype=torch.float64), one)
    )
    rotation, offset, tries = draw_places(
        joints.expand(count, 21, 3), Draws(7, "test of places", range(count)), distribution
    )
    assert tries.min() == 0
    return joints @ rotation.mT + offset[:, None], rotation[..., 2]


def test_distribution() -> None:
    joints, palms = placed(HandDistribution())
    depth = joints[..., 2].mean(1)
    assert depth.min() >= 350 and depth.max() <= 1000 and depth.std() > 150
    projected = 480 * joints[..., :2] / joints[..., 2:]
    assert ((projected.abs() <= 112).all(-1).sum(-1) >= 15).all()
    towards_camera = -palms[:, 2]
    assert towards_camera.min() >= math.cos(math.radians(60)) - 1e-5
    assert towards_camera.min() < 0.55, "the whole cap of orientations is used"
    whole, _ = placed(HandDistribution(nearest_mm=400, farthest_mm=800, visible_joints=21))
    assert (480 * whole[..., :2] / whole[..., 2:]).abs().max() <= 112


def test_back_facing_and_uniform_orientations() -> None:
    _, back = placed(HandDistribution(facing="back"), 64)
    assert (back[:, 2] > 0.49).all()
    _, palms = placed(UNIFORM, 2000)
    assert palms.mean(0).abs().max() < 0.05
    assert (palms[:, 2].abs().mean() - 0.5).abs() < 0.03, "the height on a uniform sphere is uniform"


@pytest.mark.parametrize(
    "wrong", [{"facing": "side"}, {"tilt_deg": 0}, {"nearest_mm": 100}, {"visible_joints": 22}]
)
def test_refuses_invalid_distributions(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong)).split("_")[0]):
        HandDistribution(**wrong)
