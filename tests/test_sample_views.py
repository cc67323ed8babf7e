"""Hand views of a data set's images: labels against image content."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from nvf_fast.data.hand_views import VIEW_POINTS, VIEW_SIZE
from nvf_fast.data.sample import HandSample
from nvf_fast.data.sample_views import SampleViews, view_samples
from nvf_fast.data.surfaces import MeshHands
from nvf_fast.joint_definitions import UNIT_SCALE_MM
from tests.sampled_hands import sample_hands

K = np.array([[700.0, 0, 150], [0, 690.0, 130], [0, 0, 1]])


class Spots:
    """Grey images of 300 x 260 px with a bright spot on joint 9 of the hand."""

    name, split, fingerprint = "spots", "training", "spots"
    why_no_surfaces: str | None = None

    def __init__(self) -> None:
        self.hands = sample_hands(4, torch.Generator().manual_seed(0))
        self.hands = self.hands.translated(torch.tensor([0.0, 0, 420]) - self.hands.joints.mean(1))

    def __len__(self) -> int:
        return len(self.hands)

    def __getitem__(self, index: int) -> HandSample:
        hand: MeshHands = self.hands[index : index + 1]
        projected = hand.joints[0, 9].double().numpy() @ K.T
        x, y = projected[:2] / projected[2]
        rows, columns = np.indices((260, 300))
        spot = 60 + 190 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 18)
        image = np.repeat(spot[..., None], 3, 2).astype(np.uint8)
        return HandSample(f"spots/{index}", image, K, joints=hand.joints[0], surface=hand)


def test_joint_projection() -> None:
    views = SampleViews(Spots())(24, np.random.default_rng(0))
    assert len(views) == 24 and (views.trust == 1).all() and not views.left.any()
    for image, focal, joints in zip(views.images, views.focal, views.joints, strict=True):
        x, y = focal * joints[9, :2] / joints[9, 2] + VIEW_SIZE / 2
        bright = np.where(image[..., 0] > 160, image[..., 0].astype(float) - 60, 0)
        rows, columns = np.indices(bright.shape)
        assert bright.sum() > 0
        assert abs((bright * columns).sum() / bright.sum() - x) < 0.5
        assert abs((bright * rows).sum() / bright.sum() - y) < 0.5


def test_unit_hand_labels() -> None:
    dataset = Spots()
    views = SampleViews(dataset)(12, np.random.default_rng(1))
    joints = torch.from_numpy(views.joints)
    np.testing.assert_allclose((joints[:, 10] - joints[:, 9]).norm(dim=-1), UNIT_SCALE_MM, rtol=1e-4)
    assert views.points.shape == (12, VIEW_POINTS, 3)
    assert (np.abs(views.distances) < 12).mean() > 0.45  # half of the points lie near the surface
    projected = views.focal[:, None, None] * joints[..., :2].numpy() / joints[..., 2:].numpy() + VIEW_SIZE / 2
    np.testing.assert_allclose(views.boxes[:, 0, :2], projected.min(1), atol=1e-3)
    sizes = np.ptp(projected, axis=1).max(1) / VIEW_SIZE
    assert sizes.min() > 0.45 and sizes.max() < 1.05


def test_border() -> None:
    sample = Spots()[0]
    assert sample.joints is not None
    projected = sample.joints.double().numpy() @ K.T
    right = int((projected[:, 0] / projected[:, 2]).mean())
    crop = replace(sample, image=sample.image[:, :right])
    views = view_samples([crop], np.random.default_rng(2))
    black = (views.images[0] == 0).all(-1)
    assert 0.1 < black.mean() < 0.9 and black[:, -8:].mean() > 0.9


def test_equal_generators_draw_equal_views() -> None:
    first, again = (SampleViews(Spots())(3, np.random.default_rng(5)) for _ in range(2))
    other = SampleViews(Spots())(3, np.random.default_rng(6))
    for name, value in vars(first).items():
        np.testing.assert_array_equal(value, getattr(again, name))
    assert not np.array_equal(first.points, other.points)


def test_refuses_unlabelled_samples() -> None:
    class Bare(Spots):
        why_no_surfaces = "it has no meshes"

    with pytest.raises(ValueError, match="no meshes"):
        SampleViews(Bare())
    left = replace(Spots()[0], side="left")
    with pytest.raises(ValueError, match="spots/0: hand views are drawn of right hands"):
        view_samples([left], np.random.default_rng(0))
