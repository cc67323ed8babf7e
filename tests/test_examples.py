"""The programs of `examples/`: their options, and the tracking of a video."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import nvf_fast
from nvf_fast.estimator import PoseEstimator
from nvf_fast.image_files import read_image
from nvf_fast.video import VideoWriter, read_frames
from tests.hand_cases import hand_network

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def run(name: str, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run an example in this process and return its status."""
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    try:
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_examples_print_help_and_refuse_unknown_options(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if name == "onnx_session.py":
        pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    assert run(name, monkeypatch, "--help") == 0
    assert capsys.readouterr().out.startswith(f"usage: {name} [-h]")
    assert run(name, monkeypatch, "--unknown") == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "error: " in captured.err


def test_tracking_a_video_prints_ids_and_joints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The two hands of the included image move to the right and keep their ids."""
    image = read_image(Path(nvf_fast.__file__).parent / "assets/demo.jpg")
    frames = [np.ascontiguousarray(np.roll(image, 4 * index, 1)) for index in range(3)]
    (tmp_path / "frames").mkdir()
    for index, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / f"frames/{index}.png")
    assert run("track_video.py", monkeypatch, tmp_path / "frames", "--fov", 60, "--rate", 10) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["time"] for line in lines] == [0, 0.1, 0.2]
    sides = [{hand["id"]: hand["side"] for hand in line["hands"]} for line in lines]
    assert sides[0] == sides[1] == sides[2]
    for line in lines:
        assert sorted(hand["side"] for hand in line["hands"]) == ["left", "right"]
        assert sorted(hand["id"] for hand in line["hands"]) == [0, 1]
        for hand in line["hands"]:
            assert np.shape(hand["joints"]) == (21, 3) and 200 < np.mean(hand["joints"], 0)[2] < 2000
    assert run("track_video.py", monkeypatch, tmp_path / "frames") == 2, "a camera is needed"


def test_tracking_a_video_draws_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("av", reason="PyAV is not installed")
    monkeypatch.setattr(nvf_fast, "load", lambda: PoseEstimator(hand_network(), device="cpu"))
    with VideoWriter(tmp_path / "clip.mp4") as writer:
        for index, shade in enumerate((40, 120, 200)):
            writer.write(np.full((120, 160, 3), shade, np.uint8), index / 25)
    drawn = tmp_path / "drawn.mp4"
    assert run("track_video.py", monkeypatch, tmp_path / "clip.mp4", "--fov", 60, "--drawn", drawn) == 0
    assert [json.loads(line)["time"] for line in capsys.readouterr().out.splitlines()] == [0, 0.04, 0.08]
    assert [frame.time for frame in read_frames(drawn)] == pytest.approx([0, 0.04, 0.08])
