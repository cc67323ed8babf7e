"""Runs that are killed, or that meet full disks, folders without permission and damaged images."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from nvf_fast.checkpoint import load_checkpoint, save_checkpoint
from nvf_fast.evaluation.dataset_predictions import save_predictions
from nvf_fast.evaluation.run import predict
from nvf_fast.training.state import SavedTraining
from tests.evaluation_cases import Fixed, Images
from tests.faults.children import (
    Child,
    command,
    count_operations,
    killed_at,
    largest_file,
    without_override,
)
from tests.faults.promises import Outcome, Promise
from tests.reference_cases import reference_network
from tests.training_cases import saved_training, tiny

KILLS_OF_A_RUN = 5
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
STATUSES = (-signal.SIGKILL, -signal.SIGTERM, 130)
MB = 1e6


class PredictRun:
    """`nvf-fast predict` of images, some of them damaged, into a folder of its own.

    Args:
        place: for the images, the checkpoint and the outputs.
        count: images; they share the contents of `PHOTOGRAPHS`.
        damaged: every n-th image is damaged.
    """

    PHOTOGRAPHS = 6

    def __init__(self, place: Path, count: int, damaged: int) -> None:
        self.images, self.place = [], place
        (place / "images").mkdir()
        for number in range(self.PHOTOGRAPHS):
            pixels = np.random.default_rng(number).integers(0, 256, (24, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(place / f"{number}.png")
        whole = (place / "0.png").read_bytes()
        (place / "damaged.png").write_bytes(whole[: len(whole) // 2])
        for number in range(count):
            source = "damaged" if number % damaged == damaged - 1 else str(number % self.PHOTOGRAPHS)
            self.images.append(place / "images" / f"{number:06d}.png")
            os.link(place / f"{source}.png", self.images[-1])
        self.bad = {str(path) for path in self.images[damaged - 1 :: damaged]}
        save_checkpoint(reference_network(stem=8, width=16, input_size=32), place / "checkpoint")

    def work(self, folder: Path, *options: object, name: str = "poses.jsonl") -> Callable[[], int]:
        fixed = ["--fx", 500, "--step", 64, "--device", "cpu", "--checkpoint", self.place / "checkpoint"]
        return command("predict", *self.images, *fixed, "--out", folder / name, *options)

    def faults(self, folder: Path, name: str = "poses.jsonl", overlays: bool = True) -> list[str]:
        """Images that are lost, twice there, or not as an undisturbed run wrote them; and leftovers."""
        text, hands = (folder / name).read_text(), {}
        records = json.loads(text)["images"] if name.endswith(".json") else map(json.loads, text.splitlines())
        found = []
        for record in records:
            image = record["image"]
            if image in hands:
                found.append(f"{image} twice")
            hands[image] = record.get("hands")
            if (hands[image] is None) != (image in self.bad):
                found.append(f"{image}: {record}")
        found += [f"{path} lost" for path in map(str, self.images) if path not in hands]
        by_content: dict[int, str] = {}
        for path, content in ((path, json.dumps(hands.get(str(path)))) for path in self.images):
            if str(path) not in self.bad:
                known = by_content.setdefault(int(path.stem) % self.PHOTOGRAPHS, content)
                found += [f"{path} has other hands"] * (known != content)
        if overlays:
            written = {path.name for path in (folder / "overlays").iterdir()}
            whole = {path.name for path in self.images if str(path) not in self.bad}
            if written != whole:
                found.append(f"overlays {sorted(written ^ whole)}")
            for overlay in written & whole:
                with Image.open(folder / "overlays" / overlay) as image:
                    image.load()
        left = sorted(path.name for path in folder.iterdir())
        return found + ([f"leftovers {left}"] if left != [*["overlays"] * overlays, name] else [])


def disturbed(
    work: Callable[[], int], kills: int, longest: float, operations: int, draw: random.Random
) -> tuple[int, str | None]:
    """Kill the runs of one output, at a chosen operation or moment; returns the kills, and a failure."""
    done = 0
    for _ in range(kills):
        if draw.random() < 0.5:
            child = Child(work, killed_at(draw.randrange(1, operations + 1)))
        else:
            child = Child(work)
            child.kill(draw.uniform(0, longest), draw.choice(SIGNALS))
        status = child.wait()
        if status in STATUSES:
            done += 1
        elif status not in (0, 2):  # it ended before the signal
            return done, f"status {status}: {child.output()[-300:]}"
    return done, None


def killed_predictions(kills: int) -> Outcome:
    """Kill predict, let it continue, and compare its records and overlays with an undisturbed run's."""
    outcome, draw = Outcome(), random.Random(0)
    with tempfile.TemporaryDirectory() as place:
        run = PredictRun(Path(place), count=12, damaged=6)
        lost_or_twice = 0
        longest, operations = None, 0
        while outcome.cases < kills:
            folder = Path(place) / f"out{outcome.cases}"
            name = draw.choice(("poses.jsonl", "poses.json"))
            work = run.work(folder, "--overlay", folder / "overlays", name=name)
            if longest is None:
                operations = count_operations(run.work(Path(place) / "first", "--overlay", Path(place) / "o"))
                start = time.monotonic()
                Child(run.work(Path(place) / "second", "--overlay", Path(place) / "o")).wait()
                longest = time.monotonic() - start
            done, failure = disturbed(work, KILLS_OF_A_RUN, longest, operations, draw)
            child = Child(work)
            status = child.wait()
            if status != 2:  # of the damaged images
                failure = failure or f"the last run ended with {status}: {child.output()[-300:]}"
            found = [failure] if failure else run.faults(folder, name)
            lost_or_twice += sum("lost" in each or "twice" in each for each in found)
            outcome.cases += done
            outcome.failures += found
            shutil.rmtree(folder, ignore_errors=True)
        outcome.notes = {"images lost or twice": lost_or_twice}
    return outcome


def killed_evaluations(kills: int) -> Outcome:
    """Kill an evaluation, let it continue, and compare its predictions' bytes with an undisturbed run's."""
    outcome, draw = Outcome(), random.Random(1)
    joints = np.random.default_rng(0).normal(size=(24, 21, 3)) * 50 + [0, 0, 500]
    images = Images(24, damaged=(5,))

    def work(folder: Path) -> int:
        found = predict(Fixed(joints), images, folder / "shards", batch=2, shard=4)
        save_predictions(folder / "predictions.safetensors", found, with_times=False)
        return 0

    with tempfile.TemporaryDirectory() as place:
        start = time.monotonic()
        assert Child(partial(work, Path(place) / "whole")).wait() == 0
        longest = time.monotonic() - start
        operations = count_operations(partial(work, Path(place) / "counted"))
        expected = (Path(place) / "whole" / "predictions.safetensors").read_bytes()
        while outcome.cases < kills:
            folder = Path(place) / f"out{outcome.cases}"
            done, failure = disturbed(partial(work, folder), KILLS_OF_A_RUN, longest, operations, draw)
            status = Child(partial(work, folder)).wait()
            outcome.cases += done
            if failure or status:
                outcome.failures.append(failure or f"the last run ended with {status}")
            elif (folder / "predictions.safetensors").read_bytes() != expected:
                outcome.failures.append(f"{folder.name}: other predictions")
            if left := [path.name for path in folder.rglob(".*")]:
                outcome.failures.append(f"leftovers {left}")
            shutil.rmtree(folder)
    return outcome


def killed_saves(kills: int) -> Outcome:
    """Kill a training before each operation of a save, and at random moments; then read what it left."""
    outcome, draw = Outcome(), random.Random(2)
    with tempfile.TemporaryDirectory() as place:
        saved = _small_training(Path(place) / "run")
        trainer = saved.trainer

        def save(times: int = 1) -> int:
            for _ in range(times):
                trainer.step += 1
                with torch.no_grad():
                    for parameter in [*trainer.parameters, *trainer.averaged.parameters()]:
                        parameter += 1e-4
                saved.save()
            return 0

        save()
        start = time.monotonic()
        save()
        longest, operation = time.monotonic() - start, 0
        while outcome.cases < kills:
            before, operation = trainer.step, operation + 1
            child = Child(save, killed_at(operation))
            if child.wait() != -signal.SIGKILL:  # every operation had its turn
                child = Child(partial(save, 10**6))
                child.kill(draw.uniform(0, 3 * longest), signal.SIGKILL)
                child.wait()
            resumed = saved.resume() and trainer.step >= before
            steps = load_checkpoint(Path(place) / "run" / "checkpoint")[1]["training"]["steps"]
            whole = resumed and steps in (trainer.step, trainer.step + 1)
            outcome.check(whole, f"kill {outcome.cases}: state {trainer.step}, checkpoint {steps}")
        save()
        if left := [path.name for path in Path(place).rglob(".*")]:
            outcome.failures.append(f"leftovers {left}")
        outcome.notes = {"operations of a save": operation if kills < operation else _operations(save)}
    return outcome


def _operations(save: Callable[[], int]) -> int:
    """Operations of one save."""
    count = 1
    while Child(save, killed_at(count)).wait() == -signal.SIGKILL:
        count += 1
    return count - 1


def _small_training(folder: Path) -> SavedTraining:
    config = tiny(steps=10**6)
    return saved_training(replace(config, model=replace(config.model, stacks=1, depth=1)), folder)


def full_disks(count: int) -> Outcome:
    """Let writes fail beyond sizes of files that grow over the cases; then continue without the limit."""
    outcome, draw = Outcome(), random.Random(3)
    with tempfile.TemporaryDirectory() as place:
        run = PredictRun(Path(place), count=4, damaged=4)
        for case in range(count):
            folder, name = Path(place) / f"out{case}", draw.choice(("poses.jsonl", "poses.json"))
            work = run.work(folder, "--overlay", folder / "overlays", name=name)
            child = Child(work, largest_file(round(10 ** draw.uniform(3.2, 4.2))))
            status, printed = child.wait(), child.output()
            sound = status == 2 and "Traceback" not in printed
            outcome.check(sound, f"case {case}, status {status}: {printed[-300:]}")
            for overlay in (folder / "overlays").glob("*"):
                with Image.open(overlay) as image:  # whole, or not there
                    image.load()
            Child(work).wait()
            outcome.failures += [f"case {case}: {fault}" for fault in run.faults(folder, name)]
            shutil.rmtree(folder)
    return outcome


def read_only_folders(count: int) -> Outcome:
    """Let every command write into a folder without permission."""
    outcome = Outcome()
    with tempfile.TemporaryDirectory() as place:
        run, closed = PredictRun(Path(place), count=2, damaged=3), Path(place) / "closed"
        closed.mkdir()
        closed.chmod(0o555)
        checkpoint = ["--checkpoint", Path(place) / "checkpoint", "--device", "cpu"]
        works: list[Callable[[], int]] = [
            run.work(closed),
            run.work(closed / "deeper"),
            run.work(Path(place), "--overlay", closed),
            command("demo", *checkpoint, "--step", 64, "--overlay", closed / "demo.png"),
            command("export", Path(place) / "checkpoint", "--format", "torch", "--out", closed / "export"),
            command("train", "small", "--out", closed, "--device", "cpu"),
            command("eval", "synthetic-v2", *checkpoint, "--out", closed),
        ]
        for work in works[:count]:
            child = Child(work, without_override)
            status, printed = child.wait(), child.output()
            sound = status == 2 and "Permission denied" in printed and "Traceback" not in printed
            outcome.check(sound, f"status {status}: {printed[-400:]}")
        outcome.check(not list(closed.iterdir()), "files in the folder")
    return outcome


def long_prediction(count: int) -> Outcome:
    """Predict many images, one in 100 damaged, killed twice; its memory must not grow."""
    outcome = Outcome()
    with tempfile.TemporaryDirectory() as place:
        run, folder = PredictRun(Path(place), count, damaged=100), Path(place) / "out"
        lines = folder / "poses.jsonl"
        slopes: list[float] = []
        for part in (0.3, 0.7, 1.0):
            child, samples = Child(run.work(folder)), list[tuple[int, int]]()
            while True:
                ended = os.waitpid(child.process, os.WNOHANG)
                done = lines.read_bytes().count(b"\n") if lines.exists() else 0
                if ended[0]:
                    break
                memory = Path(f"/proc/{child.process}/statm").read_text().split()[1:2]
                samples += [(done, int(pages) * os.sysconf("SC_PAGESIZE")) for pages in memory]
                if part < 1 and done >= part * count:
                    child.kill(0, signal.SIGKILL)
                    child.wait()
                    break
                time.sleep(0.2)
            steady = np.array([each for each in samples[len(samples) // 4 :] if each[0]])
            if len(steady) > 4 and np.ptp(steady[:, 0]) > 0:
                slopes.append(float(np.polyfit(steady[:, 0], steady[:, 1], 1)[0]))
        outcome.cases = count
        outcome.failures = run.faults(folder, overlays=False)
        slope = slopes[-1] if slopes else np.nan
        if count >= 1000 and not slope < 1000:  # fewer images end before the allocator is steady
            outcome.failures.append(f"memory grows by {slope:.0f} bytes per image")
        outcome.notes = {"memory slope in the last part, bytes per image": slope}
    return outcome


PROMISES = [
    Promise(
        "A prediction that is killed, terminated or interrupted continues: no image is lost or twice there",
        killed_predictions, long=100, short=4,
    ),
    Promise(
        "A killed evaluation continues to the bytes of an undisturbed one", killed_evaluations, long=100,
        short=10,
    ),
    Promise(
        "A training that is killed while it saves leaves a whole state and a whole checkpoint", killed_saves,
        long=100, short=33,
    ),
    Promise(
        "A full disk is an error without a traceback; files are whole or not there; the run continues later",
        full_disks, long=50, short=2,
    ),
    Promise(
        "A folder without permission to write is an error that names it", read_only_folders, long=7, short=3
    ),
    Promise(
        "A long prediction with 1 % damaged images, killed twice, loses none and does not grow",
        long_prediction, long=10_000, short=0,
    ),
]  # fmt: skip
