"""Pipelines: runs without synchronisation, and the transfer of estimates."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

import nvf_fast.pipeline
from nvf_fast.config import NVFConfig
from nvf_fast.hand_pipeline import HandPipeline
from nvf_fast.kernels.cast_votes import triton as cast_votes
from nvf_fast.kernels.query_field import triton as query_field
from nvf_fast.kernels.select_voters import triton as select_voters
from nvf_fast.model import NVF
from nvf_fast.pipeline import FieldPipeline, PackedEstimates, QueryOptions, Results, Views, blank_row
from nvf_fast.runtime.profiling import Profiler
from nvf_fast.volumes import FrustumVolume, HandVolume

SMALL = NVFConfig(input_size=64, stem=16, width=32, stacks=2, hidden=(64, 32), scale_optional=True)
HAND = NVFConfig(
    input_size=64, width=16, hidden=(32, 16), hand_scale=False, encoder="unet", view="hand",
    channels=(8, 8, 16, 16, 24), pose_code=8,
)  # fmt: skip
MAP_SIZE = (SMALL.feature_size, SMALL.feature_size)


class NoHostTransfers(TorchFunctionMode):
    """Refuse copies from pageable memory: tensors made from Python lists, numbers written at indices."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", "")
        assert name not in ("tensor", "as_tensor", "from_numpy", "new_tensor", "tolist", "item"), name
        if name == "__setitem__":
            indices = args[1] if isinstance(args[1], tuple) else (args[1],)
            sliced = all(isinstance(index, slice) for index in indices)
            assert isinstance(args[2], Tensor) or sliced, "a number is written at indices"
        return function(*args, **kwargs or {})


@contextmanager
def no_synchronisation() -> Iterator[None]:
    """Run on fake tensors, so that reading a value or a data-dependent count raises."""
    with FakeTensorMode(allow_non_fake_inputs=True), NoHostTransfers(), torch.no_grad():
        yield


class ShapesOnly:
    """Stand-in for `ops.FieldQuery` that returns tensors of the right shapes."""

    def locate(self, points: Tensor, intrinsics: Tensor, map_size: tuple[int, int], *_: Tensor) -> Tensor:
        return points

    def project(self, features: Tensor, hand_scale: Tensor | None, *_: Any) -> Tensor:
        return features

    def image_maps(self, features: Tensor, image: int) -> Tensor:
        return features[image : image + 1]

    def sample(self, features: Tensor, points: Tensor) -> Any:
        return SimpleNamespace(sdf=points.new_empty(len(features), points.shape[-2]))

    def votes(self, samples: Any, indices: Tensor) -> Tensor:
        return samples.sdf.new_empty(*indices.shape, 21, 4)

    def written_votes(self, samples: Any) -> None:
        return None

    def evaluate(self, features: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        sdf = points.new_empty(len(features), points.shape[-2])
        return sdf, sdf.new_empty(*sdf.shape, 21, 4)


@pytest.mark.parametrize(
    ("search", "step", "before"),
    [("dense", 16, False), ("octree", 8, False), ("guided", 16, False), ("guided", 8, True)],
)
def test_dense_and_guided_runs_do_not_synchronise(search: Any, step: float, before: bool) -> None:
    model = NVF(SMALL).eval().requires_grad_(False)
    profiler = Profiler(torch.device("cpu"))
    query: Any = ShapesOnly()
    pipeline = FieldPipeline(model, FrustumVolume(), QueryOptions(step, search=search), profiler, query)
    for stride in (1, 2, 4):  # computed once, before recording
        pipeline.every(stride, MAP_SIZE)
    with no_synchronisation():
        images = torch.zeros(2, 3, SMALL.input_size, SMALL.input_size)
        scale, previous = torch.full((2,), 30.0), torch.zeros(2, 21, 3) if before else None
        packed = pipeline(Views(images, scale, previous)).rows
        assert packed.shape == (2, 110)


def test_kept_places_are_complete_for_every_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stream that locates points ends its launches before any other reads them, and once only."""
    log: list[str] = []

    class Located(ShapesOnly):
        def locate(self, *given: Any) -> Any:
            log.append("locate")
            return super().locate(*given)

    monkeypatch.setattr(nvf_fast.pipeline, "finish_launches", lambda device: log.append("finish"))
    query: Any = Located()
    model, profiler = NVF(SMALL).eval(), Profiler(torch.device("cpu"))
    pipeline = FieldPipeline(model, FrustumVolume(), QueryOptions(32.0), profiler, query)
    for _ in range(3):
        assert len(list(pipeline.every(1, MAP_SIZE))) == 1
    assert log == ["locate", "finish"]


@pytest.mark.parametrize("side_known", [True, False])
def test_hand_view_runs_do_not_synchronise(side_known: bool) -> None:
    model = NVF(HAND).for_inference()
    query: Any = ShapesOnly()
    pipeline = HandPipeline(model, HandVolume(), QueryOptions(), Profiler(torch.device("cpu")), query)
    with no_synchronisation():
        images = torch.zeros(2 if side_known else 4, 3, HAND.input_size, HAND.input_size)
        packed = pipeline(Views(images, slopes=torch.full((2,), 0.2))).rows
        assert packed.shape == (2, 110)


def test_detects_synchronisation() -> None:
    reads: list[Callable[[Tensor], Any]] = [
        lambda x: x.nonzero(),
        lambda x: bool(x.any()),
        lambda x: x[x > 0],
        lambda x: x.sum().item(),
        lambda x: torch.tensor([1.0]),
        lambda x: x.__setitem__(torch.zeros(2, dtype=torch.int64), 1.0),
        lambda x: x.__setitem__(1, 1.0),
    ]
    for read in reads:
        with pytest.raises((RuntimeError, AssertionError)), no_synchronisation():
            read(torch.zeros(3))


class Unlaunched:
    """A kernel whose launches are recorded but not run."""

    def __init__(self) -> None:
        self.launches: list[tuple[int, ...]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *_, **__: self.launches.append(grid)


def test_kernel_launchers_do_not_synchronise(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = {}
    for module, names in (
        (query_field, ("locate_points", "store_geometry", "make_tiles", "evaluate_layer")),
        (select_voters, ("count_marked", "write_indices")),
        (cast_votes, ("vote",)),
    ):
        for name in names:
            kernels[name] = Unlaunched()
            monkeypatch.setattr(module, name, kernels[name])
    model = NVF(SMALL)
    weights, biases, intrinsics = (
        list(model.field.weights),
        list(model.field.biases),
        model.reference_intrinsics,
    )
    with no_synchronisation():
        layers = query_field.pack_layers(weights, biases, SMALL.width, torch.float16)
        places = query_field.locate(torch.zeros(5000, 3), intrinsics, 64, MAP_SIZE, layers)
        maps = query_field.project_maps(torch.zeros(2, 32, 16, 16).half(), torch.zeros(2), layers)
        samples = query_field.sample(maps, places, layers)
        assert samples.sdf.shape == (2, 5000)
        assert kernels["evaluate_layer"].launches[-1][1] == 2, "images share the tiles"
        indices, counts, _ = select_voters.select_voters(samples.sdf, 5.0, 300)
        votes = query_field.votes(samples, indices, layers)
        assert votes.shape == (2, 300, 21, 4)
        joints, _, _ = cast_votes.cast_votes(torch.zeros(2, 300, 3), votes, counts)
        assert joints.shape == (2, 21, 3)
    assert all(kernel.launches for kernel in kernels.values())


def test_estimates_survive_their_transfer() -> None:
    torch.manual_seed(0)
    joints, scores = torch.randn(2, 21, 3), torch.rand(2, 21)
    voters = torch.tensor([0, 2**24 - 1], dtype=torch.int32)
    evaluated = torch.tensor([1_882_292, 7], dtype=torch.int32)
    needs_retry = torch.tensor([True, False])
    estimates = PackedEstimates.of(blank_row(21), joints, scores, voters, needs_retry, [], evaluated)
    results = Results.unpacked(estimates.rows.numpy())
    for got, expected in (
        (results.joints, joints),
        (results.scores, scores),
        (results.errors, torch.full((2, 21), torch.nan)),
        (results.voters, voters),
        (results.points_evaluated, evaluated),
        (results.presence, torch.ones(2)),
        (results.left, torch.tensor([False, False])),
        (results.needs_retry, needs_retry),
    ):
        torch.testing.assert_close(torch.from_numpy(got), expected, rtol=0, atol=0, equal_nan=True)
