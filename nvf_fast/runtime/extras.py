"""Errors for missing optional packages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class MissingExtraError(ImportError):
    """An optional package is not installed; the message names the extra that installs it."""


@contextmanager
def extra(name: str, need: str) -> Iterator[None]:
    """Import optional packages in this context, and only there.

    Args:
        name: of the extra that installs them.
        need: start of the error's message, such as "meshes need scikit-image".

    Raises:
        MissingExtraError: a package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"{need}: pip install 'nvf-fast[{name}]'") from error
