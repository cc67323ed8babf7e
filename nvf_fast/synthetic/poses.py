"""Poses of hands: everyday gestures, and random ones inside the textbook ranges of motion of all joints."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from nvf_fast.data.draws import Draws

GESTURE_CHANCE = 0.6
POSES = 13  # tries of each hand
FINGER_SPLAY = (5.0, 0.0, -5.0, -11.0)  # degrees towards the thumb, of index, middle, ring and little finger


class Thumb(NamedTuple):
    """Degrees, as `draw_angles` means them: positive abduction brings the thumb to the index finger, positive
    opposition before the palm."""

    abduction: float
    opposition: float
    mcp: float
    ip: float


OUT, BESIDE = Thumb(-6, -6, 2, 2), Thumb(24, 0, 12, 10)
ACROSS, OPPOSED = Thumb(20, 42, 42, 52), Thumb(14, 38, 22, 24)
NEUTRAL = Thumb(6, 12, 16, 18)
# Curl of index, middle, ring and little finger (0 stretched, 1 closed), thumb, and splay of the fingers.
GESTURES: dict[str, tuple[tuple[float, float, float, float], Thumb, float]] = {
    "open": ((0.0, 0.0, 0.0, 0.0), OUT, 1.6),
    "flat": ((0.02, 0.0, 0.0, 0.02), BESIDE, 0.1),
    "fist": ((0.96, 1.0, 1.0, 0.97), ACROSS, 0.0),
    "pointing": ((0.0, 0.97, 1.0, 0.97), ACROSS, 0.2),
    "two": ((0.0, 0.97, 1.0, 0.97), OUT, 0.2),
    "peace": ((0.0, 0.0, 0.95, 0.95), ACROSS, 1.8),
    "three": ((0.0, 0.0, 0.0, 0.92), ACROSS, 1.2),
    "four": ((0.0, 0.0, 0.0, 0.0), ACROSS, 1.2),
    "thumbs up": ((0.96, 1.0, 1.0, 0.97), OUT, 0.0),
    "telephone": ((0.96, 1.0, 0.96, 0.05), OUT, 0.5),
    "horns": ((0.0, 0.97, 0.97, 0.0), ACROSS, 0.6),
    "pinch": ((0.48, 0.5, 0.52, 0.55), OPPOSED, 0.2),
    "ring": ((0.48, 0.1, 0.05, 0.0), OPPOSED, 1.0),
    "relaxed": ((0.2, 0.26, 0.31, 0.36), NEUTRAL, 0.6),
    "half closed": ((0.4, 0.46, 0.5, 0.55), NEUTRAL, 0.4),
    "grip": ((0.55, 0.58, 0.6, 0.6), OPPOSED, 0.5),
    "claw": ((0.35, 0.35, 0.35, 0.35), OUT, 1.4),
}
# Degrees of each joint for a stretched and for a closed finger.
MCP, PIP, DIP = (-6.0, 84.0), (4.0, 104.0), (3.0, 66.0)


def draw_poses(draws: Draws) -> dict[str, Tensor]:
    """Draw candidates of each hand's pose.

    Args:
        draws: B streams.

    Returns:
        Radians of the joints, in the form of `draw_angles`: (B, POSES, 4) of the fingers' and (B, POSES) of
        the thumb's. All candidates of a hand are of one kind: one gesture, or random.
    """
    random = draw_angles(draws)
    table = list(GESTURES.values())
    which = draws.below(len(table), 1).expand(len(draws), POSES)
    curls = torch.tensor([curl for curl, _, _ in table], dtype=torch.float64)[which]
    thumbs = torch.tensor([list(thumb) for _, thumb, _ in table], dtype=torch.float64)[which]
    splay = torch.tensor([value for _, _, value in table], dtype=torch.float64)[which][..., None]
    loose = draws.uniform(0, 0.16, 1, 1)  # how carelessly the gesture is made
    curls = curls + loose * (1 - 2 * curls) * draws.uniform(0, 1, POSES, 1).sqrt()
    curls = curls + 0.5 * loose * draws.normal(POSES, 4)
    thumbs = thumbs + 7 * draws.normal(POSES, 4)
    noise = draws.normal(3, POSES, 4)
    bends = {"mcp": (*MCP, 6.0), "pip": (*PIP, 5.0), "dip": (*DIP, 6.0)}
    degrees = {
        name: low + (high - low) * curls + deviation * noise[:, row]
        for row, (name, (low, high, deviation)) in enumerate(bends.items())
    }
    fan = torch.tensor(FINGER_SPLAY, dtype=torch.float64)
    limits = {"mcp": (-22, 88), "pip": (0, 108), "dip": (-6, 78)}
    gesture = {name: value.clamp(*limits[name]) for name, value in degrees.items()}
    gesture["abduction"] = fan * splay * draws.uniform(0.5, 1.4, POSES, 1) + 3.5 * draws.normal(POSES, 4)
    gesture["abduction"] *= torch.cos(torch.deg2rad(gesture["mcp"].clamp(0, 88)))
    ranges = (("abduction", -12, 28), ("opposition", -15, 48), ("mcp", -8, 52), ("ip", -12, 72))
    for column, (name, low, high) in enumerate(ranges):
        gesture[f"thumb_{name}"] = thumbs[..., column].clamp(low, high)
    chosen = draws.chance(GESTURE_CHANCE, 1)
    by_ndim = {2: chosen, 3: chosen[..., None]}
    radians = {name: torch.deg2rad(gesture[name]) for name in random}
    return {name: torch.where(by_ndim[value.ndim], radians[name], value) for name, value in random.items()}


def draw_angles(draws: Draws) -> dict[str, Tensor]:
    """Draw poses by B streams: radians (B, POSES, 4) of the fingers' joints and (B, POSES) of the thumb's."""
    # Curl 0 is a stretched finger, 1 a closed one.
    together = draws.uniform(0, 1, POSES, 1) ** 1.3
    alone = draws.uniform(0, 1, POSES, 4) ** 1.3
    mixing = draws.uniform(0, 1, POSES, 1)
    curl = mixing * together + (1 - mixing) * alone
    flexion = curl + 0.35 * draws.uniform(-0.5, 0.5, POSES, 4) * (1 - mixing)
    bend = curl + 0.35 * draws.uniform(-0.5, 0.5, POSES, 4)
    splay = torch.tensor(FINGER_SPLAY, dtype=torch.float64)
    degrees = {
        "mcp": (-18 + 103 * flexion).clamp(-22, 88),
        "pip": (105 * bend).clamp(0, 108),
        "dip": (70 * bend + 14 * draws.normal(POSES, 4)).clamp(-6, 78),
        "abduction": 7 * draws.normal(POSES, 4).clamp(-2, 2) + splay * draws.uniform(-0.3, 2, POSES, 1),
        "thumb_abduction": draws.uniform(-12, 28, POSES),
        "thumb_opposition": draws.uniform(-15, 48, POSES),
        "thumb_mcp": draws.uniform(-8, 52, POSES),
        "thumb_ip": draws.uniform(-12, 72, POSES),
    }
    # Fingers cannot spread when the knuckles are bent.
    degrees["abduction"] = degrees["abduction"] * torch.cos(torch.deg2rad(degrees["mcp"].clamp(0, 88)))
    return {name: torch.deg2rad(value) for name, value in degrees.items()}
