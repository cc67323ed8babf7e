"""Device placement, checked without a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils import backend_registration


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="other tests cover a real GPU")
@pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason=f"PyTorch {torch.__version__} does not support devices implemented in Python",
)
def test_computation_stays_on_one_device() -> None:
    """Run in a separate process, since PyTorch cannot unregister a device."""
    command = [sys.executable, "-m", "tests.pretend_device"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert done.returncode == 0, done.stderr
    failures = json.loads(done.stdout.splitlines()[-1])
    assert len(failures) == 26 and "refusal" in failures
    failed = {name: error for name, error in failures.items() if error is not None}
    assert not failed, "\n".join(f"{name}: {error}" for name, error in failed.items())
