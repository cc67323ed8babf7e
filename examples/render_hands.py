"""Render synthetic hands with labels: images NAME.png and NAME.json (K, hand scale, joints).

python examples/render_hands.py --out hands --count 8 --size 320 --seed 24
"""

import argparse
import json
from pathlib import Path

from PIL import Image

from nvf_fast.synthetic.dataset import SyntheticConfig, SyntheticHands
from nvf_fast.synthetic.placement import UNIFORM, HandDistribution


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--count", type=int, default=8, help="number of images")
    parser.add_argument("--size", type=int, default=224, help="side of the images in px")
    parser.add_argument("--seed", type=int, default=0, help="seed of hands and images")
    parser.add_argument(
        "--facing", choices=["palm", "back", "any"], default="palm", help="side turned to the camera"
    )
    arguments = parser.parse_args()

    arguments.out.mkdir(parents=True, exist_ok=True)
    facing = arguments.facing
    distribution = UNIFORM if facing == "any" else HandDistribution(facing=facing)
    data = SyntheticHands(SyntheticConfig(arguments.count, arguments.seed, arguments.size, distribution))
    for index in range(len(data)):
        sample = data[index]
        Image.fromarray(sample.image).save(arguments.out / f"{index:04d}.png")
        labels = {
            "K": sample.intrinsics.tolist(),
            "hand_scale": round(sample.hand_scale, 3),
            "side": sample.side,
            "joints": [[round(value, 3) for value in joint] for joint in sample.joints.tolist()],
        }
        (arguments.out / f"{index:04d}.json").write_text(json.dumps(labels) + "\n")


if __name__ == "__main__":
    main()
