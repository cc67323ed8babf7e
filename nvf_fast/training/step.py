"""The computation of a training step, from images and hands to a batch and its losses."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nvf_fast.baselines import Network
from nvf_fast.data.hand_views import HandViews
from nvf_fast.model import NVF
from nvf_fast.training.augmentation import augment
from nvf_fast.training.config import TrainingConfig
from nvf_fast.training.hand_losses import HandBatch, hand_losses
from nvf_fast.training.images import ImageBatch
from nvf_fast.training.losses import AuxiliaryHead
from nvf_fast.training.objectives import Objective, objective_of
from nvf_fast.volumes import Volume, volume_of


class Batch(NamedTuple):
    """An augmented and labelled batch.

    images (B, 3, S, S) normalised; hand_scale (B,) mm, the network's input; labels of the objective; joints
    (B, 21, 3) mm in the task's frame; true_scale (B,) mm.
    """

    images: Tensor
    hand_scale: Tensor
    labels: Any
    joints: Tensor
    true_scale: Tensor


class Step:
    """Batches and losses on images of the reference frustum or the root cube.

    Args:
        config: every number of the training.
        device: where to compute.
        layout: memory format of the images.
    """

    def __init__(self, config: TrainingConfig, device: torch.device, layout: torch.memory_format) -> None:
        self.config, self.device, self.layout = config, device, layout
        self.volume: Volume = volume_of(config.model)
        self.objective: Objective = objective_of(config.model, config.sampling, config.losses, self.volume)

    @property
    def shown(self) -> tuple[str, ...]:
        """The losses shown beside the progress bar."""
        return self.objective.shown

    @torch.no_grad()
    def batch(self, parts: Iterable[tuple[ImageBatch, torch.Generator]]) -> Batch:
        """Join parts of a batch, each augmented and labelled with its own random numbers.

        Args:
            parts: images on any device, and a generator on the step's.
        """
        made = []
        for part, generator in parts:
            images = part.images.to(self.device, non_blocking=True)
            hands = part.hands.to(self.device)
            images, hands, hand_scale = augment(
                images, hands, self.volume, self.config.augmentation, generator
            )
            labels = self.objective.labels(hands, generator)
            made.append((images, hand_scale, labels, hands.joints, hands.hand_scale))
        every_image, every_scale, every_label, every_joint, every_true_scale = zip(*made, strict=True)
        return Batch(
            torch.cat(every_image).contiguous(memory_format=self.layout),
            torch.cat(every_scale),
            type(every_label[0])(*(torch.cat(each) for each in zip(*every_label, strict=True))),
            torch.cat(every_joint),
            torch.cat(every_true_scale),
        )

    def losses(self, model: Network, auxiliary: AuxiliaryHead | None, batch: Batch) -> dict[str, Tensor]:
        """() tensors by name, unweighted, and "loss", their weighted sum, to be minimised."""
        bfloat16 = self.config.optimisation.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bfloat16):
            every_features = model.encode_all(batch.images)
        scale = batch.hand_scale if self.config.model.hand_scale else None
        terms = self.objective.losses(model, every_features, batch.labels, scale)
        if auxiliary is not None:
            extra = auxiliary.losses(every_features[-1], batch.joints, batch.true_scale)
            weighted = self.config.losses.auxiliary_weight * torch.stack([*extra.values()]).sum()
            terms = {**terms, **extra, "loss": terms["loss"] + weighted}
        return terms


class HandStep:
    """Batches and losses on hand views, the counterpart of `Step`."""

    shown = ("loss", "places", "depths", "middle", "sdf")

    def __init__(self, config: TrainingConfig, device: torch.device, layout: torch.memory_format) -> None:
        self.config, self.device, self.layout = config, device, layout

    @torch.no_grad()
    def batch(self, parts: Iterable[tuple[HandViews, torch.Generator]]) -> HandBatch:
        """Join parts of a batch, with random changes of colour and random moves of each view."""
        made = []
        for views, generator in parts:
            batch = HandBatch.of(views, self.device)
            count, jitter = len(batch.images), self.config.views.colour
            noise = torch.randn(count, 4, 1, 1, generator=generator, device=self.device) * jitter
            images = (batch.images * noise[:, :3].exp() + noise[:, 3:]).clamp_(-1, 1)
            # Cubed: most moves are small, by a pixel or less.
            moves = (2 * torch.rand(count, 3, generator=generator, device=self.device) - 1) ** 3
            made.append(batch._replace(images=images, moves=moves))
        joined = HandBatch(*map(torch.cat, zip(*made, strict=True)))
        return joined._replace(images=joined.images.contiguous(memory_format=self.layout))

    def losses(self, model: NVF, auxiliary: None, batch: HandBatch) -> dict[str, Tensor]:
        """() tensors by name, unweighted, and "loss", their weighted sum, to be minimised."""
        bfloat16 = self.config.optimisation.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bfloat16):
            return hand_losses(model, batch, self.config.hand_losses)


def step_of(config: TrainingConfig, device: torch.device, layout: torch.memory_format) -> Any:
    """The `Step` or `HandStep` of a network's view."""
    return (HandStep if config.model.view == "hand" else Step)(config, device, layout)
