"""Checkpoints: a folder with weights.safetensors and config.json, found by name, path or hub id.

Loading executes no pickled code and is strict: every mismatch raises an error that names it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as bytes_from_tensors

from nvf_fast.baselines import Network, build
from nvf_fast.config import NVFConfig
from nvf_fast.model import check_entries
from nvf_fast.runtime.files import remove_unfinished, sync_folder, whole_file

SCHEMA_VERSION = 1
DEFAULTS = ("default",)  # the first embedded one of these is the default
EMBEDDED = Path(__file__).resolve().parent / "weights"
WEIGHTS_FILE = "weights.safetensors"
CONFIG_FILE = "config.json"


def save_checkpoint(
    model: Network, path: str | Path, training: dict[str, Any], dtype: torch.dtype = torch.float16
) -> None:
    """Write a checkpoint folder atomically: a killed process leaves either the old or the new checkpoint.

    New weights are stored under a name with their hash until config.json, which holds the hash of the current
    weights, has been replaced; `load_checkpoint` reads that name too.

    Args:
        model: the network.
        path: the folder; created with its parents, files in it are replaced.
        training: metadata of the training, JSON values.
        dtype: of the stored weights.

    Raises:
        ValueError: a weight is not finite in `dtype`; the message names it.
        TypeError: `training` is not serialisable as JSON.
    """
    state = {}
    for name, tensor in model.state_dict().items():
        state[name] = tensor.detach().to("cpu", dtype).contiguous()
        if not state[name].isfinite().all():
            raise ValueError(f"checkpoint: {name} has values that are not finite in {dtype}")
    weights = bytes_from_tensors(state)
    digest = hashlib.sha256(weights).hexdigest()
    config = {
        "schema_version": SCHEMA_VERSION,
        "model": model.config.to_dict(),
        "sha256": digest,
        "training": training,
    }
    document = _document(config)
    folder = Path(path)
    pending = _pending(folder, digest)
    _write(pending, weights)
    _write(folder / CONFIG_FILE, document)
    pending.replace(folder / WEIGHTS_FILE)
    sync_folder(folder)
    for leftover in folder.glob(_pending(folder, "*").name):
        leftover.unlink()
    remove_unfinished(folder)


def record_scores(path: str | Path | None, scores: dict[str, Any]) -> None:
    """Keep measured scores in a checkpoint's config.json, as `training.scores`; earlier ones are replaced.

    Args:
        path: as in `resolve`.
        scores: JSON values.

    Raises:
        FileNotFoundError: the checkpoint does not exist.
        ValueError: its config.json is damaged, or a score is not finite.
        OSError: the folder cannot be written to.
    """
    file = resolve(path) / CONFIG_FILE
    info = _read_config(file)
    info["training"] = info["training"] | {"scores": scores}
    _write(file, _document(info))


def load_checkpoint(
    path: str | Path | None, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> tuple[Network, dict[str, Any]]:
    """Read a checkpoint.

    Args:
        path: folder, embedded name or hub id, as in `resolve`; None is the embedded default.
        device: where the network goes; None is the CPU.
        dtype: of the encoder, and so of the features and the field's arithmetic; None is float32. The field's
            parameters stay float32: its dependence on depth needs them.

    Returns:
        The network in evaluation mode, an `NVF` or a baseline of it, and config.json: schema_version, model,
        sha256, training.

    Raises:
        FileNotFoundError: the checkpoint does not exist, or a file of it is missing.
        ImportError: a hub id needs huggingface_hub, which is not installed.
        ValueError: the schema version, an entry of the configuration, the hash of the weights, or a weight's
            name, shape or dtype is wrong; the message names it.
    """
    folder = resolve(path)
    if not (folder / CONFIG_FILE).is_file():
        raise FileNotFoundError(f"no checkpoint at {folder}: {CONFIG_FILE} is missing")
    info = _read_config(folder / CONFIG_FILE)
    file = _pending(folder, str(info["sha256"]))  # there only where a save was interrupted
    if not file.is_file():
        file = folder / WEIGHTS_FILE
    if not file.is_file():
        raise FileNotFoundError(f"no checkpoint at {folder}: {WEIGHTS_FILE} is missing")
    weights = file.read_bytes()
    digest = hashlib.sha256(weights).hexdigest()
    if digest != info["sha256"]:
        raise ValueError(f"{file}: sha256 is {digest}, config.json has {info['sha256']}")
    try:
        state = tensors_from_bytes(weights)
    except SafetensorError as error:
        raise ValueError(f"{file}: not a safetensors file ({error})") from error
    model = build(NVFConfig.from_dict(info["model"]))
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    check_entries(shapes, state, str(file))
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            raise ValueError(f"{file}: {name} must be floating point, got {tensor.dtype}")
    model.load_state_dict(state)
    model.encoder.to(dtype or torch.float32)
    return model.to(device or "cpu").eval(), info


def embedded_names() -> list[str]:
    """Names of the embedded checkpoints."""
    return sorted(path.parent.name for path in EMBEDDED.glob(f"*/{CONFIG_FILE}"))


def resolve(source: str | Path | None = None) -> Path:
    """The folder of a checkpoint.

    Args:
        source: an embedded name; else a folder; else a Hugging Face hub id "owner/name" or
            "owner/name@revision", which is downloaded to the hub's own cache (extra `hub`). None is the
            embedded default: the first existing one of `DEFAULTS`, or the only embedded checkpoint.

    Raises:
        FileNotFoundError: the checkpoint does not exist.
        ImportError: a hub id needs huggingface_hub, which is not installed.
    """
    names = embedded_names()
    if source is None:
        only = names[0] if len(names) == 1 else None
        source = next((name for name in DEFAULTS if name in names), only)
        if source is None:
            raise FileNotFoundError(f"name a checkpoint: the library includes {names}")
    if source in names:
        return EMBEDDED / source
    if Path(source).is_dir():
        return Path(source)
    repository, _, revision = str(source).partition("@")
    if isinstance(source, Path) or len(repository.split("/")) != 2 or not all(repository.split("/")):
        raise FileNotFoundError(
            f"no checkpoint {str(source)!r}: no folder, no hub id, none of the embedded {names}"
        )
    return _download(repository, revision or None)


def _download(repository: str, revision: str | None) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ImportError(
            f"{repository!r} is no folder; as a hub id it needs huggingface_hub: pip install 'nvf-fast[hub]'"
        ) from error
    return Path(snapshot_download(repository, revision=revision, allow_patterns=[CONFIG_FILE, WEIGHTS_FILE]))


def _read_config(path: Path) -> dict[str, Any]:
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not a JSON file ({error})") from error
    version = info.get("schema_version") if isinstance(info, dict) else None
    if version != SCHEMA_VERSION:
        raise ValueError(f"{path}: schema_version is {version!r}, this library reads {SCHEMA_VERSION}")
    expected = {"schema_version", "model", "sha256", "training"}
    if info.keys() != expected:
        unknown, missing = sorted(info.keys() - expected), sorted(expected - info.keys())
        raise ValueError(f"{path}: unknown entries {unknown}, missing entries {missing}")
    return info


def _document(config: dict[str, Any]) -> bytes:
    return json.dumps(config, indent=2, allow_nan=False, ensure_ascii=False).encode() + b"\n"


def _write(path: Path, content: bytes) -> None:
    with whole_file(path) as file:
        file.write(content)


def _pending(folder: Path, digest: str) -> Path:
    """The file of new weights until config.json holds their hash."""
    return folder / f"weights.{digest[:16]}.safetensors"
