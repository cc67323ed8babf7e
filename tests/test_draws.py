"""Counted random numbers, and noise of integers: fixed values, uniformity, independence of the batch."""

import math

import pytest
import torch

from nvf_fast.data.draws import BLOCK, Draws
from nvf_fast.data.textures import TEXTURES, cells, integer_noise, normal_noise, texture, value_noise


def test_a_stream_is_the_same_alone_and_among_others() -> None:
    alone, among = Draws(5, "hand", [3]), Draws(5, "hand", range(6))
    for _ in range(3):
        assert torch.equal(alone.uniform(-1, 2, BLOCK // 2, 2)[0], among.uniform(-1, 2, BLOCK // 2, 2)[3])
    assert not torch.equal(Draws(5, "scene", [3]).uniform(0, 1, 4), Draws(5, "hand", [3]).uniform(0, 1, 4))


def test_numbers_are_those_they_have_always_been() -> None:
    """Philox is specified to the bit; so is the way from its words to numbers."""
    draws = Draws(0, "test", [7])
    assert draws.below(2**32, 3).tolist() == [[2023187411, 2672156766, 240286023]]
    assert Draws(0, "test", [7]).digest != draws.digest


def test_distributions() -> None:
    draws = Draws(1, "test", range(2000))
    uniform, normal = draws.uniform(2, 4, 20), draws.normal(20)
    assert uniform.dtype == normal.dtype == torch.float64
    # 40 000 numbers: the standard error of a mean is 0.5 % of a standard deviation.
    assert abs(uniform.mean() - 3) < 0.02 and abs(uniform.std() - 2 / math.sqrt(12)) < 0.01
    assert abs(normal.mean()) < 0.02 and abs(normal.std() - 1) < 0.02
    assert abs(draws.chance(0.3, 20).double().mean() - 0.3) < 0.01
    assert draws.below(5, 20).unique().tolist() == [0, 1, 2, 3, 4]


def test_pixel_noise_is_normal_and_uncorrelated() -> None:
    noise = normal_noise(torch.tensor([1, 2]), 128)
    assert noise.shape == (2, 3, 128, 128) and noise.mean().abs() < 0.01 and (noise.std() - 1).abs() < 0.01
    flat = noise.flatten(2)[:, :, :-1]
    shifted = noise.flatten(2)[:, :, 1:]
    assert (flat * shifted).mean().abs() < 0.01 and (noise[:, 0] * noise[:, 1]).mean().abs() < 0.02
    assert (noise[0] * noise[1]).mean().abs() < 0.02


def test_integer_noise_changes_half_of_its_bits_with_any_bit() -> None:
    x = torch.arange(4096)
    for bit in (0, 5, 11):
        changed = integer_noise(torch.tensor(9), x, x) ^ integer_noise(torch.tensor(9), x ^ (1 << bit), x)
        share = torch.stack([(changed >> k) & 1 for k in range(32)]).double().mean()
        assert abs(share - 0.5) < 0.02


def test_textures_are_continuous_and_in_range() -> None:
    at = torch.linspace(-3, 3, 20_001, dtype=torch.float64)
    for kind in range(len(TEXTURES)):
        share = texture(torch.tensor(kind), torch.tensor(4), at, 0.7 * at)
        assert share.min() > -0.4 and share.max() < 1.4
        assert (share[1:] - share[:-1]).abs().max() < 0.02, TEXTURES[kind]
    corner = torch.tensor([2.0])
    around = [value_noise(torch.tensor(4), corner + step, corner) for step in (-1e-6, 0.0, 1e-6)]
    assert torch.allclose(around[0], around[2], atol=1e-5)


@pytest.mark.parametrize("sharp", [False, True])
def test_cells_keep_their_colours_in_the_middle(sharp: bool) -> None:
    layer = cells(torch.tensor([3]), 4, 64, torch.tensor([sharp]), torch.tensor([0.0]))
    coarse = cells(torch.tensor([3]), 4, 4, torch.tensor([sharp]), torch.tensor([0.0]))
    assert torch.allclose(layer[..., 7:64:16, 7:64:16], coarse, atol=0.05)
