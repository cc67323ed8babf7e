"""Coarse poses and the field's inputs in two launches.

`read_maps` takes a program per tile of texels and part: one part reduces the tile to the sums of a softmax
for every joint, the others compute columns of the features. `place_views` combines the sums of all tiles;
its programs compute columns of the biases or lattice points, and repeat the little that they share.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from nvf_fast.kernels.merge_maps.triton import block_channels
from nvf_fast.kernels.place_hands import reference

DEPTH_MM = tl.constexpr(reference.DEPTH_MM)
TYPICAL_MM_PER_PX = tl.constexpr(reference.TYPICAL_MM_PER_PX)
TYPICAL_ERROR_MM = tl.constexpr(reference.TYPICAL_ERROR_MM)
LOG_RANGE = tl.constexpr(reference.LOG_RANGE)
POSITION_MM = tl.constexpr(reference.POSITION_MM)
PRESENCE, LEFT = tl.constexpr(reference.PRESENCE), tl.constexpr(reference.LEFT)
ERRORS = tl.constexpr(reference.ERRORS)
LOWEST = tl.constexpr(-3e38)  # finite, since inf - inf is NaN
SUMS = tl.constexpr(5)  # of a tile and joint: largest logit, weight, weighted u, v and depth
_TEXELS, _COLUMNS, _WARPS = 128, 64, 8
_POINTS, _PLACING_WARPS = 1024, 4  # of a program of `place_views`
_TILES, _HIDDEN = 8, 64  # at a time


@triton.jit
def _chosen(views_ptr, view, batch, outputs, PAIRED: tl.constexpr):
    """The row of a view or of its mirror image, the one with the smaller left-hand logit."""
    row = view
    if PAIRED:
        plain = tl.load(views_ptr + view * outputs + LEFT)
        mirrored = tl.load(views_ptr + (view + batch) * outputs + LEFT)
        row += tl.where(plain > mirrored, batch, 0)
    return row


@triton.jit
def _multiplied(
    rows_ptr,
    valid,
    weight_ptr,
    bias_ptr,
    row,
    within,
    CHANNELS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The product of texels (texels, CHANNELS) and rows of a matrix (rows, CHANNELS), plus their biases.

    A float32 matrix is multiplied in parts of the texels' dtype, on the matrix unit and as exactly.
    """
    DTYPE: tl.constexpr = rows_ptr.dtype.element_ty
    SAME: tl.constexpr = weight_ptr.dtype.element_ty == DTYPE
    PARTS: tl.constexpr = 1 if SAME else 2 if tl.float16 == DTYPE else 3
    bias = tl.load(bias_ptr + row, mask=within, other=0.0).to(tl.float32)
    sums = tl.broadcast_to(bias[None, :], valid.shape[0], COLUMNS)
    # Triton before 3.9 omits the fence between copies of a pipelined loop and products that read them.
    for first in tl.range(0, CHANNELS, BLOCK, num_stages=1):
        channel = first + tl.arange(0, BLOCK)
        known = channel < CHANNELS
        x = tl.load(rows_ptr + channel[None, :], mask=valid[:, None] & known[None, :], other=0.0)
        weight = weight_ptr + row[None, :] * CHANNELS + channel[:, None]
        weight = tl.load(weight, mask=within[None, :] & known[:, None], other=0.0).to(tl.float32)
        for _ in tl.static_range(PARTS):
            part = weight.to(DTYPE)
            sums = tl.dot(x, part, sums, input_precision="ieee")
            weight -= part.to(tl.float32)
    return sums


@triton.jit
def _sum_joints(
    rows_ptr,
    valid,
    weight_ptr,
    bias_ptr,
    u,
    v,
    sums_ptr,
    joint_count,
    CHANNELS: tl.constexpr,
    JOINTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the sums of a tile's softmax for every joint."""
    joint = tl.arange(0, JOINTS)
    own = joint < joint_count
    heat = _multiplied(rows_ptr, valid, weight_ptr, bias_ptr, joint, own, CHANNELS, JOINTS, BLOCK)
    heat = tl.where(valid[:, None], heat, -float("inf"))
    weight_ptr += joint_count * CHANNELS
    relative = _multiplied(
        rows_ptr, valid, weight_ptr, bias_ptr + joint_count, joint, own, CHANNELS, JOINTS, BLOCK
    )
    largest = tl.max(heat, 0)
    weight = tl.exp(heat - largest[None, :])
    sums = sums_ptr + joint
    tl.store(sums, largest, mask=own)
    tl.store(sums + joint_count, tl.sum(weight, 0), mask=own)
    tl.store(sums + 2 * joint_count, tl.sum(weight * u[:, None], 0), mask=own)
    tl.store(sums + 3 * joint_count, tl.sum(weight * v[:, None], 0), mask=own)
    tl.store(sums + 4 * joint_count, tl.sum(weight * relative, 0), mask=own)


@triton.jit
def read_maps(
    maps_ptr,  # (rows, texels, CHANNELS)
    views_ptr,  # (rows, outputs)
    feature_weight_ptr,  # (OUT, CHANNELS)
    feature_bias_ptr,
    joint_weight_ptr,  # (2 joints, CHANNELS): heat, then relative depths
    joint_bias_ptr,
    places_ptr,
    features_ptr,  # (B, texels, OUT)
    sums_ptr,  # (B, tiles, SUMS, joints)
    texels,
    width,
    batch,
    outputs,
    joint_count,
    CHANNELS: tl.constexpr,
    OUT: tl.constexpr,
    MAPPED: tl.constexpr,
    PAIRED: tl.constexpr,
    JOINTS: tl.constexpr,
    TEXELS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # One axis for views and tiles: CUDA allows only 65535 programs along the others.
    tiles = tl.cdiv(texels, TEXELS)
    part, view = tl.program_id(1), (tl.program_id(0) // tiles).to(tl.int64)
    texel = tl.program_id(0) % tiles * TEXELS + tl.arange(0, TEXELS)
    valid = texel < texels
    maps_ptr += _chosen(views_ptr, view, batch, outputs, PAIRED) * texels * CHANNELS
    rows_ptr = maps_ptr + texel[:, None] * CHANNELS
    if part == 0:
        sums_ptr += tl.program_id(0).to(tl.int64) * SUMS * joint_count
        u = tl.load(places_ptr + texel % width, mask=valid, other=0.0)
        v = tl.load(places_ptr + texel // width, mask=valid, other=0.0)
        _sum_joints(
            *(rows_ptr, valid, joint_weight_ptr, joint_bias_ptr, u, v, sums_ptr, joint_count),
            *(CHANNELS, JOINTS, BLOCK),
        )
    else:
        column = (part - 1) * COLUMNS + tl.arange(0, COLUMNS)
        within = column < OUT
        if MAPPED:
            y = _multiplied(
                *(rows_ptr, valid, feature_weight_ptr, feature_bias_ptr, column, within),
                *(CHANNELS, COLUMNS, BLOCK),
            )
        else:
            y = tl.load(rows_ptr + column[None, :], mask=valid[:, None] & within[None, :], other=0.0)
        written = features_ptr + (view * texels + texel[:, None]) * OUT + column[None, :]
        tl.store(written, y.to(features_ptr.dtype.element_ty), mask=valid[:, None] & within[None, :])


@triton.jit
def _joints(sums_ptr, joint, own, joint_count, ALL_TILES: tl.constexpr, TILES: tl.constexpr):
    """Expectations of u, v and relative depth over all tiles."""
    tile = tl.arange(0, TILES)
    largest = tl.full(joint.shape, LOWEST, tl.float32)
    total = tl.zeros(joint.shape, tl.float32)
    u, v, relative = total, total, total
    for first in range(0, ALL_TILES, TILES):
        mask = (first + tile < ALL_TILES)[:, None] & own[None, :]
        pointer = sums_ptr + (first + tile)[:, None] * (SUMS * joint_count) + joint[None, :]
        logit = tl.load(pointer, mask=mask, other=LOWEST)
        before, largest = largest, tl.maximum(largest, tl.max(logit, 0))
        weight, kept = tl.exp(logit - largest[None, :]), tl.exp(before - largest)
        total = total * kept + tl.sum(weight * tl.load(pointer + joint_count, mask=mask, other=0.0), 0)
        u = u * kept + tl.sum(weight * tl.load(pointer + 2 * joint_count, mask=mask, other=0.0), 0)
        v = v * kept + tl.sum(weight * tl.load(pointer + 3 * joint_count, mask=mask, other=0.0), 0)
        depth = tl.load(pointer + 4 * joint_count, mask=mask, other=0.0)
        relative = relative * kept + tl.sum(weight * depth, 0)
    total = tl.where(own, total, 1.0)
    return u / total, v / total, relative / total


@triton.jit
def _clamped_exp(x):
    # Unlike tl.minimum and tl.maximum this keeps NaN, as PyTorch does.
    return tl.exp(tl.where(x < -LOG_RANGE, -LOG_RANGE, tl.where(x > LOG_RANGE, LOG_RANGE, x)))


@triton.jit
def place_views(
    sums_ptr,  # (B, ALL_TILES, SUMS, joints)
    views_ptr,  # (rows, outputs)
    slopes_ptr,
    uv_ptr,  # (points, 2)
    depths_ptr,
    first_weight_ptr,  # (HIDDEN, 3 joints), the pose code's layers
    first_bias_ptr,
    second_weight_ptr,  # (columns, HIDDEN)
    second_bias_ptr,
    coarse_ptr,  # (B, joints, 3)
    errors_ptr,  # (B, joints)
    presence_ptr,
    left_ptr,
    centres_ptr,  # (B, 3)
    points_ptr,  # (B, points, 3)
    intrinsics_ptr,  # (B, 9)
    biases_ptr,  # (B, columns)
    batch,
    outputs,
    joint_count,
    point_count,
    column_count,
    image_size,
    ALL_TILES: tl.constexpr,
    HIDDEN: tl.constexpr,
    PAIRED: tl.constexpr,
    JOINTS: tl.constexpr,
    TILES: tl.constexpr,
    COLUMNS: tl.constexpr,
    UNITS: tl.constexpr,
    POINTS: tl.constexpr,
):
    bias_parts = tl.cdiv(column_count, COLUMNS)
    parts = bias_parts + tl.cdiv(point_count, POINTS)
    part, view = tl.program_id(0) % parts, (tl.program_id(0) // parts).to(tl.int64)
    row = _chosen(views_ptr, view, batch, outputs, PAIRED)
    views_ptr += row * outputs
    joint = tl.arange(0, JOINTS)
    own = joint < joint_count
    slope = tl.load(slopes_ptr + view)
    u, v, relative = _joints(
        sums_ptr + view * ALL_TILES * SUMS * joint_count, joint, own, joint_count, ALL_TILES, TILES
    )
    half = image_size / 2
    middle = _clamped_exp(tl.load(views_ptr)) * (half * TYPICAL_MM_PER_PX) / slope
    z = tl.where(own, middle + relative * DEPTH_MM, 0.0)
    x, y = u * (slope * z), v * (slope * z)
    centre_x, centre_y = tl.sum(x, 0) / joint_count, tl.sum(y, 0) / joint_count
    centre_z = tl.sum(z, 0) / joint_count

    if part == 0:
        pose = (view * joint_count + joint) * 3
        tl.store(coarse_ptr + pose, x, mask=own)
        tl.store(coarse_ptr + pose + 1, y, mask=own)
        tl.store(coarse_ptr + pose + 2, z, mask=own)
        error = _clamped_exp(tl.load(views_ptr + ERRORS + joint, mask=own, other=0.0))
        tl.store(errors_ptr + view * joint_count + joint, error * TYPICAL_ERROR_MM, mask=own)
        tl.store(presence_ptr + view, tl.load(views_ptr + PRESENCE))
        tl.store(left_ptr + view, (row > view).to(tl.uint8))
        tl.store(centres_ptr + view * 3, centre_x)
        tl.store(centres_ptr + view * 3 + 1, centre_y)
        tl.store(centres_ptr + view * 3 + 2, centre_z)
        entry = tl.arange(0, 16)
        value = tl.where((entry == 0) | (entry == 4), half / slope, 0.0)
        value = tl.where((entry == 2) | (entry == 5), half, tl.where(entry == 8, 1.0, value))
        tl.store(intrinsics_ptr + view * 9 + entry, value, mask=entry < 9)
    if part < bias_parts:
        x, y, z = ((x - centre_x) / POSITION_MM, (y - centre_y) / POSITION_MM, (z - centre_z) / POSITION_MM)
        column = part * COLUMNS + tl.arange(0, COLUMNS)
        within = column < column_count
        bias = tl.load(second_bias_ptr + column, mask=within, other=0.0)
        for start in range(0, HIDDEN, UNITS):
            unit = start + tl.arange(0, UNITS)
            known = unit < HIDDEN
            mask = known[:, None] & own[None, :]
            first = first_weight_ptr + unit[:, None] * (3 * joint_count) + 3 * joint[None, :]
            products = tl.load(first, mask=mask, other=0.0) * x[None, :]
            products += tl.load(first + 1, mask=mask, other=0.0) * y[None, :]
            products += tl.load(first + 2, mask=mask, other=0.0) * z[None, :]
            hidden = tl.sum(products, 1) + tl.load(first_bias_ptr + unit, mask=known, other=0.0)
            hidden = tl.where(hidden < 0, 0.0, hidden)
            second = second_weight_ptr + column[:, None] * HIDDEN + unit[None, :]
            second = tl.load(second, mask=within[:, None] & known[None, :], other=0.0)
            bias += tl.sum(second * hidden[None, :], 1)
        tl.store(biases_ptr + view * column_count + column, bias, mask=within)
    else:
        point = (part - bias_parts) * POINTS + tl.arange(0, POINTS)
        inside = point < point_count
        depth = centre_z + tl.load(depths_ptr + point, mask=inside, other=0.0)
        across = tl.load(uv_ptr + 2 * point, mask=inside, other=0.0) * (slope * depth)
        down = tl.load(uv_ptr + 2 * point + 1, mask=inside, other=0.0) * (slope * depth)
        place = points_ptr + (view * point_count + point) * 3
        tl.store(place, across, mask=inside)
        tl.store(place + 1, down, mask=inside)
        tl.store(place + 2, depth, mask=inside)


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
    """Coarse poses and the field's inputs, as in the reference; the features are channels-last."""
    batch, (rows, channels, height, width) = len(slopes), maps.shape
    joint_count, texels, count = len(joints[1]) // 2, height * width, len(depths)
    maps, views, slopes = (
        maps.contiguous(memory_format=torch.channels_last),
        views.contiguous(),
        slopes.contiguous(),
    )
    features, joints, code = ([each.contiguous() for each in layer] for layer in (features, joints, code))
    out = len(features[1]) if features else channels
    found = maps.new_empty(batch, height, width, out).permute(0, 3, 1, 2)
    coarse, errors, presence, centres, points, intrinsics, every_bias = (
        slopes.new_empty(batch, *shape)
        for shape in ((joint_count, 3), (joint_count,), (), (3,), (count, 3), (3, 3), (len(biases),))
    )
    left = slopes.new_empty(batch, dtype=torch.bool)
    results = found, coarse, errors, presence, left, centres, points, intrinsics, every_bias
    if batch == 0:
        return results
    tiles, lanes = triton.cdiv(texels, _TEXELS), max(16, triton.next_power_of_2(joint_count))
    sums = slopes.new_empty(batch, tiles, SUMS.value, joint_count)
    read_maps[(batch * tiles, 1 + triton.cdiv(out, _COLUMNS))](
        maps,
        views,
        *(features or joints),
        *joints,
        places.contiguous(),
        found,
        sums,
        texels,
        width,
        batch,
        views.shape[1],
        joint_count,
        CHANNELS=channels,
        OUT=out,
        MAPPED=len(features) > 0,
        PAIRED=rows > batch,
        JOINTS=lanes,
        TEXELS=_TEXELS,
        COLUMNS=_COLUMNS,
        BLOCK=block_channels(maps.dtype, min(channels, 64)),
        num_warps=_WARPS,
        enable_fp_fusion=True,
    )
    parts = triton.cdiv(len(biases), _COLUMNS) + triton.cdiv(count, _POINTS)
    place_views[(batch * parts,)](
        sums,
        views,
        slopes,
        uv.contiguous(),
        depths.contiguous(),
        *(code or (biases, biases, biases)),
        biases.contiguous(),
        coarse,
        errors,
        presence,
        left.view(torch.uint8),
        centres,
        points,
        intrinsics,
        every_bias,
        batch,
        views.shape[1],
        joint_count,
        count,
        len(biases),
        image_size,
        ALL_TILES=tiles,
        HIDDEN=len(code[1]) if code else 0,
        PAIRED=rows > batch,
        JOINTS=lanes,
        TILES=_TILES,
        COLUMNS=_COLUMNS,
        UNITS=_HIDDEN,
        POINTS=_POINTS,
        num_warps=_PLACING_WARPS,
        enable_fp_fusion=True,
    )
    return results
