"""Which pictures each step sees, and how they are fetched ahead of it."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader


class Pictures(Protocol):
    """What a training asks of a data set; `nvf_fast.training.pictures.TaskPictures` is one.

    Where it has an attribute `fingerprint`, a str that tells its contents, a training resumes only with the
    same one.
    """

    def __len__(self) -> int: ...

    def __getitems__(self, indices: list[int]) -> Any:
        """The pictures of these indices, always the same: a `PictureBatch`, or `HandViews`."""
        ...


@dataclass(frozen=True)
class Order:
    """The order of the pictures: each epoch is a permutation, its incomplete last batch left out.

    seed: with the epoch it determines the permutation.
    pictures: how many there are.
    batch: pictures of a step.
    parts: equal parts of a batch.
    """

    seed: int
    pictures: int
    batch: int
    parts: int

    def part(self, step: int, part: int) -> list[int]:
        """Indices of the pictures of one part of a step."""
        epoch, position = divmod(step, self.pictures // self.batch)
        size = self.batch // self.parts
        first = position * self.batch + part * size
        return _permutation(self.seed, epoch, self.pictures)[first : first + size]


def fetched(
    pictures: Pictures,
    order: Order,
    own: Sequence[int],
    steps: range,
    workers: int,
    pinned: bool,
    timeout_s: float,
) -> Generator[list[Any]]:
    """The parts of each step that are this process's own, the same for any number of workers.

    Args:
        pictures: the data set.
        order: which pictures each part holds.
        own: numbers of the parts.
        steps: from the next to the last.
        workers: processes that fetch ahead, two parts each; 0 fetches when asked.
        pinned: whether pictures come in pinned memory, from where they reach a GPU faster.
        timeout_s: a worker that is silent for so long is an error.

    Raises:
        RuntimeError: a worker died or was silent for too long.
    """
    loader: DataLoader[Any] = DataLoader(
        pictures,  # type: ignore[arg-type]
        batch_sampler=(order.part(step, part) for step in steps for part in own),
        collate_fn=_as_it_is,
        num_workers=workers,
        worker_init_fn=_stop_for_the_parent_alone,
        pin_memory=pinned,
        timeout=timeout_s if workers else 0,
        generator=torch.Generator(),  # without one the loader draws from the global generator
    )
    parts = iter(loader)
    for _ in steps:
        yield list(islice(parts, len(own)))


def mixed_seed(*facts: int | str) -> int:
    """A 63-bit seed from several numbers, unrelated for unlike ones."""
    return int.from_bytes(hashlib.sha256(repr(facts).encode()).digest()[:8], "big") >> 1


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, pictures: int) -> list[int]:
    generator = torch.Generator().manual_seed(mixed_seed(seed, "order", epoch))
    order: list[int] = torch.randperm(pictures, generator=generator).tolist()
    return order


def _as_it_is(batch: Any) -> Any:
    return batch


def _stop_for_the_parent_alone(worker: int) -> None:
    """Makes a worker deaf to Ctrl-C, and to SIGTERM unless its parent sends it.

    Both reach whole groups of processes; the parent then finishes its step, for which it needs its workers.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on every system
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_await_the_parent, daemon=True).start()


def _await_the_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
