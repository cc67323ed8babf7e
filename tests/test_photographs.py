"""Reading labelled photographs: values, and faults by file and entry."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nvf_fast.data.faults import DatasetError
from nvf_fast.data.photographs import Photographs, mirrored
from nvf_fast.data.sample import DamagedImageError
from nvf_fast.joint_definitions import to_freihand
from tests.photograph_cases import photograph_labels, write_photographs

Entries = list[dict[str, Any]]


def test_samples(tmp_path: Path) -> None:
    entries = photograph_labels(6)
    data = Photographs(write_photographs(tmp_path, entries), "all")
    assert len(data) == 6 and data.ids[3] == "val/rooms_00003.png"
    assert Counter(label.group for label in data.labels) == {"rooms": 4, "streets": 2}
    for entry, sample in zip(entries, (data[i] for i in range(6)), strict=True):
        assert sample.image.shape == (240, 240, 3) and sample.image.dtype == np.uint8
        assert sample.side == entry["side"] and sample.hand_scale is None and sample.surface is None
        assert sample.joints is not None and sample.root is not None and sample.box is not None
        np.testing.assert_allclose(sample.intrinsics, entry["K"])
        np.testing.assert_allclose(sample.joints, entry["joints"], rtol=1e-5)
        np.testing.assert_array_equal(sample.root, sample.joints[0])
        joints_2d = np.array(entry["joints_2d"])
        np.testing.assert_allclose(sample.box, [*joints_2d.min(0), *joints_2d.max(0)], rtol=1e-5)


def test_splits_and_groups(tmp_path: Path) -> None:
    folder = write_photographs(tmp_path, photograph_labels(6))
    numbers = [int(label.file[-9:-4]) for label in Photographs(folder).labels]
    assert numbers == [0, 1, 2, 4, 5]
    assert Photographs(folder, "val").ids == ["val/rooms_00003.png"]
    assert {label.group for label in Photographs(folder, leave_out=["rooms"]).labels} == {"streets"}
    assert len(Photographs(folder, leave_out=["rooms", "streets_00004.png"])) == 1
    assert Photographs(folder).fingerprint != Photographs(folder, "val").fingerprint
    with pytest.raises(ValueError, match=r"files nor groups of labels.json: \['attics'\]"):
        Photographs(folder, leave_out=["attics"])
    with pytest.raises(ValueError, match="split must be"):
        Photographs(folder, "test")  # type: ignore[arg-type]
    with pytest.raises(DatasetError, match="no photograph of the split 'val'"):
        Photographs(folder, "val", leave_out=["rooms"])


@pytest.mark.parametrize("side", ["right", "left"])
def test_converts_teacher_joints(tmp_path: Path, side: str) -> None:
    entry = photograph_labels(2)[("right", "left").index(side)]
    del entry["definition"]  # MediaPipe's definition by default
    joints = np.array(entry["joints"])
    right = mirrored(joints) if side == "left" else joints
    expected = to_freihand(right, "mediapipe")
    expected = mirrored(expected) if side == "left" else expected
    sample = Photographs(write_photographs(tmp_path, [entry]))[0]
    assert sample.joints is not None
    np.testing.assert_allclose(sample.joints, expected, rtol=1e-5)
    assert np.abs(sample.joints.numpy() - joints).max() > 2


def test_joints_halfway_to_their_rays(tmp_path: Path) -> None:
    entry = photograph_labels(1)[0]
    entry["joints_2d"][8][0] += 4
    sample = Photographs(write_photographs(tmp_path, [entry]))[0]
    assert sample.joints is not None
    homogeneous = sample.joints.numpy() @ np.array(entry["K"]).T
    projected = homogeneous[:, :2] / homogeneous[:, 2:]
    expected = np.array(entry["joints_2d"])
    expected[8, 0] -= 2
    np.testing.assert_allclose(projected, expected, atol=1e-3)
    np.testing.assert_allclose(sample.joints[:, 2], np.array(entry["joints"])[:, 2], rtol=1e-6)


def _set(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda entry: entry.update({key: value})


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (lambda entry: entry.pop("K"), "K is missing; expected 3 x 3 finite numbers"),
        (_set("joints", [[0, 0, 400]] * 20), "joints is 20 x 3; expected 21 x 3 finite numbers"),
        (_set("joints_2d", [[0, 0]] * 20 + [[0]]), "joints_2d is no array of numbers; expected 21 x 2"),
        (_set("K", [[float("nan")] * 3] * 3), "K is NaN or infinite; expected 3 x 3 finite numbers"),
        (_set("side", "both"), "side is 'both'; expected \"right\" or \"left\""),
        (_set("side_score", 1.5), "side_score is 1.5; expected a number from 0 to 1"),
        (_set("split", "test"), "split is 'test'; expected \"train\" or \"val\""),
        (_set("licence", " "), "licence is ' '; expected text"),
        (_set("file", "../x.png"), "file is '../x.png'; expected the name of an image in crops"),
        (_set("definition", "smplx"), "definition is 'smplx'; expected \"freihand\" or"),
    ],
)  # fmt: skip
def test_names_damaged_entries(tmp_path: Path, damage: Callable[[dict[str, Any]], None], fault: str) -> None:
    entries = photograph_labels(3)
    write_photographs(tmp_path, entries)
    damage(entries[1])
    (tmp_path / "labels.json").write_text(json.dumps(entries))
    with pytest.raises(DatasetError) as caught:
        Photographs(tmp_path)
    assert len(caught.value.faults) == 1
    assert caught.value.faults[0].startswith(f"labels.json: entry 1 ({entries[1]['file']}): {fault}")


def _scaled_to_metres(entries: Entries) -> None:
    entries[2]["joints"] = (np.array(entries[2]["joints"]) + [0, 0, 500]).tolist()


def _behind(entries: Entries) -> None:
    entries[0]["joints"][3][2] = -1.0
    entries[0]["joints_2d"] = entries[1]["joints_2d"]


@pytest.mark.parametrize(
    ("damage", "faults"),
    [
        (
            _scaled_to_metres,
            [r"labels.json: 1 entries whose joints do not project onto .*: entry 2 \(rooms_00002.png\) by"],
        ),
        (
            _behind,
            [r"labels.json: 1 entries behind the camera: entry 0 \(rooms_00000.png\)", "do not project onto"],
        ),
        (
            lambda entries: entries[1].update(file="rooms_00000.png"),
            [r"labels.json: entry 1 \(rooms_00000.png\): the file of entry 0 again; expected each file once"],
        ),
        (
            lambda entries: entries[2].update(file="rooms_00099.png"),
            [r"crops: 1 images missing: rooms_00099.png \(entry 2\); expected each file of labels.json"],
        ),
        (
            lambda entries: entries[0]["K"][0].__setitem__(0, -3.0),
            ["cameras without a positive focal length: entry 0", "do not project onto"],
        ),
    ],
)  # fmt: skip
def test_names_inconsistent_entries(
    tmp_path: Path, damage: Callable[[Entries], None], faults: list[str]
) -> None:
    entries = photograph_labels(3)
    write_photographs(tmp_path, entries)
    damage(entries)
    (tmp_path / "labels.json").write_text(json.dumps(entries))
    with pytest.raises(DatasetError) as caught:
        Photographs(tmp_path)
    assert len(caught.value.faults) == len(faults)
    for fault in faults:
        with pytest.raises(DatasetError, match=fault):
            Photographs(tmp_path)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[{", "is cut off or no JSON"),
        ("[]", "no list or an empty one"),
        ("[3]", "entry 0: is no object but int"),
    ],
)
def test_damaged_lists(tmp_path: Path, text: str, fault: str) -> None:
    (tmp_path / "labels.json").write_text(text)
    with pytest.raises(DatasetError, match=fault):
        Photographs(tmp_path)


def test_folder_without_labels_and_damaged_image(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"the folder that holds labels\.json"):
        Photographs(tmp_path)
    folder = write_photographs(tmp_path / "photos", photograph_labels(1))
    with pytest.raises(DatasetError, match=r"labels.json: .*photos"):
        Photographs(tmp_path)
    (folder / "crops" / "rooms_00000.png").write_bytes(b"no image")
    data = Photographs(folder)
    with pytest.raises(DamagedImageError, match=r"rooms_00000\.png cannot be read"):
        data[0]
    with pytest.raises(IndexError):
        data[1]


def test_shared_photographs(shared_dir: Path) -> None:
    folder = shared_dir / "photographs"
    if not folder.is_dir():
        pytest.skip("no photographs there")
    data = Photographs(folder, "val", leave_out=["xmore_gestures"])
    assert len(data) == 555 and "xmore_gestures" not in {label.group for label in data.labels}
    sample = data[0]
    assert sample.joints is not None and sample.box is not None
    homogeneous = sample.joints.numpy() @ sample.intrinsics.T
    projected = homogeneous[:, :2] / homogeneous[:, 2:]
    low, high = sample.box.numpy().reshape(2, 2)
    # Half of the teacher's deviation plus the conversion stays within a tenth of the box.
    slack = 0.1 * (high - low).max()
    assert (projected > low - slack).all() and (projected < high + slack).all()
