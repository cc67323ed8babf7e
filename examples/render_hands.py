"""Renders synthetic hands with their truth: pictures NAME.png beside NAME.json (K, hand scale, joints).

    python examples/render_hands.py --out hands --count 8 --size 320 --seed 24 --scene full
    python examples/render_hands.py --out hands --glb right.glb
"""

import argparse
import json
from pathlib import Path

from PIL import Image

from nvf_fast.camera import reference_intrinsics
from nvf_fast.data.draws import Draws
from nvf_fast.data.glb import RiggedHand
from nvf_fast.data.hand import HandDistribution, Hands, draw_hands
from nvf_fast.data.render import render
from nvf_fast.data.scenes import SceneDistribution, draw_scenes
from nvf_fast.data.surfaces import MeshHands
from nvf_fast.data.synthetic import V1

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
    parser.add_argument("--glb", type=Path, help="draw this rigged hand (docs/synthetic.md), not our own")
    arguments = parser.parse_args()

    arguments.out.mkdir(parents=True, exist_ok=True)
    indices, distribution = range(arguments.count), HandDistribution(facing=arguments.facing)
    draws = Draws(arguments.seed, "hand", indices)
    hands: Hands | MeshHands
    if arguments.glb is None:
        hands, _ = draw_hands(draws, distribution)
    else:
        hands = RiggedHand.load(arguments.glb).draw(draws, distribution)
    scenes = draw_scenes(Draws(arguments.seed, "scene", indices), SCENES[arguments.scene])
    pictures = render(hands, scenes, arguments.size).permute(0, 2, 3, 1).contiguous().numpy()
    for index, picture in enumerate(pictures):
        Image.fromarray(picture).save(arguments.out / f"{index:04d}.png")
        truth = {
            "K": reference_intrinsics(arguments.size).double().tolist(),
            "hand_scale": round(float(hands.hand_scale[index]), 3),
            "side": "right",
            "joints": [[round(value, 3) for value in joint] for joint in hands.joints[index].tolist()],
        }
        (arguments.out / f"{index:04d}.json").write_text(json.dumps(truth) + "\n")


if __name__ == "__main__":
    main()
