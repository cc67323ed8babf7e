"""Scores of a network while it trains, on pictures that it does not learn from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from nvf_fast.baselines import Network
from nvf_fast.data.catalogue import DataConfig, Folders, open_dataset
from nvf_fast.data.sample import FirstSamples
from nvf_fast.estimator import PoseEstimator
from nvf_fast.evaluation.mean_pose import fallback_pose
from nvf_fast.evaluation.predictors import NetworkPredictor
from nvf_fast.evaluation.report import report_on
from nvf_fast.evaluation.run import predict
from nvf_fast.synthetic.dataset import render_ahead

SYNTHETIC_SEED = 1_000_003  # pictures that no training on a smaller seed sees
SHOWN = ("cs_mje", "te", "de", "rs_mje", "pa_mpjpe", "voters", "invalid")


def validation(config: DataConfig, folders: Folders, count: int) -> Callable[[Network], dict[str, float]]:
    """What measures a network on the first pictures of a data set's evaluation part.

    Args:
        config: the training's data set; of a seeded synthetic one, pictures of another seed are taken.
        folders: where it lies.
        count: pictures.

    Returns:
        From a network to its scores (`SHOWN`), with and without hand scale where it can be asked both ways.

    Raises:
        ValueError: their joints are not released, or there is no such part.
    """
    synthetic = replace(config.synthetic, seed=SYNTHETIC_SEED, count=count)
    whole = open_dataset(replace(config, synthetic=synthetic), "evaluation", folders)
    render_ahead(whole, progress=False, count=count)
    dataset = FirstSamples(whole, count)
    if dataset[0].joints is None:
        raise ValueError(f"{dataset.name}: without the evaluation part's joints evaluate_every must be 0")
    fallback = fallback_pose(config)

    def scores(model: Network) -> dict[str, float]:
        answers = predict(NetworkPredictor(PoseEstimator(model)), dataset)
        assert answers is not None
        found = report_on(answers, fallback, {})["settings"]
        return {
            f"{setting}_{name}": measured["scores"][name]
            for setting, measured in found.items()
            for name in SHOWN
            if name in measured["scores"]
        }

    return scores
