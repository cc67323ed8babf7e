"""Labelled photographs in a user's folder: image, camera and joints, no mesh.

docs/datasets.md describes the format.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from nvf_fast.camera import project
from nvf_fast.data.faults import Faults
from nvf_fast.data.folder import FolderDataset
from nvf_fast.data.sample import HandSample
from nvf_fast.data.tables import check_intrinsics, check_points, listed, read_image
from nvf_fast.joint_definitions import Source, to_freihand

PAGE = "labels.json and the images in crops"
SPLITS = ("train", "val")
SIDES = ("right", "left")
RELIABLE_SIDE = 0.8
"""Least `side_score` of a photograph with a known side."""
MOST_REPROJECTION = 0.1  # mean distance of projected joints from joints_2d, over the longer side of their box
IMAGE_WEIGHT = 0.5  # of joints_2d, beside the projection of the joints


@dataclass(frozen=True)
class PhotographLabel:
    """The label of one photograph.

    Attributes:
        file: name of the image in `crops/`, GROUP_NUMBER with its ending.
        group: photographs of one kind, the file's name without its number.
        source: the collection that the photograph comes from.
        licence: of the photograph.
        split: "train" or "val".
        side: "right" or "left", as seen in the image.
        side_score: in [0, 1]; below `RELIABLE_SIDE` the side is a guess.
        intrinsics: (3, 3) float64 px.
        joints: (21, 3) float32 mm in the camera's frame, FreiHAND's order and definition.
        box: (4,) float32 px, (x0, y0, x1, y1) around the projected joints.
    """

    file: str
    group: str
    source: str
    licence: str
    split: str
    side: str
    side_score: float
    intrinsics: np.ndarray
    joints: np.ndarray
    box: np.ndarray


class Photographs(FolderDataset):
    """Labelled photographs of one hand each.

    Joints lie at the depths of the file's `joints`, halfway between these and the rays through `joints_2d`,
    which averages the errors of two estimates, and are then converted to FreiHAND's definition.

    Args:
        folder: holds `labels.json` and the folder `crops` with the images.
        split: "train", "val" or "all".
        leave_out: groups and files to exclude, such as "xmore_frames" or "rooms_00017.jpg".

    Attributes:
        labels: one `PhotographLabel` per sample, in the file's order.

    Raises:
        DatasetError: the files have faults; the message lists all.
        ValueError: `leave_out` names an unknown group or file.
    """

    name = "Photographs"
    why_no_surfaces = "photographs are labelled with joints alone"

    def __init__(
        self,
        folder: Path | str,
        split: Literal["train", "val", "all"] = "train",
        leave_out: Collection[str] = (),
    ) -> None:
        if split not in (*SPLITS, "all"):
            raise ValueError(f'split must be "train", "val" or "all", got {split!r}')
        self.folder, self.split = Path(folder), split
        faults = Faults(self.name, self.folder, PAGE)
        faults.check_place(["labels.json"])
        labels = _read_labels(self.folder, faults)
        known = {name for label in labels for name in (label.group, label.file)}
        if unknown := sorted(set(leave_out) - known):
            groups = sorted({label.group for label in labels})
            raise ValueError(f"leave_out names neither files nor groups of labels.json: {unknown}; {groups}")
        self.labels = [
            label
            for label in labels
            if split in (label.split, "all") and not {label.group, label.file} & set(leave_out)
        ]
        if not self.labels:
            faults.add(self.folder / "labels.json", f"no photograph of the split {split!r}", "at least one")
        faults.check()
        self.ids = [f"{label.split}/{label.file}" for label in self.labels]
        self.expected = len(self.ids)

    def __getitem__(self, index: int) -> HandSample:
        """Return one sample; it has a root and no hand scale, since a teacher's sizes are unknown.

        Raises:
            DamagedImageError: its image cannot be read.
        """
        label = self.labels[self._checked(index)]
        joints = torch.from_numpy(label.joints.copy())
        return HandSample(
            id=self.ids[index],
            image=self.image(index),
            intrinsics=label.intrinsics.copy(),
            root=joints[0],
            joints=joints,
            side=label.side,
            box=torch.from_numpy(label.box.copy()),
        )

    def image(self, index: int) -> np.ndarray:
        """Read the image of one sample, (H, W, 3) uint8 RGB."""
        return read_image(self.folder / "crops" / self.labels[index].file)


def mirrored(joints: np.ndarray) -> np.ndarray:
    """Joints (..., 3) of the mirror image, whose camera lies at the mirrored principal point."""
    return joints * np.array([-1, 1, 1], joints.dtype)


def _read_labels(folder: Path, faults: Faults) -> list[PhotographLabel]:
    path = folder / "labels.json"
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        faults.add(path, f"is cut off or no JSON ({error})", "a JSON list with one entry per photograph")
        faults.check()
    if not isinstance(entries, list) or not entries:
        faults.add(path, "no list or an empty one", "a JSON list with one entry per photograph")
        faults.check()
    present = listed(folder / "crops")
    names = [_name(number, entry) for number, entry in enumerate(entries)]
    rows: list[dict[str, Any] | None] = []
    missing: list[str] = []
    seen: dict[str, int] = {}
    for number, (name, entry) in enumerate(zip(names, entries, strict=True)):
        row, wrong = _checked_entry(entry)
        for got, expected in wrong:
            faults.add(path, f"{name}: {got}", expected)
        rows.append(None if wrong else row)
        if wrong:
            continue
        if row["file"] in seen:
            faults.add(path, f"{name}: the file of entry {seen[row['file']]} again", "each file once")
        elif row["file"] not in present:
            missing.append(f"{row['file']} ({name.split(' (')[0]})")
        seen.setdefault(row["file"], number)
    faults.add_many(folder / "crops", "images missing", missing, "each file of labels.json")
    whole = [(name, row) for name, row in zip(names, rows, strict=True) if row is not None]
    if not whole:
        faults.check()
    names = [name for name, _ in whole]
    intrinsics = np.array([row["K"] for _, row in whole])
    joints = np.array([row["joints"] for _, row in whole])
    image_joints = np.array([row["joints_2d"] for _, row in whole])
    check_intrinsics(path, intrinsics, faults, names)
    check_points(path, joints, faults, names)
    with np.errstate(divide="ignore", invalid="ignore"):
        projected = project(joints, intrinsics)
        sizes = np.ptp(image_joints, axis=1).max(1)
        errors = np.linalg.norm(projected - image_joints, axis=-1).mean(1) / sizes
    apart = [f"{names[i]} by {errors[i]:.2f}" for i in np.flatnonzero(~(errors <= MOST_REPROJECTION))]
    faults.add_many(
        path,
        "entries whose joints do not project onto joints_2d",
        apart,
        f"a mean distance of at most {MOST_REPROJECTION:g} of the joints' box, with joints in mm",
    )
    faults.check()
    towards = np.linalg.solve(
        intrinsics[:, None], np.append(image_joints, np.ones_like(image_joints[..., :1]), -1)[..., None]
    )
    on_rays = towards[..., 0] * joints[..., 2:]
    joints = (1 - IMAGE_WEIGHT) * joints + IMAGE_WEIGHT * on_rays
    left = np.array([row["side"] == "left" for _, row in whole])
    joints[left] = mirrored(joints[left])
    for source in get_args(Source):
        of_source = [index for index, (_, row) in enumerate(whole) if row["definition"] == source]
        if of_source:
            joints[of_source] = to_freihand(joints[of_source], source)
    joints[left] = mirrored(joints[left])
    projected = project(joints, intrinsics)
    boxes = np.concatenate([projected.min(1), projected.max(1)], axis=1)
    return [
        PhotographLabel(
            **{key: row[key] for key in ("file", "source", "licence", "split", "side", "side_score")},
            group=_group(row["file"]),
            intrinsics=intrinsics[index],
            joints=joints[index].astype(np.float32),
            box=boxes[index].astype(np.float32),
        )
        for index, (_, row) in enumerate(whole)
    ]


def _group(file: str) -> str:
    return re.sub(r"_?\d*$", "", Path(file).stem) or "photographs"


def _name(number: int, entry: object) -> str:
    file = entry.get("file") if isinstance(entry, Mapping) else None
    return f"entry {number} ({file})" if isinstance(file, str) else f"entry {number}"


def _checked_entry(entry: object) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Return the entry's values and its faults: the value found and the expected one."""
    if not isinstance(entry, Mapping):
        return {}, [(f"is no object but {type(entry).__name__}", "an object with file, K, joints, ...")]
    row: dict[str, Any] = {}
    wrong: list[tuple[str, str]] = []
    for key in ("file", "source", "licence"):
        row[key] = entry.get(key)
        if not isinstance(row[key], str) or not row[key].strip():
            wrong.append((f"{key} is {_shown(entry, key)}", "text"))
    if isinstance(row["file"], str) and Path(row["file"]).name != row["file"]:
        wrong.append((f"file is {row['file']!r}", "the name of an image in crops, without a folder"))
    choices = (("side", SIDES, None), ("split", SPLITS, None), ("definition", get_args(Source), "mediapipe"))
    for key, allowed, default in choices:
        row[key] = entry.get(key, default)
        if row[key] not in allowed:
            wrong.append((f"{key} is {_shown(entry, key)}", " or ".join(f'"{name}"' for name in allowed)))
    score = row["side_score"] = entry.get("side_score", 1.0)
    if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1:
        wrong.append((f"side_score is {_shown(entry, 'side_score')}", "a number from 0 to 1"))
    for key, shape in (("K", (3, 3)), ("joints", (21, 3)), ("joints_2d", (21, 2))):
        row[key], fault = _array(entry, key, shape)
        wrong.extend(fault)
    return row, wrong


def _array(
    entry: Mapping[str, Any], key: str, shape: tuple[int, ...]
) -> tuple[np.ndarray | None, list[tuple[str, str]]]:
    expected = f"finite numbers, {' x '.join(map(str, shape))}"
    try:
        array = np.array(entry[key])
    except KeyError:
        return None, [(f"{key} is missing", expected)]
    except ValueError:
        return None, [(f"{key} is ragged", expected)]
    if array.dtype.kind not in "if" or array.shape != shape:
        return None, [
            (f"{key} is {' x '.join(map(str, array.shape)) or 'no array'} of {array.dtype}", expected)
        ]
    if not np.isfinite(array).all():
        return None, [(f"{key} has NaN or infinity", expected)]
    return array.astype(np.float64), []


def _shown(entry: Mapping[str, Any], key: str) -> str:
    return repr(entry[key]) if key in entry else "missing"
