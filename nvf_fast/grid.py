"""The grid of query points that fills the reference camera's frustum (Sec. 3.4 of the paper)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nvf_fast.camera import REFERENCE_FOCAL, REFERENCE_SIZE

BOX_MM = ((-250.0, 250.0), (-250.0, 250.0), (150.0, 1200.0))  # x, y, z


class Lattice:
    """A regular grid over `BOX_MM`, whose nodes are numbered with x outermost and z innermost.

    Each axis has int(length / step) cells and a node at each cell's lower corner, so that the spacing is a
    little more than the step where the step does not divide the length.

    Attributes:
        step_mm: mm, the step asked for.
        shape: nodes along x, y and z.
        seen: (nodes,) bool, whether the reference camera sees a node.
        device: of all tensors that come and go.
    """

    def __init__(self, step_mm: float, device: torch.device | str | None = None) -> None:
        if not (math.isfinite(step_mm) and step_mm > 0):
            raise ValueError(f"step_mm must be a positive number of mm, got {step_mm}")
        self.step_mm = step_mm
        lengths = [high - low for low, high in BOX_MM]
        self.shape = tuple(int(length / step_mm) for length in lengths)
        if min(self.shape) == 0:
            raise _no_point(step_mm)
        spacings = [length / n for length, n in zip(lengths, self.shape, strict=True)]
        axes = [
            low + torch.arange(n, dtype=torch.float64) * spacing
            for (low, _), n, spacing in zip(BOX_MM, self.shape, spacings, strict=True)
        ]
        # abs(uv) <= 1 where uv = (f x / z + c) / c - 1.
        reach = axes[2] * (REFERENCE_SIZE / 2 / REFERENCE_FOCAL)
        across, down = (axis.abs()[:, None] <= reach for axis in axes[:2])
        self.seen = (across[:, None] & down[None]).flatten().to(device)
        self._seen_count = int(self.seen.sum())
        if self._seen_count == 0:
            raise _no_point(step_mm)
        self.device = self.seen.device
        self._low = torch.tensor([low for low, _ in BOX_MM], device=device, dtype=torch.float64)
        self._spacing = torch.tensor(spacings, device=device, dtype=torch.float64)
        self._axes = [axis.to(self.device, torch.float32) for axis in axes]
        self._strides = (self.shape[1] * self.shape[2], self.shape[2], 1)

    def __len__(self) -> int:
        """Nodes that are seen."""
        return self._seen_count

    def points(self, nodes: Tensor) -> Tensor:
        """(N, 3) float32 mm of nodes (N,)."""
        places = self._places(nodes)
        return torch.stack([axis[place] for axis, place in zip(self._axes, places, strict=True)], -1)

    def nodes(self, points: Tensor) -> Tensor:
        """(N,) the nodes at points (N, 3) mm of the lattice; the inverse of `points`."""
        return self._numbers(self._nearest(points))

    def every(self, stride: int) -> Tensor:
        """The seen nodes of the sublattice of every `stride`-th node along each axis, ascending."""
        chosen = self.seen.new_zeros(self.shape)
        chosen[::stride, ::stride, ::stride] = True
        return (chosen.flatten() & self.seen).nonzero()[:, 0]

    def neighbours(self, nodes: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """Nodes at offsets from others.

        Args:
            nodes: (N,).
            offsets: (M, 3) int64, nodes along each axis.

        Returns:
            (N, M) nodes, and (N, M) bool where there is one; elsewhere the node is 0.
        """
        there = self.seen.new_ones(len(nodes), len(offsets))
        result = nodes.new_zeros(len(nodes), len(offsets))
        for place, n, stride, offset in zip(
            self._places(nodes), self.shape, self._strides, offsets.T, strict=True
        ):
            moved = place[:, None] + offset
            there &= (moved >= 0) & (moved < n)
            result += moved * stride
        return result * there, there

    def balls(self, centres: Tensor, radius_mm: float) -> Tensor:
        """The seen nodes within `radius_mm` of any of the centres (M, 3) float32 mm, ascending."""
        reach = [math.ceil(radius_mm / spacing) for spacing in self._spacing.tolist()]
        places = self._nearest(centres)[:, None] + cube(reach, self.device)
        there = ((places >= 0) & (places < torch.tensor(self.shape, device=self.device))).all(-1)
        positions = self._low + places * self._spacing
        there &= (positions - centres[:, None]).square().sum(-1) <= radius_mm**2
        return self.unique(self._numbers(places[there]))

    def unique(self, nodes: Tensor) -> Tensor:
        """The seen ones among nodes (N,), each once, ascending."""
        chosen = torch.zeros_like(self.seen)
        chosen[nodes] = True
        return (chosen & self.seen).nonzero()[:, 0]

    def _nearest(self, points: Tensor) -> Tensor:
        """(N, 3) int64 places along the axes, inside the box or not, nearest to points (N, 3) mm."""
        return ((points - self._low) / self._spacing).round().long()

    def _numbers(self, places: Tensor) -> Tensor:
        return (places * torch.tensor(self._strides, device=self.device)).sum(-1)

    def _places(self, nodes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return nodes // self._strides[0], nodes // self._strides[1] % self.shape[1], nodes % self.shape[2]


def cube(reach: int | list[int], device: torch.device | str | None = None) -> Tensor:
    """All offsets (M, 3) int64 of at most `reach` along each axis."""
    x, y, z = [reach] * 3 if isinstance(reach, int) else reach
    axes = [torch.arange(-n, n + 1, device=device) for n in (x, y, z)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, 2)


def frustum_grid(step_mm: float = 16.0, device: torch.device | str | None = None) -> Tensor:
    """The points of a `Lattice` that the reference camera sees, with the counts of Table 6.

    Args:
        step_mm: mm, grid spacing; at most 500.
        device: of the result.

    Returns:
        (N, 3) float32 mm, x outermost; N = 1 882 292, 230 475, 28 351, 7 742, 3 183 at 4, 8, 16, 24, 32 mm.

    Raises:
        ValueError: the step is no positive number, or no point of the grid is seen.
    """
    lattice = Lattice(step_mm, device)
    return lattice.points(lattice.every(1))


def _no_point(step_mm: float) -> ValueError:
    return ValueError(f"step_mm = {step_mm} leaves no point in the camera's view; 16 mm is the usual step")
