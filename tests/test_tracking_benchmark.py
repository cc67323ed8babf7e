"""The measures of the tracking benchmark, and the filter of joints by them."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.tracking import AWAY, RATE, K, lag, render_sequence, rms_acceleration
from nvf_fast.camera import project
from nvf_fast.synthetic.rig import open_rig
from nvf_fast.tracking import SMOOTHING, JointFilter


def moving_joints(count: int, delay: float = 0.0) -> np.ndarray:
    """Joints (F, 21, 3) mm on smooth paths of a hand's usual speed, later by `delay` frames."""
    s = (np.arange(count) - delay)[:, None] / RATE
    phase = np.linspace(0, 0.6, 21)
    paths = [
        110 * np.sin(1.7 * s + phase),
        50 * np.sin(2.3 * s + 1 - phase),
        520 + 90 * np.sin(0.7 * s + phase),
    ]
    return np.stack(paths, -1)


@pytest.mark.parametrize("delay", [-2.0, 0.0, 0.4, 1.0, 2.7])
def test_lag_is_the_delay_whatever_the_offset(delay: float) -> None:
    joints = moving_joints(300, delay) + np.linspace(-30, 30, 63).reshape(21, 3)
    joints[40:50] = np.nan
    assert lag(joints, moving_joints(300)) == pytest.approx(delay, abs=0.05)


def test_acceleration_of_a_parabola_is_constant() -> None:
    t = np.arange(30.0)[:, None, None]
    joints = 1.5 * t**2 * np.array([0.6, 0.0, 0.8]) + np.zeros((1, 21, 1))
    joints[10] = np.nan
    assert rms_acceleration(joints) == pytest.approx(3.0)


def test_filter_halves_the_acceleration_within_a_frame_of_lag() -> None:
    """Noise of the network's kind: common along the depth, small across, and some of each joint alone."""
    rng, true = np.random.default_rng(0), moving_joints(300)
    depth = 1 + 0.02 * rng.normal(size=(300, 1, 1))
    estimated = true * depth + rng.normal(0, [1.0, 1.0, 4.0], true.shape)
    smooth = JointFilter(SMOOTHING)
    filtered = np.stack([smooth(joints, frame / RATE) for frame, joints in enumerate(estimated)])
    assert rms_acceleration(filtered) < 0.5 * rms_acceleration(estimated)
    assert 0 < lag(filtered, true) < 1
    assert np.linalg.norm(filtered - true, axis=-1).mean() < np.linalg.norm(estimated - true, axis=-1).mean()


@pytest.mark.slow
def test_rendered_frames_show_the_joints() -> None:
    frames, joints = render_sequence(open_rig(None), None, range(AWAY[0] - 2, AWAY[0] + 1))
    assert frames.shape == (3, 480, 640, 3) and np.isnan(joints[2]).all()
    columns, rows = np.rint(project(joints[0], K)).astype(int).T
    differences = np.abs(frames[0].astype(float) - frames[2])[rows, columns].max(-1)
    assert (differences > 20).sum() > 15, "the noise is 3 grey levels"
