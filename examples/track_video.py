"""Follow the hands of a video: a line of JSON per frame, and optionally a video with the drawn joints.

python examples/track_video.py clip.mp4 --fov 70 --drawn drawn.mp4 > hands.jsonl

Lengths are mm in the frame of the camera. Video files need PyAV (`pip install 'nvf-fast[video]'`), folders of
images do not.
"""

from __future__ import annotations

import argparse
import json
from contextlib import ExitStack
from pathlib import Path

import numpy as np

import nvf_fast
from nvf_fast.overlay import draw_poses
from nvf_fast.video import VideoWriter, read_frames


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="video file, or folder of images")
    parser.add_argument("--fov", type=float, required=True, help="horizontal field of view, degrees")
    parser.add_argument("--rate", type=float, default=30.0, help="frames per second of a folder")
    parser.add_argument("--drawn", type=Path, help="video to write, such as drawn.mp4")
    arguments = parser.parse_args()

    tracker = nvf_fast.Tracker(nvf_fast.load())
    with ExitStack() as stack:
        video = stack.enter_context(VideoWriter(arguments.drawn)) if arguments.drawn else None
        for time, image in read_frames(arguments.source, arguments.rate):
            height, width = image.shape[:2]
            camera = nvf_fast.Camera.from_fov(arguments.fov, (width, height))
            ids, poses = tracker(image, camera, time)
            hands = [
                {"id": id, "side": pose.side, "joints": pose.joints.round(1).tolist()}
                for id, pose in zip(ids, poses, strict=True)
            ]
            print(json.dumps({"time": round(time, 3), "hands": hands}), flush=True)
            if video is not None:
                video.write(np.asarray(draw_poses(image, poses, ids)), time)


if __name__ == "__main__":
    main()
