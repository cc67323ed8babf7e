"""Several processes: one that is killed or hangs ends the others soon, and the same command goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nvf_fast.training.processes import Processes
from nvf_fast.training.state import CannotStart
from tests.training_cases import ROOT, SCRIPT, assert_same_state, free_port, output_of, python, state_of

# Eight steps, a state after every third. `once` happens to one process, in the fetch of a step.
TRAINING = """
class Interrupted(Dots):
    def __init__(self, rank, step, once):
        super().__init__()
        self.rank, self.step, self.once, self.fetched = rank, step, once, 0
    def __getitems__(self, indices):
        self.fetched += 1  # a process fetches one part of each step
        if self.fetched == self.step + 1 and int(os.environ["RANK"]) == self.rank:
            self.once()
        return super().__getitems__(indices)

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

def run(directory, pictures, timeout_s=60):
    with process_group("cpu", timeout_s):
        loop.train(replace(tiny(steps=8), save_every=3), pictures, directory, progress=False)
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


def test_a_killed_process_costs_nothing_but_time(tmp_path: Path) -> None:
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
    pictures = Interrupted(1, 1, lambda: (print(time.monotonic(), flush=True), time.sleep(8)))
    run(folder / "hangs", pictures, timeout_s=3)

def alone(rank):
    if rank == 0:
        run(folder / "alone", Dots(), timeout_s=2)

def asked(rank):
    # SIGTERM reaches both, as from torchrun, at different steps; both end after the same one.
    run(folder / "asked", Interrupted(rank, 2 + rank, lambda: os.kill(os.getpid(), signal.SIGTERM)))

print(json.dumps([launch(hanging, ports[0]), launch(asked, ports[2]), time.monotonic()]))
print(json.dumps([launch(alone, ports[1]), time.monotonic()]))
"""


def test_every_wait_ends(tmp_path: Path) -> None:
    process = python(TRAINING + HANGS, tmp_path, free_port(), free_port(), free_port())
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    hung, (hanging, asked, between), (alone, end) = (json.loads(line) for line in output.splitlines())
    assert hanging["0"][0] == 1
    assert hanging["0"][1] - hung < 7.5  # 3 s of patience, and the other hangs for 8
    assert "another process of the training ended or did not answer in time" in errors
    assert alone["0"][0] == 1 and end - between < 20
    assert "the 2 processes could not join each other within 2 s" in errors
    assert [asked["0"][0], asked["1"][0]] == [0, 0]
    assert state_of(tmp_path / "asked")["step"] == 3


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
    # Without this the second attempt may be led to the addresses of the first one's processes.
    fresh_addresses = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    answer = subprocess.run(
        [*torchrun, "--max-restarts", "1", str(program)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **fresh_addresses},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    assert "Signal 9" in answer.stderr or "-9" in answer.stderr
    assert state_of(tmp_path / "run")["step"] == 8


def test_processes_that_disagree_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    Processes().agree("state", 3)
    monkeypatch.setattr(Processes, "gather", lambda self, fact: [fact, None])
    with pytest.raises(CannotStart, match=r"reads the state for itself, .*: process 0: 3; process 1: None"):
        Processes(0, 2).agree("state", 3)
