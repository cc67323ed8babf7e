"""The query grid: counts of the paper, positions, neighbours."""

from __future__ import annotations

import math

import pytest
import torch

from nvf_fast.camera import project, reference_intrinsics
from nvf_fast.grid import Lattice, cube, frustum_grid

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


@pytest.mark.parametrize("step", [0, -4, float("nan"), float("inf"), 400])
def test_refuses_invalid_steps(step: float) -> None:
    with pytest.raises(ValueError, match="no point" if step == 400 else "positive number of mm"):
        frustum_grid(step)


@pytest.fixture(scope="module")
def lattice() -> Lattice:
    return Lattice(24.0)


def test_nodes_have_the_grids_points(lattice: Lattice) -> None:
    assert lattice.shape == (20, 20, 43)
    assert torch.equal(lattice.points(lattice.every(1)), frustum_grid(24.0))
    box = lattice.box()
    assert box.shape == (20 * 20 * 43, 3)
    expected = torch.tensor([-250 + 3 * 25, -250 + 7 * 25, 150 + 11 * 1050 / 43])
    torch.testing.assert_close(box[(3 * 20 + 7) * 43 + 11], expected)
    assert torch.equal(lattice.points(lattice.nodes(box)), box)
    assert torch.equal(lattice.nodes(lattice.points(lattice.every(1))), lattice.every(1))


def test_every_second_node_is_a_lattice(lattice: Lattice) -> None:
    few = lattice.points(lattice.every(2))
    everything = {tuple(point) for point in lattice.points(lattice.every(1)).tolist()}
    assert all(tuple(point) in everything for point in few.tolist())
    spacing = torch.tensor([25.0, 25.0, 1050 / 43])
    torch.testing.assert_close(torch.stack([few[:, i].unique().diff()[0] for i in range(3)]), 2 * spacing)
    assert torch.equal(lattice.every(1), lattice.visible.nonzero()[:, 0])
    # The rim of a 3 mm grid has six nodes, which the stride does not divide.
    cubic = Lattice(3.0, box=((0.0, 30.0),) * 3, slope=None)
    assert cubic.points(cubic.every(4)).unique().tolist() == [0, 12, 24]


@pytest.mark.parametrize("step", [4.0, 24.0, 100.0])
def test_neighbours_lie_at_their_offsets(step: float) -> None:
    lattice = Lattice(step)
    nodes = lattice.every(1)[[0, len(lattice) // 2, -1]]
    offsets = cube(max(lattice.rim, 2, int(16.5 / step)))  # as far as the searches look
    places = lattice.points(lattice.neighbours(nodes, offsets))
    spacing = torch.tensor([length / n for length, n in zip((500, 500, 1050), lattice.shape, strict=True)])
    expected = lattice.points(nodes)[:, None] + offsets * spacing
    torch.testing.assert_close(places, expected, rtol=0, atol=1e-3)  # float32 of 1200 mm: measured 1.2e-4
    assert cube([2, 0, 1]).tolist()[:2] == [[-2, 0, -1], [-2, 0, 0]] and len(cube([2, 0, 1])) == 15


def test_balls_hold_the_nodes_within_the_radius(lattice: Lattice) -> None:
    centres = torch.tensor([[0.0, 0, 400], [40, -30, 500], [math.nan, 0, 400], [0, 0, 1e8], [-260, 0, 900]])
    centres = torch.cat([centres, torch.tensor([[240.0, 245, 1190]])])
    nodes = lattice.balls(centres, 70.0).nonzero()[:, 0]
    box = lattice.box()
    near = torch.cdist(box.double(), centres[[0, 1, 4, 5]].double()).amin(1) <= 70
    assert near.sum() > 100 and torch.equal(nodes, lattice.nodes(box[near]))


@pytest.mark.parametrize("step", [4.0, 16.0, 32.0, 100.0])
def test_points_outside_and_on_the_rim_are_not_visible(step: float) -> None:
    lattice = Lattice(step)
    nowhere = torch.tensor([lattice.nowhere])
    x, _, z = lattice.points(nowhere)[0].tolist()
    assert z < 0 or abs(x) > z
    assert not lattice.visible[lattice.neighbours(nowhere, cube(lattice.rim))].any()
    assert lattice.visible.sum() == len(lattice) == lattice.visible[lattice.nodes(lattice.box())].sum()
    positions = torch.tensor([0, 2, -1])
    assert lattice.filled(positions, torch.tensor([7, 8, 9])).tolist() == [7, 9, lattice.nowhere]
    assert lattice.filled(positions).tolist() == [0, 2, lattice.nowhere]
    assert lattice.mask(torch.tensor([[5, 7], [0, 6]])).nonzero()[:, 0].tolist() == [5, 6, 7]
