"""Training: learning, exact resuming, stopping, several processes, precisions and optimisers."""

from __future__ import annotations

import os
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nvf_fast.checkpoint import load_checkpoint
from nvf_fast.runtime.store import ResumeError
from nvf_fast.training.config import TrainingConfig
from nvf_fast.training.loader import load_batches
from nvf_fast.training.log import NonFiniteLossError
from nvf_fast.training.loop import train
from nvf_fast.training.objectives import Batch
from nvf_fast.training.trainer import Trainer
from tests.training_cases import (
    Dots,
    assert_same_state,
    free_port,
    log_of,
    output_of,
    python,
    saved_training,
    state_of,
    tiny,
)


def trainer_of(config: TrainingConfig) -> Trainer:
    return Trainer(config, len(Dots()), torch.device("cpu"))


def test_loss_falls_and_checkpoint_log_and_scores_are_written(tmp_path: Path) -> None:
    config = tiny(steps=60, log_every=10, save_every=30, evaluate_every=30)
    evaluated = []

    def evaluate(model: torch.nn.Module) -> dict[str, float]:
        evaluated.append(model)
        return {"cs_mje": 12.5}

    result = train(config, Dots(), tmp_path, evaluate=evaluate, progress=False)
    assert result.finished
    assert result.step == 60
    entries = log_of(tmp_path)
    losses = [entry["loss"] for entry in entries if "loss" in entry]
    assert len(losses) == 6
    assert losses[-1] < 0.75 * losses[0]  # 0.62 measured
    names = {"step", "minutes", "images_per_second", "learning_rate", "sdf", "weight", "direction", "wide"}
    assert entries[0].keys() >= names
    assert [entry["step"] for entry in entries if "evaluation" in entry] == [30, 60]
    assert len(evaluated) == 2
    model, info = load_checkpoint(tmp_path / "checkpoint")
    assert info["training"]["preset"] == "small"
    assert info["training"]["images_seen"] == 240
    assert model.config == config.model
    for name, value in result.model.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-3, atol=1e-4)  # stored in float16
    assert not any("auxiliary" in name or "maps" in name for name in model.state_dict())


def test_resumed_training_equals_uninterrupted(tmp_path: Path) -> None:
    config = tiny(steps=6)
    train(config, Dots(), tmp_path / "whole", progress=False)
    stopped = train(config, Dots(), tmp_path / "parts", minutes=0, progress=False)
    assert stopped.step == 1
    assert not stopped.finished
    while not stopped.finished:
        stopped = train(config, Dots(), tmp_path / "parts", minutes=0, progress=False)
    assert_same_state(state_of(tmp_path / "whole"), state_of(tmp_path / "parts"))
    again = train(config, Dots(), tmp_path / "parts", progress=False)
    assert again.step == 6


def test_batches_depend_on_seed_and_step_alone() -> None:
    def batch(step: int, seed: int = 0) -> Batch:
        trainer = trainer_of(tiny(seed=seed))
        trainer.step = step
        parts = next(load_batches(trainer, Dots()))
        trainer.batch(parts)
        return trainer.batch(parts)

    first, again = batch(1), batch(1)
    assert torch.equal(first.labels.points, again.labels.points)
    assert torch.equal(first.images, again.images)
    others = [batch(2), batch(4), batch(1, seed=1)]  # step 4 is step 1 of the next epoch
    assert all(not torch.equal(first.labels.points, other.labels.points) for other in others)
    shown = torch.cat([batch(step).joints for step in range(3)])
    alone = (shown[:, None] - shown).norm(dim=-1).mean(-1) + 1e6 * torch.eye(12)
    assert alone.min() > 5  # an epoch contains each hand once


def test_different_seeds_differ(tmp_path: Path) -> None:
    for seed in (0, 1):
        train(tiny(steps=2, seed=seed), Dots(), tmp_path / str(seed), progress=False)
    first, second = (state_of(tmp_path / str(seed))["model"] for seed in (0, 1))
    assert not torch.equal(first["field.weights.0"], second["field.weights.0"])


def test_non_finite_loss_stops_and_keeps_the_last_state(tmp_path: Path) -> None:
    config, data = tiny(steps=6), Dots()
    train(config, data, tmp_path, minutes=0, progress=False)
    before = state_of(tmp_path)
    data.hands.joints[:] = float("nan")
    with pytest.raises(NonFiniteLossError, match=r"not finite in the 1 steps up to step 2: .*loss"):
        train(config, data, tmp_path, progress=False)
    assert_same_state(state_of(tmp_path), before)
    assert before["step"] == 1 and all(value.isfinite().all() for value in before["model"].values())


def test_starts_from_a_checkpoint(tmp_path: Path) -> None:
    config = tiny(steps=3)
    train(config, Dots(), tmp_path / "first", progress=False)
    saved = saved_training(tiny(steps=3, seed=5), tmp_path / "second")
    saved.start_from(tmp_path / "first" / "checkpoint")
    model, _ = load_checkpoint(tmp_path / "first" / "checkpoint")
    for name, value in model.state_dict().items():
        assert torch.equal(saved.trainer.model.state_dict()[name], value)
    saved.save()
    _, info = load_checkpoint(tmp_path / "second" / "checkpoint")
    assert info["training"]["started_from"]["steps"] == 3
    resumed = saved_training(tiny(steps=3, seed=5), tmp_path / "second")
    assert resumed.resume() and resumed.started_from == saved.started_from


def test_resumes_only_with_the_checkpoint_that_it_started_from(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    train(tiny(steps=1), Dots(), first, progress=False)
    config, start, other = tiny(steps=2, seed=5), first / "checkpoint", second / "checkpoint"
    train(config, Dots(), second, start=start, minutes=0, progress=False)
    refusal = r"second holds a run that did not begin from .*: resume it without"
    with pytest.raises(ResumeError, match=refusal):
        train(config, Dots(), second, start=other, progress=False)
    assert train(config, Dots(), second, start=start, progress=False).finished
    with pytest.raises(ResumeError, match="first holds a run that did not begin from"):
        train(tiny(steps=1), Dots(), first, start=start, progress=False)


@pytest.mark.filterwarnings("ignore:this processor emulates bfloat16")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("optimiser", ["rmsprop", "adamw"])
def test_every_precision_and_optimiser_steps(precision: str, optimiser: str) -> None:
    config = tiny(steps=2)
    options = replace(config.optimisation, precision=precision, optimiser=optimiser, ema=None, clip_norm=None)
    trainer = trainer_of(replace(config, optimisation=options))
    before = [parameter.clone() for parameter in trainer.parameters]
    terms, stopping = trainer.update(next(load_batches(trainer, Dots())))
    assert not stopping
    assert terms["loss"].isfinite()
    assert all(not torch.equal(old, new) for old, new in zip(before, trainer.parameters, strict=True))


def test_averaged_weights_follow_the_recursion() -> None:
    """Their decay is at most step / (step + 20), which soon forgets the first weights."""
    options = replace(tiny().optimisation, ema=0.06)
    trainer = trainer_of(replace(tiny(), optimisation=options))
    for network, value in ((trainer.model, 1.0), (trainer.averaged, 0.0)):
        network.register_buffer("statistic", torch.tensor(value))
    expected = {name: value.clone() for name, value in trainer.averaged.state_dict().items()}
    parts = next(load_batches(trainer, Dots()))
    for decay in (1 / 21, 0.06):
        trainer.update(parts)
        for name, value in trainer.model.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * value
    torch.testing.assert_close(trainer.averaged.state_dict(), expected)
    assert trainer.exported is trainer.averaged


def test_gradients_of_one_batch_are_clipped_and_matrices_alone_decay() -> None:
    options = replace(tiny().optimisation, clip_norm=1e-3, learning_rate=1e-9, precision="float32")
    trainer = trainer_of(replace(tiny(), optimisation=options))
    parts, norms = next(load_batches(trainer, Dots())), []
    for _ in range(2):
        terms, _ = trainer.update(parts)
        trainer.step = 0  # the same random numbers again
        norms.append(terms["gradient_norm"].item())
        gradients = [parameter.grad.norm() for parameter in trainer.parameters]  # type: ignore[union-attr]
        assert torch.stack(gradients).norm().item() == pytest.approx(1e-3, rel=1e-3)
        assert not any(value.requires_grad for value in terms.values())
    assert norms[1] == pytest.approx(norms[0], rel=1e-4) and norms[0] > 0.01
    decays = {
        parameter.ndim > 1: group["weight_decay"]
        for group in trainer.optimiser.param_groups
        for parameter in group["params"]
    }
    assert decays == {True: options.weight_decay, False: 0.0} and options.weight_decay > 0


@pytest.mark.slow
def test_compiled_step_equals_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []

    def compile_eagerly(function: object) -> object:
        compiled.append(function)
        return whole(function, backend="eager")  # traced; no code is generated

    whole = torch.compile
    monkeypatch.setattr(torch, "compile", compile_eagerly)
    terms = []
    for compiling in (False, True):
        config = replace(tiny(), optimisation=replace(tiny().optimisation, compile=compiling))
        trainer = trainer_of(config)
        terms.append(trainer.update(next(load_batches(trainer, Dots())))[0])
    assert len(compiled) == 1
    torch.testing.assert_close(*terms, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("has", [True, False])
def test_warns_of_emulated_bfloat16(
    monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder, has: bool
) -> None:
    monkeypatch.setattr("torch.backends.mkldnn.is_available", lambda: has)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: has)
    config = replace(tiny(), optimisation=replace(tiny().optimisation, precision="bfloat16"))
    trainer_of(config)
    assert ["emulates bfloat16" in str(warning.message) for warning in recwarn] == [True] * (not has)


def test_sigterm_saves_and_ends(tmp_path: Path) -> None:
    process = python(
        """
config = replace(tiny(steps=100_000), log_every=1, save_every=100_000)
result = train(config, Dots(), Path(sys.argv[1]), workers=1, progress=False)
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
    os.killpg(process.pid, signal.SIGTERM)  # as torchrun does: the worker that loads receives it too
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
    train(config, Dots(), tmp_path / "one", progress=False)
    code = """
def run(rank):
    config = tiny(steps=4)
    config = replace(config, optimisation=replace(config.optimisation, precision="float32"))
    with process_group("cpu", 60):
        train(config, Dots(), sys.argv[1], minutes=0, progress=False)  # a stop that only one may notice
        torch.distributed.barrier()
        assert train(config, Dots(), sys.argv[1], progress=False).finished

ended = launch(run, sys.argv[2])
assert [ended[rank][0] for rank in (0, 1)] == [0, 0]
"""
    output_of(code, tmp_path / "two", free_port())
    # Gradients sum in another order, and AdamW amplifies 1e-7 in gradients near zero.
    one, two = (state_of(tmp_path / name) for name in ("one", "two"))
    for name in ("model", "averaged"):
        assert_same_state(one[name], two[name], rtol=1e-3, atol=2e-4)
    losses = [log_of(tmp_path / name)[-1]["loss"] for name in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.cuda
def test_trains_on_the_gpu(tmp_path: Path) -> None:
    result = train(tiny(steps=30), Dots(), tmp_path, device="cuda", progress=False)
    assert result.finished
    entries = log_of(tmp_path)
    assert entries[-1]["loss"] < entries[0]["loss"]
