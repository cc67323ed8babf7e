"""The baselines of Sec. 4.1, with the encoder and MLP of the field."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from nvf_fast.config import NVFConfig
from nvf_fast.encoder import HourglassEncoder
from nvf_fast.field import FieldMLP, check_hand_scale
from nvf_fast.model import NVF
from nvf_fast.volumes import volume_of


class Baseline(nn.Module):
    """Common base of the baselines: an encoder, an MLP, and joints normalised by the task's volume.

    Joints are regressed as (joint - centre) / half-extent of the volume's box, so that initial predictions
    lie near its middle and all axes have the same scale.
    """

    def __init__(self, config: NVFConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = HourglassEncoder(config)
        self.field = FieldMLP(config)
        volume = volume_of(config)
        self.register_buffer("centre", torch.tensor(volume.centre_mm, dtype=torch.float32), persistent=False)
        self.register_buffer("extent", torch.tensor(volume.half_mm, dtype=torch.float32), persistent=False)
        self.float()  # whatever PyTorch's default dtype is

    centre: Tensor
    extent: Tensor

    def encode(self, images: Tensor) -> Tensor:
        """Encode images (B, 3, S, S), normalised as for `NVF.encode`, as features (B, width, S/4, S/4)."""
        return self.encoder.last_features(images)

    def encode_all(self, images: Tensor) -> list[Tensor]:
        """Features after every stack, in order, for deep supervision."""
        every_features: list[Tensor] = self.encoder(images)
        return every_features

    def normalised(self, joints: Tensor) -> Tensor:
        """Normalise joints (..., 3) mm by the volume."""
        return (joints - self.centre) / self.extent

    def in_mm(self, normalised: Tensor) -> Tensor:
        """Invert `normalised`."""
        return normalised * self.extent + self.centre

    def _raw(self, x: Tensor, hand_scale: Tensor | None) -> Tensor:
        """Evaluate the MLP in float32 for inputs (B, ..., width) and hand scales (B,) mm or None."""
        check_hand_scale(self.config, hand_scale)
        if self.config.hand_scale:
            scale = x.new_zeros(len(x)) if hand_scale is None else ((hand_scale - 15) / 25).to(x.dtype)
            x = torch.cat([x, scale.view(-1, *[1] * (x.ndim - 1)).expand(*x.shape[:-1], 1)], -1)
        raw: Tensor = self.field(x)
        return raw.float()


class HolisticBaseline(Baseline):
    """Baseline-Holistic: joints from the globally averaged features (Eq. 10)."""

    def regress(self, features: Tensor, hand_scale: Tensor | None = None) -> Tensor:
        """Normalised joints (B, 21, 3) of features (B, width, H, W) and hand scales (B,) mm or None."""
        raw = self._raw(features.mean((2, 3)), hand_scale)
        return raw.view(len(raw), self.config.joints, 3)

    @torch.no_grad()
    def predict(self, features: Tensor, hand_scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Predict joints in the frame of the task's volume.

        Args:
            features: (B, width, H, W) from `encode`.
            hand_scale: (B,) float32 mm, or None.

        Returns:
            joints (B, 21, 3) mm and voters (B,) int, always 1: a regression never fails.
        """
        joints = self.in_mm(self.regress(features, hand_scale))
        return joints, torch.ones(len(joints), dtype=torch.int64, device=joints.device)


class PixelVotes(NamedTuple):
    """Predictions of `DenseBaseline` at the L texels of B feature maps, row by row."""

    hand: Tensor  # (B, L) float32 logit of e, the probability that the texel shows the hand
    weight: Tensor  # (B, L, 21) float32, closeness to each joint of the hand's first point on the texel's ray
    joints: Tensor  # (B, L, 21, 3) float32, normalised


class DenseBaseline(Baseline):
    """Baseline-2D-Dense: every texel predicts whether it shows the hand, and votes for joints (Eqs. 11-12).

    Pixels are the texels of the feature map, which need no interpolation.
    """

    def votes(self, features: Tensor, hand_scale: Tensor | None = None) -> PixelVotes:
        """Predict at every texel of features (B, width, H, W), for hand scales (B,) mm or None."""
        raw = self._raw(features.flatten(2).mT, hand_scale)
        votes = raw[..., 1:].reshape(*raw.shape[:-1], self.config.joints, 4)
        return PixelVotes(raw[..., 0], votes[..., 0], votes[..., 1:])

    @torch.no_grad()
    def predict(self, features: Tensor, hand_scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Predict joints as weighted means over the texels with e > 0.5 (as in Eq. 9).

        Args:
            features, hand_scale: as in `HolisticBaseline.predict`.

        Returns:
            joints (B, 21, 3) mm in the frame of the task's volume, NaN without a texel that shows the hand
            and votes for the joint; and voters (B,) int, the number of texels that voted.
        """
        votes = self.votes(features, hand_scale)
        voting = votes.hand > 0
        weight = votes.weight.clamp_min(0) * voting[..., None]
        joints = (weight[..., None] * votes.joints).sum(1) / weight.sum(1)[..., None]
        return self.in_mm(joints), voting.sum(1)


Network = NVF | HolisticBaseline | DenseBaseline


def build(config: NVFConfig) -> Network:
    """Make the network of a configuration, with initial weights."""
    classes: dict[str, type[Network]] = {"nvf": NVF, "holistic": HolisticBaseline, "dense": DenseBaseline}
    return classes[config.method](config)
