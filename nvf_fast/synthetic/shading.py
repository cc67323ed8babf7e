"""Light on a mesh: shadows, ambient occlusion, and the colour of each pixel."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np

from nvf_fast.runtime.compiled import compiled
from nvf_fast.synthetic.scene import Scene
from nvf_fast.synthetic.skin import CREASE, KNUCKLE, NAIL, PALM, TIP, SkinLook

SHADOW_MAP, OCCLUSION_MAP = 110, 84  # px
BIAS_MM = 4.0  # of depth maps
LIFT_MM = 3.0  # off the surface
NOISE = 32  # cells along each axis of the noise


class Lighting(NamedTuple):
    """Light from all around and from two directions, linear RGB."""

    up: np.ndarray  # (3,) unit, towards the sky
    # (3,) irradiance from above and from below
    sky: np.ndarray
    ground: np.ndarray
    directions: np.ndarray  # (2, 3) unit, towards the lights
    colours: np.ndarray  # (2, 3), zero for a light that is off
    wrap: float  # how far light reaches around the terminator
    exposure: float  # factor of all light


@compiled()
def visibility(
    vertices: np.ndarray, normals: np.ndarray, rows: np.ndarray, towards: np.ndarray, size: int
) -> np.ndarray:
    """Compute the visibility of a distant light from vertices, by a depth map of all of them as splats.

    Args:
        vertices: (V, 3) mm.
        normals: (V, 3) unit.
        rows: (K,) indices of the vertices that are lit.
        towards: (3,) unit, from the surface to the light.
        size: px of the depth map.

    Returns:
        (V,) in [0, 1]; 0 beyond `rows`.
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
    low_x = low_y = np.inf
    high_x = high_y = -np.inf
    for i in range(count):
        a, b, c = vertices[i, 0], vertices[i, 1], vertices[i, 2]
        x[i] = a * ux + b * uy + c * uz
        y[i] = a * wx + b * wy + c * wz
        z[i] = -(a * dx + b * dy + c * dz)
        low_x, high_x = min(low_x, x[i]), max(high_x, x[i])
        low_y, high_y = min(low_y, y[i]), max(high_y, y[i])
    scale = (size - 3) / max(high_x - low_x, high_y - low_y)
    depth = np.full((size, size), 1e9)
    for i in range(count):
        x[i], y[i] = (x[i] - low_x) * scale + 1, (y[i] - low_y) * scale + 1
        column, row = int(x[i] + 0.5), int(y[i] + 0.5)
        depth[row, column] = min(depth[row, column], z[i])
    depth = _least_of_nine(depth)
    out = np.zeros(count)
    for i in rows:
        a, b, c = normals[i, 0], normals[i, 1], normals[i, 2]
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


@compiled()
def _least_of_nine(depth: np.ndarray) -> np.ndarray:
    """(S, S) smallest value of each pixel of an image (S, S) and its neighbours."""
    size = len(depth)
    out, line = np.empty_like(depth), np.full(size + 2, 1e9)
    for row in range(size):
        above, here, below = depth[max(row - 1, 0)], depth[row], depth[min(row + 1, size - 1)]
        for column in range(size):
            line[column + 1] = min(above[column], here[column], below[column])
        for column in range(size):
            out[row, column] = min(line[column], line[column + 1], line[column + 2])
    return out


@compiled()
def openness(
    vertices: np.ndarray, normals: np.ndarray, rows: np.ndarray, directions: np.ndarray
) -> np.ndarray:
    """Compute the ratio of the surroundings visible from vertices (ambient occlusion).

    Args:
        vertices, normals, rows: as in `visibility`.
        directions: (D, 3) unit, the sampled directions of the surroundings.

    Returns:
        (V,) in [0, 1].
    """
    seen, total = np.zeros(len(vertices)), np.full(len(vertices), 1e-3)
    cosines = np.empty(len(vertices))
    for k in range(len(directions)):
        dx, dy, dz = directions[k, 0], directions[k, 1], directions[k, 2]
        for i in rows:
            cosines[i] = normals[i, 0] * dx + normals[i, 1] * dy + normals[i, 2] * dz
        facing = rows[cosines[rows] > 0]
        reached = visibility(vertices, normals, facing, directions[k], OCCLUSION_MAP)
        for i in facing:
            seen[i] += cosines[i] * reached[i]
            total[i] += cosines[i]
    return (seen + 0.5e-3) / total


@compiled()
def reflectances(
    scene: Scene, rows: np.ndarray, looks: np.ndarray, skin: SkinLook, textured: bool, noise: np.ndarray
) -> np.ndarray:
    """Compute the reflectance of vertices.

    Args:
        scene: with V vertices.
        rows: (K,) indices of the vertices that are lit.
        looks: (M, 9) of each material, from `draw_looks`; that of skin is ignored.
        skin: its look.
        textured: a texture adds its own detail later.
        noise: from `noise_volume`.

    Returns:
        (V, 5) float64: linear RGB, gloss and shine.
    """
    places, masks, materials = scene.places, scene.masks, scene.vertex_materials
    out = np.empty((len(places), 5))
    for i in rows:
        if materials[i] != 0:
            for k in range(3):
                out[i, k] = looks[materials[i], k]
            out[i, 3], out[i, 4] = looks[materials[i], 7], looks[materials[i], 8]
            continue
        x, y, z = places[i, 0] + skin.offset[0], places[i, 1] + skin.offset[1], places[i, 2] + skin.offset[2]
        coarse = noise_at(noise, x / 9, y / 9, z / 9) + 0.6 * noise_at(noise, x / 4, y / 4, z / 4)
        palm = nail = knuckle = tip = crease = 0.0
        if i < len(masks):
            palm, nail, knuckle = masks[i, PALM], masks[i, NAIL] * skin.nail_cover, masks[i, KNUCKLE]
            tip, crease = masks[i, TIP], masks[i, CREASE]
        red = skin.redness * (0.6 * tip + 0.5 * knuckle + 0.35 * coarse + 0.4 * palm)
        dark = (1 - skin.crease * crease) * (1 - skin.knuckle * knuckle * (1 + 0.4 * coarse))
        for k in range(3):
            blood = 0.1 if k == 0 else (-0.16 if k == 1 else -0.12)
            log = skin.mottling * coarse * (0.8 + 0.2 * k) + red * blood
            if textured:
                log -= palm * skin.texture_palm[k]
            colour = (skin.back[k] + palm * (skin.palm[k] - skin.back[k])) * np.exp(log) * dark
            out[i, k] = min(colour + nail * (skin.nail[k] - colour), 0.95)
        out[i, 3], out[i, 4] = skin.gloss * (1 + 2.5 * nail), skin.shine * (1 + nail)
    return out


@compiled()
def light_vertices(
    scene: Scene,
    normals: np.ndarray,
    rows: np.ndarray,
    seen: np.ndarray,
    lit: np.ndarray,
    reflecting: np.ndarray,
    lighting: Lighting,
) -> np.ndarray:
    """Compute the light on each vertex: hemisphere light, wrapped Lambert, Blinn's highlight.

    Skin scatters red light around edges and into folds.

    Args:
        scene: with V vertices.
        normals, rows: as in `visibility`.
        seen: (V,), openness.
        lit: (2, V), visibility of both lights.
        reflecting: (V, 5), from `reflectances`.
        lighting: of the scene.

    Returns:
        (V, 9) float64: reflectance, diffuse and specular light, linear RGB each.
    """
    vertices, materials = scene.vertices, scene.vertex_materials
    out = np.zeros((len(vertices), 9))
    up, sky, ground = lighting.up, lighting.sky, lighting.ground
    directions, colours, wrap = lighting.directions, lighting.colours, lighting.wrap
    for i in rows:
        for k in range(3):
            out[i, k] = reflecting[i, k]
        gloss, shine, soft = reflecting[i, 3], reflecting[i, 4], materials[i] == 0
        nx, ny, nz = normals[i, 0], normals[i, 1], normals[i, 2]
        vx, vy, vz = -vertices[i, 0], -vertices[i, 1], -vertices[i, 2]
        length = np.sqrt(vx * vx + vy * vy + vz * vz)
        if nx * vx + ny * vy + nz * vz < -0.3 * length:
            continue  # faces away
        vx, vy, vz = vx / length, vy / length, vz / length
        above = 0.5 + 0.5 * (nx * up[0] + ny * up[1] + nz * up[2])
        reached = max(seen[i], 0.12)
        step = np.sqrt(np.sqrt(reached)) if soft else 1.0  # light in a fold was reflected by skin
        for k in range(3):
            out[i, 3 + k] = lighting.exposure * reached * (above * sky[k] + (1 - above) * ground[k])
            reached *= step
        for which in range(2):
            dx, dy, dz = directions[which, 0], directions[which, 1], directions[which, 2]
            strength = lighting.exposure * lit[which, i]
            if strength == 0:
                continue
            cosine = nx * dx + ny * dy + nz * dz
            lambert = max((cosine + wrap) / (1 + wrap), 0.0)
            redder = max((cosine + wrap + 0.15) / (1.15 + wrap), 0.0) if soft else lambert
            highlight = 0.0
            if cosine > 0 and gloss > 0:
                hx, hy, hz = dx + vx, dy + vy, dz + vz
                length = np.sqrt(hx * hx + hy * hy + hz * hz) + 1e-9
                facing = (nx * hx + ny * hy + nz * hz) / length
                if facing > 0.6:
                    highlight = gloss * facing**shine
            for k in range(3):
                out[i, 3 + k] += strength * colours[which, k] * (redder if k == 0 else lambert)
                out[i, 6 + k] += strength * colours[which, k] * highlight
    return out


@compiled()
def shade(
    scene: Scene,
    shown: np.ndarray,
    corners: np.ndarray,
    light: np.ndarray,
    looks: np.ndarray,
    details: np.ndarray,
    noise: np.ndarray,
) -> np.ndarray:
    """Colour the pixels that `rasterise` found.

    Args:
        scene: with V vertices.
        shown, corners: from `rasterise`, of a view of S px.
        light: (V, 9), from `light_vertices`.
        looks: (M, 9) of each material, from `draw_looks`; only noise and stripes are used.
        details: (D, D, 3), factors of the texture; (0, 0, 3) without one.
        noise: from `noise_volume`.

    Returns:
        (S, S, 4) float32: display RGB in [0, 1] times coverage, and coverage.
    """
    size, texels = len(shown), len(details) - 1
    faces, places, uv = scene.faces, scene.places, scene.uv
    textured = len(uv) if len(details) else 0  # faces, which come first
    out = np.zeros((size, size, 4), np.float32)
    texture, linear = np.ones(3), np.zeros(3 * size)
    for row in range(size):
        covered = False
        for column in range(size):
            face = shown[row, column]
            if face < 0:
                continue
            covered = True
            w1, w2 = corners[row, column, 0], corners[row, column, 1]
            w0 = 1 - w1 - w2
            a, b, c = faces[face, 0], faces[face, 1], faces[face, 2]
            x = w0 * places[a, 0] + w1 * places[b, 0] + w2 * places[c, 0]
            y = w0 * places[a, 1] + w1 * places[b, 1] + w2 * places[c, 1]
            z = w0 * places[a, 2] + w1 * places[b, 2] + w2 * places[c, 2]
            look = looks[scene.materials[face]]
            pattern = 1 + look[3] * noise_at(noise, x * look[4], y * look[4], z * look[4])
            if look[5] != 0:
                phase = (0.3 * x + y) * look[6]
                if phase - np.floor(phase) < 0.5:
                    pattern *= 1 + look[5]
            if face < textured:
                x = w0 * uv[face, 0, 0] + w1 * uv[face, 1, 0] + w2 * uv[face, 2, 0]
                y = w0 * uv[face, 0, 1] + w1 * uv[face, 1, 1] + w2 * uv[face, 2, 1]
                x, y = (x - np.floor(x)) * texels, (y - np.floor(y)) * texels
                i, j = min(int(x), texels - 1), min(int(y), texels - 1)
                x, y = x - i, y - j
                for k in range(3):
                    top = details[j, i, k] * (1 - x) + details[j, i + 1, k] * x
                    bottom = details[j + 1, i, k] * (1 - x) + details[j + 1, i + 1, k] * x
                    texture[k] = top * (1 - y) + bottom * y
            else:
                texture[:] = 1
            for k in range(3):
                colour = pattern * (w0 * light[a, k] + w1 * light[b, k] + w2 * light[c, k]) * texture[k]
                diffuse = w0 * light[a, 3 + k] + w1 * light[b, 3 + k] + w2 * light[c, 3 + k]
                specular = w0 * light[a, 6 + k] + w1 * light[b, 6 + k] + w2 * light[c, 6 + k]
                value = max(colour * diffuse + specular, 0.0)
                if value > 0.7:  # a soft shoulder
                    value = 1 - 0.3 * np.exp((0.7 - value) / 0.3)
                linear[3 * column + k] = value
            out[row, column, 3] = 1
        if covered:
            shades = _display(linear)
            for column in range(size):
                if shown[row, column] >= 0:
                    for k in range(3):
                        out[row, column, k] = shades[3 * column + k]
    return out


@compiled()
def _display(linear: np.ndarray) -> np.ndarray:
    """Display values of linear ones in [0, 1], both (N,): sRGB's curve, to 0.003 by roots."""
    out = np.empty_like(linear)
    for at in range(len(linear)):
        first = np.sqrt(linear[at])
        second = np.sqrt(first)
        value = 0.585122381 * first + 0.783140355 * second - 0.368262736 * np.sqrt(second)
        out[at] = min(max(value, 0.0), 1.0)
    return out


@cache
def noise_volume() -> np.ndarray:
    """(32, 32, 32) float32, smooth noise of mean 0 and deviation 1 that repeats along every axis."""
    words = np.random.Philox(key=np.array([64, 64], np.uint64)).random_raw(NOISE**3)
    volume = (words >> np.uint64(12)).astype(np.float64).reshape(NOISE, NOISE, NOISE)
    for axis in range(3):
        volume = 2 * volume + np.roll(volume, 1, axis) + np.roll(volume, -1, axis)
    return ((volume - volume.mean()) / volume.std()).astype(np.float32)


@compiled()
def noise_at(volume: np.ndarray, x: float, y: float, z: float) -> float:
    """Value of a noise volume at a place in cells, interpolated."""
    last = len(volume) - 1  # a power of two less one
    fx, fy, fz = np.floor(x), np.floor(y), np.floor(z)
    i, j, k = int(fx), int(fy), int(fz)
    x, y, z = x - fx, y - fy, z - fz
    # Unsigned, to avoid checks for negative indices.
    i0, j0, k0 = np.uint64(i & last), np.uint64(j & last), np.uint64(k & last)
    i1, j1, k1 = np.uint64((i + 1) & last), np.uint64((j + 1) & last), np.uint64((k + 1) & last)
    low = (volume[i0, j0, k0] * (1 - x) + volume[i1, j0, k0] * x) * (1 - y)
    low += (volume[i0, j1, k0] * (1 - x) + volume[i1, j1, k0] * x) * y
    high = (volume[i0, j0, k1] * (1 - x) + volume[i1, j0, k1] * x) * (1 - y)
    high += (volume[i0, j1, k1] * (1 - x) + volume[i1, j1, k1] * x) * y
    return low * (1 - z) + high * z
