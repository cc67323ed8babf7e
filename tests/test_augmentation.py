"""Augmentation: images and hands stay consistent, and ranges hold."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nvf_fast.training.augmentation import ABSENT_SCALE_MM, Augmentation, augment
from nvf_fast.volumes import FrustumVolume
from tests.sampled_hands import sample_hands
from tests.training_cases import SIZE, draw_dots


def test_rolled_image_shows_the_rolled_hand() -> None:
    hands = sample_hands(16, torch.Generator().manual_seed(2))
    images_in = draw_dots(hands.joints, 96)
    rolled, rolled_hands, _ = augment(
        images_in, hands, FrustumVolume(), Augmentation(roll_deg=90.0), torch.Generator().manual_seed(0)
    )
    expected = draw_dots(rolled_hands.joints, 96).float() / 127.5 - 1
    assert (rolled_hands.joints - hands.joints).abs().amax((1, 2)).count_nonzero() >= 8
    inside = (rolled - expected)[:, :, 12:-12, 12:-12].abs()
    assert inside.mean() < 0.003  # 0.0008 measured, from resampling the dots; unrolled images give 0.01
    unrolled = (images_in.float() / 127.5 - 1 - expected)[:, :, 12:-12, 12:-12].abs()
    assert inside.mean() < 0.2 * unrolled.mean()


def test_rolls_move_no_joint_out_of_the_image() -> None:
    hands, volume = sample_hands(32, torch.Generator().manual_seed(2)), FrustumVolume()
    turn = torch.linalg.matrix_exp(torch.tensor([[0.0, 0, 0.14], [0, 0, 0.14], [-0.14, -0.14, 0]]))
    hands = hands.rotated(turn.expand(32, 3, 3))  # towards a corner of the image
    _, rolled, _ = augment(
        draw_dots(hands.joints, 8),
        hands,
        volume,
        Augmentation(roll_deg=180.0),
        torch.Generator().manual_seed(0),
    )
    inside = volume.contains(hands.joints).sum(1)
    assert (volume.contains(rolled.joints).sum(1) >= inside).all() and (inside >= 15).sum() > 10
    assert (rolled.joints != hands.joints).flatten(1).any(1).sum() > 10


def test_sizes_change_hand_and_distance_alone() -> None:
    hands = sample_hands(8, torch.Generator().manual_seed(2))
    images_in = draw_dots(hands.joints, SIZE)
    images, scaled, scale = augment(
        images_in, hands, FrustumVolume(), Augmentation(size_range=0.1), torch.Generator().manual_seed(0)
    )
    factor = scaled.joints / hands.joints
    torch.testing.assert_close(factor, factor[:, :1, :1].expand_as(factor), rtol=1e-3, atol=0)
    torch.testing.assert_close(scale, hands.hand_scale * factor[:, 0, 0], rtol=1e-3, atol=0)
    assert factor.std() > 0.02
    torch.testing.assert_close(images, images_in.float() / 127.5 - 1)


def test_scale_is_dropped_at_the_given_rate() -> None:
    hands = sample_hands(200, torch.Generator().manual_seed(2))
    images_in = torch.zeros(200, 3, 8, 8, dtype=torch.uint8)
    _, _, scale = augment(
        images_in, hands, FrustumVolume(), Augmentation(scale_dropout=0.3), torch.Generator().manual_seed(0)
    )
    dropped = scale == ABSENT_SCALE_MM
    assert 0.2 < dropped.float().mean() < 0.4
    assert torch.equal(scale[~dropped], hands.hand_scale[~dropped])


def test_photometric_changes_stay_in_range_and_change() -> None:
    hands = sample_hands(4, torch.Generator().manual_seed(2))
    images_in = draw_dots(hands.joints, SIZE)
    strong = Augmentation(brightness=0.5, contrast=0.5, colour=0.3, noise=0.1, blur=1.0)
    images, _, _ = augment(images_in, hands, FrustumVolume(), strong, torch.Generator().manual_seed(0))
    assert images.abs().max() <= 1
    assert (images - (images_in.float() / 127.5 - 1)).abs().mean() > 0.01


def photometric(**ranges: float) -> tuple[Tensor, Tensor]:
    """Return 16 images before and after random changes, in [0, 1]; no value reaches a bound."""
    hands = sample_hands(16, torch.Generator().manual_seed(2))
    images = torch.randint(90, 150, (16, 3, 24, 24), dtype=torch.uint8)
    augmentation, generator = Augmentation(**ranges), torch.Generator().manual_seed(0)
    changed, _, _ = augment(images, hands, FrustumVolume(), augmentation, generator)
    return images / 255, (changed + 1) / 2


def assert_factors(found: Tensor, axes: tuple[int, ...], size: float) -> None:
    """Assert factors that are constant along the axes and vary by `size` either way."""
    factors = found.mean(axes, keepdim=True)
    torch.testing.assert_close(found, factors.expand_as(found), rtol=1e-4, atol=0)
    assert 1 - size <= factors.min() < 1 - size / 2 and 1 + size / 2 < factors.max() <= 1 + size


def test_brightness_and_colour_multiply_images_and_channels() -> None:
    before, after = photometric(brightness=0.4)
    assert_factors(after / before, (1, 2, 3), 0.4)
    before, after = photometric(colour=0.3)
    assert_factors(after / before, (2, 3), 0.3)
    assert (after / before).mean((2, 3)).std(1).min() > 1e-3


def test_contrast_multiplies_the_deviations_from_the_mean_of_each_image() -> None:
    before, after = photometric(contrast=0.5)
    middle = before.mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(after.mean((1, 2, 3), keepdim=True), middle)
    far = (before - middle).abs() > 0.05
    factors = torch.where(far, (after - middle) / (before - middle), torch.nan).nanmean(
        (1, 2, 3), keepdim=True
    )
    torch.testing.assert_close(after, middle + factors * (before - middle), rtol=0, atol=1e-4)
    assert 0.5 <= factors.min() < 0.75 and 1.25 < factors.max() <= 1.5


def test_blur_mixes_in_means_of_nine_pixels() -> None:
    before, after = photometric(blur=0.8)
    before, after, mean = before[..., 1:-1, 1:-1], after[..., 1:-1, 1:-1], F.avg_pool2d(before, 3, 1)
    weight = ((after - before) * (mean - before)).sum((1, 2, 3)) / (mean - before).square().sum((1, 2, 3))
    torch.testing.assert_close(after, before.lerp(mean, weight[:, None, None, None]), rtol=0, atol=1e-4)
    assert 0 <= weight.min() < 0.2 and 0.6 < weight.max() <= 0.8


def test_noise_has_mean_0_and_a_deviation_per_image() -> None:
    before, after = photometric(noise=0.05)
    deviation = (after - before).std((1, 2, 3))
    assert ((after - before).mean((1, 2, 3)).abs() < 0.15 * deviation).all()  # 1728 values: 0.024 expected
    assert deviation.min() < 0.02 and 0.03 < deviation.max() < 0.055
