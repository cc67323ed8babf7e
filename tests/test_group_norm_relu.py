"""group_norm_relu: the reference against hand computation, kernel and operation against float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from nvf_fast import ops
from nvf_fast.kernels.group_norm_relu import triton as kernel_module
from nvf_fast.kernels.group_norm_relu.reference import group_norm_relu as reference
from nvf_fast.kernels.group_norm_relu.triton import group_norm_relu as kernel
from tests.kernel_cases import rms

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.cuda)]
pytestmark = pytest.mark.usefixtures("poisoned_memory")
FUNCTIONS = pytest.mark.parametrize("function", [kernel, reference, ops.group_norm_relu])
FORMATS = pytest.mark.parametrize(
    "memory_format", [torch.channels_last, torch.contiguous_format], ids=["channels-last", "contiguous"]
)


class Case(NamedTuple):
    """Shape of the maps and number of groups."""

    shape: tuple[int, int, int, int]
    groups: int


CASES = {
    "one texel": Case((2, 24, 1, 1), 3),
    "one value per group": Case((2, 4, 1, 1), 4),
    "one channel": Case((2, 1, 5, 3), 1),
    "63 texels, 13 channels a group": Case((1, 52, 7, 9), 4),
    "7 groups, two blocks": Case((2, 28, 17, 25), 7),
    "26 channels a group": Case((2, 208, 4, 4), 8),
    "a group per channel, moments in two parts": Case((1, 256, 17, 17), 256),
    "full network": Case((1, 256, 14, 14), 32),
    "many images, 8 groups together": Case((8, 64, 6, 5), 32),
    "full network, two channels a group": Case((1, 64, 28, 28), 32),
    "small network": Case((1, 64, 32, 32), 8),
}


def inputs(
    case: Case,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.channels_last,
    mean: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Draw maps of unit deviation around `mean` and the other arguments."""
    channels = case.shape[1]
    x = (mean + torch.randn(case.shape)).to(DEVICE, dtype, memory_format=memory_format)
    weight, bias = (torch.randn(2, channels) + torch.tensor([[1.0], [0.0]])).to(DEVICE, dtype)
    return x, weight, bias, case.groups


def double(arguments: tuple[Tensor, Tensor, Tensor, int]) -> tuple[Tensor, Tensor, Tensor, int]:
    return *(tensor.double() for tensor in arguments[:3]), arguments[3]  # type: ignore[return-value]


# Far from 0 PyTorch on a CPU is inaccurate on channels-last maps; contiguous maps are a fair baseline.
@pytest.mark.parametrize(
    ("memory_format", "mean"),
    [(torch.channels_last, 0.0), (torch.contiguous_format, 0.0), (torch.contiguous_format, 100.0)],
    ids=["channels-last", "contiguous", "contiguous, mean 100"],
)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_kernel_errs_at_most_twice_as_much_as_pytorch(
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    dtype: torch.dtype,
    memory_format: torch.memory_format,
    mean: float,
) -> None:
    """Errors are pooled over 32 groups or more, since those of one group are random."""
    if "blocks" in name or "parts" in name:
        monkeypatch.setattr(kernel_module, "_SMALL_TEXELS", 0)  # small maps take one launch
    case, found, expected = CASES[name], [], []
    for _ in range(math.ceil(32 / (case.shape[0] * case.groups))):
        arguments = inputs(case, dtype, memory_format, mean)
        exact = reference(*double(arguments))
        for errors, function in ((found, kernel), (expected, reference)):
            y = function(*arguments)
            assert y.dtype == dtype and y.isfinite().all()
            errors.append(y - exact)
    assert rms(torch.stack(found)) <= 2 * rms(torch.stack(expected))


@FUNCTIONS
def test_by_hand(function: Callable) -> None:
    """Two groups of two channels and two texels: 1 2 3 4, and 5 5 5 5."""
    x = torch.tensor([[1.0, 3], [2, 4], [5, 5], [5, 5]], device=DEVICE).view(1, 4, 1, 2)
    weight = torch.tensor([1.0, -2, 3, 4], device=DEVICE)
    bias = torch.tensor([0.0, 0, 7, -7], device=DEVICE)
    y = function(x, weight, bias, 2, 0.31)  # variance 1.25, and 1.56 with eps
    deviation = 1.56**0.5
    expected = [[0, 0.5 / deviation], [1 / deviation, 0], [7, 7], [0, 0]]
    torch.testing.assert_close(y.view(4, 2).cpu(), torch.tensor(expected), rtol=1e-6, atol=1e-6)


def test_subtracts_a_large_mean_accurately() -> None:
    """Kernel only: PyTorch on a CPU sums squares of channels-last maps and errs by 0.025 here."""
    x, weight, bias, groups = inputs(CASES["small network"])
    x = (x * 1024).round() / 1024  # exact after 100 is added
    y = kernel(x + 100, weight, bias, groups)
    expected = reference(*double((x, weight, bias, groups)))
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=3e-5)  # measured: 8e-6


@FUNCTIONS
def test_nan_stays_in_its_group(function: Callable) -> None:
    x, weight, bias, groups = inputs(CASES["7 groups, two blocks"])
    expected = function(x, weight, bias, groups)
    x[1, 3, 16, 20] = torch.nan
    y = function(x, weight, bias, groups)
    assert y[1, :4].isnan().all()
    assert torch.equal(y[1, 4:], expected[1, 4:]) and torch.equal(y[0], expected[0])


@FUNCTIONS
def test_images_are_independent(function: Callable) -> None:
    x, weight, bias, groups = inputs(CASES["7 groups, two blocks"])
    together = function(x, weight, bias, groups)
    for image, expected in zip(x.split(1), together.split(1), strict=True):
        alone = function(image.contiguous(memory_format=torch.channels_last), weight, bias, groups)
        assert torch.equal(alone, expected)


@FORMATS
@pytest.mark.parametrize("function", [kernel, ops.group_norm_relu])
def test_memory_format_is_kept(function: Callable, memory_format: torch.memory_format) -> None:
    x, *rest = inputs(CASES["7 groups, two blocks"], memory_format=memory_format)
    y = function(x, *rest)
    assert y.is_contiguous(memory_format=memory_format) and y.stride() == x.stride()
    with torch.autocast(DEVICE, torch.bfloat16):
        assert function(x.bfloat16(), *rest).stride() == x.stride()


@FUNCTIONS
def test_strided_inputs(function: Callable) -> None:
    x, weight, bias, groups = inputs(Case((2, 48, 6, 10), 4))
    expected = function(x[:, ::2].contiguous(), weight[::2].contiguous(), bias[::2].contiguous(), groups)
    torch.testing.assert_close(function(x[:, ::2], weight[::2], bias[::2], groups), expected)
    transposed = function(x.transpose(2, 3), weight, bias, groups)
    torch.testing.assert_close(transposed, function(x, weight, bias, groups).transpose(2, 3))


@pytest.mark.parametrize("function", [kernel, ops.group_norm_relu])
def test_float32_parameters_of_half_precision_maps(function: Callable) -> None:
    """Autocast keeps parameters in float32."""
    x, weight, bias, groups = inputs(CASES["26 channels a group"])
    with torch.autocast(DEVICE, torch.float16):
        y = function(x.half(), weight, bias, groups)
    assert y.dtype == torch.float16
    exact = reference(x.half().double(), weight.double(), bias.double(), groups)
    torch.testing.assert_close(y.double(), exact, rtol=1e-3, atol=1e-4)  # float16 rounds by 5e-4 at most


@pytest.mark.parametrize("shape", [(0, 8, 4, 4), (2, 8, 0, 4)])
def test_empty(shape: tuple[int, int, int, int]) -> None:
    arguments = torch.zeros(shape, device=DEVICE), *torch.ones(2, 8, device=DEVICE), 2
    assert kernel(*arguments).shape == ops.group_norm_relu(*arguments).shape == shape


@FORMATS
def test_gradients(memory_format: torch.memory_format) -> None:
    arguments = inputs(CASES["7 groups, two blocks"], memory_format=memory_format)
    variables = [tensor.requires_grad_() for tensor in arguments[:3]]
    along = torch.randn(CASES["7 groups, two blocks"].shape, device=DEVICE)
    found = torch.autograd.grad((ops.group_norm_relu(*arguments) * along).sum(), variables)
    # Gradients of the definition, in float64.
    x, weight, bias = [tensor.detach().double().requires_grad_() for tensor in variables]
    grouped = x.reshape(2, 7, -1)
    variance, mean = torch.var_mean(grouped, -1, correction=0, keepdim=True)
    normalised = ((grouped - mean) / (variance + 1e-5).sqrt()).reshape(x.shape)
    y = (normalised * weight[:, None, None] + bias[:, None, None]).clamp(min=0)
    for got, expected in zip(found, torch.autograd.grad((y * along).sum(), [x, weight, bias]), strict=True):
        torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-4)  # measured: 2e-5 of 70


@pytest.mark.cuda
@pytest.mark.parametrize("side", [56, 112])
def test_deterministic_without_synchronising(side: int) -> None:
    arguments = inputs(Case((3, 64, side, side), 32), torch.bfloat16)
    expected = kernel(*arguments)  # compiles first
    torch.cuda.set_sync_debug_mode("error")
    try:
        again = [kernel(*arguments) for _ in range(5)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(y, expected) for y in again)


@pytest.mark.cuda
def test_more_images_than_one_launch_grid_allows() -> None:
    x, weight, bias, groups = inputs(Case((1, 24, 2, 3), 3))
    y = kernel(x.repeat(70_000, 1, 1, 1), weight, bias, groups)
    assert torch.equal(y, kernel(x, weight, bias, groups).expand_as(y))


@pytest.mark.cuda
def test_more_values_in_a_map_than_32_bits_count() -> None:
    """Repeated rows have the mean and deviation of a single one, up to the order of the sums.

    One group: every program combines the moments of all 262 400.
    """
    x, weight, bias, groups = inputs(Case((1, 64, 1, 4096), 1), torch.float16)
    rows = 8200
    many = x.expand(-1, -1, rows, -1).contiguous(memory_format=torch.channels_last)
    assert many.numel() > 2**31
    y, expected = kernel(many, weight, bias, groups), reference(*double((x, weight, bias, groups)))
    boundary = 2**31 // (64 * 4096)
    for row in (0, 1, boundary // 2, boundary - 1, boundary, rows - 1):
        # float16 rounds by at most 5e-4.
        torch.testing.assert_close(y[:, :, row].double(), expected[:, :, 0], rtol=1e-3, atol=1e-4)
    assert torch.equal(kernel(many, weight, bias, groups), y)


@pytest.mark.cuda
def test_more_values_than_32_bits_count() -> None:
    x, weight, bias, groups = inputs(Case((1, 64, 112, 112), 32), torch.float16)
    many = x.expand(2700, -1, -1, -1).contiguous(memory_format=torch.channels_last)
    assert many.numel() > 2**31
    assert torch.equal(kernel(many, weight, bias, groups)[-1:], kernel(x, weight, bias, groups))
