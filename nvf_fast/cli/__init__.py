"""The command line: one module per command, with a dataclass of its options named after it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nvf_fast.cli.options import Precision
    from nvf_fast.estimator import PoseEstimator


class UserError(Exception):
    """An error that the user can correct; `main` prints it without a traceback and ends with status 2."""


@contextmanager
def user_errors() -> Iterator[None]:
    """Raise missing files, damaged files and invalid values as `UserError`."""
    try:
        yield
    except BrokenPipeError:  # of standard output, which ends the program quietly
        raise
    except OSError as error:
        name = f"{error.filename}: " if error.filename is not None and error.strerror else ""
        raise UserError(f"{name}{error.strerror or error}") from error
    except (ValueError, ImportError) as error:
        raise UserError(str(error)) from error


def error_line(error: Exception) -> str:
    """An error as one line, with its type where it is not one of the documented ones."""
    try:
        with user_errors():
            raise error
    except UserError as known:
        return " ".join(str(known).split())
    except Exception:
        return " ".join(f"{type(error).__name__}: {error}".split())


def load_estimator(
    checkpoint: str | None, device: str | None, precision: Precision | None = None, **options: Any
) -> PoseEstimator:
    """Call `nvf_fast.load` and raise its errors as `UserError`."""
    import torch

    from nvf_fast.estimator import load

    check_device(device)
    dtype = None if precision is None else getattr(torch, precision)
    with user_errors():
        return load(checkpoint, device=device, dtype=dtype, **options)


def check_device(device: str | None) -> None:
    """Raise `UserError` for an unknown or absent device."""
    from nvf_fast.runtime.devices import read_device

    try:
        read_device("cpu" if device is None else device)
    except ValueError as error:
        raise UserError(f"--{error}") from error
