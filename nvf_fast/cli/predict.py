"""`nvf-fast predict`: estimate poses in images, as JSON and drawn."""

from __future__ import annotations

import hashlib
import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from mimetypes import guess_type
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import tyro
from PIL import Image
from tqdm import tqdm

from nvf_fast.cli import UserError, error_line, user_errors
from nvf_fast.cli.cameras import (
    ASSUMED,
    CameraOptions,
    camera_record,
    entry_of,
    warn_of_others,
    without_errors,
)
from nvf_fast.cli.options import NetworkOptions, Optional, Several
from nvf_fast.cli.outputs import (
    DRAWING_SUFFIXES,
    LINE_SUFFIXES,
    check_lines_name,
    check_output_file,
    check_output_folder,
    check_replaced,
)
from nvf_fast.cli.records import RecordWriter, missing_hand
from nvf_fast.image_files import image_files, read_depth, read_image
from nvf_fast.inputs import read_hand_scale
from nvf_fast.overlay import draw_poses, undistorted, write_drawing
from nvf_fast.pose import JOINT_NAMES, HandPose
from nvf_fast.runtime.extras import extra
from nvf_fast.runtime.files import read_json, whole_file
from nvf_fast.runtime.progress import progress_bar
from nvf_fast.search import Search

if TYPE_CHECKING:
    import trimesh

    from nvf_fast.camera_model import Camera
    from nvf_fast.estimator import PoseEstimator

CAMERA_NUMBERS = ("fx", "fy", "cx", "cy", "fov")
MeshFormat = Literal["glb", "obj", "ply"]
DEPTH_SUFFIXES = (".png", ".tiff", ".tif")


@dataclass(frozen=True)
class Predict:
    """Estimate the poses of hands in images.

    Writes a line of JSON as each image is done: {"image", "camera": {"K", "source"}, "hands": [...]}, or
    {"image", "error"}; lengths are mm and pixels. With --out, the same command continues a stopped run and
    retries images that failed. Images are rotated upright by their EXIF data; boxes and intrinsics refer to
    the upright image. The status is 2 if an image failed.
    """

    images: Annotated[Several[Path], tyro.conf.Positional]  # image files, and folders of them
    camera: Annotated[CameraOptions, tyro.conf.arg(name="")] = field(default_factory=CameraOptions)
    # px, X0 Y0 X1 Y1 around one hand. When absent, a network of hand views finds every hand of the image, and
    # one of the reference view, which spans 26.3 degrees, looks along the optical axis.
    box: Optional[tuple[float, float, float, float]] = None
    # side of the hand. When absent, a network of hand views predicts it, and others assume a right hand.
    side: Optional[Literal["right", "left"]] = None
    # JSON file of the hands in each image instead of --box, [] for none,
    # as {"NAME.jpg": [{"box": [X0, Y0, X1, Y1], "side": "left"}, ...]}; absent sides are those of --side
    boxes: Optional[Path] = None
    # mm between joints 9 and 10 of the hand, on average 31.7 (docs/usage.md), if known
    hand_scale: Optional[float] = None
    # lowest score, in [0, 1], of the hands found in an image; the network's own threshold when absent
    min_presence: Optional[float] = None
    # depth image of one image, or folder with NAME.png or NAME.tiff of each: one channel of 16 or 32 bits, mm
    # along the optical axis, aligned with the upright image; 0 where nothing was measured. It determines the
    # distances of the hands that it shows.
    depth: Optional[Path] = None
    step: float = 16.0  # mm, spacing of the query points
    # points to query: "dense" for all, "octree" (for steps up to 8 mm) or "guided" for a part of them; hand
    # views support "dense" only
    search: Search = "dense"
    # file for the lines; if its name ends in .json, for one document {"joint_names", "images": [...]} once
    # all images are done; standard output when absent
    out: Optional[Path] = None
    # file for the drawn joints of one image (.png or .jpg), or folder for NAME.png of each
    overlay: Optional[Path] = None
    # .png file for a row of panels as in the paper for each hand in one image (mesh, voters, votes, pose), or
    # folder for NAME.png of each image
    figure: Optional[Path] = None
    # folder for the surface of each hand, NAME-0.glb for the first one of "hands"; mm, in the camera's frame
    mesh: Optional[Path] = None
    mesh_format: MeshFormat = "glb"  # of those files
    network: Annotated[NetworkOptions, tyro.conf.arg(name="")] = field(default_factory=NetworkOptions)

    def run(self) -> None:
        self.camera.check(self._image_files)
        files = self._output_files(self._image_files)
        listed = self._read_boxes()
        if self.depth is not None and not self.depth.is_dir() and len(files) > 1:
            raise UserError(f"--depth must be a folder for several images, got {self.depth}")
        if self.mesh or self.figure:
            with extra("viz", "--mesh and --figure need scikit-image and matplotlib"):
                import skimage  # noqa: F401

                if self.figure:
                    import matplotlib  # noqa: F401
        check_output_file("--out", self.out)
        check_lines_name(self.out, (".json", *LINE_SUFFIXES))
        estimator = self.network.estimator(
            step_mm=self.step, search=self.search, min_presence=self.min_presence
        )
        if estimator.volume.needs_root:
            raise UserError("predict needs a camera-space network: a root-relative one needs the wrist")
        with user_errors():
            read_hand_scale(self.hand_scale, 1, estimator.model.config)

        failed, assumed = 0, False
        with RecordWriter(self.out, self._settings(estimator), {"joint_names": JOINT_NAMES}) as records:
            left = {path: each for path, each in files.items() if str(path) not in records.done}
            if len(left) < len(files):
                drawn = "; to draw or mesh them, give another --out" if any(files.values()) else ""
                _warn(f"already done: {len(files) - len(left)} of {len(files)} images{drawn}")
            for path, outputs in progress_bar(left.items(), unit="image", hidden=len(left) < 2):
                try:
                    with warnings.catch_warnings(record=True) as caught:
                        warnings.simplefilter("always")
                        warnings.filterwarnings("ignore", "unusual hand_scale")  # said above, once
                        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # half the limit
                        record = self._predict(estimator, path, listed, outputs)
                        line = records.line(record)
                except Exception as error:  # whatever an image causes must not stop the others
                    failed += 1
                    message = error_line(error)
                    records.write(records.line({"image": str(path), "error": message}))
                    _warn(message if str(path) in message else f"{path}: {message}")
                    continue
                records.write(line)
                if record["camera"]["source"] == "default" and not assumed:
                    assumed = True
                    _warn(
                        f"{path}: no focal length given or in the EXIF data, here and wherever camera.source "
                        f"is 'default': {ASSUMED}"
                    )
                for warning in caught:
                    _warn(f"{path}: {warning.message}")
                if not record["hands"]:
                    _warn(f"{path}: no hand found")
                for hand in record["hands"]:
                    if not hand["valid"]:
                        _warn(f"{path}: {missing_hand(hand, estimator.model.config.presence_threshold)}")
        if failed:
            raise UserError(f"{failed} of {len(left)} images failed")

    def _predict(
        self, estimator: PoseEstimator, path: Path, listed: dict[str, Any] | None, outputs: dict[str, Path]
    ) -> dict[str, Any]:
        """The record of one image."""
        image = read_image(path)
        height, width = image.shape[:2]
        alone = self._counts["name", path.name] == 1
        camera, source = self.camera.of(path, height, width, alone=alone)
        boxes, sides = (self.box, self.side) if listed is None else self._listed(path, listed)
        depth = None if self.depth is None else read_depth(self._depth_file(path))
        votes = "figure" in outputs
        found = estimator(image, camera, self.hand_scale, boxes, sides, return_votes=votes, depth=depth)
        hands = [found] if found.joints.ndim == 2 else list(found)
        if overlay := outputs.get("overlay"):
            write_drawing(overlay, draw_poses(image, without_errors(hands, source)))
        if outputs.keys() & {"figure", "mesh"}:
            meshes = {row: pose.mesh() for row, pose in enumerate(hands) if pose.valid}
            if target := outputs.get("mesh"):
                for row, mesh in meshes.items():
                    with whole_file(target.with_name(f"{target.stem}-{row}{target.suffix}")) as file:
                        mesh.export(file, self.mesh_format)
            if meshes and (figure := outputs.get("figure")):
                write_figure(figure, image, camera, [(hands[row], mesh) for row, mesh in meshes.items()])
        scale = {} if self.hand_scale is None else {"hand_scale": self.hand_scale}
        return {
            "image": str(path),
            "camera": camera_record(camera, source),
            **scale,
            "hands": [pose.to_dict() for pose in hands],
        }

    def _settings(self, estimator: PoseEstimator) -> str:
        """A digest of everything but the images and the device that affects the records."""
        files = [
            hashlib.sha256(path.read_bytes()).hexdigest() if path is not None else None
            for path in (self.camera.intrinsics, self.boxes)
        ]
        depth = None if self.depth is None else str(self.depth)
        camera = [value for name, value in vars(self.camera).items() if name in CAMERA_NUMBERS]
        options = [camera, files, self.box, self.side, self.hand_scale, depth, self.step, self.search]
        options.append(self.min_presence)
        weights = hashlib.sha256()
        for name, tensor in sorted(estimator.model.state_dict().items()):
            weights.update(name.encode() + tensor.float().cpu().numpy().tobytes())
        text = repr([options, weights.hexdigest(), estimator.model.config])
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def _read_boxes(self) -> dict[str, Any] | None:
        if self.boxes is None:
            return None
        if self.box is not None:
            raise UserError("give --box or --boxes, not both")
        with user_errors():
            listed = read_json(self.boxes)
        if not isinstance(listed, dict):
            raise UserError(f'{self.boxes} must hold {{"NAME.jpg": [...]}}, got {type(listed).__name__}')
        warn_of_others(listed, self._image_files, self.boxes)
        return listed

    def _listed(self, path: Path, listed: dict[str, Any]) -> tuple[list[Any], list[str | None]]:
        """Boxes and sides of one image's hands."""
        assert self.boxes is not None
        key, hands = entry_of(path, listed, self.boxes, self._counts["name", path.name] == 1)
        if not isinstance(hands, list) or not all(isinstance(hand, dict) and "box" in hand for hand in hands):
            raise UserError(
                f'{self.boxes}: {key!r} must be a list of {{"box": [X0, Y0, X1, Y1], "side": "left"}}, '
                f"got {hands}"
            )
        if unknown := sorted({key for hand in hands for key in hand} - {"box", "side"}):
            raise UserError(f"{self.boxes}: {key!r}: a hand has the keys box and side, got {unknown}")
        return [hand["box"] for hand in hands], [hand.get("side") or self.side for hand in hands]

    def _depth_file(self, path: Path) -> Path:
        """The depth image of an image."""
        assert self.depth is not None
        if not self.depth.is_dir():
            return self.depth
        if self._counts["stem", path.stem] > 1:
            raise UserError(f"--depth: several images would have the depth image {path.stem}")
        files = [self.depth / f"{path.stem}{suffix}" for suffix in DEPTH_SUFFIXES]
        found = [file for file in files if file.is_file()]
        if len(found) != 1:
            names = [file.name for file in files]
            raise UserError(f"{self.depth} must hold one depth image of {path.name}: one of {names}")
        return found[0]

    @cached_property
    def _counts(self) -> Counter[tuple[str, str]]:
        """How many images have a name or a stem."""
        return Counter((part, getattr(path, part)) for path in self._image_files for part in ("name", "stem"))

    @cached_property
    def _image_files(self) -> list[Path]:
        """The image files given, each once."""
        images: list[Path] = []
        for path in self.images:
            kind = guess_type(path.name)[0] or ""
            if kind.startswith("video/"):
                raise UserError(f"{path} is a video: nvf-fast track follows the hands of one")
            with user_errors():
                images += image_files(path) if path.is_dir() else [path]
        if not images:
            raise UserError("no image given")
        return list(dict.fromkeys(images))

    def _output_files(self, images: list[Path]) -> dict[Path, dict[str, Path]]:
        """The files of each image, by the options that name them."""
        files: dict[Path, dict[str, Path]] = {path: {} for path in images}
        targets = (
            ("overlay", self.overlay, "png", DRAWING_SUFFIXES),
            ("figure", self.figure, "png", (".png",)),
            ("mesh", self.mesh, self.mesh_format, ()),
        )
        for option, target, suffix, allowed in targets:
            if target is None:
                continue
            if target.suffix.lower() in allowed:
                if len(images) > 1:
                    raise UserError(f"--{option} must be a folder for several images, got {target}")
                check_output_file(f"--{option}", target)
                files[images[0]][option] = target
                continue
            if guess_type(target.name)[0] and not target.is_dir():
                file = f"a {', '.join(allowed)} file or " if allowed else ""
                raise UserError(f"--{option} must be {file}a folder, got {target}")
            check_output_folder(f"--{option}", target)
            names = [f"{path.stem}.{suffix}" for path in images]
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise UserError(f"--{option}: several images would be written into {twice[0]}")
            for path, name in zip(images, names, strict=True):
                files[path][option] = target / name
        depths = self.depth.iterdir() if self.depth is not None and self.depth.is_dir() else [self.depth]
        outputs = [(f"--{option}", path) for each in files.values() for option, path in each.items()]
        inputs = [*files, self.boxes, self.camera.intrinsics, *depths]
        check_replaced([*outputs, ("--out", self.out)], inputs)
        return files


def write_figure(
    path: Path, image: np.ndarray, camera: Camera, hands: Sequence[tuple[HandPose, trimesh.Trimesh]]
) -> None:
    """Draw a row of panels as in the paper for each hand with its mesh, over the undistorted image."""
    import torch

    from nvf_fast.data.sample import HandSample
    from nvf_fast.reproduce.plots.hands import qualitative_figure
    from nvf_fast.reproduce.plots.rows import pose_row
    from nvf_fast.surface import Mesh

    rows, image = [], undistorted(image, camera)
    for pose, mesh in hands:
        sample = HandSample(path.stem, image, camera.K, joints=torch.from_numpy(pose.joints))
        rows.append(pose_row(sample, pose, Mesh(mesh.vertices, mesh.faces), str(pose.side)))
    qualitative_figure(rows, path)


def _warn(message: str) -> None:
    tqdm.write(f"nvf-fast predict: {' '.join(message.split())}", file=sys.stderr)
