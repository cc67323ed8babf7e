"""The training log: dropped lines, silent processes, TensorBoard and the progress bar."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from nvf_fast.training.log import TrainingLog, forget_after
from nvf_fast.training.loop import train
from tests.training_cases import Dots, log_of, tiny


def test_drops_later_lines_and_a_torn_one(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    lines = [json.dumps({"step": step, "minutes": 0.5}) + "\n" for step in (2, 4, 6)]
    path.write_text("".join(lines) + '{"step": 8, "minu')
    forget_after(tmp_path, 4)
    assert path.read_text() == "".join(lines[:2])
    forget_after(tmp_path / "none", 4)
    assert list(tmp_path.iterdir()) == [path]


def test_drops_damaged_lines_with_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    good = b'{"step": 2}\n'
    bad = [b"\0\0\n", b"[1]\n", b'{"step": "2"}\n', b"\xff\n", b"[" * 100_000 + b"\n", b"\n"]
    path.write_bytes(good + b"".join(bad) + good)
    with pytest.warns(UserWarning, match=r"log\.jsonl: 6 damaged lines are dropped"):
        forget_after(tmp_path, 2)
    assert path.read_bytes() == 2 * good


def test_only_the_first_process_writes(tmp_path: Path) -> None:
    with TrainingLog(tmp_path / "run", 0, 3, silent=True, progress=True, tensorboard=True) as log:
        log.write(1, 0.1, {"loss": 1.0})
        log.add({"loss": torch.ones(())})
    assert not (tmp_path / "run").exists()


def test_tensorboard_shows_the_numbers_of_the_log(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = tiny(steps=4, evaluate_every=4)
    train(config, Dots(), tmp_path, evaluate=lambda model: {"cs_mje": 12.5}, progress=False, tensorboard=True)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    entries = log_of(tmp_path)
    losses = {event.step: event.value for event in events.Scalars("loss")}
    assert losses == pytest.approx({entry["step"]: entry["loss"] for entry in entries if "loss" in entry})
    assert events.Scalars("evaluation/cs_mje")[0].value == 12.5


def test_refuses_missing_tensorboard_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(ImportError, match=r"pip install 'nvf-fast\[train\]'"):
        train(tiny(), Dots(), tmp_path, progress=False, tensorboard=True)
    assert not list(tmp_path.glob("state-*"))


def test_progress_bar_shows_losses_and_damaged_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(steps=2, log_every=1, evaluate_every=2)
    train(config, Dots(), tmp_path / "to_a_file", evaluate=lambda model: {"cs_mje": 12.5})
    assert capsys.readouterr() == ("", "step 2: cs_mje 12.5\n")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    train(tiny(steps=2, log_every=1), Dots(damaged=tuple(range(12))), tmp_path / "damaged")
    shown = capsys.readouterr().err
    assert "damaged=8" in shown and "img/s=" in shown and "sdf=" in shown
    train(tiny(steps=2, log_every=1), Dots(), tmp_path / "whole")
    assert "damaged" not in capsys.readouterr().err
