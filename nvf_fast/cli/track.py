"""`nvf-fast track`: follow hands through a video."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Annotated, Any

import numpy as np
import tyro
from tqdm import tqdm

from nvf_fast.cli import UserError, error_line, user_errors
from nvf_fast.cli.cameras import ASSUMED, CameraOptions, camera_record, without_errors
from nvf_fast.cli.options import Flag, NetworkOptions, Optional
from nvf_fast.cli.outputs import check_lines_name, check_output_file, check_replaced
from nvf_fast.cli.records import append_line
from nvf_fast.overlay import draw_poses
from nvf_fast.runtime.progress import progress_bar
from nvf_fast.video import CAMERA, FRAME_RATE, VIDEO_SUFFIXES, VideoWriter, read_frames


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
    # mm between joints 9 and 10 of the hand, on average 31.7 (docs/usage.md), if known
    hand_scale: Optional[float] = None
    # lowest score, in [0, 1], at which a hand begins to be followed; the network's own threshold when absent
    min_presence: Optional[float] = None
    raw: Flag = False  # leave the joints as estimated; they are smoothed otherwise
    frame_rate: Optional[float] = None  # Hz, of a folder of images, 30 when absent
    # .jsonl file for the lines, which must not exist; standard output when absent
    out: Optional[Path] = None
    overlay: Optional[Path] = None  # annotated video to write, such as hands.mp4
    network: Annotated[NetworkOptions, tyro.conf.arg(name="")] = field(default_factory=NetworkOptions)

    def run(self) -> None:
        from nvf_fast.tracking import Smoothing, Tracker

        self.camera.check([Path(self.source)])
        rate = FRAME_RATE if self.frame_rate is None else self.frame_rate
        if not 0 < rate < 1e6:
            raise UserError(f"--frame-rate must be a positive number of Hz, got {rate}")
        if self.frame_rate is not None and not Path(self.source).is_dir():
            raise UserError(f"--frame-rate is for a folder of images; {self.source} has times of its own")
        self._check_outputs()
        estimator = self.network.estimator(min_presence=self.min_presence)
        with user_errors(), ExitStack() as stack:
            if self.source.startswith(CAMERA):
                stack.enter_context(suppress(KeyboardInterrupt))
            smoothing = None if self.raw else Smoothing()
            tracker = Tracker(estimator, self.most_hands, smoothing=smoothing, hand_scale=self.hand_scale)
            lines = stack.enter_context(self._lines())
            index, failed, left_out, assumed, last = 0, 0, 0, False, ""
            video = None if self.overlay is None else stack.enter_context(VideoWriter(self.overlay))

            def write(time: float, entries: dict[str, Any]) -> None:
                nonlocal index
                record = {"frame": index, "time": round(time, 6), **entries}
                append_line(lines, json.dumps(record, allow_nan=False).encode() + b"\n")
                index += 1

            def damaged(time: float, error: Exception) -> None:
                nonlocal failed, last
                failed += 1
                if error_line(error) != last:  # an option that fits no frame fails for each of them
                    last = error_line(error)
                    _warn(f"frame {index}: {last}")
                write(time, {"error": error_line(error)})

            frames = read_frames(self.source, rate, damaged)
            for time, image in progress_bar(frames, unit="frame"):
                try:
                    height, width = image.shape[:2]
                    camera, source = self.camera.of(Path(self.source), height, width, exif=False)
                    hands = tracker(image, camera, time)
                    poses = [{"id": id, **pose.to_dict()} for id, pose in zip(*hands, strict=True)]
                except Exception as error:  # whatever a frame causes must not stop the others
                    if not index and isinstance(error, UserError):  # of the camera's options
                        raise
                    damaged(time, error)
                    continue
                if source == "default" and not assumed:
                    assumed = True
                    _warn(f"no focal length given: {ASSUMED}")
                write(time, {"camera": camera_record(camera, source), "hands": poses})
                if video is not None:
                    try:
                        drawn = draw_poses(image, without_errors(hands.poses, source), hands.ids)
                        video.write(np.asarray(drawn), time)
                    except ValueError as error:  # of another size
                        left_out += 1
                        _warn(f"frame {index - 1} is not in --overlay: {error}")
        if failed:
            raise UserError(f"{failed} of {index} frames failed")
        if left_out:
            raise UserError(f"not in --overlay: {left_out} of {index} frames")

    def _check_outputs(self) -> None:
        check_output_file("--out", self.out, new=True)
        check_output_file("--overlay", self.overlay, VIDEO_SUFFIXES, new=True)
        check_replaced([("--out", self.out), ("--overlay", self.overlay)])
        check_lines_name(self.out)

    @contextmanager
    def _lines(self) -> Iterator[IO[bytes] | None]:
        """Open the file of the lines, if any; an empty file is removed."""
        if self.out is None:
            yield None
            return
        self.out.parent.mkdir(parents=True, exist_ok=True)
        special = self.out.exists() and not self.out.is_file()
        with self.out.open("wb" if special else "xb", buffering=0) as file:
            try:
                yield file
            finally:
                if not special and not file.tell():
                    self.out.unlink()


def _warn(message: str) -> None:
    tqdm.write(f"nvf-fast track: {message}", file=sys.stderr)
