"""Joint orders of the data sets and conversions between them. The library's order is FreiHAND's.

`joints[ORDER]` converts joints from the first named order to the second. Sources: the public code of FreiHAND
(`utils/fh_utils.py`) and HO-3D (`vis_HO3D.py`).
"""

from __future__ import annotations

HO3D_TO_FREIHAND = [0, 13, 14, 15, 16, 1, 2, 3, 17, 4, 5, 6, 18, 10, 11, 12, 19, 7, 8, 9, 20]
"""From HO-3D's order: MANO's 16 joints (wrist, index, middle, little, ring, thumb), then the tips."""

FREIHAND_TO_HO3D = [0, 5, 6, 7, 9, 10, 11, 17, 18, 19, 13, 14, 15, 1, 2, 3, 4, 8, 12, 16, 20]
"""To HO-3D's order, that of submissions to its server."""

FINGERTIPS = {
    "freihand": [744, 320, 443, 555, 672],
    "ho3d": [744, 333, 444, 555, 672],
    "complement": [744, 333, 444, 555, 672],
}
"""MANO's vertices for each data set's tips of thumb, index, middle, ring and little finger."""

OPENGL_TO_OPENCV = [1.0, -1.0, -1.0]
"""Factors of x, y, z between HO-3D's camera frame (y up, z backward) and ours, in both directions."""
