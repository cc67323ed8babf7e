"""Static costs of every kernel for several architectures, from its compilation, without a GPU.

    python benchmarks/static_budget.py             compare with static_budget.json, exit 1 on any fault
    python benchmarks/static_budget.py --update    the same, and rewrite static_budget.json

static_budget.json records the sources and the Triton that it was made from. Of a kernel with the same source
and Triton one variant is compiled, of the others all.

Occupancy is the ratio of a multiprocessor's warps that can run at once, given registers, shared memory and
the kernel's own warps. `benchmarks/floors.py` prints the FLOPs and bytes.

Faults on any Triton are a kernel that does not compile or compiles to a trap, more than 16 bytes of spills,
shared memory beyond the target's, a missing matrix instruction, warpgroup products serialised by ptxas, a
matrix product that may read shared memory before the fence that follows asynchronous copies to it, more than
600 instructions before the first matrix instruction of `query_field`'s layers on sm_90. On the Triton of the
record, registers or shared memory more than SLACK times the committed ones are faults too.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import hashlib
import io
import itertools
import json
import os
import re
import sys
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime import JITFunction

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from nvf_fast.kernels.cast_votes import triton as cast_votes
from nvf_fast.kernels.group_norm_relu import triton as group_norm_relu
from nvf_fast.kernels.join_branches import triton as join_branches
from nvf_fast.kernels.merge_maps import triton as merge_maps
from nvf_fast.kernels.mesh_distance import triton as mesh_distance
from nvf_fast.kernels.network_views import triton as network_views
from nvf_fast.kernels.pack_poses import triton as pack_poses
from nvf_fast.kernels.place_hands import triton as place_hands
from nvf_fast.kernels.pool_maps import triton as pool_maps
from nvf_fast.kernels.query_field import resident
from nvf_fast.kernels.query_field import triton as query_field
from nvf_fast.kernels.ray_mesh import triton as ray_mesh
from nvf_fast.kernels.select_voters import triton as select_voters

BUDGET = Path(__file__).with_suffix(".json")
TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
SHARED_LIMIT = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024, "gfx942": 64 * 1024}
# Of a multiprocessor: warps, 32-bit registers (a SIMD's for AMD's wavefronts, times 4), shared memory.
RESIDENT = {
    "sm_80": (64, 65536, 164 * 1024),
    "sm_90": (64, 65536, 228 * 1024),
    "sm_100": (64, 65536, 228 * 1024),
    "gfx942": (32, 4 * 512 * 64, 64 * 1024),
}
SPILL_LIMIT = 16
# With Triton before 3.9: addresses of operands, read once a tile. On an H200 the kernel took 16.7 us so.
OLDER_SPILL_LIMITS = {"evaluate_resident": 160}
SLACK = 1.25
# Names of the matrix unit's instructions in PTX or AMD assembly; NVIDIA has none for float32.
MATRIX = {"sm_80": "mma.sync", "sm_90": "wgmma.mma_async", "sm_100": "tcgen05.mma", "gfx942": "v_mfma"}
# Instructions, as in the machine code, of a thread before the products of `query_field`'s layers may begin.
PROLOGUE_LIMIT = 600
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


class Variant(NamedTuple):
    """One kernel with its compile-time choices, for one target."""

    name: str
    target: str
    kernel: JITFunction
    pointers: dict[str, str]  # argument -> element type; other pointers are float32
    constants: Mapping[str, object]
    warps: int
    matrix: bool
    floats: tuple[str, ...] = ()  # scalar arguments that are float32; the others are int32


class Cost(NamedTuple):
    """Costs of a compiled kernel: per thread, bytes per thread, bytes per program, instructions listed."""

    registers: int
    spills: int
    shared: int
    matrix: int
    remarks: tuple[str, ...] = ()
    prologue: int = 0  # instructions before the first one of the matrix unit, on sm_90


def variants() -> list[Variant]:
    """Every kernel for every target."""
    found = []
    for target, triton_target in TARGETS.items():
        for dtype_name, dtype in DTYPES.items():
            space = query_field.tilings(dtype, triton_target.backend, triton_target.arch)
            # A tiling that fits in float16 fits in bfloat16 too, for which only the untuned one is compiled.
            for tiling in space[:1] if dtype == torch.bfloat16 else space:
                found += _layers(target, dtype_name, tiling)
                if dtype != torch.bfloat16:
                    found += _centred_layers(target, dtype_name, tiling)
            if dtype != torch.bfloat16:
                for points in sorted({tiling.points for tiling in space}):
                    found += [_make_tiles(target, points, centred) for centred in (False, True)]
        found.append(
            Variant(
                "locate_points",
                target,
                query_field.locate_points,
                {"keys_ptr": "i32"},
                {"BLOCK": query_field._BLOCK},
                4,
                False,
            )
        )
        for centred in (False, True):
            constants = {"CENTRED": centred, "BLOCK": query_field._BLOCK}
            name = f"store_geometry{' centred' if centred else ''}"
            kernel = query_field.store_geometry
            found.append(Variant(name, target, kernel, {"order_ptr": "i64"}, constants, 4, False))
        for kernel in (select_voters.count_marked, select_voters.write_indices, select_voters.select_rows):
            for threshold in (True, False):
                pointers = {"block_counts_ptr": "i32", "block_ends_ptr": "i32", "indices_ptr": "i64"}
                pointers |= {"counts_ptr": "i32", "overflow_ptr": "u8"}
                pointers |= {} if threshold else {"values_ptr": "u8"}
                constants = {"THRESHOLD": threshold, "BLOCK": select_voters._BLOCK}
                name = f"{kernel.__name__}{' near' if threshold else ''}"
                found.append(Variant(name, target, kernel, pointers, constants, 4, False, ("surface_mm",)))
        constants = {"BLOCK": cast_votes._BLOCK, "DIGIT_BITS": cast_votes._DIGIT_BITS}
        for indexed in (False, True):
            pointers = {"counts_ptr": "i32", "indices_ptr": "i64" if indexed else "i32"}
            kernel, name = cast_votes.vote, f"vote{' indexed' if indexed else ''}"
            flags = constants | {"INDEXED": indexed}
            found.append(
                Variant(name, target, kernel, pointers, flags, cast_votes._WARPS, False, ("ball_mm",))
            )
        constants = {"POINTS": mesh_distance._POINTS, "FACES": mesh_distance._FACES}
        kernel, warps = mesh_distance.measure_distance, mesh_distance._WARPS
        found.append(Variant(kernel.__name__, target, kernel, {}, constants, warps, False))
        for dtype_name in ("fp16", "fp32"):
            pointers = {"rows_ptr": "fp64", "pixels_ptr": "u8", "views_ptr": dtype_name}
            constants = {"SIZE": 128, "CHANNELS": 3, "PADDED": 4}
            constants |= {"ROW": network_views.ROW, "BLOCK": network_views._BLOCK}
            kernel, name = network_views.sample_views, f"sample_views {dtype_name}"
            found.append(Variant(name, target, kernel, pointers, constants, network_views._WARPS, False))
        pointers = {"face_ptr": "i64"}
        constants = {"RAYS": ray_mesh._RAYS, "FACES": ray_mesh._FACES}
        kernel, warps = ray_mesh.find_hits, ray_mesh._WARPS
        found.append(Variant(kernel.__name__, target, kernel, pointers, constants, warps, False))
        # The released network's widest norm, and the widest of the preset small that needs padding.
        for channels, groups, dtype_name in ((256, 32, "fp16"), (256, 32, "fp32"), (208, 8, "fp32")):
            pointers = dict.fromkeys(("x_ptr", "y_ptr", "weight_ptr", "bias_ptr"), dtype_name)
            constants = group_norm_relu.tiling(channels, groups)
            warps = group_norm_relu._WARPS
            for kernel in (group_norm_relu.measure_blocks, group_norm_relu.normalise_blocks):
                name = f"{kernel.__name__} {channels} {dtype_name}"
                found.append(Variant(name, target, kernel, pointers, constants, warps, False, ("eps",)))
            # The widest block, of which alone the upsampled map is added.
            names = ("x_ptr", "first_ptr", "second_ptr", "third_ptr", "bias_ptr", "lower_ptr", "y_ptr")
            pointers = dict.fromkeys((*names, "upsampling_ptr"), dtype_name)
            measured = channels == 256  # the other one is that of small maps
            constants = group_norm_relu.tiling(channels, groups if measured else 1)
            parts = {"FIRST": channels // 2, "SECOND": channels // 4, "BIASED": True, "MEASURED": measured}
            for upsampled in (False,) if target.startswith("gfx") else (False, True):
                kernel, flags = join_branches.join_blocks, {"UPSAMPLED": upsampled}
                name = f"join_blocks {'upsampled ' if upsampled else ''}{channels} {dtype_name}"
                warps = join_branches._UPSAMPLING_WARPS if upsampled else join_branches._WARPS
                found.append(Variant(name, target, kernel, pointers, constants | parts | flags, warps, False))
        # Its small maps, one image and many.
        for batch, channels, side, dtype_name in (
            (1, 256, 56, "fp16"),
            (1, 128, 56, "fp32"),
            (1, 64, 28, "fp16"),
            (64, 64, 28, "fp16"),
        ):
            element_size = DTYPES[dtype_name].itemsize
            small = group_norm_relu.small_tiling(batch, channels, 32, side**2, element_size)
            assert small is not None
            kernel, warps = group_norm_relu.normalise_groups, group_norm_relu.small_warps(small)
            pointers = dict.fromkeys(("x_ptr", "y_ptr", "weight_ptr", "bias_ptr"), dtype_name)
            name = f"normalise_groups {batch}x{channels}x{side} {dtype_name}"
            found.append(Variant(name, target, kernel, pointers, small, warps, False, ("eps",)))
    for target in TARGETS:
        pointers = {"voters_ptr": "i32", "left_ptr": "u8", "retry_ptr": "u8"}
        kernel, floats = pack_poses.pack_rows, ("spread_mm",)
        found.append(Variant(kernel.__name__, target, kernel, pointers, {"JOINTS": 32}, 1, False, floats))
        for dtype_name in DTYPES:
            found += _hand_views(target, dtype_name)
    # The only target that `resident.supports`.
    names = (
        "features_ptr",
        "columns_ptr",
        "position_ptr",
        "second_ptr",
        "third_ptr",
        "fourth_ptr",
        "fifth_ptr",
    )
    for dtype_name in ("fp16", "bf16"):
        pointers = dict.fromkeys(names, dtype_name)
        kernel, name = resident.evaluate_resident, f"evaluate_resident {dtype_name}"
        choices = {"POINTS": resident.POINTS, "PRECISION": "ieee"}
        found.append(Variant(name, "sm_90", kernel, pointers, choices, resident.WARPS, True, ("surface_mm",)))
    # Both dtypes make tiles of the same number of points.
    return list({(variant.name, variant.target): variant for variant in found}.values())


def _hand_views(target: str, dtype_name: str) -> list[Variant]:
    """The kernels around the default network's convolutions and field."""
    matrix, found = dtype_name != "fp32" or target.startswith("gfx"), []
    names = ("below_ptr", "beside_ptr", "below_weight_ptr", "beside_weight_ptr", "bias_ptr", "y_ptr")
    tile = {"TEXELS": merge_maps._TEXELS, "COLUMNS": merge_maps._COLUMNS}
    dtype = DTYPES[dtype_name]
    for below, beside, out in ((192, 128, 128), (128, 64, 64), (64, 32, 64)):
        kernel, constants = merge_maps.merge_texels, {"BELOW": below, "BESIDE": beside, "OUT": out} | tile
        constants["BELOW_BLOCK"] = merge_maps.block_channels(dtype, below)
        constants["BESIDE_BLOCK"] = merge_maps.block_channels(dtype, beside)
        name, pointers = f"{kernel.__name__} {below}+{beside} {dtype_name}", dict.fromkeys(names, dtype_name)
        found.append(Variant(name, target, kernel, pointers, constants, merge_maps._WARPS, matrix))
    pointers = dict.fromkeys(
        (
            "maps_ptr",
            "pooled_weight_ptr",
            "pooled_bias_ptr",
            "unpooled_weight_ptr",
            "unpooled_bias_ptr",
            "y_ptr",
        ),
        dtype_name,
    )
    constants = {"CHANNELS": 192, "WIDTH": 256, "LANES": 256, "ALL_TEXELS": 16, "OUTPUTS": 32}
    constants |= {"TEXELS": pool_maps._TEXELS, "BLOCK": pool_maps._BLOCK}
    kernel, name = pool_maps.pool_view, f"pool_view {dtype_name}"
    found.append(Variant(name, target, kernel, pointers, constants, pool_maps._WARPS, False))
    constants = {"CHANNELS": 64, "OUT": 64, "MAPPED": True, "PAIRED": True, "JOINTS": 32}
    constants |= {"TEXELS": place_hands._TEXELS, "COLUMNS": place_hands._COLUMNS}
    constants["BLOCK"] = merge_maps.block_channels(dtype, 64)
    kernel, name = place_hands.read_maps, f"read_maps {dtype_name}"
    pointers = dict.fromkeys(
        ("maps_ptr", "feature_weight_ptr", "feature_bias_ptr", "features_ptr"), dtype_name
    )
    found.append(Variant(name, target, kernel, pointers, constants, place_hands._WARPS, matrix))
    constants = {"ALL_TILES": 8, "HIDDEN": 128, "PAIRED": True, "JOINTS": 32, "TILES": place_hands._TILES}
    constants |= {
        "COLUMNS": place_hands._COLUMNS,
        "UNITS": place_hands._HIDDEN,
        "POINTS": place_hands._POINTS,
    }
    kernel, pointers = place_hands.place_views, {"left_ptr": "u8"}
    found.append(
        Variant(kernel.__name__, target, kernel, pointers, constants, place_hands._PLACING_WARPS, False)
    )
    return found


def _make_tiles(target: str, points: int, centred: bool) -> Variant:
    pointers = dict.fromkeys(("keys_ptr", "bounds_ptr", "tiles_ptr", "tile_count_ptr"), "i32")
    window = query_field.CENTRED_WINDOW_COLUMNS if centred else query_field.WINDOW_COLUMNS
    constants = {"CELLS": window.value - 1, "POINTS": points, "LANES": 128}
    name = f"make_tiles {'centred ' if centred else ''}{points}"
    return Variant(name, target, query_field.make_tiles, pointers, constants, 4, False)


def _layers(target: str, dtype_name: str, tiling: query_field.Tiling) -> list[Variant]:
    """The launches of `evaluate_layer`, of the full network."""
    shapes = {"first": (1024, 512), "middle": (512, 256), "last": (128, 128), "distance": (128, 128)}
    return [
        _layer(target, dtype_name, tiling, place, *shape, centred=False) for place, shape in shapes.items()
    ]


def _centred_layers(target: str, dtype_name: str, tiling: query_field.Tiling) -> list[Variant]:
    """The same of the default network, which takes the position about a centre."""
    shapes = {"first": (256, 128), "middle": (128, 64), "last": (64, 128), "distance": (64, 128)}
    return [
        _layer(target, dtype_name, tiling, place, *shape, centred=True) for place, shape in shapes.items()
    ]


def _layer(
    target: str,
    dtype_name: str,
    tiling: query_field.Tiling,
    place: str,
    size_in: int,
    size_out: int,
    centred: bool,
) -> Variant:
    last, columns = (
        place in ("last", "distance"),
        {"last": size_out, "distance": query_field._DISTANCE_COLUMNS},
    )
    constants = {
        "IN": size_in,
        "OUT": size_out,
        "VOTES": 0 if place == "distance" else 84,
        "FIRST": place == "first",
        "LAST": last,
        "CENTRED": centred,
        "POINTS": tiling.points,
        "COLUMNS": columns.get(place, min(size_out, tiling.columns)),
        "DEPTH": min(size_in, tiling.depth),
        "STAGES": tiling.stages,
        "FENCE": query_field.needs_fence(DTYPES[dtype_name], TARGETS[target].backend, TARGETS[target].arch),
        "PRECISION": "ieee",
    }
    pointers = dict.fromkeys(("maps_ptr", "weight_ptr", "inputs_ptr", "outputs_ptr"), dtype_name)
    pointers |= {"order_ptr": "i64", "tiles_ptr": "i32", "tile_count_ptr": "i32"}
    matrix = dtype_name != "fp32" or target.startswith("gfx")
    shape = f"{tiling.points}x{tiling.columns}x{tiling.depth}/{tiling.warps}"
    name = f"evaluate_layer {'centred ' if centred else ''}{place} {dtype_name} {shape}"
    return Variant(name, target, query_field.evaluate_layer, pointers, constants, tiling.warps, matrix)


def occupancy(variant: Variant, found: Cost) -> float:
    """The ratio of a multiprocessor's warps that can run at once."""
    warps, registers, shared = RESIDENT[variant.target]
    lanes = TARGETS[variant.target].warp_size
    # NVIDIA hands out registers to a warp in steps of 256.
    own = -(-found.registers * lanes // 256) * 256 * variant.warps
    programs = min(warps // variant.warps, registers // own, shared // (found.shared + 1024))
    return programs * variant.warps / warps


def cost(variant: Variant) -> Cost:
    """Compile one variant and read its costs."""
    names = variant.kernel.arg_names
    signature, aligned = {}, {}
    for position, name in enumerate(names):
        if name in variant.constants:
            signature[name] = "constexpr"
        elif name.endswith("_ptr"):
            signature[name] = "*" + variant.pointers.get(name, "fp32")
        else:
            signature[name] = "fp32" if name in variant.floats else "i64" if name.endswith("_bits") else "i32"
        # As the launcher passes them: every tensor, and the maps' columns, in multiples of 16.
        if name.endswith("_ptr") or name in ("channels", "first_channel", "first_tile"):
            aligned[(position,)] = [["tt.divisibility", 16]]
    source = ASTSource(variant.kernel, signature, variant.constants, aligned)
    triton.knobs.compilation.always_compile = True  # the report is printed by ptxas only
    triton.knobs.nvidia.dump_ptxas_log = True
    with contextlib.redirect_stdout(io.StringIO()) as output:
        options = {"num_warps": variant.warps, "enable_fp_fusion": True}
        compiled = triton.compile(source, target=TARGETS[variant.target], options=options)
    report = output.getvalue()
    if variant.target.startswith("gfx"):
        assembly = compiled.asm["amdgcn"]
        registers, spills = (
            int(re.findall(rf"\.{field}:\s*(\d+)", assembly)[-1])
            for field in ("vgpr_count", "vgpr_spill_count")
        )
        # AMD counts spilled registers, of 4 bytes.
        return Cost(registers, 4 * spills, compiled.metadata.shared, assembly.count(MATRIX[variant.target]))
    ptx = compiled.asm["ptx"]
    remarks: tuple[str, ...] = ("compiles to a trap",) if re.search(r"^\s*trap;", ptx, re.MULTILINE) else ()
    if re.search(r"C75(08|10|11|12)", report):
        remarks += ("ptxas serialises its warpgroup products",)
    if unfenced_products(ptx):
        remarks += ("a matrix product reads shared memory before a fence after the copies to it",)
    registers, spills = (
        int(re.findall(pattern, report)[-1])
        for pattern in (r"Used (\d+) registers", r"(\d+) bytes spill stores")
    )
    matrix, prologue = ptx.count(MATRIX[variant.target]), 0
    if variant.target == "sm_90" and matrix:
        instructions = re.findall(r"^.*;\s*$", compiled.asm["sass"], re.MULTILINE)
        prologue = next(place for place, line in enumerate(instructions) if "GMMA" in line)
    return Cost(registers, spills, compiled.metadata.shared, matrix, remarks, prologue)


def unfenced_products(ptx: str) -> bool:
    """Whether a matrix product that reads shared memory may follow a wait for copies to it without a fence.

    The matrix units of sm_90 and sm_100 read shared memory by a proxy of their own, for which asynchronous
    copies must be followed by a wait, a fence and a barrier; Triton before 3.9 omits the fence.
    """
    copied = {"": False}  # whether copies may be unfenced at each label
    while True:
        before, state, unfenced = dict(copied), False, False
        for line in ptx.splitlines():
            if label := re.match(r"(\$\w+):", line):
                state = copied[label[1]] = copied.get(label[1], False) or state
            elif "cp.async.wait" in line:
                state = True
            elif "fence.proxy.async" in line:
                state = False
            elif "wgmma.mma_async" in line or "tcgen05.mma" in line:
                unfenced |= state
            elif jump := re.search(r"\bbra(?:\.uni)?\s+(\$\w+)", line):
                copied[jump[1]] = copied.get(jump[1], False) or state
                state = state and "@" in line  # without a condition, nothing comes here from above
        if copied == before:
            return unfenced


def digest(kernel: JITFunction) -> str:
    """Hash of the kernel's file and of this one, without comments and formatting."""
    texts = (Path(path).read_text() for path in (kernel.fn.__code__.co_filename, __file__))
    return hashlib.sha256("".join(ast.unparse(ast.parse(text)) for text in texts).encode()).hexdigest()[:16]


def faults(
    variant: Variant, found: Cost, committed: dict[str, int] | None, comparable: bool = True
) -> list[str]:
    """Describe the faults of a kernel; empty without any.

    Args:
        variant, found: the kernel and its costs.
        committed: its costs in the record; None if it is not there.
        comparable: whether the record was made with this Triton.
    """
    wrong = list(found.remarks)
    older = 0 if triton_version() >= (3, 9) else OLDER_SPILL_LIMITS.get(variant.kernel.__name__, 0)
    if found.spills > (limit := max(SPILL_LIMIT, older)):
        wrong.append(f"spills {found.spills} bytes, {limit} allowed")
    if found.shared > SHARED_LIMIT[variant.target]:
        wrong.append(f"{found.shared} bytes of shared memory, {SHARED_LIMIT[variant.target]} there")
    if variant.matrix and found.matrix == 0:
        wrong.append(f"no {MATRIX[variant.target]}")
    if variant.kernel is query_field.evaluate_layer and found.prologue > PROLOGUE_LIMIT:
        wrong.append(f"{found.prologue} instructions before the first product, {PROLOGUE_LIMIT} allowed")
    if committed is None:
        wrong.append(f"not in {BUDGET.name}: run with --update")
        return wrong
    for field in ("registers", "shared") if comparable else ():
        if getattr(found, field) > SLACK * committed[field]:
            wrong.append(f"{field} {getattr(found, field)}, committed {committed[field]}")
    return wrong


def triton_version() -> tuple[int, ...]:
    """Major and minor version of the installed Triton."""
    return tuple(map(int, triton.__version__.split(".")[:2]))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--update", action="store_true", help="rewrite static_budget.json")
    update = parser.parse_args().update
    if triton.knobs.runtime.interpret:
        parser.error("TRITON_INTERPRET is set: nothing would be compiled")
    everything = variants()
    record = json.loads(BUDGET.read_text()) if BUDGET.exists() else {"kernels": {}}
    committed = record["kernels"]
    sources = {variant.kernel.__name__: digest(variant.kernel) for variant in everything}
    comparable = update or record.get("triton") == triton.__version__
    known = record.get("sources", {}) if record.get("triton") == triton.__version__ else {}
    changed = {name for name, source in sources.items() if known.get(name) != source}
    # One variant of every kernel is always compiled, for the targets in turn.
    turns = dict(zip(sources, itertools.cycle(TARGETS), strict=False))
    samples = {v.kernel.__name__: v for v in everything}  # a kernel may have one target alone
    samples |= {v.kernel.__name__: v for v in everything if v.target == turns[v.kernel.__name__]}
    chosen = [v for v in everything if v.kernel.__name__ in changed or samples[v.kernel.__name__] is v]
    measured: dict[str, dict[str, int]] = {}
    failed = 0
    print(f"Triton {triton.__version__}\n{'kernel':<50}target  registers  spills (B)  shared (B)", end="")
    print("  matrix  before it  occupancy")
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        costs = pool.map(_cost_of, [f"{variant.name} {variant.target}" for variant in chosen])
        for variant, found in zip(chosen, costs, strict=True):
            key = f"{variant.name} {variant.target}"
            measured[key] = {"registers": found.registers, "shared": found.shared}
            wrong = faults(variant, found, measured[key] if update else committed.get(key), comparable)
            failed += bool(wrong)
            print(
                f"{variant.name:<50}{variant.target:<8}{found.registers:>9}{found.spills:>12}{found.shared:>12}"
                f"{found.matrix:>8}{found.prologue:>11}{occupancy(variant, found):>11.0%}",
                "; ".join(wrong),
                sep="   ",
            )
    if update:
        keys = (f"{variant.name} {variant.target}" for variant in everything)
        entries = {key: measured.get(key) or committed[key] for key in keys}
        lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in entries.items())
        head = json.dumps({"triton": triton.__version__, "sources": {} if failed else sources}, indent=1)
        BUDGET.write_text(f'{head[:-2]},\n "kernels": {{\n{lines}\n }}\n}}\n')
    print(f"{len(everything)} kernels, {len(chosen)} compiled, {failed} at fault")
    return min(failed, 1)


def _cost_of(key: str) -> Cost:
    return next(cost(variant) for variant in variants() if f"{variant.name} {variant.target}" == key)


if __name__ == "__main__":
    sys.exit(main())
