"""Seeded sets of images of the built-in hand, rendered on demand and cached in a folder."""

from __future__ import annotations

import hashlib
import json
import logging
import signal
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from importlib.resources import files
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from nvf_fast.camera import reference_intrinsics
from nvf_fast.data.sample import HandSample
from nvf_fast.data.surfaces import MeshHands
from nvf_fast.runtime.arguments import check_ranges
from nvf_fast.runtime.files import read_path, write_file
from nvf_fast.runtime.processes import without_interrupts
from nvf_fast.runtime.progress import progress_bar
from nvf_fast.synthetic.placement import UNIFORM, HandDistribution

CHUNK = 128  # images kept in one file
PARTS = {"images", "vertices", "joints", "boxes"}  # of a chunk
LOG = logging.getLogger("nvf_fast")
RECIPE = 1  # raise when the same seed would give other images or labels


@dataclass(frozen=True)
class SyntheticConfig:
    """A set of synthetic images.

    Args:
        count: number of images; a longer set begins with the shorter one.
        seed: sets of different seeds have no image in common.
        size: px, side of the images, taken by the reference camera (f = 480 * size / 224).
        distribution: orientations and distances of the hands.
    """

    count: int = 16_384
    seed: int = 0
    size: int = 224
    distribution: HandDistribution = field(default_factory=HandDistribution)

    def __post_init__(self) -> None:
        check_ranges(self, count="[1, inf)", size="[16, inf)")

    @property
    def fingerprint(self) -> str:
        """Hash of the stream of images, the same for every count."""
        described = {"recipe": RECIPE, **asdict(replace(self, count=1))}
        return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]


V2 = SyntheticConfig(count=20_000, seed=200_001, size=224, distribution=UNIFORM)
V2_PARTS = {"train": V2, "test": replace(V2, count=2_000, seed=200_002)}


class SyntheticHands:
    """Images of the built-in mesh hand and its labels, by index: a data set of `HandSample`s.

    Each image shows one right hand in the reference camera, with joints in FreiHAND's definition and a mesh
    closed at the wrist. The first access to one of 128 consecutive images renders them all.

    Args:
        config: seed, size and distribution.
        cache: folder for rendered images, in files of 128; None keeps them in memory only, so that every
            process and every worker of a loader renders its own. For random indices, `render` them ahead.
        name, split: names of the set.
        checksums: of every chunk's parameters, checked before rendering.
    """

    why_no_surfaces: str | None = None

    def __init__(
        self,
        config: SyntheticConfig,
        cache: Path | str | None = None,
        *,
        name: str = "synthetic",
        split: str = "training",
        checksums: list[str] | None = None,
    ) -> None:
        self.config, self.name, self.split, self.checksums = config, name, split, checksums
        self.folder = None if cache is None else read_path("cache", cache) / self.fingerprint
        self._chunks: dict[int, dict[str, Tensor]] = {}

    def __len__(self) -> int:
        return self.config.count

    @property
    def fingerprint(self) -> str:
        return self.config.fingerprint

    def __getitem__(self, index: int) -> HandSample:
        hand = self.hands([index])
        return HandSample(
            id=f"{self.split}/{index:08d}",
            image=self.images([index])[0].permute(1, 2, 0).contiguous().numpy(),
            intrinsics=reference_intrinsics(self.config.size).double().numpy(),
            root=hand.joints[0, 0],
            joints=hand.joints[0],
            surface=hand,
            hand_scale=float(hand.hand_scale),
            box=self._stacked("boxes", [index])[0],
        )

    def images(self, indices: Iterable[int] | Tensor) -> Tensor:
        """(B, 3, size, size) uint8 RGB images of these indices."""
        return self._stacked("images", indices)

    def hands(self, indices: Iterable[int] | Tensor) -> MeshHands:
        """The hands in these images, camera frame, mm."""
        from nvf_fast.synthetic.rig import built_in_surface

        numbers = self._checked(indices)
        vertices, joints = (self._stacked(name, numbers) for name in ("vertices", "joints"))
        return MeshHands(vertices, torch.from_numpy(built_in_surface().closed_faces).long(), joints)

    def render(
        self,
        processes: int = 1,
        progress: bool = True,
        count: int | None = None,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        """Render the images missing from the cache.

        Args:
            processes: number of parallel processes.
            progress: shows a bar.
            count: number of first images to render; None is all.
            share: (i, n) renders the i-th of n equal parts, to divide the work between n callers.
        """
        if self.folder is None:
            raise ValueError("rendering ahead needs a cache folder: SyntheticHands(config, cache=FOLDER)")
        chunks = range(share[0], -(-min(count or len(self), len(self)) // CHUNK), share[1])
        missing = [chunk for chunk in chunks if not self._path(chunk).exists()]
        hidden, total = not progress or not missing, len(missing) * CHUNK
        bar = progress_bar(total=total, unit="img", desc=f"rendering into {self.folder}", hidden=hidden)
        with bar, ExitStack() as stack:
            done: Iterable[None] = map(self._store_chunk, missing)
            processes = min(processes, len(missing))
            if processes > 1:
                with without_interrupts():
                    pool = stack.enter_context(get_context("spawn").Pool(processes, _start_renderer))
                done = pool.imap_unordered(self._store_chunk, missing)
            for _ in done:
                bar.update(CHUNK)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_chunks": {}}  # worker processes load or render what they need

    def _checked(self, indices: Iterable[int] | Tensor) -> list[int]:
        numbers = indices.tolist() if isinstance(indices, Tensor) else [int(index) for index in indices]
        if any(not 0 <= number < len(self) for number in numbers):
            raise IndexError(
                f"image indices must lie in [0, {len(self)}), got {min(numbers)} to {max(numbers)}"
            )
        return numbers

    def _stacked(self, name: str, indices: Iterable[int] | Tensor) -> Tensor:
        read = self._rendered if self.folder is None else self._stored
        return torch.stack([read(name, *divmod(index, CHUNK)) for index in self._checked(indices)])

    def _path(self, chunk: int) -> Path:
        assert self.folder is not None
        return self.folder / f"{chunk:06d}.safetensors"

    def _rendered(self, name: str, chunk: int, row: int) -> Tensor:
        """A part of an image, of a chunk in memory."""
        if chunk not in self._chunks:
            self._chunks[chunk] = self._make_chunk(chunk)
        return self._chunks[chunk][name][row]

    def _stored(self, name: str, chunk: int, row: int) -> Tensor:
        """A part of an image, of a chunk in the cache."""
        path = self._path(chunk)
        if path.exists():
            try:
                return self._read(path, name, row)
            except (SafetensorError, ValueError) as error:
                LOG.warning("%s is damaged (%s); it is rendered again", path, error)
        self._store_chunk(chunk)
        return self._read(path, name, row)

    def _read(self, path: Path, name: str, row: int) -> Tensor:
        """A part of an image, without the rest of its file."""
        with safe_open(path, "pt") as file:
            names, shape = {*file.keys()}, [CHUNK, 3, self.config.size, self.config.size]
            if names != PARTS or file.get_slice("images").get_shape() != shape:
                raise ValueError(f"expected {sorted(PARTS)} with images {shape}, got {sorted(names)}")
            return cast(Tensor, file.get_slice(name)[row])

    def _store_chunk(self, chunk: int) -> None:
        write_file(self._path(chunk), save(self._make_chunk(chunk)))

    def _make_chunk(self, chunk: int) -> dict[str, Tensor]:
        from nvf_fast.synthetic.reference_images import draw_hands, render_hands

        end = (chunk + 1) * CHUNK
        if self.folder is None and self.checksums is None:  # no longer set takes images from this chunk
            end = min(end, len(self))
        hands = draw_hands(self.config.seed, range(chunk * CHUNK, end), self.config.distribution)
        if self.checksums is not None and hands.checksum != self.checksums[chunk]:
            raise ValueError(
                f"chunk {chunk} of {self.name} {self.split} is drawn differently here: the SHA-256 of its "
                f"parameters is {hands.checksum}, not {self.checksums[chunk]}; it is not rendered, since "
                "results on it would not be comparable"
            )
        return render_hands(hands, self.config.size)


def _start_renderer() -> None:
    """Use one thread, and leave Ctrl-C, which the whole process group receives, to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


def synthetic_v2(part: Literal["train", "test"], cache: Path | str | None = None) -> SyntheticHands:
    """The fixed benchmark `synthetic-v2`: 20 000 images to train on and 2 000 to test on, 224 px.

    Hands make everyday gestures or random poses, are turned uniformly over the sphere, hold objects, and lie
    behind and before others. Parameters are drawn by a counter-based generator, with checksums stored beside
    this file, so that every machine makes the same set: labels to 0.001 mm, 99.9 % of the pixels to one grey
    level.

    Args:
        part: "train" or "test".
        cache: folder for the images, 3.5 GB for "train"; `render(processes)` fills it ahead.

    Raises:
        ValueError: the part is unknown.
    """
    if part not in V2_PARTS:
        raise ValueError(f"synthetic-v2 has the parts 'train' and 'test', got {part!r}")
    split = {"train": "training", "test": "evaluation"}[part]
    checksums = published()["sha256"][part]
    return SyntheticHands(V2_PARTS[part], cache, name="synthetic-v2", split=split, checksums=checksums)


def published() -> dict[str, Any]:
    """Fingerprints, checksums, and some labels and coarse images of the published synthetic-v2."""
    return json.loads((files("nvf_fast.synthetic") / "synthetic_v2.json").read_bytes())


def render_ahead(
    dataset: object,
    *,
    progress: bool = True,
    count: int | None = None,
    share: tuple[int, int] = (0, 1),
    processes: int = 1,
) -> None:
    """Render the images missing from a synthetic set's cache; do nothing for other sets or without a cache.

    Args:
        dataset: of any kind.
        progress, count, share, processes: as in `SyntheticHands.render`.
    """
    if isinstance(dataset, SyntheticHands) and dataset.folder is not None:
        dataset.render(processes, progress, count, share)
