"""Coarse poses and the field's inputs in plain PyTorch: the definition of `place_hands`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

DEPTH_MM = 60.0  # unit of the depth maps: half the depth of a hand
TYPICAL_MM_PER_PX = 1.7  # at the middle of a hand that spans 75 % of 128 px
TYPICAL_ERROR_MM = 30.0
LOG_RANGE = 4.0  # bound of abs(log(value / typical value)), which no loss bounds in empty views
POSITION_MM = 60.0  # unit of joints relative to their centre
PRESENCE, LEFT, ERRORS = 1, 2, 3  # outputs of a view after the logarithm of its scale; errors come last


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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Coarse poses and the field's inputs, as in `nvf_fast.ops.place_hands`."""
    batch = len(slopes)
    left = torch.zeros_like(slopes, dtype=torch.bool)
    if len(maps) > batch:
        left = views[:batch, LEFT] > views[batch:, LEFT]
        maps = torch.where(left[:, None, None, None], maps[batch:], maps[:batch])
        views = torch.where(left[:, None], views[batch:], views[:batch])
    heat, relative = _pointwise(maps.to(views.dtype), joints).chunk(2, 1)
    place, depth, _ = coarse_pose(heat, relative, views[:, 0], slopes, places, image_size)
    coarse = coarse_joints(place, depth, slopes)
    sampled = _pointwise(maps, features) if features else maps.clone()
    return (
        sampled.contiguous(memory_format=torch.channels_last),
        coarse,
        expected_errors(views[:, ERRORS:]),
        views[:, PRESENCE].clone(),
        left,
        *place_lattice(coarse, slopes, uv, depths, image_size),
        field_biases(coarse, code, biases),
    )


def coarse_pose(
    heat: Tensor, relative: Tensor, log_scale: Tensor, slopes: Tensor, places: Tensor, image_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Joints in the view (B, J, 2), their depths (B, J) mm, and the depth (B,) mm they are relative to.

    Args:
        heat, relative: (B, J, S, S), logits of each joint's position, and depths in units of `DEPTH_MM`.
        log_scale: (B,).
        slopes: (B,), tangents of half the views' angles.
        places: (S,), texel centres in the view, in [-1, 1].
        image_size: px, side of the view.
    """
    weight = heat.flatten(2).softmax(-1)
    rows = weight.unflatten(2, heat.shape[2:])
    uv = torch.stack([rows.sum(2) @ places, rows.sum(3) @ places], -1)
    relative = (weight * relative.flatten(2)).sum(-1)
    middle = log_scale.clamp(-LOG_RANGE, LOG_RANGE).exp() * (TYPICAL_MM_PER_PX * image_size / 2) / slopes
    return uv, middle[:, None] + DEPTH_MM * relative, middle


def coarse_joints(uv: Tensor, depth: Tensor, slopes: Tensor) -> Tensor:
    """Joints (B, J, 3) mm at places (B, J, 2) in the views and at depths (B, J) mm."""
    return torch.cat([uv * (slopes[:, None] * depth)[..., None], depth[..., None]], -1)


def expected_errors(logs: Tensor) -> Tensor:
    """Expected errors in mm from their logarithms, in units of `TYPICAL_ERROR_MM`."""
    return TYPICAL_ERROR_MM * logs.clamp(-LOG_RANGE, LOG_RANGE).exp()


def place_lattice(
    coarse: Tensor, slopes: Tensor, uv: Tensor, depths: Tensor, image_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Centres (B, 3) mm of poses, points (B, N, 3) mm of a lattice around them, intrinsics (B, 3, 3) px."""
    centres, half = coarse.mean(1), image_size / 2
    along = centres[:, 2:] + depths
    points = torch.cat([uv * (slopes[:, None] * along)[..., None], along[..., None]], -1)
    zero, one = torch.zeros_like(slopes), torch.ones_like(slopes)
    rows = [half / slopes, zero, half * one, zero, half / slopes, half * one, zero, zero, one]
    return centres, points, torch.stack(rows, 1).unflatten(1, (3, 3))


def field_biases(coarse: Tensor, code: Sequence[Tensor], biases: Tensor) -> Tensor:
    """Biases (B, W) of the field's layers for poses (B, J, 3) mm; without a code the same for all."""
    if not code:
        return biases.expand(len(coarse), -1).clone()
    relative = (coarse - coarse.mean(1, keepdim=True)) / POSITION_MM
    hidden = F.relu(F.linear(relative.flatten(1), code[0], code[1]))
    return F.linear(hidden, code[2], biases)


def _pointwise(x: Tensor, layer: Sequence[Tensor]) -> Tensor:
    weight, bias = layer
    return F.conv2d(x, weight[:, :, None, None], bias)
