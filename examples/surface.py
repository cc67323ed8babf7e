"""Asks the model's field directly: writes the hand's surface, as the network sees it, as a cloud of points.

python examples/surface.py hand.jpg 900 surface.ply
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
import trimesh
from PIL import Image
from torch import Tensor

import nvf_fast
from nvf_fast.camera import reference_homography, remap
from nvf_fast.grid import frustum_grid

COARSE_MM, FINE_MM = 16.0, 4.0


def surface_points(model: nvf_fast.NVF, image: Tensor, K: Tensor) -> Tensor:
    """Points near the surface, (N, 3) mm, of `image` (3, H, W) in [0, 255] with `K` (3, 3) float64."""
    size = model.config.input_size
    view = remap(image[None], reference_homography(K, size)[None], size)
    features = model.encode((view / 255 - 0.5) / 0.5)

    def distance(points: Tensor) -> Tensor:
        return model.query(features, points, model.reference_intrinsics).sdf[0].abs()

    coarse = frustum_grid(COARSE_MM)
    near = coarse[distance(coarse) < COARSE_MM]
    steps = torch.arange(FINE_MM / 2, COARSE_MM, FINE_MM) - COARSE_MM / 2
    fine = (near[:, None] + torch.cartesian_prod(steps, steps, steps)).reshape(-1, 3)
    return fine[distance(fine) < FINE_MM / 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("image", help="a picture of one right hand near its centre")
    parser.add_argument("focal", type=float, help="focal length of the camera, pixels of this picture")
    parser.add_argument("output", help="file to write: .ply, .xyz or .glb")
    arguments = parser.parse_args()

    pixels = np.array(Image.open(arguments.image).convert("RGB"))
    image = torch.from_numpy(pixels).permute(2, 0, 1).float()
    centre_y, centre_x = ((side - 1) / 2 for side in pixels.shape[:2])
    K = torch.tensor(
        [[arguments.focal, 0, centre_x], [0, arguments.focal, centre_y], [0, 0, 1]], dtype=torch.float64
    )
    with torch.inference_mode():
        points = surface_points(nvf_fast.load(device="cpu").model, image, K)
    if len(points) == 0:
        raise SystemExit("no surface found where the view looked")
    trimesh.PointCloud(points.numpy()).export(arguments.output)
    depth = points[:, 2]
    print(f"{arguments.output}: {len(points)} points, {depth.min():.0f} to {depth.max():.0f} mm away")


if __name__ == "__main__":
    main()
