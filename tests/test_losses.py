"""Losses of known errors, optional terms, and the auxiliary head."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from nvf_fast.camera import REFERENCE_SLOPE
from nvf_fast.model import FieldValues
from nvf_fast.training.losses import AuxiliaryHead, LossConfig, Targets, field_losses, mean_terms, vote_losses

PAPER = LossConfig()


@pytest.fixture
def predicted() -> tuple[Tensor, Tensor, Tensor]:
    return 12 * torch.randn(2, 17), torch.randn(2, 17, 21), 2 * torch.randn(2, 17, 21, 3)


@pytest.fixture
def targets() -> Targets:
    points = torch.tensor([0.0, 0.0, 500.0]) + 30 * torch.randn(2, 17, 3)
    joints = torch.tensor([0.0, 0.0, 500.0]) + 40 * torch.randn(2, 21, 3)
    return Targets.build(points, 8 * torch.randn(2, 17), joints, PAPER)


def test_known_errors_give_the_losses_of_the_paper() -> None:
    # Two images of two points and one joint; the second point of the first image is far from the surface.
    targets = Targets(
        torch.zeros(2, 2, 3),
        torch.tensor([[4.0, 9.0], [-30.0, 0.0]]),
        torch.tensor([[True, False], [True, True]]),
        torch.tensor([[[0.5], [0.0]], [[0.25], [0.0]]]),
        torch.zeros(2, 2, 1, 3),
    )
    field = FieldValues(
        torch.tensor([[1.0, -30.0], [-7.0, 6.0]]),  # clamped at 5 mm: 3, 10, 0 and 5 mm off
        torch.tensor([[[0.5 + 3], [7.0]], [[0.25 - 0.4], [0.0]]]),  # 3 and -0.4 off near the surface
        torch.tensor([[[[0.0, 0.0, 2.0]], [[9.0, 9.0, 9.0]]], [[[0.0, 0.6, 0.0]], [[0.0, 0.0, 0.8]]]]),
    )
    near = LossConfig(vote_normalisation="near", vote_beta=1.0, wide_weight=0.2)
    for config, weight, direction in (
        # Huber losses 2.5 and 0.08, 1.5, 0.18 and 0.32, over 2 x 2 x 1 x 4 elements.
        (PAPER, (2.5 + 0.08) / 16, (1.5 + 0.18 + 0.32) / 16),
        # With beta 0.5: 2.75 and 0.16, 1.75, 0.35 and 0.55.
        (replace(PAPER, vote_beta=0.5), (2.75 + 0.16) / 16, (1.75 + 0.35 + 0.55) / 16),
        # Means over one and two near points; of directions over each image's labelled point, and x, y, z.
        (near, (2.5 / 1 + 0.08 / 2) / 2, (1.5 / 3 + 0.18 / 3) / 2),
    ):
        terms = field_losses(field, targets, config)
        expected = {"sdf": (3 + 10 + 0 + 5) / 4 / 50, "weight": weight, "direction": direction}
        expected["loss"] = expected["sdf"] + config.vote_weight * (weight + direction)
        if config.wide_weight:
            expected["wide"] = (3 + 39 + 23 + 6) / 4 / 50  # clamped at 50 mm
            expected["loss"] += config.wide_weight * expected["wide"]
        assert {name: value.item() for name, value in terms.items()} == pytest.approx(expected)


def test_no_near_point_gives_zero_not_nan(predicted: tuple[Tensor, Tensor, Tensor], targets: Targets) -> None:
    far = targets._replace(
        near=torch.zeros_like(targets.near), weight=0 * targets.weight, direction=0 * targets.direction
    )
    for normalisation in ("elements", "near"):
        terms = field_losses(FieldValues(*predicted), far, replace(PAPER, vote_normalisation=normalisation))
        assert terms["weight"] == 0
        assert terms["direction"] == 0


def test_targets_follow_the_configuration() -> None:
    points = torch.tensor([[[10.0, 0, 500], [0, 20, 500], [0, 0, 530], [5, 0, 500]]])
    config = LossConfig(surface_mm=5.0, ball_mm=40.0, nearest=2)
    joints, sdf = torch.tensor([[[0.0, 0, 500]]]), torch.tensor([[3.0, -4.0, 2.0, -9.0]])
    targets = Targets.build(points, sdf, joints, config)
    assert targets.near.tolist() == [[True, True, True, False]]
    assert targets.weight.flatten().tolist() == [0.75, 0.5, 0, 0], "two nearest of three near points"


@pytest.mark.parametrize("normalisation", ["elements", "near"])
def test_vote_losses_are_means_over_joints(
    predicted: tuple[Tensor, Tensor, Tensor], targets: Targets, normalisation: str
) -> None:
    config = replace(PAPER, vote_normalisation=normalisation)
    _, weight, direction = predicted
    once = vote_losses(weight, direction, targets, config)
    twice = targets._replace(
        weight=targets.weight.repeat(1, 1, 2), direction=targets.direction.repeat(1, 1, 2, 1)
    )
    found = vote_losses(weight.repeat(1, 1, 2), direction.repeat(1, 1, 2, 1), twice, config)
    torch.testing.assert_close(found, once)


def test_stacks_are_averaged() -> None:
    terms = mean_terms([{"loss": torch.tensor(1.0)}, {"loss": torch.tensor(4.0)}])
    assert terms["loss"] == 2.5


def test_auxiliary_head_learns_a_batch() -> None:
    head = AuxiliaryHead(8, hidden=32)
    features = torch.randn(4, 8, 6, 6)
    joints = torch.tensor([0.0, 0.0, 600.0]) + 60 * torch.randn(4, 21, 3)
    scale = torch.full((4,), 40.0)
    optimiser = torch.optim.Adam(head.parameters(), 3e-2)
    costs = []
    for _ in range(100):
        losses = head.losses(features, joints, scale)
        cost = sum(losses.values())
        optimiser.zero_grad()
        cost.backward()
        optimiser.step()
        costs.append(cost.item())
    assert set(losses) == {"auxiliary_depth", "auxiliary_uv", "auxiliary_relative"}
    assert costs[-1] < 0.2 * costs[0]


def test_auxiliary_depth_is_in_hand_scales() -> None:
    head = AuxiliaryHead(8, hidden=32)
    for parameter in head.parameters():
        torch.nn.init.zeros_(parameter)  # relative depths 0
    with torch.no_grad():
        head.depths.bias[0] = math.log(15)  # depth in hand scales
    joints = torch.tensor([0.0, 0.0, 600.0]).repeat(2, 21, 1)
    joints[:, 0, 2], joints[:, 1, 2] = 640.0, 560.0
    losses = head.losses(torch.zeros(2, 8, 6, 6), joints, torch.tensor([30.0, 60.0]))
    assert losses["auxiliary_depth"].item() == pytest.approx((math.log(20 / 15) + math.log(15 / 10)) / 2)
    relative = 2 * 40 / 21 * (1 / 30 + 1 / 60) / 2  # two joints 40 mm off the mean depth
    assert losses["auxiliary_relative"].item() == pytest.approx(relative)
    # A hand twice as large at twice the distance gives the same image.
    twice = head.losses(torch.zeros(2, 8, 6, 6), 2 * joints, torch.tensor([60.0, 120.0]))
    assert {name: value.item() for name, value in twice.items()} == pytest.approx(
        {name: value.item() for name, value in losses.items()}
    )


def test_auxiliary_places_of_joints_in_view_are_averaged() -> None:
    head = AuxiliaryHead(8, joints=4, hidden=32)
    for parameter in head.parameters():
        torch.nn.init.zeros_(parameter)  # all places (0, 0)
    # In view, in view, beside the view, behind the camera.
    joints = torch.tensor([[[30.0, 0, 500], [0, -60, 600], [400, 0, 500], [0.1, 0, -500]]])
    found = head.losses(torch.zeros(1, 8, 6, 6), joints, torch.tensor([30.0]))["auxiliary_uv"]
    assert found.item() == pytest.approx((30 / 500 + 60 / 600) / REFERENCE_SLOPE / 4)


def test_soft_argmax_reads_aligned_corners() -> None:
    head = AuxiliaryHead(1, joints=1)
    torch.nn.init.constant_(head.maps.weight, 100.0)
    features = torch.zeros(1, 1, 5, 9)
    features[0, 0, 0, 8] = 1.0
    _, uv, _ = head(features)
    torch.testing.assert_close(uv, torch.tensor([[[1.0, -1.0]]]))


@pytest.mark.parametrize(
    "wrong", [{"vote_beta": 0.0}, {"nearest": 0}, {"wide_weight": -1.0}, {"vote_normalisation": "mean"}]
)
def test_refuses_invalid_weights(wrong: dict) -> None:
    with pytest.raises(ValueError, match="got"):
        LossConfig(**wrong)
