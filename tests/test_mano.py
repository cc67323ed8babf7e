"""MANO's layer against a plain implementation, its file format, and unsafe files."""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh

from nvf_fast.data.faults import DatasetError
from nvf_fast.data.mano import Mano, bends_left, close_surface, place_freihand
from nvf_fast.data.pickles import dense, load_pickle
from nvf_fast.synthetic.rig import built_in_surface
from tests.dataset_trees import PARENTS, mano, mano_arrays, posed, write_mano
from tests.sampled_hands import sample_hands
from tests.training_cases import COARSE_MM

FINGERS = {"index": 1, "middle": 4, "little": 7, "ring": 10, "thumb": 13}
"""First joint of each finger in MANO's order."""


class Payload:
    """Pickles as a call that would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def plain_rotation(vector: np.ndarray) -> np.ndarray:
    """Return exp of the cross-product matrix by its series."""
    x, y, z = vector
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    term, total = np.eye(3), np.eye(3)
    for order in range(1, 40):
        term = term @ cross / order
        total = total + term
    return total


def plain_skinning(
    arrays: dict[str, np.ndarray], pose: np.ndarray, shape: np.ndarray
) -> tuple[np.ndarray, Any]:
    """Skin one hand (m) vertex by vertex with 4 x 4 matrices."""
    rotations = [plain_rotation(pose[3 * joint : 3 * joint + 3]) for joint in range(16)]
    shaped = arrays["v_template"].copy()
    for number, amount in enumerate(shape):
        shaped += amount * arrays["shapedirs"][:, :, number]
    rest = arrays["J_regressor"] @ shaped
    feature = np.concatenate([(rotation - np.eye(3)).ravel() for rotation in rotations[1:]])
    for number, amount in enumerate(feature):
        shaped = shaped + amount * arrays["posedirs"][:, :, number]
    world: list[np.ndarray] = []
    for joint, rotation in enumerate(rotations):
        local = np.eye(4)
        local[:3, :3] = rotation
        local[:3, 3] = rest[joint] - (rest[PARENTS[joint]] if joint else 0)
        world.append(world[PARENTS[joint]] @ local if joint else local)
    vertices = np.zeros_like(shaped)
    for vertex, point in enumerate(shaped):
        for joint, weight in enumerate(arrays["weights"][vertex]):
            moved = world[joint] @ np.append(point - rest[joint], 1)
            vertices[vertex] += weight * moved[:3]
    return vertices, np.array([matrix[:3, 3] for matrix in world])


@pytest.mark.parametrize("flat", [True, False])
def test_skinning(flat: bool) -> None:
    arrays = mano_arrays()
    parameters = [posed(seed) for seed in range(3)]
    pose, shape = (torch.cat(part) for part in zip(*parameters, strict=True))
    vertices, joints = mano()(pose, shape, flat_hand_mean=flat)
    for row in range(3):
        angles = pose[row].double().numpy()
        angles = angles if flat else angles + np.concatenate([np.zeros(3), arrays["hands_mean"]])
        expected, expected_joints = plain_skinning(arrays, angles, shape[row].double().numpy())
        np.testing.assert_allclose(vertices[row], 1000 * expected, atol=1e-9)
        np.testing.assert_allclose(joints[row], 1000 * expected_joints, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "tips"),
    [
        ("freihand", (744, 320, 443, 555, 672)),
        ("ho3d", (744, 333, 444, 555, 672)),
        ("complement", (744, 333, 444, 555, 672)),
    ],
)
def test_regressed_joints(name: str, tips: tuple[int, ...]) -> None:
    vertices = torch.randn(2, 778, 3)
    joints = mano().regress(vertices, name)
    regressed = mano().joint_regressor.float() @ vertices
    for finger, (label, tip) in enumerate(
        zip(("thumb", "index", "middle", "ring", "little"), tips, strict=True)
    ):
        expected = regressed[:, FINGERS[label] : FINGERS[label] + 3]
        torch.testing.assert_close(joints[:, 1 + 4 * finger : 4 + 4 * finger], expected)
        torch.testing.assert_close(joints[:, 4 + 4 * finger], vertices[:, tip])
    torch.testing.assert_close(joints[:, 0], regressed[:, 0])


def test_freihand_placement() -> None:
    pose, shape = posed(5)
    seen, scale = torch.tensor([[100.25, 131.5]]), torch.tensor([[960.0]])
    camera = torch.tensor([[[480.0, 0, 112], [0, 500, 110], [0, 0, 1]]])
    vertices, joints = place_freihand(mano(), torch.cat([pose, shape, seen, scale], 1), camera)
    # uv_root less the principal point, and the mean focal length, over the scale: metres.
    expected = torch.tensor([-11.75, 21.5, 490.0]).double() / 960 * 1000
    torch.testing.assert_close(joints[0, 9], expected, atol=1e-9, rtol=0)
    centred, _ = mano()(pose, shape, flat_hand_mean=False)
    torch.testing.assert_close(vertices - vertices[:, :1], centred - centred[:, :1], atol=1e-9, rtol=0)
    torch.testing.assert_close(joints, mano().regress(vertices, "freihand"), atol=1e-9, rtol=0)


def test_closed_surface() -> None:
    faces = mano().closed_faces
    mesh = trimesh.Trimesh(mano().template.numpy(), faces.numpy(), process=False)
    assert len(faces) == 1552
    assert mesh.is_watertight and mesh.is_winding_consistent and mesh.volume > 0
    assert torch.equal(faces[:1538], mano().faces)
    assert set(faces[1538:].flatten().tolist()) == set(range(16))  # the tube's first ring, no new vertex
    inside_out = close_surface(mano().faces.flip(-1), mano().template)
    assert trimesh.Trimesh(mano().template.numpy(), inside_out.numpy(), process=False).volume > 0


def test_refuses_to_close_other_surfaces() -> None:
    faces, template = mano().faces, mano().template
    with pytest.raises(ValueError, match="alone, it has 0 openings"):
        close_surface(mano().closed_faces, template)
    inner = (faces > 400).all(1).nonzero()[0, 0]
    with pytest.raises(ValueError, match="alone, it has 2 openings"):
        close_surface(torch.cat([faces[:inner], faces[inner + 1 :]]), template)
    flipped = faces.clone()
    flipped[100] = flipped[100].flip(0)
    with pytest.raises(ValueError, match="same direction"):
        close_surface(flipped, template)


def test_reads_python_2_file(tmp_path: Path) -> None:
    arrays = mano_arrays()
    path = write_mano(tmp_path / "MANO_RIGHT.pkl")
    assert b"chumpy.reordering\nSelect" in path.read_bytes() and b"numpy.core." in path.read_bytes()
    assert b"scipy.sparse.csc\ncsc_matrix" in path.read_bytes() and b"_codecs" not in path.read_bytes()
    before = set(sys.modules)
    model = Mano.load(path)
    assert not {name for name in set(sys.modules) - before if name.split(".")[0] in ("chumpy", "scipy")}
    np.testing.assert_array_equal(model.template, 1000 * arrays["v_template"])
    np.testing.assert_array_equal(model.shape_blend, 1000 * arrays["shapedirs"])
    np.testing.assert_array_equal(model.pose_blend, 1000 * arrays["posedirs"])
    np.testing.assert_array_equal(model.joint_regressor, arrays["J_regressor"])
    np.testing.assert_array_equal(model.faces, arrays["f"])
    assert model.parents.tolist() == [-1, *PARENTS[1:]]


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_pickle_protocols(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "data.pkl"
    content = {
        "array": np.arange(6.0).reshape(2, 3),
        "turned": np.asfortranarray(np.arange(6.0).reshape(2, 3)).astype(">f4"),
        "counts": np.arange(5, dtype=np.uint8),
        "number": np.float32(2.5),
        "names": ["a", None, 3, {"set"}],
        "bytes": b"\x00\xff",
    }
    for core in (b"numpy._core", b"numpy.core"):
        data = pickle.dumps(content, protocol)
        if protocol < 4:  # later protocols store a string's length before it
            data = data.replace(b"numpy._core", core)
        path.write_bytes(data)
        read = load_pickle(path)
        for name in ("array", "turned", "number", "counts"):
            np.testing.assert_array_equal(dense(read[name]), content[name])
        assert read["names"] == content["names"] and read["bytes"] == content["bytes"]


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_pickle_executes_nothing(tmp_path: Path, protocol: int) -> None:
    path, made = tmp_path / "MANO_RIGHT.pkl", tmp_path / "made"
    path.write_bytes(pickle.dumps({"v_template": Payload(made)}, protocol))
    with pytest.raises(DatasetError, match=r"it refers to (posix|os|nt)\.system, which is not data"):
        Mano.load(path)
    assert not made.exists()
    pickle.loads(path.read_bytes())
    assert made.exists(), "the payload must work where it is not stopped"


@pytest.mark.parametrize(
    "data",
    [
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"cbuiltins\ngetattr\n(S'1'\nS'upper'\ntR.",
        b"\x80\x04\x8c\x08builtins\x8c\x0ddict.fromkeys\x93.",
        b"cnumpy\nload\n(S'x'\ntR.",
        b"cscipy.sparse\nload_npz\n.",
        b"ccopyreg\n_reconstructor\n(cbuiltins\ndict\ncbuiltins\nobject\nNtR.",
        b"c_codecs\nencode\n(S'1'\nS'zip'\ntR.",
    ],
    ids=["eval", "getattr", "attribute", "numpy.load", "scipy", "reconstructor", "codec"],
)
def test_refuses_pickled_callables(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "data.pkl"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"not data|expected latin1"):
        load_pickle(path)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_damaged_pickles_raise_value_error(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "data.pkl"
    sound = pickle.dumps({"array": np.eye(3), "number": np.float32(2)}, protocol)
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(100):
        data = bytearray(sound)
        for place in random.integers(0, len(data), 3):
            data[place] = random.integers(256)
        path.write_bytes(data)
        try:
            content = load_pickle(path)
            for value in content.values() if isinstance(content, dict) else ():
                dense(value)
        except ValueError:
            refused += 1
    assert refused > 30


@pytest.mark.parametrize(
    ("change", "faults"),
    [
        ({"v_template": None}, ["v_template is missing; expected 778 x 3 finite numbers"]),
        ({"weights": np.zeros((778, 24))}, ["weights is 778 x 24; expected 778 x 16"]),
        ({"posedirs": np.full((778, 3, 135), np.nan)}, ["posedirs is NaN or infinite; expected"]),
        (
            {"hands_mean": "flat"},
            ["hands_mean is no array of numbers; expected 45 finite numbers"],
        ),
        (
            {"f": None, "J_regressor": np.zeros((21, 778))},
            ["J_regressor is 21 x 778; expected 16 x 778", "f is missing; expected 1538 x 3"],
        ),
        ({"f": np.full((1538, 3), 778)}, ["f has other vertices; expected 0 to 777"]),
        ({"f": np.tile([0, 1, 2], (1538, 1))}, ["f cannot be closed (two faces pass an edge in the same"]),
        ({"kintree_table": np.full((2, 16), 15)}, ["expected parents before their children"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_reports_all_faults_of_a_file(tmp_path: Path, change: dict, faults: list[str]) -> None:
    path = tmp_path / "MANO_RIGHT.pkl"
    content = {name: value for name, value in (mano_arrays() | change).items() if value is not None}
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(DatasetError) as caught:
        Mano.load(path)
    assert len(caught.value.faults) == len(faults)
    for found, expected in zip(caught.value.faults, faults, strict=True):
        assert expected in found
    assert "mano.is.tue.mpg.de" in str(caught.value)


def test_refuses_a_left_hand(tmp_path: Path) -> None:
    arrays = mano_arrays()
    mirrored = {name: arrays[name].copy() for name in arrays}
    for name in ("v_template", "shapedirs", "posedirs"):
        mirrored[name][:, 0] *= -1
    rotations = np.array([[1.0, -1, -1], [-1, 1, 1], [-1, 1, 1]]).ravel()  # of a mirrored rotation matrix
    mirrored["posedirs"] *= np.tile(rotations, 15)
    mirrored["hands_mean"] = (arrays["hands_mean"].reshape(15, 3) * [1, -1, -1]).ravel()
    path = write_mano(tmp_path / "MANO_LEFT.pkl", mirrored)
    with pytest.raises(DatasetError, match=r"MANO_LEFT.pkl.* holds a left hand, by its mean pose; expected"):
        Mano.load(path)
    assert not Mano.load(write_mano(tmp_path / "MANO_RIGHT.pkl", arrays)).is_left


def test_rule_of_sides_holds_for_rendered_hands() -> None:
    hands = sample_hands(200, torch.Generator().manual_seed(0), surface=built_in_surface(COARSE_MM)).joints
    ahead, aside = hands[:, 9] - hands[:, 0], hands[:, 5] - hands[:, 17]
    bend = (hands[:, [8, 12, 16, 20]] - hands[:, [5, 9, 13, 17]]).mean(1)
    down = (torch.linalg.cross(ahead, aside) / (ahead.norm(dim=1) * aside.norm(dim=1))[:, None] * bend).sum(1)
    bent = down.abs() > 15  # mm; straighter fingers may bend back a little
    assert bent.sum() > 100
    for mirror, left in (([1.0, 1, 1], False), ([-1.0, 1, 1], True)):
        parts = (torch.tensor(mirror) * part[bent] for part in (ahead, aside, bend))
        assert {bends_left(*hand) for hand in zip(*parts, strict=True)} == {left}


@pytest.mark.parametrize(
    ("data", "fault"),
    [(b"", "EOFError"), (b"\x80\x02}q\x00(U", "cannot be read"), (pickle.dumps([1]), "holds list")],
    ids=["empty", "cut off", "a list"],
)
def test_refuses_file_without_model(tmp_path: Path, data: bytes, fault: str) -> None:
    path = tmp_path / "MANO_RIGHT.pkl"
    path.write_bytes(data)
    with pytest.raises(DatasetError, match=fault) as caught:
        Mano.load(path)
    assert len(caught.value.faults) == 1
    with pytest.raises(DatasetError, match=r"cannot be read .*No such file"):
        Mano.load(tmp_path / "absent.pkl")
    again = pickle.loads(pickle.dumps(caught.value))  # as between worker processes
    assert str(again) == str(caught.value) and again.faults == caught.value.faults
