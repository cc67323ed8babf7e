"""cast_votes: the reference against the authors' vectors, the kernel and the CPU form against float64."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nvf_fast import ops
from nvf_fast.kernels.cast_votes.reference import cast_votes as reference
from nvf_fast.kernels.cast_votes.triton import cast_votes as kernel
from tests.kernel_cases import rms

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ALL = pytest.mark.parametrize("function", [kernel, reference, ops.cast_votes])
OURS = pytest.mark.parametrize("function", [kernel, ops.cast_votes])
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*encountered in divide:RuntimeWarning"),  # 0 / 0 = NaN is intended
    pytest.mark.usefixtures("poisoned_memory"),
]


def voting(count: int, ratio: float, batch: int = 2, joints: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Draw points, votes and counts; about `ratio` of the rows vote, fewer in later images."""
    points = 100 * torch.randn(batch, count, 3) + torch.tensor([0, 0, 500])
    votes = torch.randn(batch, count, joints, 4)
    votes[..., 0] = torch.rand(batch, count, joints) - 0.1  # as predicted: mostly positive
    counts = (count * (ratio - 0.2 * torch.arange(batch))).clamp(0, count).ceil().int()
    unused = torch.arange(count) >= counts[:, None]
    points[unused], votes[unused] = math.nan, math.nan
    return points.to(DEVICE), votes.to(DEVICE), counts.to(DEVICE)


def with_weights(weights: list[float]) -> tuple[Tensor, Tensor, Tensor]:
    """Return inputs for one joint with these vote weights; voter i lies at x = i mm, direction zero."""
    count = len(weights)
    points = torch.zeros(1, count, 3, device=DEVICE)
    points[0, :, 0] = torch.arange(count)
    votes = torch.zeros(1, count, 1, 4, device=DEVICE)
    votes[0, :, 0, 0] = torch.tensor(weights)
    return points, votes, torch.tensor([count], device=DEVICE).int()


def test_authors_vectors(shared_dir: Path) -> None:
    cases = json.loads((shared_dir / "protocol" / "vectors_vote_public.json").read_text())["recover_cases"]
    assert len(cases) == 8
    for case in cases:
        points, votes = torch.tensor(case["points_mm"]).mT, torch.tensor(case["heatmap"]).permute(0, 3, 1, 2)
        batch, count = points.shape[:2]
        counts = torch.full((batch,), count, dtype=torch.int32)
        # The last case gives the number of selected votes instead of a fraction.
        fraction = case["fraction"] or case["candidate_num"] / count
        for ratio, name in ((fraction, "joints_top_mm"), (1.0, "joints_all_mm")):
            joints = reference(points, votes, counts, ball_mm=case["ball_radius_mm"], fraction=ratio)[0]
            # 2e-3 mm: the accuracy of the vectors' float32 sums, as their file states.
            torch.testing.assert_close(joints, torch.tensor(case[name]), rtol=0, atol=2e-3)


@ALL
def test_by_hand(function: Callable) -> None:
    points = torch.tensor([[[0.0, 0, 0], [20, 0, 0], [30, 0, 0], [10, 0, 0]]], device=DEVICE)
    votes = torch.zeros(1, 4, 1, 4, device=DEVICE)
    votes[0, :, 0] = torch.tensor([[0.5, 0, 1, 0], [0.75, 1, 0, 0], [0.25, 1, 0, 0], [0.9, 7, 7, 7]])
    counts = torch.tensor([3], device=DEVICE).int()
    joints, weight, spread = function(points, votes, counts, ball_mm=80.0, fraction=0.67)
    # int(3 * 0.67) = 2 voters: 0 votes for (0, 40, 0) with 0.5, 1 for (40, 0, 0) with 0.75.
    assert joints.flatten().tolist() == pytest.approx([24, 16, 0])
    assert weight.item() == pytest.approx(0.625)
    assert spread.item() == pytest.approx(math.sqrt((0.5 * (24**2 + 24**2) + 0.75 * (16**2 + 16**2)) / 1.25))


@ALL
@pytest.mark.parametrize(
    ("weights", "fraction", "chosen"),
    [
        ([0.5, 0.7, 0.5, 0.7, 0.5], 0.61, [1, 3, 0]),  # ties: the first
        ([0.0, -0.0, 0.0, -0.0, 1.0], 0.61, [4, 0, 1]),  # -0 equals 0
        ([-0.5, -0.25, -1.0, -0.75], 0.5, [1, 0]),
        ([math.nan, 0.5, -3.0, math.nan], 0.5, [1, 2]),  # NaN ranks last
        ([math.nan, 0.5, math.nan, 0.5, -1.0, 0.5], 0.5, [1, 3, 5]),
        ([1e-40, 2e-40, 1.0, 3e-40], 0.75, [2, 3, 1]),  # subnormal numbers keep their order
        ([0.25, 0.5], 0.1, [1]),  # at least one
    ],
)
def test_which_voters_count(
    function: Callable, weights: list[float], fraction: float, chosen: list[int]
) -> None:
    joints, weight, _ = function(*with_weights(weights), fraction=fraction)
    w = torch.tensor([weights[i] for i in chosen], dtype=torch.float64)
    expected = (w * torch.tensor(chosen)).sum() / w.sum()
    torch.testing.assert_close(joints[0, 0, 0].cpu().double(), expected, rtol=1e-6, atol=1e-6, equal_nan=True)
    assert weight.item() == pytest.approx(w.mean().item())


@ALL
@pytest.mark.parametrize(
    ("count", "fraction"), [(100, 0.29), (10, 0.7), (1000, 0.999), (3, 1 / 3), (1, 0.5), (2000, 1.0)]
)
def test_voter_count_matches_python_truncation(function: Callable, count: int, fraction: float) -> None:
    """int(100 * 0.29) is 28, for 100 * 0.29 is 28.999999999999996."""
    inputs = with_weights([1.0] * count)
    joints, _, _ = function(*inputs, fraction=fraction)
    selected = max(1, int(count * fraction))
    assert joints[0, 0, 0].item() == pytest.approx(
        (selected - 1) / 2
    )  # the mean of the first `selected` places


@OURS
@pytest.mark.parametrize("count", [1, 63, 1000, 3000])
@pytest.mark.parametrize("ratio", [0.0, 0.3, 2.0])
def test_errs_at_most_twice_as_much_as_the_reference(function: Callable, count: int, ratio: float) -> None:
    points, votes, counts = voting(count, ratio)
    exact = reference(points.double(), votes.double(), counts)
    by_torch = reference(points, votes, counts)
    found = function(points, votes, counts)
    for name, got, torch_got, expected in zip(
        ("joints", "weight", "spread"), found, by_torch, exact, strict=True
    ):
        assert torch.equal(got.isnan(), expected.isnan()), name
        if (counts > 0).any():
            # Allows one rounding of the result in case PyTorch's result is exact.
            there = counts > 0
            rounding = torch.finfo(torch.float32).eps * rms(expected[there])
            found_error, torch_error = (rms((each - expected)[there]) for each in (got, torch_got))
            assert found_error <= max(2 * torch_error, rounding), name


@ALL
@pytest.mark.parametrize("rows", [63, 0])
def test_no_voters(function: Callable, rows: int) -> None:
    joints, weight, spread = function(*voting(rows, 0.0))
    assert joints.isnan().all() and (weight == 0).all() and spread.isnan().all()


@ALL
def test_count_past_the_capacity(function: Callable) -> None:
    points, votes, counts = voting(63, 2.0)
    first = function(points[:, :10], votes[:, :10], counts)
    for got, expected in zip(first, function(points, votes, counts.clamp(max=10)), strict=True):
        assert torch.equal(got, expected)


@ALL
def test_indices_choose_the_voters(function: Callable) -> None:
    """Votes at indices equal the same votes in their order; other rows and unused slots have no influence."""
    points, votes, counts = voting(63, 0.5)
    indices = torch.stack([torch.randperm(200)[:70] for _ in counts]).to(DEVICE)
    scattered = [torch.full((2, 200, *each.shape[2:]), math.nan, device=DEVICE) for each in (points, votes)]
    for row, chosen in enumerate(indices):
        for whole, each in zip(scattered, (points, votes), strict=True):
            whole[row, chosen[:63]] = each[row]
    indices[torch.arange(70, device=DEVICE) >= counts[:, None]] = -1
    for got, expected in zip(
        function(*scattered, counts, indices), function(points, votes, counts), strict=True
    ):
        assert torch.equal(got, expected)
    few = indices[:, :10].contiguous()
    for got, expected in zip(
        function(*scattered, counts, few), function(points[:, :10], votes[:, :10], counts), strict=True
    ):
        assert torch.equal(got, expected)


def test_deterministic() -> None:
    inputs = voting(2500, 0.9)
    for first, second in zip(kernel(*inputs), kernel(*inputs), strict=True):
        assert torch.equal(first, second)


def assert_within_rounding(
    found: tuple[Tensor, ...], inputs: tuple[Tensor, Tensor, Tensor], **options: float
) -> None:
    """Assert errors of at most twice those of PyTorch plus one rounding of the result."""
    exact = reference(inputs[0].double(), inputs[1].double(), inputs[2], **options)
    for got, torch_got, expected in zip(found, reference(*inputs, **options), exact, strict=True):
        assert torch.equal(got.isnan(), expected.isnan())
        rounding = torch.finfo(torch.float32).eps * rms(expected)
        assert rms(got - expected) <= 2 * rms(torch_got - expected) + rounding


@pytest.mark.cuda
def test_more_images_than_one_launch_grid_allows() -> None:
    points, votes, _ = voting(5, 70_000.0, batch=70_000, joints=1)
    counts = torch.full((70_000,), 5, dtype=torch.int32, device="cuda")
    found = kernel(points, votes, counts)
    few = torch.tensor([0, 1, 32_767, 32_768, 65_535, 65_536, 69_999], device="cuda")
    assert_within_rounding(tuple(a[few] for a in found), (points[few], votes[few], counts[few]))


@pytest.mark.cuda
@pytest.mark.parametrize(
    ("batch", "count", "joints"),
    [(1, 180_000_000, 3), (2, 13_000_000, 21), (3, 8_600_001, 21)],
    ids=["one image", "two images", "three images"],
)
def test_more_votes_than_32_bits_count(batch: int, count: int, joints: int) -> None:
    """All rows vote; large weights lie at both ends, around the 2^31st vote and at random rows."""
    assert batch * count * joints * 4 > 2**31
    best = torch.cat(
        [
            torch.tensor([0, 1, count - 2, count - 1]),
            (2**31 // (joints * 4) + torch.arange(-2, 3)) % count,
            torch.randint(count, (2000,)),
        ]
    )
    best = torch.unique(best).cuda()
    points = torch.full((batch, count, 3), torch.nan, device="cuda")
    votes = torch.zeros(batch, count, joints, 4, device="cuda")
    few_points, few_votes, _ = voting(len(best), batch, batch, joints)
    few_votes[..., 0] += 1.0
    for few, place in enumerate(best.tolist()):
        points[:, place], votes[:, place] = few_points[:, few], few_votes[:, few]
    counts = torch.full((batch,), count, dtype=torch.int32, device="cuda")
    fraction = (len(best) + 0.5) / count
    found = kernel(points, votes, counts, fraction=fraction)
    for first, second in zip(found, kernel(points, votes, counts, fraction=fraction), strict=True):
        assert torch.equal(first, second)
    few_counts = torch.full_like(counts, len(best))
    assert_within_rounding(found, (few_points, few_votes, few_counts), fraction=1.0)


@pytest.mark.cuda
def test_many_voters_without_synchronising() -> None:
    inputs = voting(300_000, 0.9, batch=3, joints=21)
    kernel(*inputs)  # compile first
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = kernel(*inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_within_rounding(found, inputs)
    for first, second in zip(found, kernel(*inputs), strict=True):
        assert torch.equal(first, second)
