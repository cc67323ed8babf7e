"""Mesh surfaces of hands: distances, rays, motions, samples uniform by area."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh

from nvf_fast.data.surfaces import MeshHands
from tests.sampled_hands import sample_hands


@pytest.fixture(scope="module")
def hands() -> MeshHands:
    return sample_hands(2, torch.Generator().manual_seed(5))


def test_rays_hit_where_the_distance_is_zero(hands: MeshHands) -> None:
    targets = hands.sample_surface(100, torch.Generator().manual_seed(0))
    hit = hands.first_hit(torch.zeros_like(targets), 0.5 * targets)
    # Rays to points on the outline may miss the hand; the others hit it there or earlier.
    assert hit.isfinite().float().mean() > 0.9 and hit[hit.isfinite()].max() < 2 + 1e-4
    points = (0.5 * hit[..., None] * targets)[:, hit.isfinite().all(0)]
    assert hands.signed_distance(points).abs().max() < 1e-2
    inside = targets + 1.0 * targets / targets.norm(dim=-1, keepdim=True)
    entered = hands.signed_distance(inside) < 0
    assert entered[hit > 2 - 1e-4].float().mean() > 0.9, "negative behind the visible surface"
    assert hands.first_hit(torch.zeros_like(targets), -targets).isinf().all()


def test_motions(hands: MeshHands) -> None:
    points = hands.sample_surface(200, torch.Generator().manual_seed(0)) + 4.0
    before = hands.signed_distance(points)
    angle = torch.tensor([0.3, -1.0])
    zero, one = torch.zeros(2), torch.ones(2)
    rows = [angle.cos(), -angle.sin(), zero, angle.sin(), angle.cos(), zero, zero, zero, one]
    turn = torch.stack(rows, -1).unflatten(1, (3, 3))
    offset = torch.tensor([[10.0, -250.0, 40.0], [0.0, 5.0, -30.0]])
    moved = hands.rotated(turn).translated(offset)
    to = points @ turn.mT + offset[:, None]
    torch.testing.assert_close(moved.signed_distance(to), before, rtol=0, atol=2e-3)
    torch.testing.assert_close(moved.joints, hands.joints @ turn.mT + offset[:, None], rtol=0, atol=1e-3)
    grown = hands.scaled(torch.tensor([1.25, 0.8]))
    factor = torch.tensor([[1.25], [0.8]])
    torch.testing.assert_close(grown.hand_scale, factor[:, 0] * hands.hand_scale)
    distances = grown.signed_distance(factor[..., None] * points)
    torch.testing.assert_close(distances, factor * before, rtol=0, atol=2e-3)


def test_surface_samples() -> None:
    box = trimesh.creation.box((10.0, 20.0, 60.0))
    mesh = MeshHands(
        torch.tensor(np.asarray(box.vertices)).float()[None],
        torch.tensor(np.asarray(box.faces)),
        torch.zeros(1, 21, 3),
    )
    points = mesh.sample_surface(20_000, torch.Generator().manual_seed(0))[0].double()
    assert mesh.signed_distance(points.float()[None]).abs().max() < 1e-5
    ends = (points[:, 2].abs() > 30 - 1e-4).double().mean()
    assert ends == pytest.approx(2 * 200 / box.area, abs=4 * math.sqrt(0.1 * 0.9 / 20_000))
    side = points[(points[:, 0] - 5).abs() < 1e-4]
    assert side[:, 1:].mean(0).abs().max() < 1.5  # uniform within triangles, 0.5 measured
    assert side[:, 1:].std(0).tolist() == pytest.approx([20 / 12**0.5, 60 / 12**0.5], rel=0.05)


def test_stack_needs_shared_faces(hands: MeshHands) -> None:
    again = MeshHands.stack([hands[:1], hands[1:]])
    assert torch.equal(again.vertices, hands.vertices) and torch.equal(again.joints, hands.joints)
    other = replace(hands, faces=hands.faces.roll(1, 0))
    with pytest.raises(ValueError, match="must have the same faces"):
        MeshHands.stack([hands, other])
