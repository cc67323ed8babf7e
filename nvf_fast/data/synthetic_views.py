"""Synthetic hand views: rigged hands posed, lit and rasterised, then composed on backgrounds."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from nvf_fast.data.backgrounds import Backgrounds
from nvf_fast.data.draws import Draws, Stream
from nvf_fast.data.filters import develop, mean_colour, motion_blur, over, sample_layer, soften
from nvf_fast.data.forearm import (
    BAND,
    SKIN,
    SLEEVE,
    Forearm,
    draw_forearm,
    face_materials,
    forearm_faces,
    forearm_vertices,
)
from nvf_fast.data.gestures import draw_poses
from nvf_fast.data.glb_file import METACARPALS
from nvf_fast.data.hand import BONE_SPREAD
from nvf_fast.data.hand_views import VIEW_HANDS, VIEW_POINTS, VIEW_SIZE, HandViews
from nvf_fast.data.image_warp import gaussian_blur, warp_perspective
from nvf_fast.data.point_distance import SearchableMesh
from nvf_fast.data.rasteriser import mesh_normals, rasterise
from nvf_fast.data.rig import Rig, built_in_rig, load_rig
from nvf_fast.data.shading import (
    SHADOW_MAP,
    Lighting,
    light_vertices,
    noise_volume,
    openness,
    shade,
    skin_colours,
    visibility,
)
from nvf_fast.data.skin import NAIL, PALM, draw_skin, draw_tone, load_texture
from nvf_fast.data.solids import Solid, box, cylinder, ellipsoid
from nvf_fast.joint_definitions import UNIT_SCALE_MM, to_freihand

Kind = Literal["close", "wide", "empty"]
BATCH = 48  # hands posed at once
OVERSAMPLING = 1.5  # of the raster against the view
CANVAS = 2 * round(VIEW_SIZE * 1.42 * OVERSAMPLING / 2)  # px, so that every rotation of the view is covered
FIRST_OBJECT = 3  # material; before it are those of the forearm


@dataclass(frozen=True)
class ViewOptions:
    """What synthetic views show. Chances lie in [0, 1], lengths are mm of the unit hand.

    Attributes:
        compositions: views made of one rendered hand, each with its own background, rotation, zoom, colours.
        nearest_mm, farthest_mm: range of the hands' depth, log-uniform.
        smallest, largest: of close views, how much of the view the joints' longer side fills.
        wide_smallest, wide_largest: the same of wide views.
        posed: from this size on, right hands in wide views carry pose labels.
        any_orientation: chance of an orientation uniform over the sphere; the others are upright gestures.
        left_hands: chance of a close view to be mirrored.
        sleeves: chance of a sleeve.
        held: chance of an object in the hand.
        in_front: chance of objects before the hand.
        clutter: chance of objects behind the hand.
    """

    compositions: int = 4
    nearest_mm: float = 250.0
    farthest_mm: float = 1200.0
    smallest: float = 0.45
    largest: float = 1.02
    wide_smallest: float = 0.08
    wide_largest: float = 0.6
    posed: float = 0.35
    any_orientation: float = 0.45
    left_hands: float = 0.1
    sleeves: float = 0.45
    held: float = 0.18
    in_front: float = 0.15
    clutter: float = 0.25

    def __post_init__(self) -> None:
        if self.compositions < 1:
            raise ValueError(f"compositions must be at least 1, got {self.compositions}")
        if not 0 < self.nearest_mm < self.farthest_mm:
            raise ValueError(
                f"depths must be 0 < nearest_mm < farthest_mm, got {self.nearest_mm} and {self.farthest_mm}"
            )


class SyntheticViews:
    """A generator of labelled hand views.

    Args:
        seed: names the stream of views.
        rig: a glTF file with a rigged right hand; None is the built-in hand.
        textures: pictures of skin for the file's texture coordinates; re-tinted to all human tones.
        backgrounds: a folder of pictures and panoramas; None for procedural surroundings.
        options: what the views show; `ViewOptions()` when absent.
    """

    def __init__(
        self,
        seed: int,
        *,
        rig: Path | str | None = None,
        textures: Sequence[Path | str] = (),
        backgrounds: Path | str | None = None,
        options: ViewOptions | None = None,
    ) -> None:
        self.options = options or ViewOptions()
        self.rig = built_in_rig() if rig is None else load_rig(rig)
        self._definition: Literal["anatomical", "openxr"] = "anatomical" if rig is None else "openxr"
        if textures and self.rig.uv is None:
            raise ValueError("textures need a rig with texture coordinates, and this one has none")
        self._textures = []
        if self.rig.uv is not None:
            palm = self.rig.masks[self.rig.faces, PALM].mean(1)
            self._textures = [load_texture(path, self.rig.uv, palm) for path in textures]
        self._backgrounds = Backgrounds(backgrounds)
        self._geometry = _Geometry.of(self.rig)
        self._noise = noise_volume()
        self.restart(seed)

    def restart(self, seed: int, batch: int = BATCH) -> None:
        """Begin the stream of another seed.

        Args:
            seed: names the stream.
            batch: hands posed at once, which is part of the stream; few where few views are drawn.
        """
        self.seed, self._batch, self._batches = seed, batch, 0
        self._hands: deque[_PosedHand] = deque()
        self._scenes = dict.fromkeys(("close", "wide", "empty"), 0)
        self._waiting: dict[str, deque[HandViews]] = {kind: deque() for kind in self._scenes}

    def draw(self, count: int, kind: Kind) -> HandViews:
        """Make the next views of one kind.

        Args:
            count: number of views.
            kind: "close" (one hand that fills the view), "wide" (one or two hands anywhere) or "empty".
        """
        if kind not in self._scenes:
            raise ValueError(f"kind must be 'close', 'wide' or 'empty', got {kind!r}")
        waiting = self._waiting[kind]
        while len(waiting) < count:
            stream = Stream(self.seed, f"{kind} view", self._scenes[kind])
            self._scenes[kind] += 1
            waiting.extend({"close": self._close, "wide": self._wide, "empty": self._empty}[kind](stream))
        return HandViews.concatenate([waiting.popleft() for _ in range(count)])

    def _close(self, stream: Stream) -> list[HandViews]:
        options = self.options
        hand = self._next_hand().turned(_orientation(stream, options.any_orientation))
        fill = _triangular(stream, options.smallest, 0.78, options.largest)
        shift = (1.25 - fill) * 0.33 * stream.uniforms(-1, 1, 2)
        hand, focal = _placed(hand, stream, options, fill, shift)
        canvas = self._render(stream, [hand], [False], focal)
        points = _draw_points(stream, hand, self._geometry, focal)
        distances = self._distances(points, hand)
        views = []
        for composition in range(options.compositions):
            zoom = 1.0
            if composition:
                zoom = np.clip(stream.uniform(0.88, 1.14), options.smallest / fill, options.largest / fill)
            turn = _turn(stream, composition, options.any_orientation)
            mirrored = stream.chance(options.left_hands)
            image = self._compose(stream, canvas, turn, zoom, mirrored)
            rotation = _about_axis(turn)
            views.append(
                _view(
                    image, focal * zoom, [hand.joints @ rotation.T], [mirrored],
                    points=points @ rotation.T, distances=distances, trusted=True, mirrored=mirrored,
                )
            )  # fmt: skip
        return views

    def _wide(self, stream: Stream) -> list[HandViews]:
        options = self.options
        hands, left = [], []
        low, high = options.wide_smallest, options.wide_largest
        fill = low * (high / low) ** stream.random()
        first = self._next_hand().turned(_orientation(stream, options.any_orientation))
        first, focal = _placed(first, stream, options, fill, _anywhere(stream, fill))
        hands.append(first)
        left.append(stream.chance(0.5))
        if stream.chance(0.5):
            other = self._next_hand().turned(_orientation(stream, options.any_orientation))
            depth = first.joints[:, 2].mean() * np.exp(stream.normal(0.15))
            size = np.clip(fill * first.joints[:, 2].mean() / depth, low, high)
            places = [_anywhere(stream, size) for _ in range(6)]
            here = np.mean(first.joints[:, :2] / first.joints[:, 2:], 0) * focal / (VIEW_SIZE / 2)
            place = max(places, key=lambda at: float(np.linalg.norm(at - here)))
            other = other.moved(np.append(place * VIEW_SIZE / 2 / focal, 1.0) * depth)
            hands.append(other)
            left.append(not left[0] if stream.chance(0.7) else left[0])
        canvas = self._render(stream, hands, left, focal)
        trusted = not left[0] and fill >= options.posed
        points = distances = None
        if trusted:
            points = _draw_points(stream, first, self._geometry, focal)
            distances = self._distances(points, first)
        views = []
        for composition in range(options.compositions):
            turn = _turn(stream, composition, 0.2)
            rotation = _about_axis(turn)
            middles = np.array([hand.joints.mean(0) for hand in hands]) @ rotation.T
            if (np.abs(focal * middles[:, :2] / middles[:, 2:]) > 0.45 * VIEW_SIZE).any():
                rotation = _about_axis(turn := 0.0)  # or a hand would leave the view
            views.append(
                _view(
                    self._compose(stream, canvas, turn, 1.0, False), focal,
                    [hand.seen(side).joints @ rotation.T for hand, side in zip(hands, left, strict=True)],
                    left, points=None if points is None else points @ rotation.T, distances=distances,
                    trusted=trusted, mirrored=False,
                )
            )  # fmt: skip
        return views

    def _empty(self, stream: Stream) -> list[HandViews]:
        focal, depth = VIEW_SIZE * 2 ** stream.uniform(-0.6, 1.6), stream.uniform(300, 1200)
        half = VIEW_SIZE / 2 / focal * depth
        objects: list[tuple[Solid, int]] = []
        if stream.chance(0.35):
            objects += _forearm_alone(stream, self.rig, half, depth)
        if stream.chance(0.25):
            objects += _face(stream, half, depth)
        for _ in range(stream.below(5)):
            objects.append(_lying_about(stream, half, depth, skin_chance=0.4))
        canvas = self._render(stream, [], [], focal, objects)
        views = []
        for composition in range(self.options.compositions):
            image = self._compose(stream, canvas, _turn(stream, composition, 0.3), 1.0, stream.chance(0.5))
            views.append(
                _view(image, focal, [], [], points=None, distances=None, trusted=False, mirrored=False)
            )
        return views

    def _next_hand(self) -> _PosedHand:
        if not self._hands:
            first = self._batches * self._batch
            draws = Draws(self.seed, "posed hand", range(first, first + self._batch))
            self._hands.extend(draw_posed_hands(self.rig, self._definition, draws))
            self._batches += 1
        return self._hands.popleft()

    def _distances(self, points: np.ndarray, hand: _PosedHand) -> np.ndarray:
        return self._geometry.closed.distance(points, hand.vertices[: len(self.rig.vertices)])

    def _render(
        self,
        stream: Stream,
        hands: list[_PosedHand],
        left: list[bool],
        focal: float,
        extra: Sequence[tuple[Solid, int]] = (),
    ) -> np.ndarray:
        """(C, C, 4) float32: display RGB times coverage, and coverage, of hands, forearms and objects."""
        scene = _Scene()
        objects = [*extra]
        for hand, side in zip(hands, left, strict=True):
            objects += self._objects(stream, hand.seen(side), focal)
        scene.add_hands(self.rig, self._geometry, hands, left)
        for solid, material in objects:
            scene.add_solid(solid, material)
        vertices, faces = scene.vertices, scene.faces
        if not len(faces):
            return np.zeros((CANVAS, CANVAS, 4), np.float32)
        normals = mesh_normals(vertices, faces)
        lighting = self._lighting(stream)
        spread = stream.normals(6, 3)
        spread /= np.linalg.norm(spread, axis=1, keepdims=True)
        seen = openness(vertices, normals, spread) ** stream.uniform(0.7, 1.5)
        lit = np.zeros((2, len(vertices)))
        for which in range(2):
            if lighting.colours[which].any():
                lit[which] = 0.06 + 0.94 * visibility(
                    vertices, normals, lighting.directions[which], SHADOW_MAP
                )
        texture = stream.choose(self._textures) if self._textures else None
        skin, looks = draw_skin(stream, texture), _looks(stream, 1 + int(scene.materials.max()))
        patterns, gloss, shine = (
            looks[:, 3:7],
            looks[scene.vertex_materials, 7],
            looks[scene.vertex_materials, 8],
        )
        patterns[0] = skin.grain, 1 / 1.3, 0.0, 0.0
        albedo, soft = looks[scene.vertex_materials, :3], scene.vertex_materials == 0
        albedo[soft] = skin_colours(
            scene.places[soft], scene.masks[soft], skin, texture is not None, self._noise
        )
        nail = scene.masks[:, NAIL] * skin.nail_cover
        gloss[soft], shine[soft] = (skin.gloss * (1 + 2.5 * nail))[soft], (skin.shine * (1 + nail))[soft]
        light = light_vertices(vertices, normals, seen, lit, gloss, shine, soft, lighting)
        details = np.zeros((2, 2, 3), np.float32) if texture is None else texture.details
        uv = np.zeros((0, 3, 2), np.float32) if texture is None else scene.uv
        shown, corners, _ = rasterise(vertices, faces, focal * OVERSAMPLING, CANVAS)
        layer = shade(
            shown, corners, faces, albedo, light, scene.places, scene.materials, patterns, uv, details,
            self._noise,
        )  # fmt: skip
        return soften(layer)

    def _objects(self, stream: Stream, hand: _PosedHand, focal: float) -> list[tuple[Solid, int]]:
        options, objects = self.options, []
        middle = hand.joints.mean(0)
        half = VIEW_SIZE / 2 / focal * middle[2]
        if stream.chance(options.held) and (held := _held(stream, hand)) is not None:
            objects.append((held, FIRST_OBJECT))
        if stream.chance(options.in_front):
            nearest = max(hand.joints[:, 2].min() - 15, 60)
            for _ in range(1 + stream.below(2)):
                depth = nearest * stream.uniform(0.55, 0.95)
                reach = np.ptp(hand.joints[:, :2], axis=0).max()
                solid = _any_solid(stream, depth / middle[2] * reach * stream.uniform(0.04, 0.2))
                towards = (middle[:2] + stream.uniforms(-0.7, 0.7, 2) * reach) / middle[2]
                place = np.append(towards, 1.0) * depth
                kind = 0 if stream.chance(0.2) else FIRST_OBJECT + 1
                objects.append((Solid(solid.vertices + place, solid.faces), kind))
        if stream.chance(options.clutter):
            for _ in range(1 + stream.below(4)):
                objects.append(_lying_about(stream, half, middle[2], skin_chance=0.15, behind=True))
        return objects

    def _lighting(self, stream: Stream) -> Lighting:
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
            directions[0] = _about_axis(stream.normal(0.4)) @ around.direction
            tint = around.colour / max(around.colour.mean(), 1e-3)
            colours[0] = colours[0] * (0.5 + 0.5 * tint) * min(0.6 + 0.15 * around.colour.mean(), 1.6)
        # Mostly from the camera's side: light from behind shows silhouettes alone.
        behind = directions[:, 2] > 0.3 * np.linalg.norm(directions, axis=1)
        if not stream.chance(0.12):
            directions[behind, 2] *= -1
        if stream.chance(0.4):
            colours[1] = 0
        ambient = stream.uniform(0.3, 1.2)
        sky, ground = ambient * sky, ambient * ground
        total = (0.5 * (sky + ground) + 0.55 * colours.sum(0)).mean()
        return Lighting(
            up / np.linalg.norm(up),
            sky,
            ground,
            directions / np.linalg.norm(directions, axis=1, keepdims=True),
            colours,
            stream.uniform(0.0, 0.35),
            np.exp(stream.normal(0.2)) * 0.88 / total,
        )

    def _compose(
        self, stream: Stream, canvas: np.ndarray, turn: float, zoom: float, mirrored: bool
    ) -> np.ndarray:
        """(S, S, 3) uint8: the canvas turned and scaled about the principal point, on a background, as a
        camera would take it."""
        linear = zoom / OVERSAMPLING * _about_axis(turn)[:2, :2]
        if mirrored:
            linear[0] *= -1
        inverse = np.linalg.inv(linear)
        offset = CANVAS / 2 - inverse @ np.full(2, VIEW_SIZE / 2)
        layer = sample_layer(canvas, inverse, offset, VIEW_SIZE)
        background = self._backgrounds.draw(stream, VIEW_SIZE)
        mean = mean_colour(background) + 0.02
        brightness = (mean.mean() / 0.42) ** stream.uniform(0.0, 0.6)
        tint = (mean / mean.mean()) ** stream.uniform(0.0, 0.4) * np.clip(brightness, 0.6, 1.3)
        shadow, strength = np.zeros((0, 0), np.float32), 0.0
        if stream.chance(0.3):  # on what lies behind
            shift = np.rint(0.08 * VIEW_SIZE * stream.uniforms(-1, 1, 2)).astype(int)
            shadow = gaussian_blur(np.ascontiguousarray(layer[..., 3]), stream.uniform(1.5, 8))
            shadow, strength = np.roll(shadow, shift, (0, 1)), stream.uniform(0.1, 0.6)
        return _photographed(stream, over(layer, tint, shadow, strength, background))


@dataclass(frozen=True)
class _PosedHand:
    """One right hand with its forearm, mm of the unit hand, in the hand frame or the camera's.

    Attributes:
        vertices: (V + R, 3), those of the forearm last.
        joints: (21, 3) in FreiHAND's definition.
        forearm: its shape.
        palm: (3,) unit, out of the palm.
        places: (R, 3), where the forearm's vertices lie in the hand frame.
    """

    vertices: np.ndarray
    joints: np.ndarray
    forearm: Forearm
    palm: np.ndarray
    places: np.ndarray

    def turned(self, rotation: np.ndarray) -> _PosedHand:
        """About the joints' mean, which becomes the origin."""
        middle = self.joints.mean(0)
        return _PosedHand(
            (self.vertices - middle) @ rotation.T,
            (self.joints - middle) @ rotation.T,
            self.forearm,
            rotation @ self.palm,
            self.places,
        )

    def moved(self, offset: np.ndarray) -> _PosedHand:
        return _PosedHand(self.vertices + offset, self.joints + offset, self.forearm, self.palm, self.places)

    def seen(self, left: bool) -> _PosedHand:
        """This hand, or its mirror image in the camera's vertical plane through it."""
        if not left:
            return self
        middle = self.joints[:, 0].mean()
        flip = np.array([-1.0, 1.0, 1.0])
        shift = np.array([2 * middle, 0.0, 0.0])
        return _PosedHand(
            self.vertices * flip + shift,
            self.joints * flip + shift,
            self.forearm,
            self.palm * flip,
            self.places,
        )


class _Geometry(NamedTuple):
    """What stays the same over all hands of a rig: faces of the forearm (R, 3), the closed hand, and how far
    each of its faces reaches on the way through all of their area (F,)."""

    forearm: np.ndarray
    closed: SearchableMesh
    area: np.ndarray

    @classmethod
    def of(cls, rig: Rig) -> _Geometry:
        first, second, third = rig.vertices[rig.faces].transpose(1, 0, 2)
        area = np.linalg.norm(np.cross(second - first, third - first), axis=1)
        wide = np.arange(len(rig.faces), len(rig.closed_faces))
        return cls(
            forearm_faces(rig.rim, len(rig.vertices)),
            SearchableMesh.build(rig.vertices, rig.closed_faces, wide),
            np.cumsum(area) / area.sum(),
        )


class _Scene:
    """Meshes gathered for one picture; the hands' faces come first, so that they find their texture."""

    def __init__(self) -> None:
        self._vertices: list[np.ndarray] = []
        self._faces: list[np.ndarray] = []
        self._places: list[np.ndarray] = []
        self._masks: list[np.ndarray] = []
        self._materials: list[np.ndarray] = []
        self._uv: list[np.ndarray] = []
        self._count = 0

    def add_hands(
        self, rig: Rig, geometry: _Geometry, hands: Sequence[_PosedHand], left: Sequence[bool]
    ) -> None:
        starts = []
        for hand, side in zip(hands, left, strict=True):
            starts.append(self._count)
            faces = rig.faces if not side else rig.faces[:, ::-1]
            places = np.concatenate([rig.vertices, hand.places])
            masks = np.zeros((len(places), 5))
            masks[: len(rig.masks)] = rig.masks
            masks[len(rig.masks) :, 0] = 0.35
            if rig.uv is not None:
                self._uv.append(rig.uv if not side else rig.uv[:, ::-1])
            self._add(hand.seen(side).vertices, faces, places, masks, np.zeros(len(faces), int))
        for hand, side, start in zip(hands, left, starts, strict=True):
            faces = geometry.forearm if not side else geometry.forearm[:, ::-1]
            self._faces.append(faces + start)
            self._materials.append(face_materials(hand.forearm, len(rig.rim)))

    def add_solid(self, solid: Solid, material: int) -> None:
        middle = solid.vertices.mean(0)
        self._add(
            solid.vertices,
            solid.faces,
            solid.vertices - middle,
            np.zeros((len(solid.vertices), 5)),
            np.full(len(solid.faces), material),
        )

    def _add(
        self,
        vertices: np.ndarray,
        faces: np.ndarray,
        places: np.ndarray,
        masks: np.ndarray,
        materials: np.ndarray,
    ) -> None:
        self._vertices.append(vertices)
        self._faces.append(faces + self._count)
        self._places.append(places)
        self._masks.append(masks)
        self._materials.append(materials)
        self._count += len(vertices)

    @property
    def vertices(self) -> np.ndarray:
        return np.concatenate(self._vertices) if self._vertices else np.zeros((0, 3))

    @property
    def faces(self) -> np.ndarray:
        return np.concatenate(self._faces).astype(np.int32) if self._faces else np.zeros((0, 3), np.int32)

    @property
    def places(self) -> np.ndarray:
        return np.concatenate(self._places)

    @property
    def masks(self) -> np.ndarray:
        return np.concatenate(self._masks)

    @property
    def materials(self) -> np.ndarray:
        return np.concatenate(self._materials).astype(np.int64)

    @property
    def vertex_materials(self) -> np.ndarray:
        """(V,) int64: of the last face around each vertex."""
        materials = np.zeros(self._count, np.int64)
        materials[self.faces] = self.materials[:, None]
        return materials

    @property
    def uv(self) -> np.ndarray:
        return np.concatenate(self._uv) if self._uv else np.zeros((0, 3, 2), np.float32)


def draw_posed_hands(rig: Rig, definition: Literal["anatomical", "openxr"], draws: Draws) -> list[_PosedHand]:
    """Draw unit hands in the hand frame: shape, pose and forearm.

    Args:
        rig: the hand.
        definition: of its joints.
        draws: one stream for each hand.
    """
    stretch = 1 + BONE_SPREAD * draws.normal(25).clamp(-2.5, 2.5)
    families = [0] + [0] * 4 + [1] * 5 + [2] * 5 + [3] * 5 + [4] * 5
    stretch += (0.025 * draws.normal(5).clamp(-2.5, 2.5))[:, families]
    stretch[:, [0, 1, *METACARPALS]] = 1  # these end no bone
    thickness = 1 + 0.07 * draws.normal(1).clamp(-2.2, 2.2)
    girth = thickness * (1 + 0.035 * draws.normal(6).clamp(-2.2, 2.2))
    breadth = 1 + 0.05 * draws.normal().clamp(-2.2, 2.2)
    angles, _ = rig.first_free_pose(draw_poses(draws), stretch)
    vertices, joints = rig.posed(angles, stretch, girth, breadth)
    joints = to_freihand(joints, definition)
    scale = UNIT_SCALE_MM / np.linalg.norm(joints[:, 10] - joints[:, 9], axis=1)
    hands = []
    for row, seed in enumerate(draws.below(2**40).tolist()):
        forearm = draw_forearm(Stream(seed, "forearm", 0), 0.45)
        behind = forearm_vertices(vertices[row][rig.rim], forearm)
        whole = scale[row] * np.concatenate([vertices[row], behind])
        hands.append(_PosedHand(whole, scale[row] * joints[row], forearm, np.array([0.0, 0.0, 1.0]), behind))
    return hands


def _orientation(stream: Stream, any_chance: float) -> np.ndarray:
    """(3, 3) from the hand frame to the camera's: any, or fingers up with a spread, palm or back ahead."""
    if stream.chance(any_chance):
        w, x, y, z = (q := stream.normals(4)) / np.linalg.norm(q)
        return np.array(
            [
                [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
                [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
                [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
            ]
        )
    facing = 1.0 if stream.chance(0.55) else -1.0
    towards, tilt = stream.uniform(0, 2 * np.pi), stream.normal(np.radians(35))
    axis = np.array([np.cos(towards), np.sin(towards), 0.0])
    cross = np.array([[0, 0, axis[1]], [0, 0, -axis[0]], [-axis[1], axis[0], 0]])
    tilted = np.eye(3) + np.sin(tilt) * cross + (1 - np.cos(tilt)) * cross @ cross
    return _about_axis(stream.normal(np.radians(50))) @ tilted @ np.diag([facing, -1, -facing])


def _placed(
    hand: _PosedHand, stream: Stream, options: ViewOptions, fill: float, shift: np.ndarray
) -> tuple[_PosedHand, float]:
    """Move a turned hand before the camera, and find the focal length (px) at which it fills so much.

    Args:
        hand: about the origin.
        fill: longer side of the joints' box against the view.
        shift: (2,) of that box's middle against half the view.
    """
    depth = options.nearest_mm * (options.farthest_mm / options.nearest_mm) ** stream.random()
    offset, focal = np.array([0.0, 0.0, depth]), 1.0
    for _ in range(4):
        seen = hand.joints + offset
        seen = seen[:, :2] / seen[:, 2:]
        low, high = seen.min(0), seen.max(0)
        focal = fill * VIEW_SIZE / (high - low).max()
        offset[:2] += (shift * VIEW_SIZE / 2 / focal - (low + high) / 2) * depth
    return hand.moved(offset), float(focal)


def _anywhere(stream: Stream, fill: float) -> np.ndarray:
    """(2,) middle of a hand in a wide view, against half the view; most of the hand is inside."""
    return stream.uniforms(-1, 1, 2) * (0.95 - 0.6 * fill)


def _draw_points(stream: Stream, hand: _PosedHand, geometry: _Geometry, focal: float) -> np.ndarray:
    """(192, 3) mm: half near the surface, a third along rays through it, the others about and around."""
    near, along, ball = VIEW_POINTS // 2, VIEW_POINTS // 3, VIEW_POINTS // 12
    on_surface = near + along
    faces = np.searchsorted(geometry.area, stream.uniforms(0, 1, on_surface))
    weights = stream.uniforms(0, 1, on_surface, 2)
    weights = np.where(weights.sum(1, keepdims=True) > 1, 1 - weights, weights)
    corners = hand.vertices[geometry.closed.faces[faces]]
    edges = corners[:, 1:] - corners[:, :1]
    surface = corners[:, 0] + (weights[..., None] * edges).sum(1)
    normal = np.cross(edges[:, 0], edges[:, 1])
    normal /= np.linalg.norm(normal, axis=1, keepdims=True) + 1e-12
    shell = surface[:near] + 4.0 * stream.normals(near, 1) * normal[:near]
    rays = surface[near:]
    depth = np.maximum(rays[:, 2:] + 45.0 * stream.normals(along, 1), 50.0)
    rays = rays * depth / rays[:, 2:]
    middle = hand.joints.mean(0)
    towards = stream.normals(ball, 3)
    towards *= (
        120 * stream.uniforms(0, 1, ball, 1) ** (1 / 3) / np.linalg.norm(towards, axis=1, keepdims=True)
    )
    rest = VIEW_POINTS - on_surface - ball
    depth = np.maximum(middle[2] + stream.uniforms(-130, 130, rest, 1), 50.0)
    slab = np.concatenate([stream.uniforms(-0.5, 0.5, rest, 2) * VIEW_SIZE / focal * depth, depth], 1)
    return np.concatenate([shell, rays, middle + towards, slab])


def _view(
    image: np.ndarray,
    focal: float,
    hands: Sequence[np.ndarray],
    left: Sequence[bool],
    *,
    points: np.ndarray | None,
    distances: np.ndarray | None,
    trusted: bool,
    mirrored: bool,
) -> HandViews:
    """One view with its labels; `hands` are joints (21, 3) before the view is mirrored."""
    boxes, sides = np.full((VIEW_HANDS, 4), np.nan), np.zeros(VIEW_HANDS, bool)
    for row, (joints, side) in enumerate(zip(hands, left, strict=True)):
        seen = focal * joints[:, :2] / joints[:, 2:] * [-1 if mirrored else 1, 1] + VIEW_SIZE / 2
        boxes[row], sides[row] = np.concatenate([seen.min(0), seen.max(0)]), side
    posed = trusted and not mirrored and points is not None and distances is not None
    none = np.full((VIEW_POINTS, 4), np.nan)
    return HandViews(
        images=image[None],
        focal=np.array([focal], np.float32),
        joints=(hands[0] if posed else np.full((21, 3), np.nan))[None].astype(np.float32),
        points=np.asarray(points if posed else none[:, :3], np.float32)[None],
        distances=np.asarray(distances if posed else none[:, 3], np.float32)[None],
        boxes=boxes[None].astype(np.float32),
        left=sides[None],
        trust=np.array([1.0 if posed else 0.0], np.float32),
    )


def _photographed(stream: Stream, image: np.ndarray) -> np.ndarray:
    """(S, S, 3) uint8: an image (S, S, 3) float32 as some camera would store it."""
    if stream.chance(0.5):
        image = gaussian_blur(image, stream.uniform(0.3, 1.2))
    if stream.chance(0.12):
        length, towards = stream.uniform(2, 10), stream.uniform(0, np.pi)
        image = motion_blur(image, length * np.cos(towards), length * np.sin(towards))
    if stream.chance(0.2):
        small = 40 + stream.below(75)
        image = _resampled(_resampled(image, small), VIEW_SIZE)
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


def _held(stream: Stream, hand: _PosedHand) -> Solid | None:
    """A solid before the palm, as wide as the fingers leave room; None where they leave little."""
    knuckles = hand.joints[[5, 9, 13, 17]]
    across = knuckles[0] - knuckles[3]
    across /= np.linalg.norm(across)
    ahead = np.cross(hand.palm, across)
    across = across + 0.35 * stream.normal() * ahead + 0.15 * stream.normal() * hand.palm
    across /= np.linalg.norm(across)
    middle = 0.3 * hand.joints[0] + 0.7 * knuckles.mean(0) + stream.normal(6) * ahead
    skin = hand.vertices[:: max(len(hand.vertices) // 2500, 1)]
    best, place = 0.0, middle
    for height in np.arange(14.0, 60.0, 5.0):
        at = middle + height * hand.palm
        gap = skin - at
        along = np.clip(gap @ across, -45, 45)
        room = np.linalg.norm(gap - along[:, None] * across, axis=1).min()
        if room > best:
            best, place = room, at
    if best < 4:
        return None
    radius = (best - 1.0) * stream.uniform(0.8, 1.0)
    kind = stream.below(3)
    if kind == 0:
        solid = cylinder(radius, stream.uniform(70, 220), taper=stream.uniform(0.75, 1.0))
    elif kind == 1:
        flat = stream.uniform(0.35, 1.0)
        solid = box(np.array([stream.uniform(60, 170), 1.4 * radius, 1.4 * radius * flat]))
    else:
        solid = ellipsoid(np.array([stream.uniform(1, 2.2), 1, 1]) * radius)
    basis = np.stack([across, np.cross(hand.palm, across), hand.palm])
    basis[1] /= np.linalg.norm(basis[1])
    basis[2] = np.cross(basis[0], basis[1])
    return Solid(solid.vertices @ basis + place, solid.faces)


def _any_solid(stream: Stream, size: float) -> Solid:
    """A solid of about some half size, mm, turned anyhow about the origin."""
    kind, sizes = stream.below(3), size * 3 ** stream.uniforms(-0.5, 0.5, 3)
    if kind == 0:
        solid = cylinder(sizes[0], 2 * sizes[1] * stream.uniform(1, 3), taper=stream.uniform(0.4, 1))
    elif kind == 1:
        solid = box(2 * sizes)
    else:
        solid = ellipsoid(sizes)
    return Solid(solid.vertices @ _orientation(stream, 1.0), solid.faces)


def _lying_about(
    stream: Stream, half: float, depth: float, *, skin_chance: float, behind: bool = False
) -> tuple[Solid, int]:
    """A solid somewhere in the view, of skin or of an object's material."""
    factor = stream.uniform(1.25, 2.2) if behind else stream.uniform(0.8, 1.3)
    solid = _any_solid(stream, factor * half * 0.05 * 12 ** stream.random())
    place = np.append(stream.uniforms(-1, 1, 2) * half, depth) * factor
    material = 0 if stream.chance(skin_chance) else FIRST_OBJECT + 2 + stream.below(3)
    return Solid(solid.vertices + place, solid.faces), material


def _forearm_alone(stream: Stream, rig: Rig, half: float, depth: float) -> list[tuple[Solid, int]]:
    """A forearm that crosses the view; where its hand would be lies outside."""
    forearm = draw_forearm(stream, 0.5)
    rim = rig.vertices[rig.rim]
    vertices = np.concatenate([rim, forearm_vertices(rim, forearm)])
    faces = forearm_faces(np.arange(len(rim), dtype=np.int32), len(rim))
    materials = face_materials(forearm, len(rim))
    start = stream.uniform(90, 200)
    scale = 1.6 * half / start  # the wrist is outside, however the arm is turned in the view
    turned = (vertices + [0, start, 0]) * min(scale, 1.4) @ _orientation(stream, 0.0).T
    turned[:, 2] *= 0.5
    place = np.array([0.0, 0.0, depth])
    return [
        (Solid(turned + place, faces[materials == material]), material)
        for material in (SKIN, SLEEVE, BAND)
        if (materials == material).any()
    ]


def _face(stream: Stream, half: float, depth: float) -> list[tuple[Solid, int]]:
    """An ellipsoid of skin with two dark eyes, a mouth and hair."""
    radius = half * stream.uniform(0.25, 0.9)
    head = ellipsoid(radius * np.array([0.75, 1.0, 0.8]), 16, 24)
    features = [(head, SKIN)]
    for x in (-0.3, 0.3):
        eye = ellipsoid(radius * np.array([0.12, 0.06, 0.06]))
        features.append(
            (Solid(eye.vertices + radius * np.array([x, -0.1, -0.72]), eye.faces), FIRST_OBJECT + 2)
        )
    mouth = ellipsoid(radius * np.array([0.25, 0.06, 0.08]))
    features.append(
        (Solid(mouth.vertices + radius * np.array([0, 0.5, -0.66]), mouth.faces), FIRST_OBJECT + 3)
    )
    hair = ellipsoid(radius * np.array([0.82, 0.8, 0.8]))
    features.append((Solid(hair.vertices + radius * np.array([0, -0.45, 0.2]), hair.faces), FIRST_OBJECT + 4))
    place = np.append(stream.uniforms(-0.8, 0.8, 2) * half, depth)
    turn = _about_axis(stream.normal(0.4))
    return [(Solid(solid.vertices @ turn.T + place, solid.faces), material) for solid, material in features]


def _looks(stream: Stream, count: int) -> np.ndarray:
    """(count, 9) of each material that is no skin: red, green, blue, noise and stripes, each by strength and
    wave number (1/mm), gloss and shine."""
    looks = np.zeros((max(count, FIRST_OBJECT), 9))
    for material in range(1, len(looks)):
        if material >= FIRST_OBJECT and stream.chance(0.15):
            colour = draw_tone(stream)
        else:
            grey = 0.03 * 25 ** stream.random()
            colour = grey * np.exp((0.7 if stream.chance(0.35) else 0.15) * stream.normals(3))
        striped = stream.chance(0.25)
        looks[material] = [
            *colour.clip(0.01, 0.9),
            stream.uniform(0.02, 0.3),
            1 / stream.uniform(0.8, 12),
            stream.normal(0.8) if striped else 0.0,
            1 / stream.uniform(3, 30),
            0.25 * stream.random() ** 2 if material >= FIRST_OBJECT else 0.0,
            stream.uniform(5, 60),
        ]
    return looks


def _triangular(stream: Stream, low: float, mode: float, high: float) -> float:
    at, middle = stream.random(), (mode - low) / (high - low)
    if at < middle:
        return low + np.sqrt(at * (high - low) * (mode - low))
    return high - np.sqrt((1 - at) * (high - low) * (high - mode))


def _turn(stream: Stream, composition: int, any_chance: float) -> float:
    """Radians about the optical axis: none for the first composition."""
    if composition == 0:
        return 0.0
    return stream.uniform(-np.pi, np.pi) if stream.chance(any_chance) else stream.normal(0.5)


def _about_axis(angle: float) -> np.ndarray:
    """(3, 3) rotation about the optical axis."""
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])
