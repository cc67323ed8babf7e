"""Render wide images of hands with labels: NAME.jpg and NAME.json (K, sides, boxes, joints).

    python examples/render_wide.py --out wide --count 8 --seed 3 --backgrounds panoramas

`nvf_fast/assets/demo.jpg` is image 1 of

    python examples/render_wide.py --out assets --count 2 --seed 11 --shape 540 960 --sizes 150 240 \\
        --sides right left --clear
"""

import argparse
import json
from pathlib import Path

from PIL import Image

from nvf_fast.joint_definitions import UNIT_SCALE_MM
from nvf_fast.synthetic.rendered_views import ViewOptions
from nvf_fast.synthetic.wide_images import SHAPE, SIZES, WideImages

CLEAR = ViewOptions(any_orientation=0.0, held=0.0, in_front=0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--count", type=int, default=8, help="number of images")
    parser.add_argument("--seed", type=int, default=0, help="seed of the images")
    parser.add_argument("--shape", type=int, nargs=2, default=SHAPE, help="height and width in px")
    parser.add_argument("--sizes", type=float, nargs=2, default=SIZES, help="px, smallest and largest hand")
    parser.add_argument(
        "--sides", nargs="*", choices=["right", "left"], help="sides of the hands; random when absent"
    )
    parser.add_argument("--clear", action="store_true", help="upright hands without objects")
    parser.add_argument("--backgrounds", type=Path, help="folder of images and panoramas")
    parser.add_argument(
        "--rig", type=Path, help="glTF file of a rigged right hand; the built-in hand when absent"
    )
    arguments = parser.parse_args()

    arguments.out.mkdir(parents=True, exist_ok=True)
    images = WideImages(
        arguments.seed,
        rig=arguments.rig,
        backgrounds=arguments.backgrounds,
        shape=tuple(arguments.shape),
        sizes=tuple(arguments.sizes),
        options=CLEAR if arguments.clear else None,
    )
    for index in range(arguments.count):
        wide = images.draw(index, arguments.sides)
        Image.fromarray(wide.image).save(arguments.out / f"{index:04d}.jpg", quality=90)
        truth = {
            "K": wide.intrinsics.tolist(),
            "hand_scale": UNIT_SCALE_MM,
            "hands": [
                {
                    "side": hand.side,
                    "box": [round(value, 2) for value in hand.box.tolist()],
                    "joints": [[round(value, 3) for value in joint] for joint in hand.joints.tolist()],
                }
                for hand in wide.hands
            ],
        }
        (arguments.out / f"{index:04d}.json").write_text(json.dumps(truth) + "\n")


if __name__ == "__main__":
    main()
