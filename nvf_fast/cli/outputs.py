"""Checks of the paths that a command writes to, before its work."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from mimetypes import guess_type
from pathlib import Path

from nvf_fast.cli import UserError, user_errors

DRAWING_SUFFIXES = (".png", ".jpg", ".jpeg")
LINE_SUFFIXES = (".jsonl", ".ndjson", ".txt")  # of JSON Lines; other files may have names of no known kind


def check_output_file(
    option: str,
    path: Path | None,
    suffixes: Sequence[str] = (),
    *,
    new: bool = False,
) -> None:
    """Raise `UserError` if a file cannot be written or has another suffix.

    Args:
        option: name of the option, as in --out.
        path: the file, if any; it may exist, and missing folders are made.
        suffixes: accepted suffixes; all if empty.
        new: whether the file must not exist.
    """
    if path is None:
        return
    with user_errors():
        if path.is_dir():
            raise UserError(f"{option} must be a file, {path} is a folder")
        if suffixes and path.suffix.lower() not in suffixes:
            raise UserError(f"{option} must be a file whose name ends in {', '.join(suffixes)}, got {path}")
        if new and path.is_file():
            raise UserError(f"{option} {path} exists: choose another name")
        if path.exists() and not path.is_file():  # a device or a pipe
            return
        _check_folder(option, Path(os.path.realpath(path)).parent)


def check_replaced(outputs: Iterable[tuple[str, Path | None]], inputs: Iterable[Path | None] = ()) -> None:
    """Raise `UserError` if outputs, with the options that name them, would replace an input or each other."""
    taken = {_file_of(path): "an input" for path in inputs if path is not None}
    for option, path in outputs:
        own = f"the file of {option}"
        if path is not None and (owner := taken.setdefault(_file_of(path), own)) != own:
            raise UserError(f"{option} would replace {path}, {owner}: choose another name or folder")


def _file_of(path: Path) -> object:
    """A key of the file of a path, whose name may differ in letter case on Windows and macOS."""
    try:
        status = path.stat()
    except OSError:
        return os.path.realpath(path)
    return status.st_dev, status.st_ino


def check_lines_name(path: Path | None, suffixes: Sequence[str] = LINE_SUFFIXES) -> None:
    """Raise `UserError` if the file of --out has the name of a kind of file other than JSON Lines."""
    if path is not None and guess_type(path.name)[0] and path.suffix not in suffixes:
        raise UserError(f"--out must be a {' or '.join(suffixes[:2])} file, got {path}")


def check_output_folder(option: str, path: Path | None) -> None:
    """Raise `UserError` if a folder, which may be missing, cannot be made or written to."""
    if path is None:
        return
    with user_errors():
        if path.exists() and not path.is_dir():
            raise UserError(f"{option} must be a folder, {path} is a file")
        _check_folder(option, Path(os.path.realpath(path)))


def _check_folder(option: str, folder: Path) -> None:
    """Check a folder, or the nearest existing one above it."""
    existing = next(each for each in (folder, *folder.parents) if each.exists())
    if not existing.is_dir():
        raise UserError(f"{option}: {existing} is not a folder")
    if not os.access(existing, os.W_OK):
        raise UserError(f"{option}: {existing}: Permission denied")
