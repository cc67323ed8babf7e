"""Loader: a fixed order of images for any number of workers, failing workers, damaged images."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

from nvf_fast.checkpoint import load_checkpoint
from nvf_fast.training.images import ImageBatch
from nvf_fast.training.loader import Order, load_parts
from nvf_fast.training.loop import load_batches, train
from tests.training_cases import Dots, assert_same_state, log_of, saved_training, state_of, tiny


def test_each_epoch_permutes_the_images_and_parts_are_disjoint() -> None:
    order = Order(seed=3, images=14, batch=4, parts=2)
    epochs = [
        [index for step in range(3 * e, 3 * e + 3) for part in range(2) for index in order.part(step, part)]
        for e in range(3)
    ]
    assert all(len(epoch) == len(set(epoch)) == 12 for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert order.part(4, 1) == Order(3, 14, 4, 2).part(4, 1) != Order(4, 14, 4, 2).part(4, 1)
    assert order.part(4, 0) + order.part(4, 1) == Order(3, 14, 4, 1).part(4, 0)


def test_workers_preserve_batches_and_random_state(tmp_path: Path) -> None:
    data = Dots(damaged=(3,))
    trainer = saved_training(tiny(steps=9), tmp_path, data).trainer
    trainer.step = 2  # as after resuming
    before = torch.get_rng_state()
    every = [list(load_batches(trainer, data, workers, 60)) for workers in (0, 1, 2)]
    assert torch.equal(torch.get_rng_state(), before)
    assert [len(steps) for steps in every] == [7, 7, 7]
    for steps in zip(*every, strict=True):
        for inline, *others in zip(*steps, strict=True):
            assert all(torch.equal(inline.images, other.images) for other in others)
            assert all(torch.equal(inline.hands.joints, other.hands.joints) for other in others)
            assert all(inline.damaged == other.damaged for other in others)
    order = Order(seed=0, images=12, batch=4, parts=2)
    expected = [data.images[order.part(2, part)].tolist() for part in (0, 1)]
    assert [part.images.tolist() for part in every[0][0]] == expected


class Silent(Dots):
    def __getitems__(self, indices: list[int]) -> ImageBatch:
        signal.pause()
        raise AssertionError("no signal comes")


class Mortal(Dots):
    def __getitems__(self, indices: list[int]) -> ImageBatch:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("killed above")


@pytest.mark.parametrize(
    ("data", "message"), [(Silent(), "timed out after 1"), (Mortal(), "exited unexpectedly")]
)
def test_refuses_silent_and_dead_workers(data: Dots, message: str) -> None:
    order = Order(seed=0, images=12, batch=4, parts=2)
    with pytest.raises(RuntimeError, match=message):
        next(load_parts(data, order, (0, 1), range(3), workers=1, timeout_s=1))


def test_damaged_images_are_counted_and_named_once(tmp_path: Path) -> None:
    # An epoch of three steps shows each of the twelve images.
    config = tiny(steps=6)
    data = Dots(damaged=(3, 8))
    train(config, data, tmp_path / "whole", progress=False)
    entries = log_of(tmp_path / "whole")
    assert sum(entry["damaged_pictures"] for entry in entries) == 4
    totals = [entry["damaged_pictures_total"] for entry in entries]
    assert totals[-1] == 4 and totals == sorted(totals)
    named = [name for entry in entries for name in entry.get("newly_damaged", [])]
    assert sorted(named) == ["image 3 is torn", "image 8 is torn"]
    assert load_checkpoint(tmp_path / "whole/checkpoint")[1]["training"]["damaged_pictures"] == 4

    finished = False
    while not finished:  # step by step, with workers
        finished = train(config, data, tmp_path / "parts", minutes=0, workers=1, progress=False).finished
    assert_same_state(state_of(tmp_path / "whole"), state_of(tmp_path / "parts"))
