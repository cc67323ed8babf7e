"""Hands from a rigged GLB file: surface, angles and lengths, open skins, faulty files."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import trimesh
from trimesh import transformations

from nvf_fast import ops
from nvf_fast.data.draws import Draws
from nvf_fast.data.faults import DatasetError
from nvf_fast.synthetic.hand_skeleton import CHAINS, JOINTS, THUMB_AHEAD
from nvf_fast.synthetic.hand_template import build_template
from nvf_fast.synthetic.poses import draw_angles
from nvf_fast.synthetic.rig import Rig, load_rig
from nvf_fast.synthetic.rig import assemble as build_rig

SPACING_MM = 3.4  # fine enough that the reader does not subdivide the mesh
TIPS = CHAINS[:, 3].tolist()
FILE_FRAME = transformations.euler_matrix(0.4, -1.2, 2.0) + np.array(
    [[0, 0, 0, p] for p in (0.3, -0.1, 0.2, 0)]
)
PARENTS = {name: JOINTS[index - 1] for index, name in enumerate(JOINTS) if "metacarpal" not in name and index}
PARENTS |= {name: "wrist" for name in JOINTS if "metacarpal" in name}


class Source(NamedTuple):
    """A hand in metres in its file's frame: (V, 3), (F, 3), weights (V, 25) and joints (25, 4, 4)."""

    vertices: np.ndarray
    faces: np.ndarray
    weights: np.ndarray
    joints: np.ndarray


@cache
def source() -> Source:
    """Return the built-in hand, open at the wrist, with a random rotation of each joint's frame."""
    template = build_template(SPACING_MM)
    weights = template.weights.copy()
    np.put_along_axis(weights, np.argsort(-weights, 1)[:, 4:], 0, 1)
    joints = np.stack([transformations.euler_matrix(0.3 * k, 0.2 * k, -0.5 * k) for k in range(25)])
    joints[:, :3, 3] = template.joints / 1000
    vertices = trimesh.transform_points(template.vertices / 1000, FILE_FRAME)
    return Source(vertices, template.faces, weights / weights.sum(1, keepdims=True), FILE_FRAME @ joints)


def moved(joints: np.ndarray) -> np.ndarray:
    """Bend the index finger and move the whole hand: joints (25, 4, 4) that differ from the bind pose."""
    joints = joints.copy()
    for joint in (7, 8, 9):
        about = transformations.rotation_matrix(0.5, joints[6, :3, 0], joints[7, :3, 3])
        joints[joint] = about @ joints[joint]
    return transformations.rotation_matrix(0.7, [1, 2, 0], [0.1, 0, 0]) @ joints


class Writer:
    """Minimal glTF 2.0 writer, independent of the reader's library."""

    def __init__(self) -> None:
        self.binary = b""
        self.document: dict[str, Any] = {"asset": {"version": "2.0"}, "bufferViews": [], "accessors": []}

    def accessor(self, array: np.ndarray, normalized: bool = False) -> int:
        component = {"i1": 5120, "u1": 5121, "i2": 5122, "u2": 5123, "u4": 5125, "f4": 5126}[
            array.dtype.str[1:]
        ]
        kind = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4", 16: "MAT4"}[array.shape[1]]
        rows = array.tobytes()
        width = len(rows) // len(array)
        view: dict[str, Any] = {"buffer": 0, "byteOffset": len(self.binary), "byteLength": len(rows)}
        if kind == "VEC3":  # rows with a gap behind each
            rows = b"".join(rows[at : at + width] + b"gap." for at in range(0, len(rows), width))
            view |= {"byteStride": width + 4, "byteLength": len(rows)}
        self.binary += rows + b"\0" * (-len(rows) % 4)
        self.document["bufferViews"].append(view)
        view_number = len(self.document["bufferViews"]) - 1
        entry: dict[str, Any] = {"bufferView": view_number, "componentType": component}
        entry |= {"count": len(array), "type": kind, "normalized": normalized}
        self.document["accessors"].append(entry)
        return len(self.document["accessors"]) - 1

    def save(self, path: Path) -> Path:
        self.document["buffers"] = [{"byteLength": len(self.binary)}]
        text = json.dumps(self.document).encode()
        text += b" " * (-len(text) % 4)
        parts = [
            struct.pack("<I4s", len(text), b"JSON"),
            text,
            struct.pack("<I4s", len(self.binary), b"BIN\0"),
        ]
        body = b"".join([*parts, self.binary])
        path.write_bytes(struct.pack("<4sII", b"glTF", 2, 12 + len(body)) + body)
        return path


def glb(hand: Source, posed: np.ndarray | None = None, types: tuple[str, str] = ("u1", "f4")) -> Writer:
    """Build a file: one primitive with indices, one without; joints in a chain below an armature.

    Args:
        hand: hand to write.
        posed: (25, 4, 4) the joints as the file's nodes have them; `hand.joints` when absent.
        types: of joints and weights.
    """
    file = Writer()
    most = np.argsort(-hand.weights, 1)[:, :4]
    weights = np.take_along_axis(hand.weights, most, 1)
    if types[1] != "f4":
        weights = weights * np.iinfo(types[1]).max
    weights = weights.round().astype(types[1]) if types[1] != "f4" else weights.astype("f4")
    primitives: list[dict[str, Any]] = []
    right = hand.vertices[hand.faces].mean(1)[:, 0] > np.median(hand.vertices[:, 0])
    for faces, indexed in ((hand.faces[right], True), (hand.faces[~right], False)):
        used, corners = np.unique(faces, return_inverse=True)
        rows = used if indexed else faces.reshape(-1)
        attributes = {"POSITION": file.accessor(hand.vertices[rows].astype("f4"))}
        attributes["JOINTS_0"] = file.accessor(most[rows].astype(types[0]))
        attributes["WEIGHTS_0"] = file.accessor(weights[rows], types[1] != "f4")
        primitives.append({"attributes": attributes, "mode": 4})
        if indexed:
            primitives[-1]["indices"] = file.accessor(corners.reshape(-1, 1).astype("u2"))
    inverse = np.linalg.inv(hand.joints).transpose(0, 2, 1).reshape(25, 16).astype("f4")
    world = dict(zip(JOINTS, hand.joints if posed is None else posed, strict=True))
    armature = transformations.euler_matrix(0.1, 0.2, 0.3) @ np.diag([2.0, 2.0, 2.0, 1.0])
    nodes: list[dict[str, Any]] = []
    for index, name in enumerate(JOINTS):
        local = np.linalg.inv(world[PARENTS[name]] if index else armature) @ world[name]
        scale = np.linalg.norm(local[:3, 0])
        quaternion = transformations.quaternion_from_matrix(local / [[scale, scale, scale, 1]])
        node = {"translation": local[:3, 3].tolist(), "scale": [scale] * 3}
        node |= {"rotation": [*quaternion[1:].tolist(), quaternion[0]]}
        node = {"matrix": local.T.flatten().tolist()} if index % 3 else node
        children = [JOINTS.index(child) for child, parent in PARENTS.items() if parent == name]
        nodes.append({"name": name, **node, **({"children": children} if children else {})})
    nodes.append({"name": "skin", "mesh": 0, "skin": 0, "translation": [5.0, 0.0, 0.0]})  # which glTF ignores
    nodes.append({"name": "armature", "matrix": armature.T.flatten().tolist(), "children": [0, 25]})
    file.document |= {"nodes": nodes, "meshes": [{"primitives": primitives}]}
    file.document["skins"] = [{"joints": list(range(25)), "inverseBindMatrices": file.accessor(inverse)}]
    return file


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return glb(source()).save(tmp_path_factory.mktemp("glb") / "right.glb")


@pytest.fixture(scope="module")
def rig(path: Path) -> Rig:
    return load_rig(path)


def hand_frame(joints: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Convert points (N, 3) m to mm in the frame spanned by the joints (25, 3) m."""
    ahead = joints[11] - joints[0]
    out = np.cross(joints[6] - joints[21], ahead)
    rows = np.stack([np.cross(ahead, out), ahead, out])
    return 1000 * (points - joints[0]) @ (rows / np.linalg.norm(rows, axis=1, keepdims=True)).T


def nearest(first: np.ndarray, second: np.ndarray) -> float:
    """Return the largest distance from a point of either set to the other set."""
    gaps = torch.cdist(
        torch.from_numpy(first), torch.from_numpy(second), compute_mode="donot_use_mm_for_euclid_dist"
    )
    return float(torch.maximum(gaps.amin(1).amax(), gaps.amin(0).amax()))


def test_rest_pose_is_the_surface_of_the_file(rig: Rig) -> None:
    hand = source()
    assert len(rig.vertices) == len(hand.vertices), "split vertices are one again"
    assert nearest(rig.vertices, hand_frame(hand.joints[:, :3, 3], hand.vertices)) < 1e-3
    joints = hand_frame(hand.joints[:, :3, 3], hand.joints[:, :3, 3])
    rest, joints = (np.delete(points, TIPS, 0) for points in (rig.skeleton.rest.numpy(), joints))
    np.testing.assert_allclose(rest, joints, atol=1e-3)


def test_pose_of_the_nodes_counts(tmp_path: Path) -> None:
    hand = source()
    joints = moved(hand.joints)
    posed = load_rig(glb(hand, joints).save(tmp_path / "right.glb"))
    maps = joints @ np.linalg.inv(hand.joints)
    points = np.concatenate([hand.vertices, np.ones((len(hand.vertices), 1))], 1)
    vertices = np.einsum("vj,jcd,vd->vc", hand.weights, maps, points)[:, :3]
    expected = hand_frame(joints[:, :3, 3], vertices)
    assert nearest(posed.vertices, expected) < 1e-3
    assert nearest(expected, hand_frame(hand.joints[:, :3, 3], hand.vertices)) > 5


@pytest.mark.parametrize(("types", "tolerance"), [(("u2", "u1"), 0.02), (("u2", "u2"), 1e-4)])
def test_integer_weights(types: tuple[str, str], tolerance: float, rig: Rig, tmp_path: Path) -> None:
    rounded = load_rig(glb(source(), types=types).save(tmp_path / "right.glb"))
    order, again = (np.lexsort(each.vertices.round(3).T) for each in (rig, rounded))
    np.testing.assert_allclose(
        rounded.skeleton.weights[again], rig.skeleton.weights[order], rtol=0, atol=tolerance
    )
    torch.testing.assert_close(rounded.skeleton.weights.sum(1), torch.ones(len(rig.vertices)).double())


def test_bends_joints(rig: Rig) -> None:
    skeleton = rig.skeleton
    angles = {name: value[:, 0] for name, value in draw_angles(Draws(3, "hand", range(20))).items()}
    positions = skeleton.joint_positions(skeleton.turns(angles), torch.ones(20, 25).double())
    bones = torch.diff(positions[:, CHAINS], dim=2)
    bones = torch.nn.functional.normalize(bones, dim=-1)
    bend = torch.linalg.vecdot(bones[:, :, :-1], bones[:, :, 1:]).clamp(-1, 1).acos()
    for index, names in ((0, ("thumb_mcp", "pip")), (1, ("thumb_ip", "dip"))):
        expected = torch.cat([angles[names[0]][:, None], angles[names[1]]], 1).abs()
        # Hinges tilt slightly towards the palm, so a finger leaves its plane; 0.7 degrees measured.
        torch.testing.assert_close(bend[:, :, index], expected, rtol=0, atol=math.radians(1))
    elevation = bones[:, 1:, 0, 2].asin()
    assert (elevation - angles["mcp"]).abs().max() < math.radians(0.5)  # 0.24 measured
    direct = angles["mcp"].cos() > 0.5
    heading = torch.atan2(bones[:, 1:, 0, 0], bones[:, 1:, 0, 1])
    assert (heading - angles["abduction"]).abs()[direct].max() < math.radians(4)  # 3.0 measured
    for row in range(20):  # the thumb's first bone
        turn = transformations.rotation_matrix(-float(angles["thumb_opposition"][row]), [0, 1, 0])
        turn = turn @ transformations.rotation_matrix(float(angles["thumb_abduction"][row]), [0, 0, 1])
        ahead = turn[:3, :3] @ THUMB_AHEAD
        np.testing.assert_allclose(bones[row, 0, 0], ahead / np.linalg.norm(ahead), atol=1e-6)


def closed(hand: Source) -> Source:
    """Close the hand with a lid over the wrist."""
    sheet = build_rig(hand.vertices, hand.faces, hand.weights, hand.joints[:, :3, 3], None, subdivide=False)
    return hand._replace(faces=sheet.closed_faces)


@pytest.mark.parametrize("flipped", [True, False])
@pytest.mark.parametrize("lid", [True, False])
def test_merged_skin(lid: bool, flipped: bool, rig: Rig, tmp_path: Path) -> None:
    hand = closed(source()) if lid else source()
    faces = hand.faces[:, ::-1] if flipped else hand.faces
    read = load_rig(glb(hand._replace(faces=faces)).save(tmp_path / "right.glb"))
    assert len(read.faces) == len(rig.faces) and len(read.rim) == len(rig.rim)
    mesh = trimesh.Trimesh(read.vertices, read.closed_faces, process=False)
    assert mesh.is_watertight and mesh.is_winding_consistent and mesh.volume > 1e5


def test_refuses_skin_without_opening(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nvf_fast.synthetic.rig.LID_COSINE", -2.0)  # no sharp edge, so no lid is detected
    with pytest.raises(DatasetError, match="no opening at the wrist; expected a skin that is open"):
        load_rig(glb(closed(source())).save(tmp_path / "right.glb"))


def test_fingertips_on_the_skin(rig: Rig) -> None:
    faces, vertices = torch.from_numpy(rig.closed_faces).long(), torch.from_numpy(rig.vertices).float()[None]
    distances = ops.mesh_distance(vertices, faces, rig.skeleton.rest.float()[None])[0]
    assert distances[TIPS].abs().max() < 1 and distances[CHAINS[:, 1:3]].max() < -2


def broken(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        file = glb(source())
        change(file.document)
        return file.save(path)

    return write


def rewritten(**parts: Any) -> Callable[[Path], Path]:
    return lambda path: glb(source()._replace(**{name: make() for name, make in parts.items()})).save(path)


def without_a_file(path: Path) -> Path:
    return path


def with_text(path: Path) -> Path:
    path.write_text("no GLB file at all")
    return path


def with_infinite_texture_coordinates(path: Path) -> Path:
    file = glb(source())
    uv = np.full((accessor(file.document, "POSITION")["count"], 2), np.inf, "f4")
    first_primitive(file.document)["attributes"]["TEXCOORD_0"] = file.accessor(uv)
    return file.save(path)


def truncated(path: Path) -> Path:
    glb(source()).save(path)
    path.write_bytes(path.read_bytes()[:-5000])
    return path


def mirrored(points: np.ndarray) -> np.ndarray:
    return points * np.array([-1.0, 1.0, 1.0])


def mirrored_joints() -> np.ndarray:
    joints = source().joints.copy()
    joints[:, :3, 3] = mirrored(joints[:, :3, 3])
    return joints


def in_millimetres() -> np.ndarray:
    joints = source().joints.copy()
    joints[:, :3, 3] *= 1000
    return joints


def first_primitive(document: dict[str, Any]) -> dict[str, Any]:
    return document["meshes"][0]["primitives"][0]


def accessor(document: dict[str, Any], attribute: str) -> dict[str, Any]:
    return document["accessors"][first_primitive(document)["attributes"][attribute]]


def rename(document: dict[str, Any]) -> None:
    document["nodes"][4]["name"], document["nodes"][7]["name"] = "thumb-end", "bone"


def on_another_joint(document: dict[str, Any]) -> None:
    document["nodes"].append({"name": "wrist-copy", "translation": [0, 0, 0]})
    document["skins"][0]["joints"] += [27]


FAULTS: list[tuple[Callable[[Path], Path], str]] = [
    (without_a_file, "no such file; expected a GLB file"),
    (with_text, "cannot be read"),
    (truncated, r"end at byte \d+ of \d+; expected a whole file"),
    (broken(rename), "joints are missing: thumb-tip, index-finger-phalanx-intermediate; expected"),
    (
        broken(lambda d: d["nodes"][25].update(name="wrist") or d["skins"][0]["joints"].append(25)),
        "joints come twice: wrist",
    ),
    (broken(lambda d: d.pop("skins") and d["nodes"][25].pop("skin")), "no skin; expected one skin"),
    (broken(lambda d: d["nodes"][25].pop("skin")), "1 nodes with a mesh but no skin: skin; expected"),
    (broken(lambda d: d["skins"].append(d["skins"][0])), "2 skins; expected one skin"),
    (broken(lambda d: d["nodes"][25].pop("mesh")), "no mesh; expected a mesh in the skin"),
    (broken(lambda d: first_primitive(d).update(mode=1)), "no triangles but glTF's mode 1; expected mode 4"),
    (broken(lambda d: first_primitive(d)["attributes"].pop("WEIGHTS_0")), "has no WEIGHTS_0; expected"),
    (broken(lambda d: accessor(d, "WEIGHTS_0").update(count=7)), r", 7\] positions, joints and weights"),
    (broken(lambda d: d["accessors"][first_primitive(d)["indices"]].update(count=32)), "32 indices"),
    (
        broken(lambda d: [accessor(d, a).update(count=50) for a in ("POSITION", "JOINTS_0", "WEIGHTS_0")]),
        "faces on further vertices; expected 50 of them",
    ),
    (broken(lambda d: accessor(d, "POSITION").update(type="VEC2")), "are VEC2 of component type 5126"),
    (broken(lambda d: accessor(d, "POSITION").update(sparse={"count": 1})), "are sparse; expected plain"),
    (broken(lambda d: d["accessors"][-1].update(count=24)), "24 inverse bind matrices; expected 25"),
    (
        broken(lambda d: d.update(extensionsRequired=["KHR_draco_mesh_compression"])),
        "compressed by KHR_draco",
    ),
    (broken(lambda d: d["nodes"][4].update(children=[26])), "their own ancestors; expected a tree"),
    (broken(lambda d: d["nodes"][25].update(mesh=3)), r"its parts do not fit together \(IndexError"),
    (
        rewritten(weights=lambda: 0.5 * source().weights),
        "vertices with weights such as .*; expected none negative",
    ),
    (
        rewritten(weights=lambda: np.eye(25)[np.zeros(len(source().vertices), int)]),
        "15 joints move no vertex: thumb-metacarpal, .* and 10 more",
    ),
    (
        rewritten(vertices=lambda: np.where(np.arange(3) > 1, np.nan, source().vertices)),
        "POSITION of .* contain NaN",
    ),
    (with_infinite_texture_coordinates, "TEXCOORD_0 of primitive 0 of mesh 0 contain NaN or infinity"),
    (
        rewritten(vertices=lambda: mirrored(source().vertices), joints=mirrored_joints),
        "a left hand; expected a right hand",
    ),
    (
        rewritten(vertices=lambda: 1000 * source().vertices, joints=in_millimetres),
        r"wrist and middle knuckle lie .* mm apart; expected 40 to 160 mm in a file in metres",
    ),
]


@pytest.mark.parametrize(("write", "message"), FAULTS)
def test_faults(write: Callable[[Path], Path], message: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=message):
        load_rig(write(tmp_path / "right.glb"))


def test_refuses_weights_of_further_joints(tmp_path: Path) -> None:
    file = glb(source())
    on_another_joint(file.document)
    matrices = np.tile(np.eye(4, dtype="f4").reshape(1, 16), (26, 1))
    matrices[:25] = np.linalg.inv(source().joints).transpose(0, 2, 1).reshape(25, 16)
    file.document["skins"][0]["inverseBindMatrices"] = file.accessor(matrices)
    load_rig(file.save(tmp_path / "right.glb"))
    joints = file.document["skins"][0]["joints"]
    joints[25], joints[3] = joints[3], joints[25]
    with pytest.raises(DatasetError, match="1 further joints move vertices: wrist-copy; expected the 25"):
        load_rig(file.save(tmp_path / "right.glb"))
