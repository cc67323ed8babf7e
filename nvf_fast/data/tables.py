"""Lists of numbers in JSON files, one entry per image, and the images themselves."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nvf_fast.data.faults import Faults
from nvf_fast.data.pickles import dense
from nvf_fast.data.sample import DamagedImageError
from nvf_fast.runtime.files import whole_file, write_file
from nvf_fast.runtime.store import Store

BLOCK = 1 << 22  # characters; the longest of these files have more than 10^9
# No hand is this far away, but in a file in mm the nearest ones, at 150 mm, appear at 150 m.
FARTHEST_MM = 20_000.0
_DECODER, _CLOSING = json.JSONDecoder(), re.compile(r"\s*([,\]])\s*")


def read_table(
    path: Path,
    faults: Faults,
    shape: tuple[int, ...],
    unit: float = 1.0,
    dtype: type = np.float32,
    cache: Path | None = None,
) -> np.ndarray | None:
    """Read a JSON list of N arrays of one shape.

    Args:
        path: the file.
        faults: collects those of the file.
        shape: of an entry; () for plain numbers.
        unit: factor from the file's unit to this library's; 1000 for metres.
        dtype: of the result.
        cache: folder for the list as an array, which is reused until the file changes.

    Returns:
        (N, *shape), or None where the file has a fault.
    """
    if not path.is_file():
        faults.add(path, "no such file", "a JSON list with one entry per image")
        return None
    store = None if cache is None else Store(cache, _state_of(path, unit, dtype), ".bin")
    if store is not None and (kept := store.intact("it is made anew")) is not None:
        return np.frombuffer(kept.content, dtype).reshape(-1, *shape).copy()
    rows: list[np.ndarray] = []
    wrong: list[str] = []
    try:
        for index, entry in enumerate(_entries(path)):
            row, fault = finite_array(entry, shape)
            rows.append((row * unit).astype(dtype))
            if fault:
                wrong.append(f"entry {index} is {fault}")
    except (ValueError, OSError, RecursionError) as error:
        faults.add(path, str(error), "a JSON list with one entry per image")
        return None
    faults.add_many(path, "entries of another form", wrong, form(shape))
    if not rows:
        faults.add(path, "an empty list", "one entry per image")
    if wrong or not rows:
        return None
    table = np.stack(rows)
    if store is not None:
        store.write(table.tobytes())
    return table


def finite_array(value: object, shape: tuple[int, ...]) -> tuple[np.ndarray, str | None]:
    """Convert a value of a JSON file or an unpickled one to a float64 array.

    Args:
        value: the value.
        shape: of the array; a vector (n,) may also have the shape (n, 1) or (1, n).

    Returns:
        The array, of NaN where the value has a fault, and the fault or None.
    """
    try:
        array = dense(value)
    except ValueError:
        fault = "missing" if value is None else "no array of numbers"
    else:
        if array.shape == shape or (len(shape) == 1 and array.size == shape[0]):
            if np.isfinite(array).all():
                return array.reshape(shape), None
            fault = "NaN or infinite"
        else:
            fault = " x ".join(map(str, array.shape)) or "one number"
    return np.full(shape, np.nan), fault


def form(shape: tuple[int, ...]) -> str:
    """The expected form of an array, for messages."""
    return f"{' x '.join(map(str, shape))} finite numbers" if shape else "one finite number"


def write_table(path: Path, rows: np.ndarray | list[Any]) -> None:
    """Write a JSON list for `read_table`, at full precision."""
    write_file(path, json.dumps(np.asarray(rows, dtype=np.float64).tolist()).encode())


def check_intrinsics(
    path: Path, intrinsics: np.ndarray, faults: Faults, names: Sequence[str] | None = None
) -> None:
    """Check that cameras (N, 3, 3) px are [[fx, s, cx], [0, fy, cy], [0, 0, 1]] with positive fx and fy."""
    focal = (intrinsics[:, 0, 0] > 0) & (intrinsics[:, 1, 1] > 0)
    form = (intrinsics[:, 2] == [0, 0, 1]).all(-1) & (intrinsics[:, 1, 0] == 0)
    flat, other = _named(~focal, names), _named(~form, names)
    faults.add_many(path, "cameras without a positive focal length", flat, "fx > 0 and fy > 0 px")
    faults.add_many(path, "cameras of another form", other, "[[fx, s, cx], [0, fy, cy], [0, 0, 1]]")


def check_points(path: Path, points: np.ndarray, faults: Faults, names: Sequence[str] | None = None) -> None:
    """Check that points (N, P, 3) mm lie in front of the camera, and that the file is in metres."""
    depth = points[..., 2]
    behind, far = _named((depth <= 0).any(1), names), _named((depth > FARTHEST_MM).any(1), names)
    faults.add_many(path, "entries behind the camera", behind, "depths in front of it")
    faults.add_many(path, f"entries farther than {FARTHEST_MM / 1000:g} m", far, "lengths in metres")


def listed(folder: Path) -> set[str]:
    """List the names of the files in a folder; a missing folder has none."""
    return set(os.listdir(folder)) if folder.is_dir() else set()


def read_image(path: Path) -> np.ndarray:
    """Read an image as (H, W, 3) uint8 RGB.

    Raises:
        DamagedImageError: the file is missing, not JPEG or PNG, incomplete, or not RGB.
    """
    try:
        with Image.open(path, formats=("JPEG", "PNG")) as image:
            mode, pixels = image.mode, np.array(image)
    except Exception as error:  # decoders raise many kinds for damaged files
        raise DamagedImageError(f"{path} cannot be read: {error}") from error
    if mode != "RGB":
        raise DamagedImageError(f"{path} has mode {mode}; expected RGB")
    return pixels


def write_image(path: Path, image: np.ndarray) -> None:
    """Write (H, W, 3) uint8 RGB: PNG losslessly, JPEG at quality 95 with full chroma."""
    format = {".png": "PNG", ".jpg": "JPEG"}[path.suffix]
    with whole_file(path) as file:
        Image.fromarray(image).save(file, format, quality=95, subsampling=0)  # PNG ignores both


def _entries(path: Path) -> Iterator[object]:
    """Iterate over the entries of a JSON list, since the longest lists would take gigabytes as objects."""
    with open(path, encoding="utf-8") as file:
        text, count = file.read(BLOCK).lstrip(), 0
        if text[:1] != "[":
            raise ValueError("holds no list" if text else "is empty")
        more = not re.fullmatch(r"\[\s*\]\s*", text)
        text, position = text[1:].lstrip(), 0
        while more:
            entry, closing = _next_entry(text, position)
            while closing is None and len(text) - position < 2 * BLOCK and (block := file.read(BLOCK)):
                text, position = (text[position:] + block).lstrip(), 0
                entry, closing = _next_entry(text, position)
            if closing is None:
                raise ValueError(f"is cut off or no JSON in entry {count}")
            position, count, more = closing.end(), count + 1, closing[1] == ","
            yield entry
        if count and (text[position:] + file.read(BLOCK)).strip():
            raise ValueError(f"goes on after the list of {count} entries")


def _next_entry(text: str, position: int) -> tuple[object, re.Match[str] | None]:
    """Parse an entry and its delimiter, a comma or the list's end, without which it may be incomplete."""
    try:
        entry, end = _DECODER.raw_decode(text, position)
    except json.JSONDecodeError:
        return None, None
    return entry, _CLOSING.match(text, end)


def _named(wrong: Any, names: Sequence[str] | None) -> list[str]:
    return [names[index] if names else f"entry {index}" for index in np.flatnonzero(wrong).tolist()]


def _state_of(path: Path, unit: float, dtype: type) -> str:
    state = path.stat()
    identity = f"{path.resolve()} {state.st_size} {state.st_mtime_ns} {unit} {np.dtype(dtype)}"
    return hashlib.sha256(identity.encode()).hexdigest()[:24]
