"""ops: registration, shape inference, compilation, dispatch, and error messages."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_flatten, tree_unflatten
from triton.runtime.jit import KernelInterface

from nvf_fast import ops
from tests.kernel_cases import FieldCase, FieldInputs, field_inputs
from tests.sanitize import OPERATIONS
from tests.test_merge_maps import CASES as MERGES
from tests.test_merge_maps import arguments as merge_arguments
from tests.test_network_views import batch as view_arguments
from tests.test_pack_poses import arguments as pose_arguments
from tests.test_place_hands import CASES as PLACED
from tests.test_place_hands import arguments as place_arguments
from tests.test_pool_maps import CASES as POOLED
from tests.test_pool_maps import arguments as pool_arguments

CASE = FieldCase(2, 40, 12, (6, 8), (48, 32))
ROOT = Path(__file__).resolve().parent.parent


def field_arguments(device: str = "cpu") -> tuple:
    return tuple(field_inputs(CASE, device=device))[:6]


def centred_inputs(device: str = "cpu") -> FieldInputs:
    return field_inputs(CASE._replace(hand_scale=False, centred=True), device=device)


def norm_arguments(device: str = "cpu") -> tuple[Tensor, Tensor, Tensor, int]:
    x = torch.randn(2, 12, 6, 8, device=device).contiguous(memory_format=torch.channels_last)
    return x, *torch.randn(2, 12, device=device), 4


def vote_arguments() -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(2, 9, 3), torch.rand(2, 9, 5, 4), torch.tensor([3, 11], dtype=torch.int32)


def mesh_arguments(device: str = "cpu") -> tuple[Tensor, Tensor]:
    vertices = torch.tensor([[0.0, 0, 0], [4, 0, 0], [0, 4, 0], [0, 0, 4]], device=device)
    faces = torch.tensor([[0, 2, 1], [0, 1, 3], [1, 2, 3], [2, 0, 3]], device=device)
    return torch.stack([vertices, vertices + 1]), faces


def distance_arguments(device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    return *mesh_arguments(device), 3 * torch.rand(2, 20, 3, device=device)


def ray_arguments(device: str = "cpu") -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return *mesh_arguments(device), *torch.randn(2, 2, 20, 3, device=device)


def field_argument(name: str, value: object) -> Callable[[], object]:
    """Return a call of query_field with one argument replaced."""
    names = ("features", "points", "intrinsics", "hand_scale", "weights", "biases")
    return lambda: ops.query_field(**(dict(zip(names, field_arguments(), strict=True)) | {name: value}))


def centred_argument(**changes: object) -> Callable[[], object]:
    """Return a call of query_field with centres and some arguments replaced."""
    return lambda: ops.query_field(**(centred_inputs()._asdict() | changes))


def norm_argument(name: str, value: object) -> Callable[[], object]:
    """Return a call of group_norm_relu with one argument replaced."""
    names = ("x", "weight", "bias", "groups")
    return lambda: ops.group_norm_relu(**(dict(zip(names, norm_arguments(), strict=True)) | {name: value}))


def vote_argument(name: str, value: object) -> Callable[[], object]:
    """Return a call of cast_votes with one argument replaced."""
    names = ("points", "votes", "counts")
    return lambda: ops.cast_votes(**(dict(zip(names, vote_arguments(), strict=True)) | {name: value}))


def distance_argument(name: str, value: object) -> Callable[[], object]:
    """Return a call of mesh_distance with one argument replaced."""
    names = ("vertices", "faces", "points")
    return lambda: ops.mesh_distance(**(dict(zip(names, distance_arguments(), strict=True)) | {name: value}))


def ray_argument(name: str, value: object) -> Callable[[], object]:
    """Return a call of ray_mesh with one argument replaced."""
    names = ("vertices", "faces", "origins", "directions")
    return lambda: ops.ray_mesh(**(dict(zip(names, ray_arguments(), strict=True)) | {name: value}))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_opcheck(device: str) -> None:
    """PyTorch's own checks of schema, fake tensors, autograd registration and AOT dispatch."""
    x, *rest = norm_arguments(device)
    for maps in (x, x.contiguous(), x.transpose(2, 3)):
        torch.library.opcheck(torch.ops.nvf_fast.group_norm_relu, (maps, *rest, 1e-5))
    query = torch.ops.nvf_fast.query_field
    torch.library.opcheck(query, (*field_arguments(device), None), {"image_size": 224})
    centred = centred_inputs(device)
    torch.library.opcheck(query, (*centred[:6], centred.centres), {"image_size": 224})
    torch.library.opcheck(torch.ops.nvf_fast.compact, (torch.randn(3, 50, device=device) < 0.5, 10))
    torch.library.opcheck(torch.ops.nvf_fast.select_voters, (torch.randn(3, 50, device=device), 0.5, 10))
    votes = (argument.to(device) for argument in vote_arguments())
    options = {"ball_mm": 80.0, "fraction": 0.5}
    torch.library.opcheck(torch.ops.nvf_fast.cast_votes, tuple(votes), options)
    torch.library.opcheck(torch.ops.nvf_fast.mesh_distance, distance_arguments(device))
    torch.library.opcheck(torch.ops.nvf_fast.ray_mesh, ray_arguments(device))
    rows, pixels, _ = view_arguments(["averaged", "fisheye"], 3)
    for mirrored, dtype in ((True, torch.float16), (False, torch.float32)):
        torch.library.opcheck(torch.ops.nvf_fast.network_views, (rows, [pixels], 30, 3, mirrored, dtype))
    torch.library.opcheck(torch.ops.nvf_fast.pack_poses, pose_arguments(2))
    torch.library.opcheck(torch.ops.nvf_fast.merge_maps, tuple(merge_arguments(MERGES["odd"])))
    torch.library.opcheck(torch.ops.nvf_fast.pool_maps, tuple(pool_arguments(POOLED["odd"])))
    for case in PLACED.values():
        torch.library.opcheck(torch.ops.nvf_fast.place_hands, tuple(place_arguments(case).values()))


def test_compiles_into_one_graph() -> None:
    def pose(
        features: Tensor, points: Tensor, intrinsics: Tensor, scale: Tensor, weights: list, biases: list
    ) -> Tensor:
        features = ops.group_norm_relu(features, torch.ones(12), torch.zeros(12), 3)
        sdf, votes = ops.query_field(features, points, intrinsics, scale, weights, biases)
        indices, counts, _ = ops.select_voters(sdf, 9.0, 16)
        rows = indices.clamp(min=0)[..., None]
        voters = points.gather(1, rows.expand(-1, -1, 3))
        votes = votes.flatten(2).gather(1, rows.expand(-1, -1, 84)).unflatten(2, (21, 4))
        return ops.cast_votes(voters, votes, counts)[0]

    arguments = field_arguments()
    with torch.no_grad():
        compiled = torch.compile(pose, fullgraph=True, backend="aot_eager")(*arguments)
        torch.testing.assert_close(compiled, pose(*arguments))


def test_meshes_compile_into_one_graph() -> None:
    def both(vertices: Tensor, faces: Tensor, origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        t, _ = ops.ray_mesh(vertices, faces, origins, directions)
        return t, ops.mesh_distance(vertices, faces, origins)

    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")(*(arguments := ray_arguments()))
    for got, expected in zip(compiled, both(*arguments), strict=True):
        assert torch.equal(got, expected)


def test_exports() -> None:
    class Distance(torch.nn.Module):
        def forward(self, features: Tensor, points: Tensor, intrinsics: Tensor) -> Tensor:
            return ops.query_field(features, points, intrinsics, None, weights, biases)[0]

    features, points, intrinsics, _, weights, biases = field_arguments()
    program = torch.export.export(Distance(), (features, points, intrinsics))
    assert "nvf_fast.query_field" in str(program.graph)
    assert torch.equal(
        program.module()(features, points, intrinsics), Distance()(features, points, intrinsics)
    )


def test_gradients_use_the_differentiable_form() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    features, *rest = field_arguments(device)
    sdf, votes = ops.query_field(features.requires_grad_(), *rest)
    assert sdf.requires_grad and votes.requires_grad
    with torch.no_grad():
        assert not ops.query_field(features, *rest)[0].requires_grad
    centred = centred_inputs(device)
    centred.biases[0].requires_grad_()
    assert ops.query_field(**centred._asdict())[0].requires_grad
    with pytest.raises(RuntimeError, match="no backward"):
        ops.query_field(features, *rest, backend="triton")
    x, weight, *rest = norm_arguments(device)
    assert ops.group_norm_relu(x, weight.requires_grad_(), *rest).requires_grad
    with torch.no_grad():
        assert not ops.group_norm_relu(x, weight, *rest).requires_grad
    with pytest.raises(RuntimeError, match="no backward"):
        ops.group_norm_relu(x, weight, *rest, backend="triton")
    points, votes, counts = (argument.to(device) for argument in vote_arguments())
    assert ops.cast_votes(points, votes.requires_grad_(), counts)[0].requires_grad
    with pytest.raises(RuntimeError, match="no backward"):
        ops.cast_votes(points, votes, counts, backend="triton")


def test_no_gradient_is_dropped() -> None:
    vertices, faces, *rays = ray_arguments()
    with pytest.raises(RuntimeError, match=r"ray_mesh has no gradient; use torch\.no_grad"):
        ops.ray_mesh(vertices.requires_grad_(), faces, *rays)
    with pytest.raises(RuntimeError, match="mesh_distance has no gradient"):
        ops.mesh_distance(vertices, faces, rays[0])
    with torch.no_grad():
        ops.mesh_distance(vertices, faces, rays[0])
    # Positions of voters have none.
    assert not ops.select_voters(torch.randn(1, 9, requires_grad=True), 0.5, 4).indices.requires_grad


def test_triton_refuses_float64() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    points, votes, counts = (argument.to(device) for argument in vote_arguments())
    with pytest.raises(RuntimeError, match="does not compute in float64"):
        ops.cast_votes(points.double(), votes.double(), counts, backend="triton")


@pytest.mark.filterwarnings("ignore:.*(divide by zero|invalid value).*:RuntimeWarning")  # interpreter
def test_forced_backends_agree() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for function, arguments in (
        (lambda *given, backend: (ops.group_norm_relu(*given, backend=backend),), norm_arguments(device)),
        (ops.query_field, field_arguments(device)),
        (ops.select_voters, (torch.randn(2, 70, device=device), 0.4, 20)),
        (ops.compact, (torch.randn(2, 70, device=device) < 0.4, 20)),
        (ops.cast_votes, tuple(argument.to(device) for argument in vote_arguments())),
        (lambda *given, backend: (ops.mesh_distance(*given, backend=backend),), distance_arguments(device)),
        (ops.ray_mesh, ray_arguments(device)),
    ):
        results = [function(*arguments, backend=backend) for backend in (None, "torch", "triton")]
        for chosen, by_torch, by_triton in zip(*results, strict=True):
            assert torch.equal(
                chosen.nan_to_num(), (by_triton if device == "cuda" else by_torch).nan_to_num()
            )
            torch.testing.assert_close(by_torch, by_triton, equal_nan=True, rtol=1e-4, atol=1e-4)


def test_kernels_launch_on_the_device_of_their_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fake tensors on one GPU, while another is the current device; the launchers are replaced."""
    own = 0 if torch.cuda.is_available() else 1  # fake tensors of a GPU need it on machines with GPUs
    current, launched = [1 - own], []

    def exchange(index: int) -> int:
        current.append(index)
        return current[-2]

    monkeypatch.setattr(torch.cuda, "_exchange_device", exchange)
    monkeypatch.setattr(torch.cuda, "_maybe_exchange_device", exchange)
    monkeypatch.setattr("nvf_fast.runtime.autotuning.tuned", lambda *_: None)
    launchers = {name: [name] for name in OPERATIONS}
    launchers["query_field"] += ["locate", "project_maps", "sample", "votes", "evaluate"]
    launchers["select_voters"] += ["compact"]
    for folder, names in launchers.items():
        for name in names:
            record = partial(
                lambda name, *_, **__: (
                    launched.append((name, current[-1])) or [None] * (9 if name == "place_hands" else 3)
                ),
                name,
            )
            monkeypatch.setattr(f"nvf_fast.kernels.{folder}.triton.{name}", record)
    monkeypatch.setattr("nvf_fast.kernels.query_field.triton.pack_layers", lambda *_, **__: None)

    def there(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [there(each) for each in value]
        if not isinstance(value, Tensor):
            return value
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=f"cuda:{own}")

    with FakeTensorMode(), torch.no_grad():
        given: Any = there(field_arguments())
        ops.query_field(*given, backend="triton")
        query = ops.FieldQuery(*given[4:], channels=CASE.channels)
        places = query.locate(given[1], given[2], CASE.map_size)
        maps = query.project(given[0], given[3])
        query.votes(query.sample(maps, places), given[1])
        query.evaluate(maps, places)
        ops.group_norm_relu(*there(norm_arguments()), backend="triton")
        ops.select_voters(there(torch.empty(2, 70)), 0.4, 20, backend="triton")
        ops.compact(there(torch.empty(2, 70, dtype=torch.bool)), 20, backend="triton")
        ops.cast_votes(*there(vote_arguments()), backend="triton")
        ops.mesh_distance(*there(distance_arguments()), backend="triton")
        ops.ray_mesh(*there(ray_arguments()), backend="triton")
        rows, pixels = torch.empty(2, 33, dtype=torch.float64), torch.empty(9, dtype=torch.uint8)
        ops.network_views(there(rows), [there(pixels)], size=30, backend="triton")
        x = torch.empty(2, 8, 4, 4)
        ops.join_branches(there(x), there([x]), backend="triton")
        ops.pack_poses(*there(list(pose_arguments(2))), backend="triton")
        ops.merge_maps(*there(merge_arguments(MERGES["odd"])), backend="triton")
        ops.pool_maps(*there(pool_arguments(POOLED["odd"])), backend="triton")
        ops.place_hands(*there(list(place_arguments(PLACED["odd"]).values())), backend="triton")
    assert current[-1] == 1 - own
    assert sorted(launched) == sorted((name, own) for names in launchers.values() for name in names)


def calls(batch: int = 2) -> dict[str, tuple[Callable[..., object], Any]]:
    """Each operation and the arguments of a small call."""
    rows, pixels, _ = view_arguments(["averaged"], 3)
    x = torch.randn(batch, 4, 1, 1)
    norm = x, *torch.ones(2, 4), 2
    field = field_inputs(FieldCase(batch, 2, 8, (2, 3), (4,)))[:6]
    vertices, faces = mesh_arguments()
    meshes = vertices[:1].expand(batch, -1, -1), faces
    points = torch.rand(batch, 1, 3)
    votes = points, torch.rand(batch, 1, 2, 4), torch.ones(batch, dtype=torch.int32)
    placed = PLACED["odd"]._replace(batch=batch, channels=4, side=2, features=3, joints=1, code=2, biases=5)
    return {
        "query_field": (ops.query_field, field),
        "select_voters": (ops.select_voters, (torch.rand(batch, 3), 0.5, 2)),
        "cast_votes": (ops.cast_votes, (*votes, torch.zeros(batch, 1, dtype=torch.int64))),
        "group_norm_relu": (ops.group_norm_relu, norm),
        "join_branches": (ops.join_branches, (x, [x, x[:, :0]], torch.ones(4))),
        "network_views": (lambda rows, pixels, **options: ops.network_views(rows, pixels, size=2, **options),
                          (rows.expand(batch, -1), [pixels])),
        "pack_poses": (ops.pack_poses, pose_arguments(batch, 1)),
        "merge_maps": (ops.merge_maps, merge_arguments((batch, 4, 3, 2, 1, 1))),
        "pool_maps": (ops.pool_maps, pool_arguments((batch, batch, 4, 3, 2, 1, 1))),
        "place_hands": (ops.place_hands, list(place_arguments(placed).values())),
        "mesh_distance": (ops.mesh_distance, (*meshes, points)),
        "ray_mesh": (ops.ray_mesh, (*meshes, points, points)),
    }  # fmt: skip


def test_calls_of_every_operation() -> None:
    assert calls().keys() == OPERATIONS.keys()


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name != "select_voters"])  # takes one tensor
def test_every_tensor_must_be_on_the_same_device(name: str) -> None:
    """One tensor after the other is on another device, where a kernel would take its address."""
    function, arguments = calls()[name]
    function(*arguments)
    leaves, structure = tree_flatten(arguments)
    tensors = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    for place in tensors:
        moved = [leaf.to("meta") if at == place else leaf for at, leaf in enumerate(leaves)]
        with pytest.raises(ValueError, match=rf"^{name}: all tensors must be on one device, got .*on meta"):
            function(*tree_unflatten(moved, structure))
    assert len(tensors) > 1


@pytest.mark.parametrize("name", OPERATIONS)
def test_more_images_than_one_launch_grid_allows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA allows only 65535 programs along the second and third axis; nothing is launched."""
    grids: list[tuple[int, ...]] = []
    monkeypatch.setattr(
        KernelInterface, "__getitem__", lambda kernel, grid: lambda *_, **__: grids.append(grid)
    )
    if name in ("group_norm_relu", "select_voters"):  # of larger maps and longer rows, too
        module = import_module(f"nvf_fast.kernels.{name}.triton")
        monkeypatch.setattr(module, "_SHORT" if name == "select_voters" else "_SMALL_TEXELS", 0)
    function, arguments = calls(70_000)[name]
    function(*arguments, backend="triton")
    assert grids and all(side < 2**16 for grid in grids for side in grid[1:])


def test_triton_refuses_cpu_tensors() -> None:
    script = """
import torch
from nvf_fast import ops
try:
    ops.select_voters(torch.zeros(1, 4), 1.0, 2, backend="triton")
except RuntimeError as error:
    print(error)
"""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    output = subprocess.check_output([sys.executable, "-c", script], cwd=ROOT, env=environment, text=True)
    assert output.strip() == "select_voters: Triton runs on CUDA tensors, and these are on cpu"


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (norm_argument("x", torch.zeros(2, 12, 6)), ValueError, r"\(B, C, H, W\), got \(2, 12, 6\)"),
        (norm_argument("x", torch.zeros(2, 12, 6, 8).int()), TypeError, "got torch.int32"),
        (norm_argument("x", torch.zeros(2, 12, 6, 8).double()), TypeError, "float64.*got torch.float32"),
        (norm_argument("weight", torch.zeros(8)), ValueError, r"must be \(12,\), got \(8,\) and \(12,\)"),
        (norm_argument("bias", torch.zeros(12).half()), TypeError, "got torch.float32 and torch.float16"),
        (norm_argument("groups", 5), ValueError, "must divide the 12 channels, got 5"),
        (norm_argument("eps", 0.0), ValueError, "eps must be positive, got 0.0"),
        (norm_argument("backend", "numpy"), ValueError, "got 'numpy'"),
        (field_argument("features", torch.zeros(2, 12, 6)), ValueError, r"\(B, C, H, W\).*got \(2, 12, 6\)"),
        (field_argument("features", torch.zeros(2, 12, 6, 1)), ValueError, "H, W of 2 or more"),
        (field_argument("features", torch.zeros(2, 12, 6, 8).int()), TypeError, "got torch.int32"),
        (field_argument("features", torch.zeros(2, 12, 6, 8).double()), TypeError, "must be float64 mm"),
        (field_argument("features", torch.zeros(2, 20, 6, 8)), ValueError, r"C \+ 1 = 21 inputs, or 22"),
        (field_argument("points", torch.zeros(3, 40, 3)), ValueError, r"\(2, N, 3\) mm, got \(3, 40, 3\)"),
        (field_argument("points", torch.zeros(40, 3).double()), TypeError, "points must be float32 mm"),
        (field_argument("intrinsics", torch.eye(4)), ValueError, r"intrinsics must be .* got \(4, 4\)"),
        (field_argument("intrinsics", torch.eye(3).double()), TypeError, "intrinsics must be float32"),
        (field_argument("hand_scale", torch.zeros(3)), ValueError, r"\(2,\) mm, got \(3,\)"),
        (field_argument("hand_scale", torch.zeros(2).half()), TypeError, "hand_scale must be float32"),
        (field_argument("weights", [torch.zeros(48, 14)] * 3), ValueError, r"layer 1 must .*\(out, 62\)"),
        (field_argument("biases", []), ValueError, "got 3 and 0"),
        (field_argument("biases", [torch.zeros(3, n) for n in (48, 32, 85)]), ValueError,
         r"layer 0 must .* \(2, out\) in all layers, got \(48, 14\) and \(3, 48\)"),
        (field_argument("biases", [torch.zeros(2, 48), torch.zeros(32), torch.zeros(85)]), ValueError,
         r"layer 1 must .* got \(32, 62\) and \(32,\)"),
        (field_argument("centres", torch.zeros(2, 3)), ValueError, r"C \+ 3 = 15 inputs .* got \(48, 14\)"),
        (centred_argument(centres=None), ValueError, r"so centres must be \(2, 3\) mm, got None"),
        (centred_argument(centres=torch.zeros(3)), ValueError, r"centres must be \(2, 3\) mm, got \(3,\)"),
        (centred_argument(centres=torch.zeros(2, 3).double()), TypeError, "centres must be float32 mm"),
        (centred_argument(hand_scale=torch.full((2,), 20.0)), ValueError, "no input for it"),
        (field_argument("image_size", 0), ValueError, "at least 1 px"),
        (field_argument("backend", "cuda"), ValueError, "got 'cuda'"),
        (lambda: ops.select_voters(torch.zeros(5), 1.0, 2), ValueError, r"\(B, N\) mm, got \(5,\)"),
        (lambda: ops.select_voters(torch.zeros(1, 5).half(), 1.0, 2), TypeError, "float32"),
        (lambda: ops.select_voters(torch.zeros(1, 5), 1.0, 0), ValueError, "at least 1 slot, got 0"),
        (lambda: ops.select_voters(torch.zeros(1, 5), 1.0, 2, backend="numpy"), ValueError, "got 'numpy'"),
        (lambda: ops.compact(torch.zeros(5).bool(), 2), ValueError, r"\(B, N\), got \(5,\)"),
        (lambda: ops.compact(torch.zeros(1, 5), 2), TypeError, "bool, got torch.float32"),
        (lambda: ops.compact(torch.zeros(1, 5).bool(), 0), ValueError, "at least 1 slot, got 0"),
        (vote_argument("points", torch.zeros(2, 8, 3)), ValueError, r"\(2, 9, 3\) mm, got \(2, 8, 3\)"),
        (vote_argument("votes", torch.zeros(2, 9, 5, 3)), ValueError, r"\(B, V, J, 4\), got \(2, 9, 5, 3\)"),
        (vote_argument("votes", torch.zeros(2, 9, 5, 4).half()), TypeError, "votes must be float32"),
        (vote_argument("counts", torch.zeros(2).long()), TypeError, "counts must be int32, got torch.int64"),
        (vote_argument("counts", torch.zeros(1).int()), ValueError, r"counts must be \(2,\)"),
        (vote_argument("fraction", 0.0), ValueError, r"fraction must be in \(0, 1\], got 0.0"),
        (vote_argument("backend", "numpy"), ValueError, "got 'numpy'"),
        (distance_argument("vertices", torch.zeros(4, 3)), ValueError, r"\(B, V, 3\) mm, got \(4, 3\)"),
        (distance_argument("vertices", torch.zeros(2, 4, 3).half()), TypeError, "vertices must be float32"),
        (distance_argument("faces", torch.zeros(2, 4, 3).long()), ValueError, r"faces must .* \(2, 4, 3\)"),
        (distance_argument("faces", torch.zeros(0, 3).long()), ValueError, r"F of 1 or more, got \(0, 3\)"),
        (distance_argument("faces", torch.zeros(4, 3).int()), TypeError, "int64, got torch.int32"),
        (distance_argument("faces", torch.tensor([[0, 1, 4]])), ValueError, "vertices 0 to 3, got 0 to 4"),
        (distance_argument("faces", torch.tensor([[-1, 1, 2]])), ValueError, "vertices 0 to 3, got -1 to 2"),
        (distance_argument("points", torch.zeros(3, 5, 3)), ValueError, r"\(2, N, 3\) mm, got \(3, 5, 3\)"),
        (distance_argument("points", torch.zeros(5, 3)), ValueError, r"\(2, N, 3\) mm, got \(5, 3\)"),
        (distance_argument("points", torch.zeros(2, 5, 3).double()), TypeError, "points must be float32 mm"),
        (distance_argument("backend", "numpy"), ValueError, "got 'numpy'"),
        (ray_argument("origins", torch.zeros(2, 20, 2)), ValueError, r"\(2, N, 3\) mm, got \(2, 20, 2\)"),
        (ray_argument("directions", torch.zeros(2, 9, 3)), ValueError, r"\(2, 20, 3\) mm, got \(2, 9, 3\)"),
        (ray_argument("directions", torch.zeros(2, 20, 3).double()), TypeError, "directions must be float32"),
        (ray_argument("faces", torch.zeros(4, 2).long()), ValueError, r"ray_mesh: faces .* got \(4, 2\)"),
        (ray_argument("backend", "numpy"), ValueError, "got 'numpy'"),
    ],
)  # fmt: skip
def test_errors_name_the_offending_argument(
    call: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call()


def test_field_query_checks_centres() -> None:
    for case, centres, message in (
        (CASE, torch.zeros(2, 3), r"must be None, got \(2, 3\)"),
        (CASE._replace(hand_scale=False, centred=True), None, r"must be \(B, 3\) mm, got None"),
    ):
        inputs = field_inputs(case)
        biases = [torch.zeros(len(weight)) for weight in inputs.weights]
        query = ops.FieldQuery(inputs.weights, biases, channels=case.channels)
        with pytest.raises(ValueError, match=message):
            query.locate(inputs.points, inputs.intrinsics, case.map_size, centres)


def test_scale_for_weights_without_one() -> None:
    features, points, intrinsics, scale, weights, biases = field_inputs(CASE._replace(hand_scale=False))[:6]
    with pytest.raises(ValueError, match="no input for it"):
        ops.query_field(features, points, intrinsics, torch.tensor([20.0, 20]), weights, biases)
    assert scale is None


def test_devices_must_agree() -> None:
    features, *rest = field_arguments()
    with pytest.raises(ValueError, match="one device, got features on meta, points on cpu"):
        ops.query_field(features.to("meta"), *rest)
    vertices, *rest = ray_arguments()
    with pytest.raises(ValueError, match="one device, got vertices on meta, faces on cpu, origins on cpu"):
        ops.ray_mesh(vertices.to("meta"), *rest)
    x, *rest = norm_arguments()
    with pytest.raises(ValueError, match="one device, got x on meta, weight on cpu"):
        ops.group_norm_relu(x.to("meta"), *rest)
