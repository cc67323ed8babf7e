"""`nvf-fast track`: follow hands through a video."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Annotated

import numpy as np
import tyro
from tqdm import tqdm

from nvf_fast.cli import UserError, load_estimator, user_errors
from nvf_fast.cli.cameras import DEFAULT_FOV, CameraOptions, camera_record
from nvf_fast.cli.options import Flag, Optional
from nvf_fast.overlay import draw_poses
from nvf_fast.video import CAMERA, FRAME_RATE, VideoWriter, read_frames, video_rate


@dataclass(frozen=True)
class Track:
    """Follow the hands of a video, a folder of frames, or a camera.

    Writes a line of JSON per frame as it runs: {"frame", "time", "camera": {"K", "source"}, "hands": [{"id",
    ...}]}; lengths are mm and pixels, times are s. A hand keeps its id while it is followed, and where it
    reappears soon near its last place. Ctrl-C ends the tracking of a camera.

    Attributes:
        source: video file, folder of images in the order of their names, or camera:0 for the first camera.
        camera: the camera; its options hold for all frames.
        most_hands: largest number of hands to follow.
        hand_scale: mm, length of the middle finger's proximal phalanx, if known.
        raw: leave the joints as estimated; they are smoothed otherwise.
        frame_rate: Hz, of a folder of images, and of the annotated video of a folder or a camera.
        out: file for the lines, which must not exist; standard output when absent.
        overlay: annotated video to write, such as hands.mp4.
        checkpoint: an embedded checkpoint, a checkpoint folder or a hub id; the embedded one when absent.
        device: device to compute on, for example cpu or cuda:1; a GPU if present when absent.
    """

    source: Annotated[str, tyro.conf.Positional]
    camera: Annotated[CameraOptions, tyro.conf.arg(name="")] = field(default_factory=CameraOptions)
    most_hands: int = 2
    hand_scale: Optional[float] = None
    raw: Flag = False
    frame_rate: float = FRAME_RATE
    out: Optional[Path] = None
    overlay: Optional[Path] = None
    checkpoint: Optional[str] = None
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
            lines = self._open_lines(stack)
            for index, frame in enumerate(tqdm(read_frames(self.source, self.frame_rate), unit="frame")):
                height, width = frame.image.shape[:2]
                camera, source = self.camera.of(Path(self.source), height, width, exif=False)
                if index == 0 and source == "default":
                    tqdm.write(
                        f"nvf-fast track: no focal length given: assuming {DEFAULT_FOV:g} degrees across the "
                        "longer side",
                        file=sys.stderr,
                    )
                hands = tracker(frame.image, camera, frame.time)
                record = {
                    "frame": index,
                    "time": round(frame.time, 6),
                    "camera": camera_record(camera, source),
                    "hands": [{"id": id, **pose.to_dict()} for id, pose in zip(*hands, strict=True)],
                }
                lines.write(json.dumps(record, allow_nan=False) + "\n")
                lines.flush()
                if video is not None:
                    video.write(np.asarray(draw_poses(frame.image, hands.poses, hands.ids)))

    def _open_lines(self, stack: ExitStack) -> IO[str]:
        if self.out is None:
            return sys.stdout
        self.out.parent.mkdir(parents=True, exist_ok=True)
        special = self.out.exists() and not self.out.is_file()
        return stack.enter_context(self.out.open("w" if special else "x"))
