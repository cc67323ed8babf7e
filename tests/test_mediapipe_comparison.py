"""The comparison with MediaPipe Hands, with a stand-in for its interpreter."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import mediapipe_hands
from benchmarks.mediapipe_hands import COLUMNS, Compare, Hand, MediaPipeError, Photograph
from nvf_fast.evaluation import metrics
from nvf_fast.joint_definitions import UNIT_LENGTH_MM, bone_lengths

ASSETS = Path(__file__).resolve().parent.parent / "nvf_fast" / "assets"
# Returns the annotated hand of each image, shifted 20 px to the right for odd image indices.
STAND_IN = """#!{python}
import json, sys
import numpy as np
file, samples = np.load(sys.argv[2]), json.loads({samples!r})
assert file["image_0"].dtype == np.uint8 and len(file["intrinsics"]) == len(samples)
print(json.dumps({{"mediapipe": "stand-in"}}), flush=True)
for line in sys.stdin:
    sample = samples[int(line)]
    joints = np.array(sample["xyz_m"])
    pixels = joints @ file["intrinsics"][int(line)].T
    pixels = pixels[:, :2] / pixels[:, 2:] + [20 * (int(line) % 2), 0]
    hand = {{"side": sample["hand_side"], "joints_2d": pixels.tolist(), "joints": joints.tolist()}}
    print(json.dumps({{"hands": [hand], "find": 2.0, "track": 1.0}}), flush=True)
"""


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """The demo image once per hand, labelled as if annotated in MediaPipe's definition."""
    demo = json.loads((ASSETS / "demo.json").read_text())
    samples = [
        {
            "file": "demo.jpg",
            "hand_side": hand["side"],
            "K": demo["K"],
            "xyz_m": (0.0012 * np.array(hand["joints"])).tolist(),
            "definition": "mediapipe",
        }
        for hand in demo["hands"]
    ]
    (tmp_path / "annotations.json").write_text(json.dumps({"samples": samples}))
    (tmp_path / "demo.jpg").write_bytes((ASSETS / "demo.jpg").read_bytes())
    return tmp_path


def test_both_methods_are_scored(photographs: Path, tmp_path: Path) -> None:
    samples = json.loads((photographs / "annotations.json").read_text())["samples"]
    stand_in = tmp_path / "stand_in"
    stand_in.write_text(STAND_IN.format(python=sys.executable, samples=json.dumps(samples)))
    stand_in.chmod(0o755)
    table = mediapipe_hands.compare(Compare(photographs, stand_in, rounds=1))
    rows = {row[0]: dict(zip(COLUMNS, row, strict=True)) for row in table["rows"]}
    theirs, ours = rows["MediaPipe Hands + PnP"], rows["nvf_fast"]
    given = rows["nvf_fast, box and side given"]
    # The stand-in returns the annotated joints; half of its pixels are 20 px off.
    assert theirs["hands found"] == theirs["side right"] == 2 and theirs["other hands found"] == 0
    for error in ("aligned mm", "relative mm", "camera space mm"):
        assert theirs[error] == pytest.approx(0, abs=1e-6)
    boxes = [each.box for each in mediapipe_hands.read_photographs(photographs)]
    assert theirs["2D error %"] == pytest.approx(50 * 20 / (boxes[1][2:] - boxes[1][:2]).max(), rel=0.03)
    assert (theirs["processor ms"], theirs["times the speed of MediaPipe"]) == (2, 1)
    assert rows["MediaPipe Hands + PnP, tracking"]["processor ms"] == 1
    assert 0 < ours["times the speed of MediaPipe"] < 2 and ours["processor ms"] > 1
    # The network finds both hands in each image, and one of them is annotated.
    assert ours["hands found"] == 2 and ours["other hands found"] == 2
    assert given["hands found"] == 2 and given["other hands found"] == 0
    assert 0 < given["2D error %"] < 15 and 0 < given["aligned mm"] < given["camera space mm"]
    assert table["context"]["mediapipe"] == "stand-in"


def test_reports_missing_mediapipe(
    photographs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(mediapipe_hands, "RESULTS", tmp_path / "results")
    with pytest.raises(MediaPipeError, match="No such file"):
        mediapipe_hands.compare(Compare(photographs, tmp_path / "python"))
    # The interpreter of the tests lacks MediaPipe.
    command = ["mediapipe_hands", "--photographs", str(photographs), "--python", sys.executable]
    monkeypatch.setattr(sys, "argv", command)
    mediapipe_hands.main()
    assert "cannot run MediaPipe Hands: ModuleNotFoundError: No module named" in capsys.readouterr().out
    assert not (tmp_path / "results").exists()


def test_hands_are_matched_by_the_box_of_the_joints() -> None:
    rng = np.random.default_rng(0)
    joints = rng.normal(0, 40, (21, 3)) + [0, 0, 400]
    intrinsics = np.array([[300.0, 0, 128], [0, 300, 128], [0, 0, 1]])
    photograph = Photograph(np.zeros((256, 256, 3), np.uint8), intrinsics, joints, "left")
    size = (photograph.box[2:] - photograph.box[:2]).max()
    near = Hand(joints + [0, 0, 10], photograph.joints_2d + [0.05 * size, 0], "right")
    far = Hand(joints, photograph.joints_2d + [3 * size, 0], "left")
    found = mediapipe_hands.score([photograph] * 2, [[far, near], [far]])
    assert found == [
        *(1, 2, 0),
        pytest.approx(5),
        pytest.approx(metrics.pa_mpjpe(near.joints, joints)),
        pytest.approx(0, abs=1e-9),
        pytest.approx(10),
    ]
    assert mediapipe_hands.score([photograph], [[]]) == [0, 0, None, None, None, None, None]


def test_left_hands_are_converted_as_mirrored_right_ones() -> None:
    rng = np.random.default_rng(1)
    joints = rng.normal(0, 40, (21, 3)) + [0, 0, 400]
    mirror = mediapipe_hands.MIRROR
    right = mediapipe_hands.unit_joints(joints, "right", "mediapipe")
    left = mediapipe_hands.unit_joints(joints * mirror, "left", "mediapipe")
    np.testing.assert_allclose(left * mirror, right, atol=1e-9)
    assert bone_lengths(right).sum() == pytest.approx(UNIT_LENGTH_MM)
