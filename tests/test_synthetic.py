"""Rendered sets: determinism, agreement of picture and labels, the cache."""

from pathlib import Path

import pytest
import torch

from nvf_fast.data import synthetic
from nvf_fast.data.hand import HandDistribution, sample_hands
from nvf_fast.data.render import _march, _rays, render_hand
from nvf_fast.data.synthetic import SyntheticConfig, SyntheticHands


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "CHUNK", 4)


def test_a_seed_gives_one_set() -> None:
    config = SyntheticConfig(count=6, seed=3, size=64)
    first, second = SyntheticHands(config), SyntheticHands(config)
    assert torch.equal(first.images(range(6)), second.images([0, 1, 2, 3, 4, 5]))
    assert torch.equal(first.hands([5]).nodes, second.hands([5]).nodes)
    assert not torch.equal(
        first.images([0]), SyntheticHands(SyntheticConfig(count=6, seed=4, size=64)).images([0])
    )


def test_the_cache_gives_back_what_was_rendered(tmp_path: Path) -> None:
    config = SyntheticConfig(count=5, seed=1, size=32)
    cached = SyntheticHands(config, tmp_path)
    cached.render(processes=1, progress=False)
    assert len(list((tmp_path / config.fingerprint).glob("*.safetensors"))) == 2
    fresh = SyntheticHands(config)
    again = SyntheticHands(config, tmp_path)
    assert torch.equal(again.images(torch.arange(5)), fresh.images(range(5)))
    assert torch.equal(again.hands([4]).joints, fresh.hands([4]).joints)


def test_a_damaged_cache_file_is_named(tmp_path: Path) -> None:
    config = SyntheticConfig(count=2, seed=1, size=32)
    cached = SyntheticHands(config, tmp_path)
    cached.images([0])
    file = next((tmp_path / config.fingerprint).glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=file.name):
        SyntheticHands(config, tmp_path).images([0])


def test_the_outline_agrees_with_the_distance() -> None:
    """A pixel is covered where its ray comes within the surface, uncovered where it stays away."""
    hand = sample_hands(3, torch.Generator().manual_seed(2), HandDistribution())[1:2]
    size = 64
    rays = _rays(size)
    index, points, coverage = _march(hand, rays, size)
    assert (hand.signed_distance(points[None])[0].abs() < 0.6 * points[:, 2] * 224 / 480 / size + 0.3).all()
    depths = torch.linspace(float(hand.nodes[..., 2].min()) - 25, float(hand.nodes[..., 2].max()) + 25, 300)
    along = rays[:, None] * depths[:, None]
    nearest = hand.signed_distance(along.reshape(1, -1, 3)).reshape(size * size, -1).amin(-1)
    width = 224 / 480 / size * hand.joints[0, :, 2].mean()
    covered = torch.zeros(size * size)
    covered[index] = coverage
    assert (covered[nearest < -0.6 * width] == 1).all() and (covered[nearest > 0.75 * width] == 0).all()


def test_pictures_are_varied_and_well_formed() -> None:
    generator = torch.Generator().manual_seed(0)
    hands = sample_hands(4, generator)
    pictures = torch.stack([render_hand(hands[i : i + 1], 48, generator) for i in range(4)])
    assert pictures.shape == (4, 3, 48, 48) and pictures.dtype == torch.uint8
    assert pictures.float().std() > 20
    with pytest.raises(ValueError, match="one hand"):
        render_hand(hands, 48, generator)


def test_indices_outside_the_set_are_refused() -> None:
    with pytest.raises(IndexError, match=r"\[0, 2\)"):
        SyntheticHands(SyntheticConfig(count=2, size=32)).images([2])
