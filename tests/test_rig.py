"""Rigged hands, built in and from files: shapes, poses and measurements."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from nvf_fast import ops
from nvf_fast.data.draws import Draws
from nvf_fast.joint_definitions import bone_lengths
from nvf_fast.synthetic.glb_file import webxr_name
from nvf_fast.synthetic.hand_skeleton import JOINTS
from nvf_fast.synthetic.point_distance import SearchableMesh
from nvf_fast.synthetic.poses import POSES, draw_poses
from nvf_fast.synthetic.rig import Rig, built_in_rig, load_rig
from nvf_fast.synthetic.skinning import blend_maps, blend_motions

FILES = ("hand_r.gltf", "Hand_Nails_R.gltf")
COUNT = 12


@pytest.fixture(params=["built-in", *FILES])
def rig(request: pytest.FixtureRequest) -> Rig:
    if request.param == "built-in":
        return built_in_rig()
    path = request.getfixturevalue("shared_dir") / "hands" / request.param
    if not path.is_file():
        pytest.skip(f"no {path}")
    return load_rig(path)


def posed(rig: Rig, count: int = COUNT) -> tuple[np.ndarray, np.ndarray]:
    draws = Draws(5, "test of a rig", range(count))
    stretch = torch.ones(count, 25, dtype=torch.float64)
    angles, _ = rig.skeleton.first_free_pose(draw_poses(draws), stretch)
    one = torch.ones(count, dtype=torch.float64)
    return rig.posed(angles, stretch, one[:, None].expand(count, 6), one)


def at_rest(rig: Rig, **changes: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    one = torch.ones(1, dtype=torch.float64)
    shape = {"stretch": torch.ones(1, 25).double(), "girth": torch.ones(1, 6).double(), "breadth": one}
    return rig.posed(rig.skeleton.angles, **(shape | changes))


def test_rest_pose(rig: Rig) -> None:
    vertices, joints = at_rest(rig)
    np.testing.assert_allclose(vertices[0], rig.vertices, atol=1e-9)
    knuckle = rig.skeleton.rest[JOINTS.index("middle-finger-phalanx-proximal")]
    np.testing.assert_allclose(joints[0, 9], knuckle, atol=1e-9)


def test_mesh_and_weights(rig: Rig) -> None:
    mesh = trimesh.Trimesh(rig.vertices, rig.closed_faces, process=False)
    assert 200_000 < mesh.volume < 550_000  # mm³ of a hand
    np.testing.assert_allclose(rig.weights.sum(1), 1)
    assert (rig.weights >= 0).all() and (np.diff(rig.weights, axis=1) <= 1e-12).all()
    assert rig.vertices[rig.rim, 1].max() < 12  # mm from the wrist, which is open
    if rig.uv is not None:
        assert rig.uv.shape == (len(rig.faces), 3, 2)


def test_bones_and_girth(rig: Rig) -> None:
    stretch = torch.ones(1, 25, dtype=torch.float64)
    middle = JOINTS.index("middle-finger-phalanx-intermediate")
    stretch[0, middle] = 1.2
    before, after = bone_lengths(at_rest(rig)[1][0]), bone_lengths(at_rest(rig, stretch=stretch)[1][0])
    expected = before.copy()
    expected[9] *= 1.2
    np.testing.assert_allclose(after, expected)
    girth = torch.ones(1, 6, dtype=torch.float64)
    girth[0, 3] = 1.3  # only the middle finger
    moved = np.linalg.norm(at_rest(rig, girth=girth)[0][0] - rig.vertices, axis=1)
    own = rig.indices[:, 0] // 5 == 2
    assert moved[own & (rig.vertices[:, 1] > 130)].min() > 0.1 and moved[~own].max() < 3.0


def test_fist_volume(rig: Rig) -> None:
    """Linear blending loses up to 20 % of a bent finger's volume, dual quaternions less than 10 %."""
    count = 1
    angles = {name: torch.zeros(count, 4).double() for name in ("mcp", "pip", "dip", "abduction")}
    angles |= {"mcp": torch.full((1, 4), 1.4).double(), "pip": torch.full((1, 4), 1.75).double()}
    angles |= {name: torch.zeros(1).double() for name in ("thumb_mcp", "thumb_ip", "thumb_abduction")}
    angles["thumb_opposition"] = torch.zeros(1).double()
    one = torch.ones(1, dtype=torch.float64)
    vertices, _ = rig.posed(angles, torch.ones(1, 25).double(), torch.ones(1, 6).double(), one)
    volumes = [
        trimesh.Trimesh(points, rig.closed_faces, process=False).volume
        for points in (vertices[0], rig.vertices)
    ]
    assert volumes[0] == pytest.approx(volumes[1], rel=0.06)


def test_rigid_motions() -> None:
    random = np.random.default_rng(0)
    points = random.normal(size=(50, 3))
    rotation = np.linalg.qr(random.normal(size=(6, 3, 3)))[0]
    rotation *= np.sign(np.linalg.det(rotation))[:, None, None]
    offset = random.normal(size=(6, 3))
    indices = np.repeat(random.integers(0, 6, (50, 1)), 2, 1).astype(np.int32)
    weights = np.tile([0.7, 0.3], (50, 1))
    expected = np.einsum("vab,vb->va", rotation[indices[:, 0]], points) + offset[indices[:, 0]]
    np.testing.assert_allclose(
        blend_motions(points, indices, weights, rotation, offset), expected, atol=1e-12
    )
    np.testing.assert_allclose(blend_maps(points, indices, weights, rotation, offset), expected, atol=1e-12)


def test_shortest_blending() -> None:
    """Halfway to a rotation by 170 degrees lies one by 85, for either sign of the quaternion."""
    angle = np.radians(170)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    half = blend_motions(
        np.array([[1.0, 0, 0]]), np.array([[0, 1]], np.int32), np.array([[0.5, 0.5]]),
        np.stack([np.eye(3), turn]), np.zeros((2, 3)),
    )  # fmt: skip
    np.testing.assert_allclose(half[0], [np.cos(angle / 2), np.sin(angle / 2), 0], atol=1e-12)


def test_distance(rig: Rig) -> None:
    """Distances approximate those of `ops.mesh_distance`, which tests every triangle."""
    wide = np.arange(len(rig.faces), len(rig.closed_faces))
    mesh = SearchableMesh.build(rig.vertices, rig.closed_faces, wide)
    random = np.random.default_rng(1)
    faces = torch.from_numpy(rig.closed_faces.astype(np.int64))
    errors = []
    for vertices in posed(rig, 6)[0]:
        points = vertices[random.integers(0, len(vertices), 300)] + random.normal(0, 6, (300, 3))
        points[:60] = vertices.mean(0) + random.normal(0, 80, (60, 3))
        points[60:90] = vertices[rig.rim].mean(0) + random.normal(0, 10, (30, 3))
        exact = ops.mesh_distance(
            torch.from_numpy(vertices).float()[None], faces, torch.from_numpy(points).float()[None]
        )[0]
        errors.append(np.abs(mesh.distance(points, vertices) - exact.numpy()))
    wrong = np.concatenate(errors)
    if mesh.watertight:
        # A triangle of up to 6 mm may be closer than those at the nearest vertex: 1 point in 1 800.
        assert (wrong > 1.0).mean() < 0.002 and wrong.max() < 2.0 and np.quantile(wrong, 0.99) < 0.1
        return
    # At the rims of nails the normal may give the wrong sign: 2.4 % of points this close.
    assert (wrong > 1.0).mean() < 0.04 and np.quantile(wrong, 0.95) < 0.3


def test_pose_ranges_and_overlap() -> None:
    draws = Draws(1, "test of gestures", range(200))
    angles = draw_poses(draws)
    degrees = {name: torch.rad2deg(value) for name, value in angles.items()}
    for name, (low, high) in {
        "mcp": (-22, 88),
        "pip": (0, 108),
        "dip": (-6, 78),
        "thumb_ip": (-12, 72),
    }.items():
        assert low - 1e-6 <= degrees[name].min() and degrees[name].max() <= high + 1e-6
    rig = built_in_rig()
    _, chosen = rig.skeleton.first_free_pose(angles, torch.ones(200, 25, dtype=torch.float64))
    assert (chosen == POSES - 1).float().mean() < 0.2


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Wrist_R", "wrist"),
        ("Thumb_Metacarpal_R", "thumb-metacarpal"),
        ("XR_HAND_JOINT_LITTLE_PROXIMAL_EXT", "pinky-finger-phalanx-proximal"),
        ("index-finger-phalanx-intermediate", "index-finger-phalanx-intermediate"),
        ("Palm_R", "Palm_R"),
        ("Forearm", "Forearm"),
        ("wrist-copy", "wrist-copy"),
    ],
)
def test_joint_names(name: str, expected: str) -> None:
    assert webxr_name(name) == expected


def test_buffers_beside_the_file(shared_dir: Path, tmp_path: Path) -> None:
    import base64
    import json

    source = shared_dir / "hands" / FILES[0]
    if not source.is_file():
        pytest.skip(f"no {source}")
    document = json.loads(source.read_text())
    (tmp_path / "some data.bin").write_bytes(
        base64.b64decode(document["buffers"][0]["uri"].partition(",")[2])
    )
    document["buffers"][0]["uri"] = "some%20data.bin"
    (tmp_path / "hand.gltf").write_text(json.dumps(document))
    np.testing.assert_array_equal(load_rig(tmp_path / "hand.gltf").vertices, load_rig(source).vertices)
