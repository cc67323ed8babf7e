"""Check, before anything runs for minutes, that Python has the packages that `make gpu` needs, and CUDA.

    python tests/check_packages.py cuda    also require a CUDA device

Exits with 1 and lists every missing package at once. Versions are not compared.
"""

from __future__ import annotations

import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

TOOLS = ("triton", "pytest", "pytest-benchmark", "pytest-xdist", "hypothesis")
PROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


def missing(requirements: list[str]) -> list[str]:
    """Names of the requirements whose package is not installed."""
    names = [re.split(r"[^\w.-]", requirement, maxsplit=1)[0] for requirement in requirements]
    absent = []
    for name in names:
        try:
            version(name)
        except PackageNotFoundError:
            absent.append(name)
    return absent


def main(arguments: list[str]) -> None:
    requirements = [*tomllib.loads(PROJECT.read_text())["project"]["dependencies"], *TOOLS]
    if absent := missing(requirements):
        sys.exit(f"{sys.executable} lacks {', '.join(absent)}: install them")
    if "cuda" in arguments:
        import torch

        if not torch.cuda.is_available():
            sys.exit(f"no CUDA device for torch {torch.__version__}")


if __name__ == "__main__":
    main(sys.argv[1:])
