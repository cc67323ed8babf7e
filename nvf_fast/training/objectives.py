"""Labels of a batch of hands and losses against them, by method (Secs. 3.3 and 4.1)."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, smooth_l1_loss

from nvf_fast.baselines import DenseBaseline, HolisticBaseline
from nvf_fast.config import NVFConfig
from nvf_fast.data.surfaces import HandSurfaces
from nvf_fast.model import NVF
from nvf_fast.training.labels import voting_labels
from nvf_fast.training.losses import LossConfig, Targets, field_losses, mean_terms
from nvf_fast.training.points import PointSampling, sample_points
from nvf_fast.volumes import Volume


class Objective(Protocol):
    """One method's labels and losses.

    Labels are a NamedTuple of tensors whose first axis is the batch, so that parts of a batch join.
    """

    @property
    def shown(self) -> tuple[str, ...]:
        """The losses shown beside the progress bar."""
        ...

    def labels(self, hands: HandSurfaces, generator: torch.Generator) -> Any:
        """Label B hands in the task's frame; `generator` is the source of every random number."""
        ...

    def losses(
        self, model: Any, every_features: list[Tensor], labels: Any, scale: Tensor | None
    ) -> dict[str, Tensor]:
        """() tensors, "loss" their weighted sum, averaged over every stack's features (B, C, H, W)."""
        ...


def objective_of(config: NVFConfig, sampling: PointSampling, losses: LossConfig, volume: Volume) -> Objective:
    """Make the objective of a network."""
    if config.method == "nvf":
        return FieldObjective(volume, sampling, losses)
    if config.method == "dense":
        return DenseObjective(volume, config.feature_size, losses)
    return HolisticObjective(losses)


class FieldLabels(NamedTuple):
    """Query points (B, N, 3) mm in the task's frame, and the labels of the field there."""

    points: Tensor
    sdf: Tensor
    near: Tensor
    weight: Tensor
    direction: Tensor


class FieldObjective:
    """NVF: signed distance and votes at points about the hand (Eqs. 5-7)."""

    shown = ("loss", "sdf", "weight", "direction")

    def __init__(self, volume: Volume, sampling: PointSampling, losses: LossConfig) -> None:
        self.volume, self.sampling, self.config = volume, sampling, losses

    def labels(self, hands: HandSurfaces, generator: torch.Generator) -> FieldLabels:
        points, sdf = sample_points(hands, self.volume, self.sampling, generator)
        return FieldLabels(points, *Targets.build(points, sdf, hands.joints, self.config))

    def losses(
        self, model: NVF, every_features: list[Tensor], labels: FieldLabels, scale: Tensor | None
    ) -> dict[str, Tensor]:
        points, targets = self.volume.network_points(labels.points), Targets(*labels[1:])
        fields = [
            model.query(features, points, model.reference_intrinsics, scale) for features in every_features
        ]
        return mean_terms([field_losses(field, targets, self.config) for field in fields])


class HolisticLabels(NamedTuple):
    """Joints (B, 21, 3) mm in the task's frame."""

    joints: Tensor


class HolisticObjective:
    """Baseline-Holistic: Huber loss of the normalised joints (Eq. 10)."""

    shown = ("loss",)

    def __init__(self, losses: LossConfig) -> None:
        self.beta = losses.vote_beta

    def labels(self, hands: HandSurfaces, generator: torch.Generator) -> HolisticLabels:
        return HolisticLabels(hands.joints)

    def losses(
        self,
        model: HolisticBaseline,
        every_features: list[Tensor],
        labels: HolisticLabels,
        scale: Tensor | None,
    ) -> dict[str, Tensor]:
        expected = model.normalised(labels.joints)
        predicted = [model.regress(features, scale) for features in every_features]
        return mean_terms([{"loss": smooth_l1_loss(each, expected, beta=self.beta)} for each in predicted])


class DenseLabels(NamedTuple):
    """Labels of the L texels of a feature map.

    hand (B, L) bool; weight (B, L, 21), closeness of the hand's first point on the ray to each joint; joints
    (B, 21, 3) mm in the task's frame.
    """

    hand: Tensor
    weight: Tensor
    joints: Tensor


class DenseObjective:
    """Baseline-2D-Dense: the hand's mask, and votes where it is (Eqs. 11-12)."""

    shown = ("loss", "mask", "weight", "joints")

    def __init__(self, volume: Volume, side: int, losses: LossConfig) -> None:
        self.volume, self.side, self.config = volume, side, losses

    def labels(self, hands: HandSurfaces, generator: torch.Generator) -> DenseLabels:
        rays = self.volume.rays(self.side, hands.joints.device)
        origins, directions = (each.expand(len(hands), -1, -1) for each in rays)
        along = hands.first_hit(origins, directions)
        hand = along.isfinite()
        points = origins + along.where(hand, 0.0)[..., None] * directions
        weight, _ = voting_labels(points, hands.joints, hand, self.config.ball_mm, self.config.nearest)
        return DenseLabels(hand, weight, hands.joints)

    def losses(
        self, model: DenseBaseline, every_features: list[Tensor], labels: DenseLabels, scale: Tensor | None
    ) -> dict[str, Tensor]:
        hand = labels.hand.float()
        # Each part is a mean over all L texels, those off the hand counting as zero (Eq. 12).
        shown = hand[..., None]
        expected = model.normalised(labels.joints)[:, None]
        terms = []
        for features in every_features:
            votes = model.votes(features, scale)
            mask = binary_cross_entropy_with_logits(votes.hand, hand)
            weight = self._huber(votes.weight * shown, labels.weight) / 4
            joints = self._huber(votes.joints * shown[..., None], expected * shown[..., None]) * 3 / 4
            loss = mask + self.config.vote_weight * (weight + joints)
            terms.append({"mask": mask, "weight": weight, "joints": joints, "loss": loss})
        return mean_terms(terms)

    def _huber(self, predicted: Tensor, expected: Tensor) -> Tensor:
        return smooth_l1_loss(predicted, expected, beta=self.config.vote_beta)
