"""Networks as ONNX files or exported PyTorch programs, which run without this library.

An export is a folder with the functions `encoder` and `voting`, the query points in lattice.npy, and
interface.json, which describes their inputs and outputs, the view and the constants. The file of each
function also holds the content of interface.json.
"""

from __future__ import annotations

import io
import json
import logging
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

import nvf_fast
from nvf_fast.camera import REFERENCE_FOCAL, REFERENCE_SIZE, reference_intrinsics, view_intrinsics
from nvf_fast.checkpoint import load_checkpoint
from nvf_fast.joint_definitions import UNIT_SCALE_MM
from nvf_fast.kernels.query_field.reference import query_field
from nvf_fast.model import NVF, FieldValues
from nvf_fast.pipeline import QueryOptions
from nvf_fast.pose import JOINT_NAMES, joint_scores
from nvf_fast.runtime.extras import extra
from nvf_fast.runtime.files import locked, read_path
from nvf_fast.runtime.progress import progress_bar
from nvf_fast.volumes import HAND_VIEW_FILL, HandVolume, RootCube, volume_of

Format = Literal["onnx", "torch"]
SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "torch": ".pt2"}
INTERFACE_FILE, LATTICE_FILE = "interface.json", "lattice.npy"
INTERFACE_VERSION = 1
BALL_MM = 80.0
# Sizes of the example inputs for tracing; they only have to differ from 1 and from each other.
EXAMPLE_SIZES = {"batch": 2, "points": 5}


@dataclass(frozen=True)
class Variable:
    """An input or output of a function: its shape, in which strings stand for any size, and its meaning."""

    shape: tuple[int | str, ...]
    meaning: str
    dtype: str = "float32"


@dataclass(frozen=True)
class Function:
    """A function to export: a module whose `forward` takes the inputs by position."""

    module: nn.Module
    inputs: dict[str, Variable]
    outputs: dict[str, Variable]


def export_checkpoint(
    source: str | Path | None,
    folder: str | Path,
    format: Format = "onnx",
    *,
    step_mm: float = 16.0,
    surface_mm: float = 5.0,
    fraction: float = 0.5,
    progress: bool = False,
) -> None:
    """Export a checkpoint's network as functions of tensors, in float32.

    The exported functions differ from the library by rounding only. The same points vote, and among equal
    weights the point with the lowest index counts.

    Args:
        source: folder, embedded name or hub id of the checkpoint; None is the embedded default.
        folder: folder of the export, which must not exist yet.
        format: "onnx" for ONNX files, which needs the extra `export`, or "torch" for files of `torch.export`.
        step_mm: mm, spacing of the query points in lattice.npy; the functions take any points.
        surface_mm, fraction: as in `PoseEstimator`.
        progress: whether to show a progress bar.

    Raises:
        FileExistsError: the folder exists.
        FileNotFoundError: the checkpoint does not exist.
        ImportError: a package of the extra `export` is missing.
        ValueError: the checkpoint is damaged or a baseline without a field, or an option is out of range.
    """
    folder = read_path("folder", folder)
    if folder.exists():
        raise FileExistsError(f"{folder} already exists: name a new folder for the export")
    if format not in SUFFIXES:
        raise ValueError(f"format must be one of {tuple(SUFFIXES)}, got {format!r}")
    write = _write_onnx if format == "onnx" else _write_program
    if format == "onnx":
        with extra("export", "ONNX files need onnx and onnxscript"):
            import onnx  # noqa: F401
            import onnxscript  # noqa: F401
    model, info = load_checkpoint(source)
    if not isinstance(model, NVF):
        raise ValueError(f"export needs a network with a field, got a {model.config.method!r} baseline")
    model = model.for_inference()
    options = QueryOptions(step_mm, surface_mm, fraction)
    lattice = query_points(model, step_mm)
    functions = exported_functions(model, options)
    names = {name: name + SUFFIXES[format] for name in functions}
    interface = _interface(model, options, info["sha256"], functions, names)
    unfinished = folder.with_name(f".{folder.name}.part")
    with locked(folder.with_name(f".{folder.name}.lock")):
        shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed
        try:
            unfinished.mkdir(parents=True)
            bar = progress_bar(functions.items(), desc="export", unit="file", hidden=not progress)
            for name, function in bar:
                write(traced(function), function, unfinished / names[name], interface)
            np.save(unfinished / LATTICE_FILE, lattice.numpy())
            (unfinished / INTERFACE_FILE).write_text(_text(interface) + "\n", encoding="utf-8")
            unfinished.rename(folder)
        except OSError as error:
            if error.errno is not None and error.filename is None:  # a full disk
                error.filename = str(folder)
            raise
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


def exported_functions(model: NVF, options: QueryOptions) -> dict[str, Function]:
    """The functions `encoder` and `voting` of a network as modules.

    Args:
        model: from `NVF.for_inference`.
        options: of voting.
    """
    config = model.config
    size, hand = config.input_size, config.view == "hand"
    joints = Variable(("batch", config.joints, 3), "joints, mm in the view's frame; NaN where no point votes")
    voters = Variable(("batch",), "number of points that voted", "int64")
    images = Variable(("batch", config.image_channels, size, size), "views, as (x / 255 - 0.5) / 0.5")
    inputs = {"images": images}
    map_size = config.feature_size
    outputs = {"features": Variable(("batch", config.width, map_size, map_size), "feature maps")}
    if not hand:
        lattice = Variable(("points", 3), "query points, mm in the view's frame")
        query = outputs | {"lattice": lattice}
        if config.hand_scale:
            unknown = "; 15 where unknown" if config.scale_optional else ""
            query["hand_scale"] = Variable(("batch",), f"length of bone 9-10, mm{unknown}")
        scores = Variable(("batch", config.joints), "confidence in [0, 1]")
        return {
            "encoder": Function(_ReferenceEncoder(model), inputs, outputs),
            "voting": Function(
                _ReferenceVoting(model, options),
                query,
                {"joints": joints, "scores": scores, "voters": voters},
            ),
        }
    slopes = Variable(("batch",), "tangents of half the views' angles")
    coarse = Variable(("batch", 21, 3), "coarse joints, mm in the view's frame, of the unit hand")
    lattice = Variable(("points", 3), "query points: u and v in [-1, 1], depth from the coarse middle in mm")
    heads = {
        "coarse": coarse,
        "expected_error": Variable(("batch", 21), "expected distance of each joint from the truth, mm"),
        "presence": Variable(("batch",), "probability of a hand"),
        "left": Variable(("batch",), "logit of a left hand, for comparing a view and its mirror image"),
    }
    final = Variable(joints.shape, "joints, mm in the view's frame, of the unit hand; coarse without voters")
    query = outputs | {"coarse": coarse, "slopes": slopes, "lattice": lattice}
    return {
        "encoder": Function(_HandEncoder(model), inputs | {"slopes": slopes}, outputs | heads),
        "voting": Function(_HandVoting(model, options), query, {"joints": final, "voters": voters}),
    }


def query_points(model: NVF, step_mm: float) -> Tensor:
    """The points (N, 3) float32 at which the library queries a network's field, as `voting` takes them."""
    if model.config.view == "hand":
        lattice = HandVolume().lattice(step_mm)
        return torch.cat([lattice.uv, lattice.depths[:, None]], 1)
    nodes = volume_of(model.config).lattice(step_mm)
    return nodes.points(nodes.every(1))


def traced(function: Function) -> ExportedProgram:
    """Trace a function for any batch size and any number of points, with PyTorch operations only."""
    examples = tuple(
        torch.zeros([EXAMPLE_SIZES[n] if isinstance(n, str) else n for n in variable.shape])
        for variable in function.inputs.values()
    )
    sizes = {name: Dim(name) for name in EXAMPLE_SIZES}
    shapes = tuple(
        {axis: sizes[n] for axis, n in enumerate(variable.shape) if isinstance(n, str)}
        for variable in function.inputs.values()
    )
    with torch.no_grad(), _quiet():
        program = torch.export.export(function.module.eval(), examples, dynamic_shapes=shapes)
        return program.run_decompositions(_DECOMPOSITIONS)


class _Part(nn.Module):
    """A function that needs only some modules of a network, so that no other parameters are exported."""

    def __init__(self, model: NVF, *parts: nn.Module) -> None:
        super().__init__()
        self.parts, self._unregistered = nn.ModuleList(parts), (model,)  # the tuple hides it from torch

    @property
    def model(self) -> NVF:
        return self._unregistered[0]


class _HandEncoder(_Part):
    def __init__(self, model: NVF) -> None:
        assert model.heads is not None
        super().__init__(model, model.encoder, model.heads)

    def forward(self, images: Tensor, slopes: Tensor) -> tuple[Tensor, ...]:
        encoding = self.model.encode_hands(images, slopes)
        coarse = encoding.joints(slopes)
        return encoding.features, coarse, encoding.error, encoding.presence.sigmoid(), encoding.left


class _HandVoting(_Part):
    def __init__(self, model: NVF, options: QueryOptions) -> None:
        assert model.heads is not None
        super().__init__(model, model.field, model.heads)
        self.heads, self.options = model.heads, options

    def forward(
        self, features: Tensor, coarse: Tensor, slopes: Tensor, lattice: Tensor
    ) -> tuple[Tensor, Tensor]:
        depths = coarse[..., 2].mean(1)[:, None] + lattice[:, 2]
        points = torch.cat([lattice[:, :2] * (slopes[:, None] * depths)[..., None], depths[..., None]], -1)
        intrinsics = view_intrinsics(slopes, self.model.config.input_size)
        values = self.model.query(features, points, intrinsics, coarse=coarse)
        voted, _, voters = voted_joints(points, values, self.options)
        combined = self.heads.combine(coarse, voted)
        return torch.where((voters > 0)[:, None, None], combined, coarse), voters


class _ReferenceEncoder(_Part):
    def __init__(self, model: NVF) -> None:
        super().__init__(model, model.encoder)

    def forward(self, images: Tensor) -> Tensor:
        return self.model.encode(images)


class _ReferenceVoting(_Part):
    def __init__(self, model: NVF, options: QueryOptions) -> None:
        super().__init__(model, model.field)
        self.options, self.volume = options, volume_of(model.config)

    def forward(
        self, features: Tensor, lattice: Tensor, hand_scale: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        intrinsics = reference_intrinsics(self.model.config.input_size)
        values = self.model.query(features, self.volume.network_points(lattice), intrinsics, hand_scale)
        return voted_joints(lattice, values, self.options)


def voted_joints(points: Tensor, values: FieldValues, options: QueryOptions) -> tuple[Tensor, Tensor, Tensor]:
    """Select voters and cast their votes, as `ops.select_voters` and `ops.cast_votes`, with fixed shapes.

    Args:
        points: (N, 3) or (B, N, 3) float32 mm.
        values: values of the field at the points.
        options: options of voting.

    Returns:
        Joints (B, J, 3) mm, NaN without voters; scores (B, J); number of voters (B,) int64.
    """
    near = values.sdf.abs() < options.surface_mm
    voters = near.sum(1)
    # In float64 and truncated, as Python computes int(voters * fraction).
    counted = (voters.double() * options.fraction).long().clamp(min=1)[:, None, None]
    weight, near = values.weight.mT, near[:, None]
    # Voters of NaN or infinitely negative weight rank last, but before points that do not vote.
    lowest = torch.finfo(weight.dtype).min
    key = torch.where(weight.isnan(), lowest, weight).clamp(min=lowest)
    key = torch.where(near, key, -torch.inf)
    ranked = key.sort(-1, descending=True).values
    threshold = ranked.gather(-1, (counted - 1).expand(-1, key.shape[1], -1))
    above, tie = key > threshold, key == threshold
    first = tie.long().cumsum(-1) <= counted - above.sum(-1, keepdim=True)
    selected = (above | (tie & first)) & near

    weight, direction = torch.where(selected, weight, 0.0), values.direction.transpose(1, 2)
    targets = points.unsqueeze(-3) + (BALL_MM * (1 - weight))[..., None] * direction
    total = weight.sum(-1)
    joints = (weight[..., None] * targets).sum(2) / total[..., None]
    clamped = weight.clamp(min=0)
    squared = (targets - joints[:, :, None]).square().sum(-1)
    spread = ((clamped * squared).sum(-1) / clamped.sum(-1)).sqrt()
    return joints, joint_scores(total / counted[..., 0], spread), voters


def _group_norm_relu(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float = 1e-5, moments: Tensor | None = None
) -> Tensor:
    """The reference of `ops.group_norm_relu` without in-place operations, which a trace must not contain."""
    return torch.group_norm(x, groups, weight, bias, eps).relu()


# Exported functions hold operations of PyTorch instead of this library's.
_DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    torch.ops.nvf_fast.group_norm_relu.default: _group_norm_relu,
    torch.ops.nvf_fast.query_field.default: query_field,
}


def _interface(
    model: NVF, options: QueryOptions, digest: str, functions: dict[str, Function], names: dict[str, str]
) -> dict[str, Any]:
    """The content of interface.json."""
    return {
        "interface_version": INTERFACE_VERSION,
        "nvf_fast": nvf_fast.__version__,
        "sha256": digest,
        "model": model.config.to_dict(),
        "view": _view(model),
        "camera": "x right, y down, z forward; uv1 ~ K @ xyz in px; the first pixel of a row is centred at 0",
        "normalisation": "RGB as (x / 255 - 0.5) / 0.5",
        "units": "mm",
        "joint_names": list(JOINT_NAMES) if model.config.joints == len(JOINT_NAMES) else None,
        "thresholds": {
            "surface_mm": options.surface_mm,
            "fraction": options.fraction,
            "ball_mm": BALL_MM,
            "presence": model.config.presence_threshold,
        },
        "lattice": {"file": LATTICE_FILE, "step_mm": options.step_mm},
        "functions": {
            name: {
                "file": names[name],
                "inputs": {key: vars(variable) for key, variable in function.inputs.items()},
                "outputs": {key: vars(variable) for key, variable in function.outputs.items()},
            }
            for name, function in functions.items()
        },
    }


def _view(model: NVF) -> dict[str, Any]:
    config = model.config
    view: dict[str, Any] = {"size_px": config.input_size, "centre_px": config.input_size / 2}
    if config.view == "hand":
        return view | {"kind": "hand", "fill": HAND_VIEW_FILL, "hand_scale_mm": UNIT_SCALE_MM}
    if isinstance(volume_of(config), RootCube):
        return view | {"kind": "root cube", "side_mm": 2 * RootCube.half_side_mm}
    return view | {"kind": "reference", "focal_px": REFERENCE_FOCAL * config.input_size / REFERENCE_SIZE}


def _write_onnx(program: ExportedProgram, function: Function, path: Path, interface: dict[str, Any]) -> None:
    import onnx

    names: dict[str, Any] = {"input_names": [*function.inputs], "output_names": [*function.outputs]}
    with _quiet():
        converted = torch.onnx.export(program, (), dynamo=True, verbose=False, **names)
    assert converted is not None
    for key, value in interface.items():
        converted.model.metadata_props[key] = value if isinstance(value, str) else _text(value)
    converted.save(path, external_data=False)
    onnx.checker.check_model(str(path), full_check=True)


def _write_program(
    program: ExportedProgram, function: Function, path: Path, interface: dict[str, Any]
) -> None:
    buffer = io.BytesIO()  # PyTorch's own writer ends the process on a full disk
    torch.export.save(program, buffer, extra_files={INTERFACE_FILE: _text(interface)})
    path.write_bytes(buffer.getbuffer())


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence PyTorch about its own deprecations and about torchvision, which nothing here uses."""
    log = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        log.setLevel(level)


def _text(value: Any) -> str:
    return json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False)
