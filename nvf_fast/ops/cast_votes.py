"""Joints from the votes of the points near the surface."""

from __future__ import annotations

from numbers import Real

import torch
from torch import Tensor

from nvf_fast.kernels.cast_votes import cpu
from nvf_fast.ops.operation import Backend, Operation, check_positive, check_tensor, readable


def cast_votes(
    points: Tensor,
    votes: Tensor,
    counts: Tensor,
    indices: Tensor | None = None,
    *,
    ball_mm: float = 80.0,
    fraction: float = 0.5,
    backend: Backend | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Joints from voters: sum w (p + o) / sum w, Eq. 9, with the offsets o = ball_mm (1 - w) d of Eq. 8.

    Per joint, the max(1, int(M * fraction)) largest weights of the image's M = min(counts, V) voters count
    (Sec. 4.7); among equal weights the voter that comes first wins, -0 equals 0, and NaN ranks with minus
    infinity. d is used as predicted and w is not clamped.

    With gradients (of points and votes) the PyTorch backend runs, on any device. Derivatives of every order
    treat the selection as constant, and are zero at votes that do not count.

    Args:
        points: (B, V, 3) float32 mm, camera frame, the voters; or float64, as the votes.
        votes: (B, V, J, 4) float32 raw (weight, direction xyz); or float64, which runs in PyTorch.
        counts: (B,) int32 of 0 or more; the first min(counts, V) rows of an image vote.
        indices: (B, W) int64, the voters among the V points, so that the first min(counts, W) of these vote;
            -1 in unused slots; None for voters in the order of the points.
        ball_mm: positive, mm, radius r of the label ball (Eq. 2).
        fraction: in (0, 1], ratio of the voters that counts, per joint.
        backend: None, "triton" or "torch".

    Returns:
        joints (B, J, 3) mm, NaN without voters; weight (B, J), mean weight of the selected
        voters, 0 without voters; spread (B, J) mm, sqrt(sum w |vote - joint|^2 / sum w) with w
        clamped at 0, NaN without voters.

    Raises:
        ValueError: a shape, `ball_mm`, `fraction` or, on a CPU, a count or a voter's index does not fit; on
            CUDA a negative count is treated as 0.
        TypeError, RuntimeError: as every operation (`nvf_fast.ops`).

    Examples:
        >>> voters = torch.tensor([[[0.0, 0.0, 500.0], [10.0, 0.0, 500.0]]])
        >>> votes = torch.tensor([[[[0.5, 1.0, 0.0, 0.0]], [[0.75, 1.0, 0.0, 0.0]]]])
        >>> counts = torch.tensor([2], dtype=torch.int32)
        >>> joints, weight, spread = cast_votes(voters, votes, counts, fraction=1.0)
        >>> joints  # (0.5 * (0 + 40) + 0.75 * (10 + 20)) / (0.5 + 0.75) = 34
        tensor([[[ 34.,   0., 500.]]])
    """
    ball_mm = check_positive("cast_votes", "ball_mm", ball_mm, "of mm")
    check_tensor("cast_votes", "votes", votes, [("B", "V", "J", 4)], torch.float32, torch.float64)
    batch, capacity = votes.shape[:2]
    check_tensor("cast_votes", "points", points, [(batch, capacity, 3)], votes.dtype, unit="mm")
    check_tensor("cast_votes", "counts", counts, [(batch,)], torch.int32)
    if not isinstance(fraction, Real) or not 0 < fraction <= 1:
        raise ValueError(f"cast_votes: fraction must be in (0, 1], got {fraction!r}")
    if readable(counts) and batch and int(counts.min()) < 0:
        raise ValueError(f"cast_votes: counts must be 0 or more, got {counts.tolist()}")
    if indices is not None:
        check_tensor("cast_votes", "indices", indices, [(batch, "W")], torch.int64)
        if readable(indices) and readable(counts) and indices.numel():
            unused = torch.arange(indices.shape[1], device=indices.device) >= counts[:, None]
            low, high = int(indices.masked_fill(unused, 0).min()), int(indices.max())
            if low < 0 or high >= capacity:
                raise ValueError(
                    f"cast_votes: indices of voters must be 0 to {capacity - 1}, got {low} to {high}"
                )
    return _run(backend, points, votes, counts, indices, ball_mm=ball_mm, fraction=fraction)


def _empty_results(points: Tensor, votes: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor, Tensor]:
    batch, joints = votes.shape[::2]
    return votes.new_empty(batch, joints, 3), votes.new_empty(batch, joints), votes.new_empty(batch, joints)


_run = Operation("cast_votes", cpu.cast_votes, _empty_results, gradients="torch")
