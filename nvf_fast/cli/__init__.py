"""The command line. A subcommand is a module with a dataclass of its options that bears its name and runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nvf_fast.estimator import PoseEstimator


class UserError(Exception):
    """What the user can put right: `main` prints it, without a traceback, and ends with status 2."""


@contextmanager
def user_errors() -> Iterator[None]:
    """Turns a missing file, a damaged file or an impossible value into a `UserError`."""
    try:
        yield
    except OSError as error:
        name = f"{error.filename}: " if error.filename is not None and error.strerror else ""
        raise UserError(f"{name}{error.strerror or error}") from error
    except (ValueError, ImportError) as error:
        raise UserError(str(error)) from error


def load_estimator(checkpoint: str | None, device: str | None, **options: Any) -> PoseEstimator:
    """`nvf_fast.load`, where whatever is not there is the user's error."""
    from nvf_fast.estimator import load

    check_device(device)
    with user_errors():
        return load(checkpoint, device=device, **options)


def check_device(device: str | None) -> None:
    """Refuses a device that is none, or is not here."""
    import torch

    try:
        wanted = None if device is None else torch.device(device)
    except RuntimeError as error:
        raise UserError(f"--device: no device is called {device!r}; cpu, cuda or cuda:1 are") from error
    if wanted is not None and wanted.type == "cuda" and (wanted.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device: no {device} here, CUDA devices found: {torch.cuda.device_count()}")
