"""select_voters: the kernel and the reference, in one run.

Timed: one call, host to finished device; the distances lie on the device. One point in 300 is near.
"""

from __future__ import annotations

import pytest
import torch

from nvf_fast import ops

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"


@pytest.mark.parametrize("backend", ["torch", "triton"] if CUDA else ["torch"])
@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("count", [28_351, 230_475, 1_882_292] if CUDA else [28_351, 230_475])
def bench_select_voters(benchmark, count: int, batch: int, backend: str) -> None:
    torch.manual_seed(0)
    sdf = 100 * torch.rand(batch, count, device=DEVICE)
    surface_mm, capacity = 1 / 3, max(256, count // 100)
    for got, wanted in zip(
        ops.select_voters(sdf, surface_mm, capacity, backend=backend),
        ops.select_voters(sdf, surface_mm, capacity, backend="torch"),
        strict=True,
    ):
        assert torch.equal(got, wanted)

    def run() -> None:
        ops.select_voters(sdf, surface_mm, capacity, backend=backend)
        if CUDA:
            torch.cuda.synchronize()

    benchmark.group = f"select_voters {count} points, batch {batch}"
    benchmark.extra_info.update(
        device=torch.cuda.get_device_name() if CUDA else f"CPU, {torch.get_num_threads()} threads",
        torch=torch.__version__,
        dtype="torch.float32",
        batch=batch,
    )
    benchmark.pedantic(run, rounds=50, warmup_rounds=2)
