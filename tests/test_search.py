"""The searches find the dense grid's voters, on hands whose distances and votes are known."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.taught import teach
from nvf_fast.data.joint_surface import surface_distance
from nvf_fast.data.surfaces import MeshHands
from nvf_fast.estimator import PoseEstimator
from nvf_fast.grid import Lattice
from nvf_fast.kernels.cast_votes.reference import cast_votes
from nvf_fast.search import Cast, Found, Sizes, guided, octree
from nvf_fast.synthetic.dataset import SyntheticConfig, SyntheticHands
from nvf_fast.synthetic.reference_images import sample_hands
from nvf_fast.training.labels import voting_labels
from tests.reference_cases import reference_network

SURFACE_MM = 5.0


@pytest.fixture(scope="module")
def hands() -> MeshHands:
    """On a 32 mm grid two joints of the third one have no voter."""
    return sample_hands(6, torch.Generator().manual_seed(4))


class TrueField:
    """What a perfectly trained field answers about one hand; it keeps the points it was asked."""

    def __init__(self, hand: MeshHands, lattice: Lattice, error_mm: float = 0.0) -> None:
        self.hand, self.lattice, self.error_mm, self.asked = hand, lattice, error_mm, torch.zeros(0, 3)

    def every(self, stride: int, within_mm: float, capacity: int) -> tuple[Tensor, Tensor, Tensor]:
        return self.at(self.lattice.every(stride), within_mm, capacity)

    def at(self, nodes: Tensor, within_mm: float, capacity: int) -> tuple[Tensor, Tensor, Tensor]:
        there = nodes != self.lattice.nowhere
        points = self.lattice.points(nodes[there])
        self.asked = torch.cat([self.asked, points])
        sdf, votes = torch.full(nodes.shape, torch.inf), torch.full((capacity, 21, 4), torch.nan)
        sdf[there], found = self.answer(points, within_mm)
        near = sdf.abs() < within_mm
        slots = torch.where(near, near.cumsum(0) - 1, -1)
        kept = near & (slots < capacity)
        votes[slots[kept]] = found[kept[there]]
        return sdf, votes, slots.int()

    def answer(self, points: Tensor, surface_mm: float) -> tuple[Tensor, Tensor]:
        """Distances (N,) and votes (N, 21, 4) at points (N, 3)."""
        # Of round cones about the joints: exact outside, and much faster than a mesh.
        sdf = torch.from_numpy(surface_distance(points[None].numpy(), self.hand.joints.numpy()))
        waves = (points / torch.tensor([17.0, 23.0, 19.0]) + torch.tensor([1.0, 0, 0])).sin().prod(-1)
        sdf = (sdf + self.error_mm * waves).clamp(-5.0, 5.0)  # as training clamps it
        near = sdf.abs() < surface_mm
        weight, direction = voting_labels(points[None], self.hand.joints, near, nearest=max(1, len(points)))
        return sdf[0], torch.cat([weight[..., None], direction], -1)[0]


def cast(points: Tensor, votes: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    joints, weight, _ = cast_votes(points, votes[None], torch.arange(len(points))[None], count)
    return joints[0], weight[0]


def dense_voters(field: TrueField, surface_mm: float = SURFACE_MM) -> Tensor:
    """The voters (V, 3) of the whole lattice; only the hand's surroundings can hold any."""
    joints, lattice = field.hand.joints[0], field.lattice
    points = lattice.points(lattice.every(1))
    points = points[((points > joints.amin(0) - 60) & (points < joints.amax(0) + 60)).all(-1)]
    return points[field.answer(points, surface_mm)[0].abs() < surface_mm]


def assert_found(found: Found, field: TrueField, voters: Tensor) -> None:
    count = int(found.voters)
    assert torch.equal(found.points[:count], voters), "the voters of the dense grid, in its order"
    assert found.evaluated == len(field.asked) == len(field.asked.unique(dim=0)), "no point is asked twice"
    torch.testing.assert_close(found.votes[:count], field.answer(voters, SURFACE_MM)[1])
    assert not found.needs_retry
    if found.pose is not None:
        wanted = cast(found.points[:count], found.votes[:count], found.voters)
        for got, value in zip(found.pose, wanted, strict=True):
            torch.testing.assert_close(got, value, equal_nan=True)


# Lists as long as they need to be, or of fixed lengths with nothing read back.
SIZES = [None, Sizes(8192, 2**16, 2**13)]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("error_mm", [0.0, 1.5])
@pytest.mark.parametrize("step", [8.0, pytest.param(4.0, marks=pytest.mark.slow)])
def test_octree_misses_no_voter(hands: MeshHands, step: float, error_mm: float, sizes: Sizes | None) -> None:
    lattice = Lattice(step)
    for i in range(len(hands) if sizes is None else 2):
        field = TrueField(hands[i : i + 1], lattice, error_mm)
        found = octree(field, lattice, SURFACE_MM, sizes)
        assert_found(found, field, dense_voters(TrueField(field.hand, lattice, error_mm)))
        assert found.evaluated < {8.0: 36_000, 4.0: 70_000}[step]


def test_octree_misses_no_voter_of_a_thinner_shell(hands: MeshHands) -> None:
    """The release votes within 1 mm, where few nodes of a sparse grid lie."""
    lattice, count = Lattice(8.0), 0
    for i in range(len(hands)):
        field = TrueField(hands[i : i + 1], lattice)
        voters = dense_voters(field, 1.0)
        assert torch.equal(octree(field, lattice, 1.0).points, voters)
        count += len(voters)
    assert count > 100


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("step", [16.0, 8.0])
def test_guided_misses_no_voter(hands: MeshHands, step: float, sizes: Sizes | None) -> None:
    lattice = Lattice(step)
    for i in range(len(hands)):
        field = TrueField(hands[i : i + 1], lattice)
        found = guided(field, lattice, SURFACE_MM, cast, sizes)
        assert_found(found, field, dense_voters(TrueField(field.hand, lattice)))
        assert found.evaluated < {16.0: 6_000, 8.0: 15_000}[step]


@pytest.mark.parametrize("sizes", SIZES)
def test_guided_begins_about_a_previous_pose(hands: MeshHands, sizes: Sizes | None) -> None:
    lattice, field = Lattice(16.0), TrueField(hands[:1], Lattice(16.0))
    voters = dense_voters(TrueField(hands[:1], lattice))
    previous = hands.joints[0] + torch.tensor([8.0, -6.0, 10.0])
    found = guided(field, lattice, SURFACE_MM, cast, sizes, previous)
    assert_found(found, field, voters)
    assert found.evaluated < 2_500, "no sparse pass"
    # One that is far off: forgotten, or, where nothing may be read back, marked for a retry.
    found = guided(TrueField(hands[:1], lattice), lattice, SURFACE_MM, cast, sizes, previous + 150)
    if sizes is None:
        assert torch.equal(found.points, voters) and not found.needs_retry
    else:
        assert found.needs_retry


@pytest.mark.parametrize("sizes", [Sizes(20, 2**16, 2**13), Sizes(8192, 100, 2**13), Sizes(8192, 2**16, 5)])
def test_what_does_not_fit_is_said(hands: MeshHands, sizes: Sizes) -> None:
    lattice = Lattice(8.0)
    field = TrueField(hands[:1], lattice)
    assert octree(field, lattice, SURFACE_MM, sizes).needs_retry
    assert guided(field, lattice, SURFACE_MM, cast, sizes).needs_retry


def displaced(offset: Tensor, first: list[bool]) -> Cast:
    """A vote whose first answer, the provisional pose, is off."""

    def vote(points: Tensor, votes: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        joints, scores = cast(points, votes, count)
        return joints + (offset if first and first.pop() else 0), scores

    return vote


def test_guided_follows_the_surface_out_of_a_misplaced_region(hands: MeshHands) -> None:
    lattice = Lattice(16.0)
    field = TrueField(hands[:1], lattice)
    found = guided(field, lattice, SURFACE_MM, displaced(torch.tensor([30.0, 0, 20]), [True]))
    assert_found(found, field, dense_voters(TrueField(hands[:1], lattice)))
    assert found.evaluated < len(lattice) / 4


@pytest.mark.parametrize("offset", [[0.0, 0, 60], [150.0, 0, 0], [math.nan, 0, 0]])
def test_guided_asks_everything_where_the_provisional_pose_was_wrong(
    hands: MeshHands, offset: list[float]
) -> None:
    lattice = Lattice(16.0)
    field = TrueField(hands[:1], lattice)
    found = guided(field, lattice, SURFACE_MM, displaced(torch.tensor(offset), [True]))
    assert_found(found, field, dense_voters(TrueField(hands[:1], lattice)))
    assert found.evaluated == len(lattice)
    sizes = Sizes(8192, 2**16, 2**13)
    assert guided(field, lattice, SURFACE_MM, displaced(torch.tensor(offset), [True]), sizes).needs_retry


class Nothing(TrueField):
    """No surface anywhere."""

    def answer(self, points: Tensor, surface_mm: float) -> tuple[Tensor, Tensor]:
        votes = torch.full((len(points), 21, 4), 0.5)
        return torch.full((len(points),), 40.0), votes if surface_mm > 40 else torch.zeros_like(votes)


def guide(field: TrueField, lattice: Lattice, surface_mm: float) -> Found:
    return guided(field, lattice, surface_mm, cast)


@pytest.mark.parametrize("search", [octree, guide])
def test_no_surface_anywhere(hands: MeshHands, search: Callable[..., Found]) -> None:
    lattice = Lattice(16.0)
    found = search(Nothing(hands[:1], lattice), lattice, SURFACE_MM)
    assert found.points.shape == (0, 3) and found.votes.shape == (0, 21, 4) and found.voters == 0
    assert found.evaluated == len(lattice)


@pytest.mark.parametrize("search", [octree, guide])
@pytest.mark.parametrize("step", [24.0, 32.0])
def test_a_grid_as_sparse_as_a_search_begins_is_asked_whole(
    hands: MeshHands, step: float, search: Callable[..., Found]
) -> None:
    lattice = Lattice(step)
    field = TrueField(hands[:1], lattice)
    found = search(field, lattice, SURFACE_MM)
    assert_found(found, field, dense_voters(TrueField(hands[:1], lattice)))
    assert found.evaluated == len(lattice)


@pytest.mark.slow
@pytest.mark.parametrize(("search", "step"), [("guided", 16), ("octree", 8)])
def test_the_estimator_finds_the_dense_pose(search: str, step: float) -> None:
    """With a network whose predictions are replaced by the known distances and votes of the hand."""
    data = SyntheticHands(SyntheticConfig(1, seed=6))
    hand, image, K = data.hands([0]), data[0].image, data[0].intrinsics
    poses = {}
    for kind in ("dense", search):
        estimator = PoseEstimator(reference_network(), step, search=kind)
        teach(estimator, hand)
        poses[kind] = estimator(image, K, float(hand.hand_scale), return_votes=True)
    dense, sparse = poses["dense"], poses[search]
    assert dense.points_evaluated == len(Lattice(step)) > 3 * sparse.points_evaluated
    assert len(sparse.votes.points) == sparse.voters == dense.voters > 30
    np.testing.assert_allclose(sparse.joints, dense.joints, atol=1e-3)
    np.testing.assert_allclose(sparse.joints, hand.joints[0], atol=1.0)
