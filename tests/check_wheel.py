"""Check that a built wheel holds the files of the checkout and works without it.

python tests/check_wheel.py dist/nvf_fast-VERSION-py3-none-any.whl
"""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
import tempfile
import venv
import zipfile
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# A file that lies in the package's folders by accident is not of these.
LISTED = re.compile(
    r"nvf_fast/(\w+/)*\w+\.py|nvf_fast/py\.typed|nvf_fast/synthetic/synthetic_v2\.json|"
    r"nvf_fast/reproduce/published\.json|nvf_fast/assets/(demo\.(jpg|json)|joint_offsets\.json)|"
    r"nvf_fast/weights/default/(config\.json|weights\.safetensors)"
)
WEIGHTS, MOST_BYTES = "nvf_fast/weights/default/", 12_000_000

IMPORT_ALL = """
import importlib.util, pathlib, pkgutil, sys
import nvf_fast
home = pathlib.Path(nvf_fast.__file__).parent
assert home.is_relative_to(sys.prefix), f"nvf_fast was imported from {home}, not from the wheel"
assert importlib.util.find_spec("kernels") is None, "the wheel installs a top-level package named kernels"
names = [module.name for module in pkgutil.walk_packages([str(home)], "nvf_fast.")]
kernels = sorted((home / "kernels").glob("*/*.py"))
names += [f"nvf_fast.kernels.{path.parent.name}.{path.stem}" for path in kernels]
for name in names:
    importlib.import_module(name)
for name in nvf_fast.__all__:
    getattr(nvf_fast, name)
print(f"{len(names)} modules import:", *(name for name in names if ".kernels." in name))
"""


def expected_files() -> set[str]:
    """Return the package's files in the checkout, kernels included."""
    files = [path for folder in ("nvf_fast", "kernels") for path in (ROOT / folder).rglob("*")]
    names = [path.relative_to(ROOT).as_posix() for path in files if path.is_file()]
    return {
        name.replace("kernels/", "nvf_fast/kernels/", name.startswith("kernels/"))
        for name in names
        if "__pycache__" not in name
    }


def unlisted(files: Iterable[str]) -> list[str]:
    """Files that a wheel must not hold."""
    return sorted(name for name in files if not LISTED.fullmatch(name))


def check_contents(wheel: Path) -> None:
    files = [file for file in zipfile.ZipFile(wheel).infolist() if ".dist-info/" not in file.filename]
    packed = {file.filename for file in files}
    expected = expected_files()
    if packed != expected:
        sys.exit(f"the wheel lacks {sorted(expected - packed)} and adds {sorted(packed - expected)}")
    if unlisted(packed):
        sys.exit(f"the wheel holds files of other kinds: {unlisted(packed)}")
    weights = sum(file.compress_size for file in files if file.filename.startswith(WEIGHTS))
    if not 0 < weights <= MOST_BYTES:
        sys.exit(f"{WEIGHTS} must take up to {MOST_BYTES} bytes of the wheel, it takes {weights}")
    print(f"{wheel.name}: all {len(packed)} files of the package")


def check_alone(wheel: Path) -> None:
    """Install the wheel in an environment with this one's dependencies but without the checkout."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        site = sysconfig.get_path("purelib", vars={"base": folder})
        # A line of a .pth file adds a folder without running the .pth files in it, which excludes the
        # editable install.
        Path(site, "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
        python = Path(folder, "bin", "python")
        pip = [python, "-m", "pip", "--quiet", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "--no-deps", "--no-index", wheel.resolve()], check=True, cwd=folder)
        subprocess.run([python, "-c", IMPORT_ALL], check=True, cwd=folder)
        command = Path(folder, "bin", "nvf-fast")
        subprocess.run([command, "--help"], check=True, cwd=folder, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    check_contents(Path(sys.argv[1]))
    check_alone(Path(sys.argv[1]))
