"""Predictors: every method and task predicts joints in the camera's frame through one estimator."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from nvf_fast.baselines import Baseline, build
from nvf_fast.checkpoint import save_checkpoint
from nvf_fast.config import NVFConfig
from nvf_fast.data.sample import HandSample
from nvf_fast.estimator import PoseEstimator, load
from nvf_fast.evaluation.predictors import NetworkPredictor
from tests.sampled_hands import sample_hands

TINY = NVFConfig(
    input_size=32, stem=8, width=16, stacks=1, groups=4, hidden=(32, 16), scale_optional=True
)  # fmt: skip
K = np.array([[400.0, 0, 64], [0, 400.0, 48], [0, 0, 1]])


@pytest.fixture
def samples() -> list[HandSample]:
    hands = sample_hands(3, torch.Generator().manual_seed(0))
    images = np.random.default_rng(0).integers(0, 256, (3, 96, 128, 3), dtype=np.uint8)
    return [
        HandSample(str(i), images[i], K, root=hands.joints[i, 0], joints=hands.joints[i], hand_scale=40.0 + i)
        for i in range(3)
    ]


@pytest.mark.parametrize("task", ["camera-space", "root-relative"])
@pytest.mark.parametrize("method", ["nvf", "holistic", "dense"])
def test_every_method_and_task_predicts(samples: list[HandSample], method: str, task: str) -> None:
    model = build(replace(TINY, method=method, task=task))
    with torch.no_grad():
        model.field.biases[-1][0] = 0.02  # the surface everywhere, or the hand
        model.field.biases[-1][1::4] = 0.5
    predictor = NetworkPredictor(PoseEstimator(model))
    assert (predictor.method, predictor.task, predictor.scale_choices) == (method, task, (True, False))
    with predictor.timed() as times:
        found = predictor(samples, use_scale=True)
    assert sum(times.values()) > 0
    assert found.joints.shape == (3, 21, 3) and found.joints.dtype == np.float32
    assert found.valid.tolist() == [True] * 3 and found.scores.shape == (3, 21) and (found.voters > 0).all()
    without = predictor(samples, use_scale=False)
    assert not np.allclose(found.joints, without.joints)
    # Predictions do not depend on the rest of the batch.
    alone = predictor(samples[1:2], use_scale=True)
    np.testing.assert_allclose(alone.joints[0], found.joints[1], rtol=1e-4, atol=0.02)
    if task == "root-relative":
        moved = [replace(samples[1], root=samples[1].root + torch.tensor([0.0, 0.0, 1.0]))]
        shift = predictor(moved, use_scale=True).joints[0] - found.joints[1]
        assert (
            np.abs(shift.mean(0) - [0, 0, 1]).max() < 0.5
        )  # the crop hardly changes, and the prediction moves with the hand
        with pytest.raises(ValueError, match="1: the network needs the true wrist"):
            predictor([samples[0], replace(samples[1], root=None)], use_scale=True)


def test_baseline_predicts_millimetres_of_the_camera(samples: list[HandSample]) -> None:
    for task, origin in (("camera-space", torch.zeros(3)), ("root-relative", samples[0].root)):
        model = build(replace(TINY, method="holistic", task=task))
        assert isinstance(model, Baseline)
        expected = model.normalised(samples[0].joints - origin)
        with torch.no_grad():
            model.field.weights[-1].zero_()
            model.field.biases[-1].copy_(expected.flatten())
        found = NetworkPredictor(PoseEstimator(model))(samples[:1], use_scale=False)
        np.testing.assert_allclose(found.joints[0], samples[0].joints, rtol=0, atol=1e-3)


@pytest.mark.parametrize("task", ["camera-space", "root-relative"])
@pytest.mark.parametrize("method", ["nvf", "holistic", "dense"])
def test_left_hand_equals_the_mirrored_right_hand(method: str, task: str) -> None:
    torch.manual_seed(2)
    model = build(replace(TINY, method=method, task=task))
    with torch.no_grad():
        torch.nn.init.normal_(model.field.weights[-1], std=0.05)
        model.field.biases[-1][0] = 9.0 if method == "dense" else 0.02  # hand, or surface, everywhere
        model.field.biases[-1][1::4] = 0.5
    estimator = PoseEstimator(model)
    # 160 px is divisible by the 5 and 8 px that the views average, so mirroring keeps the blocks.
    image = np.random.default_rng(0).integers(0, 256, (96, 160, 3), dtype=np.uint8)
    root = np.array([20.0, -10.0, 500.0])
    box, mirrored_box = (30, 20, 90, 80), (159 - 90, 20, 159 - 30, 80)
    camera_space = task == "camera-space"
    mirrored_K = K.copy()
    mirrored_K[0, 2] = 159 - K[0, 2]
    mirror = np.array([-1.0, 1, 1])
    right = estimator(image, K, box=box if camera_space else None, root=None if camera_space else root)
    left = estimator(
        np.ascontiguousarray(image[:, ::-1]),
        mirrored_K,
        box=mirrored_box if camera_space else None,
        root=None if camera_space else root * mirror,
        side="left",
    )
    assert right.valid and left.valid
    # 1.5e-4 mm measured: the views are resampled from images whose rounding differs.
    np.testing.assert_allclose(left.joints * mirror, right.joints, rtol=0, atol=2e-3)


@pytest.mark.parametrize("method", ["nvf", "holistic", "dense"])
def test_load_supports_every_method_and_task(samples: list[HandSample], tmp_path: Path, method: str) -> None:
    for task in ("camera-space", "root-relative"):
        model = build(replace(TINY, method=method, task=task))
        save_checkpoint(model, tmp_path / task, {}, dtype=torch.float32)
        predictor = NetworkPredictor(load(tmp_path / task, device="cpu"))
        assert (predictor.method, predictor.task) == (method, task)
        found = predictor(samples, use_scale=True)
        expected = NetworkPredictor(PoseEstimator(model))(samples, use_scale=True)
        np.testing.assert_array_equal(found.joints, expected.joints)


def test_baseline_refuses_options_of_a_field(samples: list[HandSample]) -> None:
    baseline = build(replace(TINY, method="holistic"))
    for option in ({"fraction": 0.7}, {"search": "guided"}, {"step_mm": 8.0}, {"surface_mm": 1.0}):
        message = (
            rf"\['{next(iter(option))}'\] are options of a field, but a 'holistic' baseline has no field"
        )
        with pytest.raises(ValueError, match=message):
            PoseEstimator(baseline, **option)
    estimator = PoseEstimator(baseline)
    with pytest.raises(ValueError, match="a 'holistic' baseline has no voting points"):
        estimator(samples[0].image, K, return_votes=True)
    pose = estimator(samples[0].image, K)
    assert pose.valid and (pose.scores == 1).all() and pose.voters == pose.points_evaluated == 1
