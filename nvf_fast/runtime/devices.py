"""Validation of devices and of the encoder's precision."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from nvf_fast.runtime.ambient import DEVICES

PRECISIONS = (torch.float32, torch.float16, torch.bfloat16)


def read_device(device: Any) -> torch.device:
    """The device of a name, which the library computes on and which exists.

    Args:
        device: a `torch.device` or a name such as "cpu", "cuda" or "cuda:1", of a registered backend too.

    Raises:
        ValueError: it is none, or does not exist.
    """
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device must be a device such as cpu, cuda or cuda:1, got {device!r}") from error
    registered = torch._C._get_privateuse1_backend_name()
    if chosen.type not in DEVICES and not (chosen.type == registered and hasattr(torch, registered)):
        raise ValueError(f"device must be cpu, cuda or a CUDA device such as cuda:1, got {str(chosen)!r}")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {chosen} does not exist, CUDA devices found: {torch.cuda.device_count()}")
    return chosen


def check_precision(dtype: Any, precisions: Sequence[torch.dtype] = PRECISIONS) -> None:
    """Refuse dtypes in which an encoder does not compute, with a `TypeError`."""
    if dtype not in precisions:
        raise TypeError(f"dtype must be one of {', '.join(map(str, precisions))}, got {dtype}")


def launching_on(device: torch.device) -> AbstractContextManager[object]:
    """A context in which Triton and CUDA events, which use the current device, use the given one."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
