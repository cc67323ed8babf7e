"""The field of Eq. 4 on the matrix unit, without storing sampled features in memory.

Bilinear sampling is linear, so the feature map is projected once with every layer's columns for x = [feature,
depth, scale]. The points are sorted so that the texels around a tile of them lie in one small window of the
map. A matrix `hat` of (tile, 32) then holds each point's bilinear weights of the window's 28 texels, its
depth in two parts and two ones, and `hat @ window` is the whole contribution of x to a layer: 32 products per
channel instead of 258. A network with positions about a centre has windows of 24 texels, and the three
coordinates in two parts each. The biases, which may differ between images, are multiplied by the ones.

Preparation is separate: `pack_layers` for a network, `locate` for a set of points (`locate_points`,
`store_geometry` and `make_tiles` on the device), `project_maps` for an image. `sample` and `evaluate` then
launch `evaluate_layer` once per hidden layer but the first, whose activations are made on the fly, and once
for the output. The number of tiles is known on the device only, so the programs of a launch are as many as
run at once, and each takes several tiles.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from nvf_fast.kernels.query_field import reference

POSITION_MM = tl.constexpr(reference.POSITION_MM)
WINDOW_ROWS = tl.constexpr(4)
WINDOW_COLUMNS = tl.constexpr(7)
CENTRED_WINDOW_COLUMNS = tl.constexpr(6)
SLOTS = tl.constexpr(32)  # the window's texels, depth (or x, y and z) high and low, one, one
EXTRA_ROWS = tl.constexpr(3)  # of the maps, after the texels: depth column, constant high, constant low
CENTRED_EXTRA_ROWS = tl.constexpr(5)  # columns of x, y and z instead of the depth's

# Tiles per pass: bounds the hidden activations in memory to 262 144 points at 128 per tile.
_TILES_PER_PASS = 2048
_DISTANCE_COLUMNS = 16  # of the last layer if no votes are needed: the fewest that the matrix unit supports
_IMAGES = 2**15  # that share their tiles, per launch: CUDA allows only 65535 programs along the second axis
_BLOCK = 1024  # points of a program that locates them
_PROGRAMS = 2  # per multiprocessor: the most that fit with 104 KiB of shared memory each
_INTERPRETED_PROGRAMS = 3
_VERSION = tuple(map(int, triton.__version__.split(".")[:2]))
LOG = logging.getLogger("nvf_fast")


class Tiling(NamedTuple):
    """Block shapes of `evaluate_layer`: a program computes `points` x `columns`, `depth` inputs at a time."""

    points: int
    columns: int
    depth: int
    warps: int
    stages: int


def tilings(dtype: torch.dtype, backend: str, arch: int | str) -> tuple[Tiling, ...]:
    """Candidate block shapes for a compute dtype and a target, the default first.

    benchmarks/static_budget.py compiles them all, and none spills; `nvf-fast tune` times them.

    Args:
        dtype: of features and weights.
        backend: "cuda" or "hip".
        arch: compute capability such as 90, or the name of an AMD architecture.
    """
    if dtype == torch.float32:
        shapes = [(32, 64, 16, 8, 2), (32, 64, 32, 8, 2)]
    elif backend == "cuda" and 90 <= int(arch) < 120:  # 12.x has 99 KB of shared memory, as 8.6 and 8.9
        shapes = [(128, 256, 64, 8, 3), (128, 256, 32, 8, 4), (64, 256, 64, 4, 3)]
        if omits_fence(backend, arch) and int(arch) >= 100:
            shapes = [(*shape[:4], 1) for shape in shapes]
    else:
        shapes = [(128, 128, 32, 8, 2), (128, 128, 64, 8, 2), (64, 256, 32, 8, 3)]
    return tuple(Tiling(*shape) for shape in shapes)


def device_tilings(device: torch.device, dtype: torch.dtype) -> tuple[Tiling, ...]:
    """`tilings` of a device; the interpreter, on a CPU, uses those of compute capability 8.0."""
    return tilings(dtype, *_target(device))


def _target(device: torch.device) -> tuple[str, int | str]:
    """Backend and architecture that Triton compiles for."""
    if device.type != "cuda":
        return "cuda", 80
    if torch.version.hip:
        return "hip", torch.cuda.get_device_properties(device).gcnArchName
    major, minor = torch.cuda.get_device_capability(device)
    return "cuda", 10 * major + minor


def omits_fence(backend: str, arch: int | str) -> bool:
    """Whether Triton omits the fence between copies to shared memory and matrix products that read them.

    Before version 3.9 it does where the matrix unit reads shared memory by itself, and results may differ
    between runs (triton-lang/triton #9610). `evaluate_layer` has a fence of its own for compute capability
    9.0. For 10.x, whose pipelined loops cannot contain one, it has loops without asynchronous copies.
    """
    return _VERSION < (3, 9) and backend == "cuda" and 90 <= int(arch) < 120


def needs_fence(dtype: torch.dtype, backend: str, arch: int | str) -> bool:
    """The option FENCE of `evaluate_layer`; products of float32 do not use the matrix unit."""
    return dtype != torch.float32 and arch == 90 and omits_fence(backend, arch)


@cache
def _warn_of_omitted_fence(arch: int) -> None:
    LOG.warning(
        "Triton %s omits a fence on compute capability %d.%d (triton-lang/triton #9610), without which "
        "results may differ between runs; query_field %s. Triton 3.9 and newer are correct",
        triton.__version__,
        *divmod(arch, 10),
        "adds it" if arch == 90 else "does not overlap copies with products instead, which is slower",
    )


@triton.jit
def _project(points_ptr, intrinsics_ptr, point, valid, image_size, height, width):
    """Place on the feature map, depth input, in view or not, and the point; `points_ptr` is at the image."""
    x = tl.load(points_ptr + point * 3, mask=valid, other=0.0)
    y = tl.load(points_ptr + point * 3 + 1, mask=valid, other=0.0)
    z = tl.load(points_ptr + point * 3 + 2, mask=valid, other=0.0)
    focal = tl.load(intrinsics_ptr)
    across = focal * x + tl.load(intrinsics_ptr + 1) * y + tl.load(intrinsics_ptr + 2) * z
    down = tl.load(intrinsics_ptr + 3) * x + tl.load(intrinsics_ptr + 4) * y + tl.load(intrinsics_ptr + 5) * z
    along = (
        tl.load(intrinsics_ptr + 6) * x + tl.load(intrinsics_ptr + 7) * y + tl.load(intrinsics_ptr + 8) * z
    )
    half = image_size / 2
    # Rounded as in PyTorch, unlike quotients by default, so that a point on the view's border stays in view.
    u = tl.div_rn(tl.div_rn(across, along), half) - 1
    v = tl.div_rn(tl.div_rn(down, along), half) - 1
    inside = valid & (z > 0) & (tl.abs(u) <= 1) & (tl.abs(v) <= 1)
    depth = z / (focal * (112 / half))
    return (u + 1) * ((width - 1) / 2), (v + 1) * ((height - 1) / 2), depth, inside, x, y, z


@triton.jit
def _strips(height):
    """Strips of rows of cells that one window covers."""
    return (height - 1 + WINDOW_ROWS - 2) // (WINDOW_ROWS - 1)


@triton.jit
def locate_points(
    points_ptr,
    intrinsics_ptr,
    keys_ptr,
    points_stride,
    intrinsics_stride,
    point_count,
    image_size,
    height,
    width,
    outside,
    BLOCK: tl.constexpr,
):
    """Sort key of each point: image, then strip, then column of its cell; `outside` if out of view."""
    # Blocks and images along one axis: CUDA allows only 65535 programs along the others.
    blocks = tl.cdiv(point_count, BLOCK)
    point = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    valid = point < point_count
    u, v, _, inside, _, _, _ = _project(
        points_ptr + image * points_stride,
        intrinsics_ptr + image * intrinsics_stride,
        point,
        valid,
        image_size,
        height,
        width,
    )
    column = tl.minimum(tl.where(inside, u, 0.0).to(tl.int32), width - 2)
    row = tl.minimum(tl.where(inside, v, 0.0).to(tl.int32), height - 2)
    strip = tl.program_id(0) // blocks * _strips(height) + row // (WINDOW_ROWS - 1)
    key = tl.where(inside, strip * width + column, outside)
    tl.store(keys_ptr + image * point_count + point, key, mask=valid)


@triton.jit
def store_geometry(
    points_ptr,
    intrinsics_ptr,
    order_ptr,
    geometry_ptr,
    points_stride,
    intrinsics_stride,
    point_count,
    image_size,
    height,
    width,
    total,
    CENTRED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Rows of the points in sorted order: place on the map, then depth, or x, y and z where CENTRED."""
    position = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = position < total
    entry = tl.load(order_ptr + position, mask=valid, other=0).to(tl.int32)
    image = (entry // point_count).to(tl.int64)
    u, v, depth, _, x, y, z = _project(
        points_ptr + image * points_stride,
        intrinsics_ptr + image * intrinsics_stride,
        entry % point_count,
        valid,
        image_size,
        height,
        width,
    )
    row = geometry_ptr + position
    stride = tl.cast(total, tl.int64)
    tl.store(row, u, mask=valid)
    tl.store(row + stride, v, mask=valid)
    if CENTRED:
        tl.store(row + 2 * stride, x, mask=valid)
        tl.store(row + 3 * stride, y, mask=valid)
        tl.store(row + 4 * stride, z, mask=valid)
    else:
        tl.store(row + 2 * stride, depth, mask=valid)


@triton.jit
def make_tiles(
    keys_ptr,
    bounds_ptr,
    tiles_ptr,
    tile_count_ptr,
    height,
    width,
    CELLS: tl.constexpr,  # columns of cells in a window
    POINTS: tl.constexpr,
    LANES: tl.constexpr,
):
    """Tiles (first, count, image, corner) of up to POINTS points in one window; a program per strip.

    The corner of a window is its top row times 2^16 plus its left column. `bounds` holds the first position
    of every key. Tiles are listed in no particular order; what they hold is fixed.
    """
    strip = tl.program_id(0)
    image = strip // _strips(height)
    top = strip % _strips(height) * (WINDOW_ROWS - 1)
    bounds_ptr += strip * width
    position = tl.load(bounds_ptr)
    stop = tl.load(bounds_ptr + width)
    while position < stop:
        first = position + tl.arange(0, LANES) * POINTS
        last = tl.minimum(first + POINTS, stop) - 1
        valid = first <= last
        left = tl.load(keys_ptr + first, mask=valid, other=0) - strip * width
        right = tl.load(keys_ptr + last, mask=valid, other=0) - strip * width
        windows = tl.max(tl.where(valid, (right - left) // CELLS + 1, 0), 0)
        window = 0
        while window < windows:
            start = tl.maximum(first, tl.load(bounds_ptr + tl.minimum(left, width), mask=valid, other=0))
            end = tl.minimum(
                last + 1, tl.load(bounds_ptr + tl.minimum(left + CELLS, width), mask=valid, other=0)
            )
            filled = valid & (start < end)
            ones = filled.to(tl.int32)
            slot = tl.atomic_add(tile_count_ptr, tl.sum(ones, 0)) + tl.cumsum(ones, 0) - ones
            tl.store(tiles_ptr + slot * 4, start, mask=filled)
            tl.store(tiles_ptr + slot * 4 + 1, end - start, mask=filled)
            tl.store(tiles_ptr + slot * 4 + 2, image, mask=filled)
            tl.store(tiles_ptr + slot * 4 + 3, (top << 16) + left, mask=filled)
            left += CELLS
            window += 1
        position += LANES * POINTS


@triton.jit
def _leaky(x):
    return tl.maximum(x, 0.01 * x)


@triton.jit
def _tanh(x):
    """Accurate near 0 too, where 1 - 2 / (exp(2 x) + 1) cancels and the surface lies."""
    square = x * x
    series = x * (1 + square * (-1 / 3 + square * (2 / 15 - square * (17 / 315))))
    return tl.where(square < 0.01, series, 1 - 2 / (tl.exp(2 * x) + 1))


@triton.jit
def _fill(hat, slot, value, first: tl.constexpr, DTYPE: tl.constexpr):
    """Put a value's high part into slot `first` of the operand and what rounding left into the next.

    One float16 depth costs up to 0.23 mm, one bfloat16 depth 1.9 mm.
    """
    high = value.to(DTYPE).to(tl.float32)
    hat = tl.where(slot[:, None] == first, high[None, :], hat)
    return tl.where(slot[:, None] == first + 1, (value - high)[None, :], hat)


@triton.jit
def _hat(u, v, x, y, z, top, left, height, width, CENTRED: tl.constexpr, DTYPE: tl.constexpr):
    """The operand (points, SLOTS) of a window, and the row of the maps that each slot takes.

    Unless CENTRED, x is the depth, and y and z are unused.
    """
    TEXELS: tl.constexpr = WINDOW_ROWS * (CENTRED_WINDOW_COLUMNS if CENTRED else WINDOW_COLUMNS)
    slot = tl.arange(0, SLOTS)
    row = top + slot % WINDOW_ROWS
    column = left + slot // WINDOW_ROWS
    # Transposed, so that the lanes of a warp hold different points.
    weight_x = tl.maximum(1 - tl.abs(u[None, :] - column.to(tl.float32)[:, None]), 0.0)
    weight_y = tl.maximum(1 - tl.abs(v[None, :] - row.to(tl.float32)[:, None]), 0.0)
    hat = tl.where(slot[:, None] < TEXELS, weight_x * weight_y, 1.0)
    if CENTRED:
        hat = _fill(hat, slot, x, TEXELS, DTYPE)
        hat = _fill(hat, slot, y, TEXELS + 2, DTYPE)
        hat = _fill(hat, slot, z, TEXELS + 4, DTYPE)
    else:
        hat = _fill(hat, slot, x, TEXELS, DTYPE)
    # A texel past the border has weight 0; the row that stands in for it is finite.
    texel = tl.minimum(row, height - 1) * width + tl.minimum(column, width - 1)
    if CENTRED:
        after = slot - TEXELS
        extra = height * width + tl.where(after < 6, after // 2, after - 3)
    else:
        extra = height * width + tl.maximum(slot - TEXELS - 1, 0)
    return tl.trans(hat.to(DTYPE)), tl.where(slot < TEXELS, texel, extra)


@triton.jit
def _order_copies(position):
    """The fence of `omits_fence`, for copies that all threads have waited for."""
    tl.inline_asm_elementwise(
        "fence.proxy.async.shared::cta; mov.b32 $0, $1;", "=r,r", [position], tl.int32, is_pure=False, pack=1
    )


@triton.jit
def evaluate_layer(
    maps_ptr,  # (B, height * width + extra rows, channels): the projected map, the position, the constant
    weight_ptr,  # (IN, OUT)
    inputs_ptr,  # (tiles, POINTS, IN) activations of the layer before; unused where FIRST
    outputs_ptr,  # (tiles, POINTS, OUT); unused where LAST
    sdf_ptr,
    votes_ptr,
    geometry_ptr,  # (3 or 5, total), of `store_geometry`
    centres_ptr,  # (B, 3) mm; unused unless CENTRED
    order_ptr,
    tiles_ptr,
    tile_count_ptr,
    first_tile,
    tiles_per_pass,
    point_count,
    total,
    height,
    width,
    channels,
    first_channel,  # of this layer in the maps
    IN: tl.constexpr,
    OUT: tl.constexpr,
    VOTES: tl.constexpr,  # J * 4; 0 writes distances alone
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    CENTRED: tl.constexpr,
    POINTS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    STAGES: tl.constexpr,
    FENCE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One layer for tiles of points; FIRST makes the first layer on the fly; LAST writes the results.

    The second grid axis counts the images that share the tiles. A program takes every n-th tile, or part of a
    tile's columns, of an image, where n is the number of programs along the first axis.
    """
    PARTS: tl.constexpr = 1 if LAST else OUT // COLUMNS  # of a tile
    tiles = tl.minimum(tl.load(tile_count_ptr) - first_tile, tiles_per_pass)
    item = tl.program_id(0)
    while item < tiles * PARTS:
        DTYPE: tl.constexpr = maps_ptr.dtype.element_ty
        lane = tl.arange(0, POINTS)
        tile = tiles_ptr + (first_tile + item // PARTS) * 4
        position = tl.load(tile) + lane
        valid = lane < tl.load(tile + 1)
        own = tl.load(tile + 2)
        image = (own + tl.program_id(1)).to(tl.int64)
        corner = tl.load(tile + 3)
        top, left = corner >> 16, corner & 0xFFFF
        row = tl.cast(total, tl.int64)
        u = tl.load(geometry_ptr + position, mask=valid, other=0.0)
        v = tl.load(geometry_ptr + row + position, mask=valid, other=0.0)
        x = tl.load(geometry_ptr + 2 * row + position, mask=valid, other=0.0)
        EXTRA: tl.constexpr = CENTRED_EXTRA_ROWS if CENTRED else EXTRA_ROWS
        if CENTRED:
            y = tl.load(geometry_ptr + 3 * row + position, mask=valid, other=0.0)
            z = tl.load(geometry_ptr + 4 * row + position, mask=valid, other=0.0)
            x = (x - tl.load(centres_ptr + image * 3)) / POSITION_MM
            y = (y - tl.load(centres_ptr + image * 3 + 1)) / POSITION_MM
            z = (z - tl.load(centres_ptr + image * 3 + 2)) / POSITION_MM
        else:
            y, z = x, x
        hat, window = _hat(u, v, x, y, z, top, left, height, width, CENTRED, DTYPE)
        map_ptr = maps_ptr + image * (height * width + EXTRA) * channels
        window = window.to(tl.int64)[:, None] * channels

        first_column = item % PARTS * COLUMNS
        column = tl.arange(0, COLUMNS)[None, :]
        k = tl.arange(0, DEPTH)
        sums = tl.dot(
            hat,
            tl.load(map_ptr + window + (first_channel + first_column + column)),
            input_precision=PRECISION,
        )
        activations = tl.program_id(1).to(tl.int64) * tiles_per_pass + item // PARTS
        activations = activations * POINTS + lane
        for start in tl.range(0, IN, DEPTH, num_stages=STAGES):
            if FIRST:
                texels = tl.load(map_ptr + window + (start + k[None, :]))
            else:
                hidden = tl.load(inputs_ptr + activations[:, None] * IN + (start + k[None, :]))
            weight = tl.load(weight_ptr + (start + k[:, None]) * OUT + (first_column + column))
            if FENCE:
                _order_copies(start)
            if FIRST:
                hidden = _leaky(tl.dot(hat, texels, input_precision=PRECISION)).to(DTYPE)
            sums = tl.dot(hidden, weight, sums, input_precision=PRECISION)

        if LAST:
            # Read again, since pointers kept across the products would spill.
            point = tl.load(order_ptr + tl.load(tile) + lane, mask=valid, other=0)
            point = tl.where(valid, point - own.to(tl.int64) * point_count, 0).to(tl.int32)
            first_point = image * point_count
            raw = tl.sum(tl.where(column == 0, sums, 0.0), 1)
            tl.store(sdf_ptr + first_point + point, 50 * _tanh(raw), mask=valid)
            if VOTES > 0:
                kept = valid[:, None] & (column > 0) & (column <= VOTES)
                votes = votes_ptr + first_point * VOTES
                tl.store(votes + (point[:, None] * VOTES + column - 1), sums, mask=kept)
        else:
            outputs = outputs_ptr + activations[:, None] * OUT + (first_column + column)
            tl.store(outputs, _leaky(sums).to(DTYPE))
        item += tl.num_programs(0)


class Layers(NamedTuple):
    """A network packed for the kernel, with every layer's channels zero-padded to a power of two."""

    widths: list[int]  # channels of each layer
    columns: Tensor  # (sum of widths, C) columns for the feature, compute dtype
    # (P + 2, sum of widths) or (B, P + 2, sum of widths) compute dtype, of the maps, after the texels: the
    # columns for the depth (P = 1) or the position (P = 3), and the bias in two parts
    rows: Tensor
    scale: Tensor | None  # (sum of widths,) column for the normalised hand scale, float32
    bias: Tensor  # (sum of widths,) or (B, sum of widths) float32
    matrices: list[Tensor]  # per later layer (in, out), its columns for the hidden activations
    outs: list[int]  # each layer's own channels, the last 1 + 4 J
    tiling: Tiling
    fence: bool  # as `needs_fence`


class Tiles(NamedTuple):
    """Points in tiles of one window of the map each."""

    points: Tensor  # (1 or B, N, 3) mm
    intrinsics: Tensor  # (1 or B, 3, 3)
    centres: Tensor | None  # (B, 3) mm
    order: Tensor  # (N or B * N,) the points, sorted
    geometry: Tensor  # (3 or 5, N or B * N) float32, of the sorted points
    tiles: Tensor  # (capacity, 4): first, count, image, corner
    tile_count: Tensor  # (1,)
    view: tuple[int, tuple[int, int]]  # image size, and height and width of the maps


class Samples(NamedTuple):
    """Sampled points of B images."""

    sdf: Tensor  # (B, N) float32 mm, +inf out of view
    maps: Tensor
    tiles: Tiles


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
    """Signed distance and votes, as in the reference; the compute dtype is that of `features`.

    Raises:
        ValueError: fewer than two layers, more than 63 joints, or more points than 32-bit positions can
            count.
    """
    layers = pack_layers(weights, biases, features.shape[1], features.dtype)
    tiles = locate(points, intrinsics, image_size, features.shape[2:], layers, centres)
    maps = project_maps(features, hand_scale, layers)
    return evaluate(maps, tiles, layers)


def pack_layers(
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    channels: int,
    dtype: torch.dtype,
    tiling: Tiling | None = None,
) -> Layers:
    """Pack the network's layers; the default tiling is the first of `tilings`.

    Raises:
        ValueError: fewer than two layers, or more than 63 joints.
    """
    outputs = weights[-1].shape[0]
    if len(weights) < 2:
        raise ValueError("query_field: the kernel needs a hidden layer; got a network of one layer")
    if outputs > 256:
        raise ValueError(
            f"query_field: the kernel's last tile holds 256 channels, 63 joints; got {outputs} channels"
        )
    inputs = weights[0].shape[1]
    widths = [max(32, triton.next_power_of_2(len(weight))) for weight in weights]
    columns = weights[0].new_zeros(sum(widths), inputs)
    first = 0
    for weight, size in zip(weights, widths, strict=True):
        columns[first : first + len(weight)] = weight[:, -inputs:]
        first += size
    positions = 3 if inputs == channels + 3 else 1
    backend, arch = _target(weights[0].device)
    if omits_fence(backend, arch):
        _warn_of_omitted_fence(int(arch))
    matrices = []
    for before, weight, size_in, size_out in zip(weights, weights[1:], widths, widths[1:], strict=False):
        matrix = torch.zeros(size_in, size_out, dtype=dtype, device=weight.device)
        matrix[: len(before), : len(weight)] = weight[:, : len(before)].T
        matrices.append(matrix)
    bias = _pack_biases(biases, widths)
    high = bias.to(dtype)[..., None, :]
    position = columns[:, channels : channels + positions].T.to(dtype).expand(*bias.shape[:-1], -1, -1)
    rows = torch.cat([position, high, (bias[..., None, :] - high).to(dtype)], -2)
    return Layers(
        widths,
        columns[:, :channels].to(dtype),
        rows,
        columns[:, channels + 1].float() if inputs == channels + 2 else None,
        bias,
        matrices,
        [len(weight) for weight in weights],
        tiling or tilings(dtype, backend, arch)[0],
        needs_fence(dtype, backend, arch),
    )


def locate(
    points: Tensor,
    intrinsics: Tensor,
    image_size: int,
    map_size: Sequence[int],
    layers: Layers,
    centres: Tensor | None = None,
    per_ray: int = 1,
) -> Tiles:
    """Make tiles of points on the device; images of common points and intrinsics have common tiles.

    `per_ray` has no effect here.

    Raises:
        ValueError: the number of points exceeds 32-bit positions.
    """
    height, width = map_size
    points = (points if points.ndim == 3 else points[None]).contiguous()
    intrinsics = (intrinsics if intrinsics.ndim == 3 else intrinsics[None]).contiguous()
    batch, point_count, device = max(len(points), len(intrinsics)), points.shape[1], points.device
    if max(batch, layers.outs[-1]) * point_count > 2**31 - 2**16:  # programs count past the last point
        raise ValueError(
            f"query_field: {batch} x {point_count} points x {layers.outs[-1]} channels pass 32-bit positions"
        )
    sizes = (
        points[0].numel() if len(points) > 1 else 0,
        9 if len(intrinsics) > 1 else 0,
        point_count,
        image_size,
        height,
        width,
    )
    strips = batch * triton.cdiv(height - 1, WINDOW_ROWS.value - 1)
    total = batch * point_count
    keys = torch.empty(total, dtype=torch.int32, device=device)
    if total > 0:
        locate_points[(triton.cdiv(point_count, _BLOCK) * batch,)](
            points, intrinsics, keys, *sizes, strips * width, BLOCK=_BLOCK, enable_fp_fusion=True
        )
    keys, order = keys.sort(stable=True)
    geometry = points.new_empty(3 if centres is None else 5, total)
    if total > 0:
        store_geometry[(triton.cdiv(total, _BLOCK),)](
            points,
            intrinsics,
            order,
            geometry,
            *sizes,
            total,
            CENTRED=centres is not None,
            BLOCK=_BLOCK,
            enable_fp_fusion=True,
        )
    every_key = torch.arange(strips * width + 1, dtype=torch.int32, device=device)
    bounds = torch.searchsorted(keys, every_key, out_int32=True)
    # A strip has at most floor(n / tile) + 1 tiles, and one more wherever a tile would exceed its window.
    tile_points = layers.tiling.points
    cells = (WINDOW_COLUMNS if centres is None else CENTRED_WINDOW_COLUMNS).value - 1
    capacity = total // tile_points + strips * (1 + (width - 2) // cells)
    tiles = torch.empty(capacity, 4, dtype=torch.int32, device=device)
    tile_count = torch.zeros(1, dtype=torch.int32, device=device)
    make_tiles[(strips,)](
        keys,
        bounds,
        tiles,
        tile_count,
        height,
        width,
        CELLS=cells,
        POINTS=tile_points,
        LANES=128,
        enable_fp_fusion=True,
    )
    centres = None if centres is None else centres.contiguous()
    view = image_size, (height, width)
    return Tiles(points, intrinsics, centres, order, geometry, tiles, tile_count, view)


def project_maps(
    features: Tensor, hand_scale: Tensor | None, layers: Layers, biases: Tensor | None = None
) -> Tensor:
    """Project features through every layer's columns for x.

    Returns:
        (B, H * W + P + 2, sum of widths) compute dtype: a row per texel, then the position's P columns, then
        the constant, bias and hand scale's part, in two parts. Texels that are not finite hold the largest
        number of the dtype: a tile multiplies all texels of its window, most of them by 0.
    """
    batch, _, height, width = features.shape
    constant = None if biases is None else _pack_biases(biases.split(layers.outs, 1), layers.widths)
    if hand_scale is not None and layers.scale is not None:
        constant = layers.bias if constant is None else constant
        constant = torch.addcmul(constant, (hand_scale[:, None] - 15) / 25, layers.scale)
    texels, (extra, channels) = height * width, layers.rows.shape[-2:]
    maps = features.new_empty(batch, texels + extra, channels)
    projection = layers.columns.T.expand(batch, -1, -1)
    largest = torch.finfo(maps.dtype).max
    torch.bmm(features.flatten(2).mT, projection, out=maps[:, :texels])
    maps[:, :texels].nan_to_num_(largest, largest, -largest)
    maps[:, texels:] = layers.rows
    if constant is not None:
        maps[:, -2] = constant
        torch.sub(constant, maps[:, -2], out=maps[:, -1])
    return maps


def sample(maps: Tensor, tiles: Tiles, layers: Layers) -> Samples:
    """Evaluate the signed distances of points."""
    sdf, _ = _evaluate(maps, tiles, layers, with_votes=False)
    return Samples(sdf, maps, tiles)


def votes(samples: Samples, indices: Tensor, layers: Layers) -> Tensor:
    """Votes (B, V, J, 4) float32 of sampled points (B, V), zero at index -1 and out of view."""
    tiles = samples.tiles
    points = tiles.points.expand(len(indices), -1, -1)
    chosen = points.gather(1, indices.clamp(min=0)[..., None].expand(-1, -1, 3))
    chosen = chosen.masked_fill(indices[..., None] < 0, 0.0)  # at the camera, out of view
    located = locate(chosen, tiles.intrinsics, *tiles.view, layers, tiles.centres)
    return evaluate(samples.maps, located, layers)[1]


def evaluate(maps: Tensor, tiles: Tiles, layers: Layers) -> tuple[Tensor, Tensor]:
    """Signed distances, as `sample`, and votes (B, N, J, 4) float32, zero out of view."""
    sdf, votes = _evaluate(maps, tiles, layers, with_votes=True)
    return sdf, votes.unflatten(-1, (-1, 4))


def _evaluate(maps: Tensor, tiles: Tiles, layers: Layers, with_votes: bool) -> tuple[Tensor, Tensor]:
    shared = max(len(tiles.points), len(tiles.intrinsics)) == 1
    if shared and len(maps) > _IMAGES:
        parts = [
            _evaluate(maps[first : first + _IMAGES], _of_images(tiles, first), layers, with_votes)
            for first in range(0, len(maps), _IMAGES)
        ]
        sdf, votes = (torch.cat(some) for some in zip(*parts, strict=True))
        return sdf, votes
    batch, tiling, point_count = len(maps), layers.tiling, tiles.points.shape[1]
    sdf = maps.new_full((batch, point_count), math.inf, dtype=torch.float32)
    channels = layers.outs[-1] - 1 if with_votes else 0
    votes = sdf.new_zeros(batch, point_count, channels)
    images = batch if shared else 1
    tile_capacity = len(tiles.tiles) if point_count > 0 else 0
    tiles_per_pass = max(1, min(tile_capacity, _TILES_PER_PASS // images))
    workspaces = [
        maps.new_empty(images * tiles_per_pass * tiling.points, size) for size in layers.widths[1:-1]
    ]
    unused, most_programs = maps, _programs(maps.device)
    for first_tile in range(0, tile_capacity, tiles_per_pass):
        inputs, first_channel = unused, layers.widths[0]
        for layer in range(1, len(layers.widths)):
            last = layer == len(layers.widths) - 1
            size_in, size_out = layers.widths[layer - 1], layers.widths[layer]
            columns = min(size_out, tiling.columns)
            if last:  # one program has the distances' column and its neighbours, or all columns
                columns = size_out if with_votes else _DISTANCE_COLUMNS
            destination = unused if last else workspaces[layer - 1]
            most_work = min(tiles_per_pass, tile_capacity - first_tile) * (1 if last else size_out // columns)
            evaluate_layer[(min(most_work, triton.cdiv(most_programs, images)), images)](
                maps,
                layers.matrices[layer - 1],
                inputs,
                destination,
                sdf,
                votes,
                tiles.geometry,
                tiles.geometry if tiles.centres is None else tiles.centres,  # else unused, in the same dtype
                tiles.order,
                tiles.tiles,
                tiles.tile_count,
                first_tile,
                tiles_per_pass,
                point_count,
                tiles.geometry.shape[1],
                *tiles.view[1],
                maps.shape[2],
                first_channel,
                IN=size_in,
                OUT=size_out,
                VOTES=channels,
                FIRST=layer == 1,
                LAST=last,
                CENTRED=tiles.centres is not None,
                POINTS=tiling.points,
                COLUMNS=columns,
                DEPTH=min(size_in, tiling.depth),
                STAGES=tiling.stages,
                FENCE=layers.fence,
                PRECISION="ieee",
                num_warps=tiling.warps,
                enable_fp_fusion=True,
            )
            inputs, first_channel = destination, first_channel + size_out
    return sdf, votes


def _programs(device: torch.device) -> int:
    """Number of programs that run at once on a device."""
    if device.type != "cuda":
        return _INTERPRETED_PROGRAMS
    return _PROGRAMS * torch.cuda.get_device_properties(device).multi_processor_count


def _of_images(tiles: Tiles, first: int) -> Tiles:
    """Shared tiles for the images from `first` on."""
    return tiles if tiles.centres is None else tiles._replace(centres=tiles.centres[first:])


def _pack_biases(biases: Sequence[Tensor], widths: Sequence[int]) -> Tensor:
    """Biases (out,) or (B, out), padded to the widths: (sum of widths,) or (B, sum of widths) float32."""
    packed = biases[0].new_zeros((*biases[0].shape[:-1], sum(widths)), dtype=torch.float32)
    for own, bias in zip(packed.split(list(widths), -1), biases, strict=True):
        own[..., : bias.shape[-1]] = bias
    return packed
