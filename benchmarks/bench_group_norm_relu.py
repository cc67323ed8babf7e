"""group_norm_relu on the encoders' maps and PyTorch's norm and ReLU, interleaved.

Timed: one call, measured by `time_operation`; the maps lie on the device, channels-last. The definition is
`F.relu(F.group_norm(...))` on the same inputs.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from benchmarks.timing import CUDA, DEVICE, Work, tensor_bytes, time_operation
from nvf_fast import ops
from nvf_fast.kernels.group_norm_relu.reference import group_norm_relu as reference
from tests.kernel_cases import rms

# Channels, side of the map and groups: some norms of the preset small and of the released network.
SMALL = [(32, 64, 8), (64, 32, 8), (112, 16, 8), (208, 4, 8)]
RELEASED = [(64, 112, 32), (256, 56, 32), (64, 56, 32), (256, 28, 32), (64, 14, 32)]


@pytest.mark.parametrize("form", ["triton", "torch"] if CUDA else ["torch"])
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16] if CUDA else [torch.float32], ids=str
)
@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize(("channels", "side", "groups"), SMALL + RELEASED)
@torch.no_grad()
def bench_group_norm_relu(
    benchmark: Any, channels: int, side: int, groups: int, batch: int, dtype: torch.dtype, form: ops.Backend
) -> None:
    torch.manual_seed(0)
    x = torch.randn(batch, channels, side, side).to(DEVICE, dtype, memory_format=torch.channels_last)
    weight, bias = torch.randn(2, channels).to(DEVICE, dtype)

    # Check the result before timing it.
    exact = reference(x.double(), weight.double(), bias.double(), groups)
    found = ops.group_norm_relu(x, weight, bias, groups, backend=form)
    assert rms(found - exact) <= 2 * rms(reference(x, weight, bias, groups) - exact)

    time_operation(
        *(benchmark, "group_norm_relu", f"{channels} x {side} x {side}", form, dtype, batch),
        run=lambda: ops.group_norm_relu(x, weight, bias, groups, backend=form),
        definition=lambda: F.relu(F.group_norm(x, groups, weight, bias)),
        rounds=50,
        work=Work(0, tensor_bytes(x, found)),
    )
