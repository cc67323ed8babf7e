"""Counted random numbers: fixed values, uniformity, independence of the batch."""

import math

import torch

from nvf_fast.data.draws import BLOCK, Draws


def test_streams_are_independent() -> None:
    alone, among = Draws(5, "hand", [3]), Draws(5, "hand", range(6))
    for _ in range(3):
        assert torch.equal(alone.uniform(-1, 2, BLOCK // 2, 2)[0], among.uniform(-1, 2, BLOCK // 2, 2)[3])
    assert not torch.equal(Draws(5, "scene", [3]).uniform(0, 1, 4), Draws(5, "hand", [3]).uniform(0, 1, 4))


def test_numbers_are_stable() -> None:
    """Philox and the conversion of its words to numbers are specified to the bit."""
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
