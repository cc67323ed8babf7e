"""Draw a sheet of synthetic hand views with labels: joints, and boxes (green: right, red: left hands).

python examples/render_views.py --out sheet.png --kind close
python examples/render_views.py --out sheet.png --kind wide --rig hand.gltf --backgrounds FOLDER
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from nvf_fast.data.hand_views import VIEW_SIZE, HandViews
from nvf_fast.joint_definitions import PARENTS
from nvf_fast.synthetic.rendered_views import SyntheticViews

ZOOM, COLUMNS = 2, 8
FINGERS = ("#ff5050", "#50ff50", "#50a0ff", "#ffff50", "#ff50ff")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="image file to write")
    parser.add_argument("--kind", choices=["close", "wide", "empty"], default="close", help="kind of views")
    parser.add_argument("--count", type=int, default=32, help="number of views")
    parser.add_argument("--seed", type=int, default=0, help="seed of the views")
    parser.add_argument("--rig", type=Path, help="rigged hand (glTF) to render; the built-in one when absent")
    parser.add_argument("--textures", type=Path, nargs="*", default=[], help="images of skin for the rig")
    parser.add_argument("--backgrounds", type=Path, help="folder of images and panoramas")
    arguments = parser.parse_args()
    views = SyntheticViews(
        arguments.seed,
        rig=arguments.rig,
        textures=arguments.textures,
        backgrounds=arguments.backgrounds,
    ).draw(arguments.count, arguments.kind)
    sheet(views).save(arguments.out)


def sheet(views: HandViews) -> Image.Image:
    """Arrange all views in one image."""
    side, rows = ZOOM * VIEW_SIZE, -(-len(views) // COLUMNS)
    whole = Image.new("RGB", (COLUMNS * side, rows * side))
    for index in range(len(views)):
        whole.paste(labelled(views[index : index + 1]), (index % COLUMNS * side, index // COLUMNS * side))
    return whole


def labelled(view: HandViews) -> Image.Image:
    """Draw one view with its joints and boxes."""
    image = Image.fromarray(view.images[0]).resize(
        (ZOOM * VIEW_SIZE, ZOOM * VIEW_SIZE), Image.Resampling.BILINEAR
    )
    draw, joints = ImageDraw.Draw(image), view.joints[0]
    if np.isfinite(joints).all():
        seen = view.focal[0] * joints[:, :2] / joints[:, 2:] + VIEW_SIZE / 2
        points = [tuple(point) for point in (ZOOM * (seen + 0.5)).tolist()]
        for joint in range(1, 21):
            draw.line([points[PARENTS[joint]], points[joint]], fill=FINGERS[(joint - 1) // 4])
    for box, left in zip(view.boxes[0], view.left[0], strict=True):
        if np.isfinite(box).all():
            draw.rectangle((ZOOM * (box + 0.5)).tolist(), outline="#ff0000" if left else "#00ff00")
    return image


if __name__ == "__main__":
    main()
