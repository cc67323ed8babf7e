"""HO-3D v2 and v3: round trips in our frame, order and units, and the published file format."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from nvf_fast.data.ho3d import HO3D
from nvf_fast.data.mano import FINGERTIPS
from nvf_fast.data.sample import DamagedImageError, HandSample
from tests.dataset_trees import HANDS, ho3d_sequences, mano, write_ho3d

JPEG_LEVELS = 6  # largest difference of any pixel of the smooth images; measured 3 to 4 at quality 95


def written() -> list[HandSample]:
    return [sample for samples in ho3d_sequences()[0].values() for sample in samples]


@pytest.mark.parametrize("version", ["v2", "v3"])
@pytest.mark.parametrize("split", ["train", "evaluation"])
def test_round_trip(trees: Path, version: str, split: str) -> None:
    data = HO3D(trees / version, split, version, mano=mano())
    assert len(data) == 2 * HANDS and data.name == f"HO-3D {version}" and data.split == split
    levels = 0 if version == "v2" else JPEG_LEVELS
    for index, sample in enumerate(written()):
        read = data[index]
        assert read.id == data.ids[index] == f"{split}/{('ABF10', 'SM1')[index // 3]}/{index % 3:04d}"
        torch.testing.assert_close(read.joints, sample.joints, atol=1e-3, rtol=0)
        torch.testing.assert_close(read.root, sample.root, atol=1e-3, rtol=0)
        torch.testing.assert_close(read.vertices, sample.vertices, atol=1e-3, rtol=0)
        np.testing.assert_array_equal(read.intrinsics, sample.intrinsics)
        assert read.side == "right"
        assert read.hand_scale == pytest.approx(
            float((sample.joints[10] - sample.joints[9]).norm()), abs=1e-3
        )
        assert np.abs(read.image.astype(int) - sample.image.astype(int)).max() <= levels
        assert read.surface is not None and torch.equal(read.surface.vertices[0], read.vertices)
        if split == "train":
            assert read.box is None
        else:
            assert torch.equal(read.box, sample.box)


def test_published_file_layout(trees: Path) -> None:
    meta = pickle.loads((trees / "v2/train/SM1/meta/0001.pkl").read_bytes())
    sample, pose = ho3d_sequences()[0]["SM1"][1], ho3d_sequences()[1]["SM1"][1]
    assert {key: value.shape for key, value in meta.items()} == {
        "camMat": (3, 3), "handJoints3D": (21, 3), "handPose": (48,), "handBeta": (10,), "handTrans": (3,),
    }  # fmt: skip
    joints = meta["handJoints3D"]
    assert (joints[:, 2] < -0.3).all(), "OpenGL: the hand lies at negative z, in metres"
    vertices, kinematic = mano()(pose.pose[None], pose.shape[None], flat_hand_mean=True)
    placed = (kinematic[0] + pose.translation) / 1000
    np.testing.assert_allclose(joints[:16], placed, atol=1e-6)
    tips = (vertices[0, FINGERTIPS["ho3d"]] + pose.translation) / 1000
    np.testing.assert_allclose(joints[16:], tips, atol=1e-6)
    projected = joints * [1, -1, -1] @ meta["camMat"].T
    expected = sample.joints[0].double().numpy() @ sample.intrinsics.T
    np.testing.assert_allclose(projected[0, :2] / projected[0, 2], expected[:2] / expected[2], atol=1e-6)
    meta = pickle.loads((trees / "v3/evaluation/SM1/meta/0001.pkl").read_bytes())
    assert meta["handJoints3D"].shape == (3,) and meta["handBoundingBox"].shape == (4,)
    lines = (trees / "v2/evaluation.txt").read_text().splitlines()
    assert lines == [f"{name}/{number:04d}" for name in ("ABF10", "SM1") for number in range(3)]
    assert (trees / "v2/train/SM1/rgb/0001.png").exists() and (trees / "v3/train/SM1/rgb/0001.jpg").exists()


def test_unreleased_evaluation_frames(tmp_path: Path) -> None:
    sequences, _ = ho3d_sequences()
    write_ho3d(tmp_path, sequences, "evaluation", "v3", released=False)
    data = HO3D(tmp_path, "evaluation", "v3", mano=mano())
    for index, sample in enumerate(written()):
        read = data[index]
        assert read.joints is read.vertices is read.surface is read.hand_scale is None
        torch.testing.assert_close(read.root, sample.root, atol=1e-3, rtol=0)
        assert torch.equal(read.box, sample.box)
    assert "evaluation_xyz.json is missing" in data.describe()


def test_train_meshes_need_mano(trees: Path) -> None:
    data = HO3D(trees / "v2")
    assert data[0].vertices is None and data[0].surface is None and "MANO_RIGHT.pkl" in data.describe()
    released = HO3D(trees / "v2", "evaluation")
    assert released[0].vertices is not None and released[0].surface is None


def test_float32_and_column_vectors(trees: Path, tmp_path: Path) -> None:
    sequences, poses = ho3d_sequences()
    write_ho3d(tmp_path, sequences, "train", "v2", poses)
    for path in tmp_path.glob("train/*/meta/*.pkl"):
        meta = {key: value.astype(np.float32) for key, value in pickle.loads(path.read_bytes()).items()}
        meta = meta | {"handTrans": meta["handTrans"][:, None], "objName": "003_cracker_box", "objLabel": 2}
        path.write_bytes(pickle.dumps(meta, protocol=4))
    data, expected = HO3D(tmp_path, mano=mano()), HO3D(trees / "v2", mano=mano())
    for index in range(len(data)):
        # float32 metres: half a unit in the last place of 0.6 m is 3e-5 mm.
        torch.testing.assert_close(data[index].joints, expected[index].joints, atol=1e-3, rtol=0)
        torch.testing.assert_close(data[index].vertices, expected[index].vertices, atol=1e-3, rtol=0)


def test_ignores_unlisted_frames(tmp_path: Path) -> None:
    sequences, _ = ho3d_sequences()
    write_ho3d(tmp_path, sequences)
    (tmp_path / "train.txt").write_text("SM1/0002\nABF10/0000\n")
    path = tmp_path / "train/SM1/meta/0001.pkl"
    path.write_bytes(pickle.dumps({"handJoints3D": None, "camMat": None}, protocol=2))
    data = HO3D(tmp_path)
    assert data.ids == ["train/SM1/0002", "train/ABF10/0000"]
    torch.testing.assert_close(data[0].joints, sequences["SM1"][2].joints, atol=1e-3, rtol=0)


def test_names_damaged_image(tmp_path: Path) -> None:
    write_ho3d(tmp_path, {"SM1": ho3d_sequences()[0]["SM1"]})
    data = HO3D(tmp_path)
    path = tmp_path / "train/SM1/rgb/0001.png"
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(DamagedImageError, match=r"SM1/rgb/0001\.png cannot be read"):
        data[1]
    path.write_bytes(b"\0" * 100)
    with pytest.raises(DamagedImageError, match=r"SM1/rgb/0001\.png cannot be read"):
        data[1]
    assert data[0].image.shape == (480, 640, 3)


def test_refuses_other_splits(trees: Path) -> None:
    for arguments in (("training", "v2"), ("train", "v1")):
        with pytest.raises(ValueError, match='split must be "train" or "evaluation" and version'):
            HO3D(trees / "v2", *arguments)
