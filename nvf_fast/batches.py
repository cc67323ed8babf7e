"""Runs of a pipeline on batches of images with equal crop shapes, within memory, as CUDA graphs."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nvf_fast.camera import ViewPlan, mirror_homography
from nvf_fast.pipeline import Pipeline, Results, Views, network_images
from nvf_fast.requests import Request
from nvf_fast.runtime.cuda_graph import GraphedFunction, Recorder
from nvf_fast.runtime.profiling import Profiler

CROP_PX = 64  # on CUDA crops are padded to multiples of it, so that few graphs serve many of them
LOG = logging.getLogger("nvf_fast")
_Votes = dict[int, tuple[Tensor, Tensor]]  # by image: points (V, 3) mm and votes (V, 21, 4)


class BatchRunner:
    """Runner of a pipeline on any images.

    Args:
        pipeline: the pipeline.
        size: px, side of its views.
        device: of the pipeline.
        profiler: measures the stages.
        recorder: records and replays runs, whose lists of points then have fixed sizes; an image that does
            not fit runs again. None sizes every list exactly, which synchronises with the device.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        size: int,
        device: torch.device,
        profiler: Profiler,
        recorder: Recorder | None = None,
    ) -> None:
        self.pipeline, self.retried = pipeline, 0
        self._size, self._device, self._profiler, self._exact = size, device, profiler, recorder is None
        self.graphed = None if recorder is None else GraphedFunction(self._launch, recorder)

    def __call__(self, request: Request, return_votes: bool) -> Results:
        """Estimate all images."""
        order: list[int] = []
        every_packed: list[Tensor] = []
        votes: _Votes = {}
        for members, packed, their_votes in self._in_parts(request, return_votes):
            order += members
            every_packed.append(packed)
            votes |= their_votes
        with self._profiler.stage("read"):
            packed = every_packed[0] if len(every_packed) == 1 else torch.cat(every_packed)
            rows = packed.numpy(force=True)  # the only synchronisation
            if len(every_packed) > 1:
                rows = rows[np.argsort(order)]
            results = Results.unpacked(rows)
        if results.needs_retry.any():
            rows = rows.copy()
            for image in results.needs_retry.nonzero()[0].tolist():
                self.retried += 1
                packed, its_votes = self._run(request, [image], return_votes, exact=True)
                rows[image] = packed[0].numpy(force=True)
                votes |= its_votes
            results = Results.unpacked(rows)
        return results._replace(votes=[votes[image] for image in sorted(votes)])

    def network_images(self, request: Request, dtype: torch.dtype) -> Tensor:
        """The views (B, 3, S, S) of all images, normalised for networks, without mirrored ones."""
        order, sampled = [], []
        for members in self._groups(request):
            views, factor = self._views(request, members), request.plans[members[0]].factor
            with self._profiler.stage("remap"):
                sampled.append(network_images(views, self._size, factor, dtype))
            order += members
        return torch.cat(sampled)[torch.tensor(order).argsort().to(self._device)]

    def _in_parts(self, request: Request, return_votes: bool) -> Iterator[tuple[list[int], Tensor, _Votes]]:
        """Yield images of one crop shape that fit into memory together, and the result of `_run` for them."""
        batch_size = self.pipeline.batch_size(self._exact)
        for rest in self._groups(request):
            while rest:
                members = rest[:batch_size]
                try:
                    result = self._run(request, members, return_votes)
                except torch.OutOfMemoryError:
                    if len(members) == 1:
                        raise
                    batch_size = len(members) // 2
                    LOG.warning(
                        "out of memory on %s: continuing with %d images at a time", self._device, batch_size
                    )
                    continue
                yield members, *result
                rest = rest[len(members) :]

    def _groups(self, request: Request) -> list[list[int]]:
        """Group the images by the shape and factor of their crops, by known or unknown side, and by lens."""
        groups = defaultdict(list)
        for image, (plan, both_sides) in enumerate(zip(request.plans, request.both_sides, strict=True)):
            model = 0 if plan.lens is None else len(plan.lens)
            groups[self._crop_shape(plan), plan.factor, both_sides, model].append(image)
        return list(groups.values())

    def _crop_shape(self, plan: ViewPlan) -> tuple[int, int]:
        """Rows and columns of a crop, padding included."""
        height, width = (part.stop - part.start for part in (plan.rows, plan.columns))
        if self._device.type != "cuda":
            return height, width
        unit = CROP_PX * plan.factor
        return -(-height // unit) * unit, -(-width // unit) * unit

    def _run(
        self, request: Request, members: list[int], return_votes: bool, exact: bool = False
    ) -> tuple[Tensor, _Votes]:
        """`Estimates.packed` of a group of images, on the device, and their votes if requested."""
        views, factor = self._views(request, members), request.plans[members[0]].factor
        if self.graphed is not None and not (exact or return_votes or self._profiler.measuring):
            given = tuple(None if tensor is None else tensor.shape[1:] for tensor in views[1:])
            return self.graphed((factor, tuple(views.crops.shape), given), *views), {}
        estimates = self.pipeline(views, factor, exact or self._exact)
        return estimates.packed(), dict(zip(members, estimates.votes, strict=True)) if return_votes else {}

    def _views(self, request: Request, members: list[int]) -> Views:
        """The pipeline's input for a group of images, on the device."""
        plans = [request.plans[image] for image in members]
        matrices = torch.stack([plan.matrix for plan in plans])
        known = [request.network_scale, request.previous, request.slopes]
        with self._profiler.stage("remap"):
            views = Views(
                self._crops([request.images[image] for image in members], plans),
                self._sent(matrices),
                *(None if tensor is None else self._sent(tensor[members]) for tensor in known),
            )
            if plans[0].lens is not None:
                lenses = [plan.lens for plan in plans if plan.lens is not None]
                views = views._replace(lenses=self._sent(torch.stack(lenses)))
            if request.both_sides[members[0]]:
                mirrored = matrices @ mirror_homography(self._size, matrices)
                views = views._replace(mirrored=self._sent(mirrored))
        return views

    def _launch(self, key: tuple[int, *tuple[Any, ...]], *views: Any) -> Tensor:
        """The pipeline as a function of a graph's key and tensors."""
        return self.pipeline(Views(*views), key[0]).packed()

    def _crops(self, images: list[Any], plans: list[ViewPlan]) -> Tensor:
        """Crop the visible parts of the images, as (B, h, w, 3) uint8 on the device."""
        parts = [as_tensor(image[plan.rows, plan.columns]) for image, plan in zip(images, plans, strict=True)]
        shape = self._crop_shape(plans[0])
        if len(parts) == 1 and parts[0].shape[:2] == shape and parts[0].device == self._device:
            return parts[0][None]
        pinned = self._device.type == "cuda" and not parts[0].is_cuda
        crops = torch.zeros(
            len(parts),
            *shape,
            parts[0].shape[-1],
            dtype=torch.uint8,
            device=parts[0].device,
            pin_memory=pinned,
        )
        for crop, part in zip(crops, parts, strict=True):
            crop[: part.shape[0], : part.shape[1]] = part
        return crops.to(self._device, non_blocking=True)

    def _sent(self, tensor: Tensor) -> Tensor:
        """Copy a small tensor to the device without synchronisation."""
        tensor = tensor.pin_memory() if self._device.type == "cuda" else tensor
        return tensor.to(self._device, non_blocking=True)


def as_tensor(image: Any) -> Tensor:
    """Convert an image to a tensor, without a copy where possible."""
    if isinstance(image, Tensor):
        return image
    # torch rejects negative strides and warns about read-only arrays.
    return torch.from_numpy(image if image.flags.writeable and min(image.strides) >= 0 else image.copy())
