"""select_voters and its definition, interleaved.

Timed: one call, measured by `time_operation`; the distances lie on the device. One point in 300 is near.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.timing import CUDA, DEVICE, Work, tensor_bytes, time_operation
from nvf_fast import ops
from nvf_fast.kernels.select_voters.reference import select_voters as definition


@pytest.mark.parametrize("form", ["triton", "torch"] if CUDA else ["torch"])
@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("count", [28_351, 230_475, 1_882_292] if CUDA else [28_351, 230_475])
def bench_select_voters(benchmark: Any, count: int, batch: int, form: ops.Backend) -> None:
    torch.manual_seed(0)
    sdf = 100 * torch.rand(batch, count, device=DEVICE)
    surface_mm, capacity = 1 / 3, max(256, count // 100)
    found, references = (
        ops.select_voters(sdf, surface_mm, capacity, backend=form),
        definition(sdf, surface_mm, capacity),
    )
    for got, expected in zip(found, references, strict=True):
        assert torch.equal(got, expected)

    time_operation(
        *(benchmark, "select_voters", f"{count} points", form, sdf.dtype, batch),
        run=lambda: ops.select_voters(sdf, surface_mm, capacity, backend=form),
        definition=lambda: definition(sdf, surface_mm, capacity),
        rounds=50,
        work=Work(0, tensor_bytes(sdf, *found)),
    )
