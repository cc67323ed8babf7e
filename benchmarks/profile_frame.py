"""Time of a frame by kernel or operation, from PyTorch's profiler.

    python benchmarks/profile_frame.py                                     the released network, 16 mm, dense
    python benchmarks/profile_frame.py --network default --trace frame.json

On a GPU it lists kernels by their time on the device, replayed as in a frame; on a CPU PyTorch's operations
by their own time. The difference between their sum and the frame is launches and waiting.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.bench_pipeline import estimate, network
from benchmarks.timing import CUDA, device_name, now
from nvf_fast.estimator import PoseEstimator

FRAMES = 20 if CUDA else 3
NAME = 72  # characters of a kernel's name that are shown


class Part(NamedTuple):
    """Time of one kernel or operation in a frame."""

    name: str
    launches: float
    microseconds: float


def profiled(estimator: PoseEstimator, name: str, trace: Path | None = None) -> tuple[list[Part], float]:
    """Profile the parts of a frame, longest first, and time the frame (µs) without the profiler."""
    for _ in range(3):
        estimate(estimator, name)
    seconds = []
    for _ in range(FRAMES):
        began = now()
        estimate(estimator, name)
        seconds.append(now() - began)
    kind = torch.profiler.ProfilerActivity.CUDA if CUDA else torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[kind]) as profiler:
        for _ in range(FRAMES):
            estimate(estimator, name)
        now()
    if trace is not None:
        profiler.export_chrome_trace(str(trace))
    parts = [
        Part(each.key, each.count / FRAMES, _own_time(each) / FRAMES) for each in profiler.key_averages()
    ]
    parts.sort(key=lambda part: -part.microseconds)
    return parts, 1e6 * statistics.median(seconds)


def _own_time(event: Any) -> float:
    return float(event.self_device_time_total if CUDA else event.self_cpu_time_total)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", choices=("released", "default"), default="released")
    parser.add_argument("--step", type=float, default=16.0, help="mm")
    parser.add_argument("--search", choices=("dense", "octree", "guided"), default="dense")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"))
    parser.add_argument("--rows", type=int, default=25, help="number of rows")
    parser.add_argument("--trace", type=Path, help="file for a trace in Chrome's format")
    options = parser.parse_args(arguments)
    model, surface_mm = network(options.network)
    dtype = options.dtype and getattr(torch, options.dtype)
    estimator = PoseEstimator(model, options.step, surface_mm, search=options.search, dtype=dtype)
    parts, frame = profiled(estimator, options.network, options.trace)
    total = sum(part.microseconds for part in parts)
    print(f"{device_name()}, {options.network}, {options.step:g} mm, {options.search}, {estimator.dtype}")
    print(f"frame {frame:,.0f} us; {sum(part.launches for part in parts):,.0f} launches, {total:,.0f} us")
    print(f"{'us':>10}{'ratio':>8}{'launches':>10}  name")
    for part in parts[: options.rows]:
        ratio = part.microseconds / total
        print(f"{part.microseconds:>10,.1f}{ratio:>8.1%}{part.launches:>10,.1f}  {part.name[:NAME]}")


if __name__ == "__main__":
    main()
