"""A small data set and a small network, for the tests of evaluation; run as a module, one process of several.

torchrun ... -m tests.evaluation_cases FOLDER
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed

from nvf_fast.data.sample import DamagedPicture, HandSample
from nvf_fast.estimator import PoseEstimator
from nvf_fast.evaluation.predictors import NetworkPredictor
from nvf_fast.evaluation.report import report_on, write_report
from nvf_fast.evaluation.run import Options, predict
from nvf_fast.synthetic.reference_images import sample_hands
from tests.reference_cases import reference_network

FOCAL, SIZE = 480.0, 224


class Pictures:
    """Noise, with hands that have nothing to do with it; every third has a box, every fourth is a left one.

    Args:
        count: pictures.
        damaged: indices of those that cannot be read.
        released: whether joints, roots and hand scales are known.
    """

    name, split = "pictures", "evaluation"
    why_no_surfaces, fingerprint = "they are noise", "noise"

    def __init__(self, count: int = 12, damaged: tuple[int, ...] = (), released: bool = True) -> None:
        self.count, self.damaged, self.released = count, damaged, released
        self.joints = sample_hands(count, torch.Generator().manual_seed(7)).joints

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> HandSample:
        if index in self.damaged:
            raise DamagedPicture(f"{index}.png cannot be read")
        known = self.released
        joints = self.joints[index]
        corner = torch.tensor([40.0, 50.0])
        return HandSample(
            id=f"{index:04d}",
            image=np.random.default_rng(index).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8),
            intrinsics=np.array([[FOCAL, 0, SIZE / 2], [0, FOCAL, SIZE / 2], [0, 0, 1]]),
            root=joints[0] if known else None,
            joints=joints if known else None,
            hand_scale=float((joints[10] - joints[9]).norm()) if known else None,
            side="left" if index % 4 == 3 else "right",
            box=torch.cat([corner, corner + 60]) if index % 3 == 2 else None,
        )


def predictor(**config: bool) -> NetworkPredictor:
    """A small network whose every point votes, so that poses are valid."""
    return NetworkPredictor(PoseEstimator(reference_network(**config), step_mm=32, fraction=1.0))


def evaluate(folder: Path, rank: int = 0, processes: int = 1) -> None:
    """Twelve pictures, one of them damaged, in shards of four."""
    options = Options(batch=2, shard=4, rank=rank, processes=processes, wait_seconds=60)
    answers = predict(predictor(), Pictures(damaged=(5,)), folder / "shards", {"seed": 7}, options)
    assert (answers is None) == (rank > 0)
    if answers is not None:
        fallback = np.full((21, 3), 500.0)
        write_report(folder, report_on(answers, fallback, {}), answers, fallback)


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    evaluate(Path(sys.argv[1]), int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    torch.distributed.destroy_process_group()
