"""Losses against Eqs. 5-7 read one element at a time, and what the additions may and may not do."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from nvf_fast.model import Field
from nvf_fast.training.losses import AuxiliaryHead, LossConfig, Targets, field_losses, mean_terms, vote_losses

PAPER = LossConfig()


def clamp(value: float, limit: float) -> float:
    return max(-limit, min(limit, value))


def huber(difference: float, beta: float) -> float:
    difference = abs(difference)
    return 0.5 * difference**2 / beta if difference < beta else difference - 0.5 * beta


def by_hand(
    sdf: Tensor, weight: Tensor, direction: Tensor, targets: Targets, config: LossConfig
) -> dict[str, float]:
    """The paper's losses, sdf / 50 mm, element by element."""
    batch, count, joints = weight.shape
    at_sdf = at_weight = at_direction = 0.0
    for b in range(batch):
        for n in range(count):
            truth = float(targets.sdf[b, n])
            at_sdf += abs(clamp(float(sdf[b, n]) / 50, 0.1) - clamp(truth / 50, 0.1))
            if abs(truth) >= config.surface_mm:
                continue
            for j in range(joints):
                at_weight += huber(float(weight[b, n, j] - targets.weight[b, n, j]), config.vote_beta)
                for axis in range(3):
                    difference = float(direction[b, n, j, axis] - targets.direction[b, n, j, axis])
                    at_direction += huber(difference, config.vote_beta)
    elements = batch * count * joints * 4
    terms = {
        "sdf": at_sdf / (batch * count),
        "weight": at_weight / elements,
        "direction": at_direction / elements,
    }
    return {**terms, "loss": terms["sdf"] + config.vote_weight * (terms["weight"] + terms["direction"])}


@pytest.fixture
def predicted() -> tuple[Tensor, Tensor, Tensor]:
    return 12 * torch.randn(2, 17), torch.randn(2, 17, 21), 2 * torch.randn(2, 17, 21, 3)


@pytest.fixture
def targets() -> Targets:
    points = torch.tensor([0.0, 0.0, 500.0]) + 30 * torch.randn(2, 17, 3)
    joints = torch.tensor([0.0, 0.0, 500.0]) + 40 * torch.randn(2, 21, 3)
    return Targets.build(points, 8 * torch.randn(2, 17), joints, PAPER)


@pytest.mark.parametrize("beta", [1.0, 0.2])
def test_matches_the_equations(
    predicted: tuple[Tensor, Tensor, Tensor], targets: Targets, beta: float
) -> None:
    assert 0 < targets.near.sum() < targets.near.numel()
    config = replace(PAPER, vote_beta=beta)
    terms = field_losses(Field(*predicted), targets, config)
    for name, value in by_hand(*predicted, targets, config).items():
        # sums of about 700 float32 terms
        torch.testing.assert_close(terms[name].item(), value, rtol=1e-5, atol=1e-7, msg=name)


def test_paper_defaults_hold_no_addition(predicted: tuple[Tensor, Tensor, Tensor], targets: Targets) -> None:
    assert set(field_losses(Field(*predicted), targets, PAPER)) == {"sdf", "weight", "direction", "loss"}


def test_perfect_prediction_has_no_loss(targets: Targets) -> None:
    for config in (PAPER, LossConfig(vote_normalisation="near", wide_weight=0.2)):
        terms = field_losses(Field(targets.sdf, targets.weight, targets.direction), targets, config)
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


def test_near_normalisation_is_a_mean_per_image(
    predicted: tuple[Tensor, Tensor, Tensor], targets: Targets
) -> None:
    config = replace(PAPER, vote_normalisation="near", vote_beta=0.5)
    expected_weight, expected_direction = [], []
    for image in range(2):
        near = targets.near[image]
        labelled = targets.weight[image] > 0
        differences = (predicted[1] - targets.weight)[image][near].flatten().tolist()
        expected_weight.append(sum(huber(x, 0.5) for x in differences) / len(differences))
        differences = (predicted[2] - targets.direction)[image][labelled].flatten().tolist()
        expected_direction.append(sum(huber(x, 0.5) for x in differences) / len(differences))
    at_weight, at_direction = vote_losses(*predicted[1:], targets, config)
    assert at_weight.item() == pytest.approx(sum(expected_weight) / 2, rel=1e-5)
    assert at_direction.item() == pytest.approx(sum(expected_direction) / 2, rel=1e-5)


def test_no_near_point_gives_zero_not_nan(predicted: tuple[Tensor, Tensor, Tensor], targets: Targets) -> None:
    far = Targets(
        targets.sdf + 1000, torch.zeros_like(targets.near), 0 * targets.weight, 0 * targets.direction
    )
    for normalisation in ("elements", "near"):
        terms = field_losses(Field(*predicted), far, replace(PAPER, vote_normalisation=normalisation))
        assert terms["weight"] == 0
        assert terms["direction"] == 0


def test_wide_term_pulls_where_the_paper_does_not(targets: Targets) -> None:
    far = Targets(
        torch.full((1, 3), 40.0),
        *(value[:1, :3] for value in (targets.near, targets.weight, targets.direction)),
    )
    for wide, pulled in ((0.0, False), (0.2, True)):
        sdf = torch.full((1, 3), 20.0, requires_grad=True)
        config = replace(PAPER, wide_weight=wide)
        field_losses(Field(sdf, far.weight, far.direction), far, config)["loss"].backward()
        assert bool((sdf.grad < 0).all()) is pulled


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
    # The same image shows a hand twice as large at twice the distance.
    twice = head.losses(torch.zeros(2, 8, 6, 6), 2 * joints, torch.tensor([60.0, 120.0]))
    assert {name: value.item() for name, value in twice.items()} == pytest.approx(
        {name: value.item() for name, value in losses.items()}
    )


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
