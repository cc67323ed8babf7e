"""Small trees in the formats of the paper's data sets, with a hand model in MANO's file format."""

from __future__ import annotations

import json
import pickle
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

from nvf_fast.conventions import convert_joints
from nvf_fast.data.complement import INTRINSICS, SIZE
from nvf_fast.data.folder import joints_m, vertices_m
from nvf_fast.data.freihand import VERSIONS, write_freihand
from nvf_fast.data.mano import FINGERTIPS, Mano
from nvf_fast.data.sample import HandSample
from nvf_fast.data.tables import write_image, write_table
from nvf_fast.runtime.files import write_file

HANDS = 3
PARENTS = [2**32 - 1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 0, 10, 11, 0, 13, 14]
RING, RINGS = 16, 48
FLIP = torch.tensor([1.0, -1.0, -1.0])


class HO3DPose(NamedTuple):
    """MANO's parameters as HO-3D stores them, in OpenGL's camera frame (x right, y up, z backward)."""

    pose: torch.Tensor  # (48,) axis-angle in radians, from the flat hand
    shape: torch.Tensor  # (10,)
    translation: torch.Tensor  # (3,) mm, added to MANO's vertices


def mano_arrays() -> dict[str, np.ndarray]:
    """Arrays of MANO's file for a bent tube (m): 778 vertices, 1538 faces, 16 edges around its open end."""
    random = np.random.default_rng(0)
    along, around = np.meshgrid(np.arange(RINGS), np.arange(RING) * 2 * np.pi / RING, indexing="ij")
    height = 0.18 * along / (RINGS - 1)
    tube = np.stack([0.04 * np.cos(around) + 0.2 * height**2, height, 0.015 * np.sin(around)], -1)
    vertices = [*tube.reshape(-1, 3), tube[-1].mean(0) + [0, 0.005, 0]]
    at = np.arange(RINGS * RING).reshape(RINGS, RING)
    low, high = at[:-1], at[1:]
    after = [np.roll(part, -1, axis=1) for part in (low, high)]
    faces = [tuple(f) for f in np.stack([low, high, after[0]], -1).reshape(-1, 3)]
    faces += [tuple(f) for f in np.stack([high, after[1], after[0]], -1).reshape(-1, 3)]
    faces += [(at[-1, i], len(vertices) - 1, at[-1, (i + 1) % RING]) for i in range(RING)]
    for _ in range(9):  # a vertex at the centre of a face splits it in three
        first, second, third = faces.pop(0)
        vertices.append((vertices[first] + vertices[second] + vertices[third]) / 3)
        middle = len(vertices) - 1
        faces += [(first, second, middle), (second, third, middle), (third, first, middle)]
    points = np.array(vertices)
    regressor = np.zeros((16, len(points)))
    for joint in range(16):
        regressor[joint, random.choice(at[2 + 2 * joint : 12 + 2 * joint].ravel(), 12, replace=False)] = (
            1 / 12
        )
    distance = np.linalg.norm(points[:, None] - regressor @ points, axis=-1)
    weights = np.exp(-distance / 0.02)
    return {
        "v_template": points,
        "shapedirs": 1e-3 * random.standard_normal((len(points), 3, 10)),
        "posedirs": 1e-4 * random.standard_normal((len(points), 3, 135)),
        "J_regressor": regressor,
        "weights": weights / weights.sum(1, keepdims=True),
        "kintree_table": np.array([PARENTS, range(16)], dtype=np.int64),
        "f": np.array(faces, dtype=np.uint32),
        "hands_mean": 0.1 * random.standard_normal(45),
        "hands_components": np.eye(45),
    }


def write_mano(path: Path, arrays: dict[str, np.ndarray] | None = None) -> Path:
    """Write a file as Python 2 wrote MANO_RIGHT.pkl: str for bytes, chumpy and scipy objects, old names."""
    arrays = mano_arrays() if arrays is None else arrays
    with _classes_of_old() as (array, select, sparse), open(path, "wb") as file:
        content: dict[str, Any] = {"bs_style": "lbs", "bs_type": "lrotmin", **arrays}
        directions = array(x=np.concatenate([arrays["shapedirs"], arrays["shapedirs"] + 1], -1))
        chosen = np.arange(directions.x.size).reshape(directions.x.shape)[..., :10]
        content["shapedirs"] = select(a=directions, idxs=chosen.ravel(), preferred_shape=chosen.shape)
        content["v_template"] = array(x=arrays["v_template"], _dirty_vars={"x"})
        row, column = np.nonzero(arrays["J_regressor"])
        order = np.argsort(column, kind="stable")
        content["J_regressor"] = sparse(
            _shape=arrays["J_regressor"].shape,
            data=arrays["J_regressor"][row, column][order],
            indices=row[order].astype(np.int32),
            indptr=np.searchsorted(column[order], np.arange(arrays["J_regressor"].shape[1] + 1)).astype(
                np.int32
            ),
            maxprint=50,
        )
        _Python2Pickler(file, protocol=2, fix_imports=True).dump(content)
    path.write_bytes(path.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    return path


@cache
def mano() -> Mano:
    with TemporaryDirectory() as folder:
        return Mano.load(write_mano(Path(folder) / "MANO_RIGHT.pkl"))


def make_image(seed: int, width: int = 224, height: int = 224) -> np.ndarray:
    """Return an image (height, width, 3) uint8, smooth to limit JPEG errors."""
    phases = np.random.default_rng(seed).uniform(0, 6, 3)
    y, x = np.mgrid[:height, :width]
    waves = np.sin(x[..., None] / 23 + phases) + np.cos(y[..., None] / 31 - phases)
    return (127 + 60 * waves).astype(np.uint8)


def posed(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw MANO's pose (1, 48) and shape (1, 10)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, 48, generator=generator) * 0.2, torch.randn(1, 10, generator=generator)


def freihand_samples(count: int = HANDS, versions: int = 1) -> list[HandSample]:
    samples = []
    for index in range(count * versions):
        hand = index % count
        vertices, _ = mano()(*posed(hand), flat_hand_mean=False)
        vertices = vertices + torch.tensor([5.0 * hand, -80.0, 500.0 + 40 * hand])
        joints = mano().regress(vertices, "freihand")[0].float()
        camera = np.array([[480.5 + hand, 0, 112], [0, 480.25, 111.5], [0, 0, 1]])
        samples.append(
            HandSample(
                f"hand {index}", make_image(index), camera, joints[0], joints, vertices=vertices[0].float()
            )
        )
    return samples


def ho3d_sequences(count: int = HANDS) -> tuple[dict[str, list[HandSample]], dict[str, list[HO3DPose]]]:
    """Return two sequences and the MANO parameters of their frames."""
    sequences: dict[str, list[HandSample]] = {}
    poses: dict[str, list[HO3DPose]] = {}
    for number, name in enumerate(("ABF10", "SM1")):
        sequences[name], poses[name] = [], []
        for frame in range(count):
            pose, shape = posed(10 * number + frame + 100)
            translation = torch.tensor([10.0 * frame, 20.0, -600.0])
            vertices, kinematic = mano()(pose, shape, flat_hand_mean=True)
            joints = convert_joints(
                torch.cat([kinematic, vertices[:, FINGERTIPS["ho3d"]]], 1), "ho3d", inverse=True
            )[0]
            joints, vertices = (((part + translation) * FLIP).float() for part in (joints, vertices[0]))
            camera = np.array([[617.343, 0, 312.42], [0, 617.343, 241.42], [0, 0, 1]])
            box = torch.tensor([100.5, 120.25, 300.0, 330.0])
            image = make_image(frame + 50, 640, 480)
            sequences[name].append(
                HandSample(f"{name} {frame}", image, camera, joints[0], joints, vertices=vertices, box=box)
            )
            poses[name].append(HO3DPose(pose[0], shape[0], translation))
    return sequences, poses


def write_ho3d(
    folder: Path,
    sequences: dict[str, list[HandSample]],
    split: str = "train",
    version: str = "v2",
    poses: dict[str, list[HO3DPose]] | None = None,
    released: bool = True,
) -> None:
    """Write frames 0000, 0001, ... of each sequence, and the evaluation split's released lists."""
    frames, joints, vertices = [], [], []
    for name, samples in sequences.items():
        for number, sample in enumerate(samples):
            assert sample.vertices is not None
            place, suffix = folder / split / name, ".png" if version == "v2" else ".jpg"
            write_image(place / "rgb" / f"{number:04d}{suffix}", sample.image)
            joints.append(convert_joints(joints_m(sample), "ho3d", "opengl"))
            vertices.append(vertices_m(sample) * FLIP.numpy())
            meta = {"camMat": sample.intrinsics, "handJoints3D": joints[-1]}
            if split == "evaluation":
                assert sample.box is not None
                meta |= {"handJoints3D": joints[-1][0], "handBoundingBox": sample.box.double().numpy()}
            elif poses is not None:
                pose = poses[name][number]
                meta |= {"handPose": pose.pose.double().numpy(), "handBeta": pose.shape.double().numpy()}
                meta |= {"handTrans": pose.translation.double().numpy() / 1000}
            write_file(place / "meta" / f"{number:04d}.pkl", pickle.dumps(meta, protocol=2))
            frames.append(f"{name}/{number:04d}")
    write_file(folder / f"{split}.txt", "\n".join([*frames, ""]).encode())
    if split == "evaluation" and released:
        write_table(folder / "evaluation_xyz.json", joints)
        write_table(folder / "evaluation_verts.json", vertices)


def write_complement(folder: Path, samples: list[HandSample]) -> None:
    """Write images of two views of each pose, and their meshes, as left hands in metres."""
    for index, sample in enumerate(samples):
        pose, number = folder / "base_pose" / f"pose{index // 2:04d}", 3 * (index % 2 + 1)
        write_image(pose / "pic256" / "view" / f"hand.{number:04d}.png", sample.image[:, ::-1])
        lines = [f"v {x!r} {y!r} {z!r}" for x, y, z in (vertices_m(sample) * [-1, 1, 1]).tolist()]
        # Mirroring reverses the orientation of faces.
        lines += [f"f {a + 1} {b + 1} {c + 1}" for c, b, a in mano().faces.tolist()]
        write_file(pose / "model_mano" / f"{number}.obj", "\n".join([*lines, ""]).encode())


def complement_samples(count: int = 4) -> list[HandSample]:
    samples = []
    for index in range(count):
        vertices, _ = mano()(*posed(index + 200), flat_hand_mean=True)
        vertices = vertices + torch.tensor([0.0, -90.0, 450.0 + index])
        joints = mano().regress(vertices, "complement")[0].float()
        image = make_image(index + 80, SIZE, SIZE)
        samples.append(
            HandSample(f"view {index}", image, INTRINSICS, joints[0], joints, vertices=vertices[0].float())
        )
    return samples


def write_trees(folder: Path) -> None:
    """Write `freihand`, `freihand_eval`, `v2`, `v3`, `complement` and MANO_RIGHT.pkl to one folder."""
    write_mano(folder / "MANO_RIGHT.pkl")
    write_freihand(folder / "freihand", freihand_samples(versions=4), "training", VERSIONS)
    write_freihand(
        folder / "freihand", freihand_samples(), "evaluation", evaluation_folder=folder / "freihand_eval"
    )
    sequences, poses = ho3d_sequences()
    for version in ("v2", "v3"):
        write_ho3d(folder / version, sequences, "train", version, poses)
        write_ho3d(folder / version, sequences, "evaluation", version)
    write_complement(folder / "complement", complement_samples())


def edit_json(path: Path, change: Any) -> None:
    """Rewrite a JSON file after `change`, which edits the content or returns a new one."""
    content = json.loads(path.read_text())
    prediction = change(content)
    path.write_text(json.dumps(content if prediction is None else prediction))


def edit_pickle(path: Path, **values: Any) -> None:
    """Set entries of a pickled dictionary."""
    content = pickle.loads(path.read_bytes()) | values
    path.write_bytes(pickle.dumps(content, protocol=2))


class _Python2Pickler(pickle._Pickler):  # type: ignore[name-defined]
    """Pickle str and bytes as Python 2 pickled its str."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def _save_string(self, value: str | bytes) -> None:
        data = value.encode("latin1") if isinstance(value, str) else value
        self.write(b"T" + struct.pack("<i", len(data)) + data)

    dispatch[str] = dispatch[bytes] = _save_string


@contextmanager
def _classes_of_old() -> Iterator[tuple[Any, Any, Any]]:
    """Provide chumpy.ch.Ch, chumpy.reordering.Select and scipy.sparse.csc.csc_matrix to a pickler."""
    places = [("chumpy.ch", "Ch"), ("chumpy.reordering", "Select"), ("scipy.sparse.csc", "csc_matrix")]
    before = {name: sys.modules.get(name) for name in ("chumpy", *(module for module, _ in places))}
    classes = []
    for module, name in (("chumpy", ""), *places):
        sys.modules[module] = ModuleType(module)
        if name:
            kind = type(name, (), {"__init__": lambda self, **state: self.__dict__.update(state)})
            kind.__module__ = module
            setattr(sys.modules[module], name, kind)
            classes.append(kind)
    try:
        yield tuple(classes)
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
