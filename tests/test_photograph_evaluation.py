"""Scores on labelled photographs, with predictions of known errors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from skimage.color import rgb2lab

from nvf_fast.checkpoint import save_checkpoint
from nvf_fast.cli.main import main
from nvf_fast.data.photographs import Photographs, mirrored
from nvf_fast.data.sample import HandSample
from nvf_fast.evaluation.photographs import (
    Predict,
    evaluate_photographs,
    score_rows,
    typology_angle,
    write_photograph_report,
)
from nvf_fast.joint_definitions import UNIT_LENGTH_MM, bone_lengths, scale_to_unit
from nvf_fast.pose import HandPose
from tests.hand_cases import hand_network
from tests.photograph_cases import photograph_labels, write_photographs

COUNT = 8


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Photographs:
    entries = photograph_labels(COUNT)
    entries[1]["file"] = "gestures_00000.png"
    entries[2]["side_score"] = 0.5
    return Photographs(write_photographs(tmp_path_factory.mktemp("photographs"), entries), "all")


def predictor(
    *, moved: float = 0.0, sideways: float = 0.0, grown: float = 1.0, side: str = "right", missing: str = ""
) -> Predict:
    """Return a predictor of the ground truth with errors of known size.

    Args:
        moved: displacement of fingertip 8 away from the camera, mm.
        sideways: displacement of all joints in the image, px.
        grown: scale of the hands about the camera.
        side: predicted side.
        missing: group of images without predictions.
    """

    def predict(samples: Sequence[HandSample], sides: Sequence[str | None]) -> HandPose:
        joints = scale_to_unit(np.stack([np.asarray(sample.joints) for sample in samples]).astype(np.float64))
        intrinsics = np.stack([sample.intrinsics for sample in samples])
        homogeneous = joints @ intrinsics.transpose(0, 2, 1)
        joints_2d = homogeneous[..., :2] / homogeneous[..., 2:] + [sideways, 0]
        joints[:, 8, 2] += moved
        valid = np.array([missing == "" or missing not in sample.id for sample in samples])
        joints[~valid], joints_2d[~valid] = np.nan, np.nan
        expected = np.full((len(samples), 21), 1.0)
        expected[:, 8] = 1 + abs(moved)
        count = np.zeros(len(samples), int)
        return HandPose(
            joints * grown,
            joints_2d,
            expected,
            count,
            valid,
            count,
            valid.astype(float),
            expected_error=expected,
            side=tuple(each or side for each in sides),
        )

    return predict


def test_perfect_predictions_have_no_error(data: Photographs) -> None:
    scores = evaluate_photographs(predictor(), data, data, batch=3)
    groups = ["gestures", "streets", "rooms", "all"]
    assert list(scores)[:4] == groups
    assert [scores[name]["photographs"] for name in groups] == [1, 4, 3, 8]
    assert scores["right hands"]["photographs"] + scores["left hands"]["photographs"] == 8
    assert sum(found["photographs"] for name, found in scores.items() if name.endswith("skin")) <= 8
    for found in scores.values():
        for name in ("error_2d", "aligned", "relative"):
            assert found[name] == pytest.approx(0, abs=1e-3)
        assert found["present"] == 100
        assert found["constant_2d"] > 2 and found["constant_relative"] > found["constant_aligned"] > 5
    # Every second hand is left, all are predicted as right, and the side of number 2 is a guess.
    assert scores["gestures"]["side"] == 0
    assert scores["all"]["side"] == pytest.approx(100 * 3 / 7)
    assert np.isnan(evaluate_photographs(predictor(), data, data, predicts_sides=False)["all"]["side"])


def test_errors_equal_the_applied_offsets(data: Photographs) -> None:
    found = evaluate_photographs(predictor(moved=21.0, sideways=3.0), data, data)["all"]
    assert found["relative"] == pytest.approx(1.0, abs=1e-3)
    # The least-squares fit distributes the 21 mm of one joint over all.
    assert 0.5 < found["aligned"] < 3
    sizes = [(label.box[2:] - label.box[:2]).max() for label in data.labels]
    assert found["error_2d"] == pytest.approx(np.mean([300 / size for size in sizes]), rel=1e-3)
    # One joint of 21 has a larger expected and true error; the others tie up to rounding.
    assert found["correlation"] > 0.2
    grown = evaluate_photographs(predictor(grown=1.1), data, data)["all"]
    assert grown["aligned"] == pytest.approx(0, abs=1e-3) and grown["relative"] > 5


def test_missed_hands_count_with_the_mean_pose(data: Photographs) -> None:
    scores = evaluate_photographs(predictor(missing="streets"), data, data)
    assert scores["streets"]["present"] == 0 and scores["all"]["present"] == 50
    for name, constant in (("error_2d", "constant_2d"), ("relative", "constant_relative")):
        assert scores["streets"][name] == pytest.approx(scores["streets"][constant])
        assert scores["rooms"][name] < 1e-3
    assert np.isnan(scores["streets"]["correlation"])


def test_without_known_sides_only_their_rate_is_missing(tmp_path: Path) -> None:
    entries = [{**entry, "side_score": 0.5} for entry in photograph_labels(2)]
    data = Photographs(write_photographs(tmp_path, entries), "all")
    found = evaluate_photographs(predictor(), data, data)["all"]
    assert np.isnan(found["side"]) and found["aligned"] < 1e-3


def test_mean_pose_of_one_hand_is_that_hand(tmp_path: Path) -> None:
    entry = photograph_labels(1)[0]
    left = {**entry, "file": "rooms_00009.png", "side": "left"}
    left["joints"] = mirrored(np.array(entry["joints"])).tolist()
    camera = np.array(entry["K"])
    camera[0, 2] = 239 - camera[0, 2]
    left["K"] = camera.tolist()
    left["joints_2d"] = [[239 - x, y] for x, y in entry["joints_2d"]]
    data = Photographs(write_photographs(tmp_path, [entry, left]))
    found = evaluate_photographs(predictor(), data, data)["all"]
    for name in ("constant_relative", "constant_aligned"):
        assert found[name] == pytest.approx(0, abs=1e-2)
    # The mean pose ignores perspective: it matches its own image roughly; other hands are 20 % off.
    assert found["constant_2d"] < 8
    unit = scale_to_unit(data.labels[0].joints)
    assert bone_lengths(unit).sum() == pytest.approx(UNIT_LENGTH_MM, rel=1e-5)


def test_typology_angles_are_those_of_the_palms_colour() -> None:
    joints_2d = np.zeros((21, 2))
    joints_2d[[0, 5, 17]] = [[30, 50], [10, 10], [50, 10]]
    for colour in ([240, 210, 190], [198, 150, 120], [120, 80, 60], [40, 25, 18]):
        image = np.full((60, 60, 3), 255, np.uint8)
        image[8:52, 8:52] = colour
        lightness, _, yellow = rgb2lab(np.array([[colour]], np.uint8))[0, 0]
        expected = np.degrees(np.arctan((lightness - 50) / yellow))
        assert typology_angle(image, joints_2d) == pytest.approx(expected, abs=0.1)
    image[:] = [60, 60, 200]
    assert np.isnan(typology_angle(image, joints_2d)), "bluish"
    assert np.isnan(typology_angle(image, joints_2d + 100)), "outside the image"


def test_report_files(data: Photographs, tmp_path: Path) -> None:
    scores = evaluate_photographs(predictor(missing="streets"), data, data)
    files = write_photograph_report(tmp_path / "report", scores, {"checkpoint": "abc"})
    document = json.loads(files[0].read_text())
    assert document["scores"]["streets"]["correlation"] is None
    assert document["scores"]["all"]["photographs"] == COUNT and document["context"]["checkpoint"] == "abc"
    text = " ".join(files[1].read_text().split())
    assert "| group | photographs | 2D error % |" in text and "- checkpoint: abc" in text
    columns, rows = score_rows(scores)
    assert [row[0] for row in rows] == list(scores) and all(len(row) == len(columns) for row in rows)


def test_command(data: Photographs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_checkpoint(hand_network(), tmp_path / "network", {})
    arguments = [
        "eval",
        "photographs",
        "--checkpoint",
        str(tmp_path / "network"),
        "--out",
        str(tmp_path / "out"),
    ]
    main([*arguments, "--data", str(data.folder), "--split", "all", "--leave-out", "rooms"])
    printed = capsys.readouterr().out
    assert "2D error %" in printed and "report.md" in printed
    document = json.loads((tmp_path / "out" / "report.json").read_text())
    assert document["scores"]["all"]["photographs"] == 5 and "rooms" not in document["scores"]
    assert document["context"]["leave out"] == "rooms" and document["context"]["step"] == "16 mm"
    # A random network: its poses are wrong, but scored.
    assert document["scores"]["all"]["relative"] > 10 and document["scores"]["all"]["present"] == 100
    with pytest.raises(SystemExit):
        main([*arguments, "--data", str(tmp_path)])
    assert "the folder that holds labels.json" in capsys.readouterr().err
