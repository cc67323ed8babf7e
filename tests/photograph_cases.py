"""A synthetic folder of labelled photographs: a coloured disc at each joint of a capsule hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nvf_fast.data.photographs import mirrored
from nvf_fast.data.tables import write_image
from nvf_fast.synthetic.placement import HandDistribution
from tests.sampled_hands import sample_hands

SIZE = 240
FOCAL = 300.0
COLOURS = (np.array([[255, 40, 40], [40, 255, 40], [40, 40, 255], [255, 255, 40], [40, 255, 255]])).astype(
    np.uint8
)
"""Of wrist, thumb's tip, index's tip, middle's tip and little finger's tip."""
MARKED = (0, 4, 8, 12, 20)
RADIUS = 3.5  # px, of a disc


def photograph_labels(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Return entries of labels.json; every second hand is left, and joints follow FreiHAND's definition."""
    near = HandDistribution(nearest_mm=380, farthest_mm=420)
    hands = (
        sample_hands(20 * count, torch.Generator().manual_seed(seed), near).joints.numpy().astype(np.float64)
    )
    entries = []
    for index, joints in enumerate(hands[_discs_apart(hands)][:count]):
        left = index % 2 == 1
        joints = mirrored(joints) if left else joints
        # The principal point places the hand's centre at (115, 122).
        mean = joints.mean(0)
        principal = [115 - FOCAL * mean[0] / mean[2], 122 - FOCAL * mean[1] / mean[2]]
        intrinsics = np.array([[FOCAL, 0, principal[0]], [0, FOCAL, principal[1]], [0, 0, 1]])
        projected = joints @ intrinsics.T
        entries.append(
            {
                "file": f"{'rooms' if index < 4 else 'streets'}_{index:05d}.png",
                "source": "someone/hands",
                "licence": "CC0-1.0",
                "split": "val" if index % 4 == 3 else "train",
                "side": "left" if left else "right",
                "side_score": 0.9,
                "definition": "freihand",
                "K": intrinsics.tolist(),
                "joints": joints.tolist(),
                "joints_2d": (projected[:, :2] / projected[:, 2:]).tolist(),
            }
        )
    return entries


def write_photographs(folder: Path, entries: list[dict[str, Any]], every_joint: bool = False) -> Path:
    """Write labels.json and images with discs at the marked joints, or red discs at every joint."""
    for entry in entries:
        image = np.full((SIZE, SIZE, 3), 90, np.uint8)
        rows, columns = np.mgrid[:SIZE, :SIZE]
        discs = [(joint, COLOURS[0]) for joint in range(21)]
        for joint, colour in discs if every_joint else zip(MARKED, COLOURS, strict=True):
            x, y = entry["joints_2d"][joint]
            image[(columns - x) ** 2 + (rows - y) ** 2 < RADIUS**2] = colour
        write_image(folder / "crops" / entry["file"], image)
    (folder / "labels.json").write_text(json.dumps(entries))
    return folder


def disc_centres(image: np.ndarray) -> np.ndarray:
    """Return centres (5, 2) px of the discs in an image with original colours; 0 for invisible discs."""
    apart = np.abs(image.astype(int)[..., None, :] - COLOURS).max(-1)
    weights = (apart < 70).astype(np.float64)
    rows, columns = np.mgrid[: image.shape[0], : image.shape[1]]
    pixels = np.stack([columns, rows], axis=-1)[:, :, None]
    return (weights[..., None] * pixels).sum((0, 1)) / np.maximum(weights.sum((0, 1)), 1)[:, None]


def _discs_apart(hands: np.ndarray) -> np.ndarray:
    """Whether the marked joints of each hand are too far apart for discs to overlap."""
    projected = FOCAL * (hands / hands[..., 2:])[:, MARKED, :2]
    apart = np.linalg.norm(projected[:, :, None] - projected[:, None], axis=-1) + 99 * np.eye(len(MARKED))
    return apart.min((1, 2)) > 3 * RADIUS
