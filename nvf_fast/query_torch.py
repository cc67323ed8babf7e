"""`query_field` in PyTorch, for CPU tensors and for gradients; tested against the reference.

Bilinear sampling is linear: W_x sample(F) = sample(W_x F). Where many points are asked, every layer's columns
for x = [feature, depth(, scale)] are applied to the feature map once, and a point then sums five rows of the
result instead of multiplying x by a matrix: 1.38 instead of 2.43 MFLOP per point of the released network.
Where few are asked, or a gradient is wanted, the layers run as the paper writes them.

What stays is prepared once, as for the kernel: `pack_layers` for a network, `locate` for a set of points,
`project_maps` for a picture; `evaluate` brings them together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Activations of the widest hidden layer per pass, which then stay in the caches. On two cores at 16 mm the
# embedded network, of 256 channels, took 53, 41, 35, 39 and 45 ms with 512, 1024, 2048, 4096 and 8192
# points a pass, the released one, of 1024, 374, 372 and 410 ms with 512, 1024 and 2048.
_PASS = 2**19


class Layers(NamedTuple):
    """A network's columns, layer by layer: for the feature, the depth, the scale, and what is hidden."""

    columns: list[Tensor]  # (out, C) compute dtype
    depth: list[Tensor]  # (1, out) float32
    scale: list[Tensor] | None  # (out,) float32
    bias: list[Tensor]  # (out,) float32
    matrices: list[Tensor]  # (in, out) compute dtype, of every layer but the first


class Places(NamedTuple):
    """Where one image's points lie on the map, in the order of the map; those out of view are left out."""

    order: Tensor  # (P,) the points
    texels: Tensor  # (P, 5) the four texels around each, and the row of the depth column
    shares: Tensor  # (P, 5) their shares, and the depth
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
) -> tuple[Tensor, Tensor]:
    """Signed distance and votes; `nvf_fast.ops.query_field` describes them, and has checked the arguments.

    Where gradients are enabled it is differentiable in features, weights and biases.
    """
    batch, channels, height, width = features.shape
    many = points.shape[-2] >= height * width
    if many and len(weights) > 1 and not torch.is_grad_enabled():
        layers = pack_layers(weights, biases, channels, features.dtype)
        places = locate(points, intrinsics, image_size, (height, width), layers)
        sdf, votes, _ = evaluate(project_maps(features, hand_scale, layers), places, layers, surface_mm)
        return sdf, votes
    points = points.expand(batch, -1, -1)
    inside, texels, shares, depth = _geometry(points, intrinsics, image_size, (height, width))
    scale = None
    if weights[0].shape[1] == channels + 2:
        scale = depth.new_zeros(batch) if hand_scale is None else (hand_scale - 15) / 25
    raw = _as_written(features, texels, shares, depth, scale, weights, biases)
    sdf = torch.where(inside, 50 * torch.tanh(raw[..., 0]), math.inf)
    near = sdf.abs() < surface_mm
    return sdf, torch.where(near[..., None], raw[..., 1:], 0.0).unflatten(-1, (-1, 4))


def pack_layers(
    weights: Sequence[Tensor], biases: Sequence[Tensor], channels: int, dtype: torch.dtype
) -> Layers:
    """The network's layers for features of C = `channels`, computed in `dtype`."""
    inputs = weights[0].shape[1]
    own = [weight[:, -inputs:] for weight in weights]
    return Layers(
        [columns[:, :channels].to(dtype) for columns in own],
        [columns[:, channels, None].float().mT for columns in own],
        [columns[:, channels + 1].float() for columns in own] if inputs > channels + 1 else None,
        [bias.float() for bias in biases],
        [weight[:, :-inputs].to(dtype).mT for weight in weights[1:]],
    )


def locate(
    points: Tensor,
    intrinsics: Tensor,
    image_size: int,
    map_size: tuple[int, int],
    layers: Layers,
) -> list[Places]:
    """Where points (B, N, 3) or (N, 3) lie under intrinsics (B, 3, 3) or (3, 3).

    Returns:
        One `Places` per image, or a single one where the images share both.
    """
    points = points if points.ndim == 3 else points[None]
    intrinsics = intrinsics if intrinsics.ndim == 3 else intrinsics[None]
    points = points.expand(max(len(points), len(intrinsics)), -1, -1)
    every_place = []
    for inside, texels, shares, depth in zip(
        *_geometry(points, intrinsics, image_size, map_size), strict=True
    ):
        order = inside.nonzero()[:, 0]
        if len(order) > _points_per_pass(layers):
            # In the order of the map, so that a pass reads a small part of it.
            order = order[texels[order, 0].argsort(stable=True)]
        texel_count = map_size[0] * map_size[1]
        texels, shares, depth = texels[order], shares[order], depth[order, None]
        depth_row = torch.full_like(texels[:, :1], texel_count)
        texels, shares = torch.cat([texels, depth_row], 1), torch.cat([shares, depth], 1)
        every_place.append(Places(order, texels, shares, len(inside)))
    return every_place


def project_maps(features: Tensor, hand_scale: Tensor | None, layers: Layers) -> list[list[Tensor]]:
    """Features (B, C, H, W) through every layer's columns for x.

    Returns:
        Per image and layer (H * W + 1, out) float32: a row per texel, and one for the depth. The texels hold
        the bias and the scale's part too, which every point takes whole since its shares sum to 1.
    """
    every_map = []
    for image, rows in enumerate(features.flatten(2).mT.unbind()):
        rows = rows.contiguous()
        maps = []
        for layer, (columns, depth, constant) in enumerate(
            zip(layers.columns, layers.depth, layers.bias, strict=True)
        ):
            if hand_scale is not None and layers.scale is not None:
                constant = constant + (hand_scale[image] - 15) / 25 * layers.scale[layer]
            maps.append(torch.cat([F.linear(rows, columns).float() + constant, depth]))
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
    points: Tensor, intrinsics: Tensor, image_size: int, map_size: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of points (B, N, 3): in view or not (B, N), texels and shares (B, N, 4), depth input (B, N)."""
    pixels = points @ intrinsics.mT
    uv = pixels[..., :2] / pixels[..., 2:] / (image_size / 2) - 1
    inside = (points[..., 2] > 0) & (uv.abs() <= 1).all(-1)
    texels, shares = _bilinear_taps(torch.where(inside[..., None], uv, 0.0), *map_size)
    focal = intrinsics[..., :1, 0] if intrinsics.ndim == 3 else intrinsics[:1, 0]
    return inside, texels, shares, points[..., 2] / (focal * (224 / image_size))


def _as_written(
    features: Tensor,
    texels: Tensor,
    shares: Tensor,
    depth: Tensor,
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
    extras = [depth] if scale is None else [depth, scale[:, None].expand_as(depth)]
    extras.append(torch.ones_like(depth))
    exact = _exact_columns(torch.stack(extras, -1).flatten(0, 1), features.dtype, (0, 1, 0))
    x = torch.cat([sampled.to(features.dtype), *exact], -1)
    hidden = x.new_empty(len(x), 0)
    for weight, bias in zip(weights, biases, strict=True):
        layer = _fold_bias(weight, bias, weights[0].shape[1] - channels, features.dtype)
        output = F.linear(torch.cat([hidden, x], -1), layer)
        hidden = F.leaky_relu(output, 0.01)
    return output.float().unflatten(0, depth.shape)


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


def _fold_bias(weight: Tensor, bias: Tensor, extra: int, dtype: torch.dtype) -> Tensor:
    """A layer's matrix for the input [hidden, feature, exact columns of (depth(, scale), 1)]."""
    small = torch.cat([weight[:, -extra:], bias[:, None]], 1).float()
    return torch.cat([weight[:, :-extra].to(dtype), *_exact_columns(small, dtype, (0, 0, 1))], 1)
