"""Compilation of loops over pixels, vertices and points by numba."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from nvf_fast.runtime.extras import extra

with extra("train", "rendering hands and warping images need numba"):
    import numba

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(**options: Any) -> Callable[[Function], Function]:
    """Compile a function on its first call, to run without the GIL; further options of `numba.njit`."""
    decorator: Callable[[Function], Function] = numba.njit(cache=True, nogil=True, **options)
    return decorator
