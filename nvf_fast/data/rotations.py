"""Rotation matrices."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def rotation_about(axis: Tensor | tuple[float, float, float], angle: Tensor) -> Tensor:
    """Rotation matrices (..., 3, 3) about unit axes by angle (...) radians (Rodrigues).

    Args:
        axis: (..., 3), or one axis for all.
        angle: (...) radians.
    """
    if not isinstance(axis, Tensor):
        axis = torch.tensor(axis, dtype=angle.dtype, device=angle.device)
    axis = axis.expand(*angle.shape, 3)
    x, y, z = axis.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(*axis.shape, 3)
    sine, cosine = torch.sin(angle)[..., None, None], torch.cos(angle)[..., None, None]
    return torch.eye(3, device=axis.device, dtype=sine.dtype) + sine * cross + (1 - cosine) * (cross @ cross)


def about_axis(angle: float) -> np.ndarray:
    """Rotation matrix (3, 3) about the optical axis by an angle in radians."""
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])
