"""A predictor over a data set, in shards: by one process or several, and resumable."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
import torch.distributed
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from nvf_fast.data.sample import DamagedPicture, HandDataset, HandSample
from nvf_fast.evaluation.predictors import Predictions, Predictor
from nvf_fast.files import whole_file

SETTINGS = {True: "with_hand_scale", False: "without_hand_scale"}
POLL_SECONDS = 0.2
LOG = logging.getLogger("nvf_fast")


class AnotherRun(ValueError):
    """The folder holds answers of another checkpoint, data set or option."""


class MissingShards(TimeoutError):
    """Other processes did not write their shards in time; the same command goes on."""


@dataclass(frozen=True)
class Options:
    """How a data set is gone through. Only `batch` and `shard` bear upon the answers, in their last bits.

    Attributes:
        batch: samples asked at once.
        shard: samples of one shard, a multiple of batch.
        workers: processes that read pictures ahead; 0 reads in turn with asking.
        rank: of this process among `processes`; process r takes shards r, r + processes and so on.
        processes: how many share the work; more than one need a folder in common.
        wait_seconds: how long process 0 waits for the shards of the others after its own.
        progress: whether process 0 shows a bar.
    """

    batch: int = 16
    shard: int = 128
    workers: int = 0
    rank: int = 0
    processes: int = 1
    wait_seconds: float = 1800.0
    progress: bool = False

    def __post_init__(self) -> None:
        if self.batch < 1 or self.shard < 1 or self.shard % self.batch:
            raise ValueError(
                f"shard must be a positive multiple of batch, got {self.shard} and {self.batch} samples"
            )
        if not 0 <= self.rank < self.processes:
            raise ValueError(f"rank must lie in [0, {self.processes}), got {self.rank}")


@dataclass(frozen=True)
class Times:
    """What was measured on the way.

    Attributes:
        pictures: over which `seconds` were summed: all but each process's first batch and the staged ones.
        seconds: by what was done: "read", and asking in each setting.
        staged: pictures over which `milliseconds` were summed: the last batch of each shard.
        milliseconds: by setting and stage, "SETTING/STAGE"; each stage waits for the device.
    """

    pictures: int
    seconds: dict[str, float]
    staged: int
    milliseconds: dict[str, float]


NO_TIMES = Times(0, {}, 0, {})


@dataclass(frozen=True)
class Answers:
    """A predictor's answers about N samples, in the data set's order, and what is known of them.

    Attributes:
        facts: what the answers depend on, `task` among it, as JSON holds it.
        ids: of the samples.
        faults: why a picture could not be read, "" where it could; nothing else is known of a damaged one.
        truth: (N, 21, 3) float32 mm, camera frame; NaN where it is not released.
        roots: (N, 3) float32 mm, the true wrist; NaN where unknown.
        predictions: by setting (`SETTINGS`); not valid where the picture is damaged.
        times: measured on the way.
    """

    facts: dict[str, Any]
    ids: tuple[str, ...]
    faults: tuple[str, ...]
    truth: np.ndarray
    roots: np.ndarray
    predictions: dict[str, Predictions]
    times: Times

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def damaged(self) -> np.ndarray:
        """(N,) bool."""
        return np.array([bool(fault) for fault in self.faults])

    @property
    def released(self) -> np.ndarray:
        """(N,) bool: whose joints are known."""
        return np.isfinite(self.truth).all((1, 2))

    @classmethod
    def joined(cls, parts: Sequence[Answers]) -> Answers:
        """The parts of one run, one after another."""
        times = [part.times for part in parts]
        return cls(
            facts=parts[0].facts,
            ids=tuple(id for part in parts for id in part.ids),
            faults=tuple(fault for part in parts for fault in part.faults),
            truth=np.concatenate([part.truth for part in parts]),
            roots=np.concatenate([part.roots for part in parts]),
            predictions={
                setting: Predictions(
                    **{
                        name: np.concatenate([getattr(part.predictions[setting], name) for part in parts])
                        for name in vars(of_first)
                    }
                )
                for setting, of_first in parts[0].predictions.items()
            },
            times=Times(
                sum(each.pictures for each in times),
                _summed([each.seconds for each in times]),
                sum(each.staged for each in times),
                _summed([each.milliseconds for each in times]),
            ),
        )


def predict(
    predictor: Predictor,
    dataset: HandDataset,
    folder: Path | None = None,
    facts: Mapping[str, Any] | None = None,
    options: Options | None = None,
) -> Answers | None:
    """Asks the predictor about every sample, with the hand scale and without it where both can be.

    A damaged picture is skipped and remembered. With a folder each shard becomes a file of it as soon as it
    is done, and a later call with the same facts goes on from there. The answers do not depend on the number
    of processes (their threads being equal).

    Args:
        predictor: what is asked.
        dataset: about what.
        folder: of the shards; None keeps them in memory.
        facts: what else the answers depend on, such as the checkpoint's sha256; as JSON holds it.
        options: see `Options`; the defaults when None.

    Returns:
        All answers in process 0, None in the others.

    Raises:
        AnotherRun: the folder holds shards of other facts; the message says which.
        MissingShards: the message names those that other processes did not write in time.
        ValueError: several processes without a folder, an empty data set, or a hand scale is needed that the
            data set lacks.
    """
    options = options or Options()
    if folder is None and options.processes > 1:
        raise ValueError(f"{options.processes} processes need a folder in common, got none")
    if len(dataset) == 0:
        raise ValueError(f"{dataset.name}, {dataset.split}: the data set is empty")
    settings = settings_for(predictor, dataset)
    known = _facts(predictor, dataset, settings, options, facts)
    shards = _Shards(folder, len(dataset), options, known)
    done = shards.read()
    own = range(options.rank, shards.count, options.processes)
    spans = {index: shards.span(index) for index in own if index not in done}
    bar = tqdm(
        total=sum(map(len, spans.values())), unit="img", desc="evaluating", dynamic_ncols=True,
        disable=not (options.progress and options.rank == 0),
    )  # fmt: skip
    with bar:
        for index, part in _answered(predictor, dataset, spans, settings, options):
            part = replace(part, facts=known)
            shards.write(index, part)
            done[index] = part
            bar.update(len(part))
    if options.processes > 1 and torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
    if options.rank > 0:
        return None
    done |= shards.wait_for([index for index in range(shards.count) if index not in done])
    return Answers.joined([done[index] for index in range(shards.count)])


def settings_for(predictor: Predictor, dataset: HandDataset) -> tuple[bool, ...]:
    """The values of `use_scale` that the predictor takes and the data set has hand scales for.

    Raises:
        ValueError: none is left, or no picture can be read.
    """
    rows = map(partial(_read, dataset), range(len(dataset)))
    first = next((row for row in rows if isinstance(row, HandSample)), None)
    if first is None:
        raise ValueError(f"{dataset.name}, {dataset.split}: none of {len(dataset)} pictures can be read")
    if first.hand_scale is not None or True not in predictor.scale_choices:
        return predictor.scale_choices
    if False not in predictor.scale_choices:
        raise ValueError(
            f"{dataset.name}, {dataset.split} has no hand scales, and this network was trained with the hand "
            "scale always given"
        )
    LOG.warning(
        "%s, %s has no hand scales: evaluating without the hand scale only", dataset.name, dataset.split
    )
    return (False,)


def save_answers(path: Path, answers: Answers, with_times: bool = True) -> None:
    """Writes answers as safetensors, whole or not at all; without the times equal answers are equal bytes."""
    tensors = {"truth": answers.truth, "roots": answers.roots}
    for setting, predictions in answers.predictions.items():
        tensors |= {f"{setting}/{name}": array for name, array in vars(predictions).items()}
    known: dict[str, Any] = {name: getattr(answers, name) for name in ("facts", "ids", "faults")}
    known["times"] = asdict(answers.times if with_times else NO_TIMES)
    tensors = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    # One entry: safetensors writes several in no fixed order.
    entry = {"nvf_fast": json.dumps(known | {"sha256": _digest(known, tensors)})}
    with whole_file(path) as file:
        file.write(safetensors.numpy.save(tensors, entry))


def load_answers(path: Path) -> Answers:
    """Reads what `save_answers` wrote.

    Raises:
        ValueError: the file is damaged, or none of these.
        OSError: it cannot be read.
    """
    try:
        with safetensors.safe_open(path, "numpy") as file:
            known = json.loads((file.metadata() or {})["nvf_fast"])
            sha256 = known.pop("sha256")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{path}: no whole file of answers ({error})") from error
    if _digest(known, tensors) != sha256:
        raise ValueError(f"{path}: its content does not have the sha256 that it was written with")
    settings = dict.fromkeys(name.split("/")[0] for name in tensors if "/" in name)
    return Answers(
        facts=known["facts"],
        ids=tuple(known["ids"]),
        faults=tuple(known["faults"]),
        truth=tensors["truth"],
        roots=tensors["roots"],
        predictions={
            setting: Predictions(
                **{name: tensors[f"{setting}/{name}"] for name in Predictions.__dataclass_fields__}
            )
            for setting in SETTINGS.values()
            if setting in settings
        },
        times=Times(**known["times"]),
    )


class _Shards:
    """The shards of a run, as files of a folder where there is one."""

    def __init__(self, folder: Path | None, samples: int, options: Options, facts: dict[str, Any]) -> None:
        self.folder, self.samples, self.options, self.facts = folder, samples, options, facts
        self.count = -(-samples // options.shard)

    def span(self, index: int) -> range:
        """The samples of a shard."""
        return range(index * self.options.shard, min((index + 1) * self.options.shard, self.samples))

    def read(self) -> dict[int, Answers]:
        """What is there already; damaged files are reported and count as missing."""
        found = {}
        for index in range(self.count if self.folder else 0):
            try:
                part = self._load(index)
            except ValueError as error:
                if isinstance(error, AnotherRun):
                    raise
                LOG.warning("%s; the shard is done again", error)
                continue
            if part is not None:
                found[index] = part
        return found

    def write(self, index: int, part: Answers) -> None:
        if self.folder:
            save_answers(self._path(index), part)

    def wait_for(self, indices: Sequence[int]) -> dict[int, Answers]:
        """Shards that other processes write."""
        found: dict[int, Answers] = {}
        until = time.monotonic() + self.options.wait_seconds
        while missing := [index for index in indices if index not in found]:
            # A damaged file is one that its process has not replaced yet.
            found |= {index: part for index in missing if (part := self._load(index, damaged_too=False))}
            if len(found) < len(indices) and time.monotonic() > until:
                names = ", ".join(self._path(index).name for index in indices if index not in found)
                raise MissingShards(
                    f"after {self.options.wait_seconds:g} s other processes have not written {names} in "
                    f"{self.folder}; the same command goes on where they stopped"
                )
            if len(found) < len(indices):
                time.sleep(POLL_SECONDS)
        return found

    def _load(self, index: int, damaged_too: bool = True) -> Answers | None:
        path = self._path(index)
        try:
            part = load_answers(path)
        except FileNotFoundError:
            return None
        except ValueError:
            if damaged_too:
                raise
            return None
        there, now = part.facts, self.facts
        if there != now:
            differences = "; ".join(
                f"{name}: {there.get(name)!r} there, {now.get(name)!r} now"
                for name in {**there, **now}
                if there.get(name) != now.get(name)
            )
            raise AnotherRun(f"{path} is of another run ({differences}): give another folder, or remove it")
        return part

    def _path(self, index: int) -> Path:
        assert self.folder is not None
        return self.folder / f"shard-{index:05d}-of-{self.count:05d}.safetensors"


class _Readable:
    """The data set as `DataLoader` takes it: a damaged picture is its message."""

    def __init__(self, dataset: HandDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> HandSample | str:
        return _read(self.dataset, index)


def _read(dataset: HandDataset, index: int) -> HandSample | str:
    try:
        return replace(dataset[index], surface=None, vertices=None)  # what no predictor sees
    except DamagedPicture as error:
        return str(error) or "damaged"


def _answered(
    predictor: Predictor,
    dataset: HandDataset,
    spans: Mapping[int, range],
    settings: Sequence[bool],
    options: Options,
) -> Iterator[tuple[int, Answers]]:
    """Shards and their answers."""
    batches = {
        index: [span[start : start + options.batch] for start in range(0, len(span), options.batch)]
        for index, span in spans.items()
    }
    order = [list(batch) for of_shard in batches.values() for batch in of_shard]
    readable: Any = _Readable(dataset)
    loader = iter(
        DataLoader(readable, batch_sampler=order, collate_fn=list, num_workers=options.workers)
        if order
        else ()
    )
    first = True  # the first call also sets up libraries
    for index, of_shard in batches.items():
        parts: list[Answers] = []
        for batch in of_shard:
            begun = time.perf_counter()
            rows: list[HandSample | str] = next(loader)
            seconds = time.perf_counter() - begun
            staged = batch is of_shard[-1]
            rated = not first and not staged
            parts.append(_asked(predictor, batch, rows, settings, seconds, staged, rated))
            first = False
        yield index, Answers.joined(parts)


def _asked(
    predictor: Predictor,
    indices: range,
    rows: list[HandSample | str],
    settings: Sequence[bool],
    read_seconds: float,
    staged: bool,
    rated: bool,
) -> Answers:
    """The answers about one batch; `staged` measures its stages, `rated` its seconds."""
    samples = [row for row in rows if isinstance(row, HandSample)]
    readable = np.array([isinstance(row, HandSample) for row in rows])
    seconds: dict[str, float] = {"read": read_seconds}
    milliseconds: dict[str, float] = {}
    predictions = {}
    for use_scale in settings:
        setting = SETTINGS[use_scale]
        begun = time.perf_counter()
        if samples:
            with predictor.timed() if staged else nullcontext({}) as stages:
                found = predictor(samples, use_scale)
            milliseconds |= {f"{setting}/{stage}": value for stage, value in stages.items()}
        else:
            found = _nothing(0)
        seconds[setting] = time.perf_counter() - begun
        whole = _nothing(len(rows))
        for name, array in vars(whole).items():
            array[readable] = getattr(found, name)
        predictions[setting] = whole
    return Answers(
        facts={},
        ids=tuple(
            row.id if isinstance(row, HandSample) else f"sample {index}"
            for index, row in zip(indices, rows, strict=True)
        ),
        faults=tuple("" if isinstance(row, HandSample) else row for row in rows),
        truth=_rows(rows, "joints", (21, 3)),
        roots=_rows(rows, "root", (3,)),
        predictions=predictions,
        times=Times(
            pictures=len(samples) if rated else 0,
            seconds=seconds if rated else {},
            staged=len(samples) if staged else 0,
            milliseconds=milliseconds,
        ),
    )


def _nothing(count: int) -> Predictions:
    """No answers."""
    return Predictions(
        np.full((count, 21, 3), np.nan, np.float32),
        np.zeros((count, 21), np.float32),
        np.zeros(count, bool),
        np.zeros(count, np.int64),
    )


def _rows(rows: Sequence[HandSample | str], name: str, shape: tuple[int, ...]) -> np.ndarray:
    """One attribute of the samples, NaN where there is none."""
    found = np.full((len(rows), *shape), np.nan, np.float32)
    for index, row in enumerate(rows):
        value: Tensor | None = getattr(row, name, None)
        if value is not None:
            found[index] = value
    return found


def _facts(
    predictor: Predictor,
    dataset: HandDataset,
    settings: Sequence[bool],
    options: Options,
    facts: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """What the answers depend on, as JSON gives it back."""
    everything = {
        "data set": dataset.name,
        "split": dataset.split,
        "samples": len(dataset),
        "fingerprint": dataset.fingerprint,
        "method": predictor.method,
        "task": predictor.task,
        "settings": [SETTINGS[use_scale] for use_scale in settings],
        "batch": options.batch,
        "shard": options.shard,
        **(facts or {}),
    }
    return json.loads(json.dumps(everything))


def _digest(known: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tensors[name].shape}".encode())
        digest.update(tensors[name].tobytes())
    return digest.hexdigest()


def _summed(parts: Sequence[dict[str, float]]) -> dict[str, float]:
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part)
    return dict(total)
