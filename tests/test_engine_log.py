"""The log keeps what happened, once, whatever happened."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from nvf_fast.training import loop
from nvf_fast.training.log import TrainingLog, forget_after
from tests.training_cases import Dots, tiny


def test_later_lines_and_a_torn_one_are_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    lines = [json.dumps({"step": step, "minutes": 0.5}) + "\n" for step in (2, 4, 6)]
    path.write_text("".join(lines) + '{"step": 8, "minu')
    forget_after(tmp_path, 4)
    assert path.read_text() == "".join(lines[:2])
    forget_after(tmp_path / "none", 4)
    assert list(tmp_path.iterdir()) == [path]


def test_only_the_first_process_writes(tmp_path: Path) -> None:
    with TrainingLog(tmp_path / "run", 0, 3, silent=True, progress=True, tensorboard=True) as log:
        log.write(1, 0.1, {"loss": 1.0})
        log.advance()
    assert not (tmp_path / "run").exists()


def test_tensorboard_receives_the_numbers(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = tiny(steps=4, evaluate_every=4)
    loop.train(
        config, Dots(), tmp_path, evaluate=lambda model: {"cs_mje": 12.5}, progress=False, tensorboard=True
    )
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    entries = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    losses = {event.step: event.value for event in events.Scalars("loss")}
    assert losses == pytest.approx({entry["step"]: entry["loss"] for entry in entries if "loss" in entry})
    assert events.Scalars("evaluation/cs_mje")[0].value == 12.5


def test_tensorboard_that_is_missing_is_told_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(ImportError, match=r"pip install 'nvf-fast\[train\]'"):
        loop.train(tiny(), Dots(), tmp_path, progress=False, tensorboard=True)
    assert not list(tmp_path.glob("state-*"))
