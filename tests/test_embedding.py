"""The network and the estimator inside other programs: calls, DDP, copies and pickles, and the examples."""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nvf_fast.baselines import build
from nvf_fast.camera import view_intrinsics
from nvf_fast.config import NVFConfig
from nvf_fast.estimator import PoseEstimator
from nvf_fast.model import NVF
from nvf_fast.pose import HandPose
from nvf_fast.tracking import Tracker
from tests.fixed_sizes import with_fixed_sizes
from tests.hand_cases import hand_network
from tests.reference_cases import SHAPE, reference_network
from tests.training_cases import ROOT, free_port, output_of

IMAGE = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
K = np.array([[100.0, 0, 63.5], [0, 100, 47.5], [0, 0, 1]])
BOX = (20, 10, 100, 80)


def call(model: NVF, count: int = 2) -> tuple[Tensor, ...]:
    """Arguments of the network: images, points, intrinsics and, for the reference view, hand scales."""
    points = torch.rand(count, 40, 3) * 60 + torch.tensor([-30.0, -30, 400])
    images = torch.randn(count, model.config.image_channels, *[model.config.input_size] * 2)
    if model.heads is not None:
        return images, points, view_intrinsics(torch.linspace(0.2, 0.3, count), model.config.input_size)
    return images, points, model.reference_intrinsics, torch.full((count,), 25.0)


def test_call_is_encode_and_query() -> None:
    model = reference_network()
    images, *rest = call(model)
    for found, expected in zip(model(images, *rest), model.query(model.encode(images), *rest), strict=True):
        assert torch.equal(found, expected)


def test_call_of_a_hand_view_takes_its_angles_from_the_intrinsics() -> None:
    model = hand_network()
    images, points, intrinsics = call(model)
    slopes = torch.linspace(0.2, 0.3, 2)
    encoding = model.encode_hands(images, slopes)
    expected = model.query(encoding.features, points, intrinsics, coarse=encoding.joints(slopes))
    for found, value in zip(model(images, points, intrinsics), expected, strict=True):
        assert torch.equal(found, value)
    with pytest.raises(ValueError, match=r"K must be \(3, 3\) or \(2, 3, 3\) px, got \(3, 3, 3\)"):
        model(images, points, intrinsics[[0, 1, 1]])


def test_functional_call_and_hooks() -> None:
    model = reference_network()
    arguments, parameters = call(model), dict(model.named_parameters())
    other = {name: value + 0.01 for name, value in parameters.items()}
    changed = copy.deepcopy(model)
    changed.load_state_dict(other, strict=False)
    assert torch.equal(torch.func.functional_call(model, other, arguments).sdf, changed(*arguments).sdf)

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(model, parameters, arguments).weight.square().mean()

    model(*arguments).weight.square().mean().backward()
    for name, gradient in torch.func.grad(loss)(parameters).items():
        # Their sums have other orders.
        torch.testing.assert_close(gradient, parameters[name].grad, rtol=1e-4, atol=1e-7)

    seen: list[Any] = []
    handle = model.register_forward_hook(lambda module, given, output: seen.append((given, output)))
    field = model(*arguments)
    handle.remove()
    ((given, output),) = seen
    assert given[0] is arguments[0] and output is field


DISTRIBUTED = """
from torch.nn.parallel import DistributedDataParallel
from tests.reference_cases import reference_network
from tests.test_embedding import call

model = reference_network()
torch.manual_seed(0)
arguments = call(model)

def loss(network, rows):
    images, points, K, scale = arguments
    return network(images[rows], points[rows], K, scale[rows]).weight.square().mean()

def run(rank):
    with process_group("cpu", 60):
        network = DistributedDataParallel(model)
        loss(network, [rank]).backward()
        if rank == 0:
            found = [parameter.grad for parameter in model.parameters()]
            alone = reference_network()
            loss(alone, [0, 1]).backward()
            pairs = [(each.grad, other) for each, other in zip(alone.parameters(), found, strict=True)]
            errors, sizes = zip(*([(a - b).abs().max().item(), a.abs().max().item()] for a, b in pairs))
            print(json.dumps([max(errors), max(sizes)]), flush=True)
        # Only the gradients are tested here. On a busy machine, a process that destroyed the group of its
        # DistributedDataParallel once did not end.
        torch.distributed.barrier()
        os._exit(0)

assert all(status == 0 for status, _ in launch(run, sys.argv[1]).values())
"""


@pytest.mark.slow
def test_distributed_gradients_are_those_of_one_process() -> None:
    error, size = json.loads(output_of(DISTRIBUTED, free_port()))
    assert error < 1e-5 * size, (error, size)


def poses(estimator: PoseEstimator) -> HandPose:
    if estimator.model.config.view == "hand":
        return estimator(IMAGE, K, box=BOX)
    return estimator(IMAGE, K)


def assert_same(pose: HandPose, expected: HandPose) -> None:
    assert expected.valid
    for name in ("joints", "joints_2d", "scores", "voters", "presence"):
        np.testing.assert_array_equal(getattr(pose, name), getattr(expected, name), err_msg=name)


ESTIMATORS = {
    "hand view": lambda: PoseEstimator(hand_network(), surface_mm=8.0),
    "bfloat16": lambda: PoseEstimator(reference_network(nearness=1.0), 32.0, dtype=torch.bfloat16),
    "guided search": lambda: PoseEstimator(reference_network(nearness=1.0), search="guided", backend="torch"),
    "baseline": lambda: PoseEstimator(build(NVFConfig(**SHAPE, method="holistic"))),
    "fixed sizes": lambda: with_fixed_sizes(PoseEstimator(reference_network(nearness=1.0), 32.0)),
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_copies_estimate_the_same(name: str) -> None:
    estimator = ESTIMATORS[name]()
    expected = poses(estimator)
    with estimator.timed():
        copies = [copy.deepcopy(estimator), pickle.loads(pickle.dumps(estimator))]
    for each in copies:
        assert each.options == estimator.options and each.model is not estimator.model
        assert_same(poses(each), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_estimators_take_networks_of_other_precisions(dtype: torch.dtype) -> None:
    model = hand_network().bfloat16()  # whose weights every dtype holds
    expected = PoseEstimator(copy.deepcopy(model).float())(IMAGE, K, box=BOX)
    assert np.array_equal(PoseEstimator(model.to(dtype))(IMAGE, K, box=BOX).joints, expected.joints)


def test_trackers_copy_with_their_tracks() -> None:
    tracker = Tracker(PoseEstimator(hand_network()))
    tracker(IMAGE, K, 0.0)
    copied = pickle.loads(pickle.dumps(tracker))
    first, second = (each(IMAGE, K, 0.1) for each in (tracker, copied))
    assert first.ids == second.ids and np.array_equal(first.poses.joints, second.poses.joints)


@pytest.mark.slow
def test_spawned_workers_estimate_the_same() -> None:
    estimators = [ESTIMATORS[name]() for name in ("hand view", "guided search")]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.map_async(poses, estimators).get(timeout=120)
    for pose, estimator in zip(found, estimators, strict=True):
        assert_same(pose, poses(estimator))


@pytest.mark.slow
@pytest.mark.parametrize("program", ["refine_pose.py", "train_loop.py", "train_body.py"])
def test_examples_improve(program: str) -> None:
    """Each prints an error before and after, in mm or as a loss."""
    known = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    printed = subprocess.check_output(
        [sys.executable, str(ROOT / "examples" / program)],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": known}, text=True, timeout=120,
    )  # fmt: skip
    changes = [line.split()[-3:] for line in printed.splitlines() if " -> " in line]
    assert changes, printed
    for before, _, after in changes:
        assert float(after) < float(before), printed
