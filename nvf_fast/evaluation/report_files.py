"""Files of a report: JSON with every number, Markdown with its tables, and the conditions in both."""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch

from nvf_fast import __version__
from nvf_fast.evaluation.metrics import KeypointScores
from nvf_fast.runtime.files import write_file


def write_report_files(
    stem: Path, title: str, lines: Iterable[str], context: Mapping[str, Any], contents: Mapping[str, Any]
) -> list[Path]:
    """Write STEM.json and STEM.md.

    Args:
        stem: path of the files without suffix; its folder is made when missing.
        title: heading of the Markdown.
        lines: its lines between the heading and the context.
        context: conditions, the last section of the Markdown and "context" of the JSON.
        contents: further entries of the JSON.

    Returns:
        The files.
    """
    conditions = [f"- {name}: {value}" for name, value in context.items()]
    text = "\n".join([f"# {title}", "", *lines, "", "## Context", "", *conditions, ""])
    document = _finite({"context": dict(context), **contents})
    json_text = json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    texts = {".json": json_text, ".md": text}
    files = [stem.with_name(stem.name + suffix) for suffix in texts]
    for path, content in zip(files, texts.values(), strict=True):
        write_file(path, content.encode())
    return files


def table_lines(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """Lines of a Markdown table, aligned as text too: numbers with three decimals, a dash for none."""
    cells = [list(columns), *([_cell(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    return [
        f"| {' | '.join([first.ljust(widths[0]), *map(str.rjust, others, widths[1:])])} |"
        for first, *others in cells
    ]


def surroundings() -> dict[str, Any]:
    """Versions, the machine, and the commit where the package lies in a git checkout."""
    return {
        "nvf_fast": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "safetensors": safetensors.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
    }


def _finite(value: Any) -> Any:
    """Prepare for JSON: arrays as lists, curves as dicts, and None for NaN and infinities."""
    if isinstance(value, KeypointScores):
        return _finite(vars(value))
    if isinstance(value, np.ndarray):
        return _finite(value.tolist())
    if isinstance(value, Mapping):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _commit() -> str | None:
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists() or shutil.which("git") is None:
        return None

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    head = git("rev-parse", "HEAD")[:10]
    return head + " with changes" if head and git("status", "--porcelain") else head or None


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}" if math.isfinite(value) else "–"
    return "–" if value is None else str(value)
