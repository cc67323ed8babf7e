"""The U-Net in 8-bit integers, compared with floating point."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files

import numpy as np
import pytest
import torch
from torch import Tensor

import nvf_fast
from nvf_fast.checkpoint import load_checkpoint
from nvf_fast.evaluation.metrics import rigid_align
from nvf_fast.image_files import read_image
from nvf_fast.quantisation import DEVIATIONS, LARGEST, MOST_LAYOUTS, Affine, QuantisedConv, Spread
from nvf_fast.synthetic.rendered_views import SyntheticViews
from nvf_fast.training.calibration import predict_views
from nvf_fast.unet import BatchNorm, ConvNorm

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this build of PyTorch has no quantised convolutions"
)
K = np.array([[831.4, 0, 479.5], [0, 831.4, 269.5], [0, 0, 1]])
GIVEN, ADDED, MADE = Affine(0.02, 3), Affine(0.05, 100), Affine(0.04, 7)


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return read_image(files("nvf_fast") / "assets/demo.jpg")


@pytest.fixture(scope="module")
def estimator() -> nvf_fast.PoseEstimator:
    return nvf_fast.load(device="cpu", dtype=torch.int8)


def conv_norm(linear: bool = False, kernel_size: int = 3) -> ConvNorm:
    torch.manual_seed(0)
    conv = ConvNorm(19, 10, kernel_size, linear=linear)
    assert isinstance(conv.norm, BatchNorm)
    with torch.no_grad():
        for statistic in (conv.norm.mean, conv.norm.bias, conv.norm.weight):
            statistic.copy_(torch.randn(10))
        conv.norm.variance.uniform_(0.5, 2)
    return conv.eval().requires_grad_(False)


def integers(channels: int, batch: int = 2) -> Tensor:
    n = torch.randint(0, 256, (batch, channels, 5, 7), dtype=torch.uint8)
    return n.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("kernel_size", [1, 3])
@pytest.mark.parametrize("made", [MADE, None])
def test_a_convolution_of_integers_is_the_convolution_of_their_values(
    linear: bool, kernel_size: int, made: Affine | None
) -> None:
    conv = conv_norm(linear, kernel_size)
    quantised = QuantisedConv(copy.deepcopy(conv), GIVEN, None, made)
    x = integers(19)
    conv.fold()
    conv.conv.weight.copy_(quantised.weight.float() * quantised.scales[:, None, None, None])
    assert_equal_values(quantised(x), conv(GIVEN.values(x)), made)


@pytest.mark.parametrize("made", [MADE, None])
@pytest.mark.parametrize("floats", [False, True])
@pytest.mark.parametrize("linear", [False, True])
def test_another_map_is_added_and_kept(made: Affine | None, floats: bool, linear: bool) -> None:
    conv = conv_norm(linear)
    quantised = QuantisedConv(copy.deepcopy(conv), GIVEN, ADDED, made)
    x, other = integers(19), integers(10)
    conv.fold()
    conv.conv.weight.copy_(quantised.weight.float() * quantised.scales[:, None, None, None])
    kept = other.clone()
    expected = conv(GIVEN.values(x), ADDED.values(other))
    if made is None or not floats:
        assert_equal_values(quantised(x, other), expected, made)
    else:
        assert_equal_values(quantised(GIVEN.values(x), ADDED.values(other)), expected, made)
    assert torch.equal(other, kept)


def assert_equal_values(found: Tensor, expected: Tensor, made: Affine | None) -> None:
    if made is None:
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected)
    else:
        assert found.dtype == torch.uint8
        difference = found.int() - made.quantise(expected).int()
        assert difference.abs().max() <= 1  # a value halfway between two integers may be rounded either way
        assert (difference != 0).float().mean() < 0.01


def test_layouts_of_few_sizes_are_stored() -> None:
    conv = conv_norm()
    quantised = QuantisedConv(copy.deepcopy(conv), GIVEN, None, None)
    conv.fold()
    conv.conv.weight.copy_(quantised.weight.float() * quantised.scales[:, None, None, None])
    for width in [*range(1, MOST_LAYOUTS + 5), 1]:
        x = integers(19).repeat(1, 1, 1, width)
        torch.testing.assert_close(quantised(x), conv(GIVEN.values(x)))
    assert len(quantised._packed) == MOST_LAYOUTS


def test_products_do_not_saturate() -> None:
    """Processors without dot products of bytes add pairs of products in 16 bits."""
    conv = conv_norm(linear=True)
    quantised = QuantisedConv(conv, Affine(1.0, 0), None, None)
    quantised.weight.fill_(LARGEST)
    quantised.scales.fill_(1.0)
    quantised.bias.zero_()
    x = torch.full((1, 19, 5, 5), 255, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    assert quantised(x)[0, 0, 2, 2] == 255 * LARGEST * 19 * 9


def test_a_range_contains_zero_and_the_spread_of_all_channels() -> None:
    mean, deviation = torch.tensor([-1.0, 2.0]), torch.tensor([0.5, 0.25])
    low, high = -1 - DEVIATIONS * 0.5, 2 + DEVIATIONS * 0.25
    affine = Spread(mean, deviation, rectified=False).affine()
    assert affine.scale == pytest.approx((high - low) / 255)
    assert affine.values(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == pytest.approx(
        [low, high], abs=affine.scale
    )
    assert Spread(mean, deviation, rectified=True).affine() == (pytest.approx(max(high, low) / 255), 0)
    assert Spread(-mean - 9, 0 * deviation, rectified=True).affine().scale > 0


def test_hands_are_found_and_posed_as_in_floating_point(
    image: np.ndarray, estimator: nvf_fast.PoseEstimator
) -> None:
    expected = nvf_fast.load(device="cpu")(image, K)
    hands = estimator(image, K)
    assert hands.side == expected.side == ("right", "left")
    # Measured 0.7 mm aligned and 0.8 px.
    aligned = rigid_align(hands.joints, expected.joints) - expected.joints
    assert np.linalg.norm(aligned, axis=-1).mean() < 2
    assert np.abs(hands.joints_2d - expected.joints_2d).mean() < 3
    assert np.abs(hands.expected_error - expected.expected_error).mean() < 3


def test_batches_equal_single_images(image: np.ndarray, estimator: nvf_fast.PoseEstimator) -> None:
    boxes = [[(708, 290, 896, 478)], [(509, 50, 701, 242), (708, 290, 896, 478)]]
    together = estimator([image, image], K, box=boxes, side=["right", "left", "right"])
    alone = estimator(image, K, box=boxes[0], side="right")
    np.testing.assert_allclose(together.joints[[0, 2]], alone.joints[[0, 0]], atol=0.01)


def test_evaluations_of_views_take_quantised_networks(estimator: nvf_fast.PoseEstimator) -> None:
    model, _ = load_checkpoint(None)
    views = SyntheticViews(0).draw(4, "close")
    expected, found = predict_views(model, views), predict_views(estimator.model, views)
    torch.testing.assert_close(found.presence, expected.presence, atol=0.05, rtol=0)
    assert (found.coarse - expected.coarse).norm(dim=-1).mean() < 10  # measured 3 mm, mostly of depth


def test_threads_find_equal_hands_in_images_of_other_sizes(
    image: np.ndarray, estimator: nvf_fast.PoseEstimator
) -> None:
    images = [image[:, left:] for left in range(0, 680, 40)]
    cameras = [K - np.array([[0, 0, left], [0, 0, 0], [0, 0, 0]]) for left in range(0, 680, 40)]
    expected = [estimator(each, camera).joints for each, camera in zip(images, cameras, strict=True)]
    with ThreadPoolExecutor(4) as pool:
        found = [pose.joints for pose in pool.map(estimator, images, cameras)]
    first = next(part for part in estimator.model.encoder.modules() if isinstance(part, QuantisedConv))
    assert len(first._packed) == MOST_LAYOUTS  # some sizes have replaced others
    assert sum(map(len, expected)) > 10
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_copies_and_pickles_give_equal_poses(image: np.ndarray, estimator: nvf_fast.PoseEstimator) -> None:
    box = (708, 290, 896, 478)
    expected = estimator(image, K, box=box, side="right").joints
    for other in (copy.deepcopy(estimator), pickle.loads(pickle.dumps(estimator))):
        assert other.dtype == torch.int8
        np.testing.assert_array_equal(other(image, K, box=box, side="right").joints, expected)


def test_networks_without_norms_or_of_other_kinds_are_refused(estimator: nvf_fast.PoseEstimator) -> None:
    model, _ = load_checkpoint(None)
    assert isinstance(model, nvf_fast.NVF)
    with pytest.raises(ValueError, match="as loaded, got one whose batch norms are folded"):
        nvf_fast.PoseEstimator(model.for_inference(), dtype=torch.int8)
    with pytest.raises(ValueError, match=r"is quantised for dtype torch\.int8, got torch\.float32"):
        nvf_fast.PoseEstimator(estimator.model)
    hourglass = nvf_fast.NVF(nvf_fast.NVFConfig(stem=32, width=32, stacks=1, hidden=(16,), groups=4))
    with pytest.raises(ValueError, match="needs encoder='unet' on a CPU, got encoder='hourglass' on cpu"):
        nvf_fast.PoseEstimator(hourglass, dtype=torch.int8)
    with pytest.raises(TypeError, match=r"dtype must be one of .*torch\.int8, got torch\.int16"):
        nvf_fast.PoseEstimator(model, dtype=torch.int16)


def test_a_build_without_quantised_convolutions_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with pytest.raises(ValueError, match="needs PyTorch's quantised convolutions"):
        nvf_fast.load(device="cpu", dtype=torch.int8)
