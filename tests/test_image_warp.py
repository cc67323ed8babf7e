"""Perspective warp, panorama views and Gaussian blur against direct sums over the image."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("numba")

from nvf_fast.data.image_warp import gaussian_blur, panorama_view, warp_perspective


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (37, 53, 3), np.uint8)


def bilinear(image: np.ndarray, x: float, y: float) -> np.ndarray:
    height, width = image.shape[:2]
    x, y = np.clip(x, 0, width - 1), np.clip(y, 0, height - 1)
    x0, y0 = min(int(x), width - 2), min(int(y), height - 2)
    u, v = x - x0, y - y0
    top = image[y0, x0] * (1 - u) + image[y0, x0 + 1] * u
    bottom = image[y0 + 1, x0] * (1 - u) + image[y0 + 1, x0 + 1] * u
    return top * (1 - v) + bottom * v


def test_identity(image: np.ndarray) -> None:
    np.testing.assert_array_equal(warp_perspective(image, np.eye(3), (37, 53)), image)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_warp_matches_bilinear_samples(image: np.ndarray, dtype: type) -> None:
    homography = np.array([[1.3, 0.2, -4.0], [-0.1, 1.4, 3.0], [2e-4, -3e-4, 1.0]])
    warped = warp_perspective(image.astype(dtype), homography, (40, 45))
    assert warped.dtype == dtype and warped.shape == (40, 45, 3)
    expected = np.empty((40, 45, 3))
    for row in range(40):
        for column in range(45):
            x, y, z = np.linalg.inv(homography) @ [column, row, 1]
            expected[row, column] = bilinear(image.astype(float), x / z, y / z)
    # Half a grey level for uint8, float32 rounding otherwise.
    np.testing.assert_allclose(warped, expected, atol=0.501 if dtype == np.uint8 else 1e-2)


def test_zero_border_starts_half_a_pixel_outside() -> None:
    ones = np.ones((4, 6), np.float32)
    shift = np.array([[1.0, 0, 3], [0, 1, 2], [0, 0, 1]])
    expected = np.zeros((9, 12), np.float32)
    expected[2:6, 3:9] = 1
    np.testing.assert_array_equal(warp_perspective(ones, shift, (9, 12), "zero"), expected)
    assert (warp_perspective(ones, shift, (9, 12)) == 1).all()


def test_shrinking_does_not_alias() -> None:
    stripes = np.zeros((128, 128), np.float32)
    stripes[:, ::2] = 1
    small = warp_perspective(stripes, np.diag([0.25, 0.25, 1.0]), 32)
    # Point samples of the stripes would be 0 or 1.
    assert np.abs(small[:, 1:-1] - 0.5).max() < 0.15
    image = np.random.default_rng(1).random((64, 64), np.float32)
    centred = np.array([[0.25, 0, -0.375], [0, 0.25, -0.375], [0, 0, 1]])
    blocks = image.reshape(16, 4, 16, 4).mean((1, 3))
    np.testing.assert_allclose(warp_perspective(image, centred, 16), blocks, atol=1e-6)


def test_panorama_view() -> None:
    height, width = 64, 128
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    coordinates = np.stack([columns, rows], -1)
    turn = np.deg2rad(30)
    rotation = np.array([[np.cos(turn), 0, np.sin(turn)], [0, 1, 0], [-np.sin(turn), 0, np.cos(turn)]])
    view = panorama_view(coordinates, rotation, 25.0, 21)
    # The optical axis points 30 degrees to the right of the panorama's centre.
    expected = [(0.5 + 30 / 360) * width - 0.5, height / 2 - 0.5]
    np.testing.assert_allclose(view[10, 10], expected, atol=1e-3)
    # A pixel at u = 10 / 25 lies atan(0.4) further to the right.
    angle = 30 + np.rad2deg(np.arctan(10 / 25))
    np.testing.assert_allclose(view[10, 20, 0], (0.5 + angle / 360) * width - 0.5, atol=1e-3)
    assert view[0, 10, 1] < view[10, 10, 1] < view[20, 10, 1]


def test_panorama_columns_wrap() -> None:
    panorama = np.zeros((8, 16, 1), np.float32)
    panorama[:, 0], panorama[:, -1] = 1, 3
    back = np.diag([-1.0, 1, -1])
    assert panorama_view(panorama, back, 100.0, 1)[0, 0, 0] == pytest.approx(2, abs=1e-4)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_gaussian_blur(dtype: type) -> None:
    impulse = np.zeros((31, 31), dtype)
    impulse[15, 15] = 255
    blurred = gaussian_blur(impulse, 2.0)
    reach = np.arange(-15, 16)
    line = np.where(np.abs(reach) <= 6, np.exp(-0.5 * (reach / 2) ** 2), 0)
    expected = 255 * np.outer(line, line) / line.sum() ** 2
    np.testing.assert_allclose(blurred, expected, atol=0.501 if dtype == np.uint8 else 1e-4)
    flat = np.full((9, 7, 3), 77, dtype)
    np.testing.assert_allclose(gaussian_blur(flat, 1.3), flat, atol=1e-3)
    np.testing.assert_array_equal(gaussian_blur(flat, 0.0), flat)


@pytest.mark.parametrize("wrong", [np.zeros((4, 4), np.float64), np.zeros(4, np.uint8)])
def test_refuses_other_arrays(wrong: np.ndarray) -> None:
    with pytest.raises(ValueError, match="uint8 or float32, got"):
        warp_perspective(wrong, np.eye(3), 4)
    with pytest.raises(ValueError, match="border"):
        warp_perspective(np.zeros((4, 4), np.uint8), np.eye(3), 4, "wrap")  # type: ignore[arg-type]
