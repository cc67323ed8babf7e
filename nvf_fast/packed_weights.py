"""Convolutions by oneDNN on x86 CPUs, with weights stored in its layouts."""

from __future__ import annotations

import platform
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn

MOST_LAYOUTS = 16  # of a convolution's weights, stored for inputs of as many sizes


class PackedWeights:
    """The weights of a convolution in oneDNN's layouts for inputs of several sizes.

    oneDNN converts weights of another layout in every call. Copies and pickles are empty, since packed
    weights can be neither copied nor pickled.
    """

    def __init__(self) -> None:
        self._of_inputs: dict[object, Tensor] = {}

    def get(self, x: Tensor, weight: Tensor, pack: Callable[[list[int]], Tensor]) -> Tensor:
        """Return the packed weights for an input (B, C, H, W).

        Args:
            x: the input.
            weight: the weights as they are now.
            pack: packs them for inputs of a given shape (1, C, H, W).
        """
        shape = [1, *x.shape[1:]]
        version = None if weight.is_inference() else weight._version  # counts changes in place
        key = (*shape, torch.get_num_threads(), weight.data_ptr(), version)
        packed = self._of_inputs.get(key)
        if packed is None:
            packed = pack(shape)
            for oldest in list(self._of_inputs)[: 1 - MOST_LAYOUTS]:
                self._of_inputs.pop(oldest, None)
            self._of_inputs[key] = packed
        return packed

    def __len__(self) -> int:
        return len(self._of_inputs)

    def __reduce__(self) -> tuple[type[PackedWeights], tuple[()]]:
        return PackedWeights, ()


def takes(x: Tensor, conv: nn.Conv2d) -> bool:
    """Whether `convolve` takes an input and a convolution: eager, without gradients, on an x86 CPU."""
    weight = conv.weight
    return (
        type(x) is Tensor  # no fake one
        and x.device.type == weight.device.type == "cpu"
        and x.dtype == weight.dtype
        and len(x) > 0
        and not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))
        and not torch.compiler.is_compiling()
        and torch.backends.mkldnn.enabled
        and _supports(x.dtype)
    )


def convolve(x: Tensor, other: Tensor | None, conv: nn.Conv2d, packed: PackedWeights, relu: bool) -> Tensor:
    """The convolution of `x`, plus another map, rectified with `relu`, in one pass."""
    geometry = conv.padding, conv.stride, conv.dilation, conv.groups

    def pack(shape: list[int]) -> Tensor:
        plain = conv.weight.detach().to_mkldnn()
        made: Tensor = torch._C._nn.mkldnn_reorder_conv2d_weight(plain, *geometry, shape)
        return made

    weight = packed.get(x, conv.weight, pack)
    pointwise, y = torch.ops.mkldnn._convolution_pointwise, x
    if other is None:
        y = pointwise(x, weight, conv.bias, *geometry, "relu" if relu else "none", [], "")
    else:
        last = "relu" if relu else None
        y = pointwise.binary(x, other, weight, conv.bias, *geometry, "add", 1.0, last, [], "")
    return y


@cache
def _supports(dtype: torch.dtype) -> bool:
    """Whether PyTorch has these convolutions for a dtype on this processor."""
    ops = torch.ops.mkldnn
    if platform.machine().lower() not in ("x86_64", "amd64") or not torch.backends.mkldnn.is_available():
        return False
    if not hasattr(ops, "_convolution_pointwise"):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and bool(ops._is_mkldnn_bf16_supported()))
