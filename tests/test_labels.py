"""Voting labels: known points and the outputs of the authors' function."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from nvf_fast.training.losses import voting_labels


def test_known_points_get_the_labels_of_the_paper() -> None:
    joints = torch.tensor([[[0.0, 0.0, 500.0], [0.0, 300.0, 500.0]]])
    points = joints[:, :1] + torch.tensor(
        [[20.0, 0, 0], [0, -40.0, 0], [0, 30.0, 40.0], [0, 0, 81.0], [8.0, 0, 0]]
    )
    near = torch.tensor([[True, True, True, True, False]])
    # Closeness 1 - distance / 80 and the unit vector to the joint; zero beyond 80 mm and off the surface.
    expected = torch.tensor([0.75, 0.5, 0.375, 0, 0])
    towards = torch.tensor([[-1.0, 0, 0], [0, 1, 0], [0, -0.6, -0.8], [0, 0, 0], [0, 0, 0]])
    for nearest in (1024, 5, 3, 2):
        weight, direction = voting_labels(points, joints, near, 80.0, nearest)
        kept = torch.arange(5) < nearest  # the points are sorted by distance
        torch.testing.assert_close(weight[0, :, 0], expected * kept)
        torch.testing.assert_close(direction[0, :, 0], towards * kept[:, None])
        assert not weight[..., 1].any() and not direction[..., 1, :].any()
    weight, _ = voting_labels(points, joints, near, 160.0)
    torch.testing.assert_close(weight[0, :4, 0], 1 - torch.tensor([20.0, 40, 50, 81]) / 160)


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
