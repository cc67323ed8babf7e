"""Skin: masks of the hand's parts, and human skin colours."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import normalize

from nvf_fast.data.draws import Stream
from nvf_fast.image_files import read_image
from nvf_fast.synthetic.hand_skeleton import CHAINS, HandSkeleton

PALM, CREASE, KNUCKLE, NAIL, TIP = range(5)  # columns of the masks
TEXTURE_SIZE = 512  # px, of the details kept of a texture
DETAIL = 0.45  # log reflectance, of the strongest detail

# Linear reflectance of the back of the hand, from the lightest people to the darkest.
TONES = np.array(
    [[0.66, 0.45, 0.36], [0.55, 0.35, 0.26], [0.38, 0.22, 0.145], [0.2, 0.105, 0.065], [0.075, 0.04, 0.027]]
)
REDNESS = np.array([0.10, -0.16, -0.12])  # log reflectance, of blood under the skin
# Creases of the palm as polylines in the hand frame, mm: heart, head and life line.
PALM_LINES = (
    ((-34.0, 62.0), (-20.0, 66.0), (-2.0, 71.0), (10.0, 80.0)),
    ((25.0, 68.0), (8.0, 60.0), (-10.0, 50.0), (-28.0, 38.0)),
    ((25.0, 66.0), (12.0, 51.0), (5.0, 33.0), (3.0, 10.0)),
)
NAIL_HALF_WIDTHS = (6.2, 5.2, 5.4, 5.0, 4.2)  # mm
NAIL_LENGTHS = (12.0, 10.5, 11.0, 10.5, 8.5)  # mm


class SkinTexture(NamedTuple):
    """A texture's detail without its tone."""

    details: np.ndarray  # (512, 512, 3) float32, reflectance against the mean of the back of the hand
    palm: np.ndarray  # (3,) log reflectance of the palm against the back


class SkinLook(NamedTuple):
    """One person's skin; reflectances are linear RGB."""

    # (3,) float64, reflectances
    back: np.ndarray
    palm: np.ndarray
    nail: np.ndarray
    # amplitudes of coarse and fine noise in log reflectance
    mottling: float
    grain: float
    redness: float  # of knuckles and fingertips
    # depth of lines and of the knuckles' darker skin
    crease: float
    knuckle: float
    nail_cover: float  # opacity of the nails' own colour
    texture_palm: np.ndarray  # (3,), log reflectance of the texture's palm relative to its back
    # strength and exponent of the highlight
    gloss: float
    shine: float
    offset: np.ndarray  # (3,) mm, place of this skin in the noise


def draw_tone(stream: Stream) -> np.ndarray:
    """Draw the linear reflectance (3,) of a person's skin, about uniform over all human tones."""
    at = stream.random() * (len(TONES) - 1)
    low = min(int(at), len(TONES) - 2)
    tone = np.exp((1 - at + low) * np.log(TONES[low]) + (at - low) * np.log(TONES[low + 1]))
    change = stream.normal(0.08) + stream.normal(0.25) * REDNESS + stream.normal(0.04) * np.array([0, 0, 1])
    return np.clip(tone * np.exp(change), 0.01, 0.85)


def draw_skin(stream: Stream, texture: SkinTexture | None) -> SkinLook:
    """Draw one person's skin, with or without a texture for its detail."""
    back, textured = draw_tone(stream), texture is not None
    # Palms hold little pigment: the darker the back, the lighter they are beside it.
    palm = back ** stream.uniform(0.62, 0.9) * np.array([0.98, 0.86, 0.82]) * stream.uniform(0.82, 1.0)
    nail = back * stream.uniform(1.0, 1.25) * np.array([1.06, 0.98, 1.0]) + stream.uniform(0, 0.025)
    nail = np.clip(nail, 0, 0.9)
    if stream.chance(0.1):  # varnish
        nail = stream.uniforms(0.01, 0.7, 3)
    return SkinLook(
        back=back,
        palm=np.clip(palm, 0.02, 0.85),
        nail=nail,
        mottling=stream.uniform(0.02, 0.12),
        grain=stream.uniform(0.02, 0.1),
        redness=stream.uniform(0.2, 1.6),
        crease=stream.uniform(0.1, 0.55) * (0.5 if textured else 1.0),
        knuckle=stream.uniform(0.05, 0.4) * (0.5 if textured else 1.0),
        nail_cover=stream.uniform(0.3, 1.0) * (0.5 if textured else 1.0),
        texture_palm=np.zeros(3) if texture is None else texture.palm,
        gloss=stream.uniform(0.01, 0.09),
        shine=stream.uniform(6, 40),
        offset=stream.uniforms(0, 500, 3),
    )


def load_texture(path: Path | str, uv: np.ndarray, palm: np.ndarray) -> SkinTexture:
    """Read the detail of a skin texture.

    Args:
        path: image in sRGB.
        uv: (F, 3, 2), texture coordinates of the hand.
        palm: (F,) in [0, 1], weight of the palm at each face.
    """
    image = Image.fromarray(read_image(path))
    small = image.resize((TEXTURE_SIZE, TEXTURE_SIZE), Image.Resampling.BOX)
    log = np.log(np.maximum(np.asarray(small, np.float64) / 255, 0.02) ** 2.2)
    at = (uv.mean(1) % 1 * TEXTURE_SIZE).astype(int).clip(0, TEXTURE_SIZE - 1)
    weights = np.stack([np.ones(len(palm)), palm], 1)
    back, slope = np.linalg.lstsq(weights, log[at[:, 1], at[:, 0]], rcond=None)[0]
    # The detail includes the palm's mean, which `skin_colours` removes on the palm.
    low, high = -DETAIL + np.minimum(slope, 0), DETAIL + np.maximum(slope, 0)
    return SkinTexture(np.exp((log - back).clip(low, high)).astype(np.float32), slope)


def skin_masks(vertices: np.ndarray, normals: np.ndarray, skeleton: HandSkeleton) -> np.ndarray:
    """Compute masks of the parts of a hand.

    Args:
        vertices: (V, 3) mm, at rest in the hand frame.
        normals: (V, 3) unit.
        skeleton: with the weights of these vertices.

    Returns:
        (V, 5) float32 in [0, 1], weights of palm, crease, knuckle, nail and fingertip.
    """
    rest, mover = skeleton.rest.numpy(), skeleton.weights.argmax(1).numpy()
    facing = normals[:, 2].copy()
    masks = np.zeros((len(vertices), 5))
    for finger, chain in enumerate(CHAINS.numpy()):
        own = np.isin(mover, chain)
        bones = normalize(torch.from_numpy(np.diff(rest[chain], axis=0)), dim=-1).numpy()
        palmar = np.cross(skeleton.hinges[finger].numpy(), bones[2])
        palmar /= np.linalg.norm(palmar)
        side = normals @ palmar
        facing[own] = side[own]
        for joint in range(3):
            gap = vertices - rest[chain[joint]]
            near, along = np.linalg.norm(gap, axis=1) < 24, gap @ bones[joint]
            if joint or finger:
                place = 20.0 if finger and not joint else 0.0  # fingers leave the palm ahead of their knuckle
                line = np.exp(-(((along - place) / 1.6) ** 2)) * np.clip(2 * side, 0, 1)
                line *= own & (np.linalg.norm(gap, axis=1) < 32)
                masks[:, CREASE] = np.maximum(masks[:, CREASE], line)
                back = np.exp(-((along / 5.5) ** 2)) * np.clip(-1.6 * side, 0, 1) * near
                masks[:, KNUCKLE] = np.maximum(masks[:, KNUCKLE], back)
        gap = vertices - rest[chain[3]]
        along, across = gap @ bones[2], gap @ np.cross(bones[2], palmar)
        length, width = NAIL_LENGTHS[finger], NAIL_HALF_WIDTHS[finger]
        shape = np.clip(1.6 - (2 * (along + 0.55 * length) / length) ** 4 - (across / width) ** 4, 0, 1)
        masks[:, NAIL] = np.maximum(masks[:, NAIL], shape * own * np.clip(-4 * side - 0.6, 0, 1))
        masks[:, TIP] = np.maximum(masks[:, TIP], own * np.clip(1 + along / 18, 0, 1))
    on_palm = (normals[:, 2] > 0.3) * np.isin(mover, (0, 1, 5, 10, 15, 20))
    for line in PALM_LINES:
        for first, second in pairwise(line):
            start, axis = np.array(first), np.subtract(second, first)
            along = np.clip((vertices[:, :2] - start) @ axis / (axis @ axis), 0, 1)
            gap = np.linalg.norm(vertices[:, :2] - start - along[:, None] * axis, axis=1)
            crease = 0.8 * np.exp(-((gap / 1.7) ** 2)) * on_palm
            masks[:, CREASE] = np.maximum(masks[:, CREASE], crease)
    masks[:, PALM] = 1 / (1 + np.exp(-6 * facing))
    return masks.astype(np.float32)
