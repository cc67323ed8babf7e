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
NOISE = 32  # cells along each axis of the noise


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
def skin_colours(
    places: np.ndarray, masks: np.ndarray, skin: SkinLook, textured: bool, noise: np.ndarray
) -> np.ndarray:
    """Find the reflectance of skin at each vertex.

    Args:
        places: (V, 3) mm, at rest.
        masks: (V, 5), see `skin_masks`.
        skin: its look.
        textured: a texture adds its own detail later.
        noise: from `noise_volume`.

    Returns:
        (V, 3) float64, linear RGB.
    """
    out = np.empty((len(places), 3))
    for i in range(len(places)):
        x, y, z = places[i, 0] + skin.offset[0], places[i, 1] + skin.offset[1], places[i, 2] + skin.offset[2]
        coarse = noise_at(noise, x / 9, y / 9, z / 9) + 0.6 * noise_at(noise, x / 4, y / 4, z / 4)
        palm, nail, knuckle = masks[i, PALM], masks[i, NAIL] * skin.nail_cover, masks[i, KNUCKLE]
        red = skin.redness * (0.6 * masks[i, TIP] + 0.5 * knuckle + 0.35 * coarse + 0.4 * palm)
        dark = (1 - skin.crease * masks[i, CREASE]) * (1 - skin.knuckle * knuckle * (1 + 0.4 * coarse))
        for k in range(3):
            blood = 0.1 if k == 0 else (-0.16 if k == 1 else -0.12)
            log = skin.mottling * coarse * (0.8 + 0.2 * k) + red * blood
            if textured:
                log -= palm * skin.texture_palm[k]
            colour = (skin.back[k] + palm * (skin.palm[k] - skin.back[k])) * np.exp(log) * dark
            out[i, k] = min(colour + nail * (skin.nail[k] - colour), 0.95)
    return out


@njit(cache=True)
def light_vertices(
    vertices: np.ndarray,
    normals: np.ndarray,
    seen: np.ndarray,
    lit: np.ndarray,
    gloss: np.ndarray,
    shine: np.ndarray,
    soft: np.ndarray,
    lighting: Lighting,
) -> np.ndarray:
    """Find the light on each vertex: hemisphere light, wrapped Lambert, Blinn's highlight.

    Args:
        vertices: (V, 3) mm, camera frame.
        normals: (V, 3) unit.
        seen: (V,), openness.
        lit: (2, V), how much of both lights arrives.
        gloss, shine: (V,), strength and exponent of the highlight.
        soft: (V,) bool, skin, which scatters red light around edges and into folds.
        lighting: of the scene.

    Returns:
        (V, 6) float64, diffuse and specular linear RGB.
    """
    out = np.zeros((len(vertices), 6))
    up, sky, ground = lighting.up, lighting.sky, lighting.ground
    directions, colours, wrap = lighting.directions, lighting.colours, lighting.wrap
    for i in range(len(vertices)):
        nx, ny, nz = normals[i, 0], normals[i, 1], normals[i, 2]
        vx, vy, vz = -vertices[i, 0], -vertices[i, 1], -vertices[i, 2]
        length = np.sqrt(vx * vx + vy * vy + vz * vz)
        if nx * vx + ny * vy + nz * vz < -0.3 * length:
            continue  # faces away
        vx, vy, vz = vx / length, vy / length, vz / length
        above = 0.5 + 0.5 * (nx * up[0] + ny * up[1] + nz * up[2])
        reached = max(seen[i], 0.12)
        step = np.sqrt(np.sqrt(reached)) if soft[i] else 1.0  # light in a fold was reflected by skin
        for k in range(3):
            out[i, k] = lighting.exposure * reached * (above * sky[k] + (1 - above) * ground[k])
            reached *= step
        for which in range(2):
            dx, dy, dz = directions[which, 0], directions[which, 1], directions[which, 2]
            strength = lighting.exposure * lit[which, i]
            if strength == 0:
                continue
            cosine = nx * dx + ny * dy + nz * dz
            lambert = max((cosine + wrap) / (1 + wrap), 0.0)
            redder = max((cosine + wrap + 0.15) / (1.15 + wrap), 0.0) if soft[i] else lambert
            highlight = 0.0
            if cosine > 0 and gloss[i] > 0:
                hx, hy, hz = dx + vx, dy + vy, dz + vz
                length = np.sqrt(hx * hx + hy * hy + hz * hz) + 1e-9
                facing = (nx * hx + ny * hy + nz * hz) / length
                if facing > 0.6:
                    highlight = gloss[i] * facing ** shine[i]
            for k in range(3):
                out[i, k] += strength * colours[which, k] * (redder if k == 0 else lambert)
                out[i, 3 + k] += strength * colours[which, k] * highlight
    return out


@njit(cache=True)
def shade(
    shown: np.ndarray,
    corners: np.ndarray,
    faces: np.ndarray,
    albedo: np.ndarray,
    light: np.ndarray,
    places: np.ndarray,
    face_materials: np.ndarray,
    patterns: np.ndarray,
    uv: np.ndarray,
    details: np.ndarray,
    noise: np.ndarray,
) -> np.ndarray:
    """Colour the pixels that `rasterise` found.

    Args:
        shown, corners: from `rasterise`, of a view of S px.
        faces: (F, 3) int32.
        albedo: (V, 3) linear RGB.
        light: (V, 6), from `light_vertices`.
        places: (V, 3) mm, where the vertices lie in the noise.
        face_materials: (F,) int64.
        patterns: (M, 4) of each material: strength and wave number (1/mm) of its noise, and of its stripes.
        uv: (T, 3, 2) texture coordinates of the first T faces.
        details: (D, D, 3), factors of the texture.
        noise: from `noise_volume`.

    Returns:
        (S, S, 4) float32: display RGB in [0, 1] times coverage, and coverage.
    """
    size = len(shown)
    out = np.zeros((size, size, 4), np.float32)
    for row in range(size):
        for column in range(size):
            face = shown[row, column]
            if face < 0:
                continue
            w1, w2 = corners[row, column, 0], corners[row, column, 1]
            w0 = 1 - w1 - w2
            a, b, c = faces[face, 0], faces[face, 1], faces[face, 2]
            x = w0 * places[a, 0] + w1 * places[b, 0] + w2 * places[c, 0]
            y = w0 * places[a, 1] + w1 * places[b, 1] + w2 * places[c, 1]
            z = w0 * places[a, 2] + w1 * places[b, 2] + w2 * places[c, 2]
            material = face_materials[face]
            waves = patterns[material, 1]
            pattern = 1 + patterns[material, 0] * noise_at(noise, x * waves, y * waves, z * waves)
            if patterns[material, 2] != 0:
                phase = (0.3 * x + y) * patterns[material, 3]
                if phase - np.floor(phase) < 0.5:
                    pattern *= 1 + patterns[material, 2]
            at_x = at_y = 0.0
            if face < len(uv):
                at_x = w0 * uv[face, 0, 0] + w1 * uv[face, 1, 0] + w2 * uv[face, 2, 0]
                at_y = w0 * uv[face, 0, 1] + w1 * uv[face, 1, 1] + w2 * uv[face, 2, 1]
            for k in range(3):
                colour = pattern * (w0 * albedo[a, k] + w1 * albedo[b, k] + w2 * albedo[c, k])
                if face < len(uv):
                    colour *= _texel(details, at_x, at_y, k)
                diffuse = w0 * light[a, k] + w1 * light[b, k] + w2 * light[c, k]
                specular = w0 * light[a, 3 + k] + w1 * light[b, 3 + k] + w2 * light[c, 3 + k]
                out[row, column, k] = display(colour * diffuse + specular)
            out[row, column, 3] = 1
    return out


@njit(cache=True)
def display(linear: float) -> float:
    """Display value in [0, 1] of linear light: a soft shoulder, then sRGB's curve (to 0.003, by roots)."""
    x = max(linear, 0.0)
    if x > 0.7:
        x = 1 - 0.3 * np.exp((0.7 - x) / 0.3)
    first = np.sqrt(x)
    second = np.sqrt(first)
    return min(max(0.585122381 * first + 0.783140355 * second - 0.368262736 * np.sqrt(second), 0.0), 1.0)


@cache
def noise_volume() -> np.ndarray:
    """(32, 32, 32) float32, smooth noise of mean 0 and deviation 1 that repeats along every axis."""
    words = np.random.Philox(key=np.array([64, 64], np.uint64)).random_raw(NOISE**3)
    volume = (words >> np.uint64(12)).astype(np.float64).reshape(NOISE, NOISE, NOISE)
    for axis in range(3):
        volume = 2 * volume + np.roll(volume, 1, axis) + np.roll(volume, -1, axis)
    return ((volume - volume.mean()) / volume.std()).astype(np.float32)


@njit(cache=True)
def noise_at(volume: np.ndarray, x: float, y: float, z: float) -> float:
    """Value of a noise volume at a place in cells, interpolated."""
    last = len(volume) - 1  # a power of two less one
    fx, fy, fz = np.floor(x), np.floor(y), np.floor(z)
    i, j, k = int(fx) & last, int(fy) & last, int(fz) & last
    x, y, z = x - fx, y - fy, z - fz
    i1, j1, k1 = (i + 1) & last, (j + 1) & last, (k + 1) & last
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
