"""Scores of a network during its training, on held-out images."""

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

SYNTHETIC_SEED = 1_000_003  # trainings use smaller seeds
SHOWN = ("cs_mje", "te", "de", "rs_mje", "pa_mpjpe", "voters", "invalid")


def validation(config: DataConfig, folders: Folders, count: int) -> Callable[[Network], dict[str, float]]:
    """Prepare the evaluation of networks on the first images of a data set's evaluation split.

    Args:
        config: the training's data set; a seeded synthetic one is replaced by one of another seed.
        folders: of the data set.
        count: number of images.

    Returns:
        A function from a network to its scores (`SHOWN`), with and without hand scale where it accepts both.

    Raises:
        ValueError: the joints are not released, or the data set has no evaluation split.
    """
    synthetic = replace(config.synthetic, seed=SYNTHETIC_SEED, count=count)
    whole = open_dataset(replace(config, synthetic=synthetic), "evaluation", folders)
    render_ahead(whole, progress=False, count=count)
    dataset = FirstSamples(whole, count)
    if dataset[0].joints is None:
        raise ValueError(
            f"{dataset.name}: without the joints of the evaluation split (--evaluation-data for FreiHAND's), "
            "evaluate_every must be 0"
        )
    fallback = fallback_pose(config)

    def scores(model: Network) -> dict[str, float]:
        results = predict(NetworkPredictor(PoseEstimator(model)), dataset)
        found = report_on(results, fallback, {})["settings"]
        return {
            f"{setting}_{name}": measured["scores"][name]
            for setting, measured in found.items()
            for name in SHOWN
            if name in measured["scores"]
        }

    return scores
