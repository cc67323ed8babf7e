"""Reports of an evaluation: report.json, report.md, pck.png, predictions.safetensors and submissions."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nvf_fast.config import Task
from nvf_fast.data.mano import Mano
from nvf_fast.evaluation.dataset_predictions import DatasetPredictions, Times, save_predictions
from nvf_fast.evaluation.mano_fit import fitted_vertices
from nvf_fast.evaluation.metrics import KeypointScores
from nvf_fast.evaluation.predictors import Predictions
from nvf_fast.evaluation.report_files import table_lines, write_report_files
from nvf_fast.evaluation.scores import completed, curves, joint_statistics, score_predictions, server_scores
from nvf_fast.evaluation.submission import FORMATS, Server, write_submission

SHOWN_FAULTS = 20
TABLE = {
    "cs_mje": "CS-MJE mm",
    "cs_auc": "CS-AUC",
    "te": "TE mm",
    "de": "DE mm",
    "pa_mpjpe": "PA-MPJPE mm",
    "mje": "MJE mm",
    "auc": "AUC",
    "rs_mje": "RS-MJE mm",
    "score_correlation": "score vs error",
    "invalid": "no prediction",
}


def report_on(
    results: DatasetPredictions,
    fallback: np.ndarray,
    context: Mapping[str, Any],
    server: Server | None = None,
) -> dict[str, Any]:
    """Score predictions and describe the run, ready for `write_report`.

    Args:
        results: of `run.predict`.
        fallback: (21, 3) mm, the mean pose that replaces invalid predictions; moved onto the true wrist for
            root-relative predictions.
        context: conditions of the run, in addition to the metadata of `results`.
        server: of the data set, whose scores to add.

    Returns:
        context, counts, damaged, times, notes; and where joints are released mean_pose (its scores) and
        settings: by setting scores, server, joints and curves.
    """
    task: Task = results.metadata["task"]
    scored = results.released & ~results.damaged
    notes = []
    damaged = {id: fault for id, fault in zip(results.ids, results.faults, strict=True) if fault}
    if damaged:
        notes.append(f"{len(damaged)} damaged image(s) were skipped; no score counts them.")
    invalid = {
        setting: int((~predictions.valid & ~results.damaged).sum())
        for setting, predictions in results.predictions.items()
    }
    notes += [
        f"{setting}: {count} image(s) without a valid prediction count with the mean pose."
        for setting, count in invalid.items()
        if count
    ]
    counts = {"images": len(results), "damaged": len(damaged), "scored": int(scored.sum())}
    result: dict[str, Any] = {
        "context": {**results.metadata, **context},
        "counts": {**counts, "invalid": invalid},
        "damaged": dict(list(damaged.items())[:SHOWN_FAULTS]),
        "times": _times(results.times),
        "notes": notes,
    }
    if not scored.any():
        notes.append("No joints are released for this split, so that it has no scores.")
        return result
    if scored.sum() + len(damaged) < len(results):
        notes.append(f"Scores cover the {int(scored.sum())} image(s) whose joints are released.")
    truth = results.truth[scored].astype(np.float64)
    means = _fallbacks(results, fallback)[scored]
    result["mean_pose"] = score_predictions(_always(means), truth, means, task)
    result["settings"] = {}
    for setting, predictions in results.predictions.items():
        chosen = Predictions(**{name: array[scored] for name, array in vars(predictions).items()})
        joints = completed(chosen, means)
        result["settings"][setting] = {
            "scores": score_predictions(chosen, truth, means, task),
            "server": {} if server is None else server_scores(joints, truth, server),
            "joints": joint_statistics(joints, truth),
            "curves": curves(joints, truth, task),
        }
    return result


def write_report(
    folder: Path,
    report: dict[str, Any],
    results: DatasetPredictions,
    fallback: np.ndarray,
    submit_to: Server | None = None,
    mano: Mano | None = None,
) -> list[Path]:
    """Write an evaluation's files.

    Args:
        folder: made when missing.
        report: of `report_on`; notes are added to it.
        results: of `run.predict`.
        fallback: as in `report_on`; a submission holds it for damaged images too.
        submit_to: the server for which to write SETTING/pred.zip, or None.
        mano: the model whose fits are the submissions' vertices; None leaves them zero.

    Returns:
        The files.
    """
    files = [folder / "predictions.safetensors"]
    save_predictions(files[0], results, with_times=False)
    if submit_to is not None:
        images, official = len(results), FORMATS[submit_to].images
        means = _fallbacks(results, fallback)
        for setting, predictions in results.predictions.items():
            files.append(folder / setting / "pred.zip")
            joints = completed(predictions, means)
            fits = None if mano is None else fitted_vertices(mano, joints, submit_to.partition("-")[0])
            write_submission(files[-1], joints, submit_to, fits, official=images == official)
        if images != official:
            report["notes"].append(
                f"The submission holds {images} images, the official split {official}: the server will "
                "refuse it."
            )
        report["notes"].append(
            "The submissions' vertices are zeros: ignore their mesh scores."
            if mano is None
            else "The submissions' vertices are MANO's, fitted to the predicted joints."
        )
    if "settings" in report:
        if importlib.util.find_spec("matplotlib"):
            from nvf_fast.reproduce.plots.pck import pck_figure

            files.append(folder / "pck.png")
            pck_figure(_drawn(report["settings"]), files[-1])
        else:
            report["notes"].append("No pck.png: it needs matplotlib (pip install 'nvf-fast[viz]').")
    title = f"{report['context']['data set']}, {report['context']['split']}"
    return files + write_report_files(folder / "report", title, _lines(report), report["context"], report)


def score_table(report: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of the scores of the mean pose and of each setting."""
    rows = {"mean pose": report["mean_pose"]}
    rows |= {_words(setting): found["scores"] for setting, found in report["settings"].items()}
    names = [name for name in TABLE if name in report["mean_pose"]]
    return ["predictions", *(TABLE[name] for name in names)], [
        [row, *(scores[name] for name in names)] for row, scores in rows.items()
    ]


def _lines(report: Mapping[str, Any]) -> list[str]:
    """Lines of report.md: scores with the mean pose as baseline, server scores, joints and times."""
    counts, times = report["counts"], report["times"]
    numbers = f"{counts['images']} images, {counts['damaged']} damaged, {counts['scored']} scored"
    lines = [f"{numbers}. Errors are mm.", "", *(f"- {note}" for note in report["notes"])]
    if "settings" in report:
        lines += ["", "## Scores", "", *table_lines(*score_table(report))]
    for setting, found in report.get("settings", {}).items():
        if found["server"]:
            lines += ["", f"## Scores as the data set's server names them, {_words(setting)}", ""]
            lines += table_lines(["score", "value"], found["server"].items())
        columns = ["joint", "mean", "median", "root-relative mean", "root-relative median"]
        rows = [[name, *errors.values()] for name, errors in found["joints"].items()]
        lines += ["", f"## Joints, {_words(setting)}", "", *table_lines(columns, rows)]
    lines += ["", "## Times"]
    for columns, key in ((["activity", "images/s"], "images_per_second"), (["stage", "ms"], "ms_per_image")):
        lines += ["", *table_lines(columns, times[key].items())]
    lines += ["", times["note"]]
    if report["damaged"]:
        lines += ["", "## Damaged images", ""]
        lines += [f"- {id}: {fault}" for id, fault in report["damaged"].items()]
        more = counts["damaged"] - len(report["damaged"])
        lines += [f"- and {more} more"] * (more > 0)
    return lines


def _fallbacks(results: DatasetPredictions, fallback: np.ndarray) -> np.ndarray:
    """(N, 21, 3) mm."""
    poses = np.broadcast_to(fallback, results.truth.shape)
    if results.metadata["task"] == "camera-space":
        return poses
    moved = poses - poses[:, :1] + results.roots[:, None]
    return np.where(np.isfinite(moved), moved, poses)


def _always(poses: np.ndarray) -> Predictions:
    """Wrap poses (N, 21, 3) mm as valid predictions."""
    count = len(poses)
    return Predictions(poses, np.zeros((count, 21)), np.ones(count, bool), np.zeros(count, int))


def _times(times: Times) -> dict[str, Any]:
    images, staged = times.images, times.staged
    rates = {name: images / seconds for name, seconds in times.seconds.items() if images and seconds}
    per_image = {name: value / staged for name, value in times.milliseconds.items() if staged}
    return {
        "images_per_second": rates,
        "ms_per_image": per_image,
        "note": f"Images/s of one process, over {times.images} images after its first batch; 'read' is "
        f"waiting for images. Stages over {times.staged} images, the last batch of each shard, each "
        "stage waiting for the device.",
    }


def _drawn(settings: Mapping[str, Any]) -> dict[str, KeypointScores]:
    """The first curve of each setting, and the others of the first."""
    return {
        f"{name}, {_words(setting)}" if len(settings) > 1 else name: curve
        for number, (setting, found) in enumerate(settings.items())
        for place, (name, curve) in enumerate(found["curves"].items())
        if number == 0 or place == 0
    }


def _words(setting: str) -> str:
    return setting.replace("_", " ")
