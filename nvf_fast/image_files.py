"""Photographs from files, and the focal lengths that their metadata hold."""

from __future__ import annotations

import json
import math
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

ASSETS = Path(__file__).resolve().parent / "assets"
# Formats that Pillow decodes itself; others, such as EPS, start further programs.
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "AVIF", "JPEG2000")
# Of the images of a folder.
SUFFIXES = (*(".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"), *(".gif", ".ppm", ".avif", ".jp2"))
# Of other images, which a folder may hold.
OTHER_SUFFIXES = (
    *(".heic", ".heif", ".hif", ".jxl", ".jfif", ".pgm", ".pbm", ".pnm", ".tga", ".exr", ".hdr", ".svg"),
    *(".raw", ".dng", ".cr2", ".cr3", ".nef", ".nrw", ".arw", ".orf", ".rw2", ".raf", ".pef", ".psd"),
)
FILM_DIAGONAL_MM = 43.2666  # of a 36 x 24 mm frame, to which 35 mm equivalents refer (CIPA DCG-001)
MM_PER_UNIT = {2: 25.4, 3: 10.0, 4: 1.0}  # of the resolution of the focal plane
FOCAL_RANGE = (0.2, 50.0)  # plausible focal lengths, relative to the longer side


def read_image(path: Path | str | IO[bytes]) -> np.ndarray:
    """Read an image file as (H, W, 3) uint8 RGB, upright; grey becomes RGB, an alpha channel is dropped.

    Args:
        path: its path, or the file, open for reading bytes.

    Raises:
        OSError: the file is missing, damaged or not an image of `FORMATS`.
        ValueError: the image has more than 8 bits per channel, CIELAB colours, or too many pixels.
    """
    with _damages(path), _open(path) as file:
        tiles = getattr(file, "tile", ())  # the compressed parts, the layout of their pixels last
        # Pillow takes the upper byte of 16 bits, which is almost black where a camera fills only 12.
        if file.mode.startswith(("I", "F")) or any(";16" in str(tile[3]) for tile in tiles):
            raise ValueError(
                f"{path}: expected 8 bits per channel, got more in pixels of mode {file.mode!r}: convert it "
                "to 8 bits by its range of values"
            )
        if file.mode == "LAB":
            raise ValueError(f"{path}: expected grey, RGB, CMYK or palette colours, got mode 'LAB'")
        return np.array(ImageOps.exif_transpose(file).convert("RGB"))


def demo_image() -> tuple[np.ndarray, np.ndarray]:
    """The included image of two rendered hands, (540, 960, 3) uint8 RGB, and its intrinsics (3, 3) px."""
    truth = json.loads((ASSETS / "demo.json").read_bytes())
    return read_image(ASSETS / "demo.jpg"), np.array(truth["K"])


def image_files(folder: Path) -> list[Path]:
    """The image files of a folder, ordered by name, numbers in names by value (9.png before 10.png).

    A warning counts images of other formats.

    Hidden files are skipped: macOS keeps the metadata of `NAME.jpg` on other file systems in `._NAME.jpg`.

    Raises:
        OSError: the folder cannot be read.
        ValueError: it contains no images.
    """
    shown = (path for path in folder.iterdir() if not path.name.startswith("."))
    files = sorted(shown, key=lambda path: (_name_key(path.name), path.name))
    paths = [path for path in files if path.suffix.lower() in SUFFIXES]
    others = Counter(suffix for path in files if (suffix := path.suffix.lower()) in OTHER_SUFFIXES)
    kinds = ", ".join(f"{count} {suffix}" for suffix, count in others.items())
    skipped = f"images of other formats are skipped ({kinds})"
    if not paths:
        hint = f"; {skipped}" if others else ""
        raise ValueError(f"{folder}: no images ({', '.join(SUFFIXES)}) in this folder{hint}")
    if others:
        warnings.warn(f"{folder}: {skipped}: convert them to one of {', '.join(SUFFIXES)}", stacklevel=1)
    return paths


def read_depth(path: Path | str | IO[bytes]) -> np.ndarray:
    """Read a depth image, one channel of 16 or 32 bits, as (H, W) uint16, int32 or float32, mm.

    Raises:
        OSError: the file is missing, damaged or not an image of `FORMATS`.
        ValueError: the image has several channels, 8 bits, or too many pixels.
    """
    with _damages(path), _open(path) as file:
        if not file.mode.startswith(("I", "F")):
            raise ValueError(
                f"{path}: a depth image must have one channel of 16 or 32 bits, in mm, got pixels of mode "
                f"{file.mode!r}"
            )
        depth = np.array(file)
        return depth.astype(depth.dtype.newbyteorder("="))


def exif_focal(path: Path | str | IO[bytes]) -> float | None:
    """Focal length in px from the EXIF data of a whole, uncropped photograph.

    The 35 mm equivalent comes first, then the focal length in mm with the resolution of the focal plane.

    Returns:
        The focal length, or None if it is missing or lies outside `FOCAL_RANGE`.

    Raises:
        OSError: the file is missing or not an image, or a pipe, which has been read before.
    """
    if isinstance(path, str | Path) and Path(path).exists() and not Path(path).is_file():
        raise OSError(f"{path}: not a file, so its EXIF data cannot be read again: give the focal length")
    with _damages(path), _open(path) as file:
        width, height = file.size
        exif = file.getexif().get_ifd(ExifTags.IFD.Exif)
    equivalent = _number(exif, ExifTags.Base.FocalLengthIn35mmFilm)
    length, density = (
        _number(exif, ExifTags.Base.FocalLength),
        _number(exif, ExifTags.Base.FocalPlaneXResolution),
    )
    unit = MM_PER_UNIT.get(int(_number(exif, ExifTags.Base.FocalPlaneResolutionUnit) or 2))
    if equivalent:
        focal = equivalent / FILM_DIAGONAL_MM * math.hypot(width, height)
    elif length and density and unit:
        # The resolution is that of the photograph as taken, which may have been resized since.
        taken = _number(exif, ExifTags.Base.ExifImageWidth) or width
        focal = length * density / unit * width / taken
    else:
        return None
    low, high = (factor * max(width, height) for factor in FOCAL_RANGE)
    return focal if low <= focal <= high else None


@contextmanager
def _open(path: Path | str | IO[bytes]) -> Iterator[Image.Image]:
    Image.init()
    formats = [name for name in FORMATS if name in Image.OPEN]
    # Opened here, since Pillow leaves pipes open.
    with (
        open(path, "rb") if isinstance(path, str | Path) else nullcontext(path) as file,
        Image.open(file, formats=formats) as image,
    ):
        yield image


@contextmanager
def _damages(path: Path | str | IO[bytes]) -> Iterator[None]:
    """Raise every error of Pillow about a file as one that names it."""
    try:
        yield
    except UnidentifiedImageError as error:
        raise OSError(f"{path}: not a readable image; the formats are {', '.join(FORMATS)}") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path}: {error}") from error
    except Exception as error:  # decoders raise many kinds for damaged files
        named = getattr(error, "filename", None) is not None or str(path) in str(error)
        if isinstance(error, OSError | ValueError) and named:
            raise
        raise OSError(f"{path}: damaged ({type(error).__name__}: {error})") from error


def _name_key(name: str) -> list[tuple[str, int]]:
    """The texts and the numbers of a name, alternating."""
    return [(text, int(number or -1)) for text, number in re.findall(r"(\D*)(\d*)", name)]


def _number(exif: object, tag: int) -> float | None:
    """A positive number of the EXIF data, or None."""
    value = exif.get(tag)  # type: ignore[attr-defined]
    try:
        number = float(value)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return number if math.isfinite(number) and number > 0 else None
