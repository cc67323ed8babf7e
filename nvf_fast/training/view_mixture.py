"""Training views drawn on demand from several sources in fixed proportions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import numpy as np

from nvf_fast.data.hand_views import HandViews
from nvf_fast.runtime.arguments import check_ranges
from nvf_fast.training.loader import mixed_seed
from nvf_fast.training.view_augmentation import with_blank_views, with_cropped_hands, with_left_hands

Source = Callable[[int, np.random.Generator], HandViews]
"""Sampler of the given number of views with a generator's random numbers."""


@dataclass(frozen=True)
class ViewMixtureConfig:
    """Composition of the hand views in training.

    Proportions are relative to each other; those of missing sources are ignored.
    """

    rendered: float = 0.17  # proportion of close views of rendered hands
    rendered_wide: float = 0.11  # proportion of wide views with one or two rendered hands
    empty: float = 0.09  # proportion of views without a hand
    photographs: float = 0.28  # proportion of close views of labelled photographs
    photographs_wide: float = 0.05  # proportion of wide views of labelled photographs
    dataset: float = 0.3  # proportion of views of a data set's boxes
    left: float = 0.28  # ratio of the posed views that are mirrored to left hands, so that sides are learned
    # ratio of the posed views in which a straight line crops the hand, as an image border does
    cut: float = 0.1
    blank: float = 0.12  # ratio of the empty views that are featureless
    # standard deviation of each view's log gain per channel, and of its offset, as a fraction of half the
    # range
    colour: float = 0.06
    epoch: int = 2**18  # views after which the log counts another epoch; none is drawn twice

    def __post_init__(self) -> None:
        ratios = dict.fromkeys(("left", "cut", "blank"), "[0, 1]")
        check_ranges(self, **dict.fromkeys(vars(self), "[0, inf)") | ratios | {"epoch": "[1, inf)"})
        if self.rendered + self.photographs + self.dataset == 0:
            raise ValueError("rendered, photographs or dataset must be positive: no other view shows a pose")


class ViewMixture:
    """A mixture of sources of views; a batch's indices are the seed of its views.

    Args:
        config: the proportions.
        sources: by the names of the proportions; the proportion of a name without a source is 0.
        seed: of all views.
        fingerprint: identifies the material of the sources.

    Raises:
        ValueError: a source has no proportion, or none is left.
    """

    def __init__(
        self, config: ViewMixtureConfig, sources: Mapping[str, Source], seed: int, fingerprint: str
    ) -> None:
        known = ("rendered", "rendered_wide", "empty", "photographs", "photographs_wide", "dataset")
        if unknown := sorted(sources.keys() - set(known)):
            raise ValueError(f"views have no proportion for the sources {unknown}, only for {known}")
        weights = {name: getattr(config, name) for name in known if name in sources}
        total = sum(weights.values())
        if not total > 0:
            raise ValueError(f"no source with a positive proportion: {weights}")
        self.config, self.sources, self.seed = config, dict(sources), seed
        self._names = list(weights)
        self._proportions = np.array(list(weights.values())) / total
        identity = json.dumps([asdict(config), seed, self._names, fingerprint], sort_keys=True)
        self.fingerprint = hashlib.sha256(identity.encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return self.config.epoch

    def __getitems__(self, indices: list[int]) -> HandViews:
        """Draw the views of these indices, deterministically for a list of them."""
        random = np.random.default_rng(mixed_seed(self.seed, *indices))
        counts = random.multinomial(len(indices), self._proportions)
        due = [(name, int(count)) for name, count in zip(self._names, counts, strict=True) if count]
        drawn = [self.sources[name](count, random) for name, count in due]
        views = with_left_hands(HandViews.concatenate(drawn), self.config.left, random)
        views = with_cropped_hands(views, self.config.cut, random)
        return with_blank_views(views, self.config.blank, random)
