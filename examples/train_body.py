"""Train a network of another object: a body of capsules with the 17 joints of COCO.

The configuration gives the number of joints; the labels are points, their signed distances and the joints.
Lengths are those of a body of an eighth of its size at an eighth of its distance, which has the same image
and fits the volume that the estimator queries.

python examples/train_body.py
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

import nvf_fast
from nvf_fast.camera import normalised
from nvf_fast.overlay import draw_poses
from nvf_fast.training.losses import LossConfig, Targets, field_losses

# Nose, eyes, ears, shoulders, elbows, wrists, hips, knees and ankles, left ones first; an eighth of an adult.
REST = torch.tensor([
    (0, -650, -90), (35, -685, -80), (-35, -685, -80), (75, -660, 0), (-75, -660, 0),
    (190, -480, 0), (-190, -480, 0), (420, -330, 0), (-420, -330, 0), (560, -130, 0), (-560, -130, 0),
    (110, 0, 0), (-110, 0, 0), (130, 420, 0), (-130, 420, 0), (140, 830, 0), (-140, 830, 0),
], dtype=torch.float32) / 8  # fmt: skip
LIMBS = [(5, 7), (7, 9), (6, 8), (8, 10), (11, 13), (13, 15), (12, 14), (14, 16)]
TRUNK = [(5, 6), (5, 11), (6, 12), (11, 12), (3, 4), (0, 3), (0, 4)]
BONES = LIMBS + TRUNK
RADII = torch.tensor([50.0] * 4 + [65.0] * 4 + [110.0] * 4 + [95.0] * 3) / 8
CONFIG = nvf_fast.NVFConfig(
    input_size=64, stem=16, width=32, stacks=1, groups=8, hidden=(64, 32), hand_scale=False, joints=len(REST)
)
LOSSES = LossConfig(surface_mm=25.0, vote_weight=0.5, vote_normalisation="near", wide_weight=0.2)


def bodies(count: int) -> Tensor:
    """Joints (B, 17, 3) of bodies with random limbs and directions, in mm of the small body."""
    joints = REST.repeat(count, 1, 1)
    for parent, child in LIMBS:
        bone = REST[child] - REST[parent]
        joints[:, child] = joints[:, parent] + bone + 0.4 * bone.norm() * (torch.rand(count, 3) - 0.5)
    angle = 1.0 * (torch.rand(count) - 0.5)
    turn = torch.zeros(count, 3, 3)
    turn[:, 0, 0] = turn[:, 2, 2] = angle.cos()
    turn[:, 0, 2], turn[:, 2, 0], turn[:, 1, 1] = angle.sin(), -angle.sin(), 1.0
    return joints @ turn.mT + torch.tensor([0.0, 0.0, 600.0]) + 40 * (torch.rand(count, 1, 3) - 0.5)


def distances(points: Tensor, joints: Tensor) -> Tensor:
    """Signed distances (B, N) mm of points (B, N, 3) to the capsules about the bones of joints (B, 17, 3)."""
    start, end = (joints[:, None, [bone[side] for bone in BONES]] for side in (0, 1))
    axis, offset = end - start, points[:, :, None] - start
    along = ((offset * axis).sum(-1) / axis.square().sum(-1)).clamp(0, 1)
    return ((offset - along[..., None] * axis).norm(dim=-1) - RADII).amin(-1)


def draw(joints: Tensor, focal: float) -> np.ndarray:
    """Draw one body's capsules, (64, 64, 3) uint8, farther ones first and darker."""
    size = CONFIG.input_size
    image = Image.new("RGB", (size, size), (30, 40, 60))
    canvas, pixels = ImageDraw.Draw(image), joints[:, :2] / joints[:, 2:] * focal + size / 2
    for bone in sorted(range(len(BONES)), key=lambda bone: -float(joints[list(BONES[bone]), 2].mean())):
        a, b = BONES[bone]
        depth = float(joints[[a, b], 2].mean())
        light = int(np.clip(255 - 2 * (depth - 530), 60, 255))
        colour = (light, light * (bone % 5) // 5, light * (bone % 3) // 3)
        half = float(RADII[bone]) * focal / depth
        canvas.line([*pixels[a].tolist(), *pixels[b].tolist()], colour, max(1, round(2 * half)))
        for x, y in (pixels[a].tolist(), pixels[b].tolist()):
            canvas.ellipse([x - half, y - half, x + half, y + half], colour)
    return np.asarray(image)


def voted(model: nvf_fast.NVF, images: Tensor, points: Tensor, K: Tensor) -> Tensor:
    """Joints (B, 17, 3) mm from the votes of points (B, N, 3)."""
    field = model(images, points, K)
    votes = torch.cat([field.weight[..., None], field.direction], -1)
    counts = torch.full((len(points),), points.shape[1], dtype=torch.int32)
    return nvf_fast.ops.cast_votes(points, votes, counts)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60, help="number of steps")
    parser.add_argument("--output", help="file for an image with the estimated skeleton")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    model = nvf_fast.NVF(CONFIG)
    K = model.reference_intrinsics
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    history, errors = [], []
    for step in range(arguments.steps + 1):
        joints = bodies(8)
        drawn = np.stack([draw(each, float(K[0, 0])) for each in joints])
        images = normalised(torch.from_numpy(drawn).permute(0, 3, 1, 2).float())
        ends = joints[:, torch.tensor(BONES)]
        ratio = torch.rand(len(joints), len(BONES), 12, 1)
        points = (ends[:, :, :1] + ratio * (ends[:, :, 1:] - ends[:, :, :1])).flatten(1, 2)
        points = points + 15 * torch.randn(points.shape)
        targets = Targets.build(points, distances(points, joints), joints, LOSSES)
        if step in (0, arguments.steps):
            with torch.no_grad():
                errors.append(float((voted(model, images, points, K) - joints).norm(dim=-1).mean()))
        loss = field_losses(model(images, points, K), targets, LOSSES)["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        history.append(loss.item())
    print(f"loss over {arguments.steps} steps: {history[0]:.3f} -> {history[-1]:.3f}")
    print(f"mean error of the joints voted by points about the body, mm: {errors[0]:.1f} -> {errors[-1]:.1f}")

    estimator = nvf_fast.PoseEstimator(model, surface_mm=10.0)
    pose = estimator(drawn[0], K)
    print(f"{pose.joints.shape[0]} joints, {pose.voters} voters of {pose.points_evaluated} points")
    if arguments.output and pose.valid:
        draw_poses(drawn[0], pose, bones=BONES).resize((512, 512)).save(arguments.output)


if __name__ == "__main__":
    main()
