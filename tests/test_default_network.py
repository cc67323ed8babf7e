"""The embedded network: loading, size, and poses of rendered hands."""

from __future__ import annotations

import numpy as np
import pytest

import nvf_fast
from nvf_fast.checkpoint import EMBEDDED, embedded_names, resolve
from nvf_fast.data.hand_views import VIEW_SIZE, HandViews
from nvf_fast.estimator import PoseEstimator
from nvf_fast.synthetic.rendered_views import SyntheticViews

MOST_BYTES = 12_000_000


@pytest.fixture(scope="module")
def estimator() -> PoseEstimator:
    return nvf_fast.load(device="cpu")


def cameras(views: HandViews) -> np.ndarray:
    half = VIEW_SIZE / 2
    return np.array([[[f, 0, half], [0, f, half], [0, 0, 1]] for f in views.focal])


def test_is_the_only_embedded_checkpoint(estimator: PoseEstimator) -> None:
    assert embedded_names() == ["default"] and resolve() == EMBEDDED / "default"
    config = estimator.model.config
    assert (config.view, config.encoder, config.method) == ("hand", "unet", "nvf")
    assert not config.hand_scale and config.pose_code > 0
    assert all(value.isfinite().all() for value in estimator.model.state_dict().values())


def test_files_fit_into_the_wheel() -> None:
    assert sum(path.stat().st_size for path in resolve().iterdir()) <= MOST_BYTES


def test_poses_rendered_hands(estimator: PoseEstimator) -> None:
    views = SyntheticViews(5).draw(8, "close")
    boxes, K = views.boxes[:, 0], cameras(views)
    sides = ["left" if left else "right" for left in views.left[:, 0]]
    poses = estimator(views.images, K, box=boxes, side=sides)
    assert poses.valid.sum() >= 7
    assert np.isfinite(poses.joints[poses.valid]).all() and (poses.joints[poses.valid, :, 2] > 0).all()
    pixels = views.joints @ K.transpose(0, 2, 1)
    errors = np.linalg.norm(pixels[..., :2] / pixels[..., 2:] - poses.joints_2d, axis=-1).mean(1)
    # 0.11 of the box's longer side in the mean, 0.17 at most, after 0.5 million images.
    assert np.nanmean(errors / (boxes[:, 2:] - boxes[:, :2]).max(1)) < 0.2


@pytest.mark.parametrize("level", [0, 20, 255])
def test_finds_no_hand_in_a_uniform_image(estimator: PoseEstimator, level: int) -> None:
    for height, width in ((480, 640), (90, 120)):
        intrinsics = np.array([[width, 0, width / 2], [0, width, height / 2], [0, 0, 1.0]])
        assert len(estimator(np.full((height, width, 3), level, np.uint8), intrinsics)) == 0
