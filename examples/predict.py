"""Print the joints of the hands in one photograph, in millimetres.

python examples/predict.py hand.jpg 900 --box 200 120 440 360 --side left
"""

from __future__ import annotations

import argparse

import numpy as np

import nvf_fast
from nvf_fast.image_files import read_image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("image", help="an image of hands")
    parser.add_argument("focal", type=float, help="focal length of the camera, pixels of this image")
    parser.add_argument(
        "--box", type=float, nargs=4, metavar=("X0", "Y0", "X1", "Y1"), help="pixels; every hand when absent"
    )
    parser.add_argument("--side", choices=("right", "left"), help="predicted when absent")
    arguments = parser.parse_args()

    image = read_image(arguments.image)
    height, width = image.shape[:2]
    centre_x, centre_y = (width - 1) / 2, (height - 1) / 2
    K = np.array([[arguments.focal, 0, centre_x], [0, arguments.focal, centre_y], [0, 0, 1]])

    estimator = nvf_fast.load()
    found = estimator(image, K, box=arguments.box, side=arguments.side)
    hands = [found] if arguments.box else list(found)  # a batch without a box
    for pose in hands:
        if pose.valid:
            print_hand(pose)
    if not any(pose.valid for pose in hands):
        raise SystemExit("no hand found")


def print_hand(pose: nvf_fast.HandPose) -> None:
    print(f"a {pose.side} hand")
    for number, ((x, y, z), score) in enumerate(zip(pose.joints, pose.scores, strict=True)):
        error = "" if pose.expected_error is None else f" ± {pose.expected_error[number]:.0f}"
        print(f"joint {number:2}: {x:7.1f} {y:7.1f} {z:7.1f}{error} mm, score {score:.2f}")


if __name__ == "__main__":
    main()
