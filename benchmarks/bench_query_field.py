"""query_field over the grid of the frustum, beside the reference in chunks of 150 000 points.

Timed: one call, host to finished device; features, points and weights lie on the device. About one point in
300 is near the surface, as with a hand. The form "frame" is how a frame asks: points located and weights
packed before, and room for one vote in 100.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from benchmarks.floors import query_work
from benchmarks.measured import CUDA, DEVICE, Work, now, record, tensor_bytes
from benchmarks.paired import time_in_turn
from nvf_fast import ops
from nvf_fast.config import NVFConfig
from nvf_fast.grid import frustum_grid
from nvf_fast.kernels.query_field import tilings
from nvf_fast.kernels.query_field_ref import query_field as reference
from tests.kernel_cases import FULL_NETWORK, SMALL_NETWORK, FieldCase, field_inputs, rms

DTYPES = [torch.float32]
if CUDA or torch.ops.mkldnn._is_mkldnn_bf16_supported():
    DTYPES.append(torch.bfloat16)
if CUDA:
    DTYPES.append(torch.float16)
CASES = [("small", SMALL_NETWORK, 16), ("full", FULL_NETWORK, 16)]
if CUDA:
    CASES += [("full", FULL_NETWORK, step) for step in (8, 4)]
CHUNK = 150_000


@pytest.mark.parametrize("form", ["frame", "triton", "torch"] if CUDA else ["frame", "torch"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("name", "case", "step"), CASES, ids=[f"{name} {step} mm" for name, _, step in CASES]
)
@torch.no_grad()
def bench_query_field(
    benchmark: Any, name: str, case: FieldCase, step: int, dtype: torch.dtype, form: str
) -> None:
    torch.manual_seed(0)
    inputs = field_inputs(case._replace(batch=1), dtype, DEVICE)
    points = frustum_grid(step, DEVICE)
    arguments = inputs._replace(points=points)._asdict()
    backend: ops.Backend = "torch" if form == "torch" or not CUDA else "triton"
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

    if form == "frame":
        query = ops.FieldQuery(
            inputs.weights,
            inputs.biases,
            channels=case.channels,
            image_size=case.image_size,
            dtype=dtype,
            backend=backend,
        )
        places = query.locate(points, inputs.intrinsics, case.map_size)
        capacity = len(points) // 100

        def call(surface_mm: float) -> object:
            return query(query.project(inputs.features, inputs.hand_scale), places, surface_mm, capacity)

        assert torch.equal(call(surface_mm)[0], ops.query_field(**arguments, backend=backend)[0])

    def run() -> None:
        call(surface_mm=surface_mm)
        now()

    paired = time_in_turn(benchmark, run, whole_reference, rounds=20 if CUDA else 9)
    config = NVFConfig(input_size=case.image_size, width=case.channels, hidden=case.hidden)
    assert (config.feature_size, config.feature_size) == case.map_size
    near_votes = len(points) / 300 * 21 * 4 * 4
    moved = tensor_bytes(inputs.features, points, *inputs.weights) + 4 * len(points) + near_votes
    flops = query_work(config, len(points), tilings(dtype, "cuda", 90)[0]).least
    record(benchmark, "query_field", f"{name}, {step} mm", form, dtype, 1, paired, Work(flops, moved))
