"""Training configurations: presets, schedules, the command line, and inconsistent values."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import tyro

from nvf_fast.cli.train import Train
from nvf_fast.training.augmentation import Augmentation
from nvf_fast.training.config import PRESETS, small
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
