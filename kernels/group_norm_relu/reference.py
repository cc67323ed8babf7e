"""Group normalisation and ReLU, in plain PyTorch: the definition of `group_norm_relu`."""

from __future__ import annotations

import torch
from torch import Tensor


def group_norm_relu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float = 1e-5,
    moments: Tensor | None = None,
) -> Tensor:
    """max(0, (x - mean) / sqrt(variance + eps) * weight + bias), Wu and He 2018; see `nvf_fast.ops`.

    `moments` of `x` are not used: they are computed again.
    """
    # The checks of `F.group_norm` would double the time of a small map's norm. The norm's backward needs its
    # input, not its output, so that ReLU may run in place.
    return torch.group_norm(x, groups, weight, bias, eps).relu_()
