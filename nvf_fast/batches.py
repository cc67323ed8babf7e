"""Runs of a pipeline on batches of images within memory, as CUDA graphs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nvf_fast import ops
from nvf_fast.config import NVFConfig
from nvf_fast.kernels.network_views.reference import OFFSET, PITCH, ROW
from nvf_fast.pipeline import Pipeline, QueryOptions, Results, Views
from nvf_fast.requests import Request
from nvf_fast.runtime.cuda_graph import GraphedFunction, Recorder
from nvf_fast.runtime.profiling import Profiler

SLOTS = 2  # of host memory, so that one is filled while the other's frame runs
SMALLEST_BYTES = 2**22  # of a slot; it holds the crop of one hand in most images
ALIGNED = 64  # bytes; crops begin at multiples
LOG = logging.getLogger("nvf_fast")
_Votes = dict[int, tuple[Tensor, Tensor]]  # by image: points (V, 3) mm and votes (V, 21, 4)


class BatchRunner:
    """Runner of a pipeline on any images.

    Args:
        pipeline: the pipeline.
        config: of its network.
        device: of the pipeline.
        options: the dtype of the network's images, and the backend that samples them.
        profiler: measures the stages.
        recorder: records and replays runs, whose lists of points then have fixed sizes; an image that does
            not fit runs again. None sizes every list exactly, which synchronises with the device.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        config: NVFConfig,
        device: torch.device,
        options: QueryOptions,
        profiler: Profiler,
        recorder: Recorder | None = None,
    ) -> None:
        self.pipeline, self.retried = pipeline, 0
        self._config, self._device, self._options, self._profiler = config, device, options, profiler
        self._exact = recorder is None
        self._batch_size = pipeline.batch_size(self._exact)
        self.graphed = None if recorder is None else GraphedFunction(self._launch, recorder)
        self._lock = threading.Lock()
        self._slots = [_Slot(device) for _ in range(SLOTS)]
        self._arena = torch.empty(0, dtype=torch.uint8, device=device)  # copy of a slot, read by the graphs

    def submit(self, request: Request, return_votes: bool = False) -> Callable[[], Results]:
        """Launch the estimation of all images; the returned function waits for it."""
        parts = list(self._in_parts(request, return_votes))
        return lambda: self._finished(request, return_votes, parts)

    def network_images(self, request: Request) -> Tensor:
        """The views (B, C, S, S) of all images, normalised for networks, without mirror images."""
        with self._profiler.stage("remap"):
            return self._views(request, range(len(request.images)), mirrored=False).images

    def _finished(self, request: Request, return_votes: bool, parts: list[_Part]) -> Results:
        with self._profiler.stage("read"):
            rows = parts[0].read()  # the only synchronisation
            if len(parts) > 1:
                order = np.argsort([image for part in parts for image in part.members])
                rows = np.concatenate([rows, *(part.read() for part in parts[1:])])[order]
        results = Results.unpacked(rows)
        votes: _Votes = {}
        for part in parts:
            votes |= part.votes
        if results.needs_retry.any():
            rows = rows.copy()
            for image in results.needs_retry.nonzero()[0].tolist():
                self.retried += 1
                again = self._run(request, [image], return_votes, exact=True)
                rows[image] = again.read()[0]
                votes |= again.votes
            results = Results.unpacked(rows)
        results.votes.extend(votes[image] for image in sorted(votes))
        return results

    def _in_parts(self, request: Request, return_votes: bool) -> Iterator[_Part]:
        """Launch images of known and of unknown side, as many as fit into memory together."""
        batch_size, both_sides = self._batch_size, request.both_sides
        groups = [[i for i, both in enumerate(both_sides) if both is each] for each in {*both_sides}]
        for rest in groups:
            while rest:
                members = rest[:batch_size]
                try:
                    part = self._run(request, members, return_votes)
                except torch.OutOfMemoryError:
                    if len(members) == 1:
                        raise
                    batch_size = len(members) // 2
                    LOG.warning(
                        "out of memory on %s: continuing with %d images at a time", self._device, batch_size
                    )
                    continue
                yield part
                rest = rest[len(members) :]

    def _run(self, request: Request, members: list[int], return_votes: bool, exact: bool = False) -> _Part:
        """Launch a group of images."""
        if self.graphed is not None and not (exact or return_votes or self._profiler.measuring):
            return _Part(members, self._replay(self.graphed, request, members), {})
        with self._profiler.stage("remap"):
            views = self._views(request, members, request.both_sides[members[0]])
        estimates = self.pipeline(views, exact or self._exact)
        rows = estimates.rows  # alone, since the votes take memory
        votes = dict(zip(members, estimates.votes, strict=True)) if return_votes else {}
        return _Part(members, lambda: rows.cpu().numpy(), votes)

    def _replay(
        self, graphed: GraphedFunction, request: Request, members: list[int]
    ) -> Callable[[], np.ndarray]:
        """Copy a group of images to the device, launch its graph, and begin to copy the results back."""
        layout = self._layout(request, len(members), request.both_sides[members[0]])
        with self._lock:
            slot = self._slots[0]
            self._slots = [*self._slots[1:], slot]
            slot.read()  # the results of its last use, before they are overwritten
            staged = _Staged.of(request, members, layout.pixels)
            if staged.end > len(self._arena):
                graphed.forget()  # graphs read the arena that they were recorded with
                capacity = max(SMALLEST_BYTES, 1 << (staged.end - 1).bit_length())
                self._arena = torch.empty(capacity, dtype=torch.uint8, device=self._device)
            staged.write(slot.memory(staged.end), request, members, layout)

            def load() -> None:
                self._arena[: staged.end].copy_(slot.host[: staged.end], non_blocking=True)
                staged.write_resident(self._arena)

            return graphed(layout, load, slot.receive)

    def _launch(self, layout: _Layout) -> Tensor:
        """The pipeline as a function of a graph's key; it reads the arena."""
        return self.pipeline(self._views_in(self._arena, layout)).rows

    def _views(self, request: Request, members: Sequence[int], mirrored: bool) -> Views:
        """The pipeline's input for a group of images, in memory of its own."""
        if self._device.type == "cpu":
            rows = request.rows[list(members)]
            pixels = [
                _flat(request.images[image], request.plans[image], row)
                for image, row in zip(members, rows, strict=True)
            ]
            images = self._sampled(torch.from_numpy(rows), pixels, mirrored)
            given = request.network_scale, request.previous, request.slopes
            known = [None if each is None else torch.from_numpy(each[list(members)]) for each in given]
            return Views(images, *known)
        layout = self._layout(request, len(members), mirrored)
        staged = _Staged.of(request, members, layout.pixels)
        host = _pinned(staged.end, self._device)
        staged.write(host.numpy(), request, members, layout)
        there = host.to(self._device, non_blocking=True)
        staged.write_resident(there)
        return self._views_in(there, layout)

    def _layout(self, request: Request, count: int, mirrored: bool) -> _Layout:
        return _Layout(
            count,
            mirrored,
            request.network_scale is not None,
            request.previous is not None,
            request.slopes is not None,
            self._config.joints,
        )

    def _views_in(self, memory: Tensor, layout: _Layout) -> Views:
        """The pipeline's input from staged memory, without synchronisation."""
        rows = memory[: layout.numbers].view(torch.float64).view(layout.views, ROW)
        numbers = memory[layout.numbers : layout.end].view(torch.float32)
        views, joints = layout.views, layout.joints
        slopes, scale, previous = numbers.split([views, views, views * joints * 3])
        return Views(
            self._sampled(rows, [memory], layout.mirrored),
            scale if layout.scale else None,
            previous.view(views, joints, 3) if layout.previous else None,
            slopes if layout.slopes else None,
        )

    def _sampled(self, rows: Tensor, pixels: list[Tensor], mirrored: bool) -> Tensor:
        return ops.network_views(
            rows,
            pixels,
            size=self._config.input_size,
            channels=self._config.image_channels,
            mirrored=mirrored,
            dtype=self._options.dtype,
            backend=self._options.backend,
        )


class _Part(NamedTuple):
    """A launched group of images: their indices, their packed rows, and their votes if requested."""

    members: list[int]
    read: Callable[[], np.ndarray]
    votes: _Votes


class _Layout(NamedTuple):
    """The inputs of a graph, and their places in staged memory: rows, then numbers, then pixels."""

    views: int
    mirrored: bool
    scale: bool
    previous: bool
    slopes: bool
    joints: int

    @property
    def numbers(self) -> int:
        """Where float32 numbers begin: slopes, hand scales and previous joints."""
        return self.views * ROW * 8

    @property
    def end(self) -> int:
        return self.numbers + self.views * (2 + 3 * self.joints) * 4

    @property
    def pixels(self) -> int:
        return -(-self.end // ALIGNED) * ALIGNED


class _Staged(NamedTuple):
    """The places of crops in staged memory."""

    crops: list[tuple[int, Any]]  # the byte at which each begins, and the crop (h, w, C) uint8
    end: int

    @classmethod
    def of(cls, request: Request, members: Sequence[int], begin: int) -> _Staged:
        crops = []
        for image in members:
            plan = request.plans[image]
            crop = request.images[image][plan.rows, plan.columns]
            crops.append((begin, crop))
            begin += -(-crop.shape[0] * crop.shape[1] * crop.shape[2] // ALIGNED) * ALIGNED
        return cls(crops, begin)

    def write(self, memory: np.ndarray, request: Request, members: Sequence[int], layout: _Layout) -> None:
        """Write everything but crops that lie on a device."""
        rows = memory[: layout.numbers].view(np.float64).reshape(layout.views, ROW)
        rows[:] = request.rows[list(members)]
        numbers = memory[layout.numbers : layout.end].view(np.float32)
        count = layout.views
        given = (
            (request.slopes, numbers[:count]),
            (request.network_scale, numbers[count : 2 * count]),
            (request.previous, numbers[2 * count :].reshape(count, -1, 3)),
        )
        for values, place in given:
            if values is not None:
                place[:] = values[list(members)]
        for row, (begin, crop) in zip(rows, self.crops, strict=True):
            row[OFFSET], row[PITCH] = begin, crop.shape[1] * crop.shape[2]
            if not isinstance(crop, Tensor) or crop.device.type == "cpu":
                _place(memory, begin, crop)[:] = crop

    def write_resident(self, memory: Tensor) -> None:
        """Write the crops that lie on a device, on that device."""
        for begin, crop in self.crops:
            if isinstance(crop, Tensor) and crop.device.type != "cpu":
                _place(memory, begin, crop).copy_(crop, non_blocking=True)


class _Slot:
    """Host memory of one launch, pinned for CUDA: what is copied to the device, and the results.

    Args:
        device: that it is copied to.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.host = torch.empty(0, dtype=torch.uint8)
        self._results = torch.empty(0)
        self.read: Callable[[], Any] = lambda: None  # waits for the results of the last launch

    def memory(self, size: int) -> np.ndarray:
        """The memory to copy to the device, of at least `size` bytes."""
        if size > len(self.host):
            self.host = _pinned(max(SMALLEST_BYTES, 1 << (size - 1).bit_length()), self._device)
        memory: np.ndarray = self.host.numpy()
        return memory

    def receive(self, packed: Tensor, mark: Callable[[], Callable[[], None]]) -> Callable[[], np.ndarray]:
        """Begin to copy results (B, K) float32 to the host; the returned function waits and reads them."""
        if self._results.numel() < packed.numel():
            self._results = _pinned(4 * packed.numel(), self._device).view(torch.float32)
        place = self._results[: packed.numel()].view(packed.shape)
        place.copy_(packed, non_blocking=True)
        wait = mark()
        rows: list[np.ndarray] = []

        def read() -> np.ndarray:
            if not rows:
                wait()
                rows.append(place.numpy().copy())
            return rows[0]

        self.read = read
        return read


def _flat(image: Any, plan: Any, row: np.ndarray) -> Tensor:
    """The bytes of an image on the CPU, or, if they are not contiguous, of its crop, with `row` adapted."""
    if isinstance(image, Tensor):
        if image.device.type == "cpu" and image.is_contiguous():
            return image.view(-1)
        crop = image[plan.rows, plan.columns].cpu().contiguous()
    else:
        # torch warns about read-only arrays.
        if image.flags.c_contiguous and image.flags.writeable:
            return torch.from_numpy(image).view(-1)
        crop = torch.from_numpy(image[plan.rows, plan.columns].copy())
    row[OFFSET], row[PITCH] = 0, crop.shape[1] * crop.shape[2]
    return crop.view(-1)


def _place(memory: Any, begin: int, crop: Any) -> Any:
    """The view of flat memory that holds a crop."""
    height, width, channels = crop.shape
    return memory[begin : begin + height * width * channels].reshape(height, width, channels)


def _pinned(size: int, device: torch.device) -> Tensor:
    """Host memory, pinned for copies to a CUDA device."""
    return torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda")


def as_tensor(image: Any) -> Tensor:
    """Convert an image to a tensor, without a copy where possible."""
    if isinstance(image, Tensor):
        return image
    # torch rejects negative strides and warns about read-only arrays.
    return torch.from_numpy(image if image.flags.writeable and min(image.strides) >= 0 else image.copy())
