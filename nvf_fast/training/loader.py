"""The order of training images, and their loading ahead of the steps."""

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


class TrainingData(Protocol):
    """A data set for training, such as `nvf_fast.training.images.TaskImages`.

    An optional attribute `fingerprint`, a str, identifies its contents; a training resumes only with an equal
    one.
    """

    def __len__(self) -> int: ...

    def __getitems__(self, indices: list[int]) -> Any:
        """The images of these indices, deterministically: an `ImageBatch`, or `HandViews`."""
        ...


@dataclass(frozen=True)
class Order:
    """The order of the images: each epoch is a permutation, its incomplete last batch left out.

    seed: with the epoch it determines the permutation.
    images: size of the data set.
    batch: images of a step.
    parts: equal parts of a batch.
    """

    seed: int
    images: int
    batch: int
    parts: int

    def part(self, step: int, part: int) -> list[int]:
        """Indices of the images of one part of a step."""
        epoch, position = divmod(step, self.images // self.batch)
        size = self.batch // self.parts
        first = position * self.batch + part * size
        return _permutation(self.seed, epoch, self.images)[first : first + size]


def load_parts(
    data: TrainingData,
    order: Order,
    own: Sequence[int],
    steps: range,
    workers: int = 0,
    pinned: bool = False,
    timeout_s: float = 600.0,
) -> Generator[list[Any]]:
    """This process's parts of each step, the same for any number of workers.

    Args:
        data: the data set.
        order: which images each part holds.
        own: numbers of this process's parts.
        steps: from the next to the last.
        workers: processes that load ahead, two parts each; 0 loads on demand.
        pinned: return images in pinned memory, for a faster transfer to a GPU.
        timeout_s: longest wait for a worker.

    Raises:
        RuntimeError: a worker died or timed out.
    """
    loader: DataLoader[Any] = DataLoader(
        data,  # type: ignore[arg-type]
        batch_sampler=(order.part(step, part) for step in steps for part in own),
        collate_fn=_identity,
        num_workers=workers,
        worker_init_fn=_stop_for_the_parent_alone,
        pin_memory=pinned,
        timeout=timeout_s if workers else 0,
        generator=torch.Generator(),  # without one the loader draws from the global generator
    )
    parts = iter(loader)
    for _ in steps:
        yield list(islice(parts, len(own)))


def mixed_seed(*keys: int | str) -> int:
    """A 63-bit seed, independent for different keys."""
    return int.from_bytes(hashlib.sha256(repr(keys).encode()).digest()[:8], "big") >> 1


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, images: int) -> list[int]:
    generator = torch.Generator().manual_seed(mixed_seed(seed, "order", epoch))
    order: list[int] = torch.randperm(images, generator=generator).tolist()
    return order


def _identity(batch: Any) -> Any:
    return batch


def _stop_for_the_parent_alone(worker: int) -> None:
    """Make a worker ignore Ctrl-C, and SIGTERM unless its parent sends it.

    Both signals reach the whole process group, and the parent needs its workers to finish its step.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on every system
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_await_the_parent, daemon=True).start()


def _await_the_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
