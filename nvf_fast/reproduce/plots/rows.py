"""Predictions with their surfaces and votes, for figures 4, 6 and 7."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nvf_fast.baselines import DenseBaseline
from nvf_fast.camera import network_view, project
from nvf_fast.data.sample import HandSample
from nvf_fast.estimator import PoseEstimator
from nvf_fast.pose import HandPose, Votes
from nvf_fast.reproduce.plots.panels import Mask
from nvf_fast.surface import MARGIN_MM, NOTHING, Mesh, level_mesh
from nvf_fast.volumes import FrustumVolume


@dataclass(frozen=True)
class PredictionRow:
    """One method's prediction for one image, in the camera's frame."""

    sample: HandSample  # the image and its labels
    method: str  # label of the row, or ""
    hand: Mesh | Mask  # the surface of signed distance zero, or the pixels of the hand
    voters: np.ndarray  # (V, 3) mm; for voting pixels, any point on their rays
    weights: np.ndarray  # (V, 21) of the votes for each joint
    joints: np.ndarray  # (21, 3) mm; root-relative ones are moved to the true root
    valid: bool  # whether the pose is valid; an invalid one is drawn without pose and votes


def nvf_row(
    estimator: PoseEstimator,
    sample: HandSample,
    use_scale: bool = False,
    method: str = "",
    spacing_mm: float = 4.0,
) -> PredictionRow:
    """Make the row of an estimator's prediction for a sample.

    Args:
        estimator: of a field of the reference view; a camera-space one uses the optical axis or the sample's
            box, a root-relative one the sample's root.
        sample: the image and its labels.
        use_scale: whether the sample's hand scale is given.
        method: label of the row.
        spacing_mm: mm, of the lattice for the surface, which extends 40 mm beyond the joints.

    Raises:
        ValueError: the sample lacks the root that the estimator needs, or the estimator rejects it.
        ImportError: scikit-image is not installed (`pip install nvf-fast[viz]`).
    """
    scale = sample.hand_scale if use_scale else None
    root, box = _placing(estimator, sample)
    pose = estimator(sample.image, sample.intrinsics, scale, box, sample.side, return_votes=True, root=root)
    surface = NOTHING
    if pose.valid:
        distance = estimator.field_distance(sample.image, sample.intrinsics, pose, scale, root)
        joints = torch.from_numpy(pose.joints).to(estimator.device)
        surface = level_mesh(distance, joints.amin(0) - MARGIN_MM, joints.amax(0) + MARGIN_MM, spacing_mm)
    return pose_row(sample, pose, surface, method)


def pose_row(sample: HandSample, pose: HandPose, surface: Mesh, method: str = "") -> PredictionRow:
    """Make the row of one pose with its votes."""
    votes = pose.votes
    assert isinstance(votes, Votes)
    return PredictionRow(sample, method, surface, votes.points, votes.weights, pose.joints, bool(pose.valid))


def _placing(estimator: PoseEstimator, sample: HandSample) -> tuple[Tensor | None, Tensor | None]:
    """The root of a root-relative network, the box of a camera-space one where the sample has one."""
    if not estimator.volume.needs_root:
        return None, sample.box
    if sample.root is None:
        raise ValueError(f"{sample.id}: a root-relative pose needs the root, and the data set has none")
    return sample.root, None


@torch.no_grad()
def dense_row(
    model: DenseBaseline, sample: HandSample, use_scale: bool = False, method: str = ""
) -> PredictionRow:
    """Make the camera-space baseline's row for a sample, voters on their rays at the pose's mean depth."""
    volume, size, device = FrustumVolume(), model.config.input_size, model.centre.device
    intrinsics = torch.from_numpy(sample.intrinsics).double()
    placement = volume.place(intrinsics[None], size)
    view = network_view(torch.tensor(sample.image, device=device), placement.homographies[0], size)
    features = model.encode(view)
    scale = torch.tensor([sample.hand_scale], device=device) if use_scale else None
    joints, _ = model.predict(features, scale)
    votes = model.votes(features, scale)
    voting = votes.hand[0] > 0
    side = model.config.feature_size
    _, directions = volume.rays(side, device)
    valid = bool(joints.isfinite().all())
    depth = joints[0, :, 2].mean() if valid else torch.ones((), device=device)
    mask = Mask(
        project(directions.cpu().double(), intrinsics).numpy().reshape(side, side, 2),
        votes.hand[0].numpy(force=True).reshape(side, side),
    )
    return PredictionRow(
        sample,
        method,
        mask,
        voters=(directions[voting] * depth).numpy(force=True),
        weights=votes.weight[0, voting].numpy(force=True),
        joints=joints[0].numpy(force=True),
        valid=valid,
    )
