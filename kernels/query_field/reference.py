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
    """Signed distance and votes of camera-space points, f(S(F, pi(p)), Z(p)) = (s, V) of Eq. 4.

    With `centres` of the hands, a point's position relative to the centre replaces its depth, and biases of
    each image may encode the pose.

    The geometry runs in the dtype of `points`, the network in the dtype of `features`; both may be float64.

    Args:
        features: (B, C, H, W) feature maps.
        points: (B, N, 3) or (N, 3) mm, camera frame.
        intrinsics: (B, 3, 3) or (3, 3) of the `image_size` px view, centred, fx = fy.
        hand_scale: (B,) mm, or None for a model without that input (or its neutral value).
        weights: L matrices (out, in); a layer's input is [hidden, x], the first one's x = [feature, depth(,
            scale)], or [feature, (point - centre) / POSITION_MM] with centres.
        biases: L vectors (out,), or (B, out) of each image.
        image_size: px, side of the view that `intrinsics` describe.
        centres: (B, 3) mm, camera frame, of the hands; None for a model that takes the depth.

    Returns:
        sdf (B, N) mm, +inf where a point is outside the view; votes (B, N, J, 4) raw (weight, direction xyz),
        zero where a point is outside the view. Both in the dtype of `points`.
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
