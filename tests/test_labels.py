"""Voting labels: the authors' function's outputs, and a per-element reading of Eqs. 1-3."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nvf_fast.training.labels import voting_labels


def by_hand(
    points: Tensor, joints: Tensor, near: Tensor, ball_mm: float, nearest: int
) -> tuple[Tensor, Tensor]:
    """Eqs. 1-3, one point and one joint at a time."""
    batch, count, joint_count = points.shape[0], points.shape[1], joints.shape[1]
    weight, direction = torch.zeros(batch, count, joint_count), torch.zeros(batch, count, joint_count, 3)
    for image in range(batch):
        for joint in range(joint_count):
            distances = [
                (math.dist(points[image, n], joints[image, joint]), n) for n in range(count) if near[image, n]
            ]
            for distance, n in sorted(distances)[:nearest]:
                if distance < ball_mm:
                    weight[image, n, joint] = 1 - distance / ball_mm
                    direction[image, n, joint] = (joints[image, joint] - points[image, n]) / distance
    return weight, direction


@pytest.mark.parametrize(
    ("count", "nearest", "ball_mm"), [(1, 5, 80.0), (63, 7, 80.0), (63, 63, 40.0), (40, 1024, 120.0)]
)
def test_matches_the_equations(count: int, nearest: int, ball_mm: float) -> None:
    points, joints = 60 * torch.randn(2, count, 3), 60 * torch.randn(2, 21, 3)
    near = torch.rand(2, count) < 0.6
    weight, direction = voting_labels(points, joints, near, ball_mm, nearest)
    expected_weight, expected_direction = by_hand(points, joints, near, ball_mm, nearest)
    # float32 against Python's float64 at 100 mm: 4e-7 measured for weights, 3e-7 for directions
    torch.testing.assert_close(weight, expected_weight, atol=2e-6, rtol=0)
    torch.testing.assert_close(direction, expected_direction, atol=2e-6, rtol=0)
    assert count == 1 or expected_weight.count_nonzero() > 0


def test_authors_cases(shared_dir: Path) -> None:
    cases = json.loads((shared_dir / "protocol" / "vectors_vote_public.json").read_text())["label_cases"]
    assert cases
    for case in cases:
        points = torch.tensor(case["points_mm"]).transpose(1, 2)  # stored (B, 3, N)
        joints = torch.tensor(case["gt_joint_mm"])
        near = torch.ones(points.shape[:2], dtype=torch.bool)
        if case["use_vote_mask"]:
            near = torch.tensor(case["vote_mask"]) == 1
        labels = torch.tensor(case["heatmap"])  # (B, J, 4, N)
        weight, direction = voting_labels(points, joints, near, case["ball_radius_mm"], case["knn_K"])
        # the file's own tolerance: 2e-6, and 5e-7 from its rounding
        torch.testing.assert_close(
            weight, labels[:, :, 0].transpose(1, 2), atol=2.5e-6, rtol=0, msg=case["id"]
        )
        torch.testing.assert_close(
            direction, labels[:, :, 1:].permute(0, 3, 1, 2), atol=2.5e-6, rtol=0, msg=case["id"]
        )


def test_point_on_a_joint_has_full_weight_and_no_direction() -> None:
    points = torch.tensor([[[10.0, 20.0, 500.0]]])
    weight, direction = voting_labels(points, points, torch.tensor([[True]]))
    assert weight.item() == 1
    assert direction.count_nonzero() == 0


@pytest.mark.parametrize(
    ("points", "joints", "near"),
    [
        (torch.zeros(2, 5, 2), torch.zeros(2, 21, 3), torch.ones(2, 5, dtype=torch.bool)),
        (torch.zeros(2, 5, 3), torch.zeros(3, 21, 3), torch.ones(2, 5, dtype=torch.bool)),
        (torch.zeros(2, 5, 3), torch.zeros(2, 21, 3), torch.ones(2, 4, dtype=torch.bool)),
        (torch.zeros(2, 5, 3), torch.zeros(2, 21, 3), torch.ones(2, 5)),
    ],
)
def test_refuses_mismatched_shapes(points: Tensor, joints: Tensor, near: Tensor) -> None:
    with pytest.raises(ValueError, match="got"):
        voting_labels(points, joints, near)
