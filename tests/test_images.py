"""Training images of each task: cropped or remapped, with the hand in the task's frame."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nvf_fast.camera import project, reference_intrinsics
from nvf_fast.config import NVFConfig
from nvf_fast.data.sample import DamagedImageError, HandSample
from nvf_fast.training.images import TaskImages
from tests.sampled_hands import sample_hands

K = np.array([[700.0, 0, 150], [0, 690.0, 130], [0, 0, 1]])


class Crosses:
    """Black images of 300 x 260 px with a bright spot on joint 9; those in `broken` are unreadable."""

    name, split, fingerprint, why_no_surfaces = "crosses", "training", "crosses", None

    def __init__(self, broken: tuple[int, ...] = (), **changes: object) -> None:
        self.hands = sample_hands(6, torch.Generator().manual_seed(0)).translated(
            torch.tensor([[0.0, 0, 300]] * 6)
        )
        self.broken, self.changes = broken, changes

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> HandSample:
        if index in self.broken:
            raise DamagedImageError(f"{index}.jpg is cut short")
        hand = self.hands[index : index + 1]
        pixel = project(hand.joints[0, 9:10].double(), torch.from_numpy(K))[0]
        row, column = torch.meshgrid(torch.arange(260), torch.arange(300), indexing="ij")
        spot = torch.exp(-((column - pixel[0]) ** 2 + (row - pixel[1]) ** 2) / 18)
        image = (255 * spot).to(torch.uint8)[..., None].expand(-1, -1, 3).numpy()
        fields: dict[str, Any] = {
            "id": f"image/{index}",
            "image": image,
            "intrinsics": K,
            "joints": hand.joints[0],
            "root": hand.joints[0, 0],
            "surface": hand,
        }
        return HandSample(**fields | self.changes)


def centroid(image: Tensor) -> Tensor:
    """Return the brightness centroid (x, y) px of an image (3, S, S)."""
    bright = image[0].double()
    axis = torch.arange(len(bright), dtype=torch.float64)
    return torch.stack([bright.sum(0) @ axis, bright.sum(1) @ axis]) / bright.sum()


def test_camera_space_images_are_remapped_and_hands_stay() -> None:
    dataset = Crosses()
    images, hands, damaged = TaskImages(dataset, NVFConfig(input_size=128)).__getitems__([3, 0])
    assert images.shape == (2, 3, 128, 128) and images.dtype == torch.uint8 and damaged == ()
    assert torch.equal(hands.joints, dataset.hands.joints[[3, 0]])
    for image, joints in zip(images, hands.joints, strict=True):
        expected = project(joints[9:10].double(), reference_intrinsics(128, dtype=torch.float64))[0]
        assert (centroid(image) - expected).norm() < 0.3  # px; rounding to grey levels


def test_root_relative_images_are_crops_about_the_wrist() -> None:
    dataset = Crosses()
    images, hands, _ = TaskImages(dataset, NVFConfig(input_size=128, task="root-relative")).__getitems__(
        [1, 2]
    )
    torch.testing.assert_close(hands.joints[:, 0], torch.zeros(2, 3), rtol=0, atol=1e-3)
    for index, image, joints in zip([1, 2], images, hands.joints, strict=True):
        root = dataset.hands.joints[index, 0].double()
        # The image shows a joint at its own depth; the crop is scaled by the wrist's depth.
        projected = (joints[9] + root)[:2] * root[2] / (joints[9] + root)[2] - root[:2]
        assert (centroid(image) - 64 * (1 + projected / 170)).norm() < 0.3


def test_images_that_fit_are_unchanged() -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    dataset = Crosses(image=image, intrinsics=reference_intrinsics(64, dtype=torch.float64).numpy())
    images = TaskImages(dataset, NVFConfig(input_size=64)).__getitems__([0]).images
    assert np.array_equal(images[0].permute(1, 2, 0).numpy(), image)


def test_damaged_images_are_replaced_deterministically_and_reported() -> None:
    data = TaskImages(Crosses(broken=(2, 3)), NVFConfig(input_size=64))
    images, hands, damaged = data.__getitems__([1, 2])
    assert damaged == ("2.jpg is cut short", "3.jpg is cut short")
    whole = TaskImages(Crosses(), NVFConfig(input_size=64)).__getitems__([1, 4])
    assert torch.equal(images, whole.images) and torch.equal(hands.joints, whole.hands.joints)
    with pytest.raises(DamagedImageError, match=r"none of the 6 images can be read; the last: 1.jpg"):
        TaskImages(Crosses(broken=tuple(range(6))), NVFConfig(input_size=64)).__getitems__([2])


def test_refuses_samples_without_joints_surface_or_right_hand() -> None:
    for changes, message in (
        ({"joints": None}, "a right hand without joints"),
        ({"side": "left"}, "a left hand with joints"),
        ({"surface": None}, "image/0: no surface"),
    ):
        with pytest.raises(ValueError, match=message):
            TaskImages(Crosses(**changes), NVFConfig(input_size=64)).__getitems__([0])
    alone = TaskImages(Crosses(surface=None), NVFConfig(input_size=64, method="holistic"))
    assert alone.__getitems__([0, 5]).hands.joints.shape == (2, 21, 3)
