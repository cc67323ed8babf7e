"""The best predictions without an image: baselines that every method must beat."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from nvf_fast.data.catalogue import DataConfig
from nvf_fast.evaluation import metrics
from nvf_fast.synthetic.dataset import V2
from nvf_fast.synthetic.placement import HandDistribution

FITTED_ON, SEED = 2048, 123


def mean_pose(truth: np.ndarray) -> np.ndarray:
    """The pose (21, 3) mm of least mean joint error to truth (N, 21, 3): each joint's geometric median."""
    centre = truth.mean(0)
    for _ in range(100):  # Weiszfeld's iteration
        weight = 1 / np.maximum(np.linalg.norm(truth - centre, axis=-1, keepdims=True), 1e-6)
        centre = (truth * weight).sum(0) / weight.sum(0)
    return centre


def mean_shape(truth: np.ndarray) -> np.ndarray:
    """The pose (21, 3) mm best after similarity alignment: the mean of all poses aligned to it, iterated."""
    shape = truth[0]
    for _ in range(10):
        aligned = metrics.rigid_align(truth, np.broadcast_to(shape, truth.shape))
        shape = aligned.mean(0)
        shape = shape * np.linalg.norm(truth[0] - truth[0].mean(0)) / np.linalg.norm(shape - shape.mean(0))
    return shape


@lru_cache(maxsize=8)
def other_hands(distribution: HandDistribution | None = None, count: int = FITTED_ON) -> np.ndarray:
    """Joints (count, 21, 3) float64 mm of synthetic hands of no data set, to fit mean poses on.

    The array is cached and must not be changed.
    """
    from nvf_fast.synthetic.reference_images import draw_joints

    return draw_joints(SEED, range(count), distribution or HandDistribution())


@lru_cache(maxsize=8)
def fallback_pose(config: DataConfig) -> np.ndarray:
    """The mean pose (21, 3) mm of synthetic hands, of the data set's distribution if it is synthetic.

    The array is cached and must not be changed.
    """
    distributions = {"synthetic": config.synthetic.distribution, "synthetic-v2": V2.distribution}
    return mean_pose(other_hands(distributions.get(config.dataset)))
