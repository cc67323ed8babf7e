"""Query the field directly: write the hand's predicted surface as a point cloud.

python examples/surface.py hand.jpg 900 surface.ply --box 200 120 440 360
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
import trimesh
from PIL import Image
from torch import Tensor

import nvf_fast
from nvf_fast.camera import network_view, view_intrinsics
from nvf_fast.volumes import HandVolume

STEP_MM, NEAR_MM = 4.0, 2.0


def surface_points(model: nvf_fast.NVF, image: np.ndarray, K: Tensor, box: Tensor) -> Tensor:
    """Predict points near the surface of the right hand in a box, (N, 3) mm in the camera's frame.

    Args:
        model: a network of hand views.
        image: (H, W, 3) uint8 RGB.
        K: (3, 3) float64 intrinsics, px.
        box: (4,) float64 px, (x0, y0, x1, y1).
    """
    size, volume = model.config.input_size, HandVolume()
    placement = volume.place(K[None], size, boxes=box[None])
    assert placement.slopes is not None
    slopes = placement.slopes.float()
    encoding = model.encode_hands(
        network_view(torch.from_numpy(image), placement.homographies[0], size), slopes
    )
    coarse = encoding.joints(slopes)
    points = volume.lattice(STEP_MM).points(coarse[..., 2].mean(1), slopes)
    field = model.query(encoding.features, points, view_intrinsics(slopes, size), coarse=coarse)
    return points[0, field.sdf[0].abs() < NEAR_MM] @ placement.frames[0].float()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("image", help="an image of a right hand")
    parser.add_argument("focal", type=float, help="focal length of the camera, pixels of this image")
    parser.add_argument("output", help="file to write: .ply, .xyz or .glb")
    parser.add_argument(
        "--box",
        type=float,
        nargs=4,
        metavar=("X0", "Y0", "X1", "Y1"),
        help="pixels; the central square when absent",
    )
    arguments = parser.parse_args()

    image = np.array(Image.open(arguments.image).convert("RGB"))
    centre_y, centre_x = ((side - 1) / 2 for side in image.shape[:2])
    K = torch.tensor(
        [[arguments.focal, 0, centre_x], [0, arguments.focal, centre_y], [0, 0, 1]], dtype=torch.float64
    )
    half = min(image.shape[:2]) / 2
    square = (centre_x - half, centre_y - half, centre_x + half, centre_y + half)
    box = torch.tensor(arguments.box or square, dtype=torch.float64)
    with torch.inference_mode():
        points = surface_points(nvf_fast.load(device="cpu").model, image, K, box)
    if len(points) == 0:
        raise SystemExit("no surface found in the box")
    trimesh.PointCloud(points.numpy()).export(arguments.output)
    depth = points[:, 2]
    print(f"{arguments.output}: {len(points)} points, {depth.min():.0f} to {depth.max():.0f} mm away")


if __name__ == "__main__":
    main()
