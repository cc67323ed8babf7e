"""Block shapes of `query_field` for a device, timed once by `nvf-fast tune` and cached in a file."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import statistics
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from nvf_fast.runtime.cuda_graph import milliseconds, record_repeated
from nvf_fast.runtime.devices import launching_on
from nvf_fast.runtime.extras import extra
from nvf_fast.runtime.files import read_json, write_file

with extra("triton", "tuning needs Triton"):
    import triton

    from nvf_fast.kernels.query_field import triton as kernel
    from nvf_fast.kernels.query_field.triton import Tiling

CACHE = Path(os.path.expanduser("~")) / ".cache" / "nvf_fast" / "tilings.json"
GAIN = 1.02  # times as fast as the untuned tiling must one be to take its place; less is taken for noise
ROUNDS = 30
REPEATS = 10  # queries in a graph, so that launching it weighs little
LOG = logging.getLogger("nvf_fast")


def tuned(
    device: torch.device, dtype: torch.dtype, channels: Sequence[int], point_count: int
) -> Tiling | None:
    """The tiling found on such a device for layers of these channels and about as many points, or None."""
    if device.type != "cuda":
        return None
    found = _read().get(_key(device, dtype, channels, point_count))
    tiling = None if found is None else Tiling(*found)
    return tiling if tiling in kernel.device_tilings(device, dtype) else None


class Query(NamedTuple):
    """A query of a network's field on a CUDA device."""

    features: Tensor  # (B, C, H, W), in the compute dtype
    points: Tensor  # (N, 3) float32 mm
    intrinsics: Tensor  # (3, 3) float32 px of the `image_size` px view
    # of the network's layers
    weights: Sequence[Tensor]
    biases: Sequence[Tensor]
    image_size: int  # px

    def to(self, device: torch.device | str) -> Query:
        features, points, intrinsics = (each.to(device) for each in self[:3])
        weights, biases = ([each.detach().to(device) for each in several] for several in self[3:5])
        return Query(features, points, intrinsics, weights, biases, self.image_size)


def tune(query: Query) -> dict[Tiling, float]:
    """Time all tilings on a CUDA device and store the fastest in the cache file.

    CUDA graphs are timed, as the estimator replays them: single launches would measure Python. Each tiling
    has a process of its own, since a kernel that fails on the device ends every later launch of its process;
    a warning reports such a tiling.

    Returns:
        Median milliseconds of each tiling that runs, the untuned one first.

    Raises:
        RuntimeError: none does.
    """
    device, dtype = query.features.device, query.features.dtype
    milliseconds: dict[Tiling, float] = {}
    for tiling in kernel.device_tilings(device, dtype):
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            try:
                milliseconds[tiling] = process.submit(median_ms, query.to("cpu"), tiling, device).result()
            except RuntimeError as error:
                LOG.warning("%s fails on %s and is left out: %s", tiling, device, error)
    if not milliseconds:
        raise RuntimeError(f"no tiling of the field's kernel runs on {device}; warnings give the reasons")
    remember(device, dtype, [len(bias) for bias in query.biases], len(query.points), milliseconds)
    return milliseconds


def median_ms(query: Query, tiling: Tiling, device: torch.device) -> float:
    """Median milliseconds of a query, over replays after two warm-up rounds."""
    features, points, intrinsics, weights, biases, image_size = query.to(device)
    with launching_on(device):
        layers = kernel.pack_layers(weights, biases, features.shape[1], features.dtype, tiling)
        places = kernel.locate(points, intrinsics, image_size, features.shape[2:], layers)
        maps = kernel.project_maps(features, None, layers)
        launch = record_repeated(device, lambda: kernel.sample(maps, places, layers), REPEATS)
        return statistics.median([milliseconds(launch) for _ in range(2 + ROUNDS)][2:]) / REPEATS


def remember(
    device: torch.device,
    dtype: torch.dtype,
    channels: Sequence[int],
    point_count: int,
    milliseconds: dict[Tiling, float],
) -> Tiling:
    """Store and return the fastest tiling, or the first unless another is faster by `GAIN`."""
    untuned = next(iter(milliseconds))
    fastest = min(milliseconds, key=milliseconds.__getitem__)
    if milliseconds[untuned] < GAIN * milliseconds[fastest]:
        fastest = untuned
    known = _read() | {_key(device, dtype, channels, point_count): list(fastest)}
    write_file(CACHE, f"{json.dumps(known, indent=1)}\n".encode())
    return fastest


def _key(device: torch.device, dtype: torch.dtype, channels: Sequence[int], point_count: int) -> str:
    """Key of the times: the device, the compiler, the kernel's source, the network and the size.

    Sizes up to the same power of two share a key.
    """
    source = hashlib.sha256(Path(kernel.__file__).read_bytes()).hexdigest()[:12]
    name = torch.cuda.get_device_name(device)
    layers = "-".join(map(str, channels))
    network = f"{str(dtype).removeprefix('torch.')}, {layers}, up to {1 << point_count.bit_length()} points"
    return f"{name}, Triton {triton.__version__}, kernel {source}, {network}"


def _read() -> dict[str, list[int]]:
    """Known tilings; none where the file is missing or, with a warning, damaged."""
    try:
        known = read_json(CACHE)
        return {
            key: [int(number) for number in numbers] for key, numbers in known.items() if len(numbers) == 5
        }
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        LOG.warning("%s is damaged and not read, `nvf-fast tune` writes it anew: %s", CACHE, error)
        return {}
