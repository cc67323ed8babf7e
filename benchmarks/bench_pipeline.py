"""Step size against frames per second, picture to joints (the speed columns of the paper's Table 6).

Timed: one call of the estimator on one 224 x 224 picture, host to host: remap, encode, query, select, vote,
read.
The table is printed at the end of `pytest benchmarks/bench_pipeline.py -s`; `--benchmark-json FILE` keeps it.
"""

import os
import platform

import numpy as np
import pytest
import torch

import nvf_fast
from nvf_fast.camera import reference_intrinsics
from nvf_fast.data.hand import sample_hands
from nvf_fast.data.render import render_hand
from nvf_fast.grid import frustum_grid

# The paper's FPS on its own GPU, for orientation (Table 6).
PAPER_FPS = {4: 1, 8: 8, 16: 34, 24: 50, 32: 56}
STEPS = tuple(PAPER_FPS) if torch.cuda.is_available() else (16, 24, 32)
DTYPES = (
    (torch.float16, torch.bfloat16, torch.float32)
    if torch.cuda.is_available()
    else (torch.float32, torch.bfloat16)
)

rows: list[str] = []


@pytest.fixture(scope="module")
def picture() -> tuple[np.ndarray, np.ndarray, float]:
    generator = torch.Generator().manual_seed(11)
    hand = sample_hands(1, generator)
    image = render_hand(hand, 224, generator).permute(1, 2, 0).numpy()
    return image, reference_intrinsics(224).numpy(), float(hand.hand_scale)


@pytest.fixture(scope="module", autouse=True)
def table():
    yield
    device = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"{platform.machine()} x {os.cpu_count()}"
    )
    print(
        f"\n{device}, torch {torch.__version__}, {torch.get_num_threads()} threads, batch 1, embedded default"
    )
    print("| step mm | points | dtype | median ms | FPS | paper's FPS | stages ms |\n" + "|---" * 7 + "|")
    print("\n".join(rows))


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("step", STEPS)
def bench_pipeline(benchmark, picture, step: int, dtype: torch.dtype) -> None:
    image, intrinsics, hand_scale = picture
    estimator = nvf_fast.load(step_mm=step, dtype=dtype)
    # Correct before timed: float32 by the reference operations, same device. Low precision moves a few voters
    # over the threshold, so that joints agree within the noise of the vote, not within rounding.
    reference = nvf_fast.load(step_mm=step, dtype=torch.float32, backend="torch")(
        image, intrinsics, hand_scale
    )
    pose = estimator(image, intrinsics, hand_scale)
    assert pose.valid == reference.valid
    if pose.valid:
        assert np.linalg.norm(pose.joints - reference.joints, axis=-1).mean() < (
            0.01 if dtype == torch.float32 else 10
        )

    benchmark.pedantic(estimator, args=(image, intrinsics, hand_scale), rounds=15, warmup_rounds=3)
    with estimator.timed() as stages:
        for _ in range(5):
            estimator(image, intrinsics, hand_scale)
    median = benchmark.stats.stats.median * 1e3
    points = len(frustum_grid(step))
    parts = ", ".join(f"{name} {total / 5:.1f}" for name, total in stages.items())
    benchmark.extra_info.update(
        step_mm=step, points=points, dtype=str(dtype), stages_ms={k: v / 5 for k, v in stages.items()}
    )
    name = str(dtype).removeprefix("torch.")
    rows.append(
        f"| {step} | {points} | {name} | {median:.1f} | {1e3 / median:.1f} | {PAPER_FPS[step]} | {parts} |"
    )
