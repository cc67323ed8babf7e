"""Files written whole or not at all, lock files, and JSON files."""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import shutil
import socket
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

_UNFINISHED = re.compile(r"\..+\.\d+(-\d+)?\.part")  # .NAME.PROCESS-SERIAL.part
_SERIAL = itertools.count()
_POSIX = sys.platform != "win32"
_WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)  # of file systems that have none
_TAKEN = (errno.EAGAIN, errno.EACCES, errno.EDEADLK)
# Locks of files exclude other processes, these sets the threads of this one.
_writing: set[Path] = set()
_held: set[Path] = set()
_changing = threading.Lock()
_cleared: set[Path] = set()

if sys.platform == "win32":
    import msvcrt

    def _lock(file: IO[Any], wait: bool = False) -> None:
        file.seek(2**30)  # beyond the holder's name: nobody else can read a locked byte
        msvcrt.locking(file.fileno(), msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _lock(file: IO[Any], wait: bool = False) -> None:
        """Lock an open file for this process, not for its forks; its end releases the lock."""
        fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


class LockedError(OSError):
    """Another process writes to the same file or folder."""


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file that replaces `path` once it is complete and on the disk.

    A symbolic link stays, its target is replaced; a device or a pipe is written to.

    Args:
        path: final name; missing folders are made, an older file is replaced and gives its permissions.

    Raises:
        OSError: it cannot be written; an older file is unchanged.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        with path.open("wb") as file:
            yield file
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.parent not in _cleared:  # once, since folders may hold many files
        _cleared.add(path.parent)
        remove_unfinished(path.parent)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}-{next(_SERIAL)}.part")
    _writing.add(unfinished)
    try:
        with _open_locked(unfinished) as file:
            yield file
            file.flush()
            if _POSIX and path.exists():
                shutil.copymode(path, unfinished)
            os.fsync(file.fileno())
            if _POSIX:  # still locked, so that no other process takes it for a leftover
                unfinished.replace(path)
        if not _POSIX:  # where open files cannot be renamed
            unfinished.replace(path)
    except OSError as error:
        if error.errno is not None and str(error.filename or unfinished) == str(unfinished):
            error.filename = str(path)  # the final name, which its caller knows
        raise
    finally:
        unfinished.unlink(missing_ok=True)
        _writing.discard(unfinished)
    sync_folder(path.parent)


def read_path(name: str, path: Path | str) -> Path:
    """A path argument; an empty one, which `Path` takes for the current folder, is a `ValueError`."""
    if path == "":
        raise ValueError(f"{name} must be the path of a file or a folder, got an empty string")
    return Path(path)


def write_file(path: Path, content: bytes | memoryview) -> None:
    """Write a file as `whole_file` does."""
    with whole_file(path) as file:
        file.write(content)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, so that a rename in it survives a loss of power."""
    if not _POSIX:
        return  # only there can folders be opened
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_unfinished(folder: Path) -> None:
    """Remove temporary files in a folder that killed processes left in `whole_file`."""
    for path in folder.glob(".*.part"):
        if path in _writing or not _UNFINISHED.fullmatch(path.name) or not path.is_file():
            continue
        with suppress(OSError):  # a living process writes it, or another removes it
            if _POSIX:
                with path.open("r+b") as file:
                    _lock(file)
                    path.unlink()
            else:
                path.unlink()


@contextmanager
def locked(path: Path, wait_s: float = 0.0) -> Iterator[None]:
    """Hold a lock file, to be the only one that writes to a file or folder; the process's end releases it.

    Args:
        path: of the lock file, which is made, with missing folders, and removed.
        wait_s: longest wait for another process.

    Raises:
        LockedError: another process, or another thread of this one, holds it.
        OSError: the lock file cannot be made.
    """
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + wait_s
    while isinstance(file := _acquired(path), str):
        if time.monotonic() >= until:
            raise LockedError(f"{path.parent} is in use by {file}, which holds {path.name}")
        time.sleep(0.02)
    process = os.getpid()
    try:
        yield
    finally:
        if os.getpid() == process:
            if _POSIX:  # before it is released: nobody may lock a removed file and another a new one
                path.unlink(missing_ok=True)
            file.close()
            if not _POSIX:
                with suppress(OSError):  # another process has opened it
                    path.unlink()
            with _changing:
                _held.discard(path)


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not JSON, or an object in it holds a key twice; the message names it.
    """

    def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(entries := dict(pairs)) < len(pairs):
            twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
            raise ValueError(f"an object holds {', '.join(map(repr, twice[:3]))} more than once")
        return entries

    try:
        return json.loads(path.read_bytes(), object_pairs_hook=distinct)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON with distinct keys ({error})") from error


def _open_locked(path: Path) -> IO[bytes]:
    """A new file that `remove_unfinished` of other processes leaves alone."""
    while True:
        file = path.open("wb")
        if _POSIX:
            with suppress(OSError):  # without locks, nobody removes it either
                _lock(file, wait=True)
            if os.fstat(file.fileno()).st_nlink == 0:  # removed before it was locked
                file.close()
                continue
        return file


def _acquired(path: Path) -> IO[bytes] | str:
    """The open and locked lock file, or the name of its holder."""
    with _changing:
        if path in _held:  # opening and closing it again would release it
            return "this process"
        while True:
            file = path.open("a+b", buffering=0)
            try:
                _lock(file)
            except OSError as error:
                if error.errno not in _WITHOUT_LOCKS:
                    file.seek(0)
                    holder = file.read(200).decode(errors="replace") or "another process"
                    file.close()
                    if error.errno in _TAKEN:
                        return holder
                    raise
                warnings.warn(f"{path.parent}: its file system has no locks: run one process here at a time")
            if not _POSIX or _is_open(path, file):
                break
            file.close()  # its holder has removed it
        _held.add(path)
    with suppress(OSError):  # the text is for messages alone
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
    return file


def _is_open(path: Path, file: IO[Any]) -> bool:
    """Whether a path still is an open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
