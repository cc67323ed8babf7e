"""Inputs of the figures: other methods' predictions, and folders of photographs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nvf_fast.cli.predict import read_image
from nvf_fast.data.sample import HandSample
from nvf_fast.inputs import HAND_SCALE_RANGE_MM, read_intrinsics

DEPTHS_M = (0.05, 10.0)  # the median joint of a file of camera-space poses lies between
ENTRIES = ("K", "box", "side", "hand_scale")


def read_predictions(path: Path | str, count: int) -> np.ndarray:
    """Read a method's camera-space poses from FreiHAND's submission file.

    The file is JSON, [xyz_list, verts_list]: for each sample in order the 21 joints in FreiHAND's order, in
    metres, in the camera's frame (x right, y down, z forward), and vertices, which are ignored.

    Args:
        path: `pred.json`.
        count: required number of samples.

    Returns:
        (count, 21, 3) float64 mm.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not JSON or not of this form; the message names the first faulty sample.
    """
    document = _json(Path(path))
    if not isinstance(document, list) or len(document) != 2 or not isinstance(document[0], list):
        raise ValueError(f"{path}: expected [xyz_list, verts_list], got {_described(document)}")
    poses = document[0]
    if len(poses) != count:
        raise ValueError(f"{path}: expected the joints of {count} samples, got {len(poses)}")
    joints = np.empty((count, 21, 3))
    for sample, pose in enumerate(poses):
        numbers = _numbers(pose)
        if numbers is None or numbers.shape != (21, 3):
            got = _described(pose) if numbers is None else f"shape {numbers.shape}"
            raise ValueError(f"{path}: sample {sample} must be (21, 3) numbers, got {got}")
        if not np.isfinite(numbers).all():
            raise ValueError(f"{path}: sample {sample} holds numbers that are not finite")
        joints[sample] = numbers
    depth = float(np.median(joints[..., 2])) if count else 1.0
    if not DEPTHS_M[0] < depth < DEPTHS_M[1]:
        cause = "millimetres" if depth >= DEPTHS_M[1] else "root-relative, or of a camera that looks along -z"
        raise ValueError(
            f"{path}: expected metres in the camera's frame, z forward; the median depth is {depth:g}, "
            f"so that these seem to be {cause}"
        )
    return joints * 1000


def read_photographs(folder: Path | str) -> list[HandSample]:
    """Read photographs of hands with their cameras from a folder with an `intrinsics.json`.

    The file is JSON, an entry for each image, by its name within the folder:

        {"hand.jpg": {"K": [[fx, 0, cx], [0, fy, cy], [0, 0, 1]],
                      "box": [x0, y0, x1, y1], "side": "left", "hand_scale": 41.5}}

    K in px, the first pixel of a row centred at 0, after the rotation given in the EXIF data; box in px about
    the hand; side "right" by default; hand_scale in mm, length of the middle finger's proximal phalanx. Only
    K is required.

    Args:
        folder: with `intrinsics.json` and the images.

    Returns:
        Samples in the file's order, named by their files, without joints.

    Raises:
        OSError: `intrinsics.json` cannot be read.
        ValueError: an entry or an image is invalid; the message lists all faults.
    """
    folder = Path(folder)
    path = folder / "intrinsics.json"
    entries = _json(path)
    if not isinstance(entries, dict) or not entries:
        raise ValueError(f'{path}: expected {{"hand.jpg": {{"K": ...}}, ...}}, got {_described(entries)}')
    faults = [
        f"{name}: {fault}" for name, entry in entries.items() for fault in _faults(folder / name, entry)
    ]
    if faults:
        raise ValueError(f"{path}: " + "; ".join(faults))
    return [
        HandSample(
            id=name,
            image=read_image(folder / name),
            intrinsics=np.array(entry["K"], np.float64),
            hand_scale=entry.get("hand_scale"),
            side=entry.get("side", "right"),
            box=torch.tensor(entry["box"], dtype=torch.float32) if "box" in entry else None,
        )
        for name, entry in entries.items()
    ]


def _faults(image: Path, entry: Any) -> Iterator[str]:
    """Find the faults of one photograph and its entry."""
    try:
        read_image(image)
    except FileNotFoundError:
        yield "the file does not exist"
    except (OSError, ValueError) as error:
        yield str(error)
    if not isinstance(entry, dict):
        yield f'expected {{"K": ...}}, got {_described(entry)}'
        return
    unknown = sorted(set(entry) - set(ENTRIES))
    if unknown:
        yield f"unknown {', '.join(unknown)}; known are {', '.join(ENTRIES)}"
    if "K" not in entry:
        yield "K is missing"
    else:
        try:
            read_intrinsics(entry["K"], 1)
        except (TypeError, ValueError) as error:
            yield str(error)
    box = _numbers(entry.get("box", [0, 0, 2, 2]))
    if box is None or box.shape != (4,) or not np.isfinite(box).all() or (box[2:] - box[:2] < 2).any():
        yield f"box must be [x0, y0, x1, y1] px, x1 and y1 at least 2 px larger, got {entry['box']!r}"
    if entry.get("side", "right") not in ("right", "left"):
        yield f'side must be "right" or "left", got {entry["side"]!r}'
    scale = _numbers(entry.get("hand_scale", HAND_SCALE_RANGE_MM[0]))
    low, high = HAND_SCALE_RANGE_MM
    if scale is None or scale.shape != () or not low <= scale <= high:
        yield f"hand_scale must be {low:g} to {high:g} mm, got {entry['hand_scale']!r}"


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from error


def _numbers(value: Any) -> np.ndarray | None:
    try:
        return np.array(value, dtype=np.float64)
    except (TypeError, ValueError):
        return None


def _described(value: Any) -> str:
    kind = {list: "a list", dict: "an object", str: "a text", type(None): "null"}
    name = kind.get(type(value), f"{value!r}")
    return f"{name} of {len(value)}" if isinstance(value, list | dict) else name
