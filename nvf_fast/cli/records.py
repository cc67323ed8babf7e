"""Records of images as JSON Lines, written one by one; a stopped run continues where it was."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import IO, Any, Self

from nvf_fast.cli import UserError, user_errors
from nvf_fast.runtime.files import whole_file

Record = dict[str, Any]


class RecordWriter:
    """Writer of one record per image, `{"image": NAME, ...}`, to a file or to standard output.

    A name ending in .json holds one document, `{..., "images": [RECORD, ...]}`, which is made from
    NAME.json.lines when the writer closes; any other file holds JSON Lines. Records of a file that exists are
    kept, unless they hold an error: those images are tried again. A device or a pipe is only written to.

    Args:
        out: the file; None prints the lines.
        settings: identifies the options behind the records.
        header: further entries of the document.

    Raises:
        UserError: the file holds anything else than such records, or records of other settings.
    """

    def __init__(self, out: Path | None, settings: str, header: Record) -> None:
        out = None if out is None else out.resolve()  # a link stays one
        self._out, self._settings, self._header = out, settings, header
        self._document = out is not None and out.suffix == ".json"
        self._lines = out.with_name(f"{out.name}.lines") if out is not None and self._document else out
        self._file: IO[bytes] | None = None
        self.done = set[str]()
        if self._lines is not None:
            with user_errors():
                self._open(self._lines)

    def _open(self, path: Path) -> None:
        if path.is_file() or not path.exists():
            kept = [record for record in self._earlier() if "error" not in record]
            with whole_file(path) as file:
                file.write(b"".join(map(_line, kept)))
            self.done = {record["image"] for record in kept}
        self._file = path.open("ab", buffering=0)  # each line reaches the system whole, before the next image

    def _earlier(self) -> list[Record]:
        """The records of earlier runs, of the document before those of its lines."""
        records: dict[str, Record] = {}
        for path in (self._out, self._lines) if self._document else (self._out,):
            if path is None or not path.exists():
                continue
            text = path.read_bytes()
            try:
                if path == self._out and self._document:
                    found = json.loads(text)["images"]
                else:
                    *lines, _ = text.split(b"\n")  # the last one is empty, or was cut off by a stop
                    found = [json.loads(line) for line in lines]
                records |= {record["image"]: record for record in found}
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                raise UserError(
                    f"{path} exists and does not hold records of images: choose another file"
                ) from error
        if any(record.get("settings") != self._settings for record in records.values()):
            raise UserError(
                f"{self._out} holds results of other options or another checkpoint: choose another file"
            )
        return list(records.values())

    def write(self, record: Record) -> None:
        """Append the record of an image.

        Raises:
            UserError: it cannot be written.
        """
        line = _line({**record, "settings": self._settings})
        if self._file is None:
            sys.stdout.write(line.decode())
            sys.stdout.flush()
            return
        with user_errors():
            self._file.write(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """Close the file; after a complete run, make the document."""
        if self._file is None or self._lines is None:
            return
        self._file.close()
        if kind is None and self._document and self._out is not None:
            with user_errors():
                records = [json.loads(line) for line in self._lines.read_bytes().splitlines()]
                with whole_file(self._out) as file:
                    file.write(
                        json.dumps({**self._header, "images": records}, allow_nan=False).encode() + b"\n"
                    )
                self._lines.unlink()


def _line(record: Record) -> bytes:
    return json.dumps(record, allow_nan=False).encode() + b"\n"
