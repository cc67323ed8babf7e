"""Interleaved timings of a function and its baseline, whose ratio is robust to drifts of speed."""

from __future__ import annotations

import math
import platform
import time
import warnings
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import cpuinfo
import numpy as np
import torch

from nvf_fast.runtime.cuda_graph import milliseconds, record_repeated

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
WARMUP_ROUNDS = 2
IN_A_GRAPH, WITH_LAUNCHES = "in a graph", "with launches"
REPLAY_MS = 0.2  # of one replay, at least, so that launching it weighs little
COPIES = 50  # calls in a graph, at most
LONGEST_MS = 100.0  # of a call in a graph, whose capture would otherwise hold too many kernels


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
    return _compare(benchmark, partial(seconds_of, run), baseline, rounds)


def _compare(
    benchmark: Any, run: Callable[[], float], baseline: Callable[[], float], rounds: int
) -> dict[str, list[float]]:
    """Entries as of `time_in_turn`, for functions that return their seconds."""
    run_seconds: list[float] = []
    baseline_seconds: list[float] = []
    benchmark.pedantic(
        lambda: run_seconds.append(run()),
        setup=lambda: baseline_seconds.append(baseline()),
        rounds=rounds,
        warmup_rounds=WARMUP_ROUNDS,
    )
    benchmark.stats.stats.data[:] = run_seconds[-rounds:]  # what pytest-benchmark shows
    seconds = np.array(run_seconds[-rounds:])
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

    On a CPU the timed region is one call. On CUDA it is a replay of a CUDA graph of several calls, divided by
    their number, or the launches of one call that cannot be captured; CUDA events measure both. All calls use
    the same inputs, which are therefore in the last cache if they fit into it.

    Args:
        benchmark: the fixture of pytest-benchmark.
        operation, case, form: name, size, and implementation.
        dtype, batch: of the inputs.
        run, definition: the calls.
        rounds: as in `time_in_turn`.
        work: lower bounds of the work; None if they do not determine the speed.
    """
    if CUDA:
        cache = torch.cuda.get_device_properties(DEVICE).L2_cache_size
        run_timer, timed = device_timer(run)
        definition_timer, definition_timed = device_timer(definition)
        how = {"timed": timed, "definition_timed": definition_timed}
    else:
        cache, how = 0, {}
        run_timer, definition_timer = partial(seconds_of, run), partial(seconds_of, definition)
    times = _compare(benchmark, run_timer, definition_timer, rounds)
    benchmark.group = f"{operation} {case}, batch {batch}, {dtype}"
    benchmark.extra_info.update(
        operation=operation,
        case=case,
        form=form,
        dtype=dtype_name(dtype),
        batch=batch,
        work=None if work is None else work._asdict(),
        cached=work is not None and work.moved_bytes <= cache,
        **how,
        **times,
    )


def device_timer(call: Callable[[], object]) -> tuple[Callable[[], float], str]:
    """Choose how to time a call on a GPU.

    Returns:
        A function that runs the call and returns its seconds on the device, and `IN_A_GRAPH` or
        `WITH_LAUNCHES`. In a graph, each kernel begins when the one before it has ended. Launches from the
        host can take longer than the kernels.
    """
    call()
    if milliseconds(call) <= LONGEST_MS:
        try:
            return _graph_timer(call), IN_A_GRAPH
        except RuntimeError as error:
            warnings.warn(f"timed {WITH_LAUNCHES}: {error}")
    return lambda: milliseconds(call) / 1e3, WITH_LAUNCHES


def _graph_timer(call: Callable[[], object]) -> Callable[[], float]:
    """Capture as many calls in one graph as make a replay last `REPLAY_MS`, `COPIES` at most."""
    count = 1
    while True:
        launch = record_repeated(torch.device(DEVICE), call, count)
        taken = median(milliseconds(launch) for _ in range(3))
        if taken >= REPLAY_MS or count == COPIES:
            return lambda: milliseconds(launch) / 1e3 / count
        count = min(COPIES, math.ceil(1.2 * count * REPLAY_MS / taken))


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
