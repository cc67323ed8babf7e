"""A data set's samples as the network's images, with their hands in the task's frame."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from nvf_fast.camera import remap
from nvf_fast.config import NVFConfig
from nvf_fast.data.sample import DamagedImageError, HandDataset, HandSample
from nvf_fast.data.surfaces import MeshHands
from nvf_fast.volumes import volume_of


class ImageBatch(NamedTuple):
    """Images and their hands."""

    images: Tensor  # (B, 3, S, S) uint8
    hands: MeshHands  # B in the task's frame
    damaged: tuple[str, ...] = ()  # messages about images that could not be read and were replaced by others


class TaskImages:
    """A data set for a network's training: batches by index, cropped and remapped for the task.

    An unreadable image is reported and replaced by the next readable one.

    Args:
        dataset: samples of right hands with joints, and with surfaces unless the method is holistic.
        config: of the network.

    Raises:
        ValueError: the method needs surfaces and the data set has none; the message gives the reason.
    """

    def __init__(self, dataset: HandDataset, config: NVFConfig) -> None:
        self.needs_surface = config.method != "holistic"
        if self.needs_surface and dataset.why_no_surfaces:
            reason = f"{dataset.why_no_surfaces}; {config.method!r} learns from surfaces"
            raise ValueError(f"{dataset.name}: {reason}")
        self.dataset, self.volume, self.size = dataset, volume_of(config), config.input_size
        self.fingerprint = f"{dataset.name} {dataset.split} {dataset.fingerprint}"

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, indices: list[int]) -> ImageBatch:
        """The images of these indices, as torch's loader requests a batch.

        Raises:
            DamagedImageError: none of the data set's images can be read.
            ValueError: a sample has no joints, no surface where one is needed, or a left hand.
        """
        images, hands = [], []
        damaged: list[str] = []
        for index in indices:
            image, hand = self._prepared(self._readable(index, damaged))
            images.append(image)
            hands.append(hand)
        return ImageBatch(torch.stack(images), MeshHands.stack(hands), tuple(damaged))

    def _readable(self, index: int, damaged: list[str]) -> HandSample:
        last: DamagedImageError | None = None
        for step in range(len(self)):
            try:
                return self.dataset[(index + step) % len(self)]
            except DamagedImageError as error:
                last = error
                damaged.append(str(error))
        raise DamagedImageError(f"none of the {len(self)} images can be read; the last: {last}")

    def _prepared(self, sample: HandSample) -> tuple[Tensor, Any]:
        """(3, S, S) uint8, and the hand in the task's frame."""
        if sample.joints is None or sample.side != "right":
            got = f"a {sample.side} hand {'without' if sample.joints is None else 'with'} joints"
            raise ValueError(f"{sample.id}: training needs right hands with joints, got {got}")
        hand = sample.surface
        if hand is None:
            if self.needs_surface:
                raise ValueError(f"{sample.id}: no surface; this method learns from one")
            hand = MeshHands(torch.zeros(1, 0, 3), torch.zeros(0, 3, dtype=torch.int64), sample.joints[None])
        roots = sample.joints[None, 0].double()
        intrinsics = torch.as_tensor(sample.intrinsics, dtype=torch.float64)[None]
        placement = self.volume.place(intrinsics, self.size, roots=roots)
        image = torch.from_numpy(sample.image).permute(2, 0, 1)
        homography = placement.homographies
        unchanged = torch.allclose(homography, torch.eye(3, dtype=homography.dtype), rtol=0, atol=1e-9)
        if image.shape[1:] != (self.size, self.size) or not unchanged:
            image = remap(image[None], homography, self.size)[0]
            image = image.round_().clamp_(0, 255).to(torch.uint8)
        return image, hand.translated(-placement.origins.float())
