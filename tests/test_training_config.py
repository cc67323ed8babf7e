"""Training configurations: presets, schedules, the command line, and inconsistent values."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import tyro

from nvf_fast.cli.train import Train
from nvf_fast.config import NVFConfig
from nvf_fast.model import NVF
from nvf_fast.training.augmentation import Augmentation
from nvf_fast.training.config import PRESETS, Optimisation, small
from nvf_fast.training.losses import LossConfig
from nvf_fast.training.points import PointSampling
from tests.training_cases import tiny


def test_command_line_overrides_a_preset() -> None:
    options = "--out runs/one --optimisation.steps 7 --losses.vote-weight 0.5 --minutes 2"
    run = tyro.cli(Train, args=["small", *options.split()]).preset
    assert run.config == replace(
        small(),
        optimisation=replace(small().optimisation, steps=7),
        losses=replace(small().losses, vote_weight=0.5),
    )
    assert (run.out, run.minutes) == (Path("runs/one"), 2.0)


def test_schedules_of_presets() -> None:
    paper = PRESETS["camera_space"]().optimisation
    images = 24 * 10
    assert paper.total_steps(images) == 6500
    rates = [paper.learning_rate_at(10 * epoch, images) for epoch in (0, 399, 400, 500, 600)]
    assert rates == pytest.approx([1e-4, 1e-4, 1e-5, 1e-6, 1e-7])
    options = small().optimisation
    assert options.learning_rate_at(0, 1000) == pytest.approx(
        options.learning_rate / options.warmup_steps, rel=0.01
    )
    assert options.learning_rate_at(options.warmup_steps, 1000) == pytest.approx(
        options.learning_rate, rel=0.01
    )
    assert options.learning_rate_at(options.total_steps(1000), 1000) == pytest.approx(
        options.final_ratio * options.learning_rate
    )


def test_paper_trains_the_released_encoder_and_hidden_layers_on_the_views_of_default() -> None:
    preset, released = PRESETS["paper"](), NVFConfig()
    assert preset.model.hidden == released.hidden
    with torch.device("meta"):
        shapes, expected = (
            {name: weight.shape for name, weight in NVF(config).encoder.named_parameters()}
            for config in (preset.model, released)
        )
    pooled = {"pooled.weight", "pooled.bias"}
    assert shapes.keys() - pooled == expected.keys()
    assert all(shapes[name] == shape for name, shape in expected.items())
    default = PRESETS["default"]()
    for name in ("data", "views", "hand_losses"):
        assert getattr(preset, name) == getattr(default, name)
    assert preset.model.view == "hand" and preset.replay.uses > 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"model": replace(tiny().model, scale_optional=False)},
        {"augmentation": Augmentation()},
        {"log_every": 0},
    ],
)
def test_refuses_inconsistent_configurations(wrong: dict) -> None:
    with pytest.raises(ValueError, match=r"scale|log_every"):
        tiny(**wrong)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Augmentation(size_range=1.0), "size_range must lie in [0, 1), got 1.0"),
        (lambda: Augmentation(roll_deg=-1.0), "roll_deg must lie in [0, 180], got -1.0"),
        (lambda: Optimisation(schedule="linear"), "schedule must be one of ('milestones', 'cosine'), got"),
        (lambda: Optimisation(ema=0.0), "ema must lie in (0, 1), got 0.0"),
        (lambda: Optimisation(learning_rate=math.inf), "learning_rate must lie in (0, inf), got inf"),
        (lambda: PointSampling(inside=-1, outside=5), "inside must lie in [0, inf), got -1"),
        (lambda: LossConfig(vote_beta=math.nan), "vote_beta must lie in (0, inf), got nan"),
    ],
)
def test_names_the_option_out_of_range(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


def test_ends_of_closed_ranges_are_allowed() -> None:
    Augmentation(roll_deg=180.0, blur=1.0, scale_dropout=0.0)
    Optimisation(final_ratio=0.0, ema=None, clip_norm=None)
