"""The pipeline of hand views: coarse joints first, then the field's votes about them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from nvf_fast import ops
from nvf_fast.buffers import Buffers
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


class Voters(Sequence[tuple[Tensor, Tensor]]):
    """The near-surface points of B views, V of each at most; a sequence of each view's points and votes.

    Args:
        counts: (B,) int32, number of valid points.
        needs_retry: (B,) bool, images with more than V points.
        gather: computes `points` and `votes`, when they are first read.
    """

    def __init__(
        self, counts: Tensor, needs_retry: Tensor, gather: Callable[[], tuple[Tensor, Tensor]]
    ) -> None:
        self.counts, self.needs_retry, self._gather = counts, needs_retry, gather

    @cached_property
    def _gathered(self) -> tuple[Tensor, Tensor]:
        return self._gather()

    @property
    def points(self) -> Tensor:
        """(B, V, 3) float32 mm."""
        return self._gathered[0]

    @property
    def votes(self) -> Tensor:
        """(B, V, 21, 4) float32 raw (weight, direction xyz)."""
        return self._gathered[1]

    def __len__(self) -> int:
        return len(self.counts)

    def __getitem__(self, image: Any) -> Any:
        return self.points[image], self.votes[image]


class HandPipeline:
    """Encoding, placing the query points, querying, selecting, voting and combining.

    For an unknown side, the view and its mirror image are encoded together, and the one with the smaller
    left-hand logit is used; the comparison cancels errors common to both.

    Args:
        model: a network of hand views, its encoder in the dtype of the options, on its device.
        volume: the queried volume.
        options: of the query.
        profiler: measures the stages.
        query: prepared query of the network's field; None prepares it.

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
        half = model.config.input_size / 2
        centre, focal = (
            torch.tensor([[0, 0, half], [0, 0, half], [0, 0, 1.0]]),
            torch.diag(torch.tensor([half, half, 0])),
        )
        self._centre, self._focal = centre.float().to(model.device), focal.float().to(model.device)

    def batch_size(self, exact: bool) -> int:
        return images_per_run(len(self.lattice) if exact else self._capacity, self._model.config.joints)

    def __call__(self, views: Views, exact: bool = False) -> PackedEstimates:
        slopes = views.slopes
        assert slopes is not None
        encoding, left = self._encode_likelier_side(views)
        coarse, voted, voters = self.vote(encoding, slopes, exact)
        with self._profiler.stage("vote"):
            rows = ops.pack_poses(
                coarse,
                voted,
                self._heads.vote_weight,
                encoding.error,
                encoding.presence,
                voters.counts,
                left,
                voters.needs_retry,
                len(self.lattice),
                SPREAD_MM,
                backend=self._options.backend,
            )
        return PackedEstimates(rows, voters)

    def vote(
        self, encoding: HandEncoding, slopes: Tensor, exact: bool = True
    ) -> tuple[Tensor, Tensor, Voters]:
        """Query the field about the coarse joints and cast the votes.

        Args:
            encoding: of B views.
            slopes: (B,) float32, tangents of half the views' angles.
            exact: whether to size every list exactly, which synchronises.

        Returns:
            Coarse and voted joints, (B, 21, 3) float32 mm each, the voted ones NaN without voters; and the
            voters.
        """
        with self._profiler.stage("query"):
            coarse = encoding.joints(slopes)
            centres = coarse.mean(1)
            points = self.lattice.points(centres[:, 2], slopes)
            # As `view_intrinsics`, in one launch.
            intrinsics = torch.addcdiv(self._centre, self._focal, slopes.view(-1, 1, 1))
            map_size = (encoding.features.shape[2], encoding.features.shape[3])
            biases = self._model.field_biases(coarse) if self._model.config.pose_code else None
            maps = self._query.project(encoding.features, None, biases)
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
        return coarse, voted, found

    def _encode_likelier_side(self, views: Views) -> tuple[HandEncoding, Tensor]:
        """Choose the likelier right hand of each view and its mirror image; (B,) bool marks mirror images."""
        images, slopes = views.images, views.slopes
        assert slopes is not None
        with self._profiler.stage("encode"):
            if len(images) == len(slopes):
                left = torch.zeros_like(slopes, dtype=torch.bool)
                return self._model.encode_hands(images, slopes), left
            both = self._model.encode_hands(images, slopes.repeat(2))
        plain, mirrored = (
            HandEncoding(*half) for half in zip(*(each.chunk(2) for each in both), strict=True)
        )
        left = plain.left > mirrored.left
        chosen = (
            torch.where(left.view(-1, *[1] * (each.ndim - 1)), other, each)
            for each, other in zip(plain, mirrored, strict=True)
        )
        return HandEncoding(*chosen), left
