"""Structures of MediaPipe and HaMeR: names, units and signs by formulas written here, and back."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from nvf_fast.adapters import from_mediapipe, to_hamer, to_mediapipe
from nvf_fast.finding import FoundHands
from nvf_fast.pose import HandPose

SIZE = (640, 480)
K = np.array([[600.0, 0, 320], [0, 600.0, 240], [0, 0, 1]])


def poses() -> HandPose:
    """A right hand, a left one, and one that is not valid."""
    random = np.random.default_rng(3)
    joints = random.uniform(-60, 60, (3, 21, 3)) + np.array(
        [[[-90.0, 20, 500]], [[80.0, -40, 700]], [[0, 0, 500]]]
    )
    joints[2] = np.nan
    pixels = joints @ K.T
    counts = np.zeros(3, int)
    return HandPose(
        joints.astype(np.float32),
        (pixels[..., :2] / pixels[..., 2:]).astype(np.float32),
        np.ones((3, 21), np.float32),
        counts,
        np.array([True, True, False]),
        counts,
        np.array([0.9, 0.8, 0.1], np.float32),
        side=("right", "left", "left"),
    )


def marks(hand: list[Any]) -> np.ndarray:
    return np.array([(mark.x, mark.y, mark.z) for mark in hand])


def test_mediapipe_structure() -> None:
    pose = poses()
    result = to_mediapipe(pose, K, SIZE)
    assert [[vars(side) for side in each] for each in result.handedness] == [
        [{"index": 0, "score": pytest.approx(0.9), "display_name": "Right", "category_name": "Right"}],
        [{"index": 1, "score": pytest.approx(0.8), "display_name": "Left", "category_name": "Left"}],
    ]
    for row, (flat, world) in enumerate(zip(result.hand_landmarks, result.hand_world_landmarks, strict=True)):
        assert len(flat) == len(world) == 21
        assert set(vars(flat[0])) == {"x", "y", "z", "visibility", "presence", "name"}
        joints, normalised = pose.joints[row].astype(float), marks(flat)
        # The left border of pixel 0 is at 0, the right border of pixel 639 at 1.
        pixels = normalised[:, :2] * SIZE - 0.5
        np.testing.assert_allclose(pixels, pose.joints_2d[row], atol=1e-3)
        # An image is as wide as width / focal * depth at a depth.
        width_mm = 640 / 600 * joints[0, 2]
        np.testing.assert_allclose(normalised[:, 2] * width_mm, joints[:, 2] - joints[0, 2], atol=1e-3)
        metres = marks(world)
        np.testing.assert_allclose(metres.mean(0), 0, atol=1e-9)
        np.testing.assert_allclose(1000 * (metres - metres[0]), joints - joints[0], atol=1e-3)
    older = to_mediapipe(pose, K, SIZE, mirrored=True)
    assert [each[0].category_name for each in older.handedness] == ["Left", "Right"]
    one = to_mediapipe(torch_pose(pose)[1], torch.from_numpy(K), SIZE)
    assert marks(one.hand_landmarks[0]).tolist() == marks(result.hand_landmarks[1]).tolist()
    assert to_mediapipe(HandPose.none(), K, SIZE).hand_landmarks == []


def torch_pose(pose: HandPose) -> HandPose[torch.Tensor]:
    arrays = {name: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for name, v in vars(pose).items()}
    return HandPose(**arrays)


def solutions_result(result: Any) -> Any:
    """The same hands as `mediapipe.solutions.hands` returns them."""
    return SimpleNamespace(
        multi_hand_landmarks=[SimpleNamespace(landmark=hand) for hand in result.hand_landmarks] or None,
        multi_handedness=[
            SimpleNamespace(classification=[SimpleNamespace(label=top.category_name, score=top.score)])
            for (top,) in result.handedness
        ]
        or None,
    )


@pytest.mark.parametrize("kind", ["tasks", "solutions"])
@pytest.mark.parametrize("mirrored", [False, True])
def test_boxes_of_mediapipe(kind: str, mirrored: bool) -> None:
    pose = poses()
    result: Any = to_mediapipe(pose, K, SIZE, mirrored=mirrored)
    found = from_mediapipe(
        solutions_result(result) if kind == "solutions" else result, SIZE, mirrored=mirrored
    )
    assert isinstance(found, FoundHands) and found.sides == ("right", "left")
    np.testing.assert_allclose(found.scores, [0.9, 0.8], rtol=1e-6)
    for box, pixels in zip(found.boxes, pose.joints_2d, strict=False):
        assert box[2] - box[0] == pytest.approx(np.ptp(pixels, 0).max(), rel=1e-5)
        np.testing.assert_allclose((box[:2] + box[2:]) / 2, (pixels.min(0) + pixels.max(0)) / 2, atol=1e-3)
    empty: Any = to_mediapipe(pose[2], K, SIZE)
    nothing = from_mediapipe(solutions_result(empty) if kind == "solutions" else empty, SIZE)
    assert len(nothing) == 0 and nothing.boxes.shape == (0, 4)


def test_other_results_are_refused() -> None:
    with pytest.raises(TypeError, match="with hand_landmarks or multi_hand_landmarks, got dict"):
        from_mediapipe({}, SIZE)


def test_other_sizes_are_refused() -> None:
    pose = poses()
    result = to_mediapipe(pose, K, SIZE)
    for size, error in (((480, 640, 3), TypeError), (640, TypeError), ((0, 480), ValueError)):
        for convert in (
            lambda size: to_mediapipe(pose, K, size),
            lambda size: to_hamer(pose, K, size),
            lambda size: from_mediapipe(result, size),
        ):
            with pytest.raises(error, match=r"size must be \(width, height\)"):
                convert(size)


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_hamer_fields(kind: str) -> None:
    pose: Any = poses() if kind == "numpy" else torch_pose(poses())
    fields = to_hamer(pose, K, SIZE)
    assert fields["scaled_focal_length"] == 600
    for name in ("pred_keypoints_3d", "pred_cam", "is_right", "box_size"):
        assert type(fields[name]) is type(pose.joints) and str(fields[name].dtype).endswith("float32"), name
    get = {name: np.asarray(value, np.float64) for name, value in fields.items()}
    joints, pixels = np.asarray(poses().joints, float)[:2], np.asarray(poses().joints_2d, float)[:2]
    placed = get["pred_keypoints_3d"] + get["pred_cam_t_full"][:, None]
    np.testing.assert_allclose(1000 * placed[:2], joints, atol=1e-3)
    assert (get["pred_keypoints_3d"][:2, 0] == 0).all() and np.isnan(placed[2]).all()
    assert get["is_right"].tolist() == [1, 0, 0] and get["img_size"].tolist() == [[640, 480]] * 3
    flat = get["pred_keypoints_2d"] * get["box_size"][:, None, None] + get["box_center"][:, None]
    np.testing.assert_allclose(flat[:2], pixels, atol=1e-3)
    np.testing.assert_allclose(get["box_size"][:2], 2 * np.ptp(pixels, 1).max(1), rtol=1e-6)
    # The camera before the crop sees the wrist where the whole image shows it.
    wrist = get["pred_cam_t"]
    np.testing.assert_allclose(
        5000 / 256 * wrist[:2, :2] / wrist[:2, 2:], get["pred_keypoints_2d"][:2, 0], rtol=1e-4
    )
    # HaMeR's conversion of a crop's scale and translation to the whole image.
    scale, x, y = get["pred_cam"].T
    side, (cx, cy) = get["box_size"] * scale, get["box_center"].T
    whole = np.stack([2 * (cx - 320) / side + x, 2 * (cy - 240) / side + y, 2 * 600 / side], 1)
    np.testing.assert_allclose(whole[:2], get["pred_cam_t_full"][:2], rtol=1e-5)


def test_hamer_mirrors_left_hands() -> None:
    plain, mirrored = (to_hamer(poses(), K, SIZE, mirror_left=each) for each in (False, True))
    for name, axis in {
        "pred_keypoints_3d": 0,
        "pred_keypoints_2d": 0,
        "pred_cam": 1,
        "pred_cam_t": 0,
    }.items():
        changed = plain[name].copy()
        changed[1, ..., axis] *= -1
        np.testing.assert_array_equal(mirrored[name][:2], changed[:2], name)
    np.testing.assert_array_equal(mirrored["pred_cam_t_full"], plain["pred_cam_t_full"])
    assert len(to_hamer(poses()[0], K, SIZE)["box_size"]) == 1
