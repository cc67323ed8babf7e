"""HO-3D v2 and v3: S. Hampali et al., "HOnnotate", CVPR 2020. Right hands with objects, 640 x 480 px.

The files are in metres, with OpenGL's camera frame and another joint order, see docs/datasets.md; this module
converts them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nvf_fast.conventions import FRAMES, convert_joints
from nvf_fast.data import tables
from nvf_fast.data.faults import Faults
from nvf_fast.data.folder import FolderDataset, row_of
from nvf_fast.data.mano import VERTICES, Mano, open_mano
from nvf_fast.data.pickles import load_pickle
from nvf_fast.data.sample import HandSample
from nvf_fast.runtime.files import read_path

PAGE = "https://github.com/shreyashampali/ho3d"
OFFICIAL = {
    ("v2", "train"): 66_034,
    ("v2", "evaluation"): 11_524,
    ("v3", "train"): 83_325,
    ("v3", "evaluation"): 20_137,
}
SUFFIX = {"v2": ".png", "v3": ".jpg"}
FLIP = np.array(FRAMES["opengl"])
ROOT_TOLERANCE_MM = 1.0  # between the wrist of a frame's own file and of evaluation_xyz.json


class HO3D(FolderDataset):
    """HO-3D's annotated frames, in the order of `train.txt` or `evaluation.txt`.

    Args:
        folder: the folder that holds `train.txt` and `train/`.
        split: "train" or "evaluation". Frames of the latter have root and box; joints and vertices where the
            released `evaluation_xyz.json` and `evaluation_verts.json` lie in `folder`.
        version: "v2" or "v3".
        mano: MANO's model or its file, for the vertices of the train split and the closed surfaces of both.
        cache: folder for the released lists as arrays.
        official: whether to require the official number of frames.

    Raises:
        DatasetError: the files have faults; the message lists all.
    """

    name = "HO-3D"

    def __init__(
        self,
        folder: Path | str,
        split: str = "train",
        version: str = "v2",
        mano: Mano | Path | str | None = None,
        *,
        cache: Path | str | None = None,
        official: bool = False,
    ) -> None:
        _check_arguments(split, version)
        self.name = f"HO-3D {version}"
        self.folder, self.split, self.version = read_path("folder", folder), split, version
        self.expected = OFFICIAL[version, split]
        faults = Faults(self.name, self.folder, PAGE)
        faults.check_place([f"{split}.txt", split])
        self._mano = open_mano(mano, faults)
        frames = _read_frames(self.folder / f"{split}.txt", faults)
        self.ids = [f"{split}/{frame}" for frame in frames]
        readable = self._check_files(frames, faults)
        self._read_meta(readable, mano is not None, faults)
        if split == "evaluation":
            cache = None if cache is None else read_path("cache", cache)
            self._read_released(len(readable) == len(frames), faults, cache)
        self._check(faults, official)
        self.faces = None if self._mano is None else self._mano.closed_faces
        self.why_no_surfaces = self._missing_for_surfaces()

    def __getitem__(self, index: int) -> HandSample:
        """Return one sample; a `DamagedImageError` names an image that cannot be read."""
        sequence, frame = self.ids[self._checked(index)].split("/")[1:]
        place = self.folder / self.split / sequence / "rgb" / f"{frame}{SUFFIX[self.version]}"
        intrinsics, root = self._intrinsics[index].numpy(), row_of(self._root, index)
        image, joints, box = tables.read_image(place), row_of(self._joints, index), row_of(self._boxes, index)
        return self._sample(index, image, intrinsics, joints, self._vertices_of(index), root=root, box=box)

    def _check_files(self, frames: Sequence[str], faults: Faults) -> list[str]:
        """Check images and annotations; return the frames with an annotation."""
        root, suffix = self.folder / self.split, SUFFIX[self.version]
        other = "v3" if self.version == "v2" else "v2"
        sequences = dict.fromkeys(frame.split("/")[0] for frame in frames)
        unknown = [sequence for sequence in sequences if not (root / sequence).is_dir()]
        images, annotations = (
            {f"{sequence}/{name}" for sequence in sequences for name in tables.listed(root / sequence / kind)}
            for kind in ("rgb", "meta")
        )
        known = [frame for frame in frames if frame.split("/")[0] not in unknown]
        no_image = [frame for frame in known if frame + suffix not in images]
        other_image = [frame for frame in no_image if frame + SUFFIX[other] in images]
        no_image = [frame for frame in no_image if frame + SUFFIX[other] not in images]
        no_annotation = [frame for frame in known if f"{frame}.pkl" not in annotations]
        as_version = f'{suffix}, as {self.version} has them, or version="{other}"'
        listing, folders = self.folder / f"{self.split}.txt", f"folders of {self.split}/"
        faults.add_many(listing, "sequences unknown", unknown, folders)
        faults.add_many(root, "images missing", no_image, f"rgb/NUMBER{suffix}")
        faults.add_many(root, f"images of {other} ({SUFFIX[other]})", other_image, as_version)
        faults.add_many(root, "annotations missing", no_annotation, "meta/NUMBER.pkl")
        return [frame for frame in known if f"{frame}.pkl" in annotations]

    def _read_meta(self, frames: Sequence[str], with_mano: bool, faults: Faults) -> None:
        """Set intrinsics, root and joints, and MANO's parameters or boxes, of all frames."""
        root = self.folder / self.split
        shapes: dict[str, tuple[int, ...]] = {"camMat": (3, 3), "handJoints3D": (21, 3)}
        parameters = {"handPose": (48,), "handBeta": (10,), "handTrans": (3,)} if with_mano else {}
        if self.split == "train":
            shapes |= parameters
        else:
            shapes |= {"handJoints3D": (3,), "handBoundingBox": (4,)}
        rows: dict[str, list[np.ndarray]] = {name: [] for name in shapes}
        cases: dict[str, list[str]] = {}
        for frame in frames:
            sequence, number = frame.split("/")
            try:
                meta = load_pickle(root / sequence / "meta" / f"{number}.pkl")
                if not isinstance(meta, Mapping):
                    raise ValueError(f"holds {type(meta).__name__}, no dictionary")
            except (ValueError, OSError) as error:
                cases.setdefault("annotations cannot be read", []).append(f"{frame} ({error})")
                continue
            for name, shape in shapes.items():
                array, fault = tables.finite_array(meta.get(name), shape)
                rows[name].append(array)
                if fault is not None:
                    cases.setdefault(f"annotations whose {name} is {fault}", []).append(frame)
        expected = "pickles with " + ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        for kind, named in cases.items():
            faults.add_many(root, kind, named, expected)
        found = {name: np.array(rows[name]).reshape(-1, *shape) for name, shape in shapes.items()}
        points = found["handJoints3D"].reshape(-1, 21 if self.split == "train" else 1, 3) * FLIP * 1000
        if not cases:
            tables.check_intrinsics(root, found["camMat"], faults, frames)
            tables.check_points(root, points, faults, frames)
        self._intrinsics = torch.from_numpy(found["camMat"])
        self._root = torch.from_numpy(points[:, 0].astype(np.float32))
        self._joints: Tensor | None = None
        self._vertices: Tensor | None = None
        self._boxes: Tensor | None = None
        self._parameters: list[Tensor] | None = None
        if self.split == "evaluation":
            self._boxes = torch.from_numpy(found["handBoundingBox"].astype(np.float32))
            return
        self._joints = torch.from_numpy(convert_joints(points, "ho3d", inverse=True).astype(np.float32))
        if with_mano:
            self._parameters = [torch.from_numpy(found[name]) for name in parameters]

    def _read_released(self, whole: bool, faults: Faults, cache: Path | None) -> None:
        """Set joints and vertices of the evaluation split where the files exist."""
        frames = self.folder / "evaluation.txt"
        lengths = {frames: len(self.ids)}
        found: dict[str, Tensor] = {}
        for name, count in (("xyz", 21), ("verts", VERTICES)):
            path = self.folder / f"evaluation_{name}.json"
            if not path.exists():
                continue
            table = tables.read_table(path, faults, (count, 3), 1000.0, cache=cache)
            if table is not None:
                lengths[path], table = len(table), table * FLIP.astype(np.float32)
                tables.check_points(path, table, faults)
                found[name] = torch.from_numpy(table)
        faults.add_lengths(lengths, frames)
        self._vertices = found.get("verts")
        if "xyz" in found:
            wrist = found["xyz"][:, 0]
            if whole and len(wrist) == len(self._root):
                away = (wrist - self._root).norm(dim=-1) > ROOT_TOLERANCE_MM
                far = [f"entry {i}" for i in away.nonzero()[:, 0].tolist()]
                own = "those of the frames' own files, in evaluation.txt's order"
                faults.add_many(self.folder / "evaluation_xyz.json", "wrists elsewhere", far, own)
            self._joints = convert_joints(found["xyz"], "ho3d", inverse=True)

    def _missing_for_surfaces(self) -> str | None:
        if self._joints is None:
            return "evaluation_xyz.json is missing: it was released in November 2024"
        if self._mano is None:
            return "HO-3D needs MANO's file for meshes: mano=MANO_RIGHT.pkl"
        if self.split == "evaluation" and self._vertices is None:
            return "evaluation_verts.json is missing: it was released in November 2024"
        return None

    def _vertices_of(self, index: int) -> Tensor | None:
        if self._vertices is not None or self._mano is None or self._parameters is None:
            return row_of(self._vertices, index)
        pose, shape, translation = (table[index, None] for table in self._parameters)
        vertices, _ = self._mano(pose, shape, flat_hand_mean=True)
        return ((vertices[0] + 1000 * translation) * torch.from_numpy(FLIP)).float()


def _check_arguments(split: str, version: str) -> None:
    if (version, split) not in OFFICIAL:
        raise ValueError(
            'split must be "train" or "evaluation" and version "v2" or "v3", '
            f"got split={split!r} and version={version!r}"
        )


def _read_frames(path: Path, faults: Faults) -> list[str]:
    """Read the list of annotated frames, without malformed lines."""
    lines = path.read_text(encoding="latin1").split() if path.is_file() else []
    if not lines:
        got = "an empty list" if path.is_file() else "no such file"
        faults.add(path, got, "a line SEQUENCE/FRAME for each annotated frame")
    good = Counter(line for line in lines if re.fullmatch(r"[\w-]+/[\w-]+", line))
    malformed = [repr(line) for line in lines if line not in good]
    faults.add_many(path, "lines of another form", malformed, "SEQUENCE/FRAME, without suffix")
    twice = [line for line, times in good.items() if times > 1]
    faults.add_many(path, "frames listed more than once", twice, "each frame once")
    return [line for line in lines if line in good]
