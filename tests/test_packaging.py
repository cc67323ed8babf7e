"""The wheel, and the package in a checkout without symbolic links."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("nvf_fast", "kernels", "pyproject.toml", "setup.py", "README.md", "LICENSE")
IMPORTS = """
import sys
sys.path.insert(0, sys.argv[1])
import torch, nvf_fast
from nvf_fast.kernels.query_field import reference, triton
assert nvf_fast.__file__.startswith(sys.argv[1]) and triton.__file__.startswith(sys.argv[1])
count = nvf_fast.ops.select_voters(torch.tensor([[1.0, 9.0, -2.0]]), 5.0, 3)[1]
print(count.item())
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package's files alone, as in an unpacked archive."""
    folder = tmp_path_factory.mktemp("checkout")
    assert not any(path.is_symlink() for name in SOURCES[:2] for path in (ROOT / name).rglob("*"))
    for name in SOURCES:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, folder)
    return folder


def voters_counted(location: Path, empty: Path) -> str:
    """Return the output of a new interpreter in an empty folder, with the package at `location` alone."""
    command = [sys.executable, "-I", "-c", IMPORTS, str(location)]
    return subprocess.check_output(command, cwd=empty, text=True).strip()


def test_plain_checkout_imports(checkout: Path, tmp_path: Path) -> None:
    assert voters_counted(checkout, tmp_path) == "2"


@pytest.mark.slow
def test_wheel_imports(checkout: Path, tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="77")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--wheel-dir", str(tmp_path), str(checkout)]
    subprocess.run(command, check=True, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    location, empty = tmp_path / "site", tmp_path / "empty"
    zipfile.ZipFile(wheel).extractall(location)
    assert not (location / "kernels").exists()
    empty.mkdir()
    assert voters_counted(location, empty) == "2"
