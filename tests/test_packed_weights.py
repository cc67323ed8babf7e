"""Convolutions on x86 CPUs with weights in oneDNN's layouts."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nvf_fast import unet
from nvf_fast.packed_weights import MOST_LAYOUTS, _supports
from nvf_fast.unet import ConvNorm
from tests.test_unet import trained_like

pytestmark = pytest.mark.skipif(not _supports(torch.float32), reason="needs oneDNN on an x86 processor")


def folded(kernel_size: int = 3, stride: int = 1, linear: bool = False) -> ConvNorm:
    torch.manual_seed(kernel_size)
    conv = ConvNorm(5, 7, kernel_size, stride, linear).eval().requires_grad_(False)
    assert isinstance(conv.norm, unet.BatchNorm)
    conv.norm.mean.normal_()
    conv.norm.bias.normal_()
    conv.fold()
    return conv


def expected(conv: ConvNorm, x: Tensor, other: Tensor | None = None) -> Tensor:
    """In float64, which the packed convolutions do not take."""
    conv = copy.deepcopy(conv).double()
    with torch.no_grad():
        y = F.conv2d(x.double(), conv.conv.weight, conv.conv.bias, conv.conv.stride, conv.conv.padding)
        y = y if other is None else y + other.double()
        return y if conv.linear else y.relu()


@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize(("kernel_size", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2), (4, 2)])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 7, 13), (2, 4, 33)])
def test_convolution(
    shape: tuple[int, int, int], kernel_size: int, stride: int, linear: bool, added: bool
) -> None:
    conv, (batch, height, width) = folded(kernel_size, stride, linear), shape
    for memory_format in (torch.channels_last, torch.contiguous_format):
        x = torch.randn(batch, 5, height, width).contiguous(memory_format=memory_format)
        right = expected(conv, x)
        other = torch.randn(right.shape).contiguous(memory_format=memory_format) if added else None
        before = None if other is None else other.clone()
        found = conv(x, other)
        assert len(conv._packed) == 1
        torch.testing.assert_close(found.double(), expected(conv, x, other), rtol=1e-5, atol=1e-5)
        if other is not None:
            assert torch.equal(other, before), "the other map may be needed again"


@pytest.mark.skipif(not _supports(torch.bfloat16), reason="needs oneDNN's bfloat16")
def test_convolution_in_bfloat16() -> None:
    conv, x = folded().bfloat16(), torch.randn(2, 5, 9, 6).bfloat16()
    found, right = conv(x), expected(conv, x)
    assert found.dtype == torch.bfloat16 and len(conv._packed) == 1
    torch.testing.assert_close(found.double(), right, rtol=2**-7, atol=1e-2)  # one rounding


def test_every_folded_convolution_is_packed() -> None:
    model = trained_like().for_inference()
    inputs = torch.rand(2, 3, 64, 64) * 2 - 1, torch.tensor([0.1, 0.3])
    model.encode_hands(*inputs)
    parts = [part for part in model.modules() if isinstance(part, ConvNorm)]
    assert len(parts) == 28 and {len(part._packed) for part in parts} == {1}
    for case in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        for one, other in zip(case.encode_hands(*inputs), model.encode_hands(*inputs), strict=True):
            assert torch.equal(one, other)


def test_changed_weights_are_packed_again() -> None:
    conv, x = folded(), torch.randn(1, 5, 8, 8)
    conv(x)
    conv.conv.weight.mul_(2)
    torch.testing.assert_close(conv(x).double(), expected(conv, x), rtol=1e-5, atol=1e-5)
    conv.load_state_dict(folded(3).state_dict())
    torch.testing.assert_close(conv(x).double(), expected(folded(3), x), rtol=1e-5, atol=1e-5)
    with torch.inference_mode():
        inside = folded()
        torch.testing.assert_close(inside(x).double(), expected(inside, x), rtol=1e-5, atol=1e-5)


def test_few_layouts_are_stored() -> None:
    conv = folded()
    for width in [*range(1, MOST_LAYOUTS + 5), 1]:
        x = torch.randn(1, 5, 4, width)
        torch.testing.assert_close(conv(x).double(), expected(conv, x), rtol=1e-5, atol=1e-5)
    assert len(conv._packed) == MOST_LAYOUTS


def gradient(conv: ConvNorm, x: Tensor) -> Tensor:
    x.requires_grad_()
    (found,) = torch.autograd.grad(conv(x).sum(), x)
    return found


def compiled(conv: ConvNorm, x: Tensor) -> Tensor:
    return torch.compile(conv, backend="eager", fullgraph=True)(x)


def exported(conv: ConvNorm, x: Tensor) -> Tensor:
    return torch.export.export(conv, (x,)).module()(x)


def without_onednn(conv: ConvNorm, x: Tensor) -> Tensor:
    with torch.backends.mkldnn.flags(enabled=False):
        return conv(x)


@pytest.mark.filterwarnings("ignore:TF32")
@pytest.mark.parametrize("run", [gradient, compiled, exported, without_onednn])
def test_other_ways_to_run_are_not_packed(run: Any) -> None:
    conv = folded()
    assert run(conv, torch.randn(1, 5, 8, 8)).shape[2:] == (8, 8)
    assert len(conv._packed) == 0
    assert conv(torch.randn(0, 5, 8, 8)).shape == (0, 7, 8, 8)
