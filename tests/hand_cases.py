"""A small network of hand views, for tests of inference."""

from __future__ import annotations

import torch

from nvf_fast.config import NVFConfig
from nvf_fast.kernels.place_hands.reference import LEFT, PRESENCE
from nvf_fast.model import NVF
from nvf_fast.unet import BatchNorm

CONFIG = NVFConfig(
    input_size=128, width=16, hidden=(32, 16), hand_scale=False, encoder="unet", view="hand",
    channels=(8, 8, 16, 16, 24), pose_code=8,
)  # fmt: skip


def hand_network(config: NVFConfig = CONFIG) -> NVF:
    """Random network with depths of about 400 mm, several hundred voters and positive vote weights."""
    torch.manual_seed(4)
    model = NVF(config).eval()
    assert model.heads is not None
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, BatchNorm):
                module.mean.normal_(std=0.1)
                module.variance.uniform_(0.5, 2.0)
        model.heads.view.weight.normal_(std=0.02)
        model.heads.view.bias[PRESENCE] = 3.0
        model.heads.view.bias[LEFT] = -3.0
        torch.nn.init.normal_(model.field.weights[-1], std=0.1)
        model.field.weights[-1][1::4] *= 0.1
        model.field.biases[-1][0] = 0.0
        model.field.biases[-1][1::4] = 0.7
    return model
