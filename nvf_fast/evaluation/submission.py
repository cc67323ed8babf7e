"""Files for the servers of FreiHAND and HO-3D: pred.json = [joints, vertices] of every image, zipped.

Arguments and results are in mm, OpenCV's axes and FreiHAND's joint order, for either server. Numbers are
written as the shortest decimals that read back as the same float64.

Sources: FreiHAND's and HO-3D's public `pred.py` and `eval.py`.
"""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import numpy as np
from numpy.typing import ArrayLike

from nvf_fast.conventions import FRAMES, ORDERS
from nvf_fast.evaluation.metrics import MANO_VERTICES, Floats
from nvf_fast.runtime.files import read_path, whole_file

Server = Literal["freihand", "ho3d-v2", "ho3d-v3"]
MEMBER = "pred.json"
MOST_BYTES = 4 << 30  # of pred.json, which for HO3D v3 with vertices has about 1 GB
DAMAGES = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, ValueError)
"""Exceptions of `zipfile` for damaged files: RuntimeError for a password, ValueError for negative offsets."""

_METRE_MM = 1000.0
_JOINTS = 21


@dataclass(frozen=True)
class Format:
    """Number of images, joint order and axes of one server's file."""

    images: int
    order: list[int]
    axes: Floats


FORMATS: dict[Server, Format] = {
    "freihand": Format(3960, ORDERS["freihand"], np.ones(3)),
    "ho3d-v2": Format(11_524, ORDERS["ho3d"], np.array(FRAMES["opengl"])),
    "ho3d-v3": Format(20_137, ORDERS["ho3d"], np.array(FRAMES["opengl"])),
}


def write_submission(
    path: Path | str,
    joints_mm: ArrayLike,
    server: Server,
    vertices_mm: Iterable[ArrayLike] | None = None,
    *,
    official: bool = True,
) -> None:
    """Write a submission in metres: FreiHAND with OpenCV's axes and its own joint order, HO-3D with OpenGL's
    axes (hands at negative z) and HO-3D's joint order.

    Args:
        path: .zip file with the one member pred.json, written atomically.
        joints_mm: (N, 21, 3) mm, camera frame with OpenCV's axes, FreiHAND's joint order, in the order of the
            evaluation split.
        server: the data set, and HO-3D's version.
        vertices_mm: N meshes (778, 3) mm in MANO's order with OpenCV's axes, consumed one by one; None writes
            zeros, as the release of Neural Voting Field does, which makes the server's mesh scores
            meaningless.
        official: N must be the evaluation split's 3960, 11 524 or 20 137; False takes any number.

    Raises:
        ValueError: a shape, number or unit is invalid, or the hands lie behind the camera.
        OSError: the file cannot be written.
    """
    path = read_path("path", path)
    if path.suffix != ".zip":
        raise ValueError(f"a submission is a .zip file, got {path}")
    form = FORMATS[server]
    joints = _checked_joints(joints_mm, form.images if official else None)
    entry = zipfile.ZipInfo(MEMBER)  # without a date, so that equal predictions give equal files
    entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
    with (
        whole_file(path) as file,
        zipfile.ZipFile(file, "w") as archive,
        archive.open(entry, "w", force_zip64=True) as member,
    ):
        member.write(b"[")
        _write_list(member, map(_text, joints[:, form.order] * form.axes / _METRE_MM))
        member.write(b", ")
        if vertices_mm is None:
            zeros = _text(np.zeros((MANO_VERTICES, 3)))
            _write_list(member, (zeros for _ in joints))
        else:
            meshes = _checked_meshes(vertices_mm, len(joints))
            _write_list(member, (_text(mesh * form.axes / _METRE_MM) for mesh in meshes))
        member.write(b"]")


def read_submission(path: Path | str, server: Server) -> tuple[Floats, Floats]:
    """Read a submission of this or another program.

    The whole file is parsed at once, which takes some 2 GB of memory for HO-3D v3 with vertices.

    Args:
        path: .zip file.
        server: the data set, and HO-3D's version.

    Returns:
        Joints (N, 21, 3) mm and vertices (N, V, 3) mm, OpenCV's axes, joints in FreiHAND's order.

    Raises:
        ValueError: it is not a zip file, holds members other than pred.json, or that is not two lists of one
            length.
        OSError: the file cannot be read.
    """
    form = FORMATS[server]
    content = read_path("path", path).read_bytes()
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            sizes = {member.filename: member.file_size for member in archive.infolist()}
            sound = list(sizes) == [MEMBER] and sizes[MEMBER] <= MOST_BYTES
            text = archive.read(MEMBER) if sound else b""
    except DAMAGES as error:
        raise ValueError(f"{path}: not a zip file, or a damaged one ({error})") from error
    if not sound:
        expected = f"{MEMBER} of at most {MOST_BYTES} bytes at its top and nothing else"
        raise ValueError(f"{path}: must hold {expected}, holds {sizes}")
    try:
        joints, vertices = (np.array(part, np.float64) for part in json.loads(text))
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{path}: {MEMBER} must be [joints, vertices], two lists ({error})") from error
    shapes = joints.shape, vertices.shape
    if joints.shape[1:] != (_JOINTS, 3) or vertices.shape[2:] != (3,) or len(joints) != len(vertices):
        raise ValueError(
            f"{path}: {MEMBER} must be two lists of one length, joints must be (N, 21, 3), vertices "
            f"(N, V, 3), got {shapes}"
        )
    joints, vertices = (part * form.axes * _METRE_MM for part in (joints, vertices))
    return joints[:, np.argsort(form.order)], vertices


def _checked_joints(joints_mm: ArrayLike, expected: int | None) -> Floats:
    joints = np.asarray(joints_mm, np.float64)
    if joints.ndim != 3 or joints.shape[1:] != (_JOINTS, 3) or len(joints) == 0:
        raise ValueError(f"joints must be (N, 21, 3) mm, got shape {joints.shape}")
    if expected is not None and len(joints) != expected:
        raise ValueError(
            f"the evaluation split has {expected} images, got {len(joints)} poses; official=False takes any"
        )
    if not np.isfinite(joints).all():
        raise ValueError("joints hold values that are not finite: every image needs a pose")
    if (joints[..., 2] < 0).all():
        raise ValueError(
            "every joint lies behind the camera: joints must have OpenCV's axes, z away from the camera"
        )
    size = float(np.ptp(joints, axis=1).max())
    if size < 1.0:
        raise ValueError(f"the largest hand measures {size:.3g} mm: joints must be mm, not metres")
    return joints


def _checked_meshes(vertices_mm: Iterable[ArrayLike], count: int) -> Iterator[Floats]:
    number = 0
    for number, mesh in enumerate(vertices_mm, start=1):
        vertices = np.asarray(mesh, np.float64)
        if vertices.shape != (MANO_VERTICES, 3) or not np.isfinite(vertices).all():
            raise ValueError(
                f"vertices of image {number - 1} must be ({MANO_VERTICES}, 3) finite mm, "
                f"got shape {vertices.shape}"
            )
        yield vertices
    if number != count:
        raise ValueError(f"{count} poses need as many meshes, got {number}")


def _text(points: Floats) -> bytes:
    return json.dumps(points.tolist(), allow_nan=False).encode()


def _write_list(file: IO[bytes], texts: Iterable[bytes]) -> None:
    file.write(b"[")
    for number, text in enumerate(texts):
        file.write(b", " * (number > 0) + text)
    file.write(b"]")
