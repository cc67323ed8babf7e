"""Definitions and kernels of the accelerated operations: `NAME.reference`, `NAME.triton`, `NAME.cpu`.

A wheel has their folders here; a checkout has them in `kernels/`, next to the package.
"""

from pathlib import Path

if not (Path(__file__).parent / "query_field").is_dir():
    __path__.append(str(Path(__file__).parents[2] / "kernels"))
