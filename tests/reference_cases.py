"""A small network of the paper's reference view, for tests of inference."""

from __future__ import annotations

from typing import Any

import torch

from nvf_fast.config import NVFConfig
from nvf_fast.model import NVF

SHAPE = {"input_size": 64, "stem": 16, "width": 32, "stacks": 1, "hidden": (32,), "scale_optional": True}


def reference_network(nearness: float = 0.01, **config: Any) -> NVF:
    """Random network with positive vote weights and signed distances close to zero.

    Args:
        nearness: factor of the random distances; every point votes at 0.01, some at 1.
        config: entries of the configuration other than `SHAPE`.
    """
    torch.manual_seed(3)
    model = NVF(NVFConfig(**SHAPE | config)).eval()
    with torch.no_grad():
        model.field.biases[-1][0] = 0.0
        model.field.biases[-1][1::4] = 0.5
        model.field.weights[-1][0] *= nearness
    return model
