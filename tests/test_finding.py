"""Windows over an image, peaks in their views, and one box per hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nvf_fast.finding import (
    OVERLAP,
    SMALLEST,
    SMALLEST_IN_VIEW,
    boxes_in_image,
    distinct,
    read_peaks,
    search_windows,
    shrink,
)


@pytest.mark.parametrize("shape", [(720, 1280), (480, 640), (640, 480), (3024, 4032), (200, 900), (128, 128)])
def test_some_window_shows_every_hand_whole_and_large_enough(shape: tuple[int, int]) -> None:
    height, width = shape
    windows = search_windows(height, width).numpy() + 0.5
    sides = windows[:, 2] - windows[:, 0]
    random = np.random.default_rng(0)
    for _ in range(300):
        side = max(shape) * np.exp(random.uniform(np.log(SMALLEST), np.log(0.6)))
        low = random.uniform(0, np.maximum([width, height] - np.full(2, side), 0))
        high = np.minimum(low + side, [width, height])
        whole = (windows[:, :2] <= low + 1e-6).all(1) & (windows[:, 2:] >= high - 1e-6).all(1)
        assert (whole & (side / sides >= 0.99 * SMALLEST_IN_VIEW)).any(), (low, side)


def test_windows_are_few() -> None:
    """An image of 1280 x 720 px must be searched within the time of some dozen views."""
    assert len(search_windows(720, 1280)) <= 12


def test_windows_of_a_level_overlap() -> None:
    windows = search_windows(720, 1280)
    sides = windows[:, 2] - windows[:, 0]
    smallest = windows[sides == sides.min()]
    for axis in (0, 1):
        starts = smallest[:, axis].unique()
        assert (starts.diff() <= sides.min() * (1 - OVERLAP) * 1.06).all()


def maps_with(row: float, column: float, size: float, left: float) -> torch.Tensor:
    """(1, 3, 32, 32) with one hand between texels."""
    texels = torch.arange(32.0)
    distance = (texels[:, None] - row) ** 2 + (texels - column) ** 2
    maps = torch.empty(1, 3, 32, 32)
    maps[:, 0] = torch.logit(0.9 * torch.exp(-distance / 2), eps=1e-6)
    maps[:, 1], maps[:, 2] = np.log(size), left
    return maps


def test_a_peak_is_read_between_texels() -> None:
    peaks = read_peaks(torch.cat([maps_with(9.0, 20.4, 0.25, 3.0), maps_with(40.0, 40.0, 0.5, 0.0)]), 0.3)
    assert peaks.window.tolist() == [0]
    # Texel k of a map of stride 4 lies at pixel 4 k + 1.5; the 3 x 3 around a peak pulls towards its middle.
    torch.testing.assert_close(peaks.centres, torch.tensor([[4 * 20.4 + 1.5, 37.5]]), rtol=0, atol=1.0)
    torch.testing.assert_close(peaks.sides, torch.tensor([32.0]))
    assert peaks.left.item() == pytest.approx(torch.tensor(3.0).sigmoid().item())
    assert 0.8 < peaks.scores.item() < 0.9


def test_boxes_return_to_the_image() -> None:
    """A window of 256 px at (100, 50) is seen at half its size."""
    homography = torch.tensor([[0.5, 0, -50], [0, 0.5, -25], [0, 0, 1]], dtype=torch.float64)
    peaks = read_peaks(maps_with(10.0, 20.0, 0.25, 0.0), 0.3)
    box = boxes_in_image(peaks, homography[None])[0]
    expected = torch.tensor(
        [2 * 81.5 + 100 - 32, 2 * 41.5 + 50 - 32, 2 * 81.5 + 100 + 32, 2 * 41.5 + 50 + 32]
    )
    torch.testing.assert_close(box, expected.double(), rtol=0, atol=1e-6)


def test_each_hand_keeps_its_best_box() -> None:
    boxes = torch.tensor(
        [[0, 0, 10, 10], [1, 1, 11, 11], [50, 50, 60, 60], [2, 2, 6, 6], [12, 0, 22, 10]], dtype=torch.float64
    )
    scores = torch.tensor([0.7, 0.9, 0.5, 0.8, 0.6])
    assert distinct(boxes, scores).tolist() == [1, 4, 2]
    assert distinct(boxes[:0], scores[:0]).tolist() == []
    around = torch.tensor([[0, 0, 10, 10], [2, 2, 6, 6]], dtype=torch.float64)
    for keep_around in (False, True):
        assert distinct(around, torch.tensor([0.9, 0.8]), keep_around).tolist() == [0]
    assert distinct(around, torch.tensor([0.8, 0.9])).tolist() == [1]
    assert distinct(around, torch.tensor([0.8, 0.9]), keep_around=True).tolist() == [1, 0]


def test_shrinking_averages_squares_and_tells_where_they_lie() -> None:
    image = torch.arange(7 * 10 * 3, dtype=torch.uint8).reshape(7, 10, 3)
    shrunk, to_image = shrink(image, 3)
    assert shrunk.shape == (3, 4, 3) and shrunk.dtype == torch.uint8
    assert (shrunk[0, 1] == image[0:3, 3:6].float().mean((0, 1)).round()).all()
    assert (shrunk[2, 3] == image[6, 9]).all()  # what reaches beyond the border does not count
    # The middle of the square in column 1 and row 2 is the image's pixel (4, 7).
    torch.testing.assert_close(
        to_image @ torch.tensor([1.0, 2, 1]).double(), torch.tensor([4.0, 7, 1]).double()
    )
    same, identity = shrink(image, 1)
    assert same is image and torch.equal(identity, torch.eye(3).double())
