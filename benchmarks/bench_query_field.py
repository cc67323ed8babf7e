"""query_field over the grid of the frustum and the reference in chunks of 150 000 points, interleaved.

The default network is queried at the 14 x 14 x 14 points of a hand view's lattice, about a centre.

Timed: one call, measured by `time_operation`; features, points and weights lie on the device. About one point
in 300 is near the surface, as for a hand. The form "frame" has the setup of a frame: weights packed in
advance, capacity for one voter in 100, and points located in advance, or, about a centre, inside the timed
call.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.floors import query_work
from benchmarks.timing import CUDA, DEVICE, Work, tensor_bytes, time_operation
from nvf_fast import ops
from nvf_fast.config import NVFConfig
from nvf_fast.grid import frustum_grid
from nvf_fast.kernels.query_field.reference import query_field as reference
from nvf_fast.kernels.query_field.triton import tilings
from tests.kernel_cases import (
    DEFAULT_NETWORK,
    FULL_NETWORK,
    SMALL_NETWORK,
    FieldCase,
    FieldInputs,
    field_inputs,
    rms,
)

DTYPES = [torch.float32]
if CUDA or torch.ops.mkldnn._is_mkldnn_bf16_supported():
    DTYPES.append(torch.bfloat16)
if CUDA:
    DTYPES.append(torch.float16)
CASES = [("default", DEFAULT_NETWORK, 16), ("small", SMALL_NETWORK, 16), ("full", FULL_NETWORK, 16)]
if CUDA:
    CASES += [("full", FULL_NETWORK, step) for step in (8, 4)]
CHUNK = 150_000
HAND_POINTS = 14  # along each axis of a hand view's lattice of 16 mm


def hand_lattice(inputs: FieldInputs, step: int) -> Tensor:
    """Points (1, N, 3) mm on rays through the view, in a slab about the centre."""
    axis = (torch.arange(HAND_POINTS, device=DEVICE) + 0.5) * (2 / HAND_POINTS) - 1
    v, u, w = torch.meshgrid(axis, axis, axis, indexing="ij")
    assert inputs.centres is not None
    depths = inputs.centres[0, 2] + w * (HAND_POINTS * step / 2)
    rays = torch.stack([u, v, torch.ones_like(u)], -1)
    rays[..., :2] *= inputs.image_size / 2 / inputs.intrinsics[0, 0, 0]
    return (rays * depths[..., None]).view(1, -1, 3)


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
    points = hand_lattice(inputs, step) if case.centred else frustum_grid(step, DEVICE)
    count = points.shape[-2]
    arguments = inputs._replace(points=points)._asdict()
    backend: ops.Backend = "torch" if form == "torch" or not CUDA else "triton"
    call: Callable[[], Any] = partial(ops.query_field, **arguments, backend=backend)

    # Check the result before timing it.
    few = points[..., :: max(1, count // 4000), :]
    exact = reference(**inputs._replace(points=few).double()._asdict())
    plain = reference(**arguments | {"points": few})
    found = ops.query_field(**arguments | {"points": few}, backend=backend)
    for got, torch_got, value in zip(found, plain, exact, strict=True):
        assert not got.isnan().any()
        # On the view's border rounding decides whether a point is inside.
        inside = got.isfinite() & torch_got.isfinite() & value.isfinite()
        assert rms((got - value)[inside]) <= 2 * rms((torch_got - value)[inside])
    surface_mm = exact[0].abs().flatten().sort().values[few.shape[-2] // 300].item()

    def whole_reference() -> None:
        for chunk in points.split(CHUNK, -2):
            reference(**arguments | {"points": chunk})

    if form == "frame":
        query = ops.FieldQuery(
            inputs.weights,
            [bias[0] if case.centred else bias for bias in inputs.biases],
            channels=case.channels,
            image_size=case.image_size,
            dtype=dtype,
            surface_mm=surface_mm,
            backend=backend,
        )
        biases, per_ray = (torch.cat(inputs.biases, 1), HAND_POINTS) if case.centred else (None, 1)
        locate = partial(
            query.locate, points, inputs.intrinsics, case.map_size, inputs.centres, per_ray=per_ray
        )
        located = None if case.centred else locate()

        def frame() -> Any:
            maps = query.project(inputs.features, inputs.hand_scale, biases)
            samples = query.sample(maps, located or locate())
            voters = ops.select_voters(samples.sdf, surface_mm, count // 100, backend=backend)
            return samples.sdf, query.votes(samples, voters.indices)

        call = frame
        # Rays sum a point's x in another order; the resident kernel rounds in other places than the general
        # one, by 0.08 mm at most in bfloat16 on an H200.
        limit = 0.0 if not case.centred else 1e-3 if dtype == torch.float32 else 0.2
        difference = (call()[0] - ops.query_field(**arguments, backend=backend)[0]).abs()
        assert difference.nan_to_num().max() <= limit

    config = NVFConfig(
        input_size=case.image_size,
        width=case.channels,
        hidden=case.hidden,
        hand_scale=case.hand_scale,
        view="hand" if case.centred else "reference",
        encoder="unet" if case.centred else "hourglass",
    )
    assert (config.feature_size, config.feature_size) == case.map_size
    near_votes = count / 300 * 21 * 4 * 4
    moved = tensor_bytes(inputs.features, points, *inputs.weights) + 4 * count + near_votes
    flops = query_work(config, count, tilings(dtype, "cuda", 90)[0]).least
    time_operation(
        *(benchmark, "query_field", f"{name}, {step} mm", form, dtype, 1),
        run=call,
        definition=whole_reference,
        rounds=20 if CUDA else 9,
        work=Work(flops, moved),
    )
