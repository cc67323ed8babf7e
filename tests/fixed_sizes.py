"""Run an estimator with fixed sizes, as on CUDA, and record its runs without a device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor

from nvf_fast.batches import BatchRunner
from nvf_fast.estimator import PoseEstimator
from nvf_fast.runtime.profiling import Profiler


class LaunchByLaunch:
    """Recorder that calls each function again instead of replaying a graph."""

    def record(self, run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        output = run()

        def run_again() -> None:
            output.copy_(run())

        return run_again, output

    def finish(self) -> None:
        pass

    def mark(self) -> Callable[[], None]:
        return lambda: None

    @contextmanager
    def in_order(self) -> Iterator[None]:
        yield


def with_fixed_sizes(estimator: PoseEstimator) -> PoseEstimator:
    """Switch the estimator to one recorded run per number of images."""
    estimator.runner = BatchRunner(
        estimator.runner.pipeline,
        estimator.model.config,
        estimator.device,
        estimator.options,
        Profiler(estimator.device),
        LaunchByLaunch(),
    )
    return estimator
