"""Losses of the heads and of the field on hand views."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nvf_fast.camera import normalised, view_intrinsics
from nvf_fast.data.hand_views import HandViews
from nvf_fast.kernels.place_hands.reference import DEPTH_MM
from nvf_fast.model import NVF, FieldValues
from nvf_fast.training.losses import sdf_loss, voting_labels
from nvf_fast.unet import HandEncoding


@dataclass(frozen=True)
class HandLossConfig:
    """Weights and ranges of the losses on hand views."""

    places: float = 0.5  # weight of the L1 distance of coarse joints in the view, in halves of the view
    heat: float = 0.08  # weight of the cross-entropy of the joints' heat maps with Gaussians
    heat_sigma: float = 0.08  # standard deviation of these Gaussians, in halves of the view
    depths: float = 0.3  # weight of the L1 distance of depths relative to the hand's middle, in 60 mm
    middle: float = 0.4  # weight of the L1 distance of the log of the depth of the hand's middle
    error: float = 0.02  # weight of the negative log-likelihood of the expected errors
    presence: float = 0.2  # weight of the cross-entropy of a hand's presence
    side: float = 0.6  # weight of the cross-entropy of a hand's side
    # weight of the focal loss of hands' centres and of the losses of their sizes and sides
    hands: float = 0.1
    # weight of the difference between the coarse poses of a view and of the same view moved, whose terms are
    # weighted as those of the coarse pose
    steady: float = 1.0
    moved: float = 0.3  # ratio of the posed views that are encoded a second time for `steady`
    # largest shift and change of the log of the focal length of a moved view
    move_px: float = 8.0
    move_zoom: float = 0.1
    # signed distances are compared after clamping at `clamp_mm`, and with weight `wide` at `wide_mm`
    clamp_mm: float = 5.0
    wide_mm: float = 50.0
    wide: float = 0.2
    near_mm: float = 20.0  # points carry votes where their true distance to the surface is below this
    ball_mm: float = 80.0  # radius of the ball around a joint inside which points vote for it (Eq. 2)
    # weights of the votes' Huber losses
    weights: float = 0.2
    directions: float = 0.1


class HandBatch(NamedTuple):
    """Labelled hand views as tensors; see `HandViews`."""

    images: Tensor  # (B, 3, S, S) normalised
    slopes: Tensor  # (B,)
    joints: Tensor
    points: Tensor
    distances: Tensor
    boxes: Tensor
    left: Tensor
    trust: Tensor
    moves: Tensor  # (B, 3) in [-1, 1], shift and zoom of a moved view in units of the largest
    posed: Tensor  # (P,) int64, the rows with trust above 0

    @classmethod
    def of(
        cls,
        views: HandViews | Mapping[str, Tensor],
        device: torch.device | str = "cpu",
        posed: Tensor | None = None,
    ) -> HandBatch:
        """Move labelled views, or their arrays as tensors, to a device and normalise their images.

        Args:
            views: the views.
            device: where to.
            posed: the rows with trust above 0, where known: finding them waits for the views' device.
        """
        arrays = vars(views) if isinstance(views, HandViews) else views
        to = {name: torch.as_tensor(value) for name, value in arrays.items()}
        if posed is None:
            posed = (to["trust"] > 0).nonzero()[:, 0]
        to = {name: value.to(device, non_blocking=True) for name, value in to.items()}
        images = to["images"].permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
        size = images.shape[-1]
        return cls(
            images=normalised(images.float()),
            slopes=size / 2 / to["focal"],
            moves=torch.zeros(len(images), 3, device=device),
            posed=posed.to(device),
            **{name: to[name] for name in ("joints", "points", "distances", "boxes", "left", "trust")},
        )

    @classmethod
    def join(cls, parts: Sequence[HandBatch]) -> HandBatch:
        """Join parts of a batch."""
        joined = cls(*map(torch.cat, zip(*parts, strict=True)))
        rows = accumulate((len(part.images) for part in parts), initial=0)
        posed = torch.cat([part.posed + first for part, first in zip(parts, rows, strict=False)])
        return joined._replace(posed=posed)

    def varied(self, noise: Tensor, uniform: Tensor) -> HandBatch:
        """Change the colours of the views, and choose their moves.

        Args:
            noise: (B, 4), the logs of gains of the channels, and an offset in halves of the range.
            uniform: (B, 3) in [0, 1).
        """
        noise = noise[..., None, None]
        images = (self.images * noise[:, :3].exp() + noise[:, 3:]).clamp_(-1, 1)
        # Cubed: most moves are small, by a pixel or less.
        return self._replace(images=images, moves=(2 * uniform - 1) ** 3)


def hand_losses(model: NVF, batch: HandBatch, config: HandLossConfig) -> dict[str, Tensor]:
    """Losses by name, () tensors without their weights, and "loss", their weighted sum.

    Shapes depend on those of the batch alone, so that a CUDA graph can hold the computation.
    """
    moved = batch.posed[: math.ceil(config.moved * len(batch.posed))] if config.steady else batch.posed[:0]
    views = moved_views(batch, moved, config)
    # One batch for both, so that the batch norms' statistics cover both.
    slopes = torch.cat([batch.slopes, views.slopes])
    both = model.encode_hands(torch.cat([batch.images, views.images]), slopes)
    parts = zip(*(each.split([len(batch.images), len(moved)]) for each in both), strict=True)
    encoding, again = (HandEncoding(*part) for part in parts)
    terms = _place_losses(encoding, batch, config)
    terms |= _hand_map_losses(encoding, batch)
    terms |= steady_losses(HandEncoding(*(each[moved] for each in encoding)), again, views, config)
    terms |= _field_losses(model, encoding, batch, config)
    weights = {
        name: getattr(config, name)
        for name in ("places", "heat", "depths", "middle", "error", "presence", "side", "hands", "steady")
    } | {"sdf": 1.0, "wide": config.wide, "weight": config.weights, "direction": config.directions}
    terms["loss"] = torch.stack([weights[name] * value for name, value in terms.items()]).sum()
    return terms


def _place_losses(encoding: HandEncoding, batch: HandBatch, config: HandLossConfig) -> dict[str, Tensor]:
    """Losses of the heads that describe one hand."""
    trust = batch.trust
    joints = torch.where((trust > 0)[:, None, None], batch.joints, 1.0)  # masked terms stay finite
    uv = joints[..., :2] / (batch.slopes[:, None] * joints[..., 2])[..., None]
    depth = joints[..., 2]
    middle = depth.mean(1)
    inside = (uv.abs() < 1).all(-1) * trust[:, None]
    total = trust.sum().clamp_min(1e-6)

    def mean(values: Tensor) -> Tensor:
        """Mean of (B, 21), weighted by trust."""
        return (values.mean(1) * trust).sum() / total

    places = mean((encoding.uv - uv).abs().sum(-1) * inside)
    # A Gaussian's product form spares the (B, 21, H, W) target.
    size = encoding.heat.shape[-1]
    texels = (4 * torch.arange(size, device=uv.device) + 1.5) / (2 * size) - 1
    gaps = (texels - uv[..., None]) / config.heat_sigma  # (B, 21, 2, W)
    across, down = torch.softmax(-0.5 * gaps**2, -1).unbind(2)
    log = encoding.heat.flatten(2).log_softmax(-1).unflatten(2, (size, size))
    heat = mean(-((log * across[:, :, None]).sum(-1) * down).sum(-1) * inside)
    relative = (encoding.depth - encoding.middle[:, None]) - (depth - middle[:, None])
    depths = mean(relative.abs() / DEPTH_MM)
    scale = ((encoding.middle.log() - middle.log()).abs() * trust).sum() / total
    distance = (encoding.joints(batch.slopes).detach() - joints).norm(dim=-1)
    distance = torch.where((trust > 0)[:, None], distance, 0.0)  # as above
    error = mean(encoding.error.log() + distance / encoding.error)

    hand = batch.boxes[:, 0].isfinite().all(-1).float()
    presence = F.binary_cross_entropy_with_logits(encoding.presence, hand)
    single = hand * (~batch.boxes[:, 1].isfinite().all(-1))  # of two hands neither is the view's
    sides = F.binary_cross_entropy_with_logits(encoding.left, batch.left[:, 0].float(), reduction="none")
    side = (sides * single).sum() / single.sum().clamp_min(1)
    return {
        "places": places, "heat": heat, "depths": depths, "middle": scale, "error": error,
        "presence": presence, "side": side,
    }  # fmt: skip


class MovedViews(NamedTuple):
    """M views moved by `shift` (M, 2), in halves of the view, and widened by the factors `zoom` (M,)."""

    images: Tensor
    slopes: Tensor
    shift: Tensor
    zoom: Tensor


def moved_views(batch: HandBatch, rows: Tensor, config: HandLossConfig) -> MovedViews:
    """Resample views as a slightly different box would show them."""
    images, size = batch.images[rows], batch.images.shape[-1]
    shift = batch.moves[rows, :2] * (2 * config.move_px / size)
    zoom = (batch.moves[rows, 2] * config.move_zoom).exp()
    # Place p of a moved view shows zoom * p + shift; grid_sample's -1 lies half a pixel before ours.
    if not len(rows):
        return MovedViews(images, batch.slopes[rows], shift, zoom)
    matrix = torch.diag_embed(zoom[:, None].expand(-1, 2))
    offset = shift + ((1 - zoom) / size)[:, None]
    grid = F.affine_grid(torch.cat([matrix, offset[..., None]], 2), list(images.shape), align_corners=False)
    moved = F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
    return MovedViews(moved.to(images.dtype), batch.slopes[rows] * zoom, shift, zoom)


def steady_losses(
    encoding: HandEncoding, again: HandEncoding, views: MovedViews, config: HandLossConfig
) -> dict[str, Tensor]:
    """Disagreement between the coarse poses of M hands in their views and in the moved ones."""
    if not len(views.zoom):
        return {"steady": encoding.uv.new_zeros(())}
    uv = again.uv * views.zoom[:, None, None] + views.shift[:, None]
    depth = again.depth - again.middle[:, None] - (encoding.depth - encoding.middle[:, None])
    return {
        "steady": config.places * (uv - encoding.uv).abs().sum(-1).mean()
        + config.depths * (depth.abs() / DEPTH_MM).mean()
        + config.middle * (again.middle.log() - encoding.middle.log()).abs().mean()
    }


def _hand_map_losses(encoding: HandEncoding, batch: HandBatch) -> dict[str, Tensor]:
    """Detection losses: a focal loss of hands' centres, and losses of sizes and sides there (CenterNet's)."""
    size = encoding.hands.shape[-1]
    view = 4 * size
    shown = batch.boxes.isfinite().all(-1)  # (B, 2)
    boxes = batch.boxes.nan_to_num(0.0)
    centres = (boxes[..., :2] + boxes[..., 2:]) / 2
    sides = (boxes[..., 2:] - boxes[..., :2]).amax(-1).clamp_min(1.0)
    inside = shown & (centres > 0).all(-1) & (centres < view - 1).all(-1)
    places = 4 * torch.arange(size, device=centres.device) + 1.5
    spread = (sides / 10).clamp_min(2.5)[..., None]
    across = torch.exp(-((places - centres[..., :1]) ** 2) / (2 * spread**2))
    down = torch.exp(-((places - centres[..., 1:]) ** 2) / (2 * spread**2))
    target = ((across[:, :, None] * down[..., None]) * inside[..., None, None]).amax(1)  # (B, H, W)
    row, column = ((centres - 1.5) / 4).round().long().clamp(0, size - 1).flip(-1).unbind(-1)
    # Hands that do not count mark one texel more.
    texels = torch.where(inside, row * size + column, size**2)
    marks = target.new_zeros(len(target), size**2 + 1).scatter_(1, texels, 1.0)
    peaks = marks[:, :-1].unflatten(1, (size, size)) > 0
    logits = encoding.hands[:, 0]
    probability = logits.sigmoid()
    positive = -F.logsigmoid(logits) * (1 - probability) ** 2
    negative = -F.logsigmoid(-logits) * probability**2 * (1 - target) ** 4
    loss = torch.where(peaks, positive, negative).sum() / peaks.sum().clamp_min(1)
    images = torch.arange(len(target), device=target.device)[:, None]
    logs, left = encoding.hands[images, 1:, row, column].unbind(-1)  # (B, 2) each
    logs = (logs - (sides / view).log()).abs()
    left = F.binary_cross_entropy_with_logits(left, batch.left.float(), reduction="none")
    loss = loss + ((logs + 0.5 * left) * inside).sum() / inside.sum().clamp_min(1)
    return {"hands": loss}


def _field_losses(
    model: NVF, encoding: HandEncoding, batch: HandBatch, config: HandLossConfig
) -> dict[str, Tensor]:
    """Losses of signed distances and votes (Eqs. 5-7) at the labelled points of the views that are posed."""
    zero, posed = encoding.features.new_zeros(()), batch.posed
    if not len(posed):
        return {"sdf": zero, "wide": zero, "weight": zero, "direction": zero}
    slopes, points, distances = batch.slopes[posed], batch.points[posed], batch.distances[posed]
    # As at inference, the prediction places the lattice; the truth places the labels.
    coarse = encoding.joints(batch.slopes)[posed].detach()
    intrinsics = view_intrinsics(slopes, batch.images.shape[-1])
    field = model.query(encoding.features[posed], points, intrinsics, coarse=coarse)
    votes = vote_losses(field, points, distances, batch.joints[posed], config)
    return distance_losses(field, distances, config) | votes


def distance_losses(field: FieldValues, distances: Tensor, config: HandLossConfig) -> dict[str, Tensor]:
    """Losses "sdf" and "wide" of signed distances (Eq. 5); points outside the view do not count.

    Args:
        field: at N points of B views.
        distances: (B, N) mm, the true signed distances.
        config: where distances are clamped.
    """
    predicted = torch.where(field.sdf.isfinite(), field.sdf, distances)
    clamps = {"sdf": config.clamp_mm, "wide": config.wide_mm}
    return {name: sdf_loss(predicted, distances, clamp_mm) for name, clamp_mm in clamps.items()}


def vote_losses(
    field: FieldValues, points: Tensor, distances: Tensor, joints: Tensor, config: HandLossConfig
) -> dict[str, Tensor]:
    """Losses "weight" and "direction" of votes (Eqs. 6, 7) at points in the view and near the surface.

    Args:
        field: at N points of B views.
        points: (B, N, 3) mm.
        distances: (B, N) mm, the true signed distances.
        joints: (B, 21, 3) mm, the true joints.
        config: which points are near, and the radius of the label ball.
    """
    near = (distances.abs() < config.near_mm) & field.sdf.isfinite()
    weight, direction = voting_labels(points, joints, near, config.ball_mm, nearest=points.shape[1])
    near, voting = near.float()[..., None], weight > 0
    weights = F.huber_loss(field.weight, weight, reduction="none", delta=0.2) * near
    directions = F.huber_loss(field.direction, direction, reduction="none", delta=0.5).sum(-1) * voting
    joint_count = joints.shape[1]
    return {
        "weight": weights.sum() / near.sum().clamp_min(1) / joint_count / 0.2,
        "direction": directions.sum() / voting.sum().clamp_min(1),
    }
