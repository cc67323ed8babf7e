"""`nvf-fast eval`: scores of a checkpoint on seeded synthetic pictures."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nvf_fast import __version__
from nvf_fast.cli import load_estimator, user_errors
from nvf_fast.search import Search

COLUMNS = (
    "pictures",
    "hand scale",
    "CS-MJE mm",
    "CS-AUC",
    "TE mm",
    "DE mm",
    "PA-MPJPE mm",
    "score vs error",
    "no answer",
)
ANSWERS = {"with_hand_scale": "given", "without_hand_scale": "not given"}


@dataclass(frozen=True)
class Eval:
    """Measure a checkpoint on unseen synthetic pictures, beside the best constant pose.

    Twice: hands as the checkpoint was trained on (palm to the camera within 60 degrees, fingers up within
    60), and hands turned uniformly over the sphere. "score vs error" is Spearman's rank correlation of a
    joint's score with its error. Pictures without an answer count with the constant pose.

    Attributes:
        checkpoint: an embedded checkpoint's name or a checkpoint folder; the embedded default when absent.
        count: pictures of each kind.
        seed: seed of the pictures; trainings use others.
        size: side of the pictures in px.
        step: spacing of the query points in mm.
        search: which of them are asked: "dense" all, "octree" (for steps up to 8 mm) and "guided" a fraction.
        data_cache: folder that keeps rendered pictures.
        device: where to compute, for example cpu or cuda:1; the GPU where there is one.
        out: JSON file for the table and the whole report.
        record: whether to keep the scores in the checkpoint, where `nvf-fast info` shows them.
    """

    checkpoint: str | None = None
    count: int = 500
    seed: int = 9_000_001
    size: int = 224
    step: float = 16.0
    search: Search = "dense"
    data_cache: Path | None = None
    device: str | None = None
    out: Path | None = None
    record: bool = False

    def run(self) -> None:
        from nvf_fast.checkpoint import record_scores
        from nvf_fast.data.hand import UNIFORM, HandDistribution
        from nvf_fast.data.synthetic import SyntheticConfig, SyntheticHands
        from nvf_fast.evaluation.synthetic import evaluate

        estimator = load_estimator(self.checkpoint, self.device, step_mm=self.step, search=self.search)
        report: dict[str, Any] = {}
        for name, distribution in (("palm within 60°", HandDistribution()), ("any orientation", UNIFORM)):
            config = SyntheticConfig(
                count=self.count, seed=self.seed, size=self.size, distribution=distribution
            )
            report[name] = evaluate(estimator, SyntheticHands(config, self.data_cache), progress=True)
        result = {
            "columns": COLUMNS,
            "rows": [row for name, scores in report.items() for row in _rows(name, scores)],
            "context": {
                "checkpoint": self.checkpoint or "embedded default",
                "images": self.count,
                "seed": self.seed,
                "step": f"{self.step:g} mm",
                "search": self.search,
                "device": str(estimator.device),
                "precision": str(estimator.dtype).removeprefix("torch."),
                "machine": f"{platform.machine()}, {os.cpu_count()} cores",
                "nvf_fast": __version__,
            },
            "report": report,
        }
        for line in (COLUMNS, *result["rows"]):
            print("  ".join(f"{_text(value):>16}" for value in line))
        if self.out is not None:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self.out.write_text(json.dumps(result, indent=1) + "\n")
        if self.record:
            measured = {
                name: {setting: scores for setting, scores in answers.items() if setting != "data"}
                for name, answers in report.items()
            }
            with user_errors():
                record_scores(self.checkpoint, {"images": self.count, "seed": self.seed, **measured})


def _rows(name: str, scores: dict[str, Any]) -> list[list[Any]]:
    rows: list[list[Any]] = [[name, "best constant pose", *_numbers(scores["constant"]), None, None]]
    for key, given in ANSWERS.items():
        if key in scores:
            measured = scores[key]
            rows.append(
                [
                    name,
                    given,
                    *_numbers(measured),
                    round(measured["score_correlation"], 3),
                    measured["invalid"],
                ]
            )
    return rows


def _numbers(scores: dict[str, float]) -> list[float]:
    return [round(scores[key], 3) for key in ("cs_mje", "cs_auc", "te", "de", "pa_mpjpe")]


def _text(value: Any) -> str:
    return "-" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)
