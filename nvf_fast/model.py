"""The network: an image encoder, and a field that can be queried at any camera-space point."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from nvf_fast import ops
from nvf_fast.camera import reference_intrinsics
from nvf_fast.config import HAND_JOINTS, NVFConfig
from nvf_fast.encoder import Block, HandHourglassEncoder, Hourglass, HourglassEncoder, PreActivated, Stack
from nvf_fast.field import FieldMLP, check_hand_scale
from nvf_fast.kernels.place_hands.reference import field_biases
from nvf_fast.ops.operation import FLOATS, check_tensor
from nvf_fast.quantisation import quantise
from nvf_fast.runtime.ambient import autocast_off, unaffected
from nvf_fast.unet import HandEncoding, HandHeads, UNetEncoder, fold_norms

EXACT = torch.float32, torch.float64  # dtypes of points and cameras


class FieldValues(NamedTuple):
    """The field's values at N points of each image.

    Attributes:
        sdf: (B, N) float32 mm, signed distance to the hand, negative inside; +inf where a point projects
            outside the view or lies behind the camera.
        weight: (B, N, J) float32, closeness to each joint, in [0, 1] when trained.
        direction: (B, N, J, 3) float32, towards each joint, of unit length when trained.
    """

    sdf: Tensor
    weight: Tensor
    direction: Tensor


class NVF(nn.Module):
    """Neural Voting Field: f(S(F, pi(p)), Z(p)) = (s, V) with F = g(I), Eq. 4 of the paper.

    Every call is differentiable any number of times, with respect to parameters, images, points, intrinsics
    and hand scales. The caller's autocast applies to the encoder in training mode only, never to the field.
    Parameters and inputs are float32, or float64 after `double()`.

    Attributes:
        config: the configuration.
        folded: whether it is a copy by `for_inference`, such as the network of an estimator.
    """

    folded = False

    def __init__(self, config: NVFConfig | None = None) -> None:
        super().__init__()
        self.config = config or NVFConfig()
        if self.config.method != "nvf":
            raise ValueError(
                f"NVF needs method='nvf'; nvf_fast.baselines.build makes a {self.config.method!r} network"
            )
        hand = self.config.view == "hand"
        self.encoder: nn.Module
        if self.config.encoder == "unet":
            self.encoder = UNetEncoder(self.config)
        else:
            self.encoder = (HandHourglassEncoder if hand else HourglassEncoder)(self.config)
        self.heads = HandHeads(self.config) if hand else None
        self.field = FieldMLP(self.config)
        self.float()  # whatever PyTorch's default dtype is

    def forward(
        self, images: Tensor, points: Tensor, K: Tensor, hand_scale: Tensor | None = None
    ) -> FieldValues:
        """Encode images and predict signed distances and votes at camera-space points.

        This is `encode` and `query`, or for hand views `encode_hands` and `query` with its coarse joints, as
        one call for hooks, `torch.func.functional_call` and `DistributedDataParallel`.

        Args:
            images: (B, C, S, S), views of S = input_size px, normalised as (x / 255 - 0.5) / 0.5.
            points: (B, N, 3), or (N, 3) common to the batch; float32 mm, frame of the views' cameras.
            K: (B, 3, 3) or (3, 3) float32 px, intrinsics of the views, which for hand views also give the
                views' angles.
            hand_scale: as in `query`.

        Raises:
            ValueError: a hand scale is missing or unexpected, or a shape is wrong.
            TypeError: an argument has another type or dtype.
        """
        if self.heads is None:
            return self.query(self.encode(images), points, K, hand_scale)
        batch = images.shape[0]  # unlike len(), any size in an export
        check_tensor("NVF", "K", K, [(3, 3), (batch, 3, 3)], *EXACT, unit="px")
        slopes = self.config.input_size / 2 / K[..., 0, 0].expand(batch)
        encoding = self.encode_hands(images, slopes)
        return self.query(encoding.features, points, K, hand_scale, encoding.joints(slopes))

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        device: torch.device = self.field.biases[0].device
        return device

    @property
    def reference_intrinsics(self) -> Tensor:
        """Intrinsics (3, 3) float32 px of the reference view at the model's size, on the model's device."""
        return reference_intrinsics(self.config.input_size, device=self.device)

    def encode(self, images: Tensor) -> Tensor:
        """Encode reference views as features F = g(I).

        Args:
            images: (B, C, S, S) in the encoder's dtype, reference views of S = input_size px, C channels
                (RGB, unless configured otherwise) as (x / 255 - 0.5) / 0.5.

        Returns:
            (B, width, S/4, S/4).

        Raises:
            ValueError: the images do not have the encoder's size and channels, or the network is for hand
                views.
            TypeError: the images are not a tensor of floats.
        """
        self._check_images(images, "reference")
        with self._precision():
            return cast(HourglassEncoder, self.encoder).last_features(images)

    def encode_all(self, images: Tensor) -> list[Tensor]:
        """Features after every stack, in order, for deep supervision; otherwise as `encode`."""
        self._check_images(images, "reference")
        with self._precision():
            every_features: list[Tensor] = self.encoder(images)
        return every_features

    def encode_hands(self, images: Tensor, slopes: Tensor) -> HandEncoding:
        """Encode hand views and evaluate the coarse heads.

        Args:
            images: (B, 3, S, S) in the encoder's dtype, hand views of S = input_size px, RGB as
                (x / 255 - 0.5) / 0.5.
            slopes: (B,) float32, tangents of half the views' angles: S / 2 over the focal length in px.

        Raises:
            ValueError: the images do not have the encoder's size, the slopes are not one per image, or the
                network is for reference views.
            TypeError: an argument is not a tensor of floats.
        """
        self._check_images(images, "hand")
        check_tensor("NVF", "slopes", slopes, [(images.shape[0],)], *EXACT)
        assert self.heads is not None
        with self._precision():
            return cast(HandEncoding, self.heads(*self.encoder(images, slopes), slopes))

    def encode_views(self, images: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
        """Encode hand views for `ops.place_hands`, in fewer launches than `encode_hands`.

        Args:
            images: (R, 3, S, S) as `encode_hands` takes them, R a multiple of B.
            slopes: (B,) float32, which repeat.

        Returns:
            The heads' input map (R, width, S/4, S/4), and outputs (R, 3 + 21) float32 of `HandHeads.view`.
        """
        self._check_images(images, "hand")
        assert self.heads is not None
        with self._precision():
            return self.encoder.views(images, slopes, self.heads.view)  # type: ignore[operator]

    def hand_maps(self, images: Tensor, slopes: Tensor) -> Tensor:
        """Maps of hands' centres in views of any size.

        Args:
            images: (B, 3, H, W) as `encode_hands` takes them, H and W multiples of 32 px.
            slopes: (B,) float32, S / 2 over the focal length in px, for S = input_size px.

        Returns:
            (B, 3, H/4, W/4) float32, as `HandEncoding.hands`.
        """
        assert self.heads is not None
        with self._precision():
            maps, _ = self.encoder.views(images, slopes, self.heads.view)  # type: ignore[operator]
            return cast(Tensor, self.heads.hands(maps.to(self.heads.hands.weight.dtype))).float()

    def field_biases(self, coarse: Tensor) -> list[Tensor]:
        """Compute biases of the field's layers, (B, out) each, from coarse joints (B, 21, 3) mm.

        Without a pose code they are (out,), the same for every hand.
        """
        biases = list(self.field.biases)
        if self.field.code is None:
            return biases
        with autocast_off(coarse.device.type):
            joined = field_biases(coarse, *self.field.pose_code())
        return list(joined.split([len(bias) for bias in biases], 1))

    def for_inference(self, quantised: bool = False) -> NVF:
        """Copy the model in evaluation mode, without gradients, with consecutive linear maps merged.

        The copy has other tensors than the model: it cannot be saved as a checkpoint or trained.

        Args:
            quantised: whether the U-Net computes in 8-bit integers (`nvf_fast.quantisation`).
        """
        model = copy.deepcopy(self).eval().requires_grad_(False)
        if quantised and isinstance(model.encoder, UNetEncoder):
            quantise(model.encoder)
        fold_norms(model.encoder)
        for module in model.encoder.modules():
            if isinstance(module, Stack):
                module.fold_onward()
        model.folded = True
        return model

    def query(
        self,
        features: Tensor,
        points: Tensor,
        K: Tensor,
        hand_scale: Tensor | None = None,
        coarse: Tensor | None = None,
    ) -> FieldValues:
        """Predict signed distances and votes at camera-space points.

        Args:
            features: (B, width, H, W) from `encode`; its dtype is the compute dtype.
            points: (B, N, 3), or (N, 3) common to the batch; float32 mm, camera frame.
            K: (B, 3, 3) or (3, 3) float32 px, intrinsics of the input_size px view of `features`.
            hand_scale: (B,) float32 mm, length of the bone between joints 9 and 10; None for a model without
                this input, or trained with it optional.
            coarse: (B, 21, 3) float32 mm, the coarse joints from `encode_hands`, for hand views only.

        Raises:
            ValueError: a hand scale or the coarse joints are missing or unexpected, or a shape is wrong.
            TypeError: an argument has another type or dtype.
        """
        config = self.config
        if (coarse is None) == (config.view == "hand"):
            raise ValueError(
                f"coarse must be {'(B, 21, 3) mm' if coarse is None else 'None'} for view={config.view!r}"
            )
        if coarse is not None:
            check_tensor("NVF", "coarse", coarse, [(features.shape[0], HAND_JOINTS, 3)], *EXACT, unit="mm")
        check_hand_scale(config, hand_scale)
        sdf, votes = ops.query_field(
            features,
            points,
            K,
            hand_scale,
            list(self.field.weights),
            list(self.field.biases) if coarse is None else self.field_biases(coarse),
            image_size=config.input_size,
            centres=None if coarse is None else coarse.mean(1),
        )
        return FieldValues(sdf, votes[..., 0], votes[..., 1:])

    def _check_images(self, images: Tensor, view: str) -> None:
        if self.config.view != view:
            right = "encode_hands" if view == "reference" else "encode"
            raise ValueError(f"{view} views given to a network for view={self.config.view!r}; use `{right}`")
        channels, size = self.config.image_channels, self.config.input_size
        expected = [("B", channels, size, size)]
        check_tensor("NVF", "images", images, expected, *FLOATS, unit="as (x / 255 - 0.5) / 0.5")

    def _precision(self) -> AbstractContextManager[object]:
        """The caller's autocast in training mode, as mixed-precision loops expect; otherwise no autocast."""
        return nullcontext() if self.training else autocast_off(self.device.type)

    @classmethod
    @unaffected()
    def from_authors(cls, source: Mapping[str, Tensor] | str | Path) -> NVF:
        """Make a network from weights in the authors' released layout.

        Args:
            source: a state dict with entries image_filter.* and surface_classifier.*, or the path of a file
                with one (read as tensors only, never as pickled code). The shapes determine the number of
                stacks and whether hand scale is an input.

        Raises:
            ValueError: an entry is missing, unknown, of another shape or not finite, or the two copies of a
                norm differ; the message names it.
        """
        if isinstance(source, str | Path):
            source = torch.load(source, map_location="cpu", weights_only=True)
        if not isinstance(source, Mapping):
            raise ValueError(f"released checkpoint: expected tensors by name, got a {type(source).__name__}")
        for name, value in source.items():
            if not isinstance(value, Tensor) or not value.isfinite().all():
                raise ValueError(f"released checkpoint: {name} is not a tensor of finite numbers")
        model = cls(_released_config(source))
        targets = dict(_released_entries(model))
        check_entries({name: target.shape for name, target in targets.items()}, source, "released checkpoint")
        with torch.no_grad():
            for name, target in targets.items():
                target.copy_(source[name])
        for name, target in targets.items():
            if not torch.equal(target, source[name].to(target.dtype)):
                raise ValueError(f"released checkpoint: {name} differs from the other copy of the same norm")
        return model


def check_entries(shapes: Mapping[str, torch.Size], state: Mapping[str, Tensor], source: str) -> None:
    """Check that a state dict has exactly the expected entries.

    Args:
        shapes: the expected shape of every entry.
        state: the received state dict.
        source: its name in the message.

    Raises:
        ValueError: entries are missing, unknown or of another shape; the message names up to eight of each.
    """
    missing = [f"{name} {tuple(shape)}" for name, shape in shapes.items() if name not in state]
    unknown = [name for name in state if name not in shapes]
    misshaped = [
        f"{name} is {tuple(state[name].shape)}, expected {tuple(shape)}"
        for name, shape in shapes.items()
        if name in state and state[name].shape != shape
    ]
    faults = {"missing": missing, "unknown": unknown, "of another shape": misshaped}
    if any(faults.values()):
        reports = [
            f"{len(names)} {fault}: {', '.join(map(str, names[:8]))}{', …' if len(names) > 8 else ''}"
            for fault, names in faults.items()
            if names
        ]
        raise ValueError(f"{source}: {'; '.join(reports)}")


def _released_config(state: Mapping[str, Tensor]) -> NVFConfig:
    """Derive the configuration of a released network from its shapes; `check_entries` reports mismatches."""
    stacks = sum(f"image_filter.l{k}.weight" in state for k in range(len(state)))
    plain = NVFConfig(stacks=max(stacks, 1), hand_scale=False)
    first = state.get("surface_classifier.conv0.weight")
    takes_scale = first is None or first.shape[1:2] != (plain.width + 1,)
    return replace(plain, hand_scale=takes_scale)


def _released_entries(model: NVF) -> Iterator[tuple[str, Tensor]]:
    """Pairs of a name in the released layout and the parameter of this model that it fills."""
    for name, module in _released_encoder(model.encoder):
        for kind, parameter in module.named_parameters():
            yield f"image_filter.{name}.{kind}", parameter
    for k, (weight, bias) in enumerate(zip(model.field.weights, model.field.biases, strict=True)):
        yield f"surface_classifier.conv{k}.weight", weight[..., None]
        yield f"surface_classifier.conv{k}.bias", bias


def _released_encoder(encoder: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    assert isinstance(encoder, HourglassEncoder)
    yield "conv1", encoder.conv
    yield "bn1", encoder.norm
    yield from _released_block("conv2", encoder.shallow)
    yield from _released_block("conv3", encoder.middle)
    yield from _released_block("conv4", encoder.deep)
    for k, stack in enumerate(cast(Iterable[Stack], encoder.stacks)):
        yield from _released_hourglass(f"m{k}", stack.hourglass, encoder.config.depth)
        yield from _released_block(f"top_m_{k}", stack.block)
        yield f"conv_last{k}", stack.mix
        yield f"bn_end{k}", stack.norm
        yield f"l{k}", stack.features
        if stack.mixed_onward is not None and stack.features_onward is not None:
            yield f"bl{k}", stack.mixed_onward
            yield f"al{k}", stack.features_onward


def _released_hourglass(name: str, hourglass: Hourglass, level: int) -> Iterator[tuple[str, nn.Module]]:
    yield from _released_block(f"{name}.b1_{level}", hourglass.upper)
    yield from _released_block(f"{name}.b2_{level}", hourglass.enter)
    if isinstance(hourglass.lower, Hourglass):
        yield from _released_hourglass(name, hourglass.lower, level - 1)
    else:
        yield from _released_block(f"{name}.b2_plus_{level}", hourglass.lower)
    yield from _released_block(f"{name}.b3_{level}", hourglass.leave)


def _released_block(name: str, block: Block) -> Iterator[tuple[str, nn.Module]]:
    for k, step in enumerate((block.first, block.second, block.third), 1):
        yield f"{name}.conv{k}", step.conv
        yield f"{name}.bn{k}", step.norm
    if isinstance(block.shortcut, PreActivated):
        yield f"{name}.bn4", block.shortcut.norm
        yield f"{name}.downsample.0", block.shortcut.norm
        yield f"{name}.downsample.2", block.shortcut.conv
    else:
        # The release stores an unused norm here.
        yield f"{name}.bn4", copy.deepcopy(block.first.norm)
