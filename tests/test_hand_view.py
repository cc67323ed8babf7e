"""Hand views: the virtual camera rotated and zoomed to a box, and poses of the unit hand in it."""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nvf_fast.camera import network_view, project, view_intrinsics
from nvf_fast.camera_model import Camera
from nvf_fast.checkpoint import save_checkpoint
from nvf_fast.data.sample import HandSample
from nvf_fast.estimator import PoseEstimator, load
from nvf_fast.evaluation.predictors import NetworkPredictor
from nvf_fast.finding import FoundHands
from nvf_fast.joint_definitions import UNIT_SCALE_MM
from nvf_fast.kernels.cast_votes.reference import cast_votes
from nvf_fast.model import NVF
from nvf_fast.pose import HandPose
from nvf_fast.volumes import HAND_VIEW_FILL, HandVolume
from tests.fixed_sizes import with_fixed_sizes
from tests.hand_cases import LEFT, PRESENCE, hand_network

HEIGHT, WIDTH = 240, 324
K = np.array([[400.0, 0, 150.5], [0, 410.0, 118.0], [0, 0, 1]])
BOX = (60.0, 70.0, 170.0, 160.0)


@pytest.fixture
def model() -> NVF:
    return hand_network()


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    """Smooth noise, to limit resampling errors."""
    noise = torch.rand(1, 3, HEIGHT // 12, WIDTH // 12, generator=torch.Generator().manual_seed(1))
    smooth = torch.nn.functional.interpolate(noise, (HEIGHT, WIDTH), mode="bicubic").clamp(0, 1)
    return (smooth[0].permute(1, 2, 0) * 255).to(torch.uint8).numpy()


def smooth(model: NVF) -> PoseEstimator:
    """Return an estimator in which every point votes, so that rounding crosses no threshold."""
    return PoseEstimator(model, surface_mm=math.inf, fraction=1.0)


def placed(box: tuple[float, ...], intrinsics: np.ndarray = K, left: bool = False) -> Any:
    boxes = torch.tensor([box], dtype=torch.float64)
    return HandVolume().place(torch.from_numpy(intrinsics)[None], 128, torch.tensor([left]), boxes=boxes)


def spot(view: Tensor) -> Tensor:
    """Return the brightness centroid (x, y) px of a view (3, S, S)."""
    brightness = (view.double() + 1).sum(0)
    axis = torch.arange(len(brightness), dtype=torch.float64)
    return torch.stack([brightness.sum(0) @ axis, brightness.sum(1) @ axis]) / brightness.sum()


@pytest.mark.parametrize("left", [False, True])
def test_box_corners_lie_at_three_quarters_of_the_view(left: bool) -> None:
    square = np.array([[500.0, 0, 160], [0, 500.0, 120], [0, 0, 1]])
    box = (100.0, 75.0, 220.0, 165.0)  # around the optical axis, without distortion
    homography, slope = placed(box, square, left).homographies[0], placed(box, square, left).slopes[0]
    assert slope.item() == pytest.approx(60 / 500 / HAND_VIEW_FILL)
    for x, across in ((100, -1), (220, 1)):
        for y, down in ((75, -1), (165, 1)):
            marked = torch.zeros(HEIGHT, WIDTH, 3, dtype=torch.uint8)
            marked[y - 1 : y + 2, x - 1 : x + 2] = 255
            uv = spot(network_view(marked, homography, 128)[0]) / 64 - 1
            expected = torch.tensor([(-across if left else across) * 0.75, down * 0.75 * 90 / 120])
            torch.testing.assert_close(uv.float(), expected, rtol=0, atol=0.005)  # a third of a pixel


@pytest.mark.parametrize("box", [BOX, (-40.0, 150.0, 60.0, 230.0), (200.0, 10.0, 320.0, 235.0)])
def test_view_is_centred_on_the_box_and_fits_its_longer_side(box: tuple) -> None:
    placement = placed(box)
    frame = placement.frames[0]
    torch.testing.assert_close(frame @ frame.mT, torch.eye(3, dtype=torch.float64))
    box_centre = (np.array(box[:2]) + box[2:]) / 2
    half = (np.array(box[2:]) - box[:2]) / 2
    pixels = [
        box_centre,
        box_centre - [half[0], 0],
        box_centre + [half[0], 0],
        box_centre - [0, half[1]],
        box_centre + [0, half[1]],
    ]
    projected = torch.tensor(np.array([[*pixel, 1] for pixel in pixels])) @ placement.homographies[0].mT
    centre, *ends = projected[:, :2] / projected[:, 2:]
    torch.testing.assert_close(centre, torch.full((2,), 64.0, dtype=torch.float64))
    spans = [float((ends[1] - ends[0]).norm()), float((ends[3] - ends[2]).norm())]
    assert max(spans) == pytest.approx(96)
    # A point in the camera's frame appears where the virtual camera projects it.
    point = torch.tensor([[25.0, 30.0, 480.0]], dtype=torch.float64)
    pixel = torch.cat([project(point, torch.from_numpy(K)), torch.ones(1, 1)], 1)
    projected = placement.homographies[0] @ pixel[0]
    expected = project(point @ frame.mT, view_intrinsics(placement.slopes, 128)[0])
    torch.testing.assert_close(projected[:2] / projected[2], expected[0])


def test_query_points_are_regular_in_the_view_and_in_depth() -> None:
    lattice = HandVolume().lattice(16.0)
    assert len(lattice) == 14**3
    depths_of_centres, slopes = torch.tensor([300.0, 700.0]), torch.tensor([0.3, 0.12])
    points = lattice.points(depths_of_centres, slopes)
    assert points.shape == (2, 14**3, 3)
    depths = points[..., 2] - depths_of_centres[:, None]
    assert depths.abs().max().item() == pytest.approx(104, abs=1e-3)
    pixels = project(points, view_intrinsics(slopes, 128))
    torch.testing.assert_close(pixels[0], pixels[1], rtol=0, atol=1e-3)  # the same texels for every hand
    across = pixels[0].round(decimals=2).unique()
    torch.testing.assert_close(across, 128 * (torch.arange(14) + 0.5) / 14, rtol=0, atol=0.01)
    assert pixels[0, :: lattice.per_ray].diff(dim=0)[0, 0] > 9, "along a row of the view first"
    depths = HandVolume().lattice(15.0).depths.unique()  # 15 points, which 224 mm do not fit exactly
    torch.testing.assert_close(depths.diff(), torch.full((14,), 15.0))
    for step in (0.0, math.nan, 1.0, 500.0):
        with pytest.raises(ValueError, match="step_mm must be"):
            HandVolume().lattice(step)


def test_pose_combines_coarse_joints_with_votes(model: NVF, image: np.ndarray) -> None:
    estimator = PoseEstimator(model, surface_mm=3.0)
    pose = estimator(image, K, box=BOX, side="right", return_votes=True)
    folded = model.for_inference()
    placement = placed(BOX)
    slopes = placement.slopes.float()
    with torch.no_grad():
        encoding = folded.encode_hands(
            network_view(torch.from_numpy(image), placement.homographies[0], 128), slopes
        )
        coarse = encoding.joints(slopes)
        points = HandVolume().lattice(16.0).points(coarse[:, :, 2].mean(1), slopes)
        field = folded.query(encoding.features, points, view_intrinsics(slopes, 128), coarse=coarse)
        voting = field.sdf[0].abs() < 3.0
        votes = torch.cat([field.weight[..., None], field.direction], -1)[:, voting]
        count = int(voting.sum())
        voted, *_ = cast_votes(points[:, voting], votes, torch.tensor([count]), fraction=0.5)
        assert folded.heads is not None
        joints = folded.heads.combine(coarse, voted)
    assert pose.valid and 20 < count < 2744 and pose.voters == count and pose.points_evaluated == 2744
    frame = placement.frames[0]
    np.testing.assert_allclose(pose.joints, joints[0].double() @ frame, rtol=0, atol=2e-3)
    pixels = project(torch.from_numpy(pose.joints), torch.from_numpy(K).float())
    np.testing.assert_allclose(pose.joints_2d, pixels, rtol=0, atol=1e-3)
    np.testing.assert_allclose(pose.expected_error, encoding.error[0], rtol=1e-4)
    np.testing.assert_allclose(pose.scores, 1 / (1 + (pose.expected_error / 20) ** 2), rtol=1e-5)
    np.testing.assert_allclose(pose.votes.points, points[0, voting].double() @ frame, rtol=0, atol=1e-3)
    assert pose.side == "right" and pose.box.tolist() == list(BOX)
    without = PoseEstimator(model, surface_mm=1e-6)(image, K, box=BOX, side="right")
    assert without.voters == 0 and without.valid
    np.testing.assert_allclose(without.joints, coarse[0].double() @ frame, rtol=0, atol=2e-3)


def test_pose_does_not_depend_on_crop_or_resolution(model: NVF, image: np.ndarray) -> None:
    """The same scene under another camera of the same centre and direction gives the same view."""
    estimator = smooth(model)
    pose = estimator(image, K, box=BOX, side="right")
    shift = np.array([[1.0, 0, -13], [0, 1, -21], [0, 0, 1]])
    box = np.array(BOX) - [13, 21, 13, 21]
    cropped = estimator(np.ascontiguousarray(image[21:, 13:]), shift @ K, box=box, side="right")
    np.testing.assert_allclose(cropped.joints, pose.joints, rtol=0, atol=2e-3)
    np.testing.assert_allclose(cropped.joints_2d, pose.joints_2d - [13, 21], rtol=0, atol=1e-2)
    # Each pixel is repeated three times along both axes: copies of pixel u are centred at 3 u + 1.
    finer = np.array([[3.0, 0, 1], [0, 3, 1], [0, 0, 1]])
    fine_box = 3 * np.array(BOX) + 1
    fine = estimator(image.repeat(3, 0).repeat(3, 1), finer @ K, box=fine_box, side="right")
    np.testing.assert_allclose(fine.joints, pose.joints, rtol=0, atol=2e-3)  # 6e-5 mm measured


def mirror_of(image: np.ndarray, box: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
    """Mirror an image, its intrinsics and a box."""
    intrinsics = K.copy()
    intrinsics[0, 2] = WIDTH - 1 - K[0, 2]
    x0, y0, x1, y1 = box
    return np.ascontiguousarray(image[:, ::-1]), intrinsics, (WIDTH - 1 - x1, y0, WIDTH - 1 - x0, y1)


def test_left_hand_equals_the_mirrored_right_hand(model: NVF, image: np.ndarray) -> None:
    estimator = smooth(model)
    right = estimator(image, K, box=BOX, side="right", return_votes=True)
    mirrored, intrinsics, box = mirror_of(image, BOX)
    left = estimator(mirrored, intrinsics, box=box, side="left", return_votes=True)
    turn = np.array([-1.0, 1, 1])
    assert (right.side, left.side) == ("right", "left") and left.voters == right.voters
    # 1.8e-4 mm measured, at 400 mm.
    np.testing.assert_allclose(left.joints * turn, right.joints, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(left.expected_error, right.expected_error, rtol=1e-4)
    np.testing.assert_allclose(left.votes.points * turn, right.votes.points, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("on_cuda", [False, True], ids=["read back", "chosen on the device"])
@pytest.mark.parametrize("sign", [-1, 1])
def test_predicts_an_unknown_side(model: NVF, image: np.ndarray, sign: int, on_cuda: bool) -> None:
    with torch.no_grad():
        model.heads.view.weight[LEFT] *= sign
        model.heads.view.bias[LEFT] = 5.0  # equal in both views, so without effect on the side
    estimator = smooth(model)
    given = {side: estimator(image, K, box=BOX, side=side, return_votes=True) for side in ("right", "left")}
    if on_cuda:
        estimator = with_fixed_sizes(estimator)
    mirrored, intrinsics, box = mirror_of(image, BOX)
    sides = []
    for votes in (False, True):
        predicted = estimator(image, K, box=BOX, return_votes=votes)
        other = estimator(mirrored, intrinsics, box=box, return_votes=votes)
        sides.append(predicted.side)
        assert predicted.valid and {predicted.side, other.side} == {"right", "left"}
        # 6e-5 mm measured: the mirrored view has another crop.
        expected = given[predicted.side]
        np.testing.assert_allclose(predicted.joints, expected.joints, rtol=0, atol=2e-3)
        np.testing.assert_allclose(predicted.joints_2d, expected.joints_2d, rtol=0, atol=2e-3)
        np.testing.assert_allclose(other.joints * [-1, 1, 1], expected.joints, rtol=0, atol=2e-3)
    np.testing.assert_allclose(predicted.votes.directions, expected.votes.directions, atol=1e-4)
    with torch.no_grad():
        model.heads.view.weight[LEFT] *= -1
    assert {smooth(model)(image, K, box=BOX).side, *sides} == {"right", "left"}


def test_hand_scale_multiplies_exactly(model: NVF, image: np.ndarray) -> None:
    estimator = smooth(model)
    unit = estimator(image, K, box=BOX, side="left", return_votes=True)
    for scale in (UNIT_SCALE_MM, 20.0, 43.5):
        pose = estimator(image, K, scale, box=BOX, side="left", return_votes=True)
        ratio = scale / UNIT_SCALE_MM
        for name in ("joints", "expected_error"):
            np.testing.assert_allclose(getattr(pose, name), getattr(unit, name) * ratio, rtol=1e-6)
        np.testing.assert_array_equal(pose.joints_2d, unit.joints_2d)
        np.testing.assert_allclose(pose.votes.points, unit.votes.points * ratio, rtol=1e-6)
        np.testing.assert_allclose(pose.scores, 1 / (1 + (pose.expected_error / 20) ** 2), rtol=1e-5)
        lands = [
            each.points[:, None] + 80 * (1 - each.weights[..., None]) * each.directions * factor
            for each, factor in ((pose.votes, 1), (unit.votes, 1))
        ]
        np.testing.assert_allclose(lands[0], lands[1] * ratio, rtol=1e-4, atol=1e-3)
    with pytest.raises(ValueError, match=r"10 to 60 mm, got 0.03"):
        estimator(image, K, 0.03, box=BOX)


def test_batch_equals_single_images(model: NVF, image: np.ndarray) -> None:
    estimator = smooth(model)
    boxes = np.array([BOX, (100, 40, 220, 150), (0, 0, 60, 80), (150, 100, 300, 239)])
    images = [image, image[:200], image, image[:, :310]]
    sides = ["right", None, "left", None]
    scales = [30.0, 35.0, 25.0, UNIT_SCALE_MM]
    together = estimator(images, K, scales, boxes, sides)
    assert len(together) == 4 and together.side[::2] == ("right", "left")
    assert together.box.shape == (4, 4) and together.expected_error.shape == (4, 21)
    for i, pose in enumerate(together):
        alone = estimator(images[i], K, scales[i], boxes[i], sides[i])
        assert alone.side == pose.side and alone.valid and pose.valid
        np.testing.assert_allclose(pose.joints, alone.joints, rtol=0, atol=0.01)
        np.testing.assert_allclose(pose.expected_error, alone.expected_error, rtol=0, atol=0.01)
    tensors = estimator([torch.from_numpy(each) for each in images], K, scales, torch.tensor(boxes), sides)
    assert isinstance(tensors.joints, Tensor) and isinstance(tensors.expected_error, Tensor)
    assert isinstance(together.joints, np.ndarray) and isinstance(together.box, np.ndarray)
    np.testing.assert_array_equal(tensors.joints, together.joints)
    assert tensors.side == together.side and tensors[2].side == "left"


def test_poses_are_differentiable_inputs(model: NVF, image: np.ndarray) -> None:
    estimator, tensor = smooth(model), torch.from_numpy(image)
    pose = estimator(tensor, K, box=BOX, return_votes=True)
    for part in (pose.joints, pose.scores, pose.box, pose.votes.points, estimator.find(tensor, K, 0.0).boxes):
        factor = torch.tensor(2.0, requires_grad=True)
        (part * factor).square().sum().backward()
        assert factor.grad is not None and factor.grad > 0


def test_pose_is_invalid_below_the_presence_threshold(model: NVF, image: np.ndarray) -> None:
    with torch.no_grad():
        model.heads.view.weight[PRESENCE] = 0.0
        model.heads.view.bias[PRESENCE] = math.log(0.6 / 0.4)
    presence = float(PoseEstimator(model)(image, K, box=BOX, side="right").presence)
    for threshold, valid in ((0.59, True), (presence, True), (0.61, False)):
        model.config = replace(model.config, presence_threshold=threshold)
        pose = PoseEstimator(model)(image, K, box=BOX, side="right")
        assert pose.valid == valid == bool(np.isfinite(pose.joints).all()) == bool((pose.scores > 0).all())
        assert np.isnan(pose.joints_2d).all() == np.isnan(pose.expected_error).all() == (not valid)
        document = json.loads(json.dumps(pose.to_dict(), allow_nan=False))
        assert (document["expected_error"] is None) == (document["joints"] is None) == (not valid)
        assert document["side"] == "right" and document["box"] == list(BOX)
        assert document["hand_scale"] == pytest.approx(UNIT_SCALE_MM)


class Marked(PoseEstimator):
    """An estimator whose network detects bright red as hands of a third of 128 px in every view."""

    def __init__(self, model: NVF, presence: float = 8.0) -> None:
        super().__init__(model)
        assert isinstance(self.model, NVF)
        encoding = self.model.encode_hands

        def marked_encoding(images: Tensor, slopes: Tensor) -> Any:
            heads = encoding(images, slopes)
            spread = torch.linspace(-0.6, 0.6, 21)[:, None].expand(len(images), 21, 2)
            return heads._replace(presence=torch.full_like(heads.presence, presence), uv=spread)

        def marked_maps(images: Tensor, slopes: Tensor) -> Tensor:
            red = F.avg_pool2d((images[:, 0] - images[:, 1])[:, None], 4)[:, 0]  # 2 where it is bright red
            return torch.stack([4 * red - 4, torch.full_like(red, math.log(1 / 3)), red - 3], 1)

        self.model.encode_hands, self.model.hand_maps = marked_encoding, marked_maps  # type: ignore[method-assign]


def test_finds_and_poses_every_hand_without_a_box(model: NVF) -> None:
    estimator = Marked(model)
    image = np.zeros((240, 324, 3), np.uint8)
    assert len(estimator.find(image, K)) == 0
    empty = estimator(image, K)
    assert empty.joints.shape == (0, 21, 3) and empty.side == () and len(empty) == 0
    assert isinstance(estimator(torch.from_numpy(image), K).joints, torch.Tensor)

    image[100:116, 60:76, 0] = 255
    image[40:56, 250:266, 0] = 255
    found = estimator.find(image, K)
    assert len(found) == 2 and found.sides == ("right", "right") and (np.diff(found.scores) <= 0).all()
    centres = sorted(((found.boxes[:, :2] + found.boxes[:, 2:]) / 2).tolist())
    # A texel of the coarsest view covers 15 px of the image.
    np.testing.assert_allclose(centres, [[67.5, 107.5], [257.5, 47.5]], atol=10)

    pose = estimator(image, K)
    assert len(pose) == len(pose.side) == len(pose.box) > 0 and pose.valid.all()
    given = estimator([image] * len(pose), np.stack([K] * len(pose)), box=pose.box, side=list(pose.side))
    np.testing.assert_allclose(given.joints, pose.joints, atol=1e-3)
    assert set(estimator(image, K, side="left").side) == {"left"}


def test_takes_found_hands_as_boxes(model: NVF, image: np.ndarray) -> None:
    estimator = smooth(model)
    boxes = np.array([BOX, (100, 40, 220, 150)], np.float32)
    found = FoundHands(boxes, ("left", None), np.ones(2, np.float32))
    expected = estimator(image, K, 30.0, boxes, ["left", None])
    for pose in (
        estimator(image, K, 30.0, found),
        estimator.submit(image, K, 30.0, found).result(),
        estimator([image, image], K, 30.0, [found, FoundHands(boxes[:0], (), np.ones(0))]),
    ):
        np.testing.assert_array_equal(pose.joints, expected.joints)
        assert pose.side == expected.side
    assert estimator(image, K, box=found, side="right").side == ("right", "right")
    assert found == found and found != FoundHands(boxes, ("left", None), np.ones(2, np.float32))
    assert found in {found}
    with pytest.raises(ValueError, match=r"for each of 2 images, got shape \[\(2, 4\)\]"):
        estimator([image, image], K, 30.0, found)  # two hands of one image
    with pytest.raises(ValueError, match="for each of 2 images"):
        estimator([image, image], K, box=[found])


def test_poses_of_several_boxes_and_images(model: NVF, image: np.ndarray) -> None:
    """A ragged list of boxes yields the poses of single calls, in its order."""
    estimator, other = smooth(model), np.ascontiguousarray(image[::-1, ::-1])
    boxes = np.array([BOX, (100, 40, 220, 150), (20, 30, 90, 120)])
    expected = [
        estimator(each, K, scale, box, side)
        for each, scale, box, side in zip(
            (image, image, other), (30.0, 31.0, 32.0), boxes, ("left", None, "right"), strict=True
        )
    ]
    ragged = estimator(
        [image, image[:0:-1], other],
        K,
        [30.0, 31.0, 32.0],
        [boxes[:2], [], boxes[2]],
        ["left", None, "right"],
    )
    assert ragged.image_index.tolist() == [0, 0, 2]
    assert ragged.side == tuple(pose.side for pose in expected)
    for pose, single in zip(ragged, expected, strict=True):
        assert single.image_index == 0
        # 1e-3: batches are summed in another order, measured 2e-4.
        np.testing.assert_allclose(pose.joints, single.joints, rtol=0, atol=1e-3)
        np.testing.assert_array_equal(pose.box, single.box)
    together = estimator(torch.from_numpy(image), K, [30.0, 31.0], boxes[:2], ["left", None])
    assert isinstance(together.image_index, torch.Tensor) and together.image_index.tolist() == [0, 0]
    np.testing.assert_allclose(together.joints, ragged.joints[:2], rtol=0, atol=1e-3)
    assert len(estimator(image, K, box=boxes[:1])) == 1, "a batch of one"
    assert len(estimator(image, K, box=[], side=[])) == 0
    none = estimator([image, image], K, box=[[], np.zeros((0, 4))], return_votes=True)
    assert len(none) == 0 and none.votes == () and none.image_index.shape == (0,)
    for count, argument in ((3, {"side": ["left"] * 2}), (2, {"hand_scale": [30.0] * 3})):
        with pytest.raises(ValueError, match=f"{count}"):
            estimator([image, other], K, box=[boxes[:count], []], **argument)


def test_finds_the_hands_of_several_images(model: NVF) -> None:
    estimator = Marked(model)
    images = np.zeros((3, 240, 324, 3), np.uint8)
    images[0, 100:116, 60:76, 0] = images[2, 40:56, 250:266, 0] = images[2, 180:196, 30:46, 0] = 255
    alone = [estimator(image, K, 30.0) for image in images]
    pose = estimator(images, np.stack([K] * 3), [30.0] * 3)
    assert pose.image_index.tolist() == [0] * len(alone[0]) + [2] * len(alone[2])
    assert len(alone[0]) > 0 and len(alone[1]) == 0 and len(alone[2]) > 0
    np.testing.assert_allclose(pose.box[pose.image_index == 2], alone[2].box, rtol=0, atol=1e-3)
    sides = estimator(images, K, side=["left", None, "right"])
    assert {*zip(sides.image_index.tolist(), sides.side, strict=True)} == {(0, "left"), (2, "right")}


@pytest.mark.parametrize("form", ["boxes", "sides", "scores", "found"])
def test_takes_the_boxes_of_a_detector(model: NVF, form: str) -> None:
    estimator = Marked(model)
    images = np.zeros((2, 240, 324, 3), np.uint8)
    images[1, 100:116, 60:76, 0] = 255
    seen = []

    def detector(image: np.ndarray) -> Any:
        seen.append(image)
        boxes = [[40, 80, 100, 140], [42, 80, 100, 140], [900, 0, 950, 60]] if image.any() else []
        if form == "boxes":
            return boxes
        sides, scores = ["left", "right", None][: len(boxes)], [0.9, 0.5, 1.0][: len(boxes)]
        if form == "found":
            return FoundHands(np.reshape(boxes, (-1, 4)), tuple(sides), np.array(scores))
        return (boxes, sides) if form == "sides" else (boxes, sides, scores)

    pose = estimator(images, K, box=detector)
    assert len(seen) == 2 and (seen[0] == images[0]).all()
    # One box is outside the image, two are the same hand's.
    assert pose.image_index.tolist() == [1] and pose.valid.all()
    if form != "boxes":
        assert pose.side == ("left",), "that of the box with the highest score"
    assert estimator(images[1], K, side="right", box=detector).side == ("right",)
    assert len(estimator(images[0], K, box=detector)) == 0


def test_a_warning_reports_the_boxes_of_a_detector_that_are_not_used(model: NVF) -> None:
    image = np.full((240, 324, 3), 255, np.uint8)
    corners = np.array([[x, y, x, y] for y in range(5, 200, 40) for x in range(5, 300, 40)])
    boxes = (corners + [0, 0, 30, 30])[:33]
    assert len(boxes) == 33
    estimator = PoseEstimator(model, min_presence=0)
    with pytest.warns(UserWarning, match="of 33 detected boxes the best 32 are used"):
        estimator(image, K, box=lambda image: boxes)
    estimator(image, K, box=lambda image: boxes[:32])


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ((), "detector given as box must return boxes, .* invalid result: a tuple of 0"),
        ([1, 2, 3], r"box must be \(x0, y0, x1, y1\) px, or \(N, 4\), got shape \(3,\)"),
        (([[10, 10, 60, 60]], ["up"]), '"right", "left" or None'),
        (([[10, 10, 60, 60]], ["left"], [2.0]), r"scores must be in \[0, 1\]"),
        (([[10, 10, 60, 60]], ["left"], [0.5, 0.5]), r"or \(1,\) for 1 box"),
    ],
)
def test_refuses_invalid_results_of_a_detector(
    model: NVF, image: np.ndarray, result: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        PoseEstimator(model)(image, K, box=lambda image: result)
    with pytest.raises(TypeError, match=r"detector given as box must return .* box must be .* got None"):
        PoseEstimator(model)(image, K, box=lambda image: None)


def test_finds_the_same_hands_at_higher_resolution(model: NVF) -> None:
    estimator = Marked(model)
    image = np.zeros((240, 324, 3), np.uint8)
    image[100:116, 60:76, 0] = image[40:56, 250:266, 0] = 255
    finer = image.repeat(4, 0).repeat(4, 1)
    finer_K = np.diag([4.0, 4.0, 1.0]) @ K
    finer_K[:2, 2] += 1.5  # copies of pixel u are centred at 4 u + 1.5
    found, again = estimator.find(image, K), estimator.find(finer, finer_K)
    assert len(found) == len(again) == 2
    centres, finer_centres = (
        np.sort((hands.boxes[:, :2] + hands.boxes[:, 2:]) / 2, axis=0) for hands in (found, again)
    )
    # The finer image is averaged over 3 x 3 px, which do not divide its 4 x 4 equal ones: measured up to
    # 3.5 px of 1296; a wrong factor would give 300.
    np.testing.assert_allclose(finer_centres, 4 * centres + 1.5, atol=8)


def test_finer_views_find_smaller_hands(model: NVF) -> None:
    estimator = Marked(model)
    image = np.zeros((720, 972, 3), np.uint8)
    image[303:318, 183:198, 0] = 255  # a few px: too dim in coarse views
    large_K = np.diag([3.0, 3.0, 1.0]) @ K
    assert len(estimator.find(image, large_K, score=0.6, smallest=0.1)) == 0
    (box,) = estimator.find(image, large_K, score=0.6, smallest=1 / 64).boxes
    np.testing.assert_allclose((box[:2] + box[2:]) / 2, [190, 310], atol=9)


def test_find_refuses_invalid_arguments(model: NVF, image: np.ndarray) -> None:
    estimator = PoseEstimator(model)
    with pytest.raises(ValueError, match="one image, got several"):
        estimator.find([image, image], K)
    with pytest.raises(ValueError, match=r"score must be in \[0, 1\]"):
        estimator.find(image, K, score=2)
    for smallest in (0, 1 / 65, 1.01, math.nan):
        with pytest.raises(ValueError, match=r"smallest must be 0.015625 to 1"):
            estimator.find(image, K, smallest=smallest)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"box": (10, 10, 10, 50)}, "at least 2 px larger"),
        ({"box": (200, 100, 90, 120)}, r"; \(x, y, width, height\) is \(x, y, x \+ width,"),
        ({"box": (0, 0, 99999, 99999)}, r"touches no pixel .*: the box is 308.6 times as long as"),
        ({"box": (10, 10, math.inf, 50)}, "at least 2 px larger"),
        ({"box": (10, 10, math.nan, 50)}, "at least 2 px larger"),
        ({"box": (900, 10, 960, 50)}, r"touches no pixel of image 0, \(width, height\) \[324, 240\] px"),
        ({"box": (1e7, 10, 1e7 + 60, 50)}, "touches no pixel of image 0"),
        ({"box": (10, -500, 50, -450)}, "touches no pixel of image 0"),
        ({"box": (-1e5, -1e5, 1e5, 1e5)}, "needs a view of .* views have at most 150 degrees"),
        ({"box": (-1e5, 10, 200, 50)}, "needs a view of 180 degrees or more, but views have at most 150"),
        ({"root": (0, 0, 500)}, "root must be None"),
        ({"side": "Right"}, '"right", "left" or None'),
        ({"root": (0, 0, 500), "box": lambda image: [BOX]}, "root must be None"),
        ({"previous": "itself"}, "box and previous both place a hand view"),
        ({"previous": "itself", "box": lambda image: [BOX]}, "box and previous both place a hand view"),
    ],
)  # fmt: skip
def test_refuses_invalid_boxes_and_arguments(
    model: NVF, image: np.ndarray, arguments: dict[str, Any], message: str
) -> None:
    estimator = PoseEstimator(model, step_mm=56.0)
    if "previous" in arguments:
        arguments = arguments | {"previous": estimator(image, K, box=BOX)}
    with pytest.raises(ValueError, match=message):
        estimator(image, K, **{"box": BOX, **arguments})


def test_boxes_far_larger_than_the_image_are_reported(model: NVF, image: np.ndarray) -> None:
    with pytest.warns(UserWarning, match=r"of image 0 is 4.2 times as long as the image, but surrounds one"):
        PoseEstimator(model, step_mm=56.0)(image, K, box=(-520, -560, 840, 800))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PoseEstimator(model, step_mm=56.0)(image, K, box=(-300, -340, 620, 580))


def test_previous_pose_places_the_hand_view(model: NVF, image: np.ndarray) -> None:
    estimator = PoseEstimator(model, step_mm=56.0)
    before = estimator([image, image], K, [30.0, 35.0], [BOX, (100, 40, 220, 150)], ["right", "left"])
    boxes = np.concatenate([before.joints_2d.min(1), before.joints_2d.max(1)], 1)
    pose = estimator([image, image], K, 31.0, side=before.side, previous=before)
    expected = estimator([image, image], K, 31.0, boxes, before.side)
    np.testing.assert_allclose(pose.box, boxes, rtol=0, atol=1e-3)
    np.testing.assert_allclose(pose.joints, expected.joints, rtol=0, atol=1e-2)
    alone = estimator(image, K, 31.0, side="left", previous=before[1])
    np.testing.assert_allclose(alone.joints, pose.joints[1], rtol=0, atol=1e-2)
    both = estimator(image, K, 31.0, side=before.side, previous=before)
    np.testing.assert_allclose(both.joints, pose.joints, rtol=0, atol=1e-2)
    assert both.image_index.tolist() == [0, 0]
    with pytest.raises(ValueError, match=r"poses of 2 images, got poses of images \[0, 2\]"):
        estimator([image, image], K, previous=replace(before, image_index=np.array([0, 2])))
    with pytest.raises(ValueError, match="one pose for each of 2 images, got 1"):
        estimator([image, image], K, previous=before[1])
    with pytest.raises(TypeError, match="previous must be a HandPose"):
        estimator(image, K, previous=before.joints)
    lost = replace(before, joints=np.stack([before.joints[0], np.full((21, 3), np.nan)]))
    with pytest.raises(ValueError, match=r"pose\(s\) \[1\] are not; give a box instead"):
        estimator([image, image], K, previous=lost)


def test_accepts_views_that_touch_the_image(model: NVF, image: np.ndarray) -> None:
    estimator = PoseEstimator(model, step_mm=56.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for box in ((-60, 10, 5, 70), (320, 235, 400, 330), (-400, -300, 800, 600)):
            assert np.isfinite(estimator(image, K, box=box, side="left").joints).all()


def test_refuses_other_searches(model: NVF) -> None:
    for search in ("octree", "guided"):
        with pytest.raises(ValueError, match='search must be "dense" for a network of hand views'):
            PoseEstimator(model, search=search)  # type: ignore[arg-type]


def test_load_and_evaluation_support_hand_views(model: NVF, image: np.ndarray, tmp_path: Path) -> None:
    save_checkpoint(model, tmp_path, {}, dtype=torch.float32)
    estimator = load(tmp_path, device="cpu")
    samples = [
        HandSample("a", image, K, hand_scale=30.0, side="left", box=torch.tensor(BOX)),
        HandSample("b", image, K, hand_scale=35.0),
    ]
    predictor = NetworkPredictor(estimator)
    assert predictor.scale_choices == (True, False)
    found = predictor(samples, use_scale=True)
    alone = PoseEstimator(model)(image, K, 30.0, BOX, "left")
    np.testing.assert_allclose(found.joints[0], alone.joints, rtol=0, atol=0.01)
    assert found.valid.all()


def test_measures_stages(model: NVF, image: np.ndarray) -> None:
    estimator = PoseEstimator(model)
    with estimator.timed() as milliseconds:
        pose: HandPose = estimator(image, K, box=BOX)
    assert pose.valid
    assert list(milliseconds) == ["prepare", "remap", "encode", "query", "select", "vote", "read"]


@pytest.mark.parametrize("recorded", [False, True])
def test_submitted_poses_are_those_of_calls(model: NVF, image: np.ndarray, recorded: bool) -> None:
    """More poses are pending than slots exist, of several crops and batches, read in another order."""
    estimator = PoseEstimator(model)
    calls: list[tuple[Any, Any, Any]] = [
        (image, BOX, "right"),
        (image[::-1, ::-1], np.array(BOX) * 0.7, None),
        ([image, image], [BOX, np.array(BOX) + 3], ["left", None]),
        (image, BOX, "left"),
        (torch.from_numpy(image), BOX, "right"),
    ]
    expected = [estimator(each, K, box=box, side=side) for each, box, side in calls]
    estimator = with_fixed_sizes(estimator) if recorded else estimator
    pending = [estimator.submit(each, K, box=box, side=side) for each, box, side in calls]
    for index in (4, 0, 2, 1, 3, 0):
        pose, alone = pending[index].result(), expected[index]
        np.testing.assert_array_equal(pose.numpy().joints, alone.numpy().joints)
        assert pose.side == alone.side and type(pose.joints) is type(alone.joints)
    assert not np.array_equal(expected[0].joints, expected[3].joints), "the calls differ"
    with pytest.raises(ValueError, match="submit needs a box or a previous pose"):
        estimator.submit(image, K)


def test_graphs_are_keyed_by_the_number_of_images(model: NVF, image: np.ndarray) -> None:
    estimator = with_fixed_sizes(PoseEstimator(model))
    usual, graphed = PoseEstimator(model), estimator.runner.graphed
    assert graphed is not None
    camera = Camera(np.array(K), image.shape[1::-1], (0.1, -0.05, 0.0, 0.0))
    for box in (BOX, np.array(BOX) / 2, np.array(BOX) + 9):
        for view in (K, camera):
            found = estimator(image, view, box=box, side="right")
            np.testing.assert_array_equal(found.joints, usual(image, view, box=box, side="right").joints)
    assert graphed.captures == 1, "crops, averages and lenses differ, the graph is one"
    fine = image.repeat(10, 0).repeat(10, 1)  # needs more memory than the first
    scale = np.diag([10, 10, 1.0])
    found = estimator(fine, scale @ K, box=np.array(BOX) * 10, side="right")
    other = usual(fine, scale @ K, box=np.array(BOX) * 10, side="right")
    np.testing.assert_array_equal(found.joints, other.joints)
    assert graphed.captures == 2


def test_requests_are_kept_where_camera_and_box_stay(model: NVF, image: np.ndarray) -> None:
    estimator = PoseEstimator(model)
    box, intrinsics = np.array(BOX, dtype=np.float64), np.array(K, dtype=np.float64)
    first = estimator(image, intrinsics, box=box, side="right")
    placed = HandVolume.place
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HandVolume, "place", lambda *a, **k: pytest.fail("placed again"))
        again = estimator(image.copy(), intrinsics.copy(), box=box.copy(), side="right")
        np.testing.assert_array_equal(again.joints, first.joints)
        again.box[:] = again.joints[:] = 0.0  # results are the caller's own
        np.testing.assert_array_equal(estimator(image, intrinsics, box=box, side="right").box, first.box)
    assert HandVolume.place is placed
    box += 5.0  # the caller's array changes
    moved = estimator(image, intrinsics, box=box, side="right")
    np.testing.assert_array_equal(moved.joints, PoseEstimator(model)(image, K, box=box, side="right").joints)
    assert not np.array_equal(moved.joints, first.joints)


def test_cameras_are_kept_between_boxes_until_they_change(model: NVF, image: np.ndarray) -> None:
    estimator = PoseEstimator(model)
    intrinsics = np.array(K, dtype=np.float64)
    estimator(image, intrinsics, box=BOX, side="right")
    moved, larger = (np.array(BOX) + shift for shift in (3.0, 6.0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nvf_fast.requests.read_cameras", lambda *_: pytest.fail("read again"))
        estimator(image, intrinsics.copy(), box=moved, side="right")
    intrinsics[0, 0] *= 1.2  # the caller's array changes
    changed = estimator(image, intrinsics, box=larger, side="right")
    fresh = PoseEstimator(model)(image, intrinsics, box=larger, side="right")
    np.testing.assert_array_equal(changed.joints, fresh.joints)
    with pytest.raises(ValueError, match="K must"):  # the same matrix of another image
        estimator(image.repeat(30, 0).repeat(30, 1), intrinsics, box=larger, side="right")


@pytest.mark.parametrize("name", ["image", "K", "box", "depth"])
def test_refuses_tensors_without_values(name: str) -> None:
    arguments = {
        "image": torch.zeros(60, 80, 3, dtype=torch.uint8),
        "K": torch.tensor([[80.0, 0, 39.5], [0, 80, 29.5], [0, 0, 1]]),
        "box": torch.tensor([20.0, 10, 60, 50]),
        "depth": torch.full((60, 80), 300.0),
    }
    estimator = PoseEstimator(hand_network())
    assert estimator(**arguments).joints.shape == (21, 3)
    for tensor in (arguments[name].to("meta"), arguments[name].to_sparse()):
        with pytest.raises(TypeError, match=f"{name} must be a dense tensor with values, got a torch"):
            estimator(**{**arguments, name: tensor})
