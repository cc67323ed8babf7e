"""RS-NVF at inference: the cube around the wrist, its crop, and poses in the camera's frame."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from nvf_fast import pipeline
from nvf_fast.baselines import build
from nvf_fast.camera import project, remap
from nvf_fast.config import NVFConfig
from nvf_fast.estimator import PoseEstimator
from nvf_fast.kernels.cast_votes.reference import cast_votes
from nvf_fast.model import NVF
from nvf_fast.volumes import RootCube

CONFIG = NVFConfig(
    input_size=32, stem=8, width=16, stacks=1, groups=4, hidden=(32, 16), scale_optional=True,
    task="root-relative",
)  # fmt: skip
K = np.array([[500.0, 0, 160], [0, 520.0, 120], [0, 0, 1]])
ROOT = np.array([30.0, -20.0, 600.0])


@pytest.fixture
def model() -> NVF:
    """A network with several hundred voters of positive weight."""
    model = build(CONFIG)
    assert isinstance(model, NVF)
    with torch.no_grad():
        torch.nn.init.normal_(model.field.weights[-1], std=0.3)
        model.field.weights[-1][1::4] *= 0.1
        model.field.biases[-1][1::4] = 0.7
    return model


@pytest.fixture
def image() -> np.ndarray:
    # 324 px is divisible by the 9 px that the crop averages, so mirroring keeps the blocks.
    return np.random.default_rng(0).integers(0, 256, (240, 324, 3), dtype=np.uint8)


def test_pose_is_field_and_vote_over_the_cube_plus_the_root(model: NVF, image: np.ndarray) -> None:
    estimator = PoseEstimator(model, step_mm=34.0)
    pose = estimator(image, K, root=ROOT, hand_scale=41.0, return_votes=True)
    cube = RootCube()
    placement = cube.place(torch.from_numpy(K)[None], 32, roots=torch.from_numpy(ROOT)[None])
    homography = placement.homographies
    crop = remap(torch.from_numpy(image).permute(2, 0, 1)[None], homography, 32) / 127.5 - 1
    points = estimator.lattice.points(estimator.lattice.every(1))
    with torch.no_grad():
        features, scale = estimator.model.encode(crop), torch.tensor([41.0])
        field = model.query(features, cube.network_points(points), model.reference_intrinsics, scale)
    voting = field.sdf[0].abs() < 5.0
    count = int(voting.sum())
    assert pose.voters == count > 10 and pose.valid and pose.points_evaluated == 1000
    votes = torch.cat([field.weight[..., None], field.direction], -1)[:, voting]
    joints, *_ = cast_votes(
        points[voting][None].double(),
        votes.double(),
        torch.tensor([count]),
        fraction=0.5,
    )
    np.testing.assert_allclose(pose.joints - ROOT, joints[0], rtol=0, atol=2e-3)
    np.testing.assert_allclose(
        pose.joints_2d, project(torch.tensor(pose.joints), torch.from_numpy(K).float()), atol=1e-3
    )
    np.testing.assert_allclose(pose.votes.points - ROOT, points[voting], atol=1e-3)


def test_left_hand_equals_the_mirrored_right_hand(model: NVF, image: np.ndarray) -> None:
    estimator = PoseEstimator(model, step_mm=34.0)
    right = estimator(image, K, root=ROOT)
    mirrored_K = K.copy()
    mirrored_K[0, 2] = image.shape[1] - 1 - K[0, 2]
    left = estimator(
        image[:, ::-1].copy(), mirrored_K, root=ROOT * [-1, 1, 1], side="left", return_votes=True
    )
    np.testing.assert_allclose(left.joints * [-1, 1, 1], right.joints, rtol=0, atol=0.05)
    again = estimator(image, K, root=ROOT, return_votes=True)
    np.testing.assert_allclose(left.votes.points * [-1, 1, 1], again.votes.points, atol=1e-3)
    np.testing.assert_allclose(left.votes.directions * [-1, 1, 1], again.votes.directions, atol=0.02)


def test_batch_equals_single_images(model: NVF, image: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    estimator = PoseEstimator(model, step_mm=34.0)
    other = image[:200, :250]
    roots = np.stack([ROOT, [0.0, 10.0, 450.0]])
    both = estimator([image, other], K, root=roots, hand_scale=[30.0, 44.0])
    for index, each in enumerate([image, other]):
        alone = estimator(each, K, root=roots[index], hand_scale=[30.0, 44.0][index])
        np.testing.assert_allclose(both[index].joints, alone.joints, rtol=0, atol=2e-3)
    assert torch.is_tensor(estimator(torch.from_numpy(image), K, root=ROOT).joints)
    monkeypatch.setattr(pipeline, "VOTE_BYTES", 1)  # one image at a time
    apart = estimator([image, other], K, root=roots, hand_scale=[30.0, 44.0], return_votes=True)
    np.testing.assert_allclose(apart.joints, both.joints, rtol=0, atol=2e-3)
    assert [len(votes.points) for votes in apart.votes] == apart.voters.tolist()


@pytest.mark.parametrize(("search", "step"), [("octree", 8.0), ("guided", 8.0)])
def test_searches_run_in_the_cube(model: NVF, image: np.ndarray, search: str, step: float) -> None:
    """Searches query some points of the dense grid and find a subset of its voters."""
    dense = PoseEstimator(model, step)(image, K, root=ROOT, return_votes=True)
    estimator = PoseEstimator(model, step, search=search)
    pose = estimator(image, K, root=ROOT, return_votes=True)
    voters = {tuple(point) for point in dense.votes.points.round(3).tolist()}
    assert pose.valid and pose.voters > 0.5 * dense.voters
    assert {tuple(point) for point in pose.votes.points.round(3).tolist()} <= voters
    if search == "guided":
        again = estimator(image, K, root=ROOT, previous=pose)
        assert again.valid and again.points_evaluated <= estimator.lattice.shape[0] ** 3 * 2


def test_image_without_voters_is_invalid(model: NVF, image: np.ndarray) -> None:
    with torch.no_grad():
        model.field.weights[-1].zero_()
        model.field.biases[-1][0] = 2.0
    pose = PoseEstimator(model)(image, K, root=ROOT)
    assert not pose.valid and pose.voters == 0 and np.isnan(pose.joints).all() and not pose.scores.any()


def test_pose_with_a_joint_without_weight_is_invalid(model: NVF, image: np.ndarray) -> None:
    with torch.no_grad():
        model.field.weights[-1][1 + 4 * 7] = model.field.biases[-1][1 + 4 * 7] = 0.0
    pose = PoseEstimator(model, step_mm=34.0)(image, K, root=ROOT)
    assert pose.voters > 10 and not pose.valid and np.isnan(pose.joints).all() and not pose.scores.any()


def test_refuses_invalid_arguments(model: NVF, image: np.ndarray) -> None:
    estimator = PoseEstimator(model)
    for root, message in (
        ([0.0, 0.0], r"root must be \(3,\), or \(1, 3\)"),
        ([0.0, 0.0, -5.0], "in front of the camera"),
        ([0.0, np.nan, 500.0], "in front of the camera"),
        (ROOT / 1000, "multiply metres by 1000"),
    ):
        with pytest.raises(ValueError, match=message):
            estimator(image, K, root=root)
    with pytest.raises(ValueError, match=r"needs root, the wrist \(3,\) or \(B, 3\) mm.* got None"):
        estimator(image, K)
    with pytest.raises(ValueError, match="box must be None: the root places the view"):
        estimator(image, K, box=(0, 0, 100, 100), root=ROOT)
    camera_space = PoseEstimator(NVF(replace(CONFIG, task="camera-space")))
    with pytest.raises(ValueError, match=r"root must be None.* not a camera-space one"):
        camera_space(image, K, root=ROOT)
