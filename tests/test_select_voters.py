"""select_voters and compact: kernel and reference are equal."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from nvf_fast import ops
from nvf_fast.kernels.select_voters import reference as reference_file
from nvf_fast.kernels.select_voters import triton as kernel_file
from nvf_fast.kernels.select_voters.reference import select_voters as reference
from nvf_fast.kernels.select_voters.triton import select_voters as kernel

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def assert_same(sdf: Tensor, surface_mm: float, capacity: int) -> None:
    for got, expected in zip(
        kernel(sdf, surface_mm, capacity), reference(sdf, surface_mm, capacity), strict=True
    ):
        assert got.dtype == expected.dtype and torch.equal(got, expected)
    mask = sdf.abs() < surface_mm
    for got, expected in zip(
        kernel_file.compact(mask, capacity), reference_file.compact(mask, capacity), strict=True
    ):
        assert got.dtype == expected.dtype and torch.equal(got, expected)


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
def test_kernel_equals_the_reference(count: int, capacity: int) -> None:
    """Batch members with some voters, none, all, and only the last point."""
    sdf = 10 * torch.randn(4, count, device=DEVICE)
    sdf[1] = 3
    sdf[2] = 1
    sdf[3] = 3
    sdf[3, -1] = 0
    assert_same(sdf, 2.0, capacity)


def test_exact_capacity() -> None:
    sdf = torch.tensor([[0, 9, -1, 1.9], [3, 4, 0, 5], [7, 7, 7, 7]], device=DEVICE)
    for selection in (ops.select_voters(sdf, 2.0, None), ops.compact(sdf.abs() < 2.0, None)):
        assert selection.indices.tolist() == [[0, 2, 3], [2, -1, -1], [-1, -1, -1]]
        assert selection.counts.tolist() == [3, 1, 0] and selection.counts.dtype == torch.int32
        assert not selection.overflow.any()


@pytest.mark.parametrize("capacity", [None, 2])
def test_float64(capacity: int | None) -> None:
    sdf = torch.tensor([[2 - 1e-12, 2.0, -1e-300, 9.0]], dtype=torch.float64, device=DEVICE)
    assert ops.select_voters(sdf, 2.0, capacity).indices.tolist() == [[0, 2]]


@pytest.mark.parametrize("shape", [(0, 5), (2, 0), (0, 0)])
def test_empty(shape: tuple[int, int]) -> None:
    assert_same(torch.zeros(shape, device=DEVICE), 2.0, 3)


def test_strided_input() -> None:
    assert_same(torch.randn(1500, 2, device=DEVICE).T, 0.5, 1000)


@pytest.mark.cuda
@pytest.mark.usefixtures("poisoned_memory")
def test_more_images_than_one_launch_grid_allows() -> None:
    assert_same(10 * torch.randn(70_000, 33, device="cuda"), 2.0, 5)


@pytest.mark.cuda
@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("batch", [1, 3], ids=["one image", "three images"])
def test_more_points_than_32_bits_count(batch: int) -> None:
    """One image whose last index needs 64 bits, and a batch; bitwise equal runs."""
    capacity, count = 1000, 2**31 // batch + 1025
    sdf = torch.full((batch, count), 9.0, device="cuda")
    near = torch.unique(torch.cat([torch.randint(count, (500,)), torch.tensor([0, 1023, count - 1])])).cuda()
    for place in near.tolist():
        sdf[:, place] = 0.5
    sdf[-1, 7] = -0.5
    indices, counts, overflow = kernel(sdf, 1.0, capacity)
    again = kernel(sdf, 1.0, capacity)
    assert torch.equal(indices, again[0]) and torch.equal(counts, again[1])
    for image in range(batch):
        expected = near if image < batch - 1 else torch.unique(torch.cat([near, near.new_tensor([7])]))
        assert torch.equal(indices[image, : len(expected)], expected)
        assert (indices[image, len(expected) :] == -1).all() and counts[image] == len(expected)
    assert not overflow.any()


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
    for first, second in zip(kernel(sdf, 1.0, 8192), kernel(sdf, 1.0, 8192), strict=True):
        assert torch.equal(first, second)
