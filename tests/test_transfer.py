"""Transfer of weights between tasks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from nvf_fast.baselines import build
from nvf_fast.config import NVFConfig
from nvf_fast.model import NVF
from nvf_fast.training.transfer import transfer
from tests.hand_cases import CONFIG

TINY = NVFConfig(input_size=32, stem=8, width=16, groups=4, stacks=2, hidden=(32, 16), hand_scale=False)


@pytest.mark.parametrize("method", ["nvf", "holistic", "dense"])
def test_copies_every_weight_between_tasks_and_sizes(method: str) -> None:
    source = build(replace(TINY, method=method, task="root-relative"))
    target = build(replace(TINY, method=method, input_size=64))
    transfer(source, target)
    ours, theirs = target.state_dict(), source.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_new_hand_scale_input_starts_neutral() -> None:
    source, target = build(TINY), build(replace(TINY, hand_scale=True))
    transfer(source, target)
    features, points = torch.randn(1, 16, 8, 8), torch.tensor([[[10.0, 5.0, 500.0], [-20.0, 9.0, 700.0]]])
    before = source.query(features, points, source.reference_intrinsics)
    for scale in (15.0, 47.0):
        after = target.query(features, points, target.reference_intrinsics, torch.tensor([scale]))
        torch.testing.assert_close(after.sdf, before.sdf)
        torch.testing.assert_close(after.weight, before.weight)
    assert all(not weight[:, -1].any() for weight in target.field.weights)


def test_refuses_mismatched_networks() -> None:
    with pytest.raises(ValueError, match="takes a hand scale and the training's does not"):
        transfer(build(replace(TINY, hand_scale=True)), build(TINY))
    with pytest.raises(ValueError, match=r"width is 16, expected 24; method is 'nvf', expected 'dense'"):
        transfer(build(TINY), build(replace(TINY, width=24, method="dense")))


def test_copies_heads_and_pose_code() -> None:
    source, target = NVF(CONFIG), NVF(replace(CONFIG, presence_threshold=0.8))
    transfer(source, target)
    for name, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], value), name
    assert target.config.presence_threshold == 0.8
