"""The accelerated operations: normalise feature maps, query the field, select the voters, cast their votes;
and for training and evaluation, the distance to a mesh and where rays meet it.

Each takes tensors and runs its Triton kernel on CUDA tensors and PyTorch on CPU tensors; `backend="triton"`
or `backend="torch"` forces one, and a backend that cannot run says why. The definitions are the references
`nvf_fast.kernels.NAME_ref`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from nvf_fast import query_torch
from nvf_fast.kernels.group_norm_relu_ref import group_norm_relu as _group_norm_relu_torch
from nvf_fast.kernels.select_voters_ref import select_voters as _select_voters_torch
from nvf_fast.mesh_torch import mesh_distance as _mesh_distance_torch
from nvf_fast.mesh_torch import ray_mesh as _ray_mesh_torch
from nvf_fast.query_torch import query_field as _query_field_torch
from nvf_fast.vote_torch import cast_votes as _cast_votes_torch

Backend = Literal["triton", "torch"]


def group_norm_relu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float = 1e-5,
    *,
    backend: Backend | None = None,
) -> Tensor:
    """Group normalisation and ReLU in one: max(0, (x - mean) / sqrt(variance + eps) * weight + bias).

    Mean and (biased) variance of each image are taken over C / groups channels and all texels, in float32.
    Where a gradient is needed the PyTorch form runs, on any device.

    Args:
        x: (B, C, H, W) float32, float16 or bfloat16.
        weight: (C,) in the dtype of `x` or float32.
        bias: (C,) in the dtype of `weight`.
        groups: a divisor of C.
        eps: added to the variance.
        backend: None, "triton" or "torch".

    Returns:
        (B, C, H, W) in the dtype of `x`; channels-last if `x` is that, else contiguous. NaN stays NaN.

    Raises:
        ValueError: a shape, `groups` or `eps` does not fit.
        TypeError: a dtype does not fit.
        RuntimeError: the backend asked for cannot run here.
    """
    _check_norm(x, weight, bias, groups, eps)
    _check_backend("group_norm_relu", backend, x)
    differentiate = torch.is_grad_enabled() and any(t.requires_grad for t in (x, weight, bias))
    # On a CPU a call by way of the registered operation takes longer than a small map's norm; only a compiler
    # needs to see that operation.
    direct = differentiate or not (x.is_cuda or torch.compiler.is_compiling())
    if backend == "torch" or (backend is None and direct):
        return _group_norm_relu_laid_out(x, weight, bias, groups, eps)
    if backend is None:
        return _group_norm_relu_op(x, weight, bias, groups, eps)
    if differentiate:
        raise RuntimeError(
            "group_norm_relu: the Triton kernel has no backward; use torch.no_grad() or another backend"
        )
    return _group_norm_relu_triton(x, weight, bias, groups, eps)


def query_field(
    features: Tensor,
    points: Tensor,
    intrinsics: Tensor,
    hand_scale: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    *,
    image_size: int = 224,
    surface_mm: float = math.inf,
    centres: Tensor | None = None,
    backend: Backend | None = None,
) -> tuple[Tensor, Tensor]:
    """Signed distance and votes of camera-space points: f(S(F, pi(p)), Z(p)) = (s, V), Eq. 4 of the paper.

    The feature map is sampled bilinearly at the point's projection; x = [feature, depth(, hand scale)] enters
    every layer, after the hidden activations; LeakyReLU(0.01) between layers; channel 0 is sdf = 50 tanh(.)
    mm. With `centres` the field knows where the hand is: x = [feature, (point - centre) / 60 mm], and biases
    of each image may carry a code of its pose. If a gradient is needed the PyTorch form runs, on any device;
    it reaches features, weights and biases.

    Args:
        features: (B, C, H, W) float32, float16 or bfloat16; its dtype is the compute dtype, sums are float32.
        points: (B, N, 3), or (N, 3) shared by the batch; float32 mm, camera frame.
        intrinsics: (B, 3, 3) or (3, 3) float32, of the `image_size` px view: centred, fx = fy.
        hand_scale: (B,) float32 mm; None for a model without that input, or for its neutral value of 15 mm.
        weights: L matrices (out, in) with in = X for the first layer and previous out + X for the others,
            where X = C + 1, C + 2 with the hand scale, or C + 3 with centres; the last out is 1 + 4 J.
        biases: L vectors (out,), or L of (B, out), one per image.
        image_size: px, side of the view that `intrinsics` describe.
        surface_mm: mm; votes are computed where abs(sdf) < surface_mm only.
        centres: (B, 3) float32 mm, camera frame, of the hands; None for a model that takes the depth.
        backend: None, "triton" or "torch".

    Returns:
        sdf (B, N) float32 mm, +inf where a point projects outside the view or lies behind the camera; votes
        (B, N, J, 4) float32 raw (weight, direction xyz), zero where not abs(sdf) < surface_mm.

    Raises:
        ValueError: a shape does not fit, a hand scale is given to a model that takes none, or centres are
            missing or superfluous.
        TypeError: a dtype does not fit.
        RuntimeError: the requested backend cannot run here.
    """
    _check_query(features, points, intrinsics, hand_scale, weights, biases, image_size, surface_mm, centres)
    _check_backend("query_field", backend, features)
    weights, biases = list(weights), list(biases)
    differentiate = torch.is_grad_enabled() and any(t.requires_grad for t in (features, *weights, *biases))
    if backend == "torch" or (backend is None and differentiate):
        with torch.set_grad_enabled(differentiate):
            return _query_field_torch(
                features, points, intrinsics, hand_scale, weights, biases, image_size, surface_mm, centres
            )
    if backend is None:
        return _query_field_op(
            features, points, intrinsics, hand_scale, weights, biases, image_size, surface_mm, centres
        )
    if differentiate:
        raise RuntimeError(
            "query_field: the Triton kernel has no backward; use torch.no_grad() or another backend"
        )
    return _query_field_triton(
        features, points, intrinsics, hand_scale, weights, biases, image_size, surface_mm, centres
    )


class FieldQuery:
    """`query_field` without gradients for a fixed network, each of its parts computed once and reused.

    The layers are packed once, a set of points is located once, and the maps of an image are projected once
    for any number of queries. `locate` and `project` return objects of the backend's own. The kernel takes
    the block shapes that `nvf-fast tune` found on the device.

    Args:
        weights: as in `query_field`.
        biases: L vectors (out,).
        channels: C of the features.
        image_size: px, side of the view.
        dtype: torch.float32, float16 or bfloat16, of the features and of the matrix products.
        backend: None, "triton" or "torch".

    Raises:
        ValueError: the kernel has no form for such a network.
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
        backend: Backend | None = None,
    ) -> None:
        weights, biases = [w.detach() for w in weights], [b.detach() for b in biases]
        _check_backend("query_field", backend, weights[0])
        self._image_size = image_size
        self._centred = weights[0].shape[1] == channels + 3
        self._form: Any = query_torch
        options = {}
        if backend == "triton" or (backend is None and weights[0].is_cuda):
            from nvf_fast import tuning
            from nvf_fast.kernels import query_field as kernel

            self._form = kernel
            options["tiling"] = tuning.tuned(weights[0].device, dtype, [len(bias) for bias in biases])
        self._layers = self._form.pack_layers(weights, biases, channels, dtype, **options)

    def locate(
        self,
        points: Tensor,
        intrinsics: Tensor,
        map_size: tuple[int, int],
        centres: Tensor | None = None,
        per_ray: int = 1,
    ) -> Any:
        """The points' places on feature maps.

        Args:
            points: (B, N, 3), or (N, 3) shared by the images; float32 mm, camera frame.
            intrinsics: (B, 3, 3) or (3, 3) float32 px.
            map_size: (H, W) of the maps.
            centres: (B, 3) float32 mm of the hands, for a network that takes the position about them.
            per_ray: consecutive points that lie on one ray from the camera, the farthest last, at the same
                depths on every ray, as those of a `HandLattice` do: the PyTorch form then evaluates part of
                the network once per ray.

        Raises:
            ValueError: centres are missing or superfluous, or `per_ray` does not divide N.
        """
        if self._centred != (centres is not None):
            raise ValueError(
                f"FieldQuery: this network's centres must be {'(B, 3) mm' if self._centred else 'None'}, "
                f"got {None if centres is None else tuple(centres.shape)}"
            )
        if per_ray < 1 or points.shape[-2] % per_ray:
            raise ValueError(f"FieldQuery: per_ray must divide the {points.shape[-2]} points, got {per_ray}")
        options = {"per_ray": per_ray} if self._form is query_torch else {}
        return self._form.locate(
            points, intrinsics, self._image_size, map_size, self._layers, centres, **options
        )

    def project(
        self, features: Tensor, hand_scale: Tensor | None, biases: Sequence[Tensor] | None = None
    ) -> Any:
        """Feature maps, ready for queries.

        Args:
            features: (B, C, H, W).
            hand_scale: (B,) mm or None.
            biases: L of (B, out), which replace the network's own in each image; None keeps those.
        """
        return self._form.project_maps(features, hand_scale, self._layers, biases)

    def __call__(
        self, maps: Any, places: Any, surface_mm: float, capacity: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Signed distances, and votes where they are needed.

        Args:
            maps: from `project`, of B images.
            places: from `locate`, of N points.
            surface_mm: mm; votes are computed where abs(sdf) < surface_mm only.
            capacity: rows of votes per image.

        Returns:
            sdf (B, N) float32 mm, +inf out of view; votes (B, capacity, J, 4) float32 raw (weight, direction
            xyz); slots (B, N) int32, the row of `votes` that holds a near point's, undefined elsewhere. Rows
            past the capacity are not written.
        """
        return self._form.evaluate(maps, places, self._layers, surface_mm, capacity)


def select_voters(
    sdf: Tensor, surface_mm: float, capacity: int, *, backend: Backend | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The points with abs(sdf) < surface_mm, 1(|s| < delta) of Eqs. 8 and 9, without synchronising.

    Args:
        sdf: (B, N) float32 mm; NaN and infinity are never near.
        surface_mm: mm, half the thickness of the shell that votes.
        capacity: slots per image, at least 1.
        backend: None, "triton" or "torch".

    Returns:
        indices (B, capacity) int64, ascending, -1 in unused slots; counts (B,) int32, the true number of near
        points, which may exceed the capacity; overflow (B,) bool, where it does.

    Raises:
        ValueError: a shape or `capacity` does not fit.
        TypeError: `sdf` is not float32.
        RuntimeError: the backend asked for cannot run here.
    """
    if sdf.ndim != 2:
        raise ValueError(f"select_voters: sdf must be (B, N) mm, got {tuple(sdf.shape)}")
    if sdf.dtype != torch.float32:
        raise TypeError(f"select_voters: sdf must be float32, got {sdf.dtype}")
    if capacity < 1:
        raise ValueError(f"select_voters: capacity must be at least 1 slot, got {capacity}")
    _check_backend("select_voters", backend, sdf)
    if backend == "torch" or (backend is None and _called_directly(sdf)):
        return _select_voters_torch(sdf, surface_mm, capacity)
    if backend == "triton":
        return _select_voters_triton(sdf, surface_mm, capacity)
    return _select_voters_op(sdf, surface_mm, capacity)


def cast_votes(
    points: Tensor,
    votes: Tensor,
    indices: Tensor,
    counts: Tensor,
    *,
    ball_mm: float = 80.0,
    fraction: float = 0.5,
    backend: Backend | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Joints from voters: sum w (p + o) / sum w, Eq. 9, with the offsets o = ball_mm (1 - w) d of Eq. 8.

    Per joint, the max(1, int(M * fraction)) largest weights of the image's M = min(counts, capacity) voters
    count (Sec. 4.7); among equal weights the voter that comes first in `indices` wins, -0 equals 0, and NaN
    ranks with minus infinity. d is used as predicted and w is not clamped.

    Args:
        points: (B, N, 3), or (N, 3) shared by the batch; float32 mm, camera frame.
        votes: (B, N, J, 4) float32 raw (weight, direction xyz).
        indices: (B, capacity) int64, the voters, as `select_voters` gives them.
        counts: (B,) int32 voters.
        ball_mm: mm, radius r of the label ball (Eq. 2).
        fraction: in (0, 1], share of the voters that counts, per joint.
        backend: None, "triton" or "torch".

    Returns:
        joints (B, J, 3) float32 mm, NaN without voters; weight (B, J) float32, mean weight of the selected
        voters, 0 without voters; spread (B, J) float32 mm, sqrt(sum w |vote - joint|^2 / sum w) with w
        clamped at 0, NaN without voters.

    Raises:
        ValueError: a shape or `fraction` does not fit.
        TypeError: a dtype does not fit.
        RuntimeError: the backend asked for cannot run here.
    """
    _check_votes(points, votes, indices, counts, fraction)
    _check_backend("cast_votes", backend, votes)
    if backend == "torch" or (backend is None and _called_directly(votes)):
        return _cast_votes_torch(points, votes, indices, counts, ball_mm, fraction)
    if backend == "triton":
        return _cast_votes_triton(points, votes, indices, counts, ball_mm, fraction)
    return _cast_votes_op(points, votes, indices, counts, ball_mm, fraction)


def mesh_distance(
    vertices: Tensor, faces: Tensor, points: Tensor, *, backend: Backend | None = None
) -> Tensor:
    """Signed Euclidean distance of points to closed triangle meshes of one topology, negative inside.

    Inside is where the mesh winds around the point, however often: also where parts of it overlap. Edges and
    vertices are watertight. An answer is as exact as float32 coordinates are, so subtract a centre first
    where they were made from finer ones. No gradient is computed.

    Args:
        vertices: (B, V, 3) float32 mm.
        faces: (F, 3) int64 indices of vertices, F of 1 or more, shared by the batch; every edge is shared by
            two faces that run along it in opposite ways. A face may have no area.
        points: (B, N, 3) float32 mm.
        backend: None, "triton" or "torch".

    Returns:
        (B, N) float32 mm; NaN for a point that is not finite.

    Raises:
        ValueError: a shape does not fit, or, on a CPU, a face names no vertex; CUDA itself asserts that,
            since reading it would wait for the device.
        TypeError: a dtype does not fit.
        RuntimeError: the backend asked for cannot run here.
    """
    _check_mesh("mesh_distance", vertices, faces, points=points)
    _check_backend("mesh_distance", backend, points)
    if backend == "torch":
        return _mesh_distance_torch(vertices, faces, points)
    if backend == "triton":
        return _mesh_distance_triton(vertices, faces, points)
    return _mesh_distance_op(vertices, faces, points)


def ray_mesh(
    vertices: Tensor,
    faces: Tensor,
    origins: Tensor,
    directions: Tensor,
    *,
    backend: Backend | None = None,
) -> tuple[Tensor, Tensor]:
    """Where rays origin + t * direction, t > 0, first meet triangle meshes of one topology, from either side.

    No ray slips between two faces that share an edge; among faces met at equal t the lowest index wins. A
    face seen edge-on is not met, and a direction of zero meets nothing. No gradient is computed.

    Args:
        vertices: (B, V, 3) float32 mm.
        faces: (F, 3) int64 indices of vertices, F of 1 or more, shared by the batch.
        origins: (B, R, 3) float32 mm.
        directions: (B, R, 3) float32 mm, of any length.
        backend: None, "triton" or "torch".

    Returns:
        t (B, R) float32 in multiples of the direction, +inf where a ray meets nothing; face (B, R) int64, -1
        there.

    Raises:
        ValueError: a shape does not fit, or, on a CPU, a face names no vertex; CUDA itself asserts that,
            since reading it would wait for the device.
        TypeError: a dtype does not fit.
        RuntimeError: the backend asked for cannot run here.
    """
    _check_mesh("ray_mesh", vertices, faces, origins=origins, directions=directions)
    _check_backend("ray_mesh", backend, origins)
    if backend == "torch":
        return _ray_mesh_torch(vertices, faces, origins, directions)
    if backend == "triton":
        return _ray_mesh_triton(vertices, faces, origins, directions)
    return _ray_mesh_op(vertices, faces, origins, directions)


@torch.library.custom_op("nvf_fast::group_norm_relu", mutates_args=())
def _group_norm_relu_op(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
    return _group_norm_relu_laid_out(x, weight, bias, groups, eps)


@_group_norm_relu_op.register_kernel("cuda")
def _group_norm_relu_triton(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
    from nvf_fast.kernels.group_norm_relu import group_norm_relu as kernel

    return kernel(x, weight, bias, groups, eps)


@_group_norm_relu_op.register_fake
def _group_norm_relu_shape(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
    return torch.empty_like(x, memory_format=_memory_format(x))


def _group_norm_relu_laid_out(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
    """The PyTorch form in the dtype and memory format of `x`; on CUDA or under autocast it changes them."""
    y = _group_norm_relu_torch(x, weight, bias, groups, eps)
    if y.dtype == x.dtype and y.stride() == x.stride():
        return y
    return y.to(dtype=x.dtype, memory_format=_memory_format(x))


def _memory_format(x: Tensor) -> torch.memory_format:
    channels_last = x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last else torch.contiguous_format


@torch.library.custom_op("nvf_fast::query_field", mutates_args=())
def _query_field_op(
    features: Tensor,
    points: Tensor,
    intrinsics: Tensor,
    hand_scale: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    image_size: int,
    surface_mm: float,
    centres: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return _query_field_torch(
            features, points, intrinsics, hand_scale, weights, biases, image_size, surface_mm, centres
        )


@_query_field_op.register_kernel("cuda")
def _query_field_triton(
    features: Tensor,
    points: Tensor,
    intrinsics: Tensor,
    hand_scale: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    image_size: int,
    surface_mm: float,
    centres: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    from nvf_fast.kernels.query_field import query_field as kernel

    return kernel(
        features,
        points,
        intrinsics,
        hand_scale,
        weights,
        biases,
        image_size=image_size,
        surface_mm=surface_mm,
        centres=centres,
    )


@_query_field_op.register_fake
def _query_field_shapes(
    features: Tensor,
    points: Tensor,
    intrinsics: Tensor,
    hand_scale: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    image_size: int,
    surface_mm: float,
    centres: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    batch, count, joints = features.shape[0], points.shape[-2], (weights[-1].shape[0] - 1) // 4
    return points.new_empty(batch, count), points.new_empty(batch, count, joints, 4)


@torch.library.custom_op("nvf_fast::select_voters", mutates_args=())
def _select_voters_op(sdf: Tensor, surface_mm: float, capacity: int) -> tuple[Tensor, Tensor, Tensor]:
    return _select_voters_torch(sdf, surface_mm, capacity)


@_select_voters_op.register_kernel("cuda")
def _select_voters_triton(sdf: Tensor, surface_mm: float, capacity: int) -> tuple[Tensor, Tensor, Tensor]:
    from nvf_fast.kernels.select_voters import select_voters as kernel

    return kernel(sdf, surface_mm, capacity)


@_select_voters_op.register_fake
def _select_voters_shapes(sdf: Tensor, surface_mm: float, capacity: int) -> tuple[Tensor, Tensor, Tensor]:
    batch = sdf.shape[0]
    return (
        sdf.new_empty(batch, capacity, dtype=torch.int64),
        sdf.new_empty(batch, dtype=torch.int32),
        sdf.new_empty(batch, dtype=torch.bool),
    )


@torch.library.custom_op("nvf_fast::cast_votes", mutates_args=())
def _cast_votes_op(
    points: Tensor, votes: Tensor, indices: Tensor, counts: Tensor, ball_mm: float, fraction: float
) -> tuple[Tensor, Tensor, Tensor]:
    return _cast_votes_torch(points, votes, indices, counts, ball_mm, fraction)


@_cast_votes_op.register_kernel("cuda")
def _cast_votes_triton(
    points: Tensor, votes: Tensor, indices: Tensor, counts: Tensor, ball_mm: float, fraction: float
) -> tuple[Tensor, Tensor, Tensor]:
    from nvf_fast.kernels.cast_votes import cast_votes as kernel

    return kernel(points, votes, indices, counts, ball_mm=ball_mm, fraction=fraction)


@_cast_votes_op.register_fake
def _cast_votes_shapes(
    points: Tensor, votes: Tensor, indices: Tensor, counts: Tensor, ball_mm: float, fraction: float
) -> tuple[Tensor, Tensor, Tensor]:
    batch, _, joints, _ = votes.shape
    return votes.new_empty(batch, joints, 3), votes.new_empty(batch, joints), votes.new_empty(batch, joints)


@torch.library.custom_op("nvf_fast::mesh_distance", mutates_args=())
def _mesh_distance_op(vertices: Tensor, faces: Tensor, points: Tensor) -> Tensor:
    return _mesh_distance_torch(vertices, faces, points)


@_mesh_distance_op.register_kernel("cuda")
def _mesh_distance_triton(vertices: Tensor, faces: Tensor, points: Tensor) -> Tensor:
    from nvf_fast.kernels.mesh_distance import mesh_distance as kernel

    return kernel(vertices, faces, points)


@_mesh_distance_op.register_fake
def _mesh_distance_shape(vertices: Tensor, faces: Tensor, points: Tensor) -> Tensor:
    return points.new_empty(points.shape[:2])


@torch.library.custom_op("nvf_fast::ray_mesh", mutates_args=())
def _ray_mesh_op(
    vertices: Tensor, faces: Tensor, origins: Tensor, directions: Tensor
) -> tuple[Tensor, Tensor]:
    return _ray_mesh_torch(vertices, faces, origins, directions)


@_ray_mesh_op.register_kernel("cuda")
def _ray_mesh_triton(
    vertices: Tensor, faces: Tensor, origins: Tensor, directions: Tensor
) -> tuple[Tensor, Tensor]:
    from nvf_fast.kernels.ray_mesh import ray_mesh as kernel

    return kernel(vertices, faces, origins, directions)


@_ray_mesh_op.register_fake
def _ray_mesh_shapes(
    vertices: Tensor, faces: Tensor, origins: Tensor, directions: Tensor
) -> tuple[Tensor, Tensor]:
    shape = origins.shape[:2]
    return origins.new_empty(shape), origins.new_empty(shape, dtype=torch.int64)


def _called_directly(tensor: Tensor) -> bool:
    """Whether PyTorch runs at once: the way by the registered operation takes as long as one hand's votes.

    Only devices and compilers need that way, and tensors that are not what they seem, such as fake ones.
    """
    return type(tensor) is Tensor and tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def _check_backend(name: str, backend: str | None, tensor: Tensor) -> None:
    if backend not in (None, "triton", "torch"):
        raise ValueError(f'{name}: backend must be None, "triton" or "torch", got {backend!r}')
    if backend == "triton" and not tensor.is_cuda:
        import triton

        if not triton.knobs.runtime.interpret:
            raise RuntimeError(f"{name}: Triton runs on CUDA tensors, and these are on {tensor.device}")


def _check_points(name: str, points: Tensor, batch: int) -> None:
    if points.ndim not in (2, 3) or points.shape[-1] != 3 or (points.ndim == 3 and points.shape[0] != batch):
        raise ValueError(f"{name}: points must be (N, 3) or ({batch}, N, 3) mm, got {tuple(points.shape)}")
    if points.dtype != torch.float32:
        raise TypeError(f"{name}: points must be float32 mm, got {points.dtype}")


def _check_devices(name: str, **tensors: Tensor) -> None:
    if len({tensor.device for tensor in tensors.values()}) > 1:
        found = ", ".join(f"{key} on {tensor.device}" for key, tensor in tensors.items())
        raise ValueError(f"{name}: all tensors must be on one device, got {found}")


def _check_norm(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> None:
    # Asks each tensor for as little as it can: in a small network on a CPU the checks are felt.
    shape, dtype = x.shape, x.dtype
    if len(shape) != 4:
        raise ValueError(f"group_norm_relu: x must be (B, C, H, W), got {tuple(shape)}")
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise TypeError(f"group_norm_relu: x must be float32, float16 or bfloat16, got {dtype}")
    if not weight.shape == bias.shape == shape[1:2]:
        raise ValueError(
            f"group_norm_relu: weight and bias must be ({shape[1]},), got {tuple(weight.shape)} and "
            f"{tuple(bias.shape)}"
        )
    if weight.dtype != bias.dtype or weight.dtype not in (dtype, torch.float32):
        raise TypeError(
            f"group_norm_relu: weight and bias must be float32 or {dtype} as x is, got {weight.dtype} "
            f"and {bias.dtype}"
        )
    if groups < 1 or shape[1] % groups:
        raise ValueError(f"group_norm_relu: groups must divide the {shape[1]} channels, got {groups}")
    if not eps > 0:
        raise ValueError(f"group_norm_relu: eps must be positive, got {eps}")
    if not x.device == weight.device == bias.device:
        _check_devices("group_norm_relu", x=x, weight=weight, bias=bias)


def _check_query(
    features: Tensor,
    points: Tensor,
    intrinsics: Tensor,
    hand_scale: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    image_size: int,
    surface_mm: float,
    centres: Tensor | None,
) -> None:
    if features.ndim != 4 or min(features.shape[2:]) < 2:
        raise ValueError(
            f"query_field: features must be (B, C, H, W) with H, W of 2 or more, got {tuple(features.shape)}"
        )
    if features.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise TypeError(f"query_field: features must be float32, float16 or bfloat16, got {features.dtype}")
    batch, channels = features.shape[:2]
    _check_points("query_field", points, batch)
    if intrinsics.shape not in ((3, 3), (batch, 3, 3)):
        raise ValueError(
            f"query_field: intrinsics must be (3, 3) or ({batch}, 3, 3), got {tuple(intrinsics.shape)}"
        )
    if intrinsics.dtype != torch.float32:
        raise TypeError(f"query_field: intrinsics must be float32, got {intrinsics.dtype}")
    if not weights or len(weights) != len(biases):
        raise ValueError(
            f"query_field: weights and biases must be equally many, one or more, got {len(weights)} and "
            f"{len(biases)}"
        )
    inputs = weights[0].shape[-1]
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
    hidden, per_image = 0, biases[0].ndim == 2
    for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        outs = weight.shape[:1]
        bias_shape = (batch, *outs) if per_image else outs
        if weight.ndim != 2 or weight.shape[1] != hidden + inputs or bias.shape != bias_shape:
            raise ValueError(
                f"query_field: layer {layer} must have weight (out, {hidden + inputs}) and bias (out,), or "
                f"({batch}, out) in all layers, got {tuple(weight.shape)} and {tuple(bias.shape)}"
            )
        hidden = weight.shape[0]
    if hidden < 1 or hidden % 4 != 1:
        raise ValueError(f"query_field: the last layer must give 1 + 4 J channels, got {hidden}")
    if hand_scale is not None:
        if inputs != channels + 2:
            raise ValueError("query_field: hand_scale was given, but the weights have no input for it")
        if hand_scale.shape != (batch,):
            raise ValueError(f"query_field: hand_scale must be ({batch},) mm, got {tuple(hand_scale.shape)}")
        if hand_scale.dtype != torch.float32:
            raise TypeError(f"query_field: hand_scale must be float32 mm, got {hand_scale.dtype}")
    if centres is not None:
        if centres.shape != (batch, 3):
            raise ValueError(f"query_field: centres must be ({batch}, 3) mm, got {tuple(centres.shape)}")
        if centres.dtype != torch.float32:
            raise TypeError(f"query_field: centres must be float32 mm, got {centres.dtype}")
    if image_size < 1:
        raise ValueError(f"query_field: image_size must be at least 1 px, got {image_size}")
    if not surface_mm > 0:
        raise ValueError(f"query_field: surface_mm must be positive, got {surface_mm}")
    given = {"features": features, "points": points, "intrinsics": intrinsics, "weights": weights[0]}
    if hand_scale is not None:
        given["hand_scale"] = hand_scale
    if centres is not None:
        given["centres"] = centres
    _check_devices("query_field", **given)


def _check_votes(points: Tensor, votes: Tensor, indices: Tensor, counts: Tensor, fraction: float) -> None:
    if votes.ndim != 4 or votes.shape[-1] != 4:
        raise ValueError(f"cast_votes: votes must be (B, N, J, 4), got {tuple(votes.shape)}")
    if votes.dtype != torch.float32:
        raise TypeError(f"cast_votes: votes must be float32, got {votes.dtype}")
    batch, count = votes.shape[:2]
    _check_points("cast_votes", points, batch)
    if points.shape[-2] != count:
        raise ValueError(f"cast_votes: votes of {count} points, but {points.shape[-2]} points given")
    if indices.ndim != 2 or indices.shape[0] != batch:
        raise ValueError(f"cast_votes: indices must be ({batch}, capacity), got {tuple(indices.shape)}")
    if counts.shape != (batch,):
        raise ValueError(f"cast_votes: counts must be ({batch},), got {tuple(counts.shape)}")
    if indices.dtype != torch.int64 or counts.dtype != torch.int32:
        raise TypeError(
            f"cast_votes: indices must be int64 and counts int32, got {indices.dtype} and {counts.dtype}"
        )
    if not 0 < fraction <= 1:
        raise ValueError(f"cast_votes: fraction must be in (0, 1], got {fraction}")
    _check_devices("cast_votes", points=points, votes=votes, indices=indices, counts=counts)


def _check_mesh(name: str, vertices: Tensor, faces: Tensor, **queries: Tensor) -> None:
    if vertices.ndim != 3 or vertices.shape[-1] != 3:
        raise ValueError(f"{name}: vertices must be (B, V, 3) mm, got {tuple(vertices.shape)}")
    if faces.ndim != 2 or faces.shape[-1] != 3 or len(faces) < 1:
        raise ValueError(f"{name}: faces must be (F, 3) with F of 1 or more, got {tuple(faces.shape)}")
    if faces.dtype != torch.int64:
        raise TypeError(f"{name}: faces must be int64, got {faces.dtype}")
    for key, tensor in queries.items():
        if tensor.ndim != 3 or tensor.shape[::2] != (len(vertices), 3):
            raise ValueError(f"{name}: {key} must be ({len(vertices)}, N, 3), got {tuple(tensor.shape)}")
    shapes = [tuple(tensor.shape) for tensor in queries.values()]
    if len(set(shapes)) > 1:
        raise ValueError(f"{name}: {' and '.join(queries)} must have one shape, got {shapes}")
    for key, tensor in {"vertices": vertices, **queries}.items():
        if tensor.dtype != torch.float32:
            raise TypeError(f"{name}: {key} must be float32 mm, got {tensor.dtype}")
    _check_devices(name, vertices=vertices, faces=faces, **queries)
    # On CUDA reading the indices would wait for the device, and compiled code has no values to read.
    if faces.device.type == "cpu" and not torch.compiler.is_compiling():
        low, high = (bound.item() for bound in faces.aminmax())
        if low < 0 or high >= vertices.shape[1]:
            raise ValueError(
                f"{name}: faces must name vertices 0 to {vertices.shape[1] - 1}, got {low} to {high}"
            )
