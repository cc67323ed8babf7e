"""What is evaluated: every method and task answers samples in the camera's frame."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from nvf_fast.baselines import Baseline, build
from nvf_fast.config import NVFConfig
from nvf_fast.data.hand import sample_hands
from nvf_fast.data.sample import HandSample
from nvf_fast.evaluation.predictors import predictor_of

TINY = NVFConfig(
    input_size=32, stem=8, width=16, stacks=1, groups=4, hidden=(32, 16), scale_optional=True
)  # fmt: skip
K = np.array([[400.0, 0, 64], [0, 400.0, 48], [0, 0, 1]])


@pytest.fixture
def samples() -> list[HandSample]:
    hands = sample_hands(3, torch.Generator().manual_seed(0))
    pictures = np.random.default_rng(0).integers(0, 256, (3, 96, 128, 3), dtype=np.uint8)
    return [
        HandSample(
            str(i), pictures[i], K, root=hands.joints[i, 0], joints=hands.joints[i], hand_scale=40.0 + i
        )
        for i in range(3)
    ]


@pytest.mark.parametrize("task", ["camera-space", "root-relative"])
@pytest.mark.parametrize("method", ["nvf", "holistic", "dense"])
def test_every_method_and_task_answers(samples: list[HandSample], method: str, task: str) -> None:
    model = build(replace(TINY, method=method, task=task))
    with torch.no_grad():
        model.field.biases[-1][0] = 0.02  # the surface everywhere, or the hand
        model.field.biases[-1][1::4] = 0.5
    predictor = predictor_of(model)
    assert (predictor.method, predictor.task, predictor.scale_choices) == (method, task, (True, False))
    with predictor.timed() as times:
        found = predictor(samples, use_scale=True)
    assert sum(times.values()) > 0
    assert found.joints.shape == (3, 21, 3) and found.joints.dtype == np.float32
    assert found.valid.tolist() == [True] * 3 and found.scores.shape == (3, 21) and (found.voters > 0).all()
    without = predictor(samples, use_scale=False)
    assert not np.allclose(found.joints, without.joints)
    # Answers do not depend on who else is in the batch.
    alone = predictor(samples[1:2], use_scale=True)
    np.testing.assert_allclose(alone.joints[0], found.joints[1], rtol=1e-4, atol=0.02)
    if task == "root-relative":
        moved = [replace(samples[1], root=samples[1].root + torch.tensor([0.0, 0.0, 1.0]))]
        shift = predictor(moved, use_scale=True).joints[0] - found.joints[1]
        assert (
            np.abs(shift.mean(0) - [0, 0, 1]).max() < 0.5
        )  # the crop hardly changes, the answer moves along
        with pytest.raises(ValueError, match="1: a root-relative method is given the wrist"):
            predictor([samples[0], replace(samples[1], root=None)], use_scale=True)


def test_a_baseline_answers_in_millimetres_of_the_camera(samples: list[HandSample]) -> None:
    for task, origin in (("camera-space", torch.zeros(3)), ("root-relative", samples[0].root)):
        model = build(replace(TINY, method="holistic", task=task))
        assert isinstance(model, Baseline)
        wanted = model.normalised(samples[0].joints - origin)
        with torch.no_grad():
            model.field.weights[-1].zero_()
            model.field.biases[-1].copy_(wanted.flatten())
        found = predictor_of(model)(samples[:1], use_scale=False)
        np.testing.assert_allclose(found.joints[0], samples[0].joints, rtol=0, atol=1e-3)


def test_options_that_a_method_does_not_have_are_refused(samples: list[HandSample]) -> None:
    holistic = build(replace(TINY, method="holistic"))
    assert predictor_of(holistic, step_mm=8.0, search="dense").method == "holistic"
    with pytest.raises(ValueError, match=r"a camera-space 'holistic' network has no options \['fraction'\]"):
        predictor_of(holistic, fraction=0.5)
    for model in (holistic, build(replace(TINY, task="root-relative"))):
        with pytest.raises(ValueError, match="search='guided' is of the camera-space field"):
            predictor_of(model, search="guided")
    with pytest.raises(ValueError, match="0: the baselines know right hands only, got a left one"):
        predictor_of(holistic)([replace(samples[0], side="left")], use_scale=False)
