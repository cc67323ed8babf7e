"""The training loop: deterministic, resumable, on one process or several."""

from __future__ import annotations

import copy
import ctypes
import json
import math
import platform
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nvf_fast.baselines import Network, build
from nvf_fast.checkpoint import load_checkpoint, save_checkpoint
from nvf_fast.model import check_entries
from nvf_fast.training.config import TrainingConfig
from nvf_fast.training.feed import Order, Pictures, fetched, mixed_seed
from nvf_fast.training.log import TrainingLog
from nvf_fast.training.losses import AuxiliaryHead
from nvf_fast.training.processes import TIMEOUT_S, Processes, stop_requests
from nvf_fast.training.state import CannotStart, StateFiles, differences
from nvf_fast.training.step import step_of
from nvf_fast.training.transfer import transfer

STATE_VERSION = 2

Evaluate = Callable[[Network], dict[str, float]]
# Fields of the configuration that may change when a training goes on.
WITHOUT_INFLUENCE = ("log_every", "save_every", "evaluate_every", "evaluation_images")


@dataclass(frozen=True)
class TrainingResult:
    """Where `train` left off: steps and minutes so far, over all its calls, and whether that was the end."""

    step: int
    minutes: float
    finished: bool
    model: Network


class NonFiniteLoss(RuntimeError):
    """A loss became NaN or infinite; the last saved state is from before."""


def train(
    config: TrainingConfig,
    pictures: Pictures,
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
    """Trains a network, or goes on where an earlier call in the same directory stopped.

    Every random number of a batch is drawn from (config.seed, step, part), so a training that is stopped and
    resumed equals one that is not, bit for bit, where software, processor and processes are the same.
    PyTorch's global generators are seeded too, and restored. The directory receives the last two states,
    `log.jsonl` and `checkpoint/`; whenever the process is killed, both the state and the checkpoint can be
    read. SIGTERM and Ctrl-C save and return. Where torch.distributed is initialised, its processes share each
    batch; all of them see the directory, and the first writes to it.

    Args:
        config: every number of the training.
        pictures: pictures of `config.model.input_size` px and their hands, in the task's frame.
        directory: the run's folder, made when missing.
        minutes: wall-clock minutes after which this call saves and returns; None runs to the end.
        evaluate: called with the exported network every `config.evaluate_every` steps; its numbers are kept.
        start: checkpoint whose weights the training begins from, of the same task or another, see
            `nvf_fast.training.transfer`; ignored when resuming.
        device: where to train.
        workers: processes that fetch pictures ahead; the batches are the same for any number of them.
        timeout_s: how long to wait for a worker that fetches.
        inexact: go on although PyTorch, the device, or the number of processes or threads is another than
            before, so that results are equal up to rounding only.
        progress: show a progress bar.
        tensorboard: write for TensorBoard too, which the extra `train` installs.
        credits: where the images come from, for the checkpoint's metadata.

    Returns:
        Steps and minutes done, and the exported model.

    Raises:
        CannotStart: the directory holds a training of another configuration, of other pictures or in another
            environment, or damaged states alone; `start` is another network; or the processes do not divide
            the batch's parts or do not agree on where to start.
        NonFiniteLoss: a loss became NaN or infinite.
        ProcessLost: another process ended or did not answer.
        ImportError: TensorBoard is wanted and not installed.
    """
    _keep_freed_memory()
    trainer = Trainer(config, pictures, Path(directory), torch.device(device))
    trainer.credits = credits
    if not trainer.load(inexact) and start is not None:
        trainer.start_from(start)
    log = trainer.log(progress, tensorboard)
    with log, stop_requests() as stop, closing(trainer.upcoming(workers, timeout_s)) as upcoming:
        trainer.run(upcoming, minutes, evaluate, stop, log)
    return TrainingResult(trainer.step, trainer.seconds / 60, trainer.finished, trainer.exported())


class Trainer:
    """One process's share of a training: weights, averaged weights, optimiser, and the step they reached."""

    def __init__(
        self, config: TrainingConfig, pictures: Pictures, directory: Path, device: torch.device
    ) -> None:
        self.config, self.pictures, self.directory, self.device = config, pictures, directory, device
        self.options, self.processes = config.optimisation, Processes.joined()
        if self.options.parts % self.processes.count:
            raise CannotStart(
                f"{self.processes.count} processes do not divide the {self.options.parts} parts of a batch"
            )
        if self.options.precision == "bfloat16" and device.type == "cpu" and not _has_bfloat16():
            # The small preset on one core without: 1.2 s an image in bfloat16, 0.08 s in float32.
            warnings.warn("this processor emulates bfloat16; precision 'float32' is many times faster here")
        self.total = self.options.total_steps(len(pictures))
        self.order = Order(config.seed, len(pictures), self.options.batch, self.options.parts)
        self.own = range(self.processes.rank, self.options.parts, self.processes.count)
        self.files = StateFiles(directory)
        self.step, self.seconds = 0, 0.0
        self.started_from: dict[str, Any] | None = None  # the training of the checkpoint it began from
        self.credits: dict[str, Any] | None = None
        self.damaged, self.damaged_names = 0, dict[str, None]()  # how often met; which, in that order
        self._newly_damaged: list[str] = []

        torch.manual_seed(mixed_seed(config.seed, "weights"))
        model = build(config.model)
        averaged = copy.deepcopy(model)
        self.auxiliary = (
            AuxiliaryHead(config.model.width).to(device) if config.losses.auxiliary_weight else None
        )
        # GroupNorm's backward on a CPU is 4 to 12 times as slow with channels last as without, in bfloat16.
        grouped = config.model.encoder == "hourglass"
        layout = torch.contiguous_format if grouped and device.type == "cpu" else torch.channels_last
        self.model = model.to(device, memory_format=layout)  # type: ignore[call-overload]
        self.averaged = averaged.to(device, memory_format=layout).eval()  # type: ignore[call-overload]
        self.parameters = [*self.model.parameters(), *(self.auxiliary.parameters() if self.auxiliary else ())]
        self.optimiser = _optimiser(self.parameters, config)
        self.arithmetic = step_of(config, device, layout)
        self._losses = (
            torch.compile(self.arithmetic.losses) if self.options.compile else self.arithmetic.losses
        )

    @property
    def finished(self) -> bool:
        return self.step >= self.total

    @property
    def learning_rate(self) -> float:
        return self.options.learning_rate_at(self.step, len(self.pictures))

    def exported(self) -> Network:
        """The weights that are evaluated and stored."""
        return self.averaged if self.options.ema is not None else self.model

    def log(self, progress: bool = False, tensorboard: bool = False) -> TrainingLog:
        """The run's log, less what it says of steps still to come."""
        return TrainingLog(
            self.directory, self.step, self.total,
            silent=self.processes.rank > 0, progress=progress, tensorboard=tensorboard,
        )  # fmt: skip

    def upcoming(self, workers: int = 0, timeout_s: float = TIMEOUT_S) -> Generator[list[Any]]:
        """This process's parts of every step from the next one on, fetched ahead by workers."""
        steps, pinned = range(self.step, self.total), self.device.type == "cuda"
        return fetched(self.pictures, self.order, self.own, steps, workers, pinned, timeout_s)

    def run(
        self,
        upcoming: Iterator[list[Any]],
        minutes: float | None,
        evaluate: Evaluate | None,
        stop: threading.Event,
        log: TrainingLog,
    ) -> None:
        """Steps until the end, the minutes or a request to stop; saves every so often and at the end."""
        began, earlier = time.perf_counter(), self.seconds
        window: dict[str, Tensor] = {}
        steps, busy, damaged, known = 0, 0.0, self.damaged, len(self.damaged_names)
        stopping = self.finished
        while not stopping:
            before = time.perf_counter()
            late = minutes is not None and before - began >= 60 * minutes
            terms, stopping = self.update(next(upcoming), stop.is_set() or late)
            stopping |= self.finished
            window = {name: value + window.get(name, 0) for name, value in terms.items()}
            steps += 1
            logging = stopping or self.step % self.config.log_every == 0
            saving = stopping or self.step % self.config.save_every == 0
            if logging or saving:
                means = self._means(window, steps)
                self._gather_damaged()
            busy += time.perf_counter() - before
            self.seconds = earlier + time.perf_counter() - began
            if logging:
                rate = steps * self.options.batch / busy
                names = [*self.damaged_names][known:]
                facts = {
                    "images_per_second": rate,
                    "learning_rate": self.learning_rate,
                    "damaged_pictures": self.damaged - damaged,
                    "damaged_pictures_total": self.damaged,
                    **({"newly_damaged": names} if names else {}),
                    **means,
                }
                log.write(self.step, self.seconds / 60, facts)
                shown = {"img/s": rate, **{name: means[name] for name in self.arithmetic.shown}}
                log.show(shown | ({"damaged": self.damaged} if self.damaged else {}))
                window = {}
                steps, busy, damaged, known = 0, 0.0, self.damaged, len(self.damaged_names)
            log.advance()
            if saving:
                self.save()
            if evaluate is not None and self._evaluation_due():
                with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
                    numbers = evaluate(self.exported())
                log.write(self.step, self.seconds / 60, {"evaluation": numbers})
                log.say(_sentence(self.step, numbers))

    def update(self, pictures: list[Any], stop: bool) -> tuple[dict[str, Tensor], bool]:
        """One step. Returns the losses and whether any process wants to stop after it."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.learning_rate
        terms = self._losses(self.model, self.auxiliary, self.batch(pictures))
        self.optimiser.zero_grad(set_to_none=True)
        terms["loss"].backward()
        terms = {name: value.detach() for name, value in terms.items()}
        if self.processes.count > 1:
            stop = self._average_over_processes(terms, stop)
        if self.options.clip_norm is not None:
            terms["gradient_norm"] = nn.utils.clip_grad_norm_(self.parameters, self.options.clip_norm)
        self.optimiser.step()
        self.step += 1
        self._newly_damaged += [name for part in pictures for name in getattr(part, "damaged", ())]
        if self.options.ema is not None:
            # The first weights are soon forgotten.
            decay = min(self.options.ema, self.step / (self.step + 20))
            averaged, latest = list(self.averaged.parameters()), list(self.model.parameters())
            with torch.no_grad():
                torch._foreach_lerp_(averaged, latest, 1 - decay)
                for average, value in zip(self.averaged.buffers(), self.model.buffers(), strict=True):
                    average.lerp_(value, 1 - decay)
        return terms, stop

    def batch(self, pictures: list[Any]) -> Any:
        """This process's share of the next batch, of its parts' pictures."""
        seeds = (mixed_seed(self.config.seed, self.step, part) for part in self.own)
        generators = (torch.Generator(self.device).manual_seed(seed) for seed in seeds)
        return self.arithmetic.batch(zip(pictures, generators, strict=True))

    def save(self) -> None:
        """Writes the checkpoint and the state; a crash at any moment leaves a whole one of each behind."""
        if self.processes.rank == 0:
            save_checkpoint(self.exported(), self.directory / "checkpoint", self.facts())
            self.files.write(self.step, self._state())

    def load(self, inexact: bool = False) -> bool:
        """Takes up the directory's state. Returns whether there was one."""
        found = self.files.newest()
        self.processes.agree("state to go on from", found and found.name)
        self.processes.agree("training", self._identity())
        if found is None:
            return False
        self._check(found.state, inexact)
        state = found.state
        self.model.load_state_dict(state["model"])
        self.averaged.load_state_dict(state["averaged"])
        if self.auxiliary:
            self.auxiliary.load_state_dict(state["auxiliary"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.seconds = state["step"], state["seconds"]
        self.started_from = json.loads(state["started_from"])
        self.damaged, self.damaged_names = state["damaged"], dict.fromkeys(state["damaged_names"])
        torch.set_rng_state(state["random"]["cpu"])
        if self.device.type == "cuda" and len(state["random"]["cuda"]):
            torch.cuda.set_rng_state(state["random"]["cuda"], self.device)
        if found.damaged:
            with self.log() as log:
                log.write(self.step, self.seconds / 60, {"damaged_states": found.damaged})
        return True

    def start_from(self, checkpoint: Path | str) -> None:
        """Begins from a checkpoint's weights."""
        weights, info = load_checkpoint(checkpoint, device=self.device, dtype=torch.float32)
        self.processes.agree("starting checkpoint", info["sha256"])
        try:
            transfer(weights, self.model)
        except ValueError as error:
            raise CannotStart(f"{checkpoint}: {error}") from error
        self.averaged.load_state_dict(self.model.state_dict())
        self.started_from = info["training"]

    def facts(self) -> dict[str, Any]:
        """What the checkpoint tells about its training."""
        return {
            "preset": self.config.preset,
            "steps": self.step,
            "total_steps": self.total,
            "images_seen": self.step * self.options.batch,
            "damaged_pictures": self.damaged,
            "minutes": round(self.seconds / 60, 2),
            "processes": self.processes.count,
            "config": asdict(self.config),
            "started_from": self.started_from,
            **({"credits": self.credits} if self.credits else {}),
        }

    def _state(self) -> dict[str, Any]:
        cuda = self.device.type == "cuda"
        return {
            "version": STATE_VERSION,
            "identity": self._identity(),
            "environment": self._environment(),
            "step": self.step,
            "seconds": self.seconds,
            "started_from": json.dumps(self.started_from),
            "damaged": self.damaged,
            "damaged_names": [*self.damaged_names],
            "random": {
                "cpu": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state(self.device) if cuda else torch.empty(0, dtype=torch.uint8),
            },
            **self._weights(),
            "optimiser": self.optimiser.state_dict(),
        }

    def _weights(self) -> dict[str, dict[str, Tensor]]:
        return {
            "model": self.model.state_dict(),
            "averaged": self.averaged.state_dict(),
            "auxiliary": self.auxiliary.state_dict() if self.auxiliary else {},
        }

    def _identity(self) -> str:
        """What determines the weights, as JSON: the data, and what influences them in the configuration."""
        config = asdict(self.config)
        for name in WITHOUT_INFLUENCE:
            del config[name]
        fingerprint = getattr(self.pictures, "fingerprint", None)
        return json.dumps(
            {"config": config, "pictures": {"count": len(self.pictures), "fingerprint": fingerprint}}
        )

    def _environment(self) -> str:
        """What the last bits depend on besides, as JSON."""
        cpu = self.device.type == "cpu"
        return json.dumps(
            {
                "torch": torch.__version__,
                "device": torch.backends.cpu.get_cpu_capability()
                if cpu
                else torch.cuda.get_device_name(self.device),
                "threads": torch.get_num_threads() if cpu else None,
                "processes": self.processes.count,
            }
        )

    def _check(self, state: dict[str, Any], inexact: bool) -> None:
        """Refuses a state that the training cannot go on from exactly."""
        if state["version"] != STATE_VERSION:
            version = f"version {state['version']}, this library reads {STATE_VERSION}"
            raise CannotStart(f"{self.directory} holds a state of {version}")
        missing = sorted(self._state().keys() - state.keys())
        if missing:
            raise CannotStart(f"{self.directory} holds a state without {', '.join(missing)}")
        changed = differences(json.loads(state["identity"]), json.loads(self._identity()))
        for name, tensors in self._weights().items():
            try:
                shapes = {entry: tensor.shape for entry, tensor in tensors.items()}
                check_entries(shapes, state[name], name)
            except ValueError as error:
                changed.append(str(error))
        moved = differences(json.loads(state["environment"]), json.loads(self._environment()))
        if changed:
            raise CannotStart(
                f"{self.directory} holds another training; differing: {'; '.join(changed + moved)}"
            )
        if moved and not inexact and state["step"] < self.total:
            raise CannotStart(
                f"{self.directory} would not go on bit for bit, but equal up to rounding, if told to "
                f"go on inexactly: {'; '.join(moved)}"
            )

    def _gather_damaged(self) -> None:
        """Learns of the pictures that any process could not read."""
        for names in self.processes.gather(self._newly_damaged):
            self.damaged += len(names)
            self.damaged_names |= dict.fromkeys(names)
        self._newly_damaged = []

    def _average_over_processes(self, terms: dict[str, Tensor], stop: bool) -> bool:
        """Averages gradients and losses, and learns of requests to stop, in one message."""
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        losses = torch.stack([*terms.values(), terms["loss"].new_tensor(float(stop))])
        message = torch.cat([*(gradient.flatten() for gradient in gradients), losses])
        self.processes.average(message)
        pieces = message.split([*(gradient.numel() for gradient in gradients), len(losses)])
        for gradient, piece in zip(gradients, pieces, strict=False):
            gradient.copy_(piece.view_as(gradient))
        terms.update(zip(terms, pieces[-1], strict=False))
        return bool(pieces[-1][-1] > 0)

    def _evaluation_due(self) -> bool:
        every = self.config.evaluate_every
        return self.processes.rank == 0 and every > 0 and (self.step % every == 0 or self.finished)

    def _means(self, window: dict[str, Tensor], steps: int) -> dict[str, float]:
        """Mean losses of a window of steps; raises where one is not finite."""
        means = {name: float(value) / steps for name, value in window.items()}
        bad = [name for name, value in means.items() if not math.isfinite(value)]
        if bad:
            raise NonFiniteLoss(f"not finite in the {steps} steps up to step {self.step}: {', '.join(bad)}")
        return means


def _optimiser(parameters: list[nn.Parameter], config: TrainingConfig) -> torch.optim.Optimizer:
    options = config.optimisation
    if options.optimiser == "rmsprop":
        return torch.optim.RMSprop(parameters, lr=options.learning_rate)
    matrices = [parameter for parameter in parameters if parameter.ndim > 1]
    others = [parameter for parameter in parameters if parameter.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": options.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=options.learning_rate, betas=(0.9, 0.98))


def _sentence(step: int, numbers: dict[str, float]) -> str:
    return f"step {step}: " + ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())


def _has_bfloat16() -> bool:
    """Whether PyTorch's convolutions run in bfloat16 on this processor."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _keep_freed_memory() -> None:
    """Lets glibc reuse large freed blocks instead of returning them to the kernel after every step."""
    if platform.libc_ver()[0] != "glibc":
        return
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # the parameters' numbers in malloc.h
    libc = ctypes.CDLL(None)
    libc.mallopt(mmap_max, 0)
    libc.mallopt(trim_threshold, 2**31 - 1)
    libc.mallopt(top_pad, 256 * 2**20)
