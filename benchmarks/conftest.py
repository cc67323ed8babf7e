"""Metadata of the machine in every benchmark's record."""

from __future__ import annotations

import importlib.metadata
import subprocess
from typing import Any

import pytest
import torch

from benchmarks.timing import device_name

# Comparisons are in float32 on both sides, but convolutions would use TF32 by default.
torch.backends.cudnn.allow_tf32 = False


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    cuda = torch.cuda.is_available()
    machine_info["device"] = device_name()
    machine_info["kind"] = "gpu" if cuda else "cpu"
    machine_info["torch"] = torch.__version__
    machine_info["triton"] = importlib.metadata.version("triton")
    if cuda:
        command = ["nvidia-smi", "--query-gpu=driver_version,clocks.sm,clocks.mem", "--format=csv,noheader"]
        result = subprocess.run(command, capture_output=True, text=True)
        machine_info["driver, clocks"] = result.stdout.strip() or result.stderr.strip()
