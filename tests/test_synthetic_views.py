"""Synthetic hand views: labels against the image, mirrored and rotated copies, determinism, every kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from nvf_fast import ops
from nvf_fast.data.draws import Stream
from nvf_fast.data.hand_views import VIEW_POINTS, VIEW_SIZE, HandViews
from nvf_fast.joint_definitions import UNIT_SCALE_MM
from nvf_fast.synthetic import renderer
from nvf_fast.synthetic.backgrounds import Backgrounds
from nvf_fast.synthetic.forearm import SKIN, SLEEVE
from nvf_fast.synthetic.objects import elbow, like_fingers, skin_lump
from nvf_fast.synthetic.rasteriser import rasterise
from nvf_fast.synthetic.rendered_views import SyntheticViews, ViewOptions, wide_fill
from nvf_fast.synthetic.renderer import HandRenderer
from nvf_fast.synthetic.rig import Rig
from nvf_fast.synthetic.solids import Solid

Likeness = Callable[[Stream, float, float], list[tuple[Solid, int]]]
PLAIN = ViewOptions(held=0.0, in_front=0.0, clutter=0.0)


@cache
def generator(**options: float) -> SyntheticViews:
    return SyntheticViews(3, options=replace(PLAIN, **options))


@cache
def close(count: int = 12) -> HandViews:
    return SyntheticViews(3, options=PLAIN).draw(count, "close")


def pixels(views: HandViews) -> np.ndarray:
    """Project the joints to (B, 21, 2) px."""
    joints = views.joints
    return views.focal[:, None, None] * joints[..., :2] / joints[..., 2:] + VIEW_SIZE / 2


def test_close_views() -> None:
    views = close()
    assert views.images.shape == (12, VIEW_SIZE, VIEW_SIZE, 3) and views.images.dtype == np.uint8
    assert views.points.shape == (12, VIEW_POINTS, 3) and np.isfinite(views.points).all()
    bone = np.linalg.norm(views.joints[:, 10] - views.joints[:, 9], axis=1)
    np.testing.assert_allclose(bone, UNIT_SCALE_MM, rtol=1e-5)
    projected = pixels(views)
    np.testing.assert_allclose(
        views.boxes[:, 0], np.concatenate([projected.min(1), projected.max(1)], 1), atol=0.01
    )
    assert np.isnan(views.boxes[:, 1]).all() and not views.left.any() and (views.trust == 1).all()
    # Rotated compositions have other boxes than the first, which fills the requested fraction.
    side = np.ptp(projected[::4], axis=1).max(1) / VIEW_SIZE
    assert (side > 0.45 - 1e-3).all() and (side < 1.02 + 1e-3).all()
    depth = views.joints[:, :, 2].mean(1)
    assert (depth > 200).all() and (depth < 1300).all()


def test_joints_lie_inside_the_silhouette(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare joints with the layer's coverage instead of the image."""

    def coverage(self, stream, canvas, turn, zoom, mirrored):  # type: ignore[no-untyped-def]
        black = np.zeros((VIEW_SIZE, VIEW_SIZE, 3), np.float32)
        self._backgrounds.draw = lambda stream, size: black
        white = np.repeat(canvas[..., 3:], 4, 2)
        return original(self, stream, white, turn, zoom, mirrored)

    original = HandRenderer.compose
    monkeypatch.setattr(HandRenderer, "compose", coverage)
    monkeypatch.setattr(
        renderer, "photographed", lambda stream, image: np.rint(255 * image.clip(0, 1)).astype(np.uint8)
    )
    monkeypatch.setattr(renderer, "mean_colour", lambda image: np.full(3, 0.4))
    views = SyntheticViews(4, options=PLAIN).draw(24, "close")
    inside, tried = 0, 0
    for row in range(24):
        mask = views.images[row, ..., 0] > 100
        if np.isfinite(views.joints[row]).all():
            projected = np.rint(pixels(views)[row]).astype(int)
            projected = projected[((projected >= 0) & (projected < VIEW_SIZE)).all(1)]
            tried += len(projected)
            inside += mask[projected[:, 1], projected[:, 0]].sum()
            # Query points inside the hand lie behind the silhouette too.
            points = views.points[row][views.distances[row] < -1.0]
            at = np.rint(views.focal[row] * points[:, :2] / points[:, 2:] + VIEW_SIZE / 2).astype(int)
            at = at[((at >= 0) & (at < VIEW_SIZE)).all(1)]
            assert mask[at[:, 1], at[:, 0]].mean() > 0.99
        # The hand lies inside its box, only the forearm outside.
        x0, y0, x1, y1 = views.boxes[row, 0]
        box = np.zeros_like(mask)
        box[max(int(y0), 0) : int(y1) + 1, max(int(x0), 0) : int(x1) + 1] = True
        assert (mask & box).sum() > 0.15 * box.sum()
        for column in (x0, x1):  # fingertips and wrist lie on the silhouette's border or inside
            if 2 < column < VIEW_SIZE - 3:
                rows = mask[max(int(y0) - 2, 0) : int(y1) + 3]
                assert rows[:, int(column) - 2 : int(column) + 3].any()
    assert inside / tried > 0.97


def test_distances(monkeypatch: pytest.MonkeyPatch) -> None:
    posed = []
    maker = SyntheticViews(5, options=replace(PLAIN, compositions=1))
    original = Rig.distances

    def recorded(self, points, vertices):  # type: ignore[no-untyped-def]
        posed.append(vertices[: len(self.vertices)])
        return original(self, points, vertices)

    monkeypatch.setattr(Rig, "distances", recorded)
    views = maker.draw(3, "close")
    faces = torch.from_numpy(maker.rig.closed_faces.astype(np.int64))
    for row, vertices in enumerate(posed):
        points = torch.from_numpy(views.points[row])[None]
        exact = ops.mesh_distance(torch.from_numpy(vertices).float()[None], faces, points)[0]
        np.testing.assert_allclose(views.distances[row], exact.numpy(), atol=1.0)
    near = np.abs(views.distances) < 12
    assert 0.4 < near.mean() < 0.95 and 0.1 < (views.distances < 0).mean() < 0.6


def test_turned_copies() -> None:
    """All compositions of one hand have the same joints up to a rotation about the optical axis."""
    joints, distances = close().joints[:4], close().distances[:4]
    for row in range(1, 4):
        np.testing.assert_allclose(joints[row, :, 2], joints[0, :, 2], atol=0.01)
        angle = np.angle(np.exp(1j * np.diff([np.arctan2(*joints[k, 9, 1::-1]) for k in (0, row)])))
        cosine, sine = np.cos(angle[0]), np.sin(angle[0])
        rotated = joints[0] @ np.array([[cosine, sine, 0], [-sine, cosine, 0], [0, 0, 1]])
        np.testing.assert_allclose(joints[row], rotated, atol=0.02)
        np.testing.assert_array_equal(distances[row], distances[0])


@pytest.mark.parametrize("kind", ["close", "wide", "empty"])
def test_determinism(kind: str) -> None:
    first, second = SyntheticViews(7), SyntheticViews(7)
    whole, parts = first.draw(6, kind), HandViews.concatenate([second.draw(n, kind) for n in (1, 5)])
    for field in fields(HandViews):
        np.testing.assert_array_equal(getattr(whole, field.name), getattr(parts, field.name))
    other = SyntheticViews(8).draw(6, kind)
    assert (other.images != whole.images).mean() > 0.5


def test_wide_views() -> None:
    views = SyntheticViews(9).draw(48, "wide")
    finite = np.isfinite(views.boxes).all(-1)
    assert finite[:, 0].all() and 0 < finite[:, 1].mean() < 1
    side = np.maximum(views.boxes[..., 2] - views.boxes[..., 0], views.boxes[..., 3] - views.boxes[..., 1])
    assert np.nanmin(side) > 0.06 * VIEW_SIZE and np.nanmax(side) < 1.35 * VIEW_SIZE
    centres = (views.boxes[..., :2] + views.boxes[..., 2:])[finite] / 2
    assert ((centres > 0) & (centres < VIEW_SIZE)).all()
    assert views.left[finite].any() and (~views.left[finite]).any() and not views.left[~finite].any()
    assert ((views.trust == 1) == np.isfinite(views.joints).all((1, 2))).all()
    assert not views.left[views.trust == 1, 0].any() and (side[views.trust == 1, 0] > 0.3 * VIEW_SIZE).all()
    projected = pixels(views)[views.trust == 1]
    boxes = np.concatenate([projected.min(1), projected.max(1)], 1)
    np.testing.assert_allclose(views.boxes[views.trust == 1, 0], boxes, atol=0.01)


def test_large_hands_of_wide_views() -> None:
    options = ViewOptions(wide_beyond=1.0, compositions=1)
    views = SyntheticViews(9, options=options).draw(24, "wide")
    assert np.isnan(views.boxes[:, 1]).all()
    right = ~views.left[:, 0]
    assert 0 < right.mean() < 1 and (views.trust[right] == 1).all() and (views.trust[~right] == 0).all()
    box = views.boxes[right, 0]
    side = (box[:, 2:] - box[:, :2]).max(1) / VIEW_SIZE
    assert (side > options.wide_usual - 1e-3).all() and (side < options.wide_largest + 1e-3).all()
    inside = (np.minimum(box[:, 2:], VIEW_SIZE) - np.maximum(box[:, :2], 0)).clip(0)
    assert (inside / (box[:, 2:] - box[:, :2]) > 0.8).all()


def test_sizes_of_wide_views() -> None:
    options, stream = ViewOptions(), Stream(0, "test of sizes", 0)
    sizes = np.array([wide_fill(stream, options) for _ in range(4000)])
    assert sizes.min() < 0.1 and sizes.max() > 0.98 and sizes.max() < options.wide_largest
    usual = sizes[sizes < options.wide_usual]
    # Standard errors of 0.007 and 0.01.
    assert abs(1 - len(usual) / len(sizes) - options.wide_beyond) < 0.03
    assert abs((usual < np.sqrt(options.wide_smallest * options.wide_usual)).mean() - 0.5) < 0.04


@pytest.mark.parametrize("solids", [elbow, like_fingers, skin_lump])
def test_objects_like_hands(solids: Likeness) -> None:
    half, depth = 100.0, 500.0
    for index in range(12):
        made = solids(Stream(1, "test of likenesses", index), half, depth)
        assert all(material in (SKIN, SLEEVE) for _, material in made)
        meshes = [trimesh.Trimesh(solid.vertices, solid.faces) for solid, _ in made]
        assert all(mesh.is_watertight and mesh.volume > 0 for mesh in meshes)
        whole = trimesh.util.concatenate(meshes)
        shown, _, _ = rasterise(
            np.asarray(whole.vertices), np.asarray(whole.faces, np.int32), 32 * depth / half, 64
        )
        assert 0.005 < (shown >= 0).mean() < 0.95
        if solids is elbow:  # both parts of the arm end outside the view
            assert all(np.abs(mesh.vertices[:, :2]).max() > 2 * half for mesh in meshes)


def test_empty_views() -> None:
    views = SyntheticViews(9).draw(16, "empty")
    assert np.isnan(views.boxes).all() and np.isnan(views.joints).all() and (views.trust == 0).all()
    assert np.isnan(views.points).all() and np.isnan(views.distances).all()
    assert (views.images.reshape(16, -1).std(1) > 2).mean() > 0.8


def test_background_folder(tmp_path: Path) -> None:
    Image.new("RGB", (64, 32), (0, 200, 0)).save(tmp_path / "panorama.png")
    options = replace(PLAIN, sleeves=0.0)
    views = SyntheticViews(2, backgrounds=tmp_path, options=options).draw(24, "empty")
    red, green, blue = views.images.reshape(24, -1, 3).astype(float).mean(1).T
    assert (green > np.maximum(red, blue) + 20).mean() > 0.5
    with pytest.raises(ValueError, match="no images"):
        SyntheticViews(2, backgrounds=tmp_path / "nothing here")


@pytest.mark.parametrize("size", [(32, 16), (2, 2), (4000, 60)])
def test_refuses_small_backgrounds(size: tuple[int, int], tmp_path: Path) -> None:
    Image.new("RGB", size).save(tmp_path / "small.png")
    expected = f"small.png: the background has {size[0]} x {size[1]} px; expected sides of at least 32 px"
    with pytest.raises(ValueError, match=expected):
        Backgrounds(tmp_path).draw_surroundings(Stream(0, "light", 0))


@pytest.mark.parametrize("size", [(64, 32), (1024, 32), (32, 900)])
def test_smallest_backgrounds(size: tuple[int, int], tmp_path: Path) -> None:
    Image.new("RGB", size, (0, 200, 0)).save(tmp_path / "small.png")
    backgrounds = Backgrounds(tmp_path)
    light = backgrounds.draw_surroundings(Stream(0, "light", 0))
    if light is not None:
        assert light.sky.argmax() == 1 and light.ground.argmax() == 1
    view = backgrounds.draw_view(Stream(0, "view", 0), 100.0, (48, 64))
    np.testing.assert_allclose(view, np.broadcast_to([0, 200 / 255, 0], view.shape), atol=1e-6)


def test_refuses_invalid_options() -> None:
    with pytest.raises(ValueError, match="texture coordinates"):
        SyntheticViews(0, textures=["skin.png"])
    with pytest.raises(ValueError, match="'close', 'wide' or 'empty'"):
        generator().draw(1, "narrow")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="nearest_mm"):
        ViewOptions(nearest_mm=500, farthest_mm=400)


def test_textured_rig(shared_dir: Path) -> None:
    hand = shared_dir / "hands" / "hand_r.gltf"
    textures = sorted((shared_dir / "hands" / "textures").glob("*baseColor.png"))
    if not hand.is_file():
        pytest.skip(f"no {hand}")
    views = SyntheticViews(1, rig=hand, textures=textures, options=PLAIN).draw(4, "close")
    bone = np.linalg.norm(views.joints[:, 10] - views.joints[:, 9], axis=1)
    np.testing.assert_allclose(bone, UNIT_SCALE_MM, rtol=1e-5)
    assert np.isfinite(views.distances).all()
