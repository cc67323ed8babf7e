"""The pipeline of hand views: coarse joints first, then the field's votes about them."""

from __future__ import annotations

from torch import Tensor

from nvf_fast import ops
from nvf_fast.buffers import Buffers, Voters
from nvf_fast.kernels.place_hands.reference import field_biases, place_lattice
from nvf_fast.model import NVF
from nvf_fast.pipeline import (
    PackedEstimates,
    QueryOptions,
    Views,
    images_per_run,
)
from nvf_fast.pose import SPREAD_MM
from nvf_fast.runtime.profiling import Profiler
from nvf_fast.unet import HandEncoding
from nvf_fast.volumes import HandVolume


class HandPipeline:
    """Encoding, placing the query points, querying, selecting, voting and combining.

    For an unknown side, the view and its mirror image are encoded together, and the one with the smaller
    left-hand logit is used; the comparison cancels errors common to both.

    Args:
        model: a network of hand views.
        volume, options, profiler, query: as in `FieldPipeline`.

    Raises:
        ValueError: the options name a search other than "dense".
    """

    def __init__(
        self,
        model: NVF,
        volume: HandVolume,
        options: QueryOptions,
        profiler: Profiler,
        query: ops.FieldQuery | None = None,
    ) -> None:
        if options.search != "dense":
            raise ValueError(f'search must be "dense" for a network of hand views, got {options.search!r}')
        assert model.heads is not None
        self._model, self._heads, self._options, self._profiler = model, model.heads, options, profiler
        self.lattice = volume.lattice(options.step_mm, model.device)
        self._capacity = min(options.voter_capacity, len(self.lattice))
        self._query = query or options.query(model)
        joints = self._heads.joints
        assert joints.bias is not None
        self._features, self._joints = model.encoder.feature_layer(), [joints.weight.flatten(1), joints.bias]  # type: ignore[operator]
        self._code, self._biases = model.field.pose_code()

    def batch_size(self, exact: bool) -> int:
        return images_per_run(len(self.lattice) if exact else self._capacity, self._model.config.joints)

    def __call__(self, views: Views, exact: bool = False) -> PackedEstimates:
        slopes = views.slopes
        assert slopes is not None
        with self._profiler.stage("encode"):
            maps, outputs = self._model.encode_views(views.images, slopes)
        with self._profiler.stage("query"):
            placed = ops.place_hands(
                maps,
                outputs,
                slopes,
                self._features,
                self._joints,
                self._heads.places,
                self.lattice.uv,
                self.lattice.depths,
                self._code,
                self._biases,
                self._model.config.input_size,
                backend=self._options.backend,
            )
        field = placed.features, placed.centres, placed.points, placed.intrinsics, placed.biases
        voted, voters = self._vote(*field, exact)
        with self._profiler.stage("vote"):
            rows = ops.pack_poses(
                placed.coarse,
                voted,
                self._heads.vote_weight,
                placed.errors,
                placed.presence,
                voters.counts,
                placed.left,
                voters.needs_retry,
                len(self.lattice),
                SPREAD_MM,
                backend=self._options.backend,
            )
        return PackedEstimates(rows, voters)

    def vote(self, encoding: HandEncoding, slopes: Tensor) -> tuple[Tensor, Tensor, Voters]:
        """Query the field around the coarse joints and cast the votes, with lists of exact sizes.

        Args:
            encoding: of B views.
            slopes: (B,) float32, tangents of half the views' angles.

        Returns:
            Coarse and voted joints, (B, 21, 3) float32 mm each, the voted ones NaN without voters; and the
            voters.
        """
        size, lattice = self._model.config.input_size, self.lattice
        with self._profiler.stage("query"):
            coarse = encoding.joints(slopes)
            places = place_lattice(coarse, slopes, lattice.uv, lattice.depths, size)
            biases = field_biases(coarse, self._code, self._biases)
        return coarse, *self._vote(encoding.features, *places, biases, exact=True)

    def _vote(
        self,
        features: Tensor,
        centres: Tensor,
        points: Tensor,
        intrinsics: Tensor,
        biases: Tensor,
        exact: bool,
    ) -> tuple[Tensor, Voters]:
        """Voted joints and voters; the arguments are those of `ops.PlacedHands`."""
        with self._profiler.stage("query"):
            map_size = (features.shape[2], features.shape[3])
            maps = self._query.project(features, None, biases)
            places = self._query.locate(points, intrinsics, map_size, centres, self.lattice.per_ray)
            samples = self._query.sample(maps, places)
        with self._profiler.stage("select"):
            buffers = Buffers(len(points), points.device, exact, self._options.backend)
            voters = buffers.select_voters(samples.sdf, self._options.surface_mm, self._capacity)
            indices, counts = voters.indices, voters.counts

        def gather(points: Tensor = points) -> tuple[Tensor, Tensor]:
            rows = indices.clamp(min=0)[..., None].expand(-1, -1, 3)
            return points.gather(1, rows), self._query.votes(samples, indices)

        found = Voters(counts, buffers.needs_retry, gather)
        with self._profiler.stage("vote"):
            written, chosen = self._query.written_votes(samples), None
            if written is None:
                points, written = found.points, found.votes
            else:
                chosen = indices
            voted, _, _ = ops.cast_votes(
                points,
                written,
                counts,
                chosen,
                fraction=self._options.fraction,
                backend=self._options.backend,
            )
        return voted, found
