"""Pipelines from views of images to joints, on one device.

Unless a run is exact, its lists of points have fixed capacities and it never synchronises, so that a CUDA
graph can record it (`nvf_fast.buffers`). An image whose voters exceed the capacity, or whose search the guard
rejects, is marked in `Results.needs_retry`; the estimator then runs it again, exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from nvf_fast import ops
from nvf_fast.baselines import DenseBaseline, HolisticBaseline
from nvf_fast.buffers import Buffers, Voters
from nvf_fast.config import HAND_JOINTS
from nvf_fast.model import NVF
from nvf_fast.ops.query_field import Maps, Places
from nvf_fast.pose import joint_scores
from nvf_fast.runtime.arguments import check_choices, check_number
from nvf_fast.runtime.cuda_graph import finish_launches
from nvf_fast.runtime.profiling import Profiler
from nvf_fast.search import Capacities, Search, guided, octree
from nvf_fast.volumes import Volume

VOTERS_AT_16_MM = 4096  # capacity of an image; a hand takes some 100, a poor field some 600
QUERIED, ACTIVE = 2**17, 2**14  # nodes in one query of a search, and those whose neighbours are searched
IMAGES = 64  # at a time; larger batches go in parts
VOTE_BYTES = 2**30  # for votes, at a time
VOTING = 2**16  # points of a grid on a GPU, the most whose votes are all evaluated: 22 MB an image
LOCATED = 2**21  # points of a dense grid that are located once and kept; finer grids go in parts of this size


@dataclass(frozen=True)
class QueryOptions:
    """Options of querying a field and of voting, as in `PoseEstimator`.

    Raises:
        ValueError: a value is out of range.
        TypeError: a value is not a number.
    """

    step_mm: float = 16.0
    surface_mm: float = 5.0
    fraction: float = 0.5
    search: Search = "dense"
    dtype: torch.dtype = torch.float32
    backend: ops.Backend | None = None

    def __post_init__(self) -> None:
        for name in ("step_mm", "surface_mm", "fraction"):
            check_number(name, getattr(self, name))
        if not self.surface_mm > 0:
            raise ValueError(f"surface_mm must be a positive number of mm, got {self.surface_mm}")
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction must be in (0, 1], got {self.fraction}")
        check_choices(self)

    @property
    def voter_capacity(self) -> int:
        """Capacity for the voters of one image."""
        return math.ceil(VOTERS_AT_16_MM * max(1.0, 16 / self.step_mm) ** 2)

    def query(self, model: NVF, point_count: int = 0) -> ops.FieldQuery:
        """The prepared query of a network's field, tuned for a number of points."""
        return ops.FieldQuery(
            list(model.field.weights),
            list(model.field.biases),
            channels=model.config.width,
            image_size=model.config.input_size,
            dtype=self.dtype,
            surface_mm=self.surface_mm,
            point_count=point_count,
            backend=self.backend,
        )


class Views(NamedTuple):
    """B views, and the network's further inputs."""

    images: Tensor  # (B, C, S, S) as networks take them; of unknown sides (2 B, ...), mirror images last
    scale: Tensor | None = None  # (B,) float32 mm, hand scales
    previous: Tensor | None = None  # (B, 21, 3) float32 mm in the volume's frame; NaN is unknown
    slopes: Tensor | None = None  # (B,) float32, tangents of half the angles of hand views


class PackedEstimates(NamedTuple):
    """Poses of B images in their volumes' frames, of J joints: 21 of a hand."""

    # (B, 5 J + 5) float32, all but the votes, for one transfer: the fields of `Results` in the order joints,
    # scores, errors, presence, and four integers, exact up to 2^24.
    rows: Tensor
    # Per image points (V, 3) mm and votes (V, J, 4), V at least the number of voters; empty without a field.
    votes: Sequence[tuple[Tensor, Tensor]]

    @classmethod
    def of(
        cls,
        blank: Tensor,
        joints: Tensor,
        scores: Tensor,
        voters: Tensor,
        needs_retry: Tensor,
        votes: Sequence[tuple[Tensor, Tensor]],
        evaluated: Tensor | None = None,
    ) -> PackedEstimates:
        """Estimates of a network that predicts neither errors nor sides.

        Args:
            blank: of `blank_row`, with the number of evaluated points unless `evaluated` is given.
        """
        count = joints.shape[1]
        rows = blank.repeat(len(joints), 1)
        rows[:, : 3 * count] = joints.flatten(1)
        rows[:, 3 * count : 4 * count] = scores
        rows[:, -4] = voters
        if evaluated is not None:
            rows[:, -3] = evaluated
        rows[:, -1] = needs_retry
        return cls(rows, votes)


def blank_row(joints: int, evaluated: int = 0, device: torch.device | None = None) -> Tensor:
    """A row (1, 5 J + 5) of `PackedEstimates` with everything that no image changes."""
    unknown = [math.nan] * (5 * joints)
    return torch.tensor([[*unknown, 1, 0, evaluated, 0, 0]], dtype=torch.float32, device=device)


class Results(NamedTuple):
    """Poses of B images on the host."""

    joints: np.ndarray  # (B, J, 3) float32 mm
    scores: np.ndarray  # (B, J) float32
    errors: np.ndarray  # (B, J) float32 mm, expected ones; NaN from a network that predicts none
    voters: np.ndarray  # (B,) int32
    points_evaluated: np.ndarray  # (B,) int32
    presence: np.ndarray  # (B,) float32, probability of a hand; 1 from a network that predicts none
    left: np.ndarray  # (B,) bool, whether the mirrored view was chosen
    needs_retry: np.ndarray  # (B,) bool
    votes: list[tuple[Tensor, Tensor]]  # on the device

    @classmethod
    def unpacked(cls, packed: np.ndarray) -> Results:
        """The inverse of `PackedEstimates.rows`, without votes."""
        count = packed.shape[1] // 5 - 1
        voters, evaluated, left, needs_retry = packed[:, 5 * count + 1 :].T.astype(np.int32)
        return cls(
            packed[:, : 3 * count].reshape(-1, count, 3),
            packed[:, 3 * count : 4 * count],
            packed[:, 4 * count : 5 * count],
            voters,
            evaluated,
            packed[:, 5 * count],
            left != 0,
            needs_retry != 0,
            [],
        )


class Pipeline(Protocol):
    """Inference of one kind of network, with the data cached between runs."""

    def batch_size(self, exact: bool) -> int:
        """Largest number of images of one run."""
        ...

    def __call__(self, views: Views, exact: bool = False) -> PackedEstimates:
        """Estimate the pose in each image.

        Args:
            views: B images.
            exact: whether to size lists exactly and continue rejected searches, which synchronises.
        """
        ...


class FieldPipeline:
    """Encoding, querying, selecting and voting, in a frustum or a cube.

    Args:
        model: the network, its encoder in the dtype of the options, on its device.
        volume: the queried volume.
        options: of the query.
        profiler: measures the stages.
        query: prepared query of the network's field; None prepares it.

    Raises:
        ValueError: the options name a search that the network does not support.
    """

    def __init__(
        self,
        model: NVF,
        volume: Volume,
        options: QueryOptions,
        profiler: Profiler,
        query: ops.FieldQuery | None = None,
    ) -> None:
        if options.search == "guided" and model.config.joints != HAND_JOINTS:
            raise ValueError(
                f'search="guided" follows the bones of a hand\'s {HAND_JOINTS} joints, the network has '
                f"{model.config.joints}"
            )
        self._model, self._volume, self._options, self._profiler = model, volume, options, profiler
        device = model.device
        self._intrinsics = model.reference_intrinsics
        self.lattice = volume.lattice(options.step_mm, device)
        self.query = query or options.query(model, len(self.lattice))
        self._capacities = Capacities(min(options.voter_capacity, len(self.lattice)), QUERIED, ACTIVE)
        self._places: dict[int, list[Places]] = {}
        # On a GPU the votes of all points of a coarse grid cost less than some 40 launches that locate and
        # evaluate the voters apart.
        self._at_once = device.type != "cpu" and len(self.lattice) <= VOTING
        self._points = self.lattice.points(self.lattice.every(1)) if self._at_once else None
        self._blank = blank_row(model.config.joints, len(self.lattice), device)

    def batch_size(self, exact: bool) -> int:
        if self._options.search != "dense":
            return IMAGES  # searched one after the other
        rows = len(self.lattice) if exact or self._at_once else self._capacities.voters
        return images_per_run(rows, self._model.config.joints)

    def __call__(self, views: Views, exact: bool = False) -> PackedEstimates:
        with self._profiler.stage("encode"):
            features = self._model.encode(views.images)
        with self._profiler.stage("query"):
            map_size = features.shape[2], features.shape[3]
            field = _BatchField(self, self.query.project(features, views.scale), map_size)
        if self._options.search != "dense":
            return self._searched(field, len(views.images), views.previous, exact)
        with self._profiler.stage("query"):
            sdf, votes = field.evaluated() if self._at_once else (field.every(1), None)
        with self._profiler.stage("select"):
            buffers = Buffers(len(views.images), sdf.device, exact, self._options.backend)
            indices, counts, _ = buffers.select_voters(sdf, self._options.surface_mm, self._capacities.voters)
        with self._profiler.stage("vote"):
            kept: Sequence[tuple[Tensor, Tensor]]
            if votes is not None and self._points is not None:
                points = self._points.expand(len(votes), -1, -1)
                chosen: Tensor | None = indices
                kept = Voters(counts, buffers.needs_retry, partial(_gathered, points, votes, indices))
            else:
                nodes, chosen = self.lattice.filled(indices, self.lattice.every(1)), None
                points, votes = self.lattice.points(nodes), field.votes(nodes)
                kept = list(zip(points, votes, strict=True))
            joints, scores = cast_votes(points, votes, counts, self._options, chosen)
        return PackedEstimates.of(self._blank, joints, scores, counts, buffers.needs_retry, kept)

    def _searched(
        self, field: _BatchField, count: int, previous: Tensor | None, exact: bool
    ) -> PackedEstimates:
        """Search and query each image's field, and cast the votes."""
        estimates, kept = [], []
        for image in range(count):
            buffers = Buffers(1, self.lattice.device, exact, self._options.backend)
            arguments = (
                field.of_image(image),
                self.lattice,
                self._options.surface_mm,
                buffers,
                self._capacities,
            )
            before = None if previous is None else previous[image]
            if exact and before is not None and not before.isfinite().all():
                before = None
            with self._profiler.stage("query"):
                if self._options.search == "octree":
                    result = octree(*arguments)
                else:
                    result = guided(*arguments, self._cast_some, before)
            with self._profiler.stage("vote"):
                joints, scores = result.pose or self._cast_some(result.points, result.votes, result.voters)
            flags = buffers.needs_retry
            estimates.append((joints[None], scores[None], result.voters, result.evaluated, flags))
            kept.append((result.points, result.votes))
        joints, scores, voters, evaluated, needs_retry = map(torch.cat, zip(*estimates, strict=True))
        return PackedEstimates.of(self._blank, joints, scores, voters, needs_retry, kept, evaluated)

    def _cast_some(self, points: Tensor, votes: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        joints, scores = cast_votes(points[None], votes[None], count, self._options)
        return joints[0], scores[0]

    def every(self, stride: int, map_size: tuple[int, int]) -> Iterator[Places]:
        """Places of a sublattice's nodes on the maps, in parts; a grid of up to `LOCATED` is kept."""
        nodes = self.lattice.every(stride)
        if len(nodes) > LOCATED:
            return (self.located(part, map_size) for part in nodes.split(LOCATED))
        if stride not in self._places:
            self._places[stride] = [self.located(nodes, map_size)]
            finish_launches(self.lattice.device)
        return iter(self._places[stride])

    def located(self, nodes: Tensor, map_size: tuple[int, int]) -> Places:
        """Places of nodes (N,) or (B, N) on the maps."""
        points = self._volume.network_points(self.lattice.points(nodes))
        return self.query.locate(points, self._intrinsics, map_size)


class _BatchField(NamedTuple):
    """The field of a batch of images on the lattice."""

    pipeline: FieldPipeline
    maps: Maps
    map_size: tuple[int, int]

    def of_image(self, image: int) -> _BatchField:
        return self._replace(maps=self.pipeline.query.image_maps(self.maps, image))

    def every(self, stride: int) -> Tensor:
        """Signed distances (B, N) mm at the nodes of `lattice.every(stride)`."""
        places = self.pipeline.every(stride, self.map_size)
        parts = [self.pipeline.query.sample(self.maps, each).sdf for each in places]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def at(self, nodes: Tensor) -> Tensor:
        """Signed distances (B, N) mm at nodes (N,) or (B, N)."""
        return self.pipeline.query.sample(self.maps, self.pipeline.located(nodes, self.map_size)).sdf

    def votes(self, nodes: Tensor) -> Tensor:
        """Raw votes (B, N, J, 4) at nodes (N,) or (B, N)."""
        return self.pipeline.query.evaluate(self.maps, self.pipeline.located(nodes, self.map_size))[1]

    def evaluated(self) -> tuple[Tensor, Tensor]:
        """Signed distances and raw votes at all nodes of a lattice that is kept."""
        (places,) = self.pipeline.every(1, self.map_size)
        return self.pipeline.query.evaluate(self.maps, places)


class BaselinePipeline:
    """Encoding and regressing, for the baselines of Sec. 4.1.

    Args:
        model: the network, on its device.
        profiler: measures the stages.
    """

    def __init__(self, model: HolisticBaseline | DenseBaseline, profiler: Profiler) -> None:
        self._model, self._profiler = model, profiler
        dense = isinstance(model, DenseBaseline)
        evaluated = model.config.feature_size**2 if dense else 1
        device = next(model.parameters()).device
        self._blank = blank_row(model.config.joints, evaluated, device)

    def batch_size(self, exact: bool) -> int:
        return IMAGES

    def __call__(self, views: Views, exact: bool = False) -> PackedEstimates:
        with self._profiler.stage("encode"):
            features = self._model.encode(views.images)
        with self._profiler.stage("regress"):
            joints, voters = self._model.predict(features, views.scale)
        scores, fits = joints.isfinite().all(-1), torch.zeros_like(voters, dtype=torch.bool)
        return PackedEstimates.of(self._blank, joints, scores, voters, fits, [])


def images_per_run(rows: int, joints: int) -> int:
    """Number of images per run for `rows` rows of votes for `joints` joints each."""
    return max(1, min(IMAGES, VOTE_BYTES // (rows * joints * 4 * 4)))


def cast_votes(
    points: Tensor, votes: Tensor, counts: Tensor, options: QueryOptions, indices: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Joints (B, J, 3) mm and scores (B, J) from points (B, V, 3) and their votes (B, V, J, 4)."""
    joints, weight, spread = ops.cast_votes(
        points, votes, counts, indices, fraction=options.fraction, backend=options.backend
    )
    return joints, joint_scores(weight, spread)


def _gathered(points: Tensor, votes: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """The points (B, V, 3) and votes (B, V, J, 4) at indices (B, V); those at -1 are the first ones."""
    rows = indices.clamp(min=0)[..., None]
    return points.gather(1, rows.expand(-1, -1, 3)), votes.flatten(2).gather(
        1, rows.expand(-1, -1, votes[0, 0].numel())
    ).unflatten(2, votes.shape[2:])
