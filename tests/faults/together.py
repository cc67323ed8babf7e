"""Threads of one estimator, processes of one training that stop for a while, trainings in one folder."""

from __future__ import annotations

import os
import random
import signal
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from nvf_fast.estimator import PoseEstimator
from nvf_fast.pose import HandPose
from nvf_fast.runtime.processes import ProcessLostError, process_group
from nvf_fast.training.loop import train
from tests.faults.children import MINUTE, Child
from tests.faults.promises import Outcome, Promise
from tests.hand_cases import hand_network
from tests.reference_cases import reference_network
from tests.training_cases import Dots, assert_same_state, free_port, saved_training, state_of, tiny

THREADS = 8
TIMEOUT_S = 3.0  # of the processes that wait for a stopped one


def threads_of_one_estimator(count: int) -> Outcome:
    """Call each estimator from eight threads, measured or not, and compare with one thread's poses."""
    outcome = Outcome()
    for estimator in (
        PoseEstimator(hand_network(), step_mm=28),
        PoseEstimator(reference_network(1.0), step_mm=32),
    ):
        each = count // (2 * THREADS)
        outcome.failures += _in_threads(estimator, each)
        outcome.cases += each * THREADS
    return outcome


def _in_threads(estimator: PoseEstimator, count: int) -> list[str]:
    """The faults of `count` calls by each thread."""
    images = np.random.default_rng(0).integers(0, 256, (3, 120, 160, 3), dtype=np.uint8)
    K = np.array([[250.0, 0, 79.5], [0, 250, 59.5], [0, 0, 1]])
    boxes = [(40.0, 20, 120, 100), (10.0, 5, 90, 110)]
    calls = [partial(estimator, image, K, box=box) for image in images for box in boxes]
    calls += [
        partial(estimator, images[0], K, box=boxes, side=["left", "right"]),
        partial(estimator, list(images), K),
        lambda: estimator.submit(images[0], K, box=boxes[0]).result(),
    ]
    expected = [call() for call in calls]
    with estimator.timed() as stages:
        calls[0]()
    start, faults = threading.Barrier(THREADS), list[str]()

    def work(seed: int) -> None:
        chosen = random.Random(seed)
        start.wait()
        for _ in range(count):
            index, measured = chosen.randrange(len(calls)), chosen.random() < 0.5
            with estimator.timed() if measured else nullcontext({}) as times:
                pose = calls[index]()
            if not _equal(pose, expected[index]):
                faults.append(f"other poses of call {index}")
            if measured and (not times or (index == 0 and times.keys() != stages.keys())):
                faults.append(f"stages {sorted(times)} of call {index}")

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(work, range(THREADS)))  # raises what a thread raised
    return faults


def _equal(pose: HandPose[Any], expected: HandPose[Any]) -> bool:
    return all(
        np.array_equal(getattr(pose, name), getattr(expected, name), equal_nan=True)
        for name in ("joints", "joints_2d", "scores", "presence")
    )


def two_at_once(count: int) -> Outcome:
    """Start a second run in the folder of a first one, which must be refused and must not disturb it."""
    outcome = Outcome()
    _dots()
    with tempfile.TemporaryDirectory() as place:
        for case in range(count):
            folder, run = Path(place) / f"run{case}", _train_alone
            first = Child(partial(run, folder, 10**6))
            until = time.monotonic() + 10 * MINUTE
            while not (folder / ".lock").exists() and time.monotonic() < until:
                time.sleep(0.01)
            second = Child(partial(run, folder, 10**6))
            status, printed = second.wait(), second.output()
            outcome.check(status != 0 and "is in use by process" in printed, f"{status}: {printed[-300:]}")
            first.kill(0, signal.SIGTERM)
            status = first.wait()
            outcome.check(status == 0, f"the first ended with {status}: {first.output()[-300:]}")
            outcome.check(Child(partial(run, folder, 0)).wait() == 0, "the folder stays locked")
    return outcome


def stopped_processes(count: int) -> Outcome:
    """Stop one of two processes of a training with SIGSTOP, briefly or beyond the timeout of the other."""
    outcome, draw = Outcome(), random.Random(4)
    _dots()
    with tempfile.TemporaryDirectory() as place:
        folder, start = Path(place) / "whole", time.monotonic()
        if (statuses := [each.wait() for each in _pair(folder, 10 * MINUTE)]) != [0, 0]:
            return Outcome(1, [f"the undisturbed training ended with {statuses}"])
        longest, whole, waited = time.monotonic() - start, state_of(folder), 0.0
        for case in range(count):
            folder, brief, stopped = Path(place) / f"run{case}", case % 2 == 1, draw.randrange(2)
            both = _pair(folder, 10 * MINUTE if brief else TIMEOUT_S)
            both[stopped].kill(draw.uniform(0.2, 0.9) * longest, signal.SIGSTOP)
            if brief:
                time.sleep(draw.uniform(0.1, 1))
            else:
                began = time.monotonic()
                both[1 - stopped].wait()
                waited = max(waited, time.monotonic() - began)
            both[stopped].kill(0, signal.SIGCONT)
            statuses = [each.wait() for each in both]
            printed = "; ".join(each.output()[-300:] for each in both)
            # A process that was stopped after the last exchange makes nobody wait.
            allowed = ([0, 0],) if brief else ([0, 0], [1, 1], [0, 1], [1, 0])
            sound = statuses in allowed and (
                "did not respond" in printed or "join" in printed or 1 not in statuses
            )
            if sound and statuses != [0, 0]:
                statuses = [each.wait() for each in _pair(folder, 10 * MINUTE)]
            fault = f"case {case}, brief {brief}, process {stopped}: {statuses}: {printed}"
            outcome.check(sound and statuses == [0, 0] and _same(state_of(folder), whole), fault)
        outcome.notes = {f"longest wait, s, with a timeout of {TIMEOUT_S:g} s": waited}
    return outcome


@cache
def _dots() -> Dots:
    """The images of all trainings; called before children are forked, which then import nothing."""
    saved_training(tiny(), Path())
    return Dots()


def _same(state: dict[str, Any], expected: dict[str, Any]) -> bool:
    try:
        assert_same_state(state, expected)
    except AssertionError:
        return False
    return True


def _pair(folder: Path, timeout_s: float) -> list[Child]:
    port = free_port()
    return [Child(partial(_train, rank, port, folder, timeout_s)) for rank in range(2)]


def _train_alone(folder: Path, steps: int) -> int:
    try:
        train(tiny(steps=steps or 10**6), _dots(), folder, progress=False, minutes=None if steps else 0)
    except OSError as error:
        print(error)
        return 1
    return 0


def _train(rank: int, port: int, folder: Path, timeout_s: float) -> int:
    """One of two processes, as torchrun would start it."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        with process_group("cpu", timeout_s):
            train(tiny(steps=6), _dots(), folder, progress=False)
    except ProcessLostError as error:
        print(error)
        return 1
    return 0


PROMISES = [
    Promise(
        "Eight threads of one estimator, some of them measured, have the poses of one thread bit for bit",
        threads_of_one_estimator, long=2400, short=48,
    ),
    Promise(
        "A training whose other process stops goes on when that does, or ends after its timeout and resumes",
        stopped_processes, long=40, short=2,
    ),
    Promise(
        "A second training in the folder of a running one is refused, and the first goes on", two_at_once,
        long=10, short=1,
    ),
]  # fmt: skip
