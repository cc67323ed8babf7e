"""The report on a network of hand views: its checks, tables, JSON, and a plot of its expected errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nvf_fast.evaluation.report_files import table_lines, write_report_files

if TYPE_CHECKING:
    from nvf_fast.estimator import PoseEstimator

ERRORS = {
    "error_2d": "2D error %",
    "aligned": "aligned mm",
    "relative": "relative mm",
    "camera": "camera space, true scale mm",
    "camera_without_scale": "without scale mm",
}
TITLES = {
    "rendered": "Rendered hands of any orientation",
    "depth": "Mean signed depth error with the true scale",
    "facing": "Final joints by the visible side of the hand",
    "visibility": "Final joints by visibility",
    "calibration": "Expected and true errors, in tenths of the joints",
    "sizes": "Recall in wide images, by size in px",
    "presence": "Finding, by the least presence of hands; at 0 every hand that the estimator returns",
    "checks": "Presence, finding, stability, time",
}


CHECKS = (
    ("poses", "correlation", "expected against true error, Spearman", "{hands} hands"),
    ("poses", "lost", "rendered hands lost, %", "{hands} hands"),
    ("presence", "lost", "photographs lost, %", "{hands} photographs"),
    ("presence", "side", "side right, %", "{hands} photographs"),
    ("empty", "accepted", "empty views accepted, %", "{empty} views"),
    ("stability", "turned", "aligned error upside down over upright", "{hands} hands"),
    ("stability", "moved", "joints move when the box moves by half a pixel, mm", "{hands} hands"),
    ("stability", "batch", "largest difference between single and batched predictions, mm", "{hands} hands"),
    ("finding", "recall", "hands found in wide images, %", "{hands} hands in {images} images"),
    ("finding", "side", "side right of those, %", "{images} images"),
    ("finding", "false_hands", "false hands per image", "{images} images"),
    ("crops", "recall", "hands found in photographs of one hand, %", "{images} photographs"),
    ("crops", "false_hands", "false hands per photograph", "{images} photographs"),
    ("time", "pose", "pose with box, ms", "{threads} threads, {device}"),
    ("time", "find", "all hands of 1280 x 720, ms", "{threads} threads, {device}"),
)
"""Rows of the table of checks: part and entry of the report, name, and number of cases."""


def check_hand_views(
    estimator: PoseEstimator,
    photographs: Path | None,
    backgrounds: Path | None,
    rig: Path | None,
    data_cache: Path | None,
    *,
    count: int,
    stable: int,
    empty: int,
    wide: int,
    seed: int,
) -> dict[str, Any]:
    """Run the checks.

    Args:
        estimator: of a network of hand views.
        photographs, backgrounds, rig, data_cache, count, stable, empty, wide, seed: as the options of
            `nvf-fast eval hand-views`.

    Returns:
        Results of `hand_views` by part: "poses", "stability", "empty", "presence", "crops", "finding" and
        "time"; and "skipped", the reasons by part.
    """
    from nvf_fast.data.photograph_views import PhotographViews
    from nvf_fast.data.photographs import Photographs
    from nvf_fast.evaluation import hand_views
    from nvf_fast.evaluation.finding import one_hand_image, score_finding
    from nvf_fast.evaluation.mean_pose import other_hands
    from nvf_fast.evaluation.photographs import predict_with, predicted
    from nvf_fast.model import NVF
    from nvf_fast.synthetic.dataset import render_ahead, synthetic_v2
    from nvf_fast.synthetic.placement import UNIFORM
    from nvf_fast.synthetic.rendered_views import SyntheticViews
    from nvf_fast.synthetic.wide_images import WideImages
    from nvf_fast.training.calibration import predict_views

    assert isinstance(estimator.model, NVF)
    predict, heads = predict_with(estimator), partial(predict_views, estimator.model)
    report: dict[str, Any] = {"skipped": {}}
    if count:
        rendered = synthetic_v2("test", data_cache)
        render_ahead(rendered, count=count)
        samples = [rendered[index] for index in range(min(count, len(rendered)))]
        parts = hand_views.part_joints(heads, samples)
        poses = predicted(predict, samples)
        report["poses"] = hand_views.score_poses(poses, parts, samples, other_hands(UNIFORM))
        few = samples[:stable]
        report["stability"] = hand_views.score_stability(predict, few) | {"hands": len(few)}
    else:
        report["skipped"]["poses and stability"] = "--count is 0"
    threshold = estimator.model.config.presence_threshold
    without_hand = SyntheticViews(seed, backgrounds=backgrounds).draw(empty, "empty")
    report["empty"] = hand_views.score_empty(heads, without_hand, threshold)
    if photographs is None:
        report["skipped"]["presence and finding in photographs"] = "--photographs is not given"
    else:
        data = Photographs(photographs, "val")
        views = PhotographViews(data).exact(keep_sides=True)
        report["presence"] = hand_views.score_presence(heads, views, threshold)
        report["crops"] = score_finding(
            estimator, (one_hand_image(data[index]) for index in range(len(data)))
        )
    images = WideImages(seed, rig=rig, backgrounds=backgrounds)
    report["finding"] = score_finding(estimator, (images.draw(index) for index in range(wide)))
    shown = images.draw(0, ["right"])
    box, side = shown.hands[0].box, shown.hands[0].side
    report["time"] = hand_views.measure_times(
        lambda: estimator(shown.image, shown.intrinsics, box=box, side=side),
        lambda: estimator(shown.image, shown.intrinsics),
    ) | {"device": str(estimator.device)}
    return report


def write_hand_view_report(folder: Path, report: Mapping[str, Any], context: Mapping[str, Any]) -> list[Path]:
    """Write report.json, report.md and, with matplotlib, calibration.png, and return their paths.

    Args:
        folder: made when missing.
        report: of `check_hand_views`.
        context: conditions of the measurement.
    """
    title, lines = "Checks of a network of hand views", report_lines(report)
    written = write_report_files(folder / "report", title, lines, context, report)
    if "poses" in report and find_spec("matplotlib") is not None:
        plot_calibration(report["poses"]["calibration"], folder / "calibration.png")
        written.append(folder / "calibration.png")
    return written


def report_lines(report: Mapping[str, Any]) -> list[str]:
    """Lines of Markdown: the tables, and the checks that were skipped."""
    sections = {TITLES[name]: table_lines(*table) for name, table in report_tables(report).items()}
    if report["skipped"]:
        sections["Skipped"] = [f"- {part}: {reason}" for part, reason in report["skipped"].items()]
    return [line for title, lines in sections.items() for line in (f"## {title}", "", *lines, "")][:-1]


def report_tables(report: Mapping[str, Any]) -> dict[str, tuple[list[str], list[list[Any]]]]:
    """Columns and rows by name, in the order of `TITLES`."""

    def rows(found: Mapping[str, Mapping[str, Any]]) -> list[list[Any]]:
        return [[name, *values.values()] for name, values in found.items()]

    tables: dict[str, tuple[list[str], list[list[Any]]]] = {}
    if poses := report.get("poses"):
        aligned = ["aligned mm", "relative mm"]
        tables["rendered"] = ["joints", *ERRORS.values()], rows(poses["methods"])
        tables["depth"] = ["distance", "error mm", "hands"], rows(poses["depth"])
        tables["facing"] = ["facing", *aligned, "hands"], rows(poses["facing"])
        if poses["visibility"]:
            tables["visibility"] = ["joints", *aligned, "number"], rows(poses["visibility"])
        tenths = [list(row.values()) for row in poses["calibration"]]
        tables["calibration"] = ["expected mm", "true mm", "joints"], tenths
    if finding := report.get("finding"):
        tables["sizes"] = ["longer side px", "recall %", "hands"], rows(finding["sizes"])
        parts = {"wide images": finding["presence"]}
        if crops := report.get("crops"):
            parts["photographs"] = crops["presence"]
        columns = [f"{part}: {each}" for part in parts for each in ("found %", "false per image")]
        tables["presence"] = (
            ["least presence", *columns],
            [
                [least, *(value for part in parts.values() for value in part[least].values())]
                for least in finding["presence"]
            ],
        )
    tables["checks"] = ["check", "measured", "over"], _checks(report)
    return tables


def plot_calibration(table: Sequence[Mapping[str, float]], path: Path) -> None:
    """Draw true against expected errors, of `calibration_table`.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from nvf_fast.reproduce.plots.style import figure_file

    expected, true = ([row[name] for row in table] for name in ("expected", "true"))
    limit = 1.05 * max([*expected, *true, 1e-3])
    with figure_file(path, 4, 4, dpi=120) as figure:
        axes = figure.subplots()
        axes.plot([0, limit], [0, limit], color="0.7", linewidth=1)
        axes.plot(expected, true, "o-")
        axes.set(xlabel="expected error, mm", ylabel="true error, mm", xlim=(0, limit), ylim=(0, limit))


def _checks(report: Mapping[str, Any]) -> list[list[Any]]:
    parts = dict(report)
    if poses := report.get("poses"):
        parts["poses"] = poses | {"lost": 100 * poses["lost"] / poses["hands"]}
    return [
        [check, parts[part][key], over.format(**parts[part])]
        for part, key, check, over in CHECKS
        if parts.get(part)
    ]
