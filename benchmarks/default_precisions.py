"""Compare the precisions of the default network on a CPU, in accuracy and time.

    python -m benchmarks.default_precisions --photographs FOLDER [--leave-out GROUP ...]

Run `make readme` afterwards.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import tyro

import nvf_fast
from benchmarks.timing import device_name, seconds_of
from nvf_fast.checkpoint import load_checkpoint
from nvf_fast.data.photographs import Photographs
from nvf_fast.estimator import PoseEstimator
from nvf_fast.evaluation import metrics
from nvf_fast.evaluation.finding import score_finding
from nvf_fast.evaluation.photographs import evaluate_photographs, predict_with, predicted
from nvf_fast.image_files import demo_image
from nvf_fast.synthetic.wide_images import WideImages

RESULTS = Path(__file__).resolve().parent / "results"
SEED = 9_000_002  # as in `nvf-fast eval hand-views`
PRECISIONS = ("float32", "bfloat16", "int8")
SCORES = {
    "error_2d": "2D error %",
    "aligned": "aligned mm",
    "relative": "relative mm",
    "present": "present %",
    "side": "side right %",
}
COLUMNS = [
    *("precision", "photographs", *SCORES.values(), "moved by mm"),
    *("hands found in wide images %", "false hands per image"),
    *("pose with box, ms", "pose, times float32", "all hands, ms", "all hands, times float32"),
]


@dataclass(frozen=True)
class Measure:
    """Measure the embedded default network.

    Attributes:
        photographs: folder of labelled photographs.
        leave_out: groups of photographs to exclude.
        backgrounds: folder of held-out images, for wide images.
        wide: number of wide images.
        rounds: number of calls in turn that are timed.
    """

    photographs: Path
    leave_out: tuple[str, ...] = ()
    backgrounds: Path | None = None
    wide: int = 200
    rounds: int = 40


def compare(options: Measure) -> dict[str, Any]:
    """Make the table.

    It holds scores on the validation photographs, the mean distance of aligned joints from those of float32,
    the recall of hands in rendered wide images, and medians of times and of ratios of successive calls for
    the demo image, which shows two hands.
    """
    data = Photographs(options.photographs, "val", leave_out=options.leave_out)
    others = Photographs(options.photographs, "train")
    image, intrinsics = demo_image()
    estimators = {name: nvf_fast.load(device="cpu", dtype=getattr(torch, name)) for name in PRECISIONS}
    first = estimators["float32"](image, intrinsics)[0]

    def calls(estimator: PoseEstimator) -> dict[str, Callable[[], object]]:
        return {
            "pose": partial(estimator, image, intrinsics, box=first.box, side=first.side),
            "all": partial(estimator, image, intrinsics),
        }

    times: dict[tuple[str, str], list[float]] = {}
    for turn in range(options.rounds + 2):  # the first two warm up
        for name, estimator in estimators.items():
            for what, call in calls(estimator).items():
                times.setdefault((name, what), []).extend([seconds_of(call)] if turn > 1 else [])
    drawn = WideImages(SEED, backgrounds=options.backgrounds)
    wide = [drawn.draw(index) for index in range(options.wide)]
    joints = {name: predicted(predict_with(estimator), data).joints for name, estimator in estimators.items()}
    rows = []
    for name, estimator in estimators.items():
        scores = evaluate_photographs(predict_with(estimator), data, others)["all"]
        valid = np.isfinite(joints[name] + joints["float32"]).all((1, 2))
        moved = 0.0
        if name != "float32":
            moved = metrics.pa_mpjpe(joints[name][valid], joints["float32"][valid])
        row: list[Any] = [name, scores["photographs"], *(scores[each] for each in SCORES), moved]
        finding = score_finding(estimator, wide)
        row += [finding["recall"], finding["false_hands"]]
        for what in ("pose", "all"):
            ratios = np.array(times["float32", what]) / times[name, what]
            row += [1000 * median(times[name, what]), float(np.median(ratios))]
        rows.append(row)
    context = {
        "weights": f"sha256 {load_checkpoint(None)[1]['sha256'][:12]}",
        "torch": torch.__version__,
        "device": device_name(),
        "threads": torch.get_num_threads(),
        "image": f"{image.shape[1]} x {image.shape[0]} px, two hands",
    }
    return {"columns": COLUMNS, "rows": rows, "context": context}


def main() -> None:
    table = compare(tyro.cli(Measure, description=__doc__))
    (RESULTS / "default_precisions.json").write_text(json.dumps(table, indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
