"""Hands through the frames of a video: views from the last poses, stable ids, and smoothing."""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from nvf_fast.camera_model import Cameras
from nvf_fast.depth import read_depths, scaled_to_depth
from nvf_fast.estimator import PoseEstimator
from nvf_fast.finding import SAME_HAND, overlap, pixel_boxes, squared, viewable
from nvf_fast.inputs import read_cameras, read_hand_scale, read_one_image
from nvf_fast.pose import HandPose
from nvf_fast.runtime.arguments import check_number, check_ranges
from nvf_fast.volumes import HandVolume

SIDE_VOTES = 15  # last predictions of a hand's side, of which the majority counts
UNDECIDED = 8  # votes until the side is given instead of predicted
DUPLICATE = 0.2  # two poses whose joints are on average closer than this, in box sides, show one hand
MISSED = 2  # searches that do not find a new hand again before it counts as a false one
NEAR = 1.5  # a lost hand is found again within this distance, in box sides
SPEED_CUTOFF = 1.0  # Hz, of the filter of speeds


@dataclass(frozen=True)
class Smoothing:
    """Parameters of the filters of a hand's joints (One-Euro, Casiez et al., CHI 2012).

    A filter's cutoff frequency is `cutoff + gain * speed`: slow motion is smoothed, fast motion is followed.
    Directions from the camera are filtered separately from depths, which one image determines less well. The
    defaults delay a moving hand by less than a frame at 30 Hz (`benchmarks/tracking.py`).

    Raises:
        ValueError: a number is negative or not finite, or a cutoff is 0.
    """

    direction_cutoff: float = 1.5  # Hz, of x / z and y / z
    direction_gain: float = 40.0  # Hz per 1/s
    depth_cutoff: float = 0.6  # Hz, of the logarithm of the joints' mean depth
    depth_gain: float = 6.0  # Hz per 1/s
    shape_cutoff: float = 0.8  # Hz, of the joints' depths relative to their mean
    shape_gain: float = 2.0  # Hz per 1/s

    def __post_init__(self) -> None:
        intervals = {name: "[0, inf)" if name.endswith("gain") else "(0, inf)" for name in vars(self)}
        check_ranges(self, **intervals)


SMOOTHING = Smoothing()


class OneEuroFilter:
    """Low-pass filter of an array whose cutoff frequency grows with each element's speed.

    Args:
        cutoff: Hz, at rest.
        gain: Hz per unit of speed.
    """

    def __init__(self, cutoff: float, gain: float) -> None:
        self._cutoff, self._gain = cutoff, gain
        self._time, self._last = math.nan, np.empty(0)
        self._value, self._speed = np.empty(0), np.empty(0)

    def __call__(self, values: np.ndarray, time: float) -> np.ndarray:
        """Filter the next values, `time` in s later than the last ones."""
        if not len(self._value):
            self._value, self._speed = values.astype(np.float64), np.zeros(values.shape)
        else:
            elapsed = time - self._time
            speed = (values - self._last) / elapsed
            self._speed = self._speed + _weight(SPEED_CUTOFF, elapsed) * (speed - self._speed)
            cutoff = self._cutoff + self._gain * np.abs(self._speed)
            self._value = self._value + _weight(cutoff, elapsed) * (values - self._value)
        self._time, self._last = time, values
        return self._value


class JointFilter:
    """Filter of one hand's joints in camera space."""

    def __init__(self, smoothing: Smoothing) -> None:
        self._directions = OneEuroFilter(smoothing.direction_cutoff, smoothing.direction_gain)
        self._depth = OneEuroFilter(smoothing.depth_cutoff, smoothing.depth_gain)
        self._shape = OneEuroFilter(smoothing.shape_cutoff, smoothing.shape_gain)

    def __call__(self, joints: np.ndarray, time: float) -> np.ndarray:
        """Filter joints (21, 3) mm in front of the camera, `time` in s later than the last ones."""
        depths = joints[:, 2:].astype(np.float64)
        mean = depths.mean(keepdims=True)
        directions = self._directions(joints[:, :2] / depths, time)
        depths = np.exp(self._depth(np.log(mean), time)) * self._shape(depths / mean, time)
        return np.concatenate([directions * depths, depths], 1)


class TrackedHands(NamedTuple):
    """The hands of one frame."""

    ids: tuple[int, ...]  # of each hand, the same through the video
    poses: HandPose[np.ndarray]  # a batch of N, in the order of `ids`; their joints are smoothed


@dataclass(eq=False)
class _Track:
    """A followed or lost hand. Times are in s; boxes are (4,) px, squares around its joints."""

    id: int
    box: np.ndarray
    seen: float
    filter: JointFilter | None
    motion: np.ndarray = field(default_factory=lambda: np.zeros(4))  # px/s, of the box
    sides: deque[str] = field(default_factory=lambda: deque(maxlen=SIDE_VOTES))
    missed: int | None = 0  # searches that missed a new hand; None once one has found it again
    hand_scale: float = math.nan  # mm, by the last depth image that showed the hand

    @property
    def side(self) -> str:
        """The side of most votes, of the first of them in a tie."""
        left = self.sides.count("left")
        if 2 * left == len(self.sides):
            return self.sides[0]
        return "left" if 2 * left > len(self.sides) else "right"

    def expected_box(self, time: float) -> np.ndarray:
        return self.box + (time - self.seen) * self.motion


class Tracker:
    """Tracker of the hands in the frames of one video.

    Hands are found in the whole frame, then followed: the joints of the last frame, extrapolated by their
    velocity, place the next view. After a gap between frames of at least `search_interval`, and longer than
    `patience`, the whole frame is searched instead. A new hand that two further searches do not find again is
    given up. The side is predicted in a hand's first frames and then kept.

    Args:
        estimator: an estimator with a network of hand views.
        most_hands: largest number of hands; while that many are followed, no others are searched for.
        search_interval: s, time between searches of the whole frame, and between further predictions of the
            sides, while a hand is followed; without hands every frame is searched.
        patience: s, time for which a hand may be missing before it is no longer followed.
        memory: s, time within which a lost hand that reappears near its last position gets its id back.
        smoothing: parameters of the joints' filters; None leaves the joints as estimated.
        hand_scale: mm, of all hands, as for the estimator.

    Raises:
        ValueError: the network is not of hand views, or a number is out of range.
        TypeError: an argument has the wrong type.

    Examples:
        >>> import nvf_fast
        >>> from nvf_fast.image_files import demo_image
        >>> image, K = demo_image()
        >>> tracker = nvf_fast.Tracker(nvf_fast.load(device="cpu"))
        >>> for frame in range(2):
        ...     ids, poses = tracker(image, K, time=frame / 30)
        >>> len(ids), poses.joints.shape
        (2, (2, 21, 3))
    """

    def __init__(
        self,
        estimator: PoseEstimator,
        most_hands: int = 2,
        *,
        search_interval: float = 0.5,
        patience: float = 0.3,
        memory: float = 2.0,
        smoothing: Smoothing | None = SMOOTHING,
        hand_scale: float | None = None,
    ) -> None:
        if not hasattr(estimator, "volume"):
            found = type(estimator).__name__
            raise TypeError(f"estimator must be a PoseEstimator, as nvf_fast.load returns it, got {found}")
        if not isinstance(estimator.volume, HandVolume):
            raise ValueError("tracking requires a network of hand views, which finds hands")
        if not isinstance(smoothing, Smoothing | None):
            raise TypeError(f"smoothing must be a Smoothing or None, got {smoothing!r}")
        times = {"search_interval": search_interval, "patience": patience, "memory": memory}
        for name, value in times.items():
            check_number(name, value)
        if not isinstance(most_hands, int | np.integer):
            raise TypeError(f"most_hands must be a whole number, got {most_hands!r}")
        if most_hands < 1:
            raise ValueError(f"most_hands must be at least 1, got {most_hands}")
        for name, value in times.items():
            if not value >= 0:
                raise ValueError(f"{name} must be a number of s, 0 or more, got {value}")
        read_hand_scale(hand_scale, 1, estimator.model.config)
        self.estimator, self.most_hands, self.hand_scale = estimator, most_hands, hand_scale
        self.search_interval, self.patience, self.memory = search_interval, patience, memory
        self.smoothing = smoothing
        self._tracks, self._lost = list[_Track](), list[_Track]()
        self._time, self._checked, self._count = -math.inf, -math.inf, 0

    def __repr__(self) -> str:
        return f"Tracker({self.estimator}, most_hands={self.most_hands}, following={len(self._tracks)})"

    def __call__(self, image: Any, K: Any, time: float, depth: Any = None) -> TrackedHands:
        """Find and follow the hands of the next frame.

        Args:
            image: (H, W, 3) uint8 RGB.
            K: (3, 3) intrinsics in px, or a `Camera`.
            time: s, of the frame, later than that of the previous frame.
            depth: (H, W) mm, as for the estimator. A hand that it does not show, or a frame without it, keeps
                the hand's last scale.

        Raises:
            ValueError: the time is not later than the previous one, or a shape or a value is invalid.
            TypeError: an argument has the wrong type or dtype.
        """
        image = read_one_image("a tracker", image, self.estimator.model.config.image_channels)
        check_number("time", time)
        if not (math.isfinite(time) and time > self._time):
            raise ValueError(f"time must be later than {self._time:g} s of the previous frame, got {time}")
        camera = read_cameras(K, [image.shape[:2]])
        depths = None if depth is None else read_depths(depth, [image.shape[:2]])
        gap = time - self._time
        if gap >= self.search_interval and gap > self.patience:  # hands' motion says nothing any more
            if self._tracks and gap > self.memory:
                message = f"hands get new ids after a gap of {gap:g} s between frames; time is in s"
                warnings.warn(message, stacklevel=2)
            self._give_up(self._tracks)
        due = not self._tracks or time - self._checked >= self.search_interval
        if due:
            self._checked = time
            if len(self._tracks) < self.most_hands or any(track.missed is not None for track in self._tracks):
                self._search(image, K, time)
        self._time = time
        boxes = np.array([track.expected_box(time) for track in self._tracks]).reshape(-1, 4)
        shown = viewable(torch.from_numpy(boxes), camera, *image.shape[:2]).numpy()
        self._give_up([track for track, inside in zip(self._tracks, shown, strict=True) if not inside])
        if not self._tracks:
            return TrackedHands((), HandPose.none().numpy())
        poses = self._posed(image, K, boxes[shown], predict_sides=due)
        rows = self._updated(poses, time)
        seen = [self._tracks[row] for row in rows]
        missed = [track for track in self._tracks if track not in seen]
        self._give_up([track for track in missed if time - track.seen > self.patience])
        poses = poses[rows]
        poses = _at_depth(poses, seen, depths, camera)
        return TrackedHands(tuple(track.id for track in seen), self._smoothed(poses, seen, camera))

    def _search(self, image: np.ndarray, K: Any, time: float) -> None:
        """Add the hands of the whole frame that are not followed yet, and give up false ones."""
        found = self.estimator(image, K, self.hand_scale).numpy()
        boxes = _boxes(found)
        for track in self._tracks:
            if any(overlap(box, track.expected_box(time)) > SAME_HAND for box in boxes):
                track.missed = None
            elif track.missed is not None:
                track.missed += 1
        self._give_up([track for track in self._tracks if track.missed == MISSED])
        for box, side in zip(boxes, found.side or (), strict=True):
            same = [track for track in self._tracks if overlap(box, track.expected_box(time)) > SAME_HAND]
            if same:
                same[0].sides.append(side)
            elif len(self._tracks) < self.most_hands:
                self._tracks.append(self._begun(box, side, time))

    def _begun(self, box: np.ndarray, side: str, time: float) -> _Track:
        """A track of a found hand, with its former id and side if it was lost near there."""
        self._lost = [track for track in self._lost if time - track.seen <= self.memory]
        # One prediction of the side decides only between several hands lost there.
        moves = {
            track: np.linalg.norm(box[:2] + box[2:] - track.box[:2] - track.box[2:]) / 2
            for track in self._lost
        }
        for track in sorted(moves, key=lambda track: (track.side != side, moves[track])):
            longer = max(box[2] - box[0], track.box[2] - track.box[0])
            if moves[track] <= NEAR * longer:
                self._lost.remove(track)
                motion, smooth = np.zeros(4), self._filter()
                return replace(track, box=box, seen=time, motion=motion, filter=smooth, missed=None)
        self._count += 1
        begun = _Track(self._count - 1, box, time, self._filter())
        begun.sides.append(side)
        return begun

    def _filter(self) -> JointFilter | None:
        return None if self.smoothing is None else JointFilter(self.smoothing)

    def _posed(
        self, image: np.ndarray, K: Any, boxes: np.ndarray, predict_sides: bool
    ) -> HandPose[np.ndarray]:
        """The poses of all tracks, each with the side of most votes."""
        undecided = [predict_sides or len(track.sides) < UNDECIDED for track in self._tracks]
        sides = [None if each else track.side for each, track in zip(undecided, self._tracks, strict=True)]
        poses = self.estimator(image, K, self.hand_scale, boxes, sides).numpy()
        for track, side, given in zip(self._tracks, poses.side or (), sides, strict=True):
            if given is None:
                track.sides.append(side)
        decided = [track.side for track in self._tracks]
        if tuple(decided) == poses.side:
            return poses
        # A prediction against the majority yields a mirrored hand: predict again with the majority's side.
        return self.estimator(image, K, self.hand_scale, boxes, decided).numpy()

    def _updated(self, poses: HandPose[np.ndarray], time: float) -> list[int]:
        """Update the tracks of valid poses and return their rows.

        Where the views of two tracks show one hand, as one that hides the other, the track that expected it
        there follows it; a new track yields.
        """
        boxes, rows = _boxes(poses), list[int]()

        def surprise(row: int) -> tuple[bool, float]:
            track = self._tracks[row]
            return track.missed is not None, np.abs(boxes[row] - track.expected_box(time)).max()

        for row in sorted(poses.valid.nonzero()[0].tolist(), key=surprise):
            track = self._tracks[row]
            near = DUPLICATE * (boxes[row, 2] - boxes[row, 0])
            apart = np.linalg.norm(poses.joints_2d[rows] - poses.joints_2d[row], axis=-1).mean(1)
            if (apart < near).any():
                continue
            elapsed = time - track.seen
            track.motion = (boxes[row] - track.box) / elapsed if elapsed > 0 else np.zeros(4)
            track.box, track.seen = boxes[row], time
            rows.append(row)
        return sorted(rows)

    def _give_up(self, tracks: Sequence[_Track]) -> None:
        ids = {track.id for track in tracks}
        self._tracks = [track for track in self._tracks if track.id not in ids]
        self._lost += tracks

    def _smoothed(
        self, poses: HandPose[np.ndarray], tracks: Sequence[_Track], camera: Cameras
    ) -> HandPose[np.ndarray]:
        filters = [track.filter for track in tracks if track.filter is not None]
        if not filters:
            return poses
        pairs = zip(filters, poses.joints, strict=True)
        joints = np.stack([smooth(joints, self._time) for smooth, joints in pairs])
        pixels = camera.chosen([0] * len(joints)).project(torch.from_numpy(joints)).float().numpy()
        return replace(poses, joints=joints.astype(np.float32), joints_2d=pixels)


def _at_depth(
    poses: HandPose[np.ndarray], tracks: Sequence[_Track], depths: list[np.ndarray] | None, camera: Cameras
) -> HandPose[np.ndarray]:
    """Scale poses to a depth image, if any, or else to the last scale of their tracks."""
    scaled = poses if depths is None else scaled_to_depth(poses, depths, camera)
    assert poses.hand_scale is not None and scaled.hand_scale is not None
    ratios = np.ones(len(tracks))
    for row, track in enumerate(tracks):
        if scaled.hand_scale[row] != poses.hand_scale[row]:
            track.hand_scale = float(scaled.hand_scale[row])
        elif not math.isnan(track.hand_scale):
            ratios[row] = track.hand_scale / poses.hand_scale[row]
    return scaled.scaled(ratios)


def _boxes(poses: HandPose[np.ndarray]) -> np.ndarray:
    """Squares (N, 4) px around the joints of a batch."""
    pixels = torch.from_numpy(np.asarray(poses.joints_2d, np.float64))
    return squared(pixel_boxes(pixels)).numpy()


def _weight(cutoff: float | np.ndarray, elapsed: float) -> Any:
    """Weight of a new value in a first-order low-pass filter of a cutoff frequency in Hz."""
    return 1 / (1 + 1 / (2 * math.pi * cutoff * elapsed))
