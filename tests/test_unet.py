"""The encoder of hand views and its heads."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nvf_fast import unet
from nvf_fast.config import NVFConfig
from nvf_fast.estimator import PoseEstimator
from nvf_fast.model import NVF
from nvf_fast.unet import BatchNorm, HandEncoding, HandHeads

SMALL = NVFConfig(
    input_size=64, width=16, hidden=(32, 16), hand_scale=False, encoder="unet", view="hand",
    channels=(8, 8, 16, 16, 24), pose_code=8,
)  # fmt: skip


def trained_like(seed: int = 0) -> NVF:
    """Return a network whose norms have non-initial statistics."""
    torch.manual_seed(seed)
    model = NVF(SMALL)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, BatchNorm):
                module.mean.normal_(std=0.3)
                module.variance.uniform_(0.5, 2.0)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(std=0.2)
        assert model.heads is not None
        model.heads.view.weight.normal_(std=0.05)
    return model.eval()


def test_folding_norms_preserves_outputs() -> None:
    model = trained_like()
    folded = model.for_inference()
    images, slopes = torch.rand(3, 3, 64, 64) * 2 - 1, torch.tensor([0.1, 0.2, 0.4])
    with torch.no_grad():
        expected, encoding = model.encode_hands(images, slopes), folded.encode_hands(images, slopes)
    for name, value in expected._asdict().items():
        difference = (getattr(encoding, name) - value).abs().max()
        assert difference <= 1e-4 * value.abs().max(), name
    assert not any(isinstance(module, BatchNorm) for module in folded.modules())
    assert any(isinstance(module, BatchNorm) for module in model.modules())


def test_coarse_joint_lies_at_the_peak_of_heat() -> None:
    heads = HandHeads(SMALL)
    heat = torch.full((1, 21, 16, 16), -50.0)
    heat[0, :, 4, 9] = 50.0
    relative = torch.zeros_like(heat)
    relative[0, :, 4, 9] = 0.5
    with torch.no_grad():
        heads.joints = heads.hands = nn.Conv2d(42, 42, 1, bias=False)  # the identity
        nn.init.dirac_(heads.joints.weight)
        encoding = heads(
            torch.empty(0), torch.cat([heat, relative], 1), torch.zeros(1, 256), torch.tensor([0.25])
        )
    # Texel 9 of a map of stride 4 covers pixels 36 to 39, centre 37.5; the view's centre is pixel 32.
    torch.testing.assert_close(encoding.uv[0], torch.tensor([37.5 / 32 - 1, 17.5 / 32 - 1]).expand(21, 2))
    centre_depth = 1.7 * 32 / 0.25
    torch.testing.assert_close(encoding.depth, torch.full((1, 21), centre_depth + 30))
    joints = encoding.joints(torch.tensor([0.25]))
    torch.testing.assert_close(joints[0, 0, 0] / joints[0, 0, 2] / 0.25, encoding.uv[0, 0, 0])


def test_combining_stays_between_coarse_and_voted() -> None:
    heads = HandHeads(SMALL)
    coarse, voted = torch.randn(2, 21, 3) * 50 + 400, torch.randn(2, 21, 3) * 50 + 400
    heads.vote_weight.fill_(0.0)
    torch.testing.assert_close(heads.combine(coarse, voted), coarse)
    heads.vote_weight.fill_(1.0)
    torch.testing.assert_close(heads.combine(coarse, voted), voted)
    heads.vote_weight[1:] = 0.0  # votes move the centre alone
    combined = heads.combine(coarse, voted)
    torch.testing.assert_close(combined.mean(1), voted.mean(1))
    relative = [joints - joints.mean(1, True) for joints in (combined, coarse)]
    # Coordinates of some 500 mm resolve 6e-5 mm in float32; the largest difference measured was 9e-5 mm.
    torch.testing.assert_close(*relative, rtol=0, atol=2e-4)


def test_field_depends_on_the_coarse_pose() -> None:
    model = trained_like()
    features = torch.randn(2, 16, 16, 16)
    coarse = torch.randn(2, 21, 3) * 30 + torch.tensor([0.0, 0.0, 400.0])
    points = coarse[:, :5] + 3
    K = torch.tensor([[128.0, 0, 32], [0, 128, 32], [0, 0, 1]])
    with torch.no_grad():
        field = model.query(features, points, K, coarse=coarse)
        moved = coarse.clone()
        moved[0, 8] += 20
        other = model.query(features, points, K, coarse=moved)
    assert field.sdf.isfinite().any()
    visible = field.sdf.isfinite()
    assert (field.sdf[0] - other.sdf[0])[visible[0]].abs().max() > 1e-4
    torch.testing.assert_close(field.sdf[1], other.sdf[1])


def without_fusion(model: NVF, monkeypatch: pytest.MonkeyPatch, *inputs: torch.Tensor) -> HandEncoding:
    with monkeypatch.context() as patch:
        patch.setattr(unet, "_fuses", lambda *_: False)
        return model.encode_hands(*inputs)


@torch.no_grad()
def test_fused_convolutions(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Every folded convolution with a ReLU is one call of cuDNN; without its support it runs as before."""
    model = trained_like().for_inference()
    inputs = torch.rand(2, 3, 64, 64) * 2 - 1, torch.tensor([0.1, 0.3])
    expected = without_fusion(model, monkeypatch, *inputs)
    calls = []

    def convolve(x, weight, bias, stride, padding, dilation, groups):
        calls.append("relu")
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups).relu()

    def convolve_and_add(x, weight, other, alpha, bias, stride, padding, dilation, groups):
        calls.append("add")
        return (alpha * F.conv2d(x, weight, bias, stride, padding, dilation, groups) + other).relu()

    monkeypatch.setattr(unet, "_fuses", lambda *_: True)
    monkeypatch.setattr(torch, "cudnn_convolution_relu", convolve)
    monkeypatch.setattr(torch, "cudnn_convolution_add_relu", convolve_and_add)
    for found, right in zip(model.encode_hands(*inputs), expected, strict=True):
        torch.testing.assert_close(found, right)
    # The stem, a residual's first convolution and the one after the last merge; each residual's second.
    assert (calls.count("relu"), calls.count("add")) == (2 + 6 + 2 + 1, 6 + 2)

    def refuse(*_):
        raise RuntimeError("no engine")

    monkeypatch.setattr(torch, "cudnn_convolution_relu", refuse)
    monkeypatch.setattr(unet, "_UNFUSED", set())
    for _ in range(2):
        for found, right in zip(model.encode_hands(*inputs), expected, strict=True):
            torch.testing.assert_close(found, right)
    assert len(caplog.records) == len(unet._UNFUSED) > 3 and "no engine" in caplog.text


@pytest.mark.cuda
@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_fused_convolutions_on_a_gpu(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained_like().for_inference().cuda()
    model.encoder.to(dtype=dtype, memory_format=torch.channels_last)
    images = (torch.rand(2, 3, 64, 64, device="cuda") * 2 - 1).to(dtype, memory_format=torch.channels_last)
    slopes = torch.tensor([0.1, 0.3], device="cuda")
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        expected = without_fusion(model, monkeypatch, images, slopes)
        found = model.encode_hands(images, slopes)
    assert not unet._UNFUSED
    # As the folded network's and, for float16, 8 of its last places.
    tolerance = 1e-4 if dtype == torch.float32 else 8 * torch.finfo(dtype).eps
    for name, right in expected._asdict().items():
        difference = (getattr(found, name) - right).abs().max()
        assert difference <= tolerance * right.abs().max(), name


def test_hourglass_encodes_hand_views() -> None:
    config = replace(SMALL, encoder="hourglass", stem=8, stacks=2, depth=1, groups=4)
    assert NVFConfig.from_dict(config.to_dict()) == config
    torch.manual_seed(0)
    model = NVF(config).eval()
    images, slopes = torch.rand(2, 3, 64, 64), torch.tensor([0.2, 0.3])
    encoding = model.encode_hands(images, slopes)
    assert encoding.features.shape == (2, 16, 16, 16) and encoding.heat.shape == (2, 21, 16, 16)
    assert encoding.middle.shape == encoding.presence.shape == (2,) and (encoding.middle > 0).all()
    (encoding.joints(slopes).square().mean() + encoding.presence.sum()).backward()
    # Centre and presence use the pooled features, depths the last stack's features.
    heads = [model.encoder.pooled.weight, model.encoder.stacks[1].features.weight, model.encoder.conv.weight]
    with torch.no_grad():
        model.heads.view.weight.normal_(std=0.1)
    (model.encode_hands(images, slopes).presence.sum()).backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in heads)
    image = torch.randint(0, 256, (80, 90, 3), dtype=torch.uint8)
    K = torch.tensor([[100.0, 0, 45], [0, 100, 40], [0, 0, 1]])
    pose = PoseEstimator(model)(image, K, box=(20, 20, 60, 70), side="right")
    assert pose.points_evaluated == 2744 and pose.joints.shape == (21, 3)
    with pytest.raises(ValueError, match="encode_hands"):
        model.encode(images)


def test_refuses_calls_for_the_other_view() -> None:
    model = NVF(SMALL)
    images = torch.zeros(1, 3, 64, 64)
    with pytest.raises(ValueError, match="encode_hands"):
        model.encode(images)
    with pytest.raises(ValueError, match="coarse must be"):
        model.query(torch.zeros(1, 16, 16, 16), torch.zeros(1, 1, 3), torch.eye(3))
    paper = NVF(NVFConfig(input_size=64, stem=8, width=16, stacks=1, depth=1, groups=2, hidden=(8,)))
    with pytest.raises(ValueError, match="encode"):
        paper.encode_hands(images, torch.ones(1))
    with pytest.raises(ValueError, match="coarse must be None"):
        paper.query(
            torch.zeros(1, 16, 16, 16), torch.zeros(1, 1, 3), torch.eye(3), coarse=torch.zeros(1, 21, 3)
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder": "hourglass", "width": 20}, "width must be a multiple of 8"),
        ({"method": "dense"}, "hand views need"),
        ({"view": "reference"}, "hand views need"),
        ({"task": "root-relative"}, "hand views need"),
        ({"hand_scale": True}, "hand_scale must be False"),
        ({"channels": (8, 8, 8)}, "channels must be 5 numbers"),
        ({"input_size": 80}, "multiple of 32"),
        ({"presence_threshold": 1.5}, r"presence_threshold must be in \[0, 1\]"),
        ({"finding_threshold": -0.5}, r"finding_threshold must be in \[0, 1\]"),
        ({"finding_weights": (1.0, 1.0, 0.0)}, "finding_weights must be a tuple of 4 finite numbers"),
        ({"finding_weights": (1.0, 1.0, 0.0, float("nan"))}, "finding_weights must be"),
        ({"finding_weights": (1.0, 1.0, 0.0, "0")}, "finding_weights must be"),
        ({"pose_code": -1}, "pose_code must be at least 0"),
    ],
)
def test_refuses_inconsistent_configurations(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **change)  # type: ignore[arg-type]


def test_loads_configurations_older_than_hand_views() -> None:
    values = NVFConfig().to_dict()
    later = ("encoder", "view", "channels", "pose_code", "presence_threshold", "finding_threshold")
    for name in (*later, "finding_weights"):
        del values[name]
    assert NVFConfig.from_dict(values) == NVFConfig()
    assert NVFConfig.from_dict(SMALL.to_dict()) == SMALL
