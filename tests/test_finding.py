"""Hand detection: views of whole images, peaks of maps, and one box per hand."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import nvf_fast
from nvf_fast.estimator import PoseEstimator
from nvf_fast.finding import (
    CERTAIN_SIDE,
    COARSEST,
    SMALLEST,
    SMALLEST_PX,
    HandFinder,
    SizedView,
    distinct,
    finding_logits,
    read_peaks,
    sized_view,
    squared,
    view_sizes,
    viewable,
)
from nvf_fast.image_files import demo_image
from nvf_fast.inputs import read_cameras
from nvf_fast.joint_definitions import UNIT_SCALE_MM
from nvf_fast.model import NVF
from nvf_fast.runtime.profiling import Profiler
from tests.hand_cases import hand_network

SIZE = 128


@pytest.mark.parametrize("extent", [90, 256, 640, 4000])
@pytest.mark.parametrize("smallest", [1 / 64, 1 / 50, SMALLEST, 0.1, 1.0])
def test_every_hand_lies_whole_in_some_view(smallest: float, extent: int) -> None:
    sides = np.array(view_sizes(smallest, SIZE, extent))
    assert sides[0] <= max(extent, COARSEST * SIZE), "images are not enlarged"
    least = max(smallest, SMALLEST_PX / extent)
    for hand in np.geomspace(least, 1.5, 50):  # relative to the image's longer side
        shown = hand * sides
        assert ((shown >= 0.999 * SMALLEST_PX) & (shown <= SIZE)).any(), hand
    assert sides[-1] <= COARSEST * SIZE and (sides[:-1] > COARSEST * SIZE).all()


def test_presence_of_found_hands_weighs_their_evidence() -> None:
    model = nvf_fast.load(device="cpu").model
    image, K = demo_image()
    weights = (0.3, 0.2, -1.5, 6.0)
    model.config = replace(model.config, finding_weights=weights, finding_threshold=0.0)
    estimator = PoseEstimator(model)
    pose, evidence = estimator.proposals(image, K)
    logits = finding_logits(torch.from_numpy(evidence), weights).numpy()
    np.testing.assert_allclose(logits, evidence @ weights[:3] + weights[3])
    found = estimator(image, K)
    assert 2 <= len(found) <= len(pose) and evidence.shape == (len(pose), 3)
    for each in found:
        row = np.flatnonzero((pose.joints == each.joints).all((1, 2)))[0]
        assert each.presence == pytest.approx(1 / (1 + np.exp(-logits[row])), abs=1e-6)
        assert evidence[row, 2] == pytest.approx(np.log(each.expected_error.mean()), abs=1e-5)
    # A given hand scale multiplies expected errors in mm, not the evidence.
    larger = estimator(image, K, hand_scale=1.3 * UNIT_SCALE_MM)
    np.testing.assert_allclose(larger.presence, found.presence, atol=1e-6)
    least = float(np.sort(found.presence)[-2])
    model.config = replace(model.config, finding_threshold=least)
    assert len(PoseEstimator(model)(image, K)) == 2
    model.config = replace(model.config, finding_weights=(0.0, 0.0, 0.0, -20.0))
    assert len(PoseEstimator(model)(image, K)) == 0


def test_min_presence_replaces_the_threshold_of_the_network() -> None:
    model = nvf_fast.load(device="cpu").model
    image, K = demo_image()
    # Logits of about 0 for both hands.
    model.config = replace(model.config, finding_weights=(0.01, 0.01, 0.0, 0.0), finding_threshold=0.9)
    assert len(PoseEstimator(model)(image, K)) == 0
    found = PoseEstimator(model, min_presence=0.0)(image, K)
    assert len(found) == 2
    least = float(found.presence[0])
    estimator = pickle.loads(pickle.dumps(PoseEstimator(model, min_presence=least)))
    assert len(estimator(image, K)) == 1
    hands = estimator.find(image, K)
    kept = [PoseEstimator(model, min_presence=each)(image, K, box=lambda _: hands) for each in (None, 1.0)]
    assert len(kept[0]) == 2 and len(kept[1]) == 0
    for value, error in ((1.1, ValueError), (float("nan"), ValueError), ("high", TypeError)):
        with pytest.raises(error, match="min_presence must be"):
            PoseEstimator(model, min_presence=value)


@pytest.mark.parametrize("detector", [False, True])
def test_only_uncertain_sides_are_compared_with_the_mirror_image(
    detector: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, K = demo_image()
    estimator = nvf_fast.load(device="cpu")
    found = estimator.find(image, K)
    box = (lambda _: found.boxes[:2]) if detector else None
    encode, views = NVF.encode_views, list[int]()

    def encode_views(model: NVF, images: torch.Tensor, slopes: torch.Tensor) -> Any:
        views.append(len(images))
        return encode(model, images, slopes)

    monkeypatch.setattr(NVF, "encode_views", encode_views)
    poses = []
    for least, expected in ((0.0, 2), (CERTAIN_SIDE, 2), (math.inf, 4)):
        monkeypatch.setattr("nvf_fast.estimator.CERTAIN_SIDE", least)
        views.clear()
        poses.append(estimator(image, K, box=box))
        assert sum(views) == expected
    for pose in poses:
        assert pose.side == ("right", "left")
        np.testing.assert_allclose(pose.joints, poses[0].joints, atol=0.01)  # mm; the order of sums differs


def test_poses_only_distinct_candidates_with_evidence() -> None:
    model = nvf_fast.load(device="cpu").model
    image, K = demo_image()
    assert len(PoseEstimator(model).find(image, K)) > 2, "candidates"
    pose, evidence = PoseEstimator(model).proposals(image, K)
    boxes, scores = torch.from_numpy(pose.box), finding_logits(torch.from_numpy(evidence), (1, 1, -1, 0))
    assert len(pose) == 2 and len(distinct(boxes, scores)) == len(pose)
    # Logits of 0 of coarse poses, which are 6 below this threshold's 13.8.
    model.config = replace(model.config, finding_weights=(0.0, 0.0, 0.0, 0.0), finding_threshold=1.0)
    assert len(PoseEstimator(model).proposals(image, K)[0]) == 0


def test_proposals_need_a_network_that_finds_and_one_image() -> None:
    image, K = np.zeros((64, 96, 3), np.uint8), np.array([[90.0, 0, 48], [0, 90, 32], [0, 0, 1]])
    estimator = PoseEstimator(hand_network())
    with pytest.raises(ValueError, match="one image, got several"):
        estimator.proposals(np.stack([image, image]), K)
    pose, evidence = PoseEstimator(hand_network(), step_mm=56).proposals(image, K)
    assert evidence.shape == (len(pose), 3)


def test_boxes_in_a_large_image_are_those_of_a_smaller_one() -> None:
    estimator = nvf_fast.load(device="cpu")
    image, K = demo_image()
    expected = estimator.find(image, K)
    larger = np.array([[9.0, 0, 4], [0, 9, 4], [0, 0, 1]])  # 8640 px, of which every second is read
    found = estimator.find(image.repeat(9, 0).repeat(9, 1), larger @ K)
    assert found.sides[:2] == expected.sides[:2] == ("right", "left")
    # px; 0.25 measured.
    np.testing.assert_allclose((found.boxes[:2] - 4) / 9, expected.boxes[:2], atol=0.5)


@pytest.mark.parametrize("shape", [(1, 16384), (3, 40_000), (4096, 4096), (8191, 1), (8192, 2)])
def test_thinned_images_have_pixels(shape: tuple[int, int]) -> None:
    image = np.broadcast_to(np.uint8(90), (*shape, 3))
    K = np.array([[8e3, 0, shape[1] / 2], [0, 8e3, shape[0] / 2], [0, 0, 1]])
    found = PoseEstimator(hand_network(), step_mm=56).find(image, K, score=0.0)
    middles = (found.boxes[:, :2] + found.boxes[:, 2:]) / 2
    assert len(found) and np.isfinite(middles).all()


def test_views_cost_less_than_ten_close_views() -> None:
    """An image of 1280 x 720 px costs as much as 9.5 close views."""
    image = torch.zeros(720, 1280, 3, dtype=torch.uint8)
    sides = view_sizes(SMALLEST, SIZE, 1280)
    views = [sized_view(image, side, SIZE, torch.float32).pixels for side in sides]
    assert sum(view.numel() for view in views) <= 9.5 * 3 * SIZE**2


@pytest.mark.parametrize("shape", [(720, 1280), (480, 640), (640, 480), (3024, 4032), (200, 900), (90, 90)])
@pytest.mark.parametrize("longer", [85.3, 448.0])
def test_resized_view_pads_the_image_with_black(shape: tuple[int, int], longer: float) -> None:
    image = torch.full((*shape, 3), 51, dtype=torch.uint8)
    pixels, scale, corner = sized_view(image, longer, SIZE, torch.float32)
    assert min(pixels.shape[2:]) >= SIZE and all(side % 32 == 0 for side in pixels.shape[2:])
    columns, rows = (torch.tensor(shape[::-1]) / scale).round().int().tolist()
    assert max(columns, rows) == round(longer)
    left, top = corner.int().tolist()
    inside = pixels[:, :, top : top + rows, left : left + columns]
    assert (inside == 51 / 127.5 - 1).all()
    assert (pixels + 1).sum().item() == pytest.approx((inside + 1).sum().item(), rel=1e-5)


def maps_with(row: float, column: float, size: float, left: float) -> torch.Tensor:
    """Return maps (3, 32, 48) with one hand between texels."""
    down, across = torch.arange(32.0)[:, None], torch.arange(48.0)
    distance = (down - row) ** 2 + (across - column) ** 2
    maps = torch.empty(3, 32, 48)
    maps[0] = torch.logit(0.9 * torch.exp(-distance / 2), eps=1e-6)
    maps[1], maps[2] = np.log(size), left
    return maps


def test_interpolates_peaks_and_maps_them_to_the_image() -> None:
    view = SizedView(torch.empty(0), torch.tensor([2.0, 2.0]), torch.tensor([10.0, 4.0]))
    found = read_peaks(maps_with(9.0, 20.4, 0.25, 3.0), view, SIZE, 0.3)
    # Texel k of a map of stride 4 covers px 4 k to 4 k + 4 of the view, counted from its border. The 3 x 3
    # window biases a peak towards its centre: by 0.2 texels at most, 1.6 px of the image.
    x, y = 2 * (4 * 20.4 + 2 - 10) - 0.5, 2 * (4 * 9 + 2 - 4) - 0.5
    half = 0.25 * SIZE * 2 / 2
    expected = torch.tensor([[x - half, y - half, x + half, y + half]])
    torch.testing.assert_close(found.boxes, expected, rtol=0, atol=1.6)
    torch.testing.assert_close(found.boxes[0, 1::2], expected[0, 1::2], rtol=0, atol=1e-3)
    assert found.left.item() == pytest.approx(torch.tensor(3.0).sigmoid().item())
    assert 0.8 < found.scores.item() < 0.9
    assert len(read_peaks(maps_with(90.0, 90.0, 0.25, 0.0), view, SIZE, 0.3).boxes) == 0


@pytest.mark.parametrize("longer", [85.3, 192.0, 448.0])
def test_finds_a_spot_at_its_position(longer: float) -> None:
    image = torch.zeros(360, 640, 3, dtype=torch.uint8)
    image[200:260, 480:540] = 255  # centred at (509.5, 229.5)
    view = sized_view(image, longer, SIZE, torch.float32)
    brightness = torch.nn.functional.avg_pool2d(view.pixels[:, :1] + 1, 4)[0]
    blurred = torch.nn.functional.avg_pool2d(brightness, 5, 1, 2)
    maps = torch.cat([3 * blurred - 3, torch.full_like(blurred, -1.0), torch.zeros_like(blurred)])
    boxes = read_peaks(maps, view, SIZE, 0.05).boxes
    texel = 4 * view.scale.max().item()
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    assert ((centres - torch.tensor([509.5, 229.5])).abs() <= texel).all(1).any()


def test_keeps_the_best_box_per_hand() -> None:
    boxes = torch.tensor(
        [[0, 0, 10, 10], [1, 1, 11, 11], [50, 50, 60, 60], [2, 2, 6, 6], [12, 0, 22, 10]], dtype=torch.float64
    )
    scores = torch.tensor([0.7, 0.9, 0.5, 0.8, 0.6])
    assert distinct(boxes, scores).tolist() == [1, 4, 2]
    assert distinct(boxes, scores, nested=1.0).tolist() == [1, 3, 4, 2]
    assert distinct(boxes[:0], scores[:0]).tolist() == []


def test_squares_keep_centre_and_longer_side() -> None:
    boxes = torch.tensor([[0.0, 10, 40, 20], [5.0, 5, 6, 9]])
    assert squared(boxes).tolist() == [[0, -5, 40, 35], [3.5, 5, 7.5, 9]]


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((300, 200, 340, 240), True),
        ((-20.4, 100, 19.6, 140), True),  # the middle lies in the first column of pixels
        ((-20.6, 100, 19.4, 140), False),
        ((619.4, 100, 659.4, 140), True),
        ((619.6, 100, 659.6, 140), False),
        ((100, 459.4, 140, 499.4), True),
        ((100, 459.6, 140, 499.6), False),
        ((300, 200, 302.1, 202.1), True),
        ((300, 200, 301.9, 240), False),
        ((300, 200, 340, 201.9), False),
        ((-5000, 200, 5640, 240), False),  # a view of 172 degrees
        ((np.nan, 200, 340, 240), False),
    ],
)
def test_views_of_boxes_need_a_middle_in_the_image_and_a_size(box: tuple, expected: bool) -> None:
    intrinsics = torch.tensor([[500.0, 0, 320], [0, 500, 240], [0, 0, 1]], dtype=torch.float64)
    camera = read_cameras(intrinsics, [(480, 640)])
    assert viewable(torch.tensor([box]), camera, height=480, width=640).tolist() == [expected]


def test_network_receives_the_slope_of_a_view_of_its_size() -> None:
    """A view of 128 px of an image resized by a factor has the slope 64 px / (factor * focal length)."""
    slopes = []

    def hand_maps(pixels: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
        slopes.append(slope.item())
        return torch.full((1, 3, pixels.shape[2] // 4, pixels.shape[3] // 4), -9.0)

    model: Any = SimpleNamespace(config=SimpleNamespace(input_size=SIZE), hand_maps=hand_maps)
    find = HandFinder(model, torch.float32, Profiler(torch.device("cpu")))
    found = find(torch.zeros(480, 640, 3, dtype=torch.uint8), 500.0, score=0.1, smallest=SMALLEST)
    # Sides of the resized image are whole px: a 127th of the shortest.
    expected = [64 / (longer / 640 * 500) for longer in view_sizes(SMALLEST, SIZE, 640)]
    assert slopes == pytest.approx(expected, rel=0.01) and len(found.boxes) == 0
