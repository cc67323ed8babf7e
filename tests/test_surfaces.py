"""Surfaces of hands as training asks them, round cones and meshes alike."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import trimesh

from nvf_fast.data.hand import Hands, sample_hands
from nvf_fast.data.mesh import hand_mesh
from nvf_fast.data.surfaces import HandSurfaces, MeshHands


@pytest.fixture(scope="module")
def cones() -> Hands:
    return sample_hands(2, torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def meshes(cones: Hands) -> list[MeshHands]:
    """The same hands by marching cubes, each a batch of its own since their topologies differ."""
    found = []
    for index in range(len(cones)):
        vertices, faces = hand_mesh(cones[index : index + 1], spacing_mm=3.0)
        found.append(
            MeshHands(
                torch.tensor(vertices).float()[None], torch.tensor(faces), cones.joints[index : index + 1]
            )
        )
    return found


def test_mesh_and_cones_agree(cones: Hands, meshes: list[MeshHands]) -> None:
    for index, mesh in enumerate(meshes):
        hand = cones[index : index + 1]
        near = hand.sample_surface(500, torch.Generator().manual_seed(0))
        near = near + 5 * torch.randn(near.shape, generator=torch.Generator().manual_seed(1))
        exact, from_mesh = hand.signed_distance(near), mesh.signed_distance(near)
        assert (exact.sign() == from_mesh.sign())[exact.abs() > 0.2].all()
        # Outside, for cones are nearer than the surface where they overlap: chords of a 3 mm lattice, and the
        # blend of n cones, which lowers distances by up to 2 ln n mm.
        assert (exact - from_mesh).abs()[exact > 0].quantile(0.95) < 1.4  # 1.1 measured
        rays = hand.sample_surface(300, torch.Generator().manual_seed(2))
        origins = torch.zeros_like(rays)
        first, other = hand.first_hit(origins, rays), mesh.first_hit(origins, rays)
        both = first.isfinite() & other.isfinite()
        assert both.float().mean() > 0.9  # rays to points on the outline may pass it
        difference = ((first - other).abs() * rays.norm(dim=-1))[both]
        assert difference.median() < 0.3 and difference.quantile(0.9) < 2.0
        assert torch.equal(mesh.hand_scale, hand.hand_scale)


@pytest.mark.parametrize("kind", ["cones", "mesh"])
def test_motions_carry_everything_along(cones: Hands, meshes: list[MeshHands], kind: str) -> None:
    hand: HandSurfaces = cones[:1] if kind == "cones" else meshes[0]
    points = hand.sample_surface(200, torch.Generator().manual_seed(0)) + 4.0
    before = hand.signed_distance(points)
    angle = torch.tensor([0.3])
    turn = torch.tensor([[[angle.cos(), -angle.sin(), 0], [angle.sin(), angle.cos(), 0], [0, 0, 1]]])
    offset = torch.tensor([[10.0, -250.0, 40.0]])
    moved = hand.rotated(turn).translated(offset)
    to = points @ turn.mT + offset[:, None]
    torch.testing.assert_close(moved.signed_distance(to), before, rtol=0, atol=2e-3)
    torch.testing.assert_close(moved.joints, hand.joints @ turn.mT + offset[:, None], rtol=0, atol=1e-3)
    grown = hand.scaled(torch.tensor([1.25]))
    torch.testing.assert_close(grown.hand_scale, 1.25 * hand.hand_scale)
    if kind == "mesh":  # of cones the blend keeps its size
        torch.testing.assert_close(grown.signed_distance(1.25 * points), 1.25 * before, rtol=0, atol=2e-3)


def test_mesh_points_are_uniform_by_area() -> None:
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
    assert side[:, 1:].mean(0).abs().max() < 1.5  # triangles are filled evenly, 0.5 measured
    assert side[:, 1:].std(0).tolist() == pytest.approx([20 / 12**0.5, 60 / 12**0.5], rel=0.05)


def test_a_ray_hits_a_cone_hand_where_its_distance_is_zero(cones: Hands) -> None:
    target = cones.nodes[:, 21:25]
    origins = target + torch.tensor([0.0, 0.0, -200.0])
    along = cones.first_hit(origins, torch.tensor([0.0, 0.0, 2.0]).expand_as(origins))
    points = origins + along[..., None] * torch.tensor([0.0, 0.0, 2.0])
    assert cones.signed_distance(points).abs().max() < 0.02
    away = cones.first_hit(origins, torch.tensor([0.0, 0.0, -1.0]).expand_as(origins))
    assert away.isinf().all()
    assert not cones.first_hit(target, torch.tensor([1.0, 0.0, 0.0]).expand_as(target)).any()  # begins inside


def test_stacks_only_what_shares_faces(cones: Hands, meshes: list[MeshHands]) -> None:
    again = Hands.stack([cones[:1], cones[1:]])
    assert torch.equal(again.nodes, cones.nodes) and torch.equal(again.palm, cones.palm)
    twice = MeshHands.stack([meshes[0], meshes[0].translated(torch.ones(1, 3))])
    assert len(twice) == 2 and torch.equal(twice.vertices[1], meshes[0].vertices[0] + 1)
    with pytest.raises(ValueError, match="must share their faces"):
        MeshHands.stack(meshes)
