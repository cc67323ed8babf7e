"""Atomic writing of files, even if the process or the machine stops."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file that is renamed to `path` once it is complete and on the disk.

    Args:
        path: final name; missing folders are made, an older file is replaced.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with unfinished.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, so that a rename in it survives a loss of power."""
    if os.name != "posix":
        return  # only there can folders be opened
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_unfinished(folder: Path, start: str = "") -> None:
    """Remove temporary files left by processes killed in `whole_file`, for names with a given prefix.

    No other process may be writing such a file.
    """
    for path in folder.glob(f".{start}*.part"):
        path.unlink(missing_ok=True)
