"""Trainings of the tables' networks: variants of the method, and the stages of each."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, cast

from nvf_fast.config import Method, NVFConfig, Task
from nvf_fast.data.catalogue import DataConfig
from nvf_fast.synthetic.dataset import SyntheticConfig
from nvf_fast.training.config import PRESETS, TrainingConfig
from nvf_fast.training.points import PointSampling

Role = Literal["freihand", "complement", "ho3d"]
FINETUNING_EPOCHS = 60
EXTRA_SEED = 77  # of the synthetic images that stand for Complement


@dataclass(frozen=True)
class Variant:
    """One trained network of the tables."""

    method: Method = "nvf"  # NVF or a baseline
    task: Task = "camera-space"  # camera-space, on FreiHAND; or root-relative, on HO-3D
    hand_scale: bool = False  # whether it takes the hand scale
    extra: bool = False  # whether it was pre-trained on Complement
    surface_mm: float = 5.0  # the clamping distance δ, in training and inference
    nearest: int = 1024  # K, the neighbours per joint that carry votes in training

    @property
    def name(self) -> str:
        """Name of its folders, such as "nvf-camera-space-scale-extra"."""
        parts: list[str] = [self.method, self.task]
        parts += ["scale"] * self.hand_scale + ["extra"] * self.extra
        parts += [f"surface{self.surface_mm:g}"] * (self.surface_mm != 5.0)
        parts += [f"nearest{self.nearest}"] * (self.nearest != 1024)
        return "-".join(parts)


@dataclass(frozen=True)
class Stage:
    """One training."""

    name: str  # of its folder
    role: Role  # of its data set
    config: TrainingConfig  # its numbers
    after: str | None = None  # the stage whose checkpoint it begins from, if any


@dataclass(frozen=True)
class Reduced:
    """Sizes of short trainings of small networks; their losses have the additions for short trainings."""

    steps: int  # of a training from scratch, of which fine-tuning takes a third
    batch: int  # images of a step
    network: NVFConfig  # network's sizes; both tasks use its size of images
    sampling: PointSampling  # query points
    learning_rate: float  # peak of a cosine schedule of AdamW


@dataclass(frozen=True)
class Size:
    """Size of trainings and evaluations."""

    name: str  # "paper", or the label of a smaller one
    reduced: Reduced | None = None  # sizes of smaller trainings; None for the paper's
    images: int | None = None  # for training, of each set; None is all
    evaluated: int | None = None  # images; None is all
    precision: Literal["float32", "bfloat16"] = "float32"  # of the trainings
    compile: bool = False  # whether torch.compile makes the steps


PAPER = Size("paper")

# A minute or two per training on two cores: enough to test the code, and far too little to rank methods.
SMOKE = Size(
    "smoke run",
    Reduced(
        steps=240,
        batch=16,
        network=NVFConfig(
            input_size=64, stem=24, width=48, widen=24, stacks=1, depth=3, groups=8, hidden=(128, 64, 64, 64)
        ),
        sampling=PointSampling(surface=160, sphere=40, frustum=40, inside=None, outside=None, ray_points=160),
        learning_rate=1.5e-3,
    ),
    images=1024,
    evaluated=32,
)


def stages(variant: Variant, size: Size, real: frozenset[Role], seed: int = 0) -> list[Stage]:
    """The trainings of a variant, in order.

    Args:
        variant: of the network.
        size: of the trainings.
        real: available data sets; synthetic images replace the others.
        seed: of all trainings.
    """
    chosen = ["camera_space"]
    if variant.task == "root-relative":
        chosen = ["relative_freihand", "relative_ho3d_finetune"]
    elif variant.extra:
        chosen = ["relative_complement", "camera_space_finetune"]
    presets = [PRESETS[name]() for name in chosen]
    names = [f"{variant.name}-pretrained", variant.name][-len(presets) :]
    return [
        Stage(name, role, _trained(preset, role, variant, size, real, seed), after)
        for name, preset, after in zip(names, presets, [None, *names], strict=False)
        for role in [cast(Role, preset.data.dataset)]
    ]


def data_for(role: Role, size: Size, real: frozenset[Role]) -> DataConfig:
    """The data set of a role, or its synthetic replacement."""
    if role in real:
        return DataConfig(role)
    if role == "complement":
        return DataConfig("synthetic", SyntheticConfig(count=size.images or 20_000, seed=EXTRA_SEED))
    return DataConfig("synthetic-v2")


def _trained(
    preset: TrainingConfig, role: Role, variant: Variant, size: Size, real: frozenset[Role], seed: int
) -> TrainingConfig:
    """A preset with a variant's network and losses at a size."""
    clamp = variant.surface_mm
    losses = replace(preset.losses, clamp_mm=clamp, surface_mm=clamp, nearest=variant.nearest)
    options = replace(preset.optimisation, precision=size.precision, compile=size.compile)
    data = data_for(role, size, real)
    config = replace(preset, seed=seed, data=data, losses=losses, optimisation=options)
    if size.reduced is not None:
        config = _reduced(config, variant, size.reduced)
    network = replace(config.model, method=variant.method, scale_optional=False)
    return replace(config, model=replace(network, hand_scale=variant.hand_scale))


def _reduced(config: TrainingConfig, variant: Variant, size: Reduced) -> TrainingConfig:
    options = config.optimisation
    # The paper's ratio, 60 epochs of 650, would leave almost no steps for fine-tuning.
    steps = math.ceil(size.steps / 3) if options.epochs == FINETUNING_EPOCHS else size.steps
    losses = replace(config.losses, vote_beta=0.2)
    if variant.method == "nvf":
        losses = replace(losses, vote_weight=0.5, vote_normalisation="near", wide_weight=0.2)
    return replace(
        config,
        model=replace(size.network, task=config.model.task),
        sampling=size.sampling,
        losses=losses,
        optimisation=replace(
            options, epochs=None, steps=steps, batch=size.batch, parts=math.gcd(size.batch, options.parts),
            optimiser="adamw", learning_rate=size.learning_rate, schedule="cosine", clip_norm=1.0,
            warmup_steps=min(30, steps),
        ),
        save_every=min(config.save_every, steps),
    )  # fmt: skip
