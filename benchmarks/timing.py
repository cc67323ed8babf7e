"""Interleaved timings of a function and its baseline, whose ratio is robust to drifts of speed."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import cpuinfo
import numpy as np
import torch

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
WARMUP_ROUNDS = 2


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


def seconds_of(call: Callable[[], object]) -> float:
    """Seconds of a call, including synchronisation."""
    began = now()
    call()
    return now() - began


def time_in_turn(
    benchmark: Any, run: Callable[[], object], baseline: Callable[[], float], rounds: int
) -> dict[str, list[float]]:
    """Time a function, including synchronisation, and its baseline before each round.

    Args:
        benchmark: the fixture of pytest-benchmark.
        run: the timed function.
        baseline: runs the baseline and returns its seconds.
        rounds: number of measured rounds, after two warm-up rounds.

    Returns:
        Entries of the benchmark's record: percentiles over the rounds.
    """
    baseline_seconds: list[float] = []
    benchmark.pedantic(
        lambda: (run(), now()),
        setup=lambda: baseline_seconds.append(baseline()),
        rounds=rounds,
        warmup_rounds=WARMUP_ROUNDS,
    )
    seconds = np.array(benchmark.stats.stats.data)
    ratios = np.array(baseline_seconds[-rounds:]) / seconds
    return {
        "ms_20_50_80": np.percentile(1e3 * seconds, [20, 50, 80]).tolist(),
        "times_the_baseline_20_50_80": np.percentile(ratios, [20, 50, 80]).tolist(),
    }


def time_operation(
    benchmark: Any,
    operation: str,
    case: str,
    form: str,
    dtype: torch.dtype,
    batch: int,
    *,
    run: Callable[[], object],
    definition: Callable[[], object],
    rounds: int,
    work: Work | None = None,
) -> None:
    """Time an operation and its definition; record a row of the table of operations.

    Args:
        benchmark: the fixture of pytest-benchmark.
        operation, case, form: name, size, and implementation.
        dtype, batch: of the inputs.
        run, definition: the calls.
        rounds: as in `time_in_turn`.
        work: lower bounds of the work; None if they do not determine the speed.
    """
    times = time_in_turn(benchmark, run, lambda: seconds_of(definition), rounds)
    benchmark.group = f"{operation} {case}, batch {batch}, {dtype}"
    benchmark.extra_info.update(
        operation=operation,
        case=case,
        form=form,
        dtype=dtype_name(dtype),
        batch=batch,
        work=None if work is None else work._asdict(),
        **times,
    )


def device_name() -> str:
    """Name of the GPU, or of the processor with PyTorch's number of threads."""
    if CUDA:
        return torch.cuda.get_device_name()
    processor = cpuinfo.get_cpu_info().get("brand_raw", platform.machine())
    return f"{processor}, {torch.get_num_threads()} threads"


def dtype_name(dtype: torch.dtype) -> str:
    """Name of a dtype without PyTorch's prefix."""
    return str(dtype).removeprefix("torch.")


def tensor_bytes(*tensors: torch.Tensor) -> float:
    """Total bytes of tensors."""
    return float(sum(tensor.nbytes for tensor in tensors))
