"""Step size against frames per second, image to joints (the speed columns of the paper's Table 6).

Timed: one call of the estimator on one 224 x 224 image, host to host. Before every timed round the peer
(`peer.py`) runs on the same image and device, so that the ratios hold while the machine's speed drifts.

    pytest benchmarks/bench_pipeline.py -s                          # the table, at the end
    pytest benchmarks/bench_pipeline.py --benchmark-json RUN.json   # for benchmarks/tables.py RUN.json

The default network is given the hand's box and side, the released one the hand scale. On a CPU the released
network's peer at steps below 16 mm is estimated from its time per point at 16 mm. The released network has no
weights of its own here. Its dense grid is timed with seeded weights; where it is searched, it computes as
ever, and the known distances and votes of the image's hand take the place of its predictions.
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

from benchmarks.measured import CUDA, DEVICE, device_name, dtype_name
from benchmarks.paired import time_in_turn
from benchmarks.peer import HandPeer, Peer
from benchmarks.tables import TABLES, speed_row
from benchmarks.taught import teach
from nvf_fast.camera import project
from nvf_fast.checkpoint import load_checkpoint
from nvf_fast.config import NVFConfig
from nvf_fast.data.surfaces import MeshHands
from nvf_fast.estimator import PoseEstimator
from nvf_fast.model import NVF
from nvf_fast.pose import HandPose
from nvf_fast.synthetic.dataset import SyntheticConfig, SyntheticHands
from nvf_fast.synthetic.placement import HandDistribution

DENSE_ON_CPU_MM = 16  # a dense grid of a smaller step of the released network takes many seconds there


class Case(NamedTuple):
    """One timing: the default network or the released one, a step (mm), a search, a dtype."""

    network: str
    step: int
    search: str
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{self.network}-{self.step}-{self.search}-{dtype_name(self.dtype)}"

    @property
    def taught(self) -> bool:
        """Whether known distances take the place of the network's predictions."""
        return self.network == "released" and self.search != "dense"

    @property
    def peer_estimated(self) -> bool:
        """Whether the peer's time follows from that at `DENSE_ON_CPU_MM`."""
        return not CUDA and self.network == "released" and self.step < DENSE_ON_CPU_MM


def cases() -> list[Case]:
    dtypes = [torch.float16, torch.bfloat16, torch.float32] if CUDA else [torch.float32]
    if not CUDA and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        dtypes.append(torch.bfloat16)
    dense = [(step, "dense") for step in (4, 8, 16, 24, 32) if CUDA or step >= DENSE_ON_CPU_MM]
    searched = [(16, "guided"), (8, "guided"), (4, "guided"), (8, "octree"), (4, "octree")]
    return [
        *(Case("default", step, "dense", dtype) for step in (16, 8) for dtype in dtypes),
        *(Case("released", step, search, dtype) for step, search in dense + searched for dtype in dtypes),
    ]


@cache
def picture() -> tuple[np.ndarray, np.ndarray, float, MeshHands]:
    """An open hand half a metre away, wholly in view: its image, camera, scale and truth."""
    near = HandDistribution(nearest_mm=480, farthest_mm=520, visible_joints=21)
    data = SyntheticHands(SyntheticConfig(1, seed=5, distribution=near))
    hand = data.hands([0])
    return data[0].image, data[0].intrinsics, float(hand.hand_scale), hand


def given(name: str) -> dict[str, Any]:
    """What a network is told beside the image and its camera."""
    _, intrinsics, hand_scale, hand = picture()
    if name == "released":
        return {"hand_scale": hand_scale}
    pixels = project(hand.joints[0].double(), torch.from_numpy(intrinsics).double())
    return {"box": torch.cat([pixels.amin(0), pixels.amax(0)]).numpy()}


def estimate(estimator: PoseEstimator, name: str, count: int | None = None) -> HandPose:
    """The pose in the image, or in `count` copies of it."""
    image, intrinsics, _, _ = picture()
    images = image if count is None else np.repeat(image[None], count, 0)
    return estimator(images, intrinsics, side="right", **given(name))


@cache
def network(name: str) -> tuple[NVF, float]:
    """The network, and the surface_mm to vote with: one point in 300 votes where it is not trained."""
    if name == "default":
        model, _ = load_checkpoint("default", DEVICE)
        assert isinstance(model, NVF)
        return model, 5.0
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
def peer(name: str, step: int) -> Peer | HandPeer:
    model, surface_mm = network(name)
    return (HandPeer if name == "default" else Peer)(model, step, surface_mm, device=DEVICE)


def run_alone(rival: Peer | HandPeer, name: str) -> np.ndarray:
    image, intrinsics, _, _ = picture()
    joints: np.ndarray = rival(image, intrinsics, **given(name))
    return joints


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
    rival = peer(case.network, DENSE_ON_CPU_MM if case.peer_estimated else case.step)
    with peak_memory() as peak:
        estimator = build(case)
        pose = estimate(estimator, case.network)
    check(case, estimator, pose.joints, rival)
    more_points = len(estimator.lattice) / len(rival)

    def run_peer() -> float:
        run_alone(rival, case.network)
        query = rival.seconds["query"] * more_points
        return rival.seconds["encode"] + query + rival.seconds["vote"]

    rounds = 5 if CUDA and case.step == 4 else 15 if case.network == "default" else 7
    paired = time_in_turn(benchmark, lambda: estimate(estimator, case.network), run_peer, rounds)
    with estimator.timed() as stages:
        for _ in range(5):
            estimate(estimator, case.network)
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


def check(case: Case, estimator: PoseEstimator, joints: np.ndarray, rival: Peer | HandPeer) -> None:
    """Correct before timed, and repeatable: the peer's joints, or those known, or the dense grid's."""
    if case.taught:
        expected = picture()[3].joints[0].numpy()
    elif case.peer_estimated:
        model, surface_mm = network(case.network)
        expected = estimate(PoseEstimator(model, case.step, surface_mm), case.network).joints
    else:
        expected = run_alone(rival, case.network)
    limit = 10.0 if case.dtype != torch.float32 else 0.01 if case.search == "dense" else 0.5
    assert np.linalg.norm(joints - expected, axis=-1).mean() < limit
    assert np.array_equal(estimate(estimator, case.network).joints, joints), "bit for bit"
    if CUDA:
        assert estimator.runner._replay is not None
        assert None not in estimator.runner._replay._captured.values(), "one launch a frame"


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
@pytest.mark.parametrize("name", ["default", "released"] if CUDA else ["default"])
def bench_batches(benchmark: Any, name: str, batch: int) -> None:
    """Many images a call at 16 mm, every point queried; the peer takes one after the other."""
    model, surface_mm = network(name)
    estimator, rival = PoseEstimator(model, 16, surface_mm), peer(name, 16)
    alone, together = estimate(estimator, name), estimate(estimator, name, batch)
    # In half precision convolutions round otherwise for another number of images; by how much, no GPU has
    # shown yet.
    limit = 0.01 if estimator.dtype == torch.float32 else 1.0
    assert np.linalg.norm(together.joints - alone.joints, axis=-1).mean() < limit

    def run_peer() -> float:
        run_alone(rival, name)
        return batch * sum(rival.seconds.values())

    paired = time_in_turn(benchmark, lambda: estimate(estimator, name, batch), run_peer, rounds=7)
    benchmark.extra_info.update(
        network=name,
        batch=batch,
        dtype=dtype_name(estimator.dtype),
        **paired.facts(),
    )
