"""Wide images of rendered hands: labels against the image, both sides, sizes, determinism."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nvf_fast.camera import project
from nvf_fast.data.draws import Stream
from nvf_fast.synthetic.rendered_views import ViewOptions
from nvf_fast.synthetic.wide_images import WideImages

SHAPE, SIZES = (270, 360), (40.0, 120.0)
BARE = ViewOptions(held=0.0, in_front=0.0)


@cache
def images() -> WideImages:
    return WideImages(5, shape=SHAPE, sizes=SIZES, options=BARE)


@pytest.mark.parametrize("side", ["right", "left"])
def test_joints_lie_on_the_hand(side: str) -> None:
    """Nearly all joints lie inside the silhouette; it ends beyond the fingertips, except at the forearm."""
    for index in range(6):
        hand, layer = images()._placed(Stream(index, "test", 0), side, 100.0, ())  # type: ignore[arg-type]
        projected = project(hand.joints, images().intrinsics)
        pixels = np.rint(projected).astype(int)
        covered = layer[..., 3] > 0.5
        assert covered[pixels[:, 1], pixels[:, 0]].sum() >= 20
        moved = np.clip(pixels + [0, 25], 0, [SHAPE[1] - 1, SHAPE[0] - 1])
        assert covered[moved[:, 1], moved[:, 0]].sum() < 20
        np.testing.assert_allclose(hand.box, [*projected.min(0), *projected.max(0)], atol=0.01)


def test_left_hands_are_mirror_images() -> None:
    def volume(joints: np.ndarray) -> float:
        """Signed: thumb, index finger and little finger from the wrist."""
        return float(np.linalg.det(joints[[1, 5, 17]].astype(np.float64) - joints[0]))

    right, left = (images().draw(3, [side]).hands[0] for side in ("right", "left"))  # type: ignore[list-item]
    assert right.side == "right" and left.side == "left"
    assert volume(right.joints) * volume(left.joints) < 0
    rows, columns = np.triu_indices(21, 1)
    lengths = [np.linalg.norm(h.joints[rows] - h.joints[columns], axis=1) for h in (right, left)]
    np.testing.assert_allclose(*lengths, rtol=1e-4, atol=1e-2)


def test_sizes_and_gaps() -> None:
    counts = set()
    for index in range(8):
        wide = images().draw(index)
        counts.add(len(wide.hands))
        assert wide.image.shape == (*SHAPE, 3) and wide.image.dtype == np.uint8
        for hand in wide.hands:
            longer = (hand.box[2:] - hand.box[:2]).max()
            assert 0.9 * SIZES[0] < longer < 1.15 * SIZES[1]
            assert (hand.box >= 0).all() and (hand.box[2:] <= [SHAPE[1] - 1, SHAPE[0] - 1]).all()
        if len(wide.hands) == 2:
            one, other = (hand.box for hand in wide.hands)
            assert (one[2:] < other[:2]).any() or (other[2:] < one[:2]).any()
    assert counts == {0, 1, 2}


def test_determinism() -> None:
    first = images().draw(1)
    images().draw(0)
    again, other = images().draw(1), WideImages(6, shape=SHAPE, sizes=SIZES).draw(1)
    np.testing.assert_array_equal(first.image, again.image)
    for one, same in zip(first.hands, again.hands, strict=True):
        np.testing.assert_array_equal(one.joints, same.joints)
    assert (first.image != other.image).any()


def test_background_folder(tmp_path: Path) -> None:
    for name, size in (("image.png", (90, 60)), ("panorama.png", (128, 64))):
        folder = tmp_path / name.split(".")[0]
        folder.mkdir()
        Image.new("RGB", size, (10, 120, 240)).save(folder / name)
        image = WideImages(5, backgrounds=folder, shape=SHAPE, sizes=SIZES).draw(0, []).image
        assert image.shape == (*SHAPE, 3)
        assert (np.diff(image.reshape(-1, 3).mean(0)) > 50).all(), "the background's colour"


def test_refuses_invalid_options() -> None:
    with pytest.raises(ValueError, match=r"sizes must be 0 < least <= largest < 270 px, got \(10, 300\)"):
        WideImages(0, shape=SHAPE, sizes=(10, 300))
    with pytest.raises(ValueError, match=r"no room for a hand of .* beside"):
        WideImages(0, shape=(100, 100), sizes=(60, 90)).draw(0, ["right"] * 4)
