"""The field's labels (Eqs. 1-3) and training losses (Eqs. 5-7), in sdf / 50 mm, and optional additions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import relu, smooth_l1_loss

from nvf_fast.camera import REFERENCE_SLOPE
from nvf_fast.model import FieldValues
from nvf_fast.runtime.arguments import check_choices, check_ranges

SDF_UNIT_MM = 50.0


@dataclass(frozen=True)
class LossConfig:
    """Weights and ranges of the losses. The defaults are the paper's."""

    clamp_mm: float = 5.0  # signed distances are compared after clamping to plus or minus this value
    # a point carries votes where its true distance to the surface is below this value
    surface_mm: float = 5.0
    ball_mm: float = 80.0  # radius of the ball around a joint inside which points vote for it
    nearest: int = 1024  # points per joint that carry votes
    vote_weight: float = 0.1  # λ, the weight of the voting loss; 0.1 camera-space, 10 root-relative
    vote_beta: float = 1.0  # where the voting loss turns from quadratic to linear (Huber)
    # "elements" averages over every point, joint and channel, as in the paper; "near", an addition, averages
    # per image over near-surface points, and directions only where the label is non-zero
    vote_normalisation: Literal["elements", "near"] = "elements"
    # addition: weight of the distance clamped at 50 mm, which has gradients farther from the surface; 0 is
    # off
    wide_weight: float = 0.0
    # addition: weight of a direct regression from the encoder's features; 0 is off
    auxiliary_weight: float = 0.0

    def __post_init__(self) -> None:
        positive = dict.fromkeys(("clamp_mm", "surface_mm", "ball_mm", "nearest", "vote_beta"), "(0, inf)")
        weights = dict.fromkeys(("vote_weight", "wide_weight", "auxiliary_weight"), "[0, inf)")
        check_ranges(self, **positive, **weights)
        check_choices(self)


class Targets(NamedTuple):
    """Labels of the field at N points of B images."""

    points: Tensor  # (B, N, 3) mm in the task's frame
    sdf: Tensor  # (B, N) mm
    near: Tensor  # (B, N) bool
    weight: Tensor  # (B, N, J)
    direction: Tensor  # (B, N, J, 3)

    @classmethod
    def build(cls, points: Tensor, sdf: Tensor, joints: Tensor, config: LossConfig) -> Targets:
        """Label points (B, N, 3) mm, of signed distance sdf (B, N) mm, for joints (B, J, 3) mm."""
        near = sdf.abs() < config.surface_mm
        weight, direction = voting_labels(points, joints, near, config.ball_mm, config.nearest)
        return cls(points, sdf, near, weight, direction)


def voting_labels(
    points: Tensor, joints: Tensor, near: Tensor, ball_mm: float = 80.0, nearest: int = 1024
) -> tuple[Tensor, Tensor]:
    """Label the weight and direction of each point's vote for each joint (Eqs. 1-3).

    A label is non-zero where the point is near the surface, within `ball_mm` of the joint, and among the
    `nearest` such points of that joint.

    Args:
        points: (B, N, 3) float mm, camera frame.
        joints: (B, J, 3) float mm, camera frame.
        near: (B, N) bool, the points within the clamping distance of the surface.
        ball_mm: radius r of the ball about each joint, mm.
        nearest: K, the points per joint that keep their label; every point where N is smaller.

    Returns:
        weight (B, N, J) = 1 - distance / r, and direction (B, N, J, 3), unit vectors from point to joint;
        both zero where the label is.
    """
    offset = joints[:, None] - points[:, :, None]
    distance = offset.norm(dim=-1)
    weight = (ball_mm - distance).clamp_min(0) / ball_mm * near[..., None]
    if nearest < points.shape[1]:
        kept = torch.zeros_like(weight, dtype=torch.bool)
        kept.scatter_(1, weight.topk(nearest, dim=1).indices, True)
        weight = weight * kept
    scale = (weight > 0) / distance.clamp_min(1e-10)  # a point on the joint itself gets the zero vector
    return weight, offset * scale[..., None]


def sdf_loss(predicted: Tensor, target: Tensor, clamp_mm: float) -> Tensor:
    """Mean absolute difference of clamped signed distances (Eq. 5), in sdf / 50 mm.

    Args:
        predicted: (B, N) mm.
        target: (B, N) mm.
        clamp_mm: both are clamped to plus or minus this value.

    Returns:
        () loss.
    """
    predicted, target = (each.clamp(-clamp_mm, clamp_mm) for each in (predicted, target))
    return (predicted - target).abs().mean() / SDF_UNIT_MM


def vote_losses(
    weight: Tensor, direction: Tensor, targets: Targets, config: LossConfig
) -> tuple[Tensor, Tensor]:
    """Huber losses of weights and directions over near-surface points (Eq. 6); their sum is L_V.

    Args:
        weight: (B, N, J) predicted.
        direction: (B, N, J, 3) predicted.
        targets: labels of the same points.
        config: `vote_beta` and `vote_normalisation`.

    Returns:
        (), (): the weights' and the directions' terms. "elements": sums over near-surface points divided by
        all B N J 4 elements. "near": separate means, per image and then over images.
    """
    near = targets.near[:, :, None].to(weight.dtype)
    beta = config.vote_beta
    if config.vote_normalisation == "elements":
        elements = 4 * weight.numel()
        at_weight = smooth_l1_loss(weight * near, targets.weight * near, beta=beta, reduction="sum")
        near = near[..., None]
        at_direction = smooth_l1_loss(direction * near, targets.direction * near, beta=beta, reduction="sum")
        return at_weight / elements, at_direction / elements
    labelled = (targets.weight > 0).to(weight.dtype)  # labels are non-zero only near the surface
    each_weight = smooth_l1_loss(weight, targets.weight, beta=beta, reduction="none") * near
    each_direction = smooth_l1_loss(direction, targets.direction, beta=beta, reduction="none")
    each_direction = each_direction.mean(-1) * labelled
    near_count = near.sum((1, 2)).clamp_min(1) * weight.shape[2]
    return (
        (each_weight.sum((1, 2)) / near_count).mean(),
        (each_direction.sum((1, 2)) / labelled.sum((1, 2)).clamp_min(1)).mean(),
    )


def field_losses(field: FieldValues, targets: Targets, config: LossConfig) -> dict[str, Tensor]:
    """All losses of one prediction of the field.

    Args:
        field: predictions at N points of B images.
        targets: labels of the same points.
        config: weights and ranges.

    Returns:
        () tensors: "sdf" (Eq. 5), "weight" and "direction" (Eq. 6), "wide" where it is on, all unweighted,
        and "loss", their weighted sum (Eq. 7).
    """
    at_weight, at_direction = vote_losses(field.weight, field.direction, targets, config)
    sdf = sdf_loss(field.sdf, targets.sdf, config.clamp_mm)
    terms = {"sdf": sdf, "weight": at_weight, "direction": at_direction}
    loss = sdf + config.vote_weight * (at_weight + at_direction)
    if config.wide_weight:
        terms["wide"] = sdf_loss(field.sdf, targets.sdf, SDF_UNIT_MM)
        loss = loss + config.wide_weight * terms["wide"]
    return {**terms, "loss": loss}


def mean_terms(terms: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Average the losses of every stack's features (intermediate supervision)."""
    return {name: torch.stack([each[name] for each in terms]).mean() for name in terms[0]}


class AuxiliaryHead(nn.Module):
    """Auxiliary regression of the hand from the encoder's features for short trainings; never exported.

    Soft-argmax maps locate the joints in the image; pooled features predict the depth of the joints' mean,
    and each joint's depth relative to it, in hand scales, in which the image alone determines them.
    """

    def __init__(self, channels: int, joints: int = 21, hidden: int = 256) -> None:
        super().__init__()
        self.maps = nn.Linear(channels, joints)
        self.pooled = nn.Linear(2 * channels, hidden)
        self.depths = nn.Linear(hidden, 1 + joints)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features (B, C, H, W) to log depth (B,), uv (B, J, 2) in [-1, 1] and relative depth (B, J)."""
        height, width = features.shape[2:]
        row = torch.linspace(-1, 1, height, device=features.device)
        column = torch.linspace(-1, 1, width, device=features.device)
        features = features.float()
        maps = self.maps(features.flatten(2).transpose(1, 2))
        weights = maps.softmax(1).transpose(1, 2).unflatten(2, (height, width))
        uv = torch.stack([weights.sum(2) @ column, weights.sum(3) @ row], -1)
        pooled = torch.cat([features.mean((2, 3)), features.amax((2, 3))], 1)
        depths = self.depths(relu(self.pooled(pooled)))
        return depths[:, 0], uv, depths[:, 1:]

    def losses(self, features: Tensor, joints: Tensor, hand_scale: Tensor) -> dict[str, Tensor]:
        """Mean absolute errors of the regression.

        Args:
            features: (B, C, H, W), any float dtype.
            joints: (B, J, 3) mm, camera frame.
            hand_scale: (B,) mm, the true one.

        Returns:
            () tensors: "auxiliary_depth" (log of depth over hand scale), "auxiliary_uv" (half views,
            joints inside the view only), "auxiliary_relative" (hand scales).
        """
        log_depth, uv, relative = self(features)
        depth = joints[..., 2].mean(1)
        target_uv = joints[..., :2] / joints[..., 2:].clamp_min(1.0) / REFERENCE_SLOPE
        visible = (target_uv.abs() <= 1).all(-1, keepdim=True) & (joints[..., 2:] > 0)
        target_relative = (joints[..., 2] - depth[:, None]) / hand_scale[:, None]
        per_image = ((uv - target_uv).abs() * visible).sum((1, 2)) / (2 * visible.sum((1, 2))).clamp_min(1)
        return {
            "auxiliary_depth": (log_depth - (depth / hand_scale).log()).abs().mean(),
            "auxiliary_uv": per_image.mean(),
            "auxiliary_relative": (relative - target_relative).abs().mean(),
        }
