"""Searches for the points of the lattice near the surface.

Of a dense grid's points 0.07 to 0.33 % lie within 1 to 5 mm of a hand's surface. `octree` finds them by
subdivision, `guided` by a provisional pose. Both query a subset of the dense grid, so that voters can be
compared point by point.

With `Buffers` of fixed capacities neither synchronises, and a rejected search marks the image. With exact
buffers a rejected search continues.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from nvf_fast.buffers import Buffers
from nvf_fast.grid import Lattice, cube
from nvf_fast.ops import Selection
from nvf_fast.pose import BONES

Search = Literal["dense", "octree", "guided"]

# Sparsest initial spacings (mm). Fingers are 10 to 22 mm thick (`capsule_hand.py`); an octree must sample
# each of them, a provisional pose need not.
OCTREE_MM = 16.5
GUIDED_MM = 33.0

# Training clamps distances at 5 mm: predictions near 5 mm may lie anywhere beyond, smaller ones near the
# surface.
CLAMPED_MM = 4.9

AT_ONCE = 2**20  # points queried in one call where lists have exact lengths
PROVISIONAL_VOTERS = 16  # the points nearest to the surface vote for a provisional pose, at least
BONE_RADIUS_MM = 32.0  # of its bones, within which nodes are queried
WIDENINGS, WIDENING_MM = 6, 16.0  # number and reach (two nodes at least) of extensions along the surface
FEW_VOTERS = 8
DISAGREEMENT_MM = 40.0  # mean distance of a joint from its provisional place


class Capacities(NamedTuple):
    """Fixed capacities of the lists of a search."""

    voters: int
    queried: int  # nodes queried in one call
    active: int  # nodes whose neighbours are searched


class LatticeField(Protocol):
    """The field of a batch of images, here of one, on a lattice."""

    def every(self, stride: int) -> Tensor:
        """Signed distances (B, N) mm at the nodes of `lattice.every(stride)`."""

    def at(self, nodes: Tensor) -> Tensor:
        """Signed distances (B, N) mm at nodes (N,), +inf at `lattice.nowhere`."""

    def votes(self, nodes: Tensor) -> Tensor:
        """Raw votes (B, N, J, 4) at nodes (N,), zero at `lattice.nowhere`."""


CastVotes = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""Joints (J, 3) mm and scores (J,) from points (V, 3) mm, votes (V, J, 4), and their number (1,) int32."""


class SearchResult(NamedTuple):
    """The voters, in the order of the lattice; only the first `voters` rows count."""

    points: Tensor  # (V, 3) mm
    votes: Tensor  # (V, J, 4)
    voters: Tensor  # (1,) int32
    evaluated: Tensor  # (1,) int32 points that were queried
    pose: tuple[Tensor, Tensor] | None = None  # joints (J, 3) mm and scores (J,), where the votes were cast


def octree(
    field: LatticeField, lattice: Lattice, surface_mm: float, buffers: Buffers, capacities: Capacities
) -> SearchResult:
    """Subdivide where the surface may be, from about 16 mm down to the lattice's step.

    A node is active where its distance is below `CLAMPED_MM`, or has another sign than a neighbour's. All
    nodes of half the spacing within one coarse spacing of an active node are queried next.
    """
    queried = _Queried(field, lattice, surface_mm, buffers, capacities)
    stride = _stride(lattice, OCTREE_MM)
    queried.every(stride)
    nodes = lattice.every(stride)
    while stride > 1:
        near = queried.sdf[nodes].abs() < CLAMPED_MM
        active = queried.compact(near | queried.changes_sign(nodes, stride), capacities.active, nodes)
        stride //= 2
        around = lattice.neighbours(active, cube(2, lattice.device) * stride)
        nodes = queried.query(lattice.mask(around))
    return queried.result()


def guided(
    field: LatticeField,
    lattice: Lattice,
    surface_mm: float,
    buffers: Buffers,
    capacities: Capacities,
    cast: CastVotes,
    provisional: Tensor | None = None,
) -> SearchResult:
    """Query the field about the bones of a provisional pose (J, 3) mm; without one, a sparse pass finds it.

    Unqueried neighbours of voters are queried repeatedly. If that does not terminate, if voters are too few
    or if the pose is far from the provisional one, a given pose is replaced by the sparse pass's, and after a
    sparse pass the whole lattice is queried.
    """
    queried = _Queried(field, lattice, surface_mm, buffers, capacities)
    stride = _stride(lattice, GUIDED_MM)
    if stride == 1:
        queried.every(1)
        return queried.result()
    given = provisional is not None
    if provisional is None:
        provisional = queried.provisional(stride, cast)
    reach = cube(max(2, int(WIDENING_MM / lattice.step_mm)), lattice.device)
    near = lattice.balls(_along_bones(provisional), BONE_RADIUS_MM)
    border = queried.border()
    queried.query(near | lattice.mask(lattice.neighbours(border, reach)))
    border = queried.border()
    for _ in range(WIDENINGS):
        if buffers.exact and len(border) == 0:
            break
        queried.query(lattice.mask(lattice.neighbours(border, reach)))
        border = queried.border()
    result = queried.result()
    pose = cast(result.points, result.votes, result.voters)
    result = result._replace(pose=pose)
    moved = (pose[0] - provisional).norm(dim=-1).nanmean()
    # NaN, without comparable joints, counts as disagreement.
    accepted = (border == lattice.nowhere).all() & (result.voters >= FEW_VOTERS) & (moved < DISAGREEMENT_MM)
    if not buffers.exact:
        buffers.reject(~accepted)
    if not buffers.exact or accepted:
        return result
    if given:
        again = guided(field, lattice, surface_mm, buffers, capacities, cast)
        return again._replace(evaluated=again.evaluated + result.evaluated)
    queried.query(lattice.visible)
    return queried.result()


class _Queried:
    """The nodes queried so far, and their distances."""

    def __init__(
        self,
        field: LatticeField,
        lattice: Lattice,
        surface_mm: float,
        buffers: Buffers,
        capacities: Capacities,
    ) -> None:
        self._field, self._lattice, self._surface_mm = field, lattice, surface_mm
        self._buffers, self._capacities = buffers, capacities
        device = lattice.device
        # NaN where not queried.
        self.sdf = torch.full(lattice.visible.shape, torch.nan, dtype=torch.float32, device=device)
        self._open = lattice.visible.clone()  # visible and not queried
        self._evaluated = torch.zeros(1, dtype=torch.int32, device=device)

    def every(self, stride: int) -> Tensor:
        """Query a sublattice, of which nothing has been queried. Returns its distances."""
        return self._record(self._lattice.every(stride), self._field.every(stride)[0])

    def query(self, requested: Tensor) -> Tensor:
        """Query the visible ones of the requested nodes (nodes,) bool that have not been queried.

        Returns:
            All requested and visible nodes.
        """
        nodes = self.compact(requested & self._lattice.visible, self._capacities.queried)
        unqueried = self._open[nodes]
        if self._buffers.exact:
            parts = [part for part in nodes[unqueried].split(AT_ONCE) if len(part)]
        else:
            parts = [nodes.masked_fill(~unqueried, self._lattice.nowhere)]
        for part in parts:
            self._record(part, self._field.at(part)[0])
        return nodes

    def provisional(self, stride: int, cast: CastVotes) -> Tensor:
        """Query a sublattice for a first pose (J, 3) mm: that of the points nearest to the surface."""
        distance = self.every(stride).abs()
        count = (distance < self._surface_mm).sum(dtype=torch.int32).clamp(min=PROVISIONAL_VOTERS)
        nearest = distance.argsort(stable=True)
        nearest = nearest[: count if self._buffers.exact else self._capacities.voters]
        nodes = self._lattice.every(stride)[nearest]
        return cast(self._lattice.points(nodes), self._field.votes(nodes)[0], count[None])[0]

    def compact(self, chosen: Tensor, capacity: int, values: Tensor | None = None) -> Tensor:
        """The positions where `chosen` (N,) bool, or the values (N,) there, ascending.

        Unused slots of a list of fixed capacity hold `Lattice.nowhere`.
        """
        return self._lattice.filled(self._buffers.compact(chosen[None], capacity).indices[0], values)

    def changes_sign(self, nodes: Tensor, stride: int) -> Tensor:
        """(N,) bool: one of the six neighbours is known and lies on the other side of the surface."""
        axes = torch.eye(3, dtype=torch.int64, device=nodes.device) * stride
        other = self.sdf[self._lattice.neighbours(nodes, torch.cat([axes, -axes]))]
        return (~other.isnan() & ((other < 0) != (self.sdf[nodes] < 0)[:, None])).any(1)

    def border(self) -> Tensor:
        """The voters with a neighbour in view that has not been queried."""
        nodes = self._lattice.filled(self._voters().indices[0])
        bordering = self._open[self._lattice.neighbours(nodes, cube(1, nodes.device))].any(1)
        return self.compact(bordering, self._capacities.active, nodes)

    def result(self) -> SearchResult:
        """All voters so far."""
        voters = self._voters()
        nodes = self._lattice.filled(voters.indices[0])
        points, votes = self._lattice.points(nodes), self._field.votes(nodes)[0]
        return SearchResult(points, votes, voters.counts, self._evaluated)

    def _voters(self) -> Selection:
        return self._buffers.select_voters(self.sdf[None], self._surface_mm, self._capacities.voters)

    def _record(self, nodes: Tensor, sdf: Tensor) -> Tensor:
        """Keep the distances of nodes, +inf where they are not finite, and return them."""
        sdf = sdf.nan_to_num(torch.inf, torch.inf, torch.inf)
        self.sdf[nodes] = sdf
        self._open.index_fill_(0, nodes, False)
        self._evaluated = self._evaluated + (nodes != self._lattice.nowhere).sum()
        return sdf


def _stride(lattice: Lattice, sparsest_mm: float) -> int:
    """The largest power of two whose sublattice is no sparser; 1 where the lattice itself is."""
    stride = 1
    while 2 * stride * lattice.step_mm <= sparsest_mm:
        stride *= 2
    return stride


def _along_bones(joints: Tensor) -> Tensor:
    """Points (M, 3) on the bones of joints (21, 3), dense enough for balls about them to cover capsules."""
    near, far = (torch.stack([joints[bone[end]] for bone in BONES]) for end in (0, 1))
    ratio = torch.linspace(0, 1, 5, dtype=joints.dtype, device=joints.device)[:, None, None]
    return (near + ratio * (far - near)).flatten(0, 1)
