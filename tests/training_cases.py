"""Trainings small enough for a test: cheap images, a tiny network, a comparison of states."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nvf_fast.camera import REFERENCE_SLOPE
from nvf_fast.config import NVFConfig
from nvf_fast.data.catalogue import DataConfig
from nvf_fast.synthetic.dataset import SyntheticConfig
from nvf_fast.synthetic.rig import built_in_surface
from nvf_fast.training.config import TrainingConfig, small
from nvf_fast.training.images import ImageBatch
from nvf_fast.training.points import PointSampling
from nvf_fast.training.state import SavedTraining
from nvf_fast.training.trainer import Trainer
from tests.sampled_hands import sample_hands

SIZE = 32
COARSE_MM = 10.0  # for hands of 1000 faces, with cheap distances
ROOT = Path(__file__).resolve().parent.parent


class Dots:
    """Hands with cheap images: each joint is a dot, its colour the joint's index.

    damaged: indices of images reported as damaged.
    """

    def __init__(self, count: int = 12, damaged: tuple[int, ...] = ()) -> None:
        self.hands = sample_hands(
            count, torch.Generator().manual_seed(1), surface=built_in_surface(COARSE_MM)
        )
        self.images = draw_dots(self.hands.joints, SIZE)
        self.damaged = damaged

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.images.numpy().tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, indices: list[int]) -> ImageBatch:
        names = tuple(f"image {index} is torn" for index in indices if index in self.damaged)
        return ImageBatch(self.images[indices], self.hands[torch.tensor(indices)], names)


def draw_dots(joints: Tensor, size: int) -> Tensor:
    """Render (B, 3, size, size) uint8; pixel centres are integers, the principal point is size / 2."""
    pixels = (joints[..., :2] / joints[..., 2:] / REFERENCE_SLOPE + 1) * size / 2
    row, column = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    distance = (column - pixels[..., 0, None, None]) ** 2 + (row - pixels[..., 1, None, None]) ** 2
    colours = torch.linspace(0.3, 1, joints.shape[1])[:, None] * torch.eye(3).repeat(7, 1)
    dots = torch.einsum("bjhw,jc->bchw", torch.exp(-distance / 2), colours)
    return (255 * dots.clamp(0, 1)).to(torch.uint8)


def tiny(steps: int = 6, **changes: object) -> TrainingConfig:
    """Return the small preset, reduced for tests."""
    preset = small()
    config = replace(
        preset,
        model=NVFConfig(
            input_size=SIZE, stem=8, width=16, stacks=2, depth=2, groups=4, hidden=(32, 16),
            scale_optional=True,
        ),
        data=DataConfig("synthetic", SyntheticConfig(count=12, size=SIZE)),
        sampling=PointSampling(surface=40, sphere=10, frustum=10, inside=None, outside=None, ray_points=30),
        optimisation=replace(preset.optimisation, batch=4, parts=2, steps=steps, warmup_steps=2),
        log_every=2, save_every=2, evaluate_every=0,
    )  # fmt: skip
    return replace(config, **changes)


def saved_training(config: TrainingConfig, directory: Path, data: Any = None) -> SavedTraining:
    """Return a trainer of `data` at its first step, with a training folder."""
    data = data or Dots()
    return SavedTraining(directory, Trainer(config, len(data), torch.device("cpu")), data.fingerprint)


def state_of(directory: Path) -> dict:
    """Return the newest state."""
    return torch.load(max(directory.glob("state-*.pt")), weights_only=True)


def log_of(directory: Path) -> list[dict]:
    """Return the lines of a training's log."""
    return [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]


def assert_same_state(first: object, second: object, name: str = "state", **tolerance: float) -> None:
    """Compare everything but the seconds, bit for bit unless a tolerance is given."""
    if isinstance(first, dict):
        assert first.keys() == second.keys(), name
        for key in first.keys() - {"seconds"}:
            assert_same_state(first[key], second[key], f"{name}.{key}", **tolerance)
    elif isinstance(first, list):
        assert len(first) == len(second), name
        for index, pair in enumerate(zip(first, second, strict=True)):
            assert_same_state(*pair, f"{name}[{index}]", **tolerance)
    elif isinstance(first, Tensor) and tolerance:
        torch.testing.assert_close(first, second, **tolerance, msg=lambda text: f"{name}: {text}")
    elif isinstance(first, Tensor):
        assert torch.equal(first, second), name
    else:
        assert first == second, name


SCRIPT = """
import faulthandler, json, multiprocessing, os, random, signal, sys, time
import torch
from dataclasses import replace
from multiprocessing.connection import wait
from pathlib import Path
from tests.training_cases import Dots, saved_training, tiny
from nvf_fast.checkpoint import load_checkpoint
from nvf_fast.runtime.processes import Processes, process_group
from nvf_fast.training.loop import train

faulthandler.enable()  # SIGABRT, after a timeout, shows where each process waits
torch.set_num_threads(1)
saved_training(tiny(), Path())  # lazy imports, once for all forks

def launch(run, port):
    # Run two processes of run(rank) as torchrun would; return the status and time of each one's end, by rank.
    def main(rank):
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        run(rank)
    both = [multiprocessing.get_context("fork").Process(target=main, args=(rank,)) for rank in range(2)]
    for process in both:
        process.start()
    ended = {}
    while len(ended) < 2:
        wait([process.sentinel for rank, process in enumerate(both) if rank not in ended])
        ended |= {
            rank: (process.exitcode, time.monotonic())
            for rank, process in enumerate(both) if process.exitcode is not None and rank not in ended
        }
    return ended
"""


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a single-threaded process that runs code after the imports of `SCRIPT`."""
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT + code, *map(str, arguments)],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def streams_of(code: str, *arguments: object) -> tuple[str, str]:
    """Return the output and the messages of such a process, which must succeed within two minutes."""
    process = python(code, *arguments)
    try:
        output, errors = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGABRT)
        output, errors = process.communicate()
    assert process.returncode == 0, output + errors
    return output, errors


def output_of(code: str, *arguments: object) -> str:
    """Return the output of such a process alone."""
    return streams_of(code, *arguments)[0]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port
