"""cast_votes and its definition, interleaved.

Timed: one call, measured by `time_operation`; points and votes lie on the device. 21 joints.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.timing import CUDA, DEVICE, Work, tensor_bytes, time_operation
from nvf_fast import ops
from nvf_fast.kernels.cast_votes.reference import cast_votes as definition


@pytest.mark.parametrize("form", ["triton", "torch"] if CUDA else ["torch"])
@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("voters", [95, 756, 6064])  # a hand's, at 16, 8 and 4 mm
def bench_cast_votes(benchmark: Any, voters: int, batch: int, form: ops.Backend) -> None:
    torch.manual_seed(0)
    points = 100 * torch.randn(batch, voters, 3, device=DEVICE)
    votes = torch.rand(batch, voters, 21, 4, device=DEVICE)
    counts = torch.full((batch,), voters, dtype=torch.int32, device=DEVICE)
    arguments = (points, votes, counts)
    found = ops.cast_votes(*arguments, backend=form)
    for got, expected in zip(found, definition(*arguments), strict=True):
        # Float32 sums of thousands of positions in two orders: measured 2e-4 mm of 100 mm.
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-3)

    time_operation(
        *(benchmark, "cast_votes", f"{voters} voters", form, votes.dtype, batch),
        run=lambda: ops.cast_votes(*arguments, backend=form),
        definition=lambda: definition(*arguments),
        rounds=20,
        work=Work(0, tensor_bytes(points, votes, *found)),
    )
