from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nvf_fast import encoder_inference, ops
from nvf_fast.config import NVFConfig
from nvf_fast.encoder import BicubicUpsample, Hourglass, HourglassEncoder, NormReLU
from nvf_fast.field import FieldMLP

SHAPES = {
    "small": NVFConfig(input_size=128, stem=32, width=64, widen=32, stacks=1, depth=4, groups=8),
    "two stacks, one texel": NVFConfig(input_size=128, stem=24, width=48, stacks=2, depth=5, groups=8),
    "as wide as groups": NVFConfig(input_size=64, stem=16, width=32, stacks=1, depth=1, groups=32),
    "odd map": NVFConfig(input_size=88, stem=20, width=40, widen=4, stacks=2, depth=1, groups=7),
}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CASES = pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES.keys())


def drawn(config: NVFConfig) -> HourglassEncoder:
    """An encoder with biases, which are 0 at first and would hide one left out."""
    encoder = HourglassEncoder(config)
    for name, parameter in encoder.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)
    return encoder


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_size_and_work_of_the_released_network() -> None:
    operations = 0

    def count(convolution: nn.Module, inputs: object, output: Tensor) -> None:
        nonlocal operations
        assert isinstance(convolution, nn.Conv2d)
        operations += 2 * output[0, 0].numel() * convolution.weight.numel()

    encoder, field = HourglassEncoder(NVFConfig()), FieldMLP(NVFConfig())
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    with torch.no_grad():
        encoder(torch.zeros(1, 3, 224, 224))
    # The release stores 14 420 864, of which 16 640 belong to norms that it never applies.
    assert parameters(encoder) == 14_404_224
    assert parameters(field) == 1_218_303
    assert round(operations / 1e9, 2) == 40.16


@CASES
def test_one_map_per_stack_of_a_quarter_of_the_side(config: NVFConfig) -> None:
    size = config.input_size
    every_features = HourglassEncoder(config)(torch.randn(2, 3, size, size))
    assert [tuple(features.shape) for features in every_features] == [
        (2, config.width, size // 4, size // 4)
    ] * config.stacks


@CASES
@torch.no_grad()
def test_last_features_are_the_last_map(config: NVFConfig) -> None:
    encoder, images = drawn(config), torch.randn(2, 3, config.input_size, config.input_size)
    expected = encoder(images)[-1]
    torch.testing.assert_close(encoder.last_features(images), expected, rtol=0, atol=1e-5)  # measured: 3e-6


@CASES
@torch.no_grad()
def test_inference_on_a_gpu_computes_the_last_map(config: NVFConfig) -> None:
    encoder, images = drawn(config), torch.randn(2, 3, config.input_size, config.input_size)
    found = encoder_inference.last_features(encoder, images)
    torch.testing.assert_close(found, encoder(images)[-1], rtol=0, atol=1e-5)


@torch.no_grad()
def test_inference_by_kernels_computes_the_last_map(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the interpreter, with the moments that only large maps need."""
    config = replace(SHAPES["as wide as groups"], stacks=2)
    encoder, images = drawn(config).to(DEVICE), torch.randn(2, 3, 64, 64, device=DEVICE)
    expected = encoder(images)[-1]
    given = []

    def norm(*arguments: object) -> Tensor:
        given.append(arguments[-1] is not None)
        return ops.group_norm_relu(*arguments, backend="triton")  # type: ignore[arg-type]

    kernels = SimpleNamespace(
        group_norm_relu=norm, join_branches=partial(ops.join_branches, backend="triton")
    )
    monkeypatch.setattr("nvf_fast.encoder.ops", kernels)
    monkeypatch.setattr(encoder_inference, "ops", kernels)
    monkeypatch.setattr(encoder_inference, "LARGE", 0)
    found = encoder_inference.last_features(encoder, images)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
    assert sum(given) == 6  # of the norms after `middle`, `deep`, a stack, and each of two hourglasses


def test_lower_branches_are_ordered_before_the_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """As captured: a stream per level, begun after the map it reads, awaited before the sum."""
    events: list[str] = []

    class Stream:
        def __init__(self, name: str) -> None:
            self.name = name

        def wait_stream(self, other: Stream) -> None:
            events.append(f"{self.name} after {other.name}")

    streams = [Stream("main")]

    @contextmanager
    def on(stream: Stream) -> Iterator[None]:
        streams.append(stream)
        yield
        streams.pop()

    def joined(x: Tensor, *_: object, lower: Tensor | None = None, **__: object) -> encoder_inference.Map:
        events.append(f"{'sum' if lower is not None else 'block'} on {streams[-1].name}")
        return encoder_inference.Map(x)

    monkeypatch.setattr(encoder_inference, "_capturing", lambda device: True)
    monkeypatch.setattr(
        encoder_inference, "_side_stream", cache(lambda device, level: Stream(f"side {level}"))
    )
    monkeypatch.setattr(encoder_inference, "_joined", joined)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: streams[-1])
    monkeypatch.setattr(torch.cuda, "stream", on)
    hourglass = Hourglass(16, 2, 8, 0, 4)
    with torch.no_grad():
        encoder_inference._hourglass(hourglass, encoder_inference.Map(torch.randn(1, 8, 16, 16)))
    assert events == [
        "side 0 after main",
        "block on side 0",
        "side 1 after side 0",
        *["block on side 1"] * 3,
        "side 0 after side 1",
        "sum on side 0",
        "block on side 0",
        "main after side 0",
        "sum on main",
    ]


@pytest.mark.cuda
@torch.no_grad()
def test_captured_features_equal_eager_ones() -> None:
    encoder = drawn(NVFConfig()).to("cuda", torch.float16)
    encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.randn(1, 3, 224, 224, device="cuda", dtype=torch.float16)
    images = images.contiguous(memory_format=torch.channels_last)
    for _ in range(2):
        expected = encoder.last_features(images)
    exact = encoder.float().forward(images.float())[-1]
    assert (expected - exact).norm() < 0.02 * exact.norm()
    encoder.half()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        features = encoder.last_features(images)
    for _ in range(50):
        features.fill_(torch.nan)
        graph.replay()
        torch.testing.assert_close(features, expected, rtol=0, atol=0.02 * expected.std().item())


def test_last_features_use_current_weights() -> None:
    """Weights changed in place, loaded or replaced take effect immediately."""
    config = SHAPES["odd map"]
    encoder, images = HourglassEncoder(config), torch.randn(1, 3, 88, 88)

    def assert_close() -> Tensor:
        features = encoder.last_features(images)
        torch.testing.assert_close(features, encoder(images)[-1], rtol=0, atol=1e-5)
        return features

    with torch.no_grad():
        outputs = [assert_close()]
        for name in ("features.weight", "features.bias", "mixed_onward.weight", "features_onward.bias"):
            encoder.stacks[0].get_parameter(name).add_(0.1)
            outputs.append(assert_close())
        encoder.load_state_dict(HourglassEncoder(config).state_dict())
        outputs.append(assert_close())
        encoder.stacks[0].features_onward = nn.Conv2d(config.width, config.width, 1)
        outputs.append(assert_close())
        for before, after in pairwise(outputs):
            assert (after - before).abs().max() > 1e-3


def test_last_features_are_differentiable() -> None:
    config = SHAPES["odd map"]
    encoder, images = HourglassEncoder(config), torch.randn(1, 3, 88, 88)
    # Values near ReLU's corner would switch their gradient by rounding; none lies near it.
    for module in encoder.modules():
        if isinstance(module, NormReLU):
            nn.init.constant_(module.bias, 8.0)
    along = torch.randn(1, config.width, 22, 22)
    parameters = list(encoder.parameters())
    found = torch.autograd.grad((encoder.last_features(images) * along).sum(), parameters)
    expected = torch.autograd.grad((encoder(images)[-1] * along).sum(), parameters)
    found, expected = (torch.cat([gradient.flatten() for gradient in every]) for every in (found, expected))
    assert (found - expected).norm() < 1e-5 * expected.norm()  # measured: 2e-7


@CASES
def test_every_parameter_has_a_gradient(config: NVFConfig) -> None:
    encoder = HourglassEncoder(config)
    every_features = encoder(torch.randn(2, 3, config.input_size, config.input_size))
    torch.stack(
        [(features * torch.randn_like(features)).sum() for features in every_features]
    ).sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@CASES
def test_norms_use_the_largest_dividing_number_of_groups(config: NVFConfig) -> None:
    norms = [module for module in HourglassEncoder(config).modules() if isinstance(module, nn.GroupNorm)]
    assert len(norms) > 10
    for norm in norms:
        fitting = [n for n in range(1, config.groups + 1) if norm.num_channels % n == 0]
        assert norm.num_groups == max(fitting)


@CASES
def test_features_start_at_unit_scale(config: NVFConfig) -> None:
    with torch.no_grad():
        for features in HourglassEncoder(config)(torch.randn(2, 3, config.input_size, config.input_size)):
            assert 0.3 < features.std() < 3


def test_memory_format_is_kept_without_changing_results() -> None:
    config = SHAPES["small"]
    encoder, images = HourglassEncoder(config), torch.randn(2, 3, 128, 128)
    with torch.no_grad():
        contiguous = encoder(images)[-1]
        encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        channels_last = encoder(images.contiguous(memory_format=torch.channels_last))[-1]
    assert contiguous.is_contiguous()
    assert channels_last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(channels_last, contiguous, rtol=1e-4, atol=1e-4)  # measured: 1e-5


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_autocast_stays_close(memory_format: torch.memory_format) -> None:
    encoder = HourglassEncoder(SHAPES["small"]).to(memory_format=memory_format)  # type: ignore[call-overload]
    images = torch.randn(2, 3, 128, 128).contiguous(memory_format=memory_format)
    with torch.no_grad():
        exact = encoder(images)[-1]
        with torch.autocast("cpu", torch.bfloat16):
            rounded = encoder(images)[-1]
    assert rounded.dtype == torch.bfloat16
    error = (rounded.float() - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    assert error < 0.03  # measured: 0.012 to 0.015


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [1, 2, 7, 16])
def test_upsampling_is_bicubic(size: int, memory_format: torch.memory_format) -> None:
    x = torch.randn(2, 12, size, size).contiguous(memory_format=memory_format).requires_grad_()
    expected = F.interpolate(x, scale_factor=2, mode="bicubic", align_corners=True)
    upsampled = BicubicUpsample(size)(x)
    weight = torch.randn_like(expected)
    torch.testing.assert_close(upsampled, expected, rtol=0, atol=1e-5)
    gradients = [torch.autograd.grad((y * weight).sum(), x)[0] for y in (upsampled, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-5)
    assert upsampled.is_contiguous(memory_format=memory_format) or size == 1  # size 1 has both formats


def test_state_excludes_upsampling_matrices() -> None:
    encoder = HourglassEncoder(SHAPES["small"])
    assert encoder.state_dict().keys() == dict(encoder.named_parameters()).keys()
