"""Detection: views of a whole image at several sizes, peaks of the network's maps, and one box per hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nvf_fast.camera import normalised
from nvf_fast.camera_model import Cameras
from nvf_fast.inputs import SMALLEST_BOX_PX, WIDEST_SLOPE, read_boxes, read_scores, read_sides
from nvf_fast.model import NVF
from nvf_fast.pose import HandPose
from nvf_fast.runtime.profiling import Profiler
from nvf_fast.volumes import HandVolume

SMALLEST = 1 / 32  # side of the smallest hand's box, relative to the image's longer side
LEAST = 1 / 64  # the smallest that may be looked for
SMALLEST_PX = 14.0  # of a hand's box in the finest view; training shows 10 px and more
COARSEST = 2 / 3  # of a view of the network's size that the image spans at most, for hands that fill it
LEVEL_RATIO = 7 / 3  # of the sizes of successive views
STRIDE_PX = 32  # of the encoder: the sides of a view are multiples of it
MOST_PX = 4096  # of an image's longer side that views are resized from
FOUND_SCORE = 0.12  # least probability of a hand's centre
MOST_CANDIDATES = 32  # that closer views verify
SAME_HAND = 0.3  # boxes whose intersection over union is larger show one hand
CERTAIN_SIDE = 3.0  # least magnitude of a side's logit that is not compared with the mirror image's
LEAST_LOGIT = -6.0  # of a coarse pose's evidence, relative to the threshold; -4 loses 0.5 % of the hands
NESTED = 0.7  # boxes whose intersection over the smaller box is larger show one hand too


@dataclass(frozen=True, eq=False)  # arrays have no single truth value
class FoundHands:
    """The hands of one image, best first, in the image's array type.

    Attributes:
        boxes: (N, 4) float32 px, square (x0, y0, x1, y1) around each hand's joints; may extend beyond the
            image.
        sides: "right" or "left" for each, None where a detector does not return it.
        scores: (N,) float32 in [0, 1].
    """

    boxes: Any
    sides: tuple[str | None, ...]
    scores: Any

    def __len__(self) -> int:
        return len(self.sides)


def boxes_and_sides(box: Any, side: Any, single: bool) -> tuple[Any, Any]:
    """The arguments `box` and `side` of a call, where a `FoundHands` or a list of them replaces them.

    One `FoundHands` holds the hands of a single image, never a box for each of several.
    """
    if isinstance(box, FoundHands):
        return box.boxes if single else [box.boxes], box.sides if side is None else side
    if isinstance(box, list | tuple) and box and all(isinstance(each, FoundHands) for each in box):
        sides = [each for hands in box for each in hands.sides] if side is None else side
        return [hands.boxes for hands in box], sides
    return box, side


class Candidates(NamedTuple):
    """Possible hands, N in all.

    Attributes:
        boxes: (N, 4) float32 px, square.
        scores: (N,) float32 in [0, 1].
        left: (N,) float32, probability of a left hand; NaN where a detector returns no side.
    """

    boxes: Tensor
    scores: Tensor
    left: Tensor

    def chosen(self, rows: Tensor) -> Candidates:
        """Select candidates by indices or a mask, `rows`."""
        return Candidates(*(each[rows] for each in self))

    def sides(self) -> list[str | None]:
        """The likelier side of each, None where it is unknown."""
        return [None if math.isnan(p) else "left" if p > 0.5 else "right" for p in self.left.tolist()]


class Detector(Protocol):
    """A function that finds hands in an image (H, W, 3) uint8 RGB, of the array type given to the estimator.

    It returns boxes (N, 4) px; or a tuple of boxes and sides, "right", "left" or None for each; or a tuple of
    boxes, sides and scores (N,) in [0, 1]; or a `FoundHands`.
    """

    def __call__(self, image: Any, /) -> Any: ...


def detected(detector: Detector, image: Any) -> Candidates:
    """The hands that a detector finds in an image, as squares.

    Raises:
        ValueError: its result does not have the described form.
        TypeError: the result holds other types.
    """
    result = detector(image)
    if isinstance(result, FoundHands):
        result = (result.boxes, result.sides, result.scores)
    given = result if isinstance(result, tuple) else (result,)
    try:
        if not 1 <= len(given) <= 3:
            raise ValueError(f"a tuple of {len(given)}")
        boxes, _ = read_boxes(given[0], 1, True)
        sides = read_sides(given[1] if len(given) > 1 else None, len(boxes))
        scores = read_scores(given[2] if len(given) > 2 else 1.0, len(boxes))
    except (TypeError, ValueError) as error:
        raise type(error)(
            "the detector given as box must return boxes, boxes and sides, boxes, sides and scores, or a "
            f"FoundHands, but returned an invalid result: {error}"
        ) from error
    left = torch.tensor(
        [math.nan if side is None else float(side == "left") for side in sides], dtype=torch.float32
    )
    return Candidates(squared(torch.from_numpy(boxes)).float(), torch.from_numpy(scores), left)


class SizedView(NamedTuple):
    """A whole image, resized, with black around it.

    Attributes:
        pixels: (1, 3, H, W) as networks take them, H and W multiples of `STRIDE_PX`.
        scale: (2,) float32, px of the image per px of the view, across and down.
        corner: (2,) float32 px of the view, (x, y) where the image begins.
    """

    pixels: Tensor
    scale: Tensor
    corner: Tensor


class HandFinder:
    """Detector of hands by a network's maps of hands' centres in views of a whole image.

    The encoder is convolutional and therefore accepts views of any shape.

    Args:
        model: a network of hand views, its encoder in `dtype`.
        dtype: of the encoder.
        profiler: measures the stages.
    """

    def __init__(self, model: NVF, dtype: torch.dtype, profiler: Profiler) -> None:
        self._model, self._dtype, self._profiler = model, dtype, profiler

    def __call__(self, image: Tensor, focal: float, score: float, smallest: float) -> Candidates:
        """Find the peaks of all views, on the CPU; several may belong to one hand.

        Args:
            image: (H, W, 3) uint8, on the network's device.
            focal: px, focal length.
            score: least probability of a hand's centre.
            smallest: side of the smallest box, relative to the image's longer side.
        """
        size, found = self._model.config.input_size, []
        for longer in view_sizes(smallest, size, max(image.shape[:2])):
            with self._profiler.stage("remap"):
                view = sized_view(image, longer, size, self._dtype)
            with self._profiler.stage("encode"):
                slope = size / 2 * float(view.scale.mean()) / focal
                maps = self._model.hand_maps(view.pixels, view.scale.new_tensor([slope]).to(image.device))
            with self._profiler.stage("read"):
                found.append(read_peaks(maps[0].cpu(), view, size, score))
        return Candidates(*map(torch.cat, zip(*found, strict=True)))


def thinning(height: int, width: int) -> int:
    """Step between the rows and columns of a large image that views are resized from.

    The finest view of the default `smallest` has 448 px, so that most of more pixels would be averaged away.
    """
    return max(1, max(height, width) // MOST_PX)


def view_sizes(smallest: float, size: int, extent: int) -> list[float]:
    """Longer sides in px of the resized image, finest first, for a network of views of `size` px.

    Each view shows hands from a tenth to the whole of `size` px. Images are not enlarged, unless they are
    smaller than the coarsest view: in enlarged ones, candidates abound where no hand is.

    Args:
        smallest: side of the smallest box, relative to the image's longer side.
        size: px.
        extent: px, the image's longer side.
    """
    sides = [max(min(SMALLEST_PX / smallest, extent), COARSEST * size)]
    while sides[-1] > COARSEST * size:
        sides.append(sides[-1] / LEVEL_RATIO)
    return sides


def sized_view(image: Tensor, longer: float, least: int, dtype: torch.dtype) -> SizedView:
    """The view of an image (H, W, 3) uint8 whose longer side becomes `longer` px; its sides are `least` px or
    more."""
    height, width = image.shape[:2]
    rows, columns = (max(1, round(extent * longer / max(height, width))) for extent in (height, width))
    pixels = image.permute(2, 0, 1)[None]
    pixels = pixels.float() if image.is_cuda else pixels
    resized = F.interpolate(pixels, size=(rows, columns), mode="bilinear", antialias=True)
    down, across = (max(least, math.ceil(n / STRIDE_PX) * STRIDE_PX) - n for n in (rows, columns))
    left, top = across // 2, down // 2
    padded = F.pad(resized, (left, across - left, top, down - top)).float()
    return SizedView(
        normalised(padded).to(dtype=dtype, memory_format=torch.channels_last),
        torch.tensor([width / columns, height / rows], dtype=torch.float32),
        torch.tensor([left, top], dtype=torch.float32),
    )


def read_peaks(maps: Tensor, view: SizedView, size: int, threshold: float) -> Candidates:
    """Local maxima of the map of hands' centres.

    Args:
        maps: (3, H, W) as `HandEncoding.hands`, on the CPU.
        view: the view of the maps.
        size: px, of the network's own views, relative to which the maps hold logs of sides.
        threshold: least probability of a centre.
    """
    probability = maps[0].sigmoid()
    highest = F.max_pool2d(probability[None], 3, stride=1, padding=1)[0]
    row, column = ((probability >= highest) & (probability >= threshold)).nonzero(as_tuple=True)
    # The centre between texels: the mean of the 3 x 3 around the peak, weighted by probability.
    padded = F.pad(probability, (1, 1, 1, 1))
    offsets = torch.arange(3)
    around = padded[row[:, None, None] + offsets[:, None], column[:, None, None] + offsets]
    shift = (offsets.float() - 1) / around.sum((1, 2))[:, None]
    texels = torch.stack([column + (around.sum(1) * shift).sum(1), row + (around.sum(2) * shift).sum(1)], -1)
    centres = (4 * texels + 2 - view.corner) * view.scale - 0.5
    half = maps[1, row, column, None].exp() * (size / 2 * view.scale.mean())
    boxes = torch.cat([centres - half, centres + half], 1)
    return Candidates(boxes, probability[row, column], maps[2, row, column].sigmoid())


def pixel_boxes(pixels: Tensor) -> Tensor:
    """The boxes (N, 4) around pixels (N, J, 2)."""
    return torch.cat([pixels.amin(1), pixels.amax(1)], 1)


def squared(boxes: Tensor) -> Tensor:
    """The squares (N, 4) about the middles of boxes (N, 4), as long as their longer sides."""
    middles, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]).amax(1, keepdim=True) / 2
    return torch.cat([middles - half, middles + half], 1)


def viewable(boxes: Tensor, camera: Cameras, height: int, width: int) -> Tensor:
    """(N,) bool, boxes (N, 4) px with their middles in the image, neither too small nor too wide for a view.

    Args:
        boxes: on the CPU; may be NaN.
        camera: of the image, one.
        height: px, of the image.
        width: px, of the image.
    """
    boxes = boxes.double()
    middles = (boxes[:, :2] + boxes[:, 2:]) / 2
    inside = ((middles >= -0.5) & (middles <= middles.new_tensor([width, height]) - 0.5)).all(1)
    cameras = camera.chosen([0] * len(boxes))
    intrinsics = torch.from_numpy(cameras.intrinsics)
    slopes = HandVolume().place(intrinsics, 1, boxes=boxes, cameras=cameras).slopes
    assert slopes is not None
    return inside & (slopes <= WIDEST_SLOPE) & (boxes[:, 2:] - boxes[:, :2] >= SMALLEST_BOX_PX).all(1)


def distinct(boxes: Tensor, scores: Tensor, nested: float = NESTED) -> Tensor:
    """Indices of the boxes (N, 4) that remain where each hand keeps its best one, best first.

    Args:
        boxes: (N, 4) px.
        scores: (N,).
        nested: least part of a box inside a larger one to discard it as the same hand's; 1 keeps both, since
            only a closer view distinguishes knuckles from small hands.
    """
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    kept: list[int] = []
    for index in scores.argsort(descending=True, stable=True).tolist():
        others = boxes[kept]
        low = torch.maximum(boxes[index, :2], others[:, :2])
        high = torch.minimum(boxes[index, 2:], others[:, 2:])
        common = (high - low).clamp_min(0).prod(1)
        union = areas[index] + areas[kept] - common
        inner = torch.minimum(areas[index], areas[kept])
        if not ((common > SAME_HAND * union) | (common > nested * inner)).any():
            kept.append(index)
    return torch.tensor(kept, dtype=torch.int64)


def hand_evidence(centres: Tensor, presence: Tensor, errors: Tensor) -> Tensor:
    """Evidence for N found hands.

    Args:
        centres: (N,) probability of each hand's centre in the whole image.
        presence: (N,) probability of a hand in the closer view.
        errors: (N, 21) mm of the unit hand, expected errors of the joints.

    Returns:
        (N, 3) float64: the logits of the two probabilities, and the log of the mean error, in the order of
        the configuration's `finding_weights`.
    """
    logits = [each.double().logit(1e-6) for each in (centres, presence)]
    return torch.stack([*logits, errors.double().mean(1).log()], 1)


def finding_logits(evidence: Tensor, weights: Sequence[float]) -> Tensor:
    """Logits (N,) of found hands, of evidence (N, 3) and a network's `finding_weights`."""
    return evidence @ evidence.new_tensor(weights[:3]) + weights[3]


def distinct_hands(pose: HandPose[np.ndarray], scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The rows of a batch of poses whose hands differ, best first.

    Two boxes may lead to one hand, or one box to a part of another hand.

    Args:
        pose: a batch of N poses in one image.
        scores: (N,).
        rows: indices of valid poses.
    """
    boxes = squared(pixel_boxes(torch.from_numpy(pose.joints_2d[rows])))
    return rows[distinct(boxes, torch.from_numpy(scores[rows])).numpy()]


def overlap(box: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of two boxes (4,) px."""
    common = np.prod(np.clip(np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2]), 0, None))
    areas = np.prod(box[2:] - box[:2]) + np.prod(other[2:] - other[:2])
    return float(common / max(areas - common, 1e-9))
