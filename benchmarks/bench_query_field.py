"""query_field over the grid of the frustum: the kernel, the PyTorch form and the reference, in one run.

Timed: one call, host to finished device; features, points and weights lie on the device. About one point in
300 is near the surface, as with a hand.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch

from nvf_fast import ops
from nvf_fast.grid import frustum_grid
from nvf_fast.kernels.query_field_ref import query_field as reference
from tests.kernel_cases import FULL_NETWORK, SMALL_NETWORK, FieldCase, field_inputs, rms

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
FORMS: dict[str, Callable] = {
    "reference": reference,
    "torch": partial(ops.query_field, backend="torch"),
    **({"triton": partial(ops.query_field, backend="triton")} if CUDA else {}),
}
CASES = [("small", SMALL_NETWORK, 16)]
if CUDA:
    CASES += [("full", FULL_NETWORK, step) for step in (16, 8, 4)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16][not CUDA :], ids=str)
@pytest.mark.parametrize(
    ("name", "case", "step"), CASES, ids=[f"{name} {step} mm" for name, _, step in CASES]
)
def bench_query_field(
    benchmark, name: str, case: FieldCase, step: int, dtype: torch.dtype, form: str
) -> None:
    torch.manual_seed(0)
    if form == "reference" and step < 16:
        pytest.skip("the reference holds every layer of every point at once")
    inputs = field_inputs(case._replace(batch=1), dtype, DEVICE)
    points = frustum_grid(step, DEVICE)
    arguments = dict(inputs._replace(points=points)._asdict())
    call = partial(FORMS[form], **arguments)
    with torch.no_grad():
        few = points[:: len(points) // 500]
        exact = reference(**inputs._replace(points=few).double()._asdict())
        wanted = reference(**(arguments | {"points": few}))
        found = FORMS[form](**(arguments | {"points": few}))
        for got, torch_got, value in zip(found, wanted, exact, strict=True):
            assert rms(got - value) <= 2 * rms(torch_got - value)
        surface_mm = exact[0].abs().flatten().sort().values[len(few) // 300].item()

        def run() -> None:
            call(surface_mm=surface_mm)
            if CUDA:
                torch.cuda.synchronize()

        benchmark.group = f"query_field {name} {step} mm {dtype}"
        benchmark.extra_info.update(
            device=torch.cuda.get_device_name() if CUDA else f"CPU, {torch.get_num_threads()} threads",
            torch=torch.__version__,
            dtype=str(dtype),
            batch=1,
            points=len(points),
        )
        benchmark.pedantic(run, rounds=20 if CUDA else 5, warmup_rounds=2)
