"""Checkpoints: a folder with weights.safetensors and config.json, found by name, path or hub id.

Loading executes no pickled code and is strict: every mismatch raises an error that names it.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import re
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as bytes_from_tensors
from torch.overrides import TorchFunctionMode

from nvf_fast.baselines import Network, build
from nvf_fast.config import NVFConfig
from nvf_fast.model import NVF, check_entries
from nvf_fast.runtime.ambient import unaffected
from nvf_fast.runtime.devices import check_precision, read_device
from nvf_fast.runtime.extras import extra
from nvf_fast.runtime.files import locked, read_json, read_path, remove_unfinished, sync_folder, write_file

SCHEMA_VERSION = 2  # version 1, which has no model_sha256, can be read too
DEFAULTS = ("default",)  # the first embedded one of these is the default
EMBEDDED = Path(__file__).resolve().parent / "weights"
WEIGHTS_FILE = "weights.safetensors"
CONFIG_FILE = "config.json"
CARD_FILE = "README.md"
LARGEST_CONFIG = 2**24  # bytes
LARGEST_WEIGHTS = 2**30  # bytes; the released network's take 2^26
SMALL = 2**20  # values that a network may have beyond one per byte of its file
LOCK_FILE = ".lock"
WAIT_S = 60.0  # for another process that saves into the same folder


def save_checkpoint(
    model: Network,
    path: str | Path,
    training: dict[str, Any] | None = None,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write a checkpoint folder atomically: a killed process leaves either the old or the new checkpoint.

    New weights are stored under a name with their hash until config.json, which holds the hash of the current
    weights, has been replaced; `load_checkpoint` reads that name too.

    Args:
        model: the network.
        path: the folder; it is created with its parents, and its checkpoint is replaced.
        training: metadata of the training, as JSON values; None records no metadata.
        dtype: of the stored weights.

    Raises:
        ValueError: a weight is not finite in `dtype`, and the message names it; or the network is that of an
            estimator, whose layers are folded for inference.
        TypeError: `training` is not serialisable as JSON.
        OSError: the folder cannot be written to, or another process saves there for longer than `WAIT_S`.
    """
    if isinstance(model, NVF) and model.folded:
        raise ValueError(
            "checkpoint: the network of an estimator is folded for inference: save the one it was made from, "
            "which `load_checkpoint` returns"
        )
    state = {}
    for name, tensor in model.state_dict().items():
        state[name] = tensor.detach().to("cpu", dtype).contiguous()
        if not state[name].isfinite().all():
            raise ValueError(f"checkpoint: {name} has values that are not finite in {dtype}")
    weights = bytes_from_tensors(state)
    digest = hashlib.sha256(weights).hexdigest()
    entries = model.config.to_dict()
    config = {
        "schema_version": SCHEMA_VERSION,
        "model": entries,
        "model_sha256": _model_digest(entries),
        "sha256": digest,
        "training": training or {},
    }
    document = _document(config)
    folder = read_path("path", path)
    pending = _pending(folder, digest)
    with locked(folder / LOCK_FILE, wait_s=WAIT_S):
        write_file(pending, weights)
        write_file(folder / CONFIG_FILE, document)
        pending.replace(folder / WEIGHTS_FILE)
        sync_folder(folder)
        for leftover in folder.glob(_pending(folder, "*").name):
            leftover.unlink()
        remove_unfinished(folder)


def record_scores(path: str | Path | None, scores: dict[str, Any]) -> None:
    """Store measured scores in a checkpoint's config.json, as `training.scores`; earlier ones are replaced.

    Args:
        path: as in `resolve`.
        scores: JSON values.

    Raises:
        FileNotFoundError: a file of the checkpoint is missing.
        ValueError: `path` is neither embedded nor a folder (files in the hub's cache must not be changed),
            its config.json is damaged, or a score is not finite.
        OSError: the folder cannot be written to.
    """
    if not (path is None or path in embedded_names() or Path(path).is_dir()):
        raise ValueError(
            f"scores are recorded in the folder of a checkpoint, but {str(path)!r} is not a folder"
        )
    file = resolve(path) / CONFIG_FILE
    with locked(file.with_name(LOCK_FILE), wait_s=WAIT_S):
        info = _read_config(file)
        info["training"] = info["training"] | {"scores": scores}
        write_file(file, _document(info))


@unaffected()
@torch.inference_mode(False)
def load_checkpoint(
    path: str | Path | None, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> tuple[Network, dict[str, Any]]:
    """Read a checkpoint.

    Args:
        path: folder, embedded name or hub id, as in `resolve`; None is the embedded default.
        device: device of the network; None is the CPU.
        dtype: of the encoder, and thus of the features and the field's arithmetic; None is float32. The
            field's parameters stay float32, since its dependence on depth requires that precision.

    Returns:
        The network in evaluation mode, an `NVF` or a baseline, and the entries of config.json:
        schema_version, model, model_sha256, sha256, training.

    Raises:
        FileNotFoundError: the checkpoint does not exist, or one of its files is missing.
        ImportError: a hub id needs huggingface_hub, which is not installed.
        ValueError: the schema version, an entry of the configuration, the hash of the weights or of the
            configuration, a weight's name, shape or dtype, or the size of the file is wrong, a weight is not
            finite, or the device does not exist; the message names the fault. Nothing is allocated for a
            network that the file cannot hold.
        TypeError: `dtype` is not float32, float16 or bfloat16.
    """
    check_precision(dtype or torch.float32)
    device = read_device("cpu" if device is None else device)
    folder = resolve(path)
    if not (folder / CONFIG_FILE).is_file():
        raise FileNotFoundError(f"no checkpoint at {folder}: {CONFIG_FILE} is missing")
    info, file, weights = _read_files(folder)
    try:
        state = tensors_from_bytes(weights)
    except SafetensorError as error:
        raise ValueError(f"{file}: not a safetensors file ({error})") from error
    model = _network(info["model"], folder / CONFIG_FILE, len(weights))
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    check_entries(shapes, state, str(file))
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            raise ValueError(f"{file}: {name} must be floating point, got {tensor.dtype}")
        if not tensor.float().isfinite().all():
            raise ValueError(f"{file}: {name} has values that are not finite")
    model.load_state_dict(state)
    model.encoder.to(dtype or torch.float32)
    return model.to(device).eval(), info


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
    if source is not None and not isinstance(source, str | Path):
        raise TypeError(f"a checkpoint must be a name, a folder or None, got {source!r}")
    if source is None:
        only = names[0] if len(names) == 1 else None
        source = next((name for name in DEFAULTS if name in names), only)
        if source is None:
            raise FileNotFoundError(f"name a checkpoint: the library includes {names}")
    if source in names:
        return EMBEDDED / source
    with suppress(OSError):  # the name may be longer than file names may be
        if source != "" and Path(source).is_dir():  # the empty path is the current folder
            return Path(source)
    repository, _, revision = str(source).partition("@")
    if isinstance(source, Path) or len(repository.split("/")) != 2 or not all(repository.split("/")):
        raise FileNotFoundError(
            f"no checkpoint {str(source)!r}: it is not a folder, a hub id or one of the embedded {names}"
        )
    return _download(repository, revision or None)


def save_hub_folder(
    source: str | Path | None, folder: str | Path, *, license: str | None = None, text: str = ""
) -> None:
    """Write a folder for the hub: a checkpoint's two files and a model card, README.md with a YAML header.

    Args:
        source: the checkpoint, as in `resolve`; its hashes are verified.
        folder: folder to write; it is created with its parents, and existing files are replaced.
        license: identifier of the weights' licence for the header, such as "apache-2.0"; None omits it.
        text: Markdown that follows the generated part of the card: data, errors, limits.

    Raises:
        FileNotFoundError: the checkpoint does not exist.
        ImportError: a hub id needs huggingface_hub, which is not installed.
        ValueError: the checkpoint is damaged.
    """
    checkpoint, folder = resolve(source), read_path("folder", folder)
    model, info = load_checkpoint(checkpoint)
    for name, content in (
        (WEIGHTS_FILE, _weights_file(checkpoint, info["sha256"]).read_bytes()),
        (CONFIG_FILE, _document(info)),
        (CARD_FILE, _model_card(model, info, license, text).encode()),
    ):
        write_file(folder / name, content)


def push_to_hub(
    source: str | Path | None,
    repository: str,
    *,
    license: str | None = None,
    text: str = "",
    private: bool = False,
    revision: str | None = None,
    message: str = "Upload the checkpoint",
) -> str:
    """Upload a checkpoint to the hub, where `nvf_fast.load(repository)` finds it.

    Credentials come from huggingface_hub.

    Args:
        source: the checkpoint, as in `resolve`.
        repository: "owner/name", which is created if it does not exist.
        license, text: as in `save_hub_folder`.
        private: whether a new repository is private.
        revision: branch to upload to; None is the main branch.
        message: message of the commit.

    Returns:
        The address of the commit.

    Raises:
        ImportError: huggingface_hub is not installed.
        FileNotFoundError: the checkpoint does not exist.
        ValueError: the checkpoint is damaged, or the repository is not "owner/name".
    """
    if len(repository.split("/")) != 2 or not all(repository.split("/")):
        raise ValueError(f'repository must be "owner/name", got {repository!r}')
    hub = _hub("uploading a checkpoint")
    with TemporaryDirectory() as folder:
        save_hub_folder(source, folder, license=license, text=text)
        api = hub.HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository, folder_path=folder, revision=revision, commit_message=message
        )
    return str(commit.commit_url)


def _model_card(model: Network, info: dict[str, Any], license: str | None, text: str) -> str:
    """The card of a checkpoint; the values of its YAML header are written as JSON, which is valid YAML."""
    config = model.config
    header: dict[str, Any] = {"library_name": "nvf-fast", "pipeline_tag": "keypoint-detection"}
    header |= {"tags": ["hand-pose", "3d", config.task, config.method]}
    if license is not None:
        header["license"] = license
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in header.items()), "---"]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    title = f"Camera-space hand pose: {config.method} network of {config.view} views"
    lines += ["", f"# {title}", "", "```python", "import nvf_fast", ""]
    lines += ['estimator = nvf_fast.load("OWNER/NAME")  # this repository', "```", ""]
    rows = {
        "task": config.task,
        "encoder": config.encoder,
        "view": f"{config.view}, {config.input_size} x {config.input_size} px",
        "parameters": f"{parameters:,}",
        "weights": f"sha256 {info['sha256']}",
    }
    lines += ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())]
    return "\n".join([*lines, *(["", text.strip()] if text.strip() else [])]) + "\n"


def _hub(purpose: str) -> Any:
    """The package huggingface_hub."""
    with extra("hub", f"{purpose} needs huggingface_hub"):
        return importlib.import_module("huggingface_hub")


def _download(repository: str, revision: str | None) -> Path:
    hub = _hub(f"{repository!r} is not a folder; as a hub id it")
    patterns = [CONFIG_FILE, WEIGHTS_FILE]
    try:
        return Path(hub.snapshot_download(repository, revision=revision, allow_patterns=patterns))
    except (OSError, ValueError) as error:  # no such repository, no access, no network, no name of one
        raise FileNotFoundError(f"no checkpoint {repository!r} from the hub: {error}") from error


class _Budget(TorchFunctionMode):
    """Refusal of parameters beyond a number of values, before they are allocated.

    The meta device would give the shapes first, but importing its functions takes seconds.
    """

    def __init__(self, values: int) -> None:
        super().__init__()
        self._left = values

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.empty:
            shape = args if not args or isinstance(args[0], int) else args[0]
            self._left -= math.prod(shape)
            if self._left < 0:
                raise ValueError("model has more parameters than the file of its weights could hold")
        return function(*args, **(kwargs or {}))


def _network(entries: Any, path: Path, size: int) -> Network:
    """The network of a configuration in a file, whose weights take `size` bytes."""
    try:
        with _Budget(size + SMALL):
            return build(NVFConfig.from_dict(entries))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def _read_files(folder: Path) -> tuple[dict[str, Any], Path, bytes]:
    """config.json, the file of its weights and their bytes, even while another process saves."""
    tried = set[str]()
    while True:
        info = _read_config(folder / CONFIG_FILE)
        try:
            file = _weights_file(folder, info["sha256"])
            if (size := file.stat().st_size) > LARGEST_WEIGHTS:
                raise ValueError(f"{file}: {size} bytes, expected up to {LARGEST_WEIGHTS}")
            weights = file.read_bytes()
            digest = hashlib.sha256(weights).hexdigest()
            if digest != info["sha256"]:
                raise ValueError(f"{file}: sha256 is {digest}, config.json has {info['sha256']}")
        except (FileNotFoundError, ValueError):
            if str(info["sha256"]) in tried:
                raise
            tried.add(str(info["sha256"]))  # a save may have come between the two files
        else:
            return info, file, weights


def _read_config(path: Path) -> dict[str, Any]:
    if (size := path.stat().st_size) > LARGEST_CONFIG:
        raise ValueError(f"{path}: {size} bytes, expected up to {LARGEST_CONFIG}")
    info = read_json(path)
    version = info.get("schema_version") if isinstance(info, dict) else None
    if version not in (1, SCHEMA_VERSION) or isinstance(version, bool):
        raise ValueError(f"{path}: schema_version is {version!r}, this library reads 1 and {SCHEMA_VERSION}")
    expected = {"schema_version", "model", "sha256", "training"}
    if version > 1:
        expected.add("model_sha256")
    if info.keys() != expected:
        unknown, missing = sorted(info.keys() - expected), sorted(expected - info.keys())
        raise ValueError(f"{path}: unknown entries {unknown}, missing entries {missing}")
    if not (isinstance(info["sha256"], str) and re.fullmatch("[0-9a-f]{64}", info["sha256"])):
        raise ValueError(f"{path}: sha256 must be 64 hexadecimal digits, got {info['sha256']!r}")
    if not isinstance(info["training"], dict):
        raise ValueError(f"{path}: training must be an object, got {info['training']!r}")
    if version > 1 and (digest := _model_digest(info["model"])) != info["model_sha256"]:
        raise ValueError(
            f"{path}: model is not as saved: its sha256 is {digest}, model_sha256 is {info['model_sha256']}"
        )
    return info


def _model_digest(entries: dict[str, Any]) -> str:
    """Hash of a model's configuration, independent of the order and the layout of its entries."""
    return hashlib.sha256(json.dumps(entries, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _document(config: dict[str, Any]) -> bytes:
    return json.dumps(config, indent=2, allow_nan=False, ensure_ascii=False).encode() + b"\n"


def _weights_file(folder: Path, digest: str) -> Path:
    """The file of a checkpoint's weights."""
    pending = _pending(folder, digest)  # exists only where a save was interrupted
    file = pending if pending.is_file() else folder / WEIGHTS_FILE
    if not file.is_file():
        raise FileNotFoundError(f"no checkpoint at {folder}: {WEIGHTS_FILE} is missing")
    return file


def _pending(folder: Path, digest: str) -> Path:
    """The file of new weights until config.json holds their hash."""
    return folder / f"weights.{digest[:16]}.safetensors"
