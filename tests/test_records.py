"""Records of images: resuming after a stop at any byte, full disks, locks, and files of others."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest

from nvf_fast.cli import UserError
from nvf_fast.cli.records import RecordWriter


def written(path: Path, names: str, settings: str = "s") -> list[str]:
    """Write the records of images that are not done yet; return their names."""
    with RecordWriter(path, settings, {}) as records:
        left = [name for name in names if name not in records.done]
        for name in left:
            records.write(records.line({"image": name, "hands": []}))
    return left


def names_in(path: Path) -> list[str]:
    text = path.read_text()
    found = json.loads(text)["images"] if path.suffix == ".json" else map(json.loads, text.splitlines())
    return [record["image"] for record in found]


@pytest.mark.parametrize("end", [b"", b"\0" * 40])
def test_resumes_after_a_stop_at_any_byte(tmp_path: Path, end: bytes) -> None:
    whole = tmp_path / "whole.jsonl"
    written(whole, "abc")
    content = whole.read_bytes()
    for cut in range(len(content)):
        path = tmp_path / "cut.jsonl"
        path.write_bytes(content[:cut] + (end if cut > 9 else b""))
        assert written(path, "abc") == list("abc"[content[:cut].count(b"\n") :])
        assert path.read_bytes() == content


@pytest.mark.parametrize("done", ["lines", "document", "both"])
def test_a_document_is_made_once(tmp_path: Path, done: str) -> None:
    path, lines = tmp_path / "poses.json", tmp_path / "poses.json.lines"
    written(path, "ab")
    content = path.read_bytes()
    written(tmp_path / "ab.jsonl", "ab")
    if done != "document":
        lines.write_bytes((tmp_path / "ab.jsonl").read_bytes())
    if done == "lines":
        path.unlink()
    assert written(path, "ab") == [] and path.read_bytes() == content
    assert written(path, "abc") == ["c"] and names_in(path) == ["a", "b", "c"]
    assert not lines.exists()


def test_a_full_disk_is_an_error_and_keeps_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "poses.jsonl"

    class Full:
        """A file on a disk with room for a number of bytes."""

        room = 130

        def __init__(self) -> None:
            self.file = path.open("ab", buffering=0)

        def write(self, data: bytes) -> int:
            if self.room == 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            count = min(len(data), self.room)
            Full.room -= count
            return self.file.write(data[:count])

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    def write() -> None:
        with RecordWriter(path, "s", {}) as records:
            records._file = Full()  # type: ignore[assignment]
            for name in "abcdef":
                records.write(records.line({"image": name, "hands": []}))

    with pytest.raises(UserError, match="No space left on device; run the same command to continue"):
        write()
    assert path.stat().st_size < 130 and names_in(path) == list("ab")
    assert written(path, "abcdef") == list("cdef") and names_in(path) == list("abcdef")


def test_one_process_writes_a_file(tmp_path: Path) -> None:
    path = tmp_path / "poses.jsonl"
    with RecordWriter(path, "s", {}):
        with pytest.raises(UserError, match="is in use by"):
            written(path, "a")
        written(tmp_path / "other.jsonl", "a")
    assert written(path, "a") == ["a"]
    assert sorted(tmp_path.iterdir()) == [tmp_path / "other.jsonl", path]


def test_refuses_numbers_that_json_lacks() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        RecordWriter(None, "s", {}).line({"image": "a", "K": float("nan")})
