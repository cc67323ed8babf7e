"""Spread of a hand's pose over cameras, crops, rotations, lenses and files of one image.

    python -m benchmarks.camera_invariance

Each rendered hand is posed in its image, and in images of other cameras at the same place, resampled along
the rays of their pixels (bicubic). A box about the true joints places each view. Poses are compared in the
frame of the first camera. Boxes moved in the first image tell how much of a spread comes from the view alone.
Writes benchmarks/results/camera_invariance.json for `make readme`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from tqdm import tqdm

import nvf_fast
from nvf_fast.camera_model import Camera
from nvf_fast.estimator import PoseEstimator
from nvf_fast.image_files import read_image
from nvf_fast.synthetic.wide_images import WideImages

RESULT = Path(__file__).resolve().parent / "results" / "camera_invariance.json"
SEED, SHAPE, SIZES = 9_000_013, (720, 960), (200.0, 360.0)  # px; of the images, and of the hands' boxes
IMAGES = 6
VARIANTS = 10  # of a kind
COLUMNS = ["kind", "images", "no hand seen", "mean (mm)", "largest (mm)", "mean about the wrist (mm)"]
# Names of the kinds in the result, in order.
KINDS = {
    "box": "box moved by 5 % of its side",
    "K": "ten K: focal lengths, centres, ratios of pixels",
    "crop": "crops",
    "tight crop": "tight crops, without all of the view",
    "resize": "resized to 50 to 150 %",
    "rotation": "rotations by 90, 180 and 270 degrees",
    "plumb bob": "plumb-bob distortion",
    "plumb bob, ignored": "the same, distortion ignored",
    "fisheye": "fisheye distortion",
    "fisheye, ignored": "the same, distortion ignored (fisheye)",
    "orientation": "EXIF orientations 1 to 8",
    "format": "RGBA, CMYK, palette of 256 colours, JPEG",
    "grey": "grey",
}


class Variant(NamedTuple):
    """An image of a hand by another camera.

    Attributes:
        kind: key of `KINDS`.
        image: (H, W, 3) uint8.
        seen: the camera that took it, which places the box.
        used: the camera given to the estimator.
        rotation: (3, 3), from the first camera's frame to this one's.
        moved: px, of the box.
    """

    kind: str
    image: np.ndarray
    seen: Camera
    used: Camera
    rotation: np.ndarray
    moved: tuple[float, float] = (0.0, 0.0)


def seen_by(camera: Camera, image: np.ndarray, taken_by: Camera) -> np.ndarray:
    """The image of `camera` at the place of the pinhole camera that took `image`, resampled (bicubic)."""
    width, height = camera.size
    pixels = np.stack(np.meshgrid(np.arange(float(width)), np.arange(float(height))), -1)
    places = np.nan_to_num(taken_by.project(camera.rays(pixels)), nan=-1e4)
    grid = torch.from_numpy((2 * places + 1) / np.array(taken_by.size) - 1)[None]
    source = torch.from_numpy(image).permute(2, 0, 1)[None].double()
    sampled = F.grid_sample(source, grid, mode="bicubic", padding_mode="zeros", align_corners=False)
    return sampled[0].permute(1, 2, 0).round().clamp(0, 255).byte().numpy()


def camera_variants(image: np.ndarray, camera: Camera, box: np.ndarray, seed: int) -> Iterator[Variant]:
    """Images by other cameras.

    Args:
        image: (H, W, 3) uint8.
        camera: pinhole, that took it.
        box: (4,) px, about the hand.
        seed: of the draws.
    """
    rng, still = np.random.default_rng(seed), np.eye(3)
    (width, height), side = camera.size, float((box[2:] - box[:2]).max())
    for _ in range(VARIANTS):
        moved = tuple(0.05 * side * rng.uniform(-1, 1, 2))
        yield Variant("box", image, camera, camera, still, moved)
    for _ in range(VARIANTS):
        focal, ratio = camera.K[0, 0] * rng.uniform(0.7, 1.15), rng.uniform(0.9, 1.1)
        cx, cy = camera.K[:2, 2] + rng.uniform(-0.08, 0.08, 2) * camera.size
        other = Camera(np.array([[focal, 0, cx], [0, focal * ratio, cy], [0, 0, 1]]), camera.size)
        yield Variant("K", seen_by(other, image, camera), other, other, still)
    for kind, least in (("crop", 0.7), ("tight crop", 0.05)):  # with all of the view, and without its border
        for _ in range(VARIANTS):
            spare = (least + rng.uniform(0, 0.3, 4)) * side
            x0, y0 = np.maximum(box[:2] - spare[:2], 0).astype(int).tolist()
            x1, y1 = np.minimum(box[2:] + spare[2:], [width, height]).astype(int).tolist()
            crop = camera.cropped(x0, y0, x1, y1)
            yield Variant(kind, image[y0:y1, x0:x1], crop, crop, still)
    for scale in np.linspace(0.5, 1.5, VARIANTS):
        size = round(width * scale), round(height * scale)
        resized = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)
        yield Variant("resize", np.asarray(resized), camera.resized(*size), camera.resized(*size), still)
    turn = np.array([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]])
    for quarters in (1, 2, 3):
        turned = camera.rotated(quarters)
        rotation = np.linalg.matrix_power(turn, quarters)
        yield Variant("rotation", np.rot90(image, quarters).copy(), turned, turned, rotation)
    for _ in range(VARIANTS):
        k1 = rng.uniform(-0.3, 0.3)
        bent = Camera(camera.K, camera.size, (k1, rng.uniform(0, 0.3) * k1**2, *rng.uniform(-2e-3, 2e-3, 2)))
        warped = seen_by(bent, image, camera)
        yield Variant("plumb bob", warped, bent, bent, still)
        yield Variant("plumb bob, ignored", warped, bent, camera, still)
    for _ in range(VARIANTS):
        focal = camera.K[0, 0] * rng.uniform(0.9, 1.1)
        intrinsics = np.array([[focal, 0, camera.K[0, 2]], [0, focal, camera.K[1, 2]], [0, 0, 1]])
        fisheye = Camera(intrinsics, camera.size, tuple(rng.uniform(-0.05, 0.05, 4)), "fisheye")
        warped = seen_by(fisheye, image, camera)
        yield Variant("fisheye", warped, fisheye, fisheye, still)
        yield Variant("fisheye, ignored", warped, fisheye, Camera(intrinsics, camera.size), still)


def file_variants(image: np.ndarray, camera: Camera, folder: Path) -> Iterator[Variant]:
    """The image read from files of other orientations and pixel formats."""

    def read(kind: str, name: str) -> Variant:
        return Variant(kind, read_image(folder / name), camera, camera, np.eye(3))

    upright = Image.fromarray(image)
    stored: list[Callable[[np.ndarray], np.ndarray]] = [
        lambda a: a,
        lambda a: a[:, ::-1],
        lambda a: a[::-1, ::-1],
        lambda a: a[::-1],
        lambda a: a.swapaxes(0, 1),
        lambda a: np.rot90(a),
        lambda a: np.rot90(a, 2).swapaxes(0, 1),
        lambda a: np.rot90(a, -1),
    ]
    for orientation, form in enumerate(stored, 1):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(np.ascontiguousarray(form(image))).save(folder / "turned.png", exif=exif)
        yield read("orientation", "turned.png")
    upright.convert("RGBA").save(folder / "alpha.png")
    upright.convert("CMYK").save(folder / "cmyk.tiff")
    upright.quantize(256).save(folder / "palette.png")
    upright.save(folder / "compressed.jpg", quality=90)
    for name in ("alpha.png", "cmyk.tiff", "palette.png", "compressed.jpg"):
        yield read("format", name)
    upright.convert("L").save(folder / "grey.png")
    yield read("grey", "grey.png")


def box_about(joints: np.ndarray, camera: Camera) -> np.ndarray:
    """The box (4,) px around the projections of joints (21, 3) mm."""
    pixels = camera.project(joints)
    return np.concatenate([pixels.min(0), pixels.max(0)])


def differences(
    estimator: PoseEstimator,
    joints: np.ndarray,
    side: str,
    base: Variant,
    variants: Iterable[Variant],
) -> dict[str, list[tuple[float, float]]]:
    """Differences of the variants' poses from that of the base, by kind.

    Args:
        estimator: of hand views.
        joints: (21, 3) mm, the true ones, which place the boxes.
        side: of the hand.
        base: the first image.
        variants: of it.

    Returns:
        Mean distances of the joints in mm, absolute and with equal wrists; NaN where no hand is seen.
    """

    def pose(variant: Variant) -> np.ndarray:
        box = box_about(joints @ variant.rotation.T, variant.seen) + np.tile(variant.moved, 2)
        found = estimator(variant.image, variant.used, box=box, side=side)
        back: np.ndarray = found.joints @ variant.rotation
        return back

    expected, found = pose(base), defaultdict[str, list[tuple[float, float]]](list)
    for variant in variants:
        apart = pose(variant) - expected
        absolute, aligned = (np.linalg.norm(each, axis=1).mean() for each in (apart, apart - apart[0]))
        found[variant.kind].append((float(absolute), float(aligned)))
    return found


def measure(images: int, seed: int = SEED) -> list[list[Any]]:
    """Rows of `COLUMNS`."""
    estimator, every = nvf_fast.load(device="cpu"), defaultdict[str, list[tuple[float, float]]](list)
    wides = WideImages(seed, shape=SHAPE, sizes=SIZES)
    for index in tqdm(range(images), unit="image"):
        wide = wides.draw(index, ["left" if index % 2 else "right"])
        hand, camera = wide.hands[0], Camera(wide.intrinsics, SHAPE[::-1])
        base = Variant("", wide.image, camera, camera, np.eye(3))
        with tempfile.TemporaryDirectory() as folder:
            variants = chain(
                camera_variants(wide.image, camera, hand.box, index),
                file_variants(wide.image, camera, Path(folder)),
            )
            for kind, found in differences(estimator, hand.joints, hand.side, base, variants).items():
                every[kind] += found
    rows = []
    for kind, name in KINDS.items():
        apart = np.array(every[kind])
        seen = apart[np.isfinite(apart[:, 0])]
        numbers = (round(float(x), 2) for x in (seen[:, 0].mean(), seen[:, 0].max(), seen[:, 1].mean()))
        rows.append([name, len(apart), len(apart) - len(seen), *numbers])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--images", type=int, default=IMAGES)
    options = parser.parse_args()
    rows = measure(options.images)
    context = {
        "network": "default",
        "hands": f"{options.images} rendered, boxes of {SIZES[0]:g} to {SIZES[1]:g} px",
        "images": f"{SHAPE[1]} x {SHAPE[0]} px",
        "poses": "of the unit hand, one per image and variant, boxes of the true joints",
        "device": "CPU, float32",
    }
    RESULT.write_text(json.dumps({"columns": COLUMNS, "rows": rows, "context": context}, indent=2) + "\n")
    for row in rows:
        print(*row, sep=" | ")


if __name__ == "__main__":
    main()
