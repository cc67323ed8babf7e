"""Processor time of a call of the default network: all of it, and with its frame replaced by a stored result.

    python benchmarks/host_time.py                        this checkout
    git worktree add ../before COMMIT
    python benchmarks/host_time.py --baseline ../before   and another one in turn, with ratios

Measured is the time of one thread, which other processes lengthen by sharing caches and cores, so that
ratios of runs in turn tell more than microseconds. "host" is a call without the sampling of views, the
network and the votes: arguments, placement of views, their plans, and poses in the camera's frame. "kept"
repeats cameras and boxes, "moving" does not.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
ROUNDS = 3  # of processes, in turn
REPEATS = 5  # in each process, of which the fastest counts
BOX = np.array([722.0, 281.7, 894.7, 454.4])
K = np.array([[831.4, 0, 479.5], [0, 831.4, 269.5], [0, 0, 1]])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--baseline", type=Path, help="root of another checkout")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        sys.path.insert(0, str(options.inside))
        print(json.dumps(measured()))
        return
    folders = [ROOT] if options.baseline is None else [ROOT, options.baseline.resolve()]
    runs: dict[Path, list[dict[str, float]]] = {folder: [] for folder in folders}
    for _ in range(ROUNDS):
        for folder, found in runs.items():
            command = [sys.executable, "-W", "ignore", __file__, "--inside", str(folder)]
            found.append(json.loads(subprocess.check_output(command, cwd=folder, text=True)))
    print(f"{'us an image':24}{'here':>10}" + f"{'baseline':>10}{'ratio':>8}" * (len(folders) > 1))
    for name in runs[ROOT][0]:
        here, *before = (min(run[name] for run in found) for found in runs.values())
        ratios = [run[name] / own[name] for run, own in zip(runs[folders[-1]], runs[ROOT], strict=True)]
        compared = "".join(f"{other:10.1f}{np.median(ratios):8.2f}" for other in before)
        print(f"{name:24}{here:10.1f}{compared}")


def measured() -> dict[str, float]:
    """Microseconds of thread time an image, by name; of the package that is imported."""
    import torch

    import nvf_fast
    from nvf_fast import ops
    from nvf_fast.image_files import read_image

    torch.set_num_threads(1)
    image = read_image(Path(nvf_fast.__file__).parent / "assets/demo.jpg")
    estimator: Any = nvf_fast.load(device="cpu")
    found = {}

    def whole(side: str | None, _: int) -> Any:
        return estimator(image, K, box=BOX, side=side)

    for side in ("right", None):
        seconds = fastest(partial(whole, side), 3)
        found[f"whole, side {'unknown' if side is None else 'given'}"] = seconds

    pipeline, kept = estimator.runner.pipeline, []

    def recorded(*given: Any, **options: Any) -> Any:
        kept.append(pipeline(*given, **options).rows)
        return SimpleNamespace(rows=kept[-1], votes=[])

    def stored(views: Any, *_: Any, **__: Any) -> Any:
        count = len(views.slopes)
        if count not in results:
            results[count] = kept[0].expand(count, -1).contiguous()
        return SimpleNamespace(rows=results[count], votes=[])

    results: dict[int, torch.Tensor] = {}
    estimator.runner.pipeline = Replaced(pipeline, recorded)
    estimator(image, K, box=BOX, side="right")
    estimator.runner.pipeline = Replaced(pipeline, stored)
    view = torch.zeros(1)
    ops.network_views = lambda *_, **__: view
    images, boxes = [image] * 64, BOX + 0.5 * np.arange(64)[:, None]
    calls: dict[str, tuple[Callable[[int], Any], int, int]] = {
        "host, 1 kept": (lambda i: estimator(image, K, box=BOX, side="right"), 100, 1),
        "host, 1 moving": (lambda i: estimator(image, K, box=BOX + 0.01 * next(steps), side="right"), 100, 1),
        "host, 64 kept": (lambda i: estimator(images, K, box=boxes, side="right"), 3, 64),
        "host, 64 moving": (
            lambda i: estimator(images, K, box=boxes + 0.01 * next(steps), side="right"),
            3,
            64,
        ),
    }
    steps = iter(range(10**6))
    for name, (call, count, each) in calls.items():
        found[name] = fastest(call, count) / each
    return found


class Replaced:
    """A pipeline with another call."""

    def __init__(self, pipeline: Any, call: Callable[..., Any]) -> None:
        self._pipeline, self._call = pipeline, call

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipeline, name)

    def __call__(self, *given: Any, **options: Any) -> Any:
        return self._call(*given, **options)


def fastest(call: Callable[[int], Any], count: int) -> float:
    """Microseconds of thread time a call, the least of the repeats of `count` calls."""
    call(0)
    best = np.inf
    for _ in range(REPEATS):
        began = time.thread_time()
        for i in range(count):
            call(i)
        best = min(best, (time.thread_time() - began) / count)
    return 1e6 * best


if __name__ == "__main__":
    main()
