"""Figures printed in the paper: its tables 2 to 8, figure 3, section 4.7."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

_PRINTED: dict[str, Any] = json.loads((files("nvf_fast.reproduce") / "published.json").read_bytes())

OTHERS_CAMERA_SPACE: dict[str, float] = _PRINTED["others_camera_space"]
"""Tables 2 and 7, CS-MJE in mm on FreiHAND of other methods; none takes extra data or the hand scale."""

CAMERA_SPACE: dict[tuple[str, bool, bool], list[float]] = {
    (method, extra, scale): errors for method, extra, scale, *errors in _PRINTED["camera_space"]
}
"""Tables 2, 3, 7 and 8 by (method, extra data, hand scale): CS-MJE, TE and DE in mm."""

ROOT_RELATIVE: dict[str, list[float | None]] = _PRINTED["root_relative"]
"""Table 4 on HO-3D: MJE in mm, its AUC, RS-MJE in mm."""

ABLATIONS: list[tuple[str, float, float, float, float, float]] = _PRINTED["ablations"]
"""Table 5: the varied parameter, its value, CS-MJE and CS-AUC of CS-NVF, MJE and AUC of RS-NVF."""

STEPS: dict[int, list[Any]] = {step: printed for step, *printed in _PRINTED["steps"]}
"""Table 6 by step in mm: points, CS-MJE in mm, CS-AUC, FPS."""

ROOT_RELATIVE_STEPS: dict[int, list[float]] = {
    step: printed for step, *printed in _PRINTED["root_relative_steps"]
}
"""Section 4.7 by step in mm: MJE in mm and AUC of RS-NVF."""

AREAS: dict[str, float] = _PRINTED["areas"]
"""Figure 3, CS-AUC in the legend."""
