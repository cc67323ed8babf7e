"""The fixed set: its parameters and labels are the published ones on this machine too."""

from __future__ import annotations

import json
from importlib.resources import files

import numpy as np
import pytest
import torch

from nvf_fast.data import synthetic
from nvf_fast.data.draws import Draws
from nvf_fast.data.hand import UNIFORM, Hands, draw_hands
from nvf_fast.data.synthetic import CHUNK, V1_PARTS, SyntheticHands, draw_chunk, synthetic_v1
from tests.test_render import in_float64

PUBLISHED = json.loads((files("nvf_fast.data") / "synthetic_v1.json").read_text())


def test_the_checksums_are_of_these_sets() -> None:
    """A changed recipe, seed or distribution needs other checksums, and is another benchmark."""
    for part, config in V1_PARTS.items():
        assert PUBLISHED["fingerprint"][part] == config.fingerprint
        assert len(PUBLISHED["sha256"][part]) == -(-config.count // CHUNK)
    assert len(synthetic_v1("train")) == 20_000 and len(synthetic_v1("test")) == 2_000
    assert (synthetic_v1("test").name, synthetic_v1("test").split) == ("synthetic-v1", "evaluation")


@pytest.mark.parametrize(("part", "chunk"), [("train", 0), ("train", 156), ("test", 15)])
def test_parameters_are_the_published_ones(part: str, chunk: int) -> None:
    assert draw_chunk(V1_PARTS[part], chunk)[2] == PUBLISHED["sha256"][part][chunk]


def test_parameters_that_differ_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "CHUNK", 2)
    data = SyntheticHands(V1_PARTS["test"], name="synthetic-v1", split="evaluation", checksums=["0" * 64])
    with pytest.raises(ValueError, match=r"chunk 0 of synthetic-v1 evaluation .* not 0000"):
        data[1]
    with pytest.raises(ValueError, match="'train' and 'test', got 'validation'"):
        synthetic_v1("validation")  # type: ignore[arg-type]


def test_rejections_are_far_from_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries are rejected in float64; the nearest miss is a million times farther than it rounds."""
    from nvf_fast.data import hand

    margins: list[torch.Tensor] = []
    overlap = hand._self_intersection

    def watched(hands: Hands) -> torch.Tensor:
        found = overlap(hands)
        assert found.dtype == torch.float64
        margins.append((found - hand.DEEPEST_OVERLAP).abs())
        return found

    monkeypatch.setattr(hand, "_self_intersection", watched)
    draw_hands(Draws(V1_PARTS["test"].seed, "hand", range(256)), UNIFORM)
    assert torch.cat(margins).min() > 1e-8


def test_labels_hold_to_a_micrometre() -> None:
    """float32 against float64. On a bone's axis a distance is a root near 0: measured there, 2.2 µm."""
    hands, _, _ = draw_chunk(V1_PARTS["test"], 0)
    hands = hands[:16]
    generator = torch.Generator().manual_seed(0)
    near = hands.sample_surface(500, generator)
    points = torch.cat([near, near + 30 * torch.randn(near.shape, generator=generator)], 1)
    exact = in_float64(hands).signed_distance(points.double())
    error = (hands.signed_distance(points).double() - exact).abs()
    assert error[exact > -3].max() < 1e-3 and error.max() < 5e-3


FIRST_WRISTS = [[47.0627, 147.1512, 648.6679], [-213.401, -59.9946, 786.564], [-25.0644, 79.4575, 506.9528]]


def test_wrists_are_the_published_ones() -> None:
    hands, _, _ = draw_chunk(V1_PARTS["test"], 0)
    np.testing.assert_allclose(hands.joints[:3, 0].numpy(), FIRST_WRISTS, atol=1e-3)
