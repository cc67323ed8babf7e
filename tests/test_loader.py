"""Loader: a fixed order of images for any number of workers, failing workers, damaged images."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nvf_fast.checkpoint import load_checkpoint
from nvf_fast.training.images import ImageBatch
from nvf_fast.training.loader import load_batches, part_of
from nvf_fast.training.loop import train
from nvf_fast.training.trainer import Trainer
from tests.training_cases import Dots, assert_same_state, log_of, state_of, tiny


def test_each_epoch_permutes_the_images_and_parts_are_disjoint() -> None:
    def part(step: int, part: int, seed: int = 3, parts: int = 2) -> list[int]:
        options = replace(tiny().optimisation, batch=4, parts=parts)
        return part_of(tiny(seed=seed, optimisation=options), 14, step, part)

    epochs = [
        [index for step in range(3 * e, 3 * e + 3) for number in range(2) for index in part(step, number)]
        for e in range(3)
    ]
    assert all(len(epoch) == len(set(epoch)) == 12 for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert part(4, 1) != part(4, 1, seed=4)
    assert part(4, 0) + part(4, 1) == part(4, 0, parts=1)


def test_workers_preserve_batches_and_random_state() -> None:
    data = Dots(damaged=(3,))
    trainer = Trainer(tiny(steps=9), 12, torch.device("cpu"))
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
    expected = [data.images[part_of(tiny(), 12, 2, part)].tolist() for part in (0, 1)]
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
    trainer = Trainer(tiny(), 12, torch.device("cpu"))
    with pytest.raises(RuntimeError, match=message):
        next(load_batches(trainer, data, workers=1, timeout_s=1))


def test_damaged_images_are_counted_and_named_once(tmp_path: Path) -> None:
    # An epoch of three steps shows each of the twelve images.
    config = tiny(steps=6)
    data = Dots(damaged=(3, 8))
    train(config, data, tmp_path / "whole", progress=False)
    entries = log_of(tmp_path / "whole")
    assert sum(entry["damaged_images"] for entry in entries) == 4
    totals = [entry["damaged_images_total"] for entry in entries]
    assert totals[-1] == 4 and totals == sorted(totals)
    named = [name for entry in entries for name in entry.get("newly_damaged", [])]
    assert sorted(named) == ["image 3 is torn", "image 8 is torn"]
    assert load_checkpoint(tmp_path / "whole/checkpoint")[1]["training"]["damaged_images"] == 4

    finished = False
    while not finished:  # step by step, with workers
        finished = train(config, data, tmp_path / "parts", minutes=0, workers=1, progress=False).finished
    assert_same_state(state_of(tmp_path / "whole"), state_of(tmp_path / "parts"))
