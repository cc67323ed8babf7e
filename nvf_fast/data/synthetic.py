"""Seeded sets of synthetic hand pictures with their hands, made on demand and kept in a cache folder."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache, partial
from importlib.resources import files
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from nvf_fast.camera import reference_intrinsics
from nvf_fast.data.draws import Draws
from nvf_fast.data.hand import UNIFORM, HandDistribution, Hands, draw_hands
from nvf_fast.data.render import render
from nvf_fast.data.sample import HandSample
from nvf_fast.data.scenes import SceneDistribution, Scenes, draw_scenes

CHUNK = 128  # pictures kept in one file
RECIPE = 2  # raise when the same seed would give other pictures


@dataclass(frozen=True)
class SyntheticConfig:
    """A set of synthetic pictures.

    count: number of pictures; a longer set begins with the shorter one.
    seed: sets of different seeds share no picture.
    size: side of the pictures in pixels, seen by the reference camera (f = 480 * size / 224).
    distribution: which hands, seen how.
    scene: how often there is what around them.
    """

    count: int = 16_384
    seed: int = 0
    size: int = 224
    distribution: HandDistribution = field(default_factory=HandDistribution)
    scene: SceneDistribution = field(default_factory=SceneDistribution)

    def __post_init__(self) -> None:
        if self.count < 1 or self.size < 16:
            raise ValueError(
                f"count must be at least 1 and size at least 16 px, got {self.count} and {self.size}"
            )

    @property
    def fingerprint(self) -> str:
        """Names the stream of pictures (not how many of them are used)."""
        facts = {"recipe": RECIPE, **asdict(replace(self, count=1))}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


V1 = SyntheticConfig(
    count=20_000,
    seed=100_001,
    size=224,
    distribution=UNIFORM,
    scene=SceneDistribution(
        objects=0.3, clutter=0.4, textures=0.3, coloured_lights=0.3, shadows=0.5,
        motion_blur=0.2, defocus=0.2, sensor_noise=0.25, exposure=0.25, compression=0.25,
    ),
)  # fmt: skip
V1_PARTS = {"train": V1, "test": replace(V1, count=2_000, seed=100_002)}


class SyntheticHands:
    """Pictures and their hands, by index: a data set of `HandSample`s.

    Args:
        config: which set.
        cache: folder that keeps rendered pictures between runs; without one they are kept in memory only.
        name, split: what the set is called.
        checksums: of every chunk's parameters, which are then checked when pictures are made.
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
        self.folder = None if cache is None else Path(cache) / self.fingerprint
        self._chunk = lru_cache(maxsize=None)(self._load_chunk)

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
        )

    def images(self, indices: Iterable[int] | Tensor) -> Tensor:
        """(B, 3, size, size) uint8 RGB pictures of these indices."""
        return torch.stack(
            [self._chunk(index // CHUNK)["images"][index % CHUNK] for index in self._checked(indices)]
        )

    def hands(self, indices: Iterable[int] | Tensor) -> Hands:
        """The hands in these pictures, camera frame, mm."""
        rows = [(self._chunk(index // CHUNK), index % CHUNK) for index in self._checked(indices)]
        return Hands(
            **{
                name: torch.stack([chunk[name][row] for chunk, row in rows])
                for name in ("nodes", "radii", "dorsal", "palm")
            }
        )

    def render(
        self,
        processes: int = 1,
        progress: bool = True,
        device: torch.device | str = "cpu",
        count: int | None = None,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        """Makes the pictures that the cache lacks.

        Args:
            processes: how many work at once. On a GPU a few: drawing hands and scenes is the CPU's work.
            progress: shows a bar.
            device: where to draw.
            count: only so many of the first; None is all.
            share: (i, n) makes the i-th of n equal shares, where n callers divide the work.
        """
        if self.folder is None:
            raise ValueError("rendering ahead needs a cache folder: SyntheticHands(config, cache=FOLDER)")
        chunks = range(share[0], -(-min(count or len(self), len(self)) // CHUNK), share[1])
        missing = [chunk for chunk in chunks if not self._path(chunk).exists()]
        bar = tqdm(
            total=len(missing) * CHUNK, unit="img", desc="rendering", disable=not progress or not missing
        )
        with bar, ExitStack() as stack:
            store = partial(self._store_chunk, device=device)
            done: Iterable[None] = map(store, missing)
            processes = min(processes, len(missing))
            if processes > 1:
                pool = stack.enter_context(get_context("spawn").Pool(processes, torch.set_num_threads, (1,)))
                done = pool.imap_unordered(store, missing)
            for _ in done:
                bar.update(CHUNK)

    def __getstate__(self) -> dict:
        return {name: value for name, value in vars(self).items() if name != "_chunk"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._chunk = lru_cache(maxsize=None)(self._load_chunk)

    def _checked(self, indices: Iterable[int] | Tensor) -> list[int]:
        numbers = indices.tolist() if isinstance(indices, Tensor) else [int(index) for index in indices]
        if any(not 0 <= number < len(self) for number in numbers):
            raise IndexError(
                f"picture indices must lie in [0, {len(self)}), got {min(numbers)} to {max(numbers)}"
            )
        return numbers

    def _path(self, chunk: int) -> Path:
        assert self.folder is not None
        return self.folder / f"{chunk:06d}.safetensors"

    def _load_chunk(self, chunk: int) -> dict[str, Tensor]:
        if self.folder is None:
            return self._make_chunk(chunk)
        if not self._path(chunk).exists():
            self._store_chunk(chunk)
        try:
            return load_file(self._path(chunk))
        except SafetensorError as error:
            raise ValueError(
                f"{self._path(chunk)} is damaged ({error}); delete it and it is rendered again"
            ) from error

    def _store_chunk(self, chunk: int, device: torch.device | str = "cpu") -> None:
        path = self._path(chunk)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        save_file(self._make_chunk(chunk, device), temporary)
        temporary.replace(path)

    @torch.no_grad()
    def _make_chunk(self, chunk: int, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        hands, scenes, checksum = draw_chunk(self.config, chunk)
        if self.checksums is not None and checksum != self.checksums[chunk]:
            raise ValueError(
                f"chunk {chunk} of {self.name} {self.split} is drawn differently here: the SHA-256 of its "
                f"parameters is {checksum}, not {self.checksums[chunk]}; no picture of it is made, since "
                "results on it would not compare"
            )
        pictures = render(hands.to(device), scenes.to(device), self.config.size).cpu()
        return {"images": pictures, **{name: value.clone() for name, value in vars(hands).items()}}


def synthetic_v1(part: Literal["train", "test"], cache: Path | str | None = None) -> SyntheticHands:
    """The fixed benchmark `synthetic-v1`: 20 000 pictures to train on and 2 000 to test on, 224 px.

    Hands are turned uniformly over the sphere, palms and backs alike; `V1.scene` says how often there is what
    around them. Parameters are drawn from counted integers and their checksums are kept beside this file, so
    that every machine makes the same set: labels to 0.001 mm, pixels to one grey level.

    Args:
        part: which.
        cache: folder for the pictures, 3.0 GB for "train"; `render(processes)` fills it ahead.
    """
    if part not in V1_PARTS:
        raise ValueError(f"synthetic-v1 has the parts 'train' and 'test', got {part!r}")
    kept = json.loads((files("nvf_fast.data") / "synthetic_v1.json").read_text())
    split = {"train": "training", "test": "evaluation"}[part]
    return SyntheticHands(
        V1_PARTS[part], cache, name="synthetic-v1", split=split, checksums=kept["sha256"][part]
    )


def render_ahead(
    dataset: object,
    device: torch.device | str,
    *,
    progress: bool = True,
    count: int | None = None,
    share: tuple[int, int] = (0, 1),
    processes: int = 1,
) -> None:
    """Draws what the cache of a synthetic set lacks; other sets, and one without a cache, are let be.

    Args:
        dataset: of any kind.
        device, progress, count, share, processes: as in `SyntheticHands.render`.
    """
    if isinstance(dataset, SyntheticHands) and dataset.folder is not None:
        dataset.render(processes, progress, device, count, share)


def draw_chunk(config: SyntheticConfig, chunk: int) -> tuple[Hands, Scenes, str]:
    """Hands, scenes and SHA-256 of one chunk: of every word drawn for it and of which tries were taken."""
    indices = range(chunk * CHUNK, (chunk + 1) * CHUNK)
    for_hands, for_scenes = (Draws(config.seed, purpose, indices) for purpose in ("hand", "scene"))
    hands, tries = draw_hands(for_hands, config.distribution)
    scenes = draw_scenes(for_scenes, config.scene)
    facts = for_hands.digest + for_scenes.digest + tries.numpy().astype("<i8").tobytes()
    return hands, scenes, hashlib.sha256(facts).hexdigest()
