"""Derivatives of the field, the votes and the path from images to joints, against finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from nvf_fast import ops
from nvf_fast.camera import view_intrinsics
from nvf_fast.config import NVFConfig
from nvf_fast.model import NVF
from tests.kernel_cases import FieldCase, field_inputs

CASES = {
    "depth and hand scale": FieldCase(2, 4, 5, (6, 7), (8, 6), spread=0.8),
    "centres": FieldCase(2, 4, 5, (6, 7), (8,), hand_scale=False, spread=0.8, centred=True),
}
REFERENCE = NVFConfig(input_size=16, stem=8, width=8, stacks=2, depth=1, groups=2, hidden=(8,))
HAND = NVFConfig(
    input_size=32, width=8, hidden=(8,), hand_scale=False, encoder="unet", view="hand",
    channels=(4, 4, 6, 6, 8), pose_code=4,
)  # fmt: skip


def check(function: Callable[..., Any], *inputs: Tensor) -> None:
    """Check first and second derivatives along random directions, in float64."""
    for each in inputs:
        assert each.dtype == torch.float64
        each.requires_grad_()
    assert gradcheck(function, inputs, eps=1e-5, fast_mode=True)
    assert gradgradcheck(function, inputs, eps=1e-5, fast_mode=True, check_undefined_grad=False)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_field(case: FieldCase) -> None:
    given = field_inputs(case).double()
    place = given.hand_scale if given.centres is None else given.centres
    layers = len(given.weights)

    def field(features: Tensor, points: Tensor, K: Tensor, place: Tensor, *rest: Tensor) -> tuple[Any, ...]:
        scale, centres = (None, place) if case.centred else (place, None)
        options = {"image_size": given.image_size}
        sdf, votes = ops.query_field(
            features, points, K, scale, rest[:layers], rest[layers:], centres, **options
        )
        assert sdf.isfinite().any()
        return sdf.where(sdf.isfinite(), 0.0), votes

    assert place is not None
    check(field, given.features, given.points, given.intrinsics, place, *given.weights, *given.biases)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_keeps_the_gradient_of_depth(dtype: torch.dtype) -> None:
    given = field_inputs(CASES["depth and hand scale"], dtype)
    gradients = []
    for inputs in (given, given.double()):
        points = inputs.points.clone().requires_grad_()
        sdf, _ = ops.query_field(inputs.features, points, *inputs[2:6])
        (gradient,) = torch.autograd.grad(sdf[sdf.isfinite()].sum(), points)
        gradients.append(gradient.double())
    error, size = (gradients[0] - gradients[1]).norm(), gradients[1].norm()
    assert 0 < error < (2e-3 if dtype == torch.float16 else 2e-2) * size  # 2 ulp of the dtype


def test_points_out_of_view_have_zero_gradients() -> None:
    given = field_inputs(CASES["depth and hand scale"])
    points = torch.tensor([[0.0, 0, 500], [900, 0, 500], [1, 2, 0], [0, 0, 0], [3, 4, -500]])
    points = points.expand(2, -1, -1).clone().requires_grad_()
    sdf, votes = ops.query_field(given.features, points, *given[2:6])
    (sdf.where(sdf.isfinite(), 0.0).sum() + votes.sum()).backward()
    assert points.grad is not None
    assert (points.grad[:, 0] != 0).any() and (points.grad[:, 1:] == 0).all()


def voting(count: int = 8) -> tuple[Tensor, Tensor]:
    votes = torch.randn(2, count, 3, 4, dtype=torch.float64)
    votes[..., 0] = 0.1 + 0.8 * torch.rand(2, count, 3)
    return 100 * torch.randn(2, count, 3, dtype=torch.float64), votes


def test_votes() -> None:
    counts = torch.tensor([8, 5], dtype=torch.int32)
    check(lambda points, votes: ops.cast_votes(points, votes, counts), *voting())


def test_votes_that_do_not_count_have_zero_gradients() -> None:
    points, votes = voting()
    points[1, 5:], votes[1, 5:] = math.nan, math.nan
    points.requires_grad_(), votes.requires_grad_()
    counts = torch.tensor([1, 5], dtype=torch.int32)  # a single voter has no spread
    with torch.no_grad():
        expected = ops.cast_votes(points, votes, counts)
    found = ops.cast_votes(points, votes, counts)
    for result, value in zip(found, expected, strict=True):
        torch.testing.assert_close(result, value)
    sum(result.sum() for result in found).backward()
    assert points.grad is not None and votes.grad is not None
    counted = votes.grad[..., 0] != 0
    assert counted.sum(1).tolist() == [[1, 1, 1], [2, 2, 2]]  # int(5 * 0.5)
    assert points.grad.isfinite().all() and votes.grad.isfinite().all()
    assert not votes.grad[..., 1:][~counted].any()


def test_no_voters_and_gradients() -> None:
    points, votes = voting()
    counts = torch.tensor([0, 8], dtype=torch.int32)
    joints, weight, spread = ops.cast_votes(points, votes.requires_grad_(), counts)
    assert joints[0].isnan().all() and spread[0].isnan().all() and (weight[0] == 0).all()
    joints[1].sum().backward()
    assert votes.grad is not None and votes.grad.isfinite().all() and not votes.grad[0].any()


def voted(model: NVF, images: Tensor, points: Tensor, K: Tensor, scale: Tensor | None) -> Tensor:
    """Cast the votes of all points."""
    field = model(images, points, K, scale)
    votes = torch.cat([field.weight[..., None], field.direction], -1)
    counts = torch.full((len(images),), votes.shape[1], dtype=torch.int32)
    joints, _, spread = ops.cast_votes(points, votes, counts)
    return torch.cat([joints.flatten(1), spread, field.sdf], 1)


def frozen(config: NVFConfig) -> NVF:
    """A network whose votes have positive weights, without gradients of its parameters."""
    model = NVF(config).double().eval().requires_grad_(False)
    model.field.weights[-1].normal_(std=0.1)
    model.field.weights[-1][1::4] *= 0.1
    model.field.biases[-1][1::4] = 1.0
    return model


def test_images_to_joints() -> None:
    model = frozen(REFERENCE)
    points = torch.rand(1, 6, 3, dtype=torch.float64) * 100 + torch.tensor([-50.0, -50, 450])
    scale, K = torch.tensor([25.0], dtype=torch.float64), model.reference_intrinsics.double()
    images = torch.randn(1, 3, 16, 16, dtype=torch.float64)
    check(lambda *given: voted(model, *given), images, points, K, scale)


def test_hand_view_to_joints() -> None:
    model = frozen(HAND)
    slopes = torch.tensor([0.2, 0.3], dtype=torch.float64)
    K, images = view_intrinsics(slopes, 32), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    middle = model.encode_hands(images, slopes).joints(slopes).mean(1, keepdim=True)
    points = middle + 5 * torch.randn(2, 5, 3, dtype=torch.float64)
    check(lambda *given: voted(model, *given, None), images, points, K)
