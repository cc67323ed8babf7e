"""Renders synthetic hands with their truth: pictures NAME.png beside NAME.json (K, hand scale, joints).

    python examples/render_hands.py --out hands --count 8 --size 320 --seed 24

The demonstration picture in `nvf_fast/assets/` is the first of these, an open hand about half a metre away.
"""

import argparse
import json
from pathlib import Path

import torch
from PIL import Image

from nvf_fast.camera import reference_intrinsics
from nvf_fast.data.hand import HandDistribution, sample_hands
from nvf_fast.data.render import render_hand


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--count", type=int, default=8, help="number of pictures")
    parser.add_argument("--size", type=int, default=224, help="side of the pictures in px")
    parser.add_argument("--seed", type=int, default=0, help="seed of hands and pictures")
    parser.add_argument(
        "--facing", choices=["palm", "back", "any"], default="palm", help="side turned to the camera"
    )
    arguments = parser.parse_args()

    arguments.out.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(arguments.seed)
    hands = sample_hands(arguments.count, generator, HandDistribution(facing=arguments.facing))
    for index in range(arguments.count):
        hand = hands[index : index + 1]
        picture = render_hand(hand, arguments.size, generator).permute(1, 2, 0).numpy()
        Image.fromarray(picture).save(arguments.out / f"{index:04d}.png")
        truth = {
            "K": reference_intrinsics(arguments.size).tolist(),
            "hand_scale": round(float(hand.hand_scale[0]), 3),
            "side": "right",
            "joints": [[round(value, 3) for value in joint] for joint in hand.joints[0].tolist()],
        }
        (arguments.out / f"{index:04d}.json").write_text(json.dumps(truth) + "\n")


if __name__ == "__main__":
    main()
