"""network_views: every form against its definition in float64, and the definition against `grid_sample`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from nvf_fast import ops
from nvf_fast.camera import ViewPlan, plan_view
from nvf_fast.camera_model import Camera, Cameras
from nvf_fast.kernels.network_views import triton as kernel_file
from nvf_fast.kernels.network_views.cpu import averaged
from nvf_fast.kernels.network_views.cpu import network_views as by_torch
from nvf_fast.kernels.network_views.reference import ROW
from nvf_fast.kernels.network_views.reference import network_views as reference
from nvf_fast.kernels.network_views.triton import network_views as kernel
from nvf_fast.lens import distort
from nvf_fast.volumes import HandVolume

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZE = 30
BARREL = (-0.25, 0.1, 0.01, -0.005, 0.02, 0.01, 0.0, 0.0, 0.001, 0.0, -0.002, 0.001)
FISHEYE = (0.1, -0.02, 0.003, -0.001)
pytestmark = pytest.mark.usefixtures("poisoned_memory")


@pytest.fixture(autouse=True)
def large_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use large blocks: the interpreter takes as long for a small block as for a large one."""
    if DEVICE == "cpu":
        monkeypatch.setattr(kernel_file, "_BLOCK", 1024)


def camera(kind: str, focal: float) -> Camera:
    K = np.array([[focal, 0.7, 83.2], [0, 1.02 * focal, 61.9], [0, 0, 1]])
    if kind == "pinhole":
        return Camera(K, (173, 131))
    return Camera(K, (173, 131), *((BARREL,) if kind == "plumb_bob" else (FISHEYE, "fisheye")))


def planned(kind: str, focal: float, box: tuple[float, ...]) -> ViewPlan:
    cameras = Cameras.of([camera(kind, focal)])
    boxes = torch.tensor([box], dtype=torch.float64)
    placement = HandVolume().place(torch.from_numpy(cameras.intrinsics), SIZE, boxes=boxes, cameras=cameras)
    matrix = placement.matrices.flatten().tolist()
    return plan_view(matrix, SIZE, 131, 173, 1.0, next(iter(cameras)))


# Magnified, averaged over 2 px, beyond the border, tilted towards the horizon, through lenses.
PLANS = {
    "magnified": ("pinhole", 150.0, (60, 50, 75, 62)),
    "averaged": ("pinhole", 150.0, (40, 20, 95, 70)),
    "border": ("pinhole", 150.0, (-30, -15, 20, 35)),
    "wide": ("pinhole", 60.0, (110, 80, 150, 120)),
    "plumb bob": ("plumb_bob", 150.0, (20, 20, 70, 70)),
    "fisheye": ("fisheye", 90.0, (70, 20, 115, 65)),
    "unseen": ("plumb_bob", 60.0, (-25, -25, 20, 20)),
}


def batch(names: list[str], channels: int) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Rows and pixels of views of one random image, and each view's crop (1, C, h, w)."""
    random = torch.Generator().manual_seed(3)
    image = torch.randint(256, (131, 173, channels), dtype=torch.uint8, generator=random)
    plans = [planned(*PLANS[name]) for name in names]
    rows = torch.tensor([plan.row(173 * channels, channels) for plan in plans], dtype=torch.float64)
    crops = [image[plan.rows, plan.columns].permute(2, 0, 1)[None] for plan in plans]
    pixels = torch.cat([torch.zeros(7, dtype=torch.uint8), image.flatten()]).to(DEVICE)
    return rows.to(DEVICE), pixels[7:], crops


def sampled(crop: Tensor, plan: ViewPlan, mirrored: bool) -> Tensor:
    """A view (C, S, S) of its planned crop (1, C, h, w) by `distort` and `grid_sample` in float64."""
    texels = F.avg_pool2d(crop.double(), plan.factor, ceil_mode=True, divisor_override=plan.factor**2)
    axis = torch.arange(SIZE, dtype=torch.float64)
    v, u = torch.meshgrid(axis, axis, indexing="ij")
    matrix = torch.tensor(plan.entries, dtype=torch.float64).view(3, 3)
    places = torch.stack([SIZE - u if mirrored else u, v, torch.ones_like(u)], -1)
    x, y, depth = (places @ matrix.mT).unbind(-1)
    x, y = x / depth, y / depth
    if plan.lens_row is not None:
        fx, skew, cx, fy, cy, *row = plan.lens_row
        x, y = distort(x, y, row)
        x, y = fx * x + skew * y + cx, fy * y + cy
    grid = torch.stack([(2 * x + 1) / texels.shape[3], (2 * y + 1) / texels.shape[2]], -1) - 1
    outside = (depth <= 0)[..., None] | grid.isnan()
    return F.grid_sample(texels, grid.masked_fill(outside, 3.0)[None], align_corners=False)[0]


@pytest.mark.parametrize("name", PLANS)
def test_definition_is_that_of_views(name: str) -> None:
    rows, pixels, (crop,) = batch([name], 3)
    plan = planned(*PLANS[name])
    found = reference(rows, [pixels], SIZE, 3, True, torch.float64).cpu()
    for view, mirrored in zip(found, (False, True), strict=True):
        expected = sampled(crop, plan, mirrored) / 127.5 - 1
        torch.testing.assert_close(view, expected, rtol=0, atol=1e-9)
    if name in ("border", "unseen"):
        assert (found == -1).any()
    assert found.std() > 0.1


@pytest.mark.parametrize("function", [kernel, by_torch])
@pytest.mark.parametrize(
    ("dtype", "channels", "mirrored"),
    [
        (torch.float32, 3, True),
        (torch.float16, 3, False),
        (torch.float16, 1, True),
        (torch.float32, 5, False),
    ],
)
def test_forms(function: Callable, dtype: torch.dtype, channels: int, mirrored: bool) -> None:
    names = list(PLANS) if mirrored and channels == 3 else ["border", "averaged"]
    rows, pixels, _ = batch(names, channels)
    exact = reference(rows, [pixels], SIZE, channels, mirrored, torch.float64)
    found = function(rows, [pixels], SIZE, channels, mirrored, dtype)
    assert found.dtype == dtype and found.is_contiguous(memory_format=torch.channels_last)
    # Values of 2 at most, and in float32 `grid_sample`'s coordinates of up to 173 px. Measured: 4.0e-5.
    limit = 1e-4 if dtype == torch.float32 else 1e-3
    assert (found.double() - exact).abs().max() < limit
    alone = function(rows[:2], [pixels] * 2, SIZE, channels, mirrored, dtype)
    assert torch.equal(alone, found.view(-1, len(rows), *found.shape[1:])[:, :2].flatten(0, 1))


class NewStorages(TorchDispatchMode):
    """The bytes of the tensors that operations make, without views."""

    def __init__(self, *known: Tensor) -> None:
        super().__init__()
        self.bytes = {each.untyped_storage().data_ptr(): 0 for each in known}

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        result = function(*arguments, **(options or {}))
        for each in result if isinstance(result, list | tuple) else [result]:
            storage = each.untyped_storage()
            self.bytes.setdefault(storage.data_ptr(), storage.nbytes())
        return result


def test_averages_of_a_large_crop_take_less_memory_than_the_crop() -> None:
    crop = torch.randint(256, (640, 799, 3), dtype=torch.uint8)
    with NewStorages(crop) as made:
        averages = averaged(crop, 16)
    expected = F.avg_pool2d(crop.permute(2, 0, 1)[None].double(), 16, ceil_mode=True, divisor_override=256)
    assert torch.equal(averages.double(), expected)  # sums of integers are exact
    assert 0 < sum(made.bytes.values()) < crop.numel()


@pytest.mark.parametrize("function", [kernel, by_torch, reference])
@pytest.mark.parametrize("limit", ["depth", "lens"])
def test_pixels_without_a_place_are_black(function: Callable, limit: str) -> None:
    """Behind the camera, or past the angle that the lens sees, where its polynomial returns to the image."""
    rows, pixels, _ = batch(["magnified"], 3)
    pixels[:], row = 255, rows[0]
    row[9:14] = torch.tensor([1.0, 0, 173 * 3, 131, 173])
    u = torch.arange(SIZE, dtype=torch.float64, device=DEVICE).expand(SIZE, -1)
    if limit == "depth":  # (70 depth, 60 depth, depth), the same place at all depths
        row[:9] = torch.tensor([70.0, 0, -700, 60, 0, -600, 1, 0, -10])
        seen = u > 10
    else:  # rays of slopes (u / 10, 0), of which the lens makes 0
        row[:9] = torch.tensor([0.1, 0, 0, 0, 0, 0, 0, 0, 1])
        row[14:] = 0.0
        row[14], row[15:20], row[20] = 1, torch.tensor([0.0, 0, 70, 0, 60]), 1.55**2
        seen = u <= 15
    view = function(rows, [pixels], SIZE, 3, False, torch.float32)[0]
    expected = torch.where(seen, 1.0, -1.0).expand_as(view)
    torch.testing.assert_close(view.double(), expected.double(), rtol=0, atol=1e-4)


def test_kernel_is_as_exact_as_torch() -> None:
    rows, pixels, _ = batch(["magnified", "averaged", "plumb bob"], 3)
    exact = reference(rows, [pixels], SIZE, 3, True, torch.float64)
    errors = [
        (form(rows, [pixels], SIZE, 3, True, torch.float32).double() - exact).square().mean().sqrt()
        for form in (kernel, by_torch)
    ]
    assert errors[0] <= 2 * errors[1]


def test_operation() -> None:
    rows, pixels, _ = batch(["averaged", "fisheye"], 3)
    options = {"size": SIZE, "mirrored": True}
    expected = reference(rows, [pixels], SIZE, 3, True, torch.float32)
    for backend in (None, "torch", "triton"):
        found = ops.network_views(rows, [pixels], backend=backend, **options)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert ops.network_views(rows[:0], [], **options).shape == (0, 3, SIZE, SIZE)
    with pytest.raises(ValueError, match=rf"rows must be \(B, {ROW}\), got \(2, 9\)"):
        ops.network_views(rows[:, :9], [pixels], **options)
    with pytest.raises(TypeError, match=r"pixels must be uint8 bytes, got torch\.float32"):
        ops.network_views(rows, [pixels.float()], **options)
    with pytest.raises(ValueError, match="pixels must be contiguous, got a stride of 2"):
        ops.network_views(rows, [pixels[::2]], **options)
    with pytest.raises(ValueError, match=r"pixels must be 1 or 2 tensor\(s\), got 3"):
        ops.network_views(rows, [pixels] * 3, **options)
