"""The paper's figures: positions and colours of what is drawn, and errors of input files."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from nvf_fast.camera import project, reference_intrinsics
from nvf_fast.camera_model import Camera
from nvf_fast.config import NVFConfig
from nvf_fast.data.sample import HandSample
from nvf_fast.data.surfaces import MeshHands
from nvf_fast.estimator import PoseEstimator
from nvf_fast.evaluation import metrics
from nvf_fast.model import NVF
from nvf_fast.overlay import FINGER_COLOURS, undistorted
from nvf_fast.reproduce.inputs import read_photographs, read_predictions
from nvf_fast.reproduce.plots.hands import pose_figure, qualitative_figure
from nvf_fast.reproduce.plots.panels import (
    MASK_COLOUR,
    Mask,
    draw_hand,
    draw_image,
    draw_pose,
    draw_votes,
    hand_window,
)
from nvf_fast.reproduce.plots.pck import pck_figure
from nvf_fast.reproduce.plots.rows import PredictionRow, nvf_row
from nvf_fast.surface import MARGIN_MM, NOTHING, Mesh, level_mesh
from nvf_fast.synthetic.dataset import SyntheticConfig, SyntheticHands
from tests.reference_cases import reference_network
from tests.sampled_hands import sample_hands

SIZE = 112
K = reference_intrinsics(SIZE, dtype=torch.float64).numpy()
GREY = np.full((SIZE, SIZE, 3), 90, np.uint8)
SAMPLE = HandSample("a", GREY, K)
Draw = Callable[[Axes], None]


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


def row(**changes: Any) -> PredictionRow:
    joints = spread_pose()
    hand = Mesh(np.array([[-20.0, -20, 400], [20, -20, 400], [0, 20, 400]]), np.array([[0, 2, 1]]))
    plain = {"sample": SAMPLE, "method": "NVF", "hand": hand, "valid": True}
    votes = {"voters": joints.copy(), "weights": np.full((21, 21), 0.5), "joints": joints}
    return PredictionRow(**plain | votes | changes)  # type: ignore[arg-type]


def drawn(draw: Draw, sample: HandSample = SAMPLE, scale: int = 1) -> np.ndarray:
    """Draw on a sample's image; return the panel (H, W, 3) uint8 with `scale` px for a pixel of the image."""
    height, width = sample.image.shape[:2]
    figure = Figure(figsize=(width * scale / 100, height * scale / 100), dpi=100)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    draw_image(axes, sample)
    draw(axes)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def curve(errors: list[float]) -> metrics.KeypointScores:
    return metrics.keypoint_scores(np.array(errors)[:, None])


def test_pck_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Figure] = []
    save = Figure.savefig

    def recorded(self: Figure, *arguments: Any, **options: Any) -> None:
        figures.append(self)
        save(self, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", recorded)
    curves = {"NVF": curve([10.0, 30.0]), "2D-Dense": curve([25.0, 60.0])}
    for name in ("first", "second"):
        pck_figure(curves, tmp_path / name / "pck.png")
    (axes,) = figures[0].axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("error threshold (mm)", "3D PCK")
    for line, (method, scores) in zip(axes.lines, curves.items(), strict=True):
        assert line.get_label() == f"{method} (AUC {scores.auc:.3f})"
        np.testing.assert_array_equal(line.get_xydata(), np.stack([scores.thresholds, scores.pck], 1))
    (legend,) = figures[0].legends
    assert legend.get_window_extent().y1 <= axes.get_tightbbox().y0, "the legend covers no curve"
    # By hand: half the joints count from the first threshold past 10 mm, all from that past 30 mm.
    assert curves["NVF"].auc == pytest.approx((0.5 * 20 + 20) / 50, abs=0.01)
    first, second = ((tmp_path / name / "pck.png").read_bytes() for name in ("first", "second"))
    assert first == second and b"atplotlib" not in first


def test_joint_colours() -> None:
    joints = spread_pose()
    panel = drawn(lambda axes: draw_pose(axes, SAMPLE, joints), scale=4)
    places = (project(joints, K) + 0.5) * 4
    for joint, (x, y) in enumerate(places.astype(int)):
        expected = (255, 255, 255) if joint == 0 else FINGER_COLOURS[(joint - 1) // 4]
        np.testing.assert_allclose(panel[y, x], expected, atol=2)


def test_nearer_bones_cover_farther_ones() -> None:
    joints = np.tile([0.0, 0.0, 500.0], (21, 1))
    joints[3:5] = [[-20, 0, 400], [20, 0, 400]]  # the thumb's last bone lies before the index finger's
    joints[7:9] = [[0, -20, 700], [0, 20, 700]]
    panel = drawn(lambda axes: draw_pose(axes, SAMPLE, joints), scale=4)
    x, y = ((project(joints[3:5].mean(0, keepdims=True), K)[0] + 0.5) * 4 + [10, 0]).astype(int)
    np.testing.assert_allclose(panel[y, x], FINGER_COLOURS[0], atol=2)


def test_vote_opacity() -> None:
    # Voters to the left of a joint, at three heights; lines go to the joint on the right.
    joints = np.tile([30.0, 0.0, 500.0], (21, 1))
    voters = np.array([[-30.0, -40.0, 500.0], [-30.0, 0.0, 500.0], [-30.0, 40.0, 500.0]])
    weights = np.array([1.3, 0.5, 0.0])
    panel = drawn(lambda axes: draw_votes(axes, SAMPLE, voters, weights, joints, 14), scale=8)
    middles = ((project((voters + joints[:1]) / 2, K) + 0.5) * 8).astype(int)
    # The brightest pixel nearby, since a line covers some pixels partially.
    strong, weak, none = (panel[y - 1 : y + 2, x - 1 : x + 2, 1].max() for x, y in middles)
    colour = FINGER_COLOURS[3][1]
    ground = 90
    assert colour > ground + 20
    # 11, 5 and 0 measured: a thin line covers no pixel whole.
    np.testing.assert_allclose([strong, weak, none], [colour, (colour + ground) / 2, ground], atol=12)
    x, y = ((project(voters[2:], K)[0] + 0.5) * 8).astype(int)
    assert panel[y - 1 : y + 2, x - 1 : x + 2].max(axis=(0, 1)).min() > 200, (
        "a voter without weight is a disc"
    )
    assert (panel[:20] == 90).all(), "and little else is drawn"


def test_mesh_outline(hand: MeshHands) -> None:
    sample = HandSample("a", np.zeros((SIZE, SIZE, 3), np.uint8), K)
    mesh = Mesh(hand.vertices[0].double().numpy(), hand.faces.numpy())
    panel = drawn(lambda axes: draw_hand(axes, sample, mesh), sample, scale=4)[2::4, 2::4].sum(-1) > 140
    columns, lines = np.meshgrid(np.arange(SIZE), np.arange(SIZE))
    pixels = np.stack([columns, lines, np.ones_like(lines)], -1).reshape(1, -1, 3)
    rays = torch.from_numpy(pixels @ np.linalg.inv(K).T).float()
    truth = hand.first_hit(torch.zeros_like(rays), rays).isfinite()[0].numpy().reshape(SIZE, SIZE)
    assert truth.sum() > 500

    def overlap(with_: np.ndarray) -> float:
        return (panel & with_).sum() / (panel | with_).sum()

    # The outline of a small hand lowers the overlap, so it is compared with shifts by one pixel.
    beside = [overlap(np.roll(truth, step, axis)) for axis in (0, 1) for step in (-1, 1)]
    assert 1 - overlap(truth) < 0.6 * (1 - max(beside)), (overlap(truth), beside)


def test_mesh_shading_and_occlusion() -> None:
    ball = level_mesh(
        lambda p: (p - torch.tensor([0.0, 0, 500])).norm(dim=1) - 40,
        torch.tensor([-50.0, -50, 450]),
        torch.tensor([50.0, 50, 550]),
    )
    far = Mesh(ball.vertices + [10, 0, 300], ball.faces)
    both = Mesh(
        np.concatenate([ball.vertices, far.vertices]),
        np.concatenate([ball.faces, far.faces + len(ball.vertices)]),
    )
    inside_out = Mesh(ball.vertices, ball.faces[:, ::-1])
    alone, covered, inner = (
        drawn(lambda axes, mesh=mesh: draw_hand(axes, SAMPLE, mesh)).astype(int)  # type: ignore[misc]
        for mesh in (ball, both, inside_out)
    )
    np.testing.assert_allclose(covered, alone, atol=20)  # 15 measured: edges of faces are translucent
    centre, offset = SIZE // 2, SIZE // 12
    lit, shaded = alone[centre - offset, centre - offset], alone[centre + offset, centre + offset]
    assert lit.sum() > 1.5 * shaded.sum()
    assert np.abs(inner - alone).max() > 50, "faces point outwards"


def test_empty_mesh() -> None:
    low, high = torch.zeros(3), torch.full((3,), 20.0)
    for distance in (lambda p: torch.full((len(p),), torch.inf), lambda p: -torch.ones(len(p))):
        assert level_mesh(distance, low, high) is NOTHING
    assert (drawn(lambda axes: draw_hand(axes, SAMPLE, NOTHING)) == 90).all()


def test_mask() -> None:
    lattice = np.stack(np.meshgrid(np.arange(0, SIZE, 4.0), np.arange(0, SIZE, 4.0)), -1)
    inside = 30.0 - np.linalg.norm(lattice - [60, 40], axis=-1)
    panel = drawn(lambda axes: draw_hand(axes, SAMPLE, Mask(lattice, inside)))
    expected = np.array(to_rgb(MASK_COLOUR[:3])) * 255 * MASK_COLOUR[3] + 90 * (1 - MASK_COLOUR[3])
    np.testing.assert_allclose(panel[40, 60], expected, atol=2)
    columns, lines = np.meshgrid(np.arange(SIZE), np.arange(SIZE))
    distance = np.hypot(columns - 60, lines - 40)
    coloured = (panel != 90).any(-1)
    assert coloured[distance < 28].all() and not coloured[distance > 32].any()
    assert (drawn(lambda axes: draw_hand(axes, SAMPLE, Mask(lattice, inside - 99))) == 90).all()


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("boxed", [False, True])
def test_voters_and_surface_lie_on_the_predicted_surface(side: str, boxed: bool, image: np.ndarray) -> None:
    estimator = PoseEstimator(reference_network(nearness=1.0))
    size = image.shape[0]
    box = torch.tensor([size * 0.2, size * 0.3, size * 0.7, size * 0.6]) if boxed else None
    intrinsics = reference_intrinsics(size, dtype=torch.float64).numpy()
    sample = HandSample("a", image, intrinsics, hand_scale=40.0, side=side, box=box)
    prediction = nvf_row(estimator, sample, use_scale=True, spacing_mm=8)
    pose = estimator(image, intrinsics, 40.0, box, side)
    distance = estimator.field_distance(image, intrinsics, pose, 40.0)
    assert prediction.valid and len(prediction.voters) > 50
    # The estimator's own query and `model.query` differ by rounding.
    assert (distance(torch.from_numpy(prediction.voters)).abs() < estimator.options.surface_mm + 0.01).all()
    assert (prediction.voters[:, 2] > 0).all()
    assert isinstance(prediction.hand, Mesh) and len(prediction.hand.faces) > 0
    low, high = prediction.joints.min(0) - MARGIN_MM, prediction.joints.max(0) + MARGIN_MM
    assert (prediction.hand.vertices >= low - 0.01).all() and (prediction.hand.vertices <= high + 8).all()


def test_mirrored_field(image: np.ndarray) -> None:
    size = image.shape[0]
    # Views of the image's size, so that both are the same pixels: a random field magnifies rounding.
    estimator = PoseEstimator(reference_network(nearness=1.0, input_size=size))
    intrinsics = reference_intrinsics(size, dtype=torch.float64).numpy()
    mirrored = intrinsics.copy()
    mirrored[0, 2] = size - 1 - intrinsics[0, 2]
    pose = estimator(image, intrinsics)
    flipped, left = np.ascontiguousarray(image[:, ::-1]), replace(pose, side="left")
    points = torch.tensor([0.0, 0.0, 600.0]) + 40 * torch.randn(500, 3)
    expected = estimator.field_distance(image, intrinsics, pose)(points)
    found = estimator.field_distance(flipped, mirrored, left)(points * torch.tensor([-1.0, 1.0, 1.0]))
    torch.testing.assert_close(found, expected, rtol=0, atol=0.1)
    assert expected[expected.isfinite()].std() > 1


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
    assert prediction.valid and len(prediction.voters) > 10
    assert (np.abs(prediction.voters - root.numpy()) < 170).all()
    distance = estimator.field_distance(image, K, estimator(image, K, side=side, root=root), root=root)
    assert (distance(torch.from_numpy(prediction.voters)).abs() < 20.01).all()
    with pytest.raises(ValueError, match="a: a root-relative pose needs the root"):
        nvf_row(estimator, HandSample("a", image, K, side=side))


def test_qualitative_figure(tmp_path: Path) -> None:
    path = tmp_path / "figure.png"
    lattice = np.stack(np.meshgrid(np.arange(0, SIZE, 4.0), np.arange(0, SIZE, 4.0)), -1)
    mask = Mask(lattice, lattice[..., 0] - 50)
    invalid = row(valid=False, hand=NOTHING, joints=np.full((21, 3), np.nan))
    qualitative_figure([row(method="2D-Dense", hand=mask), row(), invalid], path)
    assert path.stat().st_size < 1_500_000
    panels = np.array(Image.open(path).convert("RGB"))
    # The first panels of the three rows show the same image, with nothing over it.
    grey = (panels == 90).all(-1)
    starts = np.flatnonzero(np.diff((grey[:, : panels.shape[1] // 10].sum(1) > 50).astype(int)) == 1)
    assert len(starts) == 3


def test_pose_figure(tmp_path: Path) -> None:
    joints = spread_pose()
    behind = joints * [1, 1, -1]
    rows: list[list[tuple[HandSample, np.ndarray | None]]] = [
        [(SAMPLE, None), (SAMPLE, joints)],
        [(SAMPLE, behind)],
    ]
    pose_figure(rows, ["RGB input", "NVF"], tmp_path / "poses.png")
    panels = np.array(Image.open(tmp_path / "poses.png").convert("RGB"))
    height, width = np.array(panels.shape[:2]) // 2

    def shows_pose(panel: np.ndarray) -> bool:
        return bool((np.abs(panel.astype(int) - FINGER_COLOURS[0]).max(-1) < 5).any())

    quarters = panels[:height, :width], panels[:height, width:], panels[height:, :width]
    assert [shows_pose(quarter) for quarter in quarters] == [False, True, False]
    assert (panels[height + 50 :, width:] == 255).all()


@pytest.mark.parametrize("model", ["plumb_bob", "fisheye"])
def test_undistorted_image(model: Any) -> None:
    camera = Camera([[90.0, 0, 70], [0, 95.0, 60], [0, 0, 1]], (160, 120), (-0.2, 0.05, 0.0, 0.0), model)
    points = np.array([[-0.5, -0.4, 1.0], [0.6, 0.3, 1.0], [0.0, 0.5, 1.0]])
    columns, lines = np.meshgrid(np.arange(160), np.arange(120))
    image = np.zeros((120, 160, 3), np.uint8)
    for channel, (u, v) in enumerate(camera.project(points)):  # a dot of each colour
        image[..., channel] = 255 * np.exp(-((columns - u) ** 2 + (lines - v) ** 2) / 4.5)
    straight = undistorted(image, camera).astype(float)
    for channel, pixel in enumerate(project(points, camera.K)):
        dot = straight[..., channel]
        centre = np.array([(dot * columns).sum(), (dot * lines).sum()]) / dot.sum()
        assert np.linalg.norm(centre - camera.project(points)[channel]) > 2
        np.testing.assert_allclose(centre, pixel, atol=0.4)  # 0.19 px measured: dots are stretched
    plain = Camera(camera.K, (160, 120))
    assert undistorted(image, plain) is image


def test_windows() -> None:
    joints = spread_pose()
    window = hand_window(HandSample("a", np.zeros((480, 640, 3), np.uint8), K, joints=torch.tensor(joints)))
    left, top, right, bottom = window
    pixels = project(joints, K)
    assert right - left == bottom - top == int(1.8 * np.ptp(pixels, 0).max())
    assert abs((left + right) / 2 - (pixels[:, 0].min() + pixels[:, 0].max()) / 2) <= 1
    wide = HandSample("a", np.zeros((40, 640, 3), np.uint8), K, joints=torch.tensor(joints))
    left, top, right, bottom = hand_window(wide)
    assert (top, bottom, right - left) == (0, 40, 40)


def test_reads_predictions_in_mm(tmp_path: Path) -> None:
    path = tmp_path / "pred.json"
    joints = np.stack([spread_pose(), spread_pose() + 7]) / 1000
    path.write_text(json.dumps([joints.tolist(), []]))
    np.testing.assert_allclose(read_predictions(path, 2), joints * 1000)
    with pytest.raises(ValueError, match=r"expected joints \(3, 21, 3\) of 3 samples, got \(2, 21, 3\)"):
        read_predictions(path, 3)
    broken = joints.copy()
    broken[1, 4, 2] = np.nan
    for content, message in (
        ("[[", "not JSON"),
        (json.dumps(joints.tolist() * 2), r"expected \[xyz_list, verts_list\], joints and vertices"),
        (json.dumps([joints[:, 1:].tolist(), []]), r"expected joints \(2, 21, 3\) .* got \(2, 20, 3\)"),
        (json.dumps([[joints[0].tolist(), "no"], []]), r"expected \[xyz_list, verts_list\]"),
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
    assert two.image.shape == (50, SIZE, 3)
    assert (two.name, *two[2:]) == ("two.png", K.tolist(), None, "right", None)
    assert (one.name, *one[2:]) == ("one.png", K.tolist(), [1, 2, 30, 40], "left", 41.5)
    for entry, message in (
        ({"one.png": {"K": K.tolist(), "k": 1}}, "one.png: K is required, box, side and hand_scale optional"),
        ({"one.png": {"box": [1, 2, 30, 40]}}, "one.png: K is required"),
        ({"one.png": 3}, "one.png: K is required, .* got 3"),
        ({}, "expected .* got {}"),
    ):
        (tmp_path / "intrinsics.json").write_text(json.dumps(entry))
        with pytest.raises(ValueError, match=message):
            read_photographs(tmp_path)
    for name in ("missing.png", "intrinsics.json"):
        (tmp_path / "intrinsics.json").write_text(json.dumps({name: {"K": K.tolist()}}))
        with pytest.raises(OSError, match=name):
            read_photographs(tmp_path)
