"""Try to break the library's promises, and write the table of docs/promises.md.

    python -m tests.faults [PART ...] [--factor 0.1] [--short] [--write]

PART are words of the promises to try, all by default. The table holds the last outcome of each promise.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # children are forked, after which OpenMP's threads are gone
os.environ.setdefault("TRITON_INTERPRET", "1")

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import torch

from nvf_fast import __version__
from nvf_fast.evaluation.report_files import surroundings
from nvf_fast.runtime.files import whole_file
from tests.faults import border, readers, runs, together
from tests.faults.promises import Outcome, Promise

RESULT = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "promises.json"
COLUMNS = ["promise", "cases tried", "failures", "measured", "commit"]
PROMISES = [*runs.PROMISES, *together.PROMISES, *readers.PROMISES, *border.PROMISES]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART")
    parser.add_argument("--factor", type=float, default=1.0, help="of the number of cases")
    parser.add_argument("--short", action="store_true", help="the cases of the test suite")
    parser.add_argument("--write", action="store_true", help="store the outcomes in benchmarks/results/")
    options = parser.parse_args()
    torch.set_num_threads(1)
    failed = 0
    for promise in PROMISES:
        count = promise.short if options.short else round(promise.long * options.factor)
        if count == 0 or not all(part in promise.sentence for part in options.parts):
            continue
        start = time.monotonic()
        outcome = promise.tried(count)
        failed += len(outcome.failures)
        notes = ", ".join(f"{name} {value:.3g}" for name, value in outcome.notes.items())
        print(f"{promise.sentence}: {outcome.cases} cases, {len(outcome.failures)} failures {notes}", end=" ")
        print(f"({time.monotonic() - start:.0f} s)", flush=True)
        for failure in outcome.failures[:50]:
            print(f"    {failure}", flush=True)
        if options.write:
            _write(promise, outcome, notes)
    raise SystemExit(failed > 0)


def _write(promise: Promise, outcome: Outcome, notes: str) -> None:
    """Replace the row of a promise, in the order of the promises."""
    found: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {"rows": []}
    rows = {row[0]: row for row in found["rows"]}
    failures, commit = len(outcome.failures), surroundings()["commit"]
    rows[promise.sentence] = [promise.sentence, outcome.cases, failures, notes or None, commit]
    order = [promise.sentence for promise in PROMISES]
    context = {"machine": f"{os.cpu_count()} cores, {platform.machine()}", "torch": torch.__version__}
    table = {
        "columns": COLUMNS,
        "rows": [rows[sentence] for sentence in order if sentence in rows],
        "context": {**context, "nvf_fast": __version__},
    }
    with whole_file(RESULT) as file:
        file.write((json.dumps(table, indent=1, ensure_ascii=False) + "\n").encode())


if __name__ == "__main__":
    main()
