"""Which points of the lattice are asked: all of them, or only those that may lie near the surface.

Of a dense grid's points 0.07 to 0.33 % lie within 1 to 5 mm of a hand's surface. `octree` finds them by
subdivision, `guided` by a provisional pose. Both ask a subset of the same lattice, so that what they find
compares with the dense grid point by point.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from nvf_fast.grid import Lattice, cube
from nvf_fast.pose import BONES

Search = Literal["dense", "octree", "guided"]

Ask = Callable[[Tensor, float], tuple[Tensor, Tensor]]
"""Of points (N, 3) mm the signed distances (N,) mm, and the votes (N, J, 4) where they are below the second
argument (mm)."""

Cast = Callable[[Tensor, Tensor], Tensor]
"""Of voters' points (V, 3) mm and votes (V, J, 4), in the order of the lattice, the joints (J, 3) mm."""

# Sparsest spacings that start a search (mm). Fingers are 10 to 22 mm thick (`nvf_fast.data.hand`): an octree
# must meet each of them, a provisional pose need not.
OCTREE_MM = 16.5
GUIDED_MM = 33.0

# Training clamps distances at 5 mm, beyond which a network says about 5: only less is a sign of the surface.
CLAMPED_MM = 4.9

AT_ONCE = 2**20  # points asked in one call; their votes take 352 MB
PROVISIONAL_VOTERS = 16  # the points nearest to the surface vote for a provisional pose, so many at least
BONE_RADIUS_MM = 32.0  # what is asked about its bones
WIDENINGS, WIDENING_MM = 6, 16.0  # how often, and how far, a surface that leaves what was asked is followed
FEW_VOTERS = 8
DISAGREEMENT_MM = 40.0  # mean distance of a joint from its provisional place


class Found(NamedTuple):
    """The voters, in the order of the lattice, and how many points were asked to find them."""

    points: Tensor  # (V, 3) mm
    votes: Tensor  # (V, J, 4)
    evaluated: int


def dense(ask: Ask, lattice: Lattice, surface_mm: float) -> Found:
    """Asks every point, for grids whose answers do not fit into memory at once."""
    return _Asked(ask, lattice, surface_mm).everything()


def octree(ask: Ask, lattice: Lattice, surface_mm: float) -> Found:
    """Subdivides where the surface may be, from about 16 mm down to the lattice's step.

    A node is active where its distance is below `CLAMPED_MM`, or has another sign than a neighbour's. All
    nodes of half the spacing within one coarse spacing of an active node are asked next.
    """
    asked = _Asked(ask, lattice, surface_mm)
    stride = _stride(lattice, OCTREE_MM)
    nodes = lattice.every(stride)
    asked.ask(nodes)
    while stride > 1:
        near = asked.sdf[nodes].abs() < CLAMPED_MM
        active = nodes[near | asked.changes_sign(nodes, stride)]
        stride //= 2
        around, there = lattice.neighbours(active, cube(2, lattice.device) * stride)
        nodes = lattice.unique(around[there])
        asked.ask(nodes)
    return asked.found()


def guided(ask: Ask, lattice: Lattice, surface_mm: float, cast: Cast) -> Found:
    """Asks about the bones of a provisional pose, which a sparse pass gives.

    Guarded: where voters have neighbours that were not asked, those are asked too, and so on; where that
    does not end, or voters are too few, or the pose is far from the provisional one, the rest of the lattice
    is asked.
    """
    asked = _Asked(ask, lattice, surface_mm)
    stride = _stride(lattice, GUIDED_MM)
    nodes = lattice.every(stride)
    if stride == 1:
        return asked.everything()
    votes = asked.votes_of(nodes, torch.inf)
    distance = asked.sdf[nodes].abs()
    voters = max(PROVISIONAL_VOTERS, int((distance < surface_mm).sum()))
    nearest = distance.topk(min(voters, len(nodes)), largest=False).indices.sort().values
    provisional = cast(lattice.points(nodes[nearest]), votes[nearest])  # NaN where nobody votes for a joint
    asked.ask(lattice.balls(_along_bones(provisional), BONE_RADIUS_MM))
    widenings, border = 0, asked.border()
    while len(border) and widenings < WIDENINGS:
        reach = max(1, int(WIDENING_MM / lattice.step_mm))
        around, there = lattice.neighbours(border, cube(reach, lattice.device))
        asked.ask(lattice.unique(around[there]))
        widenings, border = widenings + 1, asked.border()
    found = asked.found()
    if len(border) or len(found.points) < FEW_VOTERS:
        return asked.everything()
    moved = (cast(found.points, found.votes) - provisional).norm(dim=-1).nanmean()
    return found if moved < DISAGREEMENT_MM else asked.everything()  # so too where nothing is comparable


class _Asked:
    """What has been asked so far."""

    def __init__(self, ask: Ask, lattice: Lattice, surface_mm: float) -> None:
        self._ask, self._lattice, self._surface_mm = ask, lattice, surface_mm
        self.sdf = torch.full(lattice.seen.shape, torch.nan, device=lattice.device)  # NaN where not asked
        self._voters: list[tuple[Tensor, Tensor]] = []  # nodes and votes
        self._count = 0

    def ask(self, nodes: Tensor) -> None:
        """Asks those of the nodes that have not been."""
        nodes = nodes[self.sdf[nodes].isnan()]
        for start in range(0, len(nodes), AT_ONCE):
            self.votes_of(nodes[start : start + AT_ONCE], self._surface_mm)

    def votes_of(self, nodes: Tensor, within_mm: float) -> Tensor:
        """Asks nodes (N,) that have not been, all at once. Returns their votes (N, J, 4)."""
        sdf, votes = self._ask(self._lattice.points(nodes), within_mm)
        self.sdf[nodes] = sdf
        near = (sdf.abs() < self._surface_mm).nonzero()[:, 0]
        self._voters.append((nodes[near], votes[near]))
        self._count += len(nodes)
        return votes

    def changes_sign(self, nodes: Tensor, stride: int) -> Tensor:
        """(N,) bool: one of the six neighbours is known and lies on the other side of the surface."""
        steps = torch.cat([torch.eye(3), -torch.eye(3)]).to(nodes) * stride
        around, there = self._lattice.neighbours(nodes, steps)
        other = self.sdf[around]
        return (there & ~other.isnan() & ((other < 0) != (self.sdf[nodes] < 0)[:, None])).any(1)

    def border(self) -> Tensor:
        """The voters with a neighbour in view that has not been asked."""
        nodes = torch.cat([nodes for nodes, _ in self._voters])
        around, there = self._lattice.neighbours(nodes, cube(1, nodes.device))
        return nodes[(there & self._lattice.seen[around] & self.sdf[around].isnan()).any(1)]

    def everything(self) -> Found:
        """Asks the rest of the lattice."""
        self.ask(self._lattice.every(1))
        return self.found()

    def found(self) -> Found:
        nodes, votes = (torch.cat(parts) for parts in zip(*self._voters, strict=True))
        order = nodes.argsort()
        return Found(self._lattice.points(nodes[order]), votes[order], self._count)


def _stride(lattice: Lattice, sparsest_mm: float) -> int:
    """The largest power of two whose sublattice is no sparser; 1 where the lattice itself is."""
    stride = 1
    while 2 * stride * lattice.step_mm <= sparsest_mm:
        stride *= 2
    return stride


def _along_bones(joints: Tensor) -> Tensor:
    """Points (M, 3) on the known bones of joints (21, 3), so close that balls about them make capsules."""
    ends = joints[torch.tensor(BONES, device=joints.device)]
    share = torch.linspace(0, 1, 5, device=joints.device)[:, None, None]
    points = (ends[:, 0] + share * (ends[:, 1] - ends[:, 0])).flatten(0, 1)
    return points[points.isfinite().all(-1)]
