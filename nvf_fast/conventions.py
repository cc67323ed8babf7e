"""Joint orders, camera frames and units of other libraries and data sets, and conversions by name.

An order gives the joint at each index, but not its exact position in the hand: for that, see
`nvf_fast.joint_definitions.to_freihand`.

Sources: the public code of FreiHAND (`utils/fh_utils.py`) and HO-3D (`vis_HO3D.py`); InterHand2.6M's
`skeleton.txt`; WebXR Hand Input Module, Level 1.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from nvf_fast.camera import Array

_FREIHAND = list(range(21))
_MANO = [0, 5, 6, 7, 9, 10, 11, 17, 18, 19, 13, 14, 15, 1, 2, 3]
_MANO_TIPS = [*_MANO, 4, 8, 12, 16, 20]
_INTERHAND = [4, 3, 2, 1, 8, 7, 6, 5, 12, 11, 10, 9, 16, 15, 14, 13, 20, 19, 18, 17, 0]
_WEBXR = [0, 1, 2, 3, 4, *(j for base in (5, 9, 13, 17) for j in (-1, base, base + 1, base + 2, base + 3))]

ORDERS = {
    "freihand": _FREIHAND,
    "openpose": _FREIHAND,
    "mediapipe": _FREIHAND,
    "mano": _MANO,
    "mano21": _MANO_TIPS,
    "ho3d": _MANO_TIPS,
    "interhand": _INTERHAND,
    "webxr": _WEBXR,
}
"""By name, the index in FreiHAND's order, which this library uses, of each joint; -1 where it has no joint.

"mano" is MANO's 16 joints (wrist, index, middle, little, ring finger, thumb); "mano21" adds the tips from
thumb to little finger, as in HO-3D and smplx; "interhand" is one hand of InterHand2.6M; "webxr" is the 25
joints of WebXR, of which the four metacarpals of the fingers have no counterpart.
"""

FRAMES = {"opencv": (1.0, 1.0, 1.0), "opengl": (1.0, -1.0, -1.0)}
"""By name, factors of x, y, z: OpenCV's x right, y down, z forward; OpenGL's y up, z backward."""

UNITS = {"mm": 1.0, "m": 0.001}
"""By name, units per mm."""


def convert_joints(
    joints: Array, order: str = "freihand", frame: str = "opencv", unit: str = "mm", *, inverse: bool = False
) -> Array:
    """Convert joints from the library's conventions to named ones, or back.

    Args:
        joints: (..., 21, 3) float in FreiHAND's order, OpenCV's frame, mm; or (..., 21, 2) px, of which only
            the order can change. With `inverse`, joints in the named order, frame and unit.
        order: a key of `ORDERS`.
        frame: a key of `FRAMES`.
        unit: a key of `UNITS`.
        inverse: whether to convert from the named conventions to the library's.

    Returns:
        A new array of the same type and dtype. Joints that the source does not have are NaN: WebXR's
        metacarpals, and the fingertips when read from "mano".

    Raises:
        ValueError: a name is unknown, the shape does not fit, or pixels are given with a frame or a unit.
        TypeError: the values are not floating-point numbers.

    Examples:
        >>> import numpy as np
        >>> joints = np.tile([10.0, -20.0, 500.0], (21, 1))
        >>> convert_joints(joints, "ho3d", "opengl", "m")[0]
        array([ 0.01,  0.02, -0.5 ])
    """
    places, factors = _named("order", order, ORDERS), np.array(_named("frame", frame, FRAMES))
    factors = factors * _named("unit", unit, UNITS)
    if not isinstance(joints, np.ndarray | Tensor) or not (
        joints.dtype.is_floating_point if isinstance(joints, Tensor) else joints.dtype.kind == "f"
    ):
        raise TypeError(
            "joints must be a numpy array or a torch tensor of floating-point numbers, got "
            f"{getattr(joints, 'dtype', type(joints).__name__)}"
        )
    count = len(places) if inverse else 21
    if joints.ndim < 2 or joints.shape[-2] != count or joints.shape[-1] not in (2, 3):
        raise ValueError(
            f"joints must be (..., {count}, 3) or (..., {count}, 2) for "
            f"{'order ' + repr(order) if inverse else 'the order of FreiHAND'}, got {tuple(joints.shape)}"
        )
    if inverse:
        places = [places.index(joint) if joint in places else -1 for joint in range(21)]
        factors = 1 / factors
    converted = joints[..., places, :]
    converted[..., [place < 0 for place in places], :] = np.nan
    if joints.shape[-1] == 2:
        if (frame, unit) != ("opencv", "mm"):
            raise ValueError(f"pixels (..., {count}, 2) have no frame or unit, got {frame!r} and {unit!r}")
        return converted
    if isinstance(converted, Tensor):
        return converted * torch.as_tensor(factors, dtype=joints.dtype, device=joints.device)
    return cast(Array, converted * factors.astype(joints.dtype))


def _named(what: str, name: str, known: dict[str, Any]) -> Any:
    """The entry of a name, or an error that lists the known ones."""
    if name not in known:
        raise ValueError(f"{what} must be one of {', '.join(map(repr, known))}, got {name!r}")
    return known[name]
