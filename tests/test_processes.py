"""Several processes: all end soon after one is killed or hangs, and the same command resumes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from nvf_fast.runtime.processes import Processes, without_interrupts
from tests.training_cases import ROOT, SCRIPT, assert_same_state, free_port, output_of, state_of, streams_of

# Eight steps, a state after every third. One process calls `once` while loading a step.
TRAINING = """
class Interrupted(Dots):
    def __init__(self, rank, step, once):
        super().__init__()
        self.rank, self.step, self.once, self.loaded = rank, step, once, 0
    def __getitems__(self, indices):
        self.loaded += 1  # a process loads one part of each step
        if self.loaded == self.step + 1 and int(os.environ["RANK"]) == self.rank:
            self.once()
        return super().__getitems__(indices)

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

def run(directory, data, timeout_s=60):
    with process_group("cpu", timeout_s):
        train(replace(tiny(steps=8), save_every=3), data, directory, progress=False)
"""

KILLED = """
folder, ports = Path(sys.argv[1]), sys.argv[2:]
whole = launch(lambda rank: run(folder / "whole", Dots()), ports[0])
number = random.Random(20)
victim, step = number.randrange(2), number.randrange(4, 8)
killed = launch(lambda rank: run(folder / "killed", Interrupted(victim, step, kill)), ports[1])
saved = sorted(path.name for path in (folder / "killed").glob("state-*"))
again = launch(lambda rank: run(folder / "killed", Dots()), ports[2])
print(json.dumps([victim, step, [whole[0], whole[1]], [killed[0], killed[1]], [again[0], again[1]], saved]))
"""


def test_resumes_exactly_after_a_killed_process(tmp_path: Path) -> None:
    output = output_of(TRAINING + KILLED, tmp_path, free_port(), free_port(), free_port())
    victim, step, whole, killed, again, saved = json.loads(output)
    assert [status for status, _ in whole] == [0, 0]
    (dead, died), (survivor, ended) = killed[victim], killed[1 - victim]
    assert (dead, survivor) == (-9, 1)
    assert ended - died < 15  # 0.1 s measured
    assert saved[-1].startswith(f"state-{step // 3 * 3:09d}-")
    assert [status for status, _ in again] == [0, 0]
    assert_same_state(state_of(tmp_path / "whole"), state_of(tmp_path / "killed"))


HANGS = """
folder, ports = Path(sys.argv[1]), sys.argv[2:]

def hanging(rank):
    data = Interrupted(1, 1, lambda: (print(time.monotonic(), flush=True), time.sleep(8)))
    run(folder / "hangs", data, timeout_s=3)

def alone(rank):
    if rank == 0:
        run(folder / "alone", Dots(), timeout_s=2)

def stopped(rank):
    # SIGTERM reaches both, as from torchrun, at different steps; both end after the same one.
    run(folder / "stopped", Interrupted(rank, 2 + rank, lambda: os.kill(os.getpid(), signal.SIGTERM)))

print(json.dumps([launch(hanging, ports[0]), launch(stopped, ports[2]), time.monotonic()]))
print(json.dumps([launch(alone, ports[1]), time.monotonic()]))
"""


def test_every_wait_has_a_timeout(tmp_path: Path) -> None:
    output, errors = streams_of(TRAINING + HANGS, tmp_path, free_port(), free_port(), free_port())
    hung, (hanging, stopped, between), (alone, end) = (json.loads(line) for line in output.splitlines())
    assert hanging["0"][0] == 1
    assert hanging["0"][1] - hung < 7.5  # timeout of 3 s; the other process hangs for 8 s
    assert "another process ended or did not respond in time" in errors
    assert alone["0"][0] == 1 and end - between < 20
    assert "the 2 processes could not join each other within 2 s" in errors
    assert [stopped["0"][0], stopped["1"][0]] == [0, 0]
    assert state_of(tmp_path / "stopped")["step"] == 3


@pytest.mark.slow
def test_torchrun_restarts_after_a_kill(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{SCRIPT}{TRAINING}"
        f"""
folder = Path({str(tmp_path)!r})
first = not (folder / "run" / "checkpoint").exists()
run(folder / "run", Interrupted(1, 5, kill) if first else Dots())
"""
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    # Otherwise the second attempt may connect to addresses of the first attempt's processes.
    fresh_addresses = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    ended = subprocess.run(
        [*torchrun, "--max-restarts", "1", str(program)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **fresh_addresses},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert "Signal 9" in ended.stderr or "-9" in ended.stderr
    assert state_of(tmp_path / "run")["step"] == 8


TOGETHER = """
def run(rank):
    with process_group("cpu", 60):
        processes = Processes.joined()
        tensors = [torch.full((2, 3), float(rank)), torch.tensor(4.0 * rank)]
        processes.average(tensors)
        processes.agree("state", 3)
        try:
            processes.agree("state", rank)
        except ValueError as error:
            if rank == 0:
                message = str(error)
        else:
            raise AssertionError("two values")
        gathered = processes.gather("ab"[rank])
        if rank == 0:
            print(json.dumps([[tensor.tolist() for tensor in tensors], gathered, message]))

assert all(status == 0 for status, _ in launch(run, sys.argv[1]).values())
"""


def test_averages_gathers_and_agrees() -> None:
    tensors, gathered, message = json.loads(output_of(TOGETHER, free_port()))
    assert tensors == [[[0.5] * 3] * 2, 2.0]
    assert gathered == ["a", "b"]
    assert message.endswith("do not agree: process 0: 0; process 1: 1")


def test_single_process_does_not_wait() -> None:
    alone, tensor = Processes.joined(), torch.tensor(2.0)
    alone.average([tensor])
    alone.agree("state", 3)
    assert (alone.rank, alone.count, tensor.item(), alone.gather("a")) == (0, 1, 2.0, ["a"])


def test_interrupts_are_delayed_whichever_thread_receives_them() -> None:
    other, blocked = threading.Event(), list[str]()

    def interrupted() -> None:
        with without_interrupts():
            os.kill(os.getpid(), signal.SIGINT)
            child = [sys.executable, "-c", "import signal; print(signal.pthread_sigmask(0, ()))"]
            blocked.append(subprocess.run(child, stdout=subprocess.PIPE, text=True, check=True).stdout)
        blocked.append("not reached")

    threading.Thread(target=other.wait).start()  # before the block, so that it may receive them
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    other.set()
    assert len(blocked) == 1 and "SIGINT" in blocked[0]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
