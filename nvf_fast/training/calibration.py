"""What a trained network of hand views is fitted with on labelled views: the weights of its votes, the scale
of its expected errors, and the threshold of presence."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from nvf_fast.data.hand_views import HandViews
from nvf_fast.hand_pipeline import HandPipeline
from nvf_fast.model import NVF
from nvf_fast.stages import Stages
from nvf_fast.training.hand_losses import HandBatch
from nvf_fast.unet import HandLook
from nvf_fast.volumes import HandVolume

BATCH = 32
WEIGHTS = torch.linspace(0, 1, 21)  # candidates for the weight of the votes
LOST, ACCEPTED = 0.02, 0.005  # rates of lost hands and of accepted empty views that weigh the same
STEP_MM, SURFACE_MM, FRACTION = 16.0, 5.0, 0.5  # the estimator's defaults


class ViewPredictions(NamedTuple):
    """What a network predicts of B views: coarse and voted joints (B, 21, 3) mm, and the heads."""

    coarse: Tensor
    voted: Tensor
    presence: Tensor
    left: Tensor
    error: Tensor


@torch.no_grad()
def predict_views(model: NVF, views: HandViews) -> ViewPredictions:
    """Predict labelled views; voted joints are the coarse ones where nothing votes."""
    model = model.for_inference()
    pipeline = HandPipeline(
        model, HandVolume(), STEP_MM, SURFACE_MM, FRACTION, torch.float32, None, Stages(model.device)
    )
    parts = []
    for first in range(0, len(views), BATCH):
        batch = HandBatch.of(views[first : first + BATCH], model.device)
        look: HandLook = model.look(batch.images, batch.slopes)
        coarse, voted, _ = pipeline.vote(look, batch.slopes)
        voted = torch.where(voted.isfinite(), voted, coarse)
        parts.append(ViewPredictions(coarse, voted, look.presence.sigmoid(), look.left.sigmoid(), look.error))
    return ViewPredictions(*(torch.cat(each).cpu() for each in zip(*parts, strict=True)))


def calibrate(model: NVF, hands: HandViews, empty: HandViews) -> tuple[NVF, dict[str, float]]:
    """Fit what joins a network's predictions.

    - The weight of the votes, for the hand's middle and for each joint relative to it: the one of `WEIGHTS`
      with the least mean distance to the truth.
    - The expected error: its logarithm is shifted, per joint, until expected and true errors agree in the
      mean.
    - The threshold of presence: it minimises the larger of the rate of lost hands over 2 % and the rate of
      accepted empty views over 0.5 %.

    Args:
        model: a network of hand views.
        hands: views with one right hand each, labelled; not those that figures are quoted on.
        empty: views without a hand.

    Returns:
        A copy of the network, and what was found: threshold, rates, and errors in mm of the coarse, voted and
        combined joints.
    """
    fitted = copy.deepcopy(model).eval()
    assert fitted.heads is not None
    found = predict_views(model, hands)
    joints = torch.from_numpy(hands.joints)
    heads = fitted.heads
    heads.vote_weight.copy_(_vote_weight(found.coarse, found.voted, joints).to(heads.vote_weight.device))
    combined = heads.combine(found.coarse.to(model.device), found.voted.to(model.device)).cpu()
    errors = (combined - joints).norm(dim=-1)
    shift = (errors.mean(0) / found.error.mean(0)).log()
    with torch.no_grad():
        heads.view.bias[3:] += shift.to(heads.view.bias)
    shown, hidden = found.presence.numpy(), predict_views(model, empty).presence.numpy()
    threshold, lost, accepted = _threshold(shown, hidden)
    fitted.config = replace(fitted.config, presence_threshold=threshold)
    return fitted, {
        "presence_threshold": threshold,
        "lost": lost,
        "accepted": accepted,
        "coarse_mm": float((found.coarse - joints).norm(dim=-1).mean()),
        "voted_mm": float((found.voted - joints).norm(dim=-1).mean()),
        "combined_mm": float(errors.mean()),
    }


def _vote_weight(coarse: Tensor, voted: Tensor, joints: Tensor) -> Tensor:
    """(22,) the best weight of the votes for the middle, then for each joint relative to it."""

    def best(start: Tensor, end: Tensor, target: Tensor) -> Tensor:
        """Of (B, N, 3) each, (N,)."""
        mixed = (start.lerp(end, weight) for weight in WEIGHTS.tolist())
        distances = torch.stack([(joints - target).norm(dim=-1).mean(0) for joints in mixed])
        return WEIGHTS[distances.argmin(0)]

    middles = [each.mean(1, keepdim=True) for each in (coarse, voted, joints)]
    relative = [each - middle for each, middle in zip((coarse, voted, joints), middles, strict=True)]
    return torch.cat([best(*middles), best(*relative)])


def _threshold(shown: np.ndarray, hidden: np.ndarray) -> tuple[float, float, float]:
    """The threshold, the rate of views with a hand below it, and that of views without one at or above it."""
    candidates = np.unique(np.concatenate([shown, hidden, [0.5]]).astype(np.float64).round(4))
    lost = (shown[:, None] < candidates).mean(0)
    accepted = (hidden[:, None] >= candidates).mean(0)
    worse = np.maximum(lost / LOST, accepted / ACCEPTED)
    least = np.flatnonzero(worse == worse.min())
    best = least[len(least) // 2]  # in the middle of a gap between hands and none
    return float(candidates[best]), float(lost[best]), float(accepted[best])
