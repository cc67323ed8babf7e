"""Autocast, default dtype, default device and gradient modes of the caller change no result."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import nvf_fast
from nvf_fast import ops
from nvf_fast.baselines import build
from nvf_fast.camera import view_intrinsics
from nvf_fast.checkpoint import load_checkpoint
from nvf_fast.config import NVFConfig
from nvf_fast.estimator import PoseEstimator
from nvf_fast.grid import frustum_grid
from nvf_fast.image_files import read_image
from nvf_fast.model import NVF
from nvf_fast.runtime.profiling import Profiler
from nvf_fast.tracking import Tracker
from tests.hand_cases import hand_network
from tests.reference_cases import SHAPE, reference_network

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "nvf_fast/assets/demo.jpg"


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


STATES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "autocast to bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast to float16": lambda: torch.autocast("cpu", torch.float16),
    "float64 by default": lambda: default_dtype(torch.float64),
    "float16 by default": lambda: default_dtype(torch.float16),
    "meta by default": lambda: torch.device("meta"),
    "inference mode": torch.inference_mode,
}
IMAGE = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
K = np.array([[100.0, 0, 63.5], [0, 100, 47.5], [0, 0, 1]])
BOX = (20, 10, 100, 80)


@pytest.fixture(scope="module")
def networks() -> dict[str, Any]:
    """Networks made without any state, in evaluation mode."""
    torch.manual_seed(0)
    relative = NVFConfig(**SHAPE, task="root-relative")
    return {
        "hand": hand_network(),
        "reference": reference_network(nearness=1.0),
        "relative": NVF(relative).eval(),
        "dense": build(NVFConfig(**SHAPE, method="dense")).eval(),
        "holistic": build(NVFConfig(**SHAPE, method="holistic")).eval(),
    }


def flat(value: Any) -> Iterator[Tensor]:
    """The arrays in a result, as tensors on the CPU."""
    if isinstance(value, Tensor):
        yield value.detach()
    elif isinstance(value, np.ndarray | np.generic):
        yield torch.from_numpy(np.asarray(value).copy())
    elif isinstance(value, list | tuple):
        for each in value:
            yield from flat(each)
    elif hasattr(value, "__dataclass_fields__"):
        yield from flat(list(vars(value).values()))


def poses(networks: dict[str, Any]) -> Iterator[Any]:
    """Results of estimators made and used here."""
    hand = PoseEstimator(networks["hand"])
    torch_image = torch.from_numpy(IMAGE)
    first = hand(IMAGE, K, box=BOX, return_votes=True)
    yield from (first, hand(torch_image, K, 30.0, BOX, "left"), hand(IMAGE, K, previous=first))
    yield from (hand(IMAGE, K), hand.find(IMAGE, K, score=0.0))
    tracker = Tracker(hand)
    yield from (tracker(IMAGE, K, time / 30).poses for time in range(2))
    yield PoseEstimator(networks["reference"], 32.0)(IMAGE, K, 25.0)
    yield PoseEstimator(networks["reference"], 16.0, search="guided")(IMAGE, K, 25.0)
    half = PoseEstimator(networks["reference"], 32.0, dtype=torch.bfloat16)
    yield half(IMAGE, K, box=(50, 30, 80, 60))
    yield PoseEstimator(networks["relative"], 32.0)(IMAGE, K, root=(0, 0, 500.0))
    yield from (PoseEstimator(networks[method])(IMAGE, K) for method in ("dense", "holistic"))


def fields(networks: dict[str, Any], inputs: list[Tensor]) -> Iterator[Any]:
    """Results of networks and operations."""
    images, large, points, slopes, K, vertices, faces = inputs
    reference, hand = networks["reference"], networks["hand"]
    features = reference.encode(images)
    scale = slopes * 0 + 25
    yield from (features, reference.encode_all(images))
    yield reference.query(features, points, reference.reference_intrinsics, scale)
    yield reference(images, points, reference.reference_intrinsics, scale)
    encoding = hand.encode_hands(large, slopes)
    yield from (encoding, hand.hand_maps(large, slopes))
    yield from (hand(large, points, K), hand.field_biases(encoding.joints(slopes)))
    yield from (ops.select_voters(points[..., 0], 20.0, 30), ops.compact(points[..., 0] > 0, None))
    yield ops.cast_votes(points[:, :, :3], torch.stack([points.sin()] * 4, -1), slopes.int() + 40)
    yield from (ops.mesh_distance(vertices, faces, points), ops.ray_mesh(vertices, faces, points, points))


@pytest.fixture(scope="module")
def inputs() -> list[Tensor]:
    torch.manual_seed(1)
    points = torch.rand(2, 60, 3) * 60 + torch.tensor([-30.0, -30, 400])
    slopes = torch.tensor([0.2, 0.3])
    views = torch.randn(2, 3, 64, 64), torch.randn(2, 3, 128, 128)
    mesh = 20 * torch.randn(2, 3, 3), torch.tensor([[0, 1, 2], [1, 0, 2]])
    return [*views, points, slopes, view_intrinsics(slopes, 128), *mesh]


@pytest.fixture(scope="module")
def expected(networks: dict[str, Any], inputs: list[Tensor]) -> list[Tensor]:
    return [*flat(list(poses(networks))), *flat(list(fields(networks, inputs)))]


@pytest.mark.parametrize("state", STATES)
def test_changes_nothing(
    state: str, networks: dict[str, Any], inputs: list[Tensor], expected: list[Tensor]
) -> None:
    with STATES[state]():
        found = [*flat(list(poses(networks))), *flat(list(fields(networks, inputs)))]
    assert len(found) == len(expected)
    assert sum(each.numel() for each in expected) > 10_000
    for index, (result, value) in enumerate(zip(found, expected, strict=True)):
        assert (result.dtype, result.device) == (value.dtype, value.device), index
        assert torch.equal(result.nan_to_num(), value.nan_to_num()), index


@pytest.mark.parametrize("state", STATES)
def test_loaded_networks_are_the_same(state: str) -> None:
    with STATES[state]():
        model, _ = load_checkpoint(None)
        estimator = nvf_fast.load(device="cpu")
        grid = frustum_grid(64.0)
    expected, _ = load_checkpoint(None)
    for (name, value), (_, other) in zip(
        model.state_dict().items(), expected.state_dict().items(), strict=True
    ):
        assert (value.dtype, value.device.type) == (torch.float32, "cpu"), name
        assert torch.equal(value, other), name
    assert torch.equal(grid, frustum_grid(64.0)) and grid.dtype == torch.float32
    # Weights made in inference mode could not be trained.
    assert not any(value.is_inference() for value in model.state_dict().values())
    points = estimator.lattice.points(torch.tensor([400.0]), torch.tensor([0.2]))  # type: ignore[call-arg, arg-type]
    assert isinstance(estimator.model, NVF) and points.dtype == torch.float32
    model.field.weights[0].requires_grad_().sum().backward()


@pytest.mark.parametrize("state", STATES)
def test_cameras_and_followed_hands_are_the_same(state: str) -> None:
    estimator, image = nvf_fast.load(device="cpu"), read_image(DEMO)
    camera = nvf_fast.Camera([[831.4, 0, 479.5], [0, 831.4, 269.5], [0, 0, 1]], (960, 540), (-0.1, 0, 0, 0))  # type: ignore[arg-type]

    def results() -> Iterator[Any]:
        tracker = Tracker(estimator)
        for time in range(2):
            ids, poses = tracker(image, camera, time / 30)
            assert len(ids) == 2
            yield poses
        yield (camera.project(poses.joints), camera.rays(poses.joints_2d))
        yield (camera.project([[1, 2, 900]]), camera.rays([[1, 2]]))  # type: ignore[type-var]

    expected = [*flat(list(results()))]
    with STATES[state]():
        found = [*flat(list(results()))]
    for result, value in zip(found, expected, strict=True):
        assert result.dtype == value.dtype and torch.equal(result, value)


def test_training_follows_autocast() -> None:
    """A loop with mixed precision runs the encoder in it, and the field in float32 where it must be exact."""
    model = NVF(NVFConfig(**SHAPE))
    images, points = torch.randn(1, 3, 64, 64), torch.rand(1, 9, 3) * 60 + torch.tensor([-30.0, -30, 400])
    with torch.autocast("cpu", torch.bfloat16):
        assert model.encode(images).dtype == torch.bfloat16
        field = model(images, points, model.reference_intrinsics)
        assert field.sdf.dtype == field.weight.dtype == torch.float32
        assert model.eval().encode(images).dtype == torch.float32


FORKED = """
import os, signal, numpy, torch
from nvf_fast.estimator import PoseEstimator
from tests.reference_cases import reference_network
torch.set_num_threads(2)
estimator = PoseEstimator(reference_network(), step_mm=64)
image = numpy.random.default_rng(0).integers(0, 256, (128, 128, 3), numpy.uint8)
K = [[300, 0, 63.5], [0, 300, 63.5], [0, 0, 1]]
before = estimator(image, K)
child = os.fork()
if child == 0:
    signal.alarm(60)
    after = estimator(image, K)
    os._exit(0 if numpy.allclose(after.joints, before.joints, atol=0.01) else 1)  # mm; 0.0002 measured
assert torch.get_num_threads() == 2
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_fork_after_use_computes_instead_of_waiting() -> None:
    assert subprocess.check_output([sys.executable, "-c", FORKED], cwd=ROOT, text=True) == "0\n"


def test_times_belong_to_the_thread_that_measures() -> None:
    profiler, inside, measured = Profiler(torch.device("cpu")), threading.Event(), threading.Event()

    def other() -> None:
        inside.wait(10)
        with profiler.stage("other"):
            assert not profiler.measuring
        with profiler.timed() as times, profiler.stage("own"):
            pass
        assert list(times) == ["own"]
        measured.set()

    thread = threading.Thread(target=other)
    thread.start()
    with profiler.timed() as times:
        inside.set()
        assert measured.wait(10) and profiler.measuring
        with profiler.stage("first"):
            pass
    thread.join()
    assert list(times) == ["first"]
