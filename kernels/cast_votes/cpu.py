"""`cast_votes` in PyTorch, for CPU tensors and for gradients; tested against the reference.

On a CPU it finds the smallest selected weight instead of sorting all weights, and uses masked sums instead of
gathering. With gradients it computes all images at once, without synchronisation, for a fixed selection.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def cast_votes(
    points: Tensor,
    votes: Tensor,
    counts: Tensor,
    indices: Tensor | None = None,
    *,
    ball_mm: float,
    fraction: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Joints, weight and spread, as in `nvf_fast.ops.cast_votes`, which checks the arguments.

    Where gradients are enabled it is differentiable in points and votes, any number of times.
    """
    if indices is not None:
        images = torch.arange(len(indices), device=indices.device)[:, None]
        points, votes = (each[images, indices.clamp(min=0)] for each in (points, votes))
    if torch.is_grad_enabled():
        return _differentiable(points, votes, counts, ball_mm, fraction)
    batch, capacity, joint_count, _ = votes.shape
    joints = votes.new_full((batch, joint_count, 3), math.nan)
    weight = votes.new_zeros(batch, joint_count)
    spread = votes.new_full((batch, joint_count), math.nan)
    for image, count in enumerate(counts.tolist()):
        voters = min(count, capacity)
        if voters > 0:
            joints[image], weight[image], spread[image] = _cast(
                points[image, :voters], votes[image, :voters], ball_mm, max(1, int(voters * fraction))
            )
    return joints, weight, spread


def _differentiable(
    points: Tensor, votes: Tensor, counts: Tensor, ball_mm: float, fraction: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Masked sums over the selected votes; the others, which may be NaN, have zero gradients."""
    selected, selected_count = _selection(votes[..., 0].detach(), counts, fraction)
    w = votes[..., 0].where(selected, 0.0)
    voting = selected.any(2)[..., None, None]
    direction = votes[..., 1:].where(selected[..., None], 0.0)
    targets = points[:, :, None].where(voting, 0.0) + ball_mm * (1 - w[..., None]) * direction
    some = (counts > 0)[:, None]

    def mean(values: Tensor, by: Tensor) -> Tensor:
        """Mean of (B, V, J, ...) over the voters, NaN without any, weighted by (B, V, J)."""
        shape = (*by.shape, *[1] * (values.ndim - 3))
        total = by.sum(1).where(some, 1.0).view(shape[0], *shape[2:])
        found: Tensor = (by.view(shape) * values).sum(1) / total
        return found.where(some.view(-1, *[1] * (found.ndim - 1)), math.nan)

    joints = mean(targets, w)
    variance = mean((targets - joints[:, None]).square().sum(-1), w.clamp(min=0))
    # The square root's slope at 0 is infinite; one voter's votes do not spread, whatever they are.
    spread = variance.where(variance > 0, 1.0).sqrt().where(variance > 0, variance)
    return joints, w.sum(1) / selected_count[:, None], spread


@torch.no_grad()
def _selection(weights: Tensor, counts: Tensor, fraction: float) -> tuple[Tensor, Tensor]:
    """Mask (B, V, J) of the votes that count, by weights (B, V, J), and their number (B,) per joint."""
    rows = torch.arange(weights.shape[1], device=weights.device)
    voters = counts.clamp(max=len(rows))
    # int(M * fraction), as Python rounds it.
    selected_count = (voters.double() * fraction).to(torch.int64).clamp(min=1)
    unused = rows >= voters[:, None]
    key = weights.masked_fill(weights.isnan() | unused[..., None], -math.inf)
    order = key.sort(dim=1, descending=True, stable=True).indices
    counted = (rows < selected_count[:, None])[..., None].expand_as(order)
    chosen = torch.zeros_like(order, dtype=torch.bool).scatter(1, order, counted)
    return chosen & ~unused[..., None], selected_count


def _cast(
    points: Tensor, votes: Tensor, ball_mm: float, selected_count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Joints (J, 3), weight (J,) and spread (J,) of one image's voters (V, 3) and their votes (V, J, 4)."""
    # One contiguous row per joint and coordinate, all coordinates in one operation: on few voters each
    # operation costs more than its numbers.
    rows = votes.permute(2, 1, 0).contiguous()
    w, direction = rows[0], rows[1:]
    key = w.nan_to_num(-math.inf, math.inf, -math.inf)
    threshold = key.kthvalue(key.shape[1] - selected_count + 1, dim=1, keepdim=True).values
    selected = key >= threshold
    if int(selected.sum()) > len(w) * selected_count:
        # Among weights equal to the threshold the first ones count.
        above, tie = key > threshold, key == threshold
        selected = above | (tie & (tie.cumsum(1) <= selected_count - above.sum(1, keepdim=True)))

    w = torch.where(selected, w, 0.0)
    total = w.sum(1)
    targets = torch.addcmul(points.T[:, None], direction, 1 - w, value=ball_mm)
    targets = torch.where(selected, targets, 0.0)
    joints = (targets * w).sum(2) / total
    w.clamp_(min=0)
    squared = targets.sub_(joints[..., None]).square_().sum(0)
    spread = (squared.mul_(w).sum(1) / w.sum(1)).sqrt_()
    return joints.T, total / selected_count, spread
