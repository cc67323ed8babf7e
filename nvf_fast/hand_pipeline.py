"""The pipeline of hand views: coarse joints first, then the field's votes about them."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from nvf_fast import ops
from nvf_fast.camera import view_intrinsics
from nvf_fast.model import NVF
from nvf_fast.pipeline import (
    VOTERS_AT_16_MM,
    Estimates,
    Views,
    cast_selected,
    images_together,
    near_points,
    network_images,
    select_votes,
)
from nvf_fast.pose import error_scores
from nvf_fast.stages import Stages
from nvf_fast.unet import HandLook
from nvf_fast.volumes import HandVolume


class Voters(NamedTuple):
    """The near-surface points of B views, V of each at most.

    Attributes:
        points: (B, V, 3) float32 mm.
        votes: (B, V, 21, 4) float32 raw (weight, direction xyz).
        counts: (B,) int32, how many of the V there are.
        overflow: (B,) bool, whether there were more.
    """

    points: Tensor
    votes: Tensor
    counts: Tensor
    overflow: Tensor


class HandPipeline:
    """Sampling, encoding, placing the query points, querying, selecting, voting and combining.

    Where the side of a hand is unknown, the view is encoded as it is, and its left-hand logit decides whether
    the mirrored view counts. If the host may read the device, only the views of left hands are encoded again;
    otherwise, as a CUDA graph needs it, all of them, and the choice is made on the device.

    Args:
        model: a network of hand views, its encoder in `dtype`, on its device.
        volume: where it is queried.
        step_mm, surface_mm, fraction, backend: as in `PoseEstimator`.
        dtype: of the encoder and of the field's matrix products.
        stages: measures the stages.
    """

    def __init__(
        self,
        model: NVF,
        volume: HandVolume,
        step_mm: float,
        surface_mm: float,
        fraction: float,
        dtype: torch.dtype,
        backend: ops.Backend | None,
        stages: Stages,
    ) -> None:
        assert model.heads is not None
        self._model, self._heads, self._dtype, self._stages = model, model.heads, dtype, stages
        self._surface_mm, self._fraction, self._backend = surface_mm, fraction, backend
        self.lattice = volume.lattice(step_mm, model.device)
        rows = math.ceil(VOTERS_AT_16_MM * max(1.0, 16 / step_mm) ** 2)
        self._capacity = min(rows, len(self.lattice))
        self._query = ops.FieldQuery(
            list(model.field.weights),
            list(model.field.biases),
            channels=model.config.width,
            image_size=model.config.input_size,
            dtype=dtype,
            backend=backend,
        )

    def together(self, exact: bool) -> int:
        return images_together(len(self.lattice) if exact else self._capacity)

    def __call__(self, views: Views, factor: int, exact: bool = False) -> Estimates:
        slopes = views.slopes
        assert slopes is not None
        look = self.look(views, factor)
        left = torch.zeros_like(slopes, dtype=torch.bool)
        if views.mirrored is not None:
            left = look.left > 0
            look = self._mirrored_where(left, look, views, factor, exact)
        coarse, voted, voters = self.vote(look, slopes, exact)
        with self._stages("vote"):
            combined = self._heads.combine(coarse, voted)
            valid = voted.isfinite().all(-1).all(-1)
            joints = torch.where(valid[:, None, None], combined, coarse)
            present = look.presence.sigmoid() >= self._model.config.presence_threshold
            joints = joints.masked_fill(~present[:, None, None], math.nan)
        return Estimates(
            joints,
            error_scores(look.error),
            look.error,
            voters.counts,
            torch.full_like(voters.counts, len(self.lattice)),
            left,
            voters.overflow,
            list(zip(voters.points, voters.votes, strict=True)),
        )

    def vote(self, look: HandLook, slopes: Tensor, exact: bool = True) -> tuple[Tensor, Tensor, Voters]:
        """Query the field about the coarse joints and cast the votes.

        Args:
            look: of B views.
            slopes: (B,) float32, tangents of half the views' angles.
            exact: whether the host may read the device, so that every list is as long as it needs to be.

        Returns:
            Coarse and voted joints, (B, 21, 3) float32 mm each, the voted ones NaN without voters; and the
            voters.
        """
        with self._stages("query"):
            coarse = look.joints(slopes)
            centres = coarse.mean(1)
            points = self.lattice.points(centres[:, 2], slopes)
            intrinsics = view_intrinsics(slopes, self._model.config.input_size)
            map_size = (look.features.shape[2], look.features.shape[3])
            places = self._query.locate(points, intrinsics, map_size, centres, self.lattice.per_ray)
            biases = self._model.field_biases(coarse) if self._model.config.pose_code else None
            maps = self._query.project(look.features, None, biases)
            capacity = len(self.lattice) if exact else self._capacity
            sdf, votes, slots = self._query(maps, places, self._surface_mm, capacity)
        with self._stages("select"):
            size = near_points(sdf, self._surface_mm) if exact else capacity
            chosen, votes, counts, overflow = select_votes(
                sdf, votes, slots, self._surface_mm, size, self._backend
            )
            points = points.gather(1, chosen[..., None].expand(-1, -1, 3))
        with self._stages("vote"):
            voted, _ = cast_selected(points, votes, counts, self._fraction, self._backend)
        return coarse, voted, Voters(points, votes, counts, overflow)

    def look(self, views: Views, factor: int) -> HandLook:
        """Sample and encode views."""
        with self._stages("remap"):
            images = network_images(views, self._model.config.input_size, factor, self._dtype)
        with self._stages("encode"):
            assert views.slopes is not None
            return self._model.look(images, views.slopes)

    def _mirrored_where(
        self, left: Tensor, look: HandLook, views: Views, factor: int, exact: bool
    ) -> HandLook:
        """`look`, replaced by that of the mirrored view where `left` (B,)."""
        assert views.slopes is not None and views.mirrored is not None
        if not exact:
            mirrored = self.look(views._replace(matrices=views.mirrored), factor)
            chosen = (
                torch.where(left.view(-1, *[1] * (plain.ndim - 1)), other, plain)
                for plain, other in zip(look, mirrored, strict=True)
            )
            return HandLook(*chosen)
        rows = left.nonzero()[:, 0]
        if len(rows) == 0:
            return look
        again = Views(views.cuts[rows], views.mirrored[rows], slopes=views.slopes[rows])
        mirrored = self.look(again, factor)
        return HandLook(
            *(plain.index_copy(0, rows, other) for plain, other in zip(look, mirrored, strict=True))
        )
