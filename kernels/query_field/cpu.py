"""`query_field` in PyTorch, for CPU tensors and for gradients; tested against the reference.

Bilinear sampling is linear: W_x sample(F) = sample(W_x F). For many points, every layer's columns for x =
[feature, depth(, scale)] are applied to the feature map once, and a point then sums five rows of the result
instead of multiplying x by a matrix: 1.38 instead of 2.43 MFLOP per point of the released network. For few
points, or with gradients, the layers run as in the paper.

A network with positions about a centre is small: with 64 features and three columns of the position, a
product costs as much as a sum of seven rows, whereas the projection of a map per image would serve few
points. In float32 its layers are direct: applied to the x of each point; or, for points at the same depths on
rays from the camera, to one x of each ray and to its slope along the ray.

Preparation is separate, as for the kernel: `pack_layers` for a network, `locate` for a set of points,
`project_maps` for an image; `sample` and `evaluate` combine them, `votes` continues a sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from nvf_fast.kernels.query_field.reference import POSITION_MM

# Activations of the widest hidden layer per pass, which then stay in the caches. On two cores at 16 mm a
# network of 256 channels took 53, 41, 35, 39 and 45 ms with 512, 1024, 2048, 4096 and 8192
# points a pass, the released one, of 1024, 374, 372 and 410 ms with 512, 1024 and 2048. Direct layers, of 256
# channels, take equal passes: on one core 2744 points took 4.1, 3.9, 3.8, 3.7 and 4.2 ms in 7, 4, 3, 2 and 1.
_PASS = 2**19


class Layers(NamedTuple):
    """A network's columns, layer by layer: for feature, position, scale and hidden activations."""

    columns: list[Tensor]  # (out, C) compute dtype; of direct layers (C + 3, out), the position's included
    position: list[Tensor]  # (P, out) float32, for the depth (P = 1) or the position about the centre (P = 3)
    scale: list[Tensor] | None  # (out,) float32
    bias: list[Tensor]  # (out,) or (B, out) float32
    # (in, out) compute dtype, of every layer but the first, and of the last one's distance and votes apart.
    matrices: list[Tensor]
    direct: bool  # applied to the x of each point instead of to the maps
    every_column: Tensor | None  # (C + 3, all outs) float32, the columns of all direct layers, side by side


class Places(NamedTuple):
    """Places of one image's points on the map, without points out of view."""

    order: Tensor  # (M,) the points; with projected maps in the order of the map
    texels: Tensor  # (M, 4) the texels around each; with projected maps (M, 4 + P), the position's rows too
    tap_weights: Tensor  # (M, 4) their bilinear weights; with projected maps (M, 4 + P), the position too
    position: Tensor  # (M, P)
    total: int  # N, points in view or not

    def split(self, size: int) -> Iterator[Places]:
        for parts in zip(*(of_all.split(size) for of_all in self[:4]), strict=True):
            yield self._replace(**dict(zip(self._fields, parts, strict=False)))

    def of(self, points: Tensor) -> Places:
        """The places of some points, in their order."""
        place_of = self.order.new_full((self.total,), -1)
        place_of[self.order] = torch.arange(len(self.order), device=self.order.device)
        places = place_of[points]
        order = (places >= 0).nonzero()[:, 0]
        rows = places[order]
        return Places(order, self.texels[rows], self.tap_weights[rows], self.position[rows], len(points))


class Rays(NamedTuple):
    """Places of one image's points at D depths on each of R rays from the camera, ray by ray.

    All points of a ray have the same texels, and their position is linear in depth.
    """

    texels: Tensor  # (R, 4) the texels around each ray
    tap_weights: Tensor  # (R, 4) their bilinear weights
    position: Tensor  # (R, 3) at the centre's depth
    slope: Tensor  # (R, 3) of the position, per POSITION_MM of depth
    depths: Tensor  # (D, 1) from the centre's, in POSITION_MM
    outside: Tensor | None  # (R * D,) bool, the points out of view, if any
    total: int  # N = R * D


class LastLayer(NamedTuple):
    """The last layer along one image's rays, for votes."""

    hidden: Tensor  # (N, in) activations of the points
    middle: Tensor  # (R, 4 J) contribution of x and the bias at the centre's depth
    slope: Tensor  # (R, 4 J) its change per POSITION_MM of depth


class Samples(NamedTuple):
    """Sampled points of B images."""

    sdf: Tensor  # (B, N) float32 mm, +inf out of view
    maps: Maps
    places: Sequence[Places | Rays]
    along: list[LastLayer]  # per image whose points lie on rays


class ProjectedMap(NamedTuple):
    """One image's features through every layer's columns for x."""

    # Per layer, the last one's distance and votes apart: (H * W + P, out) float32, a row per texel and P for
    # the position. The texels hold the bias and the scale's part too, which every point takes whole since its
    # bilinear weights sum to 1.
    tables: list[Tensor]

    def contributions(self, places: Places, layers: Layers) -> Contributions:
        dtype = layers.columns[0].dtype

        def of_layer(layer: int) -> Tensor:
            return _weighted_sums(self.tables[layer], places.texels, places.tap_weights).to(dtype)

        return of_layer


class FeatureMap(NamedTuple):
    """One image's features, for direct layers."""

    rows: Tensor  # (H * W, C) float32
    biases: list[Tensor]  # per layer, the last one's distance and votes apart, (out,) float32

    def x(self, places: Places | Rays) -> Tensor:
        """(M, C + 3) of points, or (R, C + 3) of rays where they meet the centre's depth."""
        sampled = _weighted_sums(self.rows, places.texels, places.tap_weights)
        return torch.cat([sampled, places.position], 1)

    def contributions(self, places: Places, layers: Layers) -> Contributions:
        x = self.x(places)

        def of_layer(layer: int) -> Tensor:
            return torch.addmm(self.biases[layer], x, layers.columns[layer])

        return of_layer


# Contribution of x and the bias to a layer at the points of a pass: (points, out) compute dtype.
Contributions = Callable[[int], Tensor]
Maps: TypeAlias = "Sequence[ProjectedMap | FeatureMap]"


def query_field(
    features: Tensor,
    points: Tensor,
    intrinsics: Tensor,
    hand_scale: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    centres: Tensor | None,
    *,
    image_size: int,
) -> tuple[Tensor, Tensor]:
    """Signed distance and votes, as in `nvf_fast.ops.query_field`, which checks the arguments.

    Where gradients are enabled it is differentiable in every tensor, any number of times.
    """
    batch, channels, height, width = features.shape
    many = batch > 0 and points.shape[-2] >= height * width
    if many and len(weights) > 1 and features.dtype != torch.float64 and not torch.is_grad_enabled():
        layers = pack_layers(weights, biases, channels, features.dtype)
        places = locate(points, intrinsics, image_size, (height, width), layers, centres)
        return evaluate(project_maps(features, hand_scale, layers), places, layers)
    points = points.expand(batch, -1, -1)
    ahead = points[..., 2:] > 0
    if torch.is_grad_enabled():
        # A division by zero makes even gradients NaN that `inside` discards.
        points = points.where(ahead, 1.0)
    inside, texels, tap_weights, position = _geometry(
        points, intrinsics, image_size, (height, width), centres
    )
    inside = inside & ahead[..., 0]
    scale = None
    if weights[0].shape[1] == channels + 2:
        scale = position.new_zeros(batch) if hand_scale is None else (hand_scale - 15) / 25
    raw = _as_written(features, texels, tap_weights, position, scale, weights, biases)
    sdf = torch.where(inside, 50 * torch.tanh(raw[..., 0]), math.inf)
    return sdf, torch.where(inside[..., None], raw[..., 1:], 0.0).unflatten(-1, (-1, 4))


def pack_layers(
    weights: Sequence[Tensor], biases: Sequence[Tensor], channels: int, dtype: torch.dtype
) -> Layers:
    """Pack the network's layers for features of `channels` channels, computed in `dtype`."""
    inputs = weights[0].shape[1]
    positions = 3 if inputs == channels + 3 else 1
    direct = positions == 3 and dtype == torch.float32
    own = [weight[:, -inputs:] for weight in weights]
    columns = [part[:, : inputs if direct else channels].to(dtype) for part in own]
    matrices = [weight[:, :-inputs].to(dtype).mT for weight in weights[1:]]
    if direct:
        # Products with a transposed matrix as small as these take up to 1.5 times as long.
        matrices = [matrix.contiguous() for matrix in matrices]
        columns = _split_last([part.mT.contiguous() for part in columns], 1)
    return Layers(
        columns,
        [columns[:, channels : channels + positions].float().mT for columns in own],
        [columns[:, channels + 1].float() for columns in own] if inputs == channels + 2 else None,
        [bias.float() for bias in biases],
        _split_last(matrices, 1) if matrices else [],
        direct,
        torch.cat(columns, 1) if direct else None,
    )


def locate(
    points: Tensor,
    intrinsics: Tensor,
    image_size: int,
    map_size: tuple[int, int],
    layers: Layers,
    centres: Tensor | None = None,
    per_ray: int = 1,
) -> Sequence[Places | Rays]:
    """Locate points on the maps: one record per image, or a single one if all are the same."""
    points = points if points.ndim == 3 else points[None]
    intrinsics = intrinsics if intrinsics.ndim == 3 else intrinsics[None]
    images = max(len(points), len(intrinsics), 1 if centres is None else len(centres))
    points = points.expand(images, -1, -1)
    if per_ray > 1 and layers.direct and centres is not None:
        return _locate_rays(points, intrinsics, image_size, map_size, centres, per_ray)
    every_place = []
    for inside, texels, tap_weights, position in zip(
        *_geometry(points, intrinsics, image_size, map_size, centres), strict=True
    ):
        order = inside.nonzero()[:, 0]
        if len(order) > _points_per_pass(layers) and not layers.direct:
            # In the order of the map, so that each pass reads a small part of it.
            order = order[texels[order, 0].argsort(stable=True)]
        if not layers.direct or len(order) < len(inside):
            texels, tap_weights, position = texels[order], tap_weights[order], position[order]
        if not layers.direct:
            first_row, columns = map_size[0] * map_size[1], position.shape[1]
            rows = torch.arange(first_row, first_row + columns, device=texels.device)
            texels = torch.cat([texels, rows.expand(len(order), -1)], 1)
            tap_weights = torch.cat([tap_weights, position], 1)
        every_place.append(Places(order, texels, tap_weights, position, len(inside)))
    return every_place


def project_maps(
    features: Tensor, hand_scale: Tensor | None, layers: Layers, biases: Tensor | None = None
) -> Maps:
    """Prepare the features of B images."""
    every_row, own = features.flatten(2).mT, layers.bias
    if biases is not None:
        own = list(biases.float().split([len(bias) for bias in own], 1))
    constants = [[bias[image] if bias.ndim == 2 else bias for bias in own] for image in range(len(features))]
    if layers.direct:
        of_images = zip(every_row, constants, strict=True)
        return [FeatureMap(rows.contiguous(), _split_last(own)) for rows, own in of_images]
    if hand_scale is not None and layers.scale is not None:
        constants = [
            [
                constant + (scale - 15) / 25 * column
                for constant, column in zip(of_image, layers.scale, strict=True)
            ]
            for of_image, scale in zip(constants, hand_scale, strict=True)
        ]
    return [_projected_map(*of_image, layers) for of_image in zip(every_row, constants, strict=True)]


def sample(maps: Maps, places: Sequence[Places | Rays], layers: Layers) -> Samples:
    """Evaluate the signed distances of points."""
    sdf = layers.position[0].new_full((len(maps), places[0].total), math.inf)
    along = []
    for image, (image_map, of_image) in enumerate(_images(maps, places)):
        if isinstance(of_image, Rays):
            sdf[image], last_layer = _sample_rays(image_map, of_image, layers)
            along.append(last_layer)
            continue
        for chunk, contribution in _passes(image_map, of_image, layers):
            sdf[image, chunk.order] = _distances(contribution, _hidden(contribution, layers), layers)
    return Samples(sdf, maps, places, along)


def votes(samples: Samples, indices: Tensor, layers: Layers) -> Tensor:
    """Votes (B, V, J, 4) float32 of sampled points (B, V), zero at index -1 and out of view."""
    vote_matrix = layers.matrices[-1]
    found = samples.sdf.new_zeros(*indices.shape, vote_matrix.shape[1])
    for image, (image_map, of_image) in enumerate(_images(samples.maps, samples.places)):
        rows = (indices[image] >= 0).nonzero()[:, 0]
        points = indices[image, rows]
        if isinstance(of_image, Rays):
            hidden, middle, slope = samples.along[image]
            ray, depth = points // len(of_image.depths), points % len(of_image.depths)
            raw = torch.addcmul(middle[ray], of_image.depths[depth], slope[ray])
            raw.addmm_(hidden[points], vote_matrix)
            if of_image.outside is not None:
                raw.masked_fill_(of_image.outside[points, None], 0.0)
            if len(rows) == len(indices[image]):
                found[image] = raw
            else:
                found[image, rows] = raw
            continue
        for chunk, contribution in _passes(image_map, of_image.of(points), layers):
            found[image, rows[chunk.order]] = _votes(contribution, _hidden(contribution, layers), layers)
    return found.unflatten(-1, (-1, 4))


def evaluate(maps: Maps, places: Sequence[Places | Rays], layers: Layers) -> tuple[Tensor, Tensor]:
    """Signed distances, as `sample`, and votes (B, N, J, 4) float32, zero out of view."""
    sdf = layers.position[0].new_full((len(maps), places[0].total), math.inf)
    found = sdf.new_zeros(*sdf.shape, layers.matrices[-1].shape[1])
    for image, (image_map, of_image) in enumerate(_images(maps, places)):
        assert isinstance(of_image, Places), "votes along rays continue a sample"
        for chunk, contribution in _passes(image_map, of_image, layers):
            hidden = _hidden(contribution, layers)
            sdf[image, chunk.order] = _distances(contribution, hidden, layers)
            found[image, chunk.order] = _votes(contribution, hidden, layers)
    return sdf, found.unflatten(-1, (-1, 4))


def _projected_map(rows: Tensor, biases: list[Tensor], layers: Layers) -> ProjectedMap:
    rows = rows.contiguous()
    tables = [
        torch.cat([F.linear(rows, columns).float() + constant, position])
        for columns, position, constant in zip(layers.columns, layers.position, biases, strict=True)
    ]
    last = tables.pop()
    return ProjectedMap([*tables, last[:, :1].contiguous(), last[:, 1:].contiguous()])


def _images(
    maps: Maps, places: Sequence[Places | Rays]
) -> Iterator[tuple[ProjectedMap | FeatureMap, Places | Rays]]:
    """Pair the maps of each image with its places, or with a single common record of places."""
    return zip(maps, places if len(places) == len(maps) else [places[0]] * len(maps), strict=True)


def _passes(
    image_map: ProjectedMap | FeatureMap, places: Places, layers: Layers
) -> Iterator[tuple[Places, Contributions]]:
    """The points of each pass over one image, and the contributions of x to their layers."""
    size = _points_per_pass(layers)
    if layers.direct and len(places.order) > size:  # equal passes
        size = math.ceil(len(places.order) / math.ceil(len(places.order) / size))
    for chunk in places.split(size):
        yield chunk, image_map.contributions(chunk, layers)


def _hidden(contribution: Contributions, layers: Layers) -> Tensor:
    """Activations of the last hidden layer."""
    hidden = F.leaky_relu_(contribution(0), 0.01)
    for layer, matrix in enumerate(layers.matrices[:-2], 1):
        hidden = F.leaky_relu_(contribution(layer).addmm_(hidden, matrix), 0.01)
    return hidden


def _distances(contribution: Contributions, hidden: Tensor, layers: Layers) -> Tensor:
    raw = contribution(len(layers.matrices) - 1).addmm_(hidden, layers.matrices[-2])
    return raw[:, 0].float().tanh_().mul_(50)


def _votes(contribution: Contributions, hidden: Tensor, layers: Layers) -> Tensor:
    return contribution(len(layers.matrices)).addmm_(hidden, layers.matrices[-1]).float()


def _sample_rays(
    image_map: ProjectedMap | FeatureMap, rays: Rays, layers: Layers
) -> tuple[Tensor, LastLayer]:
    """Distances (N,) along rays, where the contribution of x to a layer is linear in a point's depth."""
    assert isinstance(image_map, FeatureMap) and layers.every_column is not None
    outs = [len(bias) for bias in image_map.biases]
    middle = torch.addmm(torch.cat(image_map.biases), image_map.x(rays), layers.every_column)
    middles, slopes = middle.split(outs, 1), (rays.slope @ layers.every_column[-3:]).split(outs, 1)

    def contribution(layer: int, *, chosen: slice) -> Tensor:
        parts = middles[layer][chosen, None], rays.depths, slopes[layer][chosen, None]
        return torch.addcmul(*parts).flatten(0, 1)

    size = math.ceil(len(middle) / math.ceil(rays.total / _points_per_pass(layers)))  # equal passes
    hidden, distances = [], []
    for first in range(0, len(middle), size):
        of_pass = partial(contribution, chosen=slice(first, first + size))
        hidden.append(_hidden(of_pass, layers))
        distances.append(_distances(of_pass, hidden[-1], layers))
    sdf = torch.cat(distances)
    if rays.outside is not None:
        sdf.masked_fill_(rays.outside, math.inf)
    return sdf, LastLayer(torch.cat(hidden), middles[-1], slopes[-1])


def _split_last(of_layers: list[Tensor], axis: int = 0) -> list[Tensor]:
    """The last layer's distance and votes apart."""
    *others, last = of_layers
    return [*others, *last.split([1, last.shape[axis] - 1], axis)]


def _weighted_sums(table: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """Per line of `rows` (M, R) and `weights` (M, R), the weighted sum of those rows of the table."""
    return F.embedding_bag(rows, table, per_sample_weights=weights, mode="sum")


class _WeightedSums(torch.autograd.Function):
    """`_weighted_sums` with derivatives of every order, where `embedding_bag` has only the first."""

    @staticmethod
    def forward(table: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
        return _weighted_sums(table, rows, weights)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        table, rows, weights = ctx.saved_tensors
        of_table, _, of_weights = ctx.needs_input_grad
        if torch.is_grad_enabled():  # a further derivative is required
            each = (weights[..., None] * gradient[:, None]).flatten(0, 1)
            return (
                torch.zeros_like(table).index_add(0, rows.flatten(), each) if of_table else None,
                None,
                (table[rows] * gradient[:, None]).sum(-1) if of_weights else None,
            )
        # `embedding_bag` needs neither the sums' terms nor an addition per row.
        table, weights = table.detach().requires_grad_(of_table), weights.detach().requires_grad_(of_weights)
        with torch.enable_grad():
            sums = _weighted_sums(table, rows, weights)
        required = [each for each in (table, weights) if each.requires_grad]
        found = iter(torch.autograd.grad(sums, required, gradient))
        return next(found) if of_table else None, None, next(found) if of_weights else None


def _points_per_pass(layers: Layers) -> int:
    return max(1, _PASS // max(len(matrix) for matrix in layers.matrices))


def _locate_rays(
    points: Tensor,
    intrinsics: Tensor,
    image_size: int,
    map_size: tuple[int, int],
    centres: Tensor,
    per_ray: int,
) -> list[Rays]:
    farthest, depths = points[:, per_ray - 1 :: per_ray], points[:, :per_ray, 2]
    inside, texels, tap_weights, _ = _geometry(farthest, intrinsics, image_size, map_size, centres)
    outside = ~(inside[..., None] & (depths > 0)[:, None]).flatten(1)
    slope = farthest / farthest[..., 2:]
    position = (slope * centres[:, None, 2:] - centres[:, None]) / POSITION_MM
    depths = ((depths - centres[:, 2:]) / POSITION_MM)[..., None]
    parts = texels, tap_weights, position, slope, depths, outside if outside.any() else [None] * len(points)
    count = points.shape[1]
    return [Rays(*of_image, count) for of_image in zip(*parts, strict=True)]  # type: ignore[call-arg]


def _geometry(
    points: Tensor, intrinsics: Tensor, image_size: int, map_size: tuple[int, int], centres: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Project points (B, N, 3): in view (B, N), texels and bilinear weights (B, N, 4), position (B, N, P).

    The position is relative to the centre, or the depth without centres.
    """
    # Separate coordinates take two thirds of the time of arrays whose last axis has 2 elements.
    across, down, along = (points @ intrinsics.mT).mT.contiguous().unbind(1)
    u, v = across / along / (image_size / 2) - 1, down / along / (image_size / 2) - 1
    inside = (u.abs() <= 1) & (v.abs() <= 1) & (points[..., 2] > 0)
    texels, tap_weights = _bilinear_taps(torch.where(inside, u, 0.0), torch.where(inside, v, 0.0), *map_size)
    if centres is not None:
        return inside, texels, tap_weights, (points - centres[:, None]) / POSITION_MM
    focal = intrinsics[..., :1, :1]
    return inside, texels, tap_weights, points[..., 2:] / (focal * (224 / image_size))


def _as_written(
    features: Tensor,
    texels: Tensor,
    tap_weights: Tensor,
    position: Tensor,
    scale: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
) -> Tensor:
    """Raw outputs (B, N, 1 + 4 J) of N points, layer by layer, in the dtype of the position."""
    batch, channels, height, width = features.shape
    rows = features.to(position.dtype).flatten(2).mT.reshape(-1, channels)
    first = torch.arange(batch, device=texels.device)[:, None, None] * (height * width)
    texels, tap_weights = (texels + first).flatten(0, 1), tap_weights.flatten(0, 1)
    if rows.is_cuda:  # where the gradient of `embedding_bag` sorts
        each = rows.index_select(0, texels.flatten()).unflatten(0, texels.shape)
        sampled = (each * tap_weights[..., None]).sum(1)
    elif torch.is_grad_enabled() and not torch.compiler.is_compiling():
        sampled = _WeightedSums.apply(rows, texels, tap_weights)  # type: ignore[no-untyped-call]
    else:
        sampled = _weighted_sums(rows, texels, tap_weights)
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
    return output.to(position.dtype).unflatten(0, position.shape[:2])


def _bilinear_taps(u: Tensor, v: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Texels of an (H, W) map around u, v (B, N) in [-1, 1], row by row, and their weights: (B, N, 4) each.

    `embedding_bag` over these is `grid_sample` with align_corners=True, 10 times as fast or more on a CPU.
    """
    left, after_x = _cell(u, width)
    top, after_y = _cell(v, height)
    before_x, before_y = 1 - after_x, 1 - after_y
    tap_weights = torch.stack(
        [
            before_x * before_y,
            after_x * before_y,
            before_x * after_y,
            after_x * after_y,
        ],
        -1,
    )
    first = (top * width + left).long()
    pair = torch.arange(2, device=u.device)  # made there: a CUDA graph records no copy from the host
    return first[..., None] + (width * pair[:, None] + pair).flatten(), tap_weights


def _cell(coordinate: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Texel before each coordinate in [-1, 1] on an axis of `size` texels, and the fraction beyond it."""
    place = (coordinate + 1) * ((size - 1) / 2)
    texel = place.floor().clamp_(0, size - 2)
    return texel, place - texel


def _exact_columns(columns: Tensor, dtype: torch.dtype, parts: tuple[int, ...]) -> list[Tensor]:
    """Columns in `dtype`: rounded (part 0) and the residual (part 1); float32 and float64 keep one part.

    One float16 depth costs up to 0.23 mm and one bfloat16 depth 1.9 mm; the products high x high + low x high
    + high x low, three columns each of input and weight, cost neither.
    """
    high = columns.to(dtype)
    if dtype in (torch.float32, torch.float64):
        return [high]
    low = (columns - high.float()).to(dtype)
    return [(high, low)[part] for part in parts]


def _exact_layer(weight: Tensor, bias: Tensor | None, extra: int, dtype: torch.dtype) -> Tensor:
    """A layer's matrix for the input [hidden, feature, exact columns of (position(, scale)(, 1))]."""
    small = weight[:, -extra:] if bias is None else torch.cat([weight[:, -extra:], bias[:, None]], 1)
    small = small.to(torch.promote_types(small.dtype, torch.float32))
    return torch.cat([weight[:, :-extra].to(dtype), *_exact_columns(small, dtype, (0, 0, 1))], 1)
