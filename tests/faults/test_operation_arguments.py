"""Arguments of operations that are empty, out of range or of another type."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nvf_fast import ops

INT32 = torch.int32
FACES = torch.tensor([[0, 1, 2], [0, 2, 1]])
INTRINSICS = torch.tensor([[8.0, 0, 4], [0, 8, 4], [0, 0, 1]])
WEIGHTS = [torch.linspace(-1, 1, 6 * 5).view(6, 5), torch.linspace(-1, 1, 9 * 11).view(9, 11)]
BIASES = [torch.zeros(6), torch.zeros(9)]


def cast(**changes: Any) -> Any:
    votes = torch.linspace(0.1, 1, 24).view(1, 3, 2, 4)
    given: Any = {"points": torch.zeros(1, 3, 3), "votes": votes, "counts": torch.tensor([3], dtype=INT32)}
    return ops.cast_votes(**given | changes)


def select(**changes: Any) -> Any:
    return ops.select_voters(**{"sdf": torch.zeros(1, 3), "surface_mm": 5.0, "capacity": 4} | changes)


def norm(**changes: Any) -> Any:
    given: Any = {"x": torch.ones(1, 4, 2, 2), "weight": torch.ones(4), "bias": torch.ones(4), "groups": 2}
    return ops.group_norm_relu(**given | changes)


def distance(**changes: Any) -> Any:
    given: Any = {"vertices": torch.eye(3)[None], "faces": FACES, "points": torch.zeros(1, 2, 3)}
    return ops.mesh_distance(**given | changes)


def field(**changes: Any) -> Any:
    given: Any = {"features": torch.ones(1, 4, 3, 3), "points": torch.ones(1, 2, 3), "intrinsics": INTRINSICS}
    given |= {"hand_scale": None, "weights": WEIGHTS, "biases": BIASES, "image_size": 8}
    return ops.query_field(**given | changes)


def query(**changes: Any) -> ops.FieldQuery:
    given: Any = {"weights": WEIGHTS, "biases": BIASES, "channels": 4, "image_size": 8}
    return ops.FieldQuery(**given | changes)


def votes(indices: Any, count: int = 3, **changes: Any) -> Any:
    """Votes of points in front of the camera, by the prepared query."""
    prepared = query()
    given: Any = {"points": torch.ones(1, count, 3), "intrinsics": INTRINSICS, "map_size": (3, 3)}
    places = prepared.locate(**given | changes)
    maps = prepared.project(torch.ones(1, 4, 3, 3), None)
    return prepared.votes(prepared.sample(maps, places), indices)


def project(**changes: Any) -> Any:
    return query().project(**{"features": torch.ones(1, 4, 3, 3), "hand_scale": None} | changes)


def cases(
    call: Callable[..., Any], name: str, values: Iterable[Any], error: type[Exception], message: str
) -> list[tuple[Callable[..., Any], dict[str, Any], type[Exception], str]]:
    return [(call, {name: value}, error, message) for value in values]


NAN, INF = float("nan"), float("inf")
REFUSED = [
    *cases(cast, "ball_mm", (NAN, -1.0, 0, INF), ValueError, "ball_mm must be a positive number"),
    *cases(cast, "fraction", (NAN, 2, "1"), ValueError, r"fraction must be in \(0, 1\], got"),
    (cast, {"ball_mm": "80"}, TypeError, "ball_mm must be a number, got '80'"),
    (cast, {"counts": torch.tensor([-1], dtype=INT32)}, ValueError, r"counts must be 0 or more, got \[-1\]"),
    (cast, {"counts": [3]}, TypeError, "counts must be a tensor, got list"),
    (cast, {"indices": torch.tensor([[0, -1, 2]])}, ValueError, "must be 0 to 2, got -1 to 2"),
    (cast, {"indices": torch.tensor([[0, 3, 2]])}, ValueError, "must be 0 to 2, got 0 to 3"),
    (cast, {"votes": None}, TypeError, "votes must be a tensor, got NoneType"),
    *cases(select, "surface_mm", (NAN, -1.0, 0), ValueError, "surface_mm must be a positive"),
    *cases(select, "surface_mm", ("5", None), TypeError, "surface_mm must be a number"),
    *cases(select, "capacity", (2.5, "4", True), TypeError, "capacity must be a whole number"),
    *cases(select, "capacity", (0, -1), ValueError, "capacity must be at least 1 slot"),
    (norm, {"x": [1.0]}, TypeError, "must be tensors, got list, Tensor, Tensor"),
    *cases(norm, "groups", (2.0, "2", True), TypeError, "groups must be a whole number"),
    *cases(norm, "eps", (NAN, "1", 0.0), ValueError, "eps must be positive"),
    *cases(distance, "faces", (FACES + 1, FACES - 1), ValueError, "faces must name vertices 0 to 2"),
    (distance, {"vertices": torch.zeros(1, 0, 3)}, ValueError, "faces must name vertices"),
    (distance, {"faces": FACES[:0]}, ValueError, "F of 1 or more"),
    *cases(field, "image_size", (8.5, "8", NAN), TypeError, "image_size must be a whole number"),
    (field, {"image_size": 0}, ValueError, "image_size must be at least 1 px"),
    (field, {"features": torch.ones(1, 0, 3, 3)}, ValueError, r"C of 1 and H, W of 2 or more"),
    (field, {"weights": None}, TypeError, "must be lists of tensors, got NoneType"),
    (field, {"weights": [torch.ones(5, 3, dtype=INT32)]}, TypeError, "tensors of floats, got torch.int32"),
    (query, {"weights": [], "biases": []}, ValueError, "equally many, one or more, got 0 and 0"),
    (query, {"weights": [torch.ones(5, 5)], "biases": [torch.ones(5)]}, ValueError, "have a hidden layer"),
    (query, {"channels": 9}, ValueError, r"inputs for C = 9"),
    (query, {"dtype": torch.int8}, TypeError, r"got torch.int8"),
    *cases(votes, "indices", torch.tensor([3, -2, 10**9]).view(3, 1, 1), ValueError, "must be -1 to 2, got"),
    (votes, {"indices": torch.zeros(2, 1, dtype=torch.int64)}, ValueError, r"indices must be \(1, V\)"),
    (votes, {"indices": torch.zeros(1, 1, dtype=INT32)}, TypeError, "indices must be int64"),
    (votes, {"indices": None, "points": torch.ones(3, 2)}, ValueError, "points must be"),
    (votes, {"indices": None, "per_ray": 1.5}, TypeError, "per_ray must be a whole number"),
    (votes, {"indices": None, "per_ray": 2}, ValueError, "per_ray must divide the 3 points"),
    (votes, {"indices": None, "map_size": (3, 1)}, ValueError, r"\(H, W\) of 2 or more, got \(3, 1\)"),
    (votes, {"indices": None, "map_size": (4, 3)}, ValueError, r"maps of \(3, 3\), got 1 and \(4, 3\)"),
    (votes, {"indices": None, "points": torch.ones(2, 3, 3)}, ValueError, "places must be of 1 image"),
    (votes, {"indices": None, "intrinsics": INTRINSICS.expand(2, 3, 3)}, ValueError, "batches must have one"),
    (votes, {"indices": None, "points": torch.ones(3, 3, device="meta")}, ValueError, "points on meta"),
    *cases(project, "features", (torch.ones(1, 5, 3, 3), torch.ones(4, 3, 3)), ValueError, r"\(B, 4, H, W\)"),
    (project, {"features": torch.ones(1, 4, 3, 3).half()}, TypeError, "features must be float32"),
    (project, {"features": torch.ones(1, 4, 3, 3, device="meta")}, ValueError, "features on meta"),
    (project, {"hand_scale": torch.ones(1)}, ValueError, "the network has no input for it"),
    *cases(project, "biases", (torch.ones(2, 15), torch.ones(1, 14)), ValueError, r"must be \(1, 15\)"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "changes", "error", "message"), REFUSED)
def test_refuses(
    call: Callable[..., Any], changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call(**changes)


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize(("batch", "count"), [(0, 3), (2, 0), (0, 0)])
def test_empty_batches_and_points_have_empty_results(batch: int, count: int, backend: ops.Backend) -> None:
    points, indices = torch.ones(batch, count, 3), torch.zeros(batch, count, dtype=torch.int64)
    full = torch.full((batch,), count, dtype=INT32)
    joints, weight, _ = ops.cast_votes(points, torch.ones(batch, count, 2, 4), full, backend=backend)
    assert joints.shape == (batch, 2, 3) and joints.isnan().all() and weight.eq(0).all()
    for selection in (
        ops.select_voters(torch.ones(batch, count), 5.0, 4, backend=backend),
        ops.compact(torch.zeros(batch, count, dtype=torch.bool), 4, backend=backend),
    ):
        assert selection.indices.shape == (batch, 4) and selection.counts.shape == (batch,)
    vertices = torch.eye(3).expand(batch, 3, 3)
    assert ops.mesh_distance(vertices, FACES, points, backend=backend).shape == indices.shape
    assert ops.ray_mesh(vertices, FACES, points, points, backend=backend)[1].shape == indices.shape
    sdf, found = ops.query_field(
        torch.ones(batch, 4, 3, 3), points, INTRINSICS, None, WEIGHTS, BIASES, image_size=8, backend=backend
    )
    assert sdf.shape == indices.shape and found.shape == (batch, count, 2, 4)


def test_no_images_have_gradients_of_zero() -> None:
    weights = [weight.clone().requires_grad_() for weight in WEIGHTS]
    points = torch.ones(0, 2, 3, requires_grad=True)
    sdf, found = field(features=torch.ones(0, 4, 3, 3), points=points, weights=weights)
    assert sdf.shape == (0, 2) and found.shape == (0, 2, 2, 4)
    for gradient in torch.autograd.grad(sdf.sum() + found.sum(), [points, *weights]):
        assert (gradient == 0).all()


def test_layers_may_be_a_parameter_list() -> None:
    weights, biases = torch.nn.ParameterList(WEIGHTS), torch.nn.ParameterList(BIASES)
    for found, expected in zip(field(weights=weights, biases=biases), field(), strict=True):
        assert torch.equal(found, expected)
    assert query(weights=weights, biases=biases)


def test_huge_whole_numbers_of_mm_are_numbers() -> None:
    assert select(surface_mm=2**64).counts.item() == select(surface_mm=10**400).counts.item() == 3
    assert cast(ball_mm=2**64)[0].isfinite().all()
    with pytest.raises(ValueError, match="ball_mm must be a positive number"):
        cast(ball_mm=10**400)


def test_prepared_query_of_no_points_has_no_votes() -> None:
    assert votes(torch.zeros(1, 0, dtype=torch.int64)).shape == (1, 0, 2, 4)
    assert votes(torch.tensor([[-1, 2]]))[0, 0].eq(0).all()


VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=2) | st.just([1.0])
TENSORS = st.builds(
    lambda shape, dtype, value: torch.full(shape, value).to(dtype),
    st.lists(st.integers(0, 4), max_size=5),
    st.sampled_from([torch.float32, torch.float64, torch.float16, torch.int64, INT32, torch.bool]),
    st.sampled_from([0.0, 1.0, -1.0, NAN, INF]),
)
CALLS: dict[Callable[..., Any], list[str]] = {
    cast: ["points", "votes", "counts", "ball_mm", "fraction", "backend"],
    select: ["sdf", "surface_mm", "capacity", "backend"],
    norm: ["x", "weight", "bias", "groups", "eps", "backend"],
    distance: ["vertices", "faces", "points", "backend"],
    field: ["features", "points", "intrinsics", "hand_scale", "weights", "biases", "centres", "image_size"],
    query: ["weights", "biases", "channels", "image_size", "dtype", "backend"],
}


@given(st.data())
def test_any_argument_yields_a_result_or_a_documented_error(data: st.DataObject) -> None:
    call = data.draw(st.sampled_from(list(CALLS)))
    name = data.draw(st.sampled_from(CALLS[call]))
    value = data.draw(VALUES | TENSORS)
    if name == "capacity" and isinstance(value, int) and value > 2**20:
        return  # as much memory as requested
    try:
        call(**{name: value})
    except (ValueError, TypeError) as error:
        operation = "FieldQuery|query_field|cast_votes|select_voters|group_norm_relu|mesh_distance|dtype"
        if not any(str(error).startswith(each) for each in operation.split("|")):
            raise
