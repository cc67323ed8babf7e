"""The supply of the package: no network, bounded dependencies, their licences, and the wheel's files."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

from tests import check_wheel, licences

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Imports every module, and poses the demo image by Python and by the command line, without sockets.
OFFLINE = """
import sys
def refuse(event, arguments):
    if event.startswith("socket.") and event != "socket.gethostname":
        raise RuntimeError(f"{event} {arguments}")
sys.addaudithook(refuse)
import importlib, pkgutil
from importlib.resources import files
import numpy as np
import nvf_fast
from nvf_fast.cli.main import main
from nvf_fast.image_files import read_image
for module in pkgutil.walk_packages(nvf_fast.__path__, "nvf_fast."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
demo = str(files("nvf_fast") / "assets/demo.jpg")
K = np.array([[831.4, 0, 479.5], [0, 831.4, 269.5], [0, 0, 1]])
assert len(nvf_fast.load(device="cpu")(read_image(demo), K)) == 2
try:
    main(["predict", demo, "--fx", "831.4", "--device", "cpu", "--out", sys.argv[1]])
except SystemExit as ended:
    assert not ended.code, ended.code
try:
    __import__("socket").create_connection(("localhost", 9))
except RuntimeError:
    print("offline")
"""


@pytest.mark.slow
def test_nothing_reaches_the_network(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", OFFLINE, str(tmp_path / "poses.jsonl")]
    printed = subprocess.check_output(command, cwd=ROOT, text=True)
    assert printed.splitlines()[-1] == "offline" and (tmp_path / "poses.jsonl").stat().st_size > 1000


def test_dependencies_that_matter_have_lower_bounds() -> None:
    bounds = dict(
        re.match(r"([\w-]+)(?:>=([\d.]+))?(?:;.*)?$", each).groups() for each in PROJECT["dependencies"]
    )  # type: ignore[union-attr]
    assert all(bounds[name] for name in ("torch", "numpy", "Pillow", "typing_extensions"))
    for name, least in bounds.items():
        if least is not None:
            assert numbers(version(name)) >= numbers(least), name


def numbers(text: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", text.partition("+")[0])]


def test_development_set_is_locked() -> None:
    """Every package that the development extra needs has one version for `make`."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    locked = {line.partition("==")[0].lower().replace("_", "-") for line in lines if "==" in line}
    needed = licences.installed(PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"])
    assert needed.keys() - locked <= {"setuptools"}


def test_licences_are_permissive(capsys: pytest.CaptureFixture[str]) -> None:
    licences.main(["triton", "viz", "train", "hub", "export", "video"])
    listed = capsys.readouterr().out
    assert "torch" in listed and "unknown" not in listed
    assert not licences.ALLOWED.search("GPL-3.0-only") and not licences.ALLOWED.search("Proprietary, limited")


def test_wheel_takes_only_listed_kinds_of_files(tmp_path: Path) -> None:
    assert check_wheel.unlisted(check_wheel.expected_files()) == []
    strange = ["nvf_fast/.env", "nvf_fast/weights/default/optimiser.pt", "nvf_fast/assets/me.png", "setup.py"]
    assert check_wheel.unlisted(strange) == sorted(strange)
