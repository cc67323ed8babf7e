"""Submissions, read back as the official evaluators read them."""

from __future__ import annotations

import json
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from nvf_fast.evaluation import metrics
from nvf_fast.evaluation.metrics import Floats
from nvf_fast.evaluation.submission import FORMATS, read_submission, write_submission
from tests.sampled_hands import sample_hands

COUNT = 3
# HO-3D's order in FreiHAND's indices: wrist; index, middle, little, ring, thumb without tips; tips of thumb,
# index, middle, ring, little. FreiHAND's fingers are thumb (1 to 4), index, middle, ring, little (17 to 20).
HO3D_ORDER = [0, *range(5, 8), *range(9, 12), *range(17, 20), *range(13, 16), *range(1, 4), 4, 8, 12, 16, 20]


@pytest.fixture(scope="module")
def truth() -> Floats:
    return sample_hands(COUNT, torch.Generator().manual_seed(0)).joints.double().numpy()


@pytest.fixture(scope="module")
def joints(truth: Floats) -> Floats:
    """Predicted joints, float32 as from the estimator, with errors of about 10 mm."""
    noise = 10 * np.random.default_rng(0).standard_normal(truth.shape)
    return (truth + noise).astype(np.float32)


@pytest.fixture(scope="module")
def vertices(truth: Floats) -> Floats:
    return truth[:, :1] + 60 * np.random.default_rng(1).standard_normal((COUNT, 778, 3))


def official(path: Path, count: int) -> tuple[Floats, Floats]:
    """Load pred.json as the evaluators do; each entry is an array in metres."""
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["pred.json"]
        with archive.open("pred.json") as file:
            content = json.load(file)
    assert isinstance(content, list) and len(content) == 2
    for part, shape in zip(content, ((21, 3), (778, 3)), strict=True):
        assert isinstance(part, list) and len(part) == count
        assert {np.array(entry).shape for entry in part} == {shape}
        assert all(isinstance(value, float) for value in np.array(part[0], dtype=object).ravel())
    return np.array(content[0]), np.array(content[1])


def test_freihand(tmp_path: Path, truth: Floats, joints: Floats, vertices: Floats) -> None:
    path = tmp_path / "new/pred.zip"
    write_submission(path, joints, "freihand", iter(vertices), official=False)
    assert [file.name for file in path.parent.iterdir()] == ["pred.zip"]
    metres, mesh = official(path, COUNT)
    assert (metres[..., 2] > 0).all() and np.abs(metres).max() < 2
    np.testing.assert_allclose(mesh * 1000, vertices, rtol=1e-14)
    # Values are not rounded, so scores before and after the round trip are equal.
    before = metrics.freihand_scores(joints, truth, vertices, vertices + 3)
    after = metrics.freihand_scores(metres * 1000, truth, mesh * 1000, vertices + 3)
    assert after == pytest.approx(before, abs=1e-9)
    back, mesh = read_submission(path, "freihand")
    np.testing.assert_allclose(back, joints, rtol=1e-14)
    np.testing.assert_allclose(mesh, vertices, rtol=1e-14)


def test_ho3d(tmp_path: Path, truth: Floats, joints: Floats, vertices: Floats) -> None:
    path = tmp_path / "pred.zip"
    write_submission(path, joints, "ho3d-v3", vertices, official=False)
    metres, mesh = official(path, COUNT)
    assert not (metres[:, :, 2] > 0).all() and (metres[..., 2] < 0).all(), "the server refuses OpenCV's axes"
    np.testing.assert_allclose(metres[..., 1] * -1000, joints[:, HO3D_ORDER, 1], rtol=1e-14)
    np.testing.assert_allclose(mesh * [1000, -1000, -1000], vertices, rtol=1e-14)
    # The evaluator compares in OpenGL's frame and HO-3D's order; errors do not change with the frame.
    true_metres = truth[:, HO3D_ORDER] * [1e-3, -1e-3, -1e-3]
    after = metrics.ho3d_scores(metres * 1000, true_metres * 1000)
    before = metrics.ho3d_scores(joints[:, HO3D_ORDER], truth[:, HO3D_ORDER])
    assert after == pytest.approx(before, abs=1e-9)
    back, _ = read_submission(path, "ho3d-v3")
    np.testing.assert_allclose(back, joints, rtol=1e-14)


def test_equal_joints_give_equal_files_with_zeros_as_vertices(tmp_path: Path, joints: Floats) -> None:
    for name in ("first.zip", "second.zip"):
        write_submission(tmp_path / name, joints, "ho3d-v2", official=False)
    assert (tmp_path / "first.zip").read_bytes() == (tmp_path / "second.zip").read_bytes()
    assert not official(tmp_path / "first.zip", COUNT)[1].any()


def test_refuses_other_lengths(tmp_path: Path, joints: Floats) -> None:
    path = tmp_path / "pred.zip"
    assert {server: form.images for server, form in FORMATS.items()} == {
        "freihand": 3960, "ho3d-v2": 11_524, "ho3d-v3": 20_137
    }  # fmt: skip
    for server, form in FORMATS.items():
        with pytest.raises(ValueError, match=f"has {form.images} images, got {COUNT} poses"):
            write_submission(path, joints, server)
    assert not path.exists()
    write_submission(path, np.resize(joints, (3960, 21, 3)), "freihand")
    official(path, 3960)


def test_refuses_invalid_joints_and_meshes(tmp_path: Path, joints: Floats, vertices: Floats) -> None:
    path = tmp_path / "pred.zip"
    behind, missing = joints * [1, -1, -1], joints.copy()
    missing[2, 3] = np.nan
    cases = {
        "behind the camera": behind,
        "not finite": missing,
        "must be mm, not metres": joints / 1000,
        r"got shape \(3, 20, 3\)": joints[:, :20],
        r"got shape \(0, 21, 3\)": joints[:0],
    }
    for message, wrong in cases.items():
        with pytest.raises(ValueError, match=message):
            write_submission(path, wrong, "ho3d-v2", official=False)
    for message, wrong in {
        "3 poses need as many meshes, got 2": vertices[:2],
        "3 poses need as many meshes, got 4": np.resize(vertices, (4, 778, 3)),
        r"vertices of image 0 must be \(778, 3\)": vertices[:, :700],
    }.items():
        with pytest.raises(ValueError, match=message):
            write_submission(path, joints, "freihand", wrong, official=False)
    with pytest.raises(ValueError, match=r"is a \.zip file"):
        write_submission(tmp_path / "pred.json", joints, "freihand", official=False)
    assert list(tmp_path.iterdir()) == [], "no unfinished file is left"


def test_refuses_to_read_other_files(tmp_path: Path) -> None:
    path = tmp_path / "pred.zip"
    path.write_bytes(b"no zip")
    with pytest.raises(ValueError, match="not a zip file"):
        read_submission(path, "freihand")
    contents = {
        "nothing else, holds": {"folder/pred.json": []},
        "two lists of one length": {"pred.json": [[], [1]]},
        r"joints must be \(N, 21, 3\)": {"pred.json": [[[[0.0] * 3] * 20], [[[0.0] * 3]]]},
    }
    for message, members in contents.items():
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, json.dumps(content))
        with pytest.raises(ValueError, match=message):
            read_submission(path, "freihand")


def test_memory_does_not_grow_with_the_meshes(tmp_path: Path, joints: Floats, vertices: Floats) -> None:
    count = 80
    tracemalloc.start()
    write_submission(
        tmp_path / "pred.zip", np.resize(joints, (count, 21, 3)), "freihand",
        (vertices[number % COUNT] for number in range(count)), official=False,
    )  # fmt: skip
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    with zipfile.ZipFile(tmp_path / "pred.zip") as archive:
        size = archive.getinfo("pred.json").file_size
    # Measured 0.9 MB, of a file of 4.1 MB.
    assert peak < size / 4
