"""List the licences of the packages that nvf-fast needs, and fail for one that is not permissive.

python tests/licences.py [EXTRA ...]
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Permissive licences, and MPL-2.0 and LGPL, which require nothing of programs that import a package.
ALLOWED = re.compile(
    r"\b(Apache|BSD|MIT|ISC|PSF|Python Software Foundation|MPL|Mozilla|LGPL|Lesser|HPND|Zlib|0BSD|CC0)"
)


def licence(package: Distribution) -> str:
    """The licence of an installed package, as its metadata name it."""
    metadata = package.metadata
    named = [
        line.rsplit(" :: ", 1)[-1] for line in metadata.get_all("Classifier") or () if "License ::" in line
    ]
    text = (metadata.get("License") or "").strip()  # a name, or the whole licence
    return metadata.get("License-Expression") or ", ".join(named) or text.split("\n")[0] or "unknown"


def installed(requirements: Iterable[str]) -> dict[str, Distribution]:
    """The installed packages that requirements need, directly or not, without optional ones."""
    found: dict[str, Distribution] = {}
    pending = list(requirements)
    while pending:
        requirement, _, marker = pending.pop().partition(";")
        key = re.sub(r"[-_.]+", "-", re.split(r"[\[(<>=!~ ]", requirement.strip())[0]).lower()
        if key in found or "extra" in marker or key == "nvf-fast":
            continue
        try:
            found[key] = distribution(key)
        except PackageNotFoundError:  # of another platform
            continue
        pending += found[key].requires or ()
    return found


def main(extras: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    requirements = project["dependencies"] + [each for name in extras for each in optional[name]]
    packages = installed(requirements)
    rows = {f"{name} {package.version}": licence(package) for name, package in sorted(packages.items())}
    width = max(map(len, rows))
    for name, stated in rows.items():
        print(f"{name:{width}}  {stated}")
    others = [name for name, stated in rows.items() if not ALLOWED.search(stated)]
    if others:
        sys.exit(f"other licences: {', '.join(others)}")


if __name__ == "__main__":
    main(sys.argv[1:])
