"""The store: order by serial number, damage, retention, and several names in one folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from nvf_fast.runtime.files import whole_file
from nvf_fast.runtime.store import DamagedRecordError, Store, differences


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip_one_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def files_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_newest_is_the_last_written(tmp_path: Path) -> None:
    labels = ["000000009", "000000009", "000000002", ""] * 4
    store = Store(tmp_path, "state", ".pt")
    for number, label in enumerate(labels):
        store.write(b"%d" % number, label)
        record = Store(tmp_path, "state", ".pt").newest()
        assert record is not None and record.content == b"%d" % number and record.damaged == []


def test_keeps_the_newest_and_the_record_before(tmp_path: Path) -> None:
    (tmp_path / ".state-1-0.pt.99.part").write_bytes(b"killed")
    (tmp_path / ".notes.part").write_bytes(b"of another program")
    with whole_file(tmp_path / "other"):  # being written
        store = Store(tmp_path, "state", ".pt")
        assert store.newest() is None
        for step in (1, 2, 3):
            store.write(b"step %d" % step, str(step))
        names = files_of(tmp_path)
    assert [name.split("-")[:3] for name in names[2:]] == [
        ["state", "2", "000000002"],
        ["state", "3", "000000003"],
    ]
    assert names[0] == ".notes.part" and names[1].startswith(".other.")


@pytest.mark.parametrize("damage", [truncate, empty, flip_one_bit])
def test_damaged_record_falls_back_to_the_one_before(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    store = Store(tmp_path, "state", ".pt")
    for content in (b"old", b"new"):
        store.write(content)
    old, new = sorted(tmp_path.iterdir())
    damage(new)
    store = Store(tmp_path, "state", ".pt")
    record = store.newest()
    assert record is not None and record == (b"old", old.name, [new.name])
    store.write(b"newer")
    assert [path.read_bytes() for path in sorted(tmp_path.iterdir())] == [b"old", b"newer"]
    for path in tmp_path.iterdir():
        damage(path)
    with pytest.raises(
        DamagedRecordError, match=rf"every state is damaged: state-000000003-\w+.pt, {old.name}"
    ):
        store.newest()


def test_names_share_a_folder(tmp_path: Path) -> None:
    first, tenth = Store(tmp_path, "shard-1", ".bin"), Store(tmp_path, "shard-10", ".bin")
    for store, content in ((first, b"1"), (tenth, b"10"), (first, b"1 again")):
        store.write(content)
    assert [store.newest().content for store in (first, tenth)] == [b"1 again", b"10"]  # type: ignore[union-attr]
    assert len(files_of(tmp_path)) == 3


def test_differences_name_nested_entries() -> None:
    old, new = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 4}, "e": 3}
    assert differences(old, new) == ["a.c was 2, now 4", "d was 3, now None", "e was None, now 3"]


def test_failed_write_keeps_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "made" / "file"
    with whole_file(path) as file:
        file.write(b"old")
    with pytest.raises(TypeError), whole_file(path) as file:
        file.write("text")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old" and list(path.parent.iterdir()) == [path]
