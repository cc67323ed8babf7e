"""Predictors of camera-space joints for samples of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from nvf_fast.config import HAND_JOINTS, NVFConfig, Task
from nvf_fast.data.sample import HandSample
from nvf_fast.estimator import PoseEstimator
from nvf_fast.pose import HandPose

NEEDED = {"root": "true wrist", "hand_scale": "hand scale"}


@dataclass(frozen=True)
class Predictions:
    """Predictions for B samples."""

    # (B, 21, 3) float32 mm in the camera's frame; a root-relative prediction is moved to the true root. NaN
    # where not valid.
    joints: np.ndarray
    scores: np.ndarray  # (B, 21) float32, see `HandPose`
    valid: np.ndarray  # (B,) bool
    voters: np.ndarray  # (B,) int, 0 for a method without voting

    @classmethod
    def none(cls, count: int) -> Predictions:
        """Invalid predictions, to be filled in."""
        joints, valid = np.full((count, 21, 3), np.nan, np.float32), np.zeros(count, bool)
        return cls(joints, np.zeros((count, 21), np.float32), valid, np.zeros(count, np.int64))


class NetworkPredictor:
    """An estimator given each sample's side, and its box or its true root.

    Attributes:
        method, task: of the network.
        scale_choices: the values of `use_scale` that it accepts.

    Raises:
        ValueError: the network's joints are not a hand's.
    """

    def __init__(self, estimator: PoseEstimator) -> None:
        config = estimator.model.config
        if config.joints != HAND_JOINTS:
            raise ValueError(
                f"data sets hold hands with {HAND_JOINTS} joints, the network has {config.joints}"
            )
        self.estimator = estimator
        self.method: str = config.method
        self.task: Task = config.task
        self.scale_choices = scale_choices(config)

    def __call__(self, samples: Sequence[HandSample], use_scale: bool) -> Predictions:
        """Predict samples; with `use_scale` each is given its true hand scale.

        Raises:
            ValueError: a sample lacks an input that the method needs; the message names it.
        """
        predictions = Predictions.none(len(samples))
        for boxed in (False, True):
            rows = [row for row, sample in enumerate(samples) if self._takes_box(sample) == boxed]
            if rows:
                pose = self._estimate([samples[row] for row in rows], use_scale, boxed)
                for name, array in vars(predictions).items():
                    array[rows] = getattr(pose, name)
        return predictions

    def timed(self) -> AbstractContextManager[dict[str, float]]:
        """Predict and time each stage, as `PoseEstimator.timed`."""
        return self.estimator.timed()

    def _takes_box(self, sample: HandSample) -> bool:
        hand = self.estimator.model.config.view == "hand"
        return hand or (self.task == "camera-space" and sample.box is not None)

    def _estimate(self, samples: Sequence[HandSample], use_scale: bool, boxed: bool) -> HandPose:
        return self.estimator(
            [sample.image for sample in samples],
            np.stack([sample.intrinsics for sample in samples]),
            known(samples, "hand_scale") if use_scale else None,
            np.stack([box_on_image(sample) for sample in samples]) if boxed else None,
            [sample.side for sample in samples],
            root=torch.stack(known(samples, "root")) if self.task == "root-relative" else None,
        )


def scale_choices(config: NVFConfig) -> tuple[bool, ...]:
    """The values of `use_scale` that a network accepts."""
    if config.view == "hand":
        return (True, False)
    if not config.hand_scale:
        return (False,)
    return (True, False) if config.scale_optional else (True,)


def box_on_image(sample: HandSample) -> np.ndarray:
    """The sample's box (4,) px, its middle clamped to the image.

    An image without a box counts as a crop: its box is the largest centred square.
    """
    height, width = sample.image.shape[:2]
    if sample.box is None:
        middle, half = np.array([width - 1, height - 1]) / 2, min(height, width) / 2
        return np.concatenate([middle - half, middle + half])
    box = np.asarray(sample.box, np.float64).reshape(2, 2)
    middle = box.mean(0)
    return (box + np.clip(middle, 0, [width - 1, height - 1]) - middle).ravel()


def known(samples: Sequence[HandSample], name: str) -> list[Any]:
    """One attribute of every sample: "root" (3,) mm or "hand_scale" mm.

    Raises:
        ValueError: a sample lacks it.
    """
    values = [getattr(sample, name) for sample in samples]
    without = next((sample.id for sample, value in zip(samples, values, strict=True) if value is None), None)
    if without is not None:
        raise ValueError(f"{without}: the network needs the {NEEDED[name]}, and the data set has none for it")
    return values
