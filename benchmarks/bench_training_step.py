"""One training step and the same step in plain eager float32 (`plain_step.py`), interleaved.

Timed: augmentation, query points, labels, forward, backward, clipping, optimiser and averaged weights,
including synchronisation, on loaded images. The configuration is small on a CPU; on CUDA also the paper's
camera-space training, batch 24 with 5 000 points each. A check before the timing compares both losses in
float32.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmarks.plain_step import PlainStep
from benchmarks.timing import CUDA, DEVICE, seconds_of, time_in_turn
from nvf_fast.training.config import PRESETS, Optimisation, TrainingConfig
from nvf_fast.training.images import ImageBatch
from nvf_fast.training.loader import load_batches
from nvf_fast.training.trainer import Trainer
from tests.sampled_hands import sample_hands


def small() -> TrainingConfig:
    """The preset of this name, with half its batch."""
    config = PRESETS["small"]()
    return replace(config, optimisation=replace(config.optimisation, batch=8))


def paper() -> TrainingConfig:
    """The preset of CS-NVF, with the optimiser of preset small, which the baseline implements."""
    adamw = Optimisation(optimiser="adamw", batch=24, parts=4, clip_norm=1.0, ema=0.999)
    return replace(PRESETS["camera_space"](), optimisation=adamw)


CASES = [(small, "float32", False)]
if CUDA or torch.ops.mkldnn._is_mkldnn_bf16_supported():
    CASES.append((small, "bfloat16", False))
if CUDA:
    CASES += [(paper, "float32", False), (paper, "bfloat16", False), (paper, "bfloat16", True)]


class Noise:
    """Hands on images of noise, which do not affect the time of a step."""

    def __init__(self, count: int, size: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.hands = sample_hands(count, generator)
        self.images = torch.randint(256, (count, 3, size, size), generator=generator, dtype=torch.uint8)

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, indices: list[int]) -> ImageBatch:
        return ImageBatch(self.images[indices], self.hands[torch.tensor(indices)])


@pytest.mark.parametrize(
    ("make", "precision", "compiled"),
    CASES,
    ids=[f"{make.__name__}-{precision}{'-compiled' * on}" for make, precision, on in CASES],
)
def bench_training_step(benchmark: Any, make: Any, precision: str, compiled: bool) -> None:
    config = make()
    data = Noise(config.optimisation.batch, config.model.input_size)

    def trainer(**options: Any) -> Trainer:
        changed = replace(config, optimisation=replace(config.optimisation, **options))
        return Trainer(changed, len(data), torch.device(DEVICE))

    exact = trainer(precision="float32")
    parts = list(next(load_batches(exact, data)))
    plain = PlainStep(exact)
    terms = exact.objective.losses(exact.model, exact.auxiliary, exact.batch(parts))
    assert plain.loss(parts).item() == pytest.approx(terms["loss"].item(), rel=1e-4)

    ours = trainer(precision=precision, compile=compiled)

    times = time_in_turn(
        *(benchmark, lambda: ours.update(parts), lambda: seconds_of(lambda: plain.update(parts))),
        rounds=20 if CUDA else 7,
    )
    benchmark.group = f"training step, {make.__name__}"
    benchmark.extra_info.update(
        preset=make.__name__,
        dtype=precision,
        compiled=compiled,
        batch=config.optimisation.batch,
        points=config.sampling.total,
        **times,
    )
