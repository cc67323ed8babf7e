"""A function of tensors as one launch: captured as a CUDA graph once per key, replayed from then on."""

from __future__ import annotations

import logging
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Protocol, TypeVar

import torch
from torch import Tensor

GRAPHS = 16  # kept at a time; the one unused for longest goes first
ATTEMPTS = 3  # of captures that other threads interrupt
INVALIDATED = "previous error during capture"  # in CUDA's message of a capture that another call made invalid
CAPTURE = threading.Lock()  # a capture begins by synchronising its device, which ends any other capture
LOG = logging.getLogger("nvf_fast")
R = TypeVar("R")


class CaptureInterruptedError(RuntimeError):
    """Another thread's call made a capture invalid."""


class Recorder(Protocol):
    """Recorder of launches that it can replay."""

    def record(self, run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """Capture a call.

        Returns:
            A function that launches it again, and the tensor that this fills.

        Raises:
            CaptureInterruptedError: another thread ended the capture.
        """

    def finish(self) -> None:
        """Wait for the launches of all uses so far."""

    def mark(self) -> Callable[[], None]:
        """A function that waits for the launches so far on the current stream."""

    @contextmanager
    def in_order(self) -> Iterator[None]:
        """Order enclosed launches after those of earlier uses, on any stream."""


class GraphedFunction:
    """A function `function(key)` without synchronisation, replayed as a CUDA graph for each key.

    It reads tensors that stay where they are, and returns a tensor. Calls from several streams and threads
    run one after the other, since they use the same memory. If a capture fails, a warning gives the reason,
    and its key runs without a graph from then on. A capture that another thread interrupts is repeated in the
    next call, `ATTEMPTS` times at most.

    Args:
        function: from a key to a tensor on the device.
        recorder: of the device.

    Attributes:
        captures: number of captures so far.
        failed: keys whose capture failed.
    """

    def __init__(self, function: Callable[..., Tensor], recorder: Recorder) -> None:
        self.captures = 0
        self.failed: set[Hashable] = set()
        self._interruptions: Counter[Hashable] = Counter()
        self._function, self._recorder = function, recorder
        self._captured: OrderedDict[Hashable, tuple[Callable[[], None], Tensor]] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(
        self,
        key: Hashable,
        load: Callable[[], object],
        unload: Callable[[Tensor, Callable[[], Callable[[], None]]], R],
    ) -> R:
        """Compute the function's result.

        Args:
            key: of the graph.
            load: writes the tensors that the function reads.
            unload: takes the result, which later calls overwrite, and `Recorder.mark`, without synchronising.

        Returns:
            The result of `unload`.

        Raises:
            torch.OutOfMemoryError: a capture did not fit.
        """
        with self._lock, self._recorder.in_order():
            load()
            if key not in self._captured and key not in self.failed:
                self._capture(key)
            if key in self._captured:
                self._captured.move_to_end(key)
                launch, output = self._captured[key]
                launch()
            else:
                output = self._function(key)
            return unload(output, self._recorder.mark)

    def forget(self) -> None:
        """Drop all graphs once their launches end: tensors that they read move."""
        with self._lock:
            self._recorder.finish()
            self._captured.clear()

    def _capture(self, key: Hashable) -> None:
        """Capture a key's call and keep the graph."""
        self.captures += 1
        try:
            captured = self._recorder.record(lambda: self._function(key))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._interruptions[key] += isinstance(error, CaptureInterruptedError)
            if isinstance(error, CaptureInterruptedError) and self._interruptions[key] < ATTEMPTS:
                return
            self.failed.add(key)
            LOG.warning("no CUDA graph for %s, it runs launch by launch: %s", key, error)
            return
        self._captured[key] = captured
        if len(self._captured) > GRAPHS:
            self._recorder.finish()  # the evicted graph's memory may be in use on another stream
            self._captured.popitem(last=False)


class CudaRecorder:
    """Recorder of CUDA graphs on one device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)
        self._last = torch.cuda.Event()

    def record(self, run: Callable[[], R]) -> tuple[Callable[[], None], R]:
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with CAPTURE, torch.cuda.stream(self._stream):
            for _ in range(2):  # compiles kernels, fills caches, lets libraries choose
                run()
            self._stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            try:
                with self._capturing(graph):
                    output = run()
            except BaseException as error:
                self._end_broken_capture()
                if interrupted(error):
                    raise CaptureInterruptedError("another thread interrupted the capture") from error
                raise
        current.wait_stream(self._stream)
        return graph.replay, output

    def finish(self) -> None:
        self._last.synchronize()

    def mark(self) -> Callable[[], None]:
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self._device))
        return event.synchronize

    def _capturing(self, graph: torch.cuda.CUDAGraph) -> AbstractContextManager[None]:
        # Only this thread's launches belong to the graph; other threads continue.
        return torch.cuda.graph(
            graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
        )

    def _end_broken_capture(self) -> None:
        """PyTorch leaves a pool that is still being recorded to, and generators that wait for a graph's seed.

        A new pool takes the old one's place, and a capture of next to nothing ends the generators' waiting.
        """
        index = torch.cuda.current_device() if self._device.index is None else self._device.index
        with suppress(RuntimeError):  # PyTorch 2.13 and newer ends it already and raises
            torch._C._cuda_endAllocateToPool(index, self._pool)
        self._pool = torch.cuda.graph_pool_handle()
        with self._capturing(torch.cuda.CUDAGraph()):
            torch.zeros(1, device=self._device)

    @contextmanager
    def in_order(self) -> Iterator[None]:
        stream = torch.cuda.current_stream(self._device)
        stream.wait_event(self._last)
        try:
            yield
        finally:
            self._last.record(stream)


def record_repeated(device: torch.device, run: Callable[[], object], count: int) -> Callable[[], None]:
    """Capture several calls in one CUDA graph, for timing: single launches would measure Python.

    Returns:
        A function that launches them all.

    Raises:
        RuntimeError: a call synchronises or does something else that a capture forbids.
    """

    def repeated() -> None:
        for _ in range(count):
            run()

    launch, _ = CudaRecorder(device).record(repeated)
    return launch


def milliseconds(launch: Callable[[], object]) -> float:
    """Milliseconds of a launch, between CUDA events before and after it on the current stream."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    launch()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def finish_launches(device: torch.device) -> None:
    """Wait for the current stream, so that other streams may read the tensors made on it."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def interrupted(error: BaseException | None) -> bool:
    """Whether a capture's error, with the errors that it followed, came from another thread alone.

    CUDA refuses a forbidden call in the capturing thread with an error of its own; only later calls report
    that the capture is invalid.
    """
    while isinstance(error, RuntimeError) and INVALIDATED in str(error):
        error = error.__context__
        if error is None:
            return True
    return False
