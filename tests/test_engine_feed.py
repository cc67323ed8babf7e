"""Pictures come in a fixed order, however they are fetched, and damaged ones are counted."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch

from nvf_fast.checkpoint import load_checkpoint
from nvf_fast.training import loop
from nvf_fast.training.feed import Order, fetched
from nvf_fast.training.pictures import PictureBatch
from tests.training_cases import Dots, assert_same_state, state_of, tiny


def test_an_epoch_shows_each_picture_once_and_parts_share_no_picture() -> None:
    order = Order(seed=3, pictures=14, batch=4, parts=2)
    epochs = [
        [index for step in range(3 * e, 3 * e + 3) for part in range(2) for index in order.part(step, part)]
        for e in range(3)
    ]
    assert all(len(epoch) == len(set(epoch)) == 12 for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert order.part(4, 1) == Order(3, 14, 4, 2).part(4, 1) != Order(4, 14, 4, 2).part(4, 1)
    assert order.part(4, 0) + order.part(4, 1) == Order(3, 14, 4, 1).part(4, 0)


def test_workers_change_no_batch_and_no_random_number(tmp_path: Path) -> None:
    trainer = loop.Trainer(tiny(steps=9), Dots(damaged=(3,)), tmp_path, torch.device("cpu"))
    trainer.step = 2  # as after resuming
    before = torch.get_rng_state()
    every: list[list[list[PictureBatch]]] = [list(trainer.upcoming(workers, 60)) for workers in (0, 1, 2)]
    assert torch.equal(torch.get_rng_state(), before)
    assert [len(steps) for steps in every] == [7, 7, 7]
    for steps in zip(*every, strict=True):
        for inline, *others in zip(*steps, strict=True):
            assert all(torch.equal(inline.images, other.images) for other in others)
            assert all(torch.equal(inline.hands.joints, other.hands.joints) for other in others)
            assert all(inline.damaged == other.damaged for other in others)
    wanted = [trainer.order.part(2, part) for part in (0, 1)]
    assert [part.images.tolist() for part in every[0][0]] == [Dots().pictures[w].tolist() for w in wanted]


class Silent(Dots):
    def __getitems__(self, indices: list[int]) -> PictureBatch:
        signal.pause()
        raise AssertionError("nobody wakes it")


class Mortal(Dots):
    def __getitems__(self, indices: list[int]) -> PictureBatch:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("it is dead")


@pytest.mark.parametrize(
    ("pictures", "told"), [(Silent(), "timed out after 1"), (Mortal(), "exited unexpectedly")]
)
def test_a_worker_that_is_silent_or_dies_is_an_error(pictures: Dots, told: str) -> None:
    order = Order(seed=0, pictures=12, batch=4, parts=2)
    with pytest.raises(RuntimeError, match=told):
        next(fetched(pictures, order, (0, 1), range(3), workers=1, pinned=False, timeout_s=1))


def test_damaged_pictures_are_counted_and_named_once(tmp_path: Path) -> None:
    # An epoch of three steps shows each of the twelve pictures.
    config = tiny(steps=6)
    pictures = Dots(damaged=(3, 8))
    loop.train(config, pictures, tmp_path / "whole", progress=False)
    entries = [json.loads(line) for line in (tmp_path / "whole/log.jsonl").read_text().splitlines()]
    assert sum(entry["damaged_pictures"] for entry in entries) == 4
    totals = [entry["damaged_pictures_total"] for entry in entries]
    assert totals[-1] == 4 and totals == sorted(totals)
    named = [name for entry in entries for name in entry.get("newly_damaged", [])]
    assert sorted(named) == ["picture 3 is torn", "picture 8 is torn"]
    assert load_checkpoint(tmp_path / "whole/checkpoint")[1]["training"]["damaged_pictures"] == 4

    finished = False
    while not finished:  # step by step, with workers
        finished = loop.train(
            config, pictures, tmp_path / "parts", minutes=0, workers=1, progress=False
        ).finished
    assert_same_state(state_of(tmp_path / "whole"), state_of(tmp_path / "parts"))


def test_the_progress_bar_tells_of_damage(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    loop.train(tiny(steps=2, log_every=1), Dots(damaged=tuple(range(12))), tmp_path / "damaged")
    shown = capfd.readouterr().err
    assert "damaged=8" in shown and "img/s=" in shown and "sdf=" in shown
    loop.train(tiny(steps=2, log_every=1), Dots(), tmp_path / "whole")
    assert "damaged" not in capfd.readouterr().err
