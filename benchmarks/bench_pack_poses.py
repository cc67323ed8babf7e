"""pack_poses and its definition, interleaved.

Timed: one call, measured by `time_operation`; all tensors lie on the device.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.timing import CUDA, DEVICE, Work, tensor_bytes, time_operation
from nvf_fast import ops
from nvf_fast.kernels.pack_poses.reference import pack_poses as definition


@pytest.mark.parametrize("form", ["triton", "torch"] if CUDA else ["torch"])
@pytest.mark.parametrize("batch", [1, 64])
def bench_pack_poses(benchmark: Any, batch: int, form: ops.Backend) -> None:
    torch.manual_seed(0)
    coarse = 100 * torch.randn(batch, 21, 3, device=DEVICE)
    flags = torch.zeros(batch, dtype=torch.bool, device=DEVICE)
    arguments = (
        coarse, coarse + 5, torch.rand(22, device=DEVICE), 20 * torch.rand(batch, 21, device=DEVICE),
        torch.randn(batch, device=DEVICE), flags.int(), flags, flags, 2744, 20.0,
    )  # fmt: skip
    rows = ops.pack_poses(*arguments, backend=form)
    torch.testing.assert_close(rows, definition(*arguments))
    time_operation(
        *(benchmark, "pack_poses", "21 joints", form, coarse.dtype, batch),
        run=lambda: ops.pack_poses(*arguments, backend=form),
        definition=lambda: definition(*arguments),
        rounds=50,
        work=Work(0, tensor_bytes(coarse, coarse, rows)),
    )
