"""select_voters: kernel and reference give the same integers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from nvf_fast.kernels.select_voters import select_voters as kernel
from nvf_fast.kernels.select_voters_ref import select_voters as reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def assert_same(sdf: Tensor, surface_mm: float, capacity: int) -> None:
    for got, wanted in zip(
        kernel(sdf, surface_mm, capacity), reference(sdf, surface_mm, capacity), strict=True
    ):
        assert got.dtype == wanted.dtype and torch.equal(got, wanted)


@pytest.mark.parametrize("function", [kernel, reference])
def test_by_hand(function) -> None:
    rows = [[0, 2, -1, 1.9, -2, 9], [math.nan, math.inf, -math.inf, -0.0, 3, -3], [5.0] * 6]
    indices, counts, overflow = function(torch.tensor(rows, device=DEVICE), 2.0, 2)
    assert indices.tolist() == [[0, 2], [3, -1], [-1, -1]]
    assert counts.tolist() == [3, 1, 0] and counts.dtype == torch.int32
    assert overflow.tolist() == [True, False, False]
    assert function(torch.tensor(rows, device=DEVICE), math.inf, 9)[1].tolist() == [6, 3, 6]


@pytest.mark.parametrize("count", [1, 63, 1000, 1024, 1025, 5000])
@pytest.mark.parametrize("capacity", [1, 100, 6000])
def test_kernel_is_the_reference(count: int, capacity: int) -> None:
    """A batch of unequal counts: some voters, none, all, and only the last point."""
    sdf = 10 * torch.randn(4, count, device=DEVICE)
    sdf[1] = 3
    sdf[2] = 1
    sdf[3] = 3
    sdf[3, -1] = 0
    assert_same(sdf, 2.0, capacity)


@pytest.mark.parametrize("shape", [(0, 5), (2, 0), (0, 0)])
def test_empty(shape: tuple[int, int]) -> None:
    assert_same(torch.zeros(shape, device=DEVICE), 2.0, 3)


def test_strided_input() -> None:
    assert_same(torch.randn(1500, 2, device=DEVICE).T, 0.5, 1000)


@pytest.mark.cuda
def test_large_grid_without_synchronising() -> None:
    sdf = 10 * torch.randn(3, 1_882_292, device="cuda")
    kernel(sdf, 1.0, 8192)  # compile first
    torch.cuda.set_sync_debug_mode("error")
    try:
        kernel(sdf, 1.0, 8192)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_same(sdf, 1.0, 8192)
    assert_same(sdf, 1.0, 300_000)
