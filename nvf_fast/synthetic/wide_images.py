"""Photograph-like wide images that show several rendered hands, with labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from nvf_fast.camera import look_at_rotation, project
from nvf_fast.data.draws import Draws, Stream
from nvf_fast.data.hand_views import VIEW_SIZE
from nvf_fast.data.image_warp import gaussian_blur, warp_perspective
from nvf_fast.synthetic.backgrounds import Backgrounds
from nvf_fast.synthetic.filters import develop, mean_colour
from nvf_fast.synthetic.objects import draw_orientation
from nvf_fast.synthetic.posed_hands import PosedHand, draw_unit_hands
from nvf_fast.synthetic.rasteriser import NEAREST_MM
from nvf_fast.synthetic.rendered_views import ViewOptions
from nvf_fast.synthetic.renderer import OVERSAMPLING, HandRenderer, SceneChances
from nvf_fast.synthetic.rig import open_rig
from nvf_fast.synthetic.scene import covered_joints

Side = Literal["right", "left"]
SHAPE = (720, 1280)  # px, height and width
FIELD_OF_VIEW = 60.0  # degrees, across the width
SIZES = (40.0, 400.0)  # px, of the joints' boxes, log-uniform
MOST_HANDS = 2
TRIES = 24  # hands drawn until one has room
MOST_HIDDEN = 0.5  # of a hand's joints behind its own forearm
LARGEST_LAYER = 2048  # px, side of a hand's own raster
GAP = 0.15  # least distance of two boxes, relative to the longer side of the larger one
MOST_COVERED = 3  # joints of one hand that lie behind another hand or its forearm


@dataclass(frozen=True)
class WideHand:
    """One hand of a wide image."""

    side: str  # "right" or "left"
    joints: np.ndarray  # (21, 3) float32 mm of the unit hand, in the frame of the image's camera
    box: np.ndarray  # (4,) float32 px, (x0, y0, x1, y1) around the projected joints


@dataclass(frozen=True)
class WideImage:
    """An image and its hands."""

    image: np.ndarray  # (H, W, 3) uint8 RGB
    intrinsics: np.ndarray  # (3, 3) float64 px
    hands: tuple[WideHand, ...]  # of either side, none or several


class WideImages:
    """A generator of wide images.

    Each hand is rendered in a separate view and warped into the image by the homography between the two
    cameras of a common centre, so that labels stay exact. Blur and noise apply to the whole image.

    Args:
        seed: determines every image by its index.
        rig, textures, backgrounds: as in `SyntheticViews`.
        shape: height and width in px.
        sizes: px, least and largest longer side of the joints' boxes.
        options: of the hands; objects behind them are omitted.
    """

    def __init__(
        self,
        seed: int,
        *,
        rig: Path | str | None = None,
        textures: Sequence[Path | str] = (),
        backgrounds: Path | str | None = None,
        shape: tuple[int, int] = SHAPE,
        sizes: tuple[float, float] = SIZES,
        options: ViewOptions | None = None,
    ) -> None:
        if not 0 < sizes[0] <= sizes[1] < min(shape):
            raise ValueError(f"sizes must be 0 < least <= largest < {min(shape)} px, got {sizes}")
        self.seed, self.shape, self.sizes = seed, shape, sizes
        self.options = options or ViewOptions()
        self._rig = open_rig(rig)
        self._backgrounds = Backgrounds(backgrounds)
        chances = SceneChances(self.options.held, self.options.in_front, clutter=0.0)
        scenery = self._backgrounds
        self._renderer = HandRenderer(self._rig, textures, scenery, chances, VIEW_SIZE, turnable=True)
        height, width = shape
        focal = width / 2 / np.tan(np.radians(FIELD_OF_VIEW) / 2)
        self.intrinsics = np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])

    def draw(self, index: int, sides: Sequence[Side] | None = None) -> WideImage:
        """Make one image.

        Args:
            index: of the image.
            sides: of its hands; None draws 0 to 2 hands of either side.

        Raises:
            ValueError: the hands do not fit into the image beside each other.
        """
        stream = Stream(self.seed, "wide image", index)
        sides = _draw_sides(stream) if sides is None else sides
        image = self._backgrounds.draw_view(stream, self.intrinsics[0, 0], self.shape)
        mean = mean_colour(image) + 0.02
        low, high = self.sizes
        sizes = np.sort(low * (high / low) ** stream.uniforms(0, 1, len(sides)))
        hands: list[WideHand] = []
        for side, size in zip(sides, sizes, strict=True):  # small hands, which are far away, first
            hand, layer = self._placed(stream, side, size, hands)
            hands.append(hand)
            brightness = np.clip((mean.mean() / 0.42) ** stream.uniform(0.0, 0.6), 0.6, 1.3)
            tint = (mean / mean.mean()) ** stream.uniform(0.0, 0.4) * brightness
            image = image * (1 - layer[..., 3:]) + tint.astype(np.float32) * layer[..., :3]
        return WideImage(_photographed(stream, image), self.intrinsics, tuple(hands))

    def _placed(
        self, stream: Stream, side: Side, size: float, others: Sequence[WideHand]
    ) -> tuple[WideHand, np.ndarray]:
        """Draw a hand with room beside the others, and its layer (H, W, 4) float32 in the image."""
        height, width = self.shape
        for _ in range(TRIES):
            low = np.full(2, size / 2)
            middle = low + ([width, height] - 2 * low) * stream.uniforms(0, 1, 2)
            rotation = look_at_rotation(middle, self.intrinsics)
            # Off the axis, perspective stretches the image by 1 / cos, and again in the radial direction.
            shown = size * rotation[2, 2] ** 1.5
            rendered = self._rendered(stream, side == "left", shown / self.intrinsics[0, 0], shown)
            if rendered is None:
                continue
            image, joints, focal = rendered
            joints = joints @ rotation
            pixels = project(joints, self.intrinsics)
            box = np.concatenate([pixels.min(0), pixels.max(0)]).astype(np.float32)
            outside = (box[:2] < 0).any() or (box[2:] > [width - 1, height - 1]).any()
            if outside or any(_near(box, other.box) for other in others):
                continue
            camera = np.array([[focal, 0, len(image) / 2], [0, focal, len(image) / 2], [0, 0, 1]])
            homography = self.intrinsics @ rotation.T @ np.linalg.inv(camera)
            layer = warp_perspective(image, homography, self.shape, border="zero")
            if all(self._covered(layer, other) <= MOST_COVERED for other in others):
                return WideHand(side, joints.astype(np.float32), box), layer
        raise ValueError(f"no room for a hand of {size:.0f} px beside {len(others)} in {width} x {height} px")

    def _covered(self, layer: np.ndarray, hand: WideHand) -> int:
        """Number of a hand's joints that a layer covers."""
        columns, rows = np.rint(project(hand.joints, self.intrinsics)).astype(int).T
        return int((layer[rows, columns, 3] > 0.5).sum())

    def _rendered(
        self, stream: Stream, left: bool, slope: float, size: float
    ) -> tuple[np.ndarray, np.ndarray, float] | None:
        """The layer (C, C, 4) of a hand alone, with its forearm and a held object, its joints (21, 3) mm, and
        the focal length px; None where the forearm hides the hand. The joints' box about the optical axis
        spans `slope` at depth 1, `OVERSAMPLING` times `size` px in the layer."""
        draws = Draws(stream.below(2**50), "posed hand", [0])
        (hand,) = draw_unit_hands(self._rig, draws, self.options.sleeves)
        hand = _at_slope(hand.turned(draw_orientation(stream, self.options.any_orientation)), slope)
        if covered_joints(self._rig, [hand], [left], slope)[0] >= MOST_HIDDEN:
            return None
        focal, seen = size / slope, hand.seen(left)
        in_front = seen.vertices[seen.vertices[:, 2] > NEAREST_MM]
        reach = max(focal * np.abs(in_front[:, :2] / in_front[:, 2:]).max(), size)
        reach = min(reach, float(np.hypot(*self.shape)))  # a forearm may come past the camera
        focal *= min(LARGEST_LAYER / (2 * OVERSAMPLING * reach), 1.0)
        canvas = 2 * int(np.ceil(min(OVERSAMPLING * reach + 2, LARGEST_LAYER / 2)))
        image = self._renderer.render(stream, [hand], [left], focal, canvas=canvas)
        return image, seen.joints, OVERSAMPLING * focal


def _draw_sides(stream: Stream) -> list[Side]:
    return ["left" if stream.chance(0.5) else "right" for _ in range(stream.below(MOST_HANDS + 1))]


def _at_slope(hand: PosedHand, slope: float) -> PosedHand:
    """Move a turned hand along the optical axis to where its joints' box spans `slope` at depth 1."""
    offset = np.array([0.0, 0.0, np.ptp(hand.joints[:, :2], axis=0).max() / slope])
    for _ in range(8):
        seen = hand.joints + offset
        seen = seen[:, :2] / seen[:, 2:]
        low, high = seen.min(0), seen.max(0)
        offset[2] *= (high - low).max() / slope
        offset[:2] -= (low + high) / 2 * offset[2]
    return hand.moved(offset)


def _near(box: np.ndarray, other: np.ndarray) -> bool:
    gap = GAP * max((each[2:] - each[:2]).max() for each in (box, other))
    return bool((box[:2] - gap < other[2:]).all() and (other[:2] - gap < box[2:]).all())


def _photographed(stream: Stream, image: np.ndarray) -> np.ndarray:
    """Convert an image (H, W, 3) float32 to the (H, W, 3) uint8 of a random camera."""
    image = gaussian_blur(image.astype(np.float32), stream.uniform(0.4, 1.1))
    strength = 0.02 * stream.random() ** 2
    return develop(
        image,
        contrast=stream.uniform(0.85, 1.1),
        brightness=stream.normal(0.03),
        balance=np.exp(stream.normal(0.04) * np.array([1, 0, -1])),
        saturation=1.0,
        seed=stream.below(2**31),
        constant=strength,
        proportional=0.7 * strength,
    )
