"""Estimate the pose of the hand in a box with the exported network, by numpy, Pillow and ONNX Runtime alone.

nvf-fast export --out hand_network
python examples/onnx_session.py hand_network hand.jpg 900 --box 200 120 440 360

Lengths are mm; pixel (0, 0) is the centre of the first pixel. The network must be one of hand views, such as
the default one.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


class Pose(NamedTuple):
    joints: np.ndarray  # (21, 3) mm in the frame of the camera: x right, y down, z forward
    expected_error: np.ndarray  # (21,) mm
    presence: float  # probability of a hand
    side: str  # "right" or "left"
    voters: int


class HandNetwork:
    """An exported network of hand views.

    Args:
        folder: written by `nvf-fast export`.
    """

    def __init__(self, folder: Path) -> None:
        self.interface = json.loads((folder / "interface.json").read_text(encoding="utf-8"))
        if self.interface["view"]["kind"] != "hand":
            raise SystemExit(f"{folder} is not the export of a network of hand views")
        self.lattice = np.load(folder / self.interface["lattice"]["file"])
        self.sessions = {
            name: onnxruntime.InferenceSession(folder / function["file"], providers=["CPUExecutionProvider"])
            for name, function in self.interface["functions"].items()
        }

    def __call__(self, image: np.ndarray, K: np.ndarray, box: Any, side: str | None = None) -> Pose:
        """Estimate the pose of one hand.

        Args:
            image: (H, W, 3) uint8 RGB.
            K: (3, 3) intrinsics, px.
            box: (x0, y0, x1, y1) px around the hand.
            side: "right" or "left"; None predicts it.
        """
        view, size = self.interface["view"], self.interface["view"]["size_px"]
        rotation, slope = look_at(K, box, view["fill"])
        intrinsics = np.array([[size / 2 / slope, 0, size / 2], [0, size / 2 / slope, size / 2], [0, 0, 1]])
        # The network knows right hands: a left hand is mirrored. Of an unknown side, both views are encoded.
        sides = ["right", "left"] if side is None else [side]
        frames = [np.diag([1.0 if each == "right" else -1.0, 1, 1]) @ rotation for each in sides]
        views = [sample(image, K @ np.linalg.inv(intrinsics @ frame), size) for frame in frames]
        inputs = {"images": np.stack(views), "slopes": np.full(len(views), slope, np.float32)}
        encoded = self._run("encoder", inputs)
        chosen = int(len(sides) == 2 and encoded["left"][0] > encoded["left"][1])
        hand = {name: array[chosen : chosen + 1] for name, array in {**inputs, **encoded}.items()}
        voted = self._run("voting", {**hand, "lattice": self.lattice})
        return Pose(
            voted["joints"][0] @ frames[chosen],
            hand["expected_error"][0],
            float(hand["presence"][0]),
            sides[chosen],
            int(voted["voters"][0]),
        )

    def _run(self, name: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        function = self.interface["functions"][name]
        inputs = {key: arrays[key] for key in function["inputs"]}
        return dict(zip(function["outputs"], self.sessions[name].run(None, inputs), strict=True))


def look_at(K: np.ndarray, box: Any, fill: float) -> tuple[np.ndarray, float]:
    """The rotation (3, 3) that turns the optical axis to a box, and the tangent of half the view's angle.

    The longer side of the box spans `fill` of the view.
    """
    low, high = np.asarray(box, float).reshape(2, 2)
    middle, half, inverse = (low + high) / 2, (high - low) / 2, np.linalg.inv(K)
    x, y, z = (ray := inverse @ [*middle, 1]) / np.linalg.norm(ray)
    factor = 1 / (1 + z)
    rotation = np.array(
        [[1 - factor * x * x, -factor * x * y, -x], [-factor * x * y, 1 - factor * y * y, -y], [x, y, z]]
    )
    ends = [[*(middle + half * end), 1] for end in ([-1, 0], [0, -1], [1, 0], [0, 1])]
    rays = ends @ (rotation @ inverse).T
    places = rays[:, :2] / rays[:, 2:]
    return rotation, float(np.linalg.norm(places[2:] - places[:2], axis=1).max() / (2 * fill))


def sample(image: np.ndarray, matrix: np.ndarray, size: int) -> np.ndarray:
    """Sample a view (3, size, size) float32 in [-1, 1], bilinearly, with black outside the image.

    An image more than twice as fine as the view is first averaged over squares of whole pixels.

    Args:
        image: (H, W, 3) uint8 RGB.
        matrix: (3, 3) from homogeneous pixels of the view to pixels of the image.
        size: px, side of the view.
    """
    axis = np.arange(size)
    pixels = np.stack([*np.meshgrid(axis, axis), np.ones((size, size))], -1) @ matrix.T
    places = pixels[..., :2] / pixels[..., 2:]

    depth = matrix[2] @ [(size - 1) / 2, (size - 1) / 2, 1]
    fine = min(abs(np.linalg.det(matrix) / depth**3) ** 0.5, *image.shape[:2])  # px per px of the view
    factor = int(fine + 1e-9) if fine > 2 + 1e-9 else 1
    rows, columns = -image.shape[0] % factor, -image.shape[1] % factor
    image = np.pad(image, ((0, rows), (0, columns), (0, 0)))
    image = image.reshape(image.shape[0] // factor, factor, -1, factor, 3).mean((1, 3))
    places = (places - (factor - 1) / 2) / factor

    # A black border of a pixel; all positions farther away are as black.
    height, width = image.shape[:2]
    image = np.pad(image, ((1, 1), (1, 1), (0, 0)))
    x = np.clip(places[..., 0] + 1, 0, width + 1 - 1e-6)
    y = np.clip(places[..., 1] + 1, 0, height + 1 - 1e-6)
    left, top = x.astype(int), y.astype(int)
    x, y = (x - left)[..., None], (y - top)[..., None]
    above = image[top, left] * (1 - x) + image[top, left + 1] * x
    below = image[top + 1, left] * (1 - x) + image[top + 1, left + 1] * x
    values = above * (1 - y) + below * y
    return (values / 127.5 - 1).transpose(2, 0, 1).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("network", type=Path, help="folder written by nvf-fast export")
    parser.add_argument("image", help="an image of a hand")
    parser.add_argument("focal", type=float, help="focal length of the camera, pixels of this image")
    parser.add_argument("--box", type=float, nargs=4, metavar=("X0", "Y0", "X1", "Y1"), required=True)
    parser.add_argument("--side", choices=("right", "left"), help="predicted when absent")
    arguments = parser.parse_args()

    image = np.asarray(ImageOps.exif_transpose(Image.open(arguments.image)).convert("RGB"))  # upright
    height, width = image.shape[:2]
    K = np.array([[arguments.focal, 0, (width - 1) / 2], [0, arguments.focal, (height - 1) / 2], [0, 0, 1]])
    network = HandNetwork(arguments.network)
    pose = network(image, K, arguments.box, arguments.side)
    if pose.presence < network.interface["thresholds"]["presence"]:
        raise SystemExit(f"no hand in the box: its probability is {pose.presence:.3f}")
    print(f"a {pose.side} hand, probability {pose.presence:.3f}, {pose.voters} voters")
    names = network.interface["joint_names"]
    for name, (x, y, z), error in zip(names, pose.joints, pose.expected_error, strict=True):
        print(f"{name:18} {x:7.1f} {y:7.1f} {z:7.1f} ± {error:.0f} mm")


if __name__ == "__main__":
    main()
