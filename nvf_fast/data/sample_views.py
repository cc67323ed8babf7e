"""Hand views of any data set's images, through boxes that are jittered about the hands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from nvf_fast.camera import project, remap
from nvf_fast.data.hand_views import VIEW_SIZE, HandViews, joints_box
from nvf_fast.data.query_points import NEAR, NEAR_MM, ON_RAYS, points_about
from nvf_fast.data.sample import HandDataset, HandSample
from nvf_fast.data.surfaces import MeshHands
from nvf_fast.finding import pixel_boxes
from nvf_fast.joint_definitions import UNIT_SCALE_MM
from nvf_fast.volumes import HandVolume

GROWTH = (0.75, 1.0, 1.45)  # of the box's sides: least, most likely, largest
SHIFT = 0.14  # of the box's middle, relative to its longer side, at most


class SampleViews:
    """A source of labelled hand views from the images of a data set.

    As in the estimator, views are black beyond the image's border. They include hands that the border crops
    and hands of few pixels.

    Args:
        dataset: samples of right hands with joints and surfaces.

    Raises:
        ValueError: the data set has no surfaces.
    """

    def __init__(self, dataset: HandDataset) -> None:
        if dataset.why_no_surfaces:
            reason = f"{dataset.why_no_surfaces}; hand views are labelled with surfaces"
            raise ValueError(f"{dataset.name}: {reason}")
        self.dataset = dataset

    def __call__(self, count: int, random: np.random.Generator) -> HandViews:
        """Draw views (B = count) of samples drawn uniformly.

        Raises:
            DamagedImageError: an image cannot be read.
            ValueError: a sample is not a right hand with joints and a surface.
        """
        samples = [self.dataset[int(index)] for index in random.integers(len(self.dataset), size=count)]
        return view_samples(samples, random)


def view_samples(samples: list[HandSample], random: np.random.Generator) -> HandViews:
    """Views (B, ...) of samples through jittered boxes, labelled with unit hands and points about them.

    Raises:
        ValueError: a sample is not a right hand with joints and a surface.
    """
    joints, surfaces = [], []
    for sample in samples:
        if sample.joints is None or sample.surface is None or sample.side != "right":
            raise ValueError(f"{sample.id}: hand views are drawn of right hands with joints and a surface")
        joints.append(sample.joints)
        surfaces.append(sample.surface)
    intrinsics = torch.from_numpy(np.stack([sample.intrinsics for sample in samples]))
    exact = pixel_boxes(project(torch.stack(joints).double(), intrinsics))
    views, rotations = views_of_boxes(samples, _within_horizon(_jittered(exact, random), exact, intrinsics))
    hands = MeshHands.stack(surfaces)
    hands = hands.scaled(UNIT_SCALE_MM / hands.hand_scale).rotated(torch.from_numpy(rotations).float())
    generator = torch.Generator().manual_seed(int(random.integers(2**62)))
    surface = hands.sample_surface(NEAR + ON_RAYS, generator).numpy()
    near = surface[:, :NEAR] + random.normal(0, NEAR_MM, (len(samples), NEAR, 3))
    points = points_about(near, surface[:, NEAR:], views.joints, VIEW_SIZE / 2 / views.focal, random)
    return replace(views, points=points, distances=hands.signed_distance(torch.from_numpy(points)).numpy())


def views_of_boxes(samples: Sequence[HandSample], boxes: Tensor) -> tuple[HandViews, np.ndarray]:
    """The views of an estimator given boxes (B, 4) px of right hands.

    Returns:
        The views, labelled with joints of unit hands, without points; and the rotations (B, 3, 3) from the
        images' cameras to the views'.
    """
    intrinsics = torch.from_numpy(np.stack([sample.intrinsics for sample in samples]))
    placement = HandVolume().place(intrinsics, VIEW_SIZE, boxes=boxes)
    assert placement.slopes is not None
    rotations, focal = placement.frames.numpy(), VIEW_SIZE / 2 / placement.slopes.numpy()
    joints = np.stack([np.asarray(sample.joints) for sample in samples]).astype(np.float64)
    scales = np.linalg.norm(joints[:, 10] - joints[:, 9], axis=-1)[:, None, None]
    joints = joints * (UNIT_SCALE_MM / scales) @ rotations.transpose(0, 2, 1)
    images = [
        remap(torch.from_numpy(sample.image).permute(2, 0, 1)[None], homography[None], VIEW_SIZE)[0]
        for sample, homography in zip(samples, placement.homographies, strict=True)
    ]
    views = HandViews.blank(len(samples))
    views.images[:] = torch.stack(images).permute(0, 2, 3, 1).round().byte().numpy()
    views.focal[:], views.joints[:], views.trust[:] = focal, joints, 1
    views.boxes[:, 0] = joints_box(joints, focal[:, None, None])
    return views, rotations


def _within_horizon(boxes: Tensor, exact: Tensor, intrinsics: Tensor) -> Tensor:
    """Replace boxes that grew to the horizon by the exact ones."""
    slopes = HandVolume().place(intrinsics, VIEW_SIZE, boxes=boxes).slopes
    assert slopes is not None
    return torch.where(slopes.isfinite()[:, None], boxes, exact)


def _jittered(boxes: Tensor, random: np.random.Generator) -> Tensor:
    middles, extents = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    longer = extents.amax(1, keepdim=True)
    middles = middles + torch.from_numpy(random.uniform(-SHIFT, SHIFT, (len(boxes), 2))) * longer
    half = extents / 2 * torch.from_numpy(random.triangular(*GROWTH, (len(boxes), 1)))
    return torch.cat([middles - half, middles + half], 1)
