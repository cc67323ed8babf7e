"""Images of posed hands: light, rasterisation, composition on a background, and a camera's errors."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from nvf_fast.data.draws import Stream
from nvf_fast.data.image_warp import gaussian_blur, warp_perspective
from nvf_fast.data.rotations import about_axis
from nvf_fast.synthetic import shading
from nvf_fast.synthetic.backgrounds import Backgrounds
from nvf_fast.synthetic.filters import develop, mean_colour, motion_blur, over, sample_layer, soften
from nvf_fast.synthetic.objects import FIRST_OBJECT, any_solid, draw_looks, held_solid, lying_about
from nvf_fast.synthetic.posed_hands import PosedHand
from nvf_fast.synthetic.rasteriser import mesh_normals, rasterise, shown_vertices
from nvf_fast.synthetic.rig import Rig
from nvf_fast.synthetic.scene import Scene
from nvf_fast.synthetic.skin import PALM, draw_skin, load_texture
from nvf_fast.synthetic.solids import Solid

OVERSAMPLING = 1.5  # of the raster against the view


@dataclass(frozen=True)
class SceneChances:
    """Probabilities of objects in a hand, before it and behind it."""

    held: float
    in_front: float
    clutter: float


class HandRenderer:
    """Renderer of the hands of one rig in square views.

    Args:
        rig: the hand.
        textures: images of skin for its texture coordinates; re-tinted to all human tones.
        backgrounds: source of backgrounds.
        chances: of objects.
        size: px of a view.
        turnable: whether the canvas covers every rotation of the view about its principal point.

    Raises:
        ValueError: textures are given without texture coordinates.
    """

    def __init__(
        self,
        rig: Rig,
        textures: Sequence[Path | str],
        backgrounds: Backgrounds,
        chances: SceneChances,
        size: int,
        *,
        turnable: bool,
    ) -> None:
        if textures and rig.uv is None:
            raise ValueError("textures need a rig with texture coordinates")
        self.rig, self.chances, self.size = rig, chances, size
        self.canvas = 2 * round(size * (1.42 if turnable else 1.02) * OVERSAMPLING / 2)
        self._textures = []
        if rig.uv is not None:
            palm = rig.masks[rig.faces, PALM].mean(1)
            self._textures = [load_texture(path, rig.uv, palm) for path in textures]
        self._backgrounds, self._noise = backgrounds, shading.noise_volume()

    def render(
        self,
        stream: Stream,
        hands: list[PosedHand],
        left: list[bool],
        focal: float,
        extra: Sequence[tuple[Solid, int]] = (),
        canvas: int | None = None,
    ) -> np.ndarray:
        """Light and rasterise hands, forearms and objects.

        Args:
            stream: of the scene.
            hands: right hands in the camera frame, mirrored by this method for left hands.
            left: mask of left hands.
            focal: px of the view.
            extra: solids with their materials, in addition to random ones.
            canvas: px, side of the raster; `self.canvas` when absent.

        Returns:
            (C, C, 4) float32: display RGB times coverage, and coverage.
        """
        canvas, objects = canvas or self.canvas, [*extra]
        for hand, side in zip(hands, left, strict=True):
            objects += self._objects(stream, hand.seen(side), focal)
        scene = Scene.of(self.rig, hands, left, objects)
        vertices, faces = scene.vertices, scene.faces
        if not len(faces):
            return np.zeros((canvas, canvas, 4), np.float32)
        normals = mesh_normals(vertices, faces)
        lighting = self._lighting(stream)
        spread = stream.normals(6, 3)
        spread /= np.linalg.norm(spread, axis=1, keepdims=True)
        shown, corners, _ = rasterise(vertices, faces, focal * OVERSAMPLING, canvas)
        rows = shown_vertices(shown, faces, len(vertices))  # others need no light
        seen = shading.openness(vertices, normals, rows, spread) ** stream.uniform(0.7, 1.5)
        lit = np.zeros((2, len(vertices)))
        for which in range(2):
            if lighting.colours[which].any():
                towards = lighting.directions[which]
                reached = shading.visibility(vertices, normals, rows, towards, shading.SHADOW_MAP)
                floor = stream.uniform(0.06, 0.5)  # large lights leave no full shadow
                lit[which] = floor + (1 - floor) * reached
        texture = stream.choose(self._textures) if self._textures else None
        skin, looks = draw_skin(stream, texture), draw_looks(stream, 1 + int(scene.materials.max()))
        looks[0, 3:7] = skin.grain, 1 / 1.3, 0.0, 0.0
        reflecting = shading.reflectances(scene, rows, looks, skin, texture is not None, self._noise)
        light = shading.light_vertices(scene, normals, rows, seen, lit, reflecting, lighting)
        details = np.zeros((0, 0, 3), np.float32) if texture is None else texture.details
        return soften(shading.shade(scene, shown, corners, light, looks, details, self._noise))

    def compose(
        self, stream: Stream, canvas: np.ndarray, turn: float, zoom: float, mirrored: bool
    ) -> np.ndarray:
        """Compose a canvas with a background into a camera's image.

        Args:
            stream: of this composition.
            canvas: from `render`.
            turn: radians about the principal point.
            zoom: factor about it.
            mirrored: whether left and right are exchanged after the turn.

        Returns:
            (S, S, 3) uint8.
        """
        inverse = OVERSAMPLING / zoom * about_axis(-turn)[:2, :2]
        if mirrored:
            inverse[:, 0] *= -1
        offset = self.canvas / 2 - inverse.sum(1) * (self.size / 2)
        layer = sample_layer(canvas, inverse, offset, self.size)
        background = self._backgrounds.draw(stream, self.size)
        mean = mean_colour(background) + 0.02
        grey = float(mean.sum()) / 3
        brightness = (grey / 0.42) ** stream.uniform(0.0, 0.6)
        tint = (mean / grey) ** stream.uniform(0.0, 0.4) * min(max(brightness, 0.6), 1.3)
        shadow, strength = np.zeros((0, 0), np.float32), 0.0
        if stream.chance(0.3):  # on the background
            shift = np.rint(0.08 * self.size * stream.uniforms(-1, 1, 2)).astype(int)
            shadow = gaussian_blur(np.ascontiguousarray(layer[..., 3]), stream.uniform(1.5, 8))
            shadow, strength = np.roll(shadow, shift, (0, 1)), stream.uniform(0.1, 0.6)
        return photographed(stream, over(layer, tint, shadow, strength, background))

    def _objects(self, stream: Stream, hand: PosedHand, focal: float) -> list[tuple[Solid, int]]:
        chances, objects = self.chances, []
        middle = hand.joints.mean(0)
        half = self.size / 2 / focal * middle[2]
        if stream.chance(chances.held) and (held := held_solid(stream, hand)) is not None:
            objects.append((held, FIRST_OBJECT))
        if stream.chance(chances.in_front):
            nearest = max(hand.joints[:, 2].min() - 15, 60)
            for _ in range(1 + stream.below(2)):
                depth = nearest * stream.uniform(0.55, 0.95)
                reach = np.ptp(hand.joints[:, :2], axis=0).max()
                solid = any_solid(stream, depth / middle[2] * reach * stream.uniform(0.04, 0.2))
                towards = (middle[:2] + stream.uniforms(-0.7, 0.7, 2) * reach) / middle[2]
                place = np.append(towards, 1.0) * depth
                kind = 0 if stream.chance(0.2) else FIRST_OBJECT + 1
                objects.append((solid.moved(place), kind))
        if stream.chance(chances.clutter):
            for _ in range(1 + stream.below(4)):
                objects.append(lying_about(stream, half, middle[2], skin_chance=0.15, behind=True))
        return objects

    def _lighting(self, stream: Stream) -> shading.Lighting:
        up = np.array([stream.normal(0.25), -1.0, stream.normal(0.4)])
        if stream.chance(0.25):
            up = stream.normals(3)
        around = self._backgrounds.draw_surroundings(stream) if stream.chance(0.7) else None
        sky = np.exp(0.1 * stream.normals(3))
        ground = stream.uniform(0.35, 0.9) * np.exp(0.12 * stream.normals(3))
        directions = stream.normals(2, 3)
        colours = np.exp(0.12 * stream.normals(2, 3)) * stream.uniforms(0.3, 1.6, 2, 1)
        if around is not None:
            sky, ground = 0.5 * sky + 0.5 * around.sky, 0.5 * ground + 0.5 * around.ground
            directions[0] = about_axis(stream.normal(0.4)) @ around.direction
            tint = around.colour / max(around.colour.mean(), 1e-3)
            colours[0] = colours[0] * (0.5 + 0.5 * tint) * min(0.6 + 0.15 * around.colour.mean(), 1.6)
        # Mostly from the camera's side: light from behind yields mere silhouettes.
        behind = directions[:, 2] > 0.3 * np.linalg.norm(directions, axis=1)
        if not stream.chance(0.12):
            directions[behind, 2] *= -1
        if stream.chance(0.4):
            colours[1] = 0
        ambient = stream.uniform(0.4, 1.2)
        sky, ground = ambient * sky, ambient * ground
        total = (0.5 * (sky + ground) + 0.55 * colours.sum(0)).mean()
        return shading.Lighting(
            up / np.linalg.norm(up),
            sky,
            ground,
            directions / np.linalg.norm(directions, axis=1, keepdims=True),
            colours,
            stream.uniform(0.0, 0.35),
            np.exp(stream.normal(0.2)) * 0.88 / total,
        )


def photographed(stream: Stream, image: np.ndarray) -> np.ndarray:
    """Convert an image (S, S, 3) float32 to the (S, S, 3) uint8 of a random camera."""
    if stream.chance(0.5):
        image = gaussian_blur(image, stream.uniform(0.3, 1.2))
    if stream.chance(0.12):
        length, towards = stream.uniform(2, 10), stream.uniform(0, np.pi)
        image = motion_blur(image, length * np.cos(towards), length * np.sin(towards))
    size = len(image)
    if stream.chance(0.2):
        small = round(size * stream.uniform(0.31, 0.9))
        image = _resampled(_resampled(image, small), size)
    strength = 0.045 * stream.random() ** 3
    pixels = develop(
        image,
        contrast=stream.uniform(0.75, 1.15),
        brightness=stream.normal(0.05),
        balance=np.exp(stream.normal(0.06) * np.array([1, 0, -1]) + 0.02 * stream.normals(3)),
        saturation=stream.uniform(0.3, 1.3) if stream.chance(0.25) else 1.0,
        seed=stream.below(2**31),
        constant=strength,
        proportional=0.7 * strength,
    )
    if stream.chance(0.35):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=30 + stream.below(62))
        pixels = np.array(Image.open(file))
    return pixels


def _resampled(image: np.ndarray, size: int) -> np.ndarray:
    scale = size / len(image)
    shift = (scale - 1) / 2
    return warp_perspective(image, np.array([[scale, 0, shift], [0, scale, shift], [0, 0, 1]]), size)
