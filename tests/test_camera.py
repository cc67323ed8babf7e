"""Cameras: rotations, homographies and remapping against hand-computed geometry and OpenCV's remap."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import nvf_fast.camera
from nvf_fast import ops
from nvf_fast.camera import (
    ViewPlan,
    averaged,
    look_at_rotation,
    plan_view,
    project,
    reference_intrinsics,
    remap,
    view_frame,
    view_intrinsics,
)
from nvf_fast.kernels.network_views.cpu import view_grid
from tests.kernel_cases import sampled_view

K = torch.tensor([[501.7, 0, 118.3], [0, 498.2, 109.6], [0, 0, 1]], dtype=torch.float64)
EYE = torch.eye(3, dtype=torch.float64)


def planned(homography: Tensor, size: int, height: int, width: int, margin: float = 0.0) -> ViewPlan:
    """The plan of a view by its homography from image px."""
    return plan_view(torch.linalg.inv(homography).flatten().tolist(), size, height, width, margin)


def reference_homography(intrinsics: Tensor, size: int = 224, frame: Tensor = EYE) -> Tensor:
    """Homography K_ref F K^-1 from pixels of an image to pixels of the reference view."""
    return reference_intrinsics(size, dtype=torch.float64) @ frame @ torch.linalg.inv(intrinsics)


def blob(pixel: Tensor, height: int, width: int, sigma: float) -> Tensor:
    """Return a Gaussian spot (1, 1, height, width) at a pixel (x, y)."""
    y = torch.exp(-0.5 * ((torch.arange(height) - pixel[1]) / sigma) ** 2)
    x = torch.exp(-0.5 * ((torch.arange(width) - pixel[0]) / sigma) ** 2)
    return (y[:, None] * x)[None, None].float()


def centroid(image: Tensor) -> Tensor:
    """Return the brightness centroid (x, y) of an image (1, 1, H, W)."""
    mass = image[0, 0].double() / image.double().sum()
    x, y = torch.arange(image.shape[-1]), torch.arange(image.shape[-2])
    return torch.stack([(mass.sum(0) * x).sum(), (mass.sum(1) * y).sum()])


def test_reference_camera() -> None:
    assert reference_intrinsics().tolist() == [[480, 0, 112], [0, 480, 112], [0, 0, 1]]
    small = reference_intrinsics(128)
    assert small[0, 0] == pytest.approx(480 * 128 / 224) and small[1, 2] == 64
    assert math.degrees(2 * math.atan(small[0, 2] / small[0, 0])) == pytest.approx(26.3, abs=0.05)


def test_project() -> None:
    point = torch.tensor([[10.0, -20.0, 500.0]], dtype=torch.float64)
    pixel = project(point, K)
    expected = torch.tensor([[501.7 * 10 / 500 + 118.3, -498.2 * 20 / 500 + 109.6]], dtype=torch.float64)
    torch.testing.assert_close(pixel, expected)
    torch.testing.assert_close(project(point[None], K[None]), pixel[None])


@given(x=st.floats(-3000, 3000), y=st.floats(-3000, 3000))
def test_look_at_rotation_is_the_smallest_that_turns_the_pixel_to_the_axis(x: float, y: float) -> None:
    pixel = torch.tensor([x, y], dtype=torch.float64)
    skewed = K.clone()
    skewed[0, 1] = 37.0
    rotation = look_at_rotation(pixel, skewed)
    ray = torch.linalg.inv(skewed) @ torch.tensor([x, y, 1], dtype=torch.float64)
    ray = ray / ray.norm()
    torch.testing.assert_close(rotation @ ray, torch.tensor([0, 0, 1], dtype=torch.float64))
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(3, dtype=torch.float64))
    assert torch.linalg.det(rotation) == pytest.approx(1)
    assert (rotation.trace() - 1) / 2 == pytest.approx(float(ray[2])), "no more than between ray and axis"


def test_look_at_rotation_of_batches_and_arrays() -> None:
    pixels = torch.tensor([[100.0, 50.0], [0.0, 0.0], [200.0, 100.0]], dtype=torch.float64)
    batch = look_at_rotation(pixels, K.expand(3, 3, 3))
    assert torch.equal(batch[1], look_at_rotation(pixels[1], K))
    torch.testing.assert_close(look_at_rotation(pixels, K), batch)
    arrays = look_at_rotation(pixels.numpy(), K.numpy())
    np.testing.assert_allclose(arrays, batch, rtol=0, atol=1e-15)


@pytest.mark.parametrize("mirror", [False, True])
def test_homography_agrees_with_the_rotated_camera(mirror: bool) -> None:
    rotation = look_at_rotation(torch.tensor([300.0, 20.0], dtype=torch.float64), K)
    homography = reference_homography(K, 128, view_frame(rotation, torch.tensor(mirror)))
    points = torch.tensor([[30.0, -40.0, 600.0], [0.0, 5.0, 300.0]], dtype=torch.float64)
    rotated = points @ rotation.T * torch.tensor([-1.0 if mirror else 1.0, 1, 1], dtype=torch.float64)
    through_pixels = project(F.pad(project(points, K), (0, 1), value=1), homography)
    directly = project(rotated, reference_intrinsics(128, dtype=torch.float64))
    torch.testing.assert_close(through_pixels, directly)


def test_remap_matches_opencv(shared_dir: Path) -> None:
    oracle = np.load(shared_dir / "oracle/public_stack4_scale_remap.npz")
    image = torch.from_numpy(oracle["image"]).permute(2, 0, 1)[None].float()
    view = remap(image, reference_homography(torch.from_numpy(oracle["K"]))[None], 224)[0].permute(1, 2, 0)
    difference = (view - torch.from_numpy(oracle["remapped"])).abs()
    # OpenCV rounds to whole grey levels: measured 0.5003 at most.
    assert difference.max() <= 0.51


def test_identity_remap_preserves_the_image() -> None:
    image = torch.rand(2, 3, 224, 224)
    homography = reference_homography(reference_intrinsics(dtype=torch.float64)).expand(2, 3, 3)
    torch.testing.assert_close(remap(image, homography, 224), image, rtol=0, atol=1e-4)


@pytest.mark.parametrize("fine", [1.0, 1.9, 2.0, 2.7, 4.0, 9.5])
@pytest.mark.parametrize("mirror", [False, True])
def test_remap_moves_a_spot_by_the_homography_at_any_resolution(fine: float, mirror: bool) -> None:
    intrinsics = torch.tensor(
        [[500.0 * fine, 0, 120 * fine], [0, 490.0 * fine, 100 * fine], [0, 0, 1]], dtype=torch.float64
    )
    spot = torch.tensor([[90.3 * fine, 133.8 * fine]], dtype=torch.float64)
    image = blob(spot[0], int(230 * fine), int(251 * fine), 3 * fine)
    frame = view_frame(torch.eye(3, dtype=torch.float64), torch.tensor(mirror))
    homography = reference_homography(intrinsics, 224, frame)
    expected = project(F.pad(spot, (0, 1), value=1), homography)[0]
    torch.testing.assert_close(centroid(remap(image, homography[None], 224)), expected, rtol=0, atol=2e-2)


def test_fine_images_are_averaged_before_sampling() -> None:
    checks = (torch.arange(896)[:, None] + torch.arange(896)) % 2  # every other pixel black: grey on average
    image = checks[None, None].float()
    homography = reference_homography(reference_intrinsics(896, dtype=torch.float64))[None]
    view = remap(image, homography, 224)[0, 0, 1:-1, 1:-1]
    torch.testing.assert_close(view, torch.full_like(view, 0.5))


@pytest.mark.parametrize("interleaved", [False, True])
def test_integer_averages_are_bitwise_equal(interleaved: bool) -> None:
    crops = torch.randint(
        0, 256, (2, 3, 13, 18), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    expected = averaged(crops.float(), 4)
    crops = crops.contiguous(memory_format=torch.channels_last) if interleaved else crops
    assert torch.equal(averaged(crops, 4), expected)
    assert expected.amin() > 0 and len(expected.unique()) > 100


def test_images_of_a_batch_are_averaged_separately() -> None:
    image = torch.rand(2, 3, 300, 400)
    intrinsics = torch.stack([reference_intrinsics(size, dtype=torch.float64) for size in (224, 800)])
    homographies = reference_homography(intrinsics, 128)
    both = remap(image, homographies, 128)
    for i in range(2):
        assert torch.equal(both[i], remap(image[i, None], homographies[i, None], 128)[0])


def test_images_with_equal_crops_and_different_factors_are_remapped_separately() -> None:
    image = torch.rand(2, 1, 100, 100)  # whole in both views
    intrinsics = [[[focal, 0, 50], [0, focal, 50], [0, 0, 1]] for focal in (700.0, 1000.0)]
    homographies = reference_homography(torch.tensor(intrinsics, dtype=torch.float64), 128)
    both = remap(image, homographies, 128)
    for i in range(2):
        assert torch.equal(both[i], remap(image[i, None], homographies[i, None], 128)[0])


@pytest.mark.parametrize(
    ("fine", "degrees", "factor"), [(2.0, 0, 1), (2.01, 0, 2), (3.3, 0, 3), (3.3, 30, 4), (3.3, -30, 4)]
)
def test_averages_squares_that_fit_into_a_pixel_at_the_middle_of_the_view(
    fine: float, degrees: float, factor: int
) -> None:
    """A pixel of a view rotated by an angle has an image pixel's area times fine^2 / cos(angle)^3."""
    focal = 480 * fine
    K = torch.tensor([[focal, 0, 2000], [0, focal, 2000], [0, 0, 1]], dtype=torch.float64)
    pixel = torch.tensor([2000, 2000 + focal * math.tan(math.radians(degrees))], dtype=torch.float64)
    homography = reference_homography(K, 224, look_at_rotation(pixel, K))
    assert planned(homography, 224, 4000, 4000).factor == factor


def test_view_across_the_horizon_uses_the_whole_image() -> None:
    K = torch.tensor([[20.0, 0, 17], [0, 20, 12], [0, 0, 1]], dtype=torch.float64)
    rotation = look_at_rotation(torch.tensor([37.0, 12], dtype=torch.float64), K)  # by 45 degrees
    wide = view_intrinsics(torch.tensor([2.0], dtype=torch.float64), 128)[0]  # 63 degrees either way
    homography = wide @ rotation @ torch.linalg.inv(K)
    image = 1 + torch.rand(1, 1, 25, 34, dtype=torch.float64)
    plan = planned(homography, 128, 25, 34)
    assert (plan.rows, plan.columns) == (slice(0, 25), slice(0, 34))
    expected = sampled_view(image[0], plan, 128)
    assert (expected > 0).sum() > 1000
    torch.testing.assert_close(remap(image, homography[None], 128)[0], expected, rtol=0, atol=1e-9)


def test_margin_includes_shifted_views() -> None:
    homography = view_between(1.9, (400.0, 300.0))
    wide = planned(homography, 128, 601, 802, margin=10)
    for x, y in ((-10, 0), (10, 0), (0, -10), (0, 10)):
        shift = torch.tensor([[1, 0, x], [0, 1, y], [0, 0, 1]], dtype=torch.float64)
        shifted = planned(shift @ homography, 128, 601, 802)
        for part, whole in ((shifted.rows, wide.rows), (shifted.columns, wide.columns)):
            assert whole.start <= part.start and part.stop <= whole.stop


def test_view_is_empty_outside_and_behind_the_image() -> None:
    image = torch.ones(1, 1, 224, 224)
    beside = look_at_rotation(torch.tensor([1e3, 112.0], dtype=torch.float64), K)
    assert remap(image, reference_homography(K, 64, beside)[None], 64).abs().max() == 0
    plan = planned(reference_homography(K, 64, beside), 64, 224, 224)
    assert 1 <= plan.columns.stop - plan.columns.start <= plan.factor, "one average, which is not reached"
    behind = torch.diag(torch.tensor([-1.0, 1, -1], dtype=torch.float64))  # rotated by 180 degrees
    assert remap(image, reference_homography(K, 64, behind)[None], 64).abs().max() == 0


def test_view_is_empty_behind_the_camera() -> None:
    # Depth 1 - u / 32 of view pixel (u, v) is 0 at u = 32; all pixels would project to (5, 5).
    plan = ViewPlan(slice(0, 11), slice(0, 11), 1, (-5 / 32, 0, 5, -5 / 32, 0, 5, -1 / 32, 0, 1))
    row, white = (
        torch.tensor([plan.row(11, 1)], dtype=torch.float64),
        torch.full((121,), 255, dtype=torch.uint8),
    )
    view = ops.network_views(row, [white], size=64, channels=1)[0, 0]
    assert view[:, :32].min() > 0.999 and view[:, 32:].max() == -1


def view_between(fine: float, pixel: tuple[float, float]) -> Tensor:
    """Return the homography from a 601 x 802 px image, `fine` times as fine as the view, to a 128 px view."""
    intrinsics = torch.tensor([[480.0 * fine, 0, 400], [0, 480 * fine, 300], [0, 0, 1]], dtype=torch.float64)
    frame = look_at_rotation(torch.tensor(pixel, dtype=torch.float64), intrinsics)
    return reference_homography(intrinsics, 128, frame)


fineness = pytest.mark.parametrize("fine", [0.5, 1.0, 1.9, 4.1])
places = pytest.mark.parametrize(
    "pixel", [(200.0, 420.0), (0.0, 0.0), (801.0, 600.0), (430.0, 900.0), (-9e3, 300.0)]
)


@fineness
@places
def test_cropping_to_the_visible_part_preserves_the_view(
    monkeypatch: pytest.MonkeyPatch, fine: float, pixel: tuple[float, float]
) -> None:
    homography = view_between(fine, pixel)
    image = torch.randint(0, 256, (1, 3, 601, 802), dtype=torch.uint8)
    view = remap(image.double(), homography[None], 128)
    assert view.dtype == torch.float64
    monkeypatch.setattr(nvf_fast.camera, "_seen", lambda low, high, extent, factor: slice(0, extent))
    torch.testing.assert_close(remap(image.double(), homography[None], 128), view, rtol=0, atol=1e-9)
    torch.testing.assert_close(remap(image, homography[None], 128), view.float(), rtol=0, atol=2e-2)


def test_crop_includes_the_averaged_squares_between_which_the_view_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    intrinsics = torch.tensor([[1968.0, 0, 203], [0, 1968, 300], [0, 0, 1]], dtype=torch.float64)
    homographies = reference_homography(intrinsics, 128)[None]
    image = torch.rand(1, 1, 601, 802, dtype=torch.float64)
    view = remap(image, homographies, 128)
    monkeypatch.setattr(nvf_fast.camera, "_seen", lambda low, high, extent, factor: slice(0, extent))
    torch.testing.assert_close(remap(image, homographies, 128), view, rtol=0, atol=1e-9)


def test_images_with_different_crops_are_remapped_separately() -> None:
    image = torch.randint(0, 256, (3, 3, 601, 802), dtype=torch.uint8)
    homographies = torch.stack([view_between(1.9, pixel) for pixel in ((200, 420), (0, 0), (430, 300))])
    together = remap(image, homographies, 128)
    for i in range(3):
        assert torch.equal(together[i], remap(image[i, None], homographies[i, None], 128)[0])


@pytest.mark.parametrize("upright", [False, True])
def test_positions_in_large_images_are_accurate_to_a_thousandth_of_a_pixel(upright: bool) -> None:
    # Values rise by 1 per pixel modulo 64: small enough for float32 to resolve the position.
    crop = (torch.arange(8000.0) % 64).expand(1, 1, 2, 8000)
    matrix = torch.tensor([[40.0, 0.3, 2.7], [0, 1e-3, 0.4], [4e-6, -3e-5, 1]], dtype=torch.float64)
    ends = torch.arange(200, dtype=torch.float64)
    view = torch.stack([*torch.meshgrid(ends, ends, indexing="xy"), ends.new_ones(200, 200)], -1)
    expected = project(view, matrix)[..., 0]
    assert expected.min() < 3 and expected.max() > 7990
    if upright:
        crop, matrix, expected = crop.mT, matrix[[1, 0, 2]][:, [1, 0, 2]], expected.mT
    height, width = crop.shape[2:]
    numbers = ViewPlan(slice(0, height), slice(0, width), 1, matrix.flatten().tolist()).row(0, 0)
    grid = view_grid(torch.tensor(numbers, dtype=torch.float64), numbers, 200, 200, width, height)
    error = (F.grid_sample(crop.contiguous(), grid, align_corners=False)[0, 0] - expected % 64).abs()
    inside = (expected % 64 < 62.9) & (expected < 7999)
    # grid_sample takes float32 coordinates between -1 and 1: measured 6e-4 px at most.
    assert inside.double().mean() > 0.95 and error[inside].max() <= 1e-3


def test_remap_has_the_gradient_of_its_weights() -> None:
    image = torch.rand(1, 1, 12, 10, dtype=torch.float64, requires_grad=True)
    intrinsics = torch.tensor([[20.0, 0, 5], [0, 20, 6], [0, 0, 1]], dtype=torch.float64)
    homography = reference_homography(intrinsics, 8)[None]
    assert torch.autograd.gradcheck(lambda x: remap(x, homography, 8), image)
