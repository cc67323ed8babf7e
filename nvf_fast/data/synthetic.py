"""Seeded sets of synthetic hand pictures with their hands, made on demand and kept in a cache folder."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from .hand import HandDistribution, Hands, sample_hands
from .render import render_hand

CHUNK = 128  # pictures drawn from one seed and kept in one file
RECIPE = 1  # raise when the same seed would give other pictures


@dataclass(frozen=True)
class SyntheticConfig:
    """A set of synthetic pictures.

    count: number of pictures; a longer set begins with the shorter one.
    seed: sets of different seeds share no picture.
    size: side of the pictures in pixels, seen by the reference camera (f = 480 * size / 224).
    distribution: which hands, seen how.
    """

    count: int = 16_384
    seed: int = 0
    size: int = 224
    distribution: HandDistribution = field(default_factory=HandDistribution)

    def __post_init__(self) -> None:
        if self.count < 1 or self.size < 16:
            raise ValueError(
                f"count must be at least 1 and size at least 16 px, got {self.count} and {self.size}"
            )

    @property
    def fingerprint(self) -> str:
        """Names the stream of pictures (not how many of them are used)."""
        facts = {
            "recipe": RECIPE,
            "seed": self.seed,
            "size": self.size,
            "distribution": asdict(self.distribution),
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


class SyntheticHands:
    """Pictures and their hands, by index.

    Args:
        config: which set.
        cache: folder that keeps rendered pictures between runs; without one they are kept in memory only.
    """

    def __init__(self, config: SyntheticConfig, cache: Path | str | None = None) -> None:
        self.config = config
        self.folder = None if cache is None else Path(cache) / config.fingerprint
        self._chunk = lru_cache(maxsize=None)(self._load_chunk)

    def __len__(self) -> int:
        return self.config.count

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

    def render(self, processes: int = 1, progress: bool = True) -> None:
        """Makes every picture that the cache lacks, in parallel processes, with a progress bar."""
        if self.folder is None:
            raise ValueError("rendering ahead needs a cache folder: SyntheticHands(config, cache=FOLDER)")
        missing = [chunk for chunk in range(-(-len(self) // CHUNK)) if not self._path(chunk).exists()]
        bar = tqdm(
            total=len(missing) * CHUNK, unit="img", desc="rendering", disable=not progress or not missing
        )
        with bar, ExitStack() as stack:
            done: Iterable[None] = map(self._store_chunk, missing)
            if processes > 1:
                pool = stack.enter_context(get_context("spawn").Pool(processes, torch.set_num_threads, (1,)))
                done = pool.imap_unordered(self._store_chunk, missing)
            for _ in done:
                bar.update(CHUNK)

    def __getstate__(self) -> dict:
        return {"config": self.config, "folder": self.folder}

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

    def _store_chunk(self, chunk: int) -> None:
        path = self._path(chunk)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        save_file(self._make_chunk(chunk), temporary)
        temporary.replace(path)

    @torch.inference_mode()
    def _make_chunk(self, chunk: int) -> dict[str, Tensor]:
        digest = hashlib.sha256(f"nvf_fast synthetic {self.config.seed} {chunk}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        hands = sample_hands(CHUNK, generator, self.config.distribution)
        pictures = torch.stack(
            [render_hand(hands[i : i + 1], self.config.size, generator) for i in range(CHUNK)]
        )
        return {
            "images": pictures,
            "nodes": hands.nodes.clone(),
            "radii": hands.radii.clone(),
            "dorsal": hands.dorsal.clone(),
            "palm": hands.palm.clone(),
        }
