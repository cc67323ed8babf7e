"""Make the images of docs/gallery/ from the included and rendered images.

    python docs/gallery.py

Each image is drawn by the code that a user calls; `docs/gallery.md` shows the calls.
"""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image

import nvf_fast
from nvf_fast.cli.main import main as nvf_fast_command
from nvf_fast.image_files import read_image
from nvf_fast.overlay import draw_poses

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "docs" / "gallery"
WIDTH = 1280  # px, of the widest image


def main() -> None:
    OUT.mkdir(exist_ok=True)
    nvf_fast_command(["demo", "--overlay", str(OUT / "demo.jpg")])
    draw_found_hands(OUT / "found.jpg")
    draw_tracked_frames(OUT / "tracked.jpg")
    draw_row(OUT / "row.png")


def draw_found_hands(path: Path) -> None:
    """Draw the hands found in the two wide images of the benchmark beside each other."""
    estimator = nvf_fast.load(device="cpu")
    drawn = []
    for name in ("two_hands", "one_hand"):
        image, K = read_rendered(ROOT / f"benchmarks/images/{name}.jpg")
        drawn.append(draw_poses(image, estimator(image, K)))
    save_side_by_side(drawn, path)


def draw_tracked_frames(path: Path) -> None:
    """Draw tracked frames, with ids: windows that move across the included image."""
    image, K = read_rendered(Path(str(files("nvf_fast") / "assets/demo.jpg")))
    camera = nvf_fast.Camera(K, image.shape[1::-1])
    tracker = nvf_fast.Tracker(nvf_fast.load(device="cpu"))
    drawn = []
    for number, left in enumerate(range(260, 219, -5)):
        window = (left, 0, left + 700, 540)
        frame = image[window[1] : window[3], window[0] : window[2]]
        ids, poses = tracker(frame, camera.cropped(*window), number / 30)
        drawn.append(draw_poses(frame, poses, ids))
    save_side_by_side(drawn[::4], path)


def draw_row(path: Path) -> None:
    """Draw mesh, voters, votes and pose of the included image's hands."""
    demo = files("nvf_fast") / "assets"
    camera = json.loads((demo / "demo.json").read_text())["K"]
    intrinsics = path.with_suffix(".json")
    intrinsics.write_text(json.dumps(camera))
    figure = ["--intrinsics", str(intrinsics), "--figure", str(path), "--out", str(intrinsics) + "l"]
    nvf_fast_command(["predict", str(demo / "demo.jpg"), *figure])
    intrinsics.unlink()
    Path(str(intrinsics) + "l").unlink()
    Image.open(path).quantize(128).save(path, optimize=True)


def read_rendered(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a rendered image and its intrinsics."""
    return read_image(path), np.array(json.loads(path.with_suffix(".json").read_text())["K"])


def save_side_by_side(drawn: list[Image.Image], path: Path) -> None:
    """Save images of any sizes in one row, scaled to the same height."""
    ratios = [image.width / image.height for image in drawn]
    height = round(WIDTH / sum(ratios))
    row = Image.new("RGB", (WIDTH, height), "white")
    left = 0.0
    for image, ratio in zip(drawn, ratios, strict=True):
        width = round(left + ratio * height) - round(left)
        row.paste(image.resize((width, height), Image.Resampling.LANCZOS), (round(left), 0))
        left += ratio * height
    row.save(path, quality=88)


if __name__ == "__main__":
    main()
