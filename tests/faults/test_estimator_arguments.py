"""Arguments of the estimator, of cameras, poses and metrics: a result, or one documented error."""

from __future__ import annotations

import math
import resource
import warnings
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nvf_fast.camera_model import Camera
from nvf_fast.config import NVFConfig
from nvf_fast.estimator import PoseEstimator
from nvf_fast.evaluation import metrics
from nvf_fast.grid import MOST_NODES, Lattice
from nvf_fast.model import NVF
from nvf_fast.pose import HandPose
from nvf_fast.tracking import Tracker
from tests.hand_cases import hand_network
from tests.reference_cases import SHAPE, reference_network

IMAGE = np.random.default_rng(0).integers(0, 255, (120, 160, 3), np.uint8)
K = np.array([[250.0, 0, 79.5], [0, 250, 59.5], [0, 0, 1]])
BOX = (40.0, 20, 120, 100)
NAN, INF = math.nan, math.inf


@cache
def hands() -> PoseEstimator:
    return PoseEstimator(hand_network(), step_mm=56)


@cache
def frustum(search: Any = "dense") -> PoseEstimator:
    return PoseEstimator(reference_network(1.0), step_mm=16 if search == "guided" else 32, search=search)


def broadcast(*shape: int, dtype: Any = np.uint8) -> np.ndarray:
    """An array without memory for its values."""
    return np.broadcast_to(np.ones(1, dtype), shape)


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"K": [[str(value) for value in row] for row in K.tolist()]}, TypeError, "K must be a Camera, or"),
    ({"K": K.astype(complex)}, TypeError, "K must be a Camera, or"),
    ({"K": torch.from_numpy(K).to(torch.complex64)}, TypeError, "K must be a Camera, or"),
    ({"K": K > 0}, TypeError, "K must be a Camera, or"),
    ({"K": K.astype(object)}, TypeError, "K must be a Camera, or"),
    ({"K": broadcast(100_000, 100_000, dtype=np.float64)}, ValueError, r"got shape \(100000, 100000\)"),
    ({"K": torch.ones(1).expand(100_000, 100_000)}, ValueError, r"got shape \(100000, 100000\)"),
    ({"box": broadcast(10**10, 4)}, ValueError, r"box must be .*got shape \(10000000000, 4\)"),
    ({"box": "left"}, TypeError, "box must be"),
    ({"box": {"x0": 1}}, TypeError, "box must be"),
    ({"box": [*BOX[:3], NAN]}, ValueError, "box must be"),
    ({"side": np.array(["up"])}, ValueError, 'side must be "right", "left" or None'),
    ({"side": np.array([["left"]])}, ValueError, 'side must be "right", "left" or None'),
    ({"side": 3}, ValueError, 'side must be "right", "left" or None'),
    ({"hand_scale": "30"}, TypeError, "hand_scale must be a number of mm"),
    ({"hand_scale": 30 + 1j}, TypeError, "hand_scale must be a number of mm"),
    ({"hand_scale": NAN}, ValueError, "hand_scale must be the length"),
    ({"previous": 5, "box": None}, TypeError, "previous must be a HandPose"),
]


@pytest.mark.parametrize(("changes", "error", "message"), REFUSED)
def test_refuses(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        hands()(IMAGE, **{"K": K, "box": BOX, "side": "right"} | changes)


def test_sides_may_be_arrays_of_any_form() -> None:
    expected = hands()(IMAGE, K, box=[BOX, BOX], side=["left", "right"])
    for side in (np.array(["left", "right"]), np.array(["left", "right"], dtype=object), ("left", "right")):
        assert np.array_equal(hands()(IMAGE, K, box=[BOX, BOX], side=side).joints, expected.joints)
    pose = hands()(IMAGE, K, box=BOX, side=np.array("left"))
    assert np.array_equal(pose.joints, hands()(IMAGE, K, box=BOX, side="left").joints)


@pytest.mark.parametrize("estimator", [hands, frustum])
def test_broadcast_and_read_only_images_are_cropped_first(estimator: Any) -> None:
    wide = np.array([[1e4, 0, 49_999.5], [0, 1e4, 49_999.5], [0, 0, 1]])
    box = (49_900.0, 49_900, 50_100, 50_100)
    estimator()(IMAGE, K, box=BOX)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for image in (
        broadcast(100_000, 100_000, 3),
        torch.ones(1, dtype=torch.uint8).expand(100_000, 100_000, 3),
    ):
        pose = estimator()(image, wide, box=box)
        assert pose.joints.shape == (21, 3)
        if estimator is hands:
            assert len(hands().find(image, wide, score=0.0)) > 0
            assert hands()(image, wide).joints.ndim == 3
    for depth in (broadcast(100_000, 100_000, dtype=np.float32), torch.ones(1).expand(100_000, 100_000)):
        with pytest.raises(ValueError, match="depth must be in mm, the largest value is 1"):
            estimator()(image, wide, box=box, depth=depth)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KB; the image has 3 10^7


def test_read_only_and_turned_images_are_equal_to_others() -> None:
    expected = hands()(IMAGE, K, box=BOX, side="right").joints
    turned = np.ascontiguousarray(IMAGE[::-1, ::-1])[::-1, ::-1]
    fixed = IMAGE.copy()
    fixed.flags.writeable = False
    for image in (turned, fixed, np.asfortranarray(IMAGE), torch.from_numpy(IMAGE.copy())):
        joints = hands()(image, K, box=BOX, side="right").joints
        np.testing.assert_array_equal(np.asarray(joints), expected)


def test_views_that_meet_no_pixel_are_refused() -> None:
    aside = np.array([[250.0, 0, 400], [0, 250, 59.5], [0, 0, 1]])
    with pytest.raises(
        ValueError, match="the view touches no pixel of image 0, 160 x 120 px: it shows x from"
    ):
        frustum()(IMAGE, aside)
    with pytest.raises(ValueError, match="touches no pixel of image 0"):
        hands()(IMAGE, K, box=(700, 20, 720, 40))
    relative = PoseEstimator(NVF(NVFConfig(**SHAPE, task="root-relative")), step_mm=64)
    assert relative(IMAGE, K, root=(0, 0, 500.0)).joints.shape == (21, 3)
    with pytest.raises(ValueError, match="touches no pixel of image 0"):
        relative(IMAGE, K, root=(3000, 0, 500.0))


def test_poses_behind_the_camera_are_not_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    estimator = PoseEstimator(reference_network(1.0), step_mm=32)
    assert estimator(IMAGE, K).valid
    with torch.no_grad():
        estimator.model.field.biases[-1][4::4] = -1e3  # directions towards the camera, and beyond it
    estimator = PoseEstimator(estimator.model, step_mm=32)
    pose = estimator(IMAGE, K)
    assert pose.voters > 0 and not pose.valid and np.isnan(pose.joints).all() and (pose.scores == 0).all()


@pytest.mark.parametrize("step", [1e-300, 1e-6, 0.1, 0.5])
def test_steps_that_need_too_much_memory_are_refused_at_once(step: float) -> None:
    with pytest.raises(
        ValueError, match=rf"makes more than {MOST_NODES} points; the smallest step is about 0\.99"
    ):
        Lattice(step)
    with pytest.raises(ValueError, match=r"step_mm must be 1\.75 to 224 mm"):
        PoseEstimator(hand_network(), step_mm=step)


@pytest.mark.parametrize("name", ["step_mm", "surface_mm", "fraction"])
def test_options_must_be_positive_numbers(name: str) -> None:
    for value in ("5", None, [5.0], 1j):
        with pytest.raises(TypeError, match=rf"{name} must be a (whole )?number, got"):
            PoseEstimator(hand_network(), **{name: value})
    for value in (NAN, 0, -1.0):
        with pytest.raises(ValueError, match=f"{name} must be"):
            PoseEstimator(hand_network(), **{name: value})


@pytest.mark.parametrize("value", ["0.5", None, [1], 1j])
def test_options_of_finding_and_tracking_must_be_numbers(value: Any) -> None:
    for name in ("score", "smallest"):
        with pytest.raises(TypeError, match=rf"{name} must be a (whole )?number, got"):
            hands().find(IMAGE, K, **{name: value})
    for name in ("most_hands", "search_interval", "patience", "memory"):
        with pytest.raises(TypeError, match=rf"{name} must be a (whole )?number, got"):
            Tracker(hands(), **{name: value})
    with pytest.raises(TypeError, match="time must be a number, got"):
        Tracker(hands())(IMAGE, K, value)
    with pytest.raises(TypeError, match="smoothing must be a Smoothing or None, got -1"):
        Tracker(hands(), smoothing=-1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="must be a numpy array or a torch tensor"):
        Tracker(hands())(value, K, 0.0)


FLOATS = st.floats(width=32)


@settings(max_examples=settings().max_examples // 10)  # each takes 0.2 s
@given(joints=st.lists(FLOATS, min_size=3, max_size=3), spread=st.sampled_from([0.0, 50.0, 1e30]))
def test_any_previous_pose_of_a_guided_search_costs_only_time(joints: list[float], spread: float) -> None:
    estimator = frustum("guided")
    expected = guided_pose()
    previous = np.asarray(joints, np.float32) + np.linspace(-spread, spread, 63, dtype=np.float32).reshape(
        21, 3
    )
    pose = estimator(IMAGE, K, box=BOX, previous=replace(expected, joints=previous))
    assert np.array_equal(pose.joints, expected.joints)


@cache
def guided_pose() -> HandPose:
    return frustum("guided")(IMAGE, K, box=BOX)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.complex_numbers()
    | st.text(max_size=3)
    | st.sampled_from([np.array("left"), np.zeros(()), K, torch.ones(3, 3), b"x", Camera(K, (160, 120))]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=6,
)  # fmt: skip
ARRAYS = st.builds(
    lambda shape, dtype, value: np.full(shape, value).astype(dtype),
    st.lists(st.integers(0, 4), max_size=4),
    st.sampled_from([np.uint8, np.float32, np.float64, np.int64, bool, object, np.complex64, "U3"]),
    st.sampled_from([0.0, 1.0, 250.0]),
)
ARGUMENTS = ("image", "K", "hand_scale", "box", "side", "return_votes", "previous", "root", "depth")


@given(
    estimator=st.sampled_from([hands, frustum]),
    name=st.sampled_from(ARGUMENTS),
    value=ANYTHING | ARRAYS | ARRAYS.filter(lambda array: array.dtype.kind in "uif").map(torch.from_numpy),
)
def test_any_argument_of_the_estimator_yields_a_pose_or_one_error(
    estimator: Any, name: str, value: Any
) -> None:
    given: dict[str, Any] = {"image": IMAGE, "K": K, "box": BOX} | {name: value}
    if name == "previous" and estimator is hands:
        given["box"] = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pose = estimator()(**given)
    except (ValueError, TypeError) as error:
        names = (
            *ARGUMENTS,
            "the model",
            "a detector",
            "this model",
            "the camera",
            "the view",
            "return_votes",
        )
        if not any(each in str(error) for each in names):
            raise
        return
    checked = np.asarray(pose.valid)
    assert np.isfinite(np.asarray(pose.joints)[checked]).all()


@given(
    box=st.lists(st.floats(-1e4, 1e4), min_size=4, max_size=4),
    focal=st.floats(1, 1e7),
    centre=st.tuples(st.floats(-500, 700), st.floats(-500, 700)),
)
def test_any_box_and_camera_yield_a_pose_in_front_of_the_camera_or_one_error(
    box: list[float], focal: float, centre: tuple[float, float]
) -> None:
    matrix = np.array([[focal, 0, centre[0]], [0, focal, centre[1]], [0, 0, 1]])
    for estimator in (hands(), frustum()):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                pose = estimator(IMAGE, matrix, box=box)
        except ValueError as error:
            if not any(word in str(error) for word in ("box", "K must")):
                raise
            continue
        assert not pose.valid or (np.isfinite(pose.joints).all() and (pose.joints[:, 2] > 0).all())


@given(
    K=ANYTHING | ARRAYS,
    size=ANYTHING,
    distortion=ANYTHING,
    model=st.sampled_from(["plumb_bob", "fisheye", 3]),
)
def test_any_camera_is_one_or_one_error(K: Any, size: Any, distortion: Any, model: Any) -> None:
    for arguments in (
        (K, (160, 120)),
        (globals()["K"], size),
        (globals()["K"], (160, 120), distortion, model),
    ):
        try:
            camera = Camera(*arguments)
        except (ValueError, TypeError) as error:
            if not any(
                word in str(error) for word in ("K must", "size must", "distortion", "model must", "tilted")
            ):
                raise
        else:
            assert Camera(**camera.to_dict()) == camera


@given(ratio=ANYTHING | ARRAYS)
def test_any_ratio_scales_a_pose_or_is_one_error(ratio: Any) -> None:
    try:
        pose = guided_pose().scaled(ratio)
    except (ValueError, TypeError) as error:
        if "ratio must be" not in str(error):
            raise
        return
    assert pose.joints.shape == (21, 3) and np.isfinite(pose.joints).all()


SCORES = [
    metrics.mpjpe, metrics.pa_mpjpe, metrics.translation_error, metrics.depth_error,
    metrics.camera_space_scores, metrics.root_relative_scores, metrics.freihand_scores, metrics.ho3d_scores,
    metrics.procrustes_align, metrics.rigid_align, metrics.root_align, metrics.scale_translation_align,
]  # fmt: skip


@given(score=st.sampled_from(SCORES), value=ANYTHING | ARRAYS)
def test_any_poses_have_scores_or_are_one_error(score: Any, value: Any) -> None:
    truth = np.random.default_rng(0).normal([0, 0, 500], 50, (2, 21, 3))
    for arguments in ((value, truth), (truth, value), (value, value)):
        try:
            score(*arguments)
        except (ValueError, TypeError) as error:
            words = ("predicted", "truth", "poses must", "root must", "largest true hand")
            if not any(word in str(error) for word in words):
                raise


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda pose: metrics.f_score(pose[0], pose[0], NAN), "threshold_mm must be"),
        (lambda pose: metrics.f_score(pose[0], pose[0], -1.0), "threshold_mm must be"),
        (lambda pose: metrics.root_align(pose, pose, 21), "root must be"),
        (lambda pose: metrics.root_align(pose, pose, -22), "root must be"),
        (lambda pose: metrics.scale_translation_align(pose, pose, (0, 40)), "root must be|bone must be"),
        (lambda pose: metrics.mpjpe(pose.astype(str), pose), "predicted must be numbers"),
        (lambda pose: metrics.mpjpe(pose, pose.astype(complex)), "truth must be numbers"),
    ],
)
def test_metrics_refuse(call: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        call(np.random.default_rng(0).normal([0, 0, 500], 50, (2, 21, 3)))
