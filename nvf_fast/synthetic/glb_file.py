"""Reading and checking a glTF file (.glb or .gltf) of a rigged hand with WebXR's joints.

Container: glTF 2.0, https://registry.khronos.org/glTF/specs/2.0/glTF-2.0.html. Joints' names: WebXR Hand
Input, https://www.w3.org/TR/webxr-hand-input-1/, or OpenXR's for the same joints, with any prefix or suffix
("Index_Proximal_R", "XR_HAND_JOINT_LITTLE_TIP_EXT"),
https://registry.khronos.org/OpenXR/specs/1.1/html/xrspec.html#_hand_joints_layout.
"""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import numpy as np
from trimesh.transformations import quaternion_matrix

from nvf_fast.data.faults import counted
from nvf_fast.synthetic.hand_skeleton import BONES, CHAINS, JOINTS

FINGER_WORDS = {"thumb": "thumb", "little": "pinky-finger"} | {
    finger: f"{finger}-finger" for finger in ("index", "middle", "ring", "pinky")
}
BONE_WORDS = {"metacarpal": "metacarpal", "tip": "tip"} | {
    bone: f"phalanx-{bone}" for bone in ("proximal", "intermediate", "distal")
}
OTHER_WORDS = {"xr", "hand", "joint", "ext", "r", "l", "right", "left"}  # around finger and bone

COMPONENTS = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
COLUMNS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}
TRIANGLES = 4
COMPRESSIONS = {"KHR_draco_mesh_compression", "EXT_meshopt_compression"}

WEIGHT_SUM = 0.02  # how far from one: four weights of 8 bits, each rounded
PALM_MM = (40.0, 160.0)  # wrist to middle knuckle; elsewhere the unit is no metre
SHORTEST_MM = 1.0  # of bones
SIDE = 0.1  # of the palm's length, that thumb and fingers bend to one side of it in sum


class Skeleton(NamedTuple):
    """names of the skin's J joints; maps (J, 4, 4) from vertices to the hand frame; rest (25, 3) mm."""

    names: list[str]
    maps: np.ndarray
    rest: np.ndarray


class SkinnedMesh(NamedTuple):
    """positions (N, 3), faces (F, 3), weights (N, J) of the skin's joints, and uv (N, 2) or None."""

    positions: np.ndarray
    faces: np.ndarray
    weights: np.ndarray
    uv: np.ndarray | None


class GLBFile:
    """An opened glTF file.

    Raises:
        ValueError: the file, or a part of it, is faulty; the message says how, and what was expected.
    """

    def __init__(self, path: Path) -> None:
        require(path.is_file(), "no such file", "a GLB file with a rigged right hand")
        data, blob = path.read_bytes(), b""
        if data[:4] == b"glTF":  # a header of 12 bytes, then chunks, each with a header of 8
            end = 20 + int.from_bytes(data[12:16], "little")
            data, blob = data[20:end], data[end + 8 :]
        try:
            self._file = json.loads(data)
        except ValueError as error:
            raise ValueError(f"cannot be read ({error}); expected a GLB file") from error
        packed = sorted(COMPRESSIONS & set(self._file.get("extensionsRequired", ())))
        require(not packed, f"compressed by {' and '.join(packed)}", "a GLB file without compression")
        self._buffers = [_buffer(path, buffer.get("uri"), blob) for buffer in self._file.get("buffers", ())]

    def skeleton(self) -> Skeleton:
        """Read the joints of a right hand."""
        skins = self._file.get("skins", ())
        require(len(skins) == 1, f"{len(skins) or 'no'} skin{'s' * (len(skins) > 1)}", "one skin")
        joints = skins[0]["joints"]
        names = [webxr_name(self._file["nodes"][joint].get("name", "")) for joint in joints]
        missing = [name for name in JOINTS if name not in names]
        require(not missing, f"joints are missing: {', '.join(missing)}", "the 25 of WebXR's generic hand")
        repeated = [name for name in JOINTS if names.count(name) > 1]
        require(not repeated, f"joints come twice: {', '.join(repeated)}", "each once")
        inverse = np.tile(np.eye(4), (len(names), 1, 1))
        if "inverseBindMatrices" in skins[0]:
            given = self._array(skins[0]["inverseBindMatrices"], "MAT4", "inverse bind matrices")
            got, expected = f"{len(given)} inverse bind matrices", f"{len(names)}, one for each of the joints"
            require(len(given) == len(names), got, expected)
            inverse = given.reshape(-1, 4, 4).transpose(0, 2, 1)
        world = self._world()
        in_tree = all(joint in world for joint in joints)
        require(in_tree, "nodes that are their own ancestors", "a tree of nodes")
        placed = np.stack([world[joint] for joint in joints])
        order = [names.index(name) for name in JOINTS]
        placed = _hand_frame(1000 * placed[order, :3, 3]) @ placed
        return Skeleton(names, placed @ inverse, placed[order, :3, 3])

    def mesh(self) -> SkinnedMesh:
        """Join all skinned primitives."""
        nodes = [node for node in self._file["nodes"] if "mesh" in node]
        require(len(nodes) > 0, "no mesh", "a mesh in the skin")
        bare = [node.get("name", "") for node in nodes if "skin" not in node]
        require(not bare, counted("nodes with a mesh but no skin", bare), "every mesh in the skin")
        parts = [
            self._primitive(primitive, f"primitive {number} of mesh {node['mesh']}")
            for node in nodes
            for number, primitive in enumerate(self._file["meshes"][node["mesh"]]["primitives"])
        ]
        starts = np.cumsum([0, *(len(part.positions) for part in parts[:-1])])
        uv = [part.uv for part in parts if part.uv is not None]
        return SkinnedMesh(
            positions=np.concatenate([part.positions for part in parts]),
            faces=np.concatenate([part.faces + start for part, start in zip(parts, starts, strict=True)]),
            weights=np.concatenate([part.weights for part in parts]),
            uv=np.concatenate(uv) if len(uv) == len(parts) else None,
        )

    def _primitive(self, primitive: dict[str, Any], name: str) -> SkinnedMesh:
        mode = primitive.get("mode", TRIANGLES)
        require(mode == TRIANGLES, f"{name} has no triangles but glTF's mode {mode}", f"mode {TRIANGLES}")
        kinds, arrays = {"POSITION": "VEC3", "JOINTS_0": "VEC4", "WEIGHTS_0": "VEC4"}, []
        given = primitive["attributes"]
        for attribute, kind in kinds.items():
            require(attribute in given, f"{name} has no {attribute}", f"{attribute}, {kind}")
            arrays.append(self._array(given[attribute], kind, f"{attribute} of {name}"))
        positions, joints, weights = arrays
        indices = np.arange(len(positions))
        if "indices" in primitive:
            indices = self._array(primitive["indices"], "SCALAR", f"indices of {name}")[:, 0].astype(np.int64)
        joints, joint_count = joints.astype(np.int64), len(self._file["skins"][0]["joints"])
        counts, sums = [len(positions), len(joints), len(weights)], weights.sum(1)
        for sound, got, expected in (
            (len(set(counts)) == 1, f"{counts} positions, joints and weights", "as many of each"),
            (len(indices) and len(indices) % 3 == 0, f"{len(indices)} indices", "three a triangle"),
            (indices.max(initial=0) < counts[0], "faces on further vertices", f"{counts[0]} of them"),
            (joints.max() < joint_count, f"joint {joints.max()}", f"those of the skin, {joint_count}"),
        ):
            require(bool(sound), f"{name} has {got}", expected)
        astray = ~(np.abs(sums - 1) <= WEIGHT_SUM) | (weights < 0).any(1)
        got = f"{astray.sum()} of {len(sums)} vertices with weights such as "
        got += str(weights[astray.argmax()].round(3).tolist())
        require(not astray.any(), f"{name} has {got}", "none negative, sums of one")
        dense = np.zeros((len(positions), joint_count))
        np.add.at(dense, (np.arange(len(joints))[:, None], joints), weights / sums[:, None])
        uv = None
        if "TEXCOORD_0" in given:
            uv = self._array(given["TEXCOORD_0"], "VEC2", f"TEXCOORD_0 of {name}")
            got = f"{name} has {len(uv)} texture coordinates"
            require(len(uv) == len(positions), got, f"{len(positions)}, one a vertex")
            uv = uv.astype(np.float64)
        return SkinnedMesh(positions.astype(np.float64), indices.reshape(-1, 3), dense, uv)

    def _array(self, index: int, kind: str, name: str) -> np.ndarray:
        """Read an accessor (N, columns); normalised integers become fractions."""
        accessor = self._file["accessors"][index]
        number = accessor["componentType"]
        got = f"{name} are {accessor['type']} of component type {number}"
        require(accessor["type"] == kind and number in COMPONENTS, got, kind)
        require("bufferView" in accessor and "sparse" not in accessor, f"{name} are sparse", "plain ones")
        view = self._file["bufferViews"][accessor["bufferView"]]
        component, columns = np.dtype(COMPONENTS[number]), COLUMNS[kind]
        start, width = view.get("byteOffset", 0) + accessor.get("byteOffset", 0), columns * component.itemsize
        stride = view.get("byteStride", width)
        end, data = start + (accessor["count"] - 1) * stride + width, self._buffers[view["buffer"]]
        require(end <= len(data), f"{name} end at byte {end} of {len(data)}", "a whole file")
        shape, strides = (accessor["count"], columns), (stride, component.itemsize)
        array: np.ndarray = np.ndarray(shape, component, data, start, strides)
        require(bool(np.isfinite(array).all()), f"{name} contain NaN or infinity", "finite numbers")
        if accessor.get("normalized") and component.kind in "iu":
            return np.maximum(array / np.iinfo(component).max, -1)
        return array

    def _world(self) -> dict[int, np.ndarray]:
        """Compute the world transform (4, 4) of every node in a tree."""
        nodes = self._file["nodes"]
        below = {child for node in nodes for child in node.get("children", ())}
        world = {number: _local(node) for number, node in enumerate(nodes) if number not in below}
        waiting = list(world)
        while waiting:
            parent = waiting.pop()
            for child in nodes[parent].get("children", ()):
                if child not in world:
                    world[child] = world[parent] @ _local(nodes[child])
                    waiting.append(child)
        return world


def require(sound: bool, got: str, expected: str) -> None:
    """Check a condition.

    Raises:
        ValueError: it does not hold.
    """
    if not sound:
        raise ValueError(f"{got}; expected {expected}")


def webxr_name(name: str) -> str:
    """Return WebXR's name of an OpenXR joint, and any other name unchanged."""
    words = [word for word in re.split(r"[^a-z]+", name.lower()) if word and word not in OTHER_WORDS]
    if words == ["wrist"]:
        return "wrist"
    if len(words) == 2 and words[0] in FINGER_WORDS and words[1] in BONE_WORDS:
        return f"{FINGER_WORDS[words[0]]}-{BONE_WORDS[words[1]]}"
    return name


def _hand_frame(joints: np.ndarray) -> np.ndarray:
    """(4, 4) from the file's metres to the hand frame, by joints (25, 3) mm."""
    palm = joints[11] - joints[0]
    length = float(np.linalg.norm(palm))
    got = f"wrist and middle knuckle lie {length:.4g} mm apart"
    expected = f"{PALM_MM[0]:g} to {PALM_MM[1]:g} mm in a file in metres"
    require(PALM_MM[0] <= length <= PALM_MM[1], got, expected)
    start, end = BONES.T.numpy()
    lengths = np.linalg.norm(joints[end] - joints[start], axis=1)
    short = [JOINTS[joint] for joint in end[lengths < SHORTEST_MM]]
    require(not short, counted("joints lie on the one before", short), "bones of some length")
    ahead = palm / length
    out = np.cross(joints[6] - joints[21], ahead)
    across = float(np.linalg.norm(out))
    require(across >= SHORTEST_MM, "the knuckles lie on a line with the wrist", "a palm with two sides")
    out /= across
    bent = float(((joints[CHAINS[:, -1]] - joints[CHAINS[:, 0]]) @ out).sum()) / length
    got = "a left hand" if bent < -SIDE else "a hand too straight to distinguish right from left"
    require(bent >= SIDE, got, "a right hand, thumb and fingers bent a little towards the palm (right.glb)")
    frame = np.eye(4)
    frame[:3, :3] = 1000 * np.stack([np.cross(ahead, out), ahead, out])
    frame[:3, 3] = -frame[:3, :3] @ joints[0] / 1000
    return frame


def _buffer(path: Path, uri: str | None, blob: bytes) -> bytes:
    """The bytes of one buffer: the file's own, inside its address, or in a file beside it."""
    if not uri:
        return blob
    try:
        if uri.startswith("data:"):
            return base64.b64decode(uri.partition(",")[2], validate=True)
        beside = (path.parent / unquote(uri)).resolve()
        if not beside.is_relative_to(path.parent.resolve()) or not beside.is_file():
            raise ValueError(f"{uri} is no file in its folder")
        return beside.read_bytes()
    except (OSError, ValueError) as error:
        raise ValueError(
            f"lacks its data ({error}); expected a file that holds its data or names files beside it"
        ) from error


def _local(node: dict[str, Any]) -> np.ndarray:
    """Transform (4, 4) of a node relative to its parent."""
    if "matrix" in node:
        return np.array(node["matrix"], float).reshape(4, 4).T
    x, y, z, w = node.get("rotation", (0.0, 0.0, 0.0, 1.0))
    local: np.ndarray = quaternion_matrix((w, x, y, z))
    local[:3, :3] *= np.array(node.get("scale", (1.0, 1.0, 1.0)))
    local[:3, 3] = node.get("translation", (0.0, 0.0, 0.0))
    return local
