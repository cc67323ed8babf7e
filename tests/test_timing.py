"""Timings of operations on a GPU, with a simulated clock in place of the device's."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import timing
from benchmarks.timing import COPIES, IN_A_GRAPH, LONGEST_MS, WITH_LAUNCHES, Work, time_operation
from nvf_fast.runtime import cuda_graph

REPLAY_MS = 0.008  # to launch a graph
CACHE = 1000  # bytes


class Device:
    """A GPU on which each call takes its time; launches from the host and of graphs take longer."""

    def __init__(self) -> None:
        self.now, self.capturing, self.recorded = 0.0, 0, 0
        self.captures: list[int] = []  # calls in each graph

    def call(self, kernel_ms: float, host_ms: float, synchronises: bool = False) -> Callable[[], None]:
        def run() -> None:
            if self.capturing and synchronises:
                raise RuntimeError("operation not permitted when stream is capturing")
            self.recorded += bool(self.capturing)
            self.now += kernel_ms if self.capturing else max(kernel_ms, host_ms)

        return run

    def recorder(self, device: torch.device) -> Any:
        assert device.type == timing.DEVICE
        return SimpleNamespace(record=self._record)

    def _record(self, run: Callable[[], None]) -> tuple[Callable[[], None], None]:
        run()  # warm-up
        began, self.capturing, self.recorded = self.now, 1, 0
        try:
            run()
        finally:
            self.capturing = 0
        taken, self.now = self.now - began, began
        self.captures.append(self.recorded)

        def launch() -> None:
            self.now += taken + REPLAY_MS

        return launch, None

    def event(self, enable_timing: bool) -> Any:
        assert enable_timing
        made = SimpleNamespace(time=None, synchronize=lambda: None)
        made.record = lambda: setattr(made, "time", self.now)
        made.elapsed_time = lambda end: end.time - made.time
        return made


class Benchmark:
    """Stand-in for the fixture of pytest-benchmark."""

    def __init__(self) -> None:
        self.group, self.extra_info = "", dict[str, Any]()
        self.stats = SimpleNamespace(stats=SimpleNamespace(data=[]))

    def pedantic(self, target: Any, setup: Any, rounds: int, warmup_rounds: int) -> None:
        for _ in range(warmup_rounds + rounds):
            setup()
            target()
        self.stats.stats.data.extend([math.nan] * rounds)  # the host's times


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    found = Device()
    monkeypatch.setattr(timing, "CUDA", True)
    monkeypatch.setattr(cuda_graph, "CudaRecorder", found.recorder)
    monkeypatch.setattr(torch.cuda, "Event", found.event)
    properties = SimpleNamespace(L2_cache_size=CACHE)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    return found


def timed(run: Callable[[], None], definition: Callable[[], None], moved_bytes: float = 10) -> dict[str, Any]:
    benchmark = Benchmark()
    time_operation(
        *(benchmark, "operation", "case", "triton", torch.float16, 1),
        run=run,
        definition=definition,
        rounds=5,
        work=Work(0, moved_bytes),
    )
    assert 1e3 * np.median(benchmark.stats.stats.data) == benchmark.extra_info["ms_20_50_80"][1]
    return benchmark.extra_info


def test_small_kernels_are_timed_without_their_launches(device: Device) -> None:
    """3 µs of a kernel with 150 µs of Python, against 30 µs of kernels."""
    row = timed(device.call(0.003, 0.15), device.call(0.03, 0.4))
    median = row["ms_20_50_80"][1]
    assert 0.003 < median < 0.0033 and row["times_the_baseline_20_50_80"][1] == pytest.approx(10, rel=0.1)
    assert (row["timed"], row["definition_timed"]) == (IN_A_GRAPH, IN_A_GRAPH)
    # Their own number is known once a replay shows how little of it was the launch: 1.2 * 0.2 / 0.011 = 22.
    assert device.captures == [1, 22, COPIES, 1, 7]


def test_long_kernels_are_captured_once(device: Device) -> None:
    row = timed(device.call(0.5, 0.1), device.call(1.0, 0.1))
    assert device.captures == [1, 1] and row["ms_20_50_80"][1] == pytest.approx(0.5 + REPLAY_MS)


def test_calls_that_cannot_be_captured_are_timed_with_launches(device: Device) -> None:
    with pytest.warns(UserWarning, match="timed with launches: operation not permitted when stream is cap"):
        row = timed(device.call(0.003, 0.15), device.call(0.03, 0.4, synchronises=True))
    assert (row["timed"], row["definition_timed"]) == (IN_A_GRAPH, WITH_LAUNCHES)
    own, ratio = row["ms_20_50_80"][1], row["times_the_baseline_20_50_80"][1]
    assert own < 0.0033 and ratio == pytest.approx(0.4 / own)
    # A graph of a call of this length could hold too many kernels.
    row = timed(device.call(LONGEST_MS + 1, 0.1), device.call(0.003, 0.15))
    assert (row["timed"], row["definition_timed"]) == (WITH_LAUNCHES, IN_A_GRAPH)
    assert row["ms_20_50_80"][1] == pytest.approx(LONGEST_MS + 1)


def test_an_error_that_is_not_of_the_capture_propagates(device: Device) -> None:
    def fails() -> None:
        raise RuntimeError("an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal memory access"):
        timed(fails, device.call(0.003, 0.15))


def test_bytes_that_fit_the_cache_are_marked(device: Device) -> None:
    run = device.call(0.5, 0.1)
    assert [timed(run, run, moved)["cached"] for moved in (CACHE, CACHE + 1)] == [True, False]


def test_a_processor_is_timed_call_by_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "CUDA", False)
    clock = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
    order: list[str] = []

    def call(name: str, seconds: float) -> None:
        order.append(name)
        clock[0] += seconds

    row = timed(lambda: call("run", 2.0), lambda: call("definition", 6.0))
    np.testing.assert_allclose(row["ms_20_50_80"], 2000)
    np.testing.assert_allclose(row["times_the_baseline_20_50_80"], 3)
    assert order == ["definition", "run"] * (timing.WARMUP_ROUNDS + 5)
    assert not row["cached"] and "timed" not in row


@pytest.mark.cuda
def test_a_capture_that_fails_leaves_later_ones() -> None:
    x = torch.ones(1000, device="cuda")
    for synchronises in (False, True, False):
        call = (lambda: (x + 1).tolist()) if synchronises else (lambda: x + 1)
        with pytest.warns(UserWarning, match="timed with launches") if synchronises else nullcontext():
            seconds, how = timing.device_timer(call)
        assert how == (WITH_LAUNCHES if synchronises else IN_A_GRAPH) and seconds() > 0
