"""Renders synthetic hands with their truth: pictures NAME.png beside NAME.json (K, hand scale, joints).

    python examples/render_hands.py --out hands --count 8 --size 320 --seed 24 --scene full

The demonstration picture in `nvf_fast/assets/` is one in a plain scene.
"""

import argparse
import json
from pathlib import Path

from PIL import Image

from nvf_fast.data.hand import HandDistribution
from nvf_fast.data.scenes import SceneDistribution
from nvf_fast.data.synthetic import V1, SyntheticConfig, SyntheticHands

SCENES = {"plain": SceneDistribution(), "full": V1.scene}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--count", type=int, default=8, help="number of pictures")
    parser.add_argument("--size", type=int, default=224, help="side of the pictures in px")
    parser.add_argument("--seed", type=int, default=0, help="seed of hands and pictures")
    parser.add_argument(
        "--facing", choices=["palm", "back", "any"], default="palm", help="side turned to the camera"
    )
    parser.add_argument(
        "--scene", choices=list(SCENES), default="plain", help="full: objects, clutter, shadows, blur, noise"
    )
    arguments = parser.parse_args()

    arguments.out.mkdir(parents=True, exist_ok=True)
    config = SyntheticConfig(
        count=arguments.count,
        seed=arguments.seed,
        size=arguments.size,
        distribution=HandDistribution(facing=arguments.facing),
        scene=SCENES[arguments.scene],
    )
    data = SyntheticHands(config)
    for index in range(len(data)):
        sample = data[index]
        Image.fromarray(sample.image).save(arguments.out / f"{index:04d}.png")
        truth = {
            "K": sample.intrinsics.tolist(),
            "hand_scale": round(sample.hand_scale, 3),
            "side": sample.side,
            "joints": [[round(value, 3) for value in joint] for joint in sample.joints.tolist()],
        }
        (arguments.out / f"{index:04d}.json").write_text(json.dumps(truth) + "\n")


if __name__ == "__main__":
    main()
