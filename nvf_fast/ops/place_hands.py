"""Coarse poses of hand views, and the field's inputs around them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from nvf_fast.kernels.place_hands import reference
from nvf_fast.ops.operation import FLOATS, Backend, Operation, check_tensor


class PlacedHands(NamedTuple):
    """Coarse poses of B views, and the inputs of the field."""

    features: Tensor  # (B, F, H, W) in the dtype of the maps
    coarse: Tensor  # (B, J, 3) float32 mm
    errors: Tensor  # (B, J) float32 mm, expected ones
    presence: Tensor  # (B,) float32, logit of a hand's presence
    left: Tensor  # (B,) bool, whether the mirror image was chosen
    centres: Tensor  # (B, 3) float32 mm
    points: Tensor  # (B, N, 3) float32 mm
    intrinsics: Tensor  # (B, 3, 3) float32 px
    biases: Tensor  # (B, W) float32, of the field's layers side by side


def place_hands(
    maps: Tensor,
    views: Tensor,
    slopes: Tensor,
    features: Sequence[Tensor],
    joints: Sequence[Tensor],
    places: Tensor,
    uv: Tensor,
    depths: Tensor,
    code: Sequence[Tensor],
    biases: Tensor,
    image_size: int,
    *,
    backend: Backend | None = None,
) -> PlacedHands:
    """Evaluate the heads of hand views and place the field around the coarse poses.

    A joint lies at the expectation of a softmax over the map. Of a view and its mirror image, the one with
    the smaller left-hand logit is used. With gradients the PyTorch backend runs, on any device.

    Args:
        maps: (B, C, S, S) float32, float16 or bfloat16; or (2 B, C, S, S), mirror images last. With float64,
            which runs in PyTorch, every float32 below is float64.
        views: (B, 3 + J) or (2 B, 3 + J) float32, outputs of `pool_maps`: logarithm of scale, logits of
            presence and of a left hand, logarithms of the joints' errors.
        slopes: (B,) float32, tangents of half the views' angles.
        features: weight (F, C) and bias (F,) in the dtype of `maps`; or empty, for the maps themselves.
        joints: weight (2 J, C) and bias (2 J,) float32, of position logits, then of relative depths.
        places: (S,) float32, texel centres in the view, in [-1, 1].
        uv, depths: (N, 2) and (N,) float32 mm, of `nvf_fast.volumes.HandLattice`.
        code: weight (K, 3 J), bias (K,) and weight (W, K) float32 of the pose code; or empty.
        biases: (W,) float32, of the field's layers, including the code's last bias.
        image_size: px, side of the views.
        backend: None, "triton" or "torch".

    Raises:
        ValueError, TypeError, RuntimeError: as every operation (`nvf_fast.ops`).
    """
    check_tensor("place_hands", "maps", maps, [("B", "C", "S", "S")], *FLOATS)
    exact = torch.float64 if maps.dtype == torch.float64 else torch.float32
    check_tensor("place_hands", "slopes", slopes, [("B",)], exact)
    (rows, channels, side, _), batch, count = maps.shape, len(slopes), len(depths)
    if rows not in (batch, 2 * batch) or maps.shape[3] != side:
        raise ValueError(
            f"place_hands: maps must be square, {batch} or twice as many, got {tuple(maps.shape)}"
        )
    if len(features) not in (0, 2) or len(joints) != 2 or len(code) not in (0, 3):
        raise ValueError(
            "place_hands: features must be 0 or 2 tensors, joints 2 and code 0 or 3, got "
            f"{len(features)}, {len(joints)} and {len(code)}"
        )
    joint_count, width = len(joints[1]) // 2, len(biases)
    expected: list[tuple[str, Tensor, tuple[int | str, ...]]] = [
        ("views", views, (rows, 3 + joint_count)),
        ("joints' weight", joints[0], (2 * joint_count, channels)),
        ("joints' bias", joints[1], (2 * joint_count,)),
        ("places", places, (side,)),
        ("uv", uv, (count, 2)),
        ("depths", depths, (count,)),
        ("biases", biases, (width,)),
    ]
    if code:
        units = len(code[1])
        shapes = (units, 3 * joint_count), (units,), (width, units)
        expected += [("the code", each, shape) for each, shape in zip(code, shapes, strict=True)]
    for name, tensor, shape in expected:
        check_tensor("place_hands", name, tensor, [shape], exact)
    if features:
        check_tensor("place_hands", "features' weight", features[0], [("F", channels)], maps.dtype)
        check_tensor("place_hands", "features' bias", features[1], [features[0].shape[:1]], maps.dtype)
    return PlacedHands(
        *_run(
            backend,
            maps,
            views,
            slopes,
            list(features),
            list(joints),
            places,
            uv,
            depths,
            list(code),
            biases,
            image_size,
        )
    )


_run = Operation("place_hands", reference.place_hands, gradients="torch")
