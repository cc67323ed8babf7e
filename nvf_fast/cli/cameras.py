"""Options that describe the camera of images."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from nvf_fast.camera_model import Camera, fov_focal
from nvf_fast.cli import UserError, user_errors
from nvf_fast.cli.options import Optional
from nvf_fast.image_files import exif_focal
from nvf_fast.pose import HandPose
from nvf_fast.runtime.files import read_json

DEFAULT_FOV = 60.0  # degrees, across an image's longer side
ASSUMED = (
    f"assuming {DEFAULT_FOV:g} degrees across the longer side; if that is wrong, so are distances, which "
    "expected errors do not include, and hands can be missed"
)
CALIBRATION = ("K", "size", "distortion", "model")  # keys of a camera in a file


@dataclass(frozen=True)
class CameraOptions:
    """The camera: from --fx, --fov or --intrinsics, else from EXIF data, else with 60 degrees."""

    fx: Optional[float] = None  # px, focal length
    fy: Optional[float] = None  # px, vertical focal length; fx when absent
    # px, principal point, with 0 at the centre of the first pixel; the middle of the image when absent
    cx: Optional[float] = None
    cy: Optional[float] = None  # px, principal point; the middle of the image when absent
    fov: Optional[float] = None  # degrees, horizontal field of view of the whole image, instead of --fx
    # JSON file instead of --fx: [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] in px, or a calibration with OpenCV's
    # coefficients, {"K": ..., "size": [WIDTH, HEIGHT], "distortion": [...], "model": "plumb_bob"
    # or "fisheye"}, all but K optional, or {"NAME.jpg": ...} with one of both per image
    intrinsics: Optional[Path] = None

    def check(self, images: Iterable[Path]) -> None:
        """Raise `UserError` for inconsistent options, or a file that cannot be read; warn of other images."""
        if sum(given is not None for given in (self.fx, self.fov, self.intrinsics)) > 1:
            raise UserError("give only one of --fx (px), --fov (degrees) and --intrinsics (JSON file)")
        for name in ("fx", "fy"):
            focal = getattr(self, name)
            if focal is not None and not (math.isfinite(focal) and focal > 0):
                raise UserError(f"--{name} must be a positive number of px, got {focal}")
        for name in ("cx", "cy"):
            if getattr(self, name) is not None and not math.isfinite(getattr(self, name)):
                raise UserError(f"--{name} must be a number of px, got {getattr(self, name)}")
        if self.fov is not None:
            with user_errors():
                fov_focal(self.fov, 1)
        if self.fx is None and self.fy is not None:
            raise UserError("--fy needs --fx")
        if self.intrinsics is not None:
            if self.cx is not None or self.cy is not None:
                raise UserError("--cx and --cy cannot be combined with --intrinsics")
            if isinstance(self._calibration, dict) and "K" in self._calibration:
                self._check_keys(self._calibration)
            elif isinstance(self._calibration, dict):
                warn_of_others(self._calibration, images, self.intrinsics)

    @cached_property
    def _calibration(self) -> Any:
        assert self.intrinsics is not None
        with user_errors():
            return read_json(self.intrinsics)

    def of(
        self, path: Path, height: int, width: int, exif: bool = True, alone: bool = True
    ) -> tuple[Camera, str]:
        """The camera of one image.

        Args:
            path: of the image, or of a video.
            height, width: px.
            exif: whether the file may hold EXIF data, unlike a video.
            alone: whether no other image has the same name.

        Returns:
            The camera, and its source: "fx", "fov", "intrinsics", "exif" or "default".

        Raises:
            UserError: the options or the file of intrinsics hold no valid camera for the image.
            OSError: the image cannot be read.
        """
        if self.intrinsics is not None:
            return self._listed(path, height, width, alone), "intrinsics"
        if self.fx is not None:
            focal, source = self.fx, "fx"
        elif self.fov is not None:
            focal, source = fov_focal(self.fov, width), "fov"
        elif exif and (found := exif_focal(path)) is not None:
            focal, source = found, "exif"
        else:
            focal, source = fov_focal(DEFAULT_FOV, max(width, height)), "default"
        fy = focal if self.fy is None else self.fy
        cx = (width - 1) / 2 if self.cx is None else self.cx
        cy = (height - 1) / 2 if self.cy is None else self.cy
        with user_errors():
            return Camera(np.array([[focal, 0, cx], [0, fy, cy], [0, 0, 1]]), (width, height)), source

    def _listed(self, path: Path, height: int, width: int, alone: bool) -> Camera:
        """The camera of one image in the file."""
        found = self._calibration
        if isinstance(found, dict) and "K" not in found:
            assert self.intrinsics is not None
            _, found = entry_of(path, found, self.intrinsics, alone, ", and no 'K' for all images")
        entry = found if isinstance(found, dict) else {"K": found}
        self._check_keys(entry)
        try:
            camera = Camera(**{"size": (width, height), **entry})
        except (TypeError, ValueError, OverflowError) as error:
            raise UserError(f"{self.intrinsics}: {error}") from error
        if camera.size != (width, height):
            raise UserError(
                f"{self.intrinsics} calibrates images of {camera.size[0]} x {camera.size[1]} px, {path.name} "
                f"has {width} x {height} px; Camera.resized and Camera.cropped of nvf_fast convert it"
            )
        return camera

    def _check_keys(self, entry: dict[str, Any]) -> None:
        unknown = sorted(set(entry) - set(CALIBRATION))
        if unknown or "K" not in entry:
            fault = f"unknown keys {unknown}" if unknown else "no 'K'"
            raise UserError(f"{self.intrinsics}: a camera has the keys {list(CALIBRATION)}, got {fault}")


def entry_of(path: Path, entries: dict[str, Any], file: Path, alone: bool, hint: str = "") -> tuple[str, Any]:
    """The entry of an image in a file that lists images by path or by name, after its key.

    Raises:
        UserError: the file lacks the image, or names it although it is not `alone` in having the name.
    """
    key = next((key for key in _keys(path) if key in entries), None)
    if key is None:
        raise UserError(f"{file} has no entry {path.name!r}{hint}")
    if key not in (str(path), path.as_posix()) and not alone:
        raise UserError(f"several images are named {path.name}: name them in {file} as {str(path)!r}")
    return key, entries[key]


def warn_of_others(entries: dict[str, Any], images: Iterable[Path], file: Path) -> None:
    """Warn of entries of a file, by path or by name, that are of none of the images."""
    others = sorted(entries.keys() - {key for path in images for key in _keys(path)})
    if others:
        some = ", ".join(map(repr, others[:3])) + ", ..." * (len(others) > 3)
        warnings.warn(f"{file}: {len(others)} of {len(entries)} entries are of no given image: {some}")


def _keys(path: Path) -> tuple[str, ...]:
    """The keys that name an image in a file: its path, on Windows with either slash, and its name."""
    return str(path), path.as_posix(), path.name


def without_errors(poses: Iterable[HandPose], source: str) -> list[HandPose]:
    """The poses to draw: without expected errors if the camera is assumed."""
    return [replace(pose, expected_error=None) if source == "default" else pose for pose in poses]


def camera_record(camera: Camera, source: str) -> dict[str, Any]:
    """The camera of an image as JSON: K, the lens of a camera with distortion, and the source."""
    record = camera.to_dict()
    return {key: record[key] for key in CALIBRATION if key in record and key != "size"} | {"source": source}
