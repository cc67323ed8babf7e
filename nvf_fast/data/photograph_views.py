"""Hand views of labelled photographs: jittered for training, exact for validation, wide for finding hands."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numba
import numpy as np

from nvf_fast.data.background_stock import BackgroundStock
from nvf_fast.data.hand_views import VIEW_HANDS, VIEW_POINTS, VIEW_SIZE, HandViews
from nvf_fast.data.image_warp import gaussian_blur, warp_perspective
from nvf_fast.data.joint_surface import RADII_MM, cone_ends, sample_field_points
from nvf_fast.data.photographs import RELIABLE_SIDE, Photographs, mirrored
from nvf_fast.joint_definitions import scale_to_unit

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
"""How often a photograph of a group is drawn, relative to the others."""
OTHER_WEIGHT = 2.0  # of a group that is not listed

EXACT_FILL = 0.75  # of the view, by the longer side of the joints' box
FILL = (0.45, 0.75, 1.0)  # least, most frequent and largest in training
ANY_ROLL, ROLL = (
    0.35,
    0.45,
)  # probability of any rotation in the image plane; radians, standard deviation otherwise
REPLACED = 0.45  # probability of another background
REPLACED_OUTSIDE, OUTSIDE = 0.85, 0.12  # where more than this part of the view lies outside the photograph
WIDE_FILL = (0.10, 0.60)
WIDE_SLOPE = (0.25, 0.7)
SECOND_HAND = 0.3  # probability in a wide view
ARM_MM, ARM_RADIUS_MM = 220.0, 27.0


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

    def part_outside(self, homography: np.ndarray) -> float:
        """Part of the view that the photograph does not cover."""
        places = np.linspace(0, VIEW_SIZE - 1, 12)
        x, y = np.meshgrid(places, places)
        source = np.linalg.inv(homography) @ np.stack([x.ravel(), y.ravel(), np.ones(x.size)])
        source = source[:2] / source[2]
        limits = np.array([[self.image.shape[1] - 1], [self.image.shape[0] - 1]])
        return 1 - float(((source >= 0) & (source <= limits)).all(0).mean())


class PhotographViews:
    """Hand views of a data set of photographs.

    Photographs whose side is a guess (`side_score` below `RELIABLE_SIDE`) are left out. Left hands are
    mirrored, and every hand is scaled about the camera's centre to the unit hand's total bone length.

    Args:
        dataset: the photographs.
        backgrounds: a folder of pictures or panoramas, or the pictures; smooth random colours without.
        weights: how often a photograph of a group is drawn, beside `WEIGHTS`; 0 leaves a group out.
        seed: of the stock of backgrounds.
    """

    def __init__(
        self,
        dataset: Photographs,
        *,
        backgrounds: Path | str | Sequence[Path] | None = None,
        weights: Mapping[str, float] | None = None,
        seed: int = 0,
    ) -> None:
        self.dataset = dataset
        self.indices = np.array(
            [i for i, label in enumerate(dataset.labels) if label.side_score >= RELIABLE_SIDE], np.int64
        )
        chosen = {**WEIGHTS, **(weights or {})}
        of_each = np.array([chosen.get(dataset.labels[i].group, OTHER_WEIGHT) for i in self.indices])
        if (of_each < 0).any() or not of_each.sum() > 0:
            raise ValueError(f"weights must not be negative, and some must be positive, got {weights}")
        self._cumulated = np.cumsum(of_each / of_each.sum())
        self._backgrounds = BackgroundStock(backgrounds, seed)

    def draw(self, count: int, random: np.random.Generator) -> HandViews:
        """Draw training views of right hands: jittered cameras, colours and backgrounds.

        Args:
            count: number of views B.
            random: source of all randomness; equal generators draw equal views.
        """
        views = _Batch(count)
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
                background = self._backgrounds.draw(VIEW_SIZE, random)
                image = replace_background(image, background, joints, focal, random)
            views.add(row, change_colours(image, random), joints, focal)
        return views.finished(random)

    def wide(self, count: int, random: np.random.Generator) -> HandViews:
        """Draw views of one or two small hands of either side on backgrounds, labelled with boxes alone.

        A hand is moved and scaled in the image, 10 to 60 % of the view by its box. `joints` and `points` are
        NaN and `trust` is 0.
        """
        views = _Batch(count)
        for row in range(count):
            image = self._backgrounds.draw(VIEW_SIZE, random).copy()
            focal = VIEW_SIZE / 2 / random.uniform(*WIDE_SLOPE)
            boxes: list[np.ndarray] = []
            for index in self._choose(1 + (random.random() < SECOND_HAND), random):
                crop, left = self._crop(index), random.random() < 0.5
                crop = crop.mirror() if left else crop
                box = self._paste(image, crop, boxes, random)
                if box is not None:
                    views.boxes[row, len(boxes)], views.left[row, len(boxes)] = box, left
                    boxes.append(box)
            views.images[row], views.focal[row] = change_colours(image, random), focal
        return views.finished(random)

    def exact(self, indices: Iterable[int] | None = None, *, keep_sides: bool = False) -> HandViews:
        """Return the views of an estimator that knows the joints' box: upright, the box fills 75 %.

        Args:
            indices: of the data set; those of `indices` without.
            keep_sides: leave left hands as they are, with `left` set and `trust` 0, to validate side
                prediction. Otherwise they are mirrored.
        """
        chosen = list(self.indices if indices is None else indices)
        views = _Batch(len(chosen))
        for row, index in enumerate(chosen):
            crop = self._crop(index)
            left = keep_sides and self.dataset.labels[index].side == "left"
            crop = crop.mirror() if left else crop
            rotation, focal = aim(crop.joints, 0.0, EXACT_FILL)
            image = crop.warped(view_homography(crop.intrinsics, rotation, focal))
            views.add(row, image, crop.joints @ rotation.T, focal, left)
        return views.finished(np.random.default_rng(0))

    def _choose(self, count: int, random: np.random.Generator) -> np.ndarray:
        places = np.searchsorted(self._cumulated, random.random(count), side="right")
        return self.indices[np.minimum(places, len(self.indices) - 1)]

    def _crop(self, index: int) -> _Crop:
        label = self.dataset.labels[index]
        left = label.side == "left"
        # As the mirrored image shows it, whose camera is the mirrored one.
        joints = scale_to_unit(label.joints.astype(np.float64))
        crop = _Crop(self.dataset.image(index), label.intrinsics, joints)
        return crop.mirror() if left else crop

    def _paste(
        self, image: np.ndarray, crop: _Crop, others: list[np.ndarray], random: np.random.Generator
    ) -> np.ndarray | None:
        """Composite a small hand into a view, and return its box; None where it would meet another one."""
        joints_2d = project(crop.joints, crop.intrinsics)
        low, high = joints_2d.min(0), joints_2d.max(0)
        fill = random.uniform(*WIDE_FILL)
        scale = fill * VIEW_SIZE / (high - low).max()
        roll = random.uniform(-np.pi, np.pi) if random.random() < ANY_ROLL else random.normal(0, ROLL)
        turn = scale * np.array([[np.cos(roll), -np.sin(roll)], [np.sin(roll), np.cos(roll)]])
        placed = joints_2d @ turn.T
        span = np.ptp(placed, axis=0)
        corner = random.uniform(0, 1, 2) * np.maximum(VIEW_SIZE - 1 - span, 0)
        shift = corner - placed.min(0)
        placed = placed + shift
        box = np.concatenate([placed.min(0), placed.max(0)])
        margin = 0.25 * span.max()
        for other in others:
            if (box[:2] - margin < other[2:]).all() and (other[:2] < box[2:] + margin).all():
                return None
        homography = np.eye(3)
        homography[:2, :2], homography[:2, 2] = turn, shift
        # Cones of the crop's own camera, moved with the image.
        starts, ends, radii = _projected_cones(crop.joints, crop.intrinsics, arm=True)
        starts, ends, radii = starts @ turn.T + shift, ends @ turn.T + shift, radii * scale
        distance = _distance_map(starts, ends, radii)
        grow = random.uniform(0.02, 0.12) * fill * VIEW_SIZE
        alpha = _smooth_step((grow - distance) / max(1.5, 0.8 * grow) + 0.5)
        alpha *= _smooth_step(warp_perspective(_margin(crop.image.shape), homography, VIEW_SIZE, "zero"))
        pasted = warp_perspective(crop.image, homography, VIEW_SIZE)
        mixed = image + alpha[..., None] * (pasted.astype(np.float32) - image)
        image[:] = np.clip(mixed + 0.5, 0, 255)
        return box


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
    turn = np.array([[np.cos(roll), -np.sin(roll), 0], [np.sin(roll), np.cos(roll), 0], [0, 0, 1]])
    rotation = turn @ _look_at(joints.mean(0))
    for _ in range(3):
        seen = joints @ rotation.T
        flat = seen[:, :2] / seen[:, 2:]
        rotation = _look_at(np.append((flat.min(0) + flat.max(0)) / 2, 1.0)) @ rotation
    seen = joints @ rotation.T
    focal = fill * VIEW_SIZE / np.ptp(seen[:, :2] / seen[:, 2:], axis=0).max()
    return _look_at(np.array([offset[0] / focal, offset[1] / focal, 1.0])).T @ rotation, float(focal)


def view_homography(intrinsics: np.ndarray, rotation: np.ndarray, focal: float) -> np.ndarray:
    """Homography (3, 3) from pixels of a photograph to pixels of the view."""
    camera = np.array([[focal, 0, VIEW_SIZE / 2], [0, focal, VIEW_SIZE / 2], [0, 0, 1]])
    return camera @ rotation @ np.linalg.inv(intrinsics)


def project(joints: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    """Project points (..., 3) mm, as (..., 2) px."""
    seen = joints @ intrinsics.T
    return seen[..., :2] / seen[..., 2:]


def change_colours(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Change exposure, contrast, white balance and saturation, blur and add noise, all at random."""
    levels = np.linspace(0, 1, 256)[:, None] ** np.exp(random.normal(0, 0.18))
    levels = (levels - 0.5) * random.uniform(0.75, 1.25) + 0.5 + random.normal(0, 0.07)
    levels = (levels * np.exp(random.normal(0, 0.08, 3))).astype(np.float32)
    changed = np.stack([levels[:, channel][image[..., channel]] for channel in range(3)], axis=-1)
    if random.random() < 0.3:
        grey = changed.mean(2, keepdims=True)
        changed = grey + (changed - grey) * np.float32(random.uniform(0.2, 1.5))
    if random.random() < 0.35:
        changed = gaussian_blur(changed, random.uniform(0.3, 1.2))
    noise = np.float32(0.05 * random.random() ** 3)
    changed += noise * random.standard_normal(changed.shape, np.float32)
    return (np.clip(changed, 0, 1) * 255 + 0.5).astype(np.uint8)


def replace_background(
    image: np.ndarray, background: np.ndarray, joints: np.ndarray, focal: float, random: np.random.Generator
) -> np.ndarray:
    """Put a hand in front of another background.

    The mask is the skeleton's cones, grown and feathered by random widths; often a forearm joins it, and
    often the colours of hand and surroundings decide about its rim.

    Args:
        image: (S, S, 3) uint8 view.
        background: (S, S, 3) uint8.
        joints: (21, 3) mm in the view's frame.
        focal: px.
        random: source of randomness.
    """
    camera = np.array([[focal, 0, VIEW_SIZE / 2], [0, focal, VIEW_SIZE / 2], [0, 0, 1]])
    starts, ends, radii = _projected_cones(joints, camera, arm=random.random() < 0.7)
    distance = _distance_map(starts, ends, radii)
    size = np.ptp(project(joints, camera), axis=0).max()
    by_colour = random.random() < 0.6
    grow = size * random.uniform(0.04, 0.10) if by_colour else size * random.uniform(0.015, 0.06)
    feather = max(1.5, size * random.uniform(0.01, 0.05))
    alpha = _smooth_step((grow - distance) / feather + 0.5)
    if by_colour:
        alpha *= _hand_probability(image, distance, grow)
        alpha = gaussian_blur(alpha, random.uniform(0.4, 0.9))
    scene = background.astype(np.float32)
    if random.random() < 0.3:
        scene = gaussian_blur(scene, random.uniform(0.5, 2.5))
    return (scene + alpha[..., None] * (image - scene) + 0.5).astype(np.uint8)


class _Batch:
    """Arrays of a batch that is being filled."""

    def __init__(self, count: int) -> None:
        self.images = np.zeros((count, VIEW_SIZE, VIEW_SIZE, 3), np.uint8)
        self.focal = np.zeros(count, np.float32)
        self.joints = np.full((count, 21, 3), np.nan, np.float32)
        self.boxes = np.full((count, VIEW_HANDS, 4), np.nan, np.float32)
        self.left = np.zeros((count, VIEW_HANDS), bool)
        self.trust = np.zeros(count, np.float32)

    def add(self, row: int, image: np.ndarray, joints: np.ndarray, focal: float, left: bool = False) -> None:
        """Set one view with a labelled hand."""
        camera = np.array([[focal, 0, VIEW_SIZE / 2], [0, focal, VIEW_SIZE / 2], [0, 0, 1]])
        joints_2d = project(joints, camera)
        self.images[row], self.joints[row], self.focal[row] = image, joints, focal
        self.boxes[row, 0] = np.concatenate([joints_2d.min(0), joints_2d.max(0)])
        self.left[row, 0], self.trust[row] = left, not left

    def finished(self, random: np.random.Generator) -> HandViews:
        """The batch, with query points around the hands that have joints."""
        count = len(self.images)
        points = np.full((count, VIEW_POINTS, 3), np.nan, np.float32)
        distances = np.full((count, VIEW_POINTS), np.nan, np.float32)
        posed = np.flatnonzero(np.isfinite(self.joints).all((1, 2)))
        if len(posed):
            right = self.joints[posed]
            left = self.left[posed, 0]
            right[left] = mirrored(right[left])
            slope = VIEW_SIZE / 2 / self.focal[posed]
            around, distances[posed] = sample_field_points(right, slope, random)
            around[left] = mirrored(around[left])
            points[posed] = around
        return HandViews(
            self.images, self.focal, self.joints, points, distances, self.boxes, self.left, self.trust
        )


def _look_at(direction: np.ndarray) -> np.ndarray:
    """The smallest rotation (3, 3) that brings a direction onto the optical axis."""
    x, y, z = direction / np.linalg.norm(direction)
    return np.array(
        [[1 - x * x / (1 + z), -x * y / (1 + z), -x], [-x * y / (1 + z), 1 - y * y / (1 + z), -y], [x, y, z]]
    )


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


def _margin(shape: tuple[int, ...]) -> np.ndarray:
    """(H, W) float32: 0 at the photograph's border, 1 from a tenth of its size inwards."""
    rows, columns = (np.minimum(np.arange(n), np.arange(n)[::-1]) / (0.1 * n) for n in shape[:2])
    return np.clip(np.minimum(rows[:, None], columns[None]), 0, 1).astype(np.float32)


def _smooth_step(values: np.ndarray) -> np.ndarray:
    values = np.clip(values, 0, 1, dtype=np.float32)
    return values * values * (3 - 2 * values)


def _hand_probability(image: np.ndarray, distance: np.ndarray, grow: float) -> np.ndarray:
    """Probability (S, S) that a pixel near the mask's rim shows the hand, by its colour.

    One Gaussian for the colours well inside the cones, one for those well outside; 1 everywhere where the two
    do not differ.
    """
    inside, outside = distance < -1.5, (distance > grow) & (distance < 4 * grow)
    if inside.sum() < 40 or outside.sum() < 40:
        return np.ones_like(distance)
    colours = image.astype(np.float32)
    score = np.zeros_like(distance)
    means = []
    for sign, region in ((1, outside), (-1, inside)):
        samples = colours[region]
        mean = samples.mean(0)
        covariance = np.cov(samples.T) + 60 * np.eye(3)
        apart = colours - mean
        whitened = apart @ np.linalg.cholesky(np.linalg.inv(covariance)).astype(np.float32)
        score += sign * 0.5 * ((whitened**2).sum(-1) + np.float32(np.log(np.linalg.det(covariance))))
        means.append((mean, covariance))
    between = means[0][0] - means[1][0]
    separation = between @ np.linalg.solve(means[0][1] + means[1][1], between)
    if separation < 1.5:
        return np.ones_like(distance)
    probability = 1 / (1 + np.exp(-np.clip(score, -20, 20)))
    # The cones themselves are the hand; colours decide beyond them.
    return np.maximum(probability, _smooth_step(-distance / 3 + 0.2)).astype(np.float32)


def _distance_map(starts: np.ndarray, ends: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Distance (S, S) float32 px of each pixel from the outline of cones, negative inside."""
    distance = np.empty((VIEW_SIZE, VIEW_SIZE), np.float32)
    _fill_distance(starts, ends, radii, distance)
    return distance


@numba.njit(cache=True, nogil=True)
def _fill_distance(starts, ends, radii, distance):
    distance[:] = np.inf
    for cone in range(len(starts)):
        x, y = starts[cone]
        ax, ay = ends[cone, 0] - x, ends[cone, 1] - y
        squared = max(ax * ax + ay * ay, 1e-9)
        for row in range(distance.shape[0]):
            for column in range(distance.shape[1]):
                px, py = column - x, row - y
                along = min(max((px * ax + py * ay) / squared, 0.0), 1.0)
                dx, dy = px - along * ax, py - along * ay
                radius = radii[cone, 0] + along * (radii[cone, 1] - radii[cone, 0])
                gap = np.sqrt(dx * dx + dy * dy) - radius
                if gap < distance[row, column]:
                    distance[row, column] = gap
