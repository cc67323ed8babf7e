"""Checkpoints made to fill the memory, to change poses unnoticed, or to raise undocumented errors."""

from __future__ import annotations

import hashlib
import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from nvf_fast import checkpoint
from nvf_fast.checkpoint import load_checkpoint, save_checkpoint
from nvf_fast.config import MOST_CHANNELS, NVFConfig
from nvf_fast.estimator import PoseEstimator
from nvf_fast.model import NVF
from nvf_fast.runtime.devices import read_device

SHAPE: dict[str, Any] = {"input_size": 32, "stem": 8, "width": 16, "stacks": 1, "depth": 1, "groups": 2}
CONFIG = NVFConfig(**SHAPE, hidden=(8,), hand_scale=False)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)
# Loads the folder of the first argument within 1 GB beyond the imports, and prints the error.
LIMITED = """
import resource, sys
from nvf_fast.checkpoint import load_checkpoint
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 2**30, size + 2**30))
try:
    load_checkpoint(sys.argv[1])
except ValueError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    save_checkpoint(NVF(CONFIG), folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    shutil.copytree(saved, tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def change_config(folder: Path, **changes: Any) -> None:
    """Replace entries of config.json, with the hash of a changed model."""
    info = json.loads((folder / "config.json").read_text()) | changes
    if "model" in changes:
        info["model_sha256"] = checkpoint._model_digest(changes["model"])
    (folder / "config.json").write_text(json.dumps(info))


def check_loads_or_names(folder: Path) -> None:
    """Load a checkpoint; the only exception is a ValueError that names the folder."""
    try:
        load_checkpoint(folder)
    except ValueError as error:
        if str(folder) not in str(error):
            raise


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 8192}, f"width must be at most {MOST_CHANNELS}, got 8192"),
        ({"stacks": 10**9}, "stacks must be at most 16"),
        ({"depth": 10**6}, "depth must be at most 16"),
        ({"hidden": [8] * 1000}, "hidden must name up to 16 layers, got 1000"),
        ({"hidden": [10**12]}, "hidden must be at most"),
        ({"joints": 10**9}, "joints must be at most"),
        ({"input_size": 2**20}, "input_size must be at most 1024"),
        ({"input_size": "128"}, "input_size must be a whole number, got '128'"),
        ({"hidden": {"a": 1}}, "hidden must be a non-empty tuple"),
        ({"presence_threshold": True}, r"presence_threshold must be in \[0, 1\], got True"),
        ({"width": 4096, "hidden": [4096] * 16}, "more parameters than the file of its weights could hold"),
        ({"stem": 4096, "image_channels": 4096}, "more parameters than the file of its weights could hold"),
        ({"width": 24}, "of another shape"),
    ],
)
def test_refuses_configurations_before_it_allocates(
    folder: Path, change: dict[str, Any], message: str
) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    change_config(folder, model=CONFIG.to_dict() | change)
    with pytest.raises(ValueError, match=message) as caught:
        load_checkpoint(folder)
    assert str(folder) in str(caught.value)
    assert (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18
    )  # KB; two of them would take 4 GB


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
def test_refuses_sparse_weights_within_a_memory_limit(folder: Path) -> None:
    with (folder / "weights.safetensors").open("r+b") as file:
        file.truncate(30 * 10**9)
    printed = subprocess.check_output([sys.executable, "-c", LIMITED, str(folder)], text=True)
    assert "weights.safetensors: 30000000000 bytes, expected up to 1073741824" in printed


def test_refuses_a_large_configuration_file(folder: Path) -> None:
    with (folder / "config.json").open("r+b") as file:
        file.truncate(10**10)
    with pytest.raises(ValueError, match=r"config.json: 10000000000 bytes, expected up to"):
        load_checkpoint(folder)


@pytest.mark.parametrize("value", [torch.nan, -torch.inf, 1e300])
def test_refuses_weights_that_are_not_finite_despite_their_hash(folder: Path, value: float) -> None:
    path = folder / "weights.safetensors"
    state = load_file(path)
    state["field.biases.0"] = state["field.biases.0"].double()
    state["field.biases.0"][3] = value
    save_file(state, path)
    change_config(folder, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(ValueError, match=r"field.biases.0 has values that are not finite"):
        load_checkpoint(folder)


@pytest.mark.parametrize("entry", ["../../secret/key", 7, None, "A" * 64])
def test_refuses_hashes_that_name_other_files(folder: Path, entry: Any) -> None:
    change_config(folder, sha256=entry)
    with pytest.raises(ValueError, match="sha256 must be 64 hexadecimal digits"):
        load_checkpoint(folder)


def test_changed_entry_of_the_configuration_is_refused(folder: Path) -> None:
    info = json.loads((folder / "config.json").read_text())
    info["model"]["groups"] = 4
    (folder / "config.json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match="model is not as saved"):
        load_checkpoint(folder)


@given(st.binary(max_size=30) | st.sampled_from([b"[" * 100_000, b"{" * 9, b"\xff", b'"\\ud800"', b"NaN"]))
def test_any_bytes_of_a_configuration_are_one_error(saved: Path, data: bytes) -> None:
    folder = saved.parent / "any"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_bytes(data)
    with pytest.raises(ValueError, match=r"config.json"):
        load_checkpoint(folder)


@given(entry=st.sampled_from(sorted(CONFIG.to_dict())), value=JSON)
def test_any_value_of_an_entry_loads_or_is_one_error(saved: Path, entry: str, value: Any) -> None:
    folder = saved.parent / "entries"
    shutil.copytree(saved, folder, dirs_exist_ok=True)
    change_config(folder, model=CONFIG.to_dict() | {entry: value})
    check_loads_or_names(folder)


@given(entry=st.sampled_from(["schema_version", "model", "sha256", "training", "model_sha256"]), value=JSON)
def test_any_value_beside_the_model_loads_or_is_one_error(saved: Path, entry: str, value: Any) -> None:
    folder = saved.parent / "beside"
    shutil.copytree(saved, folder, dirs_exist_ok=True)
    change_config(folder, **{entry: value})
    check_loads_or_names(folder)


@given(st.data())
def test_any_change_of_the_weights_is_one_error(saved: Path, data: st.DataObject) -> None:
    folder = saved.parent / "weights"
    shutil.copytree(saved, folder, dirs_exist_ok=True)
    path = folder / "weights.safetensors"
    content = bytearray(path.read_bytes())
    # The header, of which every byte decides about shapes and offsets, with a hash that matches.
    place = data.draw(st.integers(0, min(len(content) - 1, 3000)))
    content[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content[: data.draw(st.sampled_from([len(content), place]))])
    change_config(folder, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    check_loads_or_names(folder)


@pytest.mark.parametrize("device", ["mps", "meta", "xpu:0", "gpu0", "cuda:99", "", "cpu:x"])
def test_refuses_devices_that_the_library_does_not_compute_on(folder: Path, device: str) -> None:
    with pytest.raises(ValueError, match=r"device .*(got|found)"):
        load_checkpoint(folder, device=device)
    with pytest.raises(ValueError, match=r"device .*(got|found)"):
        PoseEstimator(NVF(CONFIG), device=device)
    assert read_device("cpu") == torch.device("cpu")


def test_refuses_a_backend_that_is_not_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._C, "_get_privateuse1_backend_name", lambda: "vulkan")  # as if renamed so
    with pytest.raises(ValueError, match="got 'vulkan'"):
        read_device("vulkan")


@pytest.mark.parametrize("dtype", [torch.int8, torch.float64, "float32"])
def test_refuses_precisions(folder: Path, dtype: Any) -> None:
    with pytest.raises(TypeError, match=r"dtype must be one of torch\.float32, .*, got"):
        load_checkpoint(folder, dtype=dtype)


@pytest.mark.parametrize("name", [5, b"default", ["default"], 1.5])
def test_names_of_other_types_are_refused(name: Any) -> None:
    with pytest.raises(TypeError, match="a checkpoint must be a name, a folder or None, got"):
        load_checkpoint(name)


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "", "/dev/null", "../..", Path("x" * 5000)])
def test_names_of_nothing_are_not_found(name: Any) -> None:
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        load_checkpoint(name)
