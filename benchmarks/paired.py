"""Interleaved timings of a function and its baseline, whose ratio is robust to drifts of speed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

WARMUP_ROUNDS = 2


class Paired(NamedTuple):
    """20th, 50th and 80th percentiles over the rounds."""

    seconds: list[float]
    ratios: list[float]  # the baseline's seconds over the function's, by round

    def metadata(self) -> dict[str, list[float]]:
        """Entries of a benchmark's record."""
        return {
            "ms_20_50_80": [1e3 * value for value in self.seconds],
            "times_the_peer_20_50_80": self.ratios,
        }


def time_in_turn(
    benchmark: Any, run: Callable[[], object], baseline: Callable[[], float], rounds: int
) -> Paired:
    """Time `run`, which must synchronise, and the baseline before each round.

    Args:
        benchmark: the fixture of pytest-benchmark.
        run: the timed function.
        baseline: runs the baseline and returns its seconds.
        rounds: number of measured rounds, after two warm-up rounds.
    """
    baseline_seconds: list[float] = []
    benchmark.pedantic(
        run, setup=lambda: baseline_seconds.append(baseline()), rounds=rounds, warmup_rounds=WARMUP_ROUNDS
    )
    seconds = np.array(benchmark.stats.stats.data)
    ratios = np.array(baseline_seconds[-rounds:]) / seconds
    return Paired(*(np.percentile(values, [20, 50, 80]).tolist() for values in (seconds, ratios)))
