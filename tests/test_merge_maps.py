"""merge_maps: by hand, and the kernel against float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from nvf_fast import ops
from nvf_fast.kernels.merge_maps.reference import merge_maps as reference
from nvf_fast.kernels.merge_maps.triton import merge_maps as kernel
from tests.kernel_cases import rms

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Without a GPU kernels run in Triton's interpreter, whose bfloat16 products are wrong.
DTYPES = [torch.float32, torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.cuda)]
# Maps, channels of the lower map, of the other and of the result, and the lower map's sides.
CASES = {
    "odd": (3, 20, 9, 37, 3, 5),
    "default network": (1, 192, 128, 128, 4, 4),
    "many texels": (2, 16, 70, 33, 5, 7),
}
pytestmark = pytest.mark.usefixtures("poisoned_memory")


def arguments(case: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    batch, below, beside, out, height, width = case
    shapes = (batch, below, height, width), (batch, beside, 2 * height, 2 * width)
    maps = [torch.randn(shape).contiguous(memory_format=torch.channels_last) for shape in shapes]
    weights = [torch.randn(out, channels, 1, 1) / channels**0.5 for channels in (below, beside)]
    return [each.to(DEVICE, dtype) for each in (*maps, *weights, torch.randn(out))]


@pytest.mark.parametrize("function", [kernel, reference, ops.merge_maps])
def test_by_hand(function: Any) -> None:
    below = torch.tensor([[[[1.0, 2.0]]]], device=DEVICE)
    beside = torch.arange(8.0, device=DEVICE).view(1, 1, 2, 4)
    one = torch.ones(1, 1, 1, 1, device=DEVICE)
    y = function(below, beside, 10 * one, -3 * one, torch.tensor([1.0], device=DEVICE))
    assert y.tolist() == [[[[11, 8, 15, 12], [0, 0, 3, 0]]]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_kernel_errs_at_most_twice_as_much_as_pytorch(case: tuple[int, ...], dtype: torch.dtype) -> None:
    given = arguments(case, dtype)
    exact = reference(*(each.double() for each in given))
    found = kernel(*given)
    assert found.dtype == dtype and found.is_contiguous(memory_format=torch.channels_last)
    assert rms(found - exact) <= 2 * rms(reference(*given) - exact)


def test_other_layouts() -> None:
    below, beside, *rest = arguments(CASES["odd"])
    expected = kernel(below, beside, *rest)
    wider = torch.cat([beside, beside], 1)[:, : beside.shape[1]]
    assert torch.equal(kernel(below.contiguous(), beside.contiguous(), *rest), expected)
    assert torch.equal(kernel(below.mT.contiguous().mT, wider, *rest), expected)
    assert kernel(below[:0], beside[:0], *rest).shape == (0, *expected.shape[1:])


def test_keeps_nan() -> None:
    given = arguments(CASES["odd"])
    given[0][1, 3, 2, 4] = float("nan")
    found = kernel(*given).isnan()
    assert torch.equal(found, reference(*given).isnan()) and found.any()


def test_refuses_other_shapes_and_dtypes() -> None:
    below, beside, *rest = arguments(CASES["odd"])
    with pytest.raises(ValueError, match=r"merge_maps: beside must be \(3, D, 6, 10\), got \(3, 9, 6, 9\)"):
        ops.merge_maps(below, beside[..., :9], *rest)
    with pytest.raises(TypeError, match="merge_maps: bias must be float32"):
        ops.merge_maps(*[below, beside, *rest[:2], rest[2].half()])
