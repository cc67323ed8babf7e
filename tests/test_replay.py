"""Training on stored views: batches, reframing, order of loading, the step as a graph."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nvf_fast.data.hand_views import HandViews
from nvf_fast.runtime.processes import Processes
from nvf_fast.training import loop
from nvf_fast.training.config import TrainingConfig, default, paper, small
from nvf_fast.training.hand_losses import HandBatch
from nvf_fast.training.loader import load_batches
from nvf_fast.training.log import NonFiniteLossError
from nvf_fast.training.replay import Cameras, ReplayConfig, ViewStore, reframed
from nvf_fast.training.trainer import Trainer
from tests.test_cuda_graph import FakeRecorder
from tests.test_hand_losses import SIZE, views
from tests.test_unet import SMALL
from tests.training_cases import assert_same_state, log_of

CPU = torch.device("cpu")


class Views:
    """Views whose distances hold their index; every third has no pose.

    broken: whether joints are NaN.
    """

    fingerprint = "made up"

    def __init__(self, broken: bool = False) -> None:
        self.broken = broken

    def __len__(self) -> int:
        return 1000

    def __getitems__(self, indices: list[int]) -> HandViews:
        drawn = HandViews.concatenate([views(1, index) for index in indices])
        drawn.distances[:] = np.array(indices)[:, None] % 7
        drawn.trust[np.array(indices) % 3 == 0] = 0
        drawn.joints[:] *= np.nan if self.broken else 1
        return drawn


def reusing(
    steps: int = 4, uses: int = 2, make: Callable[[], TrainingConfig] = default, **changes: Any
) -> TrainingConfig:
    """Return a preset of hand views, with a small network, in float32."""
    preset = make()
    optimisation = replace(
        preset.optimisation, batch=4, parts=2, steps=steps, warmup_steps=1, precision="float32"
    )
    model = replace(SMALL, encoder=preset.model.encoder, stem=8, stacks=2, depth=1, groups=4)
    config = replace(preset, model=model, optimisation=optimisation, log_every=2, save_every=2)
    return replace(config, replay=ReplayConfig(**{"uses": uses, "size": 40, "first": 12} | changes))


def trainer_of(config: TrainingConfig, device: torch.device = CPU) -> Trainer:
    return Trainer(config, len(Views()), device)


def numbered(first: int, trust: list[float]) -> dict[str, Tensor]:
    """Return views whose focal lengths number them."""
    drawn = views(len(trust))
    drawn.focal[:] = np.arange(first, first + len(trust))
    drawn.trust[:] = trust
    return {name: torch.from_numpy(value) for name, value in vars(drawn).items()}


def numbers(batch: HandBatch) -> list[int]:
    return (SIZE / 2 / batch.slopes).round().int().tolist()


def test_batches_hold_the_latest_views_those_with_a_pose_first() -> None:
    store = ViewStore(ReplayConfig(uses=2, size=8, first=8, reframed=0.0), 40, 0.0, CPU)
    store.add([numbered(1, [1, 1, 0, 1]), numbered(5, [0, 0, 1, 1])])
    store.randomise(0)
    batch = store.batch()
    assert batch.trust.tolist() == [1] * 25 + [0] * 15, "5 of 8 have a pose"
    assert sorted(batch.posed.tolist()) == list(range(25)) != batch.posed.tolist()
    assert {*numbers(batch)[:25]} == {2, 4, 7, 8}, "the store holds four with a pose"
    assert {*numbers(batch)[25:]} == {3, 5, 6}
    store.add([numbered(9, [1, 0, 0, 0])])
    batch = store.batch()
    assert {*numbers(batch)[:25]} == {4, 7, 8, 9} and {*numbers(batch)[25:]} == {6, 10, 11, 12}


def test_batches_depend_on_views_and_seed_alone() -> None:
    def batch(seed: int) -> HandBatch:
        store = ViewStore(ReplayConfig(uses=2, size=40, first=8), 8, 0.1, CPU)
        store.add([numbered(1, [1, 1, 0, 1, 1, 1])])
        store.randomise(seed)
        return store.batch()

    first, again, other = batch(1), batch(1), batch(2)
    for name, one, same in zip(HandBatch._fields, first, again, strict=True):
        torch.testing.assert_close(one, same, rtol=0, atol=0, equal_nan=True, msg=name)
    assert not torch.equal(first.images, other.images) and not torch.equal(first.moves, other.moves)


def test_reframed_views_show_their_joints() -> None:
    """Each channel of an image holds a dot at one joint."""
    torch.manual_seed(0)
    count = 64
    drawn = views(count)
    drawn.joints[:, :, :2] *= 0.3
    batch = HandBatch.of(drawn)
    two = torch.arange(count) % 8 == 0
    batch.boxes[two, 1] = batch.boxes[two, 0] + 3
    batch = batch._replace(images=dots(batch))
    cameras = Cameras.random(torch.rand(count - 4, 2), torch.randn(count - 4, 4))
    cameras.roll[:8] = torch.arange(8.0)
    changed = reframed(batch, cameras)

    weight = (changed.images + 1).clamp_min(0)
    pixels = torch.arange(float(SIZE))
    total = weight.sum((2, 3))
    centroids = torch.stack([weight.sum(2) @ pixels, weight.sum(3) @ pixels], -1) / total[..., None]
    seen = projected(changed)
    moved = (projected(batch) - seen).norm(dim=-1).mean(1)
    assert (centroids - seen[:, :3]).norm(dim=-1).max() < 0.1  # px
    still = two.clone()
    still[-4:] = True
    assert moved[still].max() < 1e-4 and moved[~still].min() > 0.5

    def lengths(batch: HandBatch) -> Tensor:
        return torch.cdist(batch.joints, batch.points)

    torch.testing.assert_close(lengths(changed), lengths(batch), rtol=1e-4, atol=1e-2)
    around = torch.cat([seen.amin(1), seen.amax(1)], -1)
    torch.testing.assert_close(changed.boxes[~still, 0], around[~still], rtol=0, atol=1e-3)
    torch.testing.assert_close(changed.boxes[still], batch.boxes[still], equal_nan=True)
    assert (changed.slopes[~still] != batch.slopes[~still]).all()


def projected(batch: HandBatch) -> Tensor:
    """Return the pixels (B, 21, 2) of the joints."""
    return (batch.joints[..., :2] / batch.joints[..., 2:] / batch.slopes[:, None, None] + 1) * SIZE / 2


def dots(batch: HandBatch) -> Tensor:
    """Return images (B, 3, S, S), in each channel a dot at one of the first three joints."""
    pixels = projected(batch)[:, :3, :, None]
    places = torch.arange(float(SIZE))
    across, down = ((-((places - pixels[:, :, axis]) ** 2) / 4).exp() for axis in (0, 1))
    return 2 * down[..., None] * across[:, :, None] - 1


def test_each_view_is_added_once_and_a_resumed_training_adds_the_latest_again() -> None:
    config = reusing(steps=9, uses=3)
    trainer = trainer_of(config)

    def added(step: int) -> list[list[list[int]]]:
        trainer.step = step
        return [
            [part["distances"][:, 0].int().tolist() for part in parts]
            for parts in load_batches(trainer, Views())
        ]

    whole = added(0)
    # Six parts of two views before the first step, then two parts in three steps of four views.
    assert [len(parts) for parts in whole] == [6, 1, 1, 0, 1, 1, 0, 1, 1]
    for step in range(1, 9):
        later = added(step)
        assert later[1:] == whole[step + 1 :]
        flat = [part for parts in whole[: step + 1] for part in parts]
        assert later[0] == flat[-len(later[0]) :] and len(later[0]) == 6 + len(whole[step])


@pytest.mark.parametrize("workers", [0, 1])
def test_trains_on_stored_views(tmp_path: Path, workers: int) -> None:
    result = loop.train(reusing(), Views(), tmp_path, workers=workers, progress=False)
    assert result.finished
    first, *losses = log_of(tmp_path)
    assert (first["stored_views"], first["cuda_graph"], first["step"]) == (14, False, 1)
    assert [entry["step"] for entry in losses] == [2, 4] and losses[-1]["gradient_norm"] > 0


def test_resuming_says_that_the_store_is_filled_anew(tmp_path: Path) -> None:
    loop.train(reusing(), Views(), tmp_path, minutes=0, progress=False)
    with pytest.warns(UserWarning, match="filled again with 12 views"):
        loop.train(reusing(), Views(), tmp_path, progress=False)
    assert [entry["step"] for entry in log_of(tmp_path) if "stored_views" in entry] == [1, 2]


def test_labels_that_are_not_finite_end_a_training(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteLossError, match="not finite in the 2 steps up to step 2"):
        loop.train(reusing(), Views(broken=True), tmp_path, progress=False)


@pytest.mark.parametrize("make", [default, paper])
@pytest.mark.parametrize("failure", [None, RuntimeError("no graphs here")], ids=["graph", "fallback"])
def test_steps_from_a_graph_equal_eager_ones(
    failure: Exception | None, make: Callable[[], TrainingConfig], caplog: pytest.LogCaptureFixture
) -> None:
    """Neither a capture nor its failure changes a weight, a running statistic or the optimiser."""
    eager, graphed = trainer_of(reusing(make=make)), trainer_of(reusing(make=make))
    recorder = FakeRecorder(failure)
    graphed.record_steps(recorder)
    with caplog.at_level(logging.WARNING):
        for parts in map(list, load_batches(eager, Views())):
            expected, _ = eager.update(parts)
            terms, _ = graphed.update(parts)
            assert_same_state(terms, expected)
    assert_same_state(graphed.state_dict(), eager.state_dict())
    assert recorder.recorded == 1 and graphed.graphed == (failure is None)
    logged = [record.getMessage() for record in caplog.records]
    assert logged == ([] if failure is None else [MESSAGE])


MESSAGE = "no CUDA graph for the training step, it runs launch by launch: no graphs here"


def test_refuses_stores_that_cannot_work() -> None:
    for wrong in ({"uses": 0}, {"first": 0}, {"first": 41}, {"reframed": 1.5}):
        with pytest.raises(ValueError, match="must lie in"):
            reusing(**wrong)
    with pytest.raises(ValueError, match=r"replay\.size must be at least 4"):
        reusing(size=3, first=1)
    with pytest.raises(ValueError, match="only hand views are reused"):
        replace(small(), replay=ReplayConfig(uses=2))
    with pytest.raises(ValueError, match="only one process can reuse views, got 2"):
        Trainer(reusing(), 1000, CPU, Processes(0, 2))


@pytest.mark.cuda
@pytest.mark.parametrize("make", [default, paper])
def test_graphed_steps_equal_eager_ones_on_the_gpu(
    make: Callable[[], TrainingConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On equal batches; cuDNN may choose other algorithms, and atomic sums differ in their order."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    device = torch.device("cuda")
    config = reusing(steps=8, make=make, first=40)
    eager, graphed = trainer_of(config, device), trainer_of(config, device)
    eager._graph = None
    losses: tuple[list[float], list[float]] = ([], [])
    for parts in map(list, load_batches(eager, Views())):
        for trainer, found in zip((eager, graphed), losses, strict=True):
            found.append(float(trainer.update(parts)[0]["loss"]))
    assert graphed.graphed and not eager.graphed
    first, *rest = (abs(one - other) / one for one, other in zip(*losses, strict=True))
    assert first < 1e-4 and max(rest) < 0.05, losses
    assert all(one != other for one, other in pairwise(losses[1])), "each step has its own numbers"
