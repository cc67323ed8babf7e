"""Compilation of loops over pixels, vertices and points by numba."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from nvf_fast.runtime.extras import extra

with extra("train", "rendering hands and warping images need numba"):
    import numba

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(**options: Any) -> Callable[[Function], Function]:
    """Compile a function on its first call, to run without the GIL; further options of `numba.njit`.

    Raises:
        OSError: neither the package's folder nor the user's cache, for the compiled code, can be written to.
    """

    def decorator(function: Function) -> Function:
        try:
            return numba.njit(cache=True, nogil=True, **options)(function)
        except RuntimeError as error:
            raise OSError(f"{error}: set NUMBA_CACHE_DIR to a folder that can be written to") from error

    return decorator
