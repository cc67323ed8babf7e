"""Hand views of photographs: labels against image content, mirroring, distances by brute force."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("numba")

from nvf_fast.data import photograph_views
from nvf_fast.data.hand_views import HandViews
from nvf_fast.data.joint_surface import sample_field_points, surface_distance
from nvf_fast.data.photograph_views import (
    PhotographViews,
    aim,
    composite,
    hand_mask,
    project,
    view_homography,
)
from nvf_fast.data.photographs import Photographs, mirrored
from nvf_fast.data.query_points import IN_BALL, NEAR, ON_RAYS
from nvf_fast.data.tables import write_image
from nvf_fast.hand_surface import RADII_MM, cone_ends
from nvf_fast.joint_definitions import UNIT_LENGTH_MM, bone_lengths, scale_to_unit
from tests.photograph_cases import MARKED, disc_centres, photograph_labels, write_photographs

COUNT = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photographs(tmp_path_factory.mktemp("photographs"), photograph_labels(COUNT))


@pytest.fixture(scope="module")
def views(folder: Path) -> PhotographViews:
    return PhotographViews(Photographs(folder, "all"))


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(3)


def joints_in_views(views: HandViews) -> np.ndarray:
    return views.joints[..., :2] / views.joints[..., 2:] * views.focal[:, None, None] + 64


def without_colour_changes(monkeypatch: pytest.MonkeyPatch, replaced: float = 0.0) -> None:
    monkeypatch.setattr(photograph_views, "change_colours", lambda image, random: image)
    monkeypatch.setattr(photograph_views, "REPLACED", replaced)
    monkeypatch.setattr(photograph_views, "REPLACED_OUTSIDE", replaced)


def with_plain_backgrounds(monkeypatch: pytest.MonkeyPatch, grey: int) -> None:
    plain = np.full((128, 128, 3), grey, np.uint8)
    monkeypatch.setattr(photograph_views._BackgroundStock, "draw", lambda stock, random: plain)


def assert_discs_lie_on_joints(views: HandViews, tolerance: float = 0.7) -> None:
    expected = joints_in_views(views)[:, MARKED]
    for row in range(len(views)):
        whole = ((expected[row] > 7) & (expected[row] < 120)).all(1)
        found = disc_centres(views.images[row])[whole]
        # The mean of a disc's pixels lies at most 0.5 px from its centre.
        np.testing.assert_allclose(found, expected[row][whole], atol=tolerance)


@pytest.mark.parametrize("keep_sides", [False, True])
def test_exact_views(views: PhotographViews, keep_sides: bool) -> None:
    exact = views.exact(keep_sides=keep_sides)
    assert_discs_lie_on_joints(exact)
    low, high = exact.boxes[:, 0, :2], exact.boxes[:, 0, 2:]
    np.testing.assert_allclose((high - low).max(1), 96, rtol=1e-4)
    np.testing.assert_allclose((low + high) / 2, 64, atol=1e-2)
    assert np.isnan(exact.boxes[:, 1]).all()
    left = np.arange(COUNT) % 2 == 1
    np.testing.assert_array_equal(exact.left[:, 0], left & keep_sides)
    np.testing.assert_array_equal(exact.trust, ~(left & keep_sides))
    np.testing.assert_allclose(bone_lengths(exact.joints).sum(1), UNIT_LENGTH_MM, rtol=1e-5)


def test_left_hands_are_mirror_images(views: PhotographViews) -> None:
    mirror, kept = views.exact(), views.exact(keep_sides=True)
    for row in range(1, COUNT, 2):
        np.testing.assert_allclose(mirror.joints[row], mirrored(kept.joints[row]), atol=1e-2)
        # The principal point is pixel 64: column c is column 128 - c of the mirror image.
        difference = mirror.images[row][:, 1:].astype(int) - kept.images[row][:, :0:-1]
        assert np.abs(difference).max() <= 2


def test_drawn_views(
    views: PhotographViews, random: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_colour_changes(monkeypatch)
    drawn = views.draw(80, random)
    assert_discs_lie_on_joints(drawn)
    size = (drawn.boxes[:, 0, 2:] - drawn.boxes[:, 0, :2]).max(1) / 128
    assert 0.43 < size.min() < 0.6 and 0.85 < size.max() < 1.1
    centre = (drawn.boxes[:, 0, :2] + drawn.boxes[:, 0, 2:]) / 2 - 64
    assert 6 < np.abs(centre).max() < 18
    assert not drawn.left.any() and (drawn.trust == 1).all()
    # Any roll angle: fingers up, down and sideways.
    ahead = joints_in_views(drawn)[:, 9] - joints_in_views(drawn)[:, 0]
    quarters = Counter((np.arctan2(ahead[:, 1], ahead[:, 0]) // (np.pi / 2)).tolist())
    assert len(quarters) == 4


def test_equal_generators_draw_equal_views(views: PhotographViews) -> None:
    for draw in (views.draw, views.wide):
        first, second, other = (draw(4, np.random.default_rng(seed)) for seed in (1, 1, 2))
        for field in fields(HandViews):
            np.testing.assert_array_equal(getattr(first, field.name), getattr(second, field.name))
        assert (first.images != other.images).mean() > 0.5


def test_wide_views(tmp_path: Path, random: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    without_colour_changes(monkeypatch)
    monkeypatch.setattr(photograph_views, "hand_mask", lambda image, *_: np.ones(image.shape[:2], np.float32))
    monkeypatch.setattr(photograph_views, "WIDE_FILL", (0.25, 0.6))
    monkeypatch.setattr(photograph_views, "SECOND_HAND", 0.0)
    data = Photographs(write_photographs(tmp_path, photograph_labels(COUNT), every_joint=True), "all")
    views = PhotographViews(data)
    with_plain_backgrounds(monkeypatch, 90)
    wide = views.wide(30, random)
    for image, box in zip(wide.images, wide.boxes[:, 0], strict=True):
        red = np.argwhere(image[..., 0].astype(int) - image[..., 1] > 60)[:, ::-1]
        # A disc reaches 3.5 px beyond its joint in the photograph, and is at most 1.2 times as large here.
        np.testing.assert_allclose([*red.min(0), *red.max(0)], box, atol=4.5)
    assert 8 < wide.left[:, 0].sum() < 22
    assert np.isnan(wide.boxes[:, 1]).all() and not wide.left[:, 1].any()
    assert np.isnan(wide.joints).all() and np.isnan(wide.points).all() and (wide.trust == 0).all()


def test_two_hands_of_a_wide_view(
    views: PhotographViews, random: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(photograph_views, "SECOND_HAND", 1.0)
    wide = views.wide(40, random)
    assert np.isfinite(wide.boxes[:, 0]).all()
    both = np.isfinite(wide.boxes[:, 1]).all(1)
    assert 10 < both.sum() < 40
    first, second = wide.boxes[both].transpose(1, 0, 2)
    overlaps = ((first[:, :2] < second[:, 2:]) & (second[:, :2] < first[:, 2:])).all(1)
    assert not overlaps.any()
    sizes = (wide.boxes[both][..., 2:] - wide.boxes[both][..., :2]).max(-1) / 128
    assert sizes.min() >= 0.099 and sizes.max() <= 0.601
    assert np.nanmin(wide.boxes) >= 0 and np.nanmax(wide.boxes) <= 127


def test_background_replacement(
    views: PhotographViews, random: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_colour_changes(monkeypatch, replaced=1.0)
    with_plain_backgrounds(monkeypatch, 200)
    drawn = views.draw(10, random)
    # The mask may remove a part of a disc.
    assert_discs_lie_on_joints(drawn, tolerance=3.0)
    corners = drawn.images[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert (np.median(corners, axis=1) == 200).all()


def test_mask(views: PhotographViews, random: np.random.Generator) -> None:
    exact = views.exact([0])
    joints, focal = exact.joints[0].astype(np.float64), float(exact.focal[0])
    rows, columns = np.mgrid[:128, :128]
    points = np.stack([(columns - 64) / focal, (rows - 64) / focal, np.ones((128, 128))], -1).reshape(
        1, -1, 3
    )
    on_hand = np.zeros((128, 128), bool)
    for depth in np.linspace(joints[:, 2].min() - 15, joints[:, 2].max() + 15, 60):
        on_hand |= (surface_distance(points * depth, joints[None]) < 0).reshape(128, 128)
    image = np.where(on_hand[..., None], [200, 140, 110], [40, 80, 60]).astype(np.uint8)
    image = np.clip(image + random.normal(0, 5, image.shape), 0, 255).astype(np.uint8)
    covered = np.ones((128, 128), np.float32)
    errors = []
    for _ in range(20):
        alpha = hand_mask(image, joints, focal, covered, random)
        assert alpha.dtype == np.float32 and alpha.min() >= 0 and alpha.max() <= 1
        assert alpha[on_hand].mean() > 0.95
        errors.append(alpha[~on_hand].mean())
    # With colours hardly any surroundings remain; with region growing alone, a rim remains.
    assert min(errors) < 0.02 and max(errors) < 0.25
    background = np.full_like(image, 250)
    mixed = composite(image, on_hand.astype(np.float32), background, random)
    np.testing.assert_array_equal(mixed[on_hand], image[on_hand])


def test_black_padding(tmp_path: Path) -> None:
    entries = photograph_labels(1)
    folder = write_photographs(tmp_path, entries)
    image = np.full((160, 160, 3), 120, np.uint8)  # [..., :60] is padding
    image[:, :60] = 0
    write_image(folder / "crops" / entries[0]["file"], image)
    views = PhotographViews(Photographs(folder))
    covered = views._crop(0).covered(np.array([[0.8, 0, 0], [0, 0.8, 0], [0, 0, 1]]))
    assert (covered[24:104, :40] < 0.01).all() and (covered[24:104, 60:104] > 0.99).all()
    assert (covered[0] < 0.2).all()


def test_group_weights(tmp_path: Path, random: np.random.Generator) -> None:
    entries = photograph_labels(COUNT)  # 4 of rooms, 4 of streets
    entries[7]["side_score"] = 0.7
    data = Photographs(write_photographs(tmp_path, entries), "all")
    views = PhotographViews(data, weights={"rooms": 1.0, "streets": 3.0})
    assert views.indices.tolist() == list(range(7))
    drawn = Counter(views._choose(13_000, random).tolist())
    for index in range(7):
        # 13 000 draws of one in 13 or three in 13; five standard deviations.
        expected = 1000 if index < 4 else 3000
        assert abs(drawn[index] - expected) < 5 * expected**0.5
    only = PhotographViews(data, weights={"rooms": 0.0, "streets": 1.0})
    assert min(only._choose(500, random)) >= 4
    with pytest.raises(ValueError, match="weights must not be negative"):
        PhotographViews(data, weights={"rooms": -1.0})
    with pytest.raises(ValueError, match="some must be positive"):
        PhotographViews(data, weights={"rooms": 0.0, "streets": 0.0})


@pytest.mark.parametrize("roll", [0.0, 1.0, -2.5])
def test_aim(views: PhotographViews, roll: float) -> None:
    joints = scale_to_unit(views.dataset.labels[0].joints.astype(np.float64)) + [150.0, -90.0, 0.0]
    rotation, focal = aim(joints, roll, 0.6)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(rotation) == pytest.approx(1)
    camera = np.array([[focal, 0, 64], [0, focal, 64], [0, 0, 1]])
    projected = project(joints @ rotation.T, camera)
    np.testing.assert_allclose((projected.min(0) + projected.max(0)) / 2, 64, atol=0.01)
    assert np.ptp(projected, axis=0).max() == pytest.approx(0.6 * 128, rel=1e-6)
    intrinsics = np.array([[310.0, 0, 81], [0, 300, 77], [0, 0, 1]])
    through = (
        np.append(project(joints, intrinsics), np.ones((21, 1)), 1)
        @ view_homography(intrinsics, rotation, focal).T
    )
    np.testing.assert_allclose(through[:, :2] / through[:, 2:], projected, atol=1e-9)
    shifted, focal = aim(joints, roll, 0.6, (12.0, -5.0))
    moved = project(joints @ shifted.T, camera)
    np.testing.assert_allclose((moved.min(0) + moved.max(0)) / 2, [76, 59], atol=2.0)


def test_distances_match_spheres_along_the_bones(views: PhotographViews, random: np.random.Generator) -> None:
    joints = views.exact([0, 2]).joints
    points = joints.mean(1, keepdims=True) + random.normal(0, 50, (2, 200, 3))
    starts, ends = cone_ends(joints)
    along = np.linspace(0, 1, 2001)[:, None]
    for hand in range(2):
        expected = np.full(200, np.inf)
        for start, end, radii in zip(starts[hand], ends[hand], RADII_MM, strict=True):
            centres = start + along * (end - start)
            reach = radii[0] + along[:, 0] * (radii[1] - radii[0])
            gaps = np.linalg.norm(points[hand, :, None] - centres, axis=-1) - reach
            expected = np.minimum(expected, gaps.min(1))
        assert (expected < 0).any() and (expected > 30).any()
        np.testing.assert_allclose(surface_distance(points, joints)[hand], expected, atol=1e-2)


def test_query_points(views: PhotographViews, random: np.random.Generator) -> None:
    exact = views.exact()
    slope = 64 / exact.focal
    points, distances = sample_field_points(exact.joints, slope, random)
    assert points.dtype == distances.dtype == np.float32
    np.testing.assert_array_equal(distances, surface_distance(points, exact.joints))
    near = distances[:, :NEAR]
    # 4 mm around the surface; points in concavities are closer to another part of it.
    assert 3.0 < near.std() < 4.5 and abs(near.mean()) < 0.7
    rays = points[:, NEAR : NEAR + ON_RAYS]
    assert distances[:, NEAR : NEAR + ON_RAYS].max() > 30
    assert 35 < (rays[..., 2] - exact.joints[..., 2].mean(1)[:, None]).std() < 70
    ball = points[:, NEAR + ON_RAYS :][:, :IN_BALL] - exact.joints.mean(1, keepdims=True)
    assert 100 < np.linalg.norm(ball, axis=-1).max() <= 120.01
    slab = points[:, NEAR + ON_RAYS + IN_BALL :]
    assert (np.abs(slab[..., :2] / slab[..., 2:]) <= slope[:, None, None] * 1.0001).all()
    for name in ("points", "distances"):
        assert np.isfinite(getattr(exact, name)).all()


def test_points_of_left_views(views: PhotographViews) -> None:
    mirror, kept = views.exact([1]), views.exact([1], keep_sides=True)
    np.testing.assert_allclose(mirror.points, mirrored(kept.points), atol=2e-2)
    np.testing.assert_allclose(mirror.distances, kept.distances, atol=2e-2)


def test_background_folder(
    folder: Path, tmp_path: Path, random: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_colour_changes(monkeypatch)
    monkeypatch.setattr("nvf_fast.synthetic.backgrounds.IMAGE_CHANCE", 1.0)
    write_image(tmp_path / "room.png", np.full((64, 128, 3), (10, 200, 30), np.uint8))
    wide = PhotographViews(Photographs(folder, "all"), backgrounds=tmp_path).wide(6, random)
    corners = np.median(wide.images[:, [0, 0, -1, -1], [0, -1, 0, -1]], axis=1)
    assert (corners[:, 1] > 2 * corners[:, 0]).all() and (corners[:, 1] > 2 * corners[:, 2]).all()


def test_views_of_shared_photographs(shared_dir: Path, random: np.random.Generator) -> None:
    folder = shared_dir / "photographs"
    if not folder.is_dir():
        pytest.skip("no photographs there")
    views = PhotographViews(Photographs(folder, "val"))
    drawn, wide = views.draw(16, random), views.wide(8, random)
    for batch in (drawn, wide):
        assert batch.images.shape[1:] == (128, 128, 3) and 40 < batch.images.mean() < 210
        assert np.isfinite(batch.boxes[:, 0]).all()
    assert np.isfinite(drawn.joints).all() and np.isfinite(drawn.distances).all()
    # Median joint depth of a hand that fills three quarters of a view of 40 to 60 degrees.
    assert 200 < np.median(drawn.joints[..., 2]) < 500
    assert len(views.exact(views.indices[:20])) == 20
