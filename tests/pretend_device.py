"""A simulated device for machines without a GPU: it computes on the CPU, but keeps its tensors apart.

As on a GPU, an operation refuses CPU tensors among those of the device (except tensors without
dimensions and indices), and new tensors are created on the CPU by default. Pinned memory, CUDA graphs and
generators are not supported.

    python tests/pretend_device.py     run every rehearsal; print JSON: name and traceback, or null
"""

from __future__ import annotations

import copy
import json
import math
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils import backend_registration

from nvf_fast import ops, unet
from nvf_fast.baselines import build
from nvf_fast.checkpoint import load_checkpoint
from nvf_fast.config import NVFConfig
from nvf_fast.data.surfaces import MeshHands
from nvf_fast.estimator import PoseEstimator
from nvf_fast.evaluation.predictors import NetworkPredictor
from nvf_fast.evaluation.run import predict
from nvf_fast.field import FieldMLP
from nvf_fast.grid import frustum_grid
from nvf_fast.hand_pipeline import HandPipeline
from nvf_fast.kernels.group_norm_relu import triton as group_norm_relu
from nvf_fast.kernels.query_field import resident
from nvf_fast.kernels.query_field import triton as general
from nvf_fast.kernels.query_field.reference import query_field
from nvf_fast.kernels.select_voters import triton as select_voters
from nvf_fast.model import NVF
from nvf_fast.pipeline import FieldPipeline, QueryOptions, Views
from nvf_fast.runtime.profiling import Profiler
from nvf_fast.synthetic.dataset import SyntheticConfig, SyntheticHands
from nvf_fast.synthetic.rig import built_in_surface
from nvf_fast.training.config import PRESETS
from nvf_fast.training.hand_losses import HandBatch
from nvf_fast.training.images import ImageBatch
from nvf_fast.training.losses import AuxiliaryHead
from nvf_fast.training.objectives import objective_of
from nvf_fast.volumes import FrustumVolume, HandVolume
from tests.hand_cases import CONFIG, hand_network
from tests.reference_cases import reference_network
from tests.sampled_hands import sample_hands
from tests.test_hand_losses import views
from tests.test_unet import SMALL

THERE = "pretend:0"
ROUNDING_MM = 0.01  # other products and sums than on the CPU, in random networks: measured 3e-3
HALF = 2  # bytes of the numbers whose launches are counted
CALLS: list[tuple[Any, tuple[Any, ...]]] = []  # of operations on the device, and their arguments
ALLOCATIONS = {"aten::empty", "aten::empty_like", "aten::new_empty", "aten::empty_strided"}
FROM_ANYWHERE = {"aten::_to_copy", "aten::copy_", "aten::_copy_from"}
CPU_INDICES = {"aten::index", "aten::_unsafe_index", "aten::index_put_", "aten::_index_put_impl_"}


def _convolve_and_rectify(x: Tensor, weight: Tensor, *options: Any) -> Tensor:
    return F.conv2d(x, weight, *options).relu()


def _convolve_add_and_rectify(x: Tensor, weight: Tensor, other: Tensor, _: float, *options: Any) -> Tensor:
    return (F.conv2d(x, weight, *options) + other).relu()


CPU_FORMS: dict[str, Any] = {
    "aten::cudnn_convolution_relu": _convolve_and_rectify,
    "aten::cudnn_convolution_add_relu": _convolve_add_and_rectify,
}


class There(Tensor):
    """A tensor of the simulated device; `here` holds its values."""

    here: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls: type[There], here: Tensor) -> There:
        there = Tensor._make_wrapper_subclass(
            cls,
            here.size(),
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
            device=THERE,
        )
        there.here = here
        return there

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(op, args, kwargs or {})

    def __getitem__(self, index: Any) -> Any:
        return super().__getitem__(_without_lists(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(_without_lists(index), value)


def run(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operation on the CPU values and place its results on the right device."""
    name = op.name().split(".")[0]
    flat, structure = pytree.tree_flatten((args, kwargs))
    there = [value for value in flat if isinstance(value, There)]
    if there and name not in FROM_ANYWHERE:
        indexing = name in CPU_INDICES
        for value in [args[0], *args[2:3]] if indexing else flat:
            if isinstance(value, Tensor) and not isinstance(value, There) and value.dim():
                raise RuntimeError(f"{op}: a tensor {tuple(value.shape)} of the CPU among the device's")
    if there or torch.device(kwargs.get("device") or "cpu").type == "pretend":
        CALLS.append((op, args))
    op = CPU_FORMS.get(name, op)
    values = [value.here if isinstance(value, There) else value for value in flat]
    args, kwargs = pytree.tree_unflatten(values, structure)
    if name == "aten::_copy_from":
        args[1].copy_(args[0])
        return next(value for value in flat if getattr(value, "here", value) is args[1])
    stays = bool(there)
    if kwargs.get("device") is not None:
        stays = torch.device(kwargs["device"]).type == "pretend"
        kwargs = kwargs | {"device": torch.device("cpu")}
    if name == "aten::copy_":
        stays = isinstance(flat[0], There)
    kwargs.pop("pin_memory", None)
    result = op(*args, **kwargs)
    if name == "aten::_to_copy" and result.data_ptr() == args[0].data_ptr():
        result = result.clone()
    known = {id(value.here): value for value in there}

    def placed(value: Any) -> Any:
        if id(value) in known:
            return known[id(value)]
        return There(value) if stays and isinstance(value, Tensor) else value

    return pytree.tree_map(placed, result)


def install() -> torch.library.Library:
    """Register the device with PyTorch for the lifetime of the returned library."""

    class Module(backend_registration._DummyBackendModule):
        def get_amp_supported_dtype(self) -> list[torch.dtype]:
            return [torch.bfloat16, torch.float16]

    backend_registration._setup_privateuseone_for_python_backend("pretend", backend_module=Module())
    library = torch.library.Library("_", "IMPL")
    library.fallback(lambda op, *args, **kwargs: run(op, args, kwargs), "PrivateUse1")
    # Tensors that PyTorch creates from lists and ranges in C++ are created on the CPU first; those of lists
    # are then copied, as to a GPU.
    torch.tensor = _by_way_of_the_cpu(torch.tensor, Tensor.to)
    for name in ("arange", "linspace", "eye"):
        setattr(torch, name, _by_way_of_the_cpu(getattr(torch, name), lambda made, _: There(made)))
    as_tensor = torch.as_tensor

    def as_tensor_by_way_of_the_cpu(data: Any, dtype: Any = None, device: Any = None) -> Tensor:
        made = data if isinstance(data, Tensor) else as_tensor(data)
        return made.to(device=device or made.device, dtype=dtype or made.dtype)

    def new_tensor(self: Tensor, data: Any, dtype: Any = None, device: Any = None) -> Tensor:
        return torch.tensor(data, dtype=dtype or self.dtype).to(device or self.device)

    torch.as_tensor, Tensor.new_tensor = as_tensor_by_way_of_the_cpu, new_tensor
    return library


def rehearsals() -> dict[str, Callable[[], None]]:
    """Return the computations to compare between the device and the CPU, by name."""
    found: dict[str, Callable[[], None]] = {"meshes": _meshes}
    for search, step in (("dense", 16.0), ("guided", 16.0), ("octree", 8.0)):
        found[f"estimator {search}"] = lambda search=search, step=step: _estimator(search, step)
    for side in ("left", None):
        for encoder in ("unet", "hourglass"):
            found[f"hand view {encoder} {side}"] = partial(_hand_view, side, encoder)
    for method in ("nvf", "holistic", "dense"):
        for task in ("camera-space", "root-relative"):
            found[f"evaluation {method} {task}"] = lambda method=method, task=task: _evaluate(method, task)
        for preset in ("camera_space", "relative_freihand", "small")[: 3 if method == "nvf" else 2]:
            found[f"training {method} {preset}"] = lambda method=method, preset=preset: _train(method, preset)
    for preset in ("default", "paper"):
        found[f"training hand views {preset}"] = lambda preset=preset: _train_on_hand_views(preset)
    found["launches of the released network"] = _launches_of_the_released_network
    found["launches of the default network"] = _launches_of_the_default_network
    found["refusal"] = _refusal
    return found


def launches() -> Counter[str]:
    """Launches of the calls so far, by name, if they ran on a GPU.

    Views take none, norms of large maps two, selections from long rows six, and convolutions one more for
    their bias.
    """
    found: Counter[str] = Counter()
    for op, args in CALLS:
        name = op.name().split(".")[0]
        view = any(
            argument.alias_info is not None and not argument.alias_info.is_write
            for argument in op._schema.arguments
        )
        if name == "nvf_fast::group_norm_relu":
            batch, channels, height, width = args[0].shape
            measured = len(args) > 5 and args[5] is not None
            small = group_norm_relu.small_tiling(batch, channels, args[3], height * width, HALF)
            found[name] += 1 if measured or small is not None else 2
        elif name == "nvf_fast::place_hands":
            found[name] += 2
        elif name == "nvf_fast::select_voters":
            found[name] += 1 if args[0].shape[1] <= select_voters._SHORT else 6
        elif name == "aten::convolution":
            found[name] += 1
            found["bias"] += args[2] is not None
        elif not view and name not in (ALLOCATIONS | {"aten::_unsafe_view"}):
            found[name] += 1
    return found


class _LayerKernel:
    """Stand-in for `evaluate_layer`, as an operation in CALLS, whose last layer gives stored results."""

    _schema = SimpleNamespace(arguments=())

    def __init__(self, sdf: Tensor, votes: Tensor) -> None:
        self._results = sdf, votes

    def name(self) -> str:
        return "evaluate_layer"

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return self._launch

    def _launch(self, *given: Any, LAST: bool, **_: Any) -> None:
        CALLS.append((self, ()))
        if LAST:
            for place, values in zip(given[4:6], self._results, strict=True):
                place.here.copy_(values)


@torch.no_grad()
def _launches_of_the_released_network() -> None:
    """From the normalised view to the packed estimate, with a sphere for the field."""
    torch.manual_seed(0)
    model = NVF(NVFConfig()).for_inference()
    model.encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.randn(1, 3, 224, 224).contiguous(memory_format=torch.channels_last)
    scale, expected = torch.tensor([30.0]), model.encode(images)
    points = frustum_grid(16.0)
    sdf = (points - torch.tensor([20.0, -10.0, 600.0])).norm(dim=1) - 60
    votes = torch.randn(1, len(points), 21, 4)
    near = sdf.abs() < 5
    count = near.sum(0, keepdim=True).int()
    voted, *_ = ops.cast_votes(points[None, near], votes[:, near], count)
    encoder: list[tuple[Tensor, Counter[str]]] = []

    def project_maps(features: There, *given: Any) -> Tensor:
        encoder.append((features.here, launches()))
        return projected(features, *given)

    with pytest.MonkeyPatch.context() as patch:
        projected = general.project_maps
        patch.setattr(general, "project_maps", project_maps)
        patch.setattr(general, "evaluate_layer", _LayerKernel(sdf, votes.flatten(2)))
        for name in ("locate_points", "store_geometry", "make_tiles"):
            patch.setattr(general, name, defaultdict(lambda: lambda *_, **__: None))
        options, profiler = QueryOptions(), Profiler(torch.device("cpu"))
        query = replace(options, backend="triton").query(model.to(THERE))
        pipeline = FieldPipeline(model, FrustumVolume(), options, profiler, query)
        views = Views(images.to(THERE), scale.to(THERE))
        pipeline(views)  # locates the grid
        encoder.clear()
        CALLS.clear()
        estimates = pipeline(views)
        found, packed = launches(), estimates.rows.cpu()
    ((features, of_encoder),) = encoder
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-4)
    assert of_encoder["aten::convolution"] == 111 and of_encoder["nvf_fast::join_branches"] == 38, of_encoder
    assert of_encoder.total() <= 281, of_encoder
    torch.testing.assert_close(packed[:, :63], voted.flatten(1), rtol=0, atol=1e-2)
    assert packed[0, -4] == count > 100 and packed[0, -3] == len(points) == 28_351, packed
    kept, raw = estimates.votes[0]
    assert torch.equal(kept[:count].cpu(), points[near]) and torch.equal(raw[:count].cpu(), votes[0, near])
    assert found["evaluate_layer"] == 4 and found["nvf_fast::cast_votes"] == 1, found
    assert found.total() <= 313, found


class _FieldKernel:
    """Stand-in for the fused field's kernel, as an operation in CALLS."""

    _schema = SimpleNamespace(arguments=())

    def __init__(self, field: FieldMLP) -> None:
        self._field = field

    def name(self) -> str:
        return "evaluate_resident"

    def launch(self, maps: Any, places: Any, layers: Any, near: float, sdf: There, votes: There) -> None:
        CALLS.append((self, ()))
        widths = [len(bias) for bias in self._field.biases]
        found = query_field(
            maps.features.here.permute(0, 3, 1, 2),
            places.points.here,
            places.intrinsics.here,
            None,
            list(self._field.weights),
            list(maps.bias.here[:, : sum(widths)].split(widths, 1)),
            places.centres.here,
            image_size=places.image_size,
        )
        sdf.here.copy_(found[0])
        votes.here.copy_(found[1].masked_fill((found[0].abs() >= near)[..., None, None], math.nan))


@torch.no_grad()
def _launches_of_the_default_network() -> None:
    """From the normalised view, which is one launch, to the packed estimate."""
    network, _ = load_checkpoint(None, "cpu")
    model = cast(NVF, network).for_inference()
    views = Views(torch.randn(2, 3, 128, 128), slopes=torch.tensor([0.2, 0.3]))
    options, profiler = QueryOptions(surface_mm=20.0), Profiler(torch.device("cpu"))
    expected = HandPipeline(model, HandVolume(), options, profiler)(views).rows
    with pytest.MonkeyPatch.context() as patch:
        kernel = _FieldKernel(copy.deepcopy(model.field))
        patch.setattr(resident, "_launch", kernel.launch)
        patch.setattr(resident, "supports", lambda *_: True)
        patch.setattr(unet, "_fuses", lambda *_: True)
        query = replace(options, backend="triton").query(model.to(THERE))
        pipeline = HandPipeline(model, HandVolume(), options, profiler, query)
        there = Views(views.images.to(THERE), slopes=views.slopes.to(THERE))  # type: ignore[union-attr]
        CALLS.clear()
        packed = pipeline(there).rows
        found = launches()
    assert len(pipeline.lattice) <= select_voters._SHORT, "one launch"
    torch.testing.assert_close(packed.cpu(), expected, rtol=1e-4, atol=1e-3)
    assert packed.cpu()[:, -4].min() > 10, "voters"
    assert found["evaluate_resident"] == found["nvf_fast::select_voters"] == 1, found
    assert found["nvf_fast::cast_votes"] == found["nvf_fast::pack_poses"] == 1, found
    assert 1 + found.total() <= 34, found  # 25 of them convolutions and merges of the U-Net


def _refusal() -> None:
    with pytest.raises(RuntimeError, match="of the CPU among"):
        torch.ones(3, device=THERE) + torch.ones(3)


def _meshes() -> None:
    hands = _hands(1)
    points = hands.vertices[:, ::40] + 3
    rays = torch.zeros_like(points), points / points.norm(dim=-1, keepdim=True)
    there = hands.to(THERE)
    assert there.sample_surface(20).device.type == "pretend"
    assert torch.equal(there.signed_distance(points.to(THERE)).cpu(), hands.signed_distance(points))
    assert torch.equal(there.first_hit(*(ray.to(THERE) for ray in rays)).cpu(), hands.first_hit(*rays))


def _estimator(search: Any, step: float) -> None:
    model = reference_network(nearness=1.0)
    images = [*np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)]
    camera = np.array([[480.0, 0, 112], [0, 480, 112], [0, 0, 1]])
    poses = [
        PoseEstimator(model, step, search=search, device=device)(images, camera, _hands(2).hand_scale)
        for device in ("cpu", THERE)
    ]
    assert poses[0].valid.all()
    np.testing.assert_allclose(poses[0].joints, poses[1].joints, rtol=0, atol=ROUNDING_MM)


def _hand_view(side: Any, encoder: Any) -> None:
    model = hand_network(replace(CONFIG, encoder=encoder, stem=8, stacks=2, depth=1, groups=4))
    images = torch.randint(256, (2, 60, 80, 3), dtype=torch.uint8).numpy()
    camera = np.array([[120.0, 0, 40], [0, 120, 30], [0, 0, 1]])
    boxes = [(10, 10, 50, 50), (30, 20, 60, 45)]
    poses = [
        PoseEstimator(model, device=device)(images, camera, box=boxes, side=side, return_votes=True)
        for device in ("cpu", THERE)
    ]
    assert poses[0].valid.all() and poses[0].side == poses[1].side
    np.testing.assert_allclose(poses[0].joints, poses[1].joints, rtol=0, atol=1e-4)
    np.testing.assert_allclose(poses[0].expected_error, poses[1].expected_error, rtol=0, atol=1e-4)


def _evaluate(method: Any, task: Any) -> None:
    torch.manual_seed(0)
    network = build(_tiny(NVFConfig(hand_scale=False, method=method, task=task)))
    images = _synthetic()
    here = predict(NetworkPredictor(PoseEstimator(network)), images)
    there = predict(NetworkPredictor(PoseEstimator(network.to(THERE))), images)
    assert here is not None and there is not None
    for setting, predictions in here.predictions.items():
        found = there.predictions[setting].joints
        np.testing.assert_allclose(predictions.joints, found, rtol=0, atol=ROUNDING_MM)


@cache
def _hands(count: int) -> MeshHands:
    return sample_hands(count, torch.Generator().manual_seed(0), surface=built_in_surface(10.0))


@cache
def _synthetic() -> SyntheticHands:
    return SyntheticHands(SyntheticConfig(3, seed=5, size=64))


def _train(method: Any, preset: str) -> None:
    config = PRESETS[preset]()
    config = replace(config, model=_tiny(replace(config.model, method=method)))
    images = ImageBatch(
        torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8),
        _hands(2),
    )
    if config.model.task == "root-relative":
        images = images._replace(hands=images.hands.translated(-images.hands.joints[:, 0]))
    losses = []
    for device in ("cpu", THERE):
        torch.manual_seed(0)
        network = build(config.model).to(device)
        auxiliary = AuxiliaryHead(config.model.width).to(device) if config.losses.auxiliary_weight else None
        objective = objective_of(config, torch.device(device), torch.channels_last)
        batch = objective.batch([(images, torch.Generator().manual_seed(1))])
        terms = objective.losses(network, auxiliary, batch)
        terms["loss"].backward()
        assert {p.grad.device for p in network.parameters() if p.grad is not None} == {torch.device(device)}
        losses.append(terms["loss"].item())
    assert losses[0] == losses[1] > 0, losses


def _train_on_hand_views(preset: str) -> None:
    """Losses and gradients, without copies from the CPU or reading values, which no CUDA graph can hold."""
    config = PRESETS[preset]()
    model = replace(SMALL, encoder=config.model.encoder, stem=8, stacks=2, depth=1, groups=4)
    optimisation = replace(config.optimisation, precision="float32")
    config = replace(config, model=model, optimisation=optimisation)
    losses = []
    for device in ("cpu", THERE):
        torch.manual_seed(0)
        network = build(config.model).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        batch = HandBatch(*(each.to(device) for each in HandBatch.of(views(4))))
        objective = objective_of(config, torch.device(device), torch.channels_last)
        CALLS.clear()
        terms = objective.losses(network, None, batch)
        terms["loss"].backward()
        calls = CALLS.copy()
        losses.append(terms["loss"].item())
    read = {op.name() for op, _ in calls} & {"aten::_local_scalar_dense", "aten::nonzero"}
    copied = [op for op, args in calls if any(type(each) is Tensor and each.dim() for each in args)]
    assert not read and not copied, (read, copied)
    assert losses[0] == losses[1] > 0, losses


def _tiny(config: NVFConfig) -> NVFConfig:
    return replace(
        config, input_size=64, stem=16, width=32, widen=16, stacks=1, depth=2, groups=8, hidden=(32, 16)
    )


def _without_lists(index: Any) -> Any:
    if isinstance(index, tuple):
        return tuple(map(_without_lists, index))
    return torch.tensor(index) if isinstance(index, list | range) else index


def _by_way_of_the_cpu(
    function: Callable[..., Tensor], place: Callable[[Tensor, Any], Tensor]
) -> Callable[..., Tensor]:
    def made(*args: Any, device: Any = None, **options: Any) -> Tensor:
        tensor = function(*args, **options)
        return tensor if torch.device(device or "cpu").type == "cpu" else place(tensor, device)

    return made


def main() -> None:
    torch.set_num_threads(1)
    library = install()
    failures: dict[str, str | None] = {}
    for name, rehearse in rehearsals().items():
        try:
            rehearse()
            failures[name] = None
        except Exception:
            failures[name] = traceback.format_exc(limit=-6)
    del library
    print(json.dumps(failures))


if __name__ == "__main__":
    main()
