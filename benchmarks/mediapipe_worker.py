"""Run MediaPipe Hands, and PnP of its landmarks, for `benchmarks/mediapipe_hands.py`.

    PYTHON_WITH_MEDIAPIPE benchmarks/mediapipe_worker.py IMAGES.npz

IMAGES.npz holds `image_0`, `image_1`, ... (H, W, 3) uint8 RGB and `intrinsics` (N, 3, 3) px. The first line
written is {"mediapipe": VERSION}. Then each line read is the index of an image, and each line written is

    {"hands": [{"side", "score", "joints_2d", "joints"}], "find": MS, "track": MS}

with joints (21, 3) in the camera's frame, in metres of MediaPipe's own hand size. "find" is the processor
time of an image without a predecessor, "track" that of a second, equal image of a video; both include PnP.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import cv2
import mediapipe
import numpy as np
from mediapipe.python.solutions.hands import Hands

SIDES = {"Right": "left", "Left": "right"}  # MediaPipe takes images for mirrored ones
HANDS = 2


def find_hands(method: Hands, image: np.ndarray, intrinsics: np.ndarray) -> list[dict[str, Any]]:
    """Convert hands to JSON values, with world landmarks placed to project to the 2D landmarks."""
    found = method.process(image)
    height, width = image.shape[:2]
    hands = []
    for flat, world, side in zip(
        found.multi_hand_landmarks or [],
        found.multi_hand_world_landmarks or [],
        found.multi_handedness or [],
        strict=True,
    ):
        pixels = np.array([(mark.x * width, mark.y * height) for mark in flat.landmark]) - 0.5
        shape = np.array([(mark.x, mark.y, mark.z) for mark in world.landmark])
        _, turn, move = cv2.solvePnP(shape, pixels, intrinsics, None, flags=cv2.SOLVEPNP_SQPNP)
        turn, move = cv2.solvePnPRefineLM(shape, pixels, intrinsics, None, turn, move)
        joints = shape @ cv2.Rodrigues(turn)[0].T + move[:, 0]
        top = side.classification[0]
        hands.append(
            {
                "side": SIDES[top.label],
                "score": top.score,
                "joints_2d": pixels.tolist(),
                "joints": joints.tolist(),
            }
        )
    return hands


def timed(call: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """The result of a call and its processor time in ms."""
    start = time.process_time()
    result = call(*arguments)
    return result, 1000 * (time.process_time() - start)


def main() -> None:
    file = np.load(sys.argv[1])
    every_intrinsics = file["intrinsics"]
    images = [file[f"image_{index}"] for index in range(len(every_intrinsics))]
    finder = Hands(static_image_mode=True, max_num_hands=HANDS)
    tracker = Hands(static_image_mode=False, max_num_hands=HANDS)
    print(json.dumps({"mediapipe": mediapipe.__version__}), flush=True)
    for line in sys.stdin:
        image, intrinsics = images[int(line)], every_intrinsics[int(line)]
        hands, find = timed(find_hands, finder, image, intrinsics)
        tracker.reset()
        tracker.process(image)
        _, track = timed(find_hands, tracker, image, intrinsics)
        print(json.dumps({"hands": hands, "find": find, "track": track}), flush=True)


if __name__ == "__main__":
    main()
