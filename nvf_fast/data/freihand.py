"""FreiHAND v2: C. Zimmermann et al., "FreiHAND", ICCV 2019. Right hands, one per image of 224 x 224 px.

The files are in metres, with this library's camera frame and joint order; see docs/datasets.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nvf_fast.data import tables
from nvf_fast.data.faults import Faults
from nvf_fast.data.folder import FolderDataset, joints_m, row_of, vertices_m
from nvf_fast.data.mano import VERTICES, Mano, open_mano, place_freihand
from nvf_fast.data.sample import HandSample
from nvf_fast.runtime.files import read_path

PAGE = "https://lmb.informatik.uni-freiburg.de/resources/datasets/FreihandDataset.en.html"
VERSIONS = ("gs", "hom", "sample", "auto")
"""Four images of each training hand: before the green screen, and with three kinds of other background."""
FORMS: dict[str, tuple[tuple[int, ...], float, type]] = {
    "K": ((3, 3), 1.0, np.float64),
    "xyz": ((21, 3), 1000.0, np.float32),
    "verts": ((VERTICES, 3), 1000.0, np.float32),
    "mano": ((1, 61), 1.0, np.float64),
    "scale": ((), 1000.0, np.float32),
}
"""Each list's shape of an entry, factor to this library's unit, and dtype."""
OFFICIAL = {"training": 32_560, "evaluation": 3_960}


class FreiHAND(FolderDataset):
    """FreiHAND's images, ordered by version.

    Args:
        folder: FreiHAND_pub_v2, the folder that holds `training_K.json` and `training/rgb`.
        split: "training" or "evaluation".
        versions: which of "gs", "hom", "sample", "auto"; evaluation has "gs" only.
        evaluation_folder: FreiHAND_pub_v2_eval, with the released annotations of the evaluation split.
            Without it they are read from `folder`; without either, samples have no joints.
        mano: MANO's model or its file, for the faces of closed surfaces, and for the vertices if only
            `*_mano.json` exists and not `*_verts.json`.
        cache: folder for the long lists as arrays; without it, reading those of all 32 560 hands takes a
            minute or two each time.
        official: whether to require the official number of samples.

    Raises:
        DatasetError: the files have faults; the message lists all.
    """

    name = "FreiHAND"

    def __init__(
        self,
        folder: Path | str,
        split: str = "training",
        versions: Sequence[str] = VERSIONS,
        evaluation_folder: Path | str | None = None,
        mano: Mano | Path | str | None = None,
        *,
        cache: Path | str | None = None,
        official: bool = False,
    ) -> None:
        self.versions = _read_versions(versions, split)
        self.folder, self.split = read_path("folder", folder), split
        self.expected = OFFICIAL[split] * len(self.versions)
        faults = Faults(self.name, self.folder, PAGE)
        faults.check_place([f"{split}_K.json", f"{split}/rgb"])
        self._mano = open_mano(mano, faults)
        cache = None if cache is None else read_path("cache", cache)
        self._read_annotations(evaluation_folder, faults, cache)
        self._check_images(faults)
        self._check(faults, official)
        self.faces = None if self._mano is None else self._mano.closed_faces
        self.why_no_surfaces = self._missing_for_surfaces()

    def __getitem__(self, index: int) -> HandSample:
        """Return one sample; a `DamagedImageError` names an image that cannot be read."""
        hand = self._checked(index) % len(self._intrinsics)
        image = tables.read_image(self.folder / self.split / "rgb" / f"{self.ids[index].split('/')[1]}.jpg")
        joints, vertices = row_of(self._joints, hand), self._vertices_of(hand)
        scale = None if self._scale is None else float(self._scale[hand])
        return self._sample(index, image, self._intrinsics[hand].numpy(), joints, vertices, hand_scale=scale)

    def _read_annotations(self, other: Path | str | None, faults: Faults, cache: Path | None) -> None:
        """Set intrinsics, and joints, vertices, MANO's parameters and scale where the files exist."""
        truth = self.folder if other is None else read_path("evaluation_folder", other)
        places = dict.fromkeys(FORMS, truth) | {"K": self.folder, "scale": self.folder}
        paths = {name: place / f"{self.split}_{name}.json" for name, place in places.items()}
        have_joints = self.split == "training" or other is not None or paths["xyz"].exists()
        needed = {"K", "xyz" if have_joints else "scale"}
        found: dict[str, np.ndarray] = {}
        for name, path in paths.items():
            superseded = name == "mano" and paths["verts"].exists()
            if name in needed or (path.exists() and not superseded):
                table = tables.read_table(path, faults, *FORMS[name], cache)
                if table is not None:
                    found[name] = table
        faults.add_lengths({paths[name]: len(table) for name, table in found.items()}, paths["K"])
        if "K" in found:
            tables.check_intrinsics(paths["K"], found["K"], faults)
            again = truth / paths["K"].name
            if again != paths["K"] and again.exists():
                theirs = tables.read_table(again, faults, *FORMS["K"])
                if theirs is not None and not _same(theirs, found["K"]):
                    own = "those of the data set's own folder: the two must be of one release"
                    faults.add(again, "other cameras", own)
        for name in ("xyz", "verts"):
            if name in found:
                tables.check_points(paths[name], found[name], faults)
        if "scale" in found:
            short = [f"entry {i}" for i in np.flatnonzero(found["scale"] <= 0)]
            faults.add_many(paths["scale"], "lengths that are not positive", short, "metres above 0")
        self._intrinsics = torch.from_numpy(found.get("K", np.zeros((0, 3, 3))))
        self._joints, self._vertices, self._parameters, self._scale = (
            torch.from_numpy(found[name]) if name in found else None
            for name in ("xyz", "verts", "mano", "scale")
        )

    def _check_images(self, faults: Faults) -> None:
        """Set the samples' ids, and check that each has an image and each image an annotation."""
        count = len(self._intrinsics)
        numbers = [VERSIONS.index(version) * count + i for version in self.versions for i in range(count)]
        self.ids = [f"{self.split}/{number:08d}" for number in numbers]
        images = self.folder / self.split / "rgb"
        present = tables.listed(images)
        if not count:
            return
        missing = [name for number in numbers if (name := f"{number:08d}.jpg") not in present]
        expected = f"{count} of each version of {', '.join(self.versions)}"
        faults.add_many(images, "images missing", missing, expected)
        last = f"{count * len(VERSIONS if self.split == 'training' else self.versions) - 1:08d}.jpg"
        extra = sorted(name for name in present if name > last and name.endswith(".jpg"))
        # Only numbers distinguish versions: a shortened list would assign wrong annotations.
        faults.add_many(images, "images too many", extra, f"none past {last} for {count} annotations")

    def _missing_for_surfaces(self) -> str | None:
        if self._joints is None:
            return f"{self.split}_xyz.json is missing: FreiHAND_pub_v2_eval has it"
        if self._mano is None:
            return "faces need MANO's file: mano=MANO_RIGHT.pkl (--mano)"
        if self._vertices is None and self._parameters is None:
            return f"{self.split}_verts.json and {self.split}_mano.json are missing"
        return None

    def _vertices_of(self, hand: int) -> Tensor | None:
        if self._vertices is not None or self._mano is None or self._parameters is None:
            return row_of(self._vertices, hand)
        return place_freihand(self._mano, self._parameters[hand], self._intrinsics[None, hand])[0][0].float()


def write_freihand(
    folder: Path | str,
    samples: Sequence[HandSample],
    split: str = "training",
    versions: Sequence[str] = ("gs",),
    evaluation_folder: Path | str | None = None,
) -> None:
    """Write samples in FreiHAND's format.

    Args:
        folder: to write to.
        samples: right hands with joints, all with MANO's 778 vertices or all without. In the order of
            `FreiHAND`: all of the first version, then the same hands in the next.
        split: "training" or "evaluation".
        versions: of the images.
        evaluation_folder: for joints and vertices of the evaluation split; by default `folder`.

    Raises:
        ValueError: the format cannot store a sample.
    """
    versions = _read_versions(versions, split)
    count, rest = divmod(len(samples), len(versions))
    if rest or not count:
        raise ValueError(f"samples must be the same hands in {len(versions)} version(s), got {len(samples)}")
    folder = read_path("folder", folder)
    truth = Path(evaluation_folder) if evaluation_folder is not None and split == "evaluation" else folder
    joints = np.stack([joints_m(sample) for sample in samples])
    vertices = [vertices_m(sample) for sample in samples[:count] if sample.vertices is not None]
    if len(vertices) not in (0, count):
        raise ValueError(f"all samples must have vertices, or none, got {len(vertices)} of {count}")
    for index, sample in enumerate(samples):
        version, hand = divmod(index, count)
        if not np.array_equal(joints[index], joints[hand]):
            raise ValueError(f"{sample.id} must show the hand of sample {hand}, its joints differ")
        number = VERSIONS.index(versions[version]) * count + hand
        tables.write_image(folder / split / "rgb" / f"{number:08d}.jpg", sample.image)
    bones = joints[:count]
    tables.write_table(folder / f"{split}_K.json", [sample.intrinsics for sample in samples[:count]])
    tables.write_table(folder / f"{split}_scale.json", np.linalg.norm(bones[:, 10] - bones[:, 9], axis=-1))
    tables.write_table(truth / f"{split}_xyz.json", bones)
    if vertices:
        tables.write_table(truth / f"{split}_verts.json", vertices)


def _read_versions(versions: Sequence[str], split: str) -> tuple[str, ...]:
    if split not in OFFICIAL:
        raise ValueError(f'split must be "training" or "evaluation", got {split!r}')
    if isinstance(versions, str) or not versions or not set(versions) <= set(VERSIONS):
        raise ValueError(f"versions must be some of {VERSIONS}, got {versions!r}")
    if len(set(versions)) != len(versions):
        raise ValueError(f"versions must differ, got {versions!r}")
    if split == "training":
        return tuple(versions)
    if tuple(versions) not in (VERSIONS, ("gs",)):
        raise ValueError(f'evaluation has version "gs" only, got {versions!r}')
    return ("gs",)


def _same(cameras: np.ndarray, others: np.ndarray) -> bool:
    return cameras.shape == others.shape and np.allclose(cameras, others, atol=1e-3)
