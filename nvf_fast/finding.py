"""Where the hands of an image are: windows over it, what the network says of each, and one box per hand."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nvf_fast.camera import averaged

SMALLEST = 1 / 32  # side of the smallest hand's box, relative to the image's longer side
LEAST = 1 / 64  # the smallest that may be looked for: about 70 windows
SMALLEST_IN_VIEW = 0.094  # relative to the view: 12 px of 128, the smallest that training shows
OVERLAP = 1 / 3  # of neighbouring windows
LEVEL_RATIO = 1.5  # of the first three levels' windows; the further ones halve
SAME_HAND = 0.3  # boxes that overlap by more are one hand's: intersection over union
NESTED = 0.7  # or that lie inside another by more: intersection over the smaller box


FOUND_SCORE = 0.3  # least probability of a hand's centre


@dataclass(frozen=True)
class FoundHands:
    """The hands of one image, best first; arrays are numpy's or torch's as the image was.

    Attributes:
        boxes: (N, 4) float32 px, square (x0, y0, x1, y1) around each hand's joints; may reach beyond the
            image.
        sides: "right" or "left" of each.
        scores: (N,) float32 in [0, 1].
    """

    boxes: Any
    sides: tuple[str, ...]
    scores: Any

    def __len__(self) -> int:
        return len(self.sides)


class Peaks(NamedTuple):
    """Centres of hands in windows' views, N in all.

    Attributes:
        window: (N,) int64, which window.
        centres: (N, 2) float32 px of its view.
        sides: (N,) float32 px, longer sides of the hands' boxes.
        scores: (N,) float32 in [0, 1].
        left: (N,) float32, probability of a left hand.
    """

    window: Tensor
    centres: Tensor
    sides: Tensor
    scores: Tensor
    left: Tensor


def search_windows(height: int, width: int, smallest: float = SMALLEST) -> Tensor:
    """Square windows that together show every hand of an image large enough.

    The first reaches beyond the image, for hands that fill it; the second covers its longer side; each
    further level has smaller windows that overlap by a third, until a hand of `smallest` times the longer
    side is as large as training shows hands.

    Returns:
        (W, 4) float64 px, (x0, y0, x1, y1) in the coordinates of pixel centres.
    """
    longer = max(height, width)
    least = longer * smallest / SMALLEST_IN_VIEW
    sides = [LEVEL_RATIO * longer, float(longer)]
    side = longer / LEVEL_RATIO
    while sides[-1] > least * 1.01:
        sides.append(max(side, least))
        side /= 2
    windows = []
    for side in sides:
        across, down = (_starts(extent, side) for extent in (width, height))
        windows += [[x, y, x + side, y + side] for y in down for x in across]
    return torch.tensor(windows, dtype=torch.float64) - 0.5


def shrink(image: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """Average an image (H, W, 3) uint8 over squares of `factor` px.

    Returns:
        The averages (ceil(H / factor), ceil(W / factor), 3) uint8, and the matrix (3, 3) float64 on the CPU
        from their px to the image's.
    """
    shift = (factor - 1) / 2
    to_image = torch.tensor([[factor, 0, shift], [0, factor, shift], [0, 0, 1]], dtype=torch.float64)
    if factor == 1:
        return image, to_image
    means = averaged(image.permute(2, 0, 1)[None], factor)[0].permute(1, 2, 0)
    # The last squares hold fewer pixels.
    for axis, (squares, pixels) in enumerate(zip(means.shape, image.shape[:2], strict=False)):
        means.select(axis, -1).mul_(factor / (pixels - factor * (squares - 1)))
    return means.round_().to(torch.uint8), to_image


def read_peaks(maps: Tensor, threshold: float) -> Peaks:
    """Local maxima of the maps of hands' centres.

    Args:
        maps: (W, 3, H, W') of `HandLook.hands`.
        threshold: least probability of a centre.
    """
    probability = maps[:, 0].sigmoid()
    highest = F.max_pool2d(probability[:, None], 3, stride=1, padding=1)[:, 0]
    window, row, column = ((probability >= highest) & (probability >= threshold)).nonzero(as_tuple=True)
    size = maps.shape[-1]
    # The centre between texels: the mean of the 3 x 3 around the peak, weighted by probability.
    padded = F.pad(probability, (1, 1, 1, 1))
    offsets = torch.arange(3, device=maps.device)
    around = padded[
        window[:, None, None], row[:, None, None] + offsets[:, None], column[:, None, None] + offsets
    ]
    total = around.sum((1, 2))
    shift = offsets.float() - 1
    across = (around.sum(1) * shift).sum(1) / total
    down = (around.sum(2) * shift).sum(1) / total
    centres = 4 * torch.stack([column + across, row + down], -1) + 1.5
    logs, sides = maps[window, 1, row, column], maps[window, 2, row, column]
    return Peaks(window, centres, logs.exp() * 4 * size, probability[window, row, column], sides.sigmoid())


def boxes_in_image(peaks: Peaks, homographies: Tensor) -> Tensor:
    """Square boxes (N, 4) float64 px of the image around peaks.

    Args:
        peaks: in the windows' views.
        homographies: (W, 3, 3) float64 from image px to px of each window's view.
    """
    inverse = torch.linalg.inv(homographies)[peaks.window]
    centres = F.pad(peaks.centres.double(), (0, 1), value=1.0)
    x, y, depth = (inverse @ centres[..., None])[..., 0].unbind(-1)
    # The Jacobian determinant of a homography H is det(H) / w^3.
    scale = (torch.linalg.det(inverse) / depth**3).abs().sqrt()
    half = peaks.sides.double() * scale / 2
    middle = torch.stack([x / depth, y / depth], -1)
    return torch.cat([middle - half[:, None], middle + half[:, None]], -1)


def squared(boxes: Tensor) -> Tensor:
    """The squares (N, 4) about the middles of boxes (N, 4), as long as their longer sides."""
    middles, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]).amax(1, keepdim=True) / 2
    return torch.cat([middles - half, middles + half], 1)


def distinct(boxes: Tensor, scores: Tensor, keep_around: bool = False) -> Tensor:
    """Indices of the boxes (N, 4) that remain where each hand keeps its best one, best first.

    With `keep_around` a box around better ones stays: knuckles pass for small hands until a closer view.
    """
    order = scores.argsort(descending=True, stable=True).tolist()
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    kept: list[int] = []
    for index in order:
        if kept:
            others = boxes[kept]
            low = torch.maximum(boxes[index, :2], others[:, :2])
            high = torch.minimum(boxes[index, 2:], others[:, 2:])
            common = (high - low).clamp_min(0).prod(1)
            union = areas[index] + areas[kept] - common
            inner = areas[index] if keep_around else torch.minimum(areas[index], areas[kept])
            if ((common > SAME_HAND * union) | (common > NESTED * inner)).any():
                continue
        kept.append(index)
    return torch.tensor(kept, dtype=torch.int64)


def _starts(extent: int, side: float) -> list[float]:
    """Where windows begin along an axis, spread evenly, centred where one suffices."""
    if side >= extent:
        return [(extent - side) / 2]
    count = math.ceil((extent - side) / (side * (1 - OVERLAP)) - 0.05) + 1
    return [(extent - side) * k / (count - 1) for k in range(count)]
