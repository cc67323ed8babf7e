"""merge_maps on the default network's maps and its definition, interleaved.

Timed: one call, measured by `time_operation`; all tensors lie on the device.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.timing import CUDA, DEVICE, Work, tensor_bytes, time_operation
from nvf_fast import ops
from nvf_fast.kernels.merge_maps.reference import merge_maps as definition
from tests.kernel_cases import rms
from tests.test_merge_maps import arguments


@pytest.mark.parametrize("form", ["triton", "torch"] if CUDA else ["torch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16] if CUDA else [torch.float32], ids=str)
@pytest.mark.parametrize("batch", [1, 64])
@pytest.mark.parametrize("sizes", [(192, 128, 128, 4), (128, 64, 64, 8), (64, 32, 64, 16)], ids=str)
@torch.no_grad()
def bench_merge_maps(
    benchmark: Any, sizes: tuple[int, ...], batch: int, dtype: torch.dtype, form: ops.Backend
) -> None:
    torch.manual_seed(0)
    below, beside, out, side = sizes
    given = [each.to(DEVICE) for each in arguments((batch, *sizes, side), dtype)]
    exact, found = definition(*(each.double() for each in given)), ops.merge_maps(*given, backend=form)
    assert rms(found - exact) <= 2 * rms(definition(*given) - exact)
    flops = 2 * batch * side**2 * out * (below + 4 * beside)
    time_operation(
        *(benchmark, "merge_maps", f"{below} x {side} x {side} and {beside}", form, dtype, batch),
        run=lambda: ops.merge_maps(*given, backend=form),
        definition=lambda: definition(*given),
        rounds=50,
        work=Work(flops, tensor_bytes(*given, found)),
    )
