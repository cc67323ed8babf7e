"""The field of small networks in one launch: against float64, its rule, and its votes near the surface."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import nvf_fast
from nvf_fast import ops
from nvf_fast.kernels.query_field import resident
from nvf_fast.kernels.query_field.reference import query_field as reference
from tests.kernel_cases import DEFAULT_NETWORK, FieldCase, FieldInputs, field_inputs, rms

# Without a GPU kernels run in Triton's interpreter, whose bfloat16 products are wrong.
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [
    # On a GPU the weights exceed shared memory in float32.
    pytest.param(torch.float32, marks=pytest.mark.skipif(DEVICE == "cuda", reason="exceeds shared memory")),
    torch.float16,
    pytest.param(torch.bfloat16, marks=pytest.mark.cuda),
]
CASES = {
    "one point": (1, 1),
    "63 points, one tile": (2, 63),
    "129 points, two tiles": (3, 129),
}
pytestmark = [
    pytest.mark.filterwarnings("ignore:invalid value encountered in divide:RuntimeWarning"),
    pytest.mark.usefixtures("poisoned_memory"),
]
needs_capability_9 = pytest.mark.skipif(
    DEVICE == "cuda" and torch.cuda.get_device_capability()[0] != 9, reason="for compute capability 9.x"
)


def case(batch: int, count: int) -> FieldCase:
    """A case of the default network with some points out of view, unless it has one alone."""
    return DEFAULT_NETWORK._replace(batch=batch, count=count, spread=0.9 if count == 1 else 1.1)


def sampled(
    inputs: FieldInputs, surface_mm: float, biases: Sequence[Tensor] = ()
) -> tuple[resident.Samples, resident.Layers]:
    """Sample with biases of the network, or of each image."""
    own = [bias[0] if bias.ndim == 2 else bias for bias in inputs.biases]
    channels, dtype = inputs.features.shape[1], inputs.features.dtype
    layers = resident.pack_layers(inputs.weights, own, channels, dtype, surface_mm)
    map_size = inputs.features.shape[2:]
    assert inputs.centres is not None
    places = resident.locate(
        inputs.points, inputs.intrinsics, inputs.image_size, map_size, layers, inputs.centres
    )
    return resident.sample(
        resident.project_maps(inputs.features, None, layers, torch.cat(biases, 1) if biases else None),
        places,
        layers,
    ), layers


def exact(inputs: FieldInputs) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        sdf, votes = reference(**inputs.double()._asdict())
    return sdf, votes


@needs_capability_9
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_errs_at_most_twice_as_much_as_pytorch(name: str, dtype: torch.dtype) -> None:
    found, by_torch = [], []
    for _ in range(8 if name == "one point" else 1):  # rounding of a single value is random
        inputs = field_inputs(case(*CASES[name]), dtype, DEVICE)
        expected = exact(inputs)
        samples, _ = sampled(inputs, math.inf, inputs.biases)
        with torch.no_grad():
            in_dtype = reference(**inputs._asdict())
        outside = expected[0].isinf()
        assert torch.equal(samples.sdf.isinf(), outside)
        assert samples.votes[outside].isnan().all(), "votes out of view are not written"
        got = samples.sdf, samples.votes.masked_fill(outside[..., None, None], 0.0)
        for errors, result in ((found, got), (by_torch, in_dtype)):
            errors.append(
                [rms((each - right)[~outside]) for each, right in zip(result, expected, strict=True)]
            )
    errors, limits = (torch.tensor(each).square().mean(0).sqrt() for each in (found, by_torch))
    assert (errors <= 2 * limits).all(), (errors, limits)


@needs_capability_9
def test_votes_are_written_near_the_surface_only() -> None:
    inputs = field_inputs(case(2, 150), torch.float16, DEVICE)
    every, layers = sampled(inputs, math.inf)
    surface_mm = float(every.sdf.abs().flatten().kthvalue(60).values)
    samples, _ = sampled(inputs, surface_mm)
    assert torch.equal(samples.sdf, every.sdf)
    near = samples.sdf.abs() < surface_mm
    assert near.sum() == 59
    assert torch.equal(samples.votes[near], every.votes[near]) and samples.votes[~near].isnan().all()
    indices = torch.full((2, 70), -1, device=DEVICE)
    for row, which in zip(indices, near, strict=True):
        row[: which.sum()] = which.nonzero()[:, 0]
    votes = resident.votes(samples, indices, layers)
    for image in range(2):
        count = int(near[image].sum())
        assert torch.equal(votes[image, :count], samples.votes[image, near[image]])
        assert (votes[image, count:] == 0).all()


@needs_capability_9
def test_points_out_of_view_and_common_points() -> None:
    """Common points and intrinsics equal copies for each image; every point out of view has no vote."""
    inputs = field_inputs(case(2, 40), torch.float16, DEVICE)
    outside = torch.tensor(
        [[0, 0, 0], [0, 0, -500], [math.nan, 0, 500], [0, 0, math.nan], [0, 0, math.inf], [1e30, 0, 500]]
        + [[0, 500, 500], [0, 0, -0.0]],
        device=DEVICE,
    )
    points, intrinsics = torch.cat([inputs.points[0], outside]), inputs.intrinsics[0]
    common, layers = sampled(inputs._replace(points=points, intrinsics=intrinsics), math.inf)
    copies = inputs._replace(points=points.repeat(2, 1, 1), intrinsics=intrinsics.repeat(2, 1, 1))
    separate, _ = sampled(copies, math.inf)
    assert torch.equal(common.sdf, separate.sdf)
    assert (common.sdf[:, -len(outside) :] == math.inf).all() and common.sdf[:, :40].isfinite().any()
    places = resident.locate(*copies[1:3], 128, (32, 32), layers, copies.centres)
    assert inputs.centres is not None
    sdf, votes = resident.evaluate(resident.project_maps(inputs.features, None, layers), places, layers)
    assert torch.equal(sdf, separate.sdf) and (votes[sdf.isinf()] == 0).all()


@needs_capability_9
def test_field_query_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = field_inputs(case(2, 30), torch.float16, DEVICE)
    expected, _ = sampled(inputs, 20.0, inputs.biases)

    def prepared() -> ops.FieldQuery:
        return ops.FieldQuery(
            inputs.weights, [bias[0] for bias in inputs.biases],
            channels=64, image_size=128, dtype=torch.float16, surface_mm=20.0, backend="triton",
        )  # fmt: skip

    query = prepared()
    maps = query.project(inputs.features, None, torch.cat(inputs.biases, 1))
    assert inputs.centres is not None
    places = query.locate(inputs.points, inputs.intrinsics, (32, 32), inputs.centres)
    assert torch.equal(query.sample(maps, places).sdf, expected.sdf)
    second = query.locate(inputs.points[1:], inputs.intrinsics[1:], (32, 32), inputs.centres[1:])
    assert torch.equal(query.sample(query.image_maps(maps, 1), second).sdf, expected.sdf[1:])
    monkeypatch.setattr(resident, "supports", lambda *_: False)
    assert isinstance(prepared().project(inputs.features, None).projected, Tensor), (
        "maps of the general kernel"
    )


@pytest.mark.skipif(DEVICE == "cuda", reason="float32 exceeds shared memory")
def test_pose_of_the_default_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same voters and, to 1e-3 mm in float32, the same joints and votes as with PyTorch."""
    folder = Path(__file__).parent.parent / "benchmarks/images"
    labels, image = json.loads((folder / "one_hand.json").read_text()), Image.open(folder / "one_hand.jpg")
    hand, K = labels["hands"][0], np.array(labels["K"])
    pixels = np.array(hand["joints"]) @ K.T
    pixels = pixels[:, :2] / pixels[:, 2:]
    box = [*(pixels.min(0) - 15), *(pixels.max(0) + 15)]
    monkeypatch.setattr(resident, "supports", lambda *_: True)
    poses = [
        nvf_fast.load(device="cpu", backend=backend, step_mm=32.0, surface_mm=20.0)(
            np.array(image), K, box=box, side=hand["side"], return_votes=True
        )
        for backend in ("torch", "triton")
    ]
    assert poses[0].valid and poses[0].voters == poses[1].voters > 5
    np.testing.assert_allclose(poses[0].votes.points, poses[1].votes.points, rtol=0, atol=1e-3)
    np.testing.assert_allclose(poses[0].joints, poses[1].joints, rtol=0, atol=1e-3)
    np.testing.assert_allclose(poses[0].votes.directions, poses[1].votes.directions, rtol=0, atol=1e-4)


def test_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    half, cuda = torch.float16, torch.device("cuda", 0)
    weights = field_inputs(case(1, 1)).weights
    others = field_inputs(DEFAULT_NETWORK._replace(hidden=(128, 128, 64, 64), count=1)).weights
    about_depth = field_inputs(DEFAULT_NETWORK._replace(centred=False, count=1)).weights

    def supports(
        major: int, shared: int, *, weights: list[Tensor] = weights, dtype: torch.dtype = half
    ) -> bool:
        properties = SimpleNamespace(major=major, shared_memory_per_multiprocessor=shared)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
        return resident.supports(weights, 64, dtype, cuda)

    # Bytes of shared memory of a multiprocessor: H100, A100, B200, RTX 4090 and RTX 5090.
    assert supports(9, 233_472) and supports(9, 233_472, dtype=torch.bfloat16)
    for major, shared in ((8, 167_936), (10, 233_472), (8, 102_400), (12, 102_400), (9, 200_000)):
        assert not supports(major, shared)
    assert not supports(9, 233_472, dtype=torch.float32)
    assert not supports(9, 233_472, weights=others) and not supports(9, 233_472, weights=about_depth)
    assert not resident.supports(weights, 63, half, torch.device("cpu"))
    assert resident.supports(weights, 64, half, torch.device("cpu")), "the interpreter runs the kernel"
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert not supports(9, 233_472)


def test_refuses_more_points_than_32_bits_count() -> None:
    """An offset of an image's votes has 32 bits; no memory of that size is needed to see it."""
    inputs = field_inputs(case(1, 1), torch.float16, DEVICE)
    own = [bias[0] for bias in inputs.biases]
    layers = resident.pack_layers(inputs.weights, own, 64, torch.float16)
    few, centres = torch.zeros(1, 3, device=DEVICE), torch.zeros(1, 3, device=DEVICE)
    intrinsics = torch.eye(3, device=DEVICE)
    points = few.expand(2**31 // 84, -1)
    with pytest.raises(ValueError, match="1 x 25565281 points x 84 channels pass 32-bit positions"):
        resident.locate(points, intrinsics, 128, (32, 32), layers, centres)
    with pytest.raises(ValueError, match="33554432 x 8192 points"):
        resident.locate(few.expand(2**13, -1), intrinsics, 128, (32, 32), layers, few.expand(2**25, -1))


@pytest.mark.cuda
@needs_capability_9
@pytest.mark.parametrize("batch", [1, 64])
def test_equal_runs_of_whole_lattices(batch: int) -> None:
    """200 runs are equal to the bit, and each image's results do not depend on the batch."""
    inputs = field_inputs(case(batch, 14**3), torch.float16, "cuda")
    surface_mm = 5.0
    first, _ = sampled(inputs, surface_mm, inputs.biases)
    near = first.sdf.abs() < surface_mm
    assert near.any()
    for _ in range(200):
        again, _ = sampled(inputs, surface_mm, inputs.biases)
        assert torch.equal(again.sdf, first.sdf) and torch.equal(again.votes[near], first.votes[near])
    last = FieldInputs(*(part[-1:] if isinstance(part, Tensor) else part for part in inputs))
    last = last._replace(biases=[bias[-1:] for bias in inputs.biases])
    alone, _ = sampled(last, surface_mm, last.biases)
    assert torch.equal(alone.sdf, first.sdf[-1:])
