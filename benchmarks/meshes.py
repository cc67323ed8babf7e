"""Errors of meshes against the surfaces of rendered hands.

    python -m benchmarks.meshes [--rig FILE]

Writes benchmarks/results/meshes.json for `make readme`. Images and surfaces are those of the built-in hand,
with seeds that no training uses; FILE is a further rigged hand (glTF), compared without images.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import trimesh
from tqdm import tqdm
from trimesh.registration import procrustes

import nvf_fast
from nvf_fast import ops
from nvf_fast.data.draws import Draws
from nvf_fast.data.sample import HandSample
from nvf_fast.estimator import PoseEstimator
from nvf_fast.evaluation.report_files import surroundings
from nvf_fast.hand_surface import hand_mesh
from nvf_fast.surface import field_mesh
from nvf_fast.synthetic.dataset import SyntheticConfig, SyntheticHands
from nvf_fast.synthetic.placement import UNIFORM
from nvf_fast.synthetic.posed_hands import draw_unit_hands
from nvf_fast.synthetic.rig import load_rig

RESULT = Path(__file__).resolve().parent / "results" / "meshes.json"
SEED = 9_000_001
SAMPLES = 2000  # points on each surface
STEP_MM, FIELD_STEP_MM, FIELD_MARGIN_MM = 3.0, 5.0, 80.0
COLUMNS = [
    *("mesh", "hands", "watertight", "mesh to surface (mm)", "surface to mesh (mm)"),
    *("volume ratio, median", "10th to 90th percentile"),
]
TRUE, OTHER = "about the true joints", "about the true joints of another rig"
ALIGNED, FIELD_ALIGNED = "about the predicted joints, aligned", "zero level of the field, aligned"
IN_CAMERA = "about the predicted joints, in the camera's frame"


class Difference(NamedTuple):
    """Of a mesh from the true surface."""

    watertight: bool
    to_surface_mm: float  # mean unsigned distance of points on the mesh to the surface
    to_mesh_mm: float  # the other way
    volume_ratio: float


def difference(mesh: trimesh.Trimesh, surface: trimesh.Trimesh) -> Difference:
    """Compare a mesh with a closed surface, both in mm, at points drawn by area."""

    def mean(points_of: trimesh.Trimesh, other: trimesh.Trimesh) -> float:
        points = torch.from_numpy(np.array(points_of.sample(SAMPLES, seed=SEED))).float()[None]
        vertices = torch.from_numpy(np.array(other.vertices)).float()[None]
        distances = ops.mesh_distance(vertices, torch.from_numpy(np.array(other.faces)), points)
        return float(distances.abs().mean())

    ratio = float(mesh.volume / surface.volume)
    return Difference(mesh.is_watertight, mean(mesh, surface), mean(surface, mesh), ratio)


def compare(estimator: PoseEstimator, sample: HandSample) -> dict[str, Difference]:
    """Compare the meshes of one sample, without those of an invalid pose or an empty field."""
    assert sample.surface is not None and sample.joints is not None
    truth = sample.joints.double().numpy()
    surface = trimesh.Trimesh(sample.surface.vertices[0].numpy(), sample.surface.faces.numpy(), process=False)
    found = {TRUE: difference(hand_mesh(truth, STEP_MM), surface)}
    image, K, scale = sample.image, sample.intrinsics, sample.hand_scale
    pose = estimator(image, K, scale, sample.box, sample.side)
    if not pose.valid:
        return found
    mesh = pose.mesh(STEP_MM)
    found[IN_CAMERA] = difference(mesh, surface)
    align, *_ = procrustes(pose.joints.astype(np.float64), truth, reflection=False)
    found[ALIGNED] = difference(mesh.apply_transform(align), surface)
    try:
        field = field_mesh(estimator, image, K, pose, scale, step_mm=FIELD_STEP_MM, margin_mm=FIELD_MARGIN_MM)
    except ValueError:  # the field has no surface
        return found
    return found | {FIELD_ALIGNED: difference(field.apply_transform(align), surface)}


def other_rig(path: Path, count: int) -> list[Difference]:
    """Compare meshes about the true joints of another rigged hand in its random shapes and gestures."""
    rig = load_rig(path)
    found = []
    for hand in draw_unit_hands(rig, Draws(SEED, "posed hand", range(count)), sleeves=0.0):
        skin = hand.vertices[: len(rig.vertices)]
        surface = trimesh.Trimesh(skin, rig.closed_faces, process=False)
        found.append(difference(hand_mesh(hand.joints, STEP_MM), surface))
    return found


def make_row(name: str, found: Sequence[Difference]) -> list[Any]:
    """Make a row of `COLUMNS`."""
    watertight, to_surface, to_mesh, ratios = np.array(found).T
    low, middle, high = np.percentile(ratios, [10, 50, 90])
    return [
        *(name, len(found), int(watertight.sum()), float(to_surface.mean()), float(to_mesh.mean())),
        *(float(middle), f"{low:.2f} to {high:.2f}"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=60, help="hands")
    parser.add_argument("--rig", type=Path, help="a further rigged right hand (.glb or .gltf)")
    options = parser.parse_args()
    data = SyntheticHands(SyntheticConfig(options.count, SEED, distribution=UNIFORM))
    estimator = nvf_fast.load(device="cpu")
    every: dict[str, list[Difference]] = {name: [] for name in (TRUE, ALIGNED, IN_CAMERA, FIELD_ALIGNED)}
    for index in tqdm(range(options.count), unit="hand"):
        for name, found in compare(estimator, data[index]).items():
            every[name].append(found)
    if options.rig is not None:
        every[OTHER] = other_rig(options.rig, options.count)
    context = {name: surroundings()[name] for name in ("commit", "torch")} | {
        "hands": "any orientation, the box and the hand scale given",
        "distances": f"means of {SAMPLES} points a surface",
    }
    rows = [make_row(name, found) for name, found in every.items()]
    RESULT.write_text(json.dumps({"columns": COLUMNS, "rows": rows, "context": context}, indent=1) + "\n")


if __name__ == "__main__":
    main()
