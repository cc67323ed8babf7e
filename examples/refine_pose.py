"""Refine a pose by gradients: move a hand until the field around its joints agrees.

The network stays frozen; gradients reach the points that the field is queried at. The example disturbs the
network's pose of the demonstration image's right hand, and recovers it from the field alone.

python examples/refine_pose.py
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import nvf_fast
from nvf_fast.camera import network_view, view_intrinsics
from nvf_fast.volumes import HandVolume

BALL_MM = 80.0  # a point's weight is 1 - distance / 80 mm for each joint (Eq. 2 of the paper)
STEPS = 150


def moved(joints: Tensor, turn: Tensor, shift: Tensor) -> Tensor:
    """Rotate joints (J, 3) mm about their mean by a rotation vector (3,) rad, and shift them by (3,) mm."""
    x, y, z = turn
    zero = torch.zeros_like(x)
    skew = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero]).view(3, 3)
    middle = joints.mean(0)
    return (joints - middle) @ torch.linalg.matrix_exp(skew).mT + middle + shift


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    folder = Path(nvf_fast.__file__).parent / "assets"
    scene = json.loads((folder / "demo.json").read_text())
    hand = next(hand for hand in scene["hands"] if hand["side"] == "right")
    image = torch.from_numpy(np.array(Image.open(folder / "demo.jpg").convert("RGB")))
    K, box = (torch.tensor(values, dtype=torch.float64)[None] for values in (scene["K"], hand["box"]))

    model = nvf_fast.load(device="cpu").model
    assert isinstance(model, nvf_fast.NVF)
    size = model.config.input_size
    placement = HandVolume().place(K, size, boxes=box)
    assert placement.slopes is not None
    slopes = placement.slopes.float()
    encoding = model.encode_hands(network_view(image, placement.homographies[0], size), slopes)
    coarse, intrinsics = encoding.joints(slopes), view_intrinsics(slopes, size)

    start = moved(coarse[0], torch.tensor([0.2, -0.3, 0.3]), torch.tensor([15.0, -10.0, 25.0]))
    turn, shift = torch.zeros(3, requires_grad=True), torch.zeros(3, requires_grad=True)
    optimiser = torch.optim.Adam([{"params": [turn], "lr": 0.02}, {"params": [shift], "lr": 1.0}])
    errors = []
    for _ in range(STEPS):
        joints = moved(start, turn, shift)
        field = model.query(encoding.features, joints[None], intrinsics, coarse=coarse)
        # Each joint votes for all those within the ball about it; the votes should meet them.
        votes = joints[:, None] + BALL_MM * (1 - field.weight[0])[..., None] * field.direction[0]
        missed = (votes - joints).norm(dim=-1)[torch.cdist(joints, joints) < BALL_MM]
        optimiser.zero_grad()
        missed.mean().backward()
        optimiser.step()
        errors.append(float((joints.detach() - coarse[0]).norm(dim=-1).mean()))
    print(f"mean distance of the joints from the undisturbed ones, mm: {errors[0]:.1f} -> {errors[-1]:.1f}")


if __name__ == "__main__":
    main()
