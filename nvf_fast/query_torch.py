"""`query_field` in PyTorch, for CPU tensors and for gradients; tested against the reference.

Bilinear sampling is linear: W_x sample(F) = sample(W_x F). For many points, every layer's columns for x =
[feature, depth(, scale)] are applied to the feature map once, and a point then sums five rows of the result
instead of multiplying x by a matrix: 1.38 instead of 2.43 MFLOP per point of the released network. For few
points, or with gradients, the layers run as the paper writes them.

Preparation is separate, as for the kernel: `pack_layers` for a network, `locate` for a set of points,
`project_maps` for an image; `evaluate` brings them together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nvf_fast.kernels.query_field_ref import POSITION_MM

# Activations of the widest hidden layer per pass, which then stay in the caches. On two cores at 16 mm the
# embedded network, of 256 channels, took 53, 41, 35, 39 and 45 ms with 512, 1024, 2048, 4096 and 8192
# points a pass, the released one, of 1024, 374, 372 and 410 ms with 512, 1024 and 2048.
_PASS = 2**19


class Layers(NamedTuple):
    """A network's columns, layer by layer: for feature, position, scale and hidden activations."""

    columns: list[Tensor]  # (out, C) compute dtype
    position: list[Tensor]  # (P, out) float32, for the depth (P = 1) or the position about the centre (P = 3)
    scale: list[Tensor] | None  # (out,) float32
    bias: list[Tensor]  # (out,) or (B, out) float32
    matrices: list[Tensor]  # (in, out) compute dtype, of every layer but the first


class Places(NamedTuple):
    """Where one image's points lie on the map, in the order of the map; those out of view are left out."""

    order: Tensor  # (M,) the points in view
    texels: Tensor  # (M, 4 + P) the four texels around each, and the rows of the position's columns
    shares: Tensor  # (M, 4 + P) their bilinear weights, and the position
    total: int  # N, points in view or not


def query_field(
    features: Tensor,
    points: Tensor,
    intrinsics: Tensor,
    hand_scale: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    image_size: int,
    surface_mm: float,
    centres: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Signed distance and votes; `nvf_fast.ops.query_field` describes them, and has checked the arguments.

    Where gradients are enabled it is differentiable in features, weights and biases.
    """
    batch, channels, height, width = features.shape
    many = points.shape[-2] >= height * width
    if many and len(weights) > 1 and not torch.is_grad_enabled():
        layers = pack_layers(weights, biases, channels, features.dtype)
        places = locate(points, intrinsics, image_size, (height, width), layers, centres)
        sdf, votes, _ = evaluate(project_maps(features, hand_scale, layers), places, layers, surface_mm)
        return sdf, votes
    points = points.expand(batch, -1, -1)
    inside, texels, shares, position = _geometry(points, intrinsics, image_size, (height, width), centres)
    scale = None
    if weights[0].shape[1] == channels + 2:
        scale = position.new_zeros(batch) if hand_scale is None else (hand_scale - 15) / 25
    raw = _as_written(features, texels, shares, position, scale, weights, biases)
    sdf = torch.where(inside, 50 * torch.tanh(raw[..., 0]), math.inf)
    near = sdf.abs() < surface_mm
    return sdf, torch.where(near[..., None], raw[..., 1:], 0.0).unflatten(-1, (-1, 4))


def pack_layers(
    weights: Sequence[Tensor], biases: Sequence[Tensor], channels: int, dtype: torch.dtype
) -> Layers:
    """The network's layers for features of C = `channels`, computed in `dtype`."""
    inputs = weights[0].shape[1]
    positions = 3 if inputs == channels + 3 else 1
    own = [weight[:, -inputs:] for weight in weights]
    return Layers(
        [columns[:, :channels].to(dtype) for columns in own],
        [columns[:, channels : channels + positions].float().mT for columns in own],
        [columns[:, channels + 1].float() for columns in own] if inputs == channels + 2 else None,
        [bias.float() for bias in biases],
        [weight[:, :-inputs].to(dtype).mT for weight in weights[1:]],
    )


def locate(
    points: Tensor,
    intrinsics: Tensor,
    image_size: int,
    map_size: tuple[int, int],
    layers: Layers,
    centres: Tensor | None = None,
) -> list[Places]:
    """Where points lie on the maps.

    Args:
        points: (B, N, 3) or (N, 3).
        intrinsics: (B, 3, 3) or (3, 3).
        image_size: px.
        map_size: (H, W).
        layers: from `pack_layers`.
        centres: (B, 3) or None.

    Returns:
        One `Places` per image, or a single one if the images share all of them.
    """
    points = points if points.ndim == 3 else points[None]
    intrinsics = intrinsics if intrinsics.ndim == 3 else intrinsics[None]
    images = max(len(points), len(intrinsics), 1 if centres is None else len(centres))
    points = points.expand(images, -1, -1)
    every_place = []
    for inside, texels, shares, position in zip(
        *_geometry(points, intrinsics, image_size, map_size, centres), strict=True
    ):
        order = inside.nonzero()[:, 0]
        if len(order) > _points_per_pass(layers):
            # In the order of the map, so that a pass reads a small part of it.
            order = order[texels[order, 0].argsort(stable=True)]
        texels, shares, position = texels[order], shares[order], position[order]
        first_row, columns = map_size[0] * map_size[1], position.shape[1]
        rows = torch.arange(first_row, first_row + columns, device=texels.device).expand(len(order), -1)
        texels, shares = torch.cat([texels, rows], 1), torch.cat([shares, position], 1)
        every_place.append(Places(order, texels, shares, len(inside)))
    return every_place


def project_maps(
    features: Tensor, hand_scale: Tensor | None, layers: Layers, biases: Sequence[Tensor] | None = None
) -> list[list[Tensor]]:
    """Features (B, C, H, W) through every layer's columns for x.

    Args:
        features, hand_scale: as `query_field` takes them.
        layers: from `pack_layers`.
        biases: L of (B, out), which replace the layers' own; None keeps those.

    Returns:
        Per image and layer (H * W + P, out) float32: a row per texel, and P for the position. The texels hold
        the bias and the scale's part too, which every point takes whole since its bilinear weights sum to 1.
    """
    every_map = []
    for image, rows in enumerate(features.flatten(2).mT.unbind()):
        rows = rows.contiguous()
        maps = []
        for layer, (columns, position, bias) in enumerate(
            zip(layers.columns, layers.position, biases or layers.bias, strict=True)
        ):
            constant = (bias[image] if bias.ndim == 2 else bias).float()
            if hand_scale is not None and layers.scale is not None:
                constant = constant + (hand_scale[image] - 15) / 25 * layers.scale[layer]
            maps.append(torch.cat([F.linear(rows, columns).float() + constant, position]))
        every_map.append(maps)
    return every_map


def evaluate(
    maps: list[list[Tensor]],
    places: list[Places],
    layers: Layers,
    surface_mm: float,
    capacity: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Signed distances, and the votes of the points with abs(sdf) < surface_mm; as the kernel's `evaluate`.

    Args:
        maps: of B images, from `project_maps`.
        places: of the points, from `locate`.
        layers: from `pack_layers`.
        surface_mm: mm.
        capacity: rows of votes per image; None is a row per point.

    Returns:
        sdf (B, N) float32 mm; votes (B, N or capacity, J, 4) float32; slots (B, N) int32, the row of `votes`
        that holds a near point's. A slot past the capacity was not written. Without a capacity `votes` are in
        the points' order, zero where a point is not near, and `slots` is empty.
    """
    batch, count, last = len(maps), places[0].total, maps[0][-1]
    sdf = last.new_full((batch, count), math.inf)
    if capacity is None:
        votes, slots = last.new_zeros(batch, count, last.shape[1] - 1), sdf.new_empty(batch, 0).int()
    else:
        votes = last.new_empty(batch, capacity, last.shape[1] - 1)
        slots = sdf.new_empty(batch, count, dtype=torch.int32)
    for image, its_maps in enumerate(maps):
        rows = 0
        its_places = places[image if len(places) > 1 else 0]
        for points, distances, near_points, raw in _passes(its_maps, its_places, layers, surface_mm):
            sdf[image, points] = distances
            if capacity is None:
                votes[image, near_points] = raw
                continue
            taken = range(rows, rows + len(near_points))
            slots[image, near_points] = torch.arange(
                taken.start, taken.stop, dtype=torch.int32, device=slots.device
            )
            kept = raw[: max(0, capacity - rows)]
            votes[image, rows : rows + len(kept)] = kept
            rows = taken.stop
    return sdf, votes.unflatten(-1, (-1, 4)), slots


def _passes(
    maps: list[Tensor], places: Places, layers: Layers, surface_mm: float
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Of one image, chunk by chunk: points, distances, the near ones among the points, their raw votes."""
    dtype = layers.columns[0].dtype
    sdf_map, votes_map = maps[-1][:, :1].contiguous(), maps[-1][:, 1:].contiguous()
    sdf_column, votes_columns = layers.matrices[-1][:, :1], layers.matrices[-1][:, 1:]

    def own_part(layer_map: Tensor, texels: Tensor, shares: Tensor) -> Tensor:
        return F.embedding_bag(texels, layer_map, per_sample_weights=shares, mode="sum").to(dtype)

    for points, texels, shares in zip(
        *(of_all.split(_points_per_pass(layers)) for of_all in (places.order, places.texels, places.shares)),
        strict=True,
    ):
        hidden = F.leaky_relu_(own_part(maps[0], texels, shares), 0.01)
        for layer_map, matrix in zip(maps[1:-1], layers.matrices[:-1], strict=True):
            hidden = F.leaky_relu_(own_part(layer_map, texels, shares).addmm_(hidden, matrix), 0.01)
        raw_distances = own_part(sdf_map, texels, shares).addmm_(hidden, sdf_column)
        distances = 50 * torch.tanh(raw_distances[:, 0].float())
        near = (distances.abs() < surface_mm).nonzero()[:, 0]
        raw = own_part(votes_map, texels[near], shares[near]).addmm_(hidden[near], votes_columns)
        yield points, distances, points[near], raw.float()


def _points_per_pass(layers: Layers) -> int:
    return max(1, _PASS // max(len(columns) for columns in layers.columns[:-1]))


def _geometry(
    points: Tensor, intrinsics: Tensor, image_size: int, map_size: tuple[int, int], centres: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of points (B, N, 3): in view or not (B, N), texels and bilinear weights (B, N, 4), position (B, N, P).

    The position is relative to the centre, or the depth without centres.
    """
    pixels = points @ intrinsics.mT
    uv = pixels[..., :2] / pixels[..., 2:] / (image_size / 2) - 1
    inside = (points[..., 2] > 0) & (uv.abs() <= 1).all(-1)
    texels, shares = _bilinear_taps(torch.where(inside[..., None], uv, 0.0), *map_size)
    if centres is not None:
        return inside, texels, shares, (points - centres[:, None]) / POSITION_MM
    focal = intrinsics[..., :1, :1]
    return inside, texels, shares, points[..., 2:] / (focal * (224 / image_size))


def _as_written(
    features: Tensor,
    texels: Tensor,
    shares: Tensor,
    position: Tensor,
    scale: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
) -> Tensor:
    """Raw outputs (B, N, 1 + 4 J) float32 of N points, layer by layer."""
    batch, channels, height, width = features.shape
    rows = features.float().flatten(2).mT.reshape(-1, channels)
    first = torch.arange(batch, device=texels.device)[:, None, None] * (height * width)
    sampled = F.embedding_bag(
        (texels + first).flatten(0, 1), rows, per_sample_weights=shares.flatten(0, 1), mode="sum"
    )
    extras = [position]
    if scale is not None:
        extras.append(scale[:, None, None].expand_as(position))
    shared_biases = biases[0].ndim == 1
    if shared_biases:
        extras.append(torch.ones_like(position[..., :1]))
    exact = _exact_columns(torch.cat(extras, -1).flatten(0, 1), features.dtype, (0, 1, 0))
    x = torch.cat([sampled.to(features.dtype), *exact], -1)
    hidden = x.new_empty(len(x), 0)
    for weight, bias in zip(weights, biases, strict=True):
        layer = _exact_layer(
            weight, bias if shared_biases else None, weights[0].shape[1] - channels, features.dtype
        )
        output = F.linear(torch.cat([hidden, x], -1), layer)
        if not shared_biases:
            # In place, since the product's gradient needs none of its own output.
            output.unflatten(0, position.shape[:2]).add_(bias[:, None])
        hidden = F.leaky_relu(output, 0.01)
    return output.float().unflatten(0, position.shape[:2])


def _bilinear_taps(uv: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Texels of an (H, W) map around uv (B, N, 2) in [-1, 1], row by row, and their shares: (B, N, 4) each.

    `embedding_bag` over these is `grid_sample` with align_corners=True, 10 times as fast or more on a CPU.
    """
    across, down = ((uv + 1) * (uv.new_tensor([width - 1, height - 1]) / 2)).unbind(-1)
    left, top = across.floor().clamp(0, width - 2), down.floor().clamp(0, height - 2)
    right_share, bottom_share = across - left, down - top
    shares = torch.stack(
        [
            (1 - right_share) * (1 - bottom_share),
            right_share * (1 - bottom_share),
            (1 - right_share) * bottom_share,
            right_share * bottom_share,
        ],
        -1,
    )
    first = (top * width + left).long()
    return first[..., None] + torch.tensor([0, 1, width, width + 1], device=uv.device), shares


def _exact_columns(columns: Tensor, dtype: torch.dtype, parts: tuple[int, ...]) -> list[Tensor]:
    """Float32 columns in `dtype`: rounded (part 0) and what rounding left (part 1); float32 stays one.

    One float16 depth costs up to 0.23 mm and one bfloat16 depth 1.9 mm; the products high x high + low x high
    + high x low, three columns each of input and weight, cost neither.
    """
    high = columns.to(dtype)
    if dtype == torch.float32:
        return [high]
    low = (columns - high.float()).to(dtype)
    return [(high, low)[part] for part in parts]


def _exact_layer(weight: Tensor, bias: Tensor | None, extra: int, dtype: torch.dtype) -> Tensor:
    """A layer's matrix for the input [hidden, feature, exact columns of (position(, scale)(, 1))]."""
    small = weight[:, -extra:] if bias is None else torch.cat([weight[:, -extra:], bias[:, None]], 1)
    return torch.cat([weight[:, :-extra].to(dtype), *_exact_columns(small.float(), dtype, (0, 0, 1))], 1)
