"""A timing beside its peer's, in turn, so that their ratio holds while the machine's speed drifts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

WARMUP_ROUNDS = 2


class Paired(NamedTuple):
    """20th, 50th and 80th percentiles over the rounds."""

    seconds: list[float]
    ratios: list[float]  # the peer's seconds over ours, round by round

    def facts(self) -> dict[str, list[float]]:
        """As a benchmark's record keeps them."""
        return {
            "ms_20_50_80": [1e3 * value for value in self.seconds],
            "times_the_peer_20_50_80": self.ratios,
        }


def time_in_turn(benchmark: Any, run: Callable[[], object], peer: Callable[[], float], rounds: int) -> Paired:
    """Times `run`, which ends when the device has finished, and before each round the peer.

    Args:
        benchmark: the fixture of pytest-benchmark.
        run: what is timed.
        peer: runs the peer and returns the seconds it took.
        rounds: that count; two more come first.
    """
    peer_seconds: list[float] = []
    benchmark.pedantic(
        run, setup=lambda: peer_seconds.append(peer()), rounds=rounds, warmup_rounds=WARMUP_ROUNDS
    )
    seconds = np.array(benchmark.stats.stats.data)
    ratios = np.array(peer_seconds[-rounds:]) / seconds
    return Paired(*(np.percentile(values, [20, 50, 80]).tolist() for values in (seconds, ratios)))
