"""Hand views of any data set's images, through boxes that are jittered about the hands."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from nvf_fast.camera import remap
from nvf_fast.data.hand_views import VIEW_HANDS, VIEW_SIZE, HandViews
from nvf_fast.data.query_points import NEAR, NEAR_MM, ON_RAYS, points_about
from nvf_fast.data.sample import HandDataset, HandSample
from nvf_fast.data.surfaces import HandSurfaces
from nvf_fast.joint_definitions import UNIT_SCALE_MM
from nvf_fast.volumes import HandVolume, Placement

GROWTH = (0.75, 1.0, 1.45)  # of the box's sides: least, most likely, largest
SHIFT = 0.14  # of the box's middle, relative to its longer side, at most


class SampleViews:
    """A source of labelled hand views: the images of a data set as an estimator sees them.

    Views are black beyond the image's border, as an estimator's are, so that a network learns from hands that
    the border cuts off, and from hands of few pixels.

    Args:
        dataset: samples of right hands with joints and surfaces.

    Raises:
        ValueError: the data set has no surfaces; the message says why.
    """

    def __init__(self, dataset: HandDataset) -> None:
        if dataset.why_no_surfaces:
            raise ValueError(
                f"{dataset.name}: {dataset.why_no_surfaces}; hand views are labelled with surfaces"
            )
        self.dataset = dataset

    def __call__(self, count: int, random: np.random.Generator) -> HandViews:
        """Draw views (B = count) of samples drawn uniformly.

        Raises:
            DamagedPicture: an image cannot be read.
            ValueError: a sample is no right hand with joints and a surface.
        """
        samples = [self.dataset[int(index)] for index in random.integers(len(self.dataset), size=count)]
        return view_samples(samples, random)


def view_samples(samples: list[HandSample], random: np.random.Generator) -> HandViews:
    """Views (B, ...) of samples through jittered boxes, labelled with unit hands.

    Raises:
        ValueError: a sample is no right hand with joints and a surface.
    """
    joints, surfaces = [], []
    for sample in samples:
        if sample.joints is None or sample.surface is None or sample.side != "right":
            raise ValueError(f"{sample.id}: hand views are drawn of right hands with joints and a surface")
        joints.append(sample.joints)
        surfaces.append(sample.surface)
    intrinsics = torch.from_numpy(np.stack([sample.intrinsics for sample in samples]))
    placement, slopes = _placed(_boxes(torch.stack(joints).double(), intrinsics), intrinsics, random)
    images = [
        remap(torch.from_numpy(sample.image).permute(2, 0, 1)[None], homography[None], VIEW_SIZE)[0]
        for sample, homography in zip(samples, placement.homographies, strict=True)
    ]
    hands: HandSurfaces = type(surfaces[0]).stack(surfaces)
    hands = hands.scaled(UNIT_SCALE_MM / hands.hand_scale).rotated(placement.frames.float())
    generator = torch.Generator().manual_seed(int(random.integers(2**62)))
    surface = hands.sample_surface(NEAR + ON_RAYS, generator).numpy()
    near = surface[:, :NEAR] + random.normal(0, NEAR_MM, (len(samples), NEAR, 3))
    posed = hands.joints.numpy()
    points = points_about(near, surface[:, NEAR:], posed, slopes, random)
    count, focal = len(samples), VIEW_SIZE / 2 / slopes
    seen = focal[:, None, None] * posed[..., :2] / posed[..., 2:] + VIEW_SIZE / 2
    shown = np.full((count, VIEW_HANDS, 4), np.nan, np.float32)
    shown[:, 0] = np.concatenate([seen.min(1), seen.max(1)], 1)
    return HandViews(
        images=torch.stack(images).permute(0, 2, 3, 1).round().byte().numpy(),
        focal=focal.astype(np.float32),
        joints=posed,
        points=points,
        distances=hands.signed_distance(torch.from_numpy(points)).numpy(),
        boxes=shown,
        left=np.zeros((count, VIEW_HANDS), bool),
        trust=np.ones(count, np.float32),
    )


def _boxes(joints: Tensor, intrinsics: Tensor) -> Tensor:
    """Boxes (B, 4) px around joints (B, 21, 3) mm."""
    seen = joints @ intrinsics.mT
    pixels = seen[..., :2] / seen[..., 2:]
    return torch.cat([pixels.amin(1), pixels.amax(1)], 1)


def _placed(boxes: Tensor, intrinsics: Tensor, random: np.random.Generator) -> tuple[Placement, np.ndarray]:
    """The views of boxes, jittered unless that makes one reach the horizon; and their slopes (B,)."""
    jittered = _jittered(boxes, random)
    slopes = HandVolume().place(intrinsics, VIEW_SIZE, boxes=jittered).slopes
    assert slopes is not None
    chosen = torch.where(slopes.isfinite()[:, None], jittered, boxes)
    placement = HandVolume().place(intrinsics, VIEW_SIZE, boxes=chosen)
    assert placement.slopes is not None
    return placement, placement.slopes.numpy()


def _jittered(boxes: Tensor, random: np.random.Generator) -> Tensor:
    middles, extents = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    longer = extents.amax(1, keepdim=True)
    middles = middles + torch.from_numpy(random.uniform(-SHIFT, SHIFT, (len(boxes), 2))) * longer
    half = extents / 2 * torch.from_numpy(random.triangular(*GROWTH, (len(boxes), 1)))
    return torch.cat([middles - half, middles + half], 1)
