"""The grid of query points that fills the reference camera's frustum (Sec. 3.4 of the paper)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nvf_fast.camera import REFERENCE_FOCAL, REFERENCE_SIZE

BOX_MM = ((-250.0, 250.0), (-250.0, 250.0), (150.0, 1200.0))  # x, y, z


def frustum_grid(step_mm: float = 16.0, device: torch.device | str | None = None) -> Tensor:
    """Points of a regular grid over `BOX_MM` that the reference camera sees, with the counts of Table 6.

    Each axis has int(length / step) cells and a point at each cell's lower corner, so that the spacing is a
    little more than the step where the step does not divide the length.

    Args:
        step_mm: mm, grid spacing; at most 500.
        device: of the result.

    Returns:
        (N, 3) float32 mm, x outermost; N = 1 882 292, 230 475, 28 351, 7 742, 3 183 at 4, 8, 16, 24, 32 mm.

    Raises:
        ValueError: the step is no positive number, or no point of the grid is seen.
    """
    if not (math.isfinite(step_mm) and step_mm > 0):
        raise ValueError(f"step_mm must be a positive number of mm, got {step_mm}")
    axes = []
    for low, high in BOX_MM:
        cells = int((high - low) / step_mm)
        axes.append(low + torch.arange(cells, dtype=torch.float64) * ((high - low) / max(cells, 1)))
    x, y, z = torch.meshgrid(*axes, indexing="ij")
    # abs(uv) <= 1 where uv = (f x / z + c) / c - 1.
    reach = z * (REFERENCE_SIZE / 2 / REFERENCE_FOCAL)
    seen = (x.abs() <= reach) & (y.abs() <= reach)
    points = torch.stack([x[seen], y[seen], z[seen]], -1)
    if len(points) == 0:
        raise ValueError(f"step_mm = {step_mm} leaves no point in the camera's view; 16 mm is the usual step")
    return points.to(device=device, dtype=torch.float32)
