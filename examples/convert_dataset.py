"""Convert images NAME.png with NAME.json (K, joints in mm, side) to FreiHAND's format.

    python examples/render_hands.py --out hands --count 8
    python examples/convert_dataset.py hands --out hands_freihand

Left hands are mirrored (image, camera and joints), since FreiHAND contains right hands only.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from nvf_fast.data.freihand import FreiHAND, write_freihand
from nvf_fast.data.sample import HandSample


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder of images and JSON files")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    arguments = parser.parse_args()

    samples = [read(path) for path in sorted(arguments.folder.glob("*.json"))]
    write_freihand(arguments.out, samples, versions=("gs",))
    print(FreiHAND(arguments.out, versions=("gs",)).describe())


def read(path: Path) -> HandSample:
    """Read one sample as a right hand."""
    truth = json.loads(path.read_text())
    image = np.array(Image.open(path.with_suffix(".png")).convert("RGB"))
    intrinsics, joints = np.array(truth["K"], dtype=np.float64), torch.tensor(truth["joints"])
    if truth["side"] == "left":
        image = np.ascontiguousarray(image[:, ::-1])
        # Pixel centres are integers: the last column becomes the first.
        intrinsics[0, 1:] = [-intrinsics[0, 1], image.shape[1] - 1 - intrinsics[0, 2]]
        joints = joints * torch.tensor([-1.0, 1.0, 1.0])
    return HandSample(path.stem, image, intrinsics, joints=joints)


if __name__ == "__main__":
    main()
