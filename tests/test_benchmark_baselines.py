"""Benchmark baselines give the same joints as the estimator, so that ratios of times are meaningful."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.baselines import Baseline, HandBaseline
from nvf_fast.config import NVFConfig
from nvf_fast.estimator import PoseEstimator
from nvf_fast.model import NVF
from tests.hand_cases import hand_network

K = np.array([[500.0, 0, 79.5], [0, 500.0, 59.5], [0, 0, 1]])


@pytest.mark.parametrize("hand_scale", [33.0, None])
@pytest.mark.parametrize("surface_mm", [5.0, 1e-9])
def test_baseline_agrees_with_dense_estimator(hand_scale: float | None, surface_mm: float) -> None:
    torch.manual_seed(3)
    model = NVF(NVFConfig(input_size=64, stem=16, width=32, stacks=1, hidden=(32, 24), scale_optional=True))
    with torch.no_grad():
        model.field.biases[-1][0] = 0.0
        model.field.biases[-1][1::4] = 0.5
    image = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    found = Baseline(model, 24, surface_mm)(image, K, hand_scale)
    pose = PoseEstimator(model, 24, surface_mm)(image, K, hand_scale)
    assert pose.valid == (surface_mm == 5.0)
    assert not pose.valid or 0 < pose.voters < 7742
    np.testing.assert_allclose(found, pose.joints, atol=0.01)


def test_hand_baseline_agrees_with_estimator() -> None:
    model, box = hand_network(), np.array([20.0, 30.0, 120.0, 110.0])
    image = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    found = HandBaseline(model)(image, K, box)
    pose = PoseEstimator(model)(image, K, box=box, side="right")
    assert pose.valid and 0 < pose.voters < 2744
    np.testing.assert_allclose(found, pose.joints, atol=0.02)
