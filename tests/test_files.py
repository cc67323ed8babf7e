"""Whole files, their leftovers, links, devices and permissions; lock files; JSON files."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from PIL import Image

import nvf_fast
from nvf_fast.checkpoint import save_checkpoint, save_hub_folder
from nvf_fast.data.complement import Complement
from nvf_fast.data.freihand import FreiHAND
from nvf_fast.data.ho3d import HO3D
from nvf_fast.data.mano import Mano
from nvf_fast.data.photographs import Photographs
from nvf_fast.evaluation.submission import read_submission, write_submission
from nvf_fast.export import export_checkpoint
from nvf_fast.overlay import write_drawing
from nvf_fast.runtime import files
from nvf_fast.runtime.files import LockedError, locked, read_json, remove_unfinished, whole_file
from nvf_fast.synthetic.backgrounds import Backgrounds
from nvf_fast.synthetic.dataset import SyntheticConfig, SyntheticHands
from nvf_fast.synthetic.rig import load_rig
from nvf_fast.training.loop import train
from nvf_fast.video import read_frames
from tests.reference_cases import reference_network
from tests.training_cases import Dots, tiny

HOLDER = """
import sys, time
from pathlib import Path
from nvf_fast.runtime.files import locked, whole_file
context = {"lock": locked, "file": whole_file}[sys.argv[1]]
with context(Path(sys.argv[2])) as file:
    if file is not None:
        file.write(b"half")
        file.flush()
    print("held", flush=True)
    time.sleep(60)
"""


def holder(kind: str, path: Path) -> subprocess.Popen[str]:
    """Start a process that holds a lock, or writes a file, until it is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, kind, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_leftovers_of_dead_processes_alone_are_removed(tmp_path: Path) -> None:
    path = tmp_path / "poses [a].json"
    path.write_bytes(b"old")
    process = holder("file", path)
    try:
        (unfinished,) = tmp_path.glob(".*.part")
        remove_unfinished(tmp_path)
        assert unfinished.read_bytes() == b"half"
    finally:
        process.kill()
        process.wait()
    assert path.read_bytes() == b"old"
    files._cleared.clear()
    with whole_file(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]


def test_threads_write_one_file(tmp_path: Path) -> None:
    path, together = tmp_path / "file", threading.Barrier(4)

    def write(number: int) -> None:
        together.wait()
        for _ in range(20):
            with whole_file(path) as file:
                file.write(b"%d" % number * 1000)
            remove_unfinished(tmp_path)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    content = path.read_bytes()
    assert len(content) == 1000 and len(set(content)) == 1 and list(tmp_path.iterdir()) == [path]


def test_links_devices_pipes_and_permissions_stay(tmp_path: Path) -> None:
    target, link, pipe = tmp_path / "target", tmp_path / "link", tmp_path / "pipe"
    target.write_bytes(b"old")
    target.chmod(0o640)
    link.symlink_to(target)
    with whole_file(link) as file:
        file.write(b"new")
    assert link.is_symlink() and target.read_bytes() == b"new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    with whole_file(Path("/dev/null")) as file:
        file.write(b"nothing")
    assert Path("/dev/null").is_char_device()
    os.mkfifo(pipe)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    with whole_file(pipe) as file:
        file.write(b"through")
    reader.join()
    assert read == [b"through"] and pipe.is_fifo()
    with pytest.raises(IsADirectoryError), whole_file(tmp_path):
        pass


def test_a_full_device_is_an_error_and_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "overlay.png"
    path.write_bytes(b"old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with (
        pytest.raises(OSError, match=r"No space left on device: '.*/overlay\.png'"),
        whole_file(path) as file,
    ):
        file.write(b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_lock_excludes_other_processes_until_they_end(tmp_path: Path) -> None:
    path = tmp_path / "made" / ".lock"
    process = holder("lock", path)
    try:
        held = rf"made is in use by process {process.pid} on .*\.lock"
        with pytest.raises(LockedError, match=held), locked(path, wait_s=0.1):
            pass
    finally:
        process.kill()
        process.wait()
    with locked(path):
        with pytest.raises(LockedError, match="in use by this process"), locked(path):
            pass
        with locked(tmp_path / ".lock"):
            pass
    assert list(path.parent.iterdir()) == []


def test_a_fork_does_not_keep_a_lock(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    script = """
import os, sys, time
from pathlib import Path
from nvf_fast.runtime.files import locked
with locked(Path(sys.argv[1])):
    if os.fork() == 0:
        print("held", flush=True)
        time.sleep(5)
        os._exit(0)
    os._exit(0)
"""
    process = subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.wait() == 0
    with locked(path):
        pass


def test_a_file_system_without_locks_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(file: object, wait: bool = False) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(files, "_lock", none)
    with (
        pytest.warns(UserWarning, match="has no locks: run one process"),
        locked(tmp_path / ".lock"),
        whole_file(tmp_path / "file") as file,
    ):
        file.write(b"whole")
    assert (tmp_path / "file").read_bytes() == b"whole"


@pytest.mark.parametrize(
    "content", [b"{", b"[" * 100_000, b"\xff\xfe\x00", b"1" * 5000, b"", b'[{"a": 1, "a": 1}]']
)
def test_files_that_are_no_json_are_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "some.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"some\.json: not JSON"):
        read_json(path)
    path.write_text(json.dumps({"a": 1}))
    assert read_json(path) == {"a": 1}


WRITES = re.compile(
    r"\.write_(text|bytes)\(|(?<!archive\.)open\([^)]*[\"'][wax]\+?b?[\"']"
    r"|savefig\(path|\.save\(path|np\.save\("
)
GROWING = {"cli/records.py", "cli/track.py", "training/log.py"}  # a line at a time
IN_A_NEW_FOLDER = {"export.py"}  # which is renamed when it is whole


def test_the_package_writes_files_in_one_way() -> None:
    package = Path(files.__file__).parents[1]
    found = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if WRITES.search(path.read_text())
    }
    assert found == {"runtime/files.py"} | GROWING | IN_A_NEW_FOLDER


EMPTY = {
    "load": lambda: nvf_fast.load(""),
    "save_checkpoint": lambda: save_checkpoint(reference_network(stem=8, width=16, input_size=32), ""),
    "save_hub_folder": lambda: save_hub_folder(None, ""),
    "export_checkpoint": lambda: export_checkpoint(None, ""),
    "read_frames": lambda: next(read_frames("")),
    "write_drawing": lambda: write_drawing("", Image.new("RGB", (1, 1))),
    "FreiHAND": lambda: FreiHAND(""),
    "HO3D": lambda: HO3D(""),
    "Complement": lambda: Complement(""),
    "Photographs": lambda: Photographs(""),
    "Mano": lambda: Mano.load(""),
    "SyntheticHands": lambda: SyntheticHands(SyntheticConfig(), ""),
    "Backgrounds": lambda: Backgrounds(""),
    "load_rig": lambda: load_rig(""),
    "write_submission": lambda: write_submission("", [], "freihand"),
    "read_submission": lambda: read_submission("", "freihand"),
    "train": lambda: train(tiny(), Dots(), ""),
}


@pytest.mark.parametrize("name", EMPTY)
def test_an_empty_path_is_not_the_current_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    missing = FileNotFoundError, "no checkpoint '': it is not a folder"
    error, message = missing if name == "load" else (ValueError, "got an empty string")
    with pytest.raises(error, match=message):
        EMPTY[name]()
    assert not list(tmp_path.iterdir())
