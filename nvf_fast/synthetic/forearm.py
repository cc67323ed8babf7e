"""A forearm behind a hand's wrist, bare or in a sleeve; it only occludes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nvf_fast.data.draws import Stream

RINGS = 12
LENGTH_MM = 420.0
BARE = (7.0, 16.0, 28.0, 44.0, 64.0, 90.0, 122.0, 160.0, 205.0, 260.0, 330.0, LENGTH_MM)  # mm from the wrist
SKIN, SLEEVE, BAND = 0, 1, 2  # materials


class Forearm(NamedTuple):
    """One forearm's shape."""

    distances: np.ndarray  # (12,) mm of its rings behind the wrist
    girths: np.ndarray  # (12,) widths against the wrist's own
    materials: np.ndarray  # (12,) of the surface that ends at each ring
    bend: np.ndarray  # (2,) radians, towards the palm and towards the thumb


def draw_forearm(stream: Stream, sleeve_chance: float) -> Forearm:
    distances, materials = np.array(BARE), np.zeros(RINGS, int)
    girth, sleeved = stream.uniform(0.92, 1.1), stream.chance(sleeve_chance)
    if sleeved:
        cuff = 3 + stream.uniform(0, 1) ** 1.6 * 120
        distances = np.concatenate([cuff * np.array([0.33, 0.67, 1.0]), [cuff, cuff + 1.5]])
        rest = np.linspace(0, 1, RINGS - len(distances) + 1)[1:]
        distances = np.concatenate([distances, cuff + 1.5 + (LENGTH_MM - cuff) * rest**1.5])
    girths = 1 + (girth - 1) * np.minimum(distances / 60, 1)
    girths += 0.0022 * np.maximum(distances - 20, 0)
    if sleeved:
        loose = stream.uniform(0.06, 0.4)
        wrinkles = stream.uniform(0.0, 0.05) * stream.normals(RINGS - 3)
        girths[3:] += loose * np.array([0.8, *np.ones(RINGS - 4)]) + wrinkles
        materials[3:] = SLEEVE
    elif stream.chance(0.12):  # a watch strap or a bracelet
        at = stream.uniform(8, 40)
        distances[1:5] = at + np.array([0.0, 0.2, 1.0, 1.02]) * stream.uniform(4, 20)
        distances[0], distances[5:] = at * 0.5, at + 24 + np.geomspace(4, LENGTH_MM, RINGS - 5)
        girths[2:4] += stream.uniform(0.03, 0.1)
        materials[2:5] = BAND
    girths[-1] *= 0.6
    bend = np.radians([26.0, 11.0]) * stream.normals(2).clip(-2, 2)
    return Forearm(distances, girths, materials, bend)


def forearm_faces(rim: np.ndarray, first: int) -> np.ndarray:
    """(R, 3) int32 faces between the rim (L,), the rings, whose vertices begin at `first`, and their end."""
    length = len(rim)
    rings = np.concatenate([rim[None], first + np.arange(RINGS * length).reshape(RINGS, length)])
    ahead, around = rings[:-1], np.roll(rings, -1, 1)
    near = np.stack([around[:-1], ahead, rings[1:]], -1)
    far = np.stack([around[:-1], rings[1:], around[1:]], -1)
    end = np.full(length, first + RINGS * length)
    cap = np.stack([around[-1], rings[-1], end], -1)
    return np.concatenate([np.stack([near, far], 2).reshape(-1, 3), cap]).astype(np.int32)


def face_materials(forearm: Forearm, length: int) -> np.ndarray:
    """(R,) material of each of `forearm_faces`."""
    return np.concatenate([np.repeat(forearm.materials, 2 * length), np.full(length, forearm.materials[-1])])


def forearm_vertices(rim: np.ndarray, forearm: Forearm) -> np.ndarray:
    """(12 L + 1, 3) mm: rings behind the wrist's rim (L, 3), in the hand frame, and the forearm's end."""
    distance = forearm.distances[:, None]
    flat, turned = np.minimum(distance / 28, 1), np.minimum(distance / 45, 1)
    turned = turned * turned * (3 - 2 * turned)
    round_off = 0.6 * np.clip((distance - 40) / 120, 0, 1)[..., None]
    centre = rim.mean(0)
    rings = np.tile(rim - centre, (RINGS, 1, 1))
    rings[..., 1] *= 1 - flat
    radius = np.sqrt(np.square(rings[..., [0, 2]]).sum(-1)).mean(1)[:, None, None]
    circles = rings / np.maximum(np.sqrt(np.square(rings).sum(-1, keepdims=True)), 1e-9) * radius
    rings = forearm.girths[:, None, None] * ((1 - round_off) * rings + round_off * circles)
    behind = -distance * _bends(0.8 * turned * forearm.bend)[:, :, 1]
    rings = centre + rings @ _bends(turned * forearm.bend).transpose(0, 2, 1) + behind[:, None]
    last = rings[-1].mean(0)
    return np.concatenate([rings.reshape(-1, 3), (last + 0.05 * (last - centre))[None]])


def _bends(angles: np.ndarray) -> np.ndarray:
    """(N, 3, 3) rotations about x, then z, by angles (N, 2) radians."""
    (sx, sz), (cx, cz) = np.sin(angles).T, np.cos(angles).T
    zero = np.zeros_like(sx)
    return np.stack([cz, -sz * cx, sz * sx, sz, cz * cx, -cz * sx, zero, sx, cx], -1).reshape(-1, 3, 3)
