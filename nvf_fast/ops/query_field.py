"""The field of Eq. 4 at camera-space points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from nvf_fast.kernels.query_field import cpu
from nvf_fast.ops.operation import (
    FLOATS,
    Backend,
    Operation,
    check_count,
    check_devices,
    check_tensor,
    readable,
)
from nvf_fast.runtime.devices import check_precision, launching_on


class Places(NamedTuple):
    """Points located on feature maps."""

    located: Any  # in the backend's layout
    images: int | None  # B; None if they are common to all images
    map_size: tuple[int, int]


class Maps(NamedTuple):
    """Projected feature maps of B images."""

    projected: Any  # in the backend's layout
    images: int
    map_size: tuple[int, int]


class Samples(Protocol):
    """Points with signed distances, from which their votes can be computed."""

    @property
    def sdf(self) -> Tensor:
        """(B, N) float32 mm, +inf out of view."""


def query_field(
    features: Tensor,
    points: Tensor,
    intrinsics: Tensor,
    hand_scale: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    centres: Tensor | None = None,
    *,
    image_size: int = 224,
    backend: Backend | None = None,
) -> tuple[Tensor, Tensor]:
    """Signed distance and votes of camera-space points: f(S(F, pi(p)), Z(p)) = (s, V), Eq. 4 of the paper.

    The feature map is sampled bilinearly at the point's projection; x = [feature, depth(, hand scale)] enters
    every layer, after the hidden activations; LeakyReLU(0.01) between layers; channel 0 is sdf = 50 tanh(.)
    mm. With `centres` of the hands, x = [feature, (point - centre) / 60 mm], and biases of each image may
    encode its pose. With gradients (of any tensor) the PyTorch backend runs, on any device; derivatives of
    every order exist, and are zero at points out of view.

    Args:
        features: (B, C, H, W) float32, float16 or bfloat16; its dtype is the compute dtype, sums are float32.
            With float64, which runs in PyTorch, every float32 below is float64.
        points: (B, N, 3), or (N, 3) common to the batch; float32 mm, camera frame.
        intrinsics: (B, 3, 3) or (3, 3) float32, of the `image_size` px view: centred, fx = fy.
        hand_scale: (B,) float32 mm; None for a model without that input, or for its neutral value of 15 mm.
        weights: L matrices (out, in) with in = X for the first layer and previous out + X for the others,
            where X = C + 1, C + 2 with the hand scale, or C + 3 with centres; the last out is 1 + 4 J.
            Any float dtype, which is converted to that of the features.
        biases: L vectors (out,), or L of (B, out), one per image; any float dtype.
        image_size: px, side of the view that `intrinsics` describe.
        centres: (B, 3) float32 mm, camera frame, of the hands; None for a model that takes the depth.
        backend: None, "triton" or "torch".

    Returns:
        sdf (B, N) float32 mm, +inf where a point projects outside the view or lies behind the camera; votes
        (B, N, J, 4) float32 raw (weight, direction xyz), zero there.

    Raises:
        ValueError: a shape does not fit, a hand scale is given to a model that takes none, or centres are
            missing or superfluous.
        TypeError, RuntimeError: as every operation (`nvf_fast.ops`).
    """
    _check(features, points, intrinsics, hand_scale, weights, biases, image_size, centres)
    if features.shape[0] == 0:  # the kernel divides its work among images
        backend = "torch"
    return _run(
        backend,
        features,
        points,
        intrinsics,
        hand_scale,
        list(weights),
        list(biases),
        centres,
        image_size=image_size,
    )


def _empty_results(
    features: Tensor,
    points: Tensor,
    intrinsics: Tensor,
    hand_scale: Tensor | None,
    weights: Sequence[Tensor],
    *_: object,
    **__: object,
) -> tuple[Tensor, Tensor]:
    batch, count, joints = features.shape[0], points.shape[-2], (weights[-1].shape[0] - 1) // 4
    return points.new_empty(batch, count), points.new_empty(batch, count, joints, 4)


_run = Operation("query_field", cpu.query_field, _empty_results, gradients="torch")


class PreparedField(Protocol):
    """The interface of `kernels.query_field.cpu` and `kernels.query_field.triton`."""

    def pack_layers(
        self, weights: Sequence[Tensor], biases: Sequence[Tensor], channels: int, dtype: torch.dtype, /
    ) -> Any: ...

    def locate(
        self,
        points: Tensor,
        intrinsics: Tensor,
        image_size: int,
        map_size: tuple[int, int],
        layers: Any,
        centres: Tensor | None,
        per_ray: int,
        /,
    ) -> Any: ...

    def project_maps(
        self, features: Tensor, hand_scale: Tensor | None, layers: Any, biases: Tensor | None, /
    ) -> Any: ...

    def sample(self, maps: Any, places: Any, layers: Any, /) -> Samples: ...

    def votes(self, samples: Any, indices: Tensor, layers: Any, /) -> Tensor: ...

    def evaluate(self, maps: Any, places: Any, layers: Any, /) -> tuple[Tensor, Tensor]: ...


class FieldQuery:
    """`query_field` without gradients for a fixed network, in separate and reusable steps.

    The layers are packed once, a set of points is located once, and the maps of an image are projected once
    for any number of queries. Networks and devices that `kernels.query_field.resident.supports` accepts use
    the kernel of that module. All others use the general kernel, with the block shapes found by
    `nvf-fast tune`, if any.

    Args:
        weights: as in `query_field`.
        biases: L vectors (out,).
        channels: C of the features.
        image_size: px, side of the view.
        dtype: torch.float32, float16 or bfloat16, of the features and of the matrix products.
        surface_mm: mm; `votes` may only be called for points nearer to the surface than this. The kernel of
            small networks writes their votes while it samples.
        point_count: typical number of points in `sample`, which selects the tuned block shapes.
        backend: None, "triton" or "torch".

    Raises:
        ValueError: a shape does not fit, or the kernel does not support the network.
        TypeError: the dtype is not one of the three.
        RuntimeError: the requested backend cannot run here.
    """

    def __init__(
        self,
        weights: Sequence[Tensor],
        biases: Sequence[Tensor],
        *,
        channels: int,
        image_size: int = 224,
        dtype: torch.dtype = torch.float32,
        surface_mm: float = math.inf,
        point_count: int = 0,
        backend: Backend | None = None,
    ) -> None:
        _check_layers("FieldQuery", weights, biases, 1)
        check_count("FieldQuery", "channels", channels)
        check_count("FieldQuery", "image_size", image_size, "px")
        check_precision(dtype)
        if len(weights) < 2 or weights[0].shape[1] - channels not in (1, 2, 3):
            raise ValueError(
                f"FieldQuery: the network must have a hidden layer and take C + 1 to C + 3 inputs for C = "
                f"{channels}, got {len(weights)} layer(s), the first with {weights[0].shape[1]} inputs"
            )
        weights, biases = [w.detach() for w in weights], [b.detach() for b in biases]
        _run.check_backend(backend, weights[0])
        self._image_size, self._device = image_size, weights[0].device
        self._channels, self._dtype, self._outs = channels, dtype, sum(len(bias) for bias in biases)
        self._scaled, self._centred = (weights[0].shape[1] == channels + own for own in (2, 3))
        self._form: PreparedField = cpu
        options: dict[str, Any] = {}
        if backend == "triton" or (backend is None and weights[0].is_cuda):
            from nvf_fast.kernels.query_field import resident, triton
            from nvf_fast.runtime import autotuning

            if resident.supports(weights, channels, dtype, self._device):
                self._form, options["surface_mm"] = resident, surface_mm
            else:
                widths = [len(bias) for bias in biases]
                tiling = autotuning.tuned(self._device, dtype, widths, point_count)
                self._form, options["tiling"] = triton, tiling
        self._layers = self._form.pack_layers(weights, biases, channels, dtype, **options)

    def locate(
        self,
        points: Tensor,
        intrinsics: Tensor,
        map_size: tuple[int, int],
        centres: Tensor | None = None,
        per_ray: int = 1,
    ) -> Places:
        """Locate points on feature maps.

        Args:
            points: (B, N, 3), or (N, 3) common to the images; float32 mm, camera frame.
            intrinsics: (B, 3, 3) or (3, 3) float32 px.
            map_size: (H, W) of the maps.
            centres: (B, 3) float32 mm of the hands, for a network that takes the position about them.
            per_ray: number of consecutive points on one ray from the camera, the farthest last, at the same
                depths on every ray, as in a `HandLattice`: the PyTorch backend then evaluates part of the
                network once per ray.

        Raises:
            ValueError: a shape or device does not fit, centres are missing or superfluous, or `per_ray` does
                not divide N.
            TypeError: a dtype does not fit, or `per_ray` is not a whole number.
        """
        check_tensor("FieldQuery", "points", points, [("N", 3), ("B", "N", 3)], torch.float32, unit="mm")
        check_tensor("FieldQuery", "intrinsics", intrinsics, [(3, 3), ("B", 3, 3)], torch.float32, unit="px")
        check_count("FieldQuery", "per_ray", per_ray)
        if self._centred != (centres is not None):
            raise ValueError(
                f"FieldQuery: this network's centres must be {'(B, 3) mm' if self._centred else 'None'}, "
                f"got {None if centres is None else tuple(centres.shape)}"
            )
        if points.shape[-2] % per_ray:
            raise ValueError(f"FieldQuery: per_ray must divide the {points.shape[-2]} points, got {per_ray}")
        if min(map_size) < 2:
            raise ValueError(f"FieldQuery: map_size must be (H, W) of 2 or more, got {map_size}")
        given = {"points": points, "intrinsics": intrinsics}
        sizes = {name: len(each) for name, each in given.items() if each.ndim == 3}
        if centres is not None:
            check_tensor("FieldQuery", "centres", centres, [("B", 3)], torch.float32, unit="mm")
            given["centres"], sizes["centres"] = centres, len(centres)
        if len(set(sizes.values())) > 1:
            raise ValueError(f"FieldQuery: the batches must have one size, got {sizes}")
        check_devices("FieldQuery", self._device, given)
        with launching_on(self._device):
            located = self._form.locate(
                points, intrinsics, self._image_size, map_size, self._layers, centres, per_ray
            )
        return Places(located, next(iter(sizes.values()), None), map_size)

    def project(self, features: Tensor, hand_scale: Tensor | None, biases: Tensor | None = None) -> Maps:
        """Project feature maps through the layers.

        Args:
            features: (B, C, H, W), in the query's dtype.
            hand_scale: (B,) float32 mm or None.
            biases: (B, sum of out) float32, of all layers side by side, instead of the network's own; None
                for those.

        Raises:
            ValueError: a shape or device does not fit, or the network takes no hand scale.
            TypeError: a dtype does not fit.
        """
        check_tensor("FieldQuery", "features", features, [("B", self._channels, "H", "W")], self._dtype)
        batch, map_size = len(features), (features.shape[2], features.shape[3])
        given = {"features": features}
        if hand_scale is not None:
            if not self._scaled:
                raise ValueError("FieldQuery: hand_scale was given, but the network has no input for it")
            check_tensor("FieldQuery", "hand_scale", hand_scale, [(batch,)], torch.float32, unit="mm")
            given["hand_scale"] = hand_scale
        if biases is not None:
            check_tensor("FieldQuery", "biases", biases, [(batch, self._outs)], torch.float32)
            given["biases"] = biases
        check_devices("FieldQuery", self._device, given)
        with launching_on(self._device):
            projected = self._form.project_maps(features, hand_scale, self._layers, biases)
        return Maps(projected, batch, map_size)

    def image_maps(self, maps: Maps, image: int) -> Maps:
        """Maps of one image of a batch."""
        return maps._replace(projected=maps.projected[image : image + 1], images=1)

    def sample(self, maps: Maps, places: Places) -> Samples:
        """Evaluate the signed distances of located points.

        Raises:
            ValueError: the places are those of other maps.
        """
        _check_places(maps, places)
        with launching_on(self._device):
            return self._form.sample(maps.projected, places.located, self._layers)

    def votes(self, samples: Samples, indices: Tensor) -> Tensor:
        """Votes of sampled points, in the order of their indices.

        Args:
            samples: from `sample`.
            indices: (B, V) int64 of the points, all nearer than `surface_mm`; -1 in unused slots.

        Returns:
            (B, V, J, 4) float32 raw (weight, direction xyz), zero in unused slots and out of view.

        Raises:
            ValueError: on a CPU, an index is out of range, or a shape does not fit.
            TypeError: on a CPU, the indices are not int64.
        """
        if readable(indices):
            batch, count = samples.sdf.shape
            check_tensor("FieldQuery", "indices", indices, [(batch, "V")], torch.int64)
            low, high = (bound.item() for bound in indices.aminmax()) if indices.numel() else (-1, -1)
            if low < -1 or high >= count:
                raise ValueError(f"FieldQuery: indices must be -1 to {count - 1}, got {low} to {high}")
        with launching_on(self._device):
            return self._form.votes(samples, indices, self._layers)

    def written_votes(self, samples: Samples) -> Tensor | None:
        """Votes (B, N, J, 4) that sampling wrote, undefined for points farther than `surface_mm`; or None."""
        written: Tensor | None = getattr(samples, "votes", None)
        return written

    def evaluate(self, maps: Maps, places: Places) -> tuple[Tensor, Tensor]:
        """Signed distances, as `sample`, and votes (B, N, J, 4), as `votes`, of all located points.

        Raises:
            ValueError: as `sample`.
        """
        _check_places(maps, places)
        with launching_on(self._device):
            return self._form.evaluate(maps.projected, places.located, self._layers)


def _check_places(maps: Maps, places: Places) -> None:
    """Kernels would read other tensors' memory."""
    if places.images not in (None, maps.images) or places.map_size != maps.map_size:
        raise ValueError(
            f"FieldQuery: places must be of {maps.images} image(s), or common to all, with maps of "
            f"{maps.map_size}, got {places.images} and {places.map_size}"
        )


def _check_layers(name: str, weights: Sequence[Tensor], biases: Sequence[Tensor], batch: int) -> None:
    lists = (list, tuple, torch.nn.ParameterList)
    for layers in (weights, biases):
        if not isinstance(layers, lists) or not all(isinstance(each, Tensor) for each in layers):
            raise TypeError(
                f"{name}: weights and biases must be lists of tensors, got {type(layers).__name__}"
            )
        if found := {each.dtype for each in layers} - {*FLOATS}:
            raise TypeError(f"{name}: weights and biases must be tensors of floats, got {found.pop()}")
    if not weights or len(weights) != len(biases):
        raise ValueError(
            f"{name}: weights and biases must be equally many, one or more, got {len(weights)} and "
            f"{len(biases)}"
        )
    hidden, inputs, per_image = 0, weights[0].shape[-1] if weights[0].ndim else 0, biases[0].ndim == 2
    for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        outs = weight.shape[:1]
        bias_shape = (batch, *outs) if per_image else outs
        if weight.ndim != 2 or weight.shape[1] != hidden + inputs or bias.shape != bias_shape:
            raise ValueError(
                f"{name}: layer {layer} must have weight (out, {hidden + inputs}) and bias (out,), or "
                f"({batch}, out) in all layers, got {tuple(weight.shape)} and {tuple(bias.shape)}"
            )
        hidden = weight.shape[0]
    if hidden < 1 or hidden % 4 != 1:
        raise ValueError(f"{name}: the last layer must give 1 + 4 J channels, got {hidden}")


def _check(
    features: Tensor,
    points: Tensor,
    intrinsics: Tensor,
    hand_scale: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    image_size: int,
    centres: Tensor | None,
) -> None:
    def check(name: str, tensor: Tensor, *shapes: tuple[int | str, ...], unit: str = "mm") -> None:
        check_tensor("query_field", name, tensor, shapes, exact, unit=unit)

    check_tensor("query_field", "features", features, [("B", "C", "H", "W")], *FLOATS)
    exact = torch.float64 if features.dtype == torch.float64 else torch.float32
    if min(features.shape[2:]) < 2 or features.shape[1] < 1:
        raise ValueError(
            f"query_field: features must have C of 1 and H, W of 2 or more, got {tuple(features.shape)}"
        )
    batch, channels = features.shape[:2]
    check("points", points, ("N", 3), (batch, "N", 3))
    check("intrinsics", intrinsics, (3, 3), (batch, 3, 3), unit="px")
    _check_layers("query_field", weights, biases, batch)
    inputs = weights[0].shape[1]
    if centres is not None and inputs != channels + 3:
        raise ValueError(
            f"query_field: with centres the first weight must take C + 3 = {channels + 3} inputs for "
            f"features with C = {channels}; got {tuple(weights[0].shape)}"
        )
    if centres is None and inputs == channels + 3:
        raise ValueError(
            f"query_field: the first weight takes C + 3 = {inputs} inputs, so centres must be ({batch}, 3) "
            "mm, got None"
        )
    if centres is None and inputs not in (channels + 1, channels + 2):
        raise ValueError(
            f"query_field: the first weight must take C + 1 = {channels + 1} inputs, or {channels + 2} with "
            f"the hand scale, for features with C = {channels}; got {tuple(weights[0].shape)}"
        )
    if hand_scale is not None:
        if inputs != channels + 2:
            raise ValueError("query_field: hand_scale was given, but the weights have no input for it")
        check("hand_scale", hand_scale, (batch,))
    if centres is not None:
        check("centres", centres, (batch, 3))
    check_count("query_field", "image_size", image_size, "px")
