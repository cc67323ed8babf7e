"""Calibration of a trained network of hand views: vote weights, expected errors, and thresholds."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nvf_fast.config import NVFConfig
from nvf_fast.data.hand_views import HandViews
from nvf_fast.estimator import PoseEstimator
from nvf_fast.evaluation.finding import match_hands
from nvf_fast.finding import SAME_HAND, distinct_hands, finding_logits, overlap, pixel_boxes
from nvf_fast.hand_pipeline import HandPipeline
from nvf_fast.kernels.place_hands.reference import LEFT, PRESENCE
from nvf_fast.model import NVF
from nvf_fast.pipeline import QueryOptions
from nvf_fast.pose import HandPose
from nvf_fast.runtime.profiling import Profiler
from nvf_fast.runtime.progress import progress_bar
from nvf_fast.synthetic.wide_images import WideImage
from nvf_fast.training.hand_losses import HandBatch
from nvf_fast.training.view_augmentation import with_blank_views
from nvf_fast.unet import HandEncoding
from nvf_fast.volumes import HandVolume

BATCH = 32
WEIGHTS = torch.linspace(0, 1, 21)  # candidates for the weight of the votes
ACCEPTED = 0.005  # rate of accepted empty views that the threshold of presence keeps to
FALSE_HANDS = 0.045  # of a wide image, that the threshold of finding keeps to
PENALTY = 1e-4  # of the squared weights of a fitted logit, on features of unit variance
Propose = Callable[[np.ndarray, np.ndarray], tuple[HandPose[np.ndarray], np.ndarray]]


class ViewPredictions(NamedTuple):
    """Predictions for B views: coarse and voted joints (B, 21, 3) mm, and the heads."""

    coarse: Tensor
    voted: Tensor
    presence: Tensor
    left: Tensor
    error: Tensor


@torch.no_grad()
def predict_views(model: NVF, views: HandViews) -> ViewPredictions:
    """Predict labelled views; voted joints are the coarse ones where nothing votes."""
    model = model.for_inference()
    pipeline = HandPipeline(model, HandVolume(), QueryOptions(), Profiler(model.device))
    parts = []
    for first in range(0, len(views), BATCH):
        batch = HandBatch.of(views[first : first + BATCH], model.device)
        encoding: HandEncoding = model.encode_hands(batch.images, batch.slopes)
        coarse, voted, _ = pipeline.vote(encoding, batch.slopes)
        voted = torch.where(voted.isfinite(), voted, coarse)
        presence, left = encoding.presence.sigmoid(), encoding.left.sigmoid()
        parts.append(ViewPredictions(coarse, voted, presence, left, encoding.error))
    return ViewPredictions(*(torch.cat(each).cpu() for each in zip(*parts, strict=True)))


def calibrate(
    model: NVF, hands: HandViews, empty: HandViews, wide: Iterable[WideImage]
) -> tuple[NVF, dict[str, float]]:
    """Fit the parameters that combine a network's predictions.

    - The logits of presence and side: logistic regressions on the encoder's pooled description, of every
      second view and its mirror image, and of blank views. Training balances these two rows against many
      other losses and rarely moves them far enough.
    - The weight of the votes, for the hand's middle and for each joint relative to it: the one of `WEIGHTS`
      with the least mean distance to the truth.
    - The expected error: its logarithm is shifted, per joint, until expected and true errors agree in the
      mean.
    - The threshold of presence: the lowest that accepts at most 0.5 % of the empty views.
    - The weights of the evidence for a hand in a whole image, a logistic regression, and the threshold of
      finding: the lowest that finds at most 0.045 false hands per wide image.

    Args:
        model: a network of hand views.
        hands: labelled views with one right hand each, disjoint from any evaluation set.
        empty: views without a hand.
        wide: images of several hands or none.

    Returns:
        A copy of the network, and the thresholds, rates, and errors in mm of the coarse, voted and combined
        joints.
    """
    fitted = copy.deepcopy(model).eval()
    assert fitted.heads is not None
    heads = fitted.heads
    blank = with_blank_views(empty[::4], 1.0, np.random.default_rng(0))
    fit_logits(fitted, hands[::2], HandViews.concatenate([empty[::2], blank]))
    hands, empty = hands[1::2], empty[1::2]
    found = predict_views(fitted, hands)
    joints = torch.from_numpy(hands.joints)
    heads.vote_weight.copy_(fit_vote_weight(found.coarse, found.voted, joints).to(heads.vote_weight.device))
    combined = heads.combine(found.coarse.to(model.device), found.voted.to(model.device)).cpu()
    errors = (combined - joints).norm(dim=-1)
    shift = (errors.mean(0) / found.error.mean(0)).log()
    with torch.no_grad():
        heads.view.bias[3:] += shift.to(heads.view.bias)
    shown, hidden = found.presence.numpy(), predict_views(fitted, empty).presence.numpy()
    threshold, lost, accepted = _threshold(shown, hidden)
    # Every candidate is proposed, whatever the network's previous threshold.
    fitted.config = replace(fitted.config, presence_threshold=threshold, finding_threshold=0.0)
    weights, finding, recall, false_hands = fit_finding(PoseEstimator(fitted).proposals, wide)
    fitted.config = replace(fitted.config, finding_weights=weights, finding_threshold=finding)
    return fitted, {
        "presence_threshold": threshold,
        "lost": lost,
        "accepted": accepted,
        "finding_threshold": finding,
        "recall": recall,
        "false_hands": false_hands,
        "coarse_mm": float((found.coarse - joints).norm(dim=-1).mean()),
        "voted_mm": float((found.voted - joints).norm(dim=-1).mean()),
        "combined_mm": float(errors.mean()),
    }


@torch.no_grad()
def fit_logits(model: NVF, hands: HandViews, empty: HandViews) -> None:
    """Refit the heads' logits of presence and side on views with one right hand and on empty views."""
    assert model.heads is not None
    right, left = _pooled(model, hands), _pooled(model, hands, mirrored=True)
    none = torch.cat([_pooled(model, empty), _pooled(model, empty, mirrored=True)])
    shown = torch.cat([right, left])
    for row, features, positive in (
        (PRESENCE, torch.cat([shown, none]), len(shown)),
        (LEFT, torch.cat([left, right]), len(left)),
    ):
        labels = (torch.arange(len(features)) < positive).float()
        weight, bias = _logistic_regression(features, labels)
        model.heads.view.weight[row].copy_(weight)
        model.heads.view.bias[row].copy_(bias)


def fit_vote_weight(coarse: Tensor, voted: Tensor, joints: Tensor) -> Tensor:
    """(22,) the best weight of the votes for the middle, then for each joint relative to it."""

    def best(start: Tensor, end: Tensor, target: Tensor) -> Tensor:
        """Best weights (N,) for joints (B, N, 3)."""
        mixed = (start.lerp(end, weight) for weight in WEIGHTS.tolist())
        distances = torch.stack([(joints - target).norm(dim=-1).mean(0) for joints in mixed])
        return WEIGHTS[distances.argmin(0)]

    middles = [each.mean(1, keepdim=True) for each in (coarse, voted, joints)]
    relative = [each - middle for each, middle in zip((coarse, voted, joints), middles, strict=True)]
    return torch.cat([best(*middles), best(*relative)])


def fit_finding(propose: Propose, wide: Iterable[WideImage]) -> tuple[tuple[float, ...], float, float, float]:
    """Fit the acceptance of hands that are found in whole images.

    Args:
        propose: `PoseEstimator.proposals`.
        wide: images.

    Returns:
        `finding_weights`, by a logistic regression on all proposals, and unchanged where hands or false
        proposals are missing; the lowest threshold with at most `FALSE_HANDS` per image; and its recall and
        false hands per image.
    """
    images = [
        (each.hands, *propose(each.image, each.intrinsics)) for each in progress_bar(wide, desc="finding")
    ]
    evidence, labels = [np.zeros((0, 3))], list[bool]()
    for hands, pose, found in images:
        evidence.append(found[pose.valid])
        labels += [
            any(overlap(box, hand.box) > SAME_HAND for hand in hands)
            for box in pixel_boxes(torch.from_numpy(pose.joints_2d[pose.valid])).numpy()
        ]
    weights = NVFConfig.finding_weights
    if len(set(labels)) == 2:
        fitted = _logistic_regression(
            torch.from_numpy(np.concatenate(evidence)), torch.tensor(labels).double()
        )
        weights = (*fitted[0].tolist(), float(fitted[1]))
    true, false = list[float](), list[float]()
    for hands, pose, found in images:
        scores = finding_logits(torch.from_numpy(found), weights).sigmoid().numpy()
        rows = distinct_hands(pose, scores, pose.valid.nonzero()[0])
        matches = match_hands(pose.joints_2d[rows], [hand.box for hand in hands])
        for score, hand in zip(scores[rows], matches, strict=True):
            (false if hand is None else true).append(float(score))
    false.sort(reverse=True)
    allowed = int(FALSE_HANDS * len(images))
    # Between the least likely false hand that is accepted and the likeliest one that is not.
    bounds = [*false, 0.0][allowed : allowed + 1] + [1.0, *false][allowed : allowed + 1]
    threshold = sum(bounds) / 2 if len(false) > allowed else 0.0
    accepted = sum(each >= threshold for each in false)
    recalled = sum(each >= threshold for each in true)
    shown = sum(len(hands) for hands, *_ in images)
    return weights, threshold, recalled / max(shown, 1), accepted / max(len(images), 1)


def _pooled(model: NVF, views: HandViews, mirrored: bool = False) -> Tensor:
    """The encoder's description (B, 256) of views, or of their mirror images, on the CPU."""
    encoder = model.for_inference().encoder
    parts = []
    for first in range(0, len(views), BATCH):
        batch = HandBatch.of(views[first : first + BATCH], model.device)
        images = batch.images.flip(3) if mirrored else batch.images
        parts.append(encoder(images, batch.slopes)[2].float().cpu())
    return torch.cat(parts)


def _logistic_regression(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Weight (C,) and bias () of a logit for features (N, C) and labels (N,), the classes balanced."""
    middle, spread = features.mean(0), features.std(0) + 1e-3
    scaled = (features - middle) / spread
    weights = torch.where(labels > 0, 0.5 / labels.mean(), 0.5 / (1 - labels.mean()))
    parameters = torch.zeros(features.shape[1] + 1, dtype=features.dtype, requires_grad=True)
    optimiser = torch.optim.LBFGS([parameters], max_iter=300, line_search_fn="strong_wolfe")

    def loss() -> float:
        optimiser.zero_grad()
        with torch.enable_grad():
            logits = scaled @ parameters[:-1] + parameters[-1]
            value = F.binary_cross_entropy_with_logits(logits, labels, weight=weights)
            value = value + PENALTY * parameters[:-1].square().sum()
            value.backward()
        return float(value.detach())

    optimiser.step(loss)
    weight = parameters.detach()[:-1] / spread
    return weight, parameters.detach()[-1] - weight @ middle


def _threshold(shown: np.ndarray, hidden: np.ndarray) -> tuple[float, float, float]:
    """The threshold, the rate of views with a hand below it, and that of views without one at or above it."""
    values = np.unique(np.concatenate([shown, hidden]).astype(np.float64))
    candidates = (values[1:] + values[:-1]) / 2 if len(values) > 1 else values
    lost = (shown[:, None] < candidates).mean(0)
    accepted = (hidden[:, None] >= candidates).mean(0)
    # Among thresholds that accept equally few views, the middle of those that lose the fewest hands.
    kept = np.flatnonzero(accepted <= max(ACCEPTED, accepted.min()))
    least = kept[lost[kept] == lost[kept].min()]
    best = least[len(least) // 2]
    return float(candidates[best]), float(lost[best]), float(accepted[best])
