"""Joint orders, frames and units: names written out per index, both directions, and errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from nvf_fast.conventions import FRAMES, ORDERS, UNITS, convert_joints
from nvf_fast.pose import JOINT_NAMES

# Every order by the names in its own documentation, translated to MediaPipe's names.
FREIHAND = """
    WRIST THUMB_CMC THUMB_MCP THUMB_IP THUMB_TIP
    INDEX_FINGER_MCP INDEX_FINGER_PIP INDEX_FINGER_DIP INDEX_FINGER_TIP
    MIDDLE_FINGER_MCP MIDDLE_FINGER_PIP MIDDLE_FINGER_DIP MIDDLE_FINGER_TIP
    RING_FINGER_MCP RING_FINGER_PIP RING_FINGER_DIP RING_FINGER_TIP
    PINKY_MCP PINKY_PIP PINKY_DIP PINKY_TIP
"""
MANO = """
    WRIST INDEX_FINGER_MCP INDEX_FINGER_PIP INDEX_FINGER_DIP
    MIDDLE_FINGER_MCP MIDDLE_FINGER_PIP MIDDLE_FINGER_DIP PINKY_MCP PINKY_PIP PINKY_DIP
    RING_FINGER_MCP RING_FINGER_PIP RING_FINGER_DIP THUMB_CMC THUMB_MCP THUMB_IP
"""
HO3D = f"{MANO} THUMB_TIP INDEX_FINGER_TIP MIDDLE_FINGER_TIP RING_FINGER_TIP PINKY_TIP"
INTERHAND = """
    THUMB_TIP THUMB_IP THUMB_MCP THUMB_CMC
    INDEX_FINGER_TIP INDEX_FINGER_DIP INDEX_FINGER_PIP INDEX_FINGER_MCP
    MIDDLE_FINGER_TIP MIDDLE_FINGER_DIP MIDDLE_FINGER_PIP MIDDLE_FINGER_MCP
    RING_FINGER_TIP RING_FINGER_DIP RING_FINGER_PIP RING_FINGER_MCP
    PINKY_TIP PINKY_DIP PINKY_PIP PINKY_MCP WRIST
"""
WEBXR = """
    WRIST THUMB_CMC THUMB_MCP THUMB_IP THUMB_TIP
    - INDEX_FINGER_MCP INDEX_FINGER_PIP INDEX_FINGER_DIP INDEX_FINGER_TIP
    - MIDDLE_FINGER_MCP MIDDLE_FINGER_PIP MIDDLE_FINGER_DIP MIDDLE_FINGER_TIP
    - RING_FINGER_MCP RING_FINGER_PIP RING_FINGER_DIP RING_FINGER_TIP
    - PINKY_MCP PINKY_PIP PINKY_DIP PINKY_TIP
"""
NAMES = {
    "freihand": FREIHAND,
    "openpose": FREIHAND,
    "mediapipe": FREIHAND,
    "mano": MANO,
    "mano21": HO3D,
    "ho3d": HO3D,
    "interhand": INTERHAND,
    "webxr": WEBXR,
}


def test_names_are_complete() -> None:
    assert set(NAMES) == set(ORDERS)
    assert tuple(FREIHAND.split()) == JOINT_NAMES


@pytest.mark.parametrize("order", NAMES)
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_orders(order: str, kind: str) -> None:
    """Each joint holds its own name's number, so that its place shows where it went."""
    names = NAMES[order].split()
    numbers = np.arange(21, dtype=np.float32)[:, None] + np.array([0, 100, 200], np.float32)
    joints: Any = torch.from_numpy(numbers) if kind == "torch" else numbers
    converted = convert_joints(joints[None], order)
    assert type(converted) is type(joints) and converted.dtype == joints.dtype
    assert converted.shape == (1, len(names), 3)
    for place, name in enumerate(names):
        expected = [np.nan] * 3 if name == "-" else numbers[JOINT_NAMES.index(name)]
        np.testing.assert_array_equal(np.asarray(converted[0, place]), expected, name)
    back = convert_joints(converted, order, inverse=True)
    expected_back = numbers.copy()
    expected_back[[place for place, name in enumerate(JOINT_NAMES) if name not in names]] = np.nan
    np.testing.assert_array_equal(np.asarray(back[0]), expected_back)
    np.testing.assert_array_equal(np.asarray(joints), numbers)  # the argument stays as it was


def test_frames_and_units() -> None:
    joints = np.full((21, 3), [100.0, -200.0, 600.0])  # right of the axis, above it, in front
    opengl = convert_joints(joints, frame="opengl", unit="m")
    np.testing.assert_allclose(opengl, np.full((21, 3), [0.1, 0.2, -0.6]), rtol=1e-15)
    np.testing.assert_allclose(convert_joints(opengl, "freihand", "opengl", "m", inverse=True), joints)
    np.testing.assert_array_equal(convert_joints(joints), joints)


def test_pixels() -> None:
    pixels = np.arange(42.0).reshape(21, 2)
    np.testing.assert_array_equal(convert_joints(pixels, "interhand")[[0, 20]], pixels[[4, 0]])
    with pytest.raises(ValueError, match=r"pixels \(..., 21, 2\) have no frame or unit, got 'opengl'"):
        convert_joints(pixels, frame="opengl")


@pytest.mark.parametrize(
    ("options", "shape", "message"),
    [
        ({"order": "smpl"}, (21, 3), f"order must be one of {', '.join(map(repr, ORDERS))}, got 'smpl'"),
        ({"frame": "unity"}, (21, 3), f"frame must be one of {', '.join(map(repr, FRAMES))}, got 'unity'"),
        ({"unit": "inch"}, (21, 3), f"unit must be one of {', '.join(map(repr, UNITS))}, got 'inch'"),
        ({}, (16, 3), r"joints must be (..., 21, 3)"),
        ({"order": "mano", "inverse": True}, (21, 3), r"joints must be (..., 16, 3)"),
        ({}, (21,), r"joints must be (..., 21, 3)"),
    ],
)
def test_errors(options: dict[str, Any], shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError) as error:
        convert_joints(np.zeros(shape), **options)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "joints", [np.zeros((21, 3), int), torch.zeros(21, 3, dtype=torch.int32), [[0.0] * 3] * 21]
)
def test_types(joints: Any) -> None:
    with pytest.raises(TypeError, match=r"floating-point numbers, got (int64|torch\.int32|list)"):
        convert_joints(joints)
