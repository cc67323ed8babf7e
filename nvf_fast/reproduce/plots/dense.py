"""Qualitative rows of Baseline-2D-Dense: its mask of the hand, and the texels that vote."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from nvf_fast.baselines import DenseBaseline
from nvf_fast.camera import network_view
from nvf_fast.data.sample import HandSample
from nvf_fast.reproduce.plots.qualitative import QualitativeRow
from nvf_fast.volumes import FrustumVolume


@torch.no_grad()
def dense_row(
    model: DenseBaseline,
    sample: HandSample,
    use_scale: bool = False,
    method: str = "",
    window: tuple[int, int, int, int] | None = None,
) -> QualitativeRow:
    """Make the row of the camera-space baseline for a sample, voters on their rays at the pose's mean depth.

    Raises:
        ValueError: the network is root-relative.
    """
    if model.config.task != "camera-space":
        raise ValueError(f"expected a camera-space baseline, got a {model.config.task} one")
    volume, size, device = FrustumVolume(), model.config.input_size, model.centre.device
    homography = volume.place(torch.from_numpy(sample.intrinsics).double()[None], size).homographies
    features = model.encode(network_view(torch.tensor(sample.image, device=device), homography[0], size))
    scale = torch.tensor([sample.hand_scale], device=device) if use_scale else None
    joints, _ = model.predict(features, scale)
    votes = model.votes(features, scale)
    hand = votes.hand[0] > 0
    _, directions = volume.rays(model.config.feature_size, device)
    valid = bool(joints.isfinite().all())
    depth = joints[0, :, 2].mean() if valid else torch.ones((), device=device)
    return QualitativeRow(
        id=sample.id,
        method=method,
        image=sample.image,
        intrinsics=sample.intrinsics,
        hand=_mask(votes.hand[0].cpu(), homography[0], size, sample.image.shape[:2]),
        voters=(directions[hand] * depth).numpy(force=True),
        weights=votes.weight[0, hand].numpy(force=True),
        joints=joints[0].numpy(force=True),
        valid=valid,
        window=window,
    )


def _mask(logits: Tensor, homography: Tensor, size: int, shape: tuple[int, ...]) -> np.ndarray:
    """(H, W) bool mask of the image, where the interpolated logits (L,) of a map's texels are above 0."""
    rows, columns = torch.meshgrid(torch.arange(shape[0]), torch.arange(shape[1]), indexing="ij")
    pixels = torch.stack([columns, rows, torch.ones_like(rows)], -1).double() @ homography.mT
    uv = (pixels[..., :2] / pixels[..., 2:] / (size / 2) - 1).float()
    side = round(len(logits) ** 0.5)
    values = grid_sample(logits.view(1, 1, side, side), uv[None], padding_mode="border", align_corners=True)
    inside = (uv.abs() <= 1).all(-1)
    return ((values[0, 0] > 0) & inside).numpy()
