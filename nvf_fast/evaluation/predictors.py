"""What is evaluated: anything that answers samples of a data set with camera-space joints."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from nvf_fast.baselines import DenseBaseline, HolisticBaseline, Network
from nvf_fast.config import NVFConfig, Task
from nvf_fast.data.sample import HandSample
from nvf_fast.estimator import PoseEstimator
from nvf_fast.root_relative import RootRelativeEstimator
from nvf_fast.stages import Stages
from nvf_fast.views import seen, view_of


@dataclass(frozen=True)
class Predictions:
    """Answers about B samples.

    Attributes:
        joints: (B, 21, 3) float32 mm in the camera's frame; a root-relative answer comes with the true root
            added. NaN where not valid.
        scores: (B, 21) float32, see `HandPose`.
        valid: (B,) bool.
        voters: (B,) int, 0 for a method without.
    """

    joints: np.ndarray
    scores: np.ndarray
    valid: np.ndarray
    voters: np.ndarray


class Predictor(Protocol):
    """A method with its network; `scale_choices` are the values of `use_scale` that it can be asked with."""

    method: str
    task: Task
    scale_choices: tuple[bool, ...]

    def __call__(self, samples: Sequence[HandSample], use_scale: bool) -> Predictions:
        """Answers about samples; with `use_scale` each is given its true hand scale.

        Raises:
            ValueError: a sample lacks what the method needs; the message names it.
        """
        ...

    def timed(self) -> AbstractContextManager[dict[str, float]]:
        """As `PoseEstimator.timed`."""
        ...


class CameraSpaceNVF:
    """The estimator as it is used: each sample looked at along the axis, or towards its box."""

    method = "nvf"
    task: Task = "camera-space"

    def __init__(self, estimator: PoseEstimator) -> None:
        self.estimator = estimator
        self.scale_choices = scale_choices(estimator.model.config)

    def __call__(self, samples: Sequence[HandSample], use_scale: bool) -> Predictions:
        count = len(samples)
        predictions = Predictions(
            np.empty((count, 21, 3), np.float32),
            np.empty((count, 21), np.float32),
            np.empty(count, bool),
            np.empty(count, np.int64),
        )
        for boxed in (False, True):
            rows = [row for row, sample in enumerate(samples) if (sample.box is not None) == boxed]
            if not rows:
                continue
            chosen = [samples[row] for row in rows]
            pose = self.estimator(
                [sample.image for sample in chosen],
                np.stack([sample.intrinsics for sample in chosen]),
                hand_scales(chosen) if use_scale else None,
                np.stack([box_on_picture(sample) for sample in chosen]) if boxed else None,
                [sample.side for sample in chosen],
            )
            for name in ("joints", "scores", "valid", "voters"):
                getattr(predictions, name)[rows] = getattr(pose, name)
        return predictions

    def timed(self) -> AbstractContextManager[dict[str, float]]:
        return self.estimator.timed()


class RootRelativeNVF:
    """RS-NVF: each sample's true wrist is given, as HO-3D gives it."""

    method = "nvf"
    task: Task = "root-relative"

    def __init__(self, estimator: RootRelativeEstimator) -> None:
        self.estimator = estimator
        self.scale_choices = scale_choices(estimator.model.config)

    def __call__(self, samples: Sequence[HandSample], use_scale: bool) -> Predictions:
        pose = self.estimator(
            [sample.image for sample in samples],
            np.stack([sample.intrinsics for sample in samples]),
            roots(samples),
            hand_scales(samples) if use_scale else None,
            [sample.side for sample in samples],
        )
        return Predictions(pose.joints, pose.scores, pose.valid, pose.voters)

    def timed(self) -> AbstractContextManager[dict[str, float]]:
        return self.estimator.timed()


class BaselinePredictor:
    """A baseline of either task, on right hands; it has no scores of its own: 1 where it answers."""

    def __init__(
        self,
        model: HolisticBaseline | DenseBaseline,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.method: str = model.config.method
        self.task: Task = model.config.task
        self.scale_choices = scale_choices(model.config)
        self.model = copy.deepcopy(model).to(device or model.centre.device).eval()
        self._device = self.model.centre.device
        self._dtype = dtype or (torch.float16 if self._device.type == "cuda" else torch.float32)
        self.model.encoder.to(self._dtype)
        self._view = view_of(self.task)
        self._stages = Stages(self._device)

    @torch.no_grad()
    def __call__(self, samples: Sequence[HandSample], use_scale: bool) -> Predictions:
        for sample in samples:
            if sample.side != "right":
                raise ValueError(f"{sample.id}: the baselines know right hands only, got a {sample.side} one")
        device, size = self._device, self.model.config.input_size
        # Where the task has no root, none need be known.
        wrists = roots(samples) if self.task == "root-relative" else torch.zeros(len(samples), 3)
        with self._stages("remap"):
            intrinsics = torch.from_numpy(np.stack([sample.intrinsics for sample in samples])).double()
            homographies = self._view.homographies(intrinsics, wrists.double(), size)
            views = [
                seen(torch.from_numpy(sample.image).to(device), homography, size)
                for sample, homography in zip(samples, homographies, strict=True)
            ]
            scale = torch.tensor(hand_scales(samples), device=device) if use_scale else None
        with self._stages("regress"):
            joints, votes = self.model.predict(torch.cat(views).to(self._dtype), scale)
        with self._stages("read"):
            joints = joints.cpu() + self._view.origins(wrists)[:, None]
            valid = joints.isfinite().all(-1)
            return Predictions(
                joints.numpy(), valid.float().numpy(), valid.all(-1).numpy(), votes.cpu().numpy()
            )

    def timed(self) -> AbstractContextManager[dict[str, float]]:
        return self._stages.timed()


def predictor_of(
    model: Network,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> Predictor:
    """The predictor that a network serves.

    Args:
        model: of any method and task.
        device: where to compute; None is where the model is.
        dtype: of the network; None is float32 on a CPU, float16 on CUDA.
        options: of the field, further arguments of its estimator, such as step_mm and search. The baselines
            and the root-relative field have no search but "dense", and the baselines no grid: a step is all
            the same to them.

    Raises:
        ValueError: an option is out of its range, or the method has no such option.
    """
    whole = isinstance(model, HolisticBaseline | DenseBaseline)
    if whole or model.config.task == "root-relative":
        search = options.pop("search", "dense")
        if search != "dense":
            raise ValueError(
                f"search={search!r} is of the camera-space field, this is {_named(model.config)}"
            )
    if isinstance(model, HolisticBaseline | DenseBaseline):
        options.pop("step_mm", None)
        if options:
            raise ValueError(f"{_named(model.config)} has no options {sorted(options)}")
        return BaselinePredictor(model, device, dtype)
    if model.config.task == "root-relative":
        return RootRelativeNVF(RootRelativeEstimator(model, device=device, dtype=dtype, **options))
    return CameraSpaceNVF(PoseEstimator(model, device=device, dtype=dtype, **options))


def _named(config: NVFConfig) -> str:
    return f"a {config.task} {config.method!r} network"


def scale_choices(config: NVFConfig) -> tuple[bool, ...]:
    """The values of `use_scale` that a network can be asked with."""
    if not config.hand_scale:
        return (False,)
    return (True, False) if config.scale_optional else (True,)


def box_on_picture(sample: HandSample) -> np.ndarray:
    """The sample's box (4,) px; one whose middle lies off the picture is moved to its nearest pixel."""
    box = np.asarray(sample.box, np.float64).reshape(2, 2)
    height, width = sample.image.shape[:2]
    middle = box.mean(0)
    return (box + np.clip(middle, 0, [width - 1, height - 1]) - middle).ravel()


def roots(samples: Sequence[HandSample]) -> Tensor:
    """The samples' wrists, (B, 3) float32 mm.

    Raises:
        ValueError: a sample has none.
    """
    found = [sample.root for sample in samples if sample.root is not None]
    if len(found) < len(samples):
        without = next(sample.id for sample in samples if sample.root is None)
        raise ValueError(f"{without}: a root-relative method is given the wrist, and it is not known here")
    return torch.stack(found)


def hand_scales(samples: Sequence[HandSample]) -> list[float]:
    """The samples' hand scales, mm.

    Raises:
        ValueError: a sample has none.
    """
    found = [sample.hand_scale for sample in samples if sample.hand_scale is not None]
    if len(found) < len(samples):
        without = next(sample.id for sample in samples if sample.hand_scale is None)
        raise ValueError(f"{without}: the hand scale is to be given, and the data set has none for it")
    return found
