"""Rendered sets: determinism, agreement of picture and labels, the cache."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from nvf_fast.data import synthetic
from nvf_fast.data.scenes import SceneDistribution
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


def test_a_sample_is_picture_camera_and_labels() -> None:
    data = SyntheticHands(SyntheticConfig(count=6, seed=3, size=64), split="evaluation")
    sample = data[5]
    assert (data.name, sample.id, sample.side) == ("synthetic", "evaluation/00000005", "right")
    assert sample.image.shape == (64, 64, 3) and sample.image.dtype == np.uint8
    assert torch.equal(torch.from_numpy(sample.image).permute(2, 0, 1), data.images([5])[0])
    assert sample.intrinsics.dtype == np.float64
    np.testing.assert_allclose(sample.intrinsics[0], [480 * 64 / 224, 0, 32])
    assert sample.joints is not None and sample.root is not None and sample.surface is not None
    assert torch.equal(sample.joints, data.hands([5]).joints[0]) and torch.equal(
        sample.root, sample.joints[0]
    )
    assert sample.hand_scale == pytest.approx(float((sample.joints[10] - sample.joints[9]).norm()))
    assert torch.equal(sample.surface.joints[0], sample.joints)


def test_pictures_do_not_depend_on_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    config = SyntheticConfig(count=6, seed=3, size=32)
    in_fours = SyntheticHands(config).images(range(6))
    monkeypatch.setattr(synthetic, "CHUNK", 3)
    assert torch.equal(SyntheticHands(config).images(range(6)), in_fours)


def test_the_fingerprint_tells_scenes_apart_and_lengths_not() -> None:
    plain = SyntheticConfig()
    assert replace(plain, count=3).fingerprint == plain.fingerprint
    assert replace(plain, scene=SceneDistribution(objects=0.5)).fingerprint != plain.fingerprint


def test_indices_outside_the_set_are_refused() -> None:
    with pytest.raises(IndexError, match=r"\[0, 2\)"):
        SyntheticHands(SyntheticConfig(count=2, size=32)).images([2])


def test_rendering_ahead_makes_what_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = SyntheticHands(SyntheticConfig(count=5 * 4, size=16), tmp_path)
    made: list[int] = []
    monkeypatch.setattr(data, "_store_chunk", lambda chunk, device: made.append(chunk))
    data.render(progress=False, count=2 * 4 + 1)
    assert made == [0, 1, 2]
    made.clear()
    data.render(progress=False, share=(1, 2))
    assert made == [1, 3]
    with pytest.raises(ValueError, match="needs a cache folder"):
        SyntheticHands(SyntheticConfig(count=8, size=16)).render()
