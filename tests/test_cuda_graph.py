"""Recording and replay of CUDA graphs, with a stand-in for the device's graphs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

import nvf_fast.runtime.cuda_graph
from nvf_fast.runtime.cuda_graph import CudaRecorder, GraphedFunction


class FakeRecorder:
    """A graph that calls its function again and records the launches within `in_order`."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.failure, self.recorded, self.running, self.overlaps = failure, 0, 0, 0

    def record(self, run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        self.recorded += 1
        if self.failure is not None:
            raise self.failure
        output = run()

        def launch() -> None:
            assert self.running == 1, "launched in order"
            output.copy_(run())

        return launch, output

    @contextmanager
    def in_order(self) -> Iterator[None]:
        self.running += 1
        self.overlaps += self.running > 1
        yield
        self.running -= 1


def scaled(key: int, first: Tensor, second: Tensor) -> Tensor:
    return key * first + second


def test_records_each_key_once_and_returns_separate_results() -> None:
    recorder = FakeRecorder()
    graphed = GraphedFunction(scaled, recorder)
    inputs = [torch.rand(3), torch.rand(3)]
    first = graphed(2, *inputs)
    kept = first.clone()
    assert torch.equal(first, 2 * inputs[0] + inputs[1])
    assert torch.equal(graphed(2, inputs[1], inputs[0]), 2 * inputs[1] + inputs[0])
    assert torch.equal(first, kept), "the next call leaves it alone"
    assert torch.equal(graphed(3, *inputs), 3 * inputs[0] + inputs[1])
    assert recorder.recorded == 2


def test_runs_eagerly_and_warns_once_when_recording_fails(caplog: pytest.LogCaptureFixture) -> None:
    recorder = FakeRecorder(RuntimeError("operation not permitted when stream is capturing"))
    graphed = GraphedFunction(scaled, recorder)
    with caplog.at_level(logging.WARNING, "nvf_fast"):
        for _ in range(3):
            assert torch.equal(graphed(2, torch.ones(3), torch.ones(3)), torch.full((3,), 3.0))
    assert recorder.recorded == 1
    assert [record.getMessage() for record in caplog.records] == [
        "no CUDA graph for 2, it runs launch by launch: operation not permitted when stream is capturing"
    ]


def test_out_of_memory_propagates() -> None:
    recorder = FakeRecorder(torch.OutOfMemoryError("too many"))
    graphed = GraphedFunction(scaled, recorder)
    for _ in range(2):
        with pytest.raises(torch.OutOfMemoryError, match="too many"):
            graphed(2, torch.ones(3), torch.ones(3))
    assert recorder.recorded == 2, "it is tried again"


def test_evicts_the_least_recently_used_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvf_fast.runtime.cuda_graph, "GRAPHS", 2)
    recorder = FakeRecorder()
    graphed = GraphedFunction(scaled, recorder)
    for key, recorded in ((1, 1), (2, 2), (1, 2), (3, 3), (1, 3), (2, 4)):
        graphed(key, torch.ones(1), torch.ones(1))
        assert recorder.recorded == recorded, key


def test_concurrent_threads_are_serialised() -> None:
    recorder = FakeRecorder()
    graphed = GraphedFunction(scaled, recorder)
    wrong = []

    def work(number: float) -> None:
        for _ in range(50):
            value = graphed(2, torch.full((1000,), number), torch.ones(1000))
            if not torch.equal(value, torch.full((1000,), 2 * number + 1)):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(float(number),)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and recorder.recorded == 1 and recorder.overlaps == 0


@pytest.mark.cuda
def test_cuda_graphs_on_several_streams(caplog: pytest.LogCaptureFixture) -> None:
    device = torch.device("cuda")
    graphed = GraphedFunction(scaled, CudaRecorder(device))
    expected, found = [], []
    for i in range(20):
        with torch.cuda.stream(torch.cuda.Stream()):
            first, second = (
                torch.full((1 << 20,), float(i), device=device),
                torch.ones(1 << 20, device=device),
            )
            found.append(graphed(2 + i % 2, first, second))
            expected.append((2 + i % 2) * i + 1)
    torch.cuda.synchronize()
    assert [value.unique().tolist() for value in found] == [[float(value)] for value in expected]
    refused = GraphedFunction(lambda key, tensor: tensor * tensor.sum().item(), CudaRecorder(device))
    assert torch.equal(refused(0, torch.ones(3, device=device)), torch.full((3,), 3.0, device=device))
    assert "no CUDA graph for 0" in caplog.text
    # A failed capture affects neither random numbers nor the next capture in the same pool.
    assert torch.rand(3, device=device).isfinite().all()
    caplog.clear()
    broken = [True]

    def once(key: int, tensor: Tensor) -> Tensor:
        return tensor * (tensor.sum().item() if broken[0] else 2)

    graphed = GraphedFunction(once, CudaRecorder(device))
    graphed(0, torch.ones(3, device=device))
    broken[0] = False
    assert graphed(1, torch.ones(3, device=device)).tolist() == [2, 2, 2]
    assert "for 0" in caplog.text and "for 1" not in caplog.text
