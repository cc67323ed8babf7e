"""Random poses inside the joints' ranges of motion: the textbook ones of MCP, PIP, DIP, CMC and IP joints."""

from __future__ import annotations

import torch
from torch import Tensor

from nvf_fast.data.draws import Draws

POSES = 13  # tries of each hand
FINGER_SPLAY = (5.0, 0.0, -5.0, -11.0)  # degrees towards the thumb, of index, middle, ring and little finger
# The thumb's direction at abduction and opposition 0, and the direction in which it bends (hand frame).
THUMB_AHEAD, THUMB_ACROSS = (0.66, 0.62, 0.42), (-0.75, 0.35, 0.55)


def draw_angles(draws: Draws) -> dict[str, Tensor]:
    """Draw poses, in radians.

    Args:
        draws: B streams.

    Returns:
        (B, POSES, 4) of the fingers' joints and (B, POSES) of the thumb's.
    """
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
