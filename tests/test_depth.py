"""Depth images: poses of rasterised hands at true distances, faults that leave a pose, and hand scales."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import nvf_fast
from nvf_fast.camera import project
from nvf_fast.depth import estimate_hand_scale, scaled_to_depth
from nvf_fast.joint_definitions import UNIT_SCALE_MM
from nvf_fast.pose import HandPose
from nvf_fast.synthetic.placement import HandDistribution
from nvf_fast.synthetic.rasteriser import rasterise
from nvf_fast.synthetic.reference_images import DrawnHands, draw_hands, render_hands
from nvf_fast.synthetic.rig import built_in_rig

SIZE, FOCAL = 224, 480.0
K = np.array([[FOCAL, 0, SIZE / 2], [0, FOCAL, SIZE / 2], [0, 0, 1]])
COUNT = 4
# Over 40 true poses: mean error of the distance -1.0 mm, standard deviation 1.0 mm.
NEAR_MM = 4.0


class Hands(NamedTuple):
    joints: np.ndarray  # (N, 21, 3) mm
    depths: list[np.ndarray]  # (S, S) float64 mm, 0 beside the hand
    images: np.ndarray  # (N, S, S, 3) uint8


@cache
def drawn_hands() -> DrawnHands:
    return draw_hands(11, range(COUNT), HandDistribution())


def vertices() -> np.ndarray:
    drawn = drawn_hands()
    return drawn.skins @ drawn.rotations.transpose(0, 2, 1) + drawn.offsets[:, None]


@cache
def hands() -> Hands:
    rendered, rig = render_hands(drawn_hands(), SIZE), built_in_rig()
    depths = [rasterise(each, rig.faces, FOCAL, SIZE)[2] for each in vertices()]
    depths = [np.where(np.isfinite(depth), depth, 0.0) for depth in depths]
    return Hands(
        rendered["joints"].numpy(), depths, rendered["images"].permute(0, 2, 3, 1).contiguous().numpy()
    )


def poses(ratio: float = 0.85) -> HandPose:
    """The true poses, scaled about the camera, as the estimator makes them of several images."""
    joints, count = hands().joints * np.float32(ratio), np.zeros(COUNT, int)
    return HandPose(
        joints,
        project(joints, K.astype(np.float32)),
        np.full((COUNT, 21), 0.5, np.float32),
        count,
        np.ones(COUNT, bool),
        count,
        np.ones(COUNT, np.float32),
        expected_error=np.full((COUNT, 21), 20.0, np.float32),
        hand_scale=np.full(COUNT, UNIT_SCALE_MM, np.float32),
        image_index=np.arange(COUNT),
    )


def torch_pose(pose: HandPose) -> HandPose[torch.Tensor]:
    arrays = {name: torch.from_numpy(value) for name, value in vars(pose).items() if value is not None}
    return HandPose(**arrays)


@pytest.mark.parametrize("ratio", [0.75, 1.0, 1.3])
def test_poses_move_to_the_measured_distance(ratio: float) -> None:
    before = poses(ratio)
    after = scaled_to_depth(before, hands().depths, K)
    np.testing.assert_allclose(after.joints, hands().joints, atol=NEAR_MM)
    np.testing.assert_array_equal(after.joints_2d, before.joints_2d)
    factor = after.joints[:, 0, 2] / before.joints[:, 0, 2]
    np.testing.assert_allclose(after.joints, before.joints * factor[:, None, None], rtol=1e-5)
    np.testing.assert_allclose(after.hand_scale, UNIT_SCALE_MM * factor, rtol=1e-5)
    np.testing.assert_allclose(after.expected_error, 20 * np.ones((1, 21)) * factor[:, None], rtol=1e-5)
    np.testing.assert_allclose(after.scores, 1 / (1 + factor[:, None] ** 2) * np.ones((1, 21)), rtol=1e-5)


def test_arrays_of_every_kind_agree() -> None:
    expected = scaled_to_depth(poses(), hands().depths, K)
    for depth in (np.stack(hands().depths), torch.from_numpy(np.stack(hands().depths))):
        found = scaled_to_depth(torch_pose(poses()), depth, torch.from_numpy(K))
        assert isinstance(found.joints, torch.Tensor) and found.joints.dtype == torch.float32
        np.testing.assert_allclose(found.joints, expected.joints, rtol=1e-6)
    single = scaled_to_depth(poses()[2], np.where(hands().depths[2] > 0, hands().depths[2], np.nan), K)
    np.testing.assert_allclose(single.joints, expected.joints[2], rtol=1e-6)
    gaps = np.ma.masked_equal(np.where(hands().depths[2] > 0, hands().depths[2], 9.0), 9.0)
    masked = scaled_to_depth(poses()[2], gaps, K)
    np.testing.assert_array_equal(masked.joints, expected.joints[2])
    optimised = torch.from_numpy(np.stack(hands().depths)).requires_grad_()
    np.testing.assert_array_equal(scaled_to_depth(poses(), optimised, K).joints, expected.joints)
    coarse = torch.from_numpy(hands().depths[1]).bfloat16()
    kinds = [hands().depths[1].astype(dtype) for dtype in (np.uint16, np.int32, np.float32)]
    for depth in (*kinds, coarse):
        rounded = scaled_to_depth(poses()[1], depth, K)
        np.testing.assert_allclose(rounded.joints, expected.joints[1], rtol=2e-3)  # 1 mm of 500


def test_several_hands_of_one_image() -> None:
    moves = np.array([[-120.0, 0, 0], [120.0, 0, 150]])
    rig, size, wide = built_in_rig(), 600, np.array([[FOCAL, 0, 300], [0, FOCAL, 300], [0, 0, 1]])
    depth = np.zeros((size, size))
    for row, move in enumerate(moves):
        _, _, each = rasterise(vertices()[row] + move, rig.faces, FOCAL, size)
        depth = np.where(np.isfinite(each), each, depth)
    both = replace(poses()[:2], image_index=np.array([2, 2]))
    both = replace(both, joints=(0.85 * (hands().joints[:2] + moves[:, None])).astype(np.float32))
    after = scaled_to_depth(both, depth, wide)
    np.testing.assert_allclose(after.joints, hands().joints[:2] + moves[:, None], atol=NEAR_MM)


def test_objects_before_the_hand_and_gaps_change_little() -> None:
    random = np.random.default_rng(2)
    for joints, depth, pose in zip(hands().joints, hands().depths, poses(), strict=True):
        columns = np.nonzero(depth.any(0))[0]
        covered = depth.copy()
        middle = int(np.percentile(columns, 30))
        covered[:, :middle] = depth[depth > 0].min() - 80.0  # an object over a third of the hand
        covered[random.random(depth.shape) < 0.3] = 0
        after = scaled_to_depth(pose, covered, K)
        np.testing.assert_allclose(after.joints, joints, atol=2 * NEAR_MM)


def test_distorted_camera() -> None:
    camera = nvf_fast.Camera(K, (SIZE, SIZE), (-0.3, 0.1, 0.0, 0.0))
    pixels = np.stack(np.meshgrid(np.arange(SIZE), np.arange(SIZE)), -1).reshape(-1, 2).astype(float)
    straight = np.rint(project(camera.rays(pixels), K)).astype(int).reshape(SIZE, SIZE, 2)
    inside = ((straight >= 0) & (straight < SIZE)).all(-1)
    column, row = np.where(inside[..., None], straight, 0).transpose(2, 0, 1)
    bent = np.where(inside, hands().depths[0][row, column], 0)
    assert (bent != hands().depths[0]).mean() > 0.01
    after = scaled_to_depth(poses()[0], bent, camera)
    np.testing.assert_allclose(after.joints, hands().joints[0], atol=NEAR_MM)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda depth: 0 * depth, r"measured at 0 of \d+ pixels of the hand"),
        (lambda depth: 2.5 * depth, r"would have a scale of \d+\.\d mm, outside people's 15 to 50 mm"),
        (
            lambda depth: depth + np.linspace(0, 900, SIZE),
            r"only \d+ % of \d+ measurements lie within 25 mm of one hand's surface",
        ),
    ],
)
def test_a_depth_image_of_something_else_leaves_the_pose(
    change: Callable[[np.ndarray], np.ndarray], reason: str
) -> None:
    before = poses()[0]
    with pytest.warns(UserWarning, match=f"depth of hand 0: .*{reason}.*; its pose is unchanged"):
        after = scaled_to_depth(before, change(hands().depths[0]), K)
    np.testing.assert_array_equal(after.joints, before.joints)


@pytest.mark.parametrize(
    ("depth", "error", "message"),
    [
        (np.full((SIZE, SIZE), 0.6), ValueError, "must be in mm, the largest value is 0.6: multiply metres"),
        (np.full((SIZE, SIZE), -5.0), ValueError, "must be positive mm, 0 or NaN without a measurement"),
        (np.ones((SIZE, SIZE), np.uint8), TypeError, "must be mm as uint16, another integer or a float"),
        (np.ones((SIZE, SIZE), object), TypeError, "must be mm as uint16, another integer or a float"),
        (np.ones((100, 50)), ValueError, r"must be \(H, W\) = \(224, 224\) px, aligned with the image, got"),
        (np.ones((2, SIZE, SIZE)), ValueError, r"one image \(H, W\) for each of 1, got shape \(2, "),
        ([np.ones((SIZE, SIZE))] * 2, ValueError, r"one image \(H, W\) for each of 1, got 2 of them"),
        ([[500.0]], TypeError, "must be a numpy array or a torch tensor, got list"),
    ],
)
def test_invalid_depths(depth: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        estimator()(hands().images[0], K, box=(40, 40, 180, 180), depth=depth)


@cache
def estimator() -> nvf_fast.PoseEstimator:
    return nvf_fast.load(device="cpu")


def boxes() -> np.ndarray:
    pixels = poses().joints_2d
    return np.concatenate([pixels.min(1), pixels.max(1)], 1)


def test_estimator_and_tracker() -> None:
    """The default network on rendered hands: distances by the depth image, kept by the tracker."""
    images, truth = hands().images, hands().joints
    found = estimator()(images, K, box=boxes(), side="right")
    after = estimator()(images, K, box=boxes(), side="right", depth=hands().depths)
    assert found.valid.all()
    np.testing.assert_array_equal(after.joints_2d, found.joints_2d)
    away = np.linalg.norm(after.joints - truth, axis=-1).mean(1)
    # Measured 22 mm in the mean with former weights; without depth 57 mm.
    assert away.mean() < 35 < 50 < np.linalg.norm(found.joints - truth, axis=-1).mean()

    best = 3  # of those found in the whole image too
    tracker = nvf_fast.Tracker(estimator(), most_hands=1, smoothing=None)
    _, first = tracker(images[best], K, 0.0, hands().depths[best])
    with pytest.warns(UserWarning, match="measured at 0 of"):
        _, second = tracker(images[best], K, 0.03, np.zeros((SIZE, SIZE)))
    assert len(first) == len(second) == 1
    np.testing.assert_allclose(second.hand_scale, first.hand_scale, rtol=1e-5)
    assert abs(float(first.hand_scale[0]) - UNIT_SCALE_MM) > 0.1


def test_hand_scale_of_distances() -> None:
    distances = np.linalg.norm(hands().joints[:, 0], axis=-1)
    scale = estimate_hand_scale(poses(0.8), distance_mm=distances)
    assert scale.mm == pytest.approx(UNIT_SCALE_MM / 0.8, rel=1e-6)
    assert scale.spread_mm == pytest.approx(0, abs=1e-4) and scale.poses == COUNT
    wrong = distances * np.array([1.0, 0.9, 1.1, 1.0])
    spread = estimate_hand_scale(poses(0.8), distance_mm=wrong)
    assert spread.spread_mm == pytest.approx(0.05 * UNIT_SCALE_MM / 0.8, rel=1e-3)
    one = estimate_hand_scale(poses()[1], distance_mm=float(distances[1]))
    assert one.mm == pytest.approx(UNIT_SCALE_MM / 0.85, rel=1e-6) and one.poses == 1


def test_hand_scale_of_depth_images() -> None:
    scale = estimate_hand_scale(poses(0.8), depth=hands().depths, K=K)
    assert scale.mm == pytest.approx(UNIT_SCALE_MM / 0.8, rel=0.01) and scale.poses == COUNT
    partly = [np.zeros((SIZE, SIZE)), *hands().depths[1:]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert estimate_hand_scale(poses(0.8), depth=partly, K=K).poses == COUNT - 1
    bones = replace(poses(0.8), hand_scale=None)  # of a network without hand views
    lengths = np.linalg.norm(hands().joints[:, 10] - hands().joints[:, 9], axis=-1)
    assert estimate_hand_scale(bones, depth=hands().depths, K=K).mm == pytest.approx(np.median(lengths), 0.01)


def test_invalid_requests_of_hand_scales() -> None:
    for options in ({}, {"depth": hands().depths}, {"K": K, "distance_mm": 500.0}):
        with pytest.raises(ValueError, match="give depth and K, or distance_mm"):
            estimate_hand_scale(poses(), **options)
    with pytest.raises(TypeError, match=r"distance_mm must be a positive number, .* got '500'"):
        estimate_hand_scale(poses(), distance_mm="500")
    with pytest.raises(ValueError, match="no pose determines the hand's scale: none is given"):
        estimate_hand_scale(poses()[:0], distance_mm=500.0)
    for distance in (0.0, math.inf, np.array([500.0, 500.0])):
        with pytest.raises(ValueError, match="distance_mm must be a positive number, or one for each of 4"):
            estimate_hand_scale(poses(), distance_mm=distance)
    for metres in (0.5, [0.5, 0.5, 0.6, 0.6]):
        with pytest.raises(
            ValueError, match=r"hand_scale by distance_mm must .* 10 to 60 mm, got .* not metres"
        ):
            estimate_hand_scale(poses(), distance_mm=metres)
    with pytest.raises(ValueError, match="no pose determines the hand's scale: measured at 0 of"):
        estimate_hand_scale(poses(), depth=np.zeros((COUNT, SIZE, SIZE)), K=K)
    with pytest.raises(ValueError, match="depth must be an image for each of 4 images, got 1"):
        scaled_to_depth(poses(), hands().depths[0], K)
