"""Measure the default network, and write the tables of README and model card to benchmarks/results/.

    python -m benchmarks.default_network --photographs FOLDER [--backgrounds FOLDER] [--rig FILE] [--count N]

Backgrounds must not occur in the training. Run `make readme` afterwards.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from nvf_fast.checkpoint import load_checkpoint, record_scores, resolve
from nvf_fast.evaluation.hand_view_report import report_tables
from nvf_fast.evaluation.photographs import COLUMNS

RESULTS = Path(__file__).resolve().parent / "results"
PHOTOGRAPH_COLUMNS = {name: title for name, title in COLUMNS.items() if not name.startswith("constant")} | {
    "constant_aligned": "constant: aligned mm",
    "constant_relative": "constant: relative mm",
}


@dataclass(frozen=True)
class Measure:
    """Measure the embedded default network, or another checkpoint.

    Attributes:
        photographs: folder of labelled photographs.
        checkpoint: of the network; its config.json receives the scores.
        leave_out: groups of photographs to exclude.
        backgrounds: folder of held-out images.
        rig: rigged right hand (glTF) for wide images.
        count: rendered hands, and empty views.
    """

    photographs: Path
    checkpoint: Path | None = None
    leave_out: tuple[str, ...] = ()
    backgrounds: Path | None = None
    rig: Path | None = None
    count: int = 2000


def main() -> None:
    options = tyro.cli(Measure, description=__doc__)
    checkpoint = resolve(options.checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        photographs = _evaluated(
            "photographs", checkpoint, Path(folder), "--data", options.photographs,
            *(["--leave-out", *options.leave_out] if options.leave_out else []),
        )  # fmt: skip
        views = _evaluated(
            "hand-views", checkpoint, Path(folder), "--photographs", options.photographs,
            "--count", options.count, "--empty", options.count,
            *(["--backgrounds", options.backgrounds] if options.backgrounds else []),
            *(["--rig", options.rig] if options.rig else []),
        )  # fmt: skip
    context = photographs["context"] | {"photographs": "split val"}
    rows = [
        [name, *(found[column] for column in PHOTOGRAPH_COLUMNS)]
        for name, found in photographs["scores"].items()
    ]
    _write("photographs", ["group", *PHOTOGRAPH_COLUMNS.values()], rows, context)
    for name, (columns, table) in report_tables(views).items():
        _write(name.replace(" ", "_").replace("-", "_"), columns, table, views["context"])
    credits = load_checkpoint(checkpoint)[1]["training"]["credits"]
    sources = [[row["source"], row["licence"], row["photographs"]] for row in credits["photographs"]]
    _write("sources", ["source", "licence", "photographs"], sources, {"checkpoint": "embedded default"})
    scores = {"photographs": photographs["scores"], "left_out": options.leave_out, "hand views": views}
    record_scores(checkpoint, scores)


def _evaluated(what: str, checkpoint: Path, folder: Path, *arguments: Any) -> dict[str, Any]:
    """Run `nvf-fast eval` in a subprocess and read its report."""
    out = folder / what
    command = [sys.executable, "-m", "nvf_fast", "eval", what, "--checkpoint", checkpoint, "--out", out]
    subprocess.run([*map(str, command), *map(str, arguments)], check=True)
    report: dict[str, Any] = json.loads((out / "report.json").read_text())
    return report


def _write(name: str, columns: list[str], rows: list[Any], context: dict[str, Any]) -> None:
    shown = {key: value for key, value in context.items() if isinstance(value, str | int | float)}
    text = json.dumps({"columns": columns, "rows": rows, "context": shown}, indent=1, allow_nan=False)
    (RESULTS / f"default_{name}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
