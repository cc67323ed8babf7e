"""The paper's figures: positions and colours of drawings, and errors of input files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from nvf_fast.camera import reference_intrinsics
from nvf_fast.config import NVFConfig
from nvf_fast.data.mesh import Mesh, level_mesh
from nvf_fast.data.sample import HandSample
from nvf_fast.data.surfaces import MeshHands
from nvf_fast.estimator import PoseEstimator
from nvf_fast.evaluation import metrics
from nvf_fast.model import NVF
from nvf_fast.overlay import FINGER_COLOURS, WRIST_COLOUR
from nvf_fast.reproduce.inputs import read_photographs, read_predictions
from nvf_fast.reproduce.plots import rows
from nvf_fast.reproduce.plots.panels import (
    DARKENED,
    ImageView,
    mask_panel,
    mesh_panel,
    pose_panel,
    vote_panel,
)
from nvf_fast.reproduce.plots.pck import pck_figure
from nvf_fast.reproduce.plots.poses import PosePair, comparison_figure, photograph_figure
from nvf_fast.reproduce.plots.qualitative import QualitativeRow, hand_window, qualitative_figure
from nvf_fast.reproduce.plots.rows import nvf_row, queried_field
from nvf_fast.reproduce.plots.sheet import panel_side, sheet
from nvf_fast.synthetic.dataset import SyntheticConfig, SyntheticHands
from nvf_fast.synthetic.reference_images import sample_hands
from tests.reference_cases import reference_network

SIZE = 112
K = reference_intrinsics(SIZE, dtype=torch.float64).numpy()
GREY = np.full((SIZE, SIZE, 3), 90, np.uint8)


@pytest.fixture(scope="module")
def hand() -> MeshHands:
    """A hand that fills the image."""
    hand = sample_hands(1, torch.Generator().manual_seed(3))
    return hand.translated(torch.tensor([[0.0, 0.0, 450.0]]) - hand.joints.mean(1))


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return SyntheticHands(SyntheticConfig(1, seed=3, size=2 * SIZE))[0].image


def spread_pose() -> np.ndarray:
    """Return joints (21, 3) mm with fingers apart from each other in the reference image of `SIZE` px."""
    joints = np.zeros((21, 3))
    joints[0] = 0, 60, 500
    for finger in range(5):
        for part in range(4):
            joints[1 + 4 * finger + part] = 22.0 * (finger - 2), 25 - 25 * part, 500
    return joints


def row(**changes: Any) -> QualitativeRow:
    joints = spread_pose()
    plain = QualitativeRow(
        id="a", method="", image=GREY, intrinsics=K, hand=np.zeros((SIZE, SIZE), bool),
        voters=joints.copy(), weights=np.full((21, 21), 0.5), joints=joints, valid=True,
    )  # fmt: skip
    return dataclasses.replace(plain, **changes)


def curve(errors: list[float]) -> metrics.KeypointScores:
    return metrics.keypoint_scores(np.array(errors)[:, None])


def test_pck_legend_and_units(tmp_path: Path) -> None:
    curves = {"NVF": curve([10.0, 30.0]), "2D-Dense": curve([25.0, 60.0])}
    pck_figure(curves, tmp_path / "new" / "pck.svg")
    text = (tmp_path / "new" / "pck.svg").read_text()
    for method, scores in curves.items():
        assert f"{method} (AUC {scores.auc:.3f})" in text
    # By hand: half the joints count from the first threshold past 10 mm, all from that past 30 mm.
    assert curves["NVF"].auc == pytest.approx((0.5 * 20 + 20) / 50, abs=0.01)
    assert "error threshold (mm)" in text and "3D PCK" in text


@pytest.mark.parametrize("suffix", [".png", ".pdf", ".svg"])
def test_deterministic_files(suffix: str, tmp_path: Path) -> None:
    first, second = tmp_path / f"first{suffix}", tmp_path / f"second{suffix}"
    for path in (first, second):
        pck_figure({"NVF": curve([10.0, 30.0])}, path)
    assert first.read_bytes() == second.read_bytes()
    assert b"Date" not in first.read_bytes() and b"atplotlib v" not in first.read_bytes()


def test_pck_refuses_invalid_curves(tmp_path: Path) -> None:
    good = curve([10.0])
    with pytest.raises(ValueError, match=r"\.png, \.pdf, \.svg, got .*pck\.jpg"):
        pck_figure({"NVF": good}, tmp_path / "pck.jpg")
    with pytest.raises(ValueError, match="got none"):
        pck_figure({}, tmp_path / "pck.png")
    for change, message in (
        ({"pck": good.pck[:-1]}, r"NVF: .* got \(100,\) and \(99,\)"),
        ({"pck": good.pck * 100}, r"NVF: pck must be ratios in \[0, 1\], got 0 to 100"),
        ({"thresholds": good.thresholds[::-1]}, "NVF: thresholds must ascend"),
    ):
        with pytest.raises(ValueError, match=message):
            pck_figure({"NVF": dataclasses.replace(good, **change)}, tmp_path / "pck.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("window", [None, (20, 10, 100, 110), (-10, 0, SIZE, SIZE)])
def test_joint_colours(window: tuple[int, int, int, int] | None) -> None:
    joints = spread_pose()
    view = ImageView(GREY, K, 300, window)
    drawn = np.array(pose_panel(view, joints))
    left, top, right, bottom = window or (0, 0, SIZE, SIZE)
    scale = 300 / max(right - left, bottom - top)
    margin = (300 - scale * np.array([right - left, bottom - top])) / 2
    places = (joints[:, :2] * K[0, 0] / 500 + K[:2, 2] + 0.5 - [left, top]) * scale + margin
    for joint, (x, y) in enumerate(places):
        expected = WRIST_COLOUR if joint == 0 else FINGER_COLOURS[(joint - 1) // 4]
        np.testing.assert_allclose(drawn[int(y), int(x)], expected, atol=2)


def test_vote_opacity() -> None:
    # Voters to the left of a joint, at three heights; lines go to the joint on the right.
    joint = np.array([30.0, 0.0, 500.0])
    voters = np.array([[-30.0, -40.0, 500.0], [-30.0, 0.0, 500.0], [-30.0, 40.0, 500.0]])
    several = voters[[0, 0, 0, 1, 2]]  # the strongest of several voters at one place is visible
    colour = FINGER_COLOURS[3]
    view = ImageView(GREY, K, 224)
    drawn = np.array(
        vote_panel(view, several, np.array([0.2, 1.3, 0.3, 0.5, 0.0]), joint, colour), np.float64
    )
    midpoints = view.projected((voters + joint) / 2).round().astype(int)
    # The brightest pixel nearby, since a line covers some pixels partially.
    strong, weak, none = (drawn[y - 1 : y + 2, x - 1 : x + 2].max((0, 1)) for x, y in midpoints)
    ground = np.array([90, 90, 90]) * DARKENED
    np.testing.assert_allclose(strong, colour, atol=3)
    np.testing.assert_allclose(weak, (ground + colour) / 2, atol=3)
    np.testing.assert_allclose(none, ground, atol=1)
    x, y = view.projected(voters[2:]).round().astype(int)[0]
    assert drawn[y, x].min() > 200, "a voter without weight is still a white circle"
    assert (drawn[:20] == drawn[0, 0]).all(), "and little else is drawn"


def test_mesh_panel(hand: MeshHands) -> None:
    view = ImageView(np.zeros((SIZE, SIZE, 3), np.uint8), K, SIZE)
    drawn = (
        np.array(mesh_panel(view, hand.vertices[0].numpy(), hand.faces.numpy())).sum(-1) > 140
    )  # half covered
    columns, lines = np.meshgrid(np.arange(SIZE), np.arange(SIZE))
    pixels = np.stack([columns, lines, np.ones_like(lines)], -1).reshape(1, -1, 3)
    rays = torch.from_numpy(pixels @ np.linalg.inv(K).T).float()
    truth = hand.first_hit(torch.zeros_like(rays), rays).isfinite()[0].numpy().reshape(SIZE, SIZE)
    assert truth.sum() > 500

    def overlap(with_: np.ndarray) -> float:
        return (drawn & with_).sum() / (drawn | with_).sum()

    # The outline of a small hand lowers the overlap, so it is compared with shifts by one pixel. Its dark
    # side falls below the threshold slightly too early.
    beside = [overlap(np.roll(truth, step, axis)) for axis in (0, 1) for step in (-1, 1)]
    assert 1 - overlap(truth) < 0.6 * (1 - max(beside)), (overlap(truth), beside)  # 0.52 measured


def test_mesh_shading_and_occlusion() -> None:
    ball = level_mesh(
        lambda p: (p - torch.tensor([0.0, 0, 500])).norm(dim=1) - 40,
        torch.tensor([-50.0, -50, 450]),
        torch.tensor([50.0, 50, 550]),
    )
    far = Mesh(ball.vertices + [10, 0, 300], ball.faces)
    view = ImageView(GREY, K, SIZE)
    both = np.array(
        mesh_panel(
            view,
            np.concatenate([ball.vertices, far.vertices]),
            np.concatenate([ball.faces, far.faces + len(ball.vertices)]),
        )
    )
    alone = np.array(mesh_panel(view, ball.vertices, ball.faces))
    np.testing.assert_array_equal(both, alone)
    centre, offset = SIZE // 2, SIZE // 12
    lit, shaded = alone[centre - offset, centre - offset], alone[centre + offset, centre + offset]
    assert lit.sum() > 1.5 * shaded.sum()
    inside_out = np.array(mesh_panel(view, ball.vertices, ball.faces[:, ::-1]))
    assert np.abs(inside_out.astype(int) - alone).max() > 50, "faces point outwards"


def test_empty_mesh() -> None:
    low, high = torch.zeros(3), torch.full((3,), 20.0)
    for distance in (lambda p: torch.full((len(p),), torch.inf), lambda p: -torch.ones(len(p))):
        mesh = level_mesh(distance, low, high)
        assert mesh.vertices.shape == (0, 3) and mesh.faces.shape == (0, 3)
    view = ImageView(GREY, K, SIZE)
    np.testing.assert_array_equal(np.array(mesh_panel(view, mesh.vertices, mesh.faces)), np.array(view.image))


@pytest.mark.parametrize("height", [60, SIZE])
def test_mask_panel(height: int) -> None:
    mask = np.zeros((height, SIZE), bool)
    mask[10:30, 40:80] = True
    drawn = np.array(mask_panel(ImageView(GREY[:height], K, 2 * SIZE), mask))
    coloured = (drawn != [90, 90, 90]).any(-1) & (drawn != 255).any(-1)
    expected = np.zeros((2 * SIZE, 2 * SIZE), bool)
    top = SIZE - height  # the image is scaled by 2 and centred
    expected[top + 20 : top + 60, 80:160] = True
    np.testing.assert_array_equal(coloured, expected)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("boxed", [False, True])
def test_surface_of_the_queried_field(
    side: str, boxed: bool, image: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    sought: list[tuple[Tensor, Tensor]] = []

    def recorded(distance: Any, low: Tensor, high: Tensor, spacing_mm: float) -> Mesh:
        sought.append((low, high))
        return level_mesh(distance, low, high, spacing_mm)

    monkeypatch.setattr(rows, "level_mesh", recorded)
    estimator = PoseEstimator(reference_network(nearness=1.0))
    size = image.shape[0]
    box = torch.tensor([size * 0.2, size * 0.3, size * 0.7, size * 0.6]) if boxed else None
    intrinsics = reference_intrinsics(size, dtype=torch.float64).numpy()
    sample = HandSample("a", image, intrinsics, hand_scale=40.0, side=side, box=box)
    prediction = nvf_row(estimator, sample, use_scale=True, spacing_mm=8)
    field = queried_field(estimator, sample, 40.0)

    def distance(points: np.ndarray) -> np.ndarray:
        return field.distance(torch.from_numpy(points) @ field.frame.float().mT).numpy()

    assert prediction.valid and len(prediction.voters) > 50
    # The estimator's own query and `model.query` differ by rounding.
    assert (
        np.abs(distance(prediction.voters.astype(np.float32))) < estimator.options.surface_mm + 0.01
    ).all()
    assert (prediction.voters[:, 2] > 0).all()
    joints = torch.from_numpy(prediction.joints) @ field.frame.float().mT
    ((low, high),) = sought
    torch.testing.assert_close(low, joints.amin(0) - 40)
    torch.testing.assert_close(high, joints.amax(0) + 40)


def test_mirrored_row(image: np.ndarray) -> None:
    size = image.shape[0]
    # Views of the image's size, so that both are the same pixels: a random field magnifies rounding.
    estimator = PoseEstimator(reference_network(nearness=1.0, input_size=size))
    intrinsics = reference_intrinsics(size, dtype=torch.float64).numpy()
    mirrored = intrinsics.copy()
    mirrored[0, 2] = size - 1 - intrinsics[0, 2]
    one = nvf_row(estimator, HandSample("a", image, intrinsics), spacing_mm=8)
    flipped = np.ascontiguousarray(image[:, ::-1])
    other = nvf_row(estimator, HandSample("a", flipped, mirrored, side="left"), spacing_mm=8)
    turn = np.array([-1.0, 1.0, 1.0])
    assert isinstance(one.hand, Mesh) and isinstance(other.hand, Mesh) and len(one.hand.faces) > 100
    np.testing.assert_allclose(other.joints * turn, one.joints, atol=0.1)
    np.testing.assert_allclose(other.hand.vertices * turn, one.hand.vertices, atol=0.1)
    np.testing.assert_array_equal(other.hand.faces[:, ::-1], one.hand.faces)


@pytest.mark.parametrize("side", ["right", "left"])
def test_root_relative_rows(side: str) -> None:
    config = NVFConfig(
        input_size=32, stem=8, width=16, stacks=1, groups=4, hidden=(32, 16), hand_scale=False,
        task="root-relative",
    )  # fmt: skip
    estimator = PoseEstimator(NVF(config), surface_mm=20.0)
    image = np.random.default_rng(0).integers(0, 255, (SIZE, SIZE, 3), np.uint8)
    root = torch.tensor([12.0, -7.0, 540.0])
    sample = HandSample("a", image, K, root=root, side=side)
    prediction = nvf_row(estimator, sample, spacing_mm=16)
    field = queried_field(estimator, sample, None)
    assert prediction.valid and len(prediction.voters) > 10
    points = (torch.from_numpy(prediction.voters).double() - field.origin) @ field.frame.mT
    assert (points.abs() < 170).all()
    assert (field.distance(points.float()).abs() < 20.01).all()
    with pytest.raises(ValueError, match="a: a root-relative pose needs the root"):
        nvf_row(estimator, dataclasses.replace(sample, root=None))


def test_qualitative_figure(tmp_path: Path) -> None:
    path = tmp_path / "figure.png"
    mesh = Mesh(np.array([[-20.0, -20, 400], [20, -20, 400], [0, 20, 400]]), np.array([[0, 2, 1]]))
    silent = row(id="b", valid=False, joints=np.full((21, 3), np.nan))
    qualitative_figure([row(method="2D-Dense"), row(method="NVF", hand=mesh), silent], path)
    written = np.array(Image.open(path))
    side = panel_side(27)
    assert written.shape[1] > 9 * side and written.shape[0] > 3 * side
    assert path.stat().st_size < 1_500_000
    again = tmp_path / "again.png"
    qualitative_figure([row(method="2D-Dense"), row(method="NVF", hand=mesh), silent], again)
    assert path.read_bytes() == again.read_bytes()
    # The three rows show the same image; drawings beside it do not overlap it.
    blank = np.array(ImageView(GREY, K, side).image)
    assert (
        sum(
            (written[y : y + side, 3 * side // 4 : side] == blank[:, 3 * side // 4 : side]).all()
            for y in range(written.shape[0] - side)
        )
        == 3
    )


def test_row_grouping() -> None:
    panel = Image.new("RGB", (100, 100), (0, 0, 0))
    paper = np.array(sheet([[[panel]]] * 3, [("title",)], apart=[True, False, True]))
    black = (paper[:, 50] == 0).all(-1)
    starts = np.flatnonzero(np.diff(black.astype(int)) == 1) + 1
    near, far = np.diff(starts) - 100
    assert far > 2 * near > 0
    assert 0 < starts[0] < 30, "the title stands above"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": GREY.astype(np.float32)}, r"a: the image must be \(H, W, 3\) uint8, got float32"),
        ({"hand": np.zeros((5, 5), bool)}, r"a: the mask must be \(112, 112\) bool .* got \(5, 5\) bool"),
        ({"weights": np.zeros((21, 20))}, r"a: weights must be \(21, 21\), got \(21, 20\)"),
        ({"joints": np.full((21, 3), np.nan)}, "a: joints holds numbers that are not finite"),
    ],
)
def test_refuses_invalid_rows(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        row(**change)


def test_windows() -> None:
    joints = np.array([[300.0, 20.0], [380.0, 60.0]])
    left, top, right, bottom = hand_window(joints, 480, 640, margin=2)
    assert right - left == bottom - top == 160
    assert (left, top) == (260, 0), "centred across, at the upper edge"
    assert hand_window(joints, 100, 640, margin=2) == (290, 0, 390, 100)


def test_comparisons_and_photographs(tmp_path: Path) -> None:
    pair = PosePair(GREY, K, spread_pose(), seen=GREY[:50, :60])
    lost = dataclasses.replace(pair, joints=-spread_pose())
    comparison_figure([{"CMR": lost, "NVF": pair}, {"NVF": pair, "CMR": pair}], tmp_path / "five.png")
    photograph_figure([pair] * 5, tmp_path / "eight.png")
    side = panel_side(10)
    width, height = Image.open(tmp_path / "eight.png").size
    assert 6 * side < width < 7 * side and 2 * side < height < 3 * side, "three pairs, then two"
    with pytest.raises(ValueError, match=r"row 1 compares \['CMR'\], the first one \['CMR', 'NVF'\]"):
        comparison_figure([{"CMR": pair, "NVF": pair}, {"CMR": pair}], tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"written as \.png, got .*x\.jpg"):
        photograph_figure([pair], tmp_path / "x.jpg")
    with pytest.raises(ValueError, match=r"joints must be \(21, 3\), got \(20, 3\)"):
        PosePair(GREY, K, spread_pose()[:20])
    for draw in (comparison_figure, photograph_figure, qualitative_figure):
        with pytest.raises(ValueError, match="got none"):
            draw([], tmp_path / "x.png")


def test_reads_predictions_in_mm(tmp_path: Path) -> None:
    path = tmp_path / "pred.json"
    joints = np.stack([spread_pose(), spread_pose() + 7]) / 1000
    path.write_text(json.dumps([joints.tolist(), []]))
    np.testing.assert_allclose(read_predictions(path, 2), joints * 1000)
    with pytest.raises(ValueError, match="expected the joints of 3 samples, got 2"):
        read_predictions(path, 3)
    broken = joints.copy()
    broken[1, 4, 2] = np.nan
    for content, message in (
        ("[[", "not JSON"),
        (json.dumps(joints.tolist() * 2), r"expected \[xyz_list, verts_list\], got a list of 4"),
        (json.dumps([joints[:, 1:].tolist(), []]), r"sample 0 must be \(21, 3\) .* got shape \(20, 3\)"),
        (json.dumps([[joints[0].tolist(), "no"], []]), r"sample 1 must be \(21, 3\) numbers, got a text"),
        (json.dumps([broken.tolist(), []]), "sample 1 holds numbers that are not finite"),
        (json.dumps([(joints * 1000).tolist(), []]), "the median depth is 50.*seem to be millimetres"),
        (json.dumps([(joints - [0, 0, 0.5]).tolist(), []]), "seem to be root-relative"),
    ):  # fmt: skip
        path.write_text(content)
        with pytest.raises(ValueError, match=message):
            read_predictions(path, 2)


def test_reads_photographs(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "one.png")
    Image.fromarray(GREY[:50]).save(tmp_path / "two.png")
    entries: dict[str, Any] = {
        "two.png": {"K": K.tolist()},
        "one.png": {"K": K.tolist(), "box": [1, 2, 30, 40], "side": "left", "hand_scale": 41.5},
    }
    (tmp_path / "intrinsics.json").write_text(json.dumps(entries))
    two, one = read_photographs(tmp_path)
    assert (two.id, two.side, two.hand_scale, two.box) == ("two.png", "right", None, None)
    assert two.image.shape == (50, SIZE, 3) and (two.intrinsics == K).all()
    assert (one.id, one.side, one.hand_scale) == ("one.png", "left", 41.5)
    assert one.box is not None and one.box.tolist() == [1, 2, 30, 40]


def test_reports_all_faults_of_photographs(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "one.png")
    (tmp_path / "text.png").write_text("no image")
    entries: dict[str, Any] = {
        "one.png": {"box": [30, 2, 1, 40], "side": "up", "hand_scale": 0.04, "k": 1},
        "text.png": {"K": [[500, 0], [0, 500]]},
        "away.png": 3,
    }
    (tmp_path / "intrinsics.json").write_text(json.dumps(entries))
    with pytest.raises(ValueError, match=r"intrinsics\.json") as caught:
        read_photographs(tmp_path)
    for fault in (
        "one.png: unknown k; known are K, box, side, hand_scale",
        "one.png: K is missing",
        "one.png: box must be [x0, y0, x1, y1] px, x1 and y1 at least 2 px larger, got [30, 2, 1, 40]",
        "one.png: side must be \"right\" or \"left\", got 'up'",
        "one.png: hand_scale must be 10 to 120 mm, got 0.04",
        "not a readable image",
        "text.png: K must be (3, 3), or (1, 3, 3) for 1 image(s), got shape (2, 2)",
        "away.png: the file does not exist",
        'away.png: expected {"K": ...}, got 3',
    ):  # fmt: skip
        assert fault in str(caught.value)
    (tmp_path / "intrinsics.json").write_text("{}")
    with pytest.raises(ValueError, match="got an object of 0"):
        read_photographs(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_photographs(tmp_path / "nowhere")
