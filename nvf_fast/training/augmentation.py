"""Changes to training pictures: some whose effect on the labels is known exactly, some without any."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from nvf_fast.data.rotations import rotation_about
from nvf_fast.data.surfaces import HandSurfaces
from nvf_fast.volumes import Volume

ABSENT_SCALE_MM = 15.0  # what the network is fed where the hand scale is unknown: 0 after normalisation


@dataclass(frozen=True)
class Augmentation:
    """Ranges of the random changes, each uniform and drawn per image; 0 is off.

    Attributes:
        roll_deg: rotation of picture and hand about the optical axis, degrees either way. An image keeps its
            orientation where the rotation would push one more joint out of the picture.
        size_range: hand and distance grow together by a factor 1 plus or minus this share; the picture stays.
            Camera-space only.
        brightness: gain of the picture, share either way.
        contrast: gain about its mean, share either way.
        colour: gain per channel, share either way.
        noise: largest standard deviation of Gaussian noise, in units of full brightness.
        blur: largest share of a 3 x 3 mean mixed in.
        scale_dropout: probability that the network is not told the hand scale.
    """

    roll_deg: float = 0.0
    size_range: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    colour: float = 0.0
    noise: float = 0.0
    blur: float = 0.0
    scale_dropout: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.roll_deg <= 180 or self.noise < 0:
            raise ValueError(
                "roll_deg must lie in [0, 180] and noise not be negative, "
                f"got {self.roll_deg} and {self.noise}"
            )
        if not all(
            0 <= share < 1 for share in (self.size_range, self.brightness, self.contrast, self.colour)
        ):
            raise ValueError(f"size_range, brightness, contrast and colour must lie in [0, 1), got {self}")
        if not (0 <= self.blur <= 1 and 0 <= self.scale_dropout <= 1):
            raise ValueError(
                f"blur and scale_dropout must lie in [0, 1], got {self.blur} and {self.scale_dropout}"
            )


def augment(
    images: Tensor,
    hands: HandSurfaces,
    volume: Volume,
    augmentation: Augmentation,
    generator: torch.Generator,
) -> tuple[Tensor, HandSurfaces, Tensor]:
    """Draws one changed version of each picture.

    Args:
        images: (B, 3, S, S) uint8 RGB, the network's pictures.
        hands: the B hands in them, in the task's frame.
        volume: the region that the network is queried in.
        augmentation: ranges.
        generator: source of every random number, on the images' device.

    Returns:
        images (B, 3, S, S) float32 as the network takes them, (x / 255 - 0.5) / 0.5; their hands; and the
        hand scale (B,) mm to feed, `ABSENT_SCALE_MM` where dropped.
    """
    pictures = images.float() / 255
    if augmentation.roll_deg:
        angle = _roll_angles(hands, volume, math.radians(augmentation.roll_deg), generator)
        pictures = _roll_pictures(pictures, angle)
        hands = hands.rotated(_about_optical_axis(angle))
    if augmentation.size_range:
        hands = hands.scaled(1 + _range(augmentation.size_range, (len(images),), pictures, generator))
    pictures = _photometric(pictures, augmentation, generator)
    hand_scale = hands.hand_scale
    if augmentation.scale_dropout:
        chance = torch.rand(len(images), generator=generator, device=images.device)
        dropped = chance < augmentation.scale_dropout
        hand_scale = torch.where(dropped, ABSENT_SCALE_MM, hand_scale)
    return (pictures - 0.5) / 0.5, hands, hand_scale


def _range(size: float, shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
    return size * (2 * torch.rand(shape, generator=generator, device=like.device) - 1)


def _about_optical_axis(angle: Tensor) -> Tensor:
    axis = torch.tensor([0.0, 0.0, 1.0], device=angle.device)
    return rotation_about(axis, angle)


def _roll_angles(
    hands: HandSurfaces, volume: Volume, limit: float, generator: torch.Generator, tries: int = 4
) -> Tensor:
    """(B,) radians: of a few draws the first that loses no joint from the picture, else 0."""
    angles = _range(limit, (tries, len(hands.joints)), hands.joints, generator)
    result = torch.zeros_like(angles[0])
    before = volume.contains(hands.joints).sum(-1)
    for angle in angles.flip(0):
        rotated = hands.joints @ _about_optical_axis(angle).transpose(1, 2)
        result = torch.where(volume.contains(rotated).sum(-1) >= before, angle, result)
    return result


def _roll_pictures(pictures: Tensor, angle: Tensor) -> Tensor:
    """Rotates pictures (B, 3, S, S) about the principal point, pixel (S / 2, S / 2); edges smear outwards."""
    size = pictures.shape[-1]
    backwards = _about_optical_axis(-angle)[:, :2, :2]
    centre = torch.full((2, 1), 1 / size, device=pictures.device)  # principal point as grid_sample counts
    transform = torch.cat([backwards, centre - backwards @ centre], 2)
    grid = affine_grid(transform, list(pictures.shape), align_corners=False)
    return grid_sample(pictures, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _photometric(pictures: Tensor, augmentation: Augmentation, generator: torch.Generator) -> Tensor:
    one = (len(pictures), 1, 1, 1)
    if augmentation.blur:
        share = augmentation.blur * torch.rand(one, generator=generator, device=pictures.device)
        pictures = torch.lerp(pictures, _mean_of_three(_mean_of_three(pictures, 2), 3), share)
    if augmentation.contrast:
        mean = pictures.mean((1, 2, 3), keepdim=True)
        pictures = mean + (pictures - mean) * (1 + _range(augmentation.contrast, one, pictures, generator))
    if augmentation.brightness or augmentation.colour:
        gain = 1 + _range(augmentation.brightness, one, pictures, generator)
        channels = 1 + _range(augmentation.colour, (len(pictures), 3, 1, 1), pictures, generator)
        pictures = pictures * (gain * channels)
    if augmentation.noise:
        deviation = augmentation.noise * torch.rand(one, generator=generator, device=pictures.device)
        noise = torch.randn(pictures.shape, generator=generator, device=pictures.device)
        pictures = torch.addcmul(pictures, noise, deviation)
    return pictures.clamp(0, 1)


def _mean_of_three(pictures: Tensor, axis: int) -> Tensor:
    """Running mean of three pixels along an axis; the outermost pixels stay."""
    inner = pictures.shape[axis] - 2
    first, middle, last = (pictures.narrow(axis, start, inner) for start in range(3))
    result = pictures.clone()
    result.narrow(axis, 1, inner).copy_(first + middle + last).mul_(1 / 3)
    return result
