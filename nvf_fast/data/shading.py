"""Light on a mesh: shadows, ambient occlusion, and the colour of each pixel."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
from numba import njit

from nvf_fast.data.skin import CREASE, KNUCKLE, NAIL, PALM, TIP, SkinLook

SHADOW_MAP, OCCLUSION_MAP = 110, 84  # px
BIAS_MM = 4.0  # of depth maps
LIFT_MM = 3.0  # off the surface
NOISE = 64  # cells along each axis of the noise
# Columns of the vertex attributes.
NORMAL, PLACE, OPEN, LIT, MASKS = 0, 3, 6, 7, 9
ATTRIBUTES = 14
MATERIAL = 9  # numbers of a material: red, green, blue, then noise and stripes, each by strength and wave
# number (1/mm), then gloss and shine


class Lighting(NamedTuple):
    """Light from all around and from two directions, linear RGB.

    Attributes:
        up: (3,) unit, towards the sky.
        sky, ground: (3,) irradiance from above and from below.
        directions: (2, 3) unit, towards the lights.
        colours: (2, 3), zero for a light that is off.
        wrap: how far light reaches around the terminator.
        exposure: factor of all light.
    """

    up: np.ndarray
    sky: np.ndarray
    ground: np.ndarray
    directions: np.ndarray
    colours: np.ndarray
    wrap: float
    exposure: float


@njit(cache=True)
def visibility(vertices: np.ndarray, normals: np.ndarray, towards: np.ndarray, size: int) -> np.ndarray:
    """Find how much of a distant light reaches each vertex, by a depth map of the vertices as splats.

    Args:
        vertices: (V, 3) mm.
        normals: (V, 3) unit.
        towards: (3,) unit, from the surface to the light.
        size: px of the depth map.

    Returns:
        (V,) in [0, 1].
    """
    dx, dy, dz = towards[0], towards[1], towards[2]
    if abs(dy) < 0.9:
        ux, uy, uz = dz, 0.0, -dx
    else:
        ux, uy, uz = 0.0, -dz, dy
    length = np.sqrt(ux * ux + uy * uy + uz * uz)
    ux, uy, uz = ux / length, uy / length, uz / length
    wx, wy, wz = dy * uz - dz * uy, dz * ux - dx * uz, dx * uy - dy * ux
    count = len(vertices)
    x, y, z = np.empty(count), np.empty(count), np.empty(count)
    for i in range(count):
        a, b, c = vertices[i]
        x[i] = a * ux + b * uy + c * uz
        y[i] = a * wx + b * wy + c * wz
        z[i] = -(a * dx + b * dy + c * dz)
    x -= x.min()
    y -= y.min()
    scale = (size - 3) / max(x.max(), y.max())
    depth = np.full((size, size), 1e9)
    for i in range(count):
        x[i], y[i] = x[i] * scale + 1, y[i] * scale + 1
        column, row = int(x[i] + 0.5), int(y[i] + 0.5)
        for b in range(max(row - 1, 0), min(row + 2, size)):
            for a in range(max(column - 1, 0), min(column + 2, size)):
                depth[b, a] = min(depth[b, a], z[i])
    out = np.empty(count)
    for i in range(count):
        a, b, c = normals[i]
        cosine = a * dx + b * dy + c * dz
        at_x = min(max(x[i] + LIFT_MM * scale * (a * ux + b * uy + c * uz), 0.0), size - 2.0)
        at_y = min(max(y[i] + LIFT_MM * scale * (a * wx + b * wy + c * wz), 0.0), size - 2.0)
        sloped = min(np.sqrt(max(1 - cosine * cosine, 0.0)) / max(cosine, 0.05), 2.0)
        limit = z[i] - LIFT_MM * cosine - BIAS_MM * (1 + sloped)
        column, row = int(at_x), int(at_y)
        fx, fy = at_x - column, at_y - row
        seen = 0.0
        if depth[row, column] >= limit:
            seen += (1 - fx) * (1 - fy)
        if depth[row, column + 1] >= limit:
            seen += fx * (1 - fy)
        if depth[row + 1, column] >= limit:
            seen += (1 - fx) * fy
        if depth[row + 1, column + 1] >= limit:
            seen += fx * fy
        out[i] = seen
    return out


@njit(cache=True)
def openness(vertices: np.ndarray, normals: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """(V,) part of the surroundings that each vertex sees, over some directions (D, 3): ambient occlusion."""
    seen, total = np.zeros(len(vertices)), np.full(len(vertices), 1e-3)
    for k in range(len(directions)):
        reached = visibility(vertices, normals, directions[k], OCCLUSION_MAP)
        for i in range(len(vertices)):
            cosine = (
                normals[i, 0] * directions[k, 0]
                + normals[i, 1] * directions[k, 1]
                + normals[i, 2] * directions[k, 2]
            )
            if cosine > 0:
                seen[i] += cosine * reached[i]
                total[i] += cosine
    return (seen + 0.5e-3) / total


@njit(cache=True)
def shade(
    shown: np.ndarray,
    corners: np.ndarray,
    depth: np.ndarray,
    focal: float,
    faces: np.ndarray,
    attributes: np.ndarray,
    face_materials: np.ndarray,
    materials: np.ndarray,
    skin: SkinLook,
    uv: np.ndarray,
    details: np.ndarray,
    noise: np.ndarray,
    lighting: Lighting,
) -> np.ndarray:
    """Colour the pixels that `rasterise` found: wrapped Lambert, Blinn's highlight, hemisphere light.

    Args:
        shown, corners, depth: from `rasterise`, of a view of S px.
        focal: px.
        faces: (F, 3) int32.
        attributes: (V, 14) float64 of each vertex: normal, place in the noise (mm), openness, light from both
            lights, skin masks.
        face_materials: (F,) int64; 0 is skin.
        materials: (M, 9), see `MATERIAL`.
        skin: its look.
        uv: (T, 3, 2) texture coordinates of the first T faces.
        details: (D, D, 3) log reflectance of the texture.
        noise: from `noise_volume`.
        lighting: of the scene.

    Returns:
        (S, S, 4) float32: display RGB in [0, 1], multiplied by coverage, and coverage.
    """
    size = len(shown)
    out = np.zeros((size, size, 4), np.float32)
    value = np.empty(attributes.shape[1])
    albedo = np.empty(3)
    for row in range(size):
        for column in range(size):
            face = shown[row, column]
            if face < 0:
                continue
            w1, w2 = corners[row, column, 0], corners[row, column, 1]
            w0 = 1 - w1 - w2
            a, b, c = faces[face]
            for k in range(len(value)):
                value[k] = w0 * attributes[a, k] + w1 * attributes[b, k] + w2 * attributes[c, k]
            px, py, pz = value[PLACE], value[PLACE + 1], value[PLACE + 2]
            material = face_materials[face]
            if material == 0:
                px, py, pz = px + skin.offset[0], py + skin.offset[1], pz + skin.offset[2]
                coarse = noise_at(noise, px / 9, py / 9, pz / 9) + 0.6 * noise_at(
                    noise, px / 4, py / 4, pz / 4
                )
                fine = noise_at(noise, px / 1.3, py / 1.3, pz / 1.3)
                palm, nail = value[MASKS + PALM], value[MASKS + NAIL] * skin.nail_cover
                red = skin.redness * (
                    0.6 * value[MASKS + TIP] + 0.5 * value[MASKS + KNUCKLE] + 0.35 * coarse + 0.4 * palm
                )
                dark = (1 - skin.crease * value[MASKS + CREASE]) * (
                    1 - skin.knuckle * value[MASKS + KNUCKLE] * (1 + 0.5 * fine)
                )
                shared = skin.mottling * coarse + skin.grain * fine
                at_x = at_y = 0.0
                if face < len(uv) and skin.detail > 0:
                    at_x = w0 * uv[face, 0, 0] + w1 * uv[face, 1, 0] + w2 * uv[face, 2, 0]
                    at_y = w0 * uv[face, 0, 1] + w1 * uv[face, 1, 1] + w2 * uv[face, 2, 1]
                for k in range(3):
                    blood = 0.1 if k == 0 else (-0.16 if k == 1 else -0.12)
                    log = shared * (0.8 + 0.2 * k) + red * blood
                    if face < len(uv) and skin.detail > 0:
                        log += skin.detail * _texel(details, at_x, at_y, k)
                    base = skin.back[k] + palm * (skin.palm[k] - skin.back[k])
                    albedo[k] = base * np.exp(log) * dark
                    albedo[k] = min(albedo[k] + nail * (skin.nail[k] - albedo[k]), 0.95)
                gloss, shine = skin.gloss * (1 + 2.5 * nail), skin.shine * (1 + nail)
            else:
                look = materials[material]
                pattern = look[3] * noise_at(noise, px * look[4], py * look[4], pz * look[4])
                phase = (0.3 * px + py) * look[6]
                if phase - np.floor(phase) < 0.5:
                    pattern += look[5]
                for k in range(3):
                    albedo[k] = min(look[k] * np.exp(pattern), 0.95)
                gloss, shine = look[7], look[8]
            nx, ny, nz = value[NORMAL], value[NORMAL + 1], value[NORMAL + 2]
            length = np.sqrt(nx * nx + ny * ny + nz * nz) + 1e-12
            nx, ny, nz = nx / length, ny / length, nz / length
            vx, vy = (column - size / 2) / focal, (row - size / 2) / focal
            length = np.sqrt(vx * vx + vy * vy + 1)
            vx, vy, vz = -vx / length, -vy / length, -1 / length
            above = 0.5 + 0.5 * (nx * lighting.up[0] + ny * lighting.up[1] + nz * lighting.up[2])
            seen = max(value[OPEN], 0.12)
            reached = seen
            for k in range(3):
                if material == 0 and k > 0:  # light in a fold was reflected by skin, so that it is redder
                    reached *= np.sqrt(np.sqrt(seen))
                light = reached * (above * lighting.sky[k] + (1 - above) * lighting.ground[k])
                out[row, column, k] = albedo[k] * light
            for which in range(2):
                dx, dy, dz = lighting.directions[which]
                lit = value[LIT + which]
                cosine = nx * dx + ny * dy + nz * dz
                wrapped = max((cosine + lighting.wrap) / (1 + lighting.wrap), 0.0)
                red_wrap = lighting.wrap + (0.15 if material == 0 else 0.0)
                redder = max((cosine + red_wrap) / (1 + red_wrap), 0.0)
                highlight = 0.0
                if cosine > 0:
                    hx, hy, hz = dx + vx, dy + vy, dz + vz
                    length = np.sqrt(hx * hx + hy * hy + hz * hz) + 1e-9
                    highlight = gloss * max((nx * hx + ny * hy + nz * hz) / length, 0.0) ** shine
                for k in range(3):
                    lambert = redder if k == 0 else wrapped
                    out[row, column, k] += (
                        lit * lighting.colours[which, k] * (albedo[k] * lambert + highlight)
                    )
            for k in range(3):
                out[row, column, k] = display(out[row, column, k] * lighting.exposure)
            out[row, column, 3] = 1
    return out


@njit(cache=True)
def display(linear: float) -> float:
    """Display value in [0, 1] of linear light, with a soft shoulder; sRGB's curve to 0.003 by square roots."""
    x = max(linear, 0.0)
    if x > 0.7:
        x = 1 - 0.3 * np.exp((0.7 - x) / 0.3)
    first = np.sqrt(x)
    second = np.sqrt(first)
    return min(max(0.585122381 * first + 0.783140355 * second - 0.368262736 * np.sqrt(second), 0.0), 1.0)


@cache
def noise_volume() -> np.ndarray:
    """(64, 64, 64) float32, smooth noise of mean 0 and deviation 1 that repeats along every axis."""
    words = np.random.Philox(key=np.array([64, 64], np.uint64)).random_raw(NOISE**3)
    volume = (words >> np.uint64(12)).astype(np.float64).reshape(NOISE, NOISE, NOISE)
    for axis in range(3):
        volume = 2 * volume + np.roll(volume, 1, axis) + np.roll(volume, -1, axis)
    return ((volume - volume.mean()) / volume.std()).astype(np.float32)


@njit(cache=True)
def noise_at(volume: np.ndarray, x: float, y: float, z: float) -> float:
    """The noise at a place in cells, interpolated."""
    fx, fy, fz = np.floor(x), np.floor(y), np.floor(z)
    i, j, k = int(fx) & (NOISE - 1), int(fy) & (NOISE - 1), int(fz) & (NOISE - 1)
    x, y, z = x - fx, y - fy, z - fz
    i1, j1, k1 = (i + 1) & (NOISE - 1), (j + 1) & (NOISE - 1), (k + 1) & (NOISE - 1)
    low = (volume[i, j, k] * (1 - x) + volume[i1, j, k] * x) * (1 - y)
    low += (volume[i, j1, k] * (1 - x) + volume[i1, j1, k] * x) * y
    high = (volume[i, j, k1] * (1 - x) + volume[i1, j, k1] * x) * (1 - y)
    high += (volume[i, j1, k1] * (1 - x) + volume[i1, j1, k1] * x) * y
    return low * (1 - z) + high * z


@njit(cache=True)
def _texel(details: np.ndarray, u: float, v: float, channel: int) -> float:
    """A texture's value, interpolated."""
    size = len(details)
    x, y = (u - np.floor(u)) * (size - 1), (v - np.floor(v)) * (size - 1)
    i, j = min(int(x), size - 2), min(int(y), size - 2)
    x, y = x - i, y - j
    top = details[j, i, channel] * (1 - x) + details[j, i + 1, channel] * x
    bottom = details[j + 1, i, channel] * (1 - x) + details[j + 1, i + 1, channel] * x
    return top * (1 - y) + bottom * y
