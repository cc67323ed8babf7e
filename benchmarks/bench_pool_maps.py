"""pool_maps on the default network's smallest map and its definition, interleaved.

Timed: one call, measured by `time_operation`; all tensors lie on the device.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.timing import CUDA, DEVICE, Work, tensor_bytes, time_operation
from nvf_fast import ops
from nvf_fast.kernels.pool_maps.reference import pool_maps as definition
from tests.kernel_cases import rms
from tests.test_pool_maps import arguments


@pytest.mark.parametrize("form", ["triton", "torch"] if CUDA else ["torch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16] if CUDA else [torch.float32], ids=str)
@pytest.mark.parametrize("batch", [1, 64])
@torch.no_grad()
def bench_pool_maps(benchmark: Any, batch: int, dtype: torch.dtype, form: ops.Backend) -> None:
    torch.manual_seed(0)
    given = [each.to(DEVICE) for each in arguments((batch, batch, 192, 256, 24, 4, 4), dtype)]
    exact = definition(*(each.double() for each in given))
    results = ops.pool_maps(*given, backend=form)
    for found, by_torch, right in zip(results, definition(*given), exact, strict=True):
        assert rms(found - right) <= 2 * rms(by_torch - right)
    flops = 2 * batch * 256 * (2 * 192 + 1 + 192 + 24)
    time_operation(
        *(benchmark, "pool_maps", "192 x 4 x 4", form, dtype, batch),
        run=lambda: ops.pool_maps(*given, backend=form),
        definition=lambda: definition(*given),
        rounds=50,
        work=Work(flops, tensor_bytes(*given, *results)),
    )
