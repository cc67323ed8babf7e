"""The order of training images, and their loading ahead of the steps."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
from collections.abc import Generator, Iterable, Sequence
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.utils.data import DataLoader

from nvf_fast.data.hand_views import HandViews
from nvf_fast.runtime.processes import TIMEOUT_S

if TYPE_CHECKING:
    from nvf_fast.training.config import TrainingConfig
    from nvf_fast.training.trainer import Trainer


class TrainingData(Protocol):
    """A data set for training, such as `nvf_fast.training.images.TaskImages`.

    An optional attribute `fingerprint`, a str, identifies its contents; a training resumes only with an equal
    one.
    """

    def __len__(self) -> int: ...

    def __getitems__(self, indices: list[int]) -> Any:
        """The images of these indices, deterministically: an `ImageBatch`, or `HandViews`."""
        ...


def load_batches(
    trainer: Trainer, data: TrainingData, workers: int = 0, timeout_s: float = TIMEOUT_S
) -> Generator[Iterable[Any]]:
    """The trainer's own parts of every remaining step, the same for any number of workers.

    With a store of views, the parts that each step adds to it, loaded while they are iterated; the first step
    here also adds the latest `config.replay.first` views before them.

    Args:
        trainer: at the step before the first of these.
        data: the data set.
        workers: processes that load ahead, two parts each; 0 loads on demand.
        timeout_s: longest wait for a worker.

    Raises:
        RuntimeError: a worker died or timed out.
    """
    steps, count = range(trainer.step, trainer.total), trainer.options.parts
    replay = trainer.config.replay
    ahead = -(-replay.first * count // trainer.options.batch)  # parts stored before the first step

    def due(step: int) -> Sequence[int]:
        """The parts that a step takes, counted over all steps."""
        if replay.uses == 1:
            return [step * count + part for part in trainer.own]
        taken, after = (at * count // replay.uses for at in (step, step + 1))
        return range(taken + ahead * (step > steps.start), after + ahead)

    order = (part_of(trainer.config, len(data), *divmod(part, count)) for step in steps for part in due(step))
    loader: DataLoader[Any] = DataLoader(
        data,  # type: ignore[arg-type]
        batch_sampler=order,
        collate_fn=_tensors,
        num_workers=workers,
        worker_init_fn=_stop_for_the_parent_alone,
        pin_memory=trainer.device.type == "cuda",
        timeout=timeout_s if workers else 0,
        generator=torch.Generator(),  # without one the loader draws from the global generator
    )
    parts = iter(loader)
    for step in steps:
        of_step = islice(parts, len(due(step)))
        yield of_step if replay.uses > 1 else list(of_step)


def part_of(config: TrainingConfig, images: int, step: int, part: int) -> list[int]:
    """Indices of the images of one part of a step, in a data set of this size.

    Each epoch is a permutation, its incomplete last batch left out.
    """
    options = config.optimisation
    epoch, position = divmod(step, options.steps_per_epoch(images))
    size = options.batch // options.parts
    first = position * options.batch + part * size
    return _permutation(config.seed, epoch, images)[first : first + size]


def mixed_seed(*keys: int | str) -> int:
    """A 63-bit seed, independent for different keys."""
    return int.from_bytes(hashlib.sha256(repr(keys).encode()).digest()[:8], "big") >> 1


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, images: int) -> list[int]:
    generator = torch.Generator().manual_seed(mixed_seed(seed, "order", epoch))
    order: list[int] = torch.randperm(images, generator=generator).tolist()
    return order


def _tensors(batch: Any) -> Any:
    """Arrays of views as tensors, which a worker passes on in shared memory."""
    if not isinstance(batch, HandViews):
        return batch
    return {name: torch.from_numpy(value) for name, value in vars(batch).items()}


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
