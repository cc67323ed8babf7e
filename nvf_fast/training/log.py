"""The log of a training run: log.jsonl always, a progress bar and TensorBoard on request."""

from __future__ import annotations

import json
import math
import sys
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from nvf_fast.runtime.extras import extra
from nvf_fast.runtime.files import write_file
from nvf_fast.runtime.processes import Processes
from nvf_fast.runtime.progress import progress_bar

if TYPE_CHECKING:
    from nvf_fast.training.trainer import Trainer

LOG_FILE = "log.jsonl"
TENSORBOARD_FOLDER = "tensorboard"


class NonFiniteLossError(RuntimeError):
    """A loss became NaN or infinite; the last saved state precedes it."""


class TrainingLog:
    """The log of a process, silent in all but the first, and the losses since its last line.

    seconds: of the steps since the last line of losses.

    Args:
        folder: of the training, made when missing; lines of later steps in it are dropped.
        step: steps done.
        total: steps of the whole training.
        silent: write and show nothing.
        progress: show a progress bar.
        tensorboard: write for TensorBoard, which the extra `train` installs.

    Raises:
        ImportError: TensorBoard is requested and not installed.
    """

    def __init__(
        self,
        folder: Path,
        step: int,
        total: int,
        *,
        silent: bool = False,
        progress: bool = False,
        tensorboard: bool = False,
    ) -> None:
        self.seconds = 0.0
        self._steps = 0
        self._sums: dict[str, Tensor] = {}
        self._file = None if silent else folder / LOG_FILE
        self._board: Any = None
        if not silent:
            folder.mkdir(parents=True, exist_ok=True)
            forget_after(folder, step)
            if tensorboard:
                self._board = _board(folder / TENSORBOARD_FOLDER, step)
        self._shown = progress and not silent
        self._bar = progress_bar(total=total, initial=step, unit="step", hidden=not self._shown)

    def __enter__(self) -> TrainingLog:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()
        if self._board is not None:
            self._board.close()

    def write(self, step: int, minutes: float, entry: dict[str, Any]) -> None:
        """Add a line: the step, the minutes of training, and a JSON entry, nested or not."""
        if self._file is not None:
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, "minutes": minutes, **entry}) + "\n")
        if self._board is not None:
            for name, value in _numbers(entry):
                self._board.add_scalar(name, value, step)

    def add(self, terms: dict[str, Tensor]) -> None:
        """Add the losses () of a step, and move the progress bar."""
        self._steps += 1
        self._sums = {name: value + self._sums.get(name, 0) for name, value in terms.items()}
        self._bar.update()

    def means(self, step: int) -> dict[str, float]:
        """Mean losses since the last line of losses, up to a step; waits for the device.

        Raises:
            NonFiniteLossError: one is not finite.
        """
        means = {name: float(value) / self._steps for name, value in self._sums.items()}
        bad = [name for name, value in means.items() if not math.isfinite(value)]
        if bad:
            steps = f"the {self._steps} steps up to step {step}"
            raise NonFiniteLossError(f"not finite in {steps}: {', '.join(bad)}")
        return means

    def write_losses(
        self, trainer: Trainer, minutes: float, means: dict[str, float], damaged: DamagedImages
    ) -> None:
        """Add a line of mean losses and damaged images, and show it beside the progress bar."""
        rate = self._steps * trainer.options.batch / self.seconds
        entry = {"images_per_second": rate, "learning_rate": trainer.learning_rate}
        self.write(trainer.step, minutes, entry | damaged.entry() | means)
        shown = {"img/s": rate, **{name: means[name] for name in trainer.objective.shown}}
        self._bar.set_postfix(shown | ({"damaged": damaged.total} if damaged.total else {}), refresh=False)
        self.seconds, self._steps, self._sums = 0.0, 0, {}

    def write_evaluation(self, step: int, minutes: float, scores: dict[str, float]) -> None:
        """Add a line of scores, and show it, above the progress bar if there is one."""
        self.write(step, minutes, {"evaluation": scores})
        if self._shown:
            listed = ", ".join(f"{name} {value:.4g}" for name, value in scores.items())
            self._bar.write(f"step {step}: {listed}", file=sys.stderr)


@dataclass
class DamagedImages:
    """Unreadable images of all processes."""

    total: int = 0  # number of failed reads
    names: dict[str, None] = field(default_factory=dict)  # of the images, in the order of their first failure
    _own: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._logged, self._named = self.total, len(self.names)

    def add(self, parts: Iterable[Any]) -> None:
        """Note the damaged images of this process's parts of a batch."""
        self._own += [name for part in parts for name in getattr(part, "damaged", ())]

    def gather(self, processes: Processes) -> None:
        """Exchange the damaged images noted since the last exchange between processes."""
        for names in processes.gather(self._own):
            self.total += len(names)
            self.names |= dict.fromkeys(names)
        self._own = []

    def entry(self) -> dict[str, Any]:
        """Entries of the log: the failed reads since the last call, and the images that failed first then."""
        names = [*self.names][self._named :]
        entry = {"damaged_images": self.total - self._logged, "damaged_images_total": self.total}
        self._logged, self._named = self.total, len(self.names)
        return entry | ({"newly_damaged": names} if names else {})


def forget_after(folder: Path, step: int) -> None:
    """Drop damaged lines, and those of later steps, which will be repeated after a crash."""
    path = folder / LOG_FILE
    if not path.exists():
        return
    *lines, rest = path.read_bytes().split(b"\n")
    steps = [_step_of(line) for line in lines]
    if None in steps:
        warnings.warn(f"{path}: {steps.count(None)} damaged lines are dropped")
    kept = [line + b"\n" for line, at in zip(lines, steps, strict=True) if at is not None and at <= step]
    if rest or len(kept) < len(lines):
        write_file(path, b"".join(kept))


def _step_of(line: bytes) -> int | None:
    """The step of a line, or None where it is damaged."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return step if isinstance(step, int) else None


def _board(folder: Path, step: int) -> Any:
    with extra("train", "files for TensorBoard need tensorboard"):
        from torch.utils.tensorboard import SummaryWriter
    return SummaryWriter(str(folder), purge_step=step + 1)


def _numbers(entry: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in entry.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            yield f"{prefix}{name}", value
