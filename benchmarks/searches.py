"""Differences of the searches' poses and voters from those of the dense grid.

    python -m benchmarks.searches

Writes benchmarks/results/searches.json for `make readme`. The released network has no trained weights here:
it computes in full, but the true distances and votes of each image's hand replace its predictions.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.taught import teach
from nvf_fast.camera import reference_intrinsics
from nvf_fast.config import NVFConfig
from nvf_fast.data.surfaces import MeshHands
from nvf_fast.estimator import PoseEstimator
from nvf_fast.model import NVF
from nvf_fast.synthetic.dataset import SyntheticConfig, SyntheticHands

RESULT = Path(__file__).resolve().parent / "results" / "searches.json"
SEED = 9_000_001
COLUMNS = [
    *("network", "images", "step (mm)", "search", "points queried", "all queried", "voters missed"),
    *("mean difference (mm)", "largest (mm)", "times as fast"),
]


@cache
def synthetic(images: int) -> SyntheticHands:
    return SyntheticHands(SyntheticConfig(images, SEED))


def compare(
    name: str, step: float, search: str, images: int, make: Callable[[str, MeshHands], PoseEstimator]
) -> list[Any]:
    """Make a row of `COLUMNS`.

    Args:
        name: of the network.
        step: mm.
        search: compared with "dense".
        images: of the synthetic test set.
        make: returns an estimator with a search, given the hand of an image.
    """
    data = synthetic(images)
    intrinsics = reference_intrinsics(data.config.size)
    apart, queried, missed, ratios, voters = [], [], 0, [], 0
    for index in tqdm(range(images), desc=f"{name} {step:g} mm {search}", unit="img"):
        hand = data.hands([index])
        image = data.images([index])[0].permute(1, 2, 0).contiguous()
        poses, seconds = [], []
        for kind in ("dense", search):
            estimator = make(kind, hand)
            began = time.perf_counter()
            poses.append(estimator(image, intrinsics, float(hand.hand_scale)))
            seconds.append(time.perf_counter() - began)
        dense, found = poses
        apart.append(np.linalg.norm(dense.joints - found.joints, axis=-1))
        queried.append(int(found.points_evaluated))
        missed += int(dense.voters) - int(found.voters)
        voters += int(dense.voters)
        ratios.append(seconds[0] / seconds[1])
    everything = sum(count == int(dense.points_evaluated) for count in queried)
    return [
        *(name, images, step, search, int(np.median(queried)), everything, f"{missed:,} of {voters:,}"),
        *(float(np.mean(apart)), float(np.max(apart)), float(np.median(ratios))),
    ]


def released(step: float) -> Callable[[str, MeshHands], PoseEstimator]:
    torch.manual_seed(0)
    model = NVF(NVFConfig())

    def make(kind: str, hand: MeshHands) -> PoseEstimator:
        estimator = PoseEstimator(model, step, search=kind)  # type: ignore[arg-type]
        teach(estimator, hand)
        estimator(np.zeros((8, 8, 3), np.uint8), reference_intrinsics(8), 35.0)
        return estimator

    return make


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=3, help="number of images")
    parser.add_argument("--out", type=Path, default=RESULT, help="file to write")
    options = parser.parse_args(arguments)
    rows = [
        compare("released", step, search, options.images, released(step))
        for step, search in ((16, "guided"), (4, "octree"))
    ]
    context = {"seed": SEED, "threads": torch.get_num_threads(), "torch": torch.__version__}
    result = {"columns": COLUMNS, "rows": rows, "context": context}
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written to {options.out.name}; `make readme` puts it into the README")


if __name__ == "__main__":
    main()
