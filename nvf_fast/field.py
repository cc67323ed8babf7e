"""The parameters of the field's MLP: x enters at every layer, concatenated after the hidden activations."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu, linear

from nvf_fast.config import NVFConfig

# Depth is one input among width + 2, and the distance must follow it closest: 50 mm are a tenth of its unit.
# Its weights therefore start larger than He's, with their kinks spread over the grid's range of Z / 480.
# Learning a sphere's distance at 300 to 900 mm in 250 steps (width 64, hidden 256-128-64-64, two seeds), the
# error near the surface is 5.1, 4.0, 3.6, 3.6, 4.0 mm at gains 0.1, 0.5, 0.7, 1, 2, and
# 4.5 mm at gain 1 with zero biases.
DEPTH_GAIN = 1.0
DEPTH_RANGE = (0.3, 2.5)
# The last layer starts near a constant: no votes, and 50 tanh(0.3) = 15 mm outside the hand.
LAST_STD = 0.01
SDF_BIAS = 0.3
CODE_STD = 0.05  # of the pose code's last layer, so that the field begins nearly without it


def check_hand_scale(config: NVFConfig, hand_scale: Tensor | None) -> None:
    """Refuse a missing hand scale, or one that the network does not take.

    Raises:
        ValueError: the hand scale is missing, or the network does not take it.
    """
    if hand_scale is None and config.hand_scale and not config.scale_optional:
        raise ValueError("hand_scale must be (B,) mm, got None: this model was trained with it always given")
    if hand_scale is not None and not config.hand_scale:
        raise ValueError("hand_scale must be None: this model takes no hand scale")


class FieldMLP(nn.Module):
    """Weights and biases of (s, V) = f(x), Eq. 4 and Sec. 3.1; `nvf_fast.ops.query_field` evaluates it.

    The baselines of Sec. 4.1 use it too, without the input of depth.

    Attributes:
        weights: matrices (out, in); in = X for the first layer and previous out + X for the others, hidden
            first, with x = [features(, depth)(, hand scale)]. For J joints the last out is 1 + 4 J for the
            field (sdf, then weight and direction xyz per joint) and for "dense" (hand or not, then weight and
            joint xyz per joint), and 3 J for "holistic".
        biases: vectors (out,).
        code: computes additional biases from the coarse pose (`NVF.field_biases`), or None.
    """

    def __init__(self, config: NVFConfig) -> None:
        super().__init__()
        field = config.method == "nvf"
        place = 3 if config.view == "hand" else int(field)
        inputs = config.width + place + config.hand_scale
        outs = (*config.hidden, 3 * config.joints if config.method == "holistic" else 1 + 4 * config.joints)
        ins = (inputs, *(channels + inputs for channels in config.hidden))
        self.weights = nn.ParameterList(torch.empty(shape) for shape in zip(outs, ins, strict=True))
        self.biases = nn.ParameterList(torch.zeros(out) for out in outs)
        self._initialise(depth=config.width - inputs if place == 1 else None, field=field)
        self.code: nn.Sequential | None = None
        if config.pose_code:
            last = nn.Linear(config.pose_code, sum(outs))
            nn.init.normal_(last.weight, std=CODE_STD)
            nn.init.zeros_(last.bias)
            self.code = nn.Sequential(nn.Linear(3 * config.joints, config.pose_code), nn.ReLU(), last)

    def pose_code(self) -> tuple[list[Tensor], Tensor]:
        """The code's first weight and bias and last weight, if any, and all biases (sum of out,) together."""
        biases = torch.cat(list(self.biases))
        if self.code is None:
            return [], biases
        first, _, last = self.code
        assert isinstance(first, nn.Linear) and isinstance(last, nn.Linear)
        return [first.weight, first.bias, last.weight], biases + last.bias

    def forward(self, x: Tensor) -> Tensor:
        """The last layer's raw output (..., out) of inputs x (..., X), layer by layer as in the paper."""
        output = x
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            if layer > 0:
                output = torch.cat([leaky_relu(output, 0.01), x], -1)
            output = linear(output, weight.to(x.dtype), bias.to(x.dtype))
        return output

    @torch.no_grad()
    def _initialise(self, depth: int | None, field: bool) -> None:
        """He et al. 2015 for LeakyReLU(0.01), with a steep dependence on depth."""
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            nn.init.kaiming_normal_(weight, a=0.01)
            if depth is not None:
                weight[:, depth].normal_(std=DEPTH_GAIN)
                # The units' kinks lie at different depths, to resolve the whole range.
                bias.copy_(-weight[:, depth] * torch.empty_like(bias).uniform_(*DEPTH_RANGE))
        nn.init.normal_(self.weights[-1], std=LAST_STD)
        if field:
            self.biases[-1][0] = SDF_BIAS
