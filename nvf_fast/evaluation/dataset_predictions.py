"""Predictions on a whole data set with the truth, in memory and as a verified file."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from nvf_fast.evaluation.predictors import Predictions
from nvf_fast.runtime.files import write_file

SETTINGS = {True: "with_hand_scale", False: "without_hand_scale"}
NAMES = ("joints", "scores", "valid", "voters")  # of the arrays of `Predictions`
ENTRY = "nvf_fast"  # one entry of metadata: safetensors writes several in no fixed order


@dataclass(frozen=True)
class Times:
    """Durations measured during a run."""

    # over which `seconds` were summed: all but each process's first batch and the staged ones
    images: int = 0
    # by activity: "read", and predicting in each setting
    seconds: dict[str, float] = field(default_factory=dict)
    staged: int = 0  # images over which `milliseconds` were summed: the last batch of each shard
    # by setting and stage, "SETTING/STAGE"; each stage waits for the device
    milliseconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class DatasetPredictions:
    """Predictions on N samples, in the data set's order."""

    metadata: dict[str, Any]  # JSON values that determine the predictions, including `task`
    ids: tuple[str, ...]  # of the samples
    # the reason an image could not be read, "" where it could; a damaged one has no other entries
    faults: tuple[str, ...]
    truth: np.ndarray  # (N, 21, 3) float32 mm, camera frame; NaN where it is not released
    roots: np.ndarray  # (N, 3) float32 mm, the true wrist; NaN where unknown
    predictions: dict[str, Predictions]  # by setting (`SETTINGS`); not valid where the image is damaged
    times: Times  # measured on the way

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def damaged(self) -> np.ndarray:
        """(N,) bool."""
        return np.array([bool(fault) for fault in self.faults])

    @property
    def released(self) -> np.ndarray:
        """(N,) bool: samples with released joints."""
        return np.isfinite(self.truth).all((1, 2))

    @classmethod
    def joined(cls, parts: Sequence[DatasetPredictions]) -> DatasetPredictions:
        """The parts of one run, one after another."""
        times = [part.times for part in parts]
        return cls(
            parts[0].metadata,
            tuple(id for part in parts for id in part.ids),
            tuple(fault for part in parts for fault in part.faults),
            np.concatenate([part.truth for part in parts]),
            np.concatenate([part.roots for part in parts]),
            {
                setting: Predictions(
                    *(np.concatenate([getattr(part.predictions[setting], name) for part in parts])
                      for name in NAMES)
                )
                for setting in parts[0].predictions
            },
            Times(
                sum(each.images for each in times),
                _summed([each.seconds for each in times]),
                sum(each.staged for each in times),
                _summed([each.milliseconds for each in times]),
            ),
        )  # fmt: skip

    def to_bytes(self, with_times: bool = True) -> bytes:
        """A safetensors file that holds its own checksum."""
        arrays = {"truth": self.truth, "roots": self.roots}
        for setting, predictions in self.predictions.items():
            arrays |= {f"{setting}/{name}": getattr(predictions, name) for name in NAMES}
        arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        known: dict[str, Any] = {name: getattr(self, name) for name in ("metadata", "ids", "faults")}
        known["times"] = asdict(self.times if with_times else Times())
        entry = json.dumps(known | {"sha256": _digest(known, arrays)})
        return safetensors.numpy.save(arrays, {ENTRY: entry})

    @classmethod
    def from_bytes(cls, content: bytes) -> DatasetPredictions:
        """Read the result of `to_bytes`, whose arrays are "truth", "roots" and "SETTING/NAME".

        Raises:
            ValueError: the content is damaged or does not hold predictions.
        """
        try:
            header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
            known = json.loads(header["__metadata__"][ENTRY])
            sha256 = known.pop("sha256")
            arrays = safetensors.numpy.load(content)
        except (
            safetensors.SafetensorError, KeyError, TypeError, ValueError, AttributeError, RecursionError,
        ) as error:  # fmt: skip
            raise ValueError(f"not a complete file of predictions ({error})") from error
        if _digest(known, arrays) != sha256:
            raise ValueError("the content does not match its sha256")
        predictions = {
            setting: Predictions(*(arrays[f"{setting}/{name}"] for name in NAMES))
            for setting in SETTINGS.values()
            if f"{setting}/joints" in arrays
        }
        ids, faults, times = tuple(known["ids"]), tuple(known["faults"]), Times(**known["times"])
        return cls(known["metadata"], ids, faults, arrays["truth"], arrays["roots"], predictions, times)


def save_predictions(path: Path, predictions: DatasetPredictions, with_times: bool = True) -> None:
    """Write predictions as safetensors, atomically; without times, equal predictions give equal bytes."""
    write_file(path, predictions.to_bytes(with_times))


def load_predictions(path: Path) -> DatasetPredictions:
    """Read a file of `save_predictions`.

    Raises:
        ValueError: the file is damaged or does not hold predictions.
        OSError: it cannot be read.
    """
    try:
        return DatasetPredictions.from_bytes(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _digest(known: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode())
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        digest.update(arrays[name].tobytes())
    return digest.hexdigest()


def _summed(parts: Sequence[dict[str, float]]) -> dict[str, float]:
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part)
    return dict(total)
