"""The searches find the dense grid's voters, on hands whose distances and votes are known."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from nvf_fast.checkpoint import embedded_names
from nvf_fast.data.hand import Hands, sample_hands
from nvf_fast.data.render import render_hand
from nvf_fast.estimator import load
from nvf_fast.grid import Lattice
from nvf_fast.kernels.cast_votes_ref import cast_votes
from nvf_fast.search import Found, guided, octree
from nvf_fast.training.labels import voting_labels

SURFACE_MM = 5.0


@pytest.fixture(scope="module")
def hands() -> Hands:
    """On a 32 mm grid two joints of the third one have no voter."""
    return sample_hands(6, torch.Generator().manual_seed(4))


class TrueField:
    """What a perfectly trained field answers about one hand; it keeps the points it was asked."""

    def __init__(self, hand: Hands, error_mm: float = 0.0) -> None:
        self.hand, self.error_mm, self.asked = hand, error_mm, torch.zeros(0, 3)

    def __call__(self, points: Tensor, surface_mm: float) -> tuple[Tensor, Tensor]:
        self.asked = torch.cat([self.asked, points])
        sdf = self.hand.signed_distance(points[None])
        waves = (points / torch.tensor([17.0, 23.0, 19.0]) + torch.tensor([1.0, 0, 0])).sin().prod(-1)
        sdf = (sdf + self.error_mm * waves).clamp(-5.0, 5.0)  # as training clamps it
        near = sdf.abs() < surface_mm
        weight, direction = voting_labels(points[None], self.hand.joints, near, nearest=max(1, len(points)))
        return sdf[0], torch.cat([weight[..., None], direction], -1)[0]


def cast(points: Tensor, votes: Tensor) -> Tensor:
    everyone, count = torch.arange(len(points))[None], torch.tensor([len(points)])
    return cast_votes(points, votes[None], everyone, count)[0][0]


def dense_voters(field: TrueField, lattice: Lattice, surface_mm: float = SURFACE_MM) -> Tensor:
    """The voters (V, 3) of the whole lattice; only the hand's surroundings can hold any."""
    joints = field.hand.joints[0]
    points = lattice.points(lattice.every(1))
    points = points[((points > joints.amin(0) - 60) & (points < joints.amax(0) + 60)).all(-1)]
    return points[field(points, surface_mm)[0].abs() < surface_mm]


def assert_found(found: Found, lattice: Lattice, field: TrueField, voters: Tensor) -> None:
    assert torch.equal(found.points, voters), "the voters of the dense grid, in its order"
    assert found.evaluated == len(field.asked) == len(field.asked.unique(dim=0)), "no point is asked twice"
    torch.testing.assert_close(found.votes, field(voters, SURFACE_MM)[1])


@pytest.mark.parametrize("error_mm", [0.0, 1.5])
@pytest.mark.parametrize("step", [8.0, pytest.param(4.0, marks=pytest.mark.slow)])
def test_octree_misses_no_voter(hands: Hands, step: float, error_mm: float) -> None:
    lattice = Lattice(step)
    for i in range(len(hands)):
        field = TrueField(hands[i : i + 1], error_mm)
        found = octree(field, lattice, SURFACE_MM)
        assert_found(found, lattice, field, dense_voters(TrueField(field.hand, error_mm), lattice))
        assert found.evaluated < {8.0: 36_000, 4.0: 70_000}[step]


def test_octree_misses_no_voter_of_a_thinner_shell(hands: Hands) -> None:
    """The release votes within 1 mm, where few nodes of a sparse grid lie."""
    lattice, count = Lattice(8.0), 0
    for i in range(len(hands)):
        field = TrueField(hands[i : i + 1])
        voters = dense_voters(field, lattice, 1.0)
        assert torch.equal(octree(field, lattice, 1.0).points, voters)
        count += len(voters)
    assert count > 100


@pytest.mark.parametrize("step", [16.0, 8.0])
def test_guided_misses_no_voter(hands: Hands, step: float) -> None:
    lattice = Lattice(step)
    for i in range(len(hands)):
        field = TrueField(hands[i : i + 1])
        found = guided(field, lattice, SURFACE_MM, cast)
        assert_found(found, lattice, field, dense_voters(TrueField(field.hand), lattice))
        assert found.evaluated < {16.0: 5_500, 8.0: 15_000}[step]


def displaced(offset: Tensor, first: list[bool]) -> Callable[[Tensor, Tensor], Tensor]:
    """A vote whose first answer, the provisional pose, is off."""

    def vote(points: Tensor, votes: Tensor) -> Tensor:
        return cast(points, votes) + (offset if first and first.pop() else 0)

    return vote


def test_guided_follows_the_surface_out_of_a_misplaced_region(hands: Hands) -> None:
    lattice, field = Lattice(16.0), TrueField(hands[:1])
    found = guided(field, lattice, SURFACE_MM, displaced(torch.tensor([30.0, 0, 20]), [True]))
    assert_found(found, lattice, field, dense_voters(TrueField(hands[:1]), lattice))
    assert found.evaluated < len(lattice) / 4


@pytest.mark.parametrize("offset", [[0.0, 0, 60], [150.0, 0, 0], [math.nan, 0, 0]])
def test_guided_asks_everything_where_the_provisional_pose_was_wrong(
    hands: Hands, offset: list[float]
) -> None:
    lattice, field = Lattice(16.0), TrueField(hands[:1])
    found = guided(field, lattice, SURFACE_MM, displaced(torch.tensor(offset), [True]))
    assert_found(found, lattice, field, dense_voters(TrueField(hands[:1]), lattice))
    assert found.evaluated == len(lattice)


@pytest.mark.parametrize("search", [octree, lambda *arguments: guided(*arguments, cast)])
def test_no_surface_anywhere(search: Callable[..., Found]) -> None:
    def nothing(points: Tensor, surface_mm: float) -> tuple[Tensor, Tensor]:
        votes = torch.full((len(points), 21, 4), 0.5)
        return torch.full((len(points),), 40.0), torch.where(torch.tensor(surface_mm > 40), votes, 0.0)

    found = search(nothing, Lattice(16.0), SURFACE_MM)
    assert found.points.shape == (0, 3) and found.votes.shape == (0, 21, 4)
    assert found.evaluated == len(Lattice(16.0))


@pytest.mark.parametrize("step", [24.0, 32.0])
def test_a_grid_as_sparse_as_a_search_begins_is_asked_whole(hands: Hands, step: float) -> None:
    lattice = Lattice(step)
    for search in (octree, lambda *arguments: guided(*arguments, cast)):
        field = TrueField(hands[:1])
        found = search(field, lattice, SURFACE_MM)
        assert_found(found, lattice, field, dense_voters(TrueField(hands[:1]), lattice))
        assert found.evaluated == len(lattice)


@pytest.mark.slow
@pytest.mark.parametrize(("search", "step"), [("guided", 16), ("octree", 8)])
def test_embedded_model_finds_the_dense_pose(search: str, step: float) -> None:
    """Its field is not the true one: voters far from all others can be missed, which moves single joints."""
    if not embedded_names():
        pytest.skip("no checkpoint is embedded")
    generator = torch.Generator().manual_seed(6)
    hand = sample_hands(3, generator)
    images = [render_hand(hand[i : i + 1], 224, generator).permute(1, 2, 0).numpy() for i in range(3)]
    K = np.array([[480.0, 0, 112], [0, 480, 112], [0, 0, 1]])
    dense = load(step_mm=step)(images, K, hand.hand_scale)
    sparse = load(step_mm=step, search=search)(images, K, hand.hand_scale, return_votes=True)
    assert (dense.points_evaluated == len(Lattice(step))).all()
    assert np.median(sparse.points_evaluated) < len(Lattice(step)) / 3
    assert [len(votes.points) for votes in sparse.votes] == sparse.voters.tolist()
    assert (sparse.voters <= dense.voters).all() and (sparse.voters > 0.9 * dense.voters).all()
    assert np.median(np.linalg.norm(dense.joints - sparse.joints, axis=-1)) < 0.5
    np.testing.assert_allclose(np.median(sparse.scores - dense.scores), 0, atol=0.01)
