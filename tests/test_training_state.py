"""Training states: resuming, falling back, and refusing those of another training."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nvf_fast.runtime.store import ResumeError
from nvf_fast.training.config import TrainingConfig
from nvf_fast.training.loop import train
from tests.training_cases import Dots, assert_same_state, log_of, saved_training, state_of, tiny


def steps_of(directory: Path) -> list[int]:
    return sorted(int(path.name.split("-")[1]) for path in directory.glob("state-*.pt"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainingConfig, Path]:
    config, directory = tiny(steps=4), tmp_path_factory.mktemp("finished")
    train(config, Dots(), directory, progress=False)
    assert steps_of(directory) == [2, 4]
    return config, directory


@pytest.fixture
def trained(finished: tuple[TrainingConfig, Path], tmp_path: Path) -> tuple[TrainingConfig, Path]:
    """A training of four steps in a separate folder."""
    return finished[0], Path(shutil.copytree(finished[1], tmp_path / "trained"))


def test_damaged_state_falls_back_and_trains_the_same_again(trained: tuple[TrainingConfig, Path]) -> None:
    config, directory = trained
    newest, expected = max(directory.glob("state-*.pt")), state_of(directory)
    newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.warns(UserWarning, match=rf"damaged: {newest.name}; resuming from state-000000002-"):
        assert train(config, Dots(), directory, progress=False).step == 4
    entries = log_of(directory)
    assert [entry["damaged_states"] for entry in entries if "damaged_states" in entry] == [[newest.name]]
    assert steps_of(directory) == [2, 4]  # the damaged state was removed
    assert_same_state(state_of(directory), expected)


def test_refuses_damaged_states_alone(trained: tuple[TrainingConfig, Path]) -> None:
    config, directory = trained
    newest, before = sorted(directory.glob("state-*.pt"), reverse=True)
    for path in (newest, before):
        path.write_bytes(b"")
    with pytest.raises(
        ResumeError, match=f"every state is damaged: {newest.name}, {before.name}; restore one"
    ):
        train(config, Dots(), directory, progress=False)
    assert steps_of(directory) == [2, 4]


def test_refuses_another_training_by_its_differences(trained: tuple[TrainingConfig, Path]) -> None:
    config, directory = trained
    options = replace(config.optimisation, parts=4, learning_rate=0.5)
    with pytest.raises(ResumeError, match="holds another training run") as refused:
        train(replace(config, optimisation=options), Dots(13), directory, progress=False)
    for difference in ("parts was 2, now 4", "learning_rate was 0.0013, now 0.5", "count was 12, now 13"):
        assert difference in str(refused.value)
    other = Dots()
    other.images[3] += 1
    with pytest.raises(ResumeError, match=r"differing: images.fingerprint was '\w+', now '\w+'$"):
        train(config, other, directory, progress=False)


def test_resumes_a_state_with_former_names(trained: tuple[TrainingConfig, Path]) -> None:
    config, directory = trained
    saved = saved_training(config, directory)
    state = state_of(directory)
    identity = json.loads(state["identity"])
    identity["pictures"] = identity.pop("images")
    del identity["config"]["model"]["joints"], identity["config"]["model"]["image_channels"]
    options = identity["config"]["optimisation"]
    options["final_share"] = options.pop("final_ratio")
    torch.save(state | {"identity": json.dumps(identity)}, directory / "state")
    saved.store.write((directory / "state").read_bytes(), "000000004")
    assert saved.resume() and saved.trainer.step == 4


def test_logging_and_saving_may_change(trained: tuple[TrainingConfig, Path]) -> None:
    config, directory = trained
    assert train(replace(config, log_every=1, save_every=9), Dots(), directory, progress=False).finished


def test_another_environment_needs_inexact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny(steps=3)
    assert not train(config, Dots(), tmp_path, minutes=0, progress=False).finished
    monkeypatch.setattr(torch, "__version__", "1.0")
    with pytest.raises(ResumeError, match=r"bit for bit.*: torch was '.+', now '1.0'$"):
        train(config, Dots(), tmp_path, progress=False)
    assert train(config, Dots(), tmp_path, inexact=True, progress=False).finished
    monkeypatch.setattr(torch, "__version__", "2.0")  # a finished training cannot differ
    assert train(config, Dots(), tmp_path, progress=False).finished


def test_refuses_missing_tensors_and_entries(trained: tuple[TrainingConfig, Path]) -> None:
    config, directory = trained
    whole = state_of(directory)
    store = saved_training(config, directory).store
    for state, message in (
        (whole | {"averaged": {}, "auxiliary": {}}, r"averaged: \d+ missing: .*; auxiliary: 6 missing"),
        ({name: value for name, value in whole.items() if name != "random"}, "a state without random"),
        (whole | {"version": 1}, "version 1, this library reads 2"),
    ):
        torch.save(state, directory / "state")  # three states of one step: the last written is the newest
        store.write((directory / "state").read_bytes(), "000000009")
        with pytest.raises(ResumeError, match=message):
            saved_training(config, directory).resume()


def test_global_random_numbers_are_restored(trained: tuple[TrainingConfig, Path]) -> None:
    config, directory = trained
    saved = saved_training(config, directory)
    torch.manual_seed(7)
    torch.rand(5)
    saved.save()
    expected = torch.rand(3)
    assert saved_training(config, directory).resume()
    assert torch.equal(torch.rand(3), expected)


def test_resuming_drops_later_lines_of_the_log(trained: tuple[TrainingConfig, Path]) -> None:
    config, directory = trained
    expected = [{**entry, "minutes": 0, "images_per_second": 0} for entry in log_of(directory)]
    max(directory.glob("state-*.pt")).unlink()
    assert train(config, Dots(), directory, progress=False).step == 4
    assert [{**entry, "minutes": 0, "images_per_second": 0} for entry in log_of(directory)] == expected
