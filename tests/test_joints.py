"""Networks with another number of joints or of image channels, from the configuration to the pose."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nvf_fast.baselines import build
from nvf_fast.checkpoint import load_checkpoint, save_checkpoint
from nvf_fast.config import NVFConfig
from nvf_fast.estimator import PoseEstimator
from nvf_fast.evaluation.predictors import NetworkPredictor
from nvf_fast.model import NVF
from nvf_fast.overlay import draw_poses
from nvf_fast.training.config import small
from nvf_fast.training.losses import LossConfig, Targets, field_losses
from tests.reference_cases import reference_network

K = np.array([[100.0, 0, 47.5], [0, 100, 39.5], [0, 0, 1]])


def body_network(**config: Any) -> NVF:
    return reference_network(
        nearness=1.0, joints=17, hand_scale=False, scale_optional=False, **{"image_channels": 4} | config
    )


def image(channels: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (80, 96, channels), dtype=np.uint8)


@pytest.mark.parametrize(("search", "step_mm"), [("dense", 32.0), ("octree", 16.0)])
def test_estimates_have_the_joints_of_the_network(search: Any, step_mm: float) -> None:
    model = body_network()
    pose = PoseEstimator(model, step_mm, search=search)([image(4)] * 2, K, return_votes=True)
    assert pose.valid.all() and np.isfinite(pose.joints).all()
    assert pose.joints.shape == (2, 17, 3) and pose.joints_2d.shape == (2, 17, 2)
    assert pose.scores.shape == (2, 17) and pose.votes is not None and pose.side is None
    votes = pose.votes[0]
    assert votes.weights.shape[1:] == (17,) and votes.directions.shape[1:] == (17, 3)
    # The joints are those of the votes: Eq. 9 with all of each joint's best half.
    order = np.argsort(-votes.weights, 0, kind="stable")[: int(len(votes.points) * 0.5)]
    for joint in range(17):
        rows = order[:, joint]
        weights = votes.weights[rows, joint, None].astype(np.float64)
        targets = votes.points[rows] + 80 * (1 - weights) * votes.directions[rows, joint]
        expected = (weights * targets).sum(0) / weights.sum()
        np.testing.assert_allclose(pose.joints[0, joint], expected, atol=1e-3)  # mm; measured: 1e-4


def test_fourth_channel_matters() -> None:
    estimator = PoseEstimator(body_network(), 32.0)
    changed = image(4)
    changed[..., 3] = 255 - changed[..., 3]
    poses = [estimator(each, K) for each in (image(4), changed)]
    assert np.abs(poses[0].joints - poses[1].joints).max() > 0.01
    with pytest.raises(ValueError, match=r"\(H, W, 4\).* as the network takes it, got shape \(80, 96, 3\)"):
        estimator(image(3), K)


@pytest.mark.parametrize("method", ["nvf", "holistic", "dense"])
def test_checkpoints_keep_joints_and_channels(method: Any, tmp_path: Path) -> None:
    config = replace(body_network().config, method=method)
    save_checkpoint(build(config), tmp_path, {}, torch.float32)
    model, _ = load_checkpoint(tmp_path)
    assert model.config == config
    pose = PoseEstimator(model)(image(4), K)
    assert pose.joints.shape == (17, 3)


def test_older_configurations_are_of_hands() -> None:
    values = NVFConfig().to_dict()
    del values["joints"], values["image_channels"]
    config = NVFConfig.from_dict(json.loads(json.dumps(values)))
    assert (config.joints, config.image_channels) == (21, 3)


def test_losses_have_the_joints_of_the_network() -> None:
    model = NVF(body_network(image_channels=1).config)
    joints = torch.randn(2, 17, 3) * 20 + torch.tensor([0, 0, 400.0])
    points = joints[:, :8] + torch.randn(2, 8, 3)
    targets = Targets.build(points, torch.zeros(2, 8), joints, LossConfig())
    field = model(torch.randn(2, 1, 64, 64), points, model.reference_intrinsics)
    assert field.weight.shape == targets.weight.shape == (2, 8, 17)
    field_losses(field, targets, LossConfig())["loss"].backward()
    gradient = model.field.weights[-1].grad
    # The first row is the distance's, which the clamp of a new network hides.
    assert gradient is not None and gradient[1:].abs().sum(1).gt(0).all()


def test_poses_are_drawn_with_given_bones() -> None:
    pose = PoseEstimator(body_network(), 32.0)(image(4), K)
    pose = replace(pose, joints_2d=np.random.default_rng(1).uniform(10, 70, (17, 2)))
    canvas = np.zeros((80, 96, 3), np.uint8)
    without, with_bones = (
        np.asarray(draw_poses(canvas, pose, bones=bones)) for bones in (None, [(0, 1), (1, 2), (2, 3)])
    )
    assert 0 < (without > 0).any(-1).sum() < (with_bones > 0).any(-1).sum()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"joints": 17}, r"hand_scale=True needs a hand's joints=21, got joints=17"),
        (
            {"joints": 17, "hand_scale": False, "view": "hand"},
            r'view="hand" needs a hand\'s joints=21, got joints=17',
        ),
        ({"joints": 0, "hand_scale": False}, "joints must be at least 1, got 0"),
        ({"image_channels": 0}, "image_channels must be at least 1, got 0"),
    ],
)
def test_hands_need_their_joints(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NVFConfig(**changes)


def test_hand_data_and_guided_search_refuse_other_joints() -> None:
    model = body_network()
    with pytest.raises(ValueError, match='search="guided" follows the bones of a hand'):
        PoseEstimator(model, search="guided")
    with pytest.raises(ValueError, match="hands with 21 joints, the network has 17"):
        NetworkPredictor(PoseEstimator(model))
    with pytest.raises(ValueError, match="takes 4 channels and has 17 joints: train it in another loop"):
        replace(small(), model=model.config)
