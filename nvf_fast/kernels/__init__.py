"""Definitions and kernels of the accelerated operations: `NAME.reference`, `NAME.triton`, `NAME.cpu`.

A wheel holds their folders here; a checkout holds them in `kernels/` beside the package.
"""

from pathlib import Path

if not (Path(__file__).parent / "query_field").is_dir():
    __path__.append(str(Path(__file__).parents[2] / "kernels"))
