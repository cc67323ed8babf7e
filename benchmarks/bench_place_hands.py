"""place_hands on the default network's heads and lattice and its definition, interleaved.

Timed: one call, measured by `time_operation`; all tensors lie on the device.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.timing import CUDA, Work, tensor_bytes, time_operation
from nvf_fast import ops
from nvf_fast.kernels.place_hands.reference import place_hands as definition
from tests.test_place_hands import CASES, arguments

SIZE = 32 * 32  # texels


@pytest.mark.parametrize("form", ["triton", "torch"] if CUDA else ["torch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16] if CUDA else [torch.float32], ids=str)
@pytest.mark.parametrize("paired", [False, True], ids=["known side", "unknown side"])
@pytest.mark.parametrize("batch", [1, 64])
@torch.no_grad()
def bench_place_hands(
    benchmark: Any, batch: int, paired: bool, dtype: torch.dtype, form: ops.Backend
) -> None:
    torch.manual_seed(0)
    case = CASES["one view of the default network"]._replace(batch=batch, paired=paired)
    given = arguments(case, dtype)
    found = ops.place_hands(**given, backend=form)
    # Products of 64 channels, rounded once in float16.
    for value, right in zip(found, definition(**given), strict=True):
        torch.testing.assert_close(value, right, rtol=1e-3, atol=1e-2)
    flops = 2 * batch * (SIZE * 64 * (64 + 42) + 63 * 128 + 128 * 597)
    read = given["maps"][:batch], *given["features"], *given["joints"], *given["code"]
    time_operation(
        *(benchmark, "place_hands", f"2744 points{', unknown side' if paired else ''}", form, dtype, batch),
        run=lambda: ops.place_hands(**given, backend=form),
        definition=lambda: definition(**given),
        rounds=50,
        work=Work(flops, tensor_bytes(*read, *found)),
    )
