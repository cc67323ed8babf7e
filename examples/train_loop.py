"""Train the network in a loop of your own, with a loss that contains the field's gradient.

The loop calls the module, so that DistributedDataParallel works, and adds the eikonal equation |grad sdf| = 1
to the losses, which differentiates the field twice.

python examples/train_loop.py
torchrun --nproc-per-node 2 examples/train_loop.py
"""

from __future__ import annotations

import argparse
import os

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

import nvf_fast
from nvf_fast.camera import normalised
from nvf_fast.synthetic.dataset import SyntheticConfig, SyntheticHands
from nvf_fast.training.images import TaskImages
from nvf_fast.training.losses import LossConfig, Targets, field_losses
from nvf_fast.training.points import PointSampling, sample_points
from nvf_fast.volumes import volume_of

CONFIG = nvf_fast.NVFConfig(
    input_size=64, stem=16, width=32, stacks=1, groups=8, hidden=(64, 32), hand_scale=False
)
SAMPLING = PointSampling(surface=150, sphere=50, frustum=50, inside=None, outside=None)
LOSSES = LossConfig(surface_mm=25.0, vote_normalisation="near", wide_weight=1.0)
EIKONAL_WEIGHT = 0.01


def losses(network: torch.nn.Module, images: Tensor, targets: Targets, K: Tensor) -> Tensor:
    """The paper's losses and the eikonal one, as one number."""
    points = targets.points.clone().requires_grad_()
    field = network(images, points, K)
    (slopes,) = torch.autograd.grad(field.sdf.sum(), points, create_graph=True)
    eikonal = (slopes.norm(dim=-1) - 1).square().mean()
    return field_losses(field, targets, LOSSES)["loss"] + EIKONAL_WEIGHT * eikonal


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=25, help="number of steps")
    parser.add_argument("--images", type=int, default=4, help="images of each process")
    arguments = parser.parse_args()
    distributed = "RANK" in os.environ
    if distributed:
        torch.distributed.init_process_group("gloo")
    rank = int(os.environ.get("RANK", "0"))

    torch.manual_seed(0)
    model = nvf_fast.NVF(CONFIG)
    network = DistributedDataParallel(model) if distributed else model
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3)
    hands = TaskImages(SyntheticHands(SyntheticConfig(arguments.images, seed=rank, size=64)), CONFIG)
    batch = hands.__getitems__(list(range(arguments.images)))
    images, volume = normalised(batch.images.float()), volume_of(CONFIG)
    history = []
    for _ in range(arguments.steps):
        with torch.no_grad():
            points, distances = sample_points(batch.hands, volume, SAMPLING)
            targets = Targets.build(points, distances, batch.hands.joints, LOSSES)
        loss = losses(network, images, targets, model.reference_intrinsics)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        history.append(loss.item())
    if rank == 0:
        print(f"loss over {arguments.steps} steps: {history[0]:.3f} -> {history[-1]:.3f}")
    if distributed:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
