from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from nvf_fast.config import NVFConfig

SMALL = NVFConfig(input_size=128, stem=32, width=64, widen=32, stacks=2, depth=4, groups=8, hidden=(64, 32))


@pytest.mark.parametrize("config", [NVFConfig(), SMALL, NVFConfig(scale_optional=True)])
def test_json_round_trip(config: NVFConfig) -> None:
    assert NVFConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_is_frozen_and_hashable() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        SMALL.width = 128  # type: ignore[misc]
    assert hash(SMALL) == hash(dataclasses.replace(SMALL))


def test_refuses_unknown_and_missing_entries() -> None:
    values = NVFConfig().to_dict()
    with pytest.raises(ValueError, match=r"unknown entries \['breadth'\], missing entries \[\]"):
        NVFConfig.from_dict(values | {"breadth": 3})
    del values["groups"]
    with pytest.raises(ValueError, match=r"missing entries \['groups'\]"):
        NVFConfig.from_dict(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 100}, "width must be a multiple of 8.* got 100"),
        ({"widen": 6}, "widen must be a multiple of 4.* got 6"),
        ({"widen": -4}, "widen must be at least 0, got -4"),
        ({"stacks": 0}, "stacks must be at least 1, got 0"),
        ({"depth": 4}, "input_size must be a multiple of 64 px.* got 224 px"),
        ({"input_size": 222}, "input_size must be a multiple of 16 px.* got 222 px"),
        ({"hidden": (64, 0)}, "hidden must be at least 1, got 0"),
        ({"hand_scale": False, "scale_optional": True}, "scale_optional=True requires hand_scale=True"),
        ({"input_size": 128, "width": 64, "depth": 5}, "groups must be below 16, .* got 32"),
    ],
)
def test_refuses_invalid_values(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NVFConfig(**change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 256.0}, "width must be a whole number, got 256.0"),
        ({"stacks": True}, "stacks must be a whole number, got True"),
        ({"hidden": ()}, "hidden must be a non-empty tuple"),
        ({"hidden": 64}, "hidden must be a non-empty tuple"),
        ({"hand_scale": 1}, "hand_scale must be True or False, got 1"),
    ],
)
def test_refuses_wrong_types(change: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        NVFConfig(**change)


def test_groups_may_reach_the_narrowest_layer_only_off_the_smallest_map() -> None:
    assert NVFConfig(input_size=128, width=64, depth=5, groups=15).feature_size == 32
    assert NVFConfig(input_size=128, width=64, depth=4, groups=32).feature_size == 32
