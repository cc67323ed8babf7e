"""Losses on hand views."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nvf_fast.data.hand_views import HandViews
from nvf_fast.model import NVF, FieldValues
from nvf_fast.training.hand_losses import (
    HandBatch,
    HandLossConfig,
    distance_losses,
    hand_losses,
    moved_views,
    steady_losses,
    view_intrinsics,
    vote_losses,
)
from nvf_fast.unet import HandEncoding
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
    alone = HandBatch.of(views(1))._replace(moves=torch.ones(1, 3))
    assert hand_losses(model, alone, HandLossConfig())["steady"] > 0, "at least one view is moved"


def test_intrinsics_of_views() -> None:
    K = view_intrinsics(torch.tensor([0.25]), 64)[0]
    torch.testing.assert_close(K, torch.tensor([[128.0, 0, 32], [0, 128, 32], [0, 0, 1]]))
    assert view_intrinsics(HandBatch.of(views(1)).slopes, SIZE)[0, 0, 0].item() == pytest.approx(100)


def exact_encoding(batch: HandBatch) -> HandEncoding:
    """Return predictions with exact joints; logits are 0, and negative in the maps of hands."""
    count, depth = len(batch.joints), batch.joints[..., 2]
    uv = batch.joints[..., :2] / (batch.slopes[:, None] * depth)[..., None]
    zeros, side = torch.zeros(count), SIZE // 4
    return HandEncoding(
        torch.zeros(count, 1, side, side), uv, depth, depth.mean(1), zeros, zeros, torch.ones(count, 21),
        torch.zeros(count, 21, side, side), torch.full((count, 3, side, side), -30.0),
    )  # fmt: skip


def losses_of(encoding: HandEncoding, batch: HandBatch, **weights: float) -> dict[str, torch.Tensor]:
    """Return the losses of predictions, with distances 1 mm too large and votes of 0."""
    votes = torch.zeros(*batch.distances.shape, 21, 4)
    field = FieldValues(batch.distances + 1, votes[..., 0], votes[..., 1:])
    model: Any = SimpleNamespace(encode_hands=lambda *_: encoding, query=lambda *_, **__: field)
    return hand_losses(model, batch, HandLossConfig(steady=0.0, **weights))


def test_heat_loss_is_least_for_gaussians_about_the_joints() -> None:
    batch = HandBatch.of(views())
    exact = exact_encoding(batch)
    places = (4 * torch.arange(SIZE // 4) + 1.5) / (SIZE / 2) - 1  # of texels of stride 4
    across, down = (((places - exact.uv[..., axis, None]) ** 2) for axis in (0, 1))
    heat = -(across[:, :, None] + down[..., None]) / (2 * HandLossConfig().heat_sigma ** 2)
    heat.requires_grad_()
    losses_of(exact._replace(heat=heat), batch)["heat"].backward()
    assert heat.grad is not None and heat.grad.abs().max() < 1e-6


def test_joints_beside_the_view_have_no_place() -> None:
    batch = HandBatch.of(views(1))
    batch.joints[0, 3] = torch.tensor([1.5 * float(batch.slopes) * 400, 0, 400])
    batch.joints[0, 4] = torch.tensor([0.0, 0, 400])
    for joint, expected in ((3, 0.0), (4, 0.1 / 21)):
        encoding = exact_encoding(batch)
        encoding.uv[0, joint, 1] += 0.1
        assert losses_of(encoding, batch)["places"].item() == pytest.approx(expected)


def test_expected_error_is_least_at_the_distance_and_moves_no_joint() -> None:
    batch = HandBatch.of(views())
    exact = exact_encoding(batch)
    uv = (exact.uv + 0.05).requires_grad_()
    encoding = exact._replace(uv=uv)
    error = (encoding.joints(batch.slopes) - batch.joints).norm(dim=-1).detach().requires_grad_()
    losses_of(encoding._replace(error=error), batch)["error"].backward()
    assert error.grad is not None and error.grad.abs().max() < 1e-8 and uv.grad is None


def test_pose_losses_are_weighted_by_trust() -> None:
    batch = HandBatch.of(views(2))._replace(trust=torch.tensor([1.0, 0.5]))
    exact = exact_encoding(batch)
    encoding = exact._replace(depth=exact.depth + torch.tensor([[6.0], [60.0]]))
    assert losses_of(encoding, batch)["depths"].item() == pytest.approx((0.1 * 1 + 1 * 0.5) / 1.5)


def test_side_is_that_of_single_hands() -> None:
    batch = HandBatch.of(views(2))
    batch.boxes[1, 1] = batch.boxes[1, 0]
    batch.left[0, 0] = True
    encoding = exact_encoding(batch)._replace(left=torch.tensor([3.0, 50.0]))
    assert losses_of(encoding, batch)["side"].item() == pytest.approx(math.log(1 + math.exp(-3)))


def test_loss_is_the_weighted_sum() -> None:
    batch = HandBatch.of(views())
    losses = losses_of(exact_encoding(batch), batch, wide=0.7, weights=0.3, directions=0.9, presence=0.4)
    weights = {"sdf": 1.0, "wide": 0.7, "weight": 0.3, "direction": 0.9, "presence": 0.4}
    defaults = HandLossConfig()
    expected = sum(
        weights[name] * value if name in weights else getattr(defaults, name) * value
        for name, value in losses.items()
        if name != "loss"
    )
    torch.testing.assert_close(losses["loss"], expected)


def test_hand_maps_by_hand() -> None:
    """The box's centre (30, 14) lies in row 3 and column 7, whose texel is centred at (29.5, 13.5)."""
    batch = HandBatch.of(views(1))
    batch.boxes[0, 0] = torch.tensor([10.0, 4, 50, 24])
    batch.left[0, 0] = True
    encoding = exact_encoding(batch)
    encoding.hands[0, :, 3, 7] = torch.tensor([2.0, math.log(40 / SIZE), 30.0])
    encoding.hands[0, 0, 3, 8] = 1.0
    peak, beside = 1 / (1 + math.exp(-2)), 1 / (1 + math.exp(-1))
    label = math.exp(-(3.5**2 + 0.5**2) / (2 * 4**2))  # standard deviation: a tenth of the box's side
    expected = -math.log(peak) * (1 - peak) ** 2 - math.log(1 - beside) * beside**2 * (1 - label) ** 4
    assert losses_of(encoding, batch)["hands"].item() == pytest.approx(expected)
    batch.boxes[0, 1], batch.left[0, 1] = batch.boxes[0, 0], True
    assert losses_of(encoding, batch)["hands"].item() == pytest.approx(expected), "the same hand twice"
    batch.boxes[:] = torch.nan
    encoding.hands[:] = -30.0
    assert losses_of(encoding, batch)["hands"].item() == pytest.approx(0, abs=1e-9)


def test_mixed_views_by_a_plain_reference(model: NVF) -> None:
    """Losses of hands in the maps hand by hand, and of poses on the posed views alone."""
    model.eval()
    drawn = views(6)
    for name in ("joints", "points", "distances"):
        getattr(drawn, name)[1::3] = np.nan
    drawn.trust[1::3] = 0
    drawn.boxes[2, 1], drawn.left[2, 1] = (30, 30, 44, 60), True
    drawn.boxes[3, 0] = (-40, 5, -4, 30)  # its centre is out of view
    drawn.boxes[4] = np.nan
    batch, config = HandBatch.of(drawn), HandLossConfig()
    losses = hand_losses(model, batch, config)

    maps = model.encode_hands(batch.images, batch.slopes).hands
    logs, lefts = [], []
    peaks = torch.zeros(6, SIZE // 4, SIZE // 4, dtype=torch.bool)
    labels = torch.zeros(6, SIZE // 4, SIZE // 4)
    place = 4 * torch.arange(SIZE // 4) + 1.5
    for view, hand in ((0, 0), (1, 0), (2, 0), (2, 1), (5, 0)):
        x0, y0, x1, y1 = drawn.boxes[view, hand].tolist()
        x, y, side = (x0 + x1) / 2, (y0 + y1) / 2, max(x1 - x0, y1 - y0)
        row, column = round((y - 1.5) / 4), round((x - 1.5) / 4)
        spread = 2 * max(side / 10, 2.5) ** 2
        bell = (-((place - x) ** 2) / spread - ((place - y) ** 2)[:, None] / spread).exp()
        labels[view] = torch.maximum(labels[view], bell)
        peaks[view, row, column] = True
        _, log, left = maps[view, :, row, column]
        logs.append((log - math.log(side / SIZE)).abs())
        lefts.append(-(left if hand else -left).sigmoid().log())
    shown = maps[:, 0].sigmoid()
    focal = torch.where(
        peaks, -shown.log() * (1 - shown) ** 2, -(1 - shown).log() * shown**2 * (1 - labels) ** 4
    )
    expected = focal.sum() / 5 + torch.stack(logs).mean() + 0.5 * torch.stack(lefts).mean()
    torch.testing.assert_close(losses["hands"], expected)

    alone = hand_losses(model, HandBatch.of(drawn[[0, 2, 3, 5]]), config)
    for name in (
        "places",
        "heat",
        "depths",
        "middle",
        "error",
        "steady",
        "sdf",
        "wide",
        "weight",
        "direction",
    ):
        torch.testing.assert_close(losses[name], alone[name], rtol=1e-4, atol=1e-5, msg=name)


def test_shapes_depend_on_no_value(model: NVF) -> None:
    """Neither the losses nor their gradients read a tensor's values, as in a CUDA graph."""

    class Operators(TorchDispatchMode):
        names: set[str] = set()  # noqa: RUF012

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.names.add(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    batch = HandBatch.of(views())
    with Operators():
        hand_losses(model, batch, HandLossConfig())["loss"].backward()
    reading = {"nonzero", "_local_scalar_dense", "item", "masked_select", "_unique2", "equal"}
    assert "convolution" in Operators.names and not Operators.names & reading


def test_parts_of_a_batch_join_with_their_posed_rows() -> None:
    first, second = views(3), views(2, seed=1)
    first.trust[1] = second.trust[0] = 0
    joined = HandBatch.join([HandBatch.of(first), HandBatch.of(second)])
    whole = HandBatch.of(HandViews.concatenate([first, second]))
    assert whole.posed.tolist() == [0, 2, 4]
    for name, one, other in zip(HandBatch._fields, joined, whole, strict=True):
        torch.testing.assert_close(one, other, msg=name, equal_nan=True)


def test_predicted_joints_place_the_field_without_a_gradient(model: NVF) -> None:
    model.eval()
    batch, config = HandBatch.of(views()), HandLossConfig(steady=0.0)
    assert model.heads is not None
    losses = hand_losses(model, batch, config)
    (losses["wide"] + losses["weight"] + losses["direction"]).backward()
    assert model.heads.joints.weight.grad is None
    with torch.no_grad():
        model.heads.joints.bias[21:] += 0.5  # 30 mm farther
    assert not torch.equal(hand_losses(model, batch, config)["wide"], losses["wide"])


def test_field_losses_by_hand() -> None:
    """Of three points the second is far from the surface, the third out of view."""
    joints = torch.tensor([[[0.0, 0, 400], [200, 0, 400]]])
    points = torch.tensor([[[20.0, 0, 400], [0, 40, 400], [0, 0, 420]]])
    distances = torch.tensor([[1.0, -25, 2]])
    weight, direction = torch.full((1, 3, 2), 7.0), torch.full((1, 3, 2, 3), 7.0)
    weight[0, 0] = torch.tensor([0.85, 0.1])  # true: 1 - 20 / 80 and 0, off by 0.1 each
    direction[0, 0, 0] = torch.tensor([-1.0, 0.1, 0])  # off by 0.1; the other joint is beyond 80 mm
    field = FieldValues(torch.tensor([[1.0, -25, torch.inf]]), weight, direction)
    losses = vote_losses(field, points, distances, joints, HandLossConfig())
    assert losses["weight"].item() == pytest.approx((0.1**2 / 2 + 0.1**2 / 2) / 2 / 0.2)
    assert losses["direction"].item() == pytest.approx(0.1**2 / 2)
    assert all(value == 0 for value in distance_losses(field, distances, HandLossConfig()).values())
