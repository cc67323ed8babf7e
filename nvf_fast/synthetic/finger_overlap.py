"""Overlap of a hand's fingers with each other and with the palm."""

from __future__ import annotations

import torch
from torch import Tensor

DEEPEST_OVERLAP = 0.35  # of accepted poses, against the radii's sum


def deepest_overlap(ends: Tensor, radii: Tensor) -> Tensor:
    """Measure the deepest overlap of fingers with each other and with the palm.

    Args:
        ends: (B, C, 2, 3) mm, of round cones: three from base to tip of each finger, thumb first, then the
            palm's.
        radii: (B, C, 2) mm.

    Returns:
        (B,) the deepest overlap as a fraction of the two radii's sum.
    """
    at = torch.linspace(0, 1, 5, dtype=ends.dtype)[:, None]
    centres = ends[:, :, None, 0] + at * (ends[:, :, None, 1] - ends[:, :, None, 0])
    radii = radii[:, :, None, 0] + at[:, 0] * (radii[:, :, None, 1] - radii[:, :, None, 0])
    phalanges = list(range(15))
    moving = centres[:, phalanges].flatten(1, 2)
    moving_radii = radii[:, phalanges].flatten(1, 2)
    others, other_radii = centres.flatten(1, 2), radii.flatten(1, 2)
    reach = moving_radii[:, :, None] + other_radii[:, None]
    overlap = 1 - torch.cdist(moving, others) / reach
    owner = torch.tensor([cone // 3 for cone in phalanges]).repeat_interleave(5)
    # First phalanges always touch the palm's cones: only middle and last ones are tested against them.
    other_owner = torch.tensor(
        [cone // 3 if cone < 15 else -1 for cone in range(ends.shape[1])]
    ).repeat_interleave(5)
    first = torch.tensor([cone % 3 == 0 for cone in phalanges]).repeat_interleave(5)
    thumb_second = torch.tensor([cone == 1 for cone in phalanges]).repeat_interleave(5)
    ignored = (owner[:, None] == other_owner[None]) | (
        (first | thumb_second)[:, None] & (other_owner < 0)[None]
    )
    knuckles = (
        first[:, None]
        & torch.cat([first, torch.zeros(len(other_owner) - len(first), dtype=torch.bool)])[None]
    )
    return overlap.masked_fill(ignored | knuckles, 0).amax((1, 2))
