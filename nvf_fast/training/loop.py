"""The training loop: deterministic, resumable, on one process or several."""

from __future__ import annotations

import ctypes
import platform
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nvf_fast.baselines import Network
from nvf_fast.runtime.files import locked, read_path
from nvf_fast.runtime.processes import TIMEOUT_S, Processes, stop_requests
from nvf_fast.training.config import TrainingConfig
from nvf_fast.training.loader import TrainingData, load_batches
from nvf_fast.training.log import TrainingLog
from nvf_fast.training.state import SavedTraining
from nvf_fast.training.trainer import Trainer

Evaluate = Callable[[Network], dict[str, float]]


@dataclass(frozen=True)
class TrainingResult:
    """Result of `train`: steps and minutes over all calls, completion, and the network."""

    step: int
    minutes: float
    finished: bool
    model: Network


def train(
    config: TrainingConfig,
    data: TrainingData,
    directory: Path | str,
    *,
    minutes: float | None = None,
    evaluate: Evaluate | None = None,
    start: Path | str | None = None,
    device: torch.device | str = "cpu",
    workers: int = 0,
    timeout_s: float = TIMEOUT_S,
    inexact: bool = False,
    progress: bool = True,
    tensorboard: bool = False,
    credits: dict[str, Any] | None = None,
) -> TrainingResult:
    """Train a network, or resume the training in the same directory.

    Every random number of a batch is drawn from (config.seed, step, part). For equal software, processor and
    number of processes, a resumed training therefore equals an uninterrupted one bit for bit. PyTorch's
    global generators are seeded too, and restored. The directory receives the last two states, `log.jsonl`
    and `checkpoint/`; state and checkpoint remain readable whenever the process is killed. SIGTERM and Ctrl-C
    save and return. Where torch.distributed is initialised, each batch is divided between its processes; all
    need access to the directory, and the first writes to it.

    Args:
        config: every number of the training.
        data: images of `config.model.input_size` px and their hands, in the task's frame; or hand views.
        directory: the run's folder, made when missing.
        minutes: wall-clock minutes after which this call saves and returns; None runs to the end.
        evaluate: called with the exported network every `config.evaluate_every` steps; its numbers are kept.
        start: checkpoint with the initial weights, of the same task or another
            (`nvf_fast.training.transfer`); a resumed training needs none, and accepts no other.
        device: where to train.
        workers: processes that load images ahead; the batches are the same for any number of them.
        timeout_s: longest wait for a worker.
        inexact: resume even if PyTorch, the device, or the number of processes or threads has changed, with
            results that are equal only up to rounding.
        progress: show a progress bar.
        tensorboard: write for TensorBoard too, which the extra `train` installs.
        credits: where the images come from, for the checkpoint's metadata.

    Returns:
        Steps and minutes done, and the exported model.

    Raises:
        ResumeError: the directory holds a training of another configuration, data set, start or environment,
            or only damaged states; `start` does not fit the network; or the processes disagree on where to
            start.
        ValueError: the processes do not divide the batch's parts.
        NonFiniteLossError: a loss became NaN or infinite.
        ProcessLostError: another process ended or did not respond.
        ImportError: TensorBoard is requested and not installed.
        LockedError: another process trains in the directory.
        OSError: the directory cannot be written to.
    """
    directory = read_path("directory", directory)
    _keep_freed_memory()
    trainer = Trainer(config, len(data), torch.device(device), Processes.joined())
    with ExitStack() as stack:
        if trainer.processes.rank == 0:
            stack.enter_context(locked(directory / ".lock"))
        saved = SavedTraining(directory, trainer, getattr(data, "fingerprint", None), credits)
        resumed = saved.resume(inexact)
        if resumed and trainer.store is not None and not trainer.finished:
            warnings.warn(
                f"{directory}: the store is filled again with {config.replay.first} views, so the next steps "
                "differ from those of an uninterrupted run"
            )
        if start is not None:
            saved.start_from(start)
        log = TrainingLog(
            directory, trainer.step, trainer.total,
            silent=trainer.processes.rank > 0, progress=progress, tensorboard=tensorboard,
        )  # fmt: skip
        batches = load_batches(trainer, data, workers, timeout_s)
        with log, stop_requests() as stop, closing(batches):
            if saved.damaged_states:
                log.write(trainer.step, saved.seconds / 60, {"damaged_states": saved.damaged_states})
            began, earlier = time.perf_counter(), saved.seconds
            stopping, first = trainer.finished, trainer.step + 1
            while not stopping:
                before = time.perf_counter()
                late = minutes is not None and before - began >= 60 * minutes
                parts = next(batches)
                terms, stopping = trainer.update(parts, stop.is_set() or late)
                stopping |= trainer.finished
                log.add(terms)
                saved.damaged.add(parts)
                logging = stopping or trainer.step % config.log_every == 0
                saving = stopping or trainer.step % config.save_every == 0
                if logging or saving:
                    means = log.means(trainer.step)
                    saved.damaged.gather(trainer.processes)
                log.seconds += time.perf_counter() - before
                saved.seconds = earlier + time.perf_counter() - began
                if trainer.store is not None and trainer.step == first:
                    entry = {"stored_views": sum(trainer.store.added), "cuda_graph": trainer.graphed}
                    log.write(trainer.step, saved.seconds / 60, entry)
                if logging:
                    log.write_losses(trainer, saved.seconds / 60, means, saved.damaged)
                if saving:
                    saved.save()
                if evaluate is not None and _evaluation_due(trainer):
                    with torch.random.fork_rng([trainer.device] if trainer.device.type == "cuda" else []):
                        scores = evaluate(trainer.exported)
                    log.write_evaluation(trainer.step, saved.seconds / 60, scores)
    return TrainingResult(trainer.step, saved.seconds / 60, trainer.finished, trainer.exported)


def _evaluation_due(trainer: Trainer) -> bool:
    every = trainer.config.evaluate_every
    return trainer.processes.rank == 0 and every > 0 and (trainer.step % every == 0 or trainer.finished)


def _keep_freed_memory() -> None:
    """Make glibc reuse large freed blocks instead of returning them to the kernel after every step."""
    if platform.libc_ver()[0] != "glibc":
        return
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # the parameters' numbers in malloc.h
    libc = ctypes.CDLL(None)
    libc.mallopt(mmap_max, 0)
    libc.mallopt(trim_threshold, 2**31 - 1)
    libc.mallopt(top_pad, 256 * 2**20)
