"""The paper's tables 2 to 8, with measured and printed figures."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np

from nvf_fast.config import Method
from nvf_fast.data.sample import HandDataset
from nvf_fast.estimator import PoseEstimator
from nvf_fast.evaluation.dataset_predictions import SETTINGS
from nvf_fast.evaluation.mean_pose import mean_pose, other_hands
from nvf_fast.evaluation.predictors import NetworkPredictor
from nvf_fast.evaluation.report import report_on
from nvf_fast.evaluation.run import predict
from nvf_fast.grid import frustum_grid
from nvf_fast.model import NVF
from nvf_fast.reproduce import published
from nvf_fast.reproduce.recipes import Variant
from nvf_fast.reproduce.results import Result
from nvf_fast.reproduce.workshop import Workshop

METHODS: dict[Method, str] = {"holistic": "Baseline-Holistic", "dense": "Baseline-2D-Dense", "nvf": "CS-NVF"}
BEST = Variant(hand_scale=True, extra=True)  # of CS-NVF, in tables 5 and 6
TIMED = 20  # images over which a step's time is the median
ABSENT = "No other method was run here: their figures are the paper's."


def table2(workshop: Workshop) -> Result:
    """Table 2: CS-MJE of absolute pose on FreiHAND, with and without hand scale and extra data."""
    found = {
        variant: workshop.report(variant)["scores"]
        for variant in _camera_space_variants()
        if variant.method == "nvf" or not variant.extra
    }
    return _absolute_pose("table2", found)


def table3(workshop: Workshop) -> Result:
    """Table 3: TE and DE of absolute pose on FreiHAND."""
    return _translation("table3", workshop)


def table4(workshop: Workshop) -> Result:
    """Table 4: root-relative pose on HO-3D."""
    scores = workshop.report(Variant(task="root-relative"))["scores"]
    measured = [scores[name] for name in ("mje", "auc", "rs_mje", "invalid")]
    rows = [
        [name, *paper, *(measured if name == "RS-NVF" else [None] * 4)]
        for name, paper in published.ROOT_RELATIVE.items()
    ]
    columns = ["method", "MJE mm, paper", "AUC, paper", "RS-MJE mm, paper"]
    columns += ["MJE mm", "AUC", "RS-MJE mm", "no prediction"]
    return Result("table4", "Table 4: relative 3D hand pose on HO-3D", columns, rows, [ABSENT])


def table5(workshop: Workshop) -> Result:
    """Table 5: voting fraction, clamping distance and neighbours, of CS-NVF and RS-NVF."""
    rows = []
    for what, value, *paper in published.ABLATIONS:
        options = [_ablated(task, what, value) for task in ("camera-space", "root-relative")]
        camera, root = (workshop.report(variant, **chosen)["scores"] for variant, chosen in options)
        rows.append([what, value, *paper, camera["cs_mje"], camera["cs_auc"], root["mje"], root["auc"]])
    names = ["CS-MJE mm", "CS-AUC", "RS-NVF MJE mm", "RS-NVF AUC"]
    columns = ["what", "value", *(f"{name}, paper" for name in names), *names]
    notes = [
        "CS-NVF takes the hand scale and was pre-trained on Complement. The voting fraction is of inference; "
        "each clamping distance and number of neighbours is a separate training."
    ]
    return Result("table5", "Table 5: voting fraction, clamping distance, neighbours", columns, rows, notes)


def table6(workshop: Workshop) -> Result:
    """Table 6 with networks trained here, and RS-NVF's steps of Section 4.7."""
    camera, root = BEST, Variant(task="root-relative")
    network, _ = workshop.network(camera)
    assert isinstance(network, NVF)
    result = step_sizes(network, workshop.dataset("freihand", "evaluation"), use_scale=True)
    rows = list(result.rows)
    for step, paper in published.ROOT_RELATIVE_STEPS.items():
        scores = workshop.report(root, step_mm=float(step))["scores"]
        points = int(340 / step) ** 3
        rows.append(["RS-NVF", step, None, *paper, None, points, scores["mje"], scores["auc"], None])
    notes = [*result.notes, "RS-NVF's errors are MJE and AUC, of Section 4.7."]
    return replace(result, rows=rows, notes=notes)


def table7(workshop: Workshop) -> Result:
    """Table 7: table 2 with the baselines' extra data."""
    found = {variant: workshop.report(variant)["scores"] for variant in _camera_space_variants()}
    return _absolute_pose("table7", found)


def table8(workshop: Workshop) -> Result:
    """Table 8: table 3, which the supplement prints again."""
    return _translation("table8", workshop)


def step_sizes(network: NVF, dataset: HandDataset, use_scale: bool) -> Result:
    """Table 6 for one camera-space network: accuracy and speed by the step of a dense grid.

    Speed is that of single images, from pixels to joints in host memory.

    Args:
        network: a trained network.
        dataset: images with joints.
        use_scale: whether the true hand scale is given.
    """
    rows, details = [], {}
    for step, paper in published.STEPS.items():
        estimator = PoseEstimator(network, step_mm=float(step))
        predictor = NetworkPredictor(estimator)
        predictions = predict(predictor, dataset, batch=1, shard=16, progress=True)
        report = report_on(predictions, mean_pose(other_hands()), {})["settings"][SETTINGS[use_scale]]
        times = list(_milliseconds(estimator, dataset, use_scale))
        median = statistics.median(times)
        details[str(step)] = {"scores": report["scores"], "milliseconds": times}
        scores, points = report["scores"], len(frustum_grid(step))
        rows.append(["CS-NVF", step, *paper, points, scores["cs_mje"], scores["cs_auc"], 1000 / median])
    columns = ["method", "step (mm)", "points, paper", "error mm, paper", "AUC, paper", "FPS, paper"]
    columns += ["points", "error mm", "AUC", "FPS"]
    notes = [f"{len(dataset)} images; FPS from the median of {min(TIMED, len(dataset))} single images."]
    return Result("table6", "Table 6: sampling step size", columns, rows, notes, details=details)


def _camera_space_variants() -> list[Variant]:
    """Rows of tables 7 and 8, in their order."""
    return [
        Variant(method, hand_scale=scale, extra=extra)
        for extra, scale, method in product((False, True), (False, True), METHODS)
    ]


def _absolute_pose(name: str, found: dict[Variant, dict[str, float]]) -> Result:
    rows: list[list[Any]] = [
        [other, "–", "no", error, None, None, None] for other, error in published.OTHERS_CAMERA_SPACE.items()
    ]
    for variant, scores in found.items():
        paper = published.CAMERA_SPACE[variant.method, variant.extra, variant.hand_scale][0]
        rows.append([*_named(variant), paper, scores["cs_mje"], scores["cs_auc"], scores["invalid"]])
    columns = ["method", "extra data", "hand scale", "CS-MJE mm, paper"]
    columns += ["CS-MJE mm", "CS-AUC", "no prediction"]
    title = f"Table {name[-1]}: absolute 3D hand pose on FreiHAND"
    return Result(name, title, columns, rows, [ABSENT, _order(found)])


def _order(found: dict[Variant, dict[str, float]]) -> str:
    """The methods from the least error to the largest, with and without hand scale, as measured."""
    orders = []
    for scale in (False, True):
        alike = {v.method: s["cs_mje"] for v, s in found.items() if v.hand_scale == scale and not v.extra}
        best_first = " < ".join(METHODS[method] for method in sorted(alike, key=alike.__getitem__))
        orders.append(f"{'with' if scale else 'without'} hand scale {best_first}")
    return f"Order by CS-MJE, without extra data: {'; '.join(orders)}."


def _translation(name: str, workshop: Workshop) -> Result:
    rows = []
    for variant in _camera_space_variants():
        scores = workshop.report(variant)["scores"]
        _, te, de = published.CAMERA_SPACE[variant.method, variant.extra, variant.hand_scale]
        rows.append([*_named(variant), te, de, scores["te"], scores["de"], scores["cs_mje"]])
    columns = ["method", "extra data", "hand scale", "TE mm, paper", "DE mm, paper"]
    columns += ["TE mm", "DE mm", "CS-MJE mm"]
    return Result(name, f"Table {name[-1]}: translational and depth error on FreiHAND", columns, rows)


def _named(variant: Variant) -> tuple[str, str, str]:
    return METHODS[variant.method], "Comp" if variant.extra else "–", "yes" if variant.hand_scale else "no"


def _ablated(task: Any, what: str, value: float) -> tuple[Variant, dict[str, float]]:
    """The variant and the estimator's options of one column of table 5."""
    base = BEST if task == "camera-space" else Variant(task="root-relative")
    if what == "voting fraction (%)":
        return base, {"fraction": value / 100}
    changed = {"surface_mm": float(value)} if what == "clamping distance (mm)" else {"nearest": int(value)}
    return Variant(**vars(base) | changed), {}


def _milliseconds(estimator: PoseEstimator, dataset: HandDataset, use_scale: bool) -> Iterator[float]:
    """Times of single images, after an unmeasured one."""
    for place in range(min(TIMED, len(dataset)) + 1):
        sample = dataset[max(0, place - 1)]
        scale = sample.hand_scale if use_scale else None
        began = time.perf_counter()
        pose = estimator(sample.image, sample.intrinsics, scale)
        assert isinstance(pose.joints, np.ndarray)  # on the host: nothing is left to wait for
        if place:
            yield 1000 * (time.perf_counter() - began)


TABLES = {make.__name__: make for make in (table2, table3, table4, table5, table6, table7, table8)}
