"""The frame: everything between cut-outs of pictures and joints, on one device.

Shapes are fixed and nothing is read back, so that a CUDA graph can hold it. What does not fit the fixed
sizes, or what a search could not settle, is told by `Answers.doubt`; such a picture is asked again with
`settle`.
"""

from __future__ import annotations

import math
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nvf_fast import ops
from nvf_fast.camera import sample_views
from nvf_fast.grid import Lattice
from nvf_fast.model import NVF
from nvf_fast.pose import joint_scores
from nvf_fast.search import Search, Sizes, guided, octree
from nvf_fast.stages import Stages

VOTERS_AT_16_MM = 4096  # rows for votes; a hand takes some 100, a poor field some 600
ASKED, ACTIVE = 2**17, 2**14  # nodes in one call of a search, and those whose surroundings are looked at
PICTURES = 64  # at a time; larger batches go in parts
VOTE_BYTES = 2**30  # for votes, at a time
LOCATED = 2**21  # points of a dense grid that are located once for good; finer grids go in parts of so many


class Answers(NamedTuple):
    """About a part of a batch, in the frames of its views."""

    joints: Tensor  # (B, 21, 3) mm
    scores: Tensor  # (B, 21)
    voters: Tensor  # (B,)
    points_evaluated: Tensor  # (B,)
    doubt: Tensor  # (B,) bool
    votes: list[tuple[Tensor, Tensor]]  # per image points (V, 3) mm and votes (V, 21, 4), V >= `voters`

    def packed(self) -> Tensor:
        """All but the votes as (B, 87) float32, for one transfer; integers stay exact up to 2^24."""
        integers = torch.stack([self.voters, self.points_evaluated, self.doubt], 1)
        return torch.cat([self.joints.flatten(1), self.scores, integers.float()], 1)


def unpacked(packed: Tensor) -> Answers:
    """What `Answers.packed` holds."""
    joints, scores, integers = packed.split([63, 21, 3], 1)
    voters, evaluated, doubt = integers.int().unbind(1)
    return Answers(joints.unflatten(1, (21, 3)), scores, voters, evaluated, doubt.bool(), [])


class Frame:
    """Sampling, encoding, asking, selecting and voting, with what stays between frames.

    Args:
        model: the network, its encoder in `dtype`, on its device.
        step_mm, surface_mm, fraction, search, backend: as in `PoseEstimator`.
        dtype: of the encoder and of the field's matrix products.
        stages: measures them.
    """

    def __init__(
        self,
        model: NVF,
        step_mm: float,
        surface_mm: float,
        fraction: float,
        search: Search,
        dtype: torch.dtype,
        backend: ops.Backend | None,
        stages: Stages,
    ) -> None:
        self._model, self._dtype, self._stages = model, dtype, stages
        self._surface_mm, self._fraction, self._search = surface_mm, fraction, search
        self._backend = backend
        self._intrinsics = model.reference_intrinsics
        self.lattice = Lattice(step_mm, self._intrinsics.device)
        self.points = self.lattice.points(self.lattice.every(1))
        rows = math.ceil(VOTERS_AT_16_MM * max(1.0, 16 / step_mm) ** 2)
        self._sizes = Sizes(min(rows, len(self.points)), ASKED, ACTIVE)
        self._query = ops.FieldQuery(
            list(model.field.weights),
            list(model.field.biases),
            channels=model.config.width,
            image_size=model.config.input_size,
            dtype=dtype,
            backend=backend,
        )
        self._places: dict[int, Any] = {}

    def together(self, settle: bool) -> int:
        """Pictures that may be asked at a time."""
        if self._search != "dense":
            return PICTURES  # asked one after the other
        rows = len(self.points) if settle else self._sizes.voters
        return max(1, min(PICTURES, VOTE_BYTES // (rows * 21 * 4 * 4)))

    def __call__(
        self,
        cuts: Tensor,
        matrices: Tensor,
        factor: int,
        scale: Tensor | None,
        previous: Tensor | None = None,
        settle: bool = False,
    ) -> Answers:
        """Finds the hand in each of B pictures.

        Args:
            cuts, matrices, factor: (B, h, w, 3) uint8 and (B, 3, 3) float64, as `sample_views` takes them but
                for the order of the axes.
            scale: (B,) float32 mm or None.
            previous: (B, 21, 3) float32 mm in the view's frame, where a guided search begins; NaN is unknown.
            settle: whether lists may be as long as they need, and doubts are followed up; this reads back.
        """
        with self._stages("remap"):
            views = sample_views(cuts.permute(0, 3, 1, 2), matrices, self._model.config.input_size, factor)
            views = views.div_(127.5).sub_(1)  # (x / 255 - 0.5) / 0.5
            views = views.to(dtype=self._dtype, memory_format=torch.channels_last)
        with self._stages("encode"):
            features = self._model.encode(views)
        with self._stages("query"):
            map_size = (features.shape[2], features.shape[3])
            maps = self._query.project(features, scale)
        if self._search == "dense":
            return self._dense(maps, map_size, settle)
        answers = [
            self._searched(
                maps[image : image + 1], map_size, None if previous is None else previous[image], settle
            )
            for image in range(len(cuts))
        ]
        *tensors, votes = zip(*answers, strict=True)
        joints, scores, voters, evaluated, doubt = map(torch.cat, tensors)
        return Answers(joints, scores, voters, evaluated, doubt, list(chain(*votes)))

    def _dense(self, maps: Any, map_size: tuple[int, int], settle: bool) -> Answers:
        """Asks at every point of the grid and casts the votes."""
        count = len(self.points)
        capacity = count if settle else self._sizes.voters
        with self._stages("query"):
            if count <= LOCATED:
                sdf, votes, slots = self._query(maps, self.every(1, map_size), self._surface_mm, capacity)
            else:
                sdf, votes, slots = self._in_parts(maps, map_size, capacity, settle)
        with self._stages("select"):
            # Where counts may be read, room for as many as there are.
            size = max(1, int((sdf.abs() < self._surface_mm).sum(1).max())) if settle else capacity
            indices, counts, overflow = ops.select_voters(sdf, self._surface_mm, size, backend=self._backend)
            unused, chosen = indices < 0, indices.clamp(min=0)
            rows = slots.gather(1, chosen).masked_fill(unused, 0).clamp(max=votes.shape[1] - 1).long()
            votes = votes.gather(1, rows[..., None, None].expand(-1, -1, *votes.shape[2:]))
            points = self.points[chosen]
        with self._stages("vote"):
            joints, scores = self._cast(points, votes, counts)
        evaluated = torch.full_like(counts, count)
        return Answers(joints, scores, counts, evaluated, overflow, list(zip(points, votes, strict=True)))

    def _in_parts(
        self, maps: Any, map_size: tuple[int, int], capacity: int, settle: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What the query answers at every point of a grid too fine to be located at once."""
        parts, rows = [], 0
        for points in self.points.split(LOCATED):
            places = self._query.locate(points, self._intrinsics, map_size)
            sdf, votes, slots = self._query(maps, places, self._surface_mm, min(capacity, len(points)))
            if settle:  # memory that was not written was not taken either, until it is copied
                votes = votes[:, : int((sdf.abs() < self._surface_mm).sum(1).max())]
            parts.append((sdf, votes, slots + rows))
            rows += votes.shape[1]
        sdf, votes, slots = (torch.cat(of_all, 1) for of_all in zip(*parts, strict=True))
        return sdf, votes, slots

    def _searched(
        self, maps: Any, map_size: tuple[int, int], previous: Tensor | None, settle: bool
    ) -> Answers:
        """Asks one picture's field where the search leads, and casts the votes."""
        field = _PictureField(self, maps, map_size)
        sizes = None if settle else self._sizes
        with self._stages("query"):
            if self._search == "octree":
                found = octree(field, self.lattice, self._surface_mm, sizes)
            else:
                if settle and previous is not None and not previous.isfinite().all():
                    previous = None
                found = guided(field, self.lattice, self._surface_mm, self._cast_some, sizes, previous)
        with self._stages("vote"):
            joints, scores = found.pose or self._cast_some(found.points, found.votes, found.voters)
        votes = [(found.points, found.votes)]
        return Answers(joints[None], scores[None], found.voters, found.evaluated, found.doubt, votes)

    def _cast(self, points: Tensor, votes: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Joints (B, 21, 3) mm and scores (B, 21) of voters (B, V, 3) and their votes (B, V, 21, 4)."""
        everyone = torch.arange(points.shape[1], device=points.device).expand(len(points), -1)
        joints, weight, spread = ops.cast_votes(
            points, votes, everyone, counts, fraction=self._fraction, backend=self._backend
        )
        return joints, joint_scores(weight, spread)

    def _cast_some(self, points: Tensor, votes: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        joints, scores = self._cast(points[None], votes[None], count)
        return joints[0], scores[0]

    def every(self, stride: int, map_size: tuple[int, int]) -> Any:
        """Where the sublattice's points lie, found once."""
        if stride not in self._places:
            self._places[stride] = self.located(self.lattice.every(stride), map_size)
        return self._places[stride]

    def located(self, nodes: Tensor, map_size: tuple[int, int]) -> Any:
        return self._query.locate(self.lattice.points(nodes), self._intrinsics, map_size)

    def ask(self, maps: Any, places: Any, within_mm: float, capacity: int) -> tuple[Tensor, Tensor, Tensor]:
        """Of one picture; see `nvf_fast.search.Field`."""
        sdf, votes, slots = self._query(maps, places, within_mm, capacity)
        return sdf[0], votes[0], slots[0]


class _PictureField(NamedTuple):
    """One picture's field on the lattice, as a search asks it."""

    frame: Frame
    maps: Any
    map_size: tuple[int, int]

    def every(self, stride: int, within_mm: float, capacity: int) -> tuple[Tensor, Tensor, Tensor]:
        return self.frame.ask(self.maps, self.frame.every(stride, self.map_size), within_mm, capacity)

    def at(self, nodes: Tensor, within_mm: float, capacity: int) -> tuple[Tensor, Tensor, Tensor]:
        return self.frame.ask(self.maps, self.frame.located(nodes, self.map_size), within_mm, capacity)
