"""The field of Eq. 4 in plain PyTorch, layer by layer as in the paper: the definition of `query_field`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

POSITION_MM = 60.0  # mm, unit of a position relative to a centre


def query_field(
    features: Tensor,
    points: Tensor,
    intrinsics: Tensor,
    hand_scale: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    centres: Tensor | None = None,
    *,
    image_size: int = 224,
) -> tuple[Tensor, Tensor]:
    """Signed distance and votes, f(S(F, pi(p)), Z(p)) = (s, V) of Eq. 4, as in `nvf_fast.ops.query_field`.

    The geometry and the results are in the dtype of `points`, and the network runs in the dtype of
    `features`; both may be float64.
    """
    batch, channels = features.shape[:2]
    points = points.expand(batch, -1, -1)
    intrinsics = intrinsics.to(points.dtype).expand(batch, -1, -1)

    pixels = points @ intrinsics.mT
    uv = pixels[..., :2] / pixels[..., 2:] / (image_size / 2) - 1
    inside = (points[..., 2] > 0) & (uv.abs() <= 1).all(-1)

    uv = torch.where(inside[..., None], uv, 0.0)
    sampled = F.grid_sample(features.to(points.dtype), uv[:, None], align_corners=True)[:, :, 0].mT
    if centres is not None:
        inputs = [sampled, (points - centres.to(points.dtype)[:, None]) / POSITION_MM]
    else:
        depth = points[..., 2:] / (intrinsics[:, :1, :1] * (224 / image_size))
        inputs = [sampled, depth]
        if weights[0].shape[1] == channels + 2:
            scale = torch.zeros_like(depth)
            if hand_scale is not None:
                scale = (hand_scale.to(depth)[:, None, None] - 15) / 25
            inputs.append(scale.expand_as(depth))
    x = torch.cat(inputs, -1).to(features.dtype)

    output = x
    for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        if layer > 0:
            output = torch.cat([F.leaky_relu(output, 0.01), x], -1)
        if bias.ndim == 1:
            output = F.linear(output, weight.to(x.dtype), bias.to(x.dtype))
        else:
            output = F.linear(output, weight.to(x.dtype)) + bias.to(x.dtype)[:, None]
    output = output.to(points.dtype)

    sdf = torch.where(inside, 50 * torch.tanh(output[..., 0]), math.inf)
    votes = torch.where(inside[..., None], output[..., 1:], 0.0)
    return sdf, votes.unflatten(-1, (-1, 4))
