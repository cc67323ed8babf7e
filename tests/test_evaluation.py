"""The synthetic evaluation: its baselines are optimal, its correlation is Spearman's, its report adds up."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from nvf_fast import metrics
from nvf_fast.config import NVFConfig
from nvf_fast.data import synthetic
from nvf_fast.data.hand import HandDistribution, sample_hands
from nvf_fast.data.synthetic import SyntheticConfig, SyntheticHands
from nvf_fast.estimator import PoseEstimator
from nvf_fast.evaluation.synthetic import (
    constant_pose,
    constant_scores,
    constant_shape,
    evaluate,
    rank_correlation,
    score_predictions,
)
from nvf_fast.model import NVF


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    return sample_hands(256, torch.Generator().manual_seed(0)).joints.double().numpy()


def test_no_neighbour_of_the_constant_pose_is_better(truth: np.ndarray) -> None:
    best = constant_pose(truth)
    error = metrics.mpjpe(np.broadcast_to(best, truth.shape), truth)
    random = np.random.default_rng(0)
    for size in (0.5, 5.0, 50.0):
        moved = best + size * random.standard_normal(best.shape)
        assert metrics.mpjpe(np.broadcast_to(moved, truth.shape), truth) > error
    assert error < metrics.mpjpe(np.broadcast_to(truth.mean(0), truth.shape), truth)


def test_the_constant_shape_beats_single_poses_after_alignment(truth: np.ndarray) -> None:
    error = metrics.pa_mpjpe(np.broadcast_to(constant_shape(truth), truth.shape), truth)
    for pose in (*truth[:5], constant_pose(truth)):
        assert metrics.pa_mpjpe(np.broadcast_to(pose, truth.shape), truth) > error


def test_constant_scores_generalise(truth: np.ndarray) -> None:
    scores = constant_scores(HandDistribution(), truth, fitted_on=512)["scores"]
    assert scores["cs_mje"] < 1.1 * metrics.mpjpe(np.broadcast_to(constant_pose(truth), truth.shape), truth)
    assert scores["de"] <= scores["te"] <= scores["cs_mje"]


def test_rank_correlation_is_spearmans() -> None:
    stats = pytest.importorskip("scipy.stats")
    random = np.random.default_rng(1)
    first = random.integers(0, 20, 200).astype(float)  # many ties
    second = first + random.standard_normal(200) * 8
    assert rank_correlation(first, second) == pytest.approx(
        stats.spearmanr(first, second).statistic, abs=1e-12
    )
    assert rank_correlation(np.arange(5.0), -np.arange(5.0)) == pytest.approx(-1)
    assert np.isnan(rank_correlation(np.ones(4), np.arange(4.0)))


def test_unanswered_pictures_count_with_the_constant_pose(truth: np.ndarray) -> None:
    valid = np.arange(len(truth)) % 2 == 0
    joints = np.where(valid[:, None, None], truth, np.nan)
    scores = np.where(valid, 1.0, 0.0)[:, None].repeat(21, 1)
    predictions = {
        "joints": joints,
        "truth": truth,
        "valid": valid,
        "scores": scores,
        "voters": np.ones(len(truth)),
    }
    result = score_predictions(predictions, constant_pose(truth))
    expected = (
        metrics.joint_errors(np.broadcast_to(constant_pose(truth), truth.shape), truth)[~valid].sum()
        / truth[..., 0].size
    )
    assert result["invalid"] == len(truth) // 2
    assert result["cs_mje"] == pytest.approx(expected)


def test_evaluate_reports_what_the_model_can_be_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(synthetic, "CHUNK", 4)
    data = SyntheticHands(SyntheticConfig(count=3, seed=0, size=64))
    shape = {
        "input_size": 64,
        "stem": 8,
        "width": 16,
        "stacks": 1,
        "depth": 2,
        "groups": 4,
        "hidden": (16, 16, 16, 16),
    }
    report = evaluate(PoseEstimator(NVF(NVFConfig(**shape, scale_optional=True)), step_mm=32), data)
    assert {"with_hand_scale", "without_hand_scale", "constant", "data"} <= set(report)
    assert report["with_hand_scale"]["images"] == 3
    json.dumps(report)
    assert "with_hand_scale" not in evaluate(
        PoseEstimator(NVF(NVFConfig(**shape, hand_scale=False)), step_mm=32), data
    )
