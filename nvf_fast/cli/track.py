"""`nvf-fast track`: follow hands through a video."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Annotated, Any

import numpy as np
import tyro
from tqdm import tqdm

from nvf_fast.cli import UserError, error_line, load_estimator, user_errors
from nvf_fast.cli.cameras import DEFAULT_FOV, CameraOptions, camera_record
from nvf_fast.cli.options import Flag, Optional
from nvf_fast.overlay import draw_poses
from nvf_fast.video import CAMERA, FRAME_RATE, VideoWriter, read_frames, video_rate


@dataclass(frozen=True)
class Track:
    """Follow the hands of a video, a folder of frames, or a camera.

    Writes a line of JSON per frame as it runs: {"frame", "time", "camera": {"K", "source"}, "hands": [{"id",
    ...}]}, or {"frame", "time", "error"} for a damaged frame; lengths are mm and pixels, times are s. A hand
    keeps its id while it is followed, and when it soon reappears near its last position. Ctrl-C ends the
    tracking of a camera. The status is 2 if a frame failed.
    """

    # video file, folder of images in the order of their names, or camera:0 for the first camera
    source: Annotated[str, tyro.conf.Positional]
    # the camera; its options hold for all frames
    camera: Annotated[CameraOptions, tyro.conf.arg(name="")] = field(default_factory=CameraOptions)
    most_hands: int = 2  # largest number of hands to follow
    hand_scale: Optional[float] = None  # mm, length of the middle finger's proximal phalanx, if known
    raw: Flag = False  # leave the joints as estimated; they are smoothed otherwise
    # Hz, of a folder of images, and of the annotated video of a folder or a camera
    frame_rate: float = FRAME_RATE
    out: Optional[Path] = None  # file for the lines, which must not exist; standard output when absent
    overlay: Optional[Path] = None  # annotated video to write, such as hands.mp4
    # an embedded checkpoint, a checkpoint folder or a hub id; the embedded one when absent
    checkpoint: Optional[str] = None
    # device to compute on, for example cpu or cuda:1; by default a GPU if available
    device: Optional[str] = None

    def run(self) -> None:
        from nvf_fast.inputs import read_hand_scale
        from nvf_fast.tracking import Smoothing, Tracker

        self.camera.check()
        if not 0 < self.frame_rate < 1e6:
            raise UserError(f"--frame-rate must be a positive number of Hz, got {self.frame_rate}")
        for name, path in (("out", self.out), ("overlay", self.overlay)):
            if path is not None and (path.is_dir() or path.is_file()):
                raise UserError(f"--{name} {path} exists: choose another name")
        with user_errors():
            rate = video_rate(self.source) or self.frame_rate
        estimator = load_estimator(self.checkpoint, self.device)
        with user_errors(), ExitStack() as stack:
            if self.source.startswith(CAMERA):
                stack.enter_context(suppress(KeyboardInterrupt))
            read_hand_scale(self.hand_scale, 1, estimator.model.config)
            smoothing = None if self.raw else Smoothing()
            tracker = Tracker(estimator, self.most_hands, smoothing=smoothing, hand_scale=self.hand_scale)
            video = None if self.overlay is None else stack.enter_context(VideoWriter(self.overlay, rate))
            lines, index, failed, assumed = self._open_lines(stack), 0, 0, False

            def write(time: float, entries: dict[str, Any]) -> None:
                nonlocal index
                record = {"frame": index, "time": round(time, 6), **entries}
                lines.write(json.dumps(record, allow_nan=False) + "\n")
                lines.flush()
                index += 1

            def damaged(time: float, error: Exception) -> None:
                nonlocal failed
                failed += 1
                _warn(f"frame {index}: {error_line(error)}")
                write(time, {"error": error_line(error)})

            frames = read_frames(self.source, self.frame_rate, damaged)
            for time, image in tqdm(frames, unit="frame"):
                try:
                    height, width = image.shape[:2]
                    camera, source = self.camera.of(Path(self.source), height, width, exif=False)
                    hands = tracker(image, camera, time)
                    poses = [{"id": id, **pose.to_dict()} for id, pose in zip(*hands, strict=True)]
                except Exception as error:  # whatever a frame causes must not stop the others
                    damaged(time, error)
                    continue
                if source == "default" and not assumed:
                    assumed = True
                    _warn(f"no focal length given: assuming {DEFAULT_FOV:g} degrees across the longer side")
                write(time, {"camera": camera_record(camera, source), "hands": poses})
                if video is not None:
                    video.write(np.asarray(draw_poses(image, hands.poses, hands.ids)))
        if failed:
            raise UserError(f"{failed} of {index} frames failed")

    def _open_lines(self, stack: ExitStack) -> IO[str]:
        if self.out is None:
            return sys.stdout
        self.out.parent.mkdir(parents=True, exist_ok=True)
        special = self.out.exists() and not self.out.is_file()
        return stack.enter_context(self.out.open("w" if special else "x"))


def _warn(message: str) -> None:
    tqdm.write(f"nvf-fast track: {message}", file=sys.stderr)
