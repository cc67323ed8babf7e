"""`nvf-fast demo`: the model on the picture that comes with the library."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
import tyro
from PIL import Image

from nvf_fast.cli import load_estimator, user_errors
from nvf_fast.overlay import draw_pose
from nvf_fast.pose import JOINT_NAMES
from nvf_fast.search import Search


@tyro.conf.configure(tyro.conf.DisallowNone)
@dataclass(frozen=True)
class Demo:
    """Run the model on the synthetic picture that comes with the library, and compare with the truth.

    Attributes:
        overlay: PNG file to write, the picture with the joints found.
        step: mm, spacing of the query points.
        search: which of them are asked: "dense" all, "octree" (for steps up to 8 mm) and "guided" a fraction.
        checkpoint: an embedded checkpoint, a checkpoint folder or a hub id; the embedded one when absent.
        device: where to compute, for example cpu or cuda:1; the GPU where there is one.
    """

    overlay: Path = Path("nvf_demo.png")
    step: float = 16.0
    search: Search = "dense"
    checkpoint: str | None = None
    device: str | None = None

    def run(self) -> None:
        estimator = load_estimator(self.checkpoint, self.device, step_mm=self.step, search=self.search)
        assets = files("nvf_fast") / "assets"
        facts = json.loads((assets / "demo.json").read_text())
        with (assets / "demo.png").open("rb") as file:
            image = np.array(Image.open(file).convert("RGB"))
        hand_scale = facts["hand_scale"] if estimator.takes_hand_scale else None

        estimator(image, facts["K"], hand_scale, side=facts["side"])  # the first call also sets up libraries
        with estimator.timed() as milliseconds:
            pose = estimator(image, facts["K"], hand_scale, side=facts["side"])

        errors = np.linalg.norm(pose.joints - np.array(facts["joints"]), axis=-1)
        print(f"{'joint':20}{'x':>8}{'y':>8}{'z':>8}{'error':>8}  mm   score")
        rows = zip(JOINT_NAMES, pose.joints, errors, pose.scores, strict=True)
        for name, (x, y, z), error, score in rows:
            print(f"{name:20}{x:8.1f}{y:8.1f}{z:8.1f}{error:8.1f}{score:11.2f}")
        print(f"{'mean':44}{errors.mean():8.1f}{pose.scores.mean():11.2f}")
        stages = ", ".join(f"{stage} {each:.1f}" for stage, each in milliseconds.items())
        print(f"{pose.voters} of {pose.points_evaluated} points voted")
        print(f"{sum(milliseconds.values()):.1f} ms on {estimator.device}: {stages}")
        with user_errors():
            draw_pose(image, pose).save(self.overlay)
        print(f"wrote {self.overlay}")
