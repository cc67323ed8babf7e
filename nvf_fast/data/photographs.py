"""Labelled photographs in a user's folder: image, camera and joints, no mesh.

docs/datasets.md describes the format.
"""

from __future__ import annotations

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
from nvf_fast.data.tables import check_intrinsics, check_points, finite_array, form, listed, read_image
from nvf_fast.joint_definitions import Source, to_freihand
from nvf_fast.runtime.files import read_json, read_path

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
        self.folder, self.split = read_path("folder", folder), split
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
        """Return one sample; it has a root and no hand scale, since a teacher's sizes are unknown."""
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
        entries = read_json(path)
    except (ValueError, OSError) as error:
        faults.add(path, f"is cut off or no JSON ({error})", "a JSON list with one entry per photograph")
        faults.check()
    if not isinstance(entries, list) or not entries:
        faults.add(path, "no list or an empty one", "a JSON list with one entry per photograph")
        faults.check()
    rows: dict[str, dict[str, Any]] = {}  # by file
    names: dict[str, str] = {}
    for number, entry in enumerate(entries):
        row, wrong = _read_entry(entry)
        file = row.get("file")
        name = f"entry {number} ({file})" if isinstance(file, str) else f"entry {number}"
        if not wrong and file in rows:
            wrong = [(f"the file of {names[file].split(' (')[0]} again", "each file once")]
        for got, expected in wrong:
            faults.add(path, f"{name}: {got}", expected)
        if not wrong:
            rows[row["file"]], names[row["file"]] = row, name
    present = listed(folder / "crops")
    missing = [f"{file} ({name.split(' (')[0]})" for file, name in names.items() if file not in present]
    faults.add_many(folder / "crops", "images missing", missing, "each file of labels.json")
    if not rows:
        faults.check()
    intrinsics, joints, image_joints = (
        np.array([row[key] for row in rows.values()]) for key in ("K", "joints", "joints_2d")
    )
    in_order = list(names.values())
    check_intrinsics(path, intrinsics, faults, in_order)
    check_points(path, joints, faults, in_order)
    with np.errstate(divide="ignore", invalid="ignore"):
        sizes = np.ptp(image_joints, axis=1).max(1)
        errors = np.linalg.norm(project(joints, intrinsics) - image_joints, axis=-1).mean(1) / sizes
    apart = [f"{in_order[i]} by {errors[i]:.2f}" for i in np.flatnonzero(~(errors <= MOST_REPROJECTION))]
    limit = f"a mean distance of at most {MOST_REPROJECTION:g} of the joints' box, with joints in mm"
    faults.add_many(path, "entries whose joints do not project onto joints_2d", apart, limit)
    faults.check()
    towards = np.append(image_joints, np.ones_like(image_joints[..., :1]), -1)
    on_rays = np.linalg.solve(intrinsics[:, None], towards[..., None])[..., 0] * joints[..., 2:]
    joints = (1 - IMAGE_WEIGHT) * joints + IMAGE_WEIGHT * on_rays
    sides, definitions = (np.array([row[key] for row in rows.values()]) for key in ("side", "definition"))
    left = sides == "left"
    joints[left] = mirrored(joints[left])
    for source in get_args(Source):
        joints[definitions == source] = to_freihand(joints[definitions == source], source)
    joints[left] = mirrored(joints[left])
    projected = project(joints, intrinsics)
    boxes = np.concatenate([projected.min(1), projected.max(1)], axis=1).astype(np.float32)
    return [
        PhotographLabel(
            **{key: row[key] for key in ("file", "source", "licence", "split", "side", "side_score")},
            group=re.sub(r"_?\d*$", "", Path(file).stem) or "photographs",
            intrinsics=intrinsics[index],
            joints=joints[index].astype(np.float32),
            box=boxes[index],
        )
        for index, (file, row) in enumerate(rows.items())
    ]


def _read_entry(entry: object) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Return the entry's values and its faults: the value found and the expected one."""
    if not isinstance(entry, Mapping):
        return {}, [(f"is no object but {type(entry).__name__}", "an object with file, K, joints, ...")]
    row: dict[str, Any] = {"definition": "mediapipe", "side_score": 1.0, **entry}
    checks: list[tuple[str, bool, str]] = [
        (key, isinstance(row.get(key), str) and bool(row[key].strip()), "text")
        for key in ("file", "source", "licence")
    ]
    if checks[0][1]:
        alone = Path(row["file"]).name == row["file"]
        checks.append(("file", alone, "the name of an image in crops, without a folder"))
    choices = {"side": SIDES, "split": SPLITS, "definition": get_args(Source)}
    for key, allowed in choices.items():
        checks.append((key, row.get(key) in allowed, " or ".join(f'"{name}"' for name in allowed)))
    score = row["side_score"]
    known = isinstance(score, int | float) and not isinstance(score, bool) and 0 <= score <= 1
    checks.append(("side_score", known, "a number from 0 to 1"))
    wrong = [
        (f"{key} is {repr(row[key]) if key in row else 'missing'}", expected)
        for key, sound, expected in checks
        if not sound
    ]
    for key, shape in (("K", (3, 3)), ("joints", (21, 3)), ("joints_2d", (21, 2))):
        row[key], fault = finite_array(row.get(key), shape)
        if fault:
            wrong.append((f"{key} is {fault}", form(shape)))
    return row, wrong
