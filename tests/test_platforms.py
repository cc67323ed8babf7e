"""What differs on Windows and macOS, as far as Linux can show it."""

from __future__ import annotations

import fcntl
import importlib.util
import io
import os
import struct
import subprocess
import sys
from pathlib import Path, PureWindowsPath
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from nvf_fast.cli import UserError
from nvf_fast.cli.cameras import entry_of
from nvf_fast.cli.main import main
from nvf_fast.cli.outputs import check_replaced
from nvf_fast.runtime import compiled, files
from nvf_fast.synthetic.backgrounds import Backgrounds
from nvf_fast.training.view_sources import ViewFolders, view_credits

# Third parties are imported on the true platform. Then modules that another platform lacks are removed, and
# the platform is set before the library is imported.
INFERENCE = """
import multiprocessing.resource_tracker, os, signal, sys, types
import numpy, PIL.Image, safetensors.torch, torch, torch.distributed, torch.utils.data, tqdm, trimesh, tyro

absent = {"triton", "resource", "numba", "skimage", "matplotlib", "av", "viser", "huggingface_hub"}
if sys.argv[1] == "win32":
    absent |= {"fcntl", "grp", "pwd", "termios"}
    sys.modules["msvcrt"] = types.ModuleType("msvcrt", "locks nothing")
    sys.modules["msvcrt"].__dict__.update(LK_NBLCK=2, locking=lambda *_: None)
    del os.fork, signal.pthread_sigmask, signal.SIGKILL
else:
    absent |= {"nvtx"}
del os.register_at_fork, signal.sigwaitinfo
for name in absent | {each for each in sys.modules if each.split(".")[0] in absent}:
    sys.modules[name] = None
sys.platform = sys.argv[1]

from nvf_fast.cli.main import main
main(["predict", sys.argv[2], "--fov", "60", "--device", "cpu", "--out", sys.argv[3]])
print(sorted(os.listdir(os.path.dirname(sys.argv[3]))))
sys.stdout.flush()
os._exit(0)  # without the finalisers of modules that are gone
"""


@pytest.mark.parametrize("platform", ["win32", "darwin"])
def test_inference_needs_nothing_that_a_platform_lacks(platform: str, tmp_path: Path) -> None:
    image = Path(files.__file__).parents[1] / "assets/demo.jpg"
    command = [sys.executable, "-c", INFERENCE, platform, str(image), str(tmp_path / "poses.jsonl")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.stdout == "['poses.jsonl']\n", run.stderr
    assert (tmp_path / "poses.jsonl").read_text().count('"valid": true') == 2


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """Load `nvf_fast.runtime.files` as two processes of Windows would, with locks that each opening holds."""

    def locking(number: int, mode: int, count: int) -> None:
        start = os.lseek(number, 0, os.SEEK_CUR)
        try:
            fcntl.fcntl(number, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, start, count, 0))
        except BlockingIOError as error:
            raise PermissionError(13, "Permission denied") from error
        locked.append(start)

    locked: list[int] = []
    monkeypatch.setitem(sys.modules, "msvcrt", SimpleNamespace(LK_NBLCK=2, LK_LOCK=1, locking=locking))
    monkeypatch.setattr(sys, "platform", "win32")

    def load() -> ModuleType:
        spec = importlib.util.spec_from_file_location("files_of_windows", files.__file__)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    yield load(), load()
    assert min(locked) > 200, "the name of the holder, which others read, must not be locked"


def test_locks_of_windows_exclude_others_and_are_removed(windows: tuple[Any, Any], tmp_path: Path) -> None:
    first, second = windows
    path = tmp_path / "run.lock"
    for _ in range(2):
        with first.locked(path):
            with (
                pytest.raises(second.LockedError, match=f"in use by process {os.getpid()}"),
                second.locked(path),
            ):
                pass
            assert path.stat().st_size < 200
        with second.locked(path), pytest.raises(first.LockedError), first.locked(path):
            pass
    assert list(tmp_path.iterdir()) == []


def test_output_that_an_encoding_lacks_is_escaped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw := io.BytesIO(), "cp1252"))
    main(["demo", "--device", "cpu", "--overlay", str(tmp_path / "手é.png")])
    assert raw.getvalue().endswith(rb"\u624b" + "é.png\n".encode("cp1252"))


def test_hidden_files_are_not_taken_for_images(tmp_path: Path) -> None:
    for name in ("._a.png", ".DS_Store"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match="no images"):
        Backgrounds(tmp_path)
    Image.new("RGB", (64, 32)).save(tmp_path / "a.png")
    assert view_credits(ViewFolders(backgrounds=tmp_path))["backgrounds"] == 1


def test_paths_in_files_have_either_slash() -> None:
    path: Any = PureWindowsPath(r"photos\a.jpg")
    for key in ("photos/a.jpg", r"photos\a.jpg"):
        assert entry_of(path, {key: 1, "a.jpg": 2}, Path("boxes.json"), alone=False) == (key, 1)
    assert entry_of(path, {"a.jpg": 2}, Path("boxes.json"), alone=True) == ("a.jpg", 2)
    with pytest.raises(UserError, match="several images"):
        entry_of(path, {"a.jpg": 2}, Path("boxes.json"), alone=False)


def test_another_name_of_an_input_is_not_replaced(tmp_path: Path) -> None:
    image, other = tmp_path / "Photo.jpg", tmp_path / "photo.jpg"
    image.touch()
    other.hardlink_to(image)  # as both names are one file where letter case does not count
    with pytest.raises(UserError, match=r"--overlay would replace .*photo\.jpg, an input"):
        check_replaced([("--overlay", other)], [image])


def test_a_missing_folder_for_compiled_code_is_an_error_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from numba.core.caching import CacheImpl

    monkeypatch.setattr(CacheImpl, "_locator_classes", [])  # neither folder can be written to
    with pytest.raises(OSError, match=r"cannot cache function .* set NUMBA_CACHE_DIR to a folder"):

        @compiled.compiled()
        def one() -> int:
            return 1
