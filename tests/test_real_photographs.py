"""The embedded model on photographs: finite poses of plausible hands, inside the picture.

The photographs' own joints sit elsewhere than the model's, so they judge no millimetres.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import nvf_fast
from nvf_fast.checkpoint import embedded_names


def test_photographs(shared_dir: Path) -> None:
    folder = shared_dir / "real"
    if not (folder / "annotations.json").is_file():
        pytest.skip(f"no photographs in {folder}")
    if not embedded_names():
        pytest.skip("no checkpoint is embedded")
    samples = json.loads((folder / "annotations.json").read_text())["samples"]
    images = np.stack([np.array(Image.open(folder / sample["file"]).convert("RGB")) for sample in samples])
    intrinsics = np.array([sample["K"] for sample in samples])
    sides = [sample["hand_side"] for sample in samples]
    assert images.shape == (6, 256, 256, 3) and set(sides) == {"left"}

    estimator = nvf_fast.load(device="cpu")
    with pytest.warns(UserWarning, match=r"spans \d\d\.\d x \d\d\.\d degrees, the view 26\.3"):
        poses = estimator(images, intrinsics, box=(0, 0, 256, 256), side=sides)

    assert poses.valid.all() and np.isfinite(poses.joints).all()
    assert (poses.scores > 0).all() and (poses.scores <= 1).all()
    assert (poses.joints_2d > 0).all() and (poses.joints_2d < 255).all(), "every joint lies on the picture"
    depth = poses.joints[..., 2]
    assert (depth > 150).all() and (depth < 1200).all()
    size = np.linalg.norm(poses.joints - poses.joints[:, :1], axis=-1).max(1)
    assert (size > 50).all() and (size < 300).all(), "mm from the wrist to the farthest joint of a hand"
