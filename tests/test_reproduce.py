"""Commands of the paper's tables and figures, each at a size too small to learn anything."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nvf_fast.checkpoint import save_checkpoint
from nvf_fast.cli.main import main
from nvf_fast.config import NVFConfig
from nvf_fast.data.catalogue import DataConfig
from nvf_fast.reproduce import published, recipes, workshop
from nvf_fast.reproduce.recipes import PAPER, SMOKE, Reduced, Size, Variant, stages
from nvf_fast.reproduce.tables import METHODS
from nvf_fast.synthetic.dataset import SyntheticConfig
from nvf_fast.training.points import PointSampling
from tests.reference_cases import reference_network

COUNT = 8
TINY = Size(
    "test run",
    Reduced(
        steps=2,
        batch=4,
        network=NVFConfig(input_size=32, stem=8, width=16, stacks=1, depth=2, groups=4, hidden=(32, 16)),
        sampling=PointSampling(surface=40, sphere=10, frustum=10, inside=None, outside=None, ray_points=20),
        learning_rate=1e-3,
    ),
    images=COUNT,
    evaluated=3,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders common to all tables, so that no network is trained twice."""
    return tmp_path_factory.mktemp("reproduce")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reduce the smoke run to few small images instead of synthetic-v2, and tables 5 and 6 to fewer rows."""
    images = DataConfig("synthetic", SyntheticConfig(count=COUNT, size=64))
    monkeypatch.setattr(recipes, "SMOKE", TINY)
    for module in (recipes, workshop):
        monkeypatch.setattr(module, "data_for", lambda role, size, real: images)
    ablations = [row for row in published.ABLATIONS if row[1] in (25, 50, 5, 10, 256, 1024)]
    monkeypatch.setattr(published, "ABLATIONS", ablations)
    monkeypatch.setattr(published, "STEPS", {step: published.STEPS[step] for step in (16, 32)})
    monkeypatch.setattr(published, "ROOT_RELATIVE_STEPS", {16: published.ROOT_RELATIVE_STEPS[16]})


def reproduce(folder: Path, target: str, *options: str) -> dict:
    main(["reproduce", target, "--smoke", "--runs", str(folder / "runs"), "--out", str(folder), *options])
    stem = f"{target}_test_run"
    document = json.loads((folder / f"{stem}.json").read_text())
    text = (folder / f"{stem}.md").read_text()
    assert text.startswith(f"# {document['title']}\n\n**A test run: ")
    assert {"commit", "torch", "seed", "device", "size", "data"} <= document["context"].keys()
    for row in document["rows"]:
        assert len(row) == len(document["columns"])
    for name in document["images"]:
        with Image.open(folder / name) as image:
            assert np.asarray(image.convert("L")).std() > 5  # not empty
    return document


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_absolute_pose(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(METHODS, "holistic")  # test_figures trains one
    rows = {}
    for target, ours in (("table2", 6), ("table7", 8), ("table8", 8)):
        rows[target] = reproduce(folder, target)["rows"]
        measured = [row for row in rows[target] if row[0] in METHODS.values()]
        assert len(measured) == ours
        assert all(isinstance(row[-2], float) for row in measured)
    assert [row for row in rows["table7"] if row in rows["table2"]] == rows["table2"]
    # Both tables give the same error of the same network.
    translation = {tuple(row[:3]): row[-1] for row in rows["table8"]}
    assert all(row[4] == translation[tuple(row[:3])] for row in rows["table7"] if row[0] in METHODS.values())
    trainings = {path.name for path in (folder / "runs/test_run/trainings").iterdir()}
    assert len(trainings) == 12  # four from scratch, four pre-trained and four fine-tuned


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_root_relative_pose_and_ablations(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    table = reproduce(folder, "table4")
    shown = capfd.readouterr().err
    assert re.findall(r"training (\S+)\n", shown) == ["nvf-root-relative-pretrained", "nvf-root-relative"]
    assert [row[0] for row in table["rows"] if row[4] is not None] == ["RS-NVF"]
    table = reproduce(folder, "table5")
    assert len(table["rows"]) == 6
    assert all(isinstance(value, float) for row in table["rows"] for value in row[-4:])
    defaults = [
        row[-4:] for row in table["rows"] if row[1] in (50, 1024) or (row[1] == 5 and "clamp" in row[0])
    ]
    assert len(defaults) == 3 and defaults[0] == defaults[1] == defaults[2]
    table = reproduce(folder, "table6", "--trained")
    assert [row[1] for row in table["rows"]] == [16, 32, 16]
    assert [row[6] for row in table["rows"]] == [28_351, 3_183, 21**3]


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_figures(folder: Path) -> None:
    joints = [[[0.0, 0.0, 0.5]] * 21] * 3
    (folder / "other.json").write_text(json.dumps([joints, [[]] * 3]))
    other = ("--predictions", "Other", str(folder / "other.json"))
    curves = reproduce(folder, "figure3", *other)["rows"]
    assert [row[0] for row in curves if row[2] is not None] == ["Other", *METHODS.values()]
    for target, rows in (("figure4", 4), ("figure6", 2), ("figure7", 2)):
        assert len(reproduce(folder, target, "--samples", "0", "2")["rows"]) == rows
    reproduce(folder, "figure5", "--samples", "1", *other)


def test_photographs_of_the_embedded_network(folder: Path) -> None:
    """Photographs with a box, and without a hand."""
    photographs = folder / "photographs"
    photographs.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    camera = {"K": [[200, 0, 60], [0, 200, 45], [0, 0, 1]]}
    for name in ("a.png", "b.png"):
        Image.fromarray(noise if name == "a.png" else np.zeros_like(noise)).save(photographs / name)
    entries = {"a.png": camera | {"box": [20, 20, 80, 80]}, "b.png": camera}
    (photographs / "intrinsics.json").write_text(json.dumps(entries))
    main(["reproduce", "figure8", "--photographs", str(photographs), "--out", str(folder)])
    document = json.loads((folder / "figure8.json").read_text())
    assert [row[0] for row in document["rows"]] == ["a.png", "b.png"]
    assert document["rows"][1][1:] == [0, None, 0.0]
    assert document["context"]["checkpoint"] == "embedded default"
    assert "does not compare the methods" not in (folder / "figure8.md").read_text()


@pytest.mark.usefixtures("small")
def test_steps_of_a_trained_network(folder: Path) -> None:
    save_checkpoint(reference_network(), folder / "reference", {})
    common = ["--runs", str(folder / "runs"), "--out", str(folder), "--images", "2"]
    main(["reproduce", "table6", *common, "--checkpoint", str(folder / "reference")])
    rows = json.loads((folder / "table6.json").read_text())["rows"]
    assert [row[1] for row in rows] == [16, 32] and all(row[-1] > 0 for row in rows)


@pytest.mark.usefixtures("small")
def test_refuses_missing_inputs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = folder / "wrong"
    wrong.mkdir()
    Image.fromarray(np.zeros((90, 120, 3), np.uint8)).save(wrong / "a.png")
    camera = {"K": [[200, 0, 60], [0, 200, 45], [0, 0, 1]], "box": [30, 2, 1, 40]}
    (wrong / "intrinsics.json").write_text(json.dumps({"a.png": camera}))
    for arguments, message in (
        (["figure8"], "figure8 needs photographs: --photographs FOLDER"),
        (["figure5", "--samples", "0", "7"], r"samples must lie in [0, 3), got [7]"),
        (["figure8", "--photographs", str(wrong)], "a.png: box must be (x0, y0, x1, y1) in px"),
        (["table6"], "give --checkpoint with a trained network of that view, or --trained"),
        (["table6", "--checkpoint", "default"], "a camera-space field of the reference view, default has"),
        (["table9"], "invalid choice"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["reproduce", *arguments, "--smoke", "--runs", str(folder / "runs"), "--out", str(folder)])
        assert ended.value.code == 2
        assert message in capsys.readouterr().err


def test_stages() -> None:
    real = frozenset({"freihand", "complement", "ho3d"})
    [scratch] = stages(Variant("dense"), PAPER, real)
    assert scratch.config.optimisation.epochs == 650 and scratch.config.model.method == "dense"
    assert scratch.config.data.dataset == scratch.role == "freihand" and scratch.after is None
    first, last = stages(Variant(extra=True, hand_scale=True), PAPER, real)
    assert (first.role, first.config.model.task, first.config.losses.vote_weight) == (
        "complement",
        "root-relative",
        10,
    )
    assert (last.role, last.config.optimisation.epochs, last.after) == ("freihand", 60, first.name)
    assert first.config.model.hand_scale and last.config.model.hand_scale
    first, last = stages(Variant(task="root-relative", surface_mm=10.0, nearest=256), PAPER, real)
    assert (first.role, last.role) == ("freihand", "ho3d")
    for stage in (first, last):
        assert stage.config.losses.clamp_mm == stage.config.losses.surface_mm == 10
        assert stage.config.losses.nearest == 256 and stage.config.model.input_size == 128


def test_smoke_size() -> None:
    stage = stages(Variant(), SMOKE, frozenset())[0]
    assert (
        SMOKE.reduced is not None
        and stage.config.optimisation.steps == SMOKE.reduced.steps
        and stage.config.model.input_size == 64
    )
    assert replace(stage.config.model, method="nvf", hand_scale=True) == SMOKE.reduced.network


def test_variants_of_printed_cells() -> None:
    names = {
        Variant(method, extra=extra, hand_scale=scale).name for method, extra, scale in published.CAMERA_SPACE
    }
    assert len(names) == len(published.CAMERA_SPACE) == 12
