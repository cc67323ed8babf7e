"""Networks under torch.compile: one graph, the same values and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nvf_fast.camera import view_intrinsics
from nvf_fast.model import NVF
from tests.hand_cases import hand_network
from tests.reference_cases import reference_network


def network_and_inputs(view: str) -> tuple[NVF, tuple[Tensor, ...]]:
    """A small network and images, points, intrinsics and hand scales for its forward."""
    if view == "hand":
        model, slopes, scale = hand_network(), torch.tensor([0.2, 0.25]), ()
        intrinsics = view_intrinsics(slopes, model.config.input_size)
    else:
        model, scale = reference_network(1.0, depth=1), (torch.tensor([24.0, 30.0]),)
        intrinsics = model.reference_intrinsics
    size = model.config.input_size
    points = torch.rand(2, 9, 3) * 40 + torch.tensor([-20.0, -20.0, 400.0])
    return model, (torch.rand(2, 3, size, size) * 2 - 1, points, intrinsics, *scale)


@pytest.mark.slow
@pytest.mark.parametrize("view", ["hand", "reference"])
def test_networks_compile_into_one_graph(view: str) -> None:
    model, inputs = network_and_inputs(view)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for gradients in (False, True):
        with torch.set_grad_enabled(gradients):
            results, expected = compiled(*inputs), model(*inputs)
        for got, right in zip(results, expected, strict=True):
            torch.testing.assert_close(got, right, atol=1e-4, rtol=1e-4)
    assert expected.sdf.isfinite().all()
    gradients_of = [
        torch.autograd.grad(values.sdf.mean() + values.weight.square().mean(), list(model.field.weights))
        for values in (results, expected)
    ]
    for got, right in zip(*gradients_of, strict=True):
        torch.testing.assert_close(got, right, atol=1e-4, rtol=1e-3)


@pytest.mark.slow
def test_forward_exports_for_any_batch_and_number_of_points() -> None:
    model, (images, points, intrinsics) = network_and_inputs("hand")
    model.requires_grad_(False)
    batch, count = torch.export.Dim("batch"), torch.export.Dim("count")
    shapes = {"images": {0: batch}, "points": {0: batch, 1: count}, "K": {0: batch}}
    program = torch.export.export(model, (images, points, intrinsics), dynamic_shapes=shapes)
    assert "nvf_fast.query_field" in str(program.graph)
    inputs = images[:1], points[:1, :4], intrinsics[:1]
    for got, expected in zip(program.module()(*inputs), model(*inputs), strict=True):
        torch.testing.assert_close(got, expected)
