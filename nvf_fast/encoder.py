"""The image encoder F = g(I): a stacked hourglass (Newell et al. 2016) with group normalisation."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nvf_fast import encoder_inference, ops
from nvf_fast.config import NVFConfig
from nvf_fast.kernels.pool_maps.reference import pooled_inputs
from nvf_fast.unet import GLOBAL_WIDTH


class HourglassEncoder(nn.Module):
    """Feature maps of the reference view, Sec. 3.1: g in F = g(I)."""

    def __init__(self, config: NVFConfig) -> None:
        super().__init__()
        self.config = config
        half, groups = config.width // 2, config.groups
        self.conv = nn.Conv2d(config.image_channels, config.stem, 7, stride=2, padding=3)
        self.norm = NormReLU(config.stem, groups)
        self.shallow = Block(config.stem, half, groups)
        self.middle = Block(half, half, groups)
        self.deep = Block(half, config.width, groups)
        self.stacks = nn.ModuleList(Stack(config, last=k == config.stacks - 1) for k in range(config.stacks))
        self.apply(_initialise)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Features after every stack.

        Args:
            images: (B, 3, S, S) float, S = input_size px, RGB as (x / 255 - 0.5) / 0.5.

        Returns:
            One (B, width, S/4, S/4) map per stack; inference uses the last, training supervises all.
        """
        x = self._stem(images)
        every_features = []
        for stack in self.stacks:
            features, x = stack(x)
            every_features.append(features)
        return every_features

    def last_features(self, images: Tensor) -> Tensor:
        """`forward(images)[-1]` up to rounding, without the features of earlier stacks.

        Args:
            images: as in `forward`.

        Returns:
            (B, width, S/4, S/4).
        """
        if _infers(images):
            return encoder_inference.last_features(self, images)
        x = self._stem(images)
        *stacks, last = cast(Iterable[Stack], self.stacks)
        for stack in stacks:
            x = stack.onward(x)
        features: Tensor = last.features(last.mixed(x))
        return features

    def _stem(self, images: Tensor) -> Tensor:
        x = self.shallow(self.norm(self.conv(images)))
        features: Tensor = self.deep(self.middle(F.avg_pool2d(x, 2)))
        return features


class HandHourglassEncoder(HourglassEncoder):
    """Features and a pooled description of hand views, in the form of `nvf_fast.unet.UNetEncoder`."""

    def __init__(self, config: NVFConfig) -> None:
        super().__init__(config)
        self.pooled = nn.Linear(2 * config.width + 1, GLOBAL_WIDTH)

    def forward(self, images: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        """Encode views as `UNetEncoder` does; the features after the last stack are also the heads' input."""
        x = self.last_features(images)
        return x, x, F.relu(self.pooled(pooled_inputs(x, slopes)))

    def views(self, images: Tensor, slopes: Tensor, outputs: nn.Linear) -> tuple[Tensor, Tensor]:
        """The features, and the outputs of a layer for the pooled description, as `NVF.encode_views`."""
        _, x, pooled = self(images, slopes.repeat(len(images) // len(slopes)))
        return x, F.linear(pooled.to(outputs.weight.dtype), outputs.weight, outputs.bias)

    def feature_layer(self) -> list[Tensor]:
        """None: the heads read the features."""
        return []


class Stack(nn.Module):
    """One hourglass, its features, and the next stack's input."""

    def __init__(self, config: NVFConfig, last: bool) -> None:
        super().__init__()
        width, groups = config.width, config.groups
        self.hourglass = Hourglass(config.feature_size, config.depth, width, config.widen, groups)
        self.block = Block(width, width, groups)
        self.mix = nn.Conv2d(width, width, 1)
        self.norm = NormReLU(width, groups)
        self.features = nn.Conv2d(width, width, 1)
        self.mixed_onward = None if last else nn.Conv2d(width, width, 1)
        self.features_onward = None if last else nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the features and the next stack's input; the last stack returns its own input."""
        mixed = self.mixed(x)
        features = self.features(mixed)
        if self.mixed_onward is not None:
            x = self.mixed_onward(mixed).add_(x)
        if self.features_onward is not None:
            x.add_(self.features_onward(features))
        return features, x

    def mixed(self, x: Tensor) -> Tensor:
        """Compute the map of which the features are a linear function, texel by texel."""
        mixed: Tensor = self.norm(self.mix(self.block(self.hourglass(x))))
        return mixed

    def onward(self, x: Tensor) -> Tensor:
        """Compute the next stack's input alone, x + Wm m + Wf F m = x + (Wm + Wf F) m: one convolution."""
        weight, bias = self.onward_matrix()
        return F.conv2d(self.mixed(x), weight, bias).add_(x)

    def onward_matrix(self) -> tuple[Tensor, Tensor]:
        """Weight (width, width, 1, 1) and bias (width,) of the convolution to the next stack's input."""
        # Multiplied in every call unless folded, since a cached product would be stale after a weight
        # changes; it costs as much as the convolution on `width` texels.
        direct, direct_bias = _matrix(self.mixed_onward)
        if self.features_onward is None:
            return direct[..., None, None], direct_bias
        features, features_bias = _matrix(self.features)
        onward, onward_bias = _matrix(self.features_onward)
        weight = torch.addmm(direct, onward, features)
        bias = torch.addmv(direct_bias + onward_bias, onward, features_bias)
        return weight[..., None, None], bias

    def fold_onward(self) -> None:
        """Keep the convolution of `onward_matrix` in place of its parts, for inference; irreversible."""
        if self.mixed_onward is not None and self.features_onward is not None:
            weight, bias = (nn.Parameter(each.detach(), False) for each in self.onward_matrix())
            self.mixed_onward.weight, self.mixed_onward.bias, self.features_onward = weight, bias, None


class Hourglass(nn.Module):
    """The sum of a full-resolution branch and a half-resolution branch with the next level."""

    def __init__(self, size: int, depth: int, channels: int, widen: int, groups: int) -> None:
        super().__init__()
        inner = channels + widen
        self.upper = Block(channels, channels, groups)
        self.enter = Block(channels, inner, groups)
        self.lower: Hourglass | Block
        if depth > 1:
            self.lower = Hourglass(size // 2, depth - 1, inner, widen, groups)
        else:
            self.lower = Block(inner, inner, groups)
        self.leave = Block(inner, channels, groups)
        self.upsample = BicubicUpsample(size // 2)

    def forward(self, x: Tensor) -> Tensor:
        upper: Tensor = self.upper(x)
        return upper.add_(self.upsample(self.leave(self.lower(self.enter(F.avg_pool2d(x, 2))))))


class Block(nn.Module):
    """Three pre-activated convolutions to 1/2, 1/4 and 1/4 of the channels, concatenated, plus the input."""

    def __init__(self, channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        half, quarter = out_channels // 2, out_channels // 4
        self.first = PreActivated(channels, half, 3, groups)
        self.second = PreActivated(half, quarter, 3, groups)
        self.third = PreActivated(quarter, quarter, 3, groups)
        same = channels == out_channels
        self.shortcut = nn.Identity() if same else PreActivated(channels, out_channels, 1, groups)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        second = self.second(first)
        third = self.third(second)
        # In-place addition takes 12 to 42 % less time than a new sum, channels-last on a CPU. Adding slices
        # into the concatenation is faster on large maps only, and up to five times slower on small ones.
        return torch.cat([first, second, third], 1).add_(self.shortcut(x))


class PreActivated(nn.Module):
    """GroupNorm, ReLU, then a convolution without bias."""

    def __init__(self, channels: int, out_channels: int, kernel_size: int, groups: int) -> None:
        super().__init__()
        self.norm = NormReLU(channels, groups)
        self.conv = nn.Conv2d(channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        convolved: Tensor = self.conv(self.norm(x))
        return convolved


class NormReLU(nn.GroupNorm):
    """GroupNorm with the largest number of groups, at most `groups`, that divides the channels, and ReLU."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__(next(n for n in range(min(groups, channels), 0, -1) if channels % n == 0), channels)

    def forward(self, x: Tensor, moments: Tensor | None = None) -> Tensor:
        return ops.group_norm_relu(x, self.weight, self.bias, self.num_groups, self.eps, moments)


class BicubicUpsample(nn.Module):
    """Bicubic upsampling by 2 with align_corners=True, as one small matrix product per axis.

    The same linear map as `F.interpolate`, faster on a CPU: forward and backward on one core, channels-last,
    (8, 128, 16, 16) takes 2.8 instead of 43 ms in float32 and 2.2 instead of 44 ms in bfloat16;
    (8, 128, 32, 32) takes 24 instead of 119 ms and 9 instead of 125 ms.
    """

    matrix: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        # Column k of the (2 size, size) matrix is the k-th unit impulse, upsampled.
        impulses = torch.eye(size, dtype=torch.float32)[None, :, :, None]
        columns = F.interpolate(impulses, size=(2 * size, 1), mode="bicubic", align_corners=True)
        self.register_buffer("matrix", columns[0, :, :, 0].T.contiguous(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, size, size) to (B, C, 2 size, 2 size), in the memory format of `x`."""
        batch, channels, height, width = x.shape
        if height != self.matrix.shape[1] or width != height:
            return F.interpolate(x, scale_factor=2, mode="bicubic", align_corners=True)
        matrix = self.matrix.to(x.dtype)
        if x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last):
            return matrix @ x @ matrix.T
        rows = matrix @ x.permute(0, 2, 3, 1).reshape(batch, height, width * channels)
        texels = matrix @ rows.reshape(batch * 2 * height, width, channels)
        return texels.reshape(batch, 2 * height, 2 * width, channels).permute(0, 3, 1, 2)


def _infers(images: Tensor) -> bool:
    """Whether a call is inference on a device of its own: no gradients, autocast, compilation."""
    kind = images.device.type
    return (
        kind != "cpu"
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled(kind)
    )


def _matrix(conv: nn.Conv2d | None) -> tuple[Tensor, Tensor]:
    """Matrix (out, in) and bias (out,) of a 1 x 1 convolution."""
    assert conv is not None and conv.bias is not None
    return conv.weight.flatten(1), conv.bias


def _initialise(module: nn.Module) -> None:
    """He et al. 2015 for convolutions."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
