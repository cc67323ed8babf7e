"""Faults of damaged data set trees: all of them are reported at once, and no others."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nvf_fast.data import tables
from nvf_fast.data.complement import Complement
from nvf_fast.data.faults import DatasetError, Faults
from nvf_fast.data.folder import FolderDataset
from nvf_fast.data.freihand import FreiHAND
from nvf_fast.data.ho3d import HO3D
from tests.dataset_trees import edit_json, edit_pickle

MANO = "MANO_RIGHT.pkl"
NAN = float("nan")
Opened = Callable[[Path], FolderDataset]
Damage = Callable[[Path], Any]


OPENERS: dict[str, Opened] = {
    "training": lambda root: FreiHAND(root / "freihand", mano=root / MANO),
    "blind": lambda root: FreiHAND(root / "freihand", "evaluation"),
    "evaluation": lambda root: FreiHAND(
        root / "freihand", "evaluation", evaluation_folder=root / "freihand_eval", mano=root / MANO
    ),
    "ho3d": lambda root: HO3D(root / "v2", mano=root / MANO),
    "ho3d_v3": lambda root: HO3D(root / "v3", "train", "v3"),
    "ho3d_evaluation": lambda root: HO3D(root / "v3", "evaluation", "v3"),
    "complement": lambda root: Complement(root / "complement", mano=root / MANO),
}


def unlink(*paths: str) -> Damage:
    return lambda root: [(root / path).unlink() for path in paths]


def write(path: str, content: str | bytes) -> Damage:
    data = content.encode() if isinstance(content, str) else content
    return lambda root: (root / path).write_bytes(data)


def truncate(path: str, fraction: float) -> Damage:
    """Truncate a file to a fraction of its length."""
    return lambda root: os.truncate(root / path, int(fraction * (root / path).stat().st_size))


def json_of(path: str, change: Callable[[Any], Any]) -> Damage:
    return lambda root: edit_json(root / path, change)


def put(path: str, *steps: int, value: Any) -> Damage:
    """Set one number in the nested lists of a JSON file."""

    def change(content: Any) -> None:
        for step in steps[:-1]:
            content = content[step]
        content[steps[-1]] = value

    return json_of(path, change)


def meta_of(path: str, **values: Any) -> Damage:
    return lambda root: edit_pickle(root / path, **values)


def lines_of(path: str, change: Callable[[list[str]], list[str]]) -> Damage:
    return lambda root: (root / path).write_text("\n".join(change((root / path).read_text().splitlines())))


def add_lines(path: str, *lines: str) -> Damage:
    return lines_of(path, lambda before: [*before, *lines])


def copy(path: str, other: str) -> Damage:
    return lambda root: shutil.copy(root / path, root / other)


def all_of(*damages: Damage) -> Damage:
    return lambda root: [damage(root) for damage in damages]


def remove(path: str) -> Damage:
    return lambda root: shutil.rmtree(root / path)


def as_version_3(root: Path) -> None:
    shutil.rmtree(root / "v3")
    shutil.copytree(root / "v2", root / "v3")


def payload(root: Path) -> None:
    class Payload:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {root / 'made'}",)

    (root / "v2/train/SM1/meta/0001.pkl").write_bytes(pickle.dumps({"camMat": Payload()}, protocol=2))


K, XYZ, VERTS, SCALE = (f"freihand/training_{name}.json" for name in ("K", "xyz", "verts", "scale"))
RGB, LIST, META = "freihand/training/rgb", "v2/train.txt", "v2/train/SM1/meta/0001.pkl"
OBJ = "complement/base_pose/pose0000/model_mano/3.obj"
VIEW = "complement/base_pose/pose0000/pic256/view/hand"

DAMAGES: dict[str, list[tuple[Damage, *tuple[str, ...]]]] = {
    "training": [
        (remove("freihand"), "freihand: no such folder; expected the folder that holds"),
        (unlink(XYZ), "training_xyz.json: no such file; expected a JSON"),
        (write(K, ""), "training_K.json: is empty"),
        (truncate(XYZ, 0.5), "training_xyz.json: is cut off or no JSON in"),
        (truncate(K, 0.999), "training_K.json: is cut off or no JSON"),
        (write(XYZ, '{"xyz": []}'), "training_xyz.json: holds no list"),
        (write(VERTS, b"\x93NUMPY\xff\x00"), "verts.json: 'utf-8' codec"),
        (write(SCALE, "[0.02,0.02,0.02][]"), "goes on after the list of 3"),
        (write(K, "[]"), "training_K.json: an empty list; expected one"),
        (json_of(XYZ, lambda rows: rows[:-1]), "xyz.json: 2 entries; expected 3, as training_K.json has"),
        (
            json_of(XYZ, lambda rows: [rows[0][:20], *rows[1:]]),
            "xyz.json: 1 entries of another form: entry 0 is 20 x 3; expected 21 x 3 finite numbers",
        ),
        (put(VERTS, 1, 5, value=[0.1]), "1 entries of another form: entry 1 is no array of numbers"),
        (put(K, 2, 0, 0, value="480"), "training_K.json: 1 entries of another form: entry 2 is no array"),
        (put(XYZ, 1, 4, 2, value=NAN), "1 entries of another form: entry 1 is NaN or infinite"),
        (put(XYZ, 2, 8, 2, value=-0.4), "training_xyz.json: 1 entries behind the camera: entry 2"),
        (
            json_of(XYZ, lambda rows: (1000 * np.array(rows)).tolist()),
            "3 entries farther than 20 m: entry 0, entry 1, entry 2; expected lengths in metres",
        ),
        (put(K, 1, 0, 0, value=0), "1 cameras without a positive focal length: entry 1; expected fx > 0"),
        (
            json_of(K, lambda rows: np.array(rows).mT.tolist()),
            "3 cameras of another form: entry 0, entry 1, entry 2; expected [[fx, s, cx]",
        ),
        (put(SCALE, 0, value=0.0), "training_scale.json: 1 lengths that are not positive: entry 0"),
        (
            unlink(f"{RGB}/00000007.jpg", f"{RGB}/00000002.jpg"),
            "2 images missing: 00000002.jpg, 00000007.jpg; expected 3 of each version of gs, hom,",
        ),
        (remove(RGB), "12 images missing: 00000000.jpg, 00000001.jpg, 00000002.jpg, 00000003.jpg, 00000"),
        (
            copy(f"{RGB}/00000000.jpg", f"{RGB}/00000012.jpg"),
            "1 images too many: 00000012.jpg; expected none past 00000011.jpg for 3 annotations",
        ),
        (unlink(MANO), f"{MANO}: cannot be read ([Errno 2] No such file"),
        (
            all_of(
                put(K, 0, 1, 1, value=-480),
                put(XYZ, 0, 0, 0, value=NAN),
                write(VERTS, "["),
                unlink(f"{RGB}/00000001.jpg"),
                truncate(MANO, 0.1),
            ),
            f"{MANO}: cannot be read",
            "training_xyz.json: 1 entries of another form",
            "training_verts.json: is cut off",
            "training_K.json: 1 cameras without",
            "training/rgb: 1 images missing",
        ),
    ],
    "blind": [(unlink("freihand/evaluation_scale.json"), "evaluation_scale.json: no such file")],
    "evaluation": [
        (unlink("freihand_eval/evaluation_xyz.json"), "freihand_eval/evaluation_xyz.json: no such file"),
        (
            write("freihand_eval/evaluation_K.json", json.dumps([np.eye(3).tolist()] * 3)),
            "evaluation_K.json: other cameras; expected those of the data set's own folder",
        ),
    ],
    "ho3d": [
        (truncate(MANO, 0.7), f"{MANO}: cannot be read ("),
        (unlink(LIST), "train.txt: no such file; expected a line SEQ"),
        (write(LIST, "\n"), "train.txt: an empty list; expected a line"),
        (add_lines(LIST, "SM1/0000.png", "x"), "2 lines of another form: 'SM1/0000.png', 'x'; expected SEQ"),
        (
            lines_of(LIST, lambda lines: [*lines, lines[1]]),
            "train.txt: 1 frames listed more than once: ABF10/0001; expected each frame once",
        ),
        (add_lines(LIST, "MC9/0000", "MC9/0001"), "1 sequences unknown: MC9; expected folders of train/"),
        (
            add_lines(LIST, "SM1/0099"),
            "train: 1 images missing: SM1/0099; expected rgb/NUMBER.png",
            "train: 1 annotations missing: SM1/0099",
        ),
        (
            remove("v2/train/SM1/meta"),
            "3 annotations missing: SM1/0000, SM1/0001, SM1/0002; expected meta/NUMBER.pkl",
        ),
        (truncate(META, 0.6), "train: 1 annotations cannot be read: SM1/0001 ("),
        (payload, "it refers to posix.system, which is not data; nothing was executed"),
        (write(META, pickle.dumps([])), "SM1/0001 (holds list, no dictionary)"),
        (meta_of(META, handJoints3D=None), "1 annotations whose handJoints3D is missing: SM1/0001"),
        (
            meta_of(META, handPose=np.zeros(45)),
            "1 annotations whose handPose is 45: SM1/0001; expected pickles with camMat (3, 3)",
        ),
        (meta_of(META, handTrans=np.full(3, NAN)), "whose handTrans is NaN or infinite: SM1/0001"),
        (meta_of(META, camMat="K"), "whose camMat is no array of numbers: SM1/0001"),
        (meta_of(META, handJoints3D=np.ones((21, 3))), "1 entries behind the camera: SM1/0001"),
        (
            all_of(
                add_lines(LIST, "?"),
                unlink("v2/train/SM1/rgb/0000.png", "v2/train/SM1/meta/0002.pkl", MANO),
                write(META, b"pickle"),
            ),
            f"{MANO}: cannot be read",
            "train.txt: 1 lines of another form: '?'",
            "1 images missing: SM1/0000",
            "1 annotations missing: SM1/0002",
            "1 annotations cannot be read: SM1/0001",
        ),
    ],
    "ho3d_v3": [(as_version_3, 'SM1/0001 and 1 more; expected .jpg, as v3 has them, or version="v2"')],
    "ho3d_evaluation": [
        (
            meta_of("v3/evaluation/SM1/meta/0000.pkl", handJoints3D=-np.ones((21, 3))),
            "evaluation: 1 annotations whose handJoints3D is 21 x 3: SM1/0000",
        ),
        (
            json_of("v3/evaluation_verts.json", lambda rows: rows + rows),
            "evaluation_verts.json: 12 entries; expected 6, as evaluation.txt has",
        ),
        (
            json_of("v3/evaluation_xyz.json", lambda rows: [rows[1], rows[0], *rows[2:]]),
            "2 wrists elsewhere: entry 0, entry 1; expected those of the frames' own",
        ),
    ],
    "complement": [
        (write(MANO, pickle.dumps([1])), "holds list; expected MANO's dict"),
        (
            remove("complement/base_pose/pose0000/pic256"),
            "complement: no images; expected BATCH/.../pic256/FOLDER/NAME.NUMBER.png",
        ),
        (
            lambda root: (root / f"{VIEW}.0006.png").rename(root / f"{VIEW}_6.png"),
            "1 images of another form: base_pose/pose0000/pic256/view/hand_6; expected BATCH",
        ),
        (unlink(OBJ), "pose0000/model_mano: 1 meshes missing: 3.obj"),
        (lines_of(OBJ, lambda rows: rows[1:]), "777 vertices, 778"),
        (lines_of(OBJ, lambda rows: ["v 0 0 nan", *rows[1:]]), "3.obj: vertices with NaN or infinity"),
        (
            add_lines(OBJ, *(f"f 1 {i + 2} {i + 1}" for i in range(1, 15))),
            "3.obj: the surface must be open at the wrist alone, it has 0 openings",
        ),
        (lines_of(OBJ, lambda rows: rows[:778]), "3.obj: no faces, or others than triangles"),
        (add_lines(OBJ, "f 1 2 3 4"), "3.obj: no faces, or others than triangles"),
        (
            all_of(
                copy(f"{VIEW}.0003.png", f"{VIEW}.png"),
                lines_of(OBJ, lambda rows: rows[:700]),
                unlink(OBJ.replace("/3", "/6")),
            ),
            "1 images of another form: base_pose/pose0000/pic256/view/hand",
            "1 meshes missing: 6.obj",
            "3.obj: 700 vertices",
        ),
    ],
}
CASES = [
    pytest.param(opener, damage, faults, id=faults[0])
    for opener, cases in DAMAGES.items()
    for damage, *faults in cases
]


@pytest.fixture(scope="module")
def sound(trees: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound") / "root"
    # One pose suffices and keeps the copies small.
    shutil.copytree(trees, folder, ignore=shutil.ignore_patterns("pose0001"))
    return folder


@pytest.mark.parametrize("opener", OPENERS)
def test_valid_trees(sound: Path, opener: str) -> None:
    data = OPENERS[opener](sound)
    last = len(data) - 1
    sample, again = data[last], pickle.loads(pickle.dumps(data))[last]  # as in a worker process
    assert sample.id == again.id and sample.image.ndim == 3
    for name in ("joints", "vertices"):
        given, same = getattr(sample, name), getattr(again, name)
        assert (given is None) == (same is None)
        if given is not None:
            torch.testing.assert_close(given, same, rtol=0, atol=0)
            given.zero_()
            assert getattr(data[last], name).any(), "samples are copies"
    sample.intrinsics[:] = 0
    assert data[last].intrinsics.any()
    for index in (-1, len(data)):
        with pytest.raises(IndexError, match=f"samples 0 to {last}, got index {index}"):
            data[index]


def test_official_counts(sound: Path) -> None:
    for opened, folder, counts in (
        (FreiHAND, "freihand", "12 samples; expected the official 130240"),
        (HO3D, "v2", "6 samples; expected the official 66034"),
        (Complement, "complement", "2 samples; expected the official 107920"),
    ):
        with pytest.raises(DatasetError, match=counts):
            opened(sound / folder, mano=sound / MANO, official=True)


@pytest.mark.parametrize(("opener", "damage", "expected"), CASES)
def test_damaged_trees(sound: Path, tmp_path: Path, opener: str, damage: Damage, expected: list[str]) -> None:
    root = tmp_path / "root"
    shutil.copytree(sound, root)
    damage(root)
    with pytest.raises(DatasetError) as caught:
        OPENERS[opener](root)
    faults = caught.value.faults
    assert len(faults) == len(expected), faults
    for fault, part in zip(faults, expected, strict=True):
        assert part in fault and "; expected " in fault
    message = str(caught.value)
    assert f"{len(faults)} fault(s)" in message and "https://" in message
    assert all(fault in message for fault in faults)
    assert not (root / "made").exists()


def test_suggests_the_right_folder(sound: Path) -> None:
    for opened, folder, right in (
        (FreiHAND, sound, "freihand"),
        (FreiHAND, sound / "freihand/training", "freihand"),
        (HO3D, sound / "v2/train", "v2"),
        (Complement, sound / "complement/base_pose", "complement"),
    ):
        with pytest.raises(DatasetError, match=rf"a folder without them; .*: {sound / right}\n"):
            opened(folder)
    with pytest.raises(DatasetError, match=r"expected the folder that holds training_K.json or training/rgb"):
        FreiHAND(sound / "v2/train")


@pytest.mark.parametrize("block", [24, 100, 1 << 12])
def test_lists_longer_than_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(tables, "BLOCK", block)
    rows = np.random.default_rng(0).standard_normal(1000)
    path = tmp_path / "rows.json"
    faults = Faults("rows", tmp_path, "https://example.org")
    for separators in ((",", ":"), (" ,\n\t", ":")):
        path.write_text(f" {json.dumps(rows.tolist(), separators=separators)}\n")
        np.testing.assert_array_equal(tables.read_table(path, faults, (), dtype=np.float64), rows)
    faults.check()
    text = path.read_text()
    for end in (block, block + 7, len(text) - 2):
        path.write_text(text[:end])
        assert tables.read_table(path, faults, ()) is None
    with pytest.raises(DatasetError) as caught:
        faults.check()
    assert len(caught.value.faults) == 3 and all("is cut off" in fault for fault in caught.value.faults)
