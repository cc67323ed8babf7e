"""The synthetic hand: anatomy, placement, distances, exact augmentations."""

import math

import numpy as np
import pytest
import torch

from nvf_fast.data.hand import (
    CAPSULES,
    FINGER_PHALANGES,
    THUMB_BONES,
    UNIFORM,
    HandDistribution,
    Hands,
    rotation_about,
    sample_hands,
)
from nvf_fast.data.mesh import hand_mesh


@pytest.fixture(scope="module")
def hands() -> Hands:
    return sample_hands(512, torch.Generator().manual_seed(7))


def test_bone_lengths_follow_the_cited_means_and_spread(hands: Hands) -> None:
    expected = torch.tensor(
        [
            THUMB_BONES[0],
            THUMB_BONES[1],
            THUMB_BONES[2],
            *[bone for finger in FINGER_PHALANGES for bone in finger],
        ]
    )
    pairs = [(1, 2), (2, 3), (3, 4)] + [(5 + 4 * f + k, 6 + 4 * f + k) for f in range(4) for k in range(3)]
    lengths = torch.stack([(hands.joints[:, a] - hands.joints[:, b]).norm(dim=-1) for a, b in pairs], -1)
    assert torch.allclose(lengths.mean(0), expected, rtol=0.02)
    assert ((lengths.std(0) / lengths.mean(0) - 0.085).abs() < 0.015).all()
    assert torch.equal(hands.hand_scale, (hands.joints[:, 9] - hands.joints[:, 10]).norm(dim=-1))


def test_placement_keeps_the_promised_distances_angles_and_joints(hands: Hands) -> None:
    depth = hands.joints[..., 2].mean(1)
    assert depth.min() >= 350 and depth.max() <= 1000 and depth.std() > 150
    uv = 480 * hands.joints[..., :2] / hands.joints[..., 2:]
    assert ((uv.abs() <= 112).all(-1).sum(-1) >= 15).all()
    towards_camera = -hands.palm[:, 2]
    assert towards_camera.min() >= math.cos(math.radians(60)) - 1e-5
    assert towards_camera.min() < 0.55, "the whole cap of orientations is used"


def test_back_facing_and_uniform_orientations() -> None:
    back = sample_hands(64, torch.Generator().manual_seed(1), HandDistribution(facing="back"))
    assert (back.palm[:, 2] > 0.49).all()
    anyhow = sample_hands(2000, torch.Generator().manual_seed(2), UNIFORM)
    assert anyhow.palm.mean(0).abs().max() < 0.05
    assert (anyhow.palm[:, 2].abs().mean() - 0.5).abs() < 0.03, "the height on a uniform sphere is uniform"


def test_it_is_a_right_hand(hands: Hands) -> None:
    towards_thumb = hands.joints[:, 5] - hands.joints[:, 17]
    towards_tips = hands.joints[:, 9] - hands.joints[:, 0]
    normal = torch.linalg.cross(towards_thumb, towards_tips)
    assert ((normal * hands.palm).sum(-1) > 0).all()


def test_fingers_bend_towards_the_palm(hands: Hands) -> None:
    tip = hands.joints[:, 12] - hands.joints[:, 9]
    # A middle finger of at most 120 mm, bent back by at most 22 degrees.
    assert ((tip * hands.palm).sum(-1) > -120 * math.sin(math.radians(22))).all() and (
        (tip * hands.palm).sum(-1) > 0
    ).float().mean() > 0.7


def test_same_seed_same_hands() -> None:
    first, second = (sample_hands(8, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first.nodes, second.nodes) and torch.equal(first.radii, second.radii)


def test_signed_distance_of_a_single_cone_is_exact(hands: Hands) -> None:
    """Against the definition: the union of the spheres along the axis."""
    one = hands[:1]
    hand = Hands(one.nodes.double(), one.radii.double(), one.dorsal.double(), one.palm.double())
    points = (
        hand.joints.mean(1, keepdim=True)
        + 80 * torch.randn(1, 200, 3, generator=torch.Generator().manual_seed(0)).double()
    )
    at = torch.linspace(0, 1, 4001, dtype=torch.float64)[:, None]
    measured = hand._cone_distances(points)[0][0]
    for cone, (a, b) in enumerate(CAPSULES):
        centres = hand.nodes[0, a] + at * (hand.nodes[0, b] - hand.nodes[0, a])
        radii = hand.radii[0, cone, 0] + at[:, 0] * (hand.radii[0, cone, 1] - hand.radii[0, cone, 0])
        expected = (torch.cdist(points[0], centres) - radii).amin(-1)
        assert torch.allclose(measured[:, cone], expected, atol=1e-4)


def test_signed_distance_against_a_mesh(hands: Hands) -> None:
    trimesh = pytest.importorskip("trimesh")
    pytest.importorskip("skimage")
    pytest.importorskip("rtree")
    generator = torch.Generator().manual_seed(0)
    for index in range(2):
        hand = hands[index : index + 1]
        vertices, faces = hand_mesh(hand, spacing_mm=2.0)
        mesh = trimesh.Trimesh(vertices, faces, process=False)
        assert mesh.is_watertight and mesh.body_count == 1 and 120e3 < mesh.volume < 600e3
        points = hand.sample_surface(150, generator) + 5 * torch.randn(1, 150, 3, generator=generator)
        ours = hand.signed_distance(points)[0].numpy()
        theirs = -trimesh.proximity.signed_distance(mesh, points[0].double().numpy())
        clear = np.abs(theirs) > 0.5
        assert (np.sign(ours) == np.sign(theirs))[clear].all()
        # The smooth union is a bound where cones blend: 0.15 to 0.18 mm in the mean, measured on three hands.
        assert np.abs(ours - theirs)[np.abs(theirs) < 5].mean() < 0.3


def test_surface_points_lie_on_the_surface(hands: Hands) -> None:
    distance = (
        hands[:8].signed_distance(hands[:8].sample_surface(500, torch.Generator().manual_seed(0))).abs()
    )
    assert distance.quantile(0.9) < 0.1 and distance.quantile(0.5) < 1e-3


def test_normals_are_the_gradient(hands: Hands) -> None:
    one = hands[:2]
    hand = Hands(one.nodes.double(), one.radii.double(), one.dorsal.double(), one.palm.double())
    points = (hand.joints + 9.0).clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(hand.signed_distance(points).sum(), points)
    value, normal = hand.distance_and_normal(points.detach())
    assert torch.allclose(torch.nn.functional.normalize(gradient, dim=-1), normal, atol=1e-9)
    assert torch.allclose(value, hand.signed_distance(points.detach()))


def test_rotation_and_scaling_are_exact(hands: Hands) -> None:
    few = hands[:4]
    points = few.sample_surface(64, torch.Generator().manual_seed(0)) + 2
    angle = torch.tensor([0.1, -0.4, 1.0, 3.0])
    rotation = rotation_about(torch.tensor([0.0, 0.0, 1.0]).expand(4, 3), angle)
    turned = few.rotated(rotation).signed_distance(points @ rotation.transpose(1, 2))
    assert torch.allclose(turned, few.signed_distance(points), atol=2e-2)  # float32 at 1 m: 0.01 mm
    factor = torch.tensor([0.9, 1.0, 1.1, 1.2])
    grown = few.scaled(factor)
    assert torch.allclose(grown.hand_scale, few.hand_scale * factor)
    project = lambda joints: joints[..., :2] / joints[..., 2:]  # noqa: E731 - local shorthand
    assert torch.allclose(project(grown.joints), project(few.joints), atol=1e-6)


@pytest.mark.parametrize(
    "wrong", [{"facing": "side"}, {"tilt_deg": 0}, {"nearest_mm": 100}, {"visible_joints": 22}]
)
def test_impossible_distributions_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong)).split("_")[0]):
        HandDistribution(**wrong)
