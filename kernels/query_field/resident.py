"""The field of a small network about a centre in one launch, its weights resident in shared memory.

A program reads all weights once and then evaluates tiles of points: it samples their features with four
gathers each, and keeps x and the activations in registers, from the accumulators of one layer to the operand
of the next. Each layer's sums begin with the bias in float32 and the product with the position in two parts,
so that neither is rounded. Votes are written where the distance is below `surface_mm`, at the point's own
place. Nothing is sorted or projected beforehand, unlike in `kernels.query_field.triton`, which serves all
other networks and devices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from nvf_fast.kernels.query_field.triton import POSITION_MM, _leaky, _tanh

CHANNELS = tl.constexpr(64)  # of the features
HIDDEN = (256, 128, 64, 64)
# Columns of the last layer, in three products, whose results take less shared memory on their way to memory:
# the distance, then at most 23 joints.
LAST = tl.constexpr(96)
COLUMNS = tl.constexpr(sum(HIDDEN) + 96)  # of all layers
PLACE = tl.constexpr(16)  # slots of the position's operand
POINTS = 128  # of a tile
WARPS = 8
# Bytes of shared memory that the compiled kernel takes, weights and operands in transit;
# benchmarks/static_budget.py compiles it.
SHARED_BYTES = 220_160
RESERVED_BYTES = 1024  # of shared memory that a program does not get


def supports(weights: Sequence[Tensor], channels: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether this kernel evaluates a network on a device; `FieldQuery` uses the general kernel otherwise.

    The network has 64 features, positions about a centre, hidden layers of 256, 128, 64 and 64 channels and
    at most 23 joints, in a dtype of 16 bits: in float32 its weights exceed shared memory. The device has
    compute capability 9.x, whose matrix unit reads shared memory and registers, and `SHARED_BYTES` for a
    program; on 10.x operands in transit exceed it. The interpreter counts as such a device.
    """
    fits = (
        channels == CHANNELS.value
        and weights[0].shape[1] == channels + 3
        and tuple(len(weight) for weight in weights[:-1]) == HIDDEN
        and len(weights[-1]) <= LAST.value
        and dtype in (torch.float16, torch.bfloat16)
    )
    if not fits or device.type != "cuda":
        return fits
    properties = torch.cuda.get_device_properties(device)
    return (
        torch.version.hip is None
        and properties.major == 9
        and properties.shared_memory_per_multiprocessor - RESERVED_BYTES >= SHARED_BYTES
    )


@triton.jit
def _project(x, y, z, intrinsics_ptr, half):
    """Places in [-1, 1] in the view, 0 out of view, and whether they are in view."""
    across = tl.load(intrinsics_ptr) * x + tl.load(intrinsics_ptr + 1) * y + tl.load(intrinsics_ptr + 2) * z
    down = tl.load(intrinsics_ptr + 3) * x + tl.load(intrinsics_ptr + 4) * y + tl.load(intrinsics_ptr + 5) * z
    along = tl.load(intrinsics_ptr + 6) * x + tl.load(intrinsics_ptr + 7) * y
    along += tl.load(intrinsics_ptr + 8) * z
    # Rounded as in PyTorch, unlike quotients by default, so that a point on the view's border stays in view.
    u = tl.div_rn(tl.div_rn(across, along), half) - 1
    v = tl.div_rn(tl.div_rn(down, along), half) - 1
    inside = (z > 0) & (tl.abs(u) <= 1) & (tl.abs(v) <= 1)
    return tl.where(inside, u, 0.0), tl.where(inside, v, 0.0), inside


@triton.jit
def _sample(features_ptr, u, v, height, width):
    """Bilinear features (points, CHANNELS) float32 at places on a map whose texels are rows of channels."""
    column = tl.minimum(u.to(tl.int32), width - 2)
    row = tl.minimum(v.to(tl.int32), height - 2)
    u -= column
    v -= row
    texel = features_ptr + ((row * width + column) * CHANNELS)[:, None] + tl.arange(0, CHANNELS)[None, :]
    below = texel + width * CHANNELS
    x = tl.load(texel).to(tl.float32) * ((1 - u) * (1 - v))[:, None]
    x += tl.load(texel + CHANNELS).to(tl.float32) * (u * (1 - v))[:, None]
    x += tl.load(below).to(tl.float32) * ((1 - u) * v)[:, None]
    return x + tl.load(below + CHANNELS).to(tl.float32) * (u * v)[:, None]


@triton.jit
def _matrix(pointer, first: tl.constexpr, SIZE: tl.constexpr, ROWS: tl.constexpr, STRIDE: tl.constexpr):
    """Columns `first` to `first + SIZE` of a matrix of ROWS rows."""
    rows, columns = tl.arange(0, ROWS), first + tl.arange(0, SIZE)
    return tl.load(pointer + rows[:, None] * STRIDE + columns[None, :])


@triton.jit
def _place(x, y, z, DTYPE: tl.constexpr):
    """The operand (points, PLACE) of the position: x, y and z, high and low parts each."""
    slot = tl.arange(0, PLACE)[None, :]
    value = tl.where(slot < 2, x[:, None], tl.where(slot < 4, y[:, None], z[:, None]))
    high = value.to(DTYPE).to(tl.float32)
    value = tl.where(slot % 2 == 0, high, value - high)
    return tl.where(slot < 6, value, 0.0).to(DTYPE)


@triton.jit
def _begun(place, own, bias_ptr, first: tl.constexpr, PRECISION: tl.constexpr):
    """Contributions of position and bias to a layer's columns, which begin with `first`."""
    bias = tl.load(bias_ptr + first + tl.arange(0, own.shape[1]))
    sums = tl.broadcast_to(bias[None, :], place.shape[0], own.shape[1])
    return tl.dot(place, own, sums, input_precision=PRECISION)


@triton.jit
def evaluate_resident(
    features_ptr,  # (B, height * width, CHANNELS)
    points_ptr,
    intrinsics_ptr,
    centres_ptr,  # (B, 3) mm
    columns_ptr,  # (CHANNELS, COLUMNS), of every layer for the feature
    position_ptr,  # (PLACE, COLUMNS), of every layer for the position's slots
    bias_ptr,  # (B or 1, COLUMNS) float32
    second_ptr,  # (256, 128), the matrices for hidden activations
    third_ptr,  # (128, 64)
    fourth_ptr,  # (64, 64)
    fifth_ptr,  # (64, LAST)
    sdf_ptr,  # (B, N)
    votes_ptr,  # (B, N, channels), written where near
    points_stride,
    intrinsics_stride,
    bias_stride,
    point_count,
    image_size,
    height,
    width,
    channels,  # of a point's votes
    tiles,
    surface_mm,
    POINTS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Tiles of points, a program's one after the other."""
    DTYPE: tl.constexpr = features_ptr.dtype.element_ty
    x0 = _matrix(columns_ptr, 0, 64, CHANNELS, COLUMNS)
    x1 = _matrix(columns_ptr, 64, 64, CHANNELS, COLUMNS)
    x2 = _matrix(columns_ptr, 128, 64, CHANNELS, COLUMNS)
    x3 = _matrix(columns_ptr, 192, 64, CHANNELS, COLUMNS)
    x4 = _matrix(columns_ptr, 256, 128, CHANNELS, COLUMNS)
    x5 = _matrix(columns_ptr, 384, 64, CHANNELS, COLUMNS)
    x6 = _matrix(columns_ptr, 448, 64, CHANNELS, COLUMNS)
    x7 = _matrix(columns_ptr, 512, 32, CHANNELS, COLUMNS)
    x8 = _matrix(columns_ptr, 544, 32, CHANNELS, COLUMNS)
    x9 = _matrix(columns_ptr, 576, 32, CHANNELS, COLUMNS)
    p0 = _matrix(position_ptr, 0, 64, PLACE, COLUMNS)
    p1 = _matrix(position_ptr, 64, 64, PLACE, COLUMNS)
    p2 = _matrix(position_ptr, 128, 64, PLACE, COLUMNS)
    p3 = _matrix(position_ptr, 192, 64, PLACE, COLUMNS)
    p4 = _matrix(position_ptr, 256, 128, PLACE, COLUMNS)
    p5 = _matrix(position_ptr, 384, 64, PLACE, COLUMNS)
    p6 = _matrix(position_ptr, 448, 64, PLACE, COLUMNS)
    p7 = _matrix(position_ptr, 512, 32, PLACE, COLUMNS)
    p8 = _matrix(position_ptr, 544, 32, PLACE, COLUMNS)
    p9 = _matrix(position_ptr, 576, 32, PLACE, COLUMNS)
    second0 = _matrix(second_ptr, 0, 128, 64, 128)
    second1 = _matrix(second_ptr + 64 * 128, 0, 128, 64, 128)
    second2 = _matrix(second_ptr + 128 * 128, 0, 128, 64, 128)
    second3 = _matrix(second_ptr + 192 * 128, 0, 128, 64, 128)
    third = _matrix(third_ptr, 0, 64, 128, 64)
    fourth = _matrix(fourth_ptr, 0, 64, 64, 64)
    fifth0 = _matrix(fifth_ptr, 0, 32, 64, LAST)
    fifth1 = _matrix(fifth_ptr, 32, 32, 64, LAST)
    fifth2 = _matrix(fifth_ptr, 64, 32, 64, LAST)

    per_image = tl.cdiv(point_count, POINTS)
    tile = tl.program_id(0)
    while tile < tiles:  # not pipelined: a pipelined loop would exceed the shared memory
        image = (tile // per_image).to(tl.int64)
        point = tile % per_image * POINTS + tl.arange(0, POINTS)
        valid = point < point_count
        points = points_ptr + image * points_stride + point * 3
        x = tl.load(points, mask=valid, other=0.0)
        y = tl.load(points + 1, mask=valid, other=0.0)
        z = tl.load(points + 2, mask=valid, other=0.0)
        u, v, inside = _project(x, y, z, intrinsics_ptr + image * intrinsics_stride, image_size / 2)
        centre = centres_ptr + image * 3
        x = tl.where(inside, (x - tl.load(centre)) / POSITION_MM, 0.0)
        y = tl.where(inside, (y - tl.load(centre + 1)) / POSITION_MM, 0.0)
        z = tl.where(inside, (z - tl.load(centre + 2)) / POSITION_MM, 0.0)
        u, v = (u + 1) * ((width - 1) / 2), (v + 1) * ((height - 1) / 2)
        feature = _sample(features_ptr + image * height * width * CHANNELS, u, v, height, width).to(DTYPE)
        place = _place(x, y, z, DTYPE)
        bias = bias_ptr + image * bias_stride

        # The first layer is made in four parts, each of which enters the second at once.
        wide = _begun(place, p4, bias, 256, PRECISION)
        wide = tl.dot(feature, x4, wide, input_precision=PRECISION)
        sums = _begun(place, p0, bias, 0, PRECISION)
        hidden = _leaky(tl.dot(feature, x0, sums, input_precision=PRECISION)).to(DTYPE)
        wide = tl.dot(hidden, second0, wide, input_precision=PRECISION)
        sums = _begun(place, p1, bias, 64, PRECISION)
        hidden = _leaky(tl.dot(feature, x1, sums, input_precision=PRECISION)).to(DTYPE)
        wide = tl.dot(hidden, second1, wide, input_precision=PRECISION)
        sums = _begun(place, p2, bias, 128, PRECISION)
        hidden = _leaky(tl.dot(feature, x2, sums, input_precision=PRECISION)).to(DTYPE)
        wide = tl.dot(hidden, second2, wide, input_precision=PRECISION)
        sums = _begun(place, p3, bias, 192, PRECISION)
        hidden = _leaky(tl.dot(feature, x3, sums, input_precision=PRECISION)).to(DTYPE)
        wide = tl.dot(hidden, second3, wide, input_precision=PRECISION)
        sums = _begun(place, p5, bias, 384, PRECISION)
        sums = tl.dot(feature, x5, sums, input_precision=PRECISION)
        sums = tl.dot(_leaky(wide).to(DTYPE), third, sums, input_precision=PRECISION)
        hidden = _leaky(sums).to(DTYPE)
        sums = _begun(place, p6, bias, 448, PRECISION)
        sums = tl.dot(feature, x6, sums, input_precision=PRECISION)
        hidden = _leaky(tl.dot(hidden, fourth, sums, input_precision=PRECISION)).to(DTYPE)
        last = _begun(place, p7, bias, 512, PRECISION)
        last = tl.dot(feature, x7, last, input_precision=PRECISION)
        last = tl.dot(hidden, fifth0, last, input_precision=PRECISION)

        column = tl.arange(0, 32)[None, :]
        sdf = 50 * _tanh(tl.sum(tl.where(column == 0, last, 0.0), 1))
        sdf = tl.where(inside, sdf, float("inf"))
        tl.store(sdf_ptr + image * point_count + point, sdf, mask=valid)
        near = tl.abs(sdf) < surface_mm
        if tl.sum(near.to(tl.int32), 0) > 0:
            votes = votes_ptr + image * point_count * channels + (point[:, None] * channels + column - 1)
            written = near[:, None]
            tl.store(votes, last, mask=written & (column > 0) & (column <= channels))
            last = _begun(place, p8, bias, 544, PRECISION)
            last = tl.dot(feature, x8, last, input_precision=PRECISION)
            last = tl.dot(hidden, fifth1, last, input_precision=PRECISION)
            tl.store(votes + 32, last, mask=written & (column + 32 <= channels))
            last = _begun(place, p9, bias, 576, PRECISION)
            last = tl.dot(feature, x9, last, input_precision=PRECISION)
            last = tl.dot(hidden, fifth2, last, input_precision=PRECISION)
            tl.store(votes + 64, last, mask=written & (column + 64 <= channels))
        tile += tl.num_programs(0)


class Layers(NamedTuple):
    """A network packed for the kernel."""

    columns: Tensor  # (CHANNELS, COLUMNS) for the feature, compute dtype
    position: Tensor  # (PLACE, COLUMNS), each coordinate's row twice, compute dtype
    bias: Tensor  # (1, COLUMNS) float32
    matrices: list[Tensor]  # per later layer (in, out), for hidden activations, compute dtype
    joints: int
    surface_mm: float  # votes are written for points nearer than this


class Places(NamedTuple):
    """Points, and the geometry of their views."""

    points: Tensor  # (1 or B, N, 3) mm
    intrinsics: Tensor  # (1 or B, 3, 3)
    centres: Tensor  # (B, 3) mm
    image_size: int


@dataclass(frozen=True)
class Maps:
    """The features and biases of B images."""

    features: Tensor  # (B, H, W, CHANNELS)
    bias: Tensor  # (1 or B, COLUMNS) float32

    def __getitem__(self, images: slice) -> Maps:
        return Maps(self.features[images], self.bias[images] if len(self.bias) > 1 else self.bias)


class Samples(NamedTuple):
    """Sampled points of B images."""

    sdf: Tensor  # (B, N) float32 mm, +inf out of view
    votes: Tensor  # (B, N, J, 4) float32, undefined where the distance is not below `surface_mm`


def pack_layers(
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    channels: int,
    dtype: torch.dtype,
    surface_mm: float = math.inf,
) -> Layers:
    """Pack the layers of a network that `supports` accepts; votes are needed below `surface_mm`."""
    inputs = channels + 3
    own = torch.cat([weight[:, -inputs:] for weight in weights]).mT
    own = torch.nn.functional.pad(own, (0, COLUMNS.value - own.shape[1]))
    position = own.new_zeros(PLACE.value, COLUMNS.value)
    position[:6] = own[channels:].repeat_interleave(2, 0)
    matrices = [weight[:, :-inputs].mT for weight in weights[1:]]
    matrices[-1] = torch.nn.functional.pad(matrices[-1], (0, LAST.value - matrices[-1].shape[1]))
    return Layers(
        own[:channels].to(dtype).contiguous(),
        position.to(dtype),
        _padded(torch.cat(list(biases))[None].float()),
        [matrix.to(dtype).contiguous() for matrix in matrices],
        len(weights[-1]) // 4,
        surface_mm,
    )


def locate(
    points: Tensor,
    intrinsics: Tensor,
    image_size: int,
    map_size: Sequence[int],
    layers: Layers,
    centres: Tensor | None,
    per_ray: int = 1,
) -> Places:
    """Keep the points for `sample`, which projects them; `map_size`, `layers` and `per_ray` have no effect.

    Raises:
        ValueError: the number of tiles, or an image's number of votes, exceeds 32-bit positions.
    """
    assert centres is not None
    batch, point_count, channels = len(centres), points.shape[-2], 4 * layers.joints
    if max(batch * triton.cdiv(point_count, POINTS), point_count * channels) > 2**31 - 2**16:
        raise ValueError(
            f"query_field: {batch} x {point_count} points x {channels} channels pass 32-bit positions"
        )
    points = (points if points.ndim == 3 else points[None]).contiguous()
    intrinsics = (intrinsics if intrinsics.ndim == 3 else intrinsics[None]).contiguous()
    return Places(points, intrinsics, centres.contiguous(), image_size)


def project_maps(
    features: Tensor, hand_scale: Tensor | None, layers: Layers, biases: Tensor | None = None
) -> Maps:
    """Lay out the features of B images, without a copy where they are channels last; `hand_scale` is None."""
    bias = layers.bias if biases is None else _padded(biases)
    return Maps(features.permute(0, 2, 3, 1).contiguous(), bias)


def sample(maps: Maps, places: Places, layers: Layers) -> Samples:
    """Evaluate the signed distances of points, and the votes of those near the surface."""
    sdf = places.points.new_empty(len(maps.features), places.points.shape[1])
    votes = sdf.new_empty(*sdf.shape, layers.joints, 4)
    _launch(maps, places, layers, layers.surface_mm, sdf, votes)
    return Samples(sdf, votes)


def votes(samples: Samples, indices: Tensor, layers: Layers) -> Tensor:
    """Votes (B, V, J, 4) float32 of points (B, V) near the surface, zero at index -1."""
    rows = indices.clamp(min=0)[..., None, None].expand(-1, -1, layers.joints, 4)
    return samples.votes.gather(1, rows).masked_fill(indices[..., None, None] < 0, 0.0)


def evaluate(maps: Maps, places: Places, layers: Layers) -> tuple[Tensor, Tensor]:
    """Signed distances, as `sample`, and votes (B, N, J, 4) float32 of all points, zero out of view."""
    sdf = places.points.new_empty(len(maps.features), places.points.shape[1])
    votes = sdf.new_zeros(*sdf.shape, layers.joints, 4)
    _launch(maps, places, layers, math.inf, sdf, votes)
    return sdf, votes


def _launch(
    maps: Maps, places: Places, layers: Layers, surface_mm: float, sdf: Tensor, votes: Tensor
) -> None:
    batch, count = sdf.shape
    tiles = batch * triton.cdiv(count, POINTS)
    if tiles == 0:
        return
    programs = tiles
    if sdf.is_cuda:
        programs = min(tiles, torch.cuda.get_device_properties(sdf.device).multi_processor_count)
    evaluate_resident[(programs,)](
        maps.features,
        places.points,
        places.intrinsics,
        places.centres,
        layers.columns,
        layers.position,
        maps.bias,
        *layers.matrices,
        sdf,
        votes,
        places.points[0].numel() if len(places.points) > 1 else 0,
        9 if len(places.intrinsics) > 1 else 0,
        maps.bias.shape[1] if len(maps.bias) > 1 else 0,
        count,
        places.image_size,
        *maps.features.shape[1:3],
        4 * layers.joints,
        tiles,
        surface_mm,
        POINTS=POINTS,
        PRECISION="ieee",
        num_warps=WARPS,
        enable_fp_fusion=True,
    )


def _padded(biases: Tensor) -> Tensor:
    """Biases (1 or B, sum of out) of all layers with zeros to (1 or B, COLUMNS)."""
    return torch.nn.functional.pad(biases, (0, COLUMNS.value - biases.shape[1]))
