"""Lists of points whose lengths depend on device data: fixed capacities, with a flag on overflow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from nvf_fast import ops
from nvf_fast.ops import Selection


class Buffers:
    """Factory of the lists of one run over a batch of images.

    Fixed capacities avoid synchronisation, as a CUDA graph requires. An image whose list overflows, or whose
    search is rejected, is marked, and `BatchRunner` runs it again with lists of exact lengths, which
    synchronise.

    Args:
        batch: number of images.
        device: of the lists.
        exact: whether to size every list exactly and ignore the requested capacities.
        backend: of the operations; None chooses by device.
    """

    def __init__(
        self, batch: int, device: torch.device, exact: bool, backend: ops.Backend | None = None
    ) -> None:
        self.exact, self._backend = exact, backend
        self._batch, self._device = batch, device
        self._marks: Tensor | None = None  # a launch less than an empty mask and its union with the first one

    @property
    def needs_retry(self) -> Tensor:
        """(B,) bool, images that must run again with exact lists."""
        if self._marks is None:
            return torch.zeros(self._batch, dtype=torch.bool, device=self._device)
        return self._marks

    def compact(self, mask: Tensor, capacity: int) -> Selection:
        """The positions where a mask (B, N) bool is true; see `ops.compact`."""
        return self._marked(ops.compact(mask, self._capacity(mask, capacity), backend=self._backend))

    def select_voters(self, sdf: Tensor, surface_mm: float, capacity: int) -> Selection:
        """The points of sdf (B, N) mm near the surface, one slot at least; see `ops.select_voters`."""
        slots = self._capacity(sdf, capacity)
        selection = self._marked(ops.select_voters(sdf, surface_mm, slots, backend=self._backend))
        if selection.indices.shape[1] == 0:
            return selection._replace(indices=pad(selection.indices, (0, 1), value=-1))
        return selection

    def reject(self, images: Tensor) -> None:
        """Mark further images, (B,) bool."""
        self._marks = images if self._marks is None else self._marks | images

    def _capacity(self, values: Tensor, capacity: int) -> int | None:
        return None if self.exact else max(1, min(capacity, values.shape[1]))

    def _marked(self, selection: Selection) -> Selection:
        self.reject(selection.overflow)
        return selection


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
