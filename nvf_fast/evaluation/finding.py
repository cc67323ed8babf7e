"""Recall of hands found in whole images, and the rate of false ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from nvf_fast.data.sample import HandSample
from nvf_fast.evaluation.scores import rate
from nvf_fast.finding import SAME_HAND, overlap
from nvf_fast.pose import HandPose
from nvf_fast.runtime.progress import progress_bar
from nvf_fast.synthetic.wide_images import WideHand, WideImage

Find = Callable[[np.ndarray, np.ndarray], HandPose]
"""Finder of the poses in an image (H, W, 3) with intrinsics (3, 3): a batch of numpy arrays, best first."""

SIZES_PX = (40, 80, 160, 400)  # edges of the bins of recall
PRESENCES = (0.0, 0.8, 0.9, 0.95, 0.99)  # of poses that count


def match_hands(joints_2d: Iterable[np.ndarray], boxes: Sequence[np.ndarray]) -> list[int | None]:
    """The index of the true hand that each pose shows, None for a false one.

    A pose shows the hand whose box overlaps its joints' box most, by an intersection over union of more than
    `SAME_HAND`; each hand is shown once.

    Args:
        joints_2d: (21, 2) px of each pose, best first.
        boxes: (4,) px of each true hand.
    """
    missing, found = list(range(len(boxes))), list[int | None]()
    for pixels in joints_2d:
        box = np.concatenate([pixels.min(0), pixels.max(0)])
        overlaps = [overlap(box, boxes[index]) for index in missing]
        best = int(np.argmax(overlaps)) if overlaps else 0
        found.append(missing.pop(best) if overlaps and overlaps[best] > SAME_HAND else None)
    return found


def one_hand_image(sample: HandSample) -> WideImage:
    """A labelled image of one hand for `score_finding`."""
    assert sample.joints is not None and sample.box is not None
    hand = WideHand(sample.side, np.asarray(sample.joints), np.asarray(sample.box))
    return WideImage(np.asarray(sample.image), sample.intrinsics, (hand,))


def score_finding(find: Find, images: Iterable[WideImage]) -> dict[str, Any]:
    """Measure the recall of true hands and the rate of false ones, see `match_hands`.

    Returns:
        images and hands, counts; recall and side (correct sides), in per cent; false_hands, per image;
        presence, recall and false_hands for poses of at least each of `PRESENCES`; and sizes, recall and
        number of hands by the longer side of their boxes.
    """
    sizes, side, count = [], [], 0
    hits, false = list[float](), list[float]()  # presence of each hand's pose, -1 if missed; of false poses
    for wide in progress_bar(images, desc="finding"):
        poses = find(wide.image, wide.intrinsics)
        found = match_hands(poses.joints_2d, [hand.box for hand in wide.hands])
        presence = dict(zip(found, poses.presence.tolist(), strict=True))
        count += 1
        sizes += [(hand.box[2:] - hand.box[:2]).max() for hand in wide.hands]
        hits += [presence.get(index, -1.0) for index in range(len(wide.hands))]
        false += [each for each, index in zip(poses.presence.tolist(), found, strict=True) if index is None]
        side += [
            given == wide.hands[index].side
            for given, index in zip(poses.side or (), found, strict=True)
            if index is not None
        ]
    longer, best = np.array(sizes, float), np.array(hits)

    def rates(least: float) -> dict[str, float]:
        false_hands = sum(each >= least for each in false) / max(count, 1)
        return {"recall": rate(best >= least), "false_hands": false_hands}

    by_size = {}
    for low, high in pairwise(SIZES_PX):
        # Hands are a few px larger or smaller than requested.
        rows = ((longer >= low) | (low == SIZES_PX[0])) & ((longer < high) | (high == SIZES_PX[-1]))
        by_size[f"{low} to {high}"] = {"recall": rate(best[rows] >= 0), "hands": int(rows.sum())}
    return {
        "images": count,
        "hands": len(best),
        "side": rate(np.array(side, bool)),
        **rates(0.0),
        "presence": {f"{least:g}": rates(least) for least in PRESENCES},
        "sizes": by_size,
    }
