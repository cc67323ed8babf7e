from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nvf_fast.camera import view_intrinsics
from nvf_fast.config import NVFConfig
from nvf_fast.kernels.query_field.reference import query_field
from nvf_fast.model import NVF, _released_entries
from tests.hand_cases import hand_network

SMALL = NVFConfig(
    input_size=64, stem=16, width=32, stacks=2, depth=2, groups=4, hidden=(48, 24), hand_scale=True
)


def points_in_view(batch: int, count: int) -> Tensor:
    depth = torch.rand(batch, count, 1) * 900 + 200
    return torch.cat([(torch.rand(batch, count, 2) - 0.5) * 0.4 * depth, depth], -1)


def released_state(stacks: int = 1, hand_scale: bool = True) -> dict[str, Tensor]:
    """Return a state dict in the released layout; all entries differ except the duplicated norms."""
    model = NVF(NVFConfig(stacks=stacks, hand_scale=hand_scale))
    state = {name: torch.randn(target.shape) for name, target in _released_entries(model)}
    for name in state:
        if ".downsample.0." in name:
            state[name] = state[name.replace(".downsample.0.", ".bn4.")].clone()
    return state


@pytest.fixture(scope="module")
def released() -> dict[str, Tensor]:
    return released_state()


def test_reference_intrinsics_follow_the_input_size() -> None:
    assert NVF(SMALL).reference_intrinsics.tolist() == pytest.approx(
        torch.tensor([[480 * 64 / 224, 0, 32], [0, 480 * 64 / 224, 32], [0, 0, 1]])
    )


def test_encode_returns_the_last_stack() -> None:
    model, images = NVF(SMALL), torch.randn(2, 3, 64, 64)
    features = model.encode(images)
    assert features.shape == (2, 32, 16, 16)
    every_features = model.encode_all(images)
    assert len(every_features) == 2
    torch.testing.assert_close(every_features[1], features, rtol=0, atol=1e-5)  # measured: 2e-6
    assert not torch.equal(every_features[0], features)


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 3, 224, 224), (1, 1, 64, 64)])
def test_encode_refuses_wrong_sizes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"images must be \(B, 3, 64, 64\) as .*, got "):
        NVF(SMALL).encode(torch.zeros(shape))


def test_encode_refuses_what_is_not_normalised() -> None:
    images = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    with pytest.raises(
        TypeError, match=r"images must be float32 .* as \(x / 255 - 0.5\) / 0.5, got torch.uint8"
    ):
        NVF(SMALL).encode(images)
    with pytest.raises(TypeError, match="images must be a tensor, got ndarray"):
        NVF(SMALL).encode(images.float().numpy())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"given to a network for view='reference'; use `encode`"):
        NVF(SMALL).encode_hands(images, torch.ones(1))


def test_hand_views_refuse_other_slopes_and_coarse_joints() -> None:
    model, images = hand_network(), torch.zeros(2, 3, 128, 128)
    slopes, points = torch.tensor([0.2, 0.3]), torch.tensor([[0.0, 0, 400]])
    for given in (slopes[0], slopes[:1], slopes[:, None]):
        with pytest.raises(ValueError, match=r"slopes must be \(2,\), got"):
            model.encode_hands(images, given)
    with pytest.raises(TypeError, match="K must be a tensor, got ndarray"):
        model(images, points, view_intrinsics(slopes, 128).numpy())
    for encode in (model.encode, model.encode_all):
        with pytest.raises(ValueError, match=r"given to a network for view='hand'; use `encode_hands`"):
            encode(images)
    encoding = model.encode_hands(images, slopes)
    coarse = encoding.joints(slopes)
    for given in (coarse[:1], coarse[:, :20]):
        with pytest.raises(ValueError, match=r"coarse must be \(2, 21, 3\) mm, got"):
            model.query(encoding.features, points, view_intrinsics(slopes, 128), coarse=given)


@pytest.mark.parametrize("hand_scale", [True, False])
def test_query_equals_the_operation(hand_scale: bool) -> None:
    model = NVF(replace(SMALL, hand_scale=hand_scale))
    features, points = torch.randn(2, 32, 16, 16), points_in_view(2, 50)
    scale = torch.tensor([30.0, 40.0]) if hand_scale else None
    with torch.no_grad():
        for parameter in model.field.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        field = model.query(features, points, model.reference_intrinsics, scale)
        sdf, votes = query_field(
            features,
            points,
            model.reference_intrinsics,
            scale,
            [*model.field.weights],
            [*model.field.biases],
            image_size=64,
        )
    assert field.sdf.shape == (2, 50) and field.weight.shape == (2, 50, 21)
    torch.testing.assert_close(field.sdf, sdf, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(field.weight, votes[..., 0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(field.direction, votes[..., 1:], rtol=1e-4, atol=1e-4)


def test_refuses_missing_and_unexpected_hand_scale() -> None:
    features, points = torch.randn(1, 32, 16, 16), points_in_view(1, 5)
    with_scale, without = NVF(SMALL), NVF(replace(SMALL, hand_scale=False))
    with pytest.raises(ValueError, match=r"hand_scale must be .* got None"):
        with_scale.query(features, points, with_scale.reference_intrinsics)
    with pytest.raises(ValueError, match="takes no hand scale"):
        without.query(features, points, without.reference_intrinsics, torch.tensor([30.0]))


def test_missing_optional_hand_scale_equals_15_mm() -> None:
    model = NVF(replace(SMALL, scale_optional=True))
    features, points = torch.randn(1, 32, 16, 16), points_in_view(1, 5)
    with torch.no_grad():
        unknown, fifteen, thirty = (
            model.query(features, points, model.reference_intrinsics, scale).sdf
            for scale in (None, torch.tensor([15.0]), torch.tensor([30.0]))
        )
    torch.testing.assert_close(unknown, fifteen)
    assert not torch.allclose(unknown, thirty)


def test_initial_field_is_outside_the_hand_with_gradients_everywhere() -> None:
    model = NVF(SMALL)
    field = model.query(
        model.encode(torch.randn(2, 3, 64, 64)),
        points_in_view(2, 200),
        model.reference_intrinsics,
        torch.tensor([30.0, 40.0]),
    )
    # 50 tanh(0.3) = 14.6 mm everywhere, up to the small weights of the last layer.
    assert abs(field.sdf.median() - 14.6) < 5
    (field.sdf.mean() + field.weight.mean() + field.direction.mean()).backward()
    for name, parameter in model.field.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize(("stacks", "hand_scale"), [(1, True), (2, False)])
def test_from_authors_reads_stacks_and_scale_from_the_shapes(stacks: int, hand_scale: bool) -> None:
    state = released_state(stacks, hand_scale)
    model = NVF.from_authors(state)
    assert model.config == NVFConfig(stacks=stacks, hand_scale=hand_scale)
    assert torch.equal(model.encoder.conv.weight, state["image_filter.conv1.weight"])
    assert torch.equal(model.field.weights[4], state["surface_classifier.conv4.weight"][..., 0])
    filled = {target.data_ptr() for _, target in _released_entries(model)}
    assert filled >= {parameter.data_ptr() for parameter in model.parameters()}


def test_from_authors_reads_a_file_of_tensors_only(released: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(released, tmp_path / "released.pth")
    model = NVF.from_authors(tmp_path / "released.pth")
    assert torch.equal(model.field.biases[0], released["surface_classifier.conv0.bias"])
    torch.save({"image_filter.conv1.weight": Path("code")}, tmp_path / "code.pth")
    with pytest.raises(pickle.UnpicklingError):
        NVF.from_authors(tmp_path / "code.pth")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("image_filter.m0.b2_plus_1.conv1.weight", None, "1 missing: image_filter.m0.b2_plus_1.conv1.weight"),
        (
            "image_filter.m0.b2_plus_2.bn1.bias",
            torch.ones(256),
            "1 unknown: image_filter.m0.b2_plus_2.bn1.bias",
        ),
        ("surface_classifier.conv1.bias", torch.ones(511), r"conv1.bias is \(511,\), expected \(512,\)"),
        (
            "surface_classifier.conv0.weight",
            torch.ones(1024, 300, 1),
            r"\(1024, 300, 1\), expected \(1024, 258, 1\)",
        ),
        (
            "image_filter.conv2.downsample.0.bias",
            torch.ones(64),
            "conv2.bn4.bias differs|downsample.0.bias differs",
        ),
        (
            "image_filter.conv1.bias",
            torch.full((64,), torch.nan),
            "image_filter.conv1.bias is not a tensor of finite",
        ),
        ("epoch", 3, "epoch is not a tensor"),
    ],
)
def test_from_authors_refuses_wrong_entries(
    released: dict[str, Tensor], name: str, value: Tensor | None, message: str
) -> None:
    state = {key: tensor for key, tensor in released.items() if key != name}
    if value is not None:
        state[name] = value
    with pytest.raises(ValueError, match=message):
        NVF.from_authors(state)
