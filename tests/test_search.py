"""The searches find the dense grid's voters, on hands of known distances and votes."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.taught import teach
from nvf_fast.buffers import Buffers
from nvf_fast.data.joint_surface import surface_distance
from nvf_fast.data.surfaces import MeshHands
from nvf_fast.estimator import PoseEstimator
from nvf_fast.grid import Lattice
from nvf_fast.kernels.cast_votes.reference import cast_votes
from nvf_fast.pose import BONES
from nvf_fast.search import Capacities, CastVotes, SearchResult, guided, octree
from nvf_fast.synthetic.dataset import SyntheticConfig, SyntheticHands
from nvf_fast.training.losses import voting_labels
from tests.reference_cases import reference_network
from tests.sampled_hands import sample_hands

SURFACE_MM = 5.0


@pytest.fixture(scope="module")
def hands() -> MeshHands:
    """Hands; on a 32 mm grid two joints of the third one have no voter."""
    return sample_hands(6, torch.Generator().manual_seed(4))


class TrueField:
    """An exact field of one hand that records the queried points, and whether its search needs a retry."""

    def __init__(self, hand: MeshHands, lattice: Lattice, error_mm: float = 0.0) -> None:
        self.hand, self.lattice, self.error_mm = hand, lattice, error_mm
        self.queried, self.needs_retry = torch.zeros(0, 3), False

    def every(self, stride: int) -> Tensor:
        return self.at(self.lattice.every(stride))

    def at(self, nodes: Tensor) -> Tensor:
        there = nodes != self.lattice.nowhere
        points = self.lattice.points(nodes[there])
        self.queried = torch.cat([self.queried, points])
        sdf = torch.full(nodes.shape, torch.inf)
        sdf[there] = self.distances(points)
        return sdf[None]

    def votes(self, nodes: Tensor) -> Tensor:
        there = nodes != self.lattice.nowhere
        votes = torch.zeros(len(nodes), 21, 4)
        votes[there] = self.votes_at(self.lattice.points(nodes[there]))
        return votes[None]

    def distances(self, points: Tensor) -> Tensor:
        """Return signed distances (N,) mm at points (N, 3)."""
        # Round cones between the joints: exact outside, and much faster than a mesh.
        sdf = torch.from_numpy(surface_distance(points[None].numpy(), self.hand.joints.numpy()))
        waves = (points / torch.tensor([17.0, 23.0, 19.0]) + torch.tensor([1.0, 0, 0])).sin().prod(-1)
        return (sdf + self.error_mm * waves).clamp(-5.0, 5.0)[0]  # clamped as in training

    def votes_at(self, points: Tensor) -> Tensor:
        """Return votes (N, 21, 4) at points (N, 3)."""
        everywhere = torch.ones(1, len(points), dtype=torch.bool)
        nearest = max(1, len(points))
        weight, direction = voting_labels(points[None], self.hand.joints, everywhere, nearest=nearest)
        return torch.cat([weight[..., None], direction], -1)[0]


def cast(points: Tensor, votes: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    joints, weight, _ = cast_votes(points[None], votes[None], count)
    return joints[0], weight[0]


def dense_voters(field: TrueField, surface_mm: float = SURFACE_MM) -> Tensor:
    """Return the voters (V, 3) of the whole lattice, evaluated near the hand only."""
    joints, lattice = field.hand.joints[0], field.lattice
    points = lattice.points(lattice.every(1))
    points = points[((points > joints.amin(0) - 60) & (points < joints.amax(0) + 60)).all(-1)]
    return points[field.distances(points).abs() < surface_mm]


def assert_finds(result: SearchResult, field: TrueField, voters: Tensor) -> None:
    count = int(result.voters)
    assert torch.equal(result.points[:count], voters), "the voters of the dense grid, in its order"
    queried = field.queried
    assert result.evaluated == len(queried) == len(queried.unique(dim=0)), "no point is queried twice"
    torch.testing.assert_close(result.votes[:count], field.votes_at(voters))
    assert not field.needs_retry
    if result.pose is not None:
        expected = cast(result.points[:count], result.votes[:count], result.voters)
        for got, value in zip(result.pose, expected, strict=True):
            torch.testing.assert_close(got, value, equal_nan=True)


CAPACITIES = Capacities(8192, 2**16, 2**13)
EXACT = pytest.mark.parametrize("exact", [True, False])


def search_octree(
    field: TrueField,
    surface_mm: float = SURFACE_MM,
    exact: bool = True,
    capacities: Capacities = CAPACITIES,
) -> SearchResult:
    buffers = Buffers(1, field.lattice.device, exact)
    result = octree(field, field.lattice, surface_mm, buffers, capacities)
    field.needs_retry = bool(buffers.needs_retry)
    return result


def search_guided(
    field: TrueField,
    provisional: Tensor | None = None,
    vote: CastVotes | None = None,
    exact: bool = True,
    capacities: Capacities = CAPACITIES,
) -> SearchResult:
    buffers = Buffers(1, field.lattice.device, exact)
    result = guided(field, field.lattice, SURFACE_MM, buffers, capacities, vote or cast, provisional)
    field.needs_retry = bool(buffers.needs_retry)
    return result


@EXACT
@pytest.mark.parametrize("error_mm", [0.0, 1.5])
@pytest.mark.parametrize("step", [8.0, pytest.param(4.0, marks=pytest.mark.slow)])
def test_octree_misses_no_voter(hands: MeshHands, step: float, error_mm: float, exact: bool) -> None:
    lattice = Lattice(step)
    for i in range(len(hands) if exact else 2):
        field = TrueField(hands[i : i + 1], lattice, error_mm)
        result = search_octree(field, exact=exact)
        assert_finds(result, field, dense_voters(TrueField(field.hand, lattice, error_mm)))
        assert result.evaluated < {8.0: 36_000, 4.0: 70_000}[step]


def test_octree_misses_no_voter_of_a_thinner_shell(hands: MeshHands) -> None:
    """The release votes within 1 mm of the surface, where a sparse grid has few nodes."""
    lattice, count = Lattice(8.0), 0
    for i in range(len(hands)):
        field = TrueField(hands[i : i + 1], lattice)
        voters = dense_voters(field, 1.0)
        assert torch.equal(search_octree(field, 1.0).points, voters)
        count += len(voters)
    assert count > 100


@EXACT
@pytest.mark.parametrize("step", [16.0, 8.0])
def test_guided_misses_no_voter(hands: MeshHands, step: float, exact: bool) -> None:
    lattice = Lattice(step)
    for i in range(len(hands)):
        field = TrueField(hands[i : i + 1], lattice)
        result = search_guided(field, exact=exact)
        assert_finds(result, field, dense_voters(TrueField(field.hand, lattice)))
        assert result.evaluated < {16.0: 6_000, 8.0: 15_000}[step]


@EXACT
def test_guided_starts_from_a_previous_pose(hands: MeshHands, exact: bool) -> None:
    lattice, field = Lattice(16.0), TrueField(hands[:1], Lattice(16.0))
    voters = dense_voters(TrueField(hands[:1], lattice))
    previous = hands.joints[0] + torch.tensor([8.0, -6.0, 10.0])
    result = search_guided(field, previous, exact=exact)
    assert_finds(result, field, voters)
    assert result.evaluated < 2_500, "no sparse pass"
    previous[20] = math.nan  # an unknown joint is not compared
    field = TrueField(hands[:1], lattice)
    assert search_guided(field, previous, exact=exact).evaluated < 2_500 and not field.needs_retry
    # A distant previous pose is discarded or, without synchronisation, marked for a retry.
    field = TrueField(hands[:1], lattice)
    result = search_guided(field, previous + 150, exact=exact)
    assert field.needs_retry == (not exact)
    assert result.evaluated == len(field.queried), "those about the discarded pose included"
    if exact:
        assert torch.equal(result.points, voters)


@pytest.mark.parametrize("capacities", [(20, 2**16, 2**13), (8192, 100, 2**13), (8192, 2**16, 5)])
def test_overflow_needs_retry(hands: MeshHands, capacities: tuple[int, int, int]) -> None:
    lattice = Lattice(8.0)
    for search in (search_octree, search_guided):
        field = TrueField(hands[:1], lattice)
        search(field, exact=False, capacities=Capacities(*capacities))
        assert field.needs_retry


def displaced(offset: Tensor, first: list[bool]) -> CastVotes:
    """Return a `cast` whose first result, the provisional pose, is displaced."""

    def vote(points: Tensor, votes: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        joints, scores = cast(points, votes, count)
        return joints + (offset if first and first.pop() else 0), scores

    return vote


def test_guided_follows_the_surface_out_of_a_misplaced_region(hands: MeshHands) -> None:
    lattice = Lattice(16.0)
    field = TrueField(hands[:1], lattice)
    result = search_guided(field, vote=displaced(torch.tensor([30.0, 0, 20]), [True]))
    assert_finds(result, field, dense_voters(TrueField(hands[:1], lattice)))
    assert result.evaluated < len(lattice) / 4


@pytest.mark.parametrize("offset", [[0.0, 0, 60], [150.0, 0, 0], [math.nan, 0, 0]])
def test_guided_queries_everything_where_the_provisional_pose_was_wrong(
    hands: MeshHands, offset: list[float]
) -> None:
    lattice = Lattice(16.0)
    field = TrueField(hands[:1], lattice)
    result = search_guided(field, vote=displaced(torch.tensor(offset), [True]))
    assert_finds(result, field, dense_voters(TrueField(hands[:1], lattice)))
    assert result.evaluated == len(lattice)
    search_guided(field, vote=displaced(torch.tensor(offset), [True]), exact=False)
    assert field.needs_retry


def test_provisional_pose_is_that_of_the_points_nearest_to_the_surface(hands: MeshHands) -> None:
    field, given = TrueField(hands[2:3], Lattice(16.0)), []

    def vote(points: Tensor, votes: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        given.append(points[: int(count)])
        return cast(points, votes, count)

    search_guided(field, vote=vote)
    sparse = field.distances(field.lattice.points(field.lattice.every(2))).abs().sort().values
    assert (sparse < SURFACE_MM).sum() < 16, "too few to vote alone"
    assert torch.equal(field.distances(given[0]).abs(), sparse[:16])


class SmallField(TrueField):
    """A field with three points near the surface."""

    def distances(self, points: Tensor) -> Tensor:
        few = dense_voters(TrueField(self.hand, self.lattice))[:3]
        return torch.where((points[:, None] == few).all(-1).any(1), 1.0, 40.0)


def test_guided_queries_everything_where_voters_are_few(hands: MeshHands) -> None:
    lattice = Lattice(16.0)
    result = search_guided(SmallField(hands[:1], lattice), hands.joints[0])
    assert result.voters == 3 and result.evaluated > len(lattice)


class LongField(TrueField):
    """A field whose surface is a plane along the optical axis."""

    def distances(self, points: Tensor) -> Tensor:
        return points[:, 0] - self.hand.joints[0, 9, 0]


def test_guided_queries_everything_where_the_surface_does_not_end(hands: MeshHands) -> None:
    lattice = Lattice(16.0)
    result = search_guided(LongField(hands[:1], lattice), hands.joints[0])
    assert result.evaluated > len(lattice) and result.voters > 500


class EmptyField(TrueField):
    """A field without a surface."""

    def distances(self, points: Tensor) -> Tensor:
        return torch.full((len(points),), 40.0)


def test_guided_queries_the_nodes_about_the_bones(hands: MeshHands) -> None:
    lattice, joints = Lattice(16.0), hands.joints[0]
    field = EmptyField(hands[:1], lattice)
    search_guided(field, joints, exact=False)
    queried = lattice.mask(lattice.nodes(field.queried))[lattice.every(1)]
    start, end = (torch.stack([joints[bone[side]] for bone in BONES]) for side in (0, 1))
    offset, bone = lattice.points(lattice.every(1))[:, None] - start, end - start
    along = ((offset * bone).sum(-1) / bone.square().sum(-1)).clamp(0, 1)
    distance = (offset - along[..., None] * bone).norm(dim=-1).amin(1)
    # The balls of 32 mm about five points of a bone of up to 100 mm leave gaps of 3 mm.
    assert queried[distance < 29].all() and not queried[distance > 32.1].any()


class DamagedField(TrueField):
    """A field whose distances are not numbers at some points; the votes of points on a plane are NaN."""

    nan = 0.1  # ratio of such points

    def distances(self, points: Tensor) -> Tensor:
        sdf = super().distances(points)
        place = (points * torch.tensor([0.7, 1.3, 2.1])).sum(-1).sin().abs()  # unrelated to the surface
        return torch.where(place < self.nan, torch.nan, torch.where(place > 0.98, torch.inf, sdf))


class LostField(DamagedField):
    nan = 2.0  # all points


@EXACT
@pytest.mark.parametrize("search", [search_octree, search_guided])
def test_points_without_a_finite_distance_do_not_vote(
    hands: MeshHands, search: Callable[..., SearchResult], exact: bool, poisoned_memory: None
) -> None:
    """The other voters are found, but for those that only damaged nodes lead to."""
    lattice = Lattice(8.0)
    field = DamagedField(hands[:1], lattice)
    voters = dense_voters(DamagedField(hands[:1], lattice))
    assert len(voters) < 0.95 * len(dense_voters(TrueField(hands[:1], lattice)))
    result = search(field, exact=exact)
    count = int(result.voters)
    found = result.points[:count]
    assert field.distances(found).isfinite().all() and result.votes.isfinite().all()
    assert (found[:, None] == voters).all(-1).any(1).all() and count > 0.97 * len(voters)
    joints, _ = cast(result.points, result.votes, result.voters)
    expected, _ = cast(voters, field.votes_at(voters), torch.tensor([len(voters)], dtype=torch.int32))
    torch.testing.assert_close(joints, expected, rtol=0, atol=1.0)


@EXACT
@pytest.mark.parametrize("search", [search_octree, search_guided])
def test_no_finite_distance_anywhere(
    hands: MeshHands, search: Callable[..., SearchResult], exact: bool, poisoned_memory: None
) -> None:
    field = LostField(hands[:1], Lattice(16.0))
    result = search(field, exact=exact)
    assert result.voters == 0 and result.votes.isfinite().all()
    assert cast(result.points, result.votes, result.voters)[0].isnan().all()
    assert field.needs_retry == (search is search_guided and not exact)


@pytest.mark.parametrize("search", [search_octree, search_guided])
def test_no_surface_anywhere(hands: MeshHands, search: Callable[..., SearchResult]) -> None:
    lattice = Lattice(16.0)
    result = search(EmptyField(hands[:1], lattice))
    assert result.voters == 0
    assert result.evaluated == len(lattice)


@pytest.mark.parametrize("search", [search_octree, search_guided])
@pytest.mark.parametrize("step", [24.0, 32.0])
def test_coarse_grids_are_queried_whole(
    hands: MeshHands, step: float, search: Callable[..., SearchResult]
) -> None:
    lattice = Lattice(step)
    field = TrueField(hands[:1], lattice)
    result = search(field)
    assert_finds(result, field, dense_voters(TrueField(hands[:1], lattice)))
    assert result.evaluated == len(lattice)


@pytest.mark.slow
@pytest.mark.parametrize(("search", "step"), [("guided", 16), ("octree", 8)])
def test_estimator_finds_the_dense_pose(search: str, step: float) -> None:
    """The network's predictions are replaced by the known distances and votes of the hand."""
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
