"""Queried points of the lattice: all of them, or only those that may lie near the surface.

Of a dense grid's points 0.07 to 0.33 % lie within 1 to 5 mm of a hand's surface. `octree` finds them by
subdivision, `guided` by a provisional pose. Both query a subset of the same lattice, so that their voters
compare with the dense grid's point by point.

Both run in two modes. With `Sizes` every list has a fixed length and nothing is read back from the device, as
a CUDA graph needs it; an overflow or a rejected search only sets `Found.needs_retry`. Without them lists are
as long as they need to be, and a rejected search continues.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from nvf_fast import ops
from nvf_fast.grid import Lattice, cube
from nvf_fast.pose import BONES

Search = Literal["dense", "octree", "guided"]

# Sparsest spacings that start a search (mm). Fingers are 10 to 22 mm thick (`capsule_hand.py`): an octree
# must meet each of them, a provisional pose need not.
OCTREE_MM = 16.5
GUIDED_MM = 33.0

# Training clamps distances at 5 mm, beyond which a network says about 5: only less is a sign of the surface.
CLAMPED_MM = 4.9

AT_ONCE = 2**20  # points queried in one call where lists have no fixed length
PROVISIONAL_VOTERS = 16  # the points nearest to the surface vote for a provisional pose, so many at least
BONE_RADIUS_MM = 32.0  # of its bones, within which nodes are queried
WIDENINGS, WIDENING_MM = 6, 16.0  # how often, and how far, and two nodes at least, the surface is followed
FEW_VOTERS = 8
DISAGREEMENT_MM = 40.0  # mean distance of a joint from its provisional place


class Sizes(NamedTuple):
    """Lengths of the lists of a search that reads nothing back."""

    voters: int
    queried: int  # nodes queried in one call
    active: int  # nodes whose surroundings are looked at


class Field(Protocol):
    """One image's field on a lattice."""

    def every(self, stride: int, within_mm: float, capacity: int) -> tuple[Tensor, Tensor, Tensor]:
        """At the nodes of `lattice.every(stride)`.

        Returns:
            sdf (N,) mm; votes (capacity, J, 4); slots (N,) int32, the row of the votes of a node with
            abs(sdf) < within_mm, undefined elsewhere.
        """

    def at(self, nodes: Tensor, within_mm: float, capacity: int) -> tuple[Tensor, Tensor, Tensor]:
        """At nodes (N,), `lattice.nowhere` among them."""


Cast = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""Joints (J, 3) mm and scores (J,) from points (V, 3) mm, their votes (V, J, 4), and how many of them count,
(1,) int32."""


class Found(NamedTuple):
    """The voters, in the order of the lattice.

    With `Sizes` only the first `voters` rows mean anything.
    """

    points: Tensor  # (V, 3) mm
    votes: Tensor  # (V, J, 4)
    voters: Tensor  # (1,) int32
    evaluated: Tensor  # (1,) int32 points that were queried
    needs_retry: Tensor  # (1,) bool, whether the search must run again without `Sizes`
    pose: tuple[Tensor, Tensor] | None = None  # joints (J, 3) mm and scores (J,), where the votes were cast


def octree(field: Field, lattice: Lattice, surface_mm: float, sizes: Sizes | None = None) -> Found:
    """Subdivide where the surface may be, from about 16 mm down to the lattice's step.

    A node is active where its distance is below `CLAMPED_MM`, or has another sign than a neighbour's. All
    nodes of half the spacing within one coarse spacing of an active node are queried next.
    """
    queried = _Queried(field, lattice, surface_mm, sizes)
    stride = _stride(lattice, OCTREE_MM)
    queried.every(stride)
    nodes = lattice.every(stride)
    while stride > 1:
        near = queried.sdf[nodes].abs() < CLAMPED_MM
        active = queried.list_of(near | queried.changes_sign(nodes, stride), nodes)
        stride //= 2
        around = lattice.neighbours(active, cube(2, lattice.device) * stride)
        nodes = queried.query(lattice.mask(around))
    return queried.found()


def guided(
    field: Field,
    lattice: Lattice,
    surface_mm: float,
    cast: Cast,
    sizes: Sizes | None = None,
    provisional: Tensor | None = None,
) -> Found:
    """Query the field about the bones of a provisional pose (J, 3) mm; without one, a sparse pass finds it.

    Guarded: where voters have neighbours that were not queried, those are queried too, and so on; where that
    does not end, or voters are too few, or the pose is far from the provisional one, a pose that was given is
    forgotten, and one that was found is no reason to leave the rest of the lattice unqueried.
    """
    queried = _Queried(field, lattice, surface_mm, sizes)
    stride = _stride(lattice, GUIDED_MM)
    if stride == 1:
        queried.every(1)
        return queried.found()
    given = provisional is not None
    if provisional is None:
        provisional = queried.provisional(stride, cast)
    reach = cube(max(2, int(WIDENING_MM / lattice.step_mm)), lattice.device)
    near = lattice.balls(_along_bones(provisional), BONE_RADIUS_MM)
    border = queried.border()
    queried.query(near | lattice.mask(lattice.neighbours(border, reach)))
    border = queried.border()
    for _ in range(WIDENINGS):
        if sizes is None and len(border) == 0:
            break
        queried.query(lattice.mask(lattice.neighbours(border, reach)))
        border = queried.border()
    found = queried.found()
    pose = cast(found.points, found.votes, found.voters)
    found = found._replace(pose=pose)
    moved = (pose[0] - provisional).norm(dim=-1).nanmean()
    # NaN, where nothing is comparable, is no agreement.
    accepted = (border == lattice.nowhere).all() & (found.voters >= FEW_VOTERS) & (moved < DISAGREEMENT_MM)
    if sizes is not None:
        return found._replace(needs_retry=found.needs_retry | ~accepted)
    if accepted:
        return found
    if given:
        again = guided(field, lattice, surface_mm, cast)
        return again._replace(evaluated=again.evaluated + found.evaluated)
    queried.query(lattice.seen)
    return queried.found()


class _Queried:
    """The nodes queried so far, their distances and the votes of the near ones."""

    def __init__(self, field: Field, lattice: Lattice, surface_mm: float, sizes: Sizes | None) -> None:
        self._field, self._lattice, self._surface_mm, self._sizes = field, lattice, surface_mm, sizes
        device = lattice.device
        self.sdf = torch.full(lattice.seen.shape, torch.nan, device=device)  # NaN where not queried
        self._open = lattice.seen.clone()  # seen and not queried
        self._slots = torch.zeros(lattice.seen.shape, dtype=torch.int32, device=device)
        self._votes: list[Tensor] = []
        self._evaluated = torch.zeros(1, dtype=torch.int32, device=device)
        self._needs_retry = torch.zeros(1, dtype=torch.bool, device=device)

    def every(self, stride: int) -> None:
        """Query a sublattice, of which nothing has been queried."""
        nodes = self._lattice.every(stride)
        self._note(nodes, *self._field.every(stride, self._surface_mm, self._voters(len(nodes))))

    def query(self, requested: Tensor) -> Tensor:
        """Query those of the requested nodes (nodes,) bool that are seen and have not been queried.

        Returns:
            All that are requested and seen.
        """
        nodes = self.list_of(
            requested & self._lattice.seen, size=None if self._sizes is None else self._sizes.queried
        )
        unqueried = self._open[nodes]
        if self._sizes is None:
            parts = [part for part in nodes[unqueried].split(AT_ONCE) if len(part)]
        else:
            parts = [nodes.masked_fill(~unqueried, self._lattice.nowhere)]
        for part in parts:
            self._note(part, *self._field.at(part, self._surface_mm, self._voters(len(part))))
        return nodes

    def provisional(self, stride: int, cast: Cast) -> Tensor:
        """Query a sublattice for a first pose (J, 3) mm: that of the points nearest to the surface."""
        nodes = self._lattice.every(stride)
        sdf, votes, slots = self._field.every(stride, torch.inf, len(nodes))
        self._note(nodes, sdf, votes, slots)
        distance = sdf.abs()
        count = (distance < self._surface_mm).sum(dtype=torch.int32).clamp(min=PROVISIONAL_VOTERS)
        nearest = distance.argsort(stable=True)
        if self._sizes is None:
            nearest = nearest[:count]
        rows = slots.masked_fill(sdf.isinf(), 0)[nearest].long()  # out of view there is no row
        return cast(self._lattice.points(nodes[nearest]), votes[rows], count[None])[0]

    def list_of(self, chosen: Tensor, values: Tensor | None = None, size: int | None = None) -> Tensor:
        """The positions where `chosen` (N,) bool, or the values (N,) there, ascending.

        With `Sizes` as many as `size`, or as may be active, filled up with `Lattice.nowhere`.
        """
        if self._sizes is None:
            places = chosen.nonzero()[:, 0]
            return places if values is None else values[places]
        capacity = min(size or self._sizes.active, len(chosen))
        places, _, overflow = ops.select_voters((~chosen).float()[None], 0.5, capacity)
        self._needs_retry = self._needs_retry | overflow
        unused, places = places[0] < 0, places[0].clamp(min=0)
        return (places if values is None else values[places]).masked_fill(unused, self._lattice.nowhere)

    def changes_sign(self, nodes: Tensor, stride: int) -> Tensor:
        """(N,) bool: one of the six neighbours is known and lies on the other side of the surface."""
        axes = torch.eye(3, dtype=torch.int64, device=nodes.device) * stride
        other = self.sdf[self._lattice.neighbours(nodes, torch.cat([axes, -axes]))]
        return (~other.isnan() & ((other < 0) != (self.sdf[nodes] < 0)[:, None])).any(1)

    def border(self) -> Tensor:
        """The voters with a neighbour in view that has not been queried."""
        size = None if self._sizes is None else self._sizes.voters
        nodes = self.list_of(self.sdf.abs() < self._surface_mm, size=size)
        return self.list_of(self._open[self._lattice.neighbours(nodes, cube(1, nodes.device))].any(1), nodes)

    def found(self) -> Found:
        """All voters so far."""
        near = self.sdf[None]
        if self._sizes is None:
            nodes = (near[0].abs() < self._surface_mm).nonzero()[:, 0]
            counts = torch.full((1,), len(nodes), dtype=torch.int32, device=nodes.device)
        else:
            capacity = min(self._sizes.voters, near.shape[1])
            indices, counts, overflow = ops.select_voters(near, self._surface_mm, capacity)
            self._needs_retry = self._needs_retry | overflow
            nodes = indices[0].masked_fill(indices[0] < 0, self._lattice.nowhere)
        votes = torch.cat(self._votes)
        rows = self._slots[nodes].long().clamp(max=len(votes) - 1)
        return Found(self._lattice.points(nodes), votes[rows], counts, self._evaluated, self._needs_retry)

    def _voters(self, queried: int) -> int:
        """Rows for the votes of one call."""
        return queried if self._sizes is None else min(queried, self._sizes.voters)

    def _note(self, nodes: Tensor, sdf: Tensor, votes: Tensor, slots: Tensor) -> None:
        rows = sum(map(len, self._votes))
        near = sdf.abs() < self._surface_mm
        if self._sizes is None:  # of the rows only those that were written
            chosen = near.nonzero()[:, 0]
            votes = votes[slots[chosen].long()]
            slots = (near.cumsum(0) - 1).int()
        else:
            self._needs_retry = self._needs_retry | (near.sum() > len(votes))
        self.sdf[nodes] = sdf
        self._open.index_fill_(0, nodes, False)
        self._slots[nodes] = (slots + rows).masked_fill(~near, 0)
        self._votes.append(votes)
        self._evaluated = self._evaluated + (nodes != self._lattice.nowhere).sum()


def _stride(lattice: Lattice, sparsest_mm: float) -> int:
    """The largest power of two whose sublattice is no sparser; 1 where the lattice itself is."""
    stride = 1
    while 2 * stride * lattice.step_mm <= sparsest_mm:
        stride *= 2
    return stride


def _along_bones(joints: Tensor) -> Tensor:
    """Points (M, 3) on the bones of joints (21, 3), so close that balls about them make capsules."""
    near, far = (torch.stack([joints[bone[end]] for bone in BONES]) for end in (0, 1))
    share = torch.linspace(0, 1, 5, device=joints.device)[:, None, None]
    return (near + share * (far - near)).flatten(0, 1)
