"""Find and pose the hands of twelve wide images, beside MediaPipe Hands; distances between two hands.

    python -m benchmarks.wide_images --photographs FOLDER --backgrounds PANORAMAS --python PYTHON

PYTHON is an interpreter that can import MediaPipe. Two images are rendered and stored in benchmarks/images.
The other ten put the photographs of FOLDER, as in `benchmarks.mediapipe_hands`, into views of the panoramas:
none, one or two in an image of 640 x 480 to 4000 x 3000 px. They have no common camera, hence only their
pixels count. Distances between two wrists come from rendered images. Run `make readme` afterwards.
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro
from PIL import Image, ImageFilter
from tqdm import tqdm

import nvf_fast
from benchmarks.mediapipe_hands import (
    Hand,
    MediaPipe,
    MediaPipeError,
    Photograph,
    conditions,
    mediapipe_hand,
    network_hands,
    project,
    read_photographs,
)
from nvf_fast.data.draws import Stream
from nvf_fast.estimator import PoseEstimator
from nvf_fast.evaluation.finding import match_hands
from nvf_fast.synthetic.backgrounds import Backgrounds
from nvf_fast.synthetic.wide_images import WideImages

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
RENDERED = ("one_hand", "two_hands")
FIELD_OF_VIEW = 60.0  # degrees, across the width
# Of each composite: width and height in px, and for each photograph in it its number, its side and the px
# of its left upper corner. Sizes of the hands are 0.1 to 0.5 of the width.
LAYOUTS: tuple[tuple[tuple[int, int], tuple[tuple[int, int, tuple[int, int]], ...]], ...] = (
    ((640, 480), ()),
    ((640, 480), ((0, 300, (170, 90)),)),
    ((1280, 720), ((1, 256, (60, 300)),)),
    ((1280, 720), ((2, 400, (120, 200)), (3, 300, (800, 60)))),
    ((1920, 1080), ((4, 256, (1400, 500)),)),
    ((1920, 1080), ((5, 500, (200, 400)), (0, 360, (1200, 200)))),
    ((1920, 1080), ()),
    ((4000, 3000), ((3, 900, (2300, 1500)),)),
    ((4000, 3000), ((1, 1000, (300, 900)), (4, 700, (2500, 300)))),
    ((4000, 3000), ()),
)
PAIRS = 100  # rendered images for distances between wrists
SEED = 2026
COLUMNS = [
    *("image", "hands"),
    *("found", "false", "2D error %", "processor ms"),
    *("MediaPipe: found", "MediaPipe: false", "MediaPipe: 2D error %", "MediaPipe: processor ms"),
]


@dataclass(frozen=True)
class Compare:
    """Measure both methods.

    Attributes:
        photographs: folder of images with annotations.json.
        backgrounds: folder of panoramas.
        python: interpreter that can import MediaPipe.
        rounds: number of interleaved runs of each method on each image.
        pairs: number of rendered images for distances between wrists.
        rig: glTF file of a rigged right hand for them; the built-in hand when absent.
    """

    photographs: Path
    backgrounds: Path
    python: Path
    rounds: int = 5
    pairs: int = PAIRS
    rig: Path | None = None


class TrueHand(NamedTuple):
    """A hand's side, its joints (21, 2) px and its box (4,) px around them."""

    side: str
    joints_2d: np.ndarray
    box: np.ndarray

    @classmethod
    def of(cls, side: str, joints_2d: np.ndarray) -> TrueHand:
        return cls(side, joints_2d, np.concatenate([joints_2d.min(0), joints_2d.max(0)]))


class Scene(NamedTuple):
    """An image (H, W, 3) uint8 RGB, its intrinsics (3, 3) px, and its hands."""

    name: str
    image: np.ndarray
    intrinsics: np.ndarray
    hands: list[TrueHand]


class Counts(NamedTuple):
    """Hands found and false ones, and the 2D error of each found hand, relative to its box's longer side."""

    found: int
    false: int
    errors: list[float]


def rendered_scenes() -> list[Scene]:
    """The stored images."""
    scenes = []
    for name in RENDERED:
        truth = json.loads((HERE / "images" / f"{name}.json").read_text())
        image, intrinsics = np.array(Image.open(HERE / "images" / f"{name}.jpg")), np.array(truth["K"])
        hands = [
            TrueHand.of(hand["side"], project(np.array(hand["joints"]), intrinsics))
            for hand in truth["hands"]
        ]
        scenes.append(Scene(f"rendered, {size_name(image)}", image, intrinsics, hands))
    return scenes


def composite_scenes(photographs: list[Photograph], backgrounds: Backgrounds) -> list[Scene]:
    """Photographs with soft edges in views of the backgrounds, as `LAYOUTS` describes."""
    scenes = []
    for index, ((width, height), placed) in enumerate(LAYOUTS):
        focal = width / 2 / np.tan(np.radians(FIELD_OF_VIEW) / 2)
        stream = Stream(SEED, "wide composite", index)
        view = backgrounds.draw_view(stream, focal, (height, width))
        canvas, hands = Image.fromarray((255 * view).astype(np.uint8)), []
        for number, side, (left, top) in placed:
            photograph = photographs[number]
            pasted = Image.fromarray(photograph.image).resize((side, side), Image.Resampling.BICUBIC)
            canvas.paste(pasted, (left, top), _soft_mask(side))
            scale = side / photograph.image.shape[1]
            pixels = (photograph.joints_2d + 0.5) * scale - 0.5 + [left, top]
            hands.append(TrueHand.of(photograph.side, pixels))
        image = np.asarray(canvas)
        intrinsics = np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1.0]])
        scenes.append(Scene(f"composite, {size_name(image)}", image, intrinsics, hands))
    return scenes


def _soft_mask(side: int) -> Image.Image:
    """Opacity of a pasted photograph: its border fades over a sixteenth of its side."""
    fade = side // 16
    mask = Image.new("L", (side, side), 0)
    mask.paste(255, (fade, fade, side - fade, side - fade))
    return mask.filter(ImageFilter.BoxBlur(fade // 2))


def size_name(image: np.ndarray) -> str:
    height, width = image.shape[:2]
    return f"{width} x {height}"


def count_hands(scene: Scene, hands: list[Hand]) -> Counts:
    """Match predicted to true hands by their boxes."""
    matches = match_hands([hand.joints_2d for hand in hands], [hand.box for hand in scene.hands])
    errors = [
        float(
            np.linalg.norm(hand.joints_2d - true.joints_2d, axis=-1).mean()
            / (true.box[2:] - true.box[:2]).max()
        )
        for hand, match in zip(hands, matches, strict=True)
        if match is not None
        for true in [scene.hands[match]]
    ]
    return Counts(len(errors), matches.count(None), errors)


def wrist_distances(estimator: PoseEstimator, images: WideImages, count: int) -> dict[str, float]:
    """Errors in mm of the distance between the wrists of two rendered hands, where both are found.

    Returns:
        images and images with both found, the median true distance, and the median absolute and relative
        error.
    """
    true, errors = list[float](), list[float]()
    for index in tqdm(range(count), desc="pairs", disable=None):
        wide = images.draw(index, ["left", "right"])
        pose = estimator(wide.image, wide.intrinsics)
        matches = match_hands(pose.joints_2d, [hand.box for hand in wide.hands])
        rows = {match: row for row, match in enumerate(matches)}
        if len(wide.hands) != 2 or not {0, 1} <= rows.keys():
            continue
        distance = float(np.linalg.norm(wide.hands[0].joints[0] - wide.hands[1].joints[0]))
        predicted = float(np.linalg.norm(pose.joints[rows[0], 0] - pose.joints[rows[1], 0]))
        true.append(distance)
        errors.append(abs(predicted - distance))
    return {
        "images": count,
        "both found": len(true),
        "true distance mm": float(np.median(true)),
        "error mm": float(np.median(errors)),
        "error %": 100 * float(np.median(np.array(errors) / np.array(true))),
    }


def compare(options: Compare) -> dict[str, Any]:
    """Measure both methods and make the table.

    Raises:
        MediaPipeError: the interpreter cannot run the worker.
    """
    estimator = nvf_fast.load()
    scenes = rendered_scenes() + composite_scenes(
        read_photographs(options.photographs), Backgrounds(options.backgrounds)
    )
    rows: list[list[Any]] = []
    totals: dict[str, list[Counts]] = {"nvf_fast": [], "MediaPipe": []}
    with tempfile.TemporaryDirectory() as folder:
        photographs = [Photograph(scene.image, scene.intrinsics, np.empty(0), "") for scene in scenes]
        mediapipe = MediaPipe(options.python, photographs, Path(folder))
        for index, scene in enumerate(tqdm(scenes, desc="scenes", disable=None)):
            hands = {"nvf_fast": network_hands(estimator(scene.image, scene.intrinsics))}
            hands["MediaPipe"] = [
                mediapipe_hand(hand, scene.intrinsics) for hand in mediapipe(index)["hands"]
            ]
            times: dict[str, list[float]] = {"nvf_fast": [], "MediaPipe": []}
            for _ in range(options.rounds):
                times["MediaPipe"].append(mediapipe(index)["find"])
                start = time.process_time()
                estimator(scene.image, scene.intrinsics)
                times["nvf_fast"].append(1000 * (time.process_time() - start))
            row: list[Any] = [scene.name, len(scene.hands)]
            for name, found in hands.items():
                counts = count_hands(scene, found)
                totals[name].append(counts)
                row += [*_summary([counts]), float(np.median(times[name]))]
            rows.append(row)
        mediapipe.close()
    rows.append(["all", sum(len(scene.hands) for scene in scenes)])
    for every in totals.values():
        rows[-1] += [*_summary(every), None]
    images = WideImages(SEED, rig=options.rig, backgrounds=options.backgrounds, sizes=(80.0, 300.0))
    context = conditions(mediapipe, options.rounds)
    pairs = wrist_distances(estimator, images, options.pairs)
    return {
        "wide_images": {"columns": COLUMNS, "rows": rows, "context": context},
        "wrist_distance": {
            "columns": list(pairs),
            "rows": [list(pairs.values())],
            "context": {key: context[key] for key in ("weights", "torch", "device")},
        },
    }


def _summary(counts: list[Counts]) -> list[Any]:
    errors = [error for each in counts for error in each.errors]
    mean = 100 * float(np.mean(errors)) if errors else None
    return [sum(each.found for each in counts), sum(each.false for each in counts), mean]


def main() -> None:
    try:
        tables = compare(tyro.cli(Compare, description=__doc__))
    except MediaPipeError as error:
        print(f"skipped: {error}")
        return
    for name, table in tables.items():
        (RESULTS / f"{name}.json").write_text(json.dumps(table, indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
