"""FreiHAND: round trips in mm, and the published file format."""

from __future__ import annotations

import json
import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nvf_fast.data.freihand import VERSIONS, FreiHAND, write_freihand
from nvf_fast.data.mano import place_freihand
from nvf_fast.data.sample import DamagedImageError, HandSample
from nvf_fast.synthetic.dataset import SyntheticConfig, SyntheticHands
from tests.dataset_trees import HANDS, edit_json, freihand_samples, make_image, mano, posed

ROOT = Path(__file__).resolve().parent.parent
JPEG_LEVELS = 6  # largest difference of any pixel of the smooth images; measured 3 to 4 at quality 95


def test_round_trip(trees: Path) -> None:
    data = FreiHAND(trees / "freihand", mano=mano())
    samples = freihand_samples(versions=4)
    assert len(data) == len(samples) == 4 * HANDS and data.name == "FreiHAND" and data.split == "training"
    for index, sample in enumerate(samples):
        read = data[index]
        assert read.id == data.ids[index] == f"training/{index:08d}"
        assert torch.equal(read.joints, sample.joints) and torch.equal(read.root, sample.joints[0])
        assert torch.equal(read.vertices, sample.vertices)
        np.testing.assert_array_equal(read.intrinsics, sample.intrinsics)
        assert read.side == "right" and read.box is None and read.image.flags.writeable
        assert read.hand_scale == pytest.approx(float((sample.joints[10] - sample.joints[9]).norm()))
        assert np.abs(read.image.astype(int) - sample.image.astype(int)).max() <= JPEG_LEVELS
        assert torch.equal(read.surface.vertices[0], sample.vertices)
        assert torch.equal(read.surface.joints[0], sample.joints)
        assert read.surface.faces.shape == (1552, 3)


def test_published_file_layout(trees: Path) -> None:
    folder = trees / "freihand"
    sample = freihand_samples()[1]
    for name, shape in {"K": (3, 3), "xyz": (21, 3), "verts": (778, 3), "scale": ()}.items():
        content = np.array(json.loads((folder / f"training_{name}.json").read_text()))
        assert content.shape == (HANDS, *shape)
    joints = np.array(json.loads((folder / "training_xyz.json").read_text()))[1]
    np.testing.assert_allclose(joints, sample.joints.numpy() / 1000, atol=1e-9)
    scale = json.loads((folder / "training_scale.json").read_text())[1]
    assert scale == pytest.approx(np.linalg.norm(joints[9] - joints[10]))
    camera = np.array(json.loads((folder / "training_K.json").read_text()))[1]
    projected = joints @ camera.T
    assert (projected[:, 2] > 0.3).all() and (projected[:, 2] < 1).all()
    assert {path.name for path in (folder / "training/rgb").iterdir()} == {f"{i:08d}.jpg" for i in range(12)}
    evaluation = {path.name for path in folder.glob("evaluation_*.json")}
    assert evaluation == {"evaluation_K.json", "evaluation_scale.json"}
    released = {path.name for path in (trees / "freihand_eval").iterdir()}
    assert released == {"evaluation_xyz.json", "evaluation_verts.json"}


def test_order_of_versions(trees: Path) -> None:
    data = FreiHAND(trees / "freihand", versions=("auto", "hom"))
    assert data.ids[0] == "training/00000009" and data.ids[-1] == "training/00000005"
    for index, number in ((0, 9), (HANDS, 3), (2 * HANDS - 1, 5)):
        image = data[index].image.astype(int)
        assert np.abs(image - make_image(number)).max() <= JPEG_LEVELS
        assert torch.equal(data[index].joints, freihand_samples()[number % HANDS].joints)
    assert data.expected == 2 * 32560 and not data.complete
    with pytest.raises(ValueError, match="versions must be some of"):
        FreiHAND(trees / "freihand", versions=("green",))
    with pytest.raises(ValueError, match="versions must differ"):
        FreiHAND(trees / "freihand", versions=("gs", "gs"))
    with pytest.raises(ValueError, match='evaluation has version "gs" only'):
        FreiHAND(trees / "freihand", "evaluation", versions=("hom",))


def test_evaluation_annotations(trees: Path) -> None:
    blind = FreiHAND(trees / "freihand", "evaluation", mano=mano())
    full = FreiHAND(trees / "freihand", "evaluation", evaluation_folder=trees / "freihand_eval", mano=mano())
    for index, sample in enumerate(freihand_samples()):
        assert blind[index].id == full[index].id == f"evaluation/{index:08d}"
        assert (
            blind[index].joints is blind[index].root is blind[index].surface is blind[index].vertices is None
        )
        assert blind[index].hand_scale == pytest.approx(full[index].hand_scale, abs=1e-4)
        assert torch.equal(full[index].joints, sample.joints) and full[index].surface is not None
    assert "FreiHAND_pub_v2_eval" in blind.describe()
    assert full.describe().endswith("3 samples of the official 3960, closed surfaces")


def test_surfaces_need_mano(trees: Path) -> None:
    data = FreiHAND(trees / "freihand")
    assert data[0].surface is None and data[0].vertices is not None
    assert "MANO_RIGHT.pkl" in (data.why_no_surfaces or "")
    named = FreiHAND(trees / "freihand", mano=trees / "MANO_RIGHT.pkl")
    assert torch.equal(
        named[0].surface.vertices, FreiHAND(trees / "freihand", mano=mano())[0].surface.vertices
    )


def test_vertices_from_mano_parameters(tmp_path: Path) -> None:
    write_freihand(tmp_path, freihand_samples())
    camera = np.array(json.loads((tmp_path / "training_K.json").read_text()))
    rows = []
    for hand in range(HANDS):
        pose, shape = posed(hand)
        rows.append(torch.cat([pose, shape, torch.tensor([[110.0 + hand, 90.0, 950.0]])], 1))
    (tmp_path / "training_verts.json").unlink()
    (tmp_path / "training_mano.json").write_text(json.dumps([row.tolist() for row in rows]))
    data = FreiHAND(tmp_path, versions=("gs",), mano=mano())
    assert data.why_no_surfaces is None
    for hand, row in enumerate(rows):
        expected, _ = place_freihand(mano(), row, torch.from_numpy(camera[hand : hand + 1]))
        torch.testing.assert_close(data[hand].vertices, expected[0].float(), atol=1e-3, rtol=0)
    assert FreiHAND(tmp_path, versions=("gs",))[0].vertices is None


def test_writes_synthetic_hands_without_mesh(tmp_path: Path) -> None:
    rendered = SyntheticHands(SyntheticConfig(2, seed=1))
    samples = [replace(rendered[index], surface=None) for index in range(2)]
    write_freihand(tmp_path, samples, versions=("gs",))
    data = FreiHAND(tmp_path, versions=("gs",), mano=mano())
    for read, sample in zip((data[0], data[1]), samples, strict=True):
        assert torch.equal(read.joints, sample.joints) and read.vertices is None and read.surface is None
        # Noise and edges: measured a mean change of 1.4 levels at quality 95.
        assert np.abs(read.image.astype(int) - sample.image.astype(int)).mean() < 3
    assert data.why_no_surfaces == "training_verts.json and training_mano.json are missing"


def test_conversion_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = make_image(7, 64, 48)
    joints = (torch.randn(21, 3) * 50 + torch.tensor([0.0, 0.0, 500.0])).tolist()
    camera = [[100.0, 2.0, 30.5], [0.0, 100.0, 24.0], [0.0, 0.0, 1.0]]
    for side in ("left", "right"):
        Image.fromarray(image).save(tmp_path / f"{side}.png")
        truth = {"K": camera, "side": side, "joints": joints}
        (tmp_path / f"{side}.json").write_text(json.dumps(truth))
    monkeypatch.setattr(
        "sys.argv", ["convert_dataset.py", str(tmp_path), "--out", str(tmp_path / "converted")]
    )
    runpy.run_path(str(ROOT / "examples/convert_dataset.py"), run_name="__main__")
    left, right = FreiHAND(tmp_path / "converted", versions=("gs",))
    projected = [sample.joints.double().numpy() @ sample.intrinsics.T for sample in (left, right)]
    left_pixels, right_pixels = (points[:, :2] / points[:, 2:] for points in projected)
    np.testing.assert_allclose(left_pixels, [63, 0] + [-1, 1] * right_pixels, atol=1e-4)
    assert np.abs(left.image.astype(int) - right.image[:, ::-1]).max() <= 2 * JPEG_LEVELS


def test_names_damaged_image(tmp_path: Path) -> None:
    write_freihand(tmp_path, freihand_samples())
    data = FreiHAND(tmp_path, versions=("gs",))
    images = [tmp_path / f"training/rgb/{i:08d}.jpg" for i in range(HANDS)]
    images[0].write_bytes(images[0].read_bytes()[:2000])
    images[1].write_bytes(b"")
    images[2].unlink()
    for index, path in enumerate(images):
        with pytest.raises(DamagedImageError, match=f"{path.name} cannot be read"):
            data[index]
    Image.new("L", (224, 224)).save(images[2])
    with pytest.raises(DamagedImageError, match="mode L; expected RGB"):
        data[2]


def test_list_cache(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_freihand(tmp_path / "data", freihand_samples())

    def joints() -> torch.Tensor:
        return FreiHAND(tmp_path / "data", versions=("gs",), cache=tmp_path / "cache")[0].joints

    before, kept = joints(), sorted((tmp_path / "cache").iterdir())
    assert len(kept) == 4 and torch.equal(joints(), before)
    path = next(path for path in kept if path.stat().st_size == before.numel() * 4 * HANDS)
    path.write_bytes(path.read_bytes()[:-1])
    assert torch.equal(joints(), before) and "it is made anew" in caplog.text  # read, found damaged
    assert not path.exists() and len(list((tmp_path / "cache").iterdir())) == 4
    larger = [(1.5 * sample.joints / 1000).tolist() for sample in freihand_samples()]
    edit_json(tmp_path / "data/training_xyz.json", lambda rows: larger)
    torch.testing.assert_close(joints(), 1.5 * before)


def test_refuses_other_splits(trees: Path) -> None:
    with pytest.raises(ValueError, match='split must be "training" or "evaluation"'):
        FreiHAND(trees / "freihand", "train")


def test_writer_refuses_unsupported_samples(tmp_path: Path) -> None:
    sample = freihand_samples(1)[0]
    image, camera = sample.image, sample.intrinsics
    for samples, versions, fault in (
        (
            [HandSample("a", image, camera, joints=sample.joints, side="left")],
            ("gs",),
            "must have joints of a right hand",
        ),
        ([HandSample("a", image, camera)], ("gs",), "must have joints of a right hand"),
        ([HandSample("a", image, camera, joints=sample.joints, vertices=torch.zeros(5, 3))], ("gs",), "778"),
        (
            [sample, HandSample("b", image, camera, joints=sample.joints)],
            ("gs",),
            "all samples must have vertices",
        ),
        (freihand_samples(3), ("gs", "hom"), "the same hands in 2 version"),
        (freihand_samples(2), ("gs", "hom"), "its joints differ"),
        ([], VERSIONS, "got 0"),
    ):
        with pytest.raises(ValueError, match=fault):
            write_freihand(tmp_path, samples, versions=versions)
