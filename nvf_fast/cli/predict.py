"""`nvf-fast predict`: estimate poses in images, as JSON and drawn."""

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
from nvf_fast.cli.options import Optional, Several
from nvf_fast.inputs import read_hand_scale
from nvf_fast.overlay import draw_pose
from nvf_fast.pose import JOINT_NAMES, HandPose
from nvf_fast.search import Search

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class Predict:
    """Estimate the poses of hands in images. The camera is given by --fx, by --fov or by --intrinsics.

    Images are rotated upright by their EXIF data; box and intrinsics refer to the upright image. Errors go to
    stderr and end with status 2, after the poses of the other images are written.

    Attributes:
        images: image files.
        fx: px, focal length.
        fy: px, vertical focal length; fx when absent.
        cx: px, principal point, with 0 at the centre of the first pixel; the middle of the image when absent.
        cy: px, principal point; the middle of the image when absent.
        fov: degrees, horizontal field of view of the whole image, instead of --fx.
        intrinsics: JSON file instead of --fx, in px: [[fx, 0, cx], [0, fy, cy], [0, 0, 1]], the same in an
            object {"K": ...}, or one such matrix per image, {"NAME.jpg": ...}.
        box: px, X0 Y0 X1 Y1 around one hand. When absent, a network of hand views finds every hand of the
            image, and one of the reference view, which spans 26.3 degrees, looks along the optical axis.
        side: side of the hand. When absent, a network of hand views predicts it, and others assume a right
            hand.
        hand_scale: mm, length of the middle finger's proximal phalanx, if known.
        step: mm, spacing of the query points.
        search: points to query: "dense" all, "octree" (for steps up to 8 mm) and "guided" a part; hand views
            support "dense" only.
        out: JSON file for the poses (joints and expected_error in mm, joints_2d and box in px); standard
            output when absent.
        overlay: file for the drawn joints of one image (.png or .jpg), or folder for NAME.png of each.
        checkpoint: an embedded checkpoint, a checkpoint folder or a hub id; the embedded one when absent.
        device: device to compute on, for example cpu or cuda:1; a GPU if present when absent.
    """

    images: Annotated[Several[Path], tyro.conf.Positional]
    fx: Optional[float] = None
    fy: Optional[float] = None
    cx: Optional[float] = None
    cy: Optional[float] = None
    fov: Optional[float] = None
    intrinsics: Optional[Path] = None
    box: Optional[tuple[float, float, float, float]] = None
    side: Optional[Literal["right", "left"]] = None
    hand_scale: Optional[float] = None
    step: float = 16.0
    search: Search = "dense"
    out: Optional[Path] = None
    overlay: Optional[Path] = None
    checkpoint: Optional[str] = None
    device: Optional[str] = None

    def run(self) -> None:
        if not self.images:
            raise UserError("no image given")
        matrices = self._check_camera()
        overlays = self._overlay_files()
        if self.out is not None and self.out.is_dir():
            raise UserError(f"--out must be a file, {self.out} is a folder")
        estimator = load_estimator(self.checkpoint, self.device, step_mm=self.step, search=self.search)
        if estimator.volume.needs_root:
            raise UserError("predict needs a camera-space network: a root-relative one needs the wrist")
        with user_errors():
            read_hand_scale(self.hand_scale, 1, estimator.model.config)

        poses, failures = [], []
        progress = tqdm(self.images, unit="image", disable=len(self.images) == 1)
        for path, overlay in zip(progress, overlays, strict=True):
            try:
                with user_errors(), warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    image = read_image(path)
                    K = self._camera_of(path, image, matrices)
                    found = estimator(image, K, self.hand_scale, self.box, self.side)
                    hands = [found] if found.joints.ndim == 2 else list(found)
                    if overlay is not None:
                        overlay.parent.mkdir(parents=True, exist_ok=True)
                        _draw(image, hands).save(overlay)
            except UserError as error:
                failures.append({"image": str(path), "error": str(error)})
                message = str(error) if str(path) in str(error) else f"{path}: {error}"
                if len(self.images) > 1:
                    _warn(message)
                continue
            for warning in caught:
                _warn(f"{path}: {warning.message}")
            if not hands:
                _warn(f"{path}: no hand found")
            given = {"image": str(path), "K": K.tolist(), "hand_scale": self.hand_scale}
            poses += [{**given, **pose.to_dict()} for pose in hands]
        self._write({"joint_names": JOINT_NAMES, "poses": poses, "failures": failures})
        if failures:
            several = f"{len(failures)} of {len(self.images)} images failed"
            raise UserError(message if len(self.images) == 1 else several)

    def _check_camera(self) -> Any:
        """Contents of the intrinsics file, or None; raise `UserError` for an invalid camera."""
        if sum(given is not None for given in (self.fx, self.fov, self.intrinsics)) != 1:
            raise UserError("give the camera by one of --fx (px), --fov (degrees), --intrinsics (JSON file)")
        for name in ("fx", "fy"):
            focal = getattr(self, name)
            if focal is not None and not (math.isfinite(focal) and focal > 0):
                raise UserError(f"--{name} must be a positive number of px, got {focal}")
        if self.fov is not None and not 0 < self.fov < 180:
            raise UserError(f"--fov must lie between 0 and 180 degrees, got {self.fov}")
        if self.fx is None and self.fy is not None:
            raise UserError("--fy needs --fx")
        if self.intrinsics is None:
            return None
        if self.cx is not None or self.cy is not None:
            raise UserError("--cx and --cy need --fx or --fov, and exclude --intrinsics")
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
                raise UserError(f"{self.intrinsics} has no entry {path.name!r}, and no 'K' for all images")
            matrices = found[0]
        try:
            return np.array(matrices, dtype=np.float64).reshape(3, 3)
        except (TypeError, ValueError) as error:
            message = f"{self.intrinsics}: K must be three rows of three numbers, got {matrices}"
            raise UserError(message) from error

    def _overlay_files(self) -> list[Path | None]:
        if self.overlay is None:
            return [None] * len(self.images)
        if self.overlay.suffix.lower() in IMAGE_SUFFIXES:
            if len(self.images) > 1:
                raise UserError(f"--overlay must be a folder for several images, got {self.overlay}")
            return [self.overlay]
        names = [f"{path.stem}.png" for path in self.images]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise UserError(f"--overlay: several images would be drawn into {twice[0]}")
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
            unfinished.replace(self.out)  # atomically


def read_image(path: Path) -> np.ndarray:
    """Read an image file as (H, W, 3) uint8 RGB, upright; grey becomes RGB, an alpha channel is dropped.

    Raises:
        OSError: the file is missing, damaged or not an image.
        ValueError: its pixels have more than 8 bits per channel, or it has too many of them.
    """
    try:
        with Image.open(path) as file:
            if file.mode.startswith(("I", "F")):
                raise ValueError(f"{path}: expected 8 bits per channel, got pixels of mode {file.mode!r}")
            return np.array(ImageOps.exif_transpose(file).convert("RGB"))
    except UnidentifiedImageError as error:
        raise OSError(f"{path}: not a readable image") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path}: {error}") from error
    except SyntaxError as error:  # Pillow raises it for damaged files
        raise OSError(f"{path}: damaged ({error})") from error


def _draw(image: np.ndarray, hands: Sequence[HandPose]) -> Image.Image:
    for pose in hands:
        image = np.asarray(draw_pose(image, pose))
    return Image.fromarray(image)


def _warn(message: str) -> None:
    tqdm.write(f"nvf-fast predict: {' '.join(message.split())}", file=sys.stderr)
