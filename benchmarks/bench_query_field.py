"""query_field over the grid of the frustum, beside the reference in chunks of 150 000 points.

Timed: one call, host to finished device; features, points and weights lie on the device. About one point in
300 is near the surface, as with a hand. Before every timed round the reference runs on the same inputs;
`times_the_reference_20_50_80` are percentiles of the rounds' ratios.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import pytest
import torch

from benchmarks.paired import time_in_turn
from nvf_fast import ops
from nvf_fast.grid import frustum_grid
from nvf_fast.kernels.query_field_ref import query_field as reference
from tests.kernel_cases import FULL_NETWORK, SMALL_NETWORK, FieldCase, field_inputs, rms

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
DTYPES = [torch.float32]
if CUDA or torch.ops.mkldnn._is_mkldnn_bf16_supported():
    DTYPES.append(torch.bfloat16)
if CUDA:
    DTYPES.append(torch.float16)
CASES = [("small", SMALL_NETWORK, 16), ("full", FULL_NETWORK, 16)]
if CUDA:
    CASES += [("full", FULL_NETWORK, step) for step in (8, 4)]
CHUNK = 150_000


def now() -> float:
    if CUDA:
        torch.cuda.synchronize()
    return time.perf_counter()


@pytest.mark.parametrize("backend", ["triton", "torch"] if CUDA else ["torch"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("name", "case", "step"), CASES, ids=[f"{name} {step} mm" for name, _, step in CASES]
)
@torch.no_grad()
def bench_query_field(
    benchmark: Any, name: str, case: FieldCase, step: int, dtype: torch.dtype, backend: str
) -> None:
    torch.manual_seed(0)
    inputs = field_inputs(case._replace(batch=1), dtype, DEVICE)
    points = frustum_grid(step, DEVICE)
    arguments = inputs._replace(points=points)._asdict()
    call = partial(ops.query_field, **arguments, backend=backend)

    # Correct before timed.
    few = points[:: len(points) // 4000]
    exact = reference(**inputs._replace(points=few).double()._asdict())
    wanted = reference(**arguments | {"points": few})
    found = ops.query_field(**arguments | {"points": few}, backend=backend)
    for got, torch_got, value in zip(found, wanted, exact, strict=True):
        assert rms(got - value) <= 2 * rms(torch_got - value)
    surface_mm = exact[0].abs().flatten().sort().values[len(few) // 300].item()

    def whole_reference() -> float:
        began = now()
        for chunk in points.split(CHUNK):
            reference(**arguments | {"points": chunk}, surface_mm=surface_mm)
        return now() - began

    def run() -> None:
        call(surface_mm=surface_mm)
        now()

    paired = time_in_turn(benchmark, run, whole_reference, rounds=20 if CUDA else 9)
    benchmark.group = f"query_field {name} {step} mm {dtype}"
    benchmark.extra_info.update(
        device=torch.cuda.get_device_name() if CUDA else f"CPU, {torch.get_num_threads()} threads",
        torch=torch.__version__,
        dtype=str(dtype),
        batch=1,
        points=len(points),
        ms_20_50_80=[1e3 * value for value in paired.seconds],
        times_the_reference_20_50_80=paired.ratios,
    )
