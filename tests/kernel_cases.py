"""Networks, points and meshes for the tests and benchmarks of the operations."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
import trimesh
from torch import Tensor

from nvf_fast.camera import ViewPlan
from nvf_fast.kernels.network_views.reference import interpolated, places
from nvf_fast.synthetic.rig import built_in_surface
from tests.sampled_hands import sample_hands


def sampled_view(crop: Tensor, plan: ViewPlan, size: int) -> Tensor:
    """A view (C, size, size) of its planned crop (C, h, w), float64, by the definition of `network_views`."""
    axis = torch.arange(size, dtype=torch.float64)
    v, u = torch.meshgrid(axis, axis, indexing="ij")
    texels = F.avg_pool2d(crop, plan.factor, ceil_mode=True, divisor_override=plan.factor**2)
    return interpolated(
        texels.permute(1, 2, 0), *places(torch.tensor(plan.row(0, 0), dtype=torch.float64), u, v)
    )


class FieldCase(NamedTuple):
    """A field and its points, which cover `spread` of the view's side; values above 1 exceed the view."""

    batch: int
    count: int  # type: ignore[assignment]
    channels: int
    map_size: tuple[int, int]
    hidden: tuple[int, ...]
    hand_scale: bool = True
    image_size: int = 224
    spread: float = 1.2
    centred: bool = False  # positions relative to a centre, and biases of each image


class FieldInputs(NamedTuple):
    """The arguments of `query_field` for a case, by name."""

    features: Tensor
    points: Tensor
    intrinsics: Tensor
    hand_scale: Tensor | None
    weights: list[Tensor]
    biases: list[Tensor]
    image_size: int
    centres: Tensor | None = None

    def double(self) -> FieldInputs:
        return FieldInputs(
            self.features.double(),
            self.points.double(),
            self.intrinsics.double(),
            None if self.hand_scale is None else self.hand_scale.double(),
            [weight.double() for weight in self.weights],
            [bias.double() for bias in self.biases],
            self.image_size,
            None if self.centres is None else self.centres.double(),
        )


SMALL_NETWORK = FieldCase(2, 200, 64, (32, 32), (256, 128, 64, 64), image_size=128, spread=0.2)
DEFAULT_NETWORK = SMALL_NETWORK._replace(hand_scale=False, centred=True)
FULL_NETWORK = FieldCase(1, 60, 256, (56, 56), (1024, 512, 256, 128), spread=0.04)
FIELD_CASES = {
    "one point": FieldCase(1, 1, 8, (9, 7), (40, 24), spread=0.9),
    "63 points, one hidden layer, no scale": FieldCase(3, 63, 30, (16, 16), (64,), hand_scale=False),
    "1000 points, small map": FieldCase(1, 1000, 20, (10, 12), (64, 48, 32), image_size=128),
    "small network": SMALL_NETWORK,
    "default network": DEFAULT_NETWORK,
    "257 centred points, one hidden layer": FieldCase(3, 257, 30, (9, 12), (64,), False, centred=True),
    "full network": FULL_NETWORK,
}


def field_inputs(case: FieldCase, dtype: torch.dtype = torch.float32, device: str = "cpu") -> FieldInputs:
    """Draw random inputs with network weights exactly representable in `dtype`.

    The images of a centred case also have separate intrinsics.
    """
    batch, count, size = case.batch, case.count, case.image_size
    focal = 480 * size / 224
    intrinsics = torch.tensor([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]])
    depth = 300 + 500 * torch.rand(batch, count, 1)
    offsets = (torch.rand(batch, count, 2) - 0.5) * case.spread * size
    points = torch.cat([offsets * depth / focal, depth], -1)
    inputs = case.channels + (3 if case.centred else 1 + case.hand_scale)
    centres = None
    if case.centred:
        intrinsics = intrinsics.repeat(batch, 1, 1)
        intrinsics[:, [0, 1], [0, 1]] *= torch.linspace(1, 1.3, batch)[:, None]
        centres = points.mean(1) + 20 * torch.randn(batch, 3)
    weights, biases, hidden = [], [], 0
    for width in (*case.hidden, 85):
        weights.append(torch.randn(width, hidden + inputs) * math.sqrt(2 / (hidden + inputs)))
        biases.append(0.05 * torch.randn((batch, width) if case.centred else (width,)))
        hidden = width
    weights[-1][0] *= 0.1  # a few points come near the surface
    features = torch.randn(batch, case.channels, *case.map_size)
    return FieldInputs(
        features.to(device, dtype),
        points.to(device),
        intrinsics.to(device),
        torch.linspace(20, 30, batch, device=device) if case.hand_scale else None,
        [weight.to(dtype).to(device, torch.float32) for weight in weights],
        [bias.to(dtype).to(device, torch.float32) for bias in biases],
        size,
        None if centres is None else centres.to(device),
    )


def rms(error: Tensor) -> float:
    """Return the root mean square; NaN, which exceeds every limit in an assertion, if an entry is NaN."""
    return error.double().square().mean().sqrt().item()


def hand_of_mano_size() -> trimesh.Trimesh:
    """Return a synthetic hand of 799 vertices and 1594 faces; MANO's, closed, has 778 and 1552."""
    hand = sample_hands(1, torch.Generator().manual_seed(0), surface=built_in_surface(8.0))
    vertices = hand.vertices[0].double().numpy()
    return trimesh.Trimesh(vertices - vertices.mean(0), hand.faces.numpy(), process=False)


def closed_meshes() -> list[trimesh.Trimesh]:
    """Return 20 closed meshes of about 100 mm, randomly rotated, 300 to 1000 mm away; the first is a hand."""
    random = np.random.default_rng(0)
    meshes = [hand_of_mano_size()]
    for _ in range(5):
        sphere = trimesh.creation.icosphere(subdivisions=2, radius=50)
        sphere.vertices *= random.uniform(0.7, 1.3, (len(sphere.vertices), 1))  # still star-shaped
        box = trimesh.creation.box(random.uniform(10, 120, 3))
        torus = trimesh.creation.torus(random.uniform(30, 60), random.uniform(5, 25), 24, 12)
        hull = trimesh.convex.convex_hull(40 * random.standard_normal((30, 3)))
        meshes += [sphere, box.subdivide(), torus, hull]
    meshes = meshes[:17] + [
        trimesh.creation.capsule(height=random.uniform(20, 90), radius=random.uniform(8, 30), count=(12, 12))
        for _ in range(3)
    ]
    for mesh in meshes:
        mesh.apply_transform(trimesh.transformations.random_rotation_matrix(random.random(3)))
        toward = random.standard_normal(3)
        mesh.apply_translation(toward / np.linalg.norm(toward) * random.uniform(300, 1000))
        assert mesh.is_watertight and mesh.is_winding_consistent
    return meshes


def mesh_tensors(
    mesh: trimesh.Trimesh, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Return vertices (1, V, 3), centred before rounding, and faces (F, 3)."""
    vertices = torch.tensor(mesh.vertices - mesh.vertices.mean(0))[None]
    return vertices.to(device, dtype), torch.tensor(mesh.faces, dtype=torch.int64, device=device)


@contextmanager
def accesses_checked() -> Iterator[None]:
    """Let interpreted kernels fail where they access memory outside their arguments' tensors."""
    from triton.runtime import interpreter

    extents: list[tuple[int, int]] = []  # first byte and end of each tensor of the running kernel
    arguments_of, builder = interpreter.GridExecutor._init_args_hst, interpreter.InterpreterBuilder

    def arguments(self: Any, positional: Any, named: Any) -> Any:
        given = arguments_of(self, positional, named)
        extents.clear()
        for value in (*given[0], *given[1].values()):
            if isinstance(value, Tensor) and value.numel():
                last = sum((n - 1) * stride for n, stride in zip(value.shape, value.stride(), strict=True))
                extents.append((value.data_ptr(), value.data_ptr() + (last + 1) * value.element_size()))
        return given

    def checked(access: Any, masks_before: int) -> Any:
        def check(self: Any, pointers: Any, *rest: Any) -> Any:
            mask = rest[masks_before].data
            addresses = np.broadcast_to(pointers.data, mask.shape)[mask]
            ends = addresses + (pointers.get_element_ty().primitive_bitwidth + 7) // 8
            inside = [(addresses >= first) & (ends <= stop) for first, stop in extents]
            assert np.any(inside, 0).all(), "access outside the tensors of a kernel"
            return access(self, pointers, *rest)

        return check

    with (
        mock.patch.object(interpreter.GridExecutor, "_init_args_hst", arguments),
        mock.patch.object(builder, "create_masked_load", checked(builder.create_masked_load, 0)),
        mock.patch.object(builder, "create_masked_store", checked(builder.create_masked_store, 1)),
    ):
        yield
