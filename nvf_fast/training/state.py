"""A training's state on disk: written whole or not at all, checked when read, the last good one kept."""

from __future__ import annotations

import hashlib
import io
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch

from nvf_fast.files import remove_unfinished, whole_file

PATTERN = "state-*.pt"


class CannotStart(ValueError):
    """The directory, the starting checkpoint or the processes do not fit the training."""


class Found(NamedTuple):
    """A state that was read, the name of its file, and those of newer ones that are damaged."""

    state: dict[str, Any]
    name: str
    damaged: list[str]


class StateFiles:
    """The states in a folder, `state-STEP-SERIAL-DIGEST.pt`; the digest of the contents reveals damage.

    The serial number grows with every write, so that two states of one step have an order. Two states are
    kept: the newest, and the one before it that is known to have been whole.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._last: Path | None = None  # the last one that was written or found whole

    def write(self, step: int, state: dict[str, Any]) -> None:
        """Adds the state of a step, then removes all but the one before."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getbuffer()
        serial = 1 + max((_serial(other) for other in self.directory.glob(PATTERN)), default=0)
        path = self.directory / f"state-{step:09d}-{serial:09d}-{_digest(content)}.pt"
        with whole_file(path) as file:
            file.write(content)
        for other in self.directory.glob(PATTERN):
            if other not in (path, self._last):
                other.unlink()
        remove_unfinished(self.directory)
        self._last = path

    def newest(self) -> Found | None:
        """The newest state that is whole, its tensors on the CPU; None where the folder has none at all.

        Warns of newer ones that are damaged.

        Raises:
            CannotStart: all there are are damaged.
        """
        damaged: list[str] = []
        for path in sorted(self.directory.glob(PATTERN), key=_age, reverse=True):
            content = path.read_bytes()
            if _digest(content) != path.stem.rpartition("-")[2]:
                damaged.append(path.name)
                continue
            if damaged:
                warnings.warn(f"{self.directory}: damaged: {', '.join(damaged)}; going on from {path.name}")
            self._last = path
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            return Found(state, path.name, damaged)
        if damaged:
            raise CannotStart(
                f"{self.directory}: every state is damaged: {', '.join(damaged)}; "
                "bring one back from elsewhere, or remove them to begin anew"
            )
        return None


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """Readable list of what differs between two nested dicts."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        return [
            line
            for key in keys
            for line in differences(old.get(key), new.get(key), f"{name}.{key}".lstrip("."))
        ]
    return [] if old == new else [f"{name} was {old!r}, now {new!r}"]


def _age(path: Path) -> tuple[int, str]:
    """Sorting key of a state, the newest last."""
    return _serial(path), path.name


def _serial(path: Path) -> int:
    """When a state was written, counted in writes; 0 for one without a readable number."""
    parts = path.stem.split("-")
    return int(parts[2]) if len(parts) == 4 and parts[2].isdigit() else 0


def _digest(content: bytes | memoryview) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
