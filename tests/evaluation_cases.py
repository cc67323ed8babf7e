"""A small data set and predictors for the tests of evaluation."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch

from nvf_fast.data.sample import DamagedImageError, HandSample
from nvf_fast.estimator import PoseEstimator
from nvf_fast.evaluation.predictors import NetworkPredictor, Predictions
from tests.reference_cases import reference_network
from tests.sampled_hands import sample_hands

FOCAL, SIZE = 480.0, 224


class Images:
    """Images of noise with unrelated hands; every third has a box, every fourth is left.

    Args:
        count: images.
        damaged: indices of unreadable images.
        released: whether joints, roots and hand scales are known.
    """

    name, split = "images", "evaluation"
    why_no_surfaces, fingerprint = "they are noise", "noise"

    def __init__(self, count: int = 12, damaged: tuple[int, ...] = (), released: bool = True) -> None:
        self.count, self.damaged, self.released = count, damaged, released
        self.joints = sample_hands(count, torch.Generator().manual_seed(7)).joints

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> HandSample:
        if index in self.damaged:
            raise DamagedImageError(f"{index}.png cannot be read")
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


class Fixed:
    """Predict `joints` (N, 21, 3) by the number in the sample's id; NaN is invalid."""

    method, scale_choices = "fixed", (False,)

    def __init__(self, joints: np.ndarray, task: str = "camera-space") -> None:
        self.joints, self.task = joints.astype(np.float32), task
        self.predicted: list[int] = []

    def __call__(self, samples: list[HandSample], use_scale: bool) -> Predictions:
        numbers = [int(sample.id) for sample in samples]
        self.predicted += numbers
        joints = self.joints[numbers]
        valid = np.isfinite(joints).all((1, 2))
        return Predictions(joints, np.ones(joints.shape[:2], np.float32), valid, np.ones(len(joints), int))

    def timed(self) -> AbstractContextManager[dict[str, float]]:
        return nullcontext({"think": 2.0})


def predictor(**config: bool) -> NetworkPredictor:
    """Build a predictor in which every point votes, so that poses are valid."""
    return NetworkPredictor(PoseEstimator(reference_network(**config), step_mm=32, fraction=1.0))
