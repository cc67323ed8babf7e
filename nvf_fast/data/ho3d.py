"""HO-3D v2 and v3: S. Hampali et al., "HOnnotate", CVPR 2020. Right hands with objects, 640 x 480 px.

The files are in metres, with OpenGL's camera frame and another joint order, see docs/datasets.md; this module
converts them.
"""

from __future__ import annotations

import pickle
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nvf_fast.data.faults import Faults
from nvf_fast.data.folder import FolderDataset, bone_mm, joints_m, mesh_of, vertices_m
from nvf_fast.data.joint_orders import FREIHAND_TO_HO3D, HO3D_TO_FREIHAND, OPENGL_TO_OPENCV
from nvf_fast.data.mano import VERTICES, Mano, open_mano
from nvf_fast.data.pickles import dense, load_pickle
from nvf_fast.data.sample import HandSample
from nvf_fast.data.tables import (
    check_intrinsics,
    check_points,
    listed,
    read_image,
    read_table,
    write_image,
    write_table,
)

PAGE = "https://github.com/shreyashampali/ho3d"
OFFICIAL = {
    ("v2", "train"): 66_034,
    ("v2", "evaluation"): 11_524,
    ("v3", "train"): 83_325,
    ("v3", "evaluation"): 20_137,
}
SUFFIX = {"v2": ".png", "v3": ".jpg"}
FLIP = np.array(OPENGL_TO_OPENCV)
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
        self.folder, self.split, self.version = Path(folder), split, version
        self.expected = OFFICIAL[version, split]
        faults = Faults(self.name, self.folder, PAGE)
        faults.check_place([f"{split}.txt", split])
        model = open_mano(mano, faults)
        frames = _read_frames(self.folder / f"{split}.txt", faults)
        self.ids = [f"{split}/{frame}" for frame in frames]
        readable = self._check_files(frames, faults)
        self._read_meta(readable, mano is not None, faults)
        if split == "evaluation":
            self._read_released(len(readable) == len(frames), faults, None if cache is None else Path(cache))
        self._check_official(official, faults)
        faults.check()
        self._mano = model
        self._faces = None if model is None else model.closed_faces
        self.why_no_surfaces = self._missing_for_surfaces()

    def __getitem__(self, index: int) -> HandSample:
        """Return one sample.

        Raises:
            DamagedImageError: its image cannot be read.
        """
        sequence, frame = self.ids[self._checked(index)].split("/")[1:]
        image = self.folder / self.split / sequence / "rgb" / f"{frame}{SUFFIX[self.version]}"
        joints = None if self._joints is None else self._joints[index].clone()
        vertices = self._vertices_of(index)
        return HandSample(
            id=self.ids[index],
            image=read_image(image),
            intrinsics=self._intrinsics[index].numpy().copy(),
            root=self._root[index].clone(),
            joints=joints,
            surface=mesh_of(vertices, joints, self._faces),
            vertices=vertices,
            hand_scale=None if joints is None else bone_mm(joints),
            box=None if self._boxes is None else self._boxes[index].clone(),
        )

    def _check_files(self, frames: Sequence[str], faults: Faults) -> list[str]:
        """Check images and annotations; return the frames with an annotation."""
        root, suffix = self.folder / self.split, SUFFIX[self.version]
        other_version = "v3" if self.version == "v2" else "v2"
        present: dict[Path, set[str]] = {}
        unknown: dict[str, None] = {}
        no_image: list[str] = []
        other_image: list[str] = []
        no_meta: list[str] = []
        readable: list[str] = []
        for frame in frames:
            sequence, number = frame.split("/")
            if not (root / sequence).is_dir():
                unknown[sequence] = None
                continue
            images, metas = root / sequence / "rgb", root / sequence / "meta"
            for folder in (images, metas):
                if folder not in present:
                    present[folder] = listed(folder)
            if f"{number}{suffix}" not in present[images]:
                other = f"{number}{SUFFIX[other_version]}" in present[images]
                (other_image if other else no_image).append(frame)
            if f"{number}.pkl" in present[metas]:
                readable.append(frame)
            else:
                no_meta.append(frame)
        faults.add_many(
            self.folder / f"{self.split}.txt", "sequences unknown", list(unknown), f"folders of {self.split}/"
        )
        faults.add_many(root, "images missing", no_image, f"rgb/NUMBER{suffix}")
        faults.add_many(
            root, f"images of {other_version} ({SUFFIX[other_version]})", other_image,
            f'{suffix}, as {self.version} has them, or version="{other_version}"',
        )  # fmt: skip
        faults.add_many(root, "annotations missing", no_meta, "meta/NUMBER.pkl")
        return readable

    def _read_meta(self, frames: Sequence[str], with_mano: bool, faults: Faults) -> None:
        """Set intrinsics, root and joints, and MANO's parameters or boxes, of all frames."""
        root = self.folder / self.split
        forms: dict[str, tuple[int, ...]] = {"camMat": (3, 3)}
        if self.split == "train":
            forms |= {"handJoints3D": (21, 3)}
            forms |= {"handPose": (48,), "handBeta": (10,), "handTrans": (3,)} if with_mano else {}
        else:
            forms |= {"handJoints3D": (3,), "handBoundingBox": (4,)}
        rows: dict[str, list[np.ndarray]] = {name: [] for name in forms}
        cases: dict[str, list[str]] = {}
        for frame in frames:
            sequence, number = frame.split("/")
            try:
                meta = _load_meta(root / sequence / "meta" / f"{number}.pkl")
            except (ValueError, OSError) as error:
                cases.setdefault("annotations cannot be read", []).append(f"{frame} ({error})")
                continue
            for name, shape in forms.items():
                array, fault = _field(meta, name, shape)
                if fault is not None:
                    cases.setdefault(f"annotations with {fault}", []).append(frame)
                rows[name].append(array)
        expected = "pickles with " + ", ".join(f"{name} {shape}" for name, shape in forms.items())
        for kind, named in cases.items():
            faults.add_many(root, kind, named, expected)
        tables = {name: np.array(rows[name]).reshape(-1, *shape) for name, shape in forms.items()}
        points = tables["handJoints3D"]
        points = (points if self.split == "train" else points[:, None]) * FLIP * 1000
        if not cases:
            check_intrinsics(root, tables["camMat"], faults, frames)
            check_points(root, points, faults, frames)
        self._intrinsics = torch.from_numpy(tables["camMat"])
        self._root = torch.from_numpy(points[:, 0].astype(np.float32))
        self._joints: Tensor | None = None
        self._vertices: Tensor | None = None
        self._boxes: Tensor | None = None
        self._parameters: list[Tensor] | None = None
        if self.split == "evaluation":
            self._boxes = torch.from_numpy(tables["handBoundingBox"].astype(np.float32))
        else:
            self._joints = torch.from_numpy(points[:, HO3D_TO_FREIHAND].astype(np.float32))
            if with_mano:
                self._parameters = [
                    torch.from_numpy(tables[name]) for name in ("handPose", "handBeta", "handTrans")
                ]

    def _read_released(self, whole: bool, faults: Faults, cache: Path | None) -> None:
        """Set joints and vertices of the evaluation split where the files exist."""
        paths = {name: self.folder / f"evaluation_{name}.json" for name in ("xyz", "verts")}
        shapes = {"xyz": (21, 3), "verts": (VERTICES, 3)}
        found: dict[str, np.ndarray] = {}
        for name, path in paths.items():
            table = read_table(path, faults, shapes[name], 1000.0, cache=cache) if path.exists() else None
            if table is not None:
                found[name] = table * FLIP.astype(np.float32)
                check_points(path, found[name], faults)
        frames = {self.folder / "evaluation.txt": len(self.ids)}
        lengths = frames | {paths[name]: len(table) for name, table in found.items()}
        faults.add_lengths(lengths, self.folder / "evaluation.txt")
        if "xyz" in found:
            wrist = torch.from_numpy(found["xyz"][:, 0])
            if whole and len(wrist) == len(self._root):
                away = (wrist - self._root).norm(dim=-1) > ROOT_TOLERANCE_MM
                far = [f"entry {i}" for i in away.nonzero()[:, 0].tolist()]
                faults.add_many(
                    paths["xyz"],
                    "wrists elsewhere",
                    far,
                    "those of the frames' own files, in evaluation.txt's order",
                )
            self._joints = torch.from_numpy(found["xyz"][:, HO3D_TO_FREIHAND])
        if "verts" in found:
            self._vertices = torch.from_numpy(found["verts"])

    def _missing_for_surfaces(self) -> str | None:
        if self._joints is None:
            return "evaluation_xyz.json is missing: it was released in November 2024"
        if self._mano is None:
            return "HO-3D needs MANO's file for meshes: mano=MANO_RIGHT.pkl"
        if self.split == "evaluation" and self._vertices is None:
            return "evaluation_verts.json is missing: it was released in November 2024"
        return None

    def _vertices_of(self, index: int) -> Tensor | None:
        if self._vertices is not None:
            return self._vertices[index].clone()
        if self._mano is None or self._parameters is None:
            return None
        pose, shape, translation = (table[index, None] for table in self._parameters)
        vertices, _ = self._mano(pose, shape, flat_hand_mean=True)
        return ((vertices[0] + 1000 * translation) * torch.from_numpy(FLIP)).float()


@dataclass(frozen=True)
class HO3DPose:
    """MANO's parameters in HO-3D's form, in OpenGL's camera frame (x right, y up, z backward).

    pose: (48,) axis-angle in radians, from the flat hand.
    shape: (10,).
    translation: (3,) mm, added to MANO's vertices.
    """

    pose: Tensor
    shape: Tensor
    translation: Tensor


def write_ho3d(
    folder: Path | str,
    sequences: Mapping[str, Sequence[HandSample]],
    split: str = "train",
    version: str = "v2",
    poses: Mapping[str, Sequence[HO3DPose]] | None = None,
    released: bool = True,
) -> None:
    """Write samples in HO-3D's format: frames 0000, 0001, ... of each sequence.

    Args:
        folder: to write to.
        sequences: by name, right hands with joints.
        split: "train" or "evaluation"; samples of the latter need a box.
        version: "v2" writes PNG, "v3" JPEG.
        poses: MANO's parameters of the same frames; the train split's vertices are made from them.
        released: whether the evaluation split's joints are written too, and vertices where all samples have
            them.

    Raises:
        ValueError: the format cannot store a sample.
    """
    _check_arguments(split, version)
    if wrong := [name for name in sequences if not re.fullmatch(r"[\w-]+", name)]:
        raise ValueError(f"sequences must be named with letters, digits, - and _, got {wrong}")
    if poses is not None and {n: len(p) for n, p in poses.items()} != {
        n: len(s) for n, s in sequences.items()
    }:
        raise ValueError("poses must be given for the same frames as sequences")
    folder, frames = Path(folder), []
    for name, samples in sequences.items():
        for number, sample in enumerate(samples):
            place = folder / split / name
            meta = _meta(sample, split, None if poses is None else poses[name][number])
            write_image(place / "rgb" / f"{number:04d}{SUFFIX[version]}", sample.image)
            (place / "meta").mkdir(parents=True, exist_ok=True)
            with open(place / "meta" / f"{number:04d}.pkl", "wb") as file:
                pickle.dump(meta, file, protocol=2)
            frames.append(f"{name}/{number:04d}")
    (folder / f"{split}.txt").write_text("\n".join(frames) + "\n")
    every = [sample for samples in sequences.values() for sample in samples]
    if split == "evaluation" and released:
        write_table(folder / "evaluation_xyz.json", [joints_m(s)[FREIHAND_TO_HO3D] * FLIP for s in every])
        if all(sample.vertices is not None for sample in every):
            write_table(folder / "evaluation_verts.json", [vertices_m(sample) * FLIP for sample in every])


def _meta(sample: HandSample, split: str, pose: HO3DPose | None) -> dict[str, np.ndarray]:
    joints = joints_m(sample)[FREIHAND_TO_HO3D] * FLIP
    if split == "evaluation":
        if sample.box is None:
            raise ValueError(f"{sample.id} must have a box for HO-3D's evaluation split, got None")
        return {
            "camMat": sample.intrinsics,
            "handJoints3D": joints[0],
            "handBoundingBox": sample.box.double().numpy(),
        }
    meta = {"camMat": sample.intrinsics, "handJoints3D": joints}
    if pose is not None:
        meta["handPose"] = pose.pose.double().numpy()
        meta["handBeta"] = pose.shape.double().numpy()
        meta["handTrans"] = pose.translation.double().numpy() / 1000
    return meta


def _check_arguments(split: str, version: str) -> None:
    if (version, split) not in OFFICIAL:
        raise ValueError(
            'split must be "train" or "evaluation" and version "v2" or "v3", '
            f"got split={split!r} and version={version!r}"
        )


def _read_frames(path: Path, faults: Faults) -> list[str]:
    """Read the list of annotated frames, without malformed lines."""
    if not path.is_file():
        faults.add(path, "no such file", "a line SEQUENCE/FRAME for each annotated frame")
        return []
    lines = [line.strip() for line in path.read_text(encoding="latin1").splitlines() if line.strip()]
    if not lines:
        faults.add(path, "an empty list", "a line SEQUENCE/FRAME for each annotated frame")
    good = [line for line in lines if re.fullmatch(r"[\w-]+/[\w-]+", line)]
    malformed = [repr(line) for line in lines if not re.fullmatch(r"[\w-]+/[\w-]+", line)]
    faults.add_many(path, "lines of another form", malformed, "SEQUENCE/FRAME, without suffix")
    twice = [line for line, times in Counter(good).items() if times > 1]
    faults.add_many(path, "frames listed more than once", twice, "each frame once")
    return good


def _load_meta(path: Path) -> Mapping[str, Any]:
    meta = load_pickle(path)
    if not isinstance(meta, Mapping):
        raise ValueError(f"holds {type(meta).__name__}, no dictionary")
    return meta


def _field(meta: Mapping[str, Any], name: str, shape: tuple[int, ...]) -> tuple[np.ndarray, str | None]:
    """Return one float64 array of a frame's annotation, NaN if faulty, and its fault or None."""
    nothing = np.full(shape, np.nan)
    value = meta.get(name)
    if value is None:
        return nothing, f"no {name}"
    try:
        array = dense(value)
    except ValueError:
        return nothing, f"a {name} that is no array of numbers"
    # Vectors have shape (n,), (n, 1) or (1, n).
    if array.shape != shape and not (len(shape) == 1 and array.size == shape[0]):
        return nothing, f"a {name} of shape {array.shape}"
    if not np.isfinite(array).all():
        return nothing, f"a {name} that holds NaN or infinity"
    return array.reshape(shape), None
