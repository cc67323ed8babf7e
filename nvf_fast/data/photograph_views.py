"""Hand views of labelled photographs: jittered for training, exact for validation, wide for finding hands."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from nvf_fast.camera import look_at_rotation, project
from nvf_fast.data.draws import Stream
from nvf_fast.data.hand_views import VIEW_SIZE, HandViews, joints_box
from nvf_fast.data.image_warp import gaussian_blur, warp_perspective
from nvf_fast.data.joint_surface import sample_field_points
from nvf_fast.data.photographs import RELIABLE_SIDE, Photographs, mirrored
from nvf_fast.data.rotations import about_axis
from nvf_fast.hand_surface import RADII_MM, cone_ends
from nvf_fast.joint_definitions import scale_to_unit
from nvf_fast.runtime.compiled import compiled
from nvf_fast.synthetic.backgrounds import Backgrounds

WEIGHTS: Mapping[str, float] = {
    "gestures": 5.0,  # many people and rooms, closest to users' photographs
    "hands": 1.3,
    "letters": 1.3,
    "digits": 1.0,
    "frames": 1.0,
    # 5 to 10 % of these two are labelled wrongly.
    "xmore_gestures": 1.0,
    "xmore_frames": 0.5,
}
"""Relative frequency of a group's photographs."""
OTHER_WEIGHT = 2.0  # of a group that is not listed

EXACT_FILL = 0.75  # of the view, by the longer side of the joints' box
FILL = (0.45, 0.75, 1.0)  # least, most frequent and largest in training
ANY_ROLL = 0.35  # probability of any rotation in the image plane
ROLL = 0.45  # radians, standard deviation otherwise
REPLACED = 0.45  # probability of another background
REPLACED_OUTSIDE, OUTSIDE = 0.85, 0.12  # where more than this part of the view lies outside the photograph
WIDE_FILL, CROP_FILL = (0.10, 0.60), 0.6  # in wide views, and in the view from which hands are cropped
WIDE_SLOPE = (0.25, 0.7)  # tangent of half a wide view's angle
STOCK, STOCK_SIZE = 512, 160  # number and side of the backgrounds in memory
SECOND_HAND = 0.3  # probability in a wide view
ARM_MM, ARM_RADIUS_MM = 220.0, 27.0  # of the forearm in masks
COLOUR_NOISE, LEAST_SEPARATION = 60.0, 1.5  # squared grey levels; of the colours of hand and surroundings
NOISE = 1 << 20  # standard normal numbers drawn ahead, of which each view takes a part
BLACK = 14  # grey levels, of the padding around some photographs

AHEAD = np.eye(3)  # intrinsics of a camera of focal length 1
_LINE = np.linspace(0, VIEW_SIZE - 1, 12)
_GRID = np.stack([np.tile(_LINE, 12), np.repeat(_LINE, 12), np.ones(144)])  # pixels all over a view


@dataclass(frozen=True)
class _Crop:
    """One photograph: image, intrinsics (3, 3) px and joints (21, 3) mm of the unit hand."""

    image: np.ndarray
    intrinsics: np.ndarray
    joints: np.ndarray

    def mirror(self) -> _Crop:
        intrinsics = self.intrinsics.copy()
        intrinsics[0, 2] = self.image.shape[1] - 1 - intrinsics[0, 2]
        return _Crop(np.ascontiguousarray(self.image[:, ::-1]), intrinsics, mirrored(self.joints))

    def warped(self, homography: np.ndarray) -> np.ndarray:
        return warp_perspective(self.image, homography, VIEW_SIZE)

    def covered(self, homography: np.ndarray) -> np.ndarray:
        """Coverage of the view by the photograph, (S, S) float32: 0 beyond its border and in black padding,
        1 further inwards."""
        thinned = self.image[::4, ::4]
        inwards = [np.minimum(np.arange(n), np.arange(n)[::-1]) / 4 for n in thinned.shape[:2]]
        shown = np.minimum(np.minimum(inwards[0][:, None], inwards[1]), 1) * (thinned.max(2) > BLACK)
        shown = gaussian_blur(shown.astype(np.float32), 1.0)
        return _smooth_step(warp_perspective(shown, homography @ np.diag([4.0, 4.0, 1.0]), VIEW_SIZE, "zero"))

    def part_outside(self, homography: np.ndarray) -> float:
        """Part of the view that the photograph does not cover."""
        x, y, z = np.linalg.inv(homography) @ _GRID
        height, width = self.image.shape[:2]
        inside = (x >= 0) & (x <= (width - 1) * z) & (y >= 0) & (y <= (height - 1) * z)
        return 1 - np.count_nonzero(inside) / len(x)


class PhotographViews:
    """Hand views of a data set of photographs.

    Photographs of uncertain side (`side_score` below `RELIABLE_SIDE`) are excluded. Left hands are mirrored,
    and every hand is scaled about the camera's centre to the unit hand's total bone length.

    Args:
        dataset: the photographs.
        backgrounds: a folder of images and panoramas; None for procedural surroundings.
        weights: relative frequencies of groups' photographs, overriding `WEIGHTS`; 0 excludes a group.
    """

    def __init__(
        self,
        dataset: Photographs,
        *,
        backgrounds: Path | str | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        self.dataset = dataset
        reliable = [label.side_score >= RELIABLE_SIDE for label in dataset.labels]
        self.indices: np.ndarray = np.flatnonzero(reliable)
        chosen = {**WEIGHTS, **(weights or {})}
        of_each = np.array([chosen.get(dataset.labels[i].group, OTHER_WEIGHT) for i in self.indices])
        if (of_each < 0).any() or not of_each.sum() > 0:
            raise ValueError(f"weights must not be negative, and some must be positive, got {weights}")
        self._cumulated = np.cumsum(of_each / of_each.sum())
        self._backgrounds = _BackgroundStock(Backgrounds(backgrounds))

    def draw(self, count: int, random: np.random.Generator) -> HandViews:
        """Draw training views of right hands: jittered cameras, colours and backgrounds.

        Args:
            count: number of views B.
            random: source of all randomness; equal generators draw equal views.
        """
        views = HandViews.blank(count)
        for row, index in enumerate(self._choose(count, random)):
            crop = self._crop(index)
            any_roll = random.random() < ANY_ROLL
            roll = random.uniform(-np.pi, np.pi) if any_roll else random.normal(0, ROLL)
            fill = random.triangular(*FILL)
            offset = random.uniform(-0.33, 0.33, 2) * (1.25 - fill) * VIEW_SIZE / 2
            rotation, focal = aim(crop.joints, roll, fill, offset)
            joints = crop.joints @ rotation.T
            homography = view_homography(crop.intrinsics, rotation, focal)
            image = crop.warped(homography)
            outside = crop.part_outside(homography)
            if random.random() < (REPLACED_OUTSIDE if outside > OUTSIDE else REPLACED):
                alpha = hand_mask(image, joints, focal, crop.covered(homography), random)
                image = composite(image, alpha, self._backgrounds.draw(random), random)
            _label(views, row, change_colours(image, random), joints, focal)
        return _add_points(views, random)

    def wide(self, count: int, random: np.random.Generator) -> HandViews:
        """Draw views of one or two small hands of either side on backgrounds, labelled only with boxes.

        A hand is moved and scaled in the image, 10 to 60 % of the view by its box. `joints` and `points` are
        NaN and `trust` is 0.
        """
        views = HandViews.blank(count)
        for row in range(count):
            image = self._backgrounds.draw(random).copy()
            focal = VIEW_SIZE / 2 / random.uniform(*WIDE_SLOPE)
            count_here = 1 + (random.random() < SECOND_HAND)
            for index in self._choose(count_here, random):
                placed = views.boxes[row, np.isfinite(views.boxes[row, :, 0])]
                crop, left = self._crop(index), random.random() < 0.5
                box = _paste(image, crop, left, placed, random)
                if box is not None:
                    views.boxes[row, len(placed)], views.left[row, len(placed)] = box, left
            views.images[row], views.focal[row] = change_colours(image, random), focal
        return views

    def exact(self, indices: Iterable[int] | None = None, *, keep_sides: bool = False) -> HandViews:
        """Return the views of an estimator given the joints' box: upright, the box fills 75 %.

        Args:
            indices: of the data set; by default the attribute `indices`.
            keep_sides: leave left hands as they are, with `left` set and `trust` 0, to validate side
                prediction. Otherwise they are mirrored.
        """
        chosen = list(self.indices if indices is None else indices)
        views = HandViews.blank(len(chosen))
        for row, index in enumerate(chosen):
            crop = self._crop(index)
            left = keep_sides and self.dataset.labels[index].side == "left"
            crop = crop.mirror() if left else crop
            rotation, focal = aim(crop.joints, 0.0, EXACT_FILL)
            image = crop.warped(view_homography(crop.intrinsics, rotation, focal))
            _label(views, row, image, crop.joints @ rotation.T, focal, left)
        return _add_points(views, np.random.default_rng(0))

    def _choose(self, count: int, random: np.random.Generator) -> np.ndarray:
        places = np.searchsorted(self._cumulated, random.random(count), side="right")
        return self.indices[np.minimum(places, len(self.indices) - 1)]

    def _crop(self, index: int) -> _Crop:
        label = self.dataset.labels[index]
        left = label.side == "left"
        # The mirrored camera takes the mirrored image.
        joints = scale_to_unit(label.joints.astype(np.float64))
        crop = _Crop(self.dataset.image(index), label.intrinsics, joints)
        return crop.mirror() if left else crop


def aim(
    joints: np.ndarray, roll: float, fill: float, offset: np.ndarray | tuple[float, float] = (0.0, 0.0)
) -> tuple[np.ndarray, float]:
    """Turn a virtual camera to a hand.

    Args:
        joints: (21, 3) mm in the photograph's camera frame.
        roll: radians about the optical axis.
        fill: of the view, by the longer side of the joints' box.
        offset: px, of the box's centre from the view's; a further turn of the camera.

    Returns:
        The rotation (3, 3) from the photograph's camera to the view's, and the focal length in px.
    """
    rotation = about_axis(roll) @ look_at_rotation(project(joints.mean(0)[None], AHEAD)[0], AHEAD)
    for _ in range(3):
        flat = project(joints @ rotation.T, AHEAD)
        rotation = look_at_rotation((flat.min(0) + flat.max(0)) / 2, AHEAD) @ rotation
    focal = fill * VIEW_SIZE / np.ptp(project(joints @ rotation.T, AHEAD), axis=0).max()
    return look_at_rotation(np.asarray(offset) / focal, AHEAD).T @ rotation, float(focal)


def view_intrinsics(focal: float) -> np.ndarray:
    """Intrinsics (3, 3) of a view."""
    return np.array([[focal, 0, VIEW_SIZE / 2], [0, focal, VIEW_SIZE / 2], [0, 0, 1]])


def view_homography(intrinsics: np.ndarray, rotation: np.ndarray, focal: float) -> np.ndarray:
    """Homography (3, 3) from pixels of a photograph to pixels of the view."""
    return view_intrinsics(focal) @ rotation @ np.linalg.inv(intrinsics)


def change_colours(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Change exposure, contrast, white balance and saturation, blur and add noise, all at random."""
    levels = np.linspace(0, 1, 256)[:, None] ** np.exp(random.normal(0, 0.18))
    levels = (levels - 0.5) * random.uniform(0.75, 1.25) + 0.5 + random.normal(0, 0.06)
    levels = (levels * np.exp(random.normal(0, 0.06, 3))).astype(np.float32)
    saturation = random.uniform(0.2, 1.4) if random.random() < 0.3 else 1.0
    changed = np.empty(image.shape, np.float32)
    for channel in range(3):
        changed[..., channel] = levels[image[..., channel], channel]
    changed = changed @ (saturation * np.eye(3) + (1 - saturation) / 3).astype(np.float32)
    if random.random() < 0.35:
        changed = gaussian_blur(changed, random.uniform(0.3, 1.2))
    first = random.integers(NOISE - changed.size)
    noise = _noise()[first : first + changed.size].reshape(changed.shape)
    changed += np.float32(0.05 * random.random() ** 3) * noise
    return (changed.clip(0, 1) * 255 + 0.5).astype(np.uint8)


def hand_mask(
    image: np.ndarray, joints: np.ndarray, focal: float, covered: np.ndarray, random: np.random.Generator
) -> np.ndarray:
    """Mask a right hand, (S, S) float32, softly and at random.

    The mask is the skeleton's cones, grown and feathered by random widths. It often includes a forearm, and
    its rim often depends on the colours of hand and surroundings.

    Args:
        image: (S, S, 3) uint8 view.
        joints: (21, 3) mm in the view's frame.
        focal: px.
        covered: (S, S) float32, coverage of the view by the photograph.
        random: source of randomness.
    """
    camera = view_intrinsics(focal)
    distance = _distance_map(*_projected_cones(joints, camera, arm=random.random() < 0.7))
    size = np.ptp(project(joints, camera), axis=0).max()
    by_colour = random.random() < 0.75
    grow = size * random.uniform(0.04, 0.10) if by_colour else size * random.uniform(0.015, 0.05)
    feather = max(1.5, size * random.uniform(0.01, 0.05))
    alpha = _smooth_step((grow - distance) / feather + 0.5)
    if by_colour:
        alpha *= _hand_probability(image, distance, grow, feather)
        alpha = gaussian_blur(alpha, random.uniform(0.4, 0.9))
    return alpha * np.maximum(covered, _smooth_step(-distance / 4))


def composite(
    image: np.ndarray, alpha: np.ndarray, background: np.ndarray, random: np.random.Generator
) -> np.ndarray:
    """Put an image (H, W, 3) uint8 before a background, which is often out of focus."""
    scene = background.astype(np.float32)
    if random.random() < 0.3:
        scene = gaussian_blur(scene, random.uniform(0.5, 2.5))
    return (scene + alpha[..., None] * (image - scene) + 0.5).astype(np.uint8)


def _paste(
    image: np.ndarray, crop: _Crop, left: bool, others: np.ndarray, random: np.random.Generator
) -> np.ndarray | None:
    """Composite a small hand into a view, mirrored for a left hand, and return the box (4,) px of its joints;
    None where it would meet one of the other boxes (N, 4)."""
    any_roll = random.random() < ANY_ROLL
    roll = random.uniform(-np.pi, np.pi) if any_roll else random.normal(0, ROLL)
    rotation, focal = aim(crop.joints, roll, CROP_FILL)
    joints = crop.joints @ rotation.T
    joints_2d = project(joints, view_intrinsics(focal))
    low, high = joints_2d.min(0), joints_2d.max(0)
    if left:
        low[0], high[0] = VIEW_SIZE - 1 - high[0], VIEW_SIZE - 1 - low[0]
    scale = random.uniform(*WIDE_FILL) / CROP_FILL
    shift = random.uniform(0, 1, 2) * (VIEW_SIZE - 1 - scale * (high - low)) - scale * low
    box = np.concatenate([scale * low + shift, scale * high + shift])
    margin = 0.25 * scale * (high - low).max()
    if ((box[:2] - margin < others[:, 2:]) & (others[:, :2] < box[2:] + margin)).all(1).any():
        return None
    homography = view_homography(crop.intrinsics, rotation, focal)
    hand = crop.warped(homography)
    alpha = hand_mask(hand, joints, focal, crop.covered(homography), random)
    layer = np.concatenate([hand, (alpha[..., None] * 255 + 0.5).astype(np.uint8)], axis=2)
    if left:
        layer = layer[:, ::-1]
    first = np.maximum(np.floor(shift), 0).astype(int)
    last = np.minimum(np.ceil(shift + scale * VIEW_SIZE), VIEW_SIZE).astype(int)
    placing = np.array([[scale, 0, shift[0] - first[0]], [0, scale, shift[1] - first[1]], [0, 0, 1]])
    layer = warp_perspective(layer, placing, (last[1] - first[1], last[0] - first[0])).astype(np.float32)
    window = image[first[1] : last[1], first[0] : last[0]]
    window[:] = window + layer[..., 3:] / 255 * (layer[..., :3] - window) + 0.5
    return box


@cache
def _noise() -> np.ndarray:
    return np.random.default_rng(0).standard_normal(NOISE, np.float32)


class _BackgroundStock:
    """A fixed set of backgrounds slightly larger than a view, to sample parts from."""

    def __init__(self, backgrounds: Backgrounds) -> None:
        self._source, self._drawn = backgrounds, dict[int, np.ndarray]()

    def draw(self, random: np.random.Generator) -> np.ndarray:
        """Take a part of one background, (S, S, 3) uint8, mirrored half of the times."""
        index = int(random.integers(STOCK))
        if index not in self._drawn:
            stream = Stream(0, "photograph background", index)
            self._drawn[index] = (255 * self._source.draw(stream, STOCK_SIZE) + 0.5).astype(np.uint8)
        row, column = random.integers(0, STOCK_SIZE - VIEW_SIZE + 1, 2)
        part = self._drawn[index][row : row + VIEW_SIZE, column : column + VIEW_SIZE]
        return part[:, ::-1] if random.random() < 0.5 else part


def _label(
    views: HandViews, row: int, image: np.ndarray, joints: np.ndarray, focal: float, left: bool = False
) -> None:
    """Fill in one view of a hand."""
    views.images[row], views.joints[row], views.focal[row] = image, joints, focal
    views.boxes[row, 0] = joints_box(joints, focal)
    views.left[row, 0], views.trust[row] = left, not left


def _add_points(views: HandViews, random: np.random.Generator) -> HandViews:
    """Add query points around the hands that have joints."""
    posed = np.flatnonzero(np.isfinite(views.joints).all((1, 2)))
    if len(posed):
        left, right = views.left[posed, 0], views.joints[posed]
        right[left] = mirrored(right[left])
        slope = VIEW_SIZE / 2 / views.focal[posed]
        points, views.distances[posed] = sample_field_points(right, slope, random)
        points[left] = mirrored(points[left])
        views.points[posed] = points
    return views


def _projected_cones(
    joints: np.ndarray, intrinsics: np.ndarray, arm: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both ends of the hand's cones in the image, (C, 2) px each, and their radii (C, 2) px."""
    starts, ends = (part[0] for part in cone_ends(joints[None]))
    radii = RADII_MM
    if arm:
        back = joints[0] - joints[9]
        elbow = joints[0] + ARM_MM * back / np.linalg.norm(back)
        elbow[2] = max(elbow[2], 0.5 * joints[0, 2])
        starts, ends = np.concatenate([starts, joints[:1]]), np.concatenate([ends, elbow[None]])
        radii = np.concatenate([radii, [[ARM_RADIUS_MM, 1.2 * ARM_RADIUS_MM]]])
    depths = np.stack([starts[:, 2], ends[:, 2]], axis=1)
    return project(starts, intrinsics), project(ends, intrinsics), radii * intrinsics[0, 0] / depths


def _smooth_step(values: np.ndarray) -> np.ndarray:
    values = np.clip(values, 0, 1, dtype=np.float32)
    return values * values * (3 - 2 * values)


def _hand_probability(image: np.ndarray, distance: np.ndarray, grow: float, feather: float) -> np.ndarray:
    """Probability (S, S) that a pixel on the mask's rim shows the hand, by its colour; 1 elsewhere.

    One Gaussian for the colours well inside the cones, one for those well outside; 1 everywhere where the two
    do not differ.
    """
    probability = np.ones_like(distance)
    coarse, thinned = distance[::2, ::2], image[::2, ::2]
    inside, outside = coarse < -1.5, (coarse > grow) & (coarse < 4 * grow)
    if min(np.count_nonzero(inside), np.count_nonzero(outside)) < 10:
        return probability
    rim = (distance > -3) & (distance < grow + feather)
    colours = image[rim].astype(np.float32)
    score: np.ndarray = np.zeros(len(colours), np.float32)
    models = []
    for sign, region in ((1, outside), (-1, inside)):
        samples = thinned[region].astype(np.float32)
        mean = samples.mean(0)
        apart = samples - mean
        covariance = (apart.T @ apart / len(samples)).astype(np.float64) + COLOUR_NOISE * np.eye(3)
        whitened = (colours - mean) @ np.linalg.cholesky(np.linalg.inv(covariance)).astype(np.float32)
        score += sign * 0.5 * (np.square(whitened).sum(-1) + np.float32(np.log(np.linalg.det(covariance))))
        models.append((mean, covariance))
    between = models[0][0] - models[1][0]
    if between @ np.linalg.solve(models[0][1] + models[1][1], between) < LEAST_SEPARATION:
        return probability
    # Colours matter only beyond the cones.
    of_hand = 1 / (1 + np.exp(-np.clip(score, -20, 20)))
    probability[rim] = np.maximum(of_hand, _smooth_step(-distance[rim] / 3 + 0.2))
    return probability


@compiled(fastmath=True)
def _distance_map(starts, ends, radii):
    """Distance (S, S) float32 px of each pixel from the outline of cones, negative inside."""
    distance = np.full((VIEW_SIZE, VIEW_SIZE), np.float32(1e6))
    zero, one = np.float32(0), np.float32(1)
    for cone in range(len(starts)):
        ax = np.float32(ends[cone, 0] - starts[cone, 0])
        ay = np.float32(ends[cone, 1] - starts[cone, 1])
        inverse = one / max(ax * ax + ay * ay, np.float32(1e-9))
        first, change = np.float32(radii[cone, 0]), np.float32(radii[cone, 1] - radii[cone, 0])
        for row in range(distance.shape[0]):
            line = distance[row]
            py = np.float32(row - starts[cone, 1])
            for column in range(len(line)):
                px = np.float32(column) - np.float32(starts[cone, 0])
                along = min(max((px * ax + py * ay) * inverse, zero), one)
                dx, dy = px - along * ax, py - along * ay
                line[column] = min(line[column], np.sqrt(dx * dx + dy * dy) - first - along * change)
    return distance
