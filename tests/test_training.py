"""The loop: it learns, resumes bit for bit, stops when told, and is the same on two processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import tyro

from nvf_fast.checkpoint import load_checkpoint
from nvf_fast.cli.train import Train
from nvf_fast.synthetic.reference_images import sample_hands
from nvf_fast.training import loop
from nvf_fast.training.augmentation import ABSENT_SCALE_MM, Augmentation, augment
from nvf_fast.training.config import PRESETS, small
from nvf_fast.training.step import Batch
from nvf_fast.volumes import FrustumVolume
from tests.training_cases import (
    SIZE,
    Dots,
    assert_same_state,
    draw_dots,
    free_port,
    output_of,
    python,
    state_of,
    tiny,
)


def test_loss_falls_and_everything_is_written(tmp_path: Path) -> None:
    config = tiny(steps=60, log_every=10, save_every=30, evaluate_every=30)
    seen = []

    def evaluate(model: torch.nn.Module) -> dict[str, float]:
        seen.append(model)
        return {"cs_mje": 12.5}

    result = loop.train(config, Dots(), tmp_path, evaluate=evaluate, progress=False)
    assert result.finished
    assert result.step == 60
    entries = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    losses = [entry["loss"] for entry in entries if "loss" in entry]
    assert len(losses) == 6
    assert losses[-1] < 0.75 * losses[0]  # 0.62 measured
    assert entries[0].keys() >= {
        "step",
        "minutes",
        "images_per_second",
        "learning_rate",
        "sdf",
        "weight",
        "direction",
        "wide",
    }
    assert [entry["step"] for entry in entries if "evaluation" in entry] == [30, 60]
    assert len(seen) == 2
    model, info = load_checkpoint(tmp_path / "checkpoint")
    assert info["training"]["preset"] == "small"
    assert info["training"]["images_seen"] == 240
    assert model.config == config.model
    for name, value in result.model.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-3, atol=1e-4)  # stored in float16
    assert not any("auxiliary" in name or "maps" in name for name in model.state_dict())


def test_resuming_changes_nothing(tmp_path: Path) -> None:
    config = tiny(steps=6)
    loop.train(config, Dots(), tmp_path / "whole", progress=False)
    stopped = loop.train(config, Dots(), tmp_path / "parts", minutes=0, progress=False)
    assert stopped.step == 1
    assert not stopped.finished
    while not stopped.finished:
        stopped = loop.train(config, Dots(), tmp_path / "parts", minutes=0, progress=False)
    assert_same_state(state_of(tmp_path / "whole"), state_of(tmp_path / "parts"))
    again = loop.train(config, Dots(), tmp_path / "parts", progress=False)
    assert again.step == 6


def test_a_lost_newest_state_falls_back_to_the_one_before(tmp_path: Path) -> None:
    config = tiny(steps=4)
    loop.train(config, Dots(), tmp_path, progress=False)
    max(tmp_path.glob("state-*.pt")).unlink()
    trainer = loop.Trainer(config, Dots(), tmp_path, torch.device("cpu"))
    assert trainer.load()
    assert trainer.step == 2
    trainer.log()
    steps = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert steps == [2]


def test_batches_depend_on_seed_and_step_alone(tmp_path: Path) -> None:
    def batch(step: int, seed: int = 0) -> Batch:
        trainer = loop.Trainer(tiny(seed=seed), Dots(), tmp_path, torch.device("cpu"))
        trainer.step = step
        pictures = next(trainer.upcoming())
        trainer.batch(pictures)
        return trainer.batch(pictures)

    first, again = batch(1), batch(1)
    assert torch.equal(first.labels.points, again.labels.points)
    assert torch.equal(first.images, again.images)
    others = [batch(2), batch(4), batch(1, seed=1)]  # step 4 is step 1 of the next epoch
    assert all(not torch.equal(first.labels.points, other.labels.points) for other in others)
    shown = torch.cat([batch(step).joints for step in range(3)])
    alone = (shown[:, None] - shown).norm(dim=-1).mean(-1) + 1e6 * torch.eye(12)
    assert alone.min() > 5  # an epoch shows each hand once


def test_other_configuration_is_refused_by_name(tmp_path: Path) -> None:
    config = tiny(steps=2)
    loop.train(config, Dots(), tmp_path, progress=False)
    other = replace(config, losses=replace(config.losses, vote_weight=0.7), log_every=1)
    with pytest.raises(ValueError, match=r"losses.vote_weight was 0.5, now 0.7$"):
        loop.train(other, Dots(), tmp_path, progress=False)


def test_different_seeds_differ(tmp_path: Path) -> None:
    for seed in (0, 1):
        loop.train(tiny(steps=2, seed=seed), Dots(), tmp_path / str(seed), progress=False)
    first, second = (state_of(tmp_path / str(seed))["model"] for seed in (0, 1))
    assert not torch.equal(first["field.weights.0"], second["field.weights.0"])


def test_not_finite_stops_and_keeps_the_good_state(tmp_path: Path) -> None:
    config = tiny(steps=6)
    loop.train(config, Dots(), tmp_path, minutes=0, progress=False)
    trainer = loop.Trainer(config, Dots(), tmp_path, torch.device("cpu"))
    trainer.load()
    with torch.no_grad():
        trainer.model.field.weights[0].fill_(float("nan"))
    with pytest.raises(loop.NonFiniteLossError, match="loss"):
        trainer.run(trainer.upcoming(), None, None, threading.Event(), trainer.log())
    assert state_of(tmp_path)["step"] == 1
    assert all(value.isfinite().all() for value in state_of(tmp_path)["model"].values())


def test_starts_from_a_checkpoint(tmp_path: Path) -> None:
    config = tiny(steps=3)
    loop.train(config, Dots(), tmp_path / "first", progress=False)
    trainer = loop.Trainer(tiny(steps=3, seed=5), Dots(), tmp_path / "second", torch.device("cpu"))
    trainer.start_from(tmp_path / "first" / "checkpoint")
    model, _ = load_checkpoint(tmp_path / "first" / "checkpoint")
    for name, value in model.state_dict().items():
        assert torch.equal(trainer.model.state_dict()[name], value)
    trainer.save()
    _, info = load_checkpoint(tmp_path / "second" / "checkpoint")
    assert info["training"]["started_from"]["steps"] == 3
    resumed = loop.Trainer(tiny(steps=3, seed=5), Dots(), tmp_path / "second", torch.device("cpu"))
    assert resumed.load() and resumed.started_from == trainer.started_from


@pytest.mark.filterwarnings("ignore:this processor emulates bfloat16")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("optimiser", ["rmsprop", "adamw"])
def test_every_precision_and_optimiser_steps(tmp_path: Path, precision: str, optimiser: str) -> None:
    config = tiny(steps=2)
    options = replace(config.optimisation, precision=precision, optimiser=optimiser, ema=None, clip_norm=None)
    trainer = loop.Trainer(replace(config, optimisation=options), Dots(), tmp_path, torch.device("cpu"))
    before = [parameter.clone() for parameter in trainer.parameters]
    terms, stopping = trainer.update(next(trainer.upcoming()), stop=False)
    assert not stopping
    assert terms["loss"].isfinite()
    assert all(not torch.equal(old, new) for old, new in zip(before, trainer.parameters, strict=True))


@pytest.mark.slow
def test_a_compiled_step_is_the_same_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []

    def compile_eagerly(function: object) -> object:
        compiled.append(function)
        return whole(function, backend="eager")  # traced; no code is generated

    whole = torch.compile
    monkeypatch.setattr(torch, "compile", compile_eagerly)
    terms = []
    for compiling in (False, True):
        config = replace(tiny(), optimisation=replace(tiny().optimisation, compile=compiling))
        trainer = loop.Trainer(config, Dots(), tmp_path, torch.device("cpu"))
        terms.append(trainer.update(next(trainer.upcoming()), stop=False)[0])
    assert len(compiled) == 1
    torch.testing.assert_close(*terms, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("has", [True, False])
def test_emulated_bfloat16_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder, has: bool
) -> None:
    monkeypatch.setattr(loop, "_has_bfloat16", lambda: has)
    config = replace(tiny(), optimisation=replace(tiny().optimisation, precision="bfloat16"))
    loop.Trainer(config, Dots(), tmp_path, torch.device("cpu"))
    assert ["emulates bfloat16" in str(warning.message) for warning in recwarn] == [True] * (not has)


def test_terminating_saves(tmp_path: Path) -> None:
    process = python(
        """
config = replace(tiny(steps=100_000), log_every=1, save_every=100_000)
result = loop.train(config, Dots(), Path(sys.argv[1]), workers=1, progress=False)
print(result.step, result.finished)
""",
        tmp_path,
    )
    log = tmp_path / "log.jsonl"
    while process.poll() is None and not (log.exists() and len(log.read_text().splitlines()) >= 2):
        try:
            process.wait(0.05)
        except subprocess.TimeoutExpired:
            continue
    os.killpg(process.pid, signal.SIGTERM)  # as torchrun does: the process that fetches receives it too
    try:
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    step, finished = output.split()
    assert finished == "False"
    assert state_of(tmp_path)["step"] == int(step) >= 2
    assert load_checkpoint(tmp_path / "checkpoint")[1]["training"]["steps"] == int(step)


def test_two_processes_equal_one(tmp_path: Path) -> None:
    config = tiny(steps=4)
    exact = replace(config.optimisation, precision="float32")
    config = replace(config, optimisation=exact)
    loop.train(config, Dots(), tmp_path / "one", progress=False)
    code = """
def run(rank):
    config = tiny(steps=4)
    config = replace(config, optimisation=replace(config.optimisation, precision="float32"))
    with process_group("cpu", 60):
        loop.train(config, Dots(), sys.argv[1], minutes=0, progress=False)  # a stop that only one may notice
        torch.distributed.barrier()
        assert loop.train(config, Dots(), sys.argv[1], progress=False).finished

ended = launch(run, sys.argv[2])
assert [ended[rank][0] for rank in (0, 1)] == [0, 0]
"""
    output_of(code, tmp_path / "two", free_port())
    # The gradients' sums are grouped otherwise; AdamW makes more of 1e-7 in a gradient near zero.
    assert_same_state(
        state_of(tmp_path / "one")["model"], state_of(tmp_path / "two")["model"], rtol=1e-3, atol=2e-4
    )
    assert_same_state(
        state_of(tmp_path / "one")["averaged"], state_of(tmp_path / "two")["averaged"], rtol=1e-3, atol=2e-4
    )
    losses = [
        json.loads((tmp_path / name / "log.jsonl").read_text().splitlines()[-1])["loss"]
        for name in ("one", "two")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_command_line_overrides_a_preset() -> None:
    arguments = [
        "small",
        "--out",
        "runs/one",
        "--optimisation.steps",
        "7",
        "--losses.vote-weight",
        "0.5",
        "--minutes",
        "2",
    ]
    run = tyro.cli(Train, args=arguments).preset
    assert run.config == replace(
        small(),
        optimisation=replace(small().optimisation, steps=7),
        losses=replace(small().losses, vote_weight=0.5),
    )
    assert (run.out, run.minutes) == (Path("runs/one"), 2.0)


def test_presets_and_their_schedules() -> None:
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
        options.final_share * options.learning_rate
    )


def test_rolled_picture_shows_the_rolled_hand() -> None:
    hands = sample_hands(16, torch.Generator().manual_seed(2))
    pictures = draw_dots(hands.joints, 96)
    rolled, turned, _ = augment(
        pictures, hands, FrustumVolume(), Augmentation(roll_deg=90.0), torch.Generator().manual_seed(0)
    )
    wanted = draw_dots(turned.joints, 96).float() / 127.5 - 1
    assert (turned.joints - hands.joints).abs().amax((1, 2)).count_nonzero() >= 8
    inside = (rolled - wanted)[:, :, 12:-12, 12:-12].abs()
    assert inside.mean() < 0.003  # 0.0008 measured: resampling of the dots; unrolled pictures give 0.01
    unrolled = (pictures.float() / 127.5 - 1 - wanted)[:, :, 12:-12, 12:-12].abs()
    assert inside.mean() < 0.2 * unrolled.mean()


def test_sizes_change_hand_and_distance_alone() -> None:
    hands = sample_hands(8, torch.Generator().manual_seed(2))
    pictures = draw_dots(hands.joints, SIZE)
    images, scaled, scale = augment(
        pictures, hands, FrustumVolume(), Augmentation(size_range=0.1), torch.Generator().manual_seed(0)
    )
    factor = scaled.joints / hands.joints
    torch.testing.assert_close(factor, factor[:, :1, :1].expand_as(factor), rtol=1e-3, atol=0)
    torch.testing.assert_close(scale, hands.hand_scale * factor[:, 0, 0], rtol=1e-3, atol=0)
    assert factor.std() > 0.02
    torch.testing.assert_close(images, pictures.float() / 127.5 - 1)


def test_scale_is_dropped_as_often_as_asked() -> None:
    hands = sample_hands(200, torch.Generator().manual_seed(2))
    pictures = torch.zeros(200, 3, 8, 8, dtype=torch.uint8)
    _, _, scale = augment(
        pictures, hands, FrustumVolume(), Augmentation(scale_dropout=0.3), torch.Generator().manual_seed(0)
    )
    dropped = scale == ABSENT_SCALE_MM
    assert 0.2 < dropped.float().mean() < 0.4
    assert torch.equal(scale[~dropped], hands.hand_scale[~dropped])


def test_photometric_changes_stay_in_range_and_change() -> None:
    hands = sample_hands(4, torch.Generator().manual_seed(2))
    pictures = draw_dots(hands.joints, SIZE)
    strong = Augmentation(brightness=0.5, contrast=0.5, colour=0.3, noise=0.1, blur=1.0)
    images, _, _ = augment(pictures, hands, FrustumVolume(), strong, torch.Generator().manual_seed(0))
    assert images.abs().max() <= 1
    assert (images - (pictures.float() / 127.5 - 1)).abs().mean() > 0.01


@pytest.mark.parametrize(
    "wrong",
    [
        {"model": replace(tiny().model, scale_optional=False)},
        {"augmentation": Augmentation()},
        {"log_every": 0},
    ],
)
def test_refuses_configurations_that_do_not_fit(wrong: dict) -> None:
    with pytest.raises(ValueError, match=r"scale|log_every"):
        tiny(**wrong)


@pytest.mark.cuda
def test_trains_on_the_gpu(tmp_path: Path) -> None:
    result = loop.train(tiny(steps=30), Dots(), tmp_path, device="cuda", progress=False)
    assert result.finished
    entries = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert entries[-1]["loss"] < entries[0]["loss"]
