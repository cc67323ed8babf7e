"""The baseline of a training step: the same step in straightforward eager float32 PyTorch.

It has separate GroupNorm and ReLU, bicubic upsampling by `F.interpolate`, the field as 1 x 1 convolutions
over [hidden, x], concatenated anew for every layer at every point, labels joint by joint with a full sort,
and weights averaged one by one. Images, random numbers, augmentation, query points, their distances and the
losses of given labels use the same code on both sides. The rest was written for this comparison.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.baselines import PlainNormReLU
from nvf_fast.camera import REFERENCE_FOCAL, REFERENCE_SLOPE
from nvf_fast.encoder import BicubicUpsample, NormReLU
from nvf_fast.model import NVF, FieldValues
from nvf_fast.training.augmentation import augment
from nvf_fast.training.images import ImageBatch
from nvf_fast.training.loader import mixed_seed
from nvf_fast.training.losses import Targets, field_losses, mean_terms
from nvf_fast.training.points import sample_points
from nvf_fast.training.trainer import Trainer


class PlainStep:
    """The training of a camera-space field, from the current weights of `trainer`."""

    def __init__(self, trainer: Trainer) -> None:
        assert isinstance(trainer.model, NVF)
        self.config, self.device, self.own = trainer.config, trainer.device, trainer.own
        self.volume = trainer.objective.volume
        self.model = copy.deepcopy(trainer.model).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        self.auxiliary = copy.deepcopy(trainer.auxiliary)
        for parent in list(self.model.encoder.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, NormReLU):
                    setattr(parent, name, PlainNormReLU(child))
                elif isinstance(child, BicubicUpsample):
                    setattr(parent, name, nn.Upsample(scale_factor=2, mode="bicubic", align_corners=True))
        self.averaged = copy.deepcopy(self.model)
        self.parameters = [*self.model.parameters()]
        if self.auxiliary is not None:
            self.parameters += self.auxiliary.parameters()
        self.optimiser = torch.optim.AdamW(self.parameters, lr=trainer.learning_rate, foreach=False)
        self.step = trainer.step

    def update(self, parts: list[ImageBatch]) -> None:
        """Make one step on the parts of a batch."""
        loss = self.loss(parts)
        self.optimiser.zero_grad()
        loss.backward()
        options = self.config.optimisation
        if options.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, options.clip_norm, foreach=False)
        self.optimiser.step()
        self.step += 1
        if options.ema is not None:
            with torch.no_grad():
                for averaged, latest in zip(self.averaged.parameters(), self.model.parameters(), strict=True):
                    averaged.lerp_(latest, 1 - options.ema)

    def loss(self, parts: list[ImageBatch]) -> Tensor:
        """() the loss of the next batch."""
        every = [self._part(part, number) for part, number in zip(parts, self.own, strict=True)]
        images, fed, points, sdf, joints, scale = (torch.cat(each) for each in zip(*every, strict=True))
        losses = self.config.losses
        targets = brute_labels(points, sdf, joints, losses.surface_mm, losses.ball_mm, losses.nearest)
        features = self.model.encoder(images)
        scale_input = fed if self.config.model.hand_scale else None
        fields = [self._field(each, points, scale_input) for each in features]
        loss = mean_terms([field_losses(field, targets, losses) for field in fields])["loss"]
        if self.auxiliary is not None:
            for extra in self.auxiliary.losses(features[-1], joints, scale).values():
                loss = loss + losses.auxiliary_weight * extra
        return loss

    @torch.no_grad()
    def _part(self, part: ImageBatch, number: int) -> tuple[Tensor, ...]:
        seed = mixed_seed(self.config.seed, self.step, number)
        generator = torch.Generator(self.device).manual_seed(seed)
        images, hands = part.images.to(self.device), part.hands.to(self.device)
        images, hands, fed = augment(images, hands, self.volume, self.config.augmentation, generator)
        points, sdf = sample_points(hands, self.volume, self.config.sampling, generator)
        return images, fed, points, sdf, hands.joints, hands.hand_scale

    def _field(self, features: Tensor, points: Tensor, hand_scale: Tensor | None) -> FieldValues:
        uv = points[..., :2] / points[..., 2:] / REFERENCE_SLOPE
        inputs = [
            F.grid_sample(features, uv[:, :, None], align_corners=True)[..., 0],
            points[:, None, :, 2] / REFERENCE_FOCAL,
        ]
        if hand_scale is not None:
            inputs.append(((hand_scale - 15) / 25)[:, None, None].expand_as(inputs[1]))
        x = torch.cat(inputs, 1)
        hidden = x
        layers = zip(self.model.field.weights, self.model.field.biases, strict=True)
        for number, (weight, bias) in enumerate(layers):
            if number > 0:
                hidden = torch.cat([F.leaky_relu(hidden, 0.01), x], 1)
            hidden = F.conv1d(hidden, weight[..., None], bias)
        votes = hidden[:, 1:].mT.unflatten(-1, (-1, 4))
        return FieldValues(50 * torch.tanh(hidden[:, 0]), votes[..., 0], votes[..., 1:])


@torch.no_grad()
def brute_labels(
    points: Tensor, sdf: Tensor, joints: Tensor, surface_mm: float, ball_mm: float, nearest: int
) -> Targets:
    """Labels of Eqs. 1-3, joint by joint, of points (B, N, 3), distances (B, N) and joints (B, J, 3) mm."""
    near = sdf.abs() < surface_mm
    weights, directions = [], []
    for joint in joints.unbind(1):
        offset = joint[:, None] - points
        distance = offset.norm(dim=-1)
        votes = near & (distance < ball_mm)
        order = torch.where(votes, distance, torch.inf).argsort(1)
        votes &= torch.zeros_like(votes).scatter(1, order[:, :nearest], True)
        weights.append(torch.where(votes, 1 - distance / ball_mm, 0.0))
        directions.append(torch.where(votes[..., None], offset / distance[..., None], 0.0))
    return Targets(points, sdf, near, torch.stack(weights, -1), torch.stack(directions, 2))
