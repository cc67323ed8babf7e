"""Run every kernel at small awkward sizes under NVIDIA's compute-sanitizer (part of the CUDA toolkit).

    python tests/sanitize.py                      memcheck, racecheck and synccheck of all operations
    python tests/sanitize.py --tool memcheck --operation cast_votes
    TRITON_INTERPRET=1 python tests/sanitize.py --inside    the operations alone, on a CPU

Exits with 1 if a tool reports an error or a run fails, with 2 without a device or compute-sanitizer.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import trimesh

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

TOOLS = ("memcheck", "racecheck", "synccheck")
TIME_LIMIT = 900  # seconds per run
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def launched_kernels(operation: str) -> dict[str, str]:
    """Return the kernels that files of kernels/OPERATION/ launch, as name[grid](...), and those files."""
    return {
        node.func.value.id: path.stem
        for path in sorted((ROOT / "kernels" / operation).glob("*.py"))
        if "@triton.jit" in path.read_text()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript)
        if isinstance(node.func.value, ast.Name)
    }


class Launches:
    """A kernel that counts its launches."""

    def __init__(self, kernel: Any) -> None:
        self.kernel, self.count = kernel, 0

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., object]:
        self.count += 1
        return self.kernel[grid]


def command(tool: str, operation: str) -> list[str]:
    """Return the command line that runs one operation under the tool, which checks our kernels only."""
    # A faulty kernel ends, and later ones still run. Compilers run in other processes and are not checked.
    options = ["--tool", tool, "--error-exitcode", "9", "--target-processes", "application-only"]
    options += ["--launch-timeout", "300", "--destroy-on-device-error", "kernel"]
    options += ["--show-backtrace", "device", "--print-limit", "5"]
    if tool == "memcheck":
        options += ["--report-api-errors", "no"]  # PyTorch tries calls that may fail
    for kernel in launched_kernels(operation):
        options += ["--kernel-name", f"kernel_substring={kernel}"]
    script = [sys.executable, str(Path(__file__).resolve()), "--inside", "--operation", operation]
    return ["compute-sanitizer", *options, *script]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tool", choices=TOOLS, action="append", help="else all; may be repeated")
    parser.add_argument("--operation", choices=OPERATIONS, action="append", help="else all; may be repeated")
    parser.add_argument("--inside", action="store_true", help="run the operations, without a tool")
    options = parser.parse_args(arguments)
    operations = options.operation or list(OPERATIONS)
    if options.inside:
        return inside(operations)
    if not shutil.which("compute-sanitizer"):
        print("sanitize: compute-sanitizer is not on the PATH; it comes with CUDA's toolkit", file=sys.stderr)
        return 2
    if not torch.cuda.is_available():
        print("sanitize: no CUDA device", file=sys.stderr)
        return 2
    clean = [run_tool(tool, operation) for tool in options.tool or TOOLS for operation in operations]
    return int(not all(clean))


def run_tool(tool: str, operation: str) -> bool:
    """Run a tool, print a line and, unless it is clean, the end of its output."""
    # Without PyTorch's cache every tensor is an allocation with bounds known to memcheck.
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    try:
        run = subprocess.run(
            command(tool, operation),
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=TIME_LIMIT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        print(f"{tool} {operation}: failed, more than {TIME_LIMIT} s")
        return False
    # A run without a summary has not been checked, whatever its exit code.
    summary = re.search(r"SUMMARY: (0 errors|.*\(0 errors)", run.stdout)
    clean = run.returncode == 0 and f"{operation}: finished" in run.stdout and summary is not None
    print(
        f"{tool} {operation}: {'clean' if clean else f'failed with exit code {run.returncode}'}", flush=True
    )
    if not clean:
        print(*run.stdout.splitlines()[-60:], sep="\n")
    return clean


def inside(operations: Sequence[str]) -> int:
    """Run the operations and print their kernel launches; each must launch all of its kernels.

    Without a GPU, the interpreter's accesses outside of a kernel's tensors are errors.
    """
    if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        print("sanitize: without a CUDA device --inside needs TRITON_INTERPRET=1", file=sys.stderr)
        return 2
    warnings.filterwarnings("ignore", category=RuntimeWarning)  # the interpreter divides 0 / 0
    from tests.kernel_cases import accesses_checked

    torch.manual_seed(0)
    never = []
    for name in operations:
        kernels = {}
        for kernel, file in launched_kernels(name).items():
            module = import_module(f"nvf_fast.kernels.{name}.{file}")
            kernels[kernel] = Launches(getattr(module, kernel))
            setattr(module, kernel, kernels[kernel])
        with torch.no_grad(), nullcontext() if torch.cuda.is_available() else accesses_checked():
            OPERATIONS[name]()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        counted = ", ".join(f"{kernel} {launches.count}" for kernel, launches in kernels.items())
        print(f"{name}: finished; {counted}", flush=True)
        never += [kernel for kernel, launches in kernels.items() if launches.count == 0]
    if never:
        print(f"sanitize: never launched: {', '.join(never)}", file=sys.stderr)
    return int(bool(never))


def run_query_field() -> None:
    from nvf_fast.kernels.query_field import resident
    from nvf_fast.kernels.query_field import triton as kernel
    from tests.kernel_cases import DEFAULT_NETWORK, FIELD_CASES, field_inputs
    from tests.test_query_field import DEVICE, SHORT

    for dtype in DTYPES:
        deep = SHORT._replace(hidden=(40, 48, 32))
        for case in (*list(FIELD_CASES.values())[:2], deep, deep._replace(hand_scale=False, centred=True)):
            inputs = field_inputs(case, dtype, DEVICE)
            map_size = inputs.features.shape[2:]
            layers = kernel.pack_layers(inputs.weights, inputs.biases, case.channels, dtype)
            # initcheck may miss writes of a library's matrix product, but not those of a copy.
            maps = kernel.project_maps(inputs.features, inputs.hand_scale, layers).clone()
            for points in (inputs.points, inputs.points[0]):
                tiles = kernel.locate(
                    points, inputs.intrinsics, inputs.image_size, map_size, layers, inputs.centres
                )
                kernel.evaluate(maps, tiles, layers)
                samples = kernel.sample(maps, tiles, layers)
                voters = torch.arange(-1, min(9, case.count), device=DEVICE).expand(case.batch, -1)
                kernel.votes(samples, voters, layers)
    one_layer = field_inputs(SHORT._replace(batch=1, hidden=(32,)), torch.float16, DEVICE)
    for tiling in kernel.device_tilings(torch.device(DEVICE), torch.float16):
        layers = kernel.pack_layers(
            one_layer.weights, one_layer.biases, SHORT.channels, torch.float16, tiling
        )
        tiles = kernel.locate(one_layer.points, one_layer.intrinsics, 224, SHORT.map_size, layers)
        kernel.sample(kernel.project_maps(one_layer.features, one_layer.hand_scale, layers), tiles, layers)
    inputs = field_inputs(DEFAULT_NETWORK._replace(batch=1, count=9), torch.float16, DEVICE)
    if resident.supports(inputs.weights, 64, torch.float16, torch.device(DEVICE)):
        vectors = [bias[0] for bias in inputs.biases]
        packed = resident.pack_layers(inputs.weights, vectors, 64, torch.float16, 5.0)
        places = resident.locate(
            inputs.points, inputs.intrinsics, inputs.image_size, (32, 32), packed, inputs.centres
        )
        laid_out = resident.project_maps(inputs.features, None, packed, torch.cat(inputs.biases, 1))
        resident.votes(resident.sample(laid_out, places, packed), voters[:1], packed)


def run_select_voters() -> None:
    from nvf_fast.kernels.select_voters.triton import compact, select_voters
    from tests.test_select_voters import DEVICE

    for count in (1, 63, 2049, 4097):  # the last in two launches
        sdf = 10 * torch.randn(4, count, device=DEVICE)
        sdf[1:3] = torch.tensor([[3.0], [1.0]], device=DEVICE)  # none and all
        for capacity in (1, 100, 6000):
            select_voters(sdf, 2.0, capacity)
            compact(sdf < 2.0, capacity)


def run_cast_votes() -> None:
    from nvf_fast.kernels.cast_votes.triton import cast_votes
    from tests.test_cast_votes import voting

    for count, ratio in ((1, 2.0), (63, 0.0), (63, 0.3), (1025, 2.0)):
        points, votes, counts = voting(count, ratio, joints=5)
        cast_votes(points, votes, counts)
        cast_votes(points, votes, counts, torch.arange(count, device=points.device).expand(len(counts), -1))


def run_group_norm_relu() -> None:
    from nvf_fast.kernels.group_norm_relu.triton import group_norm_relu
    from tests.test_group_norm_relu import CASES, Case, inputs

    for dtype in DTYPES:
        for case in (*CASES.values(), Case((1, 28, 65, 67), 7)):  # the last one is not small
            group_norm_relu(*inputs(case, dtype))


def run_network_views() -> None:
    from nvf_fast.kernels.network_views.triton import network_views
    from tests.test_network_views import PLANS, SIZE, batch

    for dtype, channels in zip(DTYPES, (3, 1, 5), strict=True):
        rows, pixels, _ = batch(list(PLANS), channels)
        network_views(rows, [pixels], SIZE, channels, True, dtype)


def run_join_branches() -> None:
    from nvf_fast.kernels.group_norm_relu.triton import group_norm_relu
    from nvf_fast.kernels.join_branches.triton import join_branches
    from tests.test_join_branches import CASES, inputs

    for dtype in DTYPES:
        for case in CASES.values():
            y, moments = join_branches(**inputs(case, dtype))
            if case.groups:
                parameters = torch.ones(2, y.shape[1], dtype=dtype, device=y.device)
                group_norm_relu(y, *parameters, case.groups, moments=moments)


def run_pack_poses() -> None:
    from nvf_fast.kernels.pack_poses.triton import pack_poses
    from tests.test_pack_poses import arguments

    for batch, joints in ((1, 21), (7, 5), (2, 64)):
        pack_poses(*arguments(batch, joints))


def run_merge_maps() -> None:
    from nvf_fast.kernels.merge_maps.triton import merge_maps
    from tests.test_merge_maps import CASES, arguments

    for dtype in DTYPES:
        for case in CASES.values():
            merge_maps(*arguments(case, dtype))


def run_pool_maps() -> None:
    from nvf_fast.kernels.pool_maps.triton import pool_maps
    from tests.test_pool_maps import CASES, arguments

    for dtype in DTYPES:
        for case in CASES.values():
            pool_maps(*arguments(case, dtype))


def run_place_hands() -> None:
    from nvf_fast.kernels.place_hands.triton import place_hands
    from tests.test_place_hands import CASES, arguments

    for dtype in DTYPES:
        for case in CASES.values():
            place_hands(**arguments(case, dtype))


def run_mesh_distance() -> None:
    from nvf_fast.kernels.mesh_distance.triton import mesh_distance
    from tests.kernel_cases import mesh_tensors
    from tests.test_mesh_distance import DEVICE, TETRAHEDRON

    for mesh in (TETRAHEDRON, trimesh.creation.torus(40, 15, 6, 5)):
        vertices, faces = mesh_tensors(mesh, device=DEVICE)
        for count in (1, 17, 63):
            mesh_distance(vertices.repeat(2, 1, 1), faces, 40 * torch.randn(2, count, 3, device=DEVICE))


def run_ray_mesh() -> None:
    from nvf_fast.kernels.ray_mesh.triton import ray_mesh
    from tests.kernel_cases import mesh_tensors
    from tests.test_ray_mesh import DEVICE, aimed

    mesh = trimesh.creation.torus(40, 15, 6, 5)
    vertices, faces = mesh_tensors(mesh, device=DEVICE)
    for count in (1, 17, 63):
        rays = [a.view(2, count, 3) for a in aimed(mesh, 2 * count, 0)]
        ray_mesh(vertices.repeat(2, 1, 1), faces, *rays)


OPERATIONS: dict[str, Callable[[], None]] = {
    "query_field": run_query_field,
    "select_voters": run_select_voters,
    "cast_votes": run_cast_votes,
    "group_norm_relu": run_group_norm_relu,
    "join_branches": run_join_branches,
    "network_views": run_network_views,
    "pack_poses": run_pack_poses,
    "merge_maps": run_merge_maps,
    "pool_maps": run_pool_maps,
    "place_hands": run_place_hands,
    "mesh_distance": run_mesh_distance,
    "ray_mesh": run_ray_mesh,
}


if __name__ == "__main__":
    sys.exit(main())
