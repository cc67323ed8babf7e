"""Processes of a distributed training or evaluation: joining, averaging, agreement, and stopping on request.

They communicate only through torch.distributed, and every wait has a timeout.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.resource_tracker import ensure_running
from types import FrameType
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from nvf_fast.runtime.store import ResumeError

TIMEOUT_S = 600.0


class ProcessLostError(RuntimeError):
    """Another process has ended, or has not responded in time."""


@contextmanager
def process_group(device: torch.device | str, timeout_s: float = TIMEOUT_S) -> Iterator[torch.device]:
    """Join the processes that torchrun started, if it did, on this machine or several.

    Args:
        device: where to compute; "cuda" is the GPU of the process's local rank.
        timeout_s: longest wait for the others, when joining and at every exchange. The first process of a
            training evaluates and saves while the others wait, which must take less.

    Yields:
        This process's device.

    Raises:
        ProcessLostError: the others did not join in time.
    """
    device = torch.device(device)
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    try:
        torch.distributed.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
    except RuntimeError as error:
        raise ProcessLostError(
            f"the {os.environ['WORLD_SIZE']} processes could not join each other within {timeout_s:g} s"
        ) from error
    yield device
    # Not after an error: destroying the group would wait for a process that has ended.
    torch.distributed.destroy_process_group()


@dataclass(frozen=True)
class Processes:
    """This process among those of a run.

    Every wait ends with an error when another process's connection closes or after the timeout of
    `process_group`. NCCL waits on the device, where its watchdog ends the process
    (TORCH_NCCL_ASYNC_ERROR_HANDLING, on unless set to 0).
    """

    rank: int = 0  # 0 writes files and shows progress
    count: int = 1  # number of processes

    @classmethod
    def joined(cls) -> Processes:
        """The processes of torch.distributed where it is initialised, else this process alone."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return cls()
        return cls(torch.distributed.get_rank(), torch.distributed.get_world_size())

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their means over the processes, in one message.

        Raises:
            ProcessLostError: a process did not respond.
        """
        if self.count == 1:
            return
        message = torch.cat([tensor.flatten() for tensor in tensors])
        with _errors_of_processes():
            torch.distributed.all_reduce(message)
        message /= self.count
        pieces = message.split([tensor.numel() for tensor in tensors])
        for tensor, piece in zip(tensors, pieces, strict=True):
            tensor.copy_(piece.view_as(tensor))

    def gather(self, value: Any) -> list[Any]:
        """Gather every process's value, of any picklable type, by rank.

        Raises:
            ProcessLostError: a process did not respond.
        """
        values = [value] * self.count
        if self.count > 1:
            with _errors_of_processes():
                torch.distributed.all_gather_object(values, value)
        return values

    def agree(self, name: str, value: Any) -> None:
        """Check that all processes hold the same value.

        Raises:
            ResumeError: they do not; the message lists the values.
            ProcessLostError: a process did not respond.
        """
        values = self.gather(value)
        if any(other != values[0] for other in values):
            listed = "; ".join(f"process {rank}: {other}" for rank, other in enumerate(values))
            raise ResumeError(f"each process reads the {name} for itself, and they do not agree: {listed}")


@contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """An event set by SIGTERM and Ctrl-C; a second signal has its default effect."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    before: dict[signal.Signals, Any] = {}

    def request(number: int, frame: FrameType | None) -> None:
        event.set()
        signal.signal(number, before[signal.Signals(number)])

    for stopper in (signal.SIGTERM, signal.SIGINT):
        before[stopper] = signal.signal(stopper, request)
    try:
        yield event
    finally:
        for stopper, handler in before.items():
            signal.signal(stopper, handler)


@contextmanager
def without_interrupts() -> Iterator[None]:
    """Delay Ctrl-C until the block ends; processes that the block starts never receive it.

    Ctrl-C reaches the whole process group, and only the parent reports it.
    """
    if not hasattr(signal, "pthread_sigmask"):  # not on every system
        yield
        return
    ensure_running()  # it would unblock the signal when it starts
    main, received = threading.current_thread() is threading.main_thread(), threading.Event()
    # Another thread may receive the signal, whose handler then runs in this one.
    handler = signal.signal(signal.SIGINT, lambda *_: received.set()) if main else None
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited by processes
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if main:
            signal.signal(signal.SIGINT, handler)
    if received.is_set():
        signal.raise_signal(signal.SIGINT)


@contextmanager
def _errors_of_processes() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise ProcessLostError(
            "another process ended or did not respond in time; the same command resumes from the saved state"
        ) from error
