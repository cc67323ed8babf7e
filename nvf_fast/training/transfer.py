"""Initialisation from another network's weights, across tasks and inputs of hand scale (supplement A)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from nvf_fast.baselines import Network

MAY_DIFFER = (
    "task",
    "input_size",
    "hand_scale",
    "scale_optional",
    "presence_threshold",
    "finding_weights",
    "finding_threshold",
)


@torch.no_grad()
def transfer(source: Network, target: Network) -> None:
    """Copy every weight of `source` into `target`.

    The networks may differ in task, in the size of their images, in the threshold of presence, and in the
    hand scale: where only the target takes it, its columns start at zero, so that both predict the same.

    Raises:
        ValueError: they differ otherwise, or only the source takes a hand scale.
    """
    if source.config.hand_scale and not target.config.hand_scale:
        raise ValueError("the starting network takes a hand scale and the training's does not")
    before, after = source.config.to_dict(), target.config.to_dict()
    changed = [
        f"{name} is {before[name]!r}, expected {after[name]!r}"
        for name in before
        if name not in MAY_DIFFER and before[name] != after[name]
    ]
    if changed:
        raise ValueError("the starting network differs: " + "; ".join(changed))
    weights = dict(source.state_dict())
    if target.config.hand_scale and not source.config.hand_scale:
        for name in weights:
            if name.startswith("field.weights."):  # the hand scale is a layer's last input
                weights[name] = F.pad(weights[name], (0, 1))
    target.load_state_dict(weights)
