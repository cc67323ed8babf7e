"""query_field: the reference against hand computation, PyTorch form and kernel against float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from nvf_fast import ops
from nvf_fast.grid import frustum_grid
from nvf_fast.kernels.query_field import cpu
from nvf_fast.kernels.query_field import triton as kernel_module
from nvf_fast.kernels.query_field.reference import query_field as reference
from nvf_fast.kernels.query_field.triton import query_field as kernel
from nvf_fast.ops.query_field import Samples
from tests.kernel_cases import (
    DEFAULT_NETWORK,
    FIELD_CASES,
    FULL_NETWORK,
    SMALL_NETWORK,
    FieldCase,
    FieldInputs,
    accesses_checked,
    field_inputs,
    rms,
)

# Without a GPU kernels run in Triton's interpreter, whose bfloat16 products are wrong.
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.cuda)]
SHORT = FieldCase(2, 100, 12, (6, 8), (48, 32))
CENTRED = SHORT._replace(hand_scale=False, centred=True)
# The interpreter also divides by the depth of points in the camera's plane.
pytestmark = [
    pytest.mark.filterwarnings("ignore:invalid value encountered in divide:RuntimeWarning"),
    pytest.mark.usefixtures("poisoned_memory"),
]


def run(function: Callable, inputs: FieldInputs, **options: object) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return function(**inputs._asdict(), **options)


def errors(function: Callable, case: FieldCase, dtype: torch.dtype) -> tuple[list[float], list[float]]:
    """Return RMS errors (sdf, votes) of a function and of the reference in `dtype`, against float64."""
    found, by_torch = [], []
    for _ in range(16 if case.count == 1 else 1):  # rounding of a single value is random
        inputs = field_inputs(case, dtype, DEVICE)
        exact = run(reference, inputs.double())
        clear = ~on_the_border(inputs)
        for errors_of, result in ((found, run(function, inputs)), (by_torch, run(reference, inputs))):
            assert torch.equal(result[0].isinf() & clear, exact[0].isinf() & clear)
            assert not result[0].isnan().any() and result[1].isfinite().all()
            errors_of.append(
                [
                    rms((got - right)[clear][right[clear].isfinite()])
                    for got, right in zip(result, exact, strict=True)
                ]
            )
    return tuple(torch.tensor(values).square().mean(0).sqrt().tolist() for values in (found, by_torch))


def on_the_border(inputs: FieldInputs) -> Tensor:
    """Return (B, N) bool: points so close to the view's border that float32 rounding (4e-7) decides."""
    pixels = inputs.points.double() @ inputs.intrinsics.double().mT
    uv = pixels[..., :2] / pixels[..., 2:] / (inputs.image_size / 2) - 1
    return ((uv.abs() - 1).abs() < 1e-5).any(-1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FIELD_CASES)
def test_kernel_errs_at_most_twice_as_much_as_pytorch(name: str, dtype: torch.dtype) -> None:
    found, expected = errors(kernel, FIELD_CASES[name], dtype)
    assert found[0] <= 2 * expected[0] and found[1] <= 2 * expected[1], (found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", [*FIELD_CASES, "more points than texels"])
def test_pytorch_form_errs_at_most_twice_as_much_as_the_reference(name: str, dtype: torch.dtype) -> None:
    """The PyTorch form projects the maps if the points outnumber the texels."""
    case = FIELD_CASES.get(name) or FULL_NETWORK._replace(batch=2, count=200, map_size=(9, 8))
    found, expected = errors(ops.query_field, case, dtype)
    assert found[0] <= 2 * expected[0] and found[1] <= 2 * expected[1], (found, expected)


def test_reference_by_hand() -> None:
    """The first layer reads the feature, the depth and the scale; the second its hidden part and x again."""
    features = torch.arange(6.0).view(1, 1, 2, 3)
    intrinsics = torch.tensor([[480.0, 0, 112], [0, 480.0, 112], [0, 0, 1]])
    # Pixel (56, 112), at 1/4 of the width and 1/2 of the height: texel (0.5, 0.5), (0 + 1 + 3 + 4) / 4 = 2.
    points = torch.tensor([[[-70.0, 0.0, 600.0]]])
    first = torch.tensor([[1.0, 0, 0], [0, -1, 0], [0, 0, 1]])
    last = torch.zeros(5, 6)
    last[0, 1], last[1, 0], last[2, 3], last[3, 4], last[4, 5] = 1, 1, 1, 1, 1
    biases = [torch.tensor([0.5, 0, 0]), torch.tensor([0.25, 0, 0, 0, 0])]
    sdf, votes = reference(features, points, intrinsics, torch.tensor([20.0]), [first, last], biases)
    depth = 600 / 480
    assert sdf.item() == pytest.approx(50 * math.tanh(0.25 - 0.01 * depth), rel=1e-6)
    assert votes.flatten().tolist() == pytest.approx([2.5, 2.0, depth, 0.2], rel=1e-6)


def test_centred_reference_by_hand() -> None:
    """The position relative to the centre in 60 mm replaces the depth, and each image has its own biases."""
    features = torch.arange(12.0).view(2, 1, 2, 3)
    intrinsics = torch.tensor([[480.0, 0, 112], [0, 480.0, 112], [0, 0, 1]])
    points = torch.tensor([[[-70.0, 0.0, 600.0]]]).repeat(2, 1, 1)
    centres = torch.tensor([[-100.0, 15, 570], [-70, 0, 660]])
    weight = torch.zeros(5, 4)
    weight[0, 3], weight[1, 0], weight[2, 1], weight[3, 2], weight[4, 3] = 0.5, 1, 1, 1, 1
    bias = torch.tensor([[0.25, 0, 0, 0, 0], [0, 1, 0, 0, 0]])
    sdf, votes = reference(features, points, intrinsics, None, [weight], [bias], centres=centres)
    assert sdf[:, 0].tolist() == pytest.approx([50 * math.tanh(0.5), 50 * math.tanh(-0.5)], rel=1e-6)
    assert votes[0].flatten().tolist() == pytest.approx([2, 0.5, -0.25, 0.5], rel=1e-6)
    assert votes[1].flatten().tolist() == pytest.approx([9, 0, 0, -1], rel=1e-6)


@pytest.mark.parametrize("function", [reference, kernel, ops.query_field])
def test_view_size_does_not_change_the_camera(function: Callable) -> None:
    """The depth input is Z / 480 at every view size."""
    inputs = field_inputs(SHORT, device=DEVICE)
    half = inputs._replace(intrinsics=inputs.intrinsics * torch.tensor([[0.5], [0.5], [1]], device=DEVICE))
    for got, expected in zip(
        run(function, half._replace(image_size=112)), run(function, inputs), strict=True
    ):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("function", [reference, kernel, ops.query_field])
def test_points_out_of_view(function: Callable) -> None:
    inputs = field_inputs(SHORT, device=DEVICE)
    outside = torch.tensor(
        [[0, 0, 0], [0, 0, -500], [math.nan, 0, 500], [0, 0, math.nan], [0, 0, math.inf], [200, 0, 500]]
        + [[0, -117, 500], [1e30, 0, 500], [0, 0, -0.0]],
        device=DEVICE,
    )
    # The third and fourth point project to corners of the view, without rounding.
    inside = torch.tensor(
        [[0, 0, 500], [116, -116, 500], [112, -112, 480], [112, 112, 480], [0, 0, 1e-3]], device=DEVICE
    )
    inputs = inputs._replace(points=torch.cat([outside, inside, outside]))
    sdf, votes = run(function, inputs)
    outside_rows = torch.ones(len(inputs.points), dtype=torch.bool)
    outside_rows[len(outside) : len(outside) + len(inside)] = False
    assert (sdf[:, outside_rows] == math.inf).all() and (votes[:, outside_rows] == 0).all()
    assert sdf[:, ~outside_rows].isfinite().all() and (votes[:, ~outside_rows] != 0).all()


@pytest.mark.parametrize("function", [reference, kernel, ops.query_field])
def test_shared_points_with_one_camera_per_image(function: Callable) -> None:
    inputs = field_inputs(SHORT, device=DEVICE)
    shared = inputs._replace(points=inputs.points[0])
    repeated = inputs._replace(
        points=inputs.points[:1].repeat(2, 1, 1), intrinsics=inputs.intrinsics.repeat(2, 1, 1)
    )
    for got, expected in zip(run(function, shared), run(function, repeated), strict=True):
        assert torch.equal(got, expected)
    repeated.intrinsics[1, 0, 2] += 20
    moved, still = run(function, repeated)[0], run(function, shared)[0]
    assert torch.equal(moved[0], still[0]) and not torch.equal(moved[1], still[1])
    alone = FieldInputs(
        *(value[1:] for value in repeated[:4]), repeated.weights, repeated.biases, repeated.image_size
    )
    torch.testing.assert_close(run(function, alone)[0][0], moved[1], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("function", [reference, kernel, ops.query_field])
def test_missing_hand_scale_equals_15_mm(function: Callable) -> None:
    inputs = field_inputs(SHORT, device=DEVICE)
    neutral = inputs._replace(hand_scale=torch.full((2,), 15.0, device=DEVICE))
    assert torch.equal(run(function, inputs._replace(hand_scale=None))[1], run(function, neutral)[1])
    assert not torch.equal(run(function, inputs)[1], run(function, neutral)[1])


@pytest.mark.parametrize("centred", [False, True], ids=["depth", "centred"])
@pytest.mark.parametrize("density", [1, 20, 400])
def test_tiles_hold_every_point_once_within_their_windows(density: int, centred: bool) -> None:
    batch, height, width, tile_points = 2, 12, 33, 32
    points = torch.rand(batch, density * 20, 3, device=DEVICE) * torch.tensor([300, 300, 0], device=DEVICE)
    points += torch.tensor([-150, -150, 500], device=DEVICE)
    intrinsics = torch.tensor([[480.0, 0, 112], [0, 480, 112], [0, 0, 1]], device=DEVICE)
    inputs = 8 + (3 if centred else 1)
    layers = kernel_module.pack_layers(
        [torch.zeros(4, inputs), torch.zeros(5, 4 + inputs)],
        [torch.zeros(4), torch.zeros(5)],
        8,
        torch.float32,
    )
    centres = torch.zeros(batch, 3, device=DEVICE) if centred else None
    cells = 5 if centred else 6  # columns of cells in a window
    assert layers.tiling.points == tile_points
    located = kernel_module.locate(points, intrinsics, 224, (height, width), layers, centres)
    order, tiles, tile_count = located.order, located.tiles, located.tile_count
    assert 0 < tile_count.item() <= len(tiles)

    pixels = points @ intrinsics.T
    uv = pixels[..., :2] / pixels[..., 2:] / 112 - 1
    texel = ((uv + 1) / 2 * torch.tensor([width - 1, height - 1], device=DEVICE)).flatten(0, 1)
    covered = []
    for start, count, image, corner in tiles[: tile_count.item()].tolist():
        members = order[start : start + count]
        top, left = divmod(corner, 2**16)
        assert 1 <= count <= tile_points
        assert (members // points.shape[1] == image).all()
        corners = texel[members].floor()
        assert (corners[:, 0] >= left).all() and (corners[:, 0] <= left + cells - 1).all()
        assert (corners[:, 1] >= top).all() and (corners[:, 1] <= top + 2).all()
        covered.append(members)
    inside = (uv.abs() <= 1).all(-1).flatten().nonzero()[:, 0]
    assert torch.equal(torch.cat(covered).sort().values, inside)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter overflows
@pytest.mark.parametrize("case", [SHORT, CENTRED], ids=["depth", "centred"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_texels_that_are_not_finite_spoil_their_own_points_only(
    value: float, dtype: torch.dtype, case: FieldCase
) -> None:
    inputs = field_inputs(case, dtype, DEVICE)
    expected, exact = run(kernel, inputs), run(reference, inputs)
    inputs.features[0, 3, 2, 4] = value
    # The reference of an infinite feature is infinite or NaN before it is clamped to 50 mm.
    spoilt = (run(reference, inputs)[0] != exact[0]) | (run(reference, inputs)[1] != exact[1]).any((2, 3))
    assert 0 < spoilt.sum() < 0.5 * spoilt.numel() and not spoilt[1:].any()
    sdf, votes = run(kernel, inputs)
    assert torch.equal(sdf[~spoilt], expected[0][~spoilt])
    assert torch.equal(votes[~spoilt], expected[1][~spoilt])
    assert not (sdf[spoilt].abs() < 49).any()  # NaN or saturated, and never a voter


@pytest.mark.parametrize(
    ("limit", "value"), [("_TILES_PER_PASS", 3), ("_IMAGES", 2), ("_INTERPRETED_PROGRAMS", 1000)]
)
@pytest.mark.parametrize("case", [SHORT, CENTRED], ids=["depth", "centred"])
def test_pass_and_launch_sizes_do_not_change_results(
    monkeypatch: pytest.MonkeyPatch, case: FieldCase, limit: str, value: int
) -> None:
    inputs = field_inputs(case._replace(batch=3), device=DEVICE)
    intrinsics = inputs.intrinsics[0] if case.centred else inputs.intrinsics
    inputs = inputs._replace(points=inputs.points[0], intrinsics=intrinsics)
    whole = run(kernel, inputs)
    monkeypatch.setattr(kernel_module, limit, value)
    for got, expected in zip(run(kernel, inputs), whole, strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("case", [SHORT, CENTRED], ids=["depth", "centred"])
def test_chunk_size_of_the_pytorch_form_does_not_change_results(
    monkeypatch: pytest.MonkeyPatch, case: FieldCase
) -> None:
    inputs = field_inputs(case)
    whole = run(ops.query_field, inputs, backend="torch")
    monkeypatch.setattr(cpu, "_PASS", 7 * 48)  # seven points
    for got, expected in zip(run(ops.query_field, inputs, backend="torch"), whole, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)  # mm; measured 2e-5 on sdf


def prepared(inputs: FieldInputs, biases: list[Tensor], **options: Any) -> ops.FieldQuery:
    channels = inputs.features.shape[1]
    return ops.FieldQuery(inputs.weights, biases, channels=channels, image_size=inputs.image_size, **options)


def assert_votes_at(query: ops.FieldQuery, samples: Samples, votes: Tensor, indices: list[list[int]]) -> None:
    """Assert that votes at some points equal rows of all votes, in the order of the indices."""
    chosen = torch.tensor(indices, device=votes.device)
    for image, (found, rows) in enumerate(zip(query.votes(samples, chosen), chosen, strict=True)):
        expected = votes[image, rows.clamp(min=0)].masked_fill(rows[:, None, None] < 0, 0.0)
        # 1e-5: products of another number of rows sum in another order, measured 2e-6 of 3.
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_prepared_query_of_shared_points(backend: ops.Backend) -> None:
    inputs = field_inputs(SHORT, device=DEVICE)
    inputs = inputs._replace(points=torch.cat([inputs.points[0], inputs.points[1]]))
    with torch.no_grad():
        sdf, votes = ops.query_field(**inputs._asdict(), backend=backend)
    query = prepared(inputs, inputs.biases, backend=backend)
    places = query.locate(inputs.points, inputs.intrinsics, SHORT.map_size)
    maps = query.project(inputs.features, inputs.hand_scale)
    samples = query.sample(maps, places)
    # 1e-5: equal on a CPU and in the interpreter; a GPU library may sum in another order.
    torch.testing.assert_close(samples.sdf, sdf, rtol=0, atol=1e-5)
    torch.testing.assert_close(query.evaluate(maps, places)[1], votes, rtol=0, atol=1e-5)
    outside = int(sdf[1].isinf().nonzero()[0, 0])
    assert_votes_at(query, samples, votes, [[3, 0, 150, -1], [199, outside, -1, 7]])
    second = query.image_maps(maps, 1)
    torch.testing.assert_close(query.sample(second, places).sdf, sdf[1:], rtol=0, atol=1e-5)


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_prepared_query_about_centres(backend: ops.Backend, dtype: torch.dtype) -> None:
    """Each image has points, intrinsics, centres and biases; some points are out of view."""
    inputs = field_inputs(CENTRED, dtype, DEVICE)
    zeros = [torch.zeros(len(weight), device=DEVICE) for weight in inputs.weights]
    query = prepared(inputs, zeros, dtype=dtype, backend=backend)
    places = query.locate(inputs.points, inputs.intrinsics, CENTRED.map_size, inputs.centres)
    samples = query.sample(query.project(inputs.features, None, torch.cat(inputs.biases, 1)), places)
    with torch.no_grad():
        sdf, votes = ops.query_field(**inputs._asdict(), backend=backend)
    assert (sdf.isinf().sum(1) > 0).all()
    torch.testing.assert_close(samples.sdf, sdf, rtol=0, atol=1e-5)
    if dtype == torch.float32:
        assert_votes_at(query, samples, votes, [[5, 99, -1], [0, 1, 2]])
    without_code = query.sample(query.project(inputs.features, None), places).sdf
    with torch.no_grad():
        sdf = ops.query_field(**inputs._replace(biases=zeros)._asdict(), backend=backend)[0]
    torch.testing.assert_close(without_code, sdf, rtol=0, atol=1e-5)


def test_points_on_rays_err_at_most_twice_as_much_as_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some rays are out of view, some points of the others behind the camera."""
    inputs, per_ray = field_inputs(CENTRED), 4
    depths = inputs.centres[:, 2, None, None] + torch.tensor([-800.0, -30, 10, 80])
    slopes = inputs.points / inputs.points[..., 2:]
    inputs = inputs._replace(points=(slopes[:, :, None] * depths[..., None]).flatten(1, 2))
    query = prepared(inputs, [bias[0] for bias in inputs.biases])
    places = query.locate(inputs.points, inputs.intrinsics, CENTRED.map_size, inputs.centres, per_ray)
    maps = query.project(inputs.features, None, torch.cat(inputs.biases, 1))
    samples = query.sample(maps, places)
    sdf, every = samples.sdf, torch.arange(inputs.points.shape[1]).expand(maps.images, -1)
    votes = query.votes(samples, every)
    exact, torch_found = run(reference, inputs.double()), run(reference, inputs)
    inside = sdf.isfinite()
    assert torch.equal(inside, exact[0].isfinite()) and (votes[~inside] == 0).all()
    assert not inside[:, ::per_ray].any() and 0 < inside.sum() < 0.75 * inside.numel()
    assert rms((sdf - exact[0])[inside]) <= 2 * rms((torch_found[0] - exact[0])[inside])
    assert rms(votes - exact[1]) <= 2 * rms(torch_found[1] - exact[1])
    assert_votes_at(query, samples, votes, [[399, -1, 2, 1], [3, 7, 11, 15]])
    monkeypatch.setattr(cpu, "_PASS", 48 * 4 * 7)  # seven rays
    again = query.sample(maps, places)
    torch.testing.assert_close(again.sdf, sdf, rtol=0, atol=1e-4)  # mm; products of another number of rows
    torch.testing.assert_close(query.votes(again, every), votes, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="per_ray must divide the 400 points, got 3"):
        query.locate(inputs.points, inputs.intrinsics, CENTRED.map_size, inputs.centres, 3)


def test_kernel_refuses_unsupported_networks() -> None:
    inputs = field_inputs(SHORT, device=DEVICE)
    x = inputs.weights[0].shape[1]
    one_layer = inputs._replace(weights=[torch.zeros(85, x)], biases=[torch.zeros(85)])
    with pytest.raises(ValueError, match="hidden layer"):
        run(kernel, one_layer)
    many_joints = inputs._replace(
        weights=[*inputs.weights[:-1], torch.zeros(257, 32 + x)],
        biases=[*inputs.biases[:-1], torch.zeros(257)],
    )
    with pytest.raises(ValueError, match="63 joints; got 257 channels"):
        run(kernel, many_joints)


@pytest.mark.parametrize("function", [kernel, ops.query_field])
def test_no_points(function: Callable) -> None:
    inputs = field_inputs(SHORT, device=DEVICE)
    sdf, votes = run(function, inputs._replace(points=inputs.points[:, :0]))
    assert sdf.shape == (2, 0) and votes.shape == (2, 0, 21, 4)


@pytest.mark.parametrize("case", [SHORT, CENTRED], ids=["depth", "centred"])
def test_gradients_match_the_reference(case: FieldCase) -> None:
    inputs = field_inputs(case)
    leaves = [inputs.features, *inputs.weights, *inputs.biases]
    gradients = []
    for function in (ops.query_field, reference):
        for leaf in leaves:
            leaf.requires_grad_().grad = None
        sdf, votes = function(**inputs._asdict())
        (sdf[sdf.isfinite()].square().sum() + votes.square().sum()).backward()
        gradients.append([leaf.grad for leaf in leaves])
    for got, expected in zip(*gradients, strict=True):
        # 1e-4 of the largest entry: float32 sums over 300 points in two orders, measured 2e-6.
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-4 * expected.abs().max().item())


def assert_errs_at_most_twice_as_much(found: tuple[Tensor, Tensor], inputs: FieldInputs) -> None:
    exact = run(reference, inputs.double())
    for got, torch_got, expected in zip(found, run(reference, inputs), exact, strict=True):
        inside = expected.isfinite()
        assert torch.equal(got.isfinite(), inside) and not got.isnan().any()
        assert rms((got - expected)[inside]) <= 2 * rms((torch_got - expected)[inside])


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shared", [False, True], ids=["separate points", "shared points"])
def test_more_votes_than_32_bits_count(shared: bool, dtype: torch.dtype) -> None:
    """Both ends and around the 2^31st vote; bitwise equal runs."""
    count = 13_000_000
    inputs = field_inputs(SHORT._replace(count=count), dtype, DEVICE)
    if shared:
        inputs = inputs._replace(points=inputs.points[0])
    found = run(kernel, inputs)
    assert found[1].numel() > 2**31
    for first, second in zip(found, run(kernel, inputs), strict=True):
        assert torch.equal(first, second)
    assert not found[0].isnan().any()
    for start in (0, 2**31 // 84 % count - 200, count - 400):
        rows = slice(start, start + 400)
        part = inputs._replace(points=inputs.points[..., rows, :].contiguous())
        assert_errs_at_most_twice_as_much((found[0][:, rows], found[1][:, rows]), part)


@pytest.mark.cuda
@pytest.mark.parametrize("shared", [False, True], ids=["separate points", "shared points"])
def test_more_images_than_one_launch_grid_allows(shared: bool) -> None:
    inputs = field_inputs(FieldCase(70_000, 20, 8, (4, 5), (40, 24)), device=DEVICE)
    if shared:
        inputs = inputs._replace(points=inputs.points[0])
    found = run(kernel, inputs)
    few = torch.tensor([0, 1, 32_767, 32_768, 65_535, 65_536, 69_998, 69_999], device=DEVICE)
    part = inputs._replace(
        features=inputs.features[few],
        points=inputs.points if shared else inputs.points[few],
        hand_scale=inputs.hand_scale[few],
    )
    assert_errs_at_most_twice_as_much((found[0][few], found[1][few]), part)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("case", [SMALL_NETWORK, FULL_NETWORK])
def test_kernel_on_a_whole_view(case: FieldCase, dtype: torch.dtype) -> None:
    """Dense points, as on a grid: full tiles, several passes, bitwise equal runs."""
    case = case._replace(batch=2, count=200_000, spread=1.1)
    found, expected = errors(kernel, case, dtype)
    assert found[0] <= 2 * expected[0] and found[1] <= 2 * expected[1], (found, expected)
    inputs = field_inputs(case, dtype, DEVICE)
    first, second = run(kernel, inputs), run(kernel, inputs)
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


@pytest.mark.parametrize(("capability", "fence", "stages"), [((9, 0), True, 3), ((10, 0), False, 1)])
def test_triton_before_3_9_gets_a_fence_or_loops_without_copies(
    capability: tuple[int, int],
    fence: bool,
    stages: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Triton's fault #9610, with one warning; other versions, devices and dtypes are as they were."""
    backend, arch = "cuda", 10 * capability[0] + capability[1]
    monkeypatch.setattr(kernel_module, "_target", lambda device: (backend, arch))
    inputs = field_inputs(SHORT)
    kernel_module._warn_of_omitted_fence.cache_clear()
    for version, affected in (((3, 6), True), ((3, 8), True), ((3, 9), False), ((4, 0), False)):
        monkeypatch.setattr(kernel_module, "_VERSION", version)
        for dtype in (torch.float16, torch.bfloat16):
            layers = kernel_module.pack_layers(inputs.weights, inputs.biases, SHORT.channels, dtype)
            assert layers.fence == (affected and fence)
            assert layers.tiling.stages == (stages if affected else 3)
        assert not kernel_module.needs_fence(torch.float32, backend, arch)
        for other in ((backend, 80), (backend, 120), ("hip", "gfx942")):
            assert not kernel_module.omits_fence(*other)
    assert caplog.text.count("triton-lang/triton #9610") == 1


TILINGS = [*dict.fromkeys(t for arch in (80, 90) for t in kernel_module.tilings(torch.float16, "cuda", arch))]


@pytest.mark.slow
@pytest.mark.skipif(DEVICE == "cuda", reason="compute-sanitizer checks a GPU")
@pytest.mark.parametrize("tiling", TILINGS, ids=str)
def test_every_tiling_stays_within_its_tensors(tiling: kernel_module.Tiling) -> None:
    for case in (SHORT._replace(batch=1, hidden=(40,)), CENTRED._replace(batch=1)):
        inputs = field_inputs(case, torch.float16)
        with torch.no_grad(), accesses_checked():
            layers = kernel_module.pack_layers(
                inputs.weights, inputs.biases, case.channels, torch.float16, tiling
            )
            places = kernel_module.locate(
                inputs.points, inputs.intrinsics, inputs.image_size, case.map_size, layers, inputs.centres
            )
            maps = kernel_module.project_maps(inputs.features, inputs.hand_scale, layers)
            found = kernel_module.evaluate(maps, places, layers)
        for got, expected in zip(found, run(reference, inputs), strict=True):
            torch.testing.assert_close(got, expected, rtol=0.02, atol=0.2)


@pytest.mark.skipif(DEVICE == "cuda", reason="the interpreter's check")
def test_the_check_finds_accesses_outside_of_tensors() -> None:
    inputs = field_inputs(SHORT)
    layers = kernel_module.pack_layers(inputs.weights, inputs.biases, SHORT.channels, torch.float32)
    places = kernel_module.locate(inputs.points, inputs.intrinsics, 224, SHORT.map_size, layers)
    maps = kernel_module.project_maps(inputs.features, inputs.hand_scale, layers)
    with accesses_checked(), pytest.raises(Exception, match="outside the tensors"):
        kernel_module.sample(maps[:1, :-1].expand(2, -1, -1), places, layers)


@pytest.mark.cuda
@pytest.mark.parametrize("network", ["full", "default"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_runs_are_equal_bit_by_bit(network: str, dtype: torch.dtype) -> None:
    """With poisoned memory: products that read copies before they arrive would differ now and then.

    The full network runs on the dense grid of 4 mm, or of 8 mm on a device with little memory.
    """
    if network == "full":
        inputs = field_inputs(FULL_NETWORK, dtype, DEVICE)
        points, biases = frustum_grid(4.0 if torch.cuda.mem_get_info()[0] > 2**33 else 8.0, DEVICE), None
    else:
        inputs = field_inputs(DEFAULT_NETWORK._replace(batch=64, count=2200), dtype, DEVICE)
        points, biases = inputs.points, inputs.biases
    channels, map_size = inputs.features.shape[1], tuple(inputs.features.shape[2:])
    vectors = [torch.zeros(len(weight), device=DEVICE) for weight in inputs.weights]
    options: dict[str, Any] = {"channels": channels, "image_size": inputs.image_size, "dtype": dtype}
    query = ops.FieldQuery(inputs.weights, vectors if biases else inputs.biases, **options)
    places = query.locate(points, inputs.intrinsics, map_size, inputs.centres)
    maps = query.project(inputs.features, inputs.hand_scale, None if biases is None else torch.cat(biases, 1))
    first = query.sample(maps, places).sdf
    different = torch.zeros((), dtype=torch.int64, device=DEVICE)
    for _ in range(200):
        different += (query.sample(maps, places).sdf != first).sum()
    assert not first.isnan().any() and first.isfinite().float().mean() > 0.5
    assert different == 0
