"""Step size against frames per second, picture to joints (the speed columns of the paper's Table 6).

Timed: one call of the estimator on one 224 x 224 picture, host to host. Before every timed round the peer
(`peer.py`) runs on the same picture and device, so that the ratios hold while the machine's speed drifts.

    pytest benchmarks/bench_pipeline.py -s                          # the table, at the end
    pytest benchmarks/bench_pipeline.py --benchmark-json RUN.json   # for benchmarks/tables.py RUN.json

On a CPU the peer's time at steps below 16 mm is estimated from its time per point at 16 mm. The released
network has no weights of its own here. Its dense grid is timed with seeded weights; where it is searched, it
computes as ever, and the known distances and votes of the picture's hand are put in the place of its answers.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import nvf_fast
from benchmarks.measured import CUDA, DEVICE, device_name, dtype_name
from benchmarks.paired import time_in_turn
from benchmarks.peer import Peer
from benchmarks.tables import TABLES, speed_row
from benchmarks.taught import teach
from nvf_fast.camera import reference_intrinsics
from nvf_fast.config import NVFConfig
from nvf_fast.data.hand import HandDistribution, Hands, sample_hands
from nvf_fast.data.render import render_hand
from nvf_fast.data.synthetic import SyntheticConfig, SyntheticHands
from nvf_fast.estimator import PoseEstimator
from nvf_fast.evaluation.predictors import NetworkPredictor
from nvf_fast.evaluation.run import predict
from nvf_fast.evaluation.scores import score_predictions
from nvf_fast.model import NVF

DENSE_ON_CPU_MM = 16  # nobody waits for a dense grid of a smaller step there
SCORED = 64  # pictures of the synthetic test set


class Case(NamedTuple):
    """What is timed: the embedded network or the released one, a step (mm), a search, a dtype."""

    network: str
    step: int
    search: str
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{self.network}-{self.step}-{self.search}-{dtype_name(self.dtype)}"

    @property
    def taught(self) -> bool:
        """Whether known distances take the place of the network's answers."""
        return self.network == "released" and self.search != "dense"

    @property
    def peer_estimated(self) -> bool:
        """Whether the peer's time follows from that at `DENSE_ON_CPU_MM`."""
        return not CUDA and self.step < DENSE_ON_CPU_MM


def cases() -> list[Case]:
    dtypes = [torch.float16, torch.bfloat16, torch.float32] if CUDA else [torch.float32]
    if not CUDA and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        dtypes.append(torch.bfloat16)
    dense = [(step, "dense") for step in (4, 8, 16, 24, 32) if CUDA or step >= DENSE_ON_CPU_MM]
    searched = [(16, "guided"), (8, "guided"), (4, "guided"), (8, "octree"), (4, "octree")]
    return [
        *(Case("embedded", step, search, dtype) for step, search in dense + searched for dtype in dtypes),
        *(Case("released", step, search, dtype) for step, search in dense + searched for dtype in dtypes),
    ]


@cache
def picture() -> tuple[np.ndarray, np.ndarray, float, Hands]:
    """An open hand half a metre away, wholly in view: its picture, camera, scale and truth."""
    generator = torch.Generator().manual_seed(562)
    hand = sample_hands(1, generator)
    image = render_hand(hand, 224, generator).permute(1, 2, 0).numpy()
    return image, reference_intrinsics(224).numpy(), float(hand.hand_scale), hand


@cache
def network(name: str) -> tuple[NVF, float]:
    """The network, and the surface_mm to vote with: one point in 300 votes where it is not trained."""
    if name == "embedded":
        return nvf_fast.load(device=DEVICE).model.float(), 5.0
    torch.manual_seed(0)
    model = NVF(NVFConfig()).to(DEVICE)
    with torch.no_grad():
        model.field.biases[-1][1::4] = 0.5  # weights away from zero, so that the joints are well determined
    estimator = PoseEstimator(model, surface_mm=torch.inf)
    with torch.no_grad():
        sdf = estimator.model.query(
            estimator.model.encode(torch.randn(1, 3, 224, 224, device=DEVICE).to(estimator.dtype)),
            estimator.lattice.points(estimator.lattice.every(1)),
            model.reference_intrinsics,
            torch.full((1,), 33.0, device=DEVICE),
        ).sdf
    return model, float(sdf.abs().flatten().sort().values[sdf.numel() // 300])


@cache
def peer(name: str, step: int) -> Peer:
    model, surface_mm = network(name)
    return Peer(model, step, surface_mm, device=DEVICE)


@cache
def scored_pictures() -> SyntheticHands:
    return SyntheticHands(SyntheticConfig(SCORED, 9_000_001, distribution=HandDistribution()))


@pytest.fixture(scope="module", autouse=True)
def table() -> Iterator[None]:
    yield
    columns = TABLES["speed"].columns
    print(f"\n{device_name()}, torch {torch.__version__}, one picture at a time")
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    print("\n".join(f"| {' | '.join(map(str, row))} |" for row in rows))


rows: list[list[Any]] = []


@pytest.mark.parametrize("case", cases(), ids=str)
def bench_pipeline(benchmark: Any, case: Case) -> None:
    image, intrinsics, hand_scale, _ = picture()
    rival = peer(case.network, DENSE_ON_CPU_MM if case.peer_estimated else case.step)
    with peak_memory() as peak:
        estimator = build(case)
        pose = estimator(image, intrinsics, hand_scale)
    check(case, estimator, pose.joints, rival)
    more_points = len(estimator.lattice) / len(rival)

    def run_peer() -> float:
        rival(image, intrinsics, hand_scale)
        query = rival.seconds["query"] * more_points
        return rival.seconds["encode"] + query + rival.seconds["vote"]

    def run() -> None:
        estimator(image, intrinsics, hand_scale)

    rounds = 5 if CUDA and case.step == 4 else 15 if case.network == "embedded" else 7
    paired = time_in_turn(benchmark, run, run_peer, rounds)
    with estimator.timed() as stages:
        for _ in range(5):
            estimator(image, intrinsics, hand_scale)
    facts = {
        "network": case.network,
        "step_mm": case.step,
        "search": case.search,
        "dtype": dtype_name(case.dtype),
        "points_evaluated": int(pose.points_evaluated),
        "peer_estimated": case.peer_estimated,
        "asked_again": estimator.redone,
        "stages_ms": {name: total / 5 for name, total in stages.items()},
        "peak_mib": peak[0] if peak else None,
        "cs_mje_mm": cs_mje(estimator) if case.network == "embedded" else None,
        **paired.facts(),
    }
    benchmark.extra_info.update(facts)
    rows.append(speed_row(facts))


@contextmanager
def peak_memory() -> Iterator[list[float]]:
    """A list that on CUDA then holds the most MiB that were allocated inside, beyond what was before."""
    gc.collect()  # an estimator and its graphs hold each other
    found: list[float] = []
    if not CUDA:
        yield found
        return
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    already = torch.cuda.memory_allocated()
    yield found
    found.append((torch.cuda.max_memory_allocated() - already) / 2**20)


def build(case: Case) -> PoseEstimator:
    model, surface_mm = network(case.network)
    if case.taught:
        surface_mm = 5.0
    estimator = PoseEstimator(model, case.step, surface_mm, search=case.search, dtype=case.dtype)
    if case.taught:
        teach(estimator, picture()[3])
    return estimator


def check(case: Case, estimator: PoseEstimator, joints: np.ndarray, rival: Peer) -> None:
    """Correct before timed, and repeatable: the peer's joints, or those known, or the dense grid's."""
    image, intrinsics, hand_scale, hand = picture()
    if case.taught:
        wanted = hand.joints[0].numpy()
    elif case.peer_estimated:
        model, surface_mm = network(case.network)
        wanted = PoseEstimator(model, case.step, surface_mm)(image, intrinsics, hand_scale).joints
    else:
        wanted = rival(image, intrinsics, hand_scale)
    limit = 10.0 if case.dtype != torch.float32 else 0.01 if case.search == "dense" else 0.5
    assert np.linalg.norm(joints - wanted, axis=-1).mean() < limit
    assert np.array_equal(estimator(image, intrinsics, hand_scale).joints, joints), "bit for bit"
    if CUDA:
        assert estimator._replay is not None
        assert None not in estimator._replay._captured.values(), "one launch a frame"


def cs_mje(estimator: PoseEstimator) -> float:
    """mm, over pictures of the synthetic test set, hand scale given."""
    asked = NetworkPredictor(estimator)
    asked.scale_choices = (True,)
    found = predict(asked, scored_pictures())
    assert found is not None
    scores = score_predictions(found.predictions["with_hand_scale"], found.truth, np.zeros((21, 3)))
    return scores["cs_mje"]


@pytest.mark.skipif(not CUDA, reason="compared on CUDA, where the goals are")
@pytest.mark.parametrize("step", [16, 4])
def bench_compiled_peer(benchmark: Any, step: int) -> None:
    """The peer through `torch.compile`, with the released network."""
    image, intrinsics, hand_scale, _ = picture()
    model, surface_mm = network("released")
    compiled = Peer(model, step, surface_mm, device=DEVICE, compiled=True)
    eager = peer("released", step)
    wanted, found = (each(image, intrinsics, hand_scale) for each in (eager, compiled))
    assert np.linalg.norm(found - wanted, axis=-1).mean() < 0.5

    def run_eager() -> float:
        eager(image, intrinsics, hand_scale)
        return sum(eager.seconds.values())

    paired = time_in_turn(benchmark, lambda: compiled(image, intrinsics, hand_scale), run_eager, rounds=7)
    benchmark.extra_info.update(
        step_mm=step,
        dtype="float32",
        **paired.facts(),
    )


@pytest.mark.parametrize("batch", [1, 8, 64] if CUDA else [1, 8])
@pytest.mark.parametrize("name", ["embedded", "released"] if CUDA else ["embedded"])
def bench_batches(benchmark: Any, name: str, batch: int) -> None:
    """Many pictures a call at 16 mm, every point asked; the peer takes one after the other."""
    image, intrinsics, hand_scale, _ = picture()
    model, surface_mm = network(name)
    estimator, rival = PoseEstimator(model, 16, surface_mm), peer(name, 16)
    pictures = np.repeat(image[None], batch, 0)
    alone, together = estimator(image, intrinsics, hand_scale), estimator(pictures, intrinsics, hand_scale)
    # In half precision convolutions round otherwise for another number of pictures; by how much, no GPU has
    # shown yet.
    limit = 0.01 if estimator.dtype == torch.float32 else 1.0
    assert np.linalg.norm(together.joints - alone.joints, axis=-1).mean() < limit

    def run_peer() -> float:
        rival(image, intrinsics, hand_scale)
        return batch * sum(rival.seconds.values())

    paired = time_in_turn(benchmark, lambda: estimator(pictures, intrinsics, hand_scale), run_peer, rounds=7)
    benchmark.extra_info.update(
        network=name,
        batch=batch,
        dtype=dtype_name(estimator.dtype),
        **paired.facts(),
    )
