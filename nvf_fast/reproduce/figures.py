"""The paper's figures 3 to 8, of networks trained here or given."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from nvf_fast.baselines import DenseBaseline
from nvf_fast.data.sample import HandDataset, HandSample
from nvf_fast.estimator import PoseEstimator
from nvf_fast.evaluation import metrics
from nvf_fast.evaluation.metrics import KeypointScores
from nvf_fast.reproduce import published
from nvf_fast.reproduce.inputs import read_photographs, read_predictions
from nvf_fast.reproduce.plots.hands import pose_figure, qualitative_figure
from nvf_fast.reproduce.plots.pck import pck_figure
from nvf_fast.reproduce.plots.rows import PredictionRow, dense_row, nvf_row
from nvf_fast.reproduce.recipes import Variant
from nvf_fast.reproduce.results import Result
from nvf_fast.reproduce.tables import METHODS
from nvf_fast.reproduce.workshop import EVALUATED_ON, Workshop

PHOTOGRAPHS = 4  # in a row


def figure3(workshop: Workshop, path: Path, others: Mapping[str, Path]) -> Result:
    """Figure 3: 3D PCK of absolute pose, of our three methods and of `others` by their prediction files."""
    curves: dict[str, KeypointScores] = {}
    if others:
        truth = _truth(workshop.dataset("freihand", "evaluation"))
        for name, file in others.items():
            errors = metrics.joint_errors(read_predictions(file, len(truth)), truth)
            curves[name] = metrics.keypoint_scores(errors)
    for method, name in METHODS.items():
        curves[name] = workshop.report(Variant(method))["curves"]["camera space"]
    pck_figure(curves, path)
    rows = [
        [name, published.AREAS.get(name), curves[name].auc if name in curves else None]
        for name in [*(name for name in published.AREAS if name not in curves), *curves]
    ]
    title = "Figure 3: 3D PCK of absolute pose on FreiHAND, without hand scale or extra data"
    return Result("figure3", title, ["method", "CS-AUC, paper", "CS-AUC"], rows, images=[path.name])


def figure4(workshop: Workshop, path: Path, samples: Sequence[int]) -> Result:
    """Figure 4: voters and votes of NVF beside Baseline-2D-Dense's."""
    dense, _ = workshop.network(Variant("dense", hand_scale=True))
    assert isinstance(dense, DenseBaseline)
    estimator = workshop.estimator(Variant(hand_scale=True))
    rows = []
    for sample in _chosen(workshop.dataset("freihand", "evaluation"), samples):
        rows.append(dense_row(dense, sample, True, METHODS["dense"]))
        rows.append(nvf_row(estimator, sample, True, METHODS["nvf"]))
    return _qualitative("figure4", "Figure 4: votes of Baseline-2D-Dense and CS-NVF", rows, path)


def figure5(workshop: Workshop, path: Path, samples: Sequence[int], others: Mapping[str, Path]) -> Result:
    """Figure 5: CS-NVF's poses beside those of `others`, by their prediction files."""
    dataset = workshop.dataset("freihand", "evaluation")
    estimator = workshop.estimator(Variant())
    predicted = {name: read_predictions(path, len(dataset)) for name, path in others.items()}
    rows = [
        [
            (sample, None),
            *((sample, joints[place]) for joints in predicted.values()),
            (sample, estimator(sample.image, sample.intrinsics).joints),
        ]
        for place, sample in zip(samples, _chosen(dataset, samples), strict=True)
    ]
    pose_figure(rows, ["RGB input", *predicted, METHODS["nvf"]], path)
    notes = [] if others else ["No other method's predictions were given (--predictions NAME pred.json)."]
    title = "Figure 5: CS-NVF beside other methods on FreiHAND"
    return Result("figure5", title, notes=notes, images=[path.name])


def figure6(workshop: Workshop, path: Path, samples: Sequence[int]) -> Result:
    """Figure 6: further poses of CS-NVF on FreiHAND."""
    rows = _field_rows(workshop, Variant(hand_scale=True), samples)
    return _qualitative("figure6", "Figure 6: CS-NVF on FreiHAND", rows, path)


def figure7(workshop: Workshop, path: Path, samples: Sequence[int]) -> Result:
    """Figure 7: RS-NVF on HO-3D, moved to the true root."""
    rows = _field_rows(workshop, Variant(task="root-relative"), samples)
    return _qualitative("figure7", "Figure 7: RS-NVF on HO-3D", rows, path)


def figure8(estimator: PoseEstimator, folder: Path, path: Path) -> Result:
    """Figure 8: poses in a folder of photographs with intrinsics (`read_photographs`).

    A network of hand views finds the hands of a photograph without a box. Each hand has a pair of panels; a
    photograph without hands has one pair without a pose.
    """
    pairs: list[list[tuple[HandSample, np.ndarray | None]]] = []
    found: list[list[object]] = []
    for name, image, K, box, side, scale in read_photographs(folder):
        try:
            poses = estimator(image, K, scale if estimator.takes_hand_scale else None, box, side)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name}: {error}") from error
        sample = HandSample(name, image, np.array(K, np.float64))
        hands = [poses] if poses.joints.ndim == 2 else list(poses)
        for pose in hands:
            pairs.append([(sample, None), (sample, pose.joints)])
            found.append([name, int(pose.voters), float(pose.joints[:, 2].mean()), float(pose.scores.mean())])
        if not hands:
            pairs.append([(sample, None), (sample, np.full((21, 3), np.nan))])
            found.append([name, 0, None, 0.0])
    columns = math.ceil(len(pairs) / math.ceil(len(pairs) / PHOTOGRAPHS))  # rows as equal as can be
    starts = range(0, len(pairs), columns)
    rows = [list(chain.from_iterable(pairs[start : start + columns])) for start in starts]
    pose_figure(rows, ["RGB input", "3D hand pose"] * columns, path)
    names = ["photograph", "voters", "mean depth mm", "mean score"]
    return Result("figure8", "Figure 8: photographs", names, found, images=[path.name])


def _field_rows(workshop: Workshop, variant: Variant, samples: Sequence[int]) -> list[PredictionRow]:
    estimator = workshop.estimator(variant)
    dataset = workshop.dataset(EVALUATED_ON[variant.task], "evaluation")
    return [nvf_row(estimator, sample, variant.hand_scale) for sample in _chosen(dataset, samples)]


def _qualitative(name: str, title: str, rows: list[PredictionRow], path: Path) -> Result:
    qualitative_figure(rows, path)
    table = [[row.sample.id, row.method, len(row.voters) if row.valid else 0] for row in rows]
    return Result(name, title, ["sample", "method", "voters"], table, images=[path.name])


def _chosen(dataset: HandDataset, samples: Sequence[int]) -> list[HandSample]:
    outside = [place for place in samples if not 0 <= place < len(dataset)]
    if outside:
        raise ValueError(f"samples must lie in [0, {len(dataset)}), got {outside}")
    return [dataset[place] for place in samples]


def _truth(dataset: HandDataset) -> np.ndarray:
    """(N, 21, 3) mm."""
    joints = [dataset[place].joints for place in range(len(dataset))]
    if any(each is None for each in joints):
        raise ValueError(f"{dataset.name}: the joints of the evaluation split are missing")
    return np.stack([each.double().numpy() for each in joints if each is not None])
