"""Records of resumable work, written atomically and verified on reading."""

from __future__ import annotations

import hashlib
import logging
import re
from pathlib import Path
from typing import Any, NamedTuple

from nvf_fast.runtime.files import remove_unfinished, write_file

LOG = logging.getLogger("nvf_fast")


class ResumeError(ValueError):
    """A run cannot start or resume in its folder because of the folder, the processes or the checkpoint."""


class DamagedRecordError(ResumeError):
    """Every record of a name is damaged."""


class Record(NamedTuple):
    """The content of a record, the name of its file, and the names of newer files that are damaged."""

    content: bytes
    name: str
    damaged: list[str]


class Store:
    """The successive records of one name in a folder.

    A record is a file `NAME-LABEL-SERIAL-DIGEST.SUFFIX`. The serial number grows with every write and orders
    the records independently of their labels; the digest, the start of the content's SHA-256, reveals damage.
    Two records are kept: the newest, and the preceding intact one.

    Args:
        folder: made when missing; may also hold other files.
        name: of the content, such as "state".
        suffix: of the files, such as ".pt".
    """

    def __init__(self, folder: Path, name: str, suffix: str) -> None:
        self.folder, self.name, self.suffix = folder, name, suffix
        self._whole: Path | None = None  # the newest record known to be whole

    def write(self, content: bytes | memoryview, label: str = "") -> None:
        """Add a record; a killed process leaves the preceding record or both."""
        files = self._files()
        serial = 1 + max(map(_serial, files), default=0)
        parts = (self.name, label, f"{serial:09d}", _digest(content))
        path = self.folder / ("-".join(filter(None, parts)) + self.suffix)
        write_file(path, content)
        for other in files:
            if other != self._whole:
                other.unlink(missing_ok=True)
        remove_unfinished(self.folder)
        self._whole = path

    def newest(self) -> Record | None:
        """The newest whole record, or None where the folder has no record of this name.

        Raises:
            DamagedRecordError: every record is damaged; the message names them.
        """
        damaged: list[str] = []
        for path in sorted(self._files(), key=_serial, reverse=True):
            content = path.read_bytes()
            if _digest(content) == path.stem.rpartition("-")[2]:
                self._whole = path
                return Record(content, path.name, damaged)
            damaged.append(path.name)
        if damaged:
            raise DamagedRecordError(f"{self.folder}: every {self.name} is damaged: {', '.join(damaged)}")
        return None

    def intact(self, remedy: str) -> Record | None:
        """`newest`, but None with a warning that names the remedy where every record is damaged."""
        try:
            return self.newest()
        except DamagedRecordError as error:
            LOG.warning("%s; %s", error, remedy)
            return None

    def _files(self) -> list[Path]:
        return list(self.folder.glob(f"{self.name}-*{self.suffix}"))


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """List the differences between two nested dicts, one sentence per entry."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        return [
            line
            for key in keys
            for line in differences(old.get(key), new.get(key), f"{name}.{key}".lstrip("."))
        ]
    return [] if old == new else [f"{name} was {old!r}, now {new!r}"]


def _serial(path: Path) -> int:
    """The serial number of a record; 0 where the name has none."""
    parts = path.stem.split("-")
    return int(parts[-2]) if re.fullmatch(r"[0-9]{1,18}", parts[-2]) else 0


def _digest(content: bytes | memoryview) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
