"""`nvf-fast predict`: poses of images, as JSON and drawn."""

from __future__ import annotations

import json
import math
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from nvf_fast.cli import UserError, load_estimator, user_errors
from nvf_fast.inputs import read_hand_scale
from nvf_fast.overlay import draw_pose
from nvf_fast.pose import JOINT_NAMES, HandPose
from nvf_fast.search import Search

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")


@tyro.conf.configure(tyro.conf.DisallowNone)
@dataclass(frozen=True)
class Predict:
    """Estimate the poses of hands in images. The camera is given by --fx, by --fov or by --intrinsics.

    Images are turned upright by their EXIF data; box and intrinsics are those of the upright image. Errors go
    to stderr and end with status 2, after the poses of the other images are written.

    Attributes:
        images: image files.
        fx: px, focal length.
        fy: px, vertical focal length; fx when absent.
        cx: px, principal point, the first pixel centred at 0; the middle of the image when absent.
        cy: px, principal point; the middle of the image when absent.
        fov: degrees, horizontal field of view of the whole image, instead of --fx.
        intrinsics: JSON file instead of --fx, in px: [[fx, 0, cx], [0, fy, cy], [0, 0, 1]], the same as
            {"K": ...}, or one such matrix per image, {"NAME.jpg": ...}.
        box: px, X0 Y0 X1 Y1 around the hand. A hand view turns to its centre and zooms to its size; without
            one every hand of the image is found, none or several. The reference view, of 26.3 degrees, turns
            to its centre; without one it looks along the optical axis.
        side: which hand it is. When absent, a network of hand views predicts it, and any other takes the
            hand for a right one.
        hand_scale: mm, length of the middle finger's proximal phalanx, if it is known.
        step: mm, spacing of the query points.
        search: which points are queried: "dense" all, "octree" (for steps up to 8 mm) and "guided" a part;
            hand views take "dense" alone.
        out: JSON file for the poses (joints and expected_error in mm, joints_2d and box in px); standard
            output when absent.
        overlay: where to draw the joints: a .png or .jpg file for one image, else a folder for NAME.png.
        checkpoint: an embedded checkpoint, a checkpoint folder or a hub id; the embedded one when absent.
        device: where to compute, for example cpu or cuda:1; the GPU where there is one.
    """

    images: Annotated[tuple[Path, ...], tyro.conf.Positional]
    fx: float | None = None
    fy: float | None = None
    cx: float | None = None
    cy: float | None = None
    fov: float | None = None
    intrinsics: Path | None = None
    box: tuple[float, float, float, float] | None = None
    side: Literal["right", "left"] | None = None
    hand_scale: float | None = None
    step: float = 16.0
    search: Search = "dense"
    out: Path | None = None
    overlay: Path | None = None
    checkpoint: str | None = None
    device: str | None = None

    def run(self) -> None:
        if not self.images:
            raise UserError("no picture given")
        matrices = self._check_camera()
        overlays = self._overlay_files()
        if self.out is not None and self.out.is_dir():
            raise UserError(f"--out must be a file, {self.out} is a folder")
        estimator = load_estimator(self.checkpoint, self.device, step_mm=self.step, search=self.search)
        if estimator.volume.needs_root:
            raise UserError("predict is for camera-space networks: a root-relative one needs the wrist")
        with user_errors():
            read_hand_scale(self.hand_scale, 1, estimator.model.config)

        poses, failures = [], []
        progress = tqdm(self.images, unit="picture", disable=len(self.images) == 1)
        for path, overlay in zip(progress, overlays, strict=True):
            try:
                with user_errors(), warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    image = read_picture(path)
                    K = self._camera_of(path, image, matrices)
                    found = estimator(image, K, self.hand_scale, self.box, self.side)
                    hands = [found] if found.joints.ndim == 2 else list(found)
                    if overlay is not None:
                        overlay.parent.mkdir(parents=True, exist_ok=True)
                        _drawn(image, hands).save(overlay)
            except UserError as error:
                failures.append({"image": str(path), "error": str(error)})
                message = str(error) if str(path) in str(error) else f"{path}: {error}"
                if len(self.images) > 1:
                    _say(message)
                continue
            for warning in caught:
                _say(f"{path}: {warning.message}")
            if not hands:
                _say(f"{path}: no hand found")
            given = {"image": str(path), "K": K.tolist(), "hand_scale": self.hand_scale}
            poses += [{**given, **pose.to_dict()} for pose in hands]
        self._write({"joint_names": JOINT_NAMES, "poses": poses, "failures": failures})
        if failures:
            several = f"{len(failures)} of {len(self.images)} pictures failed"
            raise UserError(message if len(self.images) == 1 else several)

    def _check_camera(self) -> Any:
        """What the intrinsics file holds, or None; refuses a camera that is none."""
        if sum(given is not None for given in (self.fx, self.fov, self.intrinsics)) != 1:
            raise UserError("give the camera by one of --fx (px), --fov (degrees), --intrinsics (JSON file)")
        for name in ("fx", "fy"):
            focal = getattr(self, name)
            if focal is not None and not (math.isfinite(focal) and focal > 0):
                raise UserError(f"--{name} must be a positive number of px, got {focal}")
        if self.fov is not None and not 0 < self.fov < 180:
            raise UserError(f"--fov must lie between 0 and 180 degrees, got {self.fov}")
        if self.fx is None and self.fy is not None:
            raise UserError("--fy goes with --fx")
        if self.intrinsics is None:
            return None
        if self.cx is not None or self.cy is not None:
            raise UserError("--cx and --cy go with --fx or --fov, not with --intrinsics")
        with user_errors():
            text = self.intrinsics.read_text()
        try:
            return json.loads(text)
        except ValueError as error:
            raise UserError(f"{self.intrinsics}: not JSON ({error})") from error

    def _camera_of(self, path: Path, image: np.ndarray, matrices: Any) -> np.ndarray:
        height, width = image.shape[:2]
        if matrices is None:
            fx = self.fx if self.fov is None else width / 2 / math.tan(math.radians(self.fov) / 2)
            fy = fx if self.fy is None else self.fy
            cx = (width - 1) / 2 if self.cx is None else self.cx
            cy = (height - 1) / 2 if self.cy is None else self.cy
            return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
        if isinstance(matrices, dict):
            found = [matrices[key] for key in (str(path), path.name, "K") if key in matrices]
            if not found:
                raise UserError(f"{self.intrinsics} has no entry {path.name!r}, and no 'K' for all pictures")
            matrices = found[0]
        try:
            return np.array(matrices, dtype=np.float64).reshape(3, 3)
        except (TypeError, ValueError) as error:
            message = f"{self.intrinsics}: K must be three rows of three numbers, got {matrices}"
            raise UserError(message) from error

    def _overlay_files(self) -> list[Path | None]:
        if self.overlay is None:
            return [None] * len(self.images)
        if self.overlay.suffix.lower() in PICTURE_SUFFIXES:
            if len(self.images) > 1:
                raise UserError(f"--overlay must be a folder for several pictures, got {self.overlay}")
            return [self.overlay]
        names = [f"{path.stem}.png" for path in self.images]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise UserError(f"--overlay: several pictures would be drawn into {twice[0]}")
        return [self.overlay / name for name in names]

    def _write(self, document: dict[str, Any]) -> None:
        text = json.dumps(document, allow_nan=False) + "\n"
        if self.out is None:
            sys.stdout.write(text)
            return
        with user_errors():
            self.out.parent.mkdir(parents=True, exist_ok=True)
            unfinished = self.out.with_name(f"{self.out.name}.{os.getpid()}.part")
            unfinished.write_text(text)
            unfinished.replace(self.out)  # at once, so that nobody reads half a file


def read_picture(path: Path) -> np.ndarray:
    """A picture file as (H, W, 3) uint8 RGB, upright; grey becomes RGB and an alpha channel is dropped.

    Raises:
        OSError: the file is missing or damaged, or is no picture.
        ValueError: its pixels have more than 8 bits per channel, or there are too many of them.
    """
    try:
        with Image.open(path) as file:
            if file.mode.startswith(("I", "F")):
                raise ValueError(f"{path}: pixels of mode {file.mode!r}; 8 bits per channel are wanted")
            return np.array(ImageOps.exif_transpose(file).convert("RGB"))
    except UnidentifiedImageError as error:
        raise OSError(f"{path}: not a picture that can be read") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path}: {error}") from error
    except SyntaxError as error:  # of the file, as Pillow has it
        raise OSError(f"{path}: damaged ({error})") from error


def _drawn(image: np.ndarray, hands: Sequence[HandPose]) -> Image.Image:
    for pose in hands:
        image = np.asarray(draw_pose(image, pose))
    return Image.fromarray(image)


def _say(message: str) -> None:
    tqdm.write(f"nvf-fast predict: {' '.join(message.split())}", file=sys.stderr)
