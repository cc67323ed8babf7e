"""What every benchmark's record says of the machine that it ran on."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from typing import Any

import pytest
import torch


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    cuda = torch.cuda.is_available()
    processor = machine_info.get("cpu", {}).get("brand_raw", platform.machine())
    machine_info["device"] = torch.cuda.get_device_name() if cuda else processor
    machine_info["kind"] = "gpu" if cuda else "cpu"
    machine_info["threads"] = torch.get_num_threads()
    machine_info["torch"] = torch.__version__
    machine_info["triton"] = importlib.metadata.version("triton")
    if cuda:
        command = ["nvidia-smi", "--query-gpu=driver_version,clocks.sm,clocks.mem", "--format=csv,noheader"]
        answer = subprocess.run(command, capture_output=True, text=True)
        machine_info["driver, clocks"] = answer.stdout.strip() or answer.stderr.strip()
