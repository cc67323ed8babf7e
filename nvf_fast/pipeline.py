"""Pipelines: everything between crops of images and joints, on one device.

Shapes are fixed and nothing is read back, so that a CUDA graph can hold a run. An image whose voters do not
fit the fixed sizes, or whose search its guard rejects, is marked in `Estimates.needs_retry`; the estimator
runs it again with `exact`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple, Protocol, get_args

import torch
from torch import Tensor

from nvf_fast import ops
from nvf_fast.baselines import DenseBaseline, HolisticBaseline
from nvf_fast.camera import reference_intrinsics, sample_views
from nvf_fast.model import NVF
from nvf_fast.pose import joint_scores
from nvf_fast.runtime.profiling import Stages
from nvf_fast.search import Search, Sizes, guided, octree
from nvf_fast.volumes import Volume

VOTERS_AT_16_MM = 4096  # rows for votes; a hand takes some 100, a poor field some 600
QUERIED, ACTIVE = 2**17, 2**14  # nodes in one query of a search, and those whose neighbours are searched
IMAGES = 64  # at a time; larger batches go in parts
VOTE_BYTES = 2**30  # for votes, at a time
LOCATED = 2**21  # points of a dense grid that are located once and kept; finer grids go in parts of this size


@dataclass(frozen=True)
class QueryOptions:
    """How a field is queried, and its votes are cast; `PoseEstimator` describes each.

    Raises:
        ValueError: a value is out of its range.
    """

    step_mm: float = 16.0
    surface_mm: float = 5.0
    fraction: float = 0.5
    search: Search = "dense"
    dtype: torch.dtype = torch.float32
    backend: ops.Backend | None = None

    def __post_init__(self) -> None:
        if not self.surface_mm > 0:
            raise ValueError(f"surface_mm must be a positive number of mm, got {self.surface_mm}")
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction must be in (0, 1], got {self.fraction}")
        if self.search not in get_args(Search):
            raise ValueError(f"search must be one of {get_args(Search)}, got {self.search!r}")

    @property
    def rows(self) -> int:
        """Rows for the votes of one image where lists have a fixed length."""
        return math.ceil(VOTERS_AT_16_MM * max(1.0, 16 / self.step_mm) ** 2)

    def query(self, model: NVF) -> ops.FieldQuery:
        """The prepared query of a network's field."""
        return ops.FieldQuery(
            list(model.field.weights),
            list(model.field.biases),
            channels=model.config.width,
            image_size=model.config.input_size,
            dtype=self.dtype,
            backend=self.backend,
        )


class Views(NamedTuple):
    """B images of equal crop sizes, as `sample_views` takes them, and what is known about each.

    Attributes:
        cuts: (B, h, w, 3) uint8.
        matrices: (B, 3, 3) float64, from view px to px of the averaged crop.
        scale: (B,) float32 mm, hand scales, or None.
        previous: (B, 21, 3) float32 mm in the volume's frame, where a guided search begins; NaN is unknown.
        slopes: (B,) float32, tangents of half the angles of hand views, or None.
        mirrored: (B, 3, 3) float64, `matrices` of the mirrored hand views, where the sides of the hands are
            unknown; or None.
    """

    cuts: Tensor
    matrices: Tensor
    scale: Tensor | None = None
    previous: Tensor | None = None
    slopes: Tensor | None = None
    mirrored: Tensor | None = None


class Estimates(NamedTuple):
    """Poses of B images in their volumes' frames.

    Attributes:
        joints: (B, 21, 3) float32 mm.
        scores: (B, 21) float32.
        errors: (B, 21) float32 mm, expected errors; NaN from a network that predicts none.
        voters: (B,) int32.
        points_evaluated: (B,) int32.
        presence: (B,) float32, probability of a hand; 1 from a network that predicts none.
        left: (B,) bool, whether the mirrored view was chosen.
        needs_retry: (B,) bool.
        votes: per image points (V, 3) mm and votes (V, 21, 4), V at least `voters`; empty without a field.
    """

    joints: Tensor
    scores: Tensor
    errors: Tensor
    voters: Tensor
    points_evaluated: Tensor
    presence: Tensor
    left: Tensor
    needs_retry: Tensor
    votes: list[tuple[Tensor, Tensor]]

    def packed(self) -> Tensor:
        """All but the votes as (B, 110) float32, for one transfer; integers stay exact up to 2^24."""
        integers = torch.stack([self.voters, self.points_evaluated, self.left, self.needs_retry], 1)
        columns = [self.joints.flatten(1), self.scores, self.errors, self.presence[:, None], integers.float()]
        return torch.cat(columns, 1)

    @classmethod
    def unpacked(cls, packed: Tensor) -> Estimates:
        """The inverse of `packed`, without votes."""
        joints, scores, errors, presence, integers = packed.split([63, 21, 21, 1, 4], 1)
        voters, evaluated, left, needs_retry = integers.int().unbind(1)
        joints = joints.unflatten(1, (21, 3))
        bools = left.bool(), needs_retry.bool()
        return cls(joints, scores, errors, voters, evaluated, presence[:, 0], *bools, [])

    @classmethod
    def without_heads(
        cls,
        joints: Tensor,
        scores: Tensor,
        voters: Tensor,
        points_evaluated: Tensor,
        needs_retry: Tensor,
        votes: list[tuple[Tensor, Tensor]],
    ) -> Estimates:
        """Estimates of a network that predicts neither errors nor sides."""
        errors, left = torch.full_like(scores, math.nan), torch.zeros_like(needs_retry)
        presence = torch.ones_like(scores[:, 0])
        return cls(joints, scores, errors, voters, points_evaluated, presence, left, needs_retry, votes)


class Pipeline(Protocol):
    """One kind of network at work; what stays between runs is kept."""

    def together(self, exact: bool) -> int:
        """Number of images that fit into one run."""
        ...

    def __call__(self, views: Views, factor: int, exact: bool = False) -> Estimates:
        """Estimate the pose in each image.

        Args:
            views: B images.
            factor: px, side of the squares of pixels over which the crops are averaged.
            exact: whether lists have the length that they need and rejected searches go on; this
                synchronises.
        """
        ...


class FieldPipeline:
    """Sampling, encoding, querying, selecting and voting, in a frustum or a cube.

    Args:
        model: the network, its encoder in the dtype of the options, on its device.
        volume: where it is queried.
        options: how it is queried.
        stages: measures the stages.
    """

    def __init__(self, model: NVF, volume: Volume, options: QueryOptions, stages: Stages) -> None:
        self._model, self._volume, self._options, self._stages = model, volume, options, stages
        self._surface_mm, device = options.surface_mm, model.field.biases[0].device
        self._intrinsics = reference_intrinsics(model.config.input_size, device=device)
        self.lattice = volume.lattice(options.step_mm, device)
        self.points = self.lattice.points(self.lattice.every(1))
        self._sizes = Sizes(min(options.rows, len(self.points)), QUERIED, ACTIVE)
        self._query = options.query(model)
        self._places: dict[int, Any] = {}

    def together(self, exact: bool) -> int:
        if self._options.search != "dense":
            return IMAGES  # searched one after the other
        return images_together(len(self.points) if exact else self._sizes.voters)

    def __call__(self, views: Views, factor: int, exact: bool = False) -> Estimates:
        with self._stages("remap"):
            images = network_images(views, self._model.config.input_size, factor, self._options.dtype)
        with self._stages("encode"):
            features = self._model.encode(images)
        with self._stages("query"):
            map_size = (features.shape[2], features.shape[3])
            maps = self._query.project(features, views.scale)
        if self._options.search == "dense":
            return self._dense(maps, map_size, exact)
        found = [
            self._searched(
                maps[image : image + 1],
                map_size,
                None if views.previous is None else views.previous[image],
                exact,
            )
            for image in range(len(images))
        ]
        *tensors, votes = zip(*found, strict=True)
        joints, scores, errors, voters, evaluated, presence, left, needs_retry = map(torch.cat, tensors)
        kept = list(chain(*votes))
        return Estimates(joints, scores, errors, voters, evaluated, presence, left, needs_retry, kept)

    def _dense(self, maps: Any, map_size: tuple[int, int], exact: bool) -> Estimates:
        """Query every point of the grid and cast the votes."""
        count = len(self.points)
        capacity = count if exact else self._sizes.voters
        with self._stages("query"):
            if count <= LOCATED:
                sdf, votes, slots = self._query(maps, self.every(1, map_size), self._surface_mm, capacity)
            else:
                sdf, votes, slots = self._in_parts(maps, map_size, capacity, exact)
        with self._stages("select"):
            size = near_points(sdf, self._surface_mm) if exact else capacity
            chosen, votes, counts, overflow = select_votes(sdf, votes, slots, size, self._options)
            points = self.points[chosen]
        with self._stages("vote"):
            joints, scores = self._cast(points, votes, counts)
        evaluated = torch.full_like(counts, count)
        kept = list(zip(points, votes, strict=True))
        return Estimates.without_heads(joints, scores, counts, evaluated, overflow, kept)

    def _in_parts(
        self, maps: Any, map_size: tuple[int, int], capacity: int, exact: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Query every point of a grid too fine to be located at once."""
        parts, rows = [], 0
        for points in self.points.split(LOCATED):
            places = self._query.locate(self._volume.network_points(points), self._intrinsics, map_size)
            sdf, votes, slots = self._query(maps, places, self._surface_mm, min(capacity, len(points)))
            if exact:  # Trim before concatenating: untouched pages are not yet resident.
                votes = votes[:, : int((sdf.abs() < self._surface_mm).sum(1).max())]
            parts.append((sdf, votes, slots + rows))
            rows += votes.shape[1]
        sdf, votes, slots = (torch.cat(of_all, 1) for of_all in zip(*parts, strict=True))
        return sdf, votes, slots

    def _searched(
        self, maps: Any, map_size: tuple[int, int], previous: Tensor | None, exact: bool
    ) -> Estimates:
        """Query one image's field where the search leads, and cast the votes."""
        field = _ImageField(self, maps, map_size)
        sizes = None if exact else self._sizes
        with self._stages("query"):
            if self._options.search == "octree":
                found = octree(field, self.lattice, self._surface_mm, sizes)
            else:
                if exact and previous is not None and not previous.isfinite().all():
                    previous = None
                found = guided(field, self.lattice, self._surface_mm, self._cast_some, sizes, previous)
        with self._stages("vote"):
            joints, scores = found.pose or self._cast_some(found.points, found.votes, found.voters)
        votes = [(found.points, found.votes)]
        return Estimates.without_heads(
            joints[None], scores[None], found.voters, found.evaluated, found.needs_retry, votes
        )

    def _cast(self, points: Tensor, votes: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        return cast_selected(points, votes, counts, self._options)

    def _cast_some(self, points: Tensor, votes: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        joints, scores = self._cast(points[None], votes[None], count)
        return joints[0], scores[0]

    def every(self, stride: int, map_size: tuple[int, int]) -> Any:
        """Where the sublattice's points lie on the map; located once and kept."""
        if stride not in self._places:
            self._places[stride] = self.located(self.lattice.every(stride), map_size)
        return self._places[stride]

    def located(self, nodes: Tensor, map_size: tuple[int, int]) -> Any:
        points = self._volume.network_points(self.lattice.points(nodes))
        return self._query.locate(points, self._intrinsics, map_size)

    def query(self, maps: Any, places: Any, within_mm: float, capacity: int) -> tuple[Tensor, Tensor, Tensor]:
        """Query one image; see `nvf_fast.search.Field`."""
        sdf, votes, slots = self._query(maps, places, within_mm, capacity)
        return sdf[0], votes[0], slots[0]


class _ImageField(NamedTuple):
    """One image's field on the lattice, for a search."""

    pipeline: FieldPipeline
    maps: Any
    map_size: tuple[int, int]

    def every(self, stride: int, within_mm: float, capacity: int) -> tuple[Tensor, Tensor, Tensor]:
        places = self.pipeline.every(stride, self.map_size)
        return self.pipeline.query(self.maps, places, within_mm, capacity)

    def at(self, nodes: Tensor, within_mm: float, capacity: int) -> tuple[Tensor, Tensor, Tensor]:
        places = self.pipeline.located(nodes, self.map_size)
        return self.pipeline.query(self.maps, places, within_mm, capacity)


class BaselinePipeline:
    """Sampling, encoding and regressing, for the baselines of Sec. 4.1.

    Args:
        model: the network, its encoder in `dtype`, on its device.
        dtype: of the encoder.
        stages: measures the stages.
    """

    def __init__(self, model: HolisticBaseline | DenseBaseline, dtype: torch.dtype, stages: Stages) -> None:
        self._model, self._dtype, self._stages = model, dtype, stages
        dense = isinstance(model, DenseBaseline)
        self._evaluated = model.config.feature_size**2 if dense else 1

    def together(self, exact: bool) -> int:
        return IMAGES

    def __call__(self, views: Views, factor: int, exact: bool = False) -> Estimates:
        with self._stages("remap"):
            images = network_images(views, self._model.config.input_size, factor, self._dtype)
        with self._stages("encode"):
            features = self._model.encode(images)
        with self._stages("regress"):
            joints, voters = self._model.predict(features, views.scale)
        voters = voters.int()
        scores = joints.isfinite().all(-1).float()
        evaluated = torch.full_like(voters, self._evaluated)
        fits = torch.zeros_like(voters, dtype=torch.bool)
        return Estimates.without_heads(joints, scores, voters, evaluated, fits, [])


def network_images(views: Views, size: int, factor: int, dtype: torch.dtype) -> Tensor:
    """Views (B, 3, size, size) as networks take them: (x / 255 - 0.5) / 0.5 in `dtype`, channels last."""
    images = sample_views(views.cuts.permute(0, 3, 1, 2), views.matrices, size, factor)
    return images.div_(127.5).sub_(1).to(dtype=dtype, memory_format=torch.channels_last)


def images_together(rows: int) -> int:
    """Number of images in one run whose votes take `rows` rows each."""
    return max(1, min(IMAGES, VOTE_BYTES // (rows * 21 * 4 * 4)))


def near_points(sdf: Tensor, surface_mm: float) -> int:
    """The largest number of voters of one image, at least 1; reads the device."""
    return max(1, int((sdf.abs() < surface_mm).sum(1).max()))


def select_votes(
    sdf: Tensor,
    votes: Tensor,
    slots: Tensor,
    capacity: int,
    options: QueryOptions,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The voters of queried points and their votes.

    Args:
        sdf, votes, slots: (B, N), (B, rows, J, 4) and (B, N), as `ops.FieldQuery` gives them.
        capacity: voters of each image, at most.
        options: which points vote.

    Returns:
        indices (B, capacity) of the voters, 0 in unused slots; votes (B, capacity, J, 4); counts (B,) int32;
        overflow (B,) bool, where there are more voters than `capacity`.
    """
    indices, counts, overflow = ops.select_voters(sdf, options.surface_mm, capacity, backend=options.backend)
    unused, chosen = indices < 0, indices.clamp(min=0)
    rows = slots.gather(1, chosen).masked_fill(unused, 0).clamp(max=votes.shape[1] - 1).long()
    votes = votes.gather(1, rows[..., None, None].expand(-1, -1, *votes.shape[2:]))
    return chosen, votes, counts, overflow


def cast_selected(
    points: Tensor, votes: Tensor, counts: Tensor, options: QueryOptions
) -> tuple[Tensor, Tensor]:
    """Joints (B, 21, 3) mm and scores (B, 21) from voters (B, V, 3) and their votes (B, V, 21, 4)."""
    everyone = torch.arange(points.shape[1], device=points.device).expand(len(points), -1)
    joints, weight, spread = ops.cast_votes(
        points, votes, everyone, counts, fraction=options.fraction, backend=options.backend
    )
    return joints, joint_scores(weight, spread)
