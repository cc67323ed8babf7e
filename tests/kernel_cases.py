"""Networks and points that the tests and benchmarks of the operations share."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class FieldCase(NamedTuple):
    """A field and where it is asked; the points cover `spread` of the view's side, more than 1 leaves it."""

    batch: int
    count: int
    channels: int
    map_size: tuple[int, int]
    hidden: tuple[int, ...]
    hand_scale: bool = True
    image_size: int = 224
    spread: float = 1.2


class FieldInputs(NamedTuple):
    """The tensor arguments of `query_field`, and its image_size."""

    features: Tensor
    points: Tensor
    intrinsics: Tensor
    hand_scale: Tensor | None
    weights: list[Tensor]
    biases: list[Tensor]
    image_size: int

    def double(self) -> FieldInputs:
        return FieldInputs(
            self.features.double(),
            self.points.double(),
            self.intrinsics.double(),
            None if self.hand_scale is None else self.hand_scale.double(),
            [weight.double() for weight in self.weights],
            [bias.double() for bias in self.biases],
            self.image_size,
        )


SMALL_NETWORK = FieldCase(2, 200, 64, (32, 32), (256, 128, 64, 64), image_size=128, spread=0.2)
FULL_NETWORK = FieldCase(1, 60, 256, (56, 56), (1024, 512, 256, 128), spread=0.04)
FIELD_CASES = {
    "one point": FieldCase(1, 1, 8, (9, 7), (40, 24), spread=0.9),
    "63 points, one hidden layer, no scale": FieldCase(3, 63, 30, (16, 16), (64,), hand_scale=False),
    "1000 points, small map": FieldCase(1, 1000, 20, (10, 12), (64, 48, 32), image_size=128),
    "small network": SMALL_NETWORK,
    "full network": FULL_NETWORK,
}


def field_inputs(case: FieldCase, dtype: torch.dtype = torch.float32, device: str = "cpu") -> FieldInputs:
    """Random inputs, the network exact in `dtype`: every implementation starts from the same numbers."""
    batch, count, size = case.batch, case.count, case.image_size
    focal = 480 * size / 224
    intrinsics = torch.tensor([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]])
    depth = 300 + 500 * torch.rand(batch, count, 1)
    offsets = (torch.rand(batch, count, 2) - 0.5) * case.spread * size
    points = torch.cat([offsets * depth / focal, depth], -1)
    inputs = case.channels + 1 + case.hand_scale
    weights, biases, hidden = [], [], 0
    for width in (*case.hidden, 85):
        weights.append(torch.randn(width, hidden + inputs) * math.sqrt(2 / (hidden + inputs)))
        biases.append(0.05 * torch.randn(width))
        hidden = width
    weights[-1][0] *= 0.1  # a few points come near the surface
    features = torch.randn(batch, case.channels, *case.map_size)
    return FieldInputs(
        features.to(device, dtype),
        points.to(device),
        intrinsics.to(device),
        torch.linspace(20, 30, batch, device=device) if case.hand_scale else None,
        [weight.to(dtype).to(device, torch.float32) for weight in weights],
        [bias.to(dtype).to(device, torch.float32) for bias in biases],
        size,
    )


def rms(error: Tensor) -> float:
    """Root mean square of the finite entries."""
    return error[error.isfinite()].double().square().mean().sqrt().item()
