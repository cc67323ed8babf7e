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
        torch.tensor([[4.0, 9.0], [-2.0, 0.0]]),
        torch.tensor([[True, False], [True, True]]),
        torch.tensor([[[0.5], [0.0]], [[0.25], [0.0]]]),
        torch.zeros(2, 2, 1, 3),
    )
    field = FieldValues(
        torch.tensor([[1.0, -30.0], [-2.0, 6.0]]),  # clamped at 5 mm: 3, 10, 0 and 5 mm off
        torch.tensor([[[0.5 + 3], [7.0]], [[0.25 - 0.4], [0.0]]]),  # 3 and -0.4 off near the surface
        torch.tensor([[[[0.0, 0.0, 2.0]], [[9.0, 9.0, 9.0]]], [[[0.0, 0.6, 0.0]], [[0.0, 0.0, 0.0]]]]),
    )
    near = LossConfig(vote_normalisation="near", vote_beta=1.0)
    for config, weight, direction in (
        # Huber losses 2.5 and 0.08, 1.5 and 0.18, over 2 x 2 x 1 x 4 elements.
        (PAPER, (2.5 + 0.08) / 16, (1.5 + 0.18) / 16),
        # With beta 0.5: 2.75 and 0.16, 1.75 and 0.35.
        (replace(PAPER, vote_beta=0.5), (2.75 + 0.16) / 16, (1.75 + 0.35) / 16),
        # Means over one and two near points; of directions over each image's labelled point, and x, y, z.
        (near, (2.5 / 1 + 0.08 / 2) / 2, (1.5 / 3 + 0.18 / 3) / 2),
    ):
        terms = field_losses(field, targets, config)
        expected = {"sdf": (3 + 10 + 0 + 5) / 4 / 50, "weight": weight, "direction": direction}
        expected["loss"] = expected["sdf"] + config.vote_weight * (weight + direction)
        assert {name: value.item() for name, value in terms.items()} == pytest.approx(expected)


def test_paper_defaults_disable_additional_terms(
    predicted: tuple[Tensor, Tensor, Tensor], targets: Targets
) -> None:
    assert set(field_losses(FieldValues(*predicted), targets, PAPER)) == {
        "sdf",
        "weight",
        "direction",
        "loss",
    }


def test_perfect_prediction_has_no_loss(targets: Targets) -> None:
    for config in (PAPER, LossConfig(vote_normalisation="near", wide_weight=0.2)):
        terms = field_losses(FieldValues(targets.sdf, targets.weight, targets.direction), targets, config)
        assert all(value == 0 for value in terms.values())


@pytest.mark.parametrize("normalisation", ["elements", "near"])
def test_votes_of_far_points_have_no_loss(
    predicted: tuple[Tensor, Tensor, Tensor], targets: Targets, normalisation: str
) -> None:
    config = replace(PAPER, vote_normalisation=normalisation)
    weight, direction = (each.clone().requires_grad_() for each in predicted[1:])
    sum(vote_losses(weight, direction, targets, config)).backward()
    for gradient in (weight.grad, direction.grad):
        assert gradient[~targets.near].count_nonzero() == 0
        assert gradient[targets.near].count_nonzero() > 0
    if normalisation == "near":
        assert direction.grad[targets.weight == 0].count_nonzero() == 0


def test_no_near_point_gives_zero_not_nan(predicted: tuple[Tensor, Tensor, Tensor], targets: Targets) -> None:
    far = targets._replace(
        near=torch.zeros_like(targets.near), weight=0 * targets.weight, direction=0 * targets.direction
    )
    for normalisation in ("elements", "near"):
        terms = field_losses(FieldValues(*predicted), far, replace(PAPER, vote_normalisation=normalisation))
        assert terms["weight"] == 0
        assert terms["direction"] == 0


def test_wide_term_has_gradients_outside_the_clamp(targets: Targets) -> None:
    far = Targets(*(value[:1, :3] for value in targets))._replace(sdf=torch.full((1, 3), 40.0))
    for wide, pulled in ((0.0, False), (0.2, True)):
        sdf = torch.full((1, 3), 20.0, requires_grad=True)
        config = replace(PAPER, wide_weight=wide)
        field_losses(FieldValues(sdf, far.weight, far.direction), far, config)["loss"].backward()
        assert bool((sdf.grad < 0).all()) is pulled
        terms = field_losses(FieldValues(sdf, far.weight, far.direction), far, config)
        assert terms["loss"].item() == pytest.approx(wide * 20 / 50)  # 20 mm off, beyond the clamp of 5 mm


def test_targets_follow_the_configuration() -> None:
    points = torch.tensor([[[10.0, 0, 500], [0, 20, 500], [0, 0, 530], [5, 0, 500]]])
    sdf = torch.tensor([[3.0, -4.0, 2.0, -9.0]])
    config = LossConfig(surface_mm=5.0, ball_mm=40.0, nearest=2)
    targets = Targets.build(points, sdf, torch.tensor([[[0.0, 0, 500]]]), config)
    assert targets.near.tolist() == [[True, True, True, False]]
    assert targets.weight.flatten().tolist() == [0.75, 0.5, 0, 0], "two nearest of three near points"


@pytest.mark.parametrize("normalisation", ["elements", "near"])
def test_vote_losses_are_means_over_joints(
    predicted: tuple[Tensor, Tensor, Tensor], targets: Targets, normalisation: str
) -> None:
    config = replace(PAPER, vote_normalisation=normalisation)
    twice = targets._replace(
        weight=targets.weight.repeat(1, 1, 2), direction=targets.direction.repeat(1, 1, 2, 1)
    )
    _, weight, direction = predicted
    found = vote_losses(weight.repeat(1, 1, 2), direction.repeat(1, 1, 2, 1), twice, config)
    torch.testing.assert_close(found, vote_losses(weight, direction, targets, config))


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
        torch.nn.init.zeros_(parameter)  # log depth 0, relative depths 0
    joints = torch.tensor([0.0, 0.0, 600.0]).repeat(2, 21, 1)
    joints[:, 0, 2], joints[:, 1, 2] = 640.0, 560.0
    losses = head.losses(torch.zeros(2, 8, 6, 6), joints, torch.tensor([30.0, 60.0]))
    assert losses["auxiliary_depth"].item() == pytest.approx((math.log(20) + math.log(10)) / 2)
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
