"""Scores on seeded synthetic images, with the mean pose of their distribution as baseline."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from nvf_fast.evaluation.mean_pose import mean_pose, mean_pose_scores, mean_shape, other_hands
from nvf_fast.evaluation.predictors import NetworkPredictor
from nvf_fast.evaluation.run import predict
from nvf_fast.evaluation.scores import score_predictions
from nvf_fast.synthetic.dataset import SyntheticHands


def evaluate(predictor: NetworkPredictor, data: SyntheticHands, progress: bool = False) -> dict[str, Any]:
    """Score a predictor with and without hand scale, ready for JSON.

    Args:
        predictor: of either task.
        data: the images; the mean pose is fitted on other hands of their distribution.
        progress: shows a bar.

    Returns:
        data, its configuration; mean_pose, its scores; and scores by setting (`SETTINGS`).
    """
    results = predict(predictor, data, progress=progress)
    others = other_hands(data.config.distribution)
    pose = mean_pose(others)
    return {
        "data": asdict(data.config),
        "mean_pose": mean_pose_scores(pose, mean_shape(others), results.truth),
        **{
            setting: score_predictions(predictions, results.truth, pose, predictor.task)
            for setting, predictions in results.predictions.items()
        },
    }
