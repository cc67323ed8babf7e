"""Counter-based random numbers, equal on every machine."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

BLOCK = 512  # words fetched at a time
STANDARD_NORMAL = NormalDist()

Item = TypeVar("Item")


class Draws:
    """Random numbers of B items, each with its own stream identified by key, purpose and index.

    A stream is 64-bit words of the counter-based generator Philox (J. Salmon et al., "Parallel random
    numbers: as easy as 1, 2, 3", SC 2011). Only the order of the calls determines the words of each float64
    number, so that an item does not depend on the other items.

    Args:
        key: identifies the set of streams.
        purpose: identifies the use, so that the hand and the scene of one image have independent streams.
        indices: of the items.
    """

    def __init__(self, key: int | str, purpose: str, indices: Sequence[int]) -> None:
        self._streams = [_philox(key, purpose, index) for index in indices]
        self._words = np.empty((len(self._streams), 0), np.uint64)
        self._taken = 0

    def __len__(self) -> int:
        return len(self._streams)

    @property
    def digest(self) -> bytes:
        """SHA-256 of every word taken so far."""
        return hashlib.sha256(self._words[:, : self._taken].astype("<u8").tobytes()).digest()

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """(B, *shape) float64, uniform in (low, high)."""
        return low + (high - low) * self._open(*shape)

    def normal(self, *shape: int) -> Tensor:
        """(B, *shape) float64, standard normal, by the inverse of its distribution."""
        return torch.special.ndtri(self._open(*shape))

    def chance(self, probability: float, *shape: int) -> Tensor:
        """(B, *shape) bool."""
        return self._open(*shape) < probability

    def below(self, count: int, *shape: int) -> Tensor:
        """(B, *shape) int64, uniform over 0, 1, ..., count - 1."""
        return (count * self._open(*shape)).long()

    def _open(self, *shape: int) -> Tensor:
        """(B, *shape) float64, uniform in (0, 1)."""
        count = int(np.prod(shape, dtype=int))
        while self._taken + count > self._words.shape[1]:
            more = np.stack([stream.random_raw(BLOCK) for stream in self._streams])
            self._words = np.concatenate([self._words, more], 1)
        words = self._words[:, self._taken : self._taken + count]
        self._taken += count
        return torch.from_numpy(_open(words)).reshape(-1, *shape)


class Stream:
    """Random numbers of one item, for code that draws a few at a time.

    Streams and words are those of `Draws`.

    Args:
        key: identifies the set of streams.
        purpose: identifies the use.
        index: of the item.
    """

    def __init__(self, key: int | str, purpose: str, index: int) -> None:
        self._philox = _philox(key, purpose, index)
        self._waiting: list[float] = []

    def random(self) -> float:
        """Uniform in (0, 1)."""
        if not self._waiting:
            self._fetch()
        return self._waiting.pop()

    def uniform(self, low: float, high: float) -> float:
        """Uniform in (low, high)."""
        return low + (high - low) * self.random()

    def normal(self, deviation: float = 1.0) -> float:
        """Normal of mean 0, by the inverse of its distribution."""
        return deviation * STANDARD_NORMAL.inv_cdf(self.random())

    def chance(self, probability: float) -> bool:
        return self.random() < probability

    def below(self, count: int) -> int:
        """Uniform over 0, 1, ..., count - 1."""
        return int(count * self.random())

    def choose(self, items: Sequence[Item]) -> Item:
        return items[self.below(len(items))]

    def uniforms(self, low: float, high: float, *shape: int) -> np.ndarray:
        """(*shape) float64, uniform in (low, high)."""
        return low + (high - low) * np.array(self._take(math.prod(shape))).reshape(shape)

    def normals(self, *shape: int) -> np.ndarray:
        """(*shape) float64, standard normal."""
        values = [STANDARD_NORMAL.inv_cdf(value) for value in self._take(math.prod(shape))]
        return np.array(values).reshape(shape)

    def _take(self, count: int) -> list[float]:
        """The next numbers, uniform in (0, 1)."""
        while len(self._waiting) < count:
            self._fetch()
        first = len(self._waiting) - count
        taken = self._waiting[first:][::-1]
        del self._waiting[first:]
        return taken

    def _fetch(self) -> None:
        """Prepend a block of numbers to the buffer, which is read from its end."""
        self._waiting[:0] = _open(self._philox.random_raw(BLOCK))[::-1].tolist()


def _open(words: np.ndarray) -> np.ndarray:
    """Numbers in (0, 1), ends excluded: odd multiples of 2^-53."""
    return ((words >> np.uint64(12)) * 2.0 + 1.0) * 2.0**-53


def _philox(key: int | str, purpose: str, index: int) -> np.random.Philox:
    digest = hashlib.sha256(f"nvf_fast {purpose} {key}".encode()).digest()
    # The lowest of the counter's four words counts within a stream, the next one separates streams.
    return np.random.Philox(key=np.frombuffer(digest[:16], "<u8"), counter=[0, int(index), 0, 0])
