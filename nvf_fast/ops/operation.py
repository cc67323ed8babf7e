"""Operations: registration with PyTorch, choice of backend, and common checks."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from importlib import import_module
from inspect import signature
from numbers import Real
from typing import Any, Generic, Literal, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor

from nvf_fast.runtime.ambient import autocast_off
from nvf_fast.runtime.devices import PRECISIONS, launching_on
from nvf_fast.runtime.extras import extra

Backend = Literal["triton", "torch"]
FLOATS = (*PRECISIONS, torch.float64)  # dtypes of feature maps; float64 runs in PyTorch
P = ParamSpec("P")
R = TypeVar("R")


class Operation(Generic[P, R]):
    """An operation with a PyTorch function and a Triton kernel, `nvf_fast.kernels.NAME.triton.NAME`.

    It is registered as `torch.ops.nvf_fast.NAME` with the signature of the PyTorch function. A call takes the
    backend, then a tensor as the first argument.

    Args:
        name: of the operation.
        torch_form: PyTorch function for any device.
        empty_results: the results' shapes and dtypes, for compilers; None traces the PyTorch function, which
            then must not read values.
        gradients: for calls with tensors that require gradients. "torch" runs the PyTorch function, on any
            device; "none" computes no gradient; "refused" raises an error.
        folder: of the kernel, if it differs from the operation's name.
        autocast: whether the caller's autocast applies, as for a layer of a network, or is ignored.
        float64: whether the kernel takes float64 tensors; otherwise PyTorch computes them.
    """

    def __init__(
        self,
        name: str,
        torch_form: Callable[P, R],
        empty_results: Callable[..., R] | None = None,
        *,
        gradients: Literal["torch", "none", "refused"] = "refused",
        folder: str | None = None,
        autocast: bool = False,
        float64: bool = False,
    ) -> None:
        self._name, self._torch, self._gradients, self._autocast = name, torch_form, gradients, autocast
        self._float64 = float64
        self._parameters = tuple(signature(torch_form).parameters)
        self._module = f"nvf_fast.kernels.{folder or name}.triton"
        schema = torch.library.infer_schema(torch_form, mutates_args=())
        self._registered: Any = torch.library.custom_op(
            f"nvf_fast::{name}", torch.no_grad()(torch_form), mutates_args=(), schema=schema
        )
        self._registered.register_kernel("cuda")(self._triton)
        self._registered.register_fake(empty_results or torch_form)

    def __call__(self, backend: Backend | None, /, *arguments: P.args, **options: P.kwargs) -> R:
        """Run the named backend, or by default the kernel on CUDA tensors and PyTorch on others.

        Raises:
            ValueError: the backend is unknown, or the tensors are on several devices.
            RuntimeError: the backend cannot run here, or a gradient is required that does not exist.
        """
        tensor: Any = arguments[0]
        check_devices(self._name, tensor.device, dict(zip(self._parameters, arguments, strict=False)))
        with nullcontext() if self._autocast else autocast_off(tensor.device.type):
            return self._run(backend, tensor, *arguments, **options)

    def _run(self, backend: Backend | None, tensor: Any, /, *arguments: P.args, **options: P.kwargs) -> R:
        """Run an operation on tensors like the given one."""
        self.check_backend(backend, tensor)
        differentiable = self._gradients != "none" and torch.is_grad_enabled()
        gradient = differentiable and any(each.requires_grad for each in _tensors(arguments))
        if gradient and self._gradients == "refused":
            raise RuntimeError(f"{self._name} has no gradient; use torch.no_grad() or detached tensors")
        if gradient and backend == "triton":
            raise RuntimeError(
                f"{self._name}: the Triton kernel has no backward; use torch.no_grad() or another backend"
            )
        if tensor.dtype == torch.float64 and not self._float64:
            if backend == "triton":
                raise RuntimeError(f"{self._name}: the Triton kernel does not compute in float64")
            backend = "torch"
        # A call of the registered operation takes as long as one hand's votes. Only other devices, compilers
        # and subclasses such as fake tensors need it.
        if gradient or backend == "torch" or (backend is None and readable(tensor)):
            with torch.set_grad_enabled(gradient):
                return self._torch(*arguments, **options)
        if backend == "triton":
            return self._triton(*arguments, **options)
        return self._registered(*arguments, **options)

    def check_backend(self, backend: str | None, tensor: Tensor) -> None:
        if backend not in (None, "triton", "torch"):
            raise ValueError(f'{self._name}: backend must be None, "triton" or "torch", got {backend!r}')
        if backend == "triton" and not tensor.is_cuda:
            self._check_triton()
            import triton

            if not triton.knobs.runtime.interpret:
                raise RuntimeError(
                    f"{self._name}: Triton runs on CUDA tensors, and these are on {tensor.device}"
                )

    def _check_triton(self) -> None:
        with extra("triton", f"{self._name}: this backend needs Triton"):
            import triton  # noqa: F401

    def _triton(self, *arguments: P.args, **options: P.kwargs) -> R:
        self._check_triton()
        tensor: Any = arguments[0]
        with launching_on(tensor.device):
            return getattr(import_module(self._module), self._name)(*arguments, **options)


def check_tensor(
    operation: str,
    name: str,
    tensor: Tensor,
    shapes: Sequence[Sequence[int | str]],
    *dtypes: torch.dtype,
    unit: str = "",
) -> None:
    """Check a tensor against the shapes it may have, in which strings stand for any size, and its dtypes."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{operation}: {name} must be a tensor, got {type(tensor).__name__}")
    if not any(_fits(tensor.shape, shape) for shape in shapes):
        listed = (f"({', '.join(map(str, shape))}{',' * (len(shape) == 1)})" for shape in shapes)
        expected = f"{' or '.join(listed)} {unit}".rstrip()
        raise ValueError(f"{operation}: {name} must be {expected}, got {tuple(tensor.shape)}")
    if tensor.dtype not in dtypes:
        names = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        expected = f"{names} {unit}".rstrip()
        raise TypeError(f"{operation}: {name} must be {expected}, got {tensor.dtype}")


def check_positive(
    operation: str, name: str, value: Any, unit: str = "", most: float = sys.float_info.max
) -> float:
    """Check a number above 0, by default a finite one, and return it as a float."""
    if not isinstance(value, Real):
        raise TypeError(f"{operation}: {name} must be a number, got {value!r}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not 0 < number <= most:
        raise ValueError(f"{operation}: {name} must be a positive number {unit}".rstrip() + f", got {value}")
    return number


def check_count(operation: str, name: str, value: Any, unit: str = "") -> None:
    """Check a whole number of 1 or more."""
    if not isinstance(value, int | torch.SymInt | np.integer) or isinstance(value, bool):
        raise TypeError(f"{operation}: {name} must be a whole number, got {value!r}")
    if value < 1:
        raise ValueError(f"{operation}: {name} must be at least 1 {unit}".rstrip() + f", got {value}")


def memory_format(x: Tensor) -> torch.memory_format:
    """Channels-last if a map (B, C, H, W) is that, else contiguous."""
    channels_last = x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last else torch.contiguous_format


def readable(tensor: Tensor) -> bool:
    """Whether reading values costs no synchronisation and does not break a graph."""
    return type(tensor) is Tensor and tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def _fits(found: Sequence[int], shape: Sequence[int | str]) -> bool:
    return len(found) == len(shape) and all(
        isinstance(size, str) or size == n for n, size in zip(found, shape, strict=True)
    )


def check_devices(operation: str, device: torch.device, arguments: Mapping[str, object]) -> None:
    """Check that all tensors among the arguments, and in lists, are on a device."""
    if any(tensor.device != device for tensor in _tensors(arguments.values())):
        found = [f"{name} on {tensor.device}" for name in arguments for tensor in _tensors([arguments[name]])]
        raise ValueError(f"{operation}: all tensors must be on one device, got {', '.join(found)}")


def _tensors(arguments: Any) -> Iterator[Tensor]:
    for argument in arguments:
        if isinstance(argument, Tensor):
            yield argument
        elif isinstance(argument, list | tuple):
            yield from argument
