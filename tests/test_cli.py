"""The commands of `nvf-fast`: their output and their errors."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import struct
import subprocess
import sys
import threading
import warnings
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image, ImageDraw

import nvf_fast
from nvf_fast.checkpoint import load_checkpoint, save_checkpoint
from nvf_fast.cli.main import COMMANDS, main
from nvf_fast.config import NVFConfig
from nvf_fast.data.freihand import write_freihand
from nvf_fast.depth import DepthFit
from nvf_fast.estimator import load
from nvf_fast.evaluation import mean_pose, metrics
from nvf_fast.evaluation.submission import read_submission
from nvf_fast.image_files import SUFFIXES, exif_focal, read_image
from nvf_fast.model import NVF
from nvf_fast.overlay import description, draw_poses, write_drawing
from nvf_fast.pose import HandPose
from nvf_fast.runtime.files import locked
from nvf_fast.synthetic.dataset import SyntheticConfig, SyntheticHands
from tests import dataset_trees
from tests.hand_cases import hand_network
from tests.reference_cases import reference_network

K = [[500.0, 0, 79.5], [0, 500.0, 59.5], [0, 0, 1]]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoint of a small network in which every point votes, so that poses are valid."""
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    save_checkpoint(reference_network(), folder, {"data": {"images": 12}, "scores": {"cs_mje": 99.5}})
    return folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command line in this process; return its exit status, standard output and standard error."""

    def run(*arguments: Any) -> tuple[int, str, str]:
        status = 0
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as end:
            status = int(end.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """Write two valid images of 160 x 120 px."""
    paths = [tmp_path / "a.png", tmp_path / "b.jpg"]
    for seed, path in enumerate(paths):
        pixels = np.random.default_rng(seed).integers(0, 256, (120, 160, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return paths


def test_overview(run: Run) -> None:
    for arguments in ([], ["--help"], ["-h"]):
        status, out, _ = run(*arguments)
        assert status == 0 and all(f"\n  {name} " in out for name in COMMANDS)
    assert run("--version")[1] == f"{nvf_fast.__version__}\n"
    status, out, err = run("guess")
    assert status == 2 and out == ""
    assert err.startswith("nvf-fast: unknown command 'guess'; the commands are demo,")


def test_output_that_nobody_reads_ends_quietly(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "nvf_fast", "--help"]
    read, write = os.pipe()
    os.close(read)
    ended = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert ended.returncode == 141 and ended.stderr == ""
    if Path("/dev/full").exists():
        with open("/dev/full", "w") as full:
            ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
        message = "nvf-fast: standard output: No space left on device\n"
        assert (ended.returncode, ended.stderr) == (2, message)


def test_closed_streams_are_no_error() -> None:
    for closed, status in (((1,), 2), ((2,), 2), ((0, 1, 2), 2)):
        command = [sys.executable, "-m", "nvf_fast", "track", "nowhere.mp4"]
        ended = subprocess.run(
            command, stderr=subprocess.PIPE, text=True, check=False, cwd=Path(nvf_fast.__file__).parents[1],
            preexec_fn=lambda closed=closed: [os.close(each) for each in closed],
        )  # fmt: skip
        expected = "" if 2 in closed else "nvf-fast track: nowhere.mp4: No such file or directory\n"
        assert (ended.returncode, ended.stderr) == (status, expected)


def test_usage_errors_end_with_2(run: Run) -> None:
    status, _, err = run("demo", "--stepp", "16")
    assert status == 2 and "--stepp" in err
    for arguments, message in (
        (["view", "a.png", "--box", 1, 2, 3], "argument '--box'. Expected 4 values"),
        (["view", "a.png", "--box", 1, 2, 3, "x"], "--box: expected FLOAT FLOAT FLOAT FLOAT, got 1 2 3 x"),
        (["view", "a.png", "--fov", "wide"], "--fov: expected FLOAT, got wide"),
        (["reproduce", "figure4", "--samples", 1, "x"], "--samples: expected INT ..., got 1 x"),
        (["track", ""], "track: an argument is an empty string: expected a path or another value"),
        (["predict", "a.png", ""], "predict: an argument is an empty string"),
        (["predict", "a.png", "--out", ""], "predict: --out is an empty string"),
        (["predict", "a.png", "--mesh="], "predict: --mesh is an empty string"),
        (["train", "small", "--out", "a", "--data.dataset", ""], "train: --data.dataset is an empty string"),
    ):
        status, _, err = run(*arguments)
        assert status == 2 and message in err and "bold" not in err


@pytest.mark.parametrize(
    ("command", "file"),
    [
        (["demo"], "--overlay a.gif b.bmp c"),
        (["view", "a.png"], "--out page page.png"),
        (["track", "frames"], "--overlay drawn drawn.gif drawn.webm"),
    ],
)
def test_outputs_are_checked_before_the_work(
    run: Run, command: list[str], file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").write_text("kept")
    option, *names = file.split()
    for name in names:
        status, out, err = run(*command, option, name)
        assert (status, out) == (2, "") and f"{option} must be a file whose name ends in ." in err
        assert len(err.splitlines()) == 1 and err.rstrip().endswith(f"got {name}")
    suffix = {"demo": "png", "view": "html", "track": "mp4"}[command[0]]
    status, _, err = run(*command, option, f"text/inside.{suffix}")
    assert status == 2 and f"{option}: {tmp_path / 'text'} is not a folder" in err
    assert (tmp_path / "text").read_text() == "kept"


def test_outputs_that_cannot_be_written_are_refused(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("kept")
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "a.html").write_text("an image")
    commands = ["export"], ["calibrate", "network"], ["train", "default"], ["eval", "synthetic-v2"]
    for command in (*commands, ["eval", "hand-views"], ["reproduce", "table2"]):
        status, _, err = run(*command, "--out", "file")
        assert status == 2 and err.endswith(": --out must be a folder, file is a file\n"), err
        status, _, err = run(*command, "--out", "file/inside")
        assert status == 2 and f"--out: {tmp_path / 'file'} is not a folder" in err
    for name, message in (("folder.html", "folder.html is a folder"), ("a.html", "would replace a.html, an")):
        status, _, err = run("view", "a.html", "--out", name)
        assert status == 2 and message in err
    status, _, err = run("track", "frames", "--out", "a.mp4", "--overlay", "./a.mp4")
    assert status == 2 and "--overlay would replace a.mp4, the file of --out: choose another" in err
    monkeypatch.setattr("nvf_fast.cli.outputs.os.access", lambda path, mode: False)  # root may write anywhere
    for command in (["export", "--out", "new"], ["demo", "--overlay", "new.png"]):
        status, _, err = run(*command)
        assert status == 2 and f": {tmp_path}: Permission denied\n" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "file", "folder.html"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["view", "a.png", "--port", -1], "--port must be 0 to 65535, got -1"),
        (["view", "a.png", "--port", 65536], "--port must be 0 to 65535, got 65536"),
        (["calibrate", "network", "--out", "new", "--seed", -1], "--seed must be 0 or more, got -1"),
        (["eval", "hand-views", "--out", "new", "--seed", -1], "seed must lie in [0, inf), got -1"),
        (["eval", "hand-views", "--out", "new", "--stable", 0], "stable must lie in [1, inf), got 0"),
        (["eval", "hand-views", "--out", "new", "--count", -1], "count must lie in [0, inf), got -1"),
        (["eval", "hand-views", "--out", "new", "--threads", 0], "threads must lie in [1, inf), got 0"),
        (["eval", "synthetic-v2", "--out", "new", "--workers", -1], "workers must lie in [0, inf), got -1"),
        (
            ["eval", "photographs", "--data", "a", "--out", "new", "--batch", 0],
            "batch must lie in [1, inf), got 0",
        ),
    ],
)
def test_numbers_out_of_range_are_refused_at_once(run: Run, arguments: list[Any], message: str) -> None:
    status, _, err = run(*arguments)
    assert status == 2 and err == f"nvf-fast {arguments[0]}: {message}\n"


def test_messages_of_the_library_are_lines_of_the_command(
    run: Run, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def call(*arguments: Any, **options: Any) -> HandPose:
        warnings.warn("depth of hand 0:\n none", stacklevel=2)
        logging.getLogger("nvf_fast").warning("no CUDA graph for %s", "it")
        raise ValueError("the end")

    monkeypatch.setattr("nvf_fast.estimator.PoseEstimator.__call__", call)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        status, _, err = run(
            "view", images[0], "--fov", 60, "--device", "cpu", "--out", images[0].with_suffix(".html")
        )
    messages = ["depth of hand 0: none", "no CUDA graph for it", "the end"]
    assert status == 2 and err.splitlines() == [f"nvf-fast view: {each}" for each in messages]


def test_prediction_imports_no_training() -> None:
    script = """
import sys
from nvf_fast.cli.main import main
try:
    main(["predict", "missing.png", "--fx", "500", "--checkpoint", "nowhere"])
except SystemExit as end:
    unwanted = ("nvf_fast.training", "nvf_fast.data", "nvf_fast.evaluation", "matplotlib")
    print(end.code, [name for name in sys.modules if name.startswith(unwanted)])
"""
    assert subprocess.check_output([sys.executable, "-c", script], stderr=subprocess.DEVNULL) == b"2 []\n"


def records(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_predict_writes_the_estimators_poses(
    run: Run, images: list[Path], checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "results/poses.json"
    camera = ["--fx", 500, "--fy", 510, "--cx", 70, "--box", 40, 30, 100, 90, "--side", "left"]
    options = ["--step", 32, "--hand-scale", 35, "--checkpoint", checkpoint, "--overlay", tmp_path / "drawn"]
    options += ["--device", "cpu"]
    status, stdout, _ = run("predict", *images, images[0], *camera, *options, "--out", out)
    assert status == 0 and stdout == ""
    assert [path.name for path in out.parent.iterdir()] == ["poses.json"]
    written = json.loads(out.read_text())
    assert written["joint_names"][0] == "WRIST"
    estimator = nvf_fast.load(checkpoint, device="cpu", step_mm=32)
    intrinsics = [[500, 0, 70], [0, 510, 59.5], [0, 0, 1]]
    for path, found in zip(images, written["images"], strict=True):
        image = np.array(Image.open(path))
        pose = estimator(image, intrinsics, 35.0, box=(40, 30, 100, 90), side="left")
        assert found["image"] == str(path) and found["camera"] == {"K": intrinsics, "source": "fx"}
        (hand,) = found["hands"]
        assert hand["voters"] == pose.voters > 0 and found["hand_scale"] == 35 and hand["side"] == "left"
        np.testing.assert_allclose(hand["joints"], pose.joints, rtol=1e-4)
        assert Image.open(tmp_path / f"drawn/{path.stem}.png").size == (160, 120)


@pytest.fixture
def hands(tmp_path: Path) -> list[Any]:
    """Options of a small network of hand views."""
    save_checkpoint(hand_network(), tmp_path / "hand", {}, dtype=torch.float32)
    return ["--checkpoint", tmp_path / "hand", "--device", "cpu"]


def test_predict_writes_sides_and_expected_errors(
    run: Run, images: list[Path], hands: list[Any], tmp_path: Path
) -> None:
    options, box = ["--fx", 500, *hands], ("--box", 40, 30, 100, 90)
    status, out, _ = run("predict", images[0], *options, *box)
    (found,) = records(out)[0]["hands"]
    assert status == 0 and found["valid"] and found["side"] == "right" and found["box"] == [40, 30, 100, 90]
    assert (
        len(found["expected_error"]) == 21 and min(found["expected_error"]) > 0 and 0.5 <= found["score"] <= 1
    )
    status, out, _ = run("predict", images[0], *options, *box, "--side", "left")
    assert records(out)[0]["hands"][0]["side"] == "left"
    status, out, err = run("predict", images[0], *options, "--overlay", tmp_path / "drawn.png")
    assert status == 0 and records(out)[0]["hands"] == [] and "a.png: no hand found" in err
    status, _, err = run("predict", images[0], *options, "--search", "guided")
    assert status == 2 and 'search must be "dense" for a network of hand views' in err


def test_boxes_without_a_hand_are_reported_with_the_reason(
    run: Run, images: list[Path], checkpoint: Path, hands: list[Any], tmp_path: Path
) -> None:
    box = ["--fx", 500, "--box", 40, 30, 100, 90]
    status, _, err = run("predict", images[0], *box, *hands)
    assert status == 0 and err == ""
    config = replace(hand_network().config, presence_threshold=0.999)
    save_checkpoint(hand_network(config), tmp_path / "hand", {}, dtype=torch.float32)
    place = "no hand found in the box [40.0, 30.0, 100.0, 90.0] px: "
    status, out, err = run("predict", images[0], *box, *hands)
    (hand,) = records(out)[0]["hands"]
    reason = f"the probability of a hand is {hand['score']:.3g}, below 0.999\n"
    assert status == 0 and err == f"nvf-fast predict: {images[0]}: {place}{reason}"
    model, _ = load_checkpoint(checkpoint)
    with torch.no_grad():
        model.field.biases[-1][0] = 9.0  # far from the surface
    save_checkpoint(model, tmp_path / "hand", {}, dtype=torch.float32)
    status, _, err = run("predict", images[0], *box, *hands)
    assert status == 0 and err.endswith(f"{place}no point votes\n")
    status, _, err = run("predict", images[0], "--fx", 500, *hands)
    assert status == 0 and err.endswith("no hand found in the view: no point votes\n")


def test_predict_takes_boxes_from_a_file(
    run: Run, images: list[Path], hands: list[Any], tmp_path: Path
) -> None:
    listed = tmp_path / "boxes.json"
    two = [{"box": [40, 30, 100, 90], "side": "left"}, {"box": [10, 20, 60, 80]}]
    listed.write_text(json.dumps({"a.png": two, str(images[1]): []}))
    status, out, _ = run("predict", *images, "--fx", 500, "--boxes", listed, "--side", "right", *hands)
    first, second = records(out)
    assert status == 0 and second["hands"] == []
    assert [hand["box"] for hand in first["hands"]] == [hand["box"] for hand in two]
    assert [hand["side"] for hand in first["hands"]] == ["left", "right"]
    for content, message in (
        ({"a.png": [[1, 2, 3, 4]]}, "must be a list of"),
        ({"c.png": []}, "no entry 'a.png'"),
        ({"a.png": [{"box": "wide"}]}, "box"),
        ({"a.png": [{"box": [1, 2, 30, 40], "sides": "left"}]}, "the keys box and side, got ['sides']"),
    ):
        listed.write_text(json.dumps(content))
        status, out, err = run("predict", images[0], "--fx", 500, "--boxes", listed, *hands)
        assert status == 2 and message in err and message in records(out)[0]["error"]
    for content, message in (
        ("[", "boxes.json: not JSON"),
        ('{"a.png": [], "a.png": []}', "'a.png' more than"),
    ):
        listed.write_text(content)
        status, _, err = run("predict", images[0], "--boxes", listed, *hands)
        assert status == 2 and message in err
    status, _, err = run("predict", images[0], "--boxes", listed, "--box", 1, 2, 30, 40, *hands)
    assert status == 2 and "give --box or --boxes" in err


@pytest.mark.parametrize("option", ["--boxes", "--intrinsics"])
def test_entries_of_other_images_are_reported(
    run: Run, images: list[Path], hands: list[Any], tmp_path: Path, option: str
) -> None:
    listed, entry = tmp_path / "listed.json", K if option == "--intrinsics" else []
    listed.write_text(json.dumps(dict.fromkeys(["a.png", "f.png", "c.png", "e.png", "d.png"], entry)))
    given = ["--fov", 60] if option == "--boxes" else []
    status, _, err = run("predict", images[0], option, listed, *given, *hands)
    message = f"{listed}: 4 of 5 entries are of no given image: 'c.png', 'd.png', 'e.png', ...\n"
    assert status == 0 and err.count(message) == 1
    listed.write_text(json.dumps({str(images[0]): entry, "b.jpg": entry}))
    status, _, err = run("predict", *images, option, listed, *given, *hands)
    assert status == 0 and "of no given image" not in err


def test_equal_names_in_several_folders_need_paths(
    run: Run, images: list[Path], hands: list[Any], tmp_path: Path
) -> None:
    (tmp_path / "second").mkdir()
    second = tmp_path / "second/a.png"
    second.write_bytes(images[0].read_bytes())
    listed, options = tmp_path / "boxes.json", ["--fx", 500, *hands]
    listed.write_text(json.dumps({"a.png": [{"box": [40, 30, 100, 90]}], str(second): []}))
    status, out, _ = run("predict", images[0], second, "--boxes", listed, *options)
    assert (
        status == 2
        and f"several images are named a.png: name them in {listed} as" in records(out)[0]["error"]
    )
    assert records(out)[1]["hands"] == []
    K = [[500, 0, 79.5], [0, 500, 59.5], [0, 0, 1]]
    listed.write_text(json.dumps({"a.png": {"K": K}, str(second): {"K": K}}))
    status, out, _ = run(
        "predict", images[0], second, "--intrinsics", listed, "--box", 40, 30, 100, 90, *hands
    )
    assert status == 2 and "several images are named a.png" in records(out)[0]["error"]
    assert "error" not in records(out)[1]
    (tmp_path / "depths").mkdir()
    Image.fromarray(np.full((120, 160), 500, np.uint16)).save(tmp_path / "depths/a.png")
    status, out, _ = run("predict", images[0], second, "--depth", tmp_path / "depths", *options)
    assert status == 2 and all(
        "several images would have the depth" in each["error"] for each in records(out)
    )


def test_folders_hold_every_format_that_is_read(run: Run, hands: list[Any], tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    names = [f"a{suffix}" for suffix in SUFFIXES if suffix in Image.registered_extensions()]
    for name in names:
        Image.new("RGB", (160, 120)).save(tmp_path / "photos" / name)
    _, out, _ = run("predict", tmp_path / "photos", "--fx", 500, *hands)
    assert sorted(Path(each["image"]).name for each in records(out)) == sorted(names)
    assert {Image.registered_extensions()[Path(name).suffix] for name in names} >= {"GIF", "PPM"}


def test_images_of_other_formats_in_a_folder_are_counted(
    run: Run, images: list[Path], hands: list[Any], tmp_path: Path
) -> None:
    (photos := tmp_path / "photos").mkdir()
    for name in ("a.HEIC", "b.heic", "c.cr2", "notes.txt"):
        (photos / name).touch()
    skipped = "images of other formats are skipped (2 .heic, 1 .cr2)"
    status, _, err = run("predict", photos, *hands)
    assert status == 2 and err.endswith(f"in this folder; {skipped}\n")
    (photos / "d.png").write_bytes(images[0].read_bytes())
    (photos / "._d.png").write_bytes(b"metadata of macOS")
    for command in ("predict", "track"):
        status, out, err = run(command, photos, "--fov", 60, *hands)
        assert status == 0 and len(records(out)) == 1
        assert err.count(f"{photos}: {skipped}: convert them to one of .png, .jpg, ") == 1


def test_large_photographs_are_not_called_attacks(
    run: Run, images: list[Path], hands: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 160 * 120 - 1)
    status, _, err = run("predict", images[0], "--fx", 500, "--box", 40, 30, 100, 90, *hands)
    assert status == 0 and "attack" not in err


def test_predict_refuses_a_root_relative_network(run: Run, images: list[Path], tmp_path: Path) -> None:
    model = NVF(NVFConfig(input_size=32, stem=8, width=16, groups=4, stacks=1, task="root-relative"))
    save_checkpoint(model, tmp_path / "cube", {})
    status, _, err = run("predict", images[0], "--fx", 500, "--checkpoint", tmp_path / "cube")
    assert status == 2 and "a root-relative one needs the wrist" in err


@pytest.mark.parametrize("form", ["matrix", "K", "names"])
def test_predict_takes_intrinsics_from_a_file(
    run: Run, images: list[Path], checkpoint: Path, tmp_path: Path, form: str
) -> None:
    path = tmp_path / "camera.json"
    path.write_text(json.dumps({"matrix": K, "K": {"K": K}, "names": {"a.png": K}}[form]))
    options = ["--intrinsics", path, "--checkpoint", checkpoint, "--step", 32]
    status, out, err = run("predict", *images, *options)
    first, second = records(out)
    assert first["camera"] == {"K": K, "source": "intrinsics"}
    if form == "names":
        assert status == 2 and "b.jpg: " in err and "has no entry 'b.jpg'" in err
        assert second.keys() == {"image", "error", "settings"} and second["image"] == str(images[1])
    else:
        assert status == 0 and len(second["hands"]) == 1


LENS = {"K": K, "size": [160, 120], "distortion": [-0.2, 0.05, 0.001, 0.002]}


@pytest.mark.parametrize("model", ["plumb_bob", "fisheye"])
def test_predict_takes_calibrations_with_distortion(
    run: Run, images: list[Path], checkpoint: Path, tmp_path: Path, model: str
) -> None:
    path = tmp_path / "camera.json"
    path.write_text(json.dumps({"a.png": LENS | {"model": model}, "b.png": {"K": K}}))
    options = ["--intrinsics", path, "--checkpoint", checkpoint, "--step", 32, "--box", 40, 30, 100, 90]
    status, out, _ = run("predict", images[0], *options, "--device", "cpu")
    (record,) = records(out)
    camera = nvf_fast.Camera(K, (160, 120), LENS["distortion"], model)  # type: ignore[arg-type]
    expected = {"K": K, "distortion": list(camera.distortion), "model": model, "source": "intrinsics"}
    assert status == 0 and record["camera"] == expected
    estimator = nvf_fast.load(checkpoint, device="cpu", step_mm=32)
    pose = estimator(np.array(Image.open(images[0])), camera, box=(40, 30, 100, 90))
    (hand,) = record["hands"]
    np.testing.assert_allclose(hand["joints"], pose.joints, atol=1e-3)
    np.testing.assert_allclose(hand["joints_2d"], camera.project(pose.joints), atol=1e-2)


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        (LENS | {"dist_coeffs": [0.1]}, "got unknown keys ['dist_coeffs']"),
        ({"a.png": {"camera_matrix": K}}, "got unknown keys ['camera_matrix']"),
        ({"a.png": {"size": [160, 120]}}, "got no 'K'"),
        ({"size": [160, 120]}, "has no entry 'a.png', and no 'K'"),
        (LENS | {"size": [320, 240]}, "calibrates images of 320 x 240 px, a.png has 160 x 120 px"),
        (LENS | {"model": "pinhole"}, "model must be one of ('plumb_bob', 'fisheye'), got 'pinhole'"),
        (LENS | {"distortion": [0.1]}, "distortion of a 'plumb_bob' camera must be 0 or 4 or"),
        ([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]], "it is normalised"),
        ([[500, 0], [0, 500]], "K must be (3, 3) px, got shape (2, 2)"),
        ("K", "K must be numbers of px, got 'K'"),
    ],
)
def test_predict_refuses_invalid_calibrations(
    run: Run, images: list[Path], checkpoint: Path, tmp_path: Path, calibration: Any, message: str
) -> None:
    path = tmp_path / "camera.json"
    path.write_text(json.dumps(calibration))
    status, _, err = run("predict", images[0], "--intrinsics", path, "--checkpoint", checkpoint)
    assert status == 2 and message in err and "camera.json" in err


def test_predict_by_field_of_view(run: Run, images: list[Path], checkpoint: Path, tmp_path: Path) -> None:
    drawn = tmp_path / "drawn.png"
    options = ["--fov", 90, "--checkpoint", checkpoint, "--step", 32, "--overlay", drawn]
    status, out, _ = run("predict", images[0], *options)
    assert status == 0 and drawn.is_file()
    camera = records(out)[0]["camera"]
    assert camera["source"] == "fov"
    np.testing.assert_allclose(camera["K"], [[80, 0, 79.5], [0, 80, 59.5], [0, 0, 1]])


def photograph(path: Path, size: tuple[int, int], entries: dict[int, Any], orientation: int = 1) -> Path:
    """Write an image with entries of EXIF's own directory."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif.get_ifd(0x8769).update(entries)
    Image.new("RGB", size, (90, 80, 70)).save(path, exif=exif)
    return path


def test_predict_takes_the_focal_length_from_exif(
    run: Run, images: list[Path], checkpoint: Path, tmp_path: Path
) -> None:
    upright = photograph(tmp_path / "phone.jpg", (120, 160), {0xA405: 26})
    turned = photograph(tmp_path / "turned.jpg", (160, 120), {0xA405: 26}, orientation=6)
    options = ["--checkpoint", checkpoint, "--step", 32]
    status, out, err = run("predict", upright, turned, *images, *options)
    found = [record["camera"] for record in records(out)]
    assert status == 0 and [camera["source"] for camera in found] == ["exif", "exif", "default", "default"]
    # The diagonal of 200 px shows as much as that of a 36 x 24 mm frame at 26 mm.
    focal = 26 * 200 / np.hypot(36, 24)
    for camera in found[:2]:
        np.testing.assert_allclose(camera["K"], [[focal, 0, 59.5], [0, focal, 79.5], [0, 0, 1]], rtol=1e-4)
    assert found[2]["K"][0][0] == pytest.approx(80 / np.tan(np.radians(30)))
    assert err.count("assuming 60 degrees") == 1


@pytest.mark.parametrize(
    ("entries", "focal"),
    [
        ({0x920A: 4.0, 0xA20E: 1000.0, 0xA210: 3}, 400.0),  # 4 mm, 1000 px a cm
        ({0x920A: 4.0, 0xA20E: 2540.0}, 400.0),  # px an inch
        ({0x920A: 4.0, 0xA20E: 2540.0, 0xA002: 320}, 200.0),  # taken with 320 px, resized to 160
        ({0xA405: 26, 0x920A: 4.0, 0xA20E: 1000.0, 0xA210: 3}, 26 * 200 / 43.2666),
        ({0x920A: 4.0}, None),
        ({0xA405: 0}, None),
        ({0xA405: 60_000}, None),  # absurd
        ({0x920A: 4.0, 0xA20E: 1000.0, 0xA210: 9}, None),
    ],
)
def test_focal_lengths_of_exif_data(tmp_path: Path, entries: dict[int, Any], focal: float | None) -> None:
    found = exif_focal(photograph(tmp_path / "photo.jpg", (160, 120), entries))
    assert found == (None if focal is None else pytest.approx(focal, rel=1e-4))


def test_predict_continues_after_bad_images(
    run: Run, images: list[Path], checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = [
        tmp_path / name for name in ("missing.png", "text.png", "cut.png", "deep.png", "eps.jpg", "odd.png")
    ]
    missing, text, cut, deep, eps, odd = bad
    text.write_text("no image")
    cut.write_bytes(images[0].read_bytes()[:4000])
    Image.fromarray(np.zeros((20, 20), np.uint16)).save(deep)
    Image.new("RGB", (20, 20)).save(eps, "EPS")
    odd.write_bytes(images[0].read_bytes())

    def read(path: Path) -> np.ndarray:
        if path == odd:
            raise ZeroDivisionError("of a decoder")
        return read_image(path)

    monkeypatch.setattr("nvf_fast.cli.predict.read_image", read)
    files = [missing, images[0], text, cut, deep, eps, odd, images[1]]
    status, out, err = run("predict", *files, "--fx", 500, "--checkpoint", checkpoint, "--step", 32)
    written = records(out)
    assert status == 2 and [record["image"] for record in written] == [str(path) for path in files]
    assert [record["image"] for record in written if "error" in record] == [str(path) for path in bad]
    lines = [line for line in err.splitlines() if line.startswith("nvf-fast predict: ")]
    assert len(lines) == 7 and "Traceback" not in err
    assert "missing.png: No such file" in lines[0] and "not a readable image" in lines[1]
    assert "cut.png: " in lines[2] and "8 bits per channel" in lines[3] and "not a readable image" in lines[4]
    assert lines[5].endswith("odd.png: ZeroDivisionError: of a decoder")
    assert lines[6].endswith("6 of 8 images failed")


def test_predict_continues_after_impossible_intrinsics(
    run: Run, images: list[Path], checkpoint: Path, tmp_path: Path
) -> None:
    path = tmp_path / "cameras.json"
    impossible = [[1e200, 0, 60], [0, 1e200, 50], [0, 0, 1]]
    path.write_text(json.dumps({images[0].name: impossible, images[1].name: K}))
    options = ["--intrinsics", path, "--checkpoint", checkpoint, "--step", 64]
    status, out, err = run("predict", *images[:2], *options)
    assert status == 2 and ["error" in record for record in records(out)] == [True, False]
    assert "cameras.json" in records(out)[0]["error"] and "Traceback" not in err


@pytest.mark.parametrize("name", ["poses.jsonl", "poses.json"])
def test_predict_continues_where_it_stopped(
    run: Run, images: list[Path], checkpoint: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, third = tmp_path / name, tmp_path / "c.png"
    options = ["--fx", 500, "--checkpoint", checkpoint, "--step", 32, "--device", "cpu", "--out", out]
    whole = tmp_path / f"whole_{name}"
    Image.new("RGB", (160, 120), (90, 80, 70)).save(third)
    assert run("predict", *images, third, *options[:-1], whole)[0] == 0
    read = []

    def stop(path: Path) -> np.ndarray:
        read.append(path.name)
        if len(read) == 2:
            raise KeyboardInterrupt
        return read_image(path)

    with monkeypatch.context() as patch:
        patch.setattr("nvf_fast.cli.predict.read_image", stop)
        status, _, err = run("predict", *images, third, *options)
        assert status == 130 and err.endswith("nvf-fast: interrupted\n")
        lines = out if name == "poses.jsonl" else tmp_path / "poses.json.lines"
        assert len(records(lines.read_text())) == 1
        with lines.open("ab") as file:
            file.write(b'{"image": "b.jpg", "ca')  # a write that a stop cut off
        status, _, err = run("predict", *images, third, *options)
    assert status == 0 and "already done: 1 of 3 images\n" in err
    assert read == ["a.png", "b.jpg", "b.jpg", "c.png"] and out.read_bytes() == whole.read_bytes()
    before = out.read_bytes()
    status, _, err = run("predict", *images, third, *options)
    assert status == 0 and "already done: 3 of 3 images\n" in err and out.read_bytes() == before
    _, _, err = run("predict", *images, third, *options, "--overlay", tmp_path / "drawn")
    assert "already done: 3 of 3 images; to draw or mesh them, give another --out\n" in err
    assert not list(tmp_path.glob("*.lines")) and not list(tmp_path.glob(".*"))
    status, _, err = run("predict", *images, *options, "--hand-scale", 40)
    assert status == 2 and "holds results of other options" in err and out.read_bytes() == before


def test_predict_tries_failed_images_again(
    run: Run, images: list[Path], checkpoint: Path, tmp_path: Path
) -> None:
    out, late = tmp_path / "poses.jsonl", tmp_path / "late.png"
    options = ["--fx", 500, "--checkpoint", checkpoint, "--step", 32, "--out", out]
    assert run("predict", late, *images, *options)[0] == 2
    Image.new("RGB", (160, 120), (90, 80, 70)).save(late)
    assert run("predict", late, *images, *options)[0] == 0
    written = records(out.read_text())
    assert [Path(record["image"]).name for record in written] == ["a.png", "b.jpg", "late.png"]
    assert all("error" not in record for record in written)


@pytest.mark.parametrize("text", ["no json\n", "no line", "[1]\n", '{"hands": []}\n', '{"a": 1}', "\0"])
def test_predict_keeps_files_of_others(
    run: Run, images: list[Path], checkpoint: Path, tmp_path: Path, text: str
) -> None:
    out = tmp_path / "notes.txt"
    out.write_text(text)
    status, _, err = run("predict", images[0], "--fx", 500, "--checkpoint", checkpoint, "--out", out)
    assert status == 2 and "does not hold records of images" in err and out.read_text() == text


def test_predict_never_replaces_its_inputs(run: Run, images: list[Path], tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in images}
    depth, boxes = tmp_path / "depth", tmp_path / "boxes.json"
    depth.mkdir()
    Image.fromarray(np.full((120, 160), 400, np.uint16)).save(depth / "a.png")
    boxes.write_text('{"a.png": []}')
    for options, message in (
        (["--overlay", images[0]], "--overlay would replace"),
        (["--overlay", tmp_path], "a.png, an input"),
        (["--overlay", depth, "--depth", depth], "depth/a.png, an input"),
        (["--overlay", tmp_path / "o", "--figure", tmp_path / "o"], "--figure would replace"),
        (["--boxes", boxes, "--out", boxes], "boxes.json, an input"),
        (["--out", images[0]], "--out would replace"),
    ):
        status, _, err = run("predict", images[0], "--fx", 500, *options)
        assert status == 2 and message in err, err
    assert {path: path.read_bytes() for path in images} == before


def test_predict_follows_links_and_writes_to_devices(
    run: Run, images: list[Path], checkpoint: Path, tmp_path: Path
) -> None:
    options = ["predict", images[0], "--fx", 500, "--checkpoint", checkpoint, "--step", 32, "--out"]
    link, target = tmp_path / "link.jsonl", tmp_path / "target.jsonl"
    link.symlink_to(target)
    assert run(*options, link)[0] == 0
    assert link.is_symlink() and len(records(target.read_text())) == 1
    assert run(*options, "/dev/null")[0] == 0 and not Path("/dev/null").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--fx", 500, "--fov", 60], "give only one of --fx"),
        (["--fx", -500], "--fx must be a positive number of px, got -500"),
        (["--fx", 500, "--fy", "nan"], "--fy must be a positive number of px"),
        (["--fx", 500, "--cx", "inf"], "--cx must be a number of px, got inf"),
        (["--fov", 200], "the field of view must be 5 to 180 degrees, got 200"),
        (["--fov", 60, "--fy", 500], "--fy needs --fx"),
        (["--intrinsics", "nowhere.json"], "nowhere.json: No such file"),
        (["--fx", 500, "--hand-scale", 0.035], "10 to 60 mm, got 0.035"),
        (["--fx", 500, "--step", -1], "step_mm must be a positive number of mm"),
        (
            ["--fx", 500, "--device", "gpu0"],
            "--device must be a device such as cpu, cuda or cuda:1, got 'gpu0'",
        ),
        (["--fx", 500, "--checkpoint", "nowhere/at-all/x"], "nowhere"),
        (["--fx", 500, "--out", "."], "--out must be a file"),
        (["--fx", 500, "--out", "poses.csv"], "--out must be a .json or .jsonl file, got poses.csv"),
        (["--fx", 500, "--overlay", "x.bmp"], "--overlay must be a .png, .jpg, .jpeg file or a folder"),
        (["--fx", 500, "--figure", "x.jpg"], "--figure must be a .png file or a folder, got x.jpg"),
        (["--fx", 500, "--mesh", "x.glb"], "--mesh must be a folder, got x.glb"),
        (["--fx", 500, "--min-presence", 2], "min_presence must be in [0, 1], got 2"),
        (["--fx", 500, "--fx", 600], "--fx given more than once"),
        (["--hand-scale", 30, "--hand_scale=31"], "--hand-scale given more than once"),
    ],
)
def test_predict_refuses_invalid_options(
    run: Run, images: list[Path], checkpoint: Path, options: list, message: str
) -> None:
    chosen = [] if "--checkpoint" in options else ["--checkpoint", checkpoint]
    status, _, err = run("predict", images[0], *chosen, *options)
    assert status == 2 and message in err
    assert err.startswith("nvf-fast predict: ") and len(err.splitlines()) == 1


def test_predict_takes_folders_but_no_videos(
    run: Run, images: list[Path], checkpoint: Path, tmp_path: Path
) -> None:
    options = ["--fx", 500, "--checkpoint", checkpoint, "--step", 56]
    (tmp_path / "notes.txt").write_text("no image")
    status, out, _ = run("predict", tmp_path, images[1], *options)
    assert status == 0 and [record["image"] for record in records(out)] == [str(path) for path in images]
    status, out, err = run("predict", images[0], "clip.MP4", *options)
    assert status == 2 and out == ""
    assert err == "nvf-fast predict: clip.MP4 is a video: nvf-fast track follows the hands of one\n"
    (tmp_path / "empty").mkdir()
    status, _, err = run("predict", tmp_path / "empty", *options)
    assert status == 2 and "empty: no images (.png, .jpg," in err


def test_predict_draws_expected_errors_of_known_cameras_and_sizes(
    run: Run, images: list[Path], hands: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = []

    def draw(image: np.ndarray, poses: Any) -> Any:
        shown.append([description(pose) for pose in poses])
        return draw_poses(image, poses)

    monkeypatch.setattr("nvf_fast.cli.predict.draw_poses", draw)
    options = [images[0], *hands, "--box", 40, 30, 100, 90, "--overlay", tmp_path / "drawn.png"]
    _, _, err = run("predict", *options, "--hand-scale", 30)
    assert "assuming 60 degrees" in err and "hands can be missed" in err
    assert run("predict", *options, "--fov", 60)[0] == 0
    assert run("predict", *options, "--fov", 60, "--hand-scale", 30)[0] == 0
    assert shown[:2] == [["right"], ["right"]] and shown[2][0].startswith("right ±")


def test_predict_warns_of_an_unusual_hand_scale_once(run: Run, images: list[Path], hands: list[Any]) -> None:
    status, _, err = run("predict", *images, "--fx", 500, *hands, "--hand-scale", 46)
    assert status == 0 and len(images) > 1 and err.count("nearly always 20 to 44 mm;") == 1


def test_predict_passes_the_least_presence_on(
    run: Run, images: list[Path], hands: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(
        "nvf_fast.estimator.PoseEstimator._least_presence",
        lambda self, detector: seen.append(self.min_presence) or 1.0,
    )
    assert run("predict", images[0], "--fx", 500, *hands, "--min-presence", 0.25)[0] == 0
    assert set(seen) == {0.25}


def test_predict_refuses_a_box_in_fractions(run: Run, images: list[Path], checkpoint: Path) -> None:
    box = ["--box", 0.1, 0.1, 0.9, 0.9]
    status, out, err = run("predict", images[0], "--fx", 500, "--checkpoint", checkpoint, *box)
    assert status == 2 and "at least 2 px larger" in err and "at least 2 px" in records(out)[0]["error"]


def test_predict_takes_depth_images(
    run: Run, hands: list[Any], images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Depth images reach the fit of distances, which needs no hand here."""
    monkeypatch.setattr(
        nvf_fast.depth, "fit_depth", lambda joints, depth, *_: DepthFit(int(depth[7, 9]) / 1000)
    )
    depths, options = tmp_path / "depths", ["--fx", 500, "--box", 40, 30, 100, 90, *hands]
    depths.mkdir()
    _, out, _ = run("predict", images[0], *options)
    (before,) = records(out)[0]["hands"]
    depth = np.zeros((120, 160), np.uint16)
    depth[7, 9] = 1200
    for name, values in (
        ("a.png", depth),
        ("a.tiff", depth.astype(np.float32)),
        ("a.tif", depth.astype(np.int32)),
    ):
        Image.fromarray(values).save(depths / name)
        for given in (depths, depths / name):
            status, out, _ = run("predict", images[0], "--depth", given, *options)
            joints = records(out)[0]["hands"][0]["joints"]
            np.testing.assert_allclose(joints, 1.2 * np.array(before["joints"]), rtol=1e-5)
            assert status == 0
        (depths / name).unlink()
    Image.fromarray(depth.astype(np.uint8)).save(depths / "a.png")
    Image.fromarray(depth).save(depths / "a.tiff")
    status, out, _ = run("predict", images[0], "--depth", depths, *options)
    assert status == 2 and "must hold one depth image of a.png: one of" in records(out)[0]["error"]
    status, out, _ = run("predict", images[0], "--depth", depths / "a.png", *options)
    assert (
        status == 2
        and "one channel of 16 or 32 bits, in mm, got pixels of mode 'L'" in records(out)[0]["error"]
    )
    status, _, error = run("predict", *images, "--depth", depths / "a.png", *options)
    assert status == 2 and "--depth must be a folder for several images" in error


def test_predict_writes_meshes_and_figures(
    run: Run, images: list[Path], hands: list[Any], tmp_path: Path
) -> None:
    listed, meshes, figure = tmp_path / "boxes.json", tmp_path / "meshes", tmp_path / "row.png"
    listed.write_text(json.dumps({"a.png": [{"box": [40, 30, 100, 90]}]}))
    options = ["--fx", 500, "--boxes", listed, "--mesh", meshes, *hands]
    status, out, _ = run("predict", images[0], *options, "--figure", figure)
    assert status == 0
    assert sorted(path.name for path in meshes.iterdir()) == ["a-0.glb"]
    mesh, joints = trimesh.load_mesh(meshes / "a-0.glb"), np.array(records(out)[0]["hands"][0]["joints"])
    assert mesh.is_watertight
    assert (joints > mesh.bounds[0]).all() and (joints < mesh.bounds[1]).all()
    with Image.open(figure) as drawn:
        assert drawn.width > 5 * drawn.height, "one row of nine panels"
    status, _, _ = run("predict", images[0], *options, "--mesh-format", "obj")
    assert status == 0 and trimesh.load_mesh(meshes / "a-0.obj").is_watertight
    status, _, err = run("predict", images[0], *options, "--figure", "row.jpg")
    assert status == 2 and "--figure must be a .png file or a folder" in err


def test_predict_names_the_extra_of_meshes(
    run: Run, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "skimage", None)
    status, out, err = run("predict", images[0], "--mesh", tmp_path / "meshes", "--fx", 500)
    assert status == 2 and not out
    assert "--mesh and --figure need scikit-image and matplotlib: pip install 'nvf-fast[viz]'" in err


def test_view_writes_a_page(run: Run, images: list[Path], hands: list[Any], tmp_path: Path) -> None:
    pytest.importorskip("viser", reason="viser is not installed")
    options = ["--fx", 500, "--box", 40, 30, 100, 90, *hands]
    status, out, _ = run("view", images[0], *options, "--out", tmp_path / "page.html")
    assert status == 0 and "page.html: 1 hands" in out
    assert "__VISER_EMBED_DATA__" in (tmp_path / "page.html").read_text()
    (tmp_path / "page.html").write_text("kept")
    status, _, err = run("view", images[0], *options, "--out", tmp_path / "page.html")
    assert status == 2 and "page.html exists: choose another name" in err
    assert (tmp_path / "page.html").read_text() == "kept"
    status, _, err = run("view", images[0], *options, "--out", tmp_path / "page.png")
    assert status == 2 and "--out must be a file whose name ends in .html, got " in err
    config = replace(hand_network().config, presence_threshold=0.999)
    save_checkpoint(hand_network(config), tmp_path / "hand", {}, dtype=torch.float32)
    status, _, err = run("view", images[0], *options, "--out", tmp_path / "none.html")
    assert status == 0 and "no hand found in the box [40.0, 30.0, 100.0, 90.0] px: the probability" in err


def test_predict_refuses_overlapping_overlays(
    run: Run, images: list[Path], checkpoint: Path, tmp_path: Path
) -> None:
    options = ["--fx", 500, "--checkpoint", checkpoint]
    status, _, err = run("predict", *images, *options, "--overlay", "one.png")
    assert status == 2 and "must be a folder" in err
    status, _, err = run("predict", tmp_path / "a.png", tmp_path / "a.jpg", *options, "--overlay", tmp_path)
    assert status == 2 and "written into a.png" in err


def test_images_are_read_upright_in_rgb(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    Image.fromarray(pixels).save(tmp_path / "rotated.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "rotated.png"), np.rot90(pixels, -1))
    with io.BytesIO((tmp_path / "rotated.png").read_bytes()) as data:
        for _ in range(2):
            np.testing.assert_array_equal(read_image(data), np.rot90(pixels, -1))
        assert exif_focal(data) is None
    with pytest.raises(OSError, match="not a readable image"):
        read_image(io.BytesIO(b"text"))
    Image.fromarray(pixels[..., 0]).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png"), np.repeat(pixels[..., :1], 3, -1))
    Image.fromarray(np.dstack([pixels, pixels[..., :1]])).save(tmp_path / "alpha.png")
    np.testing.assert_array_equal(read_image(tmp_path / "alpha.png"), pixels)
    Image.fromarray(pixels).convert("CMYK").save(tmp_path / "cmyk.tiff")
    np.testing.assert_array_equal(read_image(tmp_path / "cmyk.tiff"), pixels)
    few = pixels // 128 * 255
    Image.fromarray(few).quantize(8).save(tmp_path / "palette.gif")
    np.testing.assert_array_equal(read_image(tmp_path / "palette.gif"), few)


def deep_png(pixels: np.ndarray) -> bytes:
    """A PNG of 16 bits per channel, which Pillow reads but does not write, of pixels (H, W, 3)."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", *pixels.shape[1::-1], 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def deep_tiff(pixels: np.ndarray) -> bytes:
    """An uncompressed TIFF of 16 bits per channel of pixels (H, W, 3)."""
    height, width, _ = pixels.shape
    data, end = pixels.astype("<u2").tobytes(), 8 + 2 + 12 * 8 + 4
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, end), (259, 3, 1, 1), (262, 3, 1, 2)]
    tags += [(273, 4, 1, end + 6), (277, 3, 1, 3), (279, 4, 1, len(data))]
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return struct.pack("<2sHIH", b"II", 42, 8, 8) + entries + bytes(4) + struct.pack("<3H", 16, 16, 16) + data


def test_images_that_are_no_8_bit_colours_are_refused(tmp_path: Path) -> None:
    """A camera's 12 bits in 16 would otherwise become an almost black image."""
    values = np.arange(600, dtype=np.uint16).reshape(20, 30) * 6
    (tmp_path / "deep.png").write_bytes(deep_png(np.dstack([values] * 3)))
    (tmp_path / "deep.tiff").write_bytes(deep_tiff(np.dstack([values] * 3)))
    Image.fromarray(values).save(tmp_path / "depth.png")
    Image.fromarray(values.astype(np.float32)).save(tmp_path / "float.tiff")
    for name in ("deep.png", "deep.tiff", "depth.png", "float.tiff"):
        assert Image.open(tmp_path / name).size == (30, 20), "a valid file"
        with pytest.raises(ValueError, match=f"{name}: expected 8 bits per channel, got more in"):
            read_image(tmp_path / name)
    Image.new("LAB", (30, 20)).save(tmp_path / "lab.tiff")
    with pytest.raises(ValueError, match="expected grey, RGB, CMYK or palette"):
        read_image(tmp_path / "lab.tiff")


def entries(text: str) -> dict[str, str]:
    """Return names and values of the lines of `nvf-fast info`."""
    return dict(re.split("  +", line, maxsplit=1) for line in text.splitlines())  # type: ignore[misc]


def test_info(run: Run, checkpoint: Path) -> None:
    status, out, _ = run("info", checkpoint)
    found = entries(out)
    assert status == 0 and len(out.splitlines()) == 10
    assert int(found["parameters"].replace(",", "")) > 1000
    assert found["network"] == "neural voting field on a stacked hourglass, reference view of 64 x 64 px"
    assert found["photographs"] == "not recorded"
    assert found["everything else"] == f"nvf-fast info {checkpoint} --all"
    assert json.loads(run("info", checkpoint, "--all")[1]) == json.loads(
        (checkpoint / "config.json").read_text()
    )
    status, _, err = run("info", checkpoint / "elsewhere")
    assert status == 2 and len(err.splitlines()) == 1


def test_info_summarises_the_default_network(run: Run) -> None:
    status, out, _ = run("info")
    found = entries(out)
    assert status == 0 and len(out.splitlines()) == 10
    assert all(len(line) <= 110 for line in out.splitlines())
    assert "not recorded" not in out and "aligned error" in found["photographs"]
    assert found["photographs"].endswith("eval photographs --leave-out xmore_gestures)")
    assert found["everything else"] == "nvf-fast info --all"


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "train"])
def test_help_is_wrapped_to_the_terminal(run: Run, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for columns in (70, 100):
        monkeypatch.setenv("COLUMNS", str(columns))
        for arguments in ([], [name]):
            status, out, _ = run(*arguments, "--help")
            assert status == 0 and max(map(len, out.splitlines())) <= columns
            noise = ("(default: None)", "(default: )", "{None}", "[[", "{FLOAT", " ...]]", "[PATH [")
            assert not any(each in out.replace("[[fx", "") for each in noise)
        assert f"nvf-fast {name}" in out and ("mm" in out or name not in ("demo", "predict", "eval"))
    assert "(default: 16.0)" in run("predict", "--help")[1]


@pytest.mark.parametrize("command", ["photographs", "hand-views"])
def test_some_evaluations_refuse_several_processes(
    run: Run, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    data = ["--data", tmp_path] if command == "photographs" else []
    status, _, err = run("eval", command, *data, "--out", tmp_path / "out")
    assert status == 2 and f"eval {command} runs in one process" in err


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images in the format of each data set."""
    folder = tmp_path_factory.mktemp("trees")
    samples = dataset_trees.freihand_samples()
    write_freihand(folder / "freihand", samples, "evaluation", evaluation_folder=folder / "truth")
    dataset_trees.write_ho3d(
        folder / "ho3d", {"SM1": dataset_trees.ho3d_sequences()[0]["SM1"]}, "evaluation", "v3"
    )
    dataset_trees.write_mano(folder / "MANO_RIGHT.pkl")
    dataset_trees.write_complement(folder / "complement", dataset_trees.complement_samples())
    return folder


@pytest.fixture
def evaluate(run: Run, checkpoint: Path, trees: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `nvf-fast eval NAME` on one of the trees, into `tmp_path / "out"`."""
    monkeypatch.setattr(
        mean_pose, "other_hands", partial(mean_pose.other_hands, count=16)
    )  # 4096 take seconds

    def evaluate(name: str, *options: Any) -> tuple[int, str, str]:
        defaults = {"--checkpoint": checkpoint, "--step": 32, "--batch": 2, "--data": trees / name}
        arguments = [each for item in defaults.items() if item[0] not in options for each in item]
        return run("eval", name, *arguments, "--out", tmp_path / "out", *options)

    return evaluate


def test_eval_measures_the_first_images_of_synthetic_v2(
    run: Run, tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mean_pose, "other_hands", partial(mean_pose.other_hands, count=16))
    small = SyntheticHands(SyntheticConfig(count=4, size=32))
    monkeypatch.setattr("nvf_fast.cli.eval.open_dataset", lambda *_: small)
    options = ["--checkpoint", checkpoint, "--step", 56, "--out", tmp_path / "out"]
    status, _, err = run("eval", "synthetic-v2", *options, "--count", 5)
    assert status == 2 and err == "nvf-fast eval: --count must be 1 to 4, got 5\n"
    assert run("eval", "synthetic-v2", *options, "--count", 2)[0] == 0
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["context"]["images"] == "first 2 of the part" and report["counts"]["scored"] == 2
    small.config = replace(small.config, count=4)
    status, _, err = run("eval", "synthetic-v2", *options, "--count", 3)
    assert status == 2 and "is of another run" in err


@pytest.mark.slow
def test_eval_measures_freihand_and_resumes(evaluate: Run, trees: Path, tmp_path: Path) -> None:
    status, table, _ = evaluate("freihand", "--evaluation-data", trees / "truth")
    assert status == 0 and "mean pose" in table and "CS-MJE mm" in table
    assert "The submission holds 3 images, the official split 3960: the server will refuse it." in table
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["context"]["data set"] == "FreiHAND" and report["counts"]["scored"] == 3
    truth = 1000 * np.array(json.loads((trees / "truth/evaluation_xyz.json").read_text()))
    for setting, found in report["settings"].items():
        joints, vertices = read_submission(tmp_path / f"out/{setting}/pred.zip", "freihand")
        assert not vertices.any()
        assert found["scores"]["cs_mje"] == pytest.approx(metrics.mpjpe(joints, truth), abs=1e-3)
        assert found["server"] == pytest.approx(metrics.freihand_scores(joints, truth), abs=1e-3)

    before = (tmp_path / "out/predictions.safetensors").read_bytes()
    assert evaluate("freihand", "--evaluation-data", trees / "truth")[0] == 0
    assert (tmp_path / "out/predictions.safetensors").read_bytes() == before
    status, _, err = evaluate("freihand", "--evaluation-data", trees / "truth", "--step", 30)
    assert status == 2 and "of another run (step was '32 mm', now '30 mm')" in err


def test_eval_measures_ho3d(evaluate: Run, trees: Path, tmp_path: Path) -> None:
    status, out, _ = evaluate("ho3d", "--version", "v3")
    assert status == 0 and "the official split 20137" in out
    report = json.loads((tmp_path / "out/report.json").read_text())
    server = report["settings"]["without_hand_scale"]["server"]
    with zipfile.ZipFile(tmp_path / "out/without_hand_scale/pred.zip") as archive:
        submitted = np.array(json.loads(archive.read("pred.json"))[0])
    truth = np.array(json.loads((trees / "ho3d/evaluation_xyz.json").read_text()))
    assert server == pytest.approx(metrics.ho3d_scores(1000 * submitted, 1000 * truth), abs=1e-3)


def test_eval_measures_complement(evaluate: Run, trees: Path, tmp_path: Path) -> None:
    status, _, _ = evaluate("complement", "--mano", trees / "MANO_RIGHT.pkl")
    assert status == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"report.json", "report.md", "predictions.safetensors", "shards"} <= names
    assert not names & {"with_hand_scale", "without_hand_scale"}, "no server, no submission"
    assert not list((tmp_path / "out").rglob(".*"))


def test_evaluations_do_not_share_a_folder(evaluate: Run, run: Run, checkpoint: Path, tmp_path: Path) -> None:
    photographs = ["--data", tmp_path, "--out", tmp_path / "out", "--checkpoint", checkpoint]
    with locked(tmp_path / "out" / ".lock"):
        for status, _, err in (evaluate("freihand"), run("eval", "photographs", *photographs)):
            assert status == 2 and "out is in use by this process, which holds .lock" in err
        assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--evaluation-data", "nowhere"], "nowhere"),
        (["--device", "gpu0"], "--device must be a device such as cpu, cuda or cuda:1, got 'gpu0'"),
        (["--step", -1], "step_mm must be a positive number of mm"),
        (["--batch", 0], "batch must lie in [1, inf), got 0"),
        (["--checkpoint", "nowhere/at-all/x"], "nowhere"),
    ],
)
def test_eval_refuses_invalid_options(evaluate: Run, options: list, message: str) -> None:
    status, _, err = evaluate("freihand", *options)
    assert status == 2 and message in err and err.startswith("nvf-fast eval: ")


def test_tune_needs_a_gpu(run: Run) -> None:
    if torch.cuda.is_available():
        pytest.skip("a GPU is available")
    status, _, err = run("tune")
    assert status == 2 and err.startswith("nvf-fast tune: tuning needs a CUDA device")


@pytest.mark.cuda
def test_tune(run: Run, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nvf_fast.runtime import autotuning

    monkeypatch.setattr(autotuning, "CACHE", tmp_path / "tilings.json")
    status, out, _ = run("tune", checkpoint, "--step", "32")
    assert status == 0 and str(autotuning.CACHE) in out and autotuning.CACHE.exists()
    estimator = load(checkpoint, step_mm=32)
    kept = json.loads(autotuning.CACHE.read_text()).values()
    assert list(estimator.runner.pipeline.query._layers.tiling) in kept


def test_demo(run: Run, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo passes boxes to a network without hand detection."""
    overlay = tmp_path / "overlay.png"
    options = ["--checkpoint", checkpoint, "--overlay", overlay, "--step", 32, "--device", "cpu"]
    status, out, _ = run("demo", *options)
    assert status == 0 and "found 2 hands; the image shows 2" in out
    assert "right hand (truth: right)" in out and "left hand (truth: left)" in out
    assert " ms on cpu: prepare " in out and ", vote " in out
    shown = np.array(Image.open(overlay)).astype(int)
    with Image.open(Path(nvf_fast.__file__).parent / "assets/demo.jpg") as original:
        assert (shown != np.array(original.convert("RGB"))).any() and shown.shape[:2] == original.size[::-1]


def test_demo_shows_the_errors_of_the_hands_found(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = json.loads((Path(nvf_fast.__file__).parent / "assets/demo.json").read_text())
    right, left = (np.array(hand["joints"], np.float32) for hand in truth["hands"])

    def estimator(self: Any, image: np.ndarray, intrinsics: Any, hand_scale: float) -> HandPose:
        """Move the left hand 1.01 times as far away along its rays, and one fingertip of the right hand."""
        joints = np.stack([1.01 * left, right])
        joints[1, 8] += [0, 0, 21.0]
        pixels = joints @ np.array(intrinsics, np.float32).T
        count, two = np.array([7, 7]), np.ones((2, 21))
        return HandPose(
            joints, pixels[..., :2] / pixels[..., 2:], two / 2, count, count > 0, count, two[:, 0],
            expected_error=4 * two, side=("left", "right"),
        )  # fmt: skip

    save_checkpoint(hand_network(), tmp_path / "hands", {})
    monkeypatch.setattr("nvf_fast.estimator.PoseEstimator.__call__", estimator)
    options = ["--checkpoint", tmp_path / "hands", "--overlay", tmp_path / "overlay.png", "--device", "cpu"]
    status, out, _ = run("demo", *options)
    assert status == 0 and "found 2 hands; the image shows 2" in out
    first, second = out.split("mean", 2)[0], out.split("mean", 2)[1]
    assert first.startswith("left hand (truth: left)") and "right hand (truth: right)" in second

    def row(table: str, joint: str) -> list[float]:
        return [float(value) for value in re.search(rf"^{joint} .*$", table, re.M).group().split()[1:]]  # type: ignore[union-attr]

    assert row(first, "WRIST")[3:] == [0.5, 4.0, 0.0, 0.0]
    *_, error_2d, aligned = row(second, "INDEX_FINGER_TIP")
    assert error_2d > 1 and 10 < aligned < 21
    assert row(second, "INDEX_FINGER_TIP")[2] == pytest.approx(right[8, 2] + 21, abs=0.06)


def test_labels_cover_neither_hands_nor_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = []
    text = ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        ImageDraw.ImageDraw,
        "text",
        lambda self, xy, *rest, **options: (
            texts.append(self.textbbox(xy, rest[0], font=rest[2], anchor=rest[3])),
            text(self, xy, *rest, **options),
        ),
    )
    joints_2d = np.stack([np.full(21, 200.0), np.linspace(200, 100, 21)], -1).astype(np.float32)
    joints = np.ones((21, 3), np.float32)
    pose = HandPose(joints, joints_2d, np.ones(21), 5, True, 99, 1.0, side="right")
    beside = replace(pose, joints_2d=joints_2d + np.float32([4, 0]))
    below = replace(pose, joints_2d=joints_2d + np.float32([0, 115]))
    draw_poses(np.zeros((400, 400, 3), np.uint8), [pose, beside, below])
    assert len(texts) == 3
    for i, (left, top, right, bottom) in enumerate(texts):
        for u, v in np.concatenate([each.joints_2d for each in (pose, beside, below)]):
            assert not (left <= u <= right and top <= v <= bottom)
        for other in texts[:i]:
            assert left > other[2] or right < other[0] or top > other[3] or bottom < other[1]


def test_drawing(tmp_path: Path) -> None:
    joints = np.zeros((21, 3), np.float32)
    joints_2d = np.stack([np.linspace(20, 140, 21), np.linspace(30, 90, 21)], -1).astype(np.float32)
    pose = HandPose(joints, joints_2d, np.ones(21), 5, True, 99, 1.0)
    image = np.zeros((120, 160, 3), np.uint8)
    drawn = np.array(draw_poses(image, pose))
    assert drawn.shape == image.shape and image.max() == 0
    for u, v in joints_2d[1:].round().astype(int):
        assert drawn[v, u].max() > 100, "each joint is covered"
    assert drawn[:20].max() == 0 and drawn[:, 150:].max() == 0, "and little else"
    edge = drawn[(drawn > 0).any(-1)].max(-1)
    assert len(np.unique(edge)) > 10, "edges are smooth"
    unsure = replace(pose, scores=np.full(21, 0.2))
    white = [(np.array(draw_poses(image, each)).min(-1) > 200).sum() for each in (pose, unsure)]
    assert white[1] > white[0] + 30, "unsure joints have holes"
    errors = np.full(21, 14.2)
    labelled = replace(pose, side="left", expected_error=errors, hand_scale=np.float32(30))
    assert (np.array(draw_poses(image, labelled, ids=[3])) != drawn).any()
    assert description(labelled) == "left ±14 mm"
    np.testing.assert_array_equal(draw_poses(image, labelled.to("cpu")), draw_poses(image, labelled))
    for unknown in ({"expected_error": None}, {"hand_scale": None}):
        assert description(replace(labelled, **unknown)) == "left"
    other = HandPose(joints + [0, 0, 9], joints_2d[::-1].copy(), np.ones(21), 5, True, 99, 1.0)
    both, reverse = (np.array(draw_poses(image, pair)) for pair in ([pose, other], [other, pose]))
    np.testing.assert_array_equal(both, reverse)
    invisible = HandPose(joints * np.nan, joints_2d * np.nan, np.zeros(21), 0, False, 99, 0.0)
    np.testing.assert_array_equal(np.array(draw_poses(image, invisible)), image)
    outside = HandPose(joints, joints_2d + 1000, np.ones(21), 5, True, 99, 1.0)
    np.testing.assert_array_equal(np.array(draw_poses(image, outside)), image)
    with pytest.raises(TypeError, match="image must be uint8, values 0 to 255, got float64"):
        draw_poses(image / 255, pose)
    with pytest.raises(ValueError, match="draw_poses takes one image, got several"):
        draw_poses(image[None], pose)


def test_drawings_need_an_id_for_each_hand_and_bones_between_joints(tmp_path: Path) -> None:
    image = np.zeros((60, 80, 3), np.uint8)
    joints_2d = np.stack([np.linspace(20, 60, 21)] * 2, -1)
    pose = HandPose(np.ones((21, 3)), joints_2d, np.ones(21), 5, True, 99, 1.0)
    with pytest.raises(ValueError, match=r"ids must be one for each of 2 pose\(s\), or empty, got \[3\]"):
        draw_poses(image, [pose, pose], ids=[3])
    with pytest.raises(TypeError, match="poses must be HandPose, as the estimator returns them, got dict"):
        draw_poses(image, [pose, pose.to_dict()])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"bones must be pairs of joints 0 to 20, got \[\(0, 21\)\]"):
        draw_poses(image, pose, bones=[(0, 21)])
    write_drawing(str(tmp_path / "drawn.png"), draw_poses(image, iter([pose]), ids=np.array([3])))  # type: ignore[arg-type]
    assert read_image(tmp_path / "drawn.png").shape == image.shape


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names")
def test_a_pipe_is_read_once(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    os.mkfifo(tmp_path / "pipe")
    content = (tmp_path / "photo.png").read_bytes()
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(content,))
    writer.start()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of files that are left open
        np.testing.assert_array_equal(read_image(tmp_path / "pipe"), pixels)
    writer.join()
    with pytest.raises(OSError, match=r"pipe: not a file, .* give the focal length"):
        exif_focal(tmp_path / "pipe")
