"""The query grid has the paper's counts and fills the view."""

from __future__ import annotations

import pytest
import torch

from nvf_fast.camera import project, reference_intrinsics
from nvf_fast.grid import frustum_grid

TABLE_6 = [(4, 1_882_292), (8, 230_475), (16, 28_351), (24, 7_742), (32, 3_183)]


@pytest.mark.parametrize(("step", "count"), TABLE_6)
def test_counts_of_table_6(step: int, count: int) -> None:
    assert frustum_grid(step).shape == (count, 3)


def test_points_are_lower_corners_in_order_inside_the_view() -> None:
    points = frustum_grid(16.0)
    assert points.dtype == torch.float32
    pixels = project(points, reference_intrinsics())
    assert pixels.min() >= 0 and pixels.max() <= 224
    spacing = torch.tensor([500 / 31, 500 / 31, 1050 / 65])
    cells = (points - torch.tensor([-250.0, -250.0, 150.0])) / spacing
    torch.testing.assert_close(cells, cells.round(), rtol=0, atol=1e-4)
    rows = cells.round().long() @ torch.tensor([65 * 31, 65, 1])
    assert (rows.diff() > 0).all(), "x is outermost, z innermost"
    assert points[:, 2].max() == pytest.approx(1200 - 1050 / 65)


def test_fractional_steps() -> None:
    assert len(frustum_grid(16.5)) < len(frustum_grid(15.5))


@pytest.mark.parametrize("step", [0, -4, float("nan"), float("inf")])
def test_refuses_what_is_no_step(step: float) -> None:
    with pytest.raises(ValueError, match="positive number of mm"):
        frustum_grid(step)


def test_refuses_a_step_without_points() -> None:
    with pytest.raises(ValueError, match="no point"):
        frustum_grid(400)
