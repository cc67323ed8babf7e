"""What is to run on a GPU keeps to one device: tried on a device that exists in name only."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils import backend_registration


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, on which all of this runs in earnest")
@pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason=f"PyTorch {torch.__version__} knows no devices that are made in Python",
)
def test_computation_stays_on_one_device() -> None:
    """In a process of its own, since PyTorch keeps a device that it was told of."""
    command = [sys.executable, "-m", "tests.pretend_device"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert len(told) == 20 and "refusal" in told
    wrong = {name: trouble for name, trouble in told.items() if trouble is not None}
    assert not wrong, "\n".join(f"{name}: {trouble}" for name, trouble in wrong.items())
