"""pool_maps: by hand, and the kernel against float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from nvf_fast import ops
from nvf_fast.kernels.pool_maps.reference import pool_maps as reference
from nvf_fast.kernels.pool_maps.triton import pool_maps as kernel
from tests.kernel_cases import rms

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# Maps, slopes, channels, numbers of a description, outputs, sides.
CASES = {
    "odd": (6, 3, 20, 37, 5, 3, 7),
    "default network": (2, 2, 192, 256, 24, 4, 4),
    "one texel": (3, 1, 70, 16, 24, 1, 1),
}
pytestmark = pytest.mark.usefixtures("poisoned_memory")


def arguments(case: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    rows, slopes, channels, width, outputs, *sides = case
    layers = [
        (torch.randn(out, inputs) / inputs**0.5, torch.randn(out))
        for out, inputs in ((width, 2 * channels + 1), (channels, width), (outputs, width))
    ]
    maps = torch.randn(rows, channels, *sides).contiguous(memory_format=torch.channels_last)
    own = [maps, *layers[0], *layers[1]]
    maps, *own = (each.to(DEVICE, dtype) for each in own)
    return [maps, torch.linspace(0.1, 0.4, slopes).to(DEVICE), *own, *(each.to(DEVICE) for each in layers[2])]


@pytest.mark.parametrize("function", [kernel, reference, ops.pool_maps])
def test_by_hand(function: Any) -> None:
    maps = torch.tensor([1.0, 3.0], device=DEVICE).view(1, 1, 1, 2).repeat(2, 1, 1, 1)
    # Mean 2, largest 3, angle 1: 2 + 10 x 3 + 100 = 132, and its negative, which the ReLU removes.
    pooled = torch.tensor([[1.0, 10, 100], [-1, -10, -100]], device=DEVICE), torch.zeros(2, device=DEVICE)
    unpooled = torch.tensor([[0.5, 7]], device=DEVICE), torch.ones(1, device=DEVICE)
    view = torch.tensor([[2.0, 7]], device=DEVICE), torch.tensor([3.0], device=DEVICE)
    y, views = function(maps, torch.tensor([0.4], device=DEVICE), *pooled, *unpooled, *view)
    torch.testing.assert_close(y.flatten(), torch.tensor([68.0, 70, 68, 70], device=DEVICE))
    torch.testing.assert_close(views.flatten(), torch.tensor([267.0, 267], device=DEVICE))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_kernel_errs_at_most_twice_as_much_as_pytorch(case: tuple[int, ...], dtype: torch.dtype) -> None:
    given = arguments(case, dtype)
    exact = reference(*(each.double() for each in given))
    for found, by_torch, right in zip(kernel(*given), reference(*given), exact, strict=True):
        assert found.dtype == by_torch.dtype and found.shape == right.shape
        assert rms(found - right) <= 2 * rms(by_torch - right)


def test_other_layouts_and_no_views() -> None:
    maps, slopes, *rest = arguments(CASES["odd"])
    for expected, found in zip(
        kernel(maps, slopes, *rest), kernel(maps.contiguous(), slopes, *rest), strict=True
    ):
        assert torch.equal(expected, found)
    for function in (kernel, ops.pool_maps):
        assert function(maps.contiguous(), slopes, *rest)[0].is_contiguous(memory_format=torch.channels_last)
        assert [len(each) for each in function(maps[:0], slopes[:0], *rest)] == [0, 0]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_stay_in_their_view(value: float) -> None:
    given = arguments(CASES["odd"])
    expected = kernel(*given)
    given[0][1, 3, 2, 4] = value
    for found, right, by_torch in zip(kernel(*given), expected, reference(*given), strict=True):
        assert torch.equal(found.isfinite(), by_torch.isfinite()) and not found[1].isfinite().all()
        others = [0, *range(2, len(found))]
        assert torch.equal(found[others], right[others])


def test_refuses_other_shapes_and_dtypes() -> None:
    maps, slopes, *rest = arguments(CASES["odd"])
    with pytest.raises(ValueError, match="pool_maps: the 5 maps must be a multiple of the slopes, got 3"):
        ops.pool_maps(maps[:5], slopes, *rest)
    with pytest.raises(ValueError, match=r"pool_maps: pooled_weight must be \(37, 41\), got \(37, 40\)"):
        ops.pool_maps(maps, slopes, rest[0][:, :40], *rest[1:])
    with pytest.raises(TypeError, match="pool_maps: view_bias must be float32"):
        ops.pool_maps(*[maps, slopes, *rest[:5], rest[5].half()])
