"""join_branches on the released network's blocks and hourglasses and PyTorch's operations, interleaved.

Timed: one call, measured by `time_operation`; the maps lie on the device, channels-last. The definition is
`torch.cat(...) + x`, plus `F.interpolate(...)` where a lower map is added, on the same inputs.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from benchmarks.timing import CUDA, DEVICE, Work, tensor_bytes, time_operation
from nvf_fast import ops
from nvf_fast.encoder import BicubicUpsample
from nvf_fast.kernels.join_branches.reference import join_branches as reference
from tests.kernel_cases import rms


@pytest.mark.parametrize("form", ["triton", "torch"] if CUDA else ["torch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16] if CUDA else [torch.float32], ids=str)
@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("upsampled", [False, True], ids=["block", "hourglass"])
@pytest.mark.parametrize(("channels", "side"), [(256, 56), (256, 28), (256, 14)])
@torch.no_grad()
def bench_join_branches(
    benchmark: Any, channels: int, side: int, upsampled: bool, batch: int, dtype: torch.dtype, form: Any
) -> None:
    torch.manual_seed(0)

    def maps(count: int, size: int) -> torch.Tensor:
        return torch.randn(batch, count, size, size).to(DEVICE, dtype, memory_format=torch.channels_last)

    x, branches = maps(channels, side), [maps(channels // part, side) for part in (2, 4, 4)]
    lower = maps(channels, side // 2) if upsampled else None
    matrix = BicubicUpsample(side // 2).matrix.to(DEVICE) if upsampled else None

    def definition() -> torch.Tensor:
        total = torch.cat(branches, 1) + x
        if lower is not None:
            total += F.interpolate(lower, scale_factor=2, mode="bicubic", align_corners=True)
        return total

    # Check the result before timing it.
    wide = [None if given is None else given.double() for given in (lower, matrix)]
    exact = reference(x.double(), [branch.double() for branch in branches], None, wide[0], wide[1])[0]
    found = ops.join_branches(x, branches, None, lower, matrix, backend=form)[0]
    assert rms(found - exact) <= 2 * rms(definition() - exact)

    time_operation(
        *(benchmark, "join_branches", f"{channels} x {side} x {side}{' upsampled' if upsampled else ''}"),
        *(form, dtype, batch),
        run=lambda: ops.join_branches(x, branches, None, lower, matrix, backend=form),
        definition=definition,
        rounds=50,
        work=Work(0, tensor_bytes(x, *branches, found)),
    )
