"""The processes that share a training: how they join, agree, learn of a lost one, and are asked to stop."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from nvf_fast.training.state import CannotStart

TIMEOUT_S = 600.0


class ProcessLost(RuntimeError):
    """Another process of the training has ended, or has not answered in time."""


@contextmanager
def process_group(device: torch.device | str, timeout_s: float = TIMEOUT_S) -> Iterator[torch.device]:
    """Joins the processes that torchrun started, if it did, on this machine or several.

    Args:
        device: where to train; "cuda" is the GPU of the process's local rank.
        timeout_s: how long a process waits for the others, when joining and in every step. The first process
            evaluates and saves while the others wait, which must take less.

    Yields:
        This process's device.

    Raises:
        ProcessLost: the others did not come.
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
        raise ProcessLost(
            f"the {os.environ['WORLD_SIZE']} processes could not join each other within {timeout_s:g} s"
        ) from error
    yield device
    # After an error the group is left as it is: to take it down would be to wait for a process that is gone.
    torch.distributed.destroy_process_group()


@dataclass(frozen=True)
class Processes:
    """This process among those that share a training.

    Every wait ends: with an error when a peer's connection closes, or after the time that `process_group` was
    given. NCCL waits on the device: there its watchdog ends the process
    (TORCH_NCCL_ASYNC_ERROR_HANDLING, on unless it is set to 0).

    rank: 0 writes files and shows progress.
    count: how many there are.
    """

    rank: int = 0
    count: int = 1

    @classmethod
    def joined(cls) -> Processes:
        """Those of torch.distributed where it is initialised, else this process alone."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return cls()
        return cls(torch.distributed.get_rank(), torch.distributed.get_world_size())

    def average(self, message: Tensor) -> None:
        """Replaces a tensor by its mean over the processes.

        Raises:
            ProcessLost: one did not answer.
        """
        if self.count > 1:
            with _losses_of_processes():
                torch.distributed.all_reduce(message)
            message /= self.count

    def gather(self, fact: Any) -> list[Any]:
        """Every process's fact, whatever pickle holds, by rank.

        Raises:
            ProcessLost: one did not answer.
        """
        if self.count == 1:
            return [fact]
        facts: list[Any] = [None] * self.count
        with _losses_of_processes():
            torch.distributed.all_gather_object(facts, fact)
        return facts

    def agree(self, name: str, fact: Any) -> None:
        """Refuses to go on where processes hold different facts.

        Raises:
            CannotStart: they do; the message lists each one's.
            ProcessLost: one did not answer.
        """
        facts = self.gather(fact)
        if any(other != facts[0] for other in facts):
            told = "; ".join(f"process {rank}: {other}" for rank, other in enumerate(facts))
            raise CannotStart(f"each process reads the {name} for itself, and they do not agree: {told}")


@contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """An event that SIGTERM and Ctrl-C set; a second one of them acts as usual."""
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
def _losses_of_processes() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise ProcessLost(
            "another process of the training ended or did not answer in time; "
            "the same command goes on from the last saved state"
        ) from error
