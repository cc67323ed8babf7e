"""Common parts of the benchmarks: device, synchronised time, and records."""

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
    """Lower bounds of a call's work.

    flops: of the matrix unit; 0 if unused.
    moved_bytes: through memory, each input read once and each output written once.
    """

    flops: float
    moved_bytes: float


def now() -> float:
    """Current time in seconds, after synchronisation."""
    if CUDA:
        torch.cuda.synchronize()
    return time.perf_counter()


def device_name() -> str:
    """Name of the GPU, or of the processor with PyTorch's number of threads."""
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
    """Record a row of the table of operations.

    Args:
        benchmark: the fixture of pytest-benchmark, after `time_in_turn`.
        operation, case, form: name, size, and implementation.
        dtype, batch: of the inputs.
        paired: times of the operation and its definition.
        work: lower bounds of the work; None if they do not determine the speed.
    """
    benchmark.group = f"{operation} {case}, batch {batch}, {dtype}"
    benchmark.extra_info.update(
        operation=operation,
        case=case,
        form=form,
        dtype=dtype_name(dtype),
        batch=batch,
        work=None if work is None else work._asdict(),
        **paired.metadata(),
    )


def dtype_name(dtype: torch.dtype) -> str:
    """Name of a dtype without PyTorch's prefix."""
    return str(dtype).removeprefix("torch.")


def tensor_bytes(*tensors: torch.Tensor) -> float:
    """Total bytes of tensors."""
    return float(np.sum([tensor.numel() * tensor.element_size() for tensor in tensors]))
