"""The encoder of hand views: a small U-Net of convolutions, batch norms and ReLUs, with its heads."""

from __future__ import annotations

import logging
import math
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from nvf_fast import ops
from nvf_fast.config import HAND_JOINTS, NVFConfig
from nvf_fast.kernels.pack_poses.reference import combine
from nvf_fast.kernels.place_hands.reference import coarse_joints, coarse_pose, expected_errors
from nvf_fast.kernels.pool_maps.reference import pooled_inputs

GLOBAL_WIDTH = 256  # channels of the pooled description of a view
MOMENTUM, EPSILON = 0.03, 1e-5  # of batch norms
LOG = logging.getLogger("nvf_fast")
HAND_MAPS = 3  # centre logit, log of the box's side over the view's, left-hand logit


class HandEncoding(NamedTuple):
    """The encoding and coarse predictions of B hand views, before the field is queried."""

    features: Tensor  # (B, C, H, W) in the encoder's dtype, the map that the field samples
    uv: Tensor  # (B, 21, 2) float32, coarse joints in the view, in [-1, 1]
    depth: Tensor  # (B, 21) float32 mm, their depths, for the unit hand
    middle: Tensor  # (B,) float32 mm, the depth relative to which those are predicted
    presence: Tensor  # (B,) float32, logit of a hand's presence
    left: Tensor  # (B,) float32, logit of a left hand
    error: Tensor  # (B, 21) float32 mm, expected distance of each coarse joint from the truth
    heat: Tensor  # (B, 21, H, W) float32, logits of each joint's position
    # (B, 3, H, W) float32: per texel the logit of being the centre of a hand's box, the log of that box's
    # longer side over the view's, and the logit of a left hand.
    hands: Tensor

    def joints(self, slopes: Tensor) -> Tensor:
        """Coarse joints (B, 21, 3) mm in frames of views whose half angles have tangents `slopes` (B,)."""
        return coarse_joints(self.uv, self.depth, slopes)


class UNetEncoder(nn.Module):
    """Features and a pooled description of hand views."""

    def __init__(self, config: NVFConfig) -> None:
        super().__init__()
        half, quarter, eighth, sixteenth, bottom = config.channels
        width = config.width
        self.stem = nn.Sequential(
            ConvNorm(config.image_channels, half, 4, stride=2), ConvNorm(half, quarter, 3, stride=2)
        )
        self.down = nn.ModuleList(
            nn.Sequential(*(Residual(a, b, stride) if k == 0 else Residual(b, b) for k in range(count)))
            for a, b, stride, count in (
                (quarter, quarter, 1, 1),
                (quarter, eighth, 2, 1),
                (eighth, sixteenth, 2, 2),
                (sixteenth, bottom, 2, 2),
            )
        )
        self.pooled = nn.Linear(2 * bottom + 1, GLOBAL_WIDTH)
        self.unpooled = nn.Linear(GLOBAL_WIDTH, bottom)
        self.up = nn.ModuleList(
            Merge(below, beside, out)
            for below, beside, out in (
                (bottom, sixteenth, sixteenth),
                (sixteenth, eighth, eighth),
                (eighth, quarter, width),
            )
        )
        self.merged = nn.ModuleList(
            [Residual(sixteenth, sixteenth), Residual(eighth, eighth), ConvNorm(width, width, 3)]
        )
        self.features = nn.Conv2d(width, width, 1)
        self.apply(_initialise)

    def forward(self, images: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode views.

        Args:
            images: (B, 3, S, S), RGB as (x / 255 - 0.5) / 0.5.
            slopes: (B,) tangents of half the views' angles.

        Returns:
            features (B, width, S/4, S/4); the heads' input map, of the same shape; the pooled description
            (B, 256).
        """
        *maps, x = self._descend(images)
        pooled = F.relu(self.pooled(pooled_inputs(x, slopes)))
        x = self._ascend(x + self.unpooled(pooled)[:, :, None, None], maps)
        return _pointwise(self.features, x), x, pooled

    def views(self, images: Tensor, slopes: Tensor, outputs: nn.Linear) -> tuple[Tensor, Tensor]:
        """The heads' input map, and outputs of a layer for the pooled description, as `NVF.encode_views`."""
        *maps, x = self._descend(images)
        layers = self.pooled, self.unpooled, outputs
        x, views = ops.pool_maps(
            x, slopes, *(each for layer in layers for each in (layer.weight, layer.bias))
        )
        return self._ascend(x, maps), views

    def feature_layer(self) -> list[Tensor]:
        """Weight (width, width) and bias of the layer that maps the heads' input map to the features."""
        assert self.features.bias is not None
        return [self.features.weight.flatten(1), self.features.bias]

    def _descend(self, images: Tensor) -> list[Tensor]:
        """Maps of decreasing size."""
        maps = [self.stem(images)]
        for down in self.down:
            maps.append(down(maps[-1]))
        return maps[1:]

    def _ascend(self, x: Tensor, maps: list[Tensor]) -> Tensor:
        for up, merged, beside in zip(self.up, self.merged, maps[::-1], strict=True):
            x = merged(up(x, beside))
        return x


class HandHeads(nn.Module):
    """Heads for coarse joints, presence, side, expected errors and the positions of hands."""

    def __init__(self, config: NVFConfig) -> None:
        super().__init__()
        self.size = config.input_size
        self.joints = nn.Conv2d(config.width, 2 * HAND_JOINTS, 1)
        self.hands = nn.Conv2d(config.width, HAND_MAPS, 1)
        self.view = nn.Linear(GLOBAL_WIDTH, 3 + HAND_JOINTS)
        nn.init.normal_(self.joints.weight, std=0.05)
        nn.init.normal_(self.hands.weight, std=0.05)
        # Most texels are not the centre of a hand.
        self.hands.bias = nn.Parameter(torch.tensor([-4.0, 0.0, 0.0]))
        nn.init.zeros_(self.view.weight)
        nn.init.zeros_(self.view.bias)
        # Weight of the voted pose against the coarse one: of its middle, then of each joint relative to that.
        self.register_buffer("vote_weight", torch.full((1 + HAND_JOINTS,), 0.5))
        # Texel centres of a map of stride 4, as uv in [-1, 1] of the view.
        texels = torch.arange(config.feature_size, dtype=torch.float32)
        places = (4 * texels + 1.5) / (config.input_size / 2) - 1
        self.register_buffer("places", places, persistent=False)

    places: Tensor
    vote_weight: Tensor

    def combine(self, coarse: Tensor, voted: Tensor) -> Tensor:
        """Interpolate joints (B, 21, 3) mm between coarse and voted ones, by weights fitted on data.

        The middle and the joints relative to it have separate weights: votes place a hand better than the
        heads, but contract its fingertips.
        """
        return combine(coarse, voted, self.vote_weight)

    def forward(self, features: Tensor, maps: Tensor, pooled: Tensor, slopes: Tensor) -> HandEncoding:
        """Evaluate the heads on the encoder's outputs."""
        dtype = self.view.weight.dtype  # also of results, where an autocast has another
        maps, pooled = maps.to(dtype), pooled.to(dtype)
        heat, relative = _pointwise(self.joints, maps).to(dtype).chunk(2, 1)
        scale, presence, left, errors = self.view(pooled).to(dtype).split([1, 1, 1, HAND_JOINTS], 1)
        uv, depth, middle = coarse_pose(heat, relative, scale[:, 0], slopes, self.places, self.size)
        return HandEncoding(
            features,
            uv,
            depth,
            middle,
            presence[:, 0],
            left[:, 0],
            expected_errors(errors),
            heat,
            _pointwise(self.hands, maps).to(dtype),
        )


class ConvNorm(nn.Module):
    """Convolution, batch norm and, unless `linear`, ReLU; `fold` merges the first two.

    Folded and without gradients it is one launch on CUDA, where cuDNN supports the shape.
    """

    def __init__(
        self, channels: int, out_channels: int, kernel_size: int, stride: int = 1, linear: bool = False
    ) -> None:
        super().__init__()
        padding = (kernel_size - 1) // 2
        self.conv = nn.Conv2d(channels, out_channels, kernel_size, stride, padding, bias=False)
        self.norm: nn.Module = BatchNorm(out_channels)
        self.linear = linear

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """Normalised convolution of `x`, plus another map before the ReLU."""
        if not self.linear and self.fuses(x):
            fused = _fused(self.conv, x, other)
            if fused is not None:
                return fused
        x = self.norm(self.conv(x))
        if other is not None:
            x = x + other if self.training else x.add_(other)
        return x if self.linear else F.relu(x, inplace=not self.training)

    def fuses(self, x: Tensor) -> bool:
        """Whether it is folded, and may run in one launch, without gradients."""
        return self.conv.bias is not None and _fuses(x, self.conv.weight)

    def fold(self) -> None:
        """Multiply the norm, with its running statistics, into the convolution; irreversible."""
        norm = self.norm
        if isinstance(norm, BatchNorm):
            self.conv.weight, self.conv.bias = fuse_conv_bn_weights(
                self.conv.weight, None, norm.mean, norm.variance, EPSILON, norm.weight, norm.bias
            )
            self.norm = nn.Identity()

    def take_bias(self, other: ConvNorm) -> None:
        """Take over the bias of another folded convolution, whose result is added to this one's."""
        bias, moved = self.conv.bias, other.conv.bias
        if bias is not None and moved is not None:
            self.conv.bias, other.conv.bias = nn.Parameter(bias + moved, bias.requires_grad), None


class BatchNorm(nn.Module):
    """Batch normalisation without a counter of calls in its state."""

    mean: Tensor
    variance: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(
            x, self.mean, self.variance, self.weight, self.bias, self.training, MOMENTUM, EPSILON
        )


class Residual(nn.Module):
    """Two 3 x 3 convolutions plus the input or, where shapes change, a linear map of it."""

    def __init__(self, channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.first = ConvNorm(channels, out_channels, 3, stride)
        self.second = ConvNorm(out_channels, out_channels, 3)
        same = channels == out_channels and stride == 1
        self.shortcut = nn.Identity() if same else ConvNorm(channels, out_channels, 1, stride, linear=True)
        assert isinstance(self.second.norm, BatchNorm)
        nn.init.constant_(self.second.norm.weight, 0.2)  # a block starts close to its shortcut

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.first(x), self.shortcut(x))
        return y


class Merge(nn.Module):
    """The sum of a map and one of half its size, mapped to the same channels; folded, one launch on CUDA."""

    def __init__(self, below: int, beside: int, out_channels: int) -> None:
        super().__init__()
        self.below = ConvNorm(below, out_channels, 1, linear=True)
        self.beside = ConvNorm(beside, out_channels, 1)

    def forward(self, below: Tensor, beside: Tensor) -> Tensor:
        if isinstance(self.beside, ConvNorm) and self.beside.fuses(beside):
            conv = self.beside.conv
            assert conv.bias is not None
            return ops.merge_maps(below, beside, self.below.conv.weight, conv.weight, conv.bias)
        upsampled = F.interpolate(self.below(below), scale_factor=2, mode="nearest")
        y: Tensor = self.beside(beside, upsampled)
        return y


def fold_norms(module: nn.Module) -> None:
    """Fold every batch norm of a module into its convolution, for inference."""
    for part in module.modules():
        if isinstance(part, ConvNorm):
            part.fold()
    for part in module.modules():
        if isinstance(part, Merge) and isinstance(part.beside, ConvNorm):
            part.beside.take_bias(part.below)
        elif isinstance(part, Residual) and isinstance(part.shortcut, ConvNorm):
            part.second.take_bias(part.shortcut)


def _pointwise(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A 1 x 1 convolution; on CUDA without gradients a product with its bias, in one launch."""
    if not _fuses(x, conv.weight):
        return cast(Tensor, conv(x))
    return F.linear(x.permute(0, 2, 3, 1), conv.weight.flatten(1), conv.bias).permute(0, 3, 1, 2)


def _fuses(x: Tensor, weight: Tensor) -> bool:
    """Whether convolution, sum and ReLU may run in one launch, which has no gradient."""
    return x.is_cuda and not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))


_UNFUSED: set[tuple[object, ...]] = set()  # shapes that cuDNN has refused


def _fused(conv: nn.Conv2d, x: Tensor, other: Tensor | None) -> Tensor | None:
    """relu(conv(x) + other) in one launch; None where cuDNN does not support it, with one warning."""
    key = (x.shape, x.dtype, x.device, conv.weight.shape, conv.stride, other is None)
    if key in _UNFUSED:
        return None
    options: Any = (conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)
    try:
        if other is None:
            return torch.cudnn_convolution_relu(x, conv.weight, *options)
        return torch.cudnn_convolution_add_relu(x, conv.weight, other, 1.0, *options)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        _UNFUSED.add(key)
        LOG.warning("cuDNN does not fuse convolution and ReLU for %s in %s: %s", *key[:2], error)
        return None


def _initialise(module: nn.Module) -> None:
    """He et al. 2015 for convolutions."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            bound = 1 / math.sqrt(module.weight[0].numel())
            nn.init.uniform_(module.bias, -bound, bound)
