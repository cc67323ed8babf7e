"""Every parameter of a training run in one place, and the named presets."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from nvf_fast.config import HAND_JOINTS, NVFConfig, Task
from nvf_fast.data.catalogue import DataConfig
from nvf_fast.runtime.arguments import check_choices, check_ranges
from nvf_fast.synthetic.dataset import SyntheticConfig
from nvf_fast.synthetic.placement import HandDistribution
from nvf_fast.training.augmentation import Augmentation
from nvf_fast.training.hand_losses import HandLossConfig
from nvf_fast.training.losses import LossConfig
from nvf_fast.training.points import PointSampling
from nvf_fast.training.replay import ReplayConfig
from nvf_fast.training.view_mixture import ViewMixtureConfig


@dataclass(frozen=True)
class Optimisation:
    """Optimiser and schedule."""

    # "rmsprop" (the paper's) or "adamw" (weight decay on matrices only)
    optimiser: Literal["rmsprop", "adamw"] = "rmsprop"
    learning_rate: float = 1e-4  # peak of the learning rate
    weight_decay: float = 0.0  # AdamW's; ignored by RMSprop
    batch: int = 24  # images per step, over all processes
    # equal parts of a batch, each with separate random numbers; the number of processes must divide it, and
    # training is the same for every such number of processes
    parts: int = 4
    epochs: int | None = 650  # length in passes over the data; or None
    steps: int | None = None  # length in steps; or None. Exactly one of the two is given.
    # "milestones" multiplies the rate by 0.1 at each of `milestones` (epochs); "cosine" falls to
    # `final_ratio` of the peak at the end
    schedule: Literal["milestones", "cosine"] = "milestones"
    milestones: tuple[int, ...] = (400, 500, 600)  # epochs
    warmup_steps: int = 0  # steps over which the rate rises linearly
    final_ratio: float = 0.02  # end of the cosine, as a ratio to the peak
    clip_norm: float | None = None  # gradients are scaled down to this norm; None does not clip
    # decay per step of the averaged weights, which are evaluated and exported; None uses the last weights
    ema: float | None = None
    # arithmetic of the encoder and the field; weights and losses stay float32. On a CPU, "bfloat16" is faster
    # only if the processor supports it, and many times slower otherwise.
    precision: Literal["float32", "bfloat16"] = "float32"
    # whether to compile the encoder and the losses by torch.compile, which takes minutes
    compile: bool = False

    def __post_init__(self) -> None:
        check_choices(self)
        if self.batch < 1 or self.parts < 1 or self.batch % self.parts:
            raise ValueError(f"parts must divide the batch, got {self.parts} parts of {self.batch} images")
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(f"give epochs or steps, one of them; got {self.epochs} and {self.steps}")
        check_ranges(self, epochs="[1, inf)", steps="[1, inf)")
        check_ranges(self, learning_rate="(0, inf)", clip_norm="(0, inf)", ema="(0, 1)")
        check_ranges(self, weight_decay="[0, inf)", warmup_steps="[0, inf)", final_ratio="[0, 1]")

    def total_steps(self, images: int) -> int:
        """Steps of the whole training on a data set of this size."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return self.epochs * self.steps_per_epoch(images)

    def steps_per_epoch(self, images: int) -> int:
        """Full batches in a data set of this size."""
        if images < self.batch:
            raise ValueError(f"a batch needs {self.batch} images, the data set has {images}")
        return images // self.batch

    def learning_rate_at(self, step: int, images: int) -> float:
        """The rate of step 0, 1, ... on a data set of this size."""
        rate = self.learning_rate * min(1.0, (step + 1) / max(1, self.warmup_steps))
        if self.schedule == "cosine":
            done = min(1.0, step / self.total_steps(images))
            return rate * (self.final_ratio + (1 - self.final_ratio) * 0.5 * (1 + math.cos(math.pi * done)))
        epoch = step // self.steps_per_epoch(images)
        return rate * 0.1 ** sum(epoch >= milestone for milestone in self.milestones)


@dataclass(frozen=True)
class TrainingConfig:
    """Configuration of a training run, which determines every step."""

    preset: str  # name of the preset it derives from, kept in the checkpoint's metadata
    seed: int = 0  # seed of weights, order, augmentation and points
    model: NVFConfig = field(default_factory=NVFConfig)  # the network
    data: DataConfig = field(default_factory=DataConfig)  # the data set
    sampling: PointSampling = field(default_factory=PointSampling)  # numbers and ranges of query points
    losses: LossConfig = field(default_factory=LossConfig)  # weights and ranges of the losses
    augmentation: Augmentation = field(default_factory=Augmentation)  # augmentation of the images
    # for hand views, their mixture, which may include `data`; used instead of `augmentation`
    views: ViewMixtureConfig = field(default_factory=ViewMixtureConfig)
    # for hand views, the losses; used instead of `sampling` and `losses`
    hand_losses: HandLossConfig = field(default_factory=HandLossConfig)
    # for hand views, their reuse from a store on the device
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    optimisation: Optimisation = field(default_factory=Optimisation)  # optimiser and schedule
    log_every: int = 50  # steps between two lines of the log
    save_every: int = 1000  # steps between two saved states
    evaluate_every: int = 0  # steps between two evaluations; 0 is never
    evaluation_images: int = 64  # images of each evaluation

    def __post_init__(self) -> None:
        relative = self.model.task == "root-relative"
        if (self.model.joints, self.model.image_channels) != (HAND_JOINTS, 3):
            raise ValueError(
                f"data sets hold RGB images of hands with {HAND_JOINTS} joints, the network takes "
                f"{self.model.image_channels} channels and has {self.model.joints} joints: train it in "
                "another loop"
            )
        if self.augmentation.scale_dropout and not (self.model.hand_scale and self.model.scale_optional):
            raise ValueError("scale_dropout needs a model with hand_scale and scale_optional")
        if self.model.scale_optional and not self.augmentation.scale_dropout:
            raise ValueError("a model whose scale is optional must be trained with scale_dropout above 0")
        if relative and self.augmentation.size_range:
            raise ValueError("size_range is camera-space: about a root, a larger hand looks larger")
        if self.losses.auxiliary_weight and (relative or self.model.method != "nvf"):
            raise ValueError("the auxiliary regression (auxiliary_weight) is the camera-space field's")
        if self.replay.uses > 1 and self.model.view != "hand":
            raise ValueError(f"only hand views are reused, got replay.uses = {self.replay.uses}")
        part = self.optimisation.batch // self.optimisation.parts
        if self.replay.uses > 1 and self.replay.size < 2 * part:
            raise ValueError(
                f"replay.size must be at least {2 * part}, twice a part of the batch, got {self.replay.size}"
            )
        counts = dict.fromkeys(("log_every", "save_every", "evaluation_images"), "[1, inf)")
        check_ranges(self, evaluate_every="[0, inf)", **counts)


def camera_space() -> TrainingConfig:
    """CS-NVF from scratch on FreiHAND, without hand scale or other data (supplement A)."""
    return TrainingConfig("camera_space", model=NVFConfig(hand_scale=False), data=DataConfig("freihand"))


def camera_space_finetune() -> TrainingConfig:
    """CS-NVF on FreiHAND after relative pre-training, whose checkpoint `--initial` names (supplement A)."""
    return replace(camera_space(), preset="camera_space_finetune", optimisation=_finetuning())


def relative_freihand() -> TrainingConfig:
    """Relative pre-training on FreiHAND (supplement A)."""
    schedule = Optimisation(batch=64, epochs=600, learning_rate=5e-4, milestones=(250, 350, 450))
    return _relative("relative_freihand", DataConfig("freihand"), schedule)


def relative_complement() -> TrainingConfig:
    """Relative pre-training on Complement, the extra data of tables 2, 3, 7 and 8 (supplement A)."""
    schedule = Optimisation(batch=64, epochs=700, learning_rate=5e-4, milestones=(500, 600))
    return _relative("relative_complement", DataConfig("complement"), schedule)


def relative_ho3d_finetune() -> TrainingConfig:
    """RS-NVF on HO-3D after relative pre-training, whose checkpoint `--initial` names (supplement A)."""
    return _relative("relative_ho3d_finetune", DataConfig("ho3d"), _finetuning())


def small() -> TrainingConfig:
    """A small network of the reference view, quick to train on a CPU: the paper's losses with every addition.

    Benchmarks and tests of training use it; the library includes no checkpoint of it. Votes are supervised
    within 25 mm of the surface instead of 5, since a short training places the surface no better than that
    along the camera's rays, and points selected by mistake must vote well too.
    """
    return TrainingConfig(
        preset="small",
        model=NVFConfig(
            input_size=128, stem=32, width=64, widen=48, stacks=1, depth=4, groups=8,
            hidden=(256, 128, 64, 64), hand_scale=True, scale_optional=True,
        ),
        data=DataConfig(
            "synthetic", SyntheticConfig(count=25_600, seed=1, size=128, distribution=HandDistribution())
        ),
        sampling=PointSampling(
            surface=208, sphere=48, sphere_radius_mm=130.0, frustum=48, ray_points=400,
            inside=None, outside=None,
        ),
        losses=LossConfig(
            surface_mm=25.0, vote_weight=0.5, vote_beta=0.2, vote_normalisation="near",
            wide_weight=0.2, auxiliary_weight=0.1,
        ),
        augmentation=Augmentation(
            roll_deg=20.0, size_range=0.06, scale_dropout=0.3,
            brightness=0.2, contrast=0.2, colour=0.1, noise=0.03, blur=0.8,
        ),
        optimisation=Optimisation(
            optimiser="adamw", learning_rate=1.3e-3, weight_decay=0.02, batch=16, parts=2,
            epochs=None, steps=9_000, schedule="cosine", warmup_steps=200,
            clip_norm=1.0, ema=0.999,
        ),
        evaluate_every=1500,
    )  # fmt: skip


def default() -> TrainingConfig:
    """The default network: hand views of rendered hands and of labelled photographs, for two CPU cores."""
    return TrainingConfig(
        preset="default",
        model=NVFConfig(
            input_size=128, width=64, hidden=(256, 128, 64, 64), hand_scale=False,
            encoder="unet", view="hand", pose_code=128,
        ),
        data=DataConfig("synthetic-v2"),
        optimisation=Optimisation(
            optimiser="adamw", learning_rate=1.5e-3, weight_decay=0.02, batch=16, parts=2,
            epochs=None, steps=250_000, schedule="cosine", warmup_steps=200,
            clip_norm=1.0, ema=0.998,
        ),
        save_every=2000,
    )  # fmt: skip


def paper() -> TrainingConfig:
    """The paper's network in hand views, on the same mixture of views as `default`, for one GPU.

    Views have 128 px, as those of `default`. At the paper's 224 px a step would take three times as long and
    a stored view three times the memory.
    """
    return TrainingConfig(
        preset="paper",
        model=NVFConfig(input_size=128, hand_scale=False, view="hand", pose_code=128),
        data=DataConfig("synthetic-v2"),
        replay=ReplayConfig(uses=32),
        optimisation=Optimisation(
            optimiser="adamw", learning_rate=6e-4, weight_decay=0.02, batch=128, parts=8,
            epochs=None, steps=20_000, schedule="cosine", warmup_steps=500,
            clip_norm=1.0, ema=0.999, precision="bfloat16",
        ),
        log_every=200,
        save_every=2000,
    )  # fmt: skip


PRESETS = {
    make.__name__: make
    for make in (
        camera_space,
        camera_space_finetune,
        relative_freihand,
        relative_complement,
        relative_ho3d_finetune,
        default,
        paper,
        small,
    )
}


def _relative(preset: str, data: DataConfig, optimisation: Optimisation) -> TrainingConfig:
    """A root-relative training on crops of 128 px, with λ = 10."""
    task: Task = "root-relative"
    return TrainingConfig(
        preset,
        model=NVFConfig(input_size=128, hand_scale=False, task=task),
        data=data,
        losses=LossConfig(vote_weight=10.0),
        optimisation=optimisation,
    )


def _finetuning() -> Optimisation:
    return Optimisation(epochs=60, milestones=(25, 50))
