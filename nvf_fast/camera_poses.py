"""Poses in the frames of the cameras that took the images, from estimates in the frames of volumes."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from nvf_fast.camera import view_frame
from nvf_fast.config import HAND_JOINTS
from nvf_fast.joint_definitions import UNIT_SCALE_MM
from nvf_fast.pipeline import Estimates
from nvf_fast.pose import HandPose, Votes, error_scores
from nvf_fast.requests import Request


def camera_poses(
    estimates: Estimates, request: Request, with_votes: bool, presence_threshold: float
) -> HandPose[Tensor]:
    """The batch of poses on the CPU; a hand is valid where its presence reaches the threshold."""
    placement = request.placement
    frames = view_frame(placement.frames, estimates.left)
    # Points are rows, and the inverse of a frame is its transpose.
    joints = estimates.joints.double() @ frames + placement.origins[:, None]
    valid = joints.isfinite().all(-1).all(-1) & (estimates.presence >= presence_threshold)
    joints = torch.where(valid[:, None, None], joints, math.nan)
    votes = []
    for (points, cast), frame, origin, count in zip(
        estimates.votes, frames.float(), placement.origins.float(), estimates.voters.tolist(), strict=False
    ):
        points, cast = points[:count].cpu(), cast[:count].cpu()
        votes.append(Votes(points @ frame + origin, cast[..., 0], cast[..., 1:] @ frame))
    left, hand = request.left | estimates.left, joints.shape[1] == HAND_JOINTS
    pose = HandPose(
        joints=joints.float(),
        joints_2d=request.cameras.project(joints).float(),
        scores=torch.where(valid[:, None], estimates.scores, 0.0),
        voters=estimates.voters,
        valid=valid,
        points_evaluated=estimates.points_evaluated,
        presence=estimates.presence,
        votes=tuple(votes) if with_votes else None,
        side=tuple("left" if each else "right" for each in left.tolist()) if hand else None,
        box=None if request.boxes is None else request.boxes.float(),
        image_index=torch.tensor(request.image_index),
    )
    return pose if placement.slopes is None else _sized(pose, estimates.errors, request.scale)


def _sized(pose: HandPose[Tensor], errors: Tensor, scale: Tensor | None) -> HandPose[Tensor]:
    """The pose in a hand view, for hand scales (B,) mm or the unit hand, with expected errors (B, 21) mm."""
    errors = torch.where(pose.valid[:, None], errors, math.nan)
    pose = replace(
        pose,
        expected_error=errors,
        scores=error_scores(errors),
        hand_scale=torch.full_like(pose.presence, UNIT_SCALE_MM),
    )
    return pose if scale is None else pose.scaled(scale.double() / UNIT_SCALE_MM)
