"""Compare the default network with MediaPipe Hands and PnP, on photographs with annotated hands.

    python -m benchmarks.mediapipe_hands --photographs FOLDER --python PYTHON_WITH_MEDIAPIPE

MediaPipe pins old versions of other packages and needs a separate environment (`pip install
mediapipe==0.10.21`), whose interpreter runs `mediapipe_worker.py`. FOLDER holds the images and
annotations.json: {"samples": [{"file", "hand_side", "K", "xyz_m"}]}, one annotated hand per image, K in px,
joints in metres of the camera's frame, in FreiHAND's order and in the definition "ge2019" unless an entry
"definition" names another one. Run `make readme` afterwards.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import tyro
from PIL import Image

import nvf_fast
from benchmarks.timing import device_name
from nvf_fast.checkpoint import load_checkpoint, resolve
from nvf_fast.evaluation import metrics
from nvf_fast.joint_definitions import Source, scale_to_unit, to_freihand
from nvf_fast.pose import HandPose

RESULTS = Path(__file__).resolve().parent / "results"
WORKER = Path(__file__).resolve().parent / "mediapipe_worker.py"
MIRROR = np.array([-1.0, 1.0, 1.0])
COLUMNS = [
    *("method", "hands found", "other hands found", "side right", "2D error %"),
    *("aligned mm", "relative mm", "camera space mm", "processor ms", "times the speed of MediaPipe"),
]


@dataclass(frozen=True)
class Compare:
    """Measure errors and times of both.

    Attributes:
        photographs: folder of images with annotations.json.
        python: interpreter that can import MediaPipe.
        rounds: number of interleaved runs of each method on each image.
    """

    photographs: Path
    python: Path
    rounds: int = 10


class Photograph(NamedTuple):
    """An image and its annotated hand.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        intrinsics: (3, 3) float64 px.
        joints: (21, 3) float64 mm of the unit hand, in the camera's frame, FreiHAND's definition.
        side: "left" or "right".
    """

    image: np.ndarray
    intrinsics: np.ndarray
    joints: np.ndarray
    side: str

    @property
    def joints_2d(self) -> np.ndarray:
        return project(self.joints, self.intrinsics)

    @property
    def box(self) -> np.ndarray:
        """(4,) px around the joints."""
        return np.concatenate([self.joints_2d.min(0), self.joints_2d.max(0)])


class Hand(NamedTuple):
    """A predicted hand: joints (21, 3) mm of the unit hand and (21, 2) px, and its side."""

    joints: np.ndarray
    joints_2d: np.ndarray
    side: str


class MediaPipeError(RuntimeError):
    """The interpreter cannot run the worker."""


class MediaPipe:
    """MediaPipe Hands in a subprocess.

    Args:
        python: interpreter that can import MediaPipe.
        photographs: images to process.
        folder: receives the file of images and the worker's log.

    Raises:
        MediaPipeError: the interpreter does not exist or cannot import MediaPipe.
    """

    def __init__(self, python: Path, photographs: Sequence[Photograph], folder: Path) -> None:
        arrays: dict[str, Any] = {f"image_{index}": each.image for index, each in enumerate(photographs)}
        path = folder / "images.npz"
        np.savez(path, intrinsics=np.stack([each.intrinsics for each in photographs]), **arrays)
        self._python, self._log = python, folder / "worker.log"
        try:
            with self._log.open("w") as log:
                self._process = subprocess.Popen(
                    [python, WORKER, path],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                )  # fmt: skip
        except OSError as error:
            raise MediaPipeError(f"{python}: {error.strerror}") from error
        self.version: str = self._read()["mediapipe"]

    def __call__(self, index: int) -> dict[str, Any]:
        """The worker's reply about an image."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{index}\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """End the process."""
        self._process.communicate(timeout=60)

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            reason = (self._log.read_text().strip().splitlines() or ["no message"])[-1]
            raise MediaPipeError(f"{self._python} cannot run MediaPipe Hands: {reason}")
        reply: dict[str, Any] = json.loads(line)
        return reply


def read_photographs(folder: Path) -> list[Photograph]:
    """Read annotated images; hands are scaled to the unit hand about the camera's centre."""
    found = []
    for sample in json.loads((folder / "annotations.json").read_text())["samples"]:
        side, definition = sample["hand_side"], sample.get("definition", "ge2019")
        joints = unit_joints(np.array(sample["xyz_m"]), side, definition)
        image = np.array(Image.open(folder / sample["file"]).convert("RGB"))
        found.append(Photograph(image, np.array(sample["K"], np.float64), joints, side))
    return found


def unit_joints(joints: np.ndarray, side: str, definition: Source) -> np.ndarray:
    """Convert camera-space joints (21, 3) in any unit to FreiHAND's definition and the unit hand's mm."""
    mirror = MIRROR if side == "left" else np.ones(3)
    return scale_to_unit(to_freihand(joints * mirror, definition) * mirror)


def project(joints: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    """Project joints (..., 3) to px (..., 2)."""
    pixels = joints @ intrinsics.T
    return pixels[..., :2] / pixels[..., 2:]


def mediapipe_hand(found: dict[str, Any], intrinsics: np.ndarray) -> Hand:
    """A hand of the worker in FreiHAND's definition.

    The 2D landmarks are converted at the depths of PnP, so that its residuals do not enter the 2D error.
    """
    joints, pixels, side = np.array(found["joints"]), np.array(found["joints_2d"]), found["side"]
    rays = np.concatenate([pixels, np.ones((21, 1))], 1) @ np.linalg.inv(intrinsics).T
    seen = unit_joints(rays * joints[:, 2:], side, "mediapipe")
    return Hand(unit_joints(joints, side, "mediapipe"), project(seen, intrinsics), side)


def network_hands(pose: HandPose) -> list[Hand]:
    """The valid hands of a batch."""
    assert pose.side is not None
    sides = [pose.side] * len(pose.joints) if isinstance(pose.side, str) else pose.side
    return [
        Hand(joints.astype(np.float64), pixels.astype(np.float64), side)
        for joints, pixels, side, valid in zip(pose.joints, pose.joints_2d, sides, pose.valid, strict=True)
        if valid
    ]


def score(photographs: Sequence[Photograph], hands: Sequence[Sequence[Hand]]) -> list[float | None]:
    """Make the row of a method, from "hands found" to "camera space mm".

    A hand is found if the middle of its joints lies in the annotated joints' box; of several, the nearest to
    the box's middle counts. Errors are means over found hands.
    """
    matched, other = [], 0
    for photograph, found in zip(photographs, hands, strict=True):
        low, high = photograph.box[:2], photograph.box[2:]
        middles = [hand.joints_2d.mean(0) for hand in found]
        distances = [
            float(np.linalg.norm(middle - (low + high) / 2))
            if ((middle > low) & (middle < high)).all()
            else np.inf
            for middle in middles
        ]
        best = int(np.argmin(distances)) if distances and min(distances) < np.inf else None
        other += len(found) - (best is not None)
        if best is not None:
            matched.append((photograph, found[best]))
    if not matched:
        return [0, other, *[None] * 5]
    truth, joints = (np.stack([pair[of].joints for pair in matched]) for of in (0, 1))
    flat = [
        np.linalg.norm(hand.joints_2d - photograph.joints_2d, axis=-1).mean()
        / (photograph.box[2:] - photograph.box[:2]).max()
        for photograph, hand in matched
    ]
    return [
        len(matched),
        other,
        sum(hand.side == photograph.side for photograph, hand in matched),
        100 * float(np.mean(flat)),
        metrics.pa_mpjpe(joints, truth),
        metrics.mpjpe(metrics.root_align(joints, truth), truth),
        metrics.mpjpe(joints, truth),
    ]


def compare(options: Compare) -> dict[str, Any]:
    """Measure both methods and make the table.

    Raises:
        MediaPipeError: the interpreter cannot run MediaPipe.
    """
    photographs = read_photographs(options.photographs)

    def boxed(estimator: nvf_fast.PoseEstimator, photograph: Photograph) -> HandPose:
        image, intrinsics = [photograph.image], photograph.intrinsics[None]
        return estimator(image, intrinsics, box=photograph.box[None], side=photograph.side)

    def found(estimator: nvf_fast.PoseEstimator, photograph: Photograph) -> HandPose:
        return estimator(photograph.image, photograph.intrinsics)

    plain, quantised = nvf_fast.load(), nvf_fast.load(device="cpu", dtype=torch.int8)
    ours: dict[str, Callable[[Photograph], HandPose]] = {
        "found": partial(found, plain),
        "found, int8": partial(found, quantised),
        "boxed": partial(boxed, plain),
        "boxed, int8": partial(boxed, quantised),
    }
    with tempfile.TemporaryDirectory() as folder:
        mediapipe = MediaPipe(options.python, photographs, Path(folder))
        hands: dict[str, list[list[Hand]]] = {name: [] for name in ("MediaPipe", *ours)}
        for index, photograph in enumerate(photographs):  # also warms up
            theirs = mediapipe(index)["hands"]
            hands["MediaPipe"].append([mediapipe_hand(hand, photograph.intrinsics) for hand in theirs])
            for name, call in ours.items():
                hands[name].append(network_hands(call(photograph)))
        times: dict[str, list[float]] = {name: [] for name in ("find", "track", *ours)}
        for _ in range(options.rounds):
            for index, photograph in enumerate(photographs):
                theirs = mediapipe(index)
                for name in ("find", "track"):
                    times[name].append(theirs[name])
                for name, call in ours.items():
                    times[name].append(timed(call, photograph))
        mediapipe.close()

    def row(title: str, who: str, call: str, theirs: str) -> list[Any]:
        ratio = float(np.median(np.array(times[theirs]) / times[call]))
        return [title, *score(photographs, hands[who]), float(np.median(times[call])), ratio]

    rows = [
        row("MediaPipe Hands + PnP", "MediaPipe", "find", "find"),
        row("nvf_fast", "found", "found", "find"),
        row("nvf_fast, int8", "found, int8", "found, int8", "find"),
        row("MediaPipe Hands + PnP, tracking", "MediaPipe", "track", "track"),
        row("nvf_fast, box and side given", "boxed", "boxed", "track"),
        row("nvf_fast, int8, box and side given", "boxed, int8", "boxed, int8", "track"),
    ]
    context = {"photographs": len(photographs)} | conditions(mediapipe, options.rounds)
    return {"columns": COLUMNS, "rows": rows, "context": context}


def conditions(mediapipe: MediaPipe, rounds: int) -> dict[str, Any]:
    """Conditions of a comparison with the default network, for the context of a table."""
    return {
        "weights": f"sha256 {load_checkpoint(resolve(None))[1]['sha256'][:12]}",
        "mediapipe": mediapipe.version,
        "torch": torch.__version__,
        "device": device_name(),
        "processor cores": len(os.sched_getaffinity(0)),
        "times": f"medians of {rounds} rounds in turn",
    }


def timed(call: Callable[[Photograph], HandPose], photograph: Photograph) -> float:
    """Processor time of a call in ms."""
    start = time.process_time()
    call(photograph)
    return 1000 * (time.process_time() - start)


def main() -> None:
    try:
        table = compare(tyro.cli(Compare, description=__doc__))
    except MediaPipeError as error:
        print(f"skipped: {error}")
        return
    (RESULTS / "mediapipe.json").write_text(json.dumps(table, indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
