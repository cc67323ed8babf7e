"""Scores on seeded synthetic images, beside the best constant pose of their distribution."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from nvf_fast.evaluation.mean_pose import mean_pose, mean_pose_scores, mean_shape, other_hands
from nvf_fast.evaluation.predictors import Predictor
from nvf_fast.evaluation.run import Options, predict
from nvf_fast.evaluation.scores import score_predictions
from nvf_fast.synthetic.dataset import SyntheticHands


def evaluate(predictor: Predictor, data: SyntheticHands, progress: bool = False) -> dict[str, Any]:
    """Scores with and without hand scale, beside the best constant pose, as one JSON-ready report.

    Args:
        predictor: of either task.
        data: the images; the constant pose is fitted on other hands of their distribution.
        progress: shows a bar.

    Returns:
        data, its configuration; constant, the constant pose's scores; and scores by setting (`run.SETTINGS`).
    """
    answers = predict(predictor, data, options=Options(progress=progress))
    assert answers is not None
    others = other_hands(data.config.distribution)
    pose = mean_pose(others)
    return {
        "data": asdict(data.config),
        "constant": mean_pose_scores(pose, mean_shape(others), answers.truth),
        **{
            setting: score_predictions(predictions, answers.truth, pose, predictor.task)
            for setting, predictions in answers.predictions.items()
        },
    }
