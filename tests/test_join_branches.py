"""join_branches: the reference by hand, the kernel against float64, its moments in a norm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nvf_fast import ops
from nvf_fast.encoder import BicubicUpsample
from nvf_fast.kernels.group_norm_relu.triton import group_norm_relu as norm
from nvf_fast.kernels.group_norm_relu.triton import tiling
from nvf_fast.kernels.join_branches.reference import block_moments, block_moments_shape
from nvf_fast.kernels.join_branches.reference import join_branches as reference
from nvf_fast.kernels.join_branches.triton import join_branches as kernel
from tests.kernel_cases import rms

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.cuda)]
pytestmark = pytest.mark.usefixtures("poisoned_memory")


class Case(NamedTuple):
    """Channels of the branches, sides of the map, and what is added and measured."""

    branches: tuple[int, ...]
    sides: tuple[int, int]
    bias: bool = False
    upsampled: bool = False
    groups: int = 0
    batch: int = 2


CASES = {
    "one texel": Case((1,), (1, 1)),
    "one branch, bias": Case((40,), (7, 9), bias=True, groups=8),
    "two branches": Case((5, 8), (3, 5), groups=13),
    "upsampled from one texel": Case((2, 1, 1), (2, 2), upsampled=True, groups=2),
    "26 channels a group, everything": Case((104, 52, 52), (14, 14), True, True, 8),
    "full network": Case((128, 64, 64), (28, 28), upsampled=True, groups=32, batch=1),
    "full network, two channels a group": Case((32, 16, 16), (20, 20), groups=32, batch=1),
}


def inputs(case: Case, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    channels, (height, width) = sum(case.branches), case.sides

    def maps(count: int, *sides: int) -> Tensor:
        drawn = torch.randn(case.batch, count, *sides).to(DEVICE, dtype)
        return drawn.contiguous(memory_format=torch.channels_last)

    size = height // 2
    return {
        "x": maps(channels, height, width),
        "branches": [maps(count, height, width) for count in case.branches],
        "bias": torch.randn(channels).to(DEVICE, dtype) if case.bias else None,
        "lower": maps(channels, size, size) if case.upsampled else None,
        "upsampling": BicubicUpsample(size).matrix.to(DEVICE) if case.upsampled else None,
        "groups": case.groups,
    }


def double(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: double(each) for key, each in value.items()}
    if isinstance(value, list):
        return [double(each) for each in value]
    return value.double() if isinstance(value, Tensor) else value


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_kernel_errs_at_most_twice_as_much_as_pytorch(name: str, dtype: torch.dtype) -> None:
    arguments = inputs(CASES[name], dtype)
    exact = reference(**double(arguments))[0]
    y, moments = kernel(**arguments)
    assert y.dtype == dtype and y.is_contiguous(memory_format=torch.channels_last)
    # Sums of few values are often exact.
    rounded = torch.finfo(dtype).eps * exact.square().mean().sqrt().item() / 4
    assert rms(y - exact) <= 2 * max(rms(reference(**arguments)[0] - exact), rounded)
    expected = block_moments(y.double(), CASES[name].groups)
    assert moments.shape == expected.shape and moments.dtype == torch.float32
    torch.testing.assert_close(moments.double(), expected, rtol=1e-5, atol=1e-4)  # measured: 2e-5 of 4000


@pytest.mark.parametrize("function", [reference, kernel, ops.join_branches])
def test_by_hand(function: Callable) -> None:
    x = torch.tensor([[1.0, 2], [3, 4], [5, 6]], device=DEVICE).view(1, 3, 1, 2)
    branches = [torch.tensor([[10.0, 20]]), torch.tensor([[30.0, 40], [50, 60]])]
    branches = [branch.view(1, -1, 1, 2).to(DEVICE) for branch in branches]
    y, moments = function(x, branches, torch.tensor([100.0, 200, 300], device=DEVICE), groups=1)
    assert y.flatten(2)[0].tolist() == [[111, 122], [233, 244], [355, 366]]
    expected = y.mean(), (y - y.mean()).square().sum()
    torch.testing.assert_close(moments.flatten(), torch.stack(expected))


@pytest.mark.parametrize("size", [1, 2, 7, 28])
def test_upsampling_is_bicubic(size: int) -> None:
    arguments = inputs(Case((8,), (2 * size, 2 * size), upsampled=True))
    expected = F.interpolate(arguments["lower"], scale_factor=2, mode="bicubic", align_corners=True)
    expected = expected + arguments["x"] + arguments["branches"][0]
    torch.testing.assert_close(kernel(**arguments)[0], expected, rtol=0, atol=1e-5)  # measured: 2e-6


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["one branch, bias", "26 channels a group, everything", "full network"])
def test_norm_takes_its_moments(name: str, dtype: torch.dtype) -> None:
    case = CASES[name]
    y, moments = kernel(**inputs(case, dtype))
    weight, bias = torch.randn(2, y.shape[1]).to(DEVICE, dtype)
    expected = norm(y, weight, bias, case.groups)
    found = norm(y, weight, bias, case.groups, moments=moments)
    # Sums in another order, rounded to the dtype: to the next number at most.
    torch.testing.assert_close(found, expected, rtol=max(1e-5, torch.finfo(dtype).eps), atol=1e-5)
    moments[:, :, 0] += 1
    assert not torch.allclose(norm(y, weight, bias, case.groups, moments=moments), found)


def test_moments_have_the_blocks_of_the_norm() -> None:
    for channels, groups in ((256, 32), (64, 32), (208, 8), (52, 4), (1, 1)):
        blocks = -(-57 * 56 // tiling(channels, groups)["TEXELS"])
        assert block_moments_shape(channels, 57, 56, groups) == (blocks, 2, groups)


def test_contiguous_and_strided_maps() -> None:
    arguments = inputs(CASES["26 channels a group, everything"])
    expected = kernel(**arguments)
    for key in ("x", "lower"):
        arguments[key] = arguments[key].contiguous()
    arguments["branches"][0] = arguments["branches"][0].transpose(2, 3).contiguous().transpose(2, 3)
    for function in (kernel, ops.join_branches):
        y, moments = function(**arguments)
        assert y.is_contiguous()
        torch.testing.assert_close(y, expected[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(moments, expected[1], rtol=1e-5, atol=1e-4)


def test_gradients() -> None:
    arguments = inputs(CASES["26 channels a group, everything"])
    variables = [arguments["x"], arguments["branches"][1], arguments["bias"], arguments["lower"]]
    for variable in variables:
        variable.requires_grad_()
    y = ops.join_branches(**arguments)[0]
    along = torch.randn_like(y)
    found = torch.autograd.grad((y * along).sum(), variables)
    upsampled = F.interpolate(arguments["lower"], scale_factor=2, mode="bicubic", align_corners=True)
    y = torch.cat(arguments["branches"], 1) + arguments["x"] + arguments["bias"][:, None, None] + upsampled
    for got, expected in zip(found, torch.autograd.grad((y * along).sum(), variables), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", ["one branch, bias", "upsampled from one texel"])
def test_registration(name: str) -> None:
    torch.library.opcheck(torch.ops.nvf_fast.join_branches, tuple(inputs(CASES[name]).values()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"branches": []}, r"must have 208 channels in total, as x, got \[\]"),
        ({"groups": 7}, "groups must be 0 or divide the 208 channels, got 7"),
        ({"lower": None}, "must be given together"),
        ({"bias": torch.zeros(3)}, r"bias must be \(208,\), got \(3,\)"),
    ],
)
def test_refusals(change: dict[str, Any], message: str) -> None:
    arguments = inputs(CASES["26 channels a group, everything"]) | change
    with pytest.raises(ValueError, match=message):
        ops.join_branches(**arguments)


@pytest.mark.cuda
def test_deterministic_without_synchronising() -> None:
    arguments = inputs(CASES["full network"]._replace(sides=(56, 56), batch=3), torch.float16)
    expected = kernel(**arguments)  # compiles first
    torch.cuda.set_sync_debug_mode("error")
    try:
        again = [kernel(**arguments) for _ in range(5)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for y, moments in again:
        assert torch.equal(y, expected[0]) and torch.equal(moments, expected[1])
