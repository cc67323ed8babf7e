"""Batches of a training step and their losses, by the network's view and method (Secs. 3.3 and 4.1)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, smooth_l1_loss

from nvf_fast.baselines import DenseBaseline, HolisticBaseline, Network
from nvf_fast.data.surfaces import MeshHands
from nvf_fast.model import NVF
from nvf_fast.training.augmentation import augment
from nvf_fast.training.config import TrainingConfig
from nvf_fast.training.hand_losses import HandBatch, hand_losses
from nvf_fast.training.images import ImageBatch
from nvf_fast.training.losses import AuxiliaryHead, Targets, field_losses, mean_terms, voting_labels
from nvf_fast.training.points import sample_points
from nvf_fast.volumes import volume_of


class Batch(NamedTuple):
    """An augmented and labelled batch of images."""

    images: Tensor  # (B, 3, S, S) normalised
    hand_scale: Tensor  # (B,) mm, the network's input
    labels: Any  # of the method
    joints: Tensor  # (B, 21, 3) mm in the task's frame
    true_scale: Tensor  # (B,) mm


class Objective(ABC):
    """Batches and losses on images of the reference frustum or the root cube.

    Labels are a NamedTuple of tensors whose first axis is the batch, so that parts of a batch join.

    Args:
        config: every number of the training.
        device: where to compute.
        layout: memory format of the images.
    """

    shown: tuple[str, ...]  # losses shown beside the progress bar

    def __init__(self, config: TrainingConfig, device: torch.device, layout: torch.memory_format) -> None:
        self.config, self.device, self.layout = config, device, layout
        self.volume = volume_of(config.model)

    @abstractmethod
    def labels(self, hands: MeshHands, generator: torch.Generator) -> Any:
        """Label B hands in the task's frame; `generator` is the source of every random number."""

    @abstractmethod
    def stack_losses(
        self, model: Any, features: Tensor, labels: Any, scale: Tensor | None
    ) -> dict[str, Tensor]:
        """Losses () of one stack's features (B, C, H, W), unweighted, and "loss", their weighted sum."""

    @torch.no_grad()
    def batch(self, parts: Iterable[tuple[ImageBatch, torch.Generator]]) -> Batch:
        """Join parts of a batch, each augmented and labelled with its own random numbers.

        Args:
            parts: images on any device, and a generator on the objective's.
        """
        made, ranges = [], self.config.augmentation
        for part, generator in parts:
            images = part.images.to(self.device, non_blocking=True)
            hands = part.hands.to(self.device)
            images, hands, hand_scale = augment(images, hands, self.volume, ranges, generator)
            labels = self.labels(hands, generator)
            made.append((images, hand_scale, labels, hands.joints, hands.hand_scale))
        every_image, scales, every_label, joints, true_scales = zip(*made, strict=True)
        images = torch.cat(every_image).contiguous(memory_format=self.layout)
        labels = type(every_label[0])(*map(torch.cat, zip(*every_label, strict=True)))
        return Batch(images, torch.cat(scales), labels, torch.cat(joints), torch.cat(true_scales))

    def losses(self, model: Network, auxiliary: AuxiliaryHead | None, batch: Batch) -> dict[str, Tensor]:
        """() tensors by name, unweighted, and "loss", their weighted sum, to be minimised."""
        bfloat16 = self.config.optimisation.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bfloat16):
            every_features = model.encode_all(batch.images)
        labels, scale = batch.labels, batch.hand_scale if self.config.model.hand_scale else None
        terms = mean_terms([self.stack_losses(model, each, labels, scale) for each in every_features])
        if auxiliary is not None:
            extra = auxiliary.losses(every_features[-1], batch.joints, batch.true_scale)
            weighted = self.config.losses.auxiliary_weight * torch.stack([*extra.values()]).sum()
            terms = {**terms, **extra, "loss": terms["loss"] + weighted}
        return terms


class FieldObjective(Objective):
    """NVF: signed distance and votes at points about the hand (Eqs. 5-7)."""

    shown = ("loss", "sdf", "weight", "direction")

    def labels(self, hands: MeshHands, generator: torch.Generator) -> Targets:
        points, sdf = sample_points(hands, self.volume, self.config.sampling, generator)
        return Targets.build(points, sdf, hands.joints, self.config.losses)

    def stack_losses(
        self, model: NVF, features: Tensor, labels: Targets, scale: Tensor | None
    ) -> dict[str, Tensor]:
        points = self.volume.network_points(labels.points)
        field = model.query(features, points, model.reference_intrinsics, scale)
        return field_losses(field, labels, self.config.losses)


class HolisticLabels(NamedTuple):
    """Joints (B, 21, 3) mm in the task's frame."""

    joints: Tensor


class HolisticObjective(Objective):
    """Baseline-Holistic: Huber loss of the normalised joints (Eq. 10)."""

    shown = ("loss",)

    def labels(self, hands: MeshHands, generator: torch.Generator) -> HolisticLabels:
        return HolisticLabels(hands.joints)

    def stack_losses(
        self, model: HolisticBaseline, features: Tensor, labels: HolisticLabels, scale: Tensor | None
    ) -> dict[str, Tensor]:
        expected, predicted = model.normalised(labels.joints), model.regress(features, scale)
        return {"loss": smooth_l1_loss(predicted, expected, beta=self.config.losses.vote_beta)}


class DenseLabels(NamedTuple):
    """Labels of the L texels of a feature map."""

    hand: Tensor  # (B, L) bool
    weight: Tensor  # (B, L, 21), closeness of the hand's first point on the ray to each joint
    joints: Tensor  # (B, 21, 3) mm in the task's frame


class DenseObjective(Objective):
    """Baseline-2D-Dense: the hand's mask, and votes where it is (Eqs. 11-12)."""

    shown = ("loss", "mask", "weight", "joints")

    def labels(self, hands: MeshHands, generator: torch.Generator) -> DenseLabels:
        losses = self.config.losses
        rays = self.volume.rays(self.config.model.feature_size, hands.joints.device)
        origins, directions = (each.expand(len(hands), -1, -1) for each in rays)
        along = hands.first_hit(origins, directions)
        hand = along.isfinite()
        points = origins + along.where(hand, 0.0)[..., None] * directions
        weight, _ = voting_labels(points, hands.joints, hand, losses.ball_mm, losses.nearest)
        return DenseLabels(hand, weight, hands.joints)

    def stack_losses(
        self, model: DenseBaseline, features: Tensor, labels: DenseLabels, scale: Tensor | None
    ) -> dict[str, Tensor]:
        losses = self.config.losses
        votes = model.votes(features, scale)
        hand = labels.hand.float()
        # Each part is a mean over all L texels, those off the hand counting as zero (Eq. 12).
        shown = hand[..., None]
        expected = model.normalised(labels.joints)[:, None] * shown[..., None]
        mask = binary_cross_entropy_with_logits(votes.hand, hand)
        weight = smooth_l1_loss(votes.weight * shown, labels.weight, beta=losses.vote_beta) / 4
        joints = smooth_l1_loss(votes.joints * shown[..., None], expected, beta=losses.vote_beta) * 3 / 4
        loss = mask + losses.vote_weight * (weight + joints)
        return {"mask": mask, "weight": weight, "joints": joints, "loss": loss}


class HandObjective:
    """Batches and losses on hand views, the counterpart of `Objective`."""

    shown = ("loss", "places", "depths", "middle", "sdf")

    def __init__(self, config: TrainingConfig, device: torch.device, layout: torch.memory_format) -> None:
        self.config, self.device, self.layout = config, device, layout

    @torch.no_grad()
    def batch(self, parts: Iterable[tuple[Mapping[str, Tensor], torch.Generator]]) -> HandBatch:
        """Join parts of a batch, with random changes of colour and random moves of each view."""
        made = []
        for views, generator in parts:
            batch = HandBatch.of(views, self.device)
            count = len(batch.images)
            noise = torch.randn(count, 4, generator=generator, device=self.device) * self.config.views.colour
            made.append(batch.varied(noise, torch.rand(count, 3, generator=generator, device=self.device)))
        joined = HandBatch.join(made)
        return joined._replace(images=joined.images.contiguous(memory_format=self.layout))

    def losses(self, model: NVF, auxiliary: None, batch: HandBatch) -> dict[str, Tensor]:
        """() tensors by name, unweighted, and "loss", their weighted sum, to be minimised."""
        bfloat16 = self.config.optimisation.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bfloat16):
            return hand_losses(model, batch, self.config.hand_losses)


def objective_of(config: TrainingConfig, device: torch.device, layout: torch.memory_format) -> Any:
    """The `Objective` or `HandObjective` of a network."""
    if config.model.view == "hand":
        return HandObjective(config, device, layout)
    methods: dict[str, Callable[..., Objective]] = {
        "nvf": FieldObjective, "holistic": HolisticObjective, "dense": DenseObjective
    }  # fmt: skip
    return methods[config.model.method](config, device, layout)
