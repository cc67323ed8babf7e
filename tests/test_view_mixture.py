"""Training views from several sources, and training on them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from nvf_fast.checkpoint import load_checkpoint
from nvf_fast.data.hand_views import HandViews
from nvf_fast.model import NVF
from nvf_fast.training import loop
from nvf_fast.training.config import TrainingConfig, default
from nvf_fast.training.view_augmentation import with_blank_views, with_cropped_hands
from nvf_fast.training.view_mixture import ViewMixture, ViewMixtureConfig
from tests.test_hand_losses import SIZE, views
from tests.test_unet import SMALL
from tests.training_cases import assert_same_state, saved_training, state_of


def source(shade: int) -> object:
    """Return views whose first pixel identifies their source."""

    def draw(count: int, random: np.random.Generator) -> HandViews:
        drawn = views(count, int(random.integers(2**31)))
        drawn.images[:, 0, 0] = shade
        return drawn

    return draw


def mixture(seed: int = 0, **proportions: float) -> ViewMixture:
    names = ("rendered", "photographs", "empty")
    sources = {name: source(10 * (k + 1)) for k, name in enumerate(names)}
    config = ViewMixtureConfig(**({"left": 0.0, "cut": 0.0, "blank": 0.0} | proportions))
    return ViewMixture(config, sources, seed, "made up")  # type: ignore[arg-type]


def test_proportions_are_kept() -> None:
    drawn = mixture(rendered=0.5, photographs=0.25, empty=0.25).__getitems__(list(range(400)))
    counts = [int((drawn.images[:, 0, 0, 0] == shade).sum()) for shade in (10, 20, 30)]
    assert sum(counts) == len(drawn) == 400
    # Standard deviations of 400 draws are 10 and 9.
    assert np.allclose(counts, (200, 100, 100), atol=45)


def test_batch_depends_on_indices_and_seed_alone() -> None:
    first, again = (mixture().__getitems__([3, 1, 2]) for _ in range(2))
    other, reseeded = mixture().__getitems__([1, 3, 2]), mixture(seed=1).__getitems__([3, 1, 2])
    assert np.array_equal(first.joints, again.joints)
    assert not np.array_equal(first.joints, other.joints)
    assert not np.array_equal(first.joints, reseeded.joints)


def test_refuses_mismatched_sources() -> None:
    with pytest.raises(ValueError, match="no proportion for the sources"):
        ViewMixture(ViewMixtureConfig(), {"drawings": source(1)}, 0, "")  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="no source with a positive proportion"):
        ViewMixture(ViewMixtureConfig(), {}, 0, "")
    with pytest.raises(ValueError, match=r"must lie in \[0, inf\), got -"):
        ViewMixtureConfig(empty=-1)
    with pytest.raises(ValueError, match="must be positive"):
        ViewMixtureConfig(rendered=0, photographs=0, dataset=0)
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        ViewMixtureConfig(left=1.5)


def test_blank_views_are_dark_and_of_one_colour() -> None:
    empty = replace(views(80), boxes=np.full((80, 2, 4), np.nan, np.float32))
    posed = views(20, seed=1)
    both = with_blank_views(HandViews.concatenate([empty, posed]), 1.0, np.random.default_rng(0))
    np.testing.assert_array_equal(both.images[80:], posed.images)
    blank = both.images[:80]
    black = (blank == 0).all((1, 2, 3))
    means = blank.reshape(80, -1, 3).mean(1)
    assert 5 < black.sum() < 55 and means.max() > 100 > np.median(means)
    assert blank.std((1, 2))[40:].max() < 10  # other views have borders
    some = with_blank_views(empty, 0.5, np.random.default_rng(0)).images
    assert 25 < (some != empty.images).any((1, 2, 3)).sum() < 55


def test_mirrored_views_only_change_the_side() -> None:
    plain, mirrored = (
        mixture(left=0).__getitems__(list(range(60))),
        mixture(left=1).__getitems__(list(range(60))),
    )
    rows = plain.trust > 0
    assert rows.any() and (mirrored.trust == 0).all()
    np.testing.assert_array_equal(mirrored.left[rows], ~plain.left[rows])
    np.testing.assert_array_equal(mirrored.images[rows], plain.images[rows][:, :, ::-1])
    np.testing.assert_array_equal(mirrored.images[~rows], plain.images[~rows])
    # Column x becomes S - 1 - x, for the edges of boxes too.
    np.testing.assert_allclose(mirrored.boxes[rows, 0, 0], SIZE - 1 - plain.boxes[rows, 0, 2], rtol=1e-6)
    np.testing.assert_allclose(mirrored.boxes[rows, 0, 1::2], plain.boxes[rows, 0, 1::2])


def test_truncation_blackens_one_side_and_keeps_labels() -> None:
    plain = views(64, 0)
    plain.images[:] = 200
    cut = with_cropped_hands(plain, 1.0, np.random.default_rng(0))
    assert (plain.images == 200).all()
    for name in ("joints", "points", "distances", "boxes", "trust"):
        np.testing.assert_array_equal(getattr(cut, name), getattr(plain, name))
    black = (cut.images == 0).all(-1)
    for mask, box in zip(black, plain.boxes[:, 0], strict=True):
        x0, y0, x1, y1 = np.clip(box.round().astype(int), 0, SIZE - 1)
        inside = mask[y0 : y1 + 1, x0 : x1 + 1].mean()
        assert 0 <= inside < 0.95 and mask.any() and not mask.all()
    assert black.mean() > 0.1


def training(steps: int) -> TrainingConfig:
    preset = default()
    optimisation = replace(preset.optimisation, batch=4, parts=2, steps=steps, warmup_steps=1)
    return replace(preset, model=SMALL, optimisation=optimisation, log_every=2, save_every=2)


def test_resumed_training_on_hand_views_is_bitwise_equal(tmp_path: Path) -> None:
    whole = loop.train(training(4), mixture(), tmp_path / "whole", progress=False)
    for _ in range(2):
        loop.train(training(4), mixture(), tmp_path / "parts", minutes=0, progress=False)
    loop.train(training(4), mixture(), tmp_path / "parts", progress=False)
    assert_same_state(state_of(tmp_path / "whole"), state_of(tmp_path / "parts"))

    exported, info = load_checkpoint(tmp_path / "whole" / "checkpoint")
    assert isinstance(exported, NVF) and info["training"]["preset"] == "default"
    for name, value in whole.model.state_dict().items():
        # float16 keeps 11 bits.
        torch.testing.assert_close(exported.state_dict()[name], value, rtol=2**-11, atol=1e-7)


def test_averages_running_statistics(tmp_path: Path) -> None:
    result = loop.train(training(3), mixture(), tmp_path, progress=False)
    fresh = NVF(SMALL).state_dict()
    moved = [name for name, value in result.model.state_dict().items() if "norm.mean" in name]
    assert moved and all((result.model.state_dict()[name] != fresh[name]).any() for name in moved)


def test_starts_from_a_checkpoint_of_the_same_network(tmp_path: Path) -> None:
    loop.train(training(2), mixture(), tmp_path / "first", progress=False)
    saved = saved_training(training(2), tmp_path / "second", mixture(seed=1))
    saved.start_from(tmp_path / "first" / "checkpoint")
    stored, _ = load_checkpoint(tmp_path / "first" / "checkpoint")
    assert_same_state(dict(saved.trainer.model.state_dict()), dict(stored.state_dict()))
