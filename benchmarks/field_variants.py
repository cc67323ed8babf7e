"""Compare variants of the default network's field, each trained on features of its frozen encoder.

    python -m benchmarks.field_variants --training VIEWS.npz ... --rendered VIEWS.npz ... --photographs FOLDER

Every variant is trained from scratch on the same views, for the same processor time, with the same schedule
and seed. A file of views holds the arrays of `nvf_fast.data.hand_views.HandViews`, as
`np.savez(path, **vars(SyntheticViews(seed).draw(480, "close")))` writes them. Run `make readme` afterwards.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import tyro
from torch import Tensor
from tqdm import tqdm

from nvf_fast import ops
from nvf_fast.buffers import Voters
from nvf_fast.camera import view_intrinsics
from nvf_fast.checkpoint import load_checkpoint, resolve
from nvf_fast.data.hand_views import HandViews
from nvf_fast.data.photograph_views import PhotographViews
from nvf_fast.data.photographs import Photographs
from nvf_fast.evaluation import metrics
from nvf_fast.evaluation.photographs import FIRST_GROUPS
from nvf_fast.hand_pipeline import HandPipeline
from nvf_fast.model import NVF, FieldValues
from nvf_fast.pipeline import QueryOptions
from nvf_fast.runtime.profiling import Profiler
from nvf_fast.training.calibration import BATCH, fit_vote_weight
from nvf_fast.training.hand_losses import HandBatch, HandLossConfig, distance_losses, vote_losses
from nvf_fast.unet import HandEncoding
from nvf_fast.volumes import HandVolume

RESULTS = Path(__file__).resolve().parent / "results"
OTHER = "other photographs"
TYPICAL_SPREAD_MM = 40.0  # of votes whose log-precision is 0
PRECISION_LOSS = 0.03  # weight of the negative log-likelihood of votes
LIMIT = 3.0  # of a predicted log-precision
RATIOS = torch.logspace(-2, 2, 33)  # candidates for the variance of the coarse joints over that of the votes


@dataclass(frozen=True)
class Variant:
    """A field and its voting.

    Attributes:
        position: whether a point's position relative to the coarse centre is an input, not only its depth.
        pose_code: whether biases encode the coarse pose.
        hidden: channels of the hidden layers; None uses the encoder's checkpoint's.
        near_mm: largest distance to the surface of points supervised to vote.
        surface_mm: largest predicted distance to the surface of voters.
        precision: whether a vote predicts an offset and its precision, used as its weight, instead of the
            closeness to the joint and the direction.
    """

    position: bool = True
    pose_code: bool = True
    hidden: tuple[int, ...] | None = None
    near_mm: float = HandLossConfig.near_mm
    surface_mm: float = 5.0
    precision: bool = False


VARIANTS = {
    "feature and depth, as the paper": Variant(position=False, pose_code=False),
    "+ position": Variant(pose_code=False),
    "+ pose code: the default": Variant(),
    "default, hidden layers 512-256-128-128": Variant(hidden=(512, 256, 128, 128)),
    "default, shell of 10 mm, trained within 40 mm": Variant(near_mm=40.0, surface_mm=10.0),
    "default, weights by learned precision": Variant(precision=True),
    "both: learned precision, shell of 10 mm": Variant(precision=True, near_mm=40.0, surface_mm=10.0),
}


@dataclass(frozen=True)
class Compare:
    """Train and score every variant, the best ones again with a second seed.

    Attributes:
        training: files of views to train on.
        rendered: files of rendered views to score on; the file's name becomes a column.
        photographs: folder of labelled photographs, whose validation split is used for scores.
        checkpoint: of the network with the frozen encoder.
        seconds: processor time of each training.
        batch: views per step.
        learning_rate: initial value of a cosine schedule.
        seed: of initial weights and batches.
        again: variants to train again with a second seed.
    """

    training: tuple[Path, ...]
    rendered: tuple[Path, ...]
    photographs: Path
    checkpoint: Path | None = None
    seconds: float = 300.0
    batch: int = 16
    learning_rate: float = 2e-3
    seed: int = 1
    again: int = 2


class EncodedViews(NamedTuple):
    """Labelled views with one right hand each, encoded.

    Attributes:
        features: (N, C, H, W) float16.
        uv, depth, error: of `HandEncoding`.
        slopes, joints, points, distances: of `HandBatch`.
    """

    features: Tensor
    uv: Tensor
    depth: Tensor
    error: Tensor
    slopes: Tensor
    joints: Tensor
    points: Tensor
    distances: Tensor

    def rows(self, rows: Tensor | slice) -> EncodedViews:
        return EncodedViews(*(each[rows] for each in self))

    def encoding(self) -> HandEncoding:
        """A `HandEncoding` with the parts that field and votes need; the others are empty."""
        none = self.depth.new_empty(0)
        return HandEncoding(
            self.features.float(), self.uv, self.depth, none, none, none, self.error, none, none
        )

    def coarse(self) -> Tensor:
        return self.encoding().joints(self.slopes)


class Votes(NamedTuple):
    """Voted joints (N, 21, 3) mm, their variances (N, 21) mm², and voters (N,) of N views."""

    joints: Tensor
    variances: Tensor
    voters: Tensor

    def rows(self, rows: Tensor) -> Votes:
        return Votes(*(each[rows] for each in self))


@torch.no_grad()
def encode(model: NVF, views: HandViews) -> EncodedViews:
    """Encode the views with a labelled right hand.

    Args:
        model: a network of hand views, folded.
        views: labelled views.
    """
    views = views[views.trust > 0]
    parts = []
    for first in tqdm(range(0, len(views), BATCH), desc="encoding", disable=None):
        batch = HandBatch.of(views[first : first + BATCH])
        encoding = model.encode_hands(batch.images, batch.slopes)
        labels = batch.slopes, batch.joints, batch.points, batch.distances
        parts.append(
            EncodedViews(encoding.features.half(), encoding.uv, encoding.depth, encoding.error, *labels)
        )
    return EncodedViews(*(torch.cat(each) for each in zip(*parts, strict=True)))


def make_network(model: NVF, variant: Variant) -> NVF:
    """A network with the encoder of `model` and a new field."""
    hidden = variant.hidden or model.config.hidden
    code = model.config.pose_code if variant.pose_code else 0
    network = NVF(replace(model.config, hidden=hidden, pose_code=code))
    network.encoder, network.heads = model.encoder, copy.deepcopy(model.heads)
    if not variant.position:
        for weight in network.field.weights:
            across = torch.ones_like(weight)
            across[:, -3:-1] = 0  # inputs end with x, y and z
            weight.data.mul_(across)
            weight.register_hook(across.mul)
    return network


def train(network: NVF, variant: Variant, views: EncodedViews, options: Compare, seed: int) -> int:
    """Train the field for a given processor time and return the number of steps."""
    generator = torch.Generator().manual_seed(seed)
    config = replace(HandLossConfig(), near_mm=variant.near_mm)
    parameters = list(network.field.parameters())
    optimiser = torch.optim.AdamW(parameters, options.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    step, start = 0, time.process_time()
    while (elapsed := (time.process_time() - start) / options.seconds) < 1:
        for group in optimiser.param_groups:
            group["lr"] = options.learning_rate * min(1.0, (step + 1) / 100) * _cosine(elapsed)
        rows = torch.randint(len(views.slopes), (options.batch,), generator=generator)
        loss = field_loss(network, variant, views.rows(rows), config)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        step += 1
    network.requires_grad_(False)
    return step


def field_loss(network: NVF, variant: Variant, views: EncodedViews, config: HandLossConfig) -> Tensor:
    """The weighted sum of the field's losses."""
    intrinsics = view_intrinsics(views.slopes, network.config.input_size)
    field = network.query(views.features.float(), views.points, intrinsics, coarse=views.coarse())
    distance = distance_losses(field, views.distances, config)
    loss = distance["sdf"] + config.wide * distance["wide"]
    if variant.precision:
        return loss + PRECISION_LOSS * precision_loss(field, views, config)
    votes = vote_losses(field, views.points, views.distances, views.joints, config)
    return loss + config.weights * votes["weight"] + config.directions * votes["direction"]


def precision_loss(field: FieldValues, views: EncodedViews, config: HandLossConfig) -> Tensor:
    """Negative log-likelihood of offsets whose length of error is exponential: |e| / σ + 3 ln σ."""
    offsets = views.joints[:, None] - views.points[:, :, None]
    errors = (config.ball_mm * field.direction - offsets).norm(dim=-1)
    precision = field.weight.clamp(-LIMIT, LIMIT)
    near = ((views.distances.abs() < config.near_mm) & field.sdf.isfinite()).float()[..., None]
    losses = (errors / TYPICAL_SPREAD_MM * precision.exp() - 3 * precision) * near
    return losses.sum() / near.sum().clamp_min(1) / losses.shape[-1]


@torch.no_grad()
def vote(network: NVF, variant: Variant, views: EncodedViews) -> Votes:
    """Query each network's lattice and cast the votes; coarse joints replace those without votes."""
    volume, profiler = HandVolume(), Profiler(network.device)
    options = QueryOptions(surface_mm=variant.surface_mm)
    pipeline = HandPipeline(network, volume, options, profiler)
    parts = []
    for first in range(0, len(views.slopes), BATCH):
        part = views.rows(slice(first, first + BATCH))
        coarse, _, voters = pipeline.vote(part.encoding(), part.slopes)
        votes = votes_by_precision(voters) if variant.precision else voters.votes
        joints, _, spread = ops.cast_votes(voters.points, votes, voters.counts, fraction=options.fraction)
        joints = torch.where(joints.isfinite(), joints, coarse)
        parts.append(Votes(joints, spread.square().nan_to_num(math.inf), voters.counts))
    return Votes(*(torch.cat(each) for each in zip(*parts, strict=True)))


def votes_by_precision(voters: Voters, ball_mm: float = HandLossConfig.ball_mm) -> Tensor:
    """Votes for `cast_votes` with weights proportional to 1 / σ² and with the predicted offsets.

    Only ratios of weights count: the largest of each joint becomes 1/2, which bounds 1 / (1 - weight).
    """
    precision = voters.votes[..., :1].clamp(-LIMIT, LIMIT)
    used = torch.arange(precision.shape[1]) < voters.counts[:, None]
    precision = precision.masked_fill(~used[..., None, None], -math.inf)
    weight = 0.5 * (2 * (precision - precision.amax(1, keepdim=True))).exp()
    return torch.cat([weight, voters.votes[..., 1:] / (1 - weight)], -1).nan_to_num(0.0)


def combine_by_precision(
    coarse: Tensor, coarse_variances: Tensor, votes: Votes, ratios: tuple[Tensor, Tensor]
) -> Tensor:
    """Joints between coarse and voted ones, the middle and the joints relative to it apart.

    Args:
        coarse: (N, 21, 3) mm.
        coarse_variances: (N, 21) mm², expected.
        votes: of the same views.
        ratios: () factors of the votes' variances, for the middle and for the joints relative to it.
    """

    def weight(of_coarse: Tensor, of_votes: Tensor, ratio: Tensor) -> Tensor:
        return 1 / (1 + ratio * of_votes / of_coarse)[..., None]

    middles = coarse.mean(1, keepdim=True), votes.joints.mean(1, keepdim=True)
    relative = coarse - middles[0], votes.joints - middles[1]
    of_middles = coarse_variances.mean(1, keepdim=True), votes.variances.mean(1, keepdim=True)
    middle = middles[0].lerp(middles[1], weight(*of_middles, ratios[0]))
    return middle + relative[0].lerp(relative[1], weight(coarse_variances, votes.variances, ratios[1]))


def fuse(network: NVF, views: EncodedViews, votes: Votes) -> dict[str, Tensor]:
    """Coarse and voted joints, and both ways to fuse them, fitted on every second view for the others."""
    coarse, variances = views.coarse(), views.error.square()
    assert network.heads is not None
    fixed, precise = torch.empty_like(coarse), torch.empty_like(coarse)
    halves = torch.arange(len(coarse)) % 2 == 0
    for fitted, other in ((halves, ~halves), (~halves, halves)):
        truth, known, rest = views.joints[fitted], votes.rows(fitted), votes.rows(other)
        network.heads.vote_weight.copy_(fit_vote_weight(coarse[fitted], known.joints, truth))
        fixed[other] = network.heads.combine(coarse[other], rest.joints)
        ratios = fit_ratios(coarse[fitted], variances[fitted], known, truth)
        precise[other] = combine_by_precision(coarse[other], variances[other], rest, ratios)
    return {"coarse": coarse, "votes": votes.joints, "fitted weights": fixed, "precision": precise}


def fit_ratios(coarse: Tensor, variances: Tensor, votes: Votes, truth: Tensor) -> tuple[Tensor, Tensor]:
    """The factors of `combine_by_precision` with the least mean distance to the truth."""

    def best(candidates: Iterable[tuple[Tensor, Tensor]], centred: bool) -> tuple[Tensor, Tensor]:
        def error(ratios: tuple[Tensor, Tensor]) -> float:
            difference = combine_by_precision(coarse, variances, votes, ratios) - truth
            middle = difference.mean(1, keepdim=True)
            return float((difference - middle if centred else middle).norm(dim=-1).mean())

        return min(candidates, key=error)

    one = torch.ones(())
    return (
        best(((ratio, one) for ratio in RATIOS), centred=False)[0],
        best(((one, ratio) for ratio in RATIOS), centred=True)[1],
    )


def score(joints: Tensor, truth: Tensor) -> tuple[float, float, float]:
    """Errors in mm: after alignment, relative to the wrist, and in camera space."""
    predicted, true = joints.double().numpy(), truth.double().numpy()
    return (
        metrics.pa_mpjpe(predicted, true),
        metrics.mpjpe(metrics.root_align(predicted, true), true),
        metrics.mpjpe(predicted, true),
    )


def validation_views(options: Compare) -> dict[str, HandViews]:
    """Views to score on, by the name of their column."""
    data = Photographs(options.photographs, "val")
    groups = np.array([label.group for label in data.labels])
    found = {name: np.flatnonzero(groups == name) for name in FIRST_GROUPS}
    found[OTHER] = np.flatnonzero(~np.isin(groups, FIRST_GROUPS))
    views = {name: PhotographViews(data).exact(rows) for name, rows in found.items() if len(rows)}
    return views | {path.stem.replace("_", " "): read_views([path]) for path in options.rendered}


def read_views(paths: Sequence[Path]) -> HandViews:
    """Read files of views."""
    return HandViews.concatenate([HandViews(**np.load(path)) for path in paths])


def compare(options: Compare) -> dict[str, dict[str, Any]]:
    """Train and score; the tables are written after each training.

    Returns:
        The tables by name.
    """
    checkpoint = resolve(options.checkpoint)
    committed, metadata = load_checkpoint(checkpoint)
    assert isinstance(committed, NVF)
    model = committed.for_inference()
    training = encode(model, read_views(options.training))
    sets = {name: encode(model, views) for name, views in validation_views(options).items()}
    views = EncodedViews(*(torch.cat(each) for each in zip(*sets.values(), strict=True)))
    owner = torch.cat([torch.full_like(each.slopes, of) for of, each in enumerate(sets.values())])
    context = {
        "encoder": f"sha256 {metadata['sha256'][:12]}",
        "training views": len(training.slopes),
        "scored views": ", ".join(f"{name} {len(each.slopes)}" for name, each in sets.items()),
        "processor seconds each": options.seconds,
        "batch": options.batch,
        "torch": torch.__version__,
    }
    titles = [f"{of}: aligned / relative / camera mm" for of in sets]
    tables = {
        "field_variants": _table(["votes of", "seed", "steps", "voters", *titles], context),
        "field_fusions": _table(["field", "seed", "fused by", *titles], context),
    }
    alone, fusions = (table["rows"] for table in tables.values())
    errors = {}

    def add(name: str, network: NVF, variant: Variant, seed: int | None, steps: int | None) -> None:
        votes = vote(network, variant, views)
        fused = fuse(network, views, votes)
        errors_of = {
            method: [score(joints[owner == of], views.joints[owner == of]) for of in range(len(sets))]
            for method, joints in fused.items()
        }
        cells = {method: [_cell(each) for each in found] for method, found in errors_of.items()}
        if not alone:
            alone.append(["no field, coarse joints", None, None, None, *cells["coarse"]])
        alone.append([name, seed, steps, int(votes.voters.median()), *cells["votes"]])
        for method in ("fitted weights", "precision"):
            fusions.append([name, seed, method, *cells[method]])
        errors[name] = float(np.mean([relative for _, relative, _ in errors_of["votes"]]))
        write_tables(tables)

    add("the checkpoint's field, trained with its encoder", model, Variant(), None, None)

    def run(name: str, seed: int) -> None:
        torch.manual_seed(seed)
        network = make_network(model, VARIANTS[name])
        add(name, network, VARIANTS[name], seed, train(network, VARIANTS[name], training, options, seed))

    for name in VARIANTS:
        run(name, options.seed)
    for name in sorted(VARIANTS, key=errors.__getitem__)[: options.again]:
        run(name, options.seed + 1)
    return tables


def write_tables(tables: dict[str, dict[str, Any]]) -> None:
    """Write tables for `benchmarks/readme.py`."""
    for name, table in tables.items():
        (RESULTS / f"{name}.json").write_text(json.dumps(table, indent=1, allow_nan=False) + "\n")


def _table(columns: list[str], context: dict[str, Any]) -> dict[str, Any]:
    return {"columns": columns, "rows": [], "context": context}


def _cell(errors: tuple[float, float, float]) -> str:
    return " / ".join(f"{value:.1f}" for value in errors)


def _cosine(elapsed: float) -> float:
    """From 1 to 0.01 while `elapsed` goes from 0 to 1."""
    return 0.01 + 0.99 * (1 + math.cos(math.pi * elapsed)) / 2


if __name__ == "__main__":
    compare(tyro.cli(Compare, description=__doc__))
