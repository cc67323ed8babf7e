"""Labels and losses of every method and task."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from nvf_fast.baselines import build
from nvf_fast.config import NVFConfig, Task
from nvf_fast.data.surfaces import MeshHands
from nvf_fast.synthetic.rig import built_in_surface
from nvf_fast.training.config import TrainingConfig
from nvf_fast.training.images import ImageBatch
from nvf_fast.training.losses import AuxiliaryHead, LossConfig
from nvf_fast.training.objectives import DenseObjective, FieldObjective, Objective, objective_of
from nvf_fast.training.points import PointSampling
from nvf_fast.volumes import Volume
from tests.sampled_hands import sample_hands

COARSE_MM = 10.0  # for hands of 1000 faces
TINY = NVFConfig(input_size=64, stem=8, width=16, groups=4, stacks=2, hidden=(32, 16), hand_scale=False)
POINTS = PointSampling(surface=200, sphere=20, frustum=20, inside=60, outside=60)


@pytest.fixture(scope="module")
def hands() -> MeshHands:
    return sample_hands(3, torch.Generator().manual_seed(4), surface=built_in_surface(COARSE_MM))


def objective(model: NVFConfig, losses: LossConfig = LossConfig()) -> Objective:  # noqa: B008 (immutable)
    config = TrainingConfig("test", model=model, sampling=POINTS, losses=losses)
    return objective_of(config, torch.device("cpu"), torch.contiguous_format)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def in_frame(hands: MeshHands, volume: Volume) -> MeshHands:
    roots = hands.joints[:, 0].double()
    placement = volume.place(torch.eye(3).double().expand(len(roots), 3, 3), 32, roots=roots)
    return hands.translated(-placement.origins.float())


TASKS = pytest.mark.parametrize("task", ["camera-space", "root-relative"])


@TASKS
def test_field_points_lie_in_the_volume_half_inside_the_hand(hands: MeshHands, task: Task) -> None:
    field = objective(replace(TINY, task=task))
    assert isinstance(field, FieldObjective)
    volume = field.volume
    placed = in_frame(hands, volume)
    labels = field.labels(placed, seeded())
    assert labels.points.shape == (3, 120, 3) and volume.contains(labels.points).all()
    torch.testing.assert_close(labels.sdf, placed.signed_distance(labels.points), rtol=0, atol=2e-3)
    assert (labels.sdf[:, :60] < 0).all() and (labels.sdf[:, 60:] >= 0).all()
    assert torch.equal(labels.near, labels.sdf.abs() < 5)


@TASKS
def test_dense_labels_are_at_first_hits(hands: MeshHands, task: Task) -> None:
    dense = objective(replace(TINY, method="dense", input_size=128, task=task))
    volume = dense.volume
    placed = in_frame(hands, volume)
    labels = dense.labels(placed, seeded())
    assert 20 < labels.hand.sum() < 3 * 32 * 32
    origins, directions = volume.rays(32)
    for index in range(3):
        for texel in labels.hand[index].nonzero()[:, 0][::15].tolist():
            along = torch.linspace(0, 1300, 20_001)[:, None]
            walk = origins[texel] + along * directions[texel]
            inside = placed[index : index + 1].signed_distance(walk[None])[0] <= 0.02
            point = walk[inside.nonzero()[0, 0]]
            expected = (1 - (placed.joints[index] - point).norm(dim=-1) / 80).clamp_min(0)
            # The random walk's steps are up to 0.07 mm long.
            torch.testing.assert_close(labels.weight[index, texel], expected, rtol=0, atol=5e-3)
    assert not labels.weight[~labels.hand].any()


def test_dense_loss_is_equation_12(hands: MeshHands) -> None:
    model = build(replace(TINY, method="dense"))
    dense = objective(model.config, LossConfig(vote_weight=0.3))
    assert isinstance(dense, DenseObjective)
    labels = dense.labels(hands, seeded())
    features = torch.randn(3, 16, 16, 16)
    terms = dense.stack_losses(model, features, labels, None)
    votes = model.votes(features)
    huber = torch.zeros(())
    for image in range(3):
        for texel in range(256):
            if labels.hand[image, texel]:
                expected = torch.cat(
                    [labels.weight[image, texel, :, None], model.normalised(hands.joints[image])], 1
                )
                got = torch.cat([votes.weight[image, texel, :, None], votes.joints[image, texel]], 1)
                off = (got - expected).abs()
                huber = huber + torch.where(off < 1, off * off / 2, off - 0.5).sum()
    mask = binary_cross_entropy_with_logits(votes.hand, labels.hand.float())
    torch.testing.assert_close(terms["loss"], mask + 0.3 * huber / (3 * 256 * 21 * 4))


def test_each_method_overfits_a_batch(hands: MeshHands) -> None:
    # Every method and task: the loss of one fixed batch falls by its own gradients.
    images = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    for method in ("nvf", "holistic", "dense"):
        for task in ("camera-space", "root-relative"):
            model = build(replace(TINY, method=method, task=task))
            learned = objective(model.config, LossConfig(clamp_mm=50.0, vote_beta=0.2))
            placed = in_frame(hands, learned.volume)
            batch = learned.batch([(ImageBatch(images, placed), seeded())])
            optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
            losses = []
            for _ in range(25):
                loss = learned.losses(model, None, batch)["loss"]
                losses.append(float(loss.detach()))
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
            assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters()), method
            assert losses[-1] < 0.7 * losses[0], (method, task, losses[0], losses[-1])


def test_parts_draw_from_their_own_generators(hands: MeshHands) -> None:
    field = objective(TINY)
    images = torch.zeros(3, 3, 64, 64, dtype=torch.uint8)

    def part(rows: slice, seed: int) -> tuple[ImageBatch, torch.Generator]:
        return ImageBatch(images[rows], hands[rows]), torch.Generator().manual_seed(seed)

    whole = field.batch([part(slice(0, 1), 1), part(slice(1, 3), 2)])
    alone = field.batch([part(slice(1, 3), 2)])
    assert torch.equal(whole.labels.points[1:], alone.labels.points)
    assert torch.equal(whole.joints, hands.joints) and torch.equal(whole.true_scale, hands.hand_scale)


def test_auxiliary_losses_are_weighted(hands: MeshHands) -> None:
    field = objective(TINY, LossConfig(auxiliary_weight=0.25))
    model, head = build(TINY), AuxiliaryHead(TINY.width)
    images = torch.zeros(3, 3, 64, 64, dtype=torch.uint8)
    batch = field.batch([(ImageBatch(images, hands), seeded())])
    plain, terms = field.losses(model, None, batch), field.losses(model, head, batch)
    extra = sum(value for name, value in terms.items() if name.startswith("auxiliary"))
    torch.testing.assert_close(terms["loss"], plain["loss"] + 0.25 * extra)
