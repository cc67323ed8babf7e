"""What every benchmark shares: where it runs, when the device has finished, and what its record says."""

from __future__ import annotations

import platform
import time
from typing import Any, NamedTuple

import cpuinfo
import numpy as np
import torch

from benchmarks.paired import Paired

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"


class Work(NamedTuple):
    """The least that a call must do.

    flops: of the matrix unit; 0 where it is not used.
    moved_bytes: through memory, each input read once and each output written once.
    """

    flops: float
    moved_bytes: float


def now() -> float:
    """Seconds, once the device has finished."""
    if CUDA:
        torch.cuda.synchronize()
    return time.perf_counter()


def device_name() -> str:
    """The GPU, or the processor and the threads that PyTorch uses on it."""
    if CUDA:
        return torch.cuda.get_device_name()
    processor = cpuinfo.get_cpu_info().get("brand_raw", platform.machine())
    return f"{processor}, {torch.get_num_threads()} threads"


def record(
    benchmark: Any,
    operation: str,
    case: str,
    form: str,
    dtype: torch.dtype,
    batch: int,
    paired: Paired,
    work: Work | None = None,
) -> None:
    """Keeps what `benchmarks/readme.py` makes a row of the operations' table from.

    Args:
        benchmark: the fixture of pytest-benchmark, after `time_in_turn`.
        operation, case, form: which, at what size, and which of its implementations.
        dtype, batch: of the inputs.
        paired: its times beside its definition's.
        work: None where neither bytes nor products of the matrix unit say how fast it could be.
    """
    benchmark.group = f"{operation} {case}, batch {batch}, {dtype}"
    benchmark.extra_info.update(
        operation=operation,
        case=case,
        form=form,
        dtype=dtype_name(dtype),
        batch=batch,
        work=None if work is None else work._asdict(),
        **paired.facts(),
    )


def dtype_name(dtype: torch.dtype) -> str:
    """Without PyTorch's prefix."""
    return str(dtype).removeprefix("torch.")


def tensor_bytes(*tensors: torch.Tensor) -> float:
    """Of all of them together."""
    return float(np.sum([tensor.numel() * tensor.element_size() for tensor in tensors]))
