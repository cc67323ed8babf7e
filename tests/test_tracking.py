"""Tracking: filters, ids, views of followed hands, and searches, with a stand-in for the estimator."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from importlib.resources import files
from typing import Any

import numpy as np
import pytest
from PIL import Image

import nvf_fast
from nvf_fast.joint_definitions import UNIT_SCALE_MM
from nvf_fast.pose import HandPose
from nvf_fast.tracking import JointFilter, OneEuroFilter, Smoothing, Tracker
from nvf_fast.volumes import HandVolume
from tests.hand_cases import hand_network
from tests.reference_cases import reference_network

K = np.array([[500.0, 0, 319.5], [0, 500.0, 239.5], [0, 0, 1]])
RATE = 30.0
SHAPE = np.random.default_rng(0).uniform(-40, 40, (21, 3))  # mm, of every hand about its middle


def test_filter_without_gain_is_a_first_order_low_pass() -> None:
    smooth = OneEuroFilter(2.0, 0.0)
    assert smooth(np.array([1.0]), 0.0) == 1
    # After a step the distance shrinks by 1 / (1 + 2 pi f dt) per sample.
    for count in range(1, 6):
        expected = (1 + 2 * math.pi * 2.0 * 0.05) ** -count
        assert smooth(np.array([0.0]), 0.05 * count) == pytest.approx(expected)


def test_filter_is_steady_at_rest_and_follows_motion() -> None:
    times = np.arange(300) / RATE
    noise = np.random.default_rng(1).normal(0, 0.01, (300, 21))

    def filtered(values: np.ndarray, gain: float) -> np.ndarray:
        smooth = OneEuroFilter(1.0, gain)
        return np.stack([smooth(value, time) for value, time in zip(values, times, strict=True)])

    assert filtered(noise, 0.5)[30:].std() < 0.45 * noise.std()
    ramp = np.repeat(times[:, None], 21, 1)
    slow, fast = (np.abs(filtered(ramp, gain) - ramp)[200:].max() for gain in (0.0, 10.0))
    # The lag of a first-order filter is speed / (2 pi f).
    assert slow == pytest.approx(1 / (2 * math.pi), rel=0.01)
    assert fast == pytest.approx(1 / (2 * math.pi * 11), rel=0.01)


def test_depth_is_smoothed_more_than_directions() -> None:
    random, smooth = np.random.default_rng(2), JointFilter(Smoothing())
    joints, found = SHAPE + [0, 0, 500], []
    for index in range(120):
        noisy = joints * (1 + 0.02 * random.normal())  # along the rays
        noisy[:, :2] += 5 * random.normal(size=2)
        found.append(smooth(noisy, index / RATE))
    spread = np.stack(found)[30:].std(0).mean(0)
    across, along = spread[:2].max() / 5, spread[2] / (0.02 * 500)  # measured 0.63 and 0.37
    assert across < 0.7 and along < 0.7 * across
    np.testing.assert_allclose(np.stack(found)[30:].mean(0), joints, atol=4)
    steady = JointFilter(Smoothing())
    for index in range(5):
        np.testing.assert_allclose(steady(joints, index / RATE), joints, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "value"), [("depth_cutoff", 0.0), ("shape_gain", -1.0), ("shape_gain", math.nan)]
)
def test_refuses_invalid_smoothing(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        Smoothing(**{name: value})


class World:
    """A stand-in for the estimator: hands at places in mm by time, seen in images that show their frame.

    Args:
        hands: for a frame's number, the middles (3,) of the hands by name.
        sides: for a frame's number, the side predicted for a hand whose side is not given.
    """

    volume = HandVolume()
    model = hand_network()

    def __init__(
        self, hands: Callable[[int], dict[str, Any]], sides: Callable[[int], str] = lambda frame: "right"
    ):
        self.hands, self.sides, self.searches = hands, sides, list[int]()

    def __call__(self, image: Any, K: Any, hand_scale: Any, box: Any = None, side: Any = None) -> HandPose:
        frame = int(image[0, 0, 0])
        present = {name: np.array(place, float) for name, place in self.hands(frame).items()}
        pixels = {name: project(SHAPE + place) for name, place in present.items()}
        if box is None:
            self.searches.append(frame)
            return poses([SHAPE + place for place in present.values()], [self.sides(frame)] * len(present))
        found, sides = [], []
        for each, given in zip(box, side, strict=True):
            middle = (each[:2] + each[2:]) / 2
            inside = [
                name for name, uv in pixels.items() if np.abs(uv.mean(0) - middle).max() < each[2] - each[0]
            ]
            nearest = min(inside, key=lambda name: np.abs(pixels[name].mean(0) - middle).max(), default=None)
            found.append(np.full((21, 3), np.nan) if nearest is None else SHAPE + present[nearest])
            sides.append(given or self.sides(frame))
        return poses(found, sides)


def project(joints: np.ndarray) -> np.ndarray:
    pixels = joints @ K.T
    return pixels[..., :2] / pixels[..., 2:]


def poses(joints: list[np.ndarray], sides: list[str]) -> HandPose:
    stacked = np.array(joints, np.float32).reshape(-1, 21, 3)
    valid = np.isfinite(stacked).all((1, 2))
    count = np.zeros(len(stacked), int)
    return HandPose(
        stacked,
        project(stacked),
        stacked[..., 0],
        count,
        valid,
        count,
        valid.astype(np.float32),
        side=tuple(sides),
        hand_scale=np.full(len(stacked), UNIT_SCALE_MM, np.float32),
    )


def follow(world: World, frames: int, rate: float = RATE, **options: Any) -> list[Any]:
    tracker, found = Tracker(world, **options), []  # type: ignore[arg-type]
    for frame in range(frames):
        image = np.full((480, 640, 3), frame, np.uint8)
        found.append(tracker(image, K, frame / rate))
    return found


def test_moving_hands_keep_their_ids() -> None:
    """Two hands cross the image at 250 and 190 px/s in opposite directions; a third one is too many."""

    def hands(frame: int) -> dict[str, Any]:
        x = 5.0 * frame - 120
        return {"a": (x, -60, 300), "b": (-x, 120, 400)} | ({"c": (0, 0, 900)} if frame > 20 else {})

    found = follow(World(hands), 50, smoothing=None)
    for frame, (ids, batch) in enumerate(found):
        assert sorted(ids) == [0, 1], frame
        for name, id in (("a", 0), ("b", 1)):
            expected = SHAPE + hands(frame)[name]
            np.testing.assert_allclose(batch[ids.index(id)].joints, expected, atol=1e-3)


def test_smoothed_joints_lie_near_the_estimated_ones() -> None:
    found = follow(World(lambda frame: {"a": (4 * frame, 0, 400)}), 40)
    exact = follow(World(lambda frame: {"a": (4 * frame, 0, 400)}), 40, smoothing=None)
    distances = [
        np.abs(one.poses.joints - other.poses.joints).max() for one, other in zip(found, exact, strict=True)
    ]
    assert 0 < max(distances) < 8, "120 mm/s"
    np.testing.assert_allclose(found[-1].poses.joints_2d, project(found[-1].poses.joints), atol=1e-3)


def test_a_hand_that_reappears_nearby_has_its_id_again() -> None:
    def hands(frame: int) -> dict[str, Any]:
        if 10 <= frame < 40:
            return {}
        return {"a": (0 if frame < 90 else 250, 0, 500)} if frame < 70 or frame >= 90 else {}

    ids = [found.ids for found in follow(World(hands), 100)]
    assert ids[9] == (0,) and set(ids[10:40]) == {()} and set(ids[40:70]) == {(0,)}
    assert set(ids[70:90]) == {()} and set(ids[90:]) == {(1,)}, "far away"
    forgotten = [found.ids for found in follow(World(hands), 45, memory=0.5)]
    assert forgotten[44] == (1,), "after a second"


def test_a_hand_that_reappears_keeps_its_side_against_one_prediction() -> None:
    """The side is predicted wrongly for a few frames after a gap."""

    def hands(frame: int) -> dict[str, Any]:
        return {} if 20 <= frame < 35 else {"a": (0, 0, 500)}

    found = follow(World(hands, lambda frame: "left" if 35 <= frame < 40 else "right"), 60)
    assert {each.ids for each in found if each.ids} == {(0,)}
    assert {each.poses.side for each in found if each.ids} == {("right",)}


def test_a_short_gap_is_bridged_without_a_search() -> None:
    world = World(lambda frame: {} if frame in (10, 11, 12) else {"a": (3 * frame, 0, 500)})
    ids = [found.ids for found in follow(world, 20, most_hands=1)]
    assert [frame for frame, found in enumerate(ids) if not found] == [10, 11, 12]
    assert set(ids) == {(0,), ()} and world.searches == [0, 15], "the second one finds the new hand again"


class Deceived(World):
    """A world whose searches miss hands in some frames: `missed` gives the names of those."""

    def __init__(self, hands: Callable[[int], dict[str, Any]], missed: Callable[[int], set[str]]):
        super().__init__(hands)
        self.missed, self.shown = missed, hands

    def __call__(self, image: Any, K: Any, hand_scale: Any, box: Any = None, side: Any = None) -> HandPose:
        missed = self.missed(int(image[0, 0, 0])) if box is None else set()
        self.hands = lambda frame: {
            name: place for name, place in self.shown(frame).items() if name not in missed
        }
        return super().__call__(image, K, hand_scale, box, side)


def test_a_false_hand_that_searches_do_not_find_again_is_given_up() -> None:
    hands = {"true": (0, 0, 500), "false": (-150, 0, 500)}
    world = Deceived(lambda frame: hands, lambda frame: {"false"} if frame else set())
    ids = [found.ids for found in follow(world, 60)]
    assert set(ids[:30]) == {(0, 1)} and set(ids[30:]) == {(0,)}
    # One search that misses it does not end a new hand, nor several an old one.
    world = Deceived(lambda frame: hands, lambda frame: {"false"} if frame == 15 or frame > 30 else set())
    assert {found.ids for found in follow(world, 100)} == {(0, 1)}


def test_hands_are_searched_for_after_a_long_gap() -> None:
    world = World(lambda frame: {"a": (4.0 * frame, 0, 500), "b": (-4.0 * frame, 100, 500)})
    tracker = Tracker(world)  # type: ignore[arg-type]
    times = [frame / RATE + (20 if frame >= 10 else 0) for frame in range(15)]
    with pytest.warns(UserWarning, match=r"new ids after a gap of 20\.0333 s between frames") as caught:
        found = [
            tracker(np.full((480, 640, 3), frame, np.uint8), K, time).ids for frame, time in enumerate(times)
        ]
    assert len(caught) == 1
    assert set(found[:10]) == {(0, 1)} and set(found[10:]) == {(2, 3)}


@pytest.mark.parametrize("rate", [1, 2])
def test_rare_frames_keep_ids(rate: float) -> None:
    """Between such frames hands turn back: their motion does not predict their places."""

    def hands(frame: int) -> dict[str, Any]:
        x = 60.0 * (frame % 2)
        return {"a": (x - 100, 0, 500), "b": (x + 100, 0, 500)}

    world = World(hands)
    for frame, (ids, batch) in enumerate(follow(world, 12, rate, smoothing=None)):
        assert sorted(ids) == [0, 1]
        for name, id in (("a", 0), ("b", 1)):
            np.testing.assert_allclose(
                batch[ids.index(id)].joints, SHAPE + hands(frame)[name], atol=1e-3, err_msg=f"{frame} {name}"
            )
    world.searches.clear()
    follow(world, 12, rate, search_interval=2.0, patience=2.0)
    assert len(world.searches) < 12, "chosen"


def test_a_frame_without_depth_keeps_the_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "nvf_fast.tracking.scaled_to_depth", lambda poses, depths, camera: poses.scaled(depths[0].max() / 1e3)
    )
    tracker = Tracker(World(lambda frame: {"a": (0, 0, 500)}))  # type: ignore[arg-type]
    depth = np.full((480, 640), 1100, np.uint16)
    for frame, given in enumerate((None, depth, None, depth + 100, None)):
        image = np.full((480, 640, 3), frame, np.uint8)
        poses = tracker(image, K, frame / RATE, given).poses
        expected = [1, 1.1, 1.1, 1.2, 1.2][frame] * UNIT_SCALE_MM
        assert poses.hand_scale == pytest.approx(expected)


def test_searches_only_when_due() -> None:
    empty = World(lambda frame: {})
    assert all(found.ids == () and len(found.poses) == 0 for found in follow(empty, 5))
    assert empty.searches == [0, 1, 2, 3, 4]
    one = World(lambda frame: {"a": (0, 0, 500)})
    follow(one, 61, search_interval=1.0)
    assert one.searches == [0, 30, 60]
    late = World(lambda frame: {"a": (0, 0, 500)} | ({"b": (200, 0, 500)} if frame >= 5 else {}))
    ids = [found.ids for found in follow(late, 40, search_interval=1.0)]
    assert ids[29] == (0,) and ids[30] == (0, 1)


def test_two_views_of_one_hand_become_one() -> None:
    """Hand b moves onto hand a's place and vanishes behind it, so that both views show hand a."""

    def hands(frame: int) -> dict[str, Any]:
        place = 150.0 - 8 * frame
        return {"a": (0, 0, 500)} | ({"b": (place, 0, 500)} if place > 20 else {})

    ids = [found.ids for found in follow(World(hands), 40)]
    assert ids[0] == (0, 1) and set(ids[20:]) == {(0,)}


def test_hands_that_cross_keep_their_ids() -> None:
    """Hand b passes in front of hand a, whose view then shows hand b."""

    def hands(frame: int) -> dict[str, Any]:
        x = 6.0 * frame - 150
        return ({"a": (x, 0, 500)} if abs(x) > 20 else {}) | {"b": (-x, 0, 500)}

    for frame, (ids, batch) in enumerate(follow(World(hands), 50, smoothing=None)):
        shown = [joints.mean(0)[0] for joints in batch.joints]
        middles = {id: middle - SHAPE.mean(0)[0] for id, middle in zip(ids, shown, strict=True)}
        assert middles[1] == pytest.approx(150 - 6 * frame, abs=1e-3), frame
        if 0 in middles:
            assert middles[0] == pytest.approx(6 * frame - 150, abs=1e-3), frame
        assert set(ids) == {0, 1} or abs(6 * frame - 150) <= 20, frame


def test_the_majority_of_predictions_decides_the_side() -> None:
    world = World(lambda frame: {"a": (0, 0, 500)}, lambda frame: "right" if frame % 5 == 2 else "left")
    sides = [found.poses.side for found in follow(world, 40)]
    assert set(sides) == {("left",)}


def test_a_hand_that_leaves_the_image_ends() -> None:
    found = follow(World(lambda frame: {"a": (30 * frame, 0, 500)}), 20)
    assert found[8].ids == (0,) and found[-1].ids == ()


def test_refuses_invalid_arguments() -> None:
    world: Any = World(lambda frame: {"a": (0, 0, 500)})
    for options, message in (
        ({"most_hands": 0}, "most_hands must be at least 1"),
        ({"patience": -1.0}, "patience must be a number of s"),
        ({"memory": math.nan}, "memory must be a number of s"),
        ({"hand_scale": 0.03}, "hand_scale must be the length in mm .* 10 to 60 mm, got 0.03"),
    ):
        with pytest.raises(ValueError, match=message):
            Tracker(world, **options)
    with pytest.raises(TypeError, match=r"most_hands must be a whole number, got 1\.5"):
        Tracker(world, most_hands=1.5)  # type: ignore[arg-type]
    with pytest.raises(
        TypeError, match=r"estimator must be a PoseEstimator, as nvf_fast.load returns it, got str"
    ):
        Tracker("default")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="requires a network of hand views"):
        Tracker(nvf_fast.PoseEstimator(reference_network()))
    tracker, image = Tracker(world), np.zeros((480, 640, 3), np.uint8)
    tracker(image, K, 1.0)
    for time in (1.0, 0.5, math.nan):
        with pytest.raises(ValueError, match="time must be later than 1 s"):
            tracker(image, K, time)
    for frame, error in (
        (image / 255, TypeError),
        (image[None], ValueError),
        ([image, image], ValueError),
        (image[..., :2], ValueError),
    ):
        with pytest.raises(error, match=r"image must be|takes one image"):
            tracker(frame, K, 2.0)
    assert tracker(image, K, 2.0).ids == (0,), "an invalid frame leaves the tracker as it was"


@pytest.mark.slow
def test_default_network_follows_both_hands_of_a_turning_image() -> None:
    folder = files("nvf_fast") / "assets"
    demo = json.loads((folder / "demo.json").read_text())
    image = Image.open(str(folder / "demo.jpg")).convert("RGB")
    intrinsics = np.array(demo["K"])
    tracker = Tracker(nvf_fast.load(device="cpu"))
    for frame in range(4):
        angle = 0.01 * frame
        turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
        homography = intrinsics @ turn.T @ np.linalg.inv(intrinsics)
        coefficients = (homography / homography[2, 2]).ravel()[:8]
        turned = image.transform(
            image.size, Image.Transform.PERSPECTIVE, coefficients.tolist(), Image.Resampling.BILINEAR
        )
        ids, found = tracker(np.asarray(turned), intrinsics, frame / RATE)
        assert ids == (0, 1)
    for hand in demo["hands"]:
        truth = np.array(hand["joints"]) @ turn.T
        seen = truth @ intrinsics.T
        seen = seen[:, :2] / seen[:, 2:]
        nearest = min(found, key=lambda pose: np.abs(pose.joints_2d - seen).mean())
        assert nearest.side == hand["side"]
        # Measured 0.07 of the box at most.
        assert np.linalg.norm(nearest.joints_2d - seen, axis=-1).mean() < 0.12 * np.ptp(seen, 0).max()
