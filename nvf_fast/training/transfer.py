"""Weights of one network as another's beginning: between tasks, and towards a hand scale (supplement A)."""

from __future__ import annotations

import torch

from nvf_fast.baselines import Network
from nvf_fast.config import NVFConfig

MAY_DIFFER = ("task", "input_size", "hand_scale", "scale_optional")


@torch.no_grad()
def transfer(source: Network, target: Network) -> None:
    """Copies every weight of `source` into `target`.

    The networks may differ in task, in the size of their pictures, and in the hand scale: where only the
    target takes it, its columns start at zero, so that the target answers as the source does.

    Raises:
        ValueError: they differ in more, or the source takes a hand scale that the target does not.
    """
    _check(source.config, target.config)
    if source.config == target.config:
        target.load_state_dict(source.state_dict())
        return
    target.encoder.load_state_dict(source.encoder.state_dict())
    added = target.config.hand_scale and not source.config.hand_scale
    for ours, theirs in zip(target.field.weights, source.field.weights, strict=True):
        if added:  # the hand scale is a layer's last input
            ours[:, :-1], ours[:, -1] = theirs, 0.0
        else:
            ours.copy_(theirs)
    target.field.biases.load_state_dict(source.field.biases.state_dict())


def _check(source: NVFConfig, target: NVFConfig) -> None:
    if source.hand_scale and not target.hand_scale:
        raise ValueError("the starting network takes a hand scale and the training's does not")
    before, after = source.to_dict(), target.to_dict()
    changed = [
        f"{name} is {before[name]!r}, wanted {after[name]!r}"
        for name in before
        if name not in MAY_DIFFER and before[name] != after[name]
    ]
    if changed:
        raise ValueError("the starting network is another: " + "; ".join(changed))
