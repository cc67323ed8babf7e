"""Programs of the benchmarks folder: training curves, profile and host time of a frame, depth images."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks import bench_pipeline, curves, depth_images, host_time, profile_frame


def test_curves_show_losses_rates_and_scores(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    lines = [
        {
            "step": 50,
            "minutes": 0.5,
            "images_per_second": 9.0,
            "learning_rate": 1e-3,
            "loss": 0.9,
            "sdf": 0.1,
        },
        {"step": 100, "minutes": 1.0, "evaluation": {"with_hand_scale_cs_mje": 80.0, "invalid": 0}},
        {"step": 100, "minutes": 1.0, "images_per_second": 9.0, "loss": 0.5, "sdf": 0.05},
    ]
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert curves.read_curves(run) == {
        "loss": [(50, 0.9), (100, 0.5)],
        "sdf": [(50, 0.1), (100, 0.05)],
        "images_per_second": [(50, 9.0), (100, 9.0)],
        "validation with_hand_scale_cs_mje (mm)": [(100, 80.0)],
    }
    for suffix in ("png", "svg"):
        curves.main([str(run), str(run), "--out", str(tmp_path / f"curves.{suffix}")])
    assert Image.open(tmp_path / "curves.png").size[0] > 500
    drawn = (tmp_path / "curves.svg").read_text()
    assert drawn.count("<!-- validation with hand scale cs mje (mm) -->") == 1


def test_missing_and_torn_logs_are_errors(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"no training's folder: log\.jsonl is missing"):
        curves.main([str(tmp_path)])
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "lo')
    with pytest.raises(ValueError, match=r"log\.jsonl, line 2"):
        curves.read_curves(tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the profiler
def test_profile_splits_the_time_of_a_frame(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "frame.json"
    profile_frame.main(["--network", "default", "--step", "32", "--rows", "5", "--trace", str(trace)])
    lines = capfd.readouterr().out.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("frame "))
    rows = lines[first + 2 : first + 7]
    times = [float(row.split()[0].replace(",", "")) for row in rows]
    assert len(times) == 5 and times == sorted(times, reverse=True) and times[-1] > 0
    assert json.loads(trace.read_text())["traceEvents"]


@pytest.mark.parametrize("name", ["default", "released"])
def test_pipelined_calls_keep_two_in_flight(name: str) -> None:
    in_flight, most, boxes = [0], [0], []

    def submit(images: np.ndarray, intrinsics: np.ndarray, *, side: str, **given: Any) -> Any:
        assert images.shape == (3, 224, 224, 3) and side == "right"
        in_flight[0] += 1
        most[0] = max(most[0], in_flight[0])
        boxes.append(given.get("box"))
        number = len(boxes)

        def result() -> int:
            in_flight[0] -= 1
            return number

        return SimpleNamespace(result=result)

    estimator: Any = SimpleNamespace(submit=submit)
    assert bench_pipeline.estimate_pipelined(estimator, name, 3, 5) == [1, 2, 3, 4, 5]
    assert most == [2] and in_flight == [0]
    if name == "default":
        assert np.array_equal(boxes[0], bench_pipeline.given("default")["box"])
        np.testing.assert_allclose(np.diff(boxes, axis=0), 0.01, rtol=1e-6)
    else:
        assert boxes == [None] * 5


def test_rows_of_depth_images() -> None:
    truth = np.tile([0.0, 0.0, 500.0], (3, 21, 1))
    moves = [[0, 0, 10], [0, 0, -20], [30, 40, 0]]
    poses: list[Any] = [SimpleNamespace(joints=truth[0] + move) for move in moves]
    poses[0].joints[1, 0] += 21  # 1 mm in the mean, of the first hand about its wrist
    name, hands, mean, median, wrist, relative = depth_images.pose_row("method", poses, truth)
    first = (20 * 10 + np.hypot(21, 10)) / 21
    assert (name, hands, median) == ("method", 3, 20.0) and relative == pytest.approx(1 / 3)
    assert mean == pytest.approx((first + 20 + 50) / 3)
    assert wrist == pytest.approx((10 + 20 + np.sqrt(500**2 + 50**2) - 500) / 3)

    true = np.array([30.0, 40.0])
    estimates = np.repeat(true[:, None], depth_images.IMAGES, 1)
    estimates[0, :4], estimates[1, 0] = [33.0, 33.0, 33.0, np.nan], 20.0
    (_, one, mean, median, unknown), (_, several, *medians) = depth_images.scale_rows("x", estimates, true)
    assert (one, several) == ("one", "median of 10") and median == 0 and medians[:2] == [0, 0]
    assert mean == pytest.approx((3 * 10 + 50) / 19)
    assert unknown == medians[2] == pytest.approx(100 * (1.74 / 30 + 8.26 / 40) / 2)


def test_host_time_is_a_part_of_the_whole() -> None:
    command = [sys.executable, host_time.__file__, "--inside", str(host_time.ROOT)]
    found = json.loads(subprocess.check_output(command, text=True))
    whole, host = found["whole, side given"], [found[f"host, 1 {boxes}"] for boxes in ("kept", "moving")]
    assert 0 < host[0] < host[1] < whole / 2  # measured .008 and .014 of it
    assert 0 < found["host, 64 kept"] < host[0]
