"""Meshes of surfaces given by signed distances: marching cubes, and the field's zero level."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nvf_fast.camera import view_intrinsics
from nvf_fast.joint_definitions import UNIT_SCALE_MM
from nvf_fast.model import NVF
from nvf_fast.pose import HandPose
from nvf_fast.requests import Request
from nvf_fast.runtime.extras import extra
from nvf_fast.volumes import FrustumVolume, HandVolume, RootCube

if TYPE_CHECKING:
    import trimesh

    from nvf_fast.estimator import PoseEstimator

OUTSIDE_MM = 50.0  # largest distance of a network, in place of infinity outside its view
CHUNK = 65_536  # points at a time
MARGIN_MM = 40.0  # from the joints to the sides of the box in which the surface is sought
MOST_POINTS = 20_000_000  # of a lattice

Distance = Callable[[Tensor], Tensor]


class Mesh(NamedTuple):
    """A surface.

    Attributes:
        vertices: (V, 3) float64 mm.
        faces: (F, 3) int64, outward by the right-hand rule.
    """

    vertices: np.ndarray
    faces: np.ndarray


NOTHING = Mesh(np.empty((0, 3)), np.empty((0, 3), np.int64))


def level_mesh(
    distance: Distance, low: Tensor, high: Tensor, spacing_mm: float = 4.0, *, closed: bool = False
) -> Mesh:
    """Extract the zero level of a signed distance within a box by marching cubes (Sec. D of the supplement).

    Args:
        distance: function of points (N, 3) float32 mm to (N,) mm, negative inside, +inf where unknown, called
            for a part of the lattice at a time.
        low: (3,) float32 mm, the box's lower corner.
        high: (3,) float32 mm, lower bound of the box's upper corner.
        spacing_mm: mm, of the lattice.
        closed: whether the surface is closed where it leaves the box, instead of open.

    Returns:
        The mesh in the frame of the points, empty where no surface passes through the box.

    Raises:
        ValueError: the spacing is not a positive number, or makes a lattice of more than 20 million points.
        ImportError: scikit-image is not installed (`pip install nvf-fast[viz]`).
    """
    with extra("viz", "meshes need scikit-image"):
        from skimage.measure import marching_cubes
    if not (math.isfinite(spacing_mm) and spacing_mm > 0):
        raise ValueError(f"the step of a mesh must be a positive number of mm, got {spacing_mm}")
    extents = ((high - low).double() / spacing_mm).ceil() + 1
    if extents.prod() > MOST_POINTS:
        raise ValueError(
            f"a step of {spacing_mm:.3g} mm makes a lattice of {extents.prod():.3g} points, at most "
            f"{MOST_POINTS:.3g} are possible: use a larger step"
        )
    counts = extents.int().tolist()
    axes = [
        start + spacing_mm * torch.arange(n, dtype=low.dtype, device=low.device)
        for start, n in zip(low, counts, strict=True)
    ]
    points = torch.cartesian_prod(*axes)
    known = torch.cat([distance(part) for part in points.split(CHUNK)]).clamp(-OUTSIDE_MM, OUTSIDE_MM)
    volume = known.reshape(counts).double().numpy(force=True)
    if closed:
        volume = np.pad(volume, 1, constant_values=OUTSIDE_MM)
    if not volume.min() < 0 < volume.max():
        return NOTHING
    vertices, faces, _, _ = marching_cubes(
        volume, 0.0, spacing=(spacing_mm,) * 3, gradient_direction="descent"
    )
    return Mesh(vertices + (low.double().numpy(force=True) - closed * spacing_mm), faces.astype(np.int64))


def closed_mesh(distance: Distance, low: Tensor, high: Tensor, spacing_mm: float) -> trimesh.Trimesh:
    """The largest closed surface at the zero level in a box, as `level_mesh` extracts it.

    Raises:
        ValueError: no surface lies in the box, or the spacing is out of range.
        ImportError: scikit-image is not installed (`pip install nvf-fast[viz]`).
    """
    import trimesh

    mesh = trimesh.Trimesh(*level_mesh(distance, low, high, spacing_mm, closed=True))
    if mesh.is_empty:
        raise ValueError("no surface lies in the box around the joints")
    largest: trimesh.Trimesh = max(mesh.split(only_watertight=False), key=lambda part: part.area)
    return largest


def field_distance(
    model: NVF, volume: FrustumVolume | RootCube | HandVolume, view: Tensor, request: Request
) -> Distance:
    """The predicted signed distance in the frame of the camera of a request's one hand, see `PoseEstimator`.

    Args:
        model, volume: of the estimator.
        view: (1, 3, S, S), the network's view.
        request: of the hand.
    """
    placement, coarse = request.placement, None
    scale: Any = request.network_scale
    frame, origin = (
        torch.from_numpy(each[0]).to(model.device) for each in (placement.frames, placement.origins)
    )
    unit = 1.0  # mm of the field in a mm
    if isinstance(volume, HandVolume):
        assert request.slopes is not None
        slopes = torch.from_numpy(request.slopes).to(model.device)
        encoding = model.encode_hands(view, slopes)
        features, coarse = encoding.features, encoding.joints(slopes)
        intrinsics = view_intrinsics(slopes, model.config.input_size)
        if request.scale is not None:
            unit = UNIT_SCALE_MM / float(request.scale[0])
    else:
        features, intrinsics = model.encode(view), model.reference_intrinsics
        scale = None if scale is None else torch.from_numpy(scale).to(model.device)

    @torch.no_grad()
    def distance(points: Tensor) -> Tensor:
        seen = (unit * (points - origin) @ frame.mT).float()
        if not isinstance(volume, HandVolume):
            seen = volume.network_points(seen)
        return model.query(features, seen, intrinsics, scale, coarse).sdf[0] / unit

    return distance


def field_mesh(
    estimator: PoseEstimator,
    image: Any,
    K: Any,
    pose: HandPose[Any],
    hand_scale: float | None = None,
    root: Any = None,
    step_mm: float = 4.0,
    margin_mm: float = MARGIN_MM,
) -> trimesh.Trimesh:
    """Mesh the surface that a network's field predicts for one hand: the zero level of its signed distance.

    Args:
        estimator: an estimator of a network with a field.
        image, K, hand_scale, root: as in the call that estimated the pose. For hand views, None is the pose's
            hand scale.
        pose: one valid pose in the image, from this estimator.
        step_mm: mm, spacing of the lattice for marching cubes (Lorensen and Cline, 1987).
        margin_mm: mm, from the joints to the sides of the meshed box; a surface that leaves the box is closed
            there.

    Returns:
        The largest closed surface in the box, mm, in the frame of the camera that took the image.

    Raises:
        ValueError: the network has no field, the pose is a batch or not valid, no surface lies in the box, or
            a number is out of range.
        ImportError: scikit-image is not installed (`pip install nvf-fast[viz]`).
    """
    if pose.joints.ndim != 2 or not pose.valid:
        raise ValueError("pose must be one valid pose, got a batch or an invalid pose")
    distance = estimator.field_distance(image, K, pose, hand_scale, root)
    joints = torch.as_tensor(pose.joints, dtype=torch.float32, device=estimator.device)
    return closed_mesh(distance, joints.amin(0) - margin_mm, joints.amax(0) + margin_mm, step_mm)
