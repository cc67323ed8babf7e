"""Evaluation of hand-view networks, with stand-ins of known errors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from nvf_fast.checkpoint import save_checkpoint
from nvf_fast.cli.main import main
from nvf_fast.data.draws import Draws
from nvf_fast.data.hand_views import HandViews
from nvf_fast.data.sample import HandSample
from nvf_fast.data.surfaces import MeshHands
from nvf_fast.evaluation import hand_views
from nvf_fast.evaluation.finding import score_finding
from nvf_fast.evaluation.hand_view_report import report_tables, write_hand_view_report
from nvf_fast.evaluation.photographs import Predict
from nvf_fast.joint_definitions import UNIT_SCALE_MM
from nvf_fast.pose import HandPose
from nvf_fast.synthetic.posed_hands import draw_unit_hands
from nvf_fast.synthetic.rendered_views import SyntheticViews, ViewOptions
from nvf_fast.synthetic.rig import built_in_rig
from nvf_fast.synthetic.wide_images import WideHand, WideImage
from nvf_fast.training.calibration import ViewPredictions
from tests.hand_cases import hand_network

COUNT, SIZE, FOCAL = 12, 96, 150.0
K = np.array([[FOCAL, 0, 47.0], [0, FOCAL, 49.0], [0, 0, 1]])


@cache
def samples() -> tuple[HandSample, ...]:
    """Return upright hands of several sizes at 350 to 900 mm, palms to the camera, in images of noise."""
    hands = draw_unit_hands(built_in_rig(), Draws(5, "test", range(COUNT)), 0.0)
    random, made = np.random.default_rng(0), []
    for index, hand in enumerate(hands):
        scale = UNIT_SCALE_MM * (0.9 + 0.02 * index)
        joints = hand.joints @ np.diag([1.0, -1, -1]) * (scale / UNIT_SCALE_MM)
        joints = joints - joints.mean(0) + [5.0 * index - 20, 10, 350 + 50 * index]
        projected = joints @ K.T
        projected = projected[:, :2] / projected[:, 2:]
        made.append(
            HandSample(
                id=str(index),
                image=random.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8),
                intrinsics=K.copy(),
                joints=torch.from_numpy(joints).float(),
                hand_scale=scale,
                box=torch.from_numpy(np.concatenate([projected.min(0), projected.max(0)])).float(),
            )
        )
    return tuple(made)


def unit_joints(sample: HandSample) -> np.ndarray:
    assert sample.hand_scale is not None
    return np.asarray(sample.joints) * UNIT_SCALE_MM / sample.hand_scale


def predictor(*, deeper: float = 1.0, turns: bool = True, lost: str = "", noise: float = 0.0) -> Predict:
    """Return a predictor of the ground truth with errors of known size.

    Args:
        deeper: scale of the hands about the camera.
        turns: whether predictions follow rotations of the image.
        lost: id of the sample without a prediction.
        noise: size of independent noise, mm, described by the expected errors.
    """
    random = np.random.default_rng(1)

    def predict(given: Sequence[HandSample], sides: Sequence[str | None]) -> HandPose:
        joints = np.stack([unit_joints(sample) for sample in given])
        if not turns:
            for row, sample in enumerate(given):
                joints[row] = unit_joints(samples()[int(sample.id)])
                # An upside-down image gives a bent hand.
                if (sample.image != samples()[int(sample.id)].image).any():
                    joints[row, 5:9] += [0, 0, 40]
        expected = np.exp(random.normal(size=(len(given), 21)))
        joints = deeper * joints + noise * (expected / np.sqrt(3))[..., None] * random.choice(
            [-1, 1], joints.shape
        )
        valid = np.array([sample.id != lost for sample in given])
        joints[~valid] = np.nan
        count = np.zeros(len(given), int)
        return HandPose(
            joints,
            joints[..., :2],
            expected,
            count,
            valid,
            count,
            valid.astype(float),
            expected_error=expected * max(noise, 1),
        )

    return predict


def others() -> np.ndarray:
    return np.stack([np.asarray(sample.joints) for sample in samples()]).astype(np.float64)[::2]


def test_ground_truth_has_no_errors() -> None:
    views, rotations = hand_views.exact_views(samples())
    parts = {"coarse": views.joints.astype(np.float64) @ rotations}
    report = hand_views.score_poses(hand_views.predicted(predictor(), samples()), parts, samples(), others())
    for name in ("final", "coarse"):
        found = report["methods"][name]
        for error in ("error_2d", "aligned", "relative", "camera"):
            assert found[error] == pytest.approx(0, abs=2e-3), name
        assert found["camera_without_scale"] > 10
    constant = report["methods"]["constant pose"]
    assert constant["camera"] > constant["relative"] > constant["aligned"] > 2
    assert all(abs(found["error"]) < 1e-3 for found in report["depth"].values() if found["hands"])
    assert report["facing"]["palm"]["hands"] == COUNT and report["hands"] == COUNT and report["lost"] == 0


def test_depth_errors_are_signed_and_missed_hands_count() -> None:
    poses = hand_views.predicted(predictor(deeper=1.1, lost="3"), samples(), batch=5)
    report = hand_views.score_poses(poses, {}, samples(), others())
    assert report["lost"] == 1
    assert report["depth"]["800 to 1000 mm"]["error"] == pytest.approx(0.1 * 875, abs=1)
    assert report["methods"]["final"]["error_2d"] > 0.5, "the constant pose stands in for the lost hand"
    assert report["methods"]["final"]["camera"] > 0.1 * 350


def test_compares_expected_with_true_errors() -> None:
    poses = hand_views.predicted(predictor(noise=3.0), samples())
    report = hand_views.score_poses(poses, {}, samples(), others())
    assert report["correlation"] == pytest.approx(1, abs=1e-3)
    assert len(report["calibration"]) == 10
    for row in report["calibration"]:
        assert row["true"] == pytest.approx(row["expected"], rel=1e-3)
    shuffled = poses._replace(expected=poses.expected[:, ::-1])
    assert abs(hand_views.score_poses(shuffled, {}, samples(), others())["correlation"]) < 0.3


def test_joints_behind_the_hand_or_outside_the_image_count_apart() -> None:
    """Joints about a cube of 100 mm, 400 mm in front of the camera."""
    corners = torch.cartesian_prod(*[torch.tensor([-50.0, 50.0])] * 3) + torch.tensor([0.0, 0.0, 450.0])
    quads = ((0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3))
    faces = torch.tensor([(a, b, c) for a, b, c, _ in quads] + [(a, c, d) for a, _, c, d in quads])
    joints = torch.tensor([0.0, 0.0, 400.0]).repeat(21, 1)
    # Before the cube, 10 mm inside, 40 mm inside, beyond it, beside it; beyond the left and lower edges.
    joints[:5] = torch.tensor([[0, 0, 380], [0, 0, 410], [0, 0, 440], [10, 10, 600], [80, 0, 600.0]])
    joints[5:7] = torch.tensor([[-150.0, 0, 450], [0, 150, 450]])
    sample = replace(samples()[0], joints=joints, surface=MeshHands(corners[None], faces, joints[None]))
    visible, hidden, outside = hand_views.VISIBILITY
    expected = [visible, visible, hidden, hidden, visible, outside, outside] + 14 * [visible]
    assert hand_views.joint_visibility(sample).tolist() == expected
    meshes = [MeshHands(corners[None], faces, torch.as_tensor(each.joints)[None]) for each in samples()]
    hands = [replace(each, surface=mesh) for each, mesh in zip(samples(), meshes, strict=True)]
    poses = hand_views.predicted(predictor(deeper=1.1), hands)
    found = hand_views.score_poses(poses, {}, hands, others())["visibility"]
    assert sum(each["joints"] for each in found.values()) == 21 * COUNT
    assert all(each["aligned"] < 1e-2 < each["relative"] for each in found.values())
    assert hand_views.score_poses(poses, {}, samples(), others())["visibility"] == {}


def test_views_are_centred_on_the_box() -> None:
    views, _ = hand_views.exact_views(samples())
    longer = (views.boxes[:, 0, 2:] - views.boxes[:, 0, :2]).max(1)
    np.testing.assert_allclose(longer, 0.75 * 128, rtol=0.01)
    # Perspective moves the centre of a rotated box by at most 0.64 px here.
    np.testing.assert_allclose(views.boxes[:, 0].reshape(-1, 2, 2).mean(1), 64, atol=1)
    np.testing.assert_allclose(
        np.linalg.norm(views.joints[:, 10] - views.joints[:, 9], axis=1), UNIT_SCALE_MM, rtol=1e-4
    )


def test_stability_detects_dependence_on_rotation_and_batch() -> None:
    stable = hand_views.score_stability(predictor(), samples())
    assert stable["moved"] == 0 and stable["batch"] == 0
    # Ground truth has no error to compare; a slightly wrong pose has the same error upside down.
    upright = hand_views.score_stability(predictor(turns=False, noise=0.5), samples())
    assert upright["turned"] > 5
    noisy = hand_views.score_stability(predictor(noise=3.0), samples())
    assert 0.7 < noisy["turned"] < 1.4 and noisy["moved"] > 1 and noisy["batch"] > noisy["moved"]


def test_rotated_samples_keep_correct_labels() -> None:
    rotated = hand_views._turned(samples()[2])
    projected = np.asarray(rotated.joints) @ rotated.intrinsics.T
    projected = projected[:, :2] / projected[:, 2:]
    np.testing.assert_allclose(np.asarray(rotated.box), [*projected.min(0), *projected.max(0)], atol=1e-3)
    row, column = np.rint(projected[8]).astype(int)[::-1]
    before = np.asarray(samples()[2].joints) @ K.T
    y, x = np.rint(before[8, :2] / before[8, 2]).astype(int)[::-1]
    np.testing.assert_array_equal(rotated.image[row, column], samples()[2].image[y, x])


def test_presence_and_sides() -> None:
    """Brightness encodes presence, the brighter half the side; left hands appear mirrored."""
    options = ViewOptions(compositions=1)
    views = SyntheticViews(2, options=options).draw(6, "close")
    views = replace(views, left=np.zeros((6, 2), bool))
    images = np.full_like(views.images, 10)
    images[:5] = 200
    images[2:4, :, :64] = 240  # the left halves of two
    views = replace(views, images=images)
    views.left[2:4, 0] = True
    inputs = []

    def heads(given: HandViews) -> ViewPredictions:
        inputs.append(given.images)
        brightness = torch.from_numpy(given.images.mean((1, 2, 3)) / 255)
        left = torch.from_numpy((given.images[:, :, :60].mean((1, 2, 3)) > 220).astype(np.float32))
        none = torch.zeros(len(given), 21, 3)
        return ViewPredictions(none, none, brightness, left, none[..., 0])

    found = hand_views.score_presence(heads, views, 0.5)
    assert found == {"hands": 6, "lost": pytest.approx(100 / 6), "side": 100}
    plain, mirrored = inputs
    np.testing.assert_array_equal(mirrored[:, :, 1:], plain[:, :, :0:-1])  # around column 64
    assert hand_views.score_empty(heads, views, 0.9)["accepted"] == 0
    assert hand_views.score_empty(heads, views, 0.01)["accepted"] == 100


def test_finding_counts_hits_sides_and_false_hands() -> None:
    def hand(x: float, size: float, side: str) -> WideHand:
        joints = np.zeros((21, 3), np.float32)
        return WideHand(side, joints, np.array([x, 10, x + size, 10 + size], np.float32))  # type: ignore[arg-type]

    image = np.zeros((200, 400, 3), np.uint8)
    images = [
        WideImage(image, K, (hand(10, 50, "right"), hand(200, 100, "left"))),
        WideImage(image, K, (hand(10, 170, "left"),)),
        WideImage(image, K, ()),
    ]
    predictions = iter(
        [
            [((10, 10, 60, 60), "left"), ((15, 12, 62, 60), "right"), ((190, 10, 310, 120), "left")],
            [((210, 10, 380, 180), "left")],
            [],
        ]
    )

    def find(image: np.ndarray, intrinsics: np.ndarray) -> HandPose:
        found = next(predictions)
        boxes = np.array([box for box, _ in found], float).reshape(-1, 2, 2)
        pixels = np.repeat(boxes, [1, 20], 1) if len(found) else np.zeros((0, 21, 2))
        count = np.zeros(len(found), int)
        joints = np.zeros((len(found), 21, 3))
        sides = tuple(side for _, side in found)
        presence = np.linspace(0.99, 0.85, len(found))
        return HandPose(joints, pixels, joints[..., 0], count, count == 0, count, presence, side=sides)

    found = score_finding(find, images)
    assert (found["images"], found["hands"]) == (3, 3)
    assert found["recall"] == pytest.approx(200 / 3) and found["side"] == 50
    assert found["false_hands"] == pytest.approx(2 / 3), "a second box on one hand, and one beside"
    assert [each["recall"] for each in found["sizes"].values()] == [100, 100, 0]
    # Presences of 0.99 and 0.85 of the hands found, and 0.92 and 0.99 of false ones.
    assert list(found["presence"]) == ["0", "0.8", "0.9", "0.95", "0.99"]
    rates = np.array([list(each.values()) for each in found["presence"].values()])
    np.testing.assert_allclose(rates[:, 0], [200 / 3, 200 / 3, 100 / 3, 100 / 3, 100 / 3])
    np.testing.assert_allclose(rates[:, 1], [2 / 3, 2 / 3, 2 / 3, 1 / 3, 1 / 3])


def test_reports_hold_the_measurements(tmp_path: Path) -> None:
    report = {
        "skipped": {"poses": "no data"},
        "finding": {
            "images": 2, "hands": 3, "recall": 50.0, "side": float("nan"), "false_hands": 0.5,
            "sizes": {"40 to 80": {"recall": float("nan"), "hands": 0}},
            "presence": {"0.9": {"recall": 25.0, "false_hands": 0.0}},
        },
    }  # fmt: skip
    files = write_hand_view_report(tmp_path, report, {"checkpoint": "abc"})
    assert [path.name for path in files] == ["report.json", "report.md"]
    text = " ".join((tmp_path / "report.md").read_text().split())
    assert "- poses: no data" in text and "| hands found in wide images, % | 50.000 |" in text
    assert json.loads((tmp_path / "report.json").read_text())["finding"]["side"] is None
    assert list(report_tables(report)) == ["sizes", "presence", "checks"]
    report["crops"] = report["finding"]
    columns, rows = report_tables(report)["presence"]
    assert rows == [["0.9", 25.0, 0.0, 25.0, 0.0]] and columns[3] == "photographs: found %"


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_checkpoint(hand_network(), tmp_path / "tiny", {})
    options = ["--count", "0", "--empty", "4", "--wide", "1", "--step", "32", "--device", "cpu"]
    main(["eval", "hand-views", "--checkpoint", str(tmp_path / "tiny"), "--out", str(tmp_path), *options])
    out = capsys.readouterr().out
    assert "- poses and stability: --count is 0" in out
    assert "- presence and finding in photographs: --photographs is not given" in out
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["empty"]["empty"] == 4 and report["finding"]["images"] == 1
    assert report["time"]["pose"] > 0 and report["context"]["backgrounds"] == "procedural"
