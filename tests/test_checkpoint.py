"""Checkpoints: saving, loading, refusals, and resolving names."""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
import os
import shutil
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import nvf_fast
from nvf_fast import checkpoint
from nvf_fast.checkpoint import load_checkpoint, record_scores, resolve, save_checkpoint
from nvf_fast.config import NVFConfig
from nvf_fast.model import NVF

CONFIG = NVFConfig(
    input_size=32, stem=8, width=16, stacks=1, depth=1, groups=2, hidden=(8,), hand_scale=False
)


@pytest.fixture
def model() -> NVF:
    return NVF(CONFIG)


@pytest.fixture
def folder(model: NVF, tmp_path: Path) -> Path:
    save_checkpoint(model, tmp_path / "run/checkpoint", {"steps": 7})
    return tmp_path / "run/checkpoint"


def edit_config(folder: Path, **changes: Any) -> None:
    """Replace entries of config.json, None removes one; a changed model has the hash of the change."""
    if "model" in changes and "model_sha256" not in changes:
        changes["model_sha256"] = checkpoint._model_digest(changes["model"])
    info = json.loads((folder / "config.json").read_text())
    info.update(changes)
    (folder / "config.json").write_text(
        json.dumps({key: value for key, value in info.items() if value is not None})
    )


def edit_weights(folder: Path, **changes: Tensor | None) -> None:
    """Replace entries of the weights and update the hash."""
    path = folder / "weights.safetensors"
    state: dict[str, Tensor | None] = dict(load_file(path))
    state.update({name.replace("__", "."): value for name, value in changes.items()})
    save_file({name: value for name, value in state.items() if value is not None}, path)
    edit_config(folder, sha256=hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_saves_and_loads(model: NVF, tmp_path: Path, dtype: torch.dtype) -> None:
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    save_checkpoint(model, tmp_path, {"steps": 7, "loss": [0.5]}, dtype=dtype)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "weights.safetensors"]
    loaded, info = load_checkpoint(tmp_path)
    assert loaded.config == CONFIG and not loaded.training
    assert info["training"] == {"steps": 7, "loss": [0.5]}
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert loaded.state_dict()[name].dtype == torch.float32
        assert torch.equal(loaded.state_dict()[name], tensor.to(dtype).float()), name


def test_precision_is_that_of_the_encoder(folder: Path) -> None:
    loaded, _ = load_checkpoint(folder, device="cpu", dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in loaded.encoder.parameters()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in loaded.field.parameters()} == {torch.float32}
    assert loaded.encode(torch.zeros(1, 3, 32, 32, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize("value", [1e5, float("nan")])
def test_refuses_weights_beyond_the_dtype(model: NVF, tmp_path: Path, value: float) -> None:
    with torch.no_grad():
        model.field.biases[0][3] = value
    with pytest.raises(ValueError, match=r"field.biases.0 has values that are not finite in torch.float16"):
        save_checkpoint(model, tmp_path / "new", {})
    assert not (tmp_path / "new").exists()


def test_refuses_the_network_of_an_estimator(model: NVF, folder: Path) -> None:
    before = (folder / "weights.safetensors").read_bytes()
    for estimator in (nvf_fast.PoseEstimator(model), copy.deepcopy(nvf_fast.PoseEstimator(model))):
        with pytest.raises(ValueError, match="network of an estimator is folded for inference"):
            save_checkpoint(estimator.model, folder)
    assert (folder / "weights.safetensors").read_bytes() == before
    save_checkpoint(model, folder)


def test_refuses_metadata_beyond_json_before_writing(model: NVF, tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        save_checkpoint(model, tmp_path / "new", {"path": tmp_path})
    assert not (tmp_path / "new").exists()


def test_interrupted_save_keeps_the_older_checkpoint(
    folder: Path, model: NVF, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(source: object, target: object) -> None:
        raise KeyboardInterrupt

    with torch.no_grad():
        model.encoder.conv.bias.fill_(3)  # type: ignore[union-attr]
    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(model, folder, {"steps": 8})
    loaded, info = load_checkpoint(folder)
    assert info["training"] == {"steps": 7}
    assert loaded.encoder.conv.bias.eq(0).all()  # type: ignore[union-attr]
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "weights.safetensors"]


def test_loads_while_another_process_saves(folder: Path, model: NVF, monkeypatch: pytest.MonkeyPatch) -> None:
    find = checkpoint._weights_file

    def late(*arguments: Any) -> Path:
        monkeypatch.setattr(checkpoint, "_weights_file", find)
        with torch.no_grad():
            model.encoder.conv.bias.fill_(3)  # type: ignore[union-attr]
        save_checkpoint(model, folder, {"steps": 8})  # after config.json was read
        return find(*arguments)

    monkeypatch.setattr(checkpoint, "_weights_file", late)
    assert load_checkpoint(folder)[1]["training"] == {"steps": 8}


def test_newer_checkpoint_replaces_an_older(folder: Path, model: NVF) -> None:
    save_checkpoint(model, folder, {"steps": 8})
    assert load_checkpoint(folder)[1]["training"] == {"steps": 8}


def test_refuses_a_changed_byte(folder: Path) -> None:
    content = bytearray((folder / "weights.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "weights.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"weights.safetensors: sha256 is .*, config.json has"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": 3}, "schema_version is 3, this library reads 1 and 2"),
        ({"schema_version": True}, "schema_version is True"),
        ({"schema_version": None}, "schema_version is None"),
        ({"author": "me"}, r"unknown entries \['author'\]"),
        ({"training": None}, r"missing entries \['training'\]"),
        ({"model_sha256": None}, r"missing entries \['model_sha256'\]"),
        ({"schema_version": 1}, r"unknown entries \['model_sha256'\]"),
        (
            {"model": CONFIG.to_dict() | {"groups": 1}, "model_sha256": "0"},
            "model is not as saved: its sha256",
        ),
        ({"model": CONFIG.to_dict() | {"breadth": 3}}, r"unknown entries \['breadth'\]"),
        ({"model": CONFIG.to_dict() | {"width": 24}}, "of another shape: encoder.shallow"),
    ],
)
def test_refuses_mismatched_configurations(folder: Path, changes: dict[str, Any], message: str) -> None:
    edit_config(folder, **changes)
    with pytest.raises(ValueError, match=message):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder__conv__bias": None}, r"1 missing: encoder.conv.bias \(8,\)"),
        ({"encoder__extra": torch.ones(2)}, "1 unknown: encoder.extra"),
        ({"encoder__conv__bias": torch.ones(9)}, r"encoder.conv.bias is \(9,\), expected \(8,\)"),
        (
            {"encoder__conv__bias": torch.ones(8, dtype=torch.int32)},
            "encoder.conv.bias must be floating point",
        ),
    ],
)
def test_refuses_mismatched_weights(folder: Path, changes: dict[str, Tensor | None], message: str) -> None:
    edit_weights(folder, **changes)
    with pytest.raises(ValueError, match=message):
        load_checkpoint(folder)


def test_refuses_other_files(folder: Path) -> None:
    (folder / "weights.safetensors").write_bytes(b"pickle")
    edit_config(folder, sha256=hashlib.sha256(b"pickle").hexdigest())
    with pytest.raises(ValueError, match=r"weights.safetensors: not a safetensors file"):
        load_checkpoint(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json: not JSON"):
        load_checkpoint(folder)
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config.json is missing"):
        load_checkpoint(folder)


def test_resolves_embedded_names_first_then_folders(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "EMBEDDED", folder.parent)
    assert checkpoint.embedded_names() == ["checkpoint"]
    monkeypatch.chdir(folder.parent.parent)
    assert resolve() == resolve("checkpoint") == folder
    assert resolve("run/checkpoint") == Path("run/checkpoint")
    assert load_checkpoint("checkpoint")[0].config == CONFIG


def test_refuses_unknown_names(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "EMBEDDED", folder.parent)
    for source in ("other", Path("runs/other"), "/no/such/folder"):
        with pytest.raises(FileNotFoundError, match=r"or one of the embedded \['checkpoint'\]"):
            resolve(source)


def test_default_is_chosen_among_others(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "EMBEDDED", folder.parent)
    shutil.copytree(folder, folder.parent / "default")
    assert checkpoint.embedded_names() == ["checkpoint", "default"]
    assert resolve() == folder.parent / "default"


def test_refuses_none_without_a_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(checkpoint, "EMBEDDED", tmp_path)
    with pytest.raises(FileNotFoundError, match="name a checkpoint"):
        resolve()


def test_hub_id_needs_the_hub_and_passes_its_revision(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"pip install 'nvf-fast\[hub\]'"):
        resolve("someone/hands")
    requested: list[tuple[str, str | None]] = []

    def snapshot_download(repository: str, revision: str | None, allow_patterns: list[str]) -> str:
        assert sorted(allow_patterns) == ["config.json", "weights.safetensors"]
        requested.append((repository, revision))
        return str(folder)

    hub = types.SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert resolve("someone/hands") == resolve("someone/hands@v1") == folder
    assert requested == [("someone/hands", None), ("someone/hands", "v1")]


def test_reads_the_first_version_without_the_hash_of_the_configuration(folder: Path) -> None:
    edit_config(folder, schema_version=1, model_sha256=None)
    loaded, info = load_checkpoint(folder)
    assert loaded.config == CONFIG and "model_sha256" not in info


def test_hash_of_the_configuration_covers_every_entry_but_not_their_order() -> None:
    entries = CONFIG.to_dict()
    digests = {checkpoint._model_digest(entries | {"groups": groups}) for groups in (1, 2, 4)}
    assert len(digests) == 3
    assert checkpoint._model_digest(dict(reversed(entries.items()))) in digests


def test_metadata_is_optional(model: NVF, tmp_path: Path) -> None:
    nvf_fast.save_checkpoint(model, tmp_path / "new")
    assert nvf_fast.load_checkpoint(tmp_path / "new")[1]["training"] == {}


def test_records_scores_in_folders_only(folder: Path) -> None:
    for scores in ({"photographs": {"aligned": 9.5}}, {"aligned": 8.0}):
        record_scores(folder, scores)
        assert load_checkpoint(folder)[1]["training"] == {"steps": 7, "scores": scores}
    with pytest.raises(
        ValueError, match="recorded in the folder of a checkpoint, but 'owner/hand' is not a folder"
    ):
        record_scores("owner/hand", {})


def test_hub_folder_is_a_checkpoint_with_a_model_card(folder: Path, tmp_path: Path) -> None:
    checkpoint.save_hub_folder(folder, tmp_path / "hub", license="mit", text="# Limits\nNone known.\n")
    names = ["README.md", "config.json", "weights.safetensors"]
    assert sorted(path.name for path in (tmp_path / "hub").iterdir()) == names
    assert load_checkpoint(tmp_path / "hub")[1] == load_checkpoint(folder)[1]
    _, header, card = (tmp_path / "hub/README.md").read_text().split("---\n", 2)
    entries = {key: json.loads(value) for key, value in (line.split(": ", 1) for line in header.splitlines())}
    assert entries["license"] == "mit" and entries["library_name"] == "nvf-fast"
    assert "hand-pose" in entries["tags"]
    digest = json.loads((folder / "config.json").read_text())["sha256"]
    assert digest in card and card.endswith("\n\n# Limits\nNone known.\n")


def test_card_of_a_checkpoint_without_a_licence_names_none(folder: Path, tmp_path: Path) -> None:
    checkpoint.save_hub_folder(folder, tmp_path / "hub")
    assert "license" not in (tmp_path / "hub/README.md").read_text()


def test_hub_folder_refuses_a_damaged_checkpoint(folder: Path, tmp_path: Path) -> None:
    edit_config(folder, model=replace(CONFIG, groups=1).to_dict(), model_sha256="0")
    with pytest.raises(ValueError, match="model is not as saved"):
        checkpoint.save_hub_folder(folder, tmp_path / "hub")
    assert not (tmp_path / "hub").exists()


def test_pushes_what_load_then_finds(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, Any]] = []

    class HfApi:
        def create_repo(self, repository: str, *, private: bool, exist_ok: bool) -> None:
            assert exist_ok
            calls.append(("create", (repository, private)))

        def upload_folder(
            self, *, repo_id: str, folder_path: str, revision: str | None, commit_message: str
        ) -> types.SimpleNamespace:
            calls.append(("upload", (repo_id, revision, commit_message)))
            shutil.copytree(folder_path, tmp_path / "remote")
            return types.SimpleNamespace(commit_url="address of the commit")

    def snapshot_download(repository: str, **_: Any) -> str:
        return str(tmp_path / "remote")

    hub = types.SimpleNamespace(HfApi=HfApi, snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    pushed = checkpoint.push_to_hub(
        folder, "someone/hands", private=True, revision="next", message="First weights"
    )
    assert pushed == "address of the commit"
    upload = ("someone/hands", "next", "First weights")
    assert calls == [("create", ("someone/hands", True)), ("upload", upload)]
    loaded, info = load_checkpoint("someone/hands")
    assert loaded.config == CONFIG and info["training"] == {"steps": 7}


def test_push_refuses_other_names_and_a_missing_package(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("hands", "someone/", "a/b/c"):
        with pytest.raises(ValueError, match='must be "owner/name", got'):
            checkpoint.push_to_hub(folder, name)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"uploading a checkpoint needs .* pip install 'nvf-fast\[hub\]'"):
        checkpoint.push_to_hub(folder, "someone/hands")


def test_calls_to_the_hub_have_arguments_that_exist() -> None:
    hub = pytest.importorskip("huggingface_hub", reason="needs the extra hub")
    push = inspect.signature(hub.HfApi.upload_folder).parameters
    assert {"repo_id", "folder_path", "revision", "commit_message"} <= push.keys()
    assert {"private", "exist_ok"} <= inspect.signature(hub.HfApi.create_repo).parameters.keys()
    assert {"revision", "allow_patterns"} <= inspect.signature(hub.snapshot_download).parameters.keys()


def test_absent_hub_checkpoint_is_one_clear_error_without_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = pytest.importorskip("huggingface_hub", reason="needs the extra hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"someone/hands.*hub"):
        load_checkpoint("someone/hands")
