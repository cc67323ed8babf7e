"""Poses: names and bones, batches, conversion and scores."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from nvf_fast.pose import BONES, JOINT_NAMES, HandPose, Votes, error_scores, joint_scores


def batch(count: int = 3) -> HandPose:
    valid = torch.ones(count, dtype=torch.bool)
    valid[-1] = False
    joints = torch.rand(count, 21, 3)
    joints[-1] = torch.nan
    votes = tuple(Votes(torch.rand(i, 3), torch.rand(i, 21), torch.rand(i, 21, 3)) for i in range(count))
    voters = torch.arange(count, dtype=torch.int32)
    queried = torch.full_like(voters, 28_351)
    return HandPose(
        joints, joints[..., :2] * 2, torch.rand(count, 21), voters, valid, queried, valid.float(), votes
    )


def test_joint_names_and_bones() -> None:
    assert len(JOINT_NAMES) == len(set(JOINT_NAMES)) == 21
    assert JOINT_NAMES[0] == "WRIST"
    assert JOINT_NAMES[1:5] == ("THUMB_CMC", "THUMB_MCP", "THUMB_IP", "THUMB_TIP")
    assert JOINT_NAMES[9] == "MIDDLE_FINGER_MCP" and JOINT_NAMES[20] == "PINKY_TIP"
    assert sorted(child for _, child in BONES) == list(range(1, 21)), "each joint hangs on one other"
    assert [child for parent, child in BONES if parent == 0] == [1, 5, 9, 13, 17]
    assert (9, 10) in BONES and (4, 5) not in BONES


def test_batch_yields_single_poses() -> None:
    poses = batch()
    assert len(poses) == 3 and len(list(poses)) == 3
    assert torch.equal(poses[1].joints, poses.joints[1])
    assert poses[1].votes is poses.votes[1]
    assert poses[-1].valid == False and len(poses[:2]) == 2  # noqa: E712
    with pytest.raises(IndexError):
        poses[3]
    for single in (lambda: len(poses[0]), lambda: poses[0][0]):
        with pytest.raises(TypeError, match="not a batch"):
            single()


@pytest.mark.parametrize("form", [np.array, torch.tensor, list])
def test_batch_takes_masks_and_indices(form: Callable[[list], Any]) -> None:
    for poses in (batch(), batch().numpy()):
        for index, rows in (([True, False, True], [0, 2]), ([2, 0], [2, 0]), ([False] * 3, [])):
            chosen = poses[form(index)]
            np.testing.assert_array_equal(chosen.joints, poses.joints[rows])
            assert chosen.votes == tuple(poses.votes[row] for row in rows)
        assert poses[np.int64(1)].votes is poses.votes[1]
        with pytest.raises(IndexError, match="boolean"):
            poses[form([True, False])]


def test_slices_may_run_backwards() -> None:
    for poses in (batch(), batch().numpy()):
        np.testing.assert_array_equal(poses[::-1].valid, [False, True, True])
        assert poses[::-2].votes == (poses.votes[2], poses.votes[0])
    assert batch().numpy()[::-1].to("cpu").joints.shape == (3, 21, 3)


@pytest.mark.parametrize("index", [True, np.True_, None, [[0, 1]], np.zeros((1, 3), int)])
def test_refuses_indices_of_several_axes(index: Any) -> None:
    for poses in (batch(), batch().numpy()):
        with pytest.raises(IndexError, match="a number, a slice, a list or a mask, got"):
            poses[index]


def test_poses_are_compared_and_hashed_as_objects() -> None:
    poses = [*batch().numpy()]
    assert poses[1] in poses and poses[1] not in poses[:1] and len({*poses, poses[0]}) == 3
    assert poses[0].votes not in (poses[1].votes, poses[2].votes)


def test_representation_is_short_and_names_what_matters() -> None:
    poses = replace(batch(), side=("right", "left", "left"))
    for each in (poses, poses.numpy()):
        assert repr(each) == (
            "HandPose(joints=(3, 21, 3), side=('right', 'left', 'left'), presence=[1.0, 1.0, 0.0], "
            "valid=[True, True, False])"
        )
        assert repr(each[2]) == "HandPose(joints=(21, 3), side='left', presence=0.0, valid=False)"


def test_numpy_preserves_every_field() -> None:
    poses = batch()
    arrays = poses.numpy()
    np.testing.assert_array_equal(arrays.joints, poses.joints)
    assert arrays.voters.dtype == np.int32 and arrays.valid.dtype == np.bool_
    np.testing.assert_array_equal(arrays.votes[2].directions, poses.votes[2].directions)
    one = arrays[2]
    assert not one.valid and one.voters == 2 and isinstance(one.scores, np.ndarray)


def test_poses_convert_between_arrays_and_tensors() -> None:
    poses = batch()
    for pose in (poses, poses[1], poses[:0]):
        for given in (pose, pose.numpy()):
            tensors = given.to("cpu")
            for name in ("joints", "joints_2d", "scores", "voters", "valid", "points_evaluated", "presence"):
                expected, found = getattr(pose, name), getattr(tensors, name)
                torch.testing.assert_close(found, expected, equal_nan=True)
            assert isinstance(tensors.numpy().valid, np.ndarray | np.bool_)
    votes = poses[2].numpy().to("cpu").votes
    assert torch.equal(votes.directions, poses.votes[2].directions)


def test_scaled_poses() -> None:
    poses = replace(batch(), expected_error=torch.full((3, 21), 10.0), hand_scale=torch.full((3,), 30.0))
    poses.expected_error[-1] = torch.nan
    ratio = torch.tensor([2.0, 0.5, 3.0])
    scaled = poses.scaled(ratio)
    torch.testing.assert_close(scaled.joints[1], 0.5 * poses.joints[1])
    assert torch.equal(scaled.joints_2d[:2], poses.joints_2d[:2])
    assert scaled.hand_scale.tolist() == [60.0, 15.0, 90.0] and scaled.expected_error[0, 3] == 20
    expected_scores = torch.tensor([0.5, 1 / (1 + 0.25**2), 0.0])  # of errors of 20 mm, 5 mm, and NaN
    torch.testing.assert_close(scaled.scores, expected_scores[:, None].expand(3, 21))
    torch.testing.assert_close(scaled.votes[2].points, 3 * poses.votes[2].points)
    torch.testing.assert_close(scaled.votes[1].directions, 0.5 * poses.votes[1].directions)
    assert torch.equal(scaled.votes[2].weights, poses.votes[2].weights)
    for pose, factor, one in zip(poses.numpy(), ratio.tolist(), scaled, strict=True):
        single = pose.scaled(factor)
        assert single.joints.dtype == np.float32 and single.hand_scale.dtype == np.float32
        np.testing.assert_allclose(single.joints, one.joints)
        np.testing.assert_allclose(single.scores, one.scores)
        np.testing.assert_allclose(single.votes.points, one.votes.points)
    plain = batch().scaled(2.0)  # of a network without expected errors
    assert plain.expected_error is None and plain.hand_scale is None
    assert plain.scores.min() >= 0 and plain.votes[1].points.shape == (1, 3)


def test_to_dict_is_json() -> None:
    poses = batch()
    for pose in (poses[0], poses.numpy()[0]):
        read = json.loads(json.dumps(pose.to_dict(), allow_nan=False))
        np.testing.assert_allclose(read["joints"], poses.joints[0], rtol=1e-6)
        np.testing.assert_allclose(read["scores"], poses.scores[0], rtol=1e-6)
        assert read["valid"] is True and read["voters"] == 0
        assert read["points_evaluated"] == 28_351
    invalid = json.loads(json.dumps(poses[2].to_dict(), allow_nan=False))
    assert invalid["valid"] is False and invalid["joints"] is None and invalid["joints_2d"] is None
    with pytest.raises(TypeError, match="batch of 3"):
        poses.to_dict()


def test_scores_fall_with_weight_and_with_the_square_of_the_spread() -> None:
    weight = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.5, 1.4, -0.2, 0.0])
    spread = torch.tensor([0.0, 10.0, 20.0, 40.0, 20.0, 0.0, 1.0, torch.nan])
    expected = torch.tensor([1.0, 0.8, 0.5, 0.2, 0.25, 1.0, 0.0, 0.0])
    torch.testing.assert_close(joint_scores(weight, spread), expected)
    torch.testing.assert_close(error_scores(spread[:4]), expected[:4])
