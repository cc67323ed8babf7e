"""Records of images as JSON Lines, written one by one, so that a stopped run can continue."""

from __future__ import annotations

import json
import os
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any, Self

from nvf_fast.cli import UserError, user_errors
from nvf_fast.runtime.files import locked, write_file

Record = dict[str, Any]
BEGIN = b'{"image": '  # of every line


class RecordWriter:
    """Writer of one record per image, `{"image": NAME, ...}`, to a file or to standard output.

    A file whose name ends in .json holds one document, `{..., "images": [RECORD, ...]}`, which is made from
    NAME.json.lines when the writer closes; any other file holds JSON Lines. Records of an existing file are
    kept, except those with an error, whose images are tried again. A device or a pipe is only written to. The
    file is locked while the writer is open.

    Args:
        out: the file; None prints the lines.
        settings: identifies the options behind the records.
        header: further entries of the document.

    Raises:
        UserError: on entering; another process writes to the file, or it holds something other than such
            records, or records of other settings.
    """

    def __init__(self, out: Path | None, settings: str, header: Record) -> None:
        out = None if out is None else out.resolve()  # a link stays one
        self._out, self._settings, self._header = out, settings, header
        self._document = out is not None and out.suffix == ".json"
        self._lines = out.with_name(f"{out.name}.lines") if out is not None and self._document else out
        self._file: IO[bytes] | None = None
        self._stack = ExitStack()
        self.done = set[str]()

    def __enter__(self) -> Self:
        if self._out is not None and self._lines is not None:
            with user_errors(), ExitStack() as stack:
                if self._lines.is_file() or not self._lines.exists():
                    stack.enter_context(locked(self._out.with_name(f".{self._out.name}.lock")))
                    kept = [record for record in self._earlier() if "error" not in record]
                    write_file(self._lines, b"".join(_line(record) for record in kept))
                    self.done = {record["image"] for record in kept}
                # Unbuffered: each line reaches the system before the next image.
                self._file = stack.enter_context(self._lines.open("ab", buffering=0))
                self._stack = stack.pop_all()
        return self

    def _earlier(self) -> list[Record]:
        """The records of earlier runs: those of the document, then those of its lines."""
        records: dict[str, Record] = {}
        for path in (self._out, self._lines) if self._document else (self._out,):
            if path is None or not path.exists():
                continue
            text = path.read_bytes()
            try:
                if path == self._out and self._document:
                    found = json.loads(text)["images"]
                else:
                    found = _whole_lines(text)
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

    def line(self, record: Record) -> bytes:
        """The line of a record.

        Raises:
            ValueError: it holds a number that is not finite.
        """
        return _line({**record, "settings": self._settings})

    def write(self, line: bytes) -> None:
        """Append the line of an image.

        Raises:
            UserError: the line cannot be written; the lines before it are complete.
        """
        try:
            append_line(self._file, line)
        except UserError as error:
            raise UserError(f"{error}; run the same command to continue") from error

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """Close the file; after a complete run, make the document."""
        with self._stack:
            if kind is None and self._document and self._out is not None and self._lines is not None:
                with user_errors():
                    records = _whole_lines(self._lines.read_bytes())
                    write_file(self._out, _line({**self._header, "images": records}))
                    self._lines.unlink()


def missing_hand(hand: Record, presence_threshold: float) -> str:
    """Why a pose, as a record, is not valid."""
    place = "the view" if hand["box"] is None else f"the box {[round(each, 1) for each in hand['box']]} px"
    if hand["score"] < presence_threshold:
        reason = f"the probability of a hand is {hand['score']:.3g}, below {presence_threshold:.3g}"
    else:
        reason = "a joint lies behind the camera" if hand["voters"] else "no point votes"
    return f"no hand found in {place}: {reason}"


def append_line(file: IO[bytes] | None, line: bytes) -> None:
    """Append a line to an unbuffered file, or print it without one.

    Raises:
        UserError: the line cannot be written; the file, unless it is a device or a pipe, has none of it.
    """
    if file is None:
        sys.stdout.write(line.decode())
        sys.stdout.flush()
        return
    written = 0
    try:
        while written < len(line):  # a nearly full disk takes part of the line, then refuses the rest
            written += file.write(line[written:])
    except OSError as error:
        with suppress(OSError):
            file.seek(-written, os.SEEK_CUR)
            file.truncate()
        raise UserError(f"{file.name}: {error.strerror}") from error


def _line(record: Record) -> bytes:
    return json.dumps(record, allow_nan=False).encode() + b"\n"


def _whole_lines(text: bytes) -> list[Any]:
    """The records of a file's lines, without an incomplete line or zeros left by a stopped run.

    Raises:
        ValueError: the file does not consist of records.
    """
    if text.startswith(BEGIN):
        text = text.rstrip(b"\0")
    *lines, rest = text.split(b"\n")
    if not (rest.startswith(BEGIN) or BEGIN.startswith(rest)):
        raise ValueError("a line of something else")
    return [json.loads(line) for line in lines]
