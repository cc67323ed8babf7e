"""Inference of the U-Net in 8-bit integers, on x86 CPUs (Jacob et al. 2018).

A map holds integers n for the values scale * (n - zero). Its scale follows from the means and deviations that
the batch norms give its channels, so that no images are needed for calibration. oneDNN sums the products in
32 bits, and rescales, adds and rectifies in the same pass.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nvf_fast.unet import BatchNorm, ConvNorm, Merge, Residual, UNetEncoder

# A map's range in standard deviations about its channels' means. Photographs reach 6 to 16. On 555 of them,
# ranges of 8, 12, 16 and 32 move aligned joints by 0.35, 0.43, 0.51 and 0.89 mm; clipping costs more.
DEVIATIONS = 12.0
# Largest weight, so that two products fit 16 bits, where processors without dot products of bytes add them.
LARGEST = 63
MOST_LAYOUTS = 16  # of a convolution's weights, stored for inputs of as many sizes


class Affine(NamedTuple):
    """The values scale * (n - zero) of integers n from 0 to 255."""

    scale: float
    zero: int

    def quantise(self, x: Tensor) -> Tensor:
        """The nearest integers of values, as a channels-last map."""
        n = x.div(self.scale).round_().add_(self.zero).clamp_(0, 255)
        return n.to(torch.uint8, memory_format=torch.channels_last)

    def values(self, n: Tensor) -> Tensor:
        """The float32 values of integers."""
        return n.float().sub_(self.zero).mul_(self.scale)


class Spread(NamedTuple):
    """Means and standard deviations (C,) of a map's channels before its ReLU, if it is rectified."""

    mean: Tensor
    deviation: Tensor
    rectified: bool

    def affine(self) -> Affine:
        """The quantisation whose range contains zero and `DEVIATIONS` to either side of each mean."""
        reach = DEVIATIONS * self.deviation
        low = 0.0 if self.rectified else min(0.0, float((self.mean - reach).min()))
        high = max(1e-6, float((self.mean + reach).max()))
        scale = (high - low) / 255
        return Affine(scale, round(-low / scale))


class QuantisedConv(nn.Module):
    """A `ConvNorm` of 8-bit integers, with one scale for the weights of each output channel.

    Args:
        conv: the convolution; its norm is folded.
        given: of the input. Float inputs are quantised first.
        added: of the other map, if any.
        made: of the result; None makes a float32 result.
    """

    weight: Tensor
    scales: Tensor
    bias: Tensor
    _zeros: Tensor

    def __init__(self, conv: ConvNorm, given: Affine, added: Affine | None, made: Affine | None) -> None:
        super().__init__()
        conv.fold()
        weight, bias = conv.conv.weight.float(), conv.conv.bias
        assert bias is not None
        scales = weight.abs().amax((1, 2, 3)).clamp_min(1e-12) / LARGEST
        self.register_buffer("weight", (weight / scales[:, None, None, None]).round().to(torch.int8))
        self.register_buffer("scales", scales)
        self.register_buffer("bias", bias.float())
        self.given, self.added, self.made, self.linear = given, added, made, conv.linear
        self._geometry: Any = (list(conv.conv.stride), list(conv.conv.padding), [1, 1], 1)
        self.register_buffer("_zeros", torch.zeros_like(scales, dtype=torch.int64), persistent=False)
        self._packed: dict[object, Tensor] = {}

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """The convolution of `x` plus another map, rectified unless linear."""
        given, added, made = self.given, self.added, self.made
        x = given.quantise(x) if x.is_floating_point() else x
        inputs = (x, *given, self._weights(x), self.scales, self._zeros)
        options = (self.bias, *self._geometry)
        convolve = torch.ops.onednn.qconv2d_pointwise
        y: Tensor
        if made is None:
            y = convolve(*inputs, *options, 1.0, 0, torch.float32, "none", [], "")
            y = y if other is None or added is None else y.add_(added.values(other))
            return y if self.linear else F.relu_(y)
        last = "none" if self.linear else "relu"
        if other is None or added is None:
            y = convolve(*inputs, *options, *made, torch.uint8, last, [], "")
        else:
            total = added.quantise(other) if other.is_floating_point() else other.clone()  # written to
            y = convolve.binary(
                *inputs, total, *options, *made, torch.uint8, *added, "sum", 1.0, last, [], ""
            )
        return y

    def _weights(self, x: Tensor) -> Tensor:
        """The weights in oneDNN's layout for inputs of a size; it converts another layout in every call."""
        size = x.shape[1:]
        key = (size, torch.get_num_threads())
        packed = self._packed.get(key)
        if packed is None:
            packed = torch.ops.onednn.qconv_prepack(
                self.weight.contiguous(), self.scales, *self.given, *self._geometry, [1, *size]
            )
            for oldest in list(self._packed)[: 1 - MOST_LAYOUTS]:
                self._packed.pop(oldest, None)
            self._packed[key] = packed
        return packed

    def __getstate__(self) -> dict[str, Any]:
        """Without the packed weights, which can be neither copied nor pickled."""
        return self.__dict__ | {"_packed": {}}


def quantise(encoder: UNetEncoder) -> None:
    """Replace the convolutions of a U-Net by quantised ones, unless that has been done.

    The one that reads the pooled description, whose range is unknown, stays in floating point.

    Raises:
        ValueError: the norms have been folded, or this build of PyTorch has no quantised convolutions.
    """
    if is_quantised(encoder):
        return
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.onednn, "qconv2d_pointwise")):
        raise ValueError("dtype torch.int8 needs PyTorch's quantised convolutions, which exist on x86 CPUs")
    if not all(isinstance(part.norm, BatchNorm) for part in encoder.modules() if isinstance(part, ConvNorm)):
        raise ValueError("dtype torch.int8 needs a network as loaded, got one whose batch norms are folded")
    spread = Spread(torch.zeros(1), torch.full((1,), 1 / DEVIATIONS), False)  # of pixels, from -1 to 1
    for name, _ in list(encoder.stem.named_children()):
        spread = _replaced(encoder.stem, name, spread)
    maps = []
    for down in cast("Iterable[nn.Sequential]", encoder.down):
        for block in cast("Iterable[Residual]", down):
            # The pooled description, of unknown range, is added to the lowest map in floating point.
            spread = _residual(block, spread, floats=down is encoder.down[-1] and block is down[-1])
        maps.append(spread)
    below: Spread | None = None
    for index, (up, beside) in enumerate(zip(encoder.up, maps[-2::-1], strict=True)):
        assert isinstance(up, Merge)
        added = _spread(up.below) if below is None else _replaced(up, "below", below)
        below = _replaced(up, "beside", beside, added)
        merged = encoder.merged[index]
        if isinstance(merged, Residual):
            below = _residual(merged, below)
        else:
            _replaced(encoder.merged, str(index), below, floats=True)


def is_quantised(encoder: nn.Module) -> bool:
    """Whether `quantise` has replaced an encoder's convolutions."""
    return any(isinstance(part, QuantisedConv) for part in encoder.modules())


def _residual(block: Residual, given: Spread, floats: bool = False) -> Spread:
    added = given if isinstance(block.shortcut, nn.Identity) else _replaced(block, "shortcut", given)
    return _replaced(block, "second", _replaced(block, "first", given), added, floats)


def _replaced(
    parent: nn.Module, name: str, given: Spread, added: Spread | None = None, floats: bool = False
) -> Spread:
    """Replace a convolution by a quantised one, and return the distribution of its results."""
    conv = getattr(parent, name)
    made = _spread(conv)
    if added is not None:
        deviation = torch.hypot(made.deviation, added.deviation)
        made = Spread(made.mean + added.mean, deviation, made.rectified)
    affine = None if floats else made.affine()
    quantised = QuantisedConv(conv, given.affine(), None if added is None else added.affine(), affine)
    setattr(parent, name, quantised)
    return made


def _spread(conv: ConvNorm) -> Spread:
    norm = conv.norm
    assert isinstance(norm, BatchNorm)
    return Spread(norm.bias.float(), norm.weight.float().abs(), not conv.linear)
