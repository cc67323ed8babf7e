"""The fixed benchmark `synthetic-v2`: the built-in mesh hand in procedural surroundings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nvf_fast.camera import REFERENCE_FOCAL, REFERENCE_SIZE
from nvf_fast.data import synthetic
from nvf_fast.data.backgrounds import Backgrounds
from nvf_fast.data.draws import Draws, Stream
from nvf_fast.data.hand import SIZE_SPREAD, UNIFORM, draw_places
from nvf_fast.data.posed_hands import draw_shapes, posed_vertices, with_forearm
from nvf_fast.data.rig import built_in_rig, built_in_surface
from nvf_fast.data.sample import HandSample
from nvf_fast.data.surfaces import MeshHands
from nvf_fast.data.synthetic import SyntheticConfig, SyntheticHands
from nvf_fast.data.view_renderer import HandRenderer, SceneChances
from nvf_fast.joint_definitions import to_freihand

RECIPE = 1  # raise when the same seed would give other images or labels
CHANCES = SceneChances(held=0.2, in_front=0.2, clutter=0.4)
SLEEVES = 0.4
CHECKED_WORDS = 64  # of each image's stream

V2 = SyntheticConfig(count=20_000, seed=200_001, size=224, distribution=UNIFORM)
V2_PARTS = {"train": V2, "test": replace(V2, count=2_000, seed=200_002)}


class SyntheticMeshHands(SyntheticHands):
    """Images of the built-in mesh hand and its labels, by index: a data set of `HandSample`s.

    The reference camera sees one right hand, whose joints are in FreiHAND's definition and whose surface is a
    mesh closed at the wrist. `config.scene` is that of the older renderer and must be left as it is.

    Args:
        config, cache, name, split, checksums: as for `SyntheticHands`.
    """

    @property
    def fingerprint(self) -> str:
        facts = {"mesh hands": RECIPE, "stream": self.config.fingerprint}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    def __getitem__(self, index: int) -> HandSample:
        chunk = self._chunk(index // synthetic.CHUNK)
        return replace(super().__getitem__(index), box=chunk["boxes"][index % synthetic.CHUNK])

    def hands(self, indices: Iterable[int] | Tensor) -> MeshHands:  # type: ignore[override]
        """The hands in these images, camera frame, mm."""
        rows = [
            (self._chunk(index // synthetic.CHUNK), index % synthetic.CHUNK)
            for index in self._checked(indices)
        ]
        vertices, joints = (
            torch.stack([chunk[name][row] for chunk, row in rows]) for name in ("vertices", "joints")
        )
        return MeshHands(vertices, _closed_faces(), joints)

    def _make_chunk(self, chunk: int, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        hands = draw_hands_in_places(self.config, chunk)
        if self.checksums is not None and hands.checksum != self.checksums[chunk]:
            raise ValueError(
                f"chunk {chunk} of {self.name} {self.split} is drawn differently here: the SHA-256 of its "
                f"parameters is {hands.checksum}, not {self.checksums[chunk]}; no image of it is made, since "
                "results on it would not compare"
            )
        renderer = _renderer(self.config.size)
        focal = REFERENCE_FOCAL * self.config.size / REFERENCE_SIZE
        images = []
        for row, stream in enumerate(hands.streams):
            hand = with_forearm(renderer.rig, hands.skins[row], hands.joints[row], stream, SLEEVES)
            hand = hand.placed(hands.rotations[row], hands.offsets[row])
            canvas = renderer.render(stream, [hand], [False], focal)
            images.append(renderer.compose(stream, canvas, 0.0, 1.0, False))
        joints, vertices = (
            points @ hands.rotations.transpose(0, 2, 1) + hands.offsets[:, None]
            for points in (hands.joints, hands.surfaces)
        )
        seen = focal * joints[..., :2] / joints[..., 2:] + self.config.size / 2
        return {
            "images": torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(),
            "vertices": torch.from_numpy(vertices).float(),
            "joints": torch.from_numpy(joints).float(),
            "boxes": torch.from_numpy(np.concatenate([seen.min(1), seen.max(1)], 1)).float(),
        }


class DrawnHands(NamedTuple):
    """B hands and where they are placed.

    Attributes:
        skins, surfaces: (B, V, 3) float64 mm, hand frame: the mesh that is rendered and the coarser one.
        joints: (B, 21, 3) float64 mm, hand frame.
        rotations, offsets: (B, 3, 3) and (B, 3) mm, into the camera frame.
        streams: random numbers of each image.
        checksum: SHA-256 of the hands' words, of the first words of each image, and of the tries taken.
    """

    skins: np.ndarray
    surfaces: np.ndarray
    joints: np.ndarray
    rotations: np.ndarray
    offsets: np.ndarray
    streams: list[Stream]
    checksum: str


def synthetic_v2(part: Literal["train", "test"], cache: Path | str | None = None) -> SyntheticMeshHands:
    """The fixed benchmark `synthetic-v2`: 20 000 images to train on and 2 000 to test on, 224 px.

    Hands make everyday gestures or random poses, are turned uniformly over the sphere, hold objects, and lie
    behind and before others. Parameters are drawn from counted integers whose checksums are kept beside this
    file, so that every machine makes the same set: labels to 0.001 mm, 99.9 % of the pixels to
    one grey level.

    Args:
        part: which.
        cache: folder for the images, 3.5 GB for "train"; `render(processes)` fills it ahead.

    Raises:
        ValueError: there is no such part.
    """
    if part not in V2_PARTS:
        raise ValueError(f"synthetic-v2 has the parts 'train' and 'test', got {part!r}")
    split = {"train": "training", "test": "evaluation"}[part]
    checksums = published()["sha256"][part]
    return SyntheticMeshHands(V2_PARTS[part], cache, name="synthetic-v2", split=split, checksums=checksums)


def published() -> dict[str, Any]:
    """Fingerprints, checksums and some labels and coarse images of the set as it was published."""
    return json.loads((files("nvf_fast.data") / "synthetic_v2.json").read_text())


def draw_hands_in_places(config: SyntheticConfig, chunk: int) -> DrawnHands:
    """Draw the hands of one chunk."""
    indices = range(chunk * synthetic.CHUNK, (chunk + 1) * synthetic.CHUNK)
    draws = Draws(config.seed, "mesh hand", indices)
    shapes = draw_shapes(built_in_rig(), draws)
    size = (1 + SIZE_SPREAD * draws.normal()).clamp(0.8, 1.22).numpy()[:, None, None]
    skins, joints = (size * points for points in posed_vertices(built_in_rig(), shapes, "anatomical"))
    surfaces = size * posed_vertices(built_in_surface(), shapes, "anatomical")[0]
    rotation, offset, places = draw_places(torch.from_numpy(joints), draws, config.distribution)
    streams = [Stream(config.seed, "mesh scene", index) for index in indices]
    scenes = Draws(config.seed, "mesh scene", indices)  # the same words as the streams'
    scenes.uniform(0, 1, CHECKED_WORDS)
    facts = draws.digest + scenes.digest + torch.stack([shapes.tries, places]).numpy().astype("<i8").tobytes()
    return DrawnHands(
        skins, surfaces, joints, rotation.numpy(), offset.numpy(), streams, hashlib.sha256(facts).hexdigest()
    )


def draw_joints(count: int, seed: int) -> np.ndarray:
    """Draw joints (count, 21, 3) float64 mm, camera frame, of hands as in synthetic-v2 of another seed."""
    rig, draws = built_in_rig(), Draws(seed, "mesh hand", range(count))
    shapes = draw_shapes(rig, draws)
    size = (1 + SIZE_SPREAD * draws.normal()).clamp(0.8, 1.22).numpy()[:, None, None]
    joints = to_freihand(rig.posed_joints(shapes.angles, shapes.stretch, shapes.breadth), "anatomical")
    rotation, offset, _ = draw_places(torch.from_numpy(size * joints), draws, V2.distribution)
    return size * joints @ rotation.numpy().transpose(0, 2, 1) + offset.numpy()[:, None]


@cache
def _renderer(size: int) -> HandRenderer:
    return HandRenderer(built_in_rig(), (), Backgrounds(), CHANCES, size, turnable=False)


@cache
def _closed_faces() -> Tensor:
    return torch.from_numpy(built_in_surface().closed_faces.astype(np.int64))
