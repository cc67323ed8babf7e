"""Qualitative rows of an estimator's predictions."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from nvf_fast.camera import network_view, view_intrinsics
from nvf_fast.data.mesh import NOTHING, Distance, Mesh, level_mesh
from nvf_fast.data.sample import HandSample
from nvf_fast.estimator import PoseEstimator
from nvf_fast.evaluation.predictors import box_on_image
from nvf_fast.joint_definitions import UNIT_SCALE_MM
from nvf_fast.model import NVF
from nvf_fast.pose import HandPose, Votes
from nvf_fast.reproduce.plots.qualitative import QualitativeRow
from nvf_fast.volumes import HandVolume, Volume

MARGIN_MM = 40.0  # between the joints and the sides of the box in which the surface is sought


def nvf_row(
    estimator: PoseEstimator,
    sample: HandSample,
    use_scale: bool = False,
    method: str = "",
    spacing_mm: float = 4.0,
    window: tuple[int, int, int, int] | None = None,
) -> QualitativeRow:
    """Make the row of an estimator's prediction for a sample.

    Args:
        estimator: of a field; a camera-space one uses the optical axis or the sample's box, a root-relative
            one the sample's root.
        sample: the image and its labels.
        use_scale: whether the sample's hand scale is given.
        method: label of the row.
        spacing_mm: mm, of the lattice for the surface, which extends 40 mm beyond the joints.
        window: as in `QualitativeRow`.

    Raises:
        ValueError: the sample lacks the root that the estimator needs, or the estimator rejects it.
        ImportError: scikit-image is not installed (`pip install nvf-fast[viz]`).
    """
    scale = sample.hand_scale if use_scale else None
    pose = _pose(estimator, sample, scale)
    valid, votes = bool(pose.valid), pose.votes
    assert isinstance(votes, Votes)
    return QualitativeRow(
        id=sample.id,
        method=method,
        image=sample.image,
        intrinsics=sample.intrinsics,
        hand=_surface(queried_field(estimator, sample, scale), pose.joints, spacing_mm) if valid else NOTHING,
        voters=votes.points,
        weights=votes.weights,
        joints=pose.joints,
        valid=valid,
        window=window,
    )


class QueriedField(NamedTuple):
    """One image's field; a point p of the camera's frame is frame @ (p - origin) in the field's."""

    distance: Distance
    frame: Tensor  # (3, 3) float64, orthogonal; mirrors for a left hand
    origin: Tensor  # (3,) float64 mm
    device: torch.device


@torch.no_grad()
def queried_field(estimator: PoseEstimator, sample: HandSample, scale: float | None) -> QueriedField:
    """The estimator's field for a sample, with its hand scale in mm or None."""
    model, volume, device = estimator.model, estimator.volume, estimator.device
    assert isinstance(model, NVF)
    size = model.config.input_size
    box = _box(estimator, sample)
    placement = volume.place(
        torch.from_numpy(sample.intrinsics)[None],
        size,
        torch.tensor([sample.side == "left"]),
        boxes=None if box is None else torch.from_numpy(box).double()[None],
        roots=None if sample.root is None else sample.root[None].double(),
    )
    view = network_view(torch.tensor(sample.image, device=device), placement.homographies[0], size)
    view = view.to(estimator.dtype)
    if isinstance(volume, HandVolume):
        assert placement.slopes is not None
        distance = _hand_distance(model, view, placement.slopes.float().to(device), scale)
    else:
        distance = _distance(model, view, volume, scale)
    return QueriedField(distance, placement.frames[0], placement.origins[0], device)


def _distance(model: NVF, view: Tensor, volume: Volume, scale: float | None) -> Distance:
    features = model.encode(view)
    scales = None if scale is None else torch.tensor([scale], device=view.device, dtype=torch.float32)

    @torch.no_grad()
    def distance(points: Tensor) -> Tensor:
        points = volume.network_points(points)
        return model.query(features, points, model.reference_intrinsics, scales).sdf[0]

    return distance


def _hand_distance(model: NVF, view: Tensor, slopes: Tensor, scale: float | None) -> Distance:
    encoding, ratio = model.encode_hands(view, slopes), 1.0 if scale is None else scale / UNIT_SCALE_MM
    coarse, intrinsics = encoding.joints(slopes), view_intrinsics(slopes, model.config.input_size)

    @torch.no_grad()
    def distance(points: Tensor) -> Tensor:
        return ratio * model.query(encoding.features, points / ratio, intrinsics, coarse=coarse).sdf[0]

    return distance


def _pose(estimator: PoseEstimator, sample: HandSample, scale: float | None) -> HandPose:
    needs_root = estimator.volume.needs_root
    if needs_root and sample.root is None:
        raise ValueError(f"{sample.id}: a root-relative pose needs the root, and the data set has none")
    return estimator(
        sample.image,
        sample.intrinsics,
        scale,
        _box(estimator, sample),
        sample.side,
        return_votes=True,
        root=sample.root if needs_root else None,
    )


def _box(estimator: PoseEstimator, sample: HandSample) -> np.ndarray | None:
    """The box (4,) px that places the view, always given for hand views, None for root-relative networks."""
    if isinstance(estimator.volume, HandVolume):
        return box_on_image(sample)
    return None if estimator.volume.needs_root or sample.box is None else sample.box.numpy()


def _surface(field: QueriedField, joints: np.ndarray, spacing_mm: float) -> Mesh:
    """The surface about joints (21, 3), both in the camera's frame."""
    seen = ((torch.from_numpy(joints).double() - field.origin) @ field.frame.mT).float().to(field.device)
    low, high = seen.amin(0) - MARGIN_MM, seen.amax(0) + MARGIN_MM
    mesh = level_mesh(field.distance, low, high, spacing_mm)
    # Mirroring reverses the orientation of faces.
    faces = mesh.faces if torch.linalg.det(field.frame) > 0 else mesh.faces[:, ::-1]
    return Mesh(mesh.vertices @ field.frame.numpy() + field.origin.numpy(), faces)
