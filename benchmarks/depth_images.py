"""Camera-space error of rendered hands with and without a depth image, and errors of hand scales.

    python -m benchmarks.depth_images [--people N]

People of different sizes, a third of them with an object in the hand, are rendered with their depth: whole
mm, with noise, gaps and a wall behind the hand. Writes benchmarks/results/depth_images.json and
depth_hand_scale.json for `make readme`.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import nvf_fast
from benchmarks.ceilings import RESULTS
from nvf_fast.data.draws import Draws, Stream
from nvf_fast.depth import estimate_hand_scale
from nvf_fast.evaluation.report_files import surroundings
from nvf_fast.joint_definitions import UNIT_LENGTH_MM, UNIT_SCALE_MM, bone_lengths
from nvf_fast.pose import HandPose
from nvf_fast.synthetic.backgrounds import Backgrounds
from nvf_fast.synthetic.objects import FIRST_OBJECT, held_solid
from nvf_fast.synthetic.placement import UNIFORM, draw_places
from nvf_fast.synthetic.posed_hands import draw_shapes, posed_vertices, with_forearm
from nvf_fast.synthetic.rasteriser import rasterise
from nvf_fast.synthetic.reference_images import SIZE_SPREAD, SLEEVES
from nvf_fast.synthetic.renderer import HandRenderer, SceneChances
from nvf_fast.synthetic.rig import built_in_rig
from nvf_fast.synthetic.scene import Scene

SEED, SIZE, FOCAL = 9_000_031, 448, 960.0  # px
IMAGES = 10  # of each person
HELD = 1 / 3
NOISE, GAPS = 0.003, 0.1  # of the depth; ratio of the pixels
WALL_MM = 400.0  # behind the farthest surface
WITHOUT, KNOWN, WITH = "no depth image, mean hand scale", "true hand scale", "`depth=`"
DEPTH, DISTANCE, TRUE = "a depth image", "the wrist's distance", "truth"
POSE_COLUMNS = [
    *("given", "hands", "camera-space error (mm)", "median (mm)", "wrist's distance (mm)"),
    "relative to the wrist (mm)",
]
SCALE_COLUMNS = ["from", "images", "mean error (%)", "median error (%)", "error of the mean hand (%)"]


def rendered(people: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Images (S, S, 3) uint8, depths (S, S) uint16 mm and joints (21, 3) mm, `IMAGES` of each person."""
    count, rig, found = people * IMAGES, built_in_rig(), []
    draws, of_people = (
        Draws(SEED, name, range(each)) for name, each in (("hand", count), ("person", people))
    )
    shapes, person = draw_shapes(rig, draws), np.repeat(np.arange(people), IMAGES)
    theirs = draw_shapes(rig, of_people)
    shapes = replace(
        shapes, **{name: getattr(theirs, name)[person] for name in ("stretch", "girth", "breadth")}
    )
    size = (1 + SIZE_SPREAD * of_people.normal()).clamp(0.8, 1.22).numpy()[person, None, None]
    skins, every_joints = (size * points for points in posed_vertices(rig, shapes))
    rotations, offsets, _ = draw_places(torch.from_numpy(every_joints), draws, UNIFORM)
    renderer = HandRenderer(rig, (), Backgrounds(), SceneChances(0, 0, 0), SIZE, turnable=False)
    for row in range(count):
        stream = Stream(SEED, "scene", row)
        hand = with_forearm(rig, skins[row], every_joints[row], stream, SLEEVES)
        hand = hand.placed(rotations[row].numpy(), offsets[row].numpy())
        held = held_solid(stream, hand) if stream.chance(HELD) else None
        objects = [] if held is None else [(held, FIRST_OBJECT)]
        canvas = renderer.render(stream, [hand], [False], FOCAL, objects)
        image = renderer.compose(stream, canvas, 0.0, 1.0, False)
        scene = Scene.of(rig, [hand], [False], objects)
        depth = rasterise(scene.vertices, scene.faces, FOCAL, SIZE)[2]
        depth[np.isinf(depth)] = depth[np.isfinite(depth)].max() + WALL_MM
        random = np.random.default_rng(row)
        depth *= 1 + NOISE * random.standard_normal(depth.shape)
        depth[random.random(depth.shape) < GAPS] = 0
        found.append((image, np.rint(depth).astype(np.uint16), hand.joints))
    return found


def pose_row(name: str, poses: Sequence[HandPose], truth: np.ndarray) -> list[Any]:
    """Make a row of `POSE_COLUMNS` of poses of hands with joints (N, 21, 3) mm."""
    joints = np.stack([pose.joints for pose in poses])
    errors = np.linalg.norm(joints - truth, axis=-1).mean(1)
    wrists = np.linalg.norm(joints[:, 0], axis=-1) - np.linalg.norm(truth[:, 0], axis=-1)
    moved = joints - joints[:, :1] - truth + truth[:, :1]
    relative = np.linalg.norm(moved, axis=-1).mean()
    return [
        name,
        len(poses),
        *map(float, (errors.mean(), np.median(errors), np.abs(wrists).mean(), relative)),
    ]


def scale_rows(name: str, estimates: np.ndarray, true: np.ndarray) -> list[list[Any]]:
    """Make two rows of `SCALE_COLUMNS`.

    Args:
        name: of the method.
        estimates: (P, `IMAGES`) mm from each image; NaN without an estimate.
        true: (P,) mm of each person.
    """
    single = 100 * np.abs(estimates / true[:, None] - 1)
    several = 100 * np.abs(np.nanmedian(estimates, axis=1) / true - 1)
    unknown = float(100 * np.abs(UNIT_SCALE_MM / true - 1).mean())
    return [
        [name, "one", float(np.nanmean(single)), float(np.nanmedian(single)), unknown],
        [name, f"median of {IMAGES}", float(several.mean()), float(np.median(several)), unknown],
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--people", type=int, default=12, help=f"people, of {IMAGES} images each")
    people = parser.parse_args().people
    K = np.array([[FOCAL, 0, SIZE / 2], [0, FOCAL, SIZE / 2], [0, 0, 1]])
    estimator = nvf_fast.load(device="cpu")
    poses: dict[str, list[HandPose]] = {name: [] for name in (WITHOUT, KNOWN, WITH)}
    shape = people, IMAGES
    scales = {DEPTH: np.full(shape, np.nan), DISTANCE: np.full(shape, np.nan), TRUE: np.full(shape, np.nan)}
    truth: list[np.ndarray] = []
    unmeasured = 0
    for index, (image, depth, joints) in enumerate(tqdm(rendered(people), unit="hand")):
        place, pixels = divmod(index, IMAGES), joints @ K.T
        pixels = pixels[:, :2] / pixels[:, 2:]
        box = np.concatenate([pixels.min(0), pixels.max(0)])
        scale = float(UNIT_SCALE_MM * bone_lengths(joints).sum() / UNIT_LENGTH_MM)
        scales[TRUE][place] = scale
        pose = estimator(image, K, box=box, side="right")
        if not pose.valid:
            continue
        truth.append(joints)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the pose then stays as it was, and counts so
            measured = estimator(image, K, box=box, side="right", depth=depth)
        for name, each in (
            (WITHOUT, pose),
            (KNOWN, estimator(image, K, scale, box, "right")),
            (WITH, measured),
        ):
            poses[name].append(each)
        if measured.hand_scale == pose.hand_scale:
            unmeasured += 1
        else:
            scales[DEPTH][place] = estimate_hand_scale(pose, depth=depth, K=K).mm
        scales[DISTANCE][place] = estimate_hand_scale(pose, distance_mm=np.linalg.norm(joints[0])).mm
    context = {name: surroundings()[name] for name in ("commit", "torch")} | {
        "hands": f"{people} people, {IMAGES} images each, any orientation, 350 to 1000 mm away, a third with "
        "an object; box and side given",
        "depth": f"noise of {100 * NOISE:g} %, {100 * GAPS:g} % gaps; {unmeasured} poses stayed as they were",
    }
    write(
        "depth_images",
        POSE_COLUMNS,
        [pose_row(name, poses[name], np.stack(truth)) for name in poses],
        context,
    )
    lengths = scales[TRUE].mean(1)
    rows = [row for name in (DEPTH, DISTANCE) for row in scale_rows(name, scales[name], lengths)]
    write("depth_hand_scale", SCALE_COLUMNS, rows, context | {"true scale": "by the lengths of all bones"})


def write(name: str, columns: Sequence[str], rows: list[list[Any]], context: dict[str, Any]) -> None:
    """Write a table for `benchmarks/readme.py`."""
    table = {"columns": columns, "rows": rows, "context": context}
    (RESULTS / f"{name}.json").write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
