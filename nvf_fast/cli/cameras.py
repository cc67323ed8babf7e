"""Options that describe the camera of images."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nvf_fast.cli import UserError, user_errors
from nvf_fast.cli.options import Optional
from nvf_fast.image_files import exif_focal

DEFAULT_FOV = 60.0  # degrees, across an image's longer side


class Intrinsics(NamedTuple):
    """Intrinsics K (3, 3) float64 px, and their source: "fx", "fov", "intrinsics", "exif" or "default"."""

    K: np.ndarray
    source: str


@dataclass(frozen=True)
class CameraOptions:
    """The camera: --fx, --fov or --intrinsics, else the photograph's EXIF data, else 60 degrees.

    Attributes:
        fx: px, focal length.
        fy: px, vertical focal length; fx when absent.
        cx: px, principal point, with 0 at the centre of the first pixel; the middle of the image when absent.
        cy: px, principal point; the middle of the image when absent.
        fov: degrees, horizontal field of view of the whole image, instead of --fx.
        intrinsics: JSON file instead of --fx, in px: [[fx, 0, cx], [0, fy, cy], [0, 0, 1]], the same in an
            object {"K": ...}, or one such matrix per image, {"NAME.jpg": ...}.
    """

    fx: Optional[float] = None
    fy: Optional[float] = None
    cx: Optional[float] = None
    cy: Optional[float] = None
    fov: Optional[float] = None
    intrinsics: Optional[Path] = None

    def check(self) -> None:
        """Raise `UserError` for inconsistent options, or a file that cannot be read."""
        if sum(given is not None for given in (self.fx, self.fov, self.intrinsics)) > 1:
            raise UserError(
                "give the camera by only one of --fx (px), --fov (degrees), --intrinsics (JSON file)"
            )
        for name in ("fx", "fy"):
            focal = getattr(self, name)
            if focal is not None and not (math.isfinite(focal) and focal > 0):
                raise UserError(f"--{name} must be a positive number of px, got {focal}")
        for name in ("cx", "cy"):
            if getattr(self, name) is not None and not math.isfinite(getattr(self, name)):
                raise UserError(f"--{name} must be a number of px, got {getattr(self, name)}")
        if self.fov is not None and not 0 < self.fov < 180:
            raise UserError(f"--fov must lie between 0 and 180 degrees, got {self.fov}")
        if self.fx is None and self.fy is not None:
            raise UserError("--fy needs --fx")
        if self.intrinsics is not None:
            if self.cx is not None or self.cy is not None:
                raise UserError("--cx and --cy exclude --intrinsics")
            _ = self._matrices

    @cached_property
    def _matrices(self) -> Any:
        assert self.intrinsics is not None
        with user_errors():
            text = self.intrinsics.read_bytes()
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{self.intrinsics}: not JSON ({error})") from error

    def of(self, path: Path, height: int, width: int, exif: bool = True) -> Intrinsics:
        """The intrinsics of one image, or of the frames of a video, which have no EXIF data.

        Raises:
            UserError: the file of intrinsics has no valid entry for the image.
            OSError: the image cannot be read.
        """
        if self.intrinsics is not None:
            return Intrinsics(self._listed(path), "intrinsics")
        if self.fx is not None:
            focal, source = self.fx, "fx"
        elif self.fov is not None:
            focal, source = width / 2 / math.tan(math.radians(self.fov) / 2), "fov"
        elif exif and (found := exif_focal(path)) is not None:
            focal, source = found, "exif"
        else:
            focal, source = max(width, height) / 2 / math.tan(math.radians(DEFAULT_FOV) / 2), "default"
        fy = focal if self.fy is None else self.fy
        cx = (width - 1) / 2 if self.cx is None else self.cx
        cy = (height - 1) / 2 if self.cy is None else self.cy
        return Intrinsics(np.array([[focal, 0, cx], [0, fy, cy], [0, 0, 1]]), source)

    def _listed(self, path: Path) -> np.ndarray:
        matrices = self._matrices
        if isinstance(matrices, dict):
            found = [matrices[key] for key in (str(path), path.name, "K") if key in matrices]
            if not found:
                raise UserError(f"{self.intrinsics} has no entry {path.name!r}, and no 'K' for all images")
            matrices = found[0]
        try:
            return np.array(matrices, dtype=np.float64).reshape(3, 3)
        except (TypeError, ValueError, OverflowError) as error:
            message = f"{self.intrinsics}: K must be three rows of three numbers, got {matrices}"
            raise UserError(message) from error
