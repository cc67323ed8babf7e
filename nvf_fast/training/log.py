"""What a training tells while it runs: log.jsonl always, a progress bar and TensorBoard where asked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nvf_fast.files import whole_file

LOG_FILE = "log.jsonl"
TENSORBOARD_FOLDER = "tensorboard"


class TrainingLog:
    """The first process's log; those of the others keep silent.

    Args:
        directory: the run's folder, made when missing.
        step: where the training stands.
        total: steps of the whole training.
        silent: whether to write and show nothing.
        progress: whether to show a progress bar.
        tensorboard: whether to write for TensorBoard, which the extra `train` installs.

    Raises:
        ImportError: TensorBoard is wanted and not installed.
    """

    def __init__(
        self, directory: Path, step: int, total: int, *, silent: bool, progress: bool, tensorboard: bool
    ) -> None:
        self._file = None if silent else directory / LOG_FILE
        self._board: Any = None
        if not silent:
            directory.mkdir(parents=True, exist_ok=True)
            forget_after(directory, step)
            if tensorboard:
                self._board = _board(directory / TENSORBOARD_FOLDER, step)
        hidden = silent or not progress
        self._bar = tqdm(total=total, initial=step, unit="step", disable=hidden, dynamic_ncols=True)

    def __enter__(self) -> TrainingLog:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()
        if self._board is not None:
            self._board.close()

    def write(self, step: int, minutes: float, facts: dict[str, Any]) -> None:
        """Adds a line: the step, the minutes of training, and facts that JSON holds, nested or not."""
        if self._file is not None:
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, "minutes": minutes, **facts}) + "\n")
        if self._board is not None:
            for name, value in _numbers(facts):
                self._board.add_scalar(name, value, step)

    def show(self, facts: dict[str, float]) -> None:
        """Puts numbers beside the progress bar."""
        self._bar.set_postfix(facts, refresh=False)

    def say(self, sentence: str) -> None:
        """A line above the progress bar."""
        if not self._bar.disable:
            self._bar.write(sentence)

    def advance(self) -> None:
        """One more step is done."""
        self._bar.update()


def forget_after(directory: Path, step: int) -> None:
    """Drops lines of later steps, which a crash left behind and which come again, and a line it tore."""
    path = directory / LOG_FILE
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
    if kept != lines:
        with whole_file(path) as file:
            file.write("".join(kept).encode())


def _board(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError("TensorBoard is not installed: pip install 'nvf-fast[train]'") from error
    return SummaryWriter(str(folder), purge_step=step + 1)


def _numbers(facts: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in facts.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            yield f"{prefix}{name}", value
