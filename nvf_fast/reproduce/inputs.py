"""Inputs of the figures: other methods' predictions, and folders of photographs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nvf_fast.image_files import read_image
from nvf_fast.runtime.files import read_json

DEPTHS_M = (0.05, 10.0)  # the median joint of a file of camera-space poses lies between


def read_predictions(path: Path, count: int) -> np.ndarray:
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
        ValueError: it is not JSON or not of this form.
    """
    document = read_json(path)
    try:
        poses, _ = document
        joints = np.array(poses, np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{path}: expected [xyz_list, verts_list], joints and vertices ({error})") from error
    if joints.shape != (count, 21, 3):
        raise ValueError(f"{path}: expected joints ({count}, 21, 3) of {count} samples, got {joints.shape}")
    if not np.isfinite(joints).all():
        sample = np.argwhere(~np.isfinite(joints))[0, 0]
        raise ValueError(f"{path}: sample {sample} holds numbers that are not finite")
    depth = float(np.median(joints[..., 2]))
    if not DEPTHS_M[0] < depth < DEPTHS_M[1]:
        cause = "millimetres" if depth >= DEPTHS_M[1] else "root-relative, or of a camera that looks along -z"
        raise ValueError(
            f"{path}: expected metres in the camera's frame, z forward; the median depth is {depth:g}, "
            f"so that these seem to be {cause}"
        )
    return joints * 1000


class Photograph(NamedTuple):
    """An image (H, W, 3) uint8 RGB, with an estimator's other arguments as given, not validated."""

    name: str
    image: np.ndarray
    K: Any
    box: Any = None
    side: Any = "right"
    hand_scale: Any = None


def read_photographs(folder: Path) -> list[Photograph]:
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
        The photographs in the file's order.

    Raises:
        OSError: a file cannot be read.
        ValueError: the file or an image is invalid.
    """
    path = folder / "intrinsics.json"
    entries = read_json(path)
    if not isinstance(entries, dict) or not entries:
        raise ValueError(f'{path}: expected {{"hand.jpg": {{"K": ...}}, ...}}, got {entries!r}')
    for name, entry in entries.items():
        if not isinstance(entry, dict) or "K" not in entry or not entry.keys() <= set(Photograph._fields[2:]):
            raise ValueError(
                f"{path}: {name}: K is required, box, side and hand_scale optional, got {entry!r}"
            )
    return [Photograph(name, read_image(folder / name), **entry) for name, entry in entries.items()]
