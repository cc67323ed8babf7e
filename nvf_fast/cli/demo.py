"""`nvf-fast demo`: find the hands of the included image."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import tyro

from nvf_fast.cli import user_errors
from nvf_fast.cli.options import NetworkOptions
from nvf_fast.cli.outputs import DRAWING_SUFFIXES, check_output_file
from nvf_fast.image_files import ASSETS, demo_image
from nvf_fast.overlay import draw_poses, write_drawing
from nvf_fast.pose import JOINT_NAMES, HandPose
from nvf_fast.search import Search

if TYPE_CHECKING:
    from nvf_fast.estimator import PoseEstimator


@dataclass(frozen=True)
class Demo:
    """Find the hands of the included synthetic image, and compare them with the truth.

    The table lists each joint in mm, its score and its expected error in mm, its true error in the image in
    px, and its true error in mm after the hand is aligned to the truth. A network that cannot find hands is
    given the true boxes and sides.
    """

    overlay: Path = Path("nvf_demo.png")  # .png or .jpg file for the image with the predicted joints
    step: float = 16.0  # mm, spacing of the query points
    # points to query: "dense" for all, "octree" (for steps up to 8 mm) or "guided" for a part of them
    search: Search = "dense"
    network: Annotated[NetworkOptions, tyro.conf.arg(name="")] = field(default_factory=NetworkOptions)

    def run(self) -> None:
        check_output_file("--overlay", self.overlay, DRAWING_SUFFIXES)
        estimator = self.network.estimator(step_mm=self.step, search=self.search)
        truth = json.loads((ASSETS / "demo.json").read_bytes())
        image, _ = demo_image()
        with user_errors():
            _poses(estimator, image, truth)  # the first call also initialises libraries
            with estimator.timed() as milliseconds:
                poses = _poses(estimator, image, truth)

        for pose, hand in _matched(poses, truth):
            _print_table(pose, hand, truth["K"])
        hands = len(truth["hands"])
        print(f"found {int(poses.valid.sum())} hands; the image shows {hands}")
        stages = ", ".join(f"{stage} {each:.1f}" for stage, each in milliseconds.items())
        print(f"{sum(milliseconds.values()):.1f} ms on {estimator.device}: {stages}")
        with user_errors():
            write_drawing(self.overlay, draw_poses(image, poses))
        print(f"wrote {self.overlay}")


def _poses(estimator: PoseEstimator, image: np.ndarray, truth: dict[str, Any]) -> HandPose:
    """Estimate a batch of the detected hands, or of those with given boxes."""
    if estimator.model.config.view == "hand":
        return estimator(image, truth["K"], truth["hand_scale"])
    hands = truth["hands"]
    return estimator(
        [image] * len(hands),
        np.array([truth["K"]] * len(hands)),
        truth["hand_scale"] if estimator.takes_hand_scale else None,
        [hand["box"] for hand in hands],
        [hand["side"] for hand in hands],
    )


def _matched(poses: HandPose, truth: dict[str, Any]) -> list[tuple[HandPose, dict[str, Any] | None]]:
    """Pair each valid pose with the nearest true hand in the image; None for surplus poses."""
    left, pairs = list(truth["hands"]), []
    for pose in poses:
        if not pose.valid:
            continue
        distances = [_errors_2d(pose, hand, truth["K"]).mean() for hand in left]
        pairs.append((pose, left.pop(int(np.argmin(distances))) if left else None))
    return pairs


def _errors_2d(pose: HandPose, hand: dict[str, Any], intrinsics: Any) -> np.ndarray:
    """(21,) px."""
    pixels = np.array(hand["joints"]) @ np.array(intrinsics).T
    errors: np.ndarray = np.linalg.norm(pose.joints_2d - pixels[:, :2] / pixels[:, 2:], axis=-1)
    return errors


def _print_table(pose: HandPose, hand: dict[str, Any] | None, intrinsics: Any) -> None:
    from nvf_fast.evaluation import metrics

    expected = np.full(21, np.nan) if pose.expected_error is None else pose.expected_error
    errors = np.full((2, 21), np.nan)
    if hand is not None:
        joints = np.array(hand["joints"])
        aligned = metrics.rigid_align(pose.joints[None], joints[None])[0]
        errors = np.stack([_errors_2d(pose, hand, intrinsics), np.linalg.norm(aligned - joints, axis=-1)])
    print(f"{pose.side} hand" + (f" (truth: {hand['side']})" if hand is not None else ""))
    heads = ("x mm", "y mm", "z mm", "score", "expected mm", "error px", "aligned mm")
    print(f"{'joint':18}" + "".join(f"{head:>12}" for head in heads))
    for name, place, score, mm, error in zip(
        JOINT_NAMES, pose.joints, pose.scores, expected, errors.T, strict=True
    ):
        x, y, z = (f"{value:12.1f}" for value in place)
        print(f"{name:18}{x}{y}{z}{score:12.2f}{mm:12.1f}" + "".join(f"{each:12.1f}" for each in error))
    means = "".join(f"{each:12.1f}" for each in (expected.mean(), *errors.mean(1)))
    print(f"{'mean':54}{pose.scores.mean():12.2f}{means}\n")
