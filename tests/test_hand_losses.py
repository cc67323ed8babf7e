"""Losses on hand views."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from nvf_fast.data.hand_views import HandViews
from nvf_fast.model import NVF
from nvf_fast.training.hand_losses import (
    HandBatch,
    HandLossConfig,
    hand_losses,
    moved_views,
    steady_losses,
    view_intrinsics,
)
from tests.test_unet import SMALL

SIZE = SMALL.input_size


def views(count: int = 4, seed: int = 0) -> HandViews:
    """Return noise images with random labels."""
    rng = np.random.default_rng(seed)
    joints = (rng.normal(0, 40, (count, 21, 3)) + [0, 0, 400]).astype(np.float32)
    points = (joints[:, rng.integers(0, 21, 40)] + rng.normal(0, 8, (count, 40, 3))).astype(np.float32)
    boxes = np.full((count, 2, 4), np.nan, np.float32)
    boxes[:, 0] = (10, 12, 50, 44)
    return HandViews(
        images=rng.integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8),
        focal=np.full(count, 100, np.float32),
        joints=joints,
        points=points,
        distances=rng.normal(0, 5, (count, 40)).astype(np.float32),
        boxes=boxes,
        left=np.zeros((count, 2), bool),
        trust=np.ones(count, np.float32),
    )


@pytest.fixture
def model() -> NVF:
    torch.manual_seed(0)
    return NVF(SMALL)


@pytest.mark.parametrize("outputs", [slice(0, 1), slice(3, None)], ids=["distance", "expected error"])
@pytest.mark.parametrize("bias", [-200.0, 200.0])
def test_loss_is_finite_for_extreme_outputs(model: NVF, outputs: slice, bias: float) -> None:
    drawn = views(4)
    drawn.trust[1] = 0
    with torch.no_grad():
        model.heads.view.bias[outputs] = bias
    loss = hand_losses(model, HandBatch.of(drawn), HandLossConfig())["loss"]
    loss.backward()
    assert loss.isfinite()
    assert all(each.grad.isfinite().all() for each in model.parameters() if each.grad is not None)


def test_every_part_receives_a_gradient(model: NVF) -> None:
    losses = hand_losses(model, HandBatch.of(views()), HandLossConfig())
    losses["loss"].backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert without == []
    assert all(value.isfinite() for value in losses.values())


def test_untrusted_views_have_no_pose_loss(model: NVF) -> None:
    """Pose labels of an untrusted view affect neither loss nor gradient; they may be NaN."""
    model.eval()
    changed = views()
    changed.trust[2] = 0
    results = []
    for value in (np.nan, 123.0):
        changed.joints[2] = changed.points[2] = value
        changed.distances[2] = value
        model.zero_grad()
        losses = hand_losses(model, HandBatch.of(changed), HandLossConfig())
        losses["loss"].backward()
        results.append([losses["loss"].detach(), *(p.grad.clone() for p in model.parameters())])
    for first, second in zip(*results, strict=True):
        assert first.isfinite().all()
        torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_presence_follows_the_boxes(model: NVF) -> None:
    model.eval()
    empty = views()
    empty.boxes[:] = np.nan
    empty.trust[:] = 0
    only = replace(HandLossConfig(), presence=1.0)
    assert model.heads is not None
    with torch.no_grad():
        for sign in (-5.0, 5.0):
            model.heads.view.bias[1] = sign
            shown = hand_losses(model, HandBatch.of(views()), only)["presence"]
            hidden = hand_losses(model, HandBatch.of(empty), only)["presence"]
            assert (shown < hidden) == (sign > 0)


def test_centre_loss_peaks_at_the_hand_centre(model: NVF) -> None:
    """The texel at the box centre has the largest upward gradient of all."""
    model.eval()
    batch = HandBatch.of(views(1))
    encoding = model.encode_hands(batch.images, batch.slopes)
    encoding.hands.retain_grad()
    from nvf_fast.training.hand_losses import _hand_map_losses

    _hand_map_losses(encoding, batch)["hands"].backward()
    gradient = encoding.hands.grad
    assert gradient is not None
    place = int(gradient[0, 0].argmin())
    # The box centre is pixel (30, 28); texel k of stride 4 lies at pixel 4 k + 1.5.
    assert divmod(place, SIZE // 4) == (round((28 - 1.5) / 4), round((30 - 1.5) / 4))


def test_perfect_coarse_joints_have_no_loss(model: NVF) -> None:
    model.eval()
    batch = HandBatch.of(views())
    encoding = model.encode_hands(batch.images, batch.slopes)
    uv = batch.joints[..., :2] / (batch.slopes[:, None] * batch.joints[..., 2])[..., None]
    depth = batch.joints[..., 2]
    perfect = encoding._replace(uv=uv, depth=depth, middle=depth.mean(1))
    torch.testing.assert_close(perfect.joints(batch.slopes), batch.joints)
    from nvf_fast.training.hand_losses import _place_losses

    losses = _place_losses(perfect, batch, HandLossConfig())
    for name in ("places", "depths", "middle"):
        assert losses[name] < 1e-5, name


def test_moved_views_show_the_same_scene() -> None:
    """An image linear in position shows the source of each pixel of a moved view."""
    config = HandLossConfig(move_px=3.0, move_zoom=0.1)
    batch = HandBatch.of(views(3))
    places = (torch.arange(SIZE) / (SIZE / 2) - 1).expand(SIZE, SIZE)
    scene = torch.stack([places, places.T, places + places.T]).expand(3, -1, -1, -1)
    moves = torch.tensor([[1.0, 0.0, 0.0], [0.0, -1.0, 0.0], [0.4, 0.7, 1.0]])
    moved = moved_views(batch._replace(images=scene, moves=moves), torch.arange(3), config)
    torch.testing.assert_close(moved.slopes, batch.slopes * (config.move_zoom * moves[:, 2]).exp())
    inside = slice(10, -10)  # away from the padded border
    for axis in (0, 1):
        expected = moved.zoom[:, None, None] * scene[:, axis] + moved.shift[:, axis, None, None]
        torch.testing.assert_close(
            moved.images[:, axis, inside, inside], expected[:, inside, inside], rtol=0, atol=2e-5
        )
    torch.testing.assert_close(moved.shift[:2] * SIZE / 2, 3.0 * moves[:2, :2])


def test_steady_losses_compare_the_pose_across_a_move(model: NVF) -> None:
    config = HandLossConfig(move_px=2.0, move_zoom=0.05)
    model.eval()
    batch = HandBatch.of(views())._replace(moves=torch.rand(4, 3) * 2 - 1)
    moved = moved_views(batch, torch.arange(4), config)
    encoding = model.encode_hands(batch.images, batch.slopes)
    same = encoding._replace(uv=(encoding.uv - moved.shift[:, None]) / moved.zoom[:, None, None])
    assert steady_losses(encoding, same, moved, config)["steady"] < 1e-6
    farther = same._replace(
        middle=encoding.middle * 1.01, depth=encoding.depth + 0.01 * encoding.middle[:, None]
    )
    expected = config.middle * np.log(1.01)
    assert abs(steady_losses(encoding, farther, moved, config)["steady"].item() - expected) < 1e-5
    aside = same._replace(uv=same.uv + 0.1 / moved.zoom[:, None, None])
    assert abs(steady_losses(encoding, aside, moved, config)["steady"].item() - config.places * 0.2) < 1e-5
    bent = same._replace(depth=same.depth + 6.0)
    assert abs(steady_losses(encoding, bent, moved, config)["steady"].item() - config.depths * 0.1) < 1e-5


def test_moved_views_do_not_affect_other_losses(model: NVF) -> None:
    model.eval()  # batch norms depend on the batch
    batch = HandBatch.of(views())._replace(moves=torch.ones(4, 3))
    steady, plain = (hand_losses(model, batch, HandLossConfig(steady=weight)) for weight in (2.0, 0.0))
    assert steady["steady"] > 0 and plain["steady"] == 0
    for name in plain.keys() - {"loss", "steady"}:
        torch.testing.assert_close(steady[name], plain[name], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(steady["loss"], plain["loss"] + 2 * steady["steady"], rtol=1e-4, atol=1e-4)


def test_intrinsics_of_views() -> None:
    K = view_intrinsics(torch.tensor([0.25]), 64)[0]
    torch.testing.assert_close(K, torch.tensor([[128.0, 0, 32], [0, 128, 32], [0, 0, 1]]))
