"""The command line: one module per command, with a dataclass of its options named after it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


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


def check_device(device: str | None) -> None:
    """Raise `UserError` for an unknown or absent device."""
    from nvf_fast.runtime.devices import read_device

    try:
        read_device("cpu" if device is None else device)
    except ValueError as error:
        raise UserError(f"--{error}") from error
