"""cast_votes: the kernel and the reference, in one run.

Timed: one call, host to finished device; points, votes and voters lie on the device. 21 joints.
"""

from __future__ import annotations

import pytest
import torch

from nvf_fast import ops

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"


@pytest.mark.parametrize("backend", ["torch", "triton"] if CUDA else ["torch"])
@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("voters", [95, 756, 6064])  # a hand's, at 16, 8 and 4 mm
def bench_cast_votes(benchmark, voters: int, batch: int, backend: str) -> None:
    torch.manual_seed(0)
    count = 3 * voters
    points = 100 * torch.randn(count, 3, device=DEVICE)
    votes = torch.rand(batch, count, 21, 4, device=DEVICE)
    indices = torch.stack([torch.randperm(count)[:voters].sort().values for _ in range(batch)]).to(DEVICE)
    counts = torch.full((batch,), voters, dtype=torch.int32, device=DEVICE)
    for got, wanted in zip(
        ops.cast_votes(points, votes, indices, counts, backend=backend),
        ops.cast_votes(points, votes, indices, counts, backend="torch"),
        strict=True,
    ):
        # Float32 sums of thousands of positions in two orders: measured 2e-4 mm of 100 mm.
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-3)

    def run() -> None:
        ops.cast_votes(points, votes, indices, counts, backend=backend)
        if CUDA:
            torch.cuda.synchronize()

    benchmark.group = f"cast_votes {voters} voters, batch {batch}"
    benchmark.extra_info.update(
        device=torch.cuda.get_device_name() if CUDA else f"CPU, {torch.get_num_threads()} threads",
        torch=torch.__version__,
        dtype="torch.float32",
        batch=batch,
    )
    benchmark.pedantic(run, rounds=20, warmup_rounds=2)
