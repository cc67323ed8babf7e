"""Augmentation of training images: geometric with exact labels, and photometric."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from nvf_fast.data.rotations import rotation_about
from nvf_fast.data.surfaces import MeshHands
from nvf_fast.runtime.arguments import check_ranges
from nvf_fast.volumes import Volume

ABSENT_SCALE_MM = 15.0  # input of the network for an unknown hand scale: 0 after normalisation


@dataclass(frozen=True)
class Augmentation:
    """Ranges of the random changes, each uniform and drawn per image; 0 is off."""

    # rotation of image and hand about the optical axis, degrees either way. An image is not rotated where
    # that would move another joint out of it.
    roll_deg: float = 0.0
    # hand and distance scale together by a factor 1 plus or minus this; the image does not change.
    # Camera-space only.
    size_range: float = 0.0
    brightness: float = 0.0  # gain of the image, 1 plus or minus this
    contrast: float = 0.0  # gain about its mean, 1 plus or minus this
    colour: float = 0.0  # gain per channel, 1 plus or minus this
    noise: float = 0.0  # largest standard deviation of Gaussian noise, in units of full brightness
    blur: float = 0.0  # largest weight of a 3 x 3 mean mixed in
    scale_dropout: float = 0.0  # probability that the network does not receive the hand scale

    def __post_init__(self) -> None:
        gains = dict.fromkeys(("size_range", "brightness", "contrast", "colour"), "[0, 1)")
        check_ranges(
            self, roll_deg="[0, 180]", noise="[0, inf)", blur="[0, 1]", scale_dropout="[0, 1]", **gains
        )


def augment(
    images: Tensor,
    hands: MeshHands,
    volume: Volume,
    augmentation: Augmentation,
    generator: torch.Generator,
) -> tuple[Tensor, MeshHands, Tensor]:
    """Augment each image once.

    Args:
        images: (B, 3, S, S) uint8 RGB, the network's images.
        hands: the B hands in them, in the task's frame.
        volume: the region that the network is queried in.
        augmentation: ranges.
        generator: source of every random number, on the images' device.

    Returns:
        images (B, 3, S, S) float32 as the network takes them, (x / 255 - 0.5) / 0.5; their hands; and the
        hand scale (B,) mm to feed, `ABSENT_SCALE_MM` where dropped.
    """
    images = images.float() / 255
    if augmentation.roll_deg:
        angle = _roll_angles(hands, volume, math.radians(augmentation.roll_deg), generator)
        images = _roll_images(images, angle)
        hands = hands.rotated(rotation_about((0, 0, 1), angle))
    if augmentation.size_range:
        hands = hands.scaled(1 + _range(augmentation.size_range, (len(images),), images, generator))
    images = _photometric(images, augmentation, generator)
    hand_scale = hands.hand_scale
    if augmentation.scale_dropout:
        chance = torch.rand(len(images), generator=generator, device=images.device)
        dropped = chance < augmentation.scale_dropout
        hand_scale = torch.where(dropped, ABSENT_SCALE_MM, hand_scale)
    return (images - 0.5) / 0.5, hands, hand_scale


def _range(size: float, shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
    return size * (2 * torch.rand(shape, generator=generator, device=like.device) - 1)


def _roll_angles(
    hands: MeshHands, volume: Volume, limit: float, generator: torch.Generator, tries: int = 4
) -> Tensor:
    """(B,) radians: of a few draws the first that moves no joint out of the image, else 0."""
    angles = _range(limit, (tries, len(hands.joints)), hands.joints, generator)
    result = torch.zeros_like(angles[0])
    before = volume.contains(hands.joints).sum(-1)
    for angle in angles.flip(0):
        rotated = hands.joints @ rotation_about((0, 0, 1), angle).mT
        result = torch.where(volume.contains(rotated).sum(-1) >= before, angle, result)
    return result


def _roll_images(images: Tensor, angle: Tensor) -> Tensor:
    """Rotate images (B, 3, S, S) about the principal point, pixel (S / 2, S / 2); edges smear outwards."""
    size = images.shape[-1]
    backwards = rotation_about((0, 0, 1), -angle)[:, :2, :2]
    centre = torch.full((2, 1), 1 / size, device=images.device)  # principal point as grid_sample counts
    transform = torch.cat([backwards, centre - backwards @ centre], 2)
    grid = affine_grid(transform, list(images.shape), align_corners=False)
    return grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _photometric(images: Tensor, augmentation: Augmentation, generator: torch.Generator) -> Tensor:
    one = (len(images), 1, 1, 1)
    if augmentation.blur:
        weight = augmentation.blur * torch.rand(one, generator=generator, device=images.device)
        images = torch.lerp(images, _mean_of_three(_mean_of_three(images, 2), 3), weight)
    if augmentation.contrast:
        mean = images.mean((1, 2, 3), keepdim=True)
        images = mean + (images - mean) * (1 + _range(augmentation.contrast, one, images, generator))
    if augmentation.brightness or augmentation.colour:
        gain = 1 + _range(augmentation.brightness, one, images, generator)
        channels = 1 + _range(augmentation.colour, (len(images), 3, 1, 1), images, generator)
        images = images * (gain * channels)
    if augmentation.noise:
        deviation = augmentation.noise * torch.rand(one, generator=generator, device=images.device)
        noise = torch.randn(images.shape, generator=generator, device=images.device)
        images = torch.addcmul(images, noise, deviation)
    return images.clamp(0, 1)


def _mean_of_three(images: Tensor, axis: int) -> Tensor:
    """Running mean of three pixels along an axis; the outermost pixels stay."""
    inner = images.shape[axis] - 2
    first, middle, last = (images.narrow(axis, start, inner) for start in range(3))
    result = images.clone()
    result.narrow(axis, 1, inner).copy_(first + middle + last).mul_(1 / 3)
    return result
