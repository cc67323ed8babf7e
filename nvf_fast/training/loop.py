"""The training loop: deterministic, resumable, on one process or several."""

from __future__ import annotations

import ctypes
import hashlib
import json
import math
import os
import platform
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
import torch.distributed
from torch import Tensor, nn
from tqdm import tqdm

from nvf_fast.checkpoint import load_checkpoint, save_checkpoint
from nvf_fast.data.hand import Hands
from nvf_fast.model import NVF
from nvf_fast.training.augmentation import augment
from nvf_fast.training.config import TrainingConfig
from nvf_fast.training.losses import AuxiliaryHead, Targets, field_losses, mean_terms
from nvf_fast.training.points import sample_points

STATE_VERSION = 1

Evaluate = Callable[[NVF], dict[str, float]]
SHOWN = ("loss", "sdf", "weight", "direction")  # of the losses, beside the progress bar
# Fields of the configuration that may change when a training goes on.
WITHOUT_INFLUENCE = ("log_every", "save_every", "evaluate_every", "evaluation_images")


class HandPictures(Protocol):
    """What the loop asks of a data set; `nvf_fast.data.synthetic.SyntheticHands` is one."""

    def __len__(self) -> int: ...

    def images(self, indices: Tensor) -> Tensor: ...

    def hands(self, indices: Tensor) -> Hands: ...


@dataclass(frozen=True)
class TrainingResult:
    """Where `train` left off: steps and minutes so far, over all its calls, and whether that was the end."""

    step: int
    minutes: float
    finished: bool
    model: NVF


@dataclass(frozen=True)
class Batch:
    """What one step works on.

    images (B, 3, S, S) normalised; hand_scale (B,) mm to feed; points (B, N, 3) mm and their labels; joints
    (B, 21, 3) mm; true_scale (B,) mm.
    """

    images: Tensor
    hand_scale: Tensor
    points: Tensor
    targets: Targets
    joints: Tensor
    true_scale: Tensor


class CannotStart(ValueError):
    """The directory, the starting checkpoint or the processes do not fit the configuration."""


class NonFiniteLoss(RuntimeError):
    """A loss became NaN or infinite; the last saved state is from before."""


def train(
    config: TrainingConfig,
    dataset: HandPictures,
    directory: Path | str,
    *,
    minutes: float | None = None,
    evaluate: Evaluate | None = None,
    start: Path | str | None = None,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> TrainingResult:
    """Trains a network, or goes on where an earlier call in the same directory stopped.

    Every random number is drawn from (config.seed, step, part), so a training that is stopped and resumed
    equals one that is not, bit for bit, on the same machine. The directory receives `state.pt` (and the one
    before it), `log.jsonl` and `checkpoint/`. SIGTERM and Ctrl-C save and return. Where torch.distributed is
    initialised, its processes share each batch.

    Args:
        config: every number of the training.
        dataset: pictures of `config.model.input_size` px and their hands.
        directory: the run's folder, made when missing.
        minutes: wall-clock minutes after which this call saves and returns; None runs to the end.
        evaluate: called with the exported network every `config.evaluate_every` steps; its numbers are kept.
        start: checkpoint whose weights the training begins from; ignored when resuming.
        device: where to train.
        progress: show a progress bar.

    Returns:
        Steps and minutes done, and the exported model.

    Raises:
        CannotStart: the directory holds a training of another configuration, `start` another network, or the
            processes do not divide the batch's parts.
        NonFiniteLoss: a loss became NaN or infinite.
    """
    _keep_freed_memory()
    trainer = Trainer(config, dataset, Path(directory), torch.device(device))
    if not trainer.load() and start is not None:
        trainer.start_from(start)
    with _stop_requests() as stop:
        trainer.run(minutes, evaluate, stop, progress)
    return TrainingResult(trainer.step, trainer.seconds / 60, trainer.finished, trainer.exported())


class Trainer:
    """One process's share of a training: weights, averaged weights, optimiser, and the step they reached."""

    def __init__(
        self, config: TrainingConfig, dataset: HandPictures, directory: Path, device: torch.device
    ) -> None:
        self.config, self.dataset, self.directory, self.device = config, dataset, directory, device
        self.options = config.optimisation
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        self.rank = torch.distributed.get_rank() if distributed else 0
        self.processes = torch.distributed.get_world_size() if distributed else 1
        if self.options.parts % self.processes:
            raise CannotStart(
                f"{self.processes} processes do not divide the {self.options.parts} parts of a batch"
            )
        if self.options.precision == "bfloat16" and device.type == "cpu" and not _has_bfloat16():
            # The small preset on one core without: 1.2 s an image in bfloat16, 0.08 s in float32.
            warnings.warn("this processor emulates bfloat16; precision 'float32' is many times faster here")
        self.total = self.options.total_steps(len(dataset))
        self.step, self.seconds = 0, 0.0
        self.started_from: dict[str, Any] | None = None  # the training of the checkpoint it began from

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_mixed_seed(config.seed, "weights"))
            model = NVF(config.model)
            averaged = NVF(config.model)
            self.auxiliary = (
                AuxiliaryHead(config.model.width).to(device) if config.losses.auxiliary_weight else None
            )
        averaged.load_state_dict(model.state_dict())
        # GroupNorm's backward on a CPU is 4 to 12 times as slow with channels last as without, in bfloat16.
        self.layout = torch.contiguous_format if device.type == "cpu" else torch.channels_last
        self.model = model.to(device, memory_format=self.layout)  # type: ignore[call-overload]
        self.averaged = averaged.to(device, memory_format=self.layout).eval()  # type: ignore[call-overload]
        self.parameters = [*self.model.parameters(), *(self.auxiliary.parameters() if self.auxiliary else ())]
        self.optimiser = _optimiser(self.parameters, config)
        self._order: tuple[int, Tensor] | None = None

    @property
    def finished(self) -> bool:
        return self.step >= self.total

    @property
    def learning_rate(self) -> float:
        return self.options.learning_rate_at(self.step, len(self.dataset))

    def exported(self) -> NVF:
        """The weights that are evaluated and stored."""
        return self.averaged if self.options.ema is not None else self.model

    def run(
        self, minutes: float | None, evaluate: Evaluate | None, stop: threading.Event, progress: bool
    ) -> None:
        """Steps until the end, the minutes or a request to stop; saves every so often and at the end."""
        began, earlier = time.perf_counter(), self.seconds
        window: dict[str, Tensor] = {}
        steps, busy = 0, 0.0
        stopping = self.finished
        hidden = not progress or self.rank > 0
        with tqdm(
            total=self.total, initial=self.step, unit="step", disable=hidden, dynamic_ncols=True
        ) as bar:
            while not stopping:
                before = time.perf_counter()
                late = minutes is not None and before - began >= 60 * minutes
                terms, stopping = self.update(stop.is_set() or late)
                stopping |= self.finished
                window = {name: value + window.get(name, 0) for name, value in terms.items()}
                steps += 1
                self.seconds = earlier + time.perf_counter() - began
                if self.step % self.config.log_every == 0 or stopping:
                    means = self._means(window, steps)
                    busy += time.perf_counter() - before
                    rate = steps * self.options.batch / busy
                    self._write_log({"images_per_second": rate, "learning_rate": self.learning_rate, **means})
                    bar.set_postfix({"img/s": rate, **{name: means[name] for name in SHOWN}}, refresh=False)
                    window, steps, busy = {}, 0, 0.0
                else:
                    busy += time.perf_counter() - before
                bar.update()
                if stopping or self.step % self.config.save_every == 0:
                    self._means(window, steps)
                    self.save()
                if evaluate is not None and self._evaluation_due():
                    numbers = evaluate(self.exported())
                    self._write_log({"evaluation": numbers})
                    if not hidden:
                        bar.write(_sentence(self.step, numbers))

    def update(self, stop: bool) -> tuple[dict[str, Tensor], bool]:
        """One step. Returns the losses and whether any process wants to stop after it."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.learning_rate
        terms = self.losses()
        self.optimiser.zero_grad(set_to_none=True)
        terms["loss"].backward()
        terms = {name: value.detach() for name, value in terms.items()}
        if self.processes > 1:
            stop = self._average_over_processes(terms, stop)
        if self.options.clip_norm is not None:
            terms["gradient_norm"] = nn.utils.clip_grad_norm_(self.parameters, self.options.clip_norm)
        self.optimiser.step()
        self.step += 1
        if self.options.ema is not None:
            decay = min(
                self.options.ema, self.step / (self.step + 20)
            )  # the first weights are soon forgotten
            averaged, latest = list(self.averaged.parameters()), list(self.model.parameters())
            with torch.no_grad():
                torch._foreach_lerp_(averaged, latest, 1 - decay)
        return terms, stop

    def losses(self) -> dict[str, Tensor]:
        """The losses of this process's share of the next batch."""
        batch, config = self.batch(), self.config.losses
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.precision == "bfloat16"):
            every_features = self.model.encode_all(batch.images)
        intrinsics = self.model.reference_intrinsics
        scale = batch.hand_scale if self.config.model.hand_scale else None
        answers = [self.model.query(features, batch.points, intrinsics, scale) for features in every_features]
        terms = mean_terms([field_losses(answer, batch.targets, config) for answer in answers])
        if self.auxiliary is not None:
            extra = self.auxiliary.losses(every_features[-1], batch.joints, batch.true_scale)
            loss = terms["loss"] + config.auxiliary_weight * torch.stack([*extra.values()]).sum()
            terms = {**terms, **extra, "loss": loss}
        return terms

    @torch.no_grad()
    def batch(self) -> Batch:
        """This process's share of the next batch."""
        indices = self._indices().chunk(self.options.parts)
        parts = []
        for part in range(self.rank, self.options.parts, self.processes):
            generator = torch.Generator(self.device).manual_seed(
                _mixed_seed(self.config.seed, self.step, part)
            )
            images = self.dataset.images(indices[part]).to(self.device)
            hands = self.dataset.hands(indices[part]).to(self.device)
            images, hands, hand_scale = augment(images, hands, self.config.augmentation, generator)
            points, sdf = sample_points(hands, self.config.sampling, generator)
            parts.append((images, hand_scale, points, sdf, hands.joints, hands.hand_scale))
        images, hand_scale, points, sdf, joints, true_scale = (
            torch.cat(each) for each in zip(*parts, strict=True)
        )
        images = images.contiguous(memory_format=self.layout)
        targets = Targets.build(points, sdf, joints, self.config.losses)
        return Batch(images, hand_scale, points, targets, joints, true_scale)

    def save(self) -> None:
        """Writes the state and the checkpoint; a crash at any moment leaves a whole state behind."""
        if self.rank > 0:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        state = {
            "version": STATE_VERSION,
            "config": self._determining(),
            "step": self.step,
            "seconds": self.seconds,
            "started_from": json.dumps(self.started_from),
            "model": self.model.state_dict(),
            "averaged": self.averaged.state_dict(),
            "auxiliary": self.auxiliary.state_dict() if self.auxiliary else {},
            "optimiser": self.optimiser.state_dict(),
        }
        path = self._state_path()
        temporary = path.with_suffix(".tmp")
        with open(temporary, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            path.replace(path.with_suffix(".previous.pt"))
        temporary.replace(path)
        save_checkpoint(self.exported(), self.directory / "checkpoint", self.facts())

    def load(self) -> bool:
        """Takes up the directory's state. Returns whether there was one."""
        path = self._state_path()
        if not path.exists():
            path = path.with_suffix(".previous.pt")  # stopped between the two renames of `save`
        if not path.exists():
            return False
        state = torch.load(path, map_location=self.device, weights_only=True)
        if state["version"] != STATE_VERSION:
            raise CannotStart(f"{path} has version {state['version']}, this library reads {STATE_VERSION}")
        changed = _differences(json.loads(state["config"]), json.loads(self._determining()))
        if changed:
            raise CannotStart(f"{self.directory} holds another training; differing: " + "; ".join(changed))
        self.model.load_state_dict(state["model"])
        self.averaged.load_state_dict(state["averaged"])
        if self.auxiliary:
            self.auxiliary.load_state_dict(state["auxiliary"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.seconds = state["step"], state["seconds"]
        self.started_from = json.loads(state["started_from"])
        self._forget_later_log()
        return True

    def start_from(self, checkpoint: Path | str) -> None:
        """Begins from a checkpoint's weights."""
        weights, info = load_checkpoint(checkpoint, device=self.device, dtype=torch.float32)
        if replace(weights.config, scale_optional=False) != replace(self.config.model, scale_optional=False):
            raise CannotStart(f"{checkpoint} holds {weights.config}, the training wants {self.config.model}")
        self.model.load_state_dict(weights.state_dict())
        self.averaged.load_state_dict(weights.state_dict())
        self.started_from = info["training"]

    def facts(self) -> dict[str, Any]:
        """What the checkpoint tells about its training."""
        return {
            "preset": self.config.preset,
            "steps": self.step,
            "total_steps": self.total,
            "images_seen": self.step * self.options.batch,
            "minutes": round(self.seconds / 60, 2),
            "processes": self.processes,
            "config": asdict(self.config),
            "started_from": self.started_from,
        }

    def _determining(self) -> str:
        """The configuration as JSON, less what has no influence on the weights."""
        facts = asdict(self.config)
        return json.dumps({name: value for name, value in facts.items() if name not in WITHOUT_INFLUENCE})

    def _state_path(self) -> Path:
        return self.directory / "state.pt"

    def _indices(self) -> Tensor:
        """The pictures of the next batch: each epoch is a permutation, its incomplete last batch left out."""
        per_epoch = self.options.steps_per_epoch(len(self.dataset))
        epoch, position = divmod(self.step, per_epoch)
        if self._order is None or self._order[0] != epoch:
            generator = torch.Generator().manual_seed(_mixed_seed(self.config.seed, "order", epoch))
            self._order = epoch, torch.randperm(len(self.dataset), generator=generator)
        return self._order[1][position * self.options.batch : (position + 1) * self.options.batch]

    def _average_over_processes(self, terms: dict[str, Tensor], stop: bool) -> bool:
        """Averages gradients and losses, and learns of requests to stop, in one message."""
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        losses = torch.stack([*terms.values(), terms["loss"].new_tensor(float(stop))])
        message = torch.cat([*(gradient.flatten() for gradient in gradients), losses])
        torch.distributed.all_reduce(message)
        message /= self.processes
        pieces = message.split([*(gradient.numel() for gradient in gradients), len(losses)])
        for gradient, piece in zip(gradients, pieces, strict=False):
            gradient.copy_(piece.view_as(gradient))
        terms.update(zip(terms, pieces[-1], strict=False))
        return bool(pieces[-1][-1] > 0)

    def _evaluation_due(self) -> bool:
        every = self.config.evaluate_every
        return self.rank == 0 and every > 0 and (self.step % every == 0 or self.finished)

    def _means(self, window: dict[str, Tensor], steps: int) -> dict[str, float]:
        """Mean losses of a window of steps; raises where one is not finite."""
        means = {name: float(value) / steps for name, value in window.items()}
        bad = [name for name, value in means.items() if not math.isfinite(value)]
        if bad:
            raise NonFiniteLoss(f"not finite in the {steps} steps up to step {self.step}: {', '.join(bad)}")
        return means

    def _forget_later_log(self) -> None:
        """Drops lines of steps after the state, which a crash left behind and which come again."""
        log = self.directory / "log.jsonl"
        if self.rank == 0 and log.exists():
            lines = [line for line in log.read_text().splitlines() if json.loads(line)["step"] <= self.step]
            log.write_text("".join(line + "\n" for line in lines))

    def _write_log(self, facts: dict[str, Any]) -> None:
        if self.rank == 0:
            self.directory.mkdir(parents=True, exist_ok=True)
            with open(self.directory / "log.jsonl", "a") as file:
                file.write(json.dumps({"step": self.step, "minutes": self.seconds / 60, **facts}) + "\n")


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


def _mixed_seed(*facts: int | str) -> int:
    """A 63-bit seed from several numbers, unrelated for unlike ones."""
    return int.from_bytes(hashlib.sha256(repr(facts).encode()).digest()[:8], "big") >> 1


def _differences(old: Any, new: Any, name: str = "") -> list[str]:
    """Readable list of the fields in which two configurations differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        return [
            line
            for key in keys
            for line in _differences(old.get(key), new.get(key), f"{name}.{key}".lstrip("."))
        ]
    return [] if old == new else [f"{name} was {old!r}, now {new!r}"]


@contextmanager
def _stop_requests() -> Iterator[threading.Event]:
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
