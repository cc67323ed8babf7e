"""Reading and checking a glTF file (.glb or .gltf) of a rigged hand with WebXR's joints.

Container: glTF 2.0, https://registry.khronos.org/glTF/specs/2.0/glTF-2.0.html. Joints' names: WebXR Hand
Input, https://www.w3.org/TR/webxr-hand-input-1/, or OpenXR's for the same joints, with any prefix or suffix
("Index_Proximal_R", "XR_HAND_JOINT_LITTLE_TIP_EXT"),
https://registry.khronos.org/OpenXR/specs/1.1/html/xrspec.html#_hand_joints_layout.
"""

from __future__ import annotations

import base64
import binascii
import re
import struct
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import numpy as np
import torch

from nvf_fast.data.faults import Faults
from nvf_fast.data.rotations import quaternion_matrix

JOINTS = (
    "wrist",
    *(f"thumb-{bone}" for bone in ("metacarpal", "phalanx-proximal", "phalanx-distal", "tip")),
    *(
        f"{finger}-finger-{bone}"
        for finger in ("index", "middle", "ring", "pinky")
        for bone in ("metacarpal", "phalanx-proximal", "phalanx-intermediate", "phalanx-distal", "tip")
    ),
)
METACARPALS = (5, 10, 15, 20)
CHAINS = torch.tensor([[first, first + 1, first + 2, first + 3] for first in (1, 6, 11, 16, 21)])
"""Thumb, index, middle, ring and little finger, from base to tip."""
BONES = torch.cat(
    [
        torch.stack([CHAINS[:, :-1], CHAINS[:, 1:]], -1).flatten(0, 1),
        torch.tensor([[base, base + 1] for base in METACARPALS]),
    ]
)

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
    """An opened glTF file; its faults are added to `faults`."""

    def __init__(self, path: Path, gltf: Any, buffers: list[bytes], faults: Faults) -> None:
        self._path, self._gltf, self._faults = path, gltf, faults
        self._buffers = buffers

    @classmethod
    def open(cls, path: Path, faults: Faults) -> GLBFile:
        """Open a file.

        Raises:
            DatasetError: the file cannot be read.
        """
        try:
            from pygltflib import GLTF2
        except ImportError as error:
            raise ImportError("GLB files need pygltflib: pip install 'nvf-fast[train]'") from error
        if not path.is_file():
            faults.add(path, "no such file", "a GLB file with a rigged right hand")
        faults.check()
        gltf = None
        try:
            gltf = GLTF2.load_json(path) if path.suffix.lower() == ".gltf" else GLTF2.load_binary(path)
        except (OSError, ValueError, KeyError, AttributeError, TypeError, struct.error) as error:
            faults.add(path, f"cannot be read ({error})", "a GLB file")
        faults.check()
        buffers = [] if gltf is None else [_buffer(path, gltf, buffer) for buffer in gltf.buffers]
        if gltf is None or not buffers or any(buffer is None for buffer in buffers):
            faults.add(path, "lacks its data", "a file that holds its data or names files beside it")
        elif packed := sorted(COMPRESSIONS & set(gltf.extensionsRequired)):
            faults.add(path, f"compressed by {' and '.join(packed)}", "a GLB file without compression")
        faults.check()
        return cls(path, gltf, [buffer for buffer in buffers if buffer is not None], faults)

    def skeleton(self) -> Skeleton | None:
        """Read the joints; None, with faults, if they do not form a right hand."""
        gltf = self._gltf
        if len(gltf.skins) != 1:
            self._add(f"{len(gltf.skins) or 'no'} skin{'s' * (len(gltf.skins) > 1)}", "one skin")
            return None
        skin = gltf.skins[0]
        names = [webxr_name(gltf.nodes[joint].name or "") for joint in skin.joints]
        missing = [name for name in JOINTS if name not in names]
        if missing:
            self._add(f"joints are missing: {', '.join(missing)}", "the 25 of WebXR's generic hand")
        if repeated := [name for name in JOINTS if names.count(name) > 1]:
            self._add(f"joints come twice: {', '.join(repeated)}", "each once")
        inverse = np.tile(np.eye(4), (len(names), 1, 1))
        if skin.inverseBindMatrices is not None:
            given = self._array(skin.inverseBindMatrices, "MAT4", "inverse bind matrices")
            if given is not None and len(given) != len(names):
                self._add(f"{len(given)} inverse bind matrices", f"{len(names)}, one for each of the joints")
            elif given is not None and not np.isfinite(given).all():
                self._add("inverse bind matrices of NaN or infinity", "finite ones")
            elif given is not None:
                inverse = given.reshape(-1, 4, 4).transpose(0, 2, 1)
        world = self._world()
        if any(joint not in world for joint in skin.joints):
            self._add("nodes that are their own ancestors", "a tree of nodes")
        elif not missing:
            placed = np.stack([world[joint] for joint in skin.joints])
            order = [names.index(name) for name in JOINTS]
            to_hand = self._hand_frame(1000 * placed[order, :3, 3])
            if to_hand is not None:
                placed = to_hand @ placed
                return Skeleton(names, placed @ inverse, placed[order, :3, 3])
        return None

    def mesh(self) -> SkinnedMesh | None:
        """Join all skinned primitives; None, with faults, if they are unusable."""
        gltf = self._gltf
        nodes = [node for node in gltf.nodes if node.mesh is not None]
        bare = [str(node.name) for node in nodes if node.skin is None]
        self._faults.add_many(self._path, "nodes with a mesh but no skin", bare, "every mesh in the skin")
        parts = [
            self._primitive(primitive, f"primitive {number} of mesh {node.mesh}")
            for node in nodes
            if node.skin is not None
            for number, primitive in enumerate(gltf.meshes[node.mesh].primitives)
        ]
        if not nodes:
            self._add("no mesh", "a mesh in the skin")
        whole = [part for part in parts if part is not None]
        if not parts or len(whole) < len(parts):
            return None
        starts = np.cumsum([0, *(len(part.positions) for part in whole[:-1])])
        return SkinnedMesh(
            positions=np.concatenate([part.positions for part in whole]),
            faces=np.concatenate([part.faces + start for part, start in zip(whole, starts, strict=True)]),
            weights=np.concatenate([part.weights for part in whole]),
            uv=_joined([part.uv for part in whole]),
        )

    def _primitive(self, primitive: Any, name: str) -> SkinnedMesh | None:
        if primitive.mode not in (None, TRIANGLES):
            self._add(f"{name} has no triangles but glTF's mode {primitive.mode}", f"mode {TRIANGLES}")
            return None
        positions = self._attribute(primitive, "POSITION", "VEC3", name)
        joints = self._attribute(primitive, "JOINTS_0", "VEC4", name)
        weights = self._attribute(primitive, "WEIGHTS_0", "VEC4", name)
        indices = None if positions is None else np.arange(len(positions))[:, None]
        if primitive.indices is not None:
            indices = self._array(primitive.indices, "SCALAR", f"indices of {name}")
        if positions is None or joints is None or weights is None or indices is None:
            return None
        indices, joints = indices[:, 0].astype(np.int64), joints.astype(np.int64)
        counts, joint_count = [len(positions), len(joints), len(weights)], len(self._gltf.skins[0].joints)
        sums = weights.sum(1)
        astray = ~(np.abs(sums - 1) <= WEIGHT_SUM) | (weights < 0).any(1)
        strange = f"{astray.sum()} of {len(sums)} vertices with weights such as "
        strange += str(weights[astray.argmax()].round(3).tolist())
        wrong = [
            (f"{name} has {got}", expected)
            for found, got, expected in (
                (len(set(counts)) > 1, f"{counts} positions, joints and weights", "as many of each"),
                (len(indices) % 3 > 0 or len(indices) == 0, f"{len(indices)} indices", "three a triangle"),
                (indices.max(initial=0) >= counts[0], "faces on further vertices", f"{counts[0]} of them"),
                (joints.max() >= joint_count, f"joint {joints.max()}", f"those of the skin, {joint_count}"),
                (not np.isfinite(positions).all(), "positions of NaN or infinity", "finite ones"),
                (astray.any(), strange, "none negative, sums of one"),
            )
            if found
        ]
        for got, expected in wrong:
            self._add(got, expected)
        if wrong:
            return None
        dense = np.zeros((len(positions), joint_count))
        np.add.at(dense, (np.arange(len(joints))[:, None], joints), weights / sums[:, None])
        uv = None
        if getattr(primitive.attributes, "TEXCOORD_0", None) is not None:
            uv = self._attribute(primitive, "TEXCOORD_0", "VEC2", name)
        if uv is not None and len(uv) != len(positions):
            self._add(f"{name} has {len(uv)} texture coordinates", f"{len(positions)}, one a vertex")
            return None
        return SkinnedMesh(
            positions.astype(np.float64),
            indices.reshape(-1, 3),
            dense,
            None if uv is None else uv.astype(np.float64),
        )

    def _attribute(self, primitive: Any, attribute: str, kind: str, name: str) -> np.ndarray | None:
        index = getattr(primitive.attributes, attribute, None)
        if index is None:
            self._add(f"{name} has no {attribute}", f"{attribute}, {kind}")
            return None
        return self._array(index, kind, f"{attribute} of {name}")

    def _array(self, index: int, kind: str, name: str) -> np.ndarray | None:
        """Read an accessor (N, columns); normalised integers become fractions."""
        accessor = self._gltf.accessors[index]
        if accessor.type != kind or accessor.componentType not in COMPONENTS:
            self._add(f"{name} are {accessor.type} of component type {accessor.componentType}", kind)
            return None
        if accessor.bufferView is None or accessor.sparse is not None:
            self._add(f"{name} are sparse", "plain ones")
            return None
        view = self._gltf.bufferViews[accessor.bufferView]
        component, columns = np.dtype(COMPONENTS[accessor.componentType]), COLUMNS[kind]
        start, width = (view.byteOffset or 0) + (accessor.byteOffset or 0), columns * component.itemsize
        stride = view.byteStride or width
        end = start + (accessor.count - 1) * stride + width
        data = self._buffers[view.buffer]
        if end > len(data):
            self._add(f"{name} end at byte {end} of {len(data)}", "a whole file")
            return None
        strides = (stride, component.itemsize)
        array: np.ndarray = np.ndarray((accessor.count, columns), component, data, start, strides)
        if accessor.normalized and component.kind in "iu":
            return np.maximum(array / np.iinfo(component).max, -1)
        return array

    def _world(self) -> dict[int, np.ndarray]:
        """Compute the world transform (4, 4) of every node in a tree."""
        nodes = self._gltf.nodes
        below = {child for node in nodes for child in node.children or ()}
        world = {number: _local(node) for number, node in enumerate(nodes) if number not in below}
        waiting = list(world)
        while waiting:
            parent = waiting.pop()
            for child in nodes[parent].children or ():
                if child not in world:
                    world[child] = world[parent] @ _local(nodes[child])
                    waiting.append(child)
        return world

    def _hand_frame(self, joints: np.ndarray) -> np.ndarray | None:
        """(4, 4) from the file's metres to the hand frame, by joints (25, 3) mm; None with faults."""
        palm = joints[11] - joints[0]
        length = float(np.linalg.norm(palm))
        if not PALM_MM[0] <= length <= PALM_MM[1]:
            expected = f"{PALM_MM[0]:g} to {PALM_MM[1]:g} mm in a file in metres"
            self._add(f"wrist and middle knuckle lie {length:.4g} mm apart", expected)
            return None
        start, end = BONES.T.numpy()
        lengths = np.linalg.norm(joints[end] - joints[start], axis=1)
        short = [JOINTS[joint] for joint in end[lengths < SHORTEST_MM]]
        self._faults.add_many(self._path, "joints lie on the one before", short, "bones of some length")
        ahead = palm / length
        out = np.cross(joints[6] - joints[21], ahead)
        if np.linalg.norm(out) < SHORTEST_MM:
            self._add("the knuckles lie on a line with the wrist", "a palm with two sides")
            return None
        out /= np.linalg.norm(out)
        bent = float(((joints[CHAINS[:, -1]] - joints[CHAINS[:, 0]]) @ out).sum()) / length
        if bent < SIDE:
            got = "a left hand" if bent < -SIDE else "a hand too straight to distinguish right from left"
            self._add(got, "a right hand, thumb and fingers bent a little towards the palm (right.glb)")
        if bent < SIDE or short:
            return None
        frame = np.eye(4)
        frame[:3, :3] = 1000 * np.stack([np.cross(ahead, out), ahead, out])
        frame[:3, 3] = -frame[:3, :3] @ joints[0] / 1000
        return frame

    def _add(self, got: str, expected: str) -> None:
        self._faults.add(self._path, got, expected)


def webxr_name(name: str) -> str:
    """Return WebXR's name of an OpenXR joint, and any other name unchanged."""
    words = [word for word in re.split(r"[^a-z]+", name.lower()) if word and word not in OTHER_WORDS]
    if words == ["wrist"]:
        return "wrist"
    if len(words) == 2 and words[0] in FINGER_WORDS and words[1] in BONE_WORDS:
        return f"{FINGER_WORDS[words[0]]}-{BONE_WORDS[words[1]]}"
    return name


def _buffer(path: Path, gltf: Any, buffer: Any) -> bytes | None:
    """The bytes of one buffer: the file's own, inside its address, or in a file beside it."""
    if not buffer.uri:
        return gltf.binary_blob()
    if buffer.uri.startswith("data:"):
        try:
            return base64.b64decode(buffer.uri.partition(",")[2], validate=True)
        except binascii.Error:
            return None
    beside = path.parent / unquote(buffer.uri)
    return beside.read_bytes() if beside.is_file() else None


def _joined(parts: list[np.ndarray | None]) -> np.ndarray | None:
    whole = [part for part in parts if part is not None]
    return np.concatenate(whole) if whole and len(whole) == len(parts) else None


def _local(node: Any) -> np.ndarray:
    """Transform (4, 4) of a node relative to its parent."""
    if node.matrix is not None:
        return np.array(node.matrix, float).reshape(4, 4).T
    x, y, z, w = node.rotation or (0.0, 0.0, 0.0, 1.0)
    local = np.eye(4)
    local[:3, :3] = quaternion_matrix(w, x, y, z) * np.array(node.scale or (1.0, 1.0, 1.0))
    local[:3, 3] = node.translation or (0.0, 0.0, 0.0)
    return local
