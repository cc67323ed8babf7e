"""Lattices of query points that fill a volume, and the reference camera's grid (Sec. 3.4 of the paper)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nvf_fast.camera import REFERENCE_SLOPE
from nvf_fast.runtime.ambient import unaffected

Box = tuple[tuple[float, float], tuple[float, float], tuple[float, float]]  # lowest and highest x, y and z
BOX_MM: Box = ((-250.0, 250.0), (-250.0, 250.0), (150.0, 1200.0))
FAR_MM = 1e6  # beyond the box
MOST_NODES = 2**28  # of a lattice; a search takes 6 bytes of memory for each
RIM, RIM_MM = 4, 16.0  # nodes about the box, at least, and their reach


class Lattice:
    """A regular grid over a box, whose nodes are numbered with x outermost and z innermost.

    Each axis has int(length / step) cells and one node per cell, so that the spacing is a little more than
    the step where the step does not divide the length. A rim of nodes that are never visible surrounds the
    box, so that every neighbour of a visible node is a node.

    Args:
        step_mm: mm, spacing of the nodes.
        device: of all tensors.
        box: mm, extents along x, y and z; by default those of the reference camera's grid.
        slope: a node is visible where abs(x) and abs(y) are at most slope * z; None makes all nodes visible.
        centred: whether nodes are the cells' centres instead of their lower corners.

    Attributes:
        step_mm: mm, the requested step.
        shape: nodes along x, y and z, without the rim.
        rim: nodes about the box on each side.
        visible: (nodes,) bool, the visible nodes of the box.
        device: of all tensors.

    Raises:
        ValueError: the step is not a positive number, is so small that there are more than `MOST_NODES`, or
            so large that no node is visible.
    """

    nowhere = 0  # a node of the rim, for the unused slots of a list of nodes

    def __init__(
        self,
        step_mm: float,
        device: torch.device | str | None = None,
        box: Box = BOX_MM,
        slope: float | None = REFERENCE_SLOPE,
        centred: bool = False,
    ) -> None:
        if not (math.isfinite(step_mm) and step_mm > 0):
            raise ValueError(f"step_mm must be a positive number of mm, got {step_mm}")
        self.step_mm = step_mm
        lengths = [high - low for low, high in box]
        # Before the numbers along the axes, which overflow for the smallest steps.
        if math.prod(length / step_mm for length in lengths) > MOST_NODES:
            raise ValueError(
                f"step_mm = {step_mm} makes more than {MOST_NODES} points; the smallest step is about "
                f"{(math.prod(lengths) / MOST_NODES) ** (1 / 3):.2g} mm"
            )
        self.shape = tuple(int(length / step_mm) for length in lengths)
        if min(self.shape) == 0:
            raise _no_point(step_mm)
        self.rim = rim = max(RIM, math.ceil(RIM_MM / step_mm))
        self._spacings = [length / n for length, n in zip(lengths, self.shape, strict=True)]
        offset = 0.5 if centred else 0.0
        first = [low + offset * spacing for (low, _), spacing in zip(box, self._spacings, strict=True)]
        axes = [
            low + torch.arange(-rim, n + rim, dtype=torch.float64) * spacing
            for low, n, spacing in zip(first, self.shape, self._spacings, strict=True)
        ]
        visible = _visible(axes, slope).to(device)
        for axis in range(3):
            visible.narrow(axis, 0, rim).fill_(False)
            visible.narrow(axis, visible.shape[axis] - rim, rim).fill_(False)
        self.visible, self.device = visible.flatten(), visible.device
        self._visible_count = int(self.visible.sum())
        if self._visible_count == 0:
            raise _no_point(step_mm)
        self._sublattices: dict[int, Tensor] = {}
        self._low = torch.tensor(first, device=device, dtype=torch.float64)
        self._spacing = torch.tensor(self._spacings, device=device, dtype=torch.float64)
        self._axes = [axis.to(self.device, torch.float32) for axis in axes]
        self._strides = (len(axes[1]) * len(axes[2]), len(axes[2]), 1)
        self._shape = torch.tensor(self.shape, device=device)
        self._stride_row = torch.tensor(self._strides, device=device)

    def __len__(self) -> int:
        """Number of visible nodes."""
        return self._visible_count

    def points(self, nodes: Tensor) -> Tensor:
        """(N, 3) float32 mm of nodes (N,)."""
        places = self._places(nodes)
        return torch.stack([axis[place] for axis, place in zip(self._axes, places, strict=True)], -1)

    def nodes(self, points: Tensor) -> Tensor:
        """(N,) the nodes at points (N, 3) mm of the lattice; the inverse of `points`."""
        return self._numbers(self._nearest(points))

    def box(self) -> Tensor:
        """(N, 3) float32 mm: all nodes of the box, visible or not."""
        return torch.cartesian_prod(*(axis[self.rim : -self.rim] for axis in self._axes))

    def every(self, stride: int) -> Tensor:
        """The visible nodes of the sublattice of every `stride`-th node along each axis, ascending."""
        if stride not in self._sublattices:
            chosen = torch.zeros_like(self.visible).view([len(axis) for axis in self._axes])
            chosen[self.rim :: stride, self.rim :: stride, self.rim :: stride] = True
            self._sublattices[stride] = (chosen.flatten() & self.visible).nonzero()[:, 0]
        return self._sublattices[stride]

    def filled(self, positions: Tensor, nodes: Tensor | None = None) -> Tensor:
        """Nodes at positions (...), or of nodes (N,) those at the positions; `nowhere` at position -1."""
        chosen = positions if nodes is None else nodes[positions.clamp(min=0)]
        return chosen.masked_fill(positions < 0, self.nowhere)

    def neighbours(self, nodes: Tensor, offsets: Tensor) -> Tensor:
        """(N, M) nodes at offsets (M, 3) int64, of at most `rim` along each axis, from visible nodes (N,).

        From `nowhere` they are nodes that are not visible.
        """
        return nodes[:, None] + (offsets * self._stride_row).sum(1)

    def balls(self, centres: Tensor, radius_mm: float) -> Tensor:
        """(nodes,) bool: within `radius_mm` of any of the centres (M, 3) float32 mm; NaN is near nothing."""
        reach = [math.ceil(radius_mm / spacing) for spacing in self._spacings]
        places = self._nearest(centres.nan_to_num(FAR_MM))[:, None] + cube(reach, self.device)
        there = ((places >= 0) & (places < self._shape)).all(-1)
        positions = self._low + places * self._spacing
        there &= (positions - centres[:, None]).square().sum(-1) <= radius_mm**2
        return self.mask(self._numbers(places).masked_fill(~there, self.nowhere))

    def mask(self, nodes: Tensor) -> Tensor:
        """(nodes,) bool of nodes (...), `nowhere` left out."""
        # `mask[nodes] = True` would copy the value from the host, unlike `index_fill_`.
        mask = torch.zeros_like(self.visible).index_fill_(0, nodes.flatten(), True)
        mask[self.nowhere : self.nowhere + 1] = False
        return mask

    def _nearest(self, points: Tensor) -> Tensor:
        """(N, 3) int64 places along the axes, inside the box or not, nearest to points (N, 3) mm."""
        return ((points - self._low) / self._spacing).round().long()

    def _numbers(self, places: Tensor) -> Tensor:
        return ((places + self.rim) * self._stride_row).sum(-1)

    def _places(self, nodes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Along the axes, counted from the rim's first node."""
        rows = nodes // self._strides[1]
        columns = len(self._axes[1])
        return rows // columns, rows % columns, nodes % self._strides[1]


def cube(reach: int | list[int], device: torch.device | str | None = None) -> Tensor:
    """All offsets (M, 3) int64 of at most `reach` along each axis."""
    x, y, z = [reach] * 3 if isinstance(reach, int) else reach
    axes = [torch.arange(-n, n + 1, device=device) for n in (x, y, z)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, 2)


@unaffected()
def frustum_grid(step_mm: float = 16.0, device: torch.device | str | None = None) -> Tensor:
    """The points of a `Lattice` visible to the reference camera, with the counts of Table 6.

    Args:
        step_mm: mm, grid spacing; at most 500.
        device: of the result; None is the CPU.

    Returns:
        (N, 3) float32 mm, x outermost; N = 1 882 292, 230 475, 28 351, 7 742, 3 183 at 4, 8, 16, 24, 32 mm.

    Raises:
        ValueError: the step is not a positive number, or no point of the grid is visible.
    """
    lattice = Lattice(step_mm, device)
    return lattice.points(lattice.every(1))


def _visible(axes: list[Tensor], slope: float | None) -> Tensor:
    """(nodes along x, y, z) bool of the nodes at these coordinates, rim included."""
    if slope is None:
        return torch.ones([len(axis) for axis in axes], dtype=torch.bool)
    reach = axes[2] * slope
    across, down = (axis.abs()[:, None] <= reach for axis in axes[:2])
    return across[:, None] & down[None]


def _no_point(step_mm: float) -> ValueError:
    return ValueError(f"step_mm = {step_mm} leaves no point in the volume; 16 mm is the usual step")
