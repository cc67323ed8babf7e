"""The paper's figures 3 to 8, of networks trained here or given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from nvf_fast.baselines import DenseBaseline
from nvf_fast.camera import project
from nvf_fast.data.sample import HandDataset, HandSample
from nvf_fast.estimator import PoseEstimator
from nvf_fast.evaluation import metrics
from nvf_fast.evaluation.metrics import KeypointScores
from nvf_fast.evaluation.scores import curve_of
from nvf_fast.model import NVF
from nvf_fast.reproduce import published
from nvf_fast.reproduce.cells import Workshop
from nvf_fast.reproduce.inputs import read_photographs, read_predictions
from nvf_fast.reproduce.plots.dense import dense_row
from nvf_fast.reproduce.plots.pck import pck_figure
from nvf_fast.reproduce.plots.poses import PosePair, comparison_figure, photograph_figure
from nvf_fast.reproduce.plots.qualitative import QualitativeRow, hand_window, qualitative_figure
from nvf_fast.reproduce.plots.rows import nvf_row
from nvf_fast.reproduce.recipes import Variant
from nvf_fast.reproduce.results import Result
from nvf_fast.reproduce.tables import METHODS


def figure3(workshop: Workshop, path: Path, others: Mapping[str, Path]) -> Result:
    """Figure 3: 3D PCK of absolute pose, of our three methods and of `others` by their prediction files."""
    curves: dict[str, KeypointScores] = {}
    if others:
        truth = _truth(workshop.dataset("freihand", "evaluation"))
        for name, file in others.items():
            errors = metrics.joint_errors(read_predictions(file, len(truth)), truth)
            curves[name] = metrics.keypoint_scores(errors)
    for method, name in METHODS.items():
        curves[name] = curve_of(workshop.report(Variant(method))["curves"]["camera space"])
    pck_figure(curves, path)
    rows = [
        [name, published.AREAS.get(name), curves[name].auc if name in curves else None]
        for name in [*(name for name in published.AREAS if name not in curves), *curves]
    ]
    title = "Figure 3: 3D PCK of absolute pose on FreiHAND, without hand scale or extra data"
    return Result("figure3", title, ["method", "CS-AUC, paper", "CS-AUC"], rows, images=[path.name])


def figure4(workshop: Workshop, path: Path, samples: Sequence[int]) -> Result:
    """Figure 4: voters and votes of NVF beside Baseline-2D-Dense's."""
    scale = True
    dense, _ = workshop.network(Variant("dense", hand_scale=scale))
    field, _ = workshop.network(Variant(hand_scale=scale))
    assert isinstance(dense, DenseBaseline) and isinstance(field, NVF)
    estimator = PoseEstimator(field)
    rows = []
    for sample in _chosen(workshop.dataset("freihand", "evaluation"), samples):
        window = _window(sample)
        rows.append(dense_row(dense, sample, scale, METHODS["dense"], window))
        rows.append(nvf_row(estimator, sample, scale, METHODS["nvf"], window=window))
    return _qualitative("figure4", "Figure 4: votes of Baseline-2D-Dense and CS-NVF", rows, path)


def figure5(workshop: Workshop, path: Path, samples: Sequence[int], others: Mapping[str, Path]) -> Result:
    """Figure 5: CS-NVF's poses beside those of `others`, by their prediction files."""
    dataset = workshop.dataset("freihand", "evaluation")
    network, _ = workshop.network(Variant())
    assert isinstance(network, NVF)
    estimator = PoseEstimator(network)
    predicted = {name: read_predictions(path, len(dataset)) for name, path in others.items()}
    rows = []
    for place in samples:
        sample = dataset[place]
        poses = {name: joints[place] for name, joints in predicted.items()}
        poses["CS-NVF"] = estimator(sample.image, sample.intrinsics).joints
        rows.append(
            {
                name: PosePair(sample.image, sample.intrinsics, joints, window=_window(sample))
                for name, joints in poses.items()
            }
        )
    comparison_figure(rows, path)
    notes = [] if others else ["No other method's predictions were given (--predictions NAME pred.json)."]
    title = "Figure 5: CS-NVF beside other methods on FreiHAND"
    return Result("figure5", title, notes=notes, images=[path.name])


def figure6(workshop: Workshop, path: Path, samples: Sequence[int]) -> Result:
    """Figure 6: further poses of CS-NVF on FreiHAND."""
    network, _ = workshop.network(Variant(hand_scale=True))
    assert isinstance(network, NVF)
    estimator = PoseEstimator(network)
    rows = [
        nvf_row(estimator, sample, True, window=_window(sample))
        for sample in _chosen(workshop.dataset("freihand", "evaluation"), samples)
    ]
    return _qualitative("figure6", "Figure 6: CS-NVF on FreiHAND", rows, path)


def figure7(workshop: Workshop, path: Path, samples: Sequence[int]) -> Result:
    """Figure 7: RS-NVF on HO-3D, moved to the true root."""
    network, _ = workshop.network(Variant(task="root-relative"))
    assert isinstance(network, NVF)
    estimator = PoseEstimator(network)
    rows = [
        nvf_row(estimator, sample, window=_window(sample))
        for sample in _chosen(workshop.dataset("ho3d", "evaluation"), samples)
    ]
    return _qualitative("figure7", "Figure 7: RS-NVF on HO-3D", rows, path)


def figure8(estimator: PoseEstimator, folder: Path, path: Path) -> Result:
    """Figure 8: poses in a folder of photographs with intrinsics (`read_photographs`).

    A network of hand views finds the hands of a photograph without a box. Each hand has a row; a photograph
    without hands has one row without a pose.
    """
    pairs, found = [], []
    takes_scale = estimator.takes_hand_scale
    for sample in read_photographs(folder):
        scale = sample.hand_scale if takes_scale else None
        box = None if sample.box is None else sample.box.numpy()
        poses = estimator(sample.image, sample.intrinsics, scale, box, sample.side)
        hands = [poses] if poses.joints.ndim == 2 else list(poses)
        for pose in hands:
            pairs.append(PosePair(sample.image, sample.intrinsics, pose.joints))
            metadata = [int(pose.voters), float(pose.joints[:, 2].mean()), float(pose.scores.mean())]
            found.append([sample.id, *metadata])
        if not hands:
            pairs.append(PosePair(sample.image, sample.intrinsics, np.full((21, 3), np.nan)))
            found.append([sample.id, 0, None, 0.0])
    photograph_figure(pairs, path)
    columns = ["photograph", "voters", "mean depth mm", "mean score"]
    return Result("figure8", "Figure 8: photographs", columns, found, images=[path.name])


def _qualitative(name: str, title: str, rows: list[QualitativeRow], path: Path) -> Result:
    qualitative_figure(rows, path)
    table = [[row.id, row.method, len(row.voters) if row.valid else 0] for row in rows]
    return Result(name, title, ["sample", "method", "voters"], table, images=[path.name])


def _chosen(dataset: HandDataset, samples: Sequence[int]) -> list[HandSample]:
    outside = [place for place in samples if not 0 <= place < len(dataset)]
    if outside:
        raise ValueError(f"samples must lie in [0, {len(dataset)}), got {outside}")
    return [dataset[place] for place in samples]


def _window(sample: HandSample) -> tuple[int, int, int, int] | None:
    """A window about the true hand, or None if it is unknown."""
    if sample.joints is None:
        return None
    pixels = project(sample.joints.double().numpy(), sample.intrinsics)
    return hand_window(pixels, *sample.image.shape[:2])


def _truth(dataset: HandDataset) -> np.ndarray:
    """(N, 21, 3) mm."""
    joints = [dataset[place].joints for place in range(len(dataset))]
    if any(each is None for each in joints):
        raise ValueError(f"{dataset.name}: the evaluation part's joints are not there")
    return np.stack([each.double().numpy() for each in joints if each is not None])
