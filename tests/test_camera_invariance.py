"""Poses of one rendered hand in images of other cameras, and in files of other orientations and formats."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import numpy as np
import pytest

import nvf_fast
from benchmarks import camera_invariance
from benchmarks.camera_invariance import KINDS, Variant, camera_variants, differences, file_variants, seen_by
from nvf_fast.camera_model import Camera
from nvf_fast.synthetic.wide_images import WideImages


def test_warps_move_pixels_along_their_rays() -> None:
    """A spot of an image appears where the other camera projects its ray, black beyond the image."""
    camera = Camera.from_fov(60, (160, 120))
    y, x = np.mgrid[:120, :160]
    spot = 250 * np.exp(-((x - 135) ** 2 + (y - 100) ** 2) / 18)
    image = np.repeat(spot[..., None], 3, 2).astype(np.uint8)
    fisheye = Camera(camera.K, (160, 120), (0.05, 0.0, 0.0, 0.0), "fisheye")
    warped = seen_by(fisheye, image, camera)[..., 0].astype(np.float64)
    centroid = [(warped * axis).sum() / warped.sum() for axis in (x, y)]
    expected = fisheye.project(camera.rays(np.array([135.0, 100.0])))
    np.testing.assert_allclose(centroid, expected, atol=0.1)
    assert abs(expected[0] - 135) > 1, "another place than in the first image"
    part, white = camera.cropped(20, 0, 160, 120), np.full((120, 140, 3), 255, np.uint8)
    assert not seen_by(camera, white, part)[:, :10].any() and (seen_by(part, white, part) == 255).all()


def test_poses_do_not_depend_on_the_camera(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(camera_invariance, "VARIANTS", 2)
    wide = WideImages(camera_invariance.SEED, shape=(360, 480), sizes=(100, 180)).draw(0, ["right"])
    (hand,), camera = wide.hands, Camera(wide.intrinsics, (480, 360))
    base = Variant("", wide.image, camera, camera, np.eye(3))
    variants = chain(
        camera_variants(wide.image, camera, hand.box, 0), file_variants(wide.image, camera, tmp_path)
    )
    found = differences(nvf_fast.load(device="cpu"), hand.joints, hand.side, base, variants)
    assert found.keys() == KINDS.keys()
    mean = {kind: np.mean([absolute for absolute, _ in pairs]) for kind, pairs in found.items()}
    # Measured: 0 mm for the same view; 0.3 and 0.8 mm for pixels resampled by another K; 4 and 7 mm for
    # boxes about distorted hands, where a box moved by 5 % makes 8 mm, and 10 and 21 mm without their lens.
    assert len(found["orientation"]) == 8 and mean["orientation"] == 0
    assert mean["crop"] < 0.1
    assert mean["K"] < 1.5 and mean["resize"] < 2.5
    assert mean["plumb bob"] < 0.7 * mean["plumb bob, ignored"] and mean["plumb bob"] < 8
    assert mean["fisheye"] < 0.7 * mean["fisheye, ignored"] and mean["fisheye"] < 12
    assert mean["format"] < 5
