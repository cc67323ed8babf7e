"""Resumable prediction of a data set in shards, on one process or several."""

from __future__ import annotations

import json
import logging
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader

from nvf_fast.data.sample import DamagedImageError, HandDataset, HandSample
from nvf_fast.evaluation.dataset_predictions import SETTINGS, DatasetPredictions, Times
from nvf_fast.evaluation.predictors import NetworkPredictor, Predictions
from nvf_fast.runtime.processes import TIMEOUT_S, Processes, without_interrupts
from nvf_fast.runtime.progress import progress_bar
from nvf_fast.runtime.store import ResumeError, Store, differences

ALONE = Processes()
LOG = logging.getLogger("nvf_fast")


def predict(
    predictor: NetworkPredictor,
    dataset: HandDataset,
    folder: Path | None = None,
    metadata: Mapping[str, Any] | None = None,
    *,
    batch: int = 16,
    shard: int = 128,
    workers: int = 0,
    progress: bool = False,
    processes: Processes = ALONE,
) -> DatasetPredictions:
    """Predict every sample, with and without the hand scale where both are possible.

    A damaged image is skipped and noted. With a folder, each finished shard is stored there, and a later call
    with the same metadata resumes. For equal numbers of threads, predictions do not depend on the number of
    processes.

    Args:
        predictor: the method and its network.
        dataset: its samples.
        folder: of the shards; None keeps them in memory.
        metadata: further JSON values that determine the predictions, such as the checkpoint's sha256.
        batch: samples predicted at once; influences the last bits of the predictions.
        shard: samples of one shard, a multiple of batch.
        workers: processes that load images ahead; 0 loads on demand.
        progress: whether the first process shows a bar.
        processes: process r of them takes shards r, r + count and so on.

    Returns:
        All predictions, in every process.

    Raises:
        ResumeError: the folder holds shards of other metadata; the message lists the differences.
        ProcessLostError: another process ended or did not respond in time.
        ValueError: the data set is empty or lacks a hand scale that the network needs, or `shard` is no
            multiple of `batch`.
    """
    if batch < 1 or shard < 1 or shard % batch:
        raise ValueError(f"shard must be a positive multiple of batch, got {shard} and {batch} samples")
    if len(dataset) == 0:
        raise ValueError(f"{dataset.name}, {dataset.split}: the data set is empty")
    settings = settings_for(predictor, dataset)
    determining = {
        "data set": dataset.name,
        "split": dataset.split,
        "samples": len(dataset),
        "fingerprint": dataset.fingerprint,
        "method": predictor.method,
        "task": predictor.task,
        "settings": [SETTINGS[use_scale] for use_scale in settings],
        "batch": batch,
        "shard": shard,
        **(metadata or {}),
    }
    known = json.loads(json.dumps(determining))  # as read back from a shard
    count = -(-len(dataset) // shard)
    spans = {
        index: range(index * shard, min((index + 1) * shard, len(dataset)))
        for index in range(processes.rank, count, processes.count)
    }
    stores = {}
    if folder is not None:
        stores = {index: Store(folder, f"shard-{index:05d}", ".safetensors") for index in spans}
    found = {index: _stored(store, known) for index, store in stores.items()}
    done = {index: stored for index, stored in found.items() if stored is not None}
    missing = {index: span for index, span in spans.items() if index not in done}
    hidden, total = not (progress and processes.rank == 0), sum(map(len, missing.values()))
    bar = progress_bar(total=total, unit="img", desc="evaluating", hidden=hidden)
    with bar, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "unusual hand_scale")  # the data set's own
        for index, predicted in _predicted_shards(predictor, dataset, missing, settings, batch, workers):
            done[index] = replace(predicted, metadata=known)
            if stores:
                stores[index].write(done[index].to_bytes())
            bar.update(len(predicted))
    for others in processes.gather(done):
        done |= others
    return DatasetPredictions.joined([done[index] for index in range(count)])


def settings_for(predictor: NetworkPredictor, dataset: HandDataset) -> tuple[bool, ...]:
    """The values of `use_scale` that both the predictor and the data set's hand scales allow.

    Raises:
        ValueError: none is allowed, or no image can be read.
    """
    rows = map(partial(_read, dataset), range(len(dataset)))
    first = next((row for row in rows if isinstance(row, HandSample)), None)
    if first is None:
        raise ValueError(f"{dataset.name}, {dataset.split}: none of {len(dataset)} images can be read")
    if first.hand_scale is not None or True not in predictor.scale_choices:
        return predictor.scale_choices
    if False not in predictor.scale_choices:
        raise ValueError(
            f"{dataset.name}, {dataset.split} has no hand scales, and this network was trained with the hand "
            "scale always given"
        )
    name = f"{dataset.name}, {dataset.split}"
    LOG.warning("%s has no hand scales: evaluating without the hand scale only", name)
    return (False,)


def _stored(store: Store, metadata: dict[str, Any]) -> DatasetPredictions | None:
    """Load the shard of an earlier call; a damaged one counts as missing."""
    record = store.intact("the shard is done again")
    if record is None:
        return None
    try:
        shard = DatasetPredictions.from_bytes(record.content)
    except ValueError as error:
        raise ResumeError(f"{store.folder / record.name}: {error}") from error
    if changed := differences(shard.metadata, metadata):
        raise ResumeError(
            f"{store.folder / record.name} is of another run ({'; '.join(changed)}): give another folder, "
            "or remove it"
        )
    return shard


def _read(dataset: HandDataset, index: int) -> HandSample | str:
    """A sample, or the error message of a damaged image."""
    try:
        return replace(dataset[index], surface=None, vertices=None)  # no predictor uses them
    except DamagedImageError as error:
        return str(error) or "damaged"


def _read_batch(dataset: HandDataset, indices: Sequence[int]) -> list[HandSample | str]:
    return [_read(dataset, index) for index in indices]


def _predicted_shards(
    predictor: NetworkPredictor,
    dataset: HandDataset,
    spans: Mapping[int, range],
    settings: Sequence[bool],
    batch: int,
    workers: int,
) -> Iterator[tuple[int, DatasetPredictions]]:
    """Spans of samples by the index of their shard."""
    batches = list[list[int]]()
    for span in spans.values():
        batches += [list(span[start : start + batch]) for start in range(0, len(span), batch)]
    if not batches:
        return
    indices: Any = range(len(dataset))
    waiting: dict[str, Any] = {"num_workers": workers, "timeout": TIMEOUT_S if workers else 0}
    read = partial(_read_batch, dataset)
    with without_interrupts():
        loader = iter(DataLoader(indices, batch_sampler=batches, collate_fn=read, **waiting))
    warm = False  # the first call also sets up libraries
    for index, span in spans.items():
        yield index, _predicted_shard(predictor, loader, span, settings, warm)
        warm = True


def _predicted_shard(
    predictor: NetworkPredictor,
    loader: Iterator[list[HandSample | str]],
    span: range,
    settings: Sequence[bool],
    warm: bool,
) -> DatasetPredictions:
    """Predict and time one shard, of its last batch the stages."""
    rows: list[HandSample | str] = []
    predictions = {SETTINGS[use_scale]: Predictions.none(len(span)) for use_scale in settings}
    images, staged = 0, 0
    seconds: Counter[str] = Counter()
    milliseconds: Counter[str] = Counter()
    while len(rows) < len(span):
        begun = time.perf_counter()
        loaded = next(loader)
        durations = {"read": time.perf_counter() - begun}
        samples = [row for row in loaded if isinstance(row, HandSample)]
        readable = [len(rows) + place for place, row in enumerate(loaded) if isinstance(row, HandSample)]
        rows += loaded
        last = len(rows) == len(span)
        for use_scale in settings:
            setting = SETTINGS[use_scale]
            begun = time.perf_counter()
            if samples:
                with predictor.timed() if last else nullcontext({}) as stages:
                    found = predictor(samples, use_scale)
                milliseconds.update({f"{setting}/{stage}": value for stage, value in stages.items()})
                for name, array in vars(predictions[setting]).items():
                    array[readable] = getattr(found, name)
            durations[setting] = time.perf_counter() - begun
        if last:
            staged = len(samples)
        elif warm:
            images += len(samples)
            seconds.update(durations)
        warm = True
    return DatasetPredictions(
        metadata={},
        ids=tuple(
            row.id if isinstance(row, HandSample) else f"sample {index}"
            for index, row in zip(span, rows, strict=True)
        ),
        faults=tuple("" if isinstance(row, HandSample) else row for row in rows),
        truth=_rows(rows, "joints", (21, 3)),
        roots=_rows(rows, "root", (3,)),
        predictions=predictions,
        times=Times(images, dict(seconds), staged, dict(milliseconds)),
    )


def _rows(rows: Sequence[HandSample | str], name: str, shape: tuple[int, ...]) -> np.ndarray:
    """One attribute of the samples, NaN where absent."""
    found = np.full((len(rows), *shape), np.nan, np.float32)
    for index, row in enumerate(rows):
        value: Tensor | None = getattr(row, name, None)
        if value is not None:
            found[index] = value
    return found
