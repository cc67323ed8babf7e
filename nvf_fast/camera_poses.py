"""Poses in the frames of the cameras that took the images, from estimates in the frames of volumes."""

from __future__ import annotations

import math

import numpy as np

from nvf_fast.camera import view_frame
from nvf_fast.config import HAND_JOINTS
from nvf_fast.joint_definitions import UNIT_SCALE_MM
from nvf_fast.pipeline import Results
from nvf_fast.pose import HandPose, Votes
from nvf_fast.requests import Request


def camera_poses(
    results: Results, request: Request, with_votes: bool, presence_threshold: float
) -> HandPose[np.ndarray]:
    """The batch of poses; valid are hands in front of the camera whose presence reaches the threshold."""
    (_, frames, origins, slopes), left = request.placement, request.left
    if results.left.any():
        frames, left = view_frame(frames, results.left), left | results.left
    # Points are rows, and the inverse of a frame is its transpose. The products are in float64.
    joints = results.joints @ frames + origins[:, None]
    # NaN is not in front of the camera, infinity not in its images.
    valid = np.isfinite(joints).all((1, 2)) & (joints[..., 2] > 0).all(1)
    valid &= results.presence >= presence_threshold
    scores, errors = results.scores, results.errors
    if not valid.all():
        joints[~valid], scores[~valid], errors[~valid] = math.nan, 0.0, math.nan
    pose = HandPose(
        joints=joints.astype(np.float32),
        joints_2d=request.cameras.project(joints).astype(np.float32),
        scores=scores,
        voters=results.voters,
        valid=valid,
        points_evaluated=results.points_evaluated,
        presence=results.presence,
        votes=_votes(results, frames, origins) if with_votes else None,
        side=tuple(["left" if each else "right" for each in left.tolist()])
        if joints.shape[1] == HAND_JOINTS
        else None,
        box=None if request.boxes is None else request.boxes.astype(np.float32),
        expected_error=None if slopes is None else errors,
        hand_scale=None if slopes is None else np.full_like(results.presence, UNIT_SCALE_MM),
        image_index=np.array(request.image_index),
    )
    if slopes is not None and request.scale is not None:
        return pose.scaled(request.scale.astype(np.float64) / UNIT_SCALE_MM)
    return pose


def _votes(results: Results, frames: np.ndarray, origins: np.ndarray) -> tuple[Votes[np.ndarray], ...]:
    votes = []
    frames, origins = frames.astype(np.float32), origins.astype(np.float32)
    for (points, cast), frame, origin, count in zip(
        results.votes, frames, origins, results.voters.tolist(), strict=True
    ):
        at, given = points[:count].cpu().numpy(), cast[:count].cpu().numpy()
        votes.append(Votes(at @ frame + origin, given[..., 0].copy(), given[..., 1:] @ frame))
    return tuple(votes)
