"""Complement: round trips as right hands, and the published file layout."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from nvf_fast.data.complement import INTRINSICS, Complement
from nvf_fast.data.sample import DamagedImageError
from tests.dataset_trees import complement_samples, mano, write_complement


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("complement")
    write_complement(folder, complement_samples())
    return folder


def test_round_trip(folder: Path) -> None:
    data = Complement(folder, mano=mano())
    assert len(data) == 4 and data.name == "Complement" and data.why_no_surfaces is None
    for index, sample in enumerate(complement_samples()):
        read = data[index]
        pose, number = divmod(index, 2)
        assert read.id == f"base_pose/pose000{pose}/pic256/view/hand.000{3 * number + 3}" == data.ids[index]
        assert torch.equal(read.vertices, sample.vertices)
        # Regressed from float32 and float64 vertices: measured 6e-5 mm.
        torch.testing.assert_close(read.joints, sample.joints, atol=1e-3, rtol=0)
        torch.testing.assert_close(read.root, sample.joints[0], atol=1e-3, rtol=0)
        np.testing.assert_array_equal(read.image, sample.image)
        np.testing.assert_array_equal(read.intrinsics, INTRINSICS)
        assert read.side == "right" and read.box is None
        assert read.hand_scale == pytest.approx(
            float((sample.joints[10] - sample.joints[9]).norm()), abs=1e-3
        )
        mesh = trimesh.Trimesh(read.surface.vertices[0].numpy(), read.surface.faces.numpy(), process=False)
        assert mesh.is_watertight and mesh.volume > 0 and len(mesh.faces) == 1552


def test_published_file_layout(folder: Path) -> None:
    sample = complement_samples()[3]
    stored = np.array(Image.open(folder / "base_pose/pose0001/pic256/view/hand.0006.png"))
    np.testing.assert_array_equal(stored, sample.image[:, ::-1])
    mesh = trimesh.load(folder / "base_pose/pose0001/model_mano/6.obj", process=False)
    mirrored = sample.vertices.numpy() / 1000 * [-1, 1, 1]
    np.testing.assert_allclose(mesh.vertices, mirrored, atol=1e-9)
    assert mesh.faces.shape == (1538, 3) and mesh.vertices.shape == (778, 3)


def test_warns_without_mano(folder: Path) -> None:
    with pytest.warns(UserWarning, match=r"Complement's samples have no joints: .*mano=MANO_RIGHT\.pkl"):
        data = Complement(folder)
    read = data[0]
    assert read.joints is read.root is read.surface is read.hand_scale is None
    assert read.vertices is not None and data.why_no_surfaces


def test_nested_folders(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "base_pose/pose0000", tmp_path / "trans_pose_batch2/a/pic256/b/07")
    data = Complement(tmp_path, mano=mano())
    assert data.ids[0] == "trans_pose_batch2/a/pic256/b/07/pic256/view/hand.0003"
    assert torch.equal(data[1].vertices, complement_samples()[1].vertices)


def test_names_damaged_image_or_mesh(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "data")
    data = Complement(tmp_path / "data", mano=mano())
    pose = tmp_path / "data/base_pose/pose0001"
    (pose / "pic256/view/hand.0003.png").write_bytes(b"")
    with pytest.raises(DamagedImageError, match=r"hand\.0003\.png cannot be read"):
        data[2]
    Image.new("RGB", (128, 128)).save(pose / "pic256/view/hand.0003.png")
    with pytest.raises(DamagedImageError, match="is 128 x 128 px; expected 256 x 256"):
        data[2]
    mesh = pose / "model_mano/6.obj"
    lines = mesh.read_text().splitlines()
    for damage, fault in (
        (lines[1:], "777 vertices, 778 are MANO's"),
        (["v 0 nan 1", *lines[1:]], "NaN or infinity"),
        (["v 0 a 1", *lines[1:]], "could not convert"),
        ([], "0 vertices"),
    ):
        mesh.write_text("\n".join(damage))
        with pytest.raises(DamagedImageError, match=rf"6\.obj cannot be read: .*{fault}"):
            data[3]
    assert data[0].image.shape == (256, 256, 3)
