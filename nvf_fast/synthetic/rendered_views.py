"""Synthetic hand views: rigged hands posed, lit and rasterised, then composed on backgrounds."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from nvf_fast.data.draws import Draws, Stream
from nvf_fast.data.hand_views import VIEW_POINTS, VIEW_SIZE, HandViews, joints_box
from nvf_fast.data.query_points import BALL_MM, NEAR, NEAR_MM, NEAREST_MM, ON_RAYS, RAY_MM, SLAB_MM
from nvf_fast.data.rotations import about_axis
from nvf_fast.runtime.arguments import check_ranges
from nvf_fast.synthetic import objects
from nvf_fast.synthetic.backgrounds import Backgrounds
from nvf_fast.synthetic.posed_hands import PosedHand, draw_unit_hands
from nvf_fast.synthetic.renderer import HandRenderer, SceneChances
from nvf_fast.synthetic.rig import Rig, open_rig
from nvf_fast.synthetic.scene import covered_joints
from nvf_fast.synthetic.solids import Solid

Kind = Literal["close", "wide", "empty"]
BATCH = 48  # hands posed at once
TRIES, MOST_COVERED = 5, 0.5  # placements of a view, and how much of a hand forearms may cover


@dataclass(frozen=True)
class ViewOptions:
    """Contents of synthetic views. Chances lie in [0, 1], lengths are mm of the unit hand.

    Attributes:
        compositions: views per rendered hand, each with its own background, rotation, zoom and colours.
        nearest_mm, farthest_mm: range of the hands' depth, log-uniform.
        smallest, largest: for close views, ratio of the joints' longer side to the view.
        wide_smallest, wide_usual, wide_largest: the same of wide views, log-uniform up to `wide_usual` and
            uniform from there on.
        wide_beyond: chance of a wide view whose hand is larger than `wide_usual`, alone and near the middle.
        posed: from this size on, right hands in wide views carry pose labels.
        any_orientation: chance of an orientation uniform over the sphere; the others are upright gestures.
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
    wide_usual: float = 0.6
    wide_largest: float = 1.0
    wide_beyond: float = 0.25
    posed: float = 0.35
    any_orientation: float = 0.45
    sleeves: float = 0.45
    held: float = 0.18
    in_front: float = 0.15
    clutter: float = 0.25

    def __post_init__(self) -> None:
        check_ranges(self, compositions="[1, inf)", nearest_mm=f"(0, {self.farthest_mm})")


class SyntheticViews:
    """A generator of labelled hand views.

    Args:
        seed: names the stream of views.
        rig: a glTF file with a rigged right hand; None is the built-in hand.
        textures: images of skin for the file's texture coordinates; re-tinted to all human tones.
        backgrounds: a folder of images and panoramas; None for procedural surroundings.
        options: of the views' contents; `ViewOptions()` when absent.
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
        self.rig = open_rig(rig)
        chances = SceneChances(self.options.held, self.options.in_front, self.options.clutter)
        scenery = Backgrounds(backgrounds)
        self.renderer = HandRenderer(self.rig, textures, scenery, chances, VIEW_SIZE, turnable=True)
        self.restart(seed)

    def restart(self, seed: int, batch: int = BATCH) -> None:
        """Begin the stream of another seed.

        Args:
            seed: names the stream.
            batch: hands posed at once, which determines the stream; use few to draw few views.
        """
        self.seed, self._batch, self._batches = seed, batch, 0
        self._hands: deque[PosedHand] = deque()
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
        posed, fill = self._next_hand(), _triangular(stream, options.smallest, 0.78, options.largest)
        shift = (1.25 - fill) * 0.33 * stream.uniforms(-1, 1, 2)
        for _ in range(TRIES):
            turned = posed.turned(objects.draw_orientation(stream, options.any_orientation))
            hand, focal = _placed(turned, stream, options, fill, shift)
            if self._covered([hand], [False], focal)[0] < MOST_COVERED:
                break
        canvas = self.renderer.render(stream, [hand], [False], focal)
        points = _draw_points(stream, hand, self.rig, focal)
        distances = self.rig.distances(points, hand.vertices)
        views = []
        for composition in range(options.compositions):
            zoom = 1.0
            if composition:
                zoom = np.clip(stream.uniform(0.88, 1.14), options.smallest / fill, options.largest / fill)
            turn = _turn(stream, composition, options.any_orientation)
            image = self.renderer.compose(stream, canvas, turn, zoom, False)
            rotation = about_axis(turn)
            joints = [hand.joints @ rotation.T]
            views.append(_view(image, focal * zoom, joints, [False], points @ rotation.T, distances))
        return views

    def _wide(self, stream: Stream) -> list[HandViews]:
        options = self.options
        fill = wide_fill(stream, options)
        for _ in range(TRIES):
            hands, left, focal = self._wide_hands(stream, fill)
            if max(self._covered(hands, left, focal)) < MOST_COVERED:
                break
        first = hands[0]
        canvas = self.renderer.render(stream, hands, left, focal)
        points = distances = None
        if not left[0] and fill >= options.posed:
            points = _draw_points(stream, first, self.rig, focal)
            distances = self.rig.distances(points, first.vertices)
        views = []
        for composition in range(options.compositions):
            turn = _turn(stream, composition, 0.2)
            rotation = about_axis(turn)
            middles = np.array([hand.joints.mean(0) for hand in hands]) @ rotation.T
            if (np.abs(focal * middles[:, :2] / middles[:, 2:]) > 0.45 * VIEW_SIZE).any():
                rotation = about_axis(turn := 0.0)  # or a hand would leave the view
            image = self.renderer.compose(stream, canvas, turn, 1.0, False)
            joints = [hand.seen(side).joints @ rotation.T for hand, side in zip(hands, left, strict=True)]
            turned = None if points is None else points @ rotation.T
            views.append(_view(image, focal, joints, left, turned, distances))
        return views

    def _wide_hands(self, stream: Stream, fill: float) -> tuple[list[PosedHand], list[bool], float]:
        """Place one or two hands of a wide view: right hands, the mask of left ones, and the focal length."""
        options, hands, left = self.options, [], []
        first = self._next_hand().turned(objects.draw_orientation(stream, options.any_orientation))
        first, focal = _placed(first, stream, options, fill, _anywhere(stream, fill))
        hands.append(first)
        left.append(stream.chance(0.5))
        if stream.chance(0.5) and fill <= options.wide_usual:
            other = self._next_hand().turned(objects.draw_orientation(stream, options.any_orientation))
            depth = first.joints[:, 2].mean() * np.exp(stream.normal(0.15))
            nearer = first.joints[:, 2].mean() / depth
            size = np.clip(fill * nearer, options.wide_smallest, options.wide_usual)
            places = [_anywhere(stream, size) for _ in range(6)]
            here = np.mean(first.joints[:, :2] / first.joints[:, 2:], 0) * focal / (VIEW_SIZE / 2)
            place = max(places, key=lambda at: float(np.linalg.norm(at - here)))
            other = other.moved(np.append(place * VIEW_SIZE / 2 / focal, 1.0) * depth)
            hands.append(other)
            left.append(not left[0] if stream.chance(0.7) else left[0])
        return hands, left, focal

    def _covered(self, hands: Sequence[PosedHand], left: Sequence[bool], focal: float) -> list[float]:
        return covered_joints(self.rig, hands, left, VIEW_SIZE / 2 / focal)

    def _empty(self, stream: Stream) -> list[HandViews]:
        focal, depth = VIEW_SIZE * 2 ** stream.uniform(-0.6, 1.6), stream.uniform(300, 1200)
        half = VIEW_SIZE / 2 / focal * depth
        solids: list[tuple[Solid, int]] = []
        if stream.chance(0.35):
            solids += objects.forearm_alone(stream, self.rig, half, depth)
        if stream.chance(0.25):
            solids += objects.face_solids(stream, half, depth)
        if stream.chance(0.5):
            distractor = stream.choose((objects.like_fingers, objects.elbow, objects.skin_lump))
            solids += distractor(stream, half, depth)
        for _ in range(stream.below(5)):
            solids.append(objects.lying_about(stream, half, depth, skin_chance=0.4))
        canvas = self.renderer.render(stream, [], [], focal, solids)
        views = []
        for composition in range(self.options.compositions):
            turn = _turn(stream, composition, 0.3)
            image = self.renderer.compose(stream, canvas, turn, 1.0, stream.chance(0.5))
            views.append(_view(image, focal, [], []))
        return views

    def _next_hand(self) -> PosedHand:
        if not self._hands:
            first = self._batches * self._batch
            draws = Draws(self.seed, "posed hand", range(first, first + self._batch))
            self._hands.extend(draw_unit_hands(self.rig, draws, self.options.sleeves))
            self._batches += 1
        return self._hands.popleft()


def wide_fill(stream: Stream, options: ViewOptions) -> float:
    """Longer side of the first hand's joints in a wide view, relative to the view."""
    if stream.chance(options.wide_beyond):
        return stream.uniform(options.wide_usual, options.wide_largest)
    return options.wide_smallest * (options.wide_usual / options.wide_smallest) ** stream.random()


def _placed(
    hand: PosedHand, stream: Stream, options: ViewOptions, fill: float, shift: np.ndarray
) -> tuple[PosedHand, float]:
    """Move a turned hand before the camera, its joints' box off the axis by `shift` (2,) halves of the view,
    and find the focal length px at which the box's longer side is `fill` of the view."""
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
    return stream.uniforms(-1, 1, 2) * (0.95 - 0.4 * fill - 0.45 * fill**2)


def _draw_points(stream: Stream, hand: PosedHand, rig: Rig, focal: float) -> np.ndarray:
    """(P, 3) mm, spread as `points_about` spreads them, by the numbers of a stream."""
    on_surface, ball = NEAR + ON_RAYS, VIEW_POINTS // 12
    faces = np.searchsorted(rig.cumulative_area, stream.uniforms(0, 1, on_surface))
    weights = stream.uniforms(0, 1, on_surface, 2)
    weights = np.where(weights.sum(1, keepdims=True) > 1, 1 - weights, weights)
    corners = hand.vertices[rig.faces[faces]]
    edges = corners[:, 1:] - corners[:, :1]
    surface = corners[:, 0] + (weights[..., None] * edges).sum(1)
    normal = np.cross(edges[:, 0], edges[:, 1])
    normal /= np.linalg.norm(normal, axis=1, keepdims=True) + 1e-12
    shell = surface[:NEAR] + NEAR_MM * stream.normals(NEAR, 1) * normal[:NEAR]
    rays = surface[NEAR:]
    depth = np.maximum(rays[:, 2:] + RAY_MM * stream.normals(ON_RAYS, 1), NEAREST_MM)
    rays = rays * depth / rays[:, 2:]
    middle = hand.joints.mean(0)
    towards = stream.normals(ball, 3)
    towards /= np.linalg.norm(towards, axis=1, keepdims=True)
    towards *= BALL_MM * stream.uniforms(0, 1, ball, 1) ** (1 / 3)
    rest = VIEW_POINTS - on_surface - ball
    depth = np.maximum(middle[2] + stream.uniforms(-SLAB_MM, SLAB_MM, rest, 1), NEAREST_MM)
    slab = np.concatenate([stream.uniforms(-0.5, 0.5, rest, 2) * VIEW_SIZE / focal * depth, depth], 1)
    return np.concatenate([shell, rays, middle + towards, slab])


def _view(
    image: np.ndarray,
    focal: float,
    hands: Sequence[np.ndarray],
    left: Sequence[bool],
    points: np.ndarray | None = None,
    distances: np.ndarray | None = None,
) -> HandViews:
    """One view with its labels: joints (21, 3) of all hands; points and distances for a pose label."""
    view = HandViews.blank(1)
    view.images[0], view.focal[0] = image, focal
    for row, (joints, side) in enumerate(zip(hands, left, strict=True)):
        view.boxes[0, row], view.left[0, row] = joints_box(joints, focal), side
    if points is not None:
        view.joints[0], view.points[0], view.distances[0], view.trust[0] = hands[0], points, distances, 1
    return view


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
