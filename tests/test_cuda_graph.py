"""Recording and replay of CUDA graphs, with a stand-in for the device's graphs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import nvf_fast.runtime.cuda_graph
from nvf_fast.estimator import PoseEstimator
from nvf_fast.runtime.cuda_graph import (
    ATTEMPTS,
    CaptureInterruptedError,
    CudaRecorder,
    GraphedFunction,
    Recorder,
    interrupted,
)
from tests.hand_cases import hand_network
from tests.reference_cases import reference_network


class FakeRecorder:
    """A graph that calls its function again and records the launches within `in_order`."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.failure, self.recorded, self.running, self.overlaps, self.finished = failure, 0, 0, 0, 0

    def record(self, run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        self.recorded += 1
        if self.failure is not None:
            raise self.failure
        output = run()

        def launch() -> None:
            assert self.running == 1, "launched in order"
            output.copy_(run())

        return launch, output

    def finish(self) -> None:
        self.finished += 1

    def mark(self) -> Callable[[], None]:
        return lambda: None

    @contextmanager
    def in_order(self) -> Iterator[None]:
        self.running += 1
        self.overlaps += self.running > 1
        try:
            yield
        finally:
            self.running -= 1


class OnTensors:
    """A `GraphedFunction` of tensors, which are copied to places of their own, as the results are."""

    def __init__(self, function: Callable[..., Tensor], recorder: Recorder) -> None:
        self._places: dict[int, list[Tensor]] = {}
        self._graphed = GraphedFunction(lambda key: function(key, *self._places[key]), recorder)

    def __call__(self, key: int, *tensors: Tensor) -> Tensor:
        def load() -> None:
            places = self._places.setdefault(key, [torch.empty_like(tensor) for tensor in tensors])
            for place, tensor in zip(places, tensors, strict=True):
                place.copy_(tensor)

        return self._graphed(key, load, lambda output, mark: output.clone())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._graphed, name)


def scaled(key: int, first: Tensor, second: Tensor) -> Tensor:
    return key * first + second


def test_records_each_key_once_and_returns_separate_results() -> None:
    recorder = FakeRecorder()
    graphed = OnTensors(scaled, recorder)
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
    graphed = OnTensors(scaled, recorder)
    with caplog.at_level(logging.WARNING, "nvf_fast"):
        for _ in range(3):
            assert torch.equal(graphed(2, torch.ones(3), torch.ones(3)), torch.full((3,), 3.0))
    assert recorder.recorded == 1
    assert [record.getMessage() for record in caplog.records] == [
        "no CUDA graph for 2, it runs launch by launch: operation not permitted when stream is capturing"
    ]


def test_out_of_memory_propagates() -> None:
    recorder = FakeRecorder(torch.OutOfMemoryError("too many"))
    graphed = OnTensors(scaled, recorder)
    for _ in range(2):
        with pytest.raises(torch.OutOfMemoryError, match="too many"):
            graphed(2, torch.ones(3), torch.ones(3))
    assert recorder.recorded == 2, "it is tried again"


def test_evicts_the_least_recently_used_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvf_fast.runtime.cuda_graph, "GRAPHS", 2)
    recorder = FakeRecorder()
    graphed = OnTensors(scaled, recorder)
    for key, recorded, evicted in ((1, 1, 0), (2, 2, 0), (1, 2, 0), (3, 3, 1), (1, 3, 1), (2, 4, 2)):
        graphed(key, torch.ones(1), torch.ones(1))
        assert recorder.recorded == graphed.captures == recorded, key
        assert recorder.finished == evicted, "launches end before their memory is returned"


def test_repeats_a_capture_that_another_thread_interrupted(caplog: pytest.LogCaptureFixture) -> None:
    recorder = FakeRecorder(CaptureInterruptedError("another thread interrupted the capture"))
    graphed = OnTensors(scaled, recorder)
    graphed(2, torch.ones(3), torch.ones(3))
    recorder.failure = None
    for _ in range(2):
        assert torch.equal(graphed(2, torch.ones(3), torch.ones(3)), torch.full((3,), 3.0))
    assert recorder.recorded == 2 and not graphed.failed and not caplog.text
    recorder.failure = CaptureInterruptedError("again")
    for _ in range(ATTEMPTS + 2):
        assert torch.equal(graphed(3, torch.ones(3), torch.ones(3)), torch.full((3,), 4.0))
    assert recorder.recorded == 2 + ATTEMPTS and graphed.failed == {3}
    assert caplog.text.count("no CUDA graph for 3") == 1


def test_only_errors_of_other_threads_are_interruptions() -> None:
    """A forbidden call of the capturing thread has an error of its own, which the end's error follows."""
    invalidated = "CUDA error: operation failed due to a previous error during capture"

    def error_of(*messages: str) -> RuntimeError:
        error = None
        for message in messages:
            following = RuntimeError(message)
            following.__context__, error = error, following
        assert error is not None
        return error

    assert interrupted(error_of(invalidated)) and interrupted(error_of(invalidated, invalidated))
    assert not interrupted(error_of("CUDA error: operation not permitted when stream is capturing"))
    assert not interrupted(error_of("operation not permitted when stream is capturing", invalidated))
    assert not interrupted(error_of(invalidated, "out of range"))


def test_forgets_graphs_of_tensors_that_move() -> None:
    recorder = FakeRecorder()
    graphed = OnTensors(scaled, recorder)
    graphed(2, torch.ones(3), torch.ones(3))
    graphed.forget()
    assert recorder.finished == 1, "their launches end first"
    graphed(2, torch.ones(3), torch.ones(3))
    assert recorder.recorded == 2


def test_concurrent_threads_are_serialised() -> None:
    recorder = FakeRecorder()
    graphed = OnTensors(scaled, recorder)
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
    graphed = OnTensors(scaled, CudaRecorder(device))
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
    refused = OnTensors(lambda key, tensor: tensor * tensor.sum().item(), CudaRecorder(device))
    assert torch.equal(refused(0, torch.ones(3, device=device)), torch.full((3,), 3.0, device=device))
    assert "no CUDA graph for 0" in caplog.text
    # A failed capture affects neither random numbers nor the next capture in the same pool.
    assert torch.rand(3, device=device).isfinite().all()
    caplog.clear()
    broken = [True]

    def once(key: int, tensor: Tensor) -> Tensor:
        return tensor * (tensor.sum().item() if broken[0] else 2)

    graphed = OnTensors(once, CudaRecorder(device))
    graphed(0, torch.ones(3, device=device))
    broken[0] = False
    assert graphed(1, torch.ones(3, device=device)).tolist() == [2, 2, 2]
    assert "for 0" in caplog.text and "for 1" not in caplog.text


@pytest.mark.cuda
def test_threads_capture_one_after_the_other(caplog: pytest.LogCaptureFixture) -> None:
    """The estimators of two threads have recorders of their own, and each capture synchronises the device."""
    device, keys = torch.device("cuda"), range(6)
    found: dict[tuple[int, int], list[float]] = {}
    graphed = [OnTensors(scaled, CudaRecorder(device)) for _ in range(2)]
    start = threading.Barrier(2)

    def work(thread: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            inputs = torch.full((1 << 20,), float(thread), device=device), torch.ones(1 << 20, device=device)
            start.wait(60)
            for key in keys:
                found[thread, key] = graphed[thread](key, *inputs).unique().tolist()

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {(thread, key): [float(key * thread + 1)] for thread in range(2) for key in keys}
    assert [each.captures for each in graphed] == [len(keys)] * 2 and "no CUDA graph" not in caplog.text


@pytest.mark.cuda
def test_an_interrupted_capture_is_repeated() -> None:
    device = torch.device("cuda")
    interfere = [True]

    def synchronised(key: int, tensor: Tensor) -> Tensor:
        doubled = 2 * tensor
        if interfere and torch.cuda.is_current_stream_capturing():
            interfere.pop()

            def synchronise() -> None:
                with suppress(RuntimeError):  # CUDA refuses it, and ends the capture
                    torch.cuda.synchronize(device)

            other = threading.Thread(target=synchronise)
            other.start()
            other.join()
        return doubled + key

    graphed = OnTensors(synchronised, CudaRecorder(device))
    for _ in range(3):
        assert graphed(1, torch.ones(3, device=device)).tolist() == [3, 3, 3]
    assert not interfere and not graphed.failed and graphed.captures == 2


@pytest.mark.cuda
def test_evicted_graphs_keep_their_memory_until_they_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long replay on one stream goes on while another stream evicts its graph and allocates."""
    monkeypatch.setattr(nvf_fast.runtime.cuda_graph, "GRAPHS", 1)
    device = torch.device("cuda")

    def slow(key: int, tensor: Tensor) -> Tensor:
        for _ in range(200):
            tensor = tensor * 1.0
        return tensor + key

    graphed, streams = OnTensors(slow, CudaRecorder(device)), [torch.cuda.Stream() for _ in range(2)]
    found = []
    for turn in range(6):
        with torch.cuda.stream(streams[turn % 2]):
            for _ in range(2):
                found.append(graphed(turn, torch.full((1 << 22,), 10.0 * turn, device=device)))
            torch.full((1 << 22,), -1.0, device=device)
    torch.cuda.synchronize()
    assert [value.unique().tolist() for value in found] == [[11.0 * (i // 2)] for i in range(12)]


@pytest.mark.cuda
def test_estimators_capture_in_two_threads() -> None:
    """Each finds what it finds alone, with graphs of its own, on a stream of its own."""
    model = reference_network(nearness=1.0)
    images = np.random.default_rng(0).integers(0, 256, (3, 224, 224, 3), dtype=np.uint8)
    camera = np.array([[480.0, 0, 112], [0, 480, 112], [0, 0, 1]])
    batches = [images[:count] for count in (1, 2, 3)]

    def joints(estimator: PoseEstimator) -> list[np.ndarray]:
        return [estimator(list(batch), camera, np.full(len(batch), 25.0)).joints for batch in batches]

    estimators = [PoseEstimator(model, step, device="cuda") for step in (16.0, 20.0)]
    expected = [joints(PoseEstimator(model, step, device="cuda")) for step in (16.0, 20.0)]
    found: dict[int, list[np.ndarray]] = {}
    start = threading.Barrier(2)

    def work(thread: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            start.wait(60)
            found[thread] = joints(estimators[thread])

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for thread, estimator in enumerate(estimators):
        for got, result in zip(found[thread], expected[thread], strict=True):
            np.testing.assert_array_equal(got, result)
        graphed = estimator.runner.graphed
        assert graphed is not None and graphed.captures == len(batches) and not graphed.failed


@pytest.mark.cuda
def test_boxes_of_many_sizes_take_one_capture() -> None:
    image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    estimator = PoseEstimator(hand_network(), device="cuda")
    camera = np.array([[600.0, 0, 320], [0, 600, 240], [0, 0, 1]])
    for size in range(40, 460, 30):
        box = (320 - size / 2, 240 - size / 2, 320 + size / 2, 240 + size / 3)
        estimator(image, camera, box=box, side="right")
    graphed = estimator.runner.graphed
    assert graphed is not None and graphed.captures == 1 and not graphed.failed


@pytest.mark.cuda
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_an_estimator_computes_on_its_device_whichever_is_current() -> None:
    image = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    camera = np.array([[480.0, 0, 112], [0, 480, 112], [0, 0, 1]])
    poses = [
        PoseEstimator(reference_network(nearness=1.0), device=f"cuda:{index}")(image, camera, 25.0)
        for index in range(2)
    ]
    assert torch.cuda.current_device() == 0 and poses[0].valid
    np.testing.assert_array_equal(poses[0].joints, poses[1].joints)
