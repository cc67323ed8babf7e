"""network_views and its definition, interleaved.

Timed: one call, measured by `time_operation`; the image and the rows lie on the device. A view and its mirror
image of 128 px are sampled from an image of 640 x 480 px, about 1.5 px of it per px, or of 1920 x 1080
px, averaged over 4 px. Batch 64 on a GPU only.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.timing import CUDA, DEVICE, Work, dtype_name, tensor_bytes, time_operation
from nvf_fast import ops
from nvf_fast.camera import plan_view
from nvf_fast.kernels.network_views.reference import network_views as definition
from nvf_fast.volumes import HandVolume

SIZE = 128


@pytest.mark.parametrize("form", ["triton", "torch"] if CUDA else ["torch"])
@pytest.mark.parametrize("batch", [1, 64] if CUDA else [1])
@pytest.mark.parametrize(("width", "height", "factor"), [(640, 480, 1), (1920, 1080, 4)])
@pytest.mark.parametrize("dtype", [torch.float16] if CUDA else [torch.float32])
def bench_network_views(
    benchmark: Any,
    dtype: torch.dtype,
    width: int,
    height: int,
    factor: int,
    batch: int,
    form: ops.Backend,
) -> None:
    K = torch.tensor([[[width, 0, width / 2], [0, width, height / 2], [0, 0, 1]]], dtype=torch.float64)
    side = 0.75 * SIZE * (1.5 if factor == 1 else factor + 0.2)
    middle = torch.tensor([[0.4 * width, 0.55 * height]], dtype=torch.float64)
    placement = HandVolume().place(K, SIZE, boxes=torch.cat([middle - side / 2, middle + side / 2], 1))
    plan = plan_view(placement.matrices.flatten().tolist(), SIZE, height, width, 1.0)
    assert plan.factor == factor
    row = torch.tensor([plan.row(3 * width, 3)], dtype=torch.float64, device=DEVICE)
    rows = row.expand(batch, -1).contiguous()
    pixels = torch.randint(256, (height * width * 3,), dtype=torch.uint8, device=DEVICE)

    def run() -> torch.Tensor:
        return ops.network_views(rows, [pixels], size=SIZE, mirrored=True, dtype=dtype, backend=form)

    exact = definition(row, [pixels], SIZE, 3, True, torch.float64)
    found = run()[::batch]
    # Values of 2 at most. Measured: 1.5e-5 in float32.
    limit = 1e-4 if dtype == torch.float32 else 2e-3
    assert (found.double() - exact).abs().max() < limit, dtype_name(dtype)

    crop = (plan.rows.stop - plan.rows.start) * (plan.columns.stop - plan.columns.start) * 3
    time_operation(
        *(benchmark, "network_views", f"{width} x {height} px, {factor} px averaged", form, dtype, batch),
        run=run,
        definition=lambda: definition(rows, [pixels], SIZE, 3, True, dtype),
        rounds=20,
        work=Work(0.0, crop + batch * tensor_bytes(rows[:1], found)),
    )
