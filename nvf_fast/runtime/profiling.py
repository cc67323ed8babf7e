"""Ranges for profilers, and the times of a frame's stages."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache

import torch

if sys.platform != "darwin":  # where NVTX and its profilers do not exist
    import nvtx


class Profiler:
    """Profiler of the stages of a frame on one device: `with profiler.stage("encode"): ...`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._of_thread = threading.local()

    @property
    def measuring(self) -> bool:
        """Whether this thread is inside `timed`; others run as usual."""
        return self._milliseconds is not None

    @property
    def _milliseconds(self) -> dict[str, float] | None:
        return getattr(self._of_thread, "milliseconds", None)

    def stage(self, name: str) -> AbstractContextManager[object]:
        """A range for profilers (NVTX), measured inside `timed`."""
        milliseconds = self._milliseconds
        return _range(name) if milliseconds is None else self._measured(name, milliseconds)

    @contextmanager
    def _measured(self, name: str, milliseconds: dict[str, float]) -> Iterator[None]:
        with _range(name):
            start = self._now()
            yield
            milliseconds[name] = milliseconds.get(name, 0.0) + 1e3 * (self._now() - start)

    @contextmanager
    def timed(self) -> Iterator[dict[str, float]]:
        """Measure the enclosed calls of this thread: a dict of each stage's total milliseconds, in order.

        Each stage then synchronises, so that the sum exceeds the time of an unmeasured call.
        """
        milliseconds: dict[str, float] = {}
        self._of_thread.milliseconds = milliseconds
        try:
            yield milliseconds
        finally:
            self._of_thread.milliseconds = None

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


@cache
def _range(name: str) -> AbstractContextManager[object]:
    return nullcontext() if sys.platform == "darwin" else nvtx.annotate(name, domain="nvf_fast")
