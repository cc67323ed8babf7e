"""The baselines of Section 4.1: components shared with the field, and predictions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import leaky_relu

from nvf_fast.baselines import DenseBaseline, HolisticBaseline, build
from nvf_fast.checkpoint import load_checkpoint, save_checkpoint
from nvf_fast.config import NVFConfig
from nvf_fast.model import NVF

TINY = NVFConfig(input_size=32, stem=8, width=16, stacks=2, groups=4, hidden=(32, 16), scale_optional=True)


def network(method: str, **changes: object) -> HolisticBaseline | DenseBaseline:
    model = build(replace(TINY, method=method, **changes))
    assert not isinstance(model, NVF)
    torch.nn.init.normal_(model.field.weights[-1], std=0.2)
    return model.eval()


@pytest.mark.parametrize("method", ["holistic", "dense"])
def test_baselines_have_the_encoder_and_mlp_of_the_field(method: str) -> None:
    model, field = network(method), build(TINY)
    assert model.encoder.state_dict().keys() == field.encoder.state_dict().keys()
    for ours, theirs in zip(model.field.weights[:-1], field.field.weights[:-1], strict=True):
        assert ours.shape == (theirs.shape[0], theirs.shape[1] - 1)  # no depth input
    assert len(model.field.weights[-1]) == {"holistic": 63, "dense": 85}[method]


def test_mlp_concatenates_its_input_at_every_layer() -> None:
    mlp = network("holistic").field
    x = torch.randn(3, 17)
    hidden = leaky_relu(x @ mlp.weights[0].T + mlp.biases[0], 0.01)
    hidden = leaky_relu(torch.cat([hidden, x], 1) @ mlp.weights[1].T + mlp.biases[1], 0.01)
    torch.testing.assert_close(mlp(x), torch.cat([hidden, x], 1) @ mlp.weights[2].T + mlp.biases[2])


def test_field_mlp_equals_the_operation() -> None:
    model = build(replace(TINY, hand_scale=False, scale_optional=False))
    assert isinstance(model, NVF)
    features = torch.randn(1, 16, 8, 8)
    points = torch.tensor([[[0.0, 0.0, 480.0]]])  # the principal ray: between the four middle texels
    field = model.query(features, points, model.reference_intrinsics)
    x = torch.cat([features[0, :, 3:5, 3:5].mean((1, 2)), torch.ones(1)])
    torch.testing.assert_close(field.sdf[0, 0], 50 * torch.tanh(model.field(x)[0]))


@pytest.mark.parametrize("task", ["camera-space", "root-relative"])
def test_normalisation_maps_the_volume_to_the_unit_box(task: str) -> None:
    model = network("holistic", task=task)
    corner = {"camera-space": [250.0, -250.0, 1200.0], "root-relative": [170.0, -170.0, 170.0]}[task]
    assert model.normalised(torch.tensor(corner)).tolist() == [1, -1, 1]
    torch.testing.assert_close(model.in_mm(model.normalised(torch.tensor(corner))), torch.tensor(corner))


def test_dense_votes_are_a_weighted_mean_over_the_hand() -> None:
    model = network("dense")
    images, scale = torch.randn(2, 3, 32, 32), torch.tensor([40.0, 50.0])
    joints, voters = model.predict(model.encode(images), scale)
    votes = model.votes(model.encode(images), scale)
    for image in range(2):
        hand = votes.hand[image].sigmoid() > 0.5
        assert voters[image] == hand.sum() > 0
        weight = votes.weight[image][hand].clamp_min(0).double()
        expected = (weight[..., None] * votes.joints[image][hand].double()).sum(0) / weight.sum(0)[:, None]
        expected = model.in_mm(expected.float())
        torch.testing.assert_close(joints[image], expected, rtol=1e-3, atol=0.05, equal_nan=True)
    with torch.no_grad():
        model.field.weights[-1].zero_()
        model.field.biases[-1][0] = -1.0
    joints, voters = model.predict(model.encode(images), scale)
    assert joints.isnan().all() and not voters.any()  # no hand: NaN, not a guess


@pytest.mark.parametrize("method", ["holistic", "dense"])
def test_hand_scale_affects_joints_and_defaults_to_neutral(method: str) -> None:
    model = network(method)
    features = model.encode(torch.randn(1, 3, 32, 32))
    with torch.no_grad():
        model.field.biases[-1][0] = 9.0  # hand everywhere
    neutral, given = (model.predict(features, torch.tensor([scale]))[0] for scale in (15.0, 60.0))
    torch.testing.assert_close(model.predict(features)[0], neutral, equal_nan=True)
    assert not torch.allclose(neutral, given, equal_nan=True)
    with pytest.raises(ValueError, match="trained with it always given"):
        network(method, scale_optional=False).predict(features)
    with pytest.raises(ValueError, match="takes no hand scale"):
        network(method, scale_optional=False, hand_scale=False).predict(features, torch.tensor([40.0]))


@pytest.mark.parametrize("method", ["holistic", "dense"])
@pytest.mark.parametrize("task", ["camera-space", "root-relative"])
def test_checkpoints_keep_method_and_task(tmp_path: Path, method: str, task: str) -> None:
    model = network(method, task=task)
    save_checkpoint(model, tmp_path, {}, dtype=torch.float32)
    again, _ = load_checkpoint(tmp_path)
    assert type(again) is type(model) and again.config == model.config
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(again.encode_all(images)[-1], model.encode_all(images)[-1])


def test_nvf_refuses_the_configuration_of_a_baseline() -> None:
    with pytest.raises(ValueError, match=r"baselines.build makes a 'dense' network"):
        NVF(replace(TINY, method="dense"))
    for wrong in ({"method": "cnn"}, {"task": "absolute"}):
        with pytest.raises(ValueError, match="must be one of"):
            replace(TINY, **wrong)
