"""Comparison of field variants, on views of noise."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import field_variants
from benchmarks.field_variants import VARIANTS, Compare, EncodedViews, Variant, Votes
from nvf_fast import ops
from nvf_fast.buffers import Voters
from nvf_fast.data.hand_views import HandViews
from nvf_fast.model import NVF, FieldValues
from nvf_fast.training.hand_losses import HandLossConfig
from tests.test_hand_losses import views
from tests.test_unet import SMALL

OPTIONS = Compare((), (), Path(), seconds=0.3, batch=4)


@pytest.fixture(scope="module")
def model() -> NVF:
    torch.manual_seed(0)
    return NVF(SMALL).for_inference()


@pytest.fixture(scope="module")
def encoded(model: NVF) -> EncodedViews:
    noise = views(8)
    noise.trust[3] = 0
    return field_variants.encode(model, noise)


@pytest.mark.parametrize("name", VARIANTS)
def test_training_lowers_the_loss_and_freezes_the_encoder(
    name: str, model: NVF, encoded: EncodedViews
) -> None:
    variant = VARIANTS[name]
    torch.manual_seed(0)
    network = field_variants.make_network(model, variant)
    config = HandLossConfig(near_mm=variant.near_mm)
    before = field_variants.field_loss(network, variant, encoded, config)
    encoder = [value.clone() for value in network.encoder.state_dict().values()]
    steps = field_variants.train(network, variant, encoded, OPTIONS, seed=0)
    assert steps > 3
    assert field_variants.field_loss(network, variant, encoded, config) < before
    for old, new in zip(encoder, model.encoder.state_dict().values(), strict=True):
        assert torch.equal(old, new)
    votes = field_variants.vote(network, variant, encoded)
    assert votes.joints.isfinite().all() and votes.joints.shape == encoded.joints.shape
    assert len(encoded.joints) == 7, "views without trust are left out"
    assert network.config.hidden == (variant.hidden or SMALL.hidden)


def test_without_position_the_field_depends_on_depth_alone(model: NVF, encoded: EncodedViews) -> None:
    variant = Variant(position=False, pose_code=False)
    network = field_variants.make_network(model, variant)
    field_variants.train(network, variant, encoded, OPTIONS, seed=0)
    intrinsics = torch.tensor([[100.0, 0, 32], [0, 100, 32], [0, 0, 1]])
    points = torch.tensor([[[10.0, 20, 400], [10, 20, 430]]])
    features = torch.randn(1, SMALL.width, SMALL.feature_size, SMALL.feature_size)

    def query(x: float, y: float, z: float) -> FieldValues:
        coarse = torch.tensor([x, y, z], dtype=torch.float32).expand(1, 21, 3)
        return network.query(features, points, intrinsics, coarse=coarse)

    across, along = query(30, -50, 400), query(0, 0, 430)
    assert torch.equal(query(0, 0, 400).weight, across.weight)
    assert not torch.equal(along.weight, across.weight)


def test_likelihood_peaks_at_the_true_spread() -> None:
    generator = torch.Generator().manual_seed(0)
    joints, points = torch.zeros(1, 21, 3), torch.zeros(1, 4000, 3)
    # Lengths of errors that are Gamma(3)-distributed have the density of exp(-|e| / σ) in three dimensions.
    directions = torch.nn.functional.normalize(torch.randn(1, 4000, 21, 3, generator=generator), dim=-1)
    lengths = -25 * torch.rand(3, 1, 4000, 21, 1, generator=generator).log().sum(0)
    none = joints.new_empty(0)
    labels = EncodedViews(none, none, none, none, none, joints, points, torch.zeros(1, 4000))

    def loss(spread: float) -> float:
        precision = torch.full((1, 4000, 21), math.log(field_variants.TYPICAL_SPREAD_MM / spread))
        field = FieldValues(torch.zeros(1, 4000), precision, directions * lengths / 80)
        return float(field_variants.precision_loss(field, labels, HandLossConfig()))

    assert loss(25) < loss(23) and loss(25) < loss(27)


def test_votes_are_weighted_by_their_precision() -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(2, 10, 3, generator=generator) * 30
    raw = 0.7 * torch.randn(2, 10, 21, 4, generator=generator)  # within the limit of precisions
    counts = torch.tensor([10, 6], dtype=torch.int32)
    votes = field_variants.votes_by_precision(Voters(counts, counts > 99, lambda: (points, raw)))
    joints, _, _ = ops.cast_votes(points, votes, counts, fraction=0.5)
    for image, count in enumerate(counts.tolist()):
        for joint in range(21):
            chosen = raw[image, :count, joint, 0].topk(count // 2).indices
            weight = (2 * raw[image, chosen, joint, :1]).exp()
            places = points[image, chosen] + 80 * raw[image, chosen, joint, 1:]
            expected = (weight * places).sum(0) / weight.sum()
            torch.testing.assert_close(joints[image, joint], expected, atol=1e-3, rtol=1e-4)


def test_fusion_weights_estimates_by_precision() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(200, 21, 3, generator=generator) * 40
    variances = 400 * torch.rand(2, 200, 21, generator=generator) + 4
    noise = torch.randn(2, 200, 21, 3, generator=generator) * variances.sqrt()[..., None]
    coarse, voted = truth + noise[0], truth + noise[1]
    votes = Votes(voted, variances[1], torch.ones(200))
    one = torch.ones(())

    def error(joints: torch.Tensor) -> float:
        return float((joints - truth).norm(dim=-1).mean())

    fused = field_variants.combine_by_precision(coarse, variances[0], votes, (one, one))
    assert error(fused) < 0.8 * min(error(coarse), error(voted))
    # Variances four times too small are corrected.
    ratios = field_variants.fit_ratios(
        coarse, variances[0], votes._replace(variances=variances[1] / 4), truth
    )
    assert 2.5 < ratios[1] < 6.5
    no_votes = votes._replace(variances=torch.full_like(variances[1], math.inf))
    kept = field_variants.combine_by_precision(coarse, variances[0], no_votes, (one, one))
    torch.testing.assert_close(kept, coarse)


def test_reads_view_files(tmp_path: Path) -> None:
    parts = [views(2, seed) for seed in (0, 1)]
    for number, part in enumerate(parts):
        np.savez(tmp_path / f"{number}.npz", **vars(part))
    read = field_variants.read_views(sorted(tmp_path.iterdir()))
    joined = HandViews.concatenate(parts)
    for name, value in vars(joined).items():
        np.testing.assert_array_equal(getattr(read, name), value)
