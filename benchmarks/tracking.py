"""Track a rendered hand through 300 frames: smoothness, lag, errors and speed.

    python -m benchmarks.tracking --backgrounds PANORAMAS --rig RIG

The hand before a 640 x 480 camera at 30 Hz changes its gesture, turns, moves, and leaves the image once for
half a second. The same views are filtered ("smoothed") and not ("per frame"). Run `make readme` afterwards.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import tyro
from tqdm import tqdm

import nvf_fast
from benchmarks.timing import device_name
from nvf_fast.checkpoint import load_checkpoint, resolve
from nvf_fast.data.draws import Draws, Stream
from nvf_fast.data.image_warp import gaussian_blur, warp_perspective
from nvf_fast.data.rotations import rotation_about
from nvf_fast.joint_definitions import UNIT_SCALE_MM
from nvf_fast.synthetic.backgrounds import Backgrounds
from nvf_fast.synthetic.filters import develop
from nvf_fast.synthetic.objects import draw_orientation
from nvf_fast.synthetic.posed_hands import draw_shapes, posed_vertices, with_forearm
from nvf_fast.synthetic.renderer import OVERSAMPLING, HandRenderer, SceneChances
from nvf_fast.synthetic.rig import Rig, open_rig
from nvf_fast.tracking import SMOOTHING, Smoothing, Tracker

RESULTS = Path(__file__).resolve().parent / "results"
SEED = 7
FRAMES, RATE = 300, 30.0  # Hz
WIDTH, HEIGHT, FOCAL = 640, 480, 560.0  # px
K = np.array([[FOCAL, 0, (WIDTH - 1) / 2], [0, FOCAL, (HEIGHT - 1) / 2], [0, 0, 1]])
KEYS = 6  # gestures, one every 1.7 s
AWAY = (150, 165)  # frames without a hand in the image
LARGEST_LAG = 6  # frames, of the search for the lag
COLUMNS = [
    *(
        "joints",
        "frames with the hand",
        "RMS acceleration mm/frame²",
        "RMS acceleration of the error mm/frame²",
    ),
    *("lag frames", "camera space mm", "relative mm", "frames/s", "95th percentile ms"),
]


@dataclass(frozen=True)
class Measure:
    """Measure the tracker.

    Attributes:
        backgrounds: folder of panoramas; procedural surroundings when absent.
        rig: glTF file of a rigged right hand; the built-in hand when absent.
    """

    backgrounds: Path | None = None
    rig: Path | None = None


class Sequence(NamedTuple):
    """Frames (F, H, W, 3) uint8 RGB, and joints (F, 21, 3) mm, NaN where the hand is away."""

    frames: np.ndarray
    joints: np.ndarray


def render_sequence(rig: Rig, backgrounds: Path | None, indices: range = range(FRAMES)) -> Sequence:
    """Render frames of the moving hand; light and background stay the same."""
    vertices, joints = _gestures(rig)
    background = Backgrounds(backgrounds).draw_view(Stream(SEED, "background", 0), FOCAL, (HEIGHT, WIDTH))
    renderer = HandRenderer(
        rig, (), Backgrounds(backgrounds), SceneChances(0.0, 0.0, clutter=0.0), WIDTH, turnable=False
    )
    canvas = 2 * round(OVERSAMPLING * WIDTH / 2)
    raster = np.array(
        [[OVERSAMPLING * FOCAL, 0, canvas / 2], [0, OVERSAMPLING * FOCAL, canvas / 2], [0, 0, 1]]
    )
    upright = draw_orientation(Stream(SEED, "orientation", 0), 0.0)
    frames, placed = (
        np.empty((len(indices), HEIGHT, WIDTH, 3), np.uint8),
        np.full((len(indices), 21, 3), np.nan),
    )
    for row, index in enumerate(tqdm(indices, desc="rendering", disable=None)):
        image, s = background, index / RATE
        if not AWAY[0] <= index < AWAY[1]:
            hand = with_forearm(rig, vertices[index], joints[index], Stream(SEED, "forearm", 0), 0.3)
            hand = hand.turned(_turn(s) @ upright).moved(
                np.array([110 * np.sin(1.7 * s), 50 * np.sin(2.3 * s + 1), 520 + 90 * np.sin(0.7 * s)])
            )
            layer = renderer.render(Stream(SEED, "light", 0), [hand], [False], FOCAL, canvas=canvas)
            layer = warp_perspective(layer, K @ np.linalg.inv(raster), (HEIGHT, WIDTH), border="zero")
            image = background * (1 - layer[..., 3:]) + layer[..., :3]
            placed[row] = hand.joints
        frames[row] = develop(
            gaussian_blur(image.astype(np.float32), 0.6),
            contrast=1.0,
            brightness=0.0,
            balance=np.ones(3),
            saturation=1.0,
            seed=index,
            constant=0.01,
            proportional=0.007,
        )
    return Sequence(frames, placed)


def _turn(s: float) -> np.ndarray:
    """Rotation (3, 3) at a time in s, about x, then y, then z."""
    angles = torch.tensor([0.25 * np.sin(1.9 * s), 0.4 * np.sin(1.3 * s), 0.3 * np.sin(0.9 * s)])
    x, y, z = rotation_about(torch.eye(3, dtype=angles.dtype), angles).numpy()
    return z @ y @ x


def _gestures(rig: Rig) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (F, V, 3) and joints (F, 21, 3) of one unit hand that passes smoothly through gestures."""
    keys = draw_shapes(rig, Draws(SEED, "gestures", range(KEYS)))
    place = np.linspace(0, KEYS - 1, FRAMES)
    low = np.minimum(place.astype(int), KEYS - 2)
    blend = torch.from_numpy((1 - np.cos(np.pi * (place - low))) / 2)
    one = torch.zeros(FRAMES, dtype=torch.int64)
    angles = {
        name: torch.lerp(value[low], value[low + 1], blend.view(-1, *[1] * (value.ndim - 1)))
        for name, value in keys.angles.items()
    }
    shapes = replace(
        keys, angles=angles, stretch=keys.stretch[one], girth=keys.girth[one], breadth=keys.breadth[one]
    )
    vertices, joints = posed_vertices(rig, shapes)
    scale = UNIT_SCALE_MM / np.linalg.norm(joints[:, 10] - joints[:, 9], axis=1)[:, None, None]
    return scale * vertices, scale * joints


class Track(NamedTuple):
    """Joints (F, 21, 3) mm, NaN where not tracked, and the time of each frame in ms."""

    joints: np.ndarray
    times: np.ndarray


def track(tracker: Tracker, frames: np.ndarray) -> Track:
    """Follow the hand; the largest of several hands counts."""
    joints, times = np.full((len(frames), 21, 3), np.nan), np.empty(len(frames))
    for index, frame in enumerate(tqdm(frames, desc="tracking", disable=None)):
        start = time.perf_counter()
        _, poses = tracker(frame, K, index / RATE)
        times[index] = 1000 * (time.perf_counter() - start)
        if len(poses):
            joints[index] = poses.joints[np.ptp(poses.joints_2d, axis=1).max(1).argmax()]
    return Track(joints, times)


def rms_acceleration(joints: np.ndarray) -> float:
    """Root mean square of the second differences of joints (F, 21, 3), without undefined ones."""
    second = np.diff(joints, 2, axis=0)
    return float(np.sqrt(np.nanmean((second**2).sum(-1))))


def lag(joints: np.ndarray, true: np.ndarray) -> float:
    """Delay in frames that best explains joints (F, 21, 3), apart from a constant offset of each joint.

    It minimises the squared distance to the delayed true joints, between whole frames by a parabola.
    """
    delays = range(-LARGEST_LAG, LARGEST_LAG + 1)
    costs = []
    for delay in delays:
        rows = np.arange(max(delay, 0), len(true) + min(delay, 0))
        difference = joints[rows] - true[rows - delay]
        costs.append(np.nanmean((difference - np.nanmean(difference, axis=0)) ** 2))
    best = int(np.clip(np.argmin(costs), 1, len(costs) - 2))
    before, at, after = costs[best - 1 : best + 2]
    return float(delays[best] + (before - after) / (2 * (before - 2 * at + after)))


def measure(options: Measure) -> dict[str, Any]:
    """Render the sequence, track it and make the table."""
    sequence = render_sequence(open_rig(options.rig), options.backgrounds)
    true = sequence.joints
    estimator = nvf_fast.load()
    track(Tracker(estimator, most_hands=1), sequence.frames[:20])  # warms up
    rows = [
        [
            "true",
            int(np.isfinite(true[:, 0, 0]).sum()),
            rms_acceleration(true),
            0.0,
            0.0,
            0.0,
            0.0,
            None,
            None,
        ]
    ]
    settings: list[tuple[str, Smoothing | None]] = [("per frame", None), ("smoothed", SMOOTHING)]
    for title, smoothing in settings:
        joints, times = track(Tracker(estimator, most_hands=1, smoothing=smoothing), sequence.frames)
        relative = (joints - joints[:, :1]) - (true - true[:, :1])
        rows.append(
            [
                title,
                int(np.isfinite((joints - true)[:, 0, 0]).sum()),
                rms_acceleration(np.where(np.isfinite(true), joints, np.nan)),
                rms_acceleration(joints - true),
                lag(joints, true),
                float(np.nanmean(np.linalg.norm(joints - true, axis=-1))),
                float(np.nanmean(np.linalg.norm(relative, axis=-1))),
                1000 / float(times.mean()),
                float(np.percentile(times, 95)),
            ]
        )
    context = {
        "frames": len(true),
        "weights": f"sha256 {load_checkpoint(resolve(None))[1]['sha256'][:12]}",
        "torch": torch.__version__,
        "device": device_name(),
        "processor cores": len(os.sched_getaffinity(0)),
    }
    return {"columns": COLUMNS, "rows": rows, "context": context}


def main() -> None:
    table = measure(tyro.cli(Measure, description=__doc__))
    (RESULTS / "tracking.json").write_text(json.dumps(table, indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
