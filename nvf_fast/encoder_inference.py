"""The last features of a stacked hourglass on a GPU, without gradients, in few launches.

The kernel of `join_branches` ends every block and hourglass, and computes the moments that the next norm of a
large map needs. While a CUDA graph is captured, the branches of an hourglass are captured on two streams,
since the maps of the lower branch are too small to occupy a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nvf_fast import ops

if TYPE_CHECKING:
    from nvf_fast.encoder import Block, Hourglass, HourglassEncoder, NormReLU, PreActivated, Stack

LARGE = 28**2  # texels; the norm of a map with more takes two launches unless its moments are known


class Map(NamedTuple):
    """A feature map, with the moments of its groups where the next norm needs them."""

    values: Tensor  # (B, C, H, W)
    moments: Tensor | None = None


def last_features(encoder: HourglassEncoder, images: Tensor) -> Tensor:
    """`encoder.last_features(images)` up to rounding."""
    stacks = [cast("Stack", stack) for stack in encoder.stacks]
    *earlier, last = stacks
    x = _block(encoder.shallow, Map(encoder.norm(encoder.conv(images))))
    x = _block(encoder.middle, Map(F.avg_pool2d(x.values, 2)), encoder.deep.first.norm)
    x = _block(encoder.deep, x, stacks[0].hourglass.upper.first.norm)
    for stack, following in zip(earlier, stacks[1:], strict=True):
        weight, bias = stack.onward_matrix()
        onward = F.conv2d(_mixed(stack, x), weight)
        x = _joined(x.values, [onward], following.hourglass.upper.first.norm, bias=bias)
    return _pointwise(last.features, _mixed(last, x))


def _mixed(stack: Stack, x: Map) -> Tensor:
    """`Stack.mixed`."""
    x = _hourglass(stack.hourglass, x, stack.block.first.norm)
    mixed: Tensor = stack.norm(_pointwise(stack.mix, _block(stack.block, x).values))
    return mixed


def _pointwise(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A 1 x 1 convolution as a product with its bias: one launch."""
    return F.linear(x.permute(0, 2, 3, 1), conv.weight.flatten(1), conv.bias).permute(0, 3, 1, 2)


def _hourglass(module: Hourglass, x: Map, following: NormReLU | None = None, level: int = 0) -> Map:
    with _beside(x.values.device, level):
        lower = _block(module.enter, Map(F.avg_pool2d(x.values, 2)))
        if isinstance(module.lower, type(module)):
            lower = _hourglass(module.lower, lower, level=level + 1)
        else:
            lower = _block(cast("Block", module.lower), lower)
        low = _block(module.leave, lower).values
    residual, branches = _branches(module.upper, x)
    _wait_for_lower(x.values.device, level)
    upsampling = module.upsample.matrix
    if residual.shape[-2:] == (len(upsampling), len(upsampling)):
        return _joined(residual, branches, following, lower=low, upsampling=upsampling)
    return _joined(residual.add(module.upsample(low)), branches, following)


def _block(module: Block, x: Map, following: NormReLU | None = None) -> Map:
    return _joined(*_branches(module, x), following)


def _branches(module: Block, x: Map) -> tuple[Tensor, list[Tensor]]:
    """The map that a block adds, and its branches."""
    first = _convolved(module.first, x)
    second = _convolved(module.second, Map(first))
    third = _convolved(module.third, Map(second))
    same = isinstance(module.shortcut, nn.Identity)
    return x.values if same else _convolved(cast("PreActivated", module.shortcut), x), [first, second, third]


def _convolved(module: PreActivated, x: Map) -> Tensor:
    convolved: Tensor = module.conv(module.norm(x.values, x.moments))
    return convolved


def _joined(
    x: Tensor,
    branches: list[Tensor],
    following: NormReLU | None,
    *,
    bias: Tensor | None = None,
    lower: Tensor | None = None,
    upsampling: Tensor | None = None,
) -> Map:
    """The sum of a block, measured if the following norm, unless None, is that of a large map."""
    measured = following is not None and x.shape[2] * x.shape[3] > LARGE
    groups = following.num_groups if following is not None and measured else 0
    y, moments = ops.join_branches(x, branches, bias, lower, upsampling, groups)
    return Map(y, moments if measured else None)


@contextmanager
def _beside(device: torch.device, level: int) -> Iterator[None]:
    """Capture enclosed launches beside those that follow, up to `_wait_for_lower`.

    Without a capture they run in order: a second stream would cost the host more than it saves the device. A
    tensor of either stream may be freed while the other one still reads it, since a stream's memory is used
    again by later launches of that stream only, and these wait for the other one.
    """
    if not _capturing(device):
        yield
        return
    stream = _side_stream(device, level)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        yield


def _wait_for_lower(device: torch.device, level: int) -> None:
    if _capturing(device):
        torch.cuda.current_stream(device).wait_stream(_side_stream(device, level))


def _capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


@cache
def _side_stream(device: torch.device, level: int) -> torch.cuda.Stream:
    """The stream of a level's lower branch, of high priority: the longer branch starts first."""
    return torch.cuda.Stream(device, priority=-1)
