"""Lower bounds of a frame's FLOPs and bytes, and of its time on a device.

    python benchmarks/floors.py                            the released network, on the device of
                                                           results/ceilings_gpu.json, else on an H200
    python benchmarks/floors.py --tflops 660 --tbytes 3.3  another device

A floor is the larger of FLOPs over the matrix rate and bytes over the bandwidth; no kernel runs below it.
"Least" counts the necessary products, including maps; "executed" counts the products of `evaluate_layer`: the
hat matrix instead of sampling, padded widths, and tiles as full.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
import triton

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.ceilings import RESULTS, read_ceilings
from nvf_fast.config import NVFConfig
from nvf_fast.grid import Lattice
from nvf_fast.kernels.query_field.triton import CENTRED_EXTRA_ROWS, EXTRA_ROWS, SLOTS, Tiling, tilings

H200_TFLOPS, H200_TBYTES = 790.0, 4.3  # bf16 matrix rate and memory bandwidth, as reported
OUTPUTS = 85


class FieldWork(NamedTuple):
    """Work of `query_field` on one image."""

    written: float  # FLOPs as the paper writes the layers
    least: float  # FLOPs where sampling is a projection of the map, without the interpolation
    executed: float  # FLOPs of `evaluate_layer`
    projection: float  # FLOPs of the maps
    memory_bytes: float  # through device memory: points, maps, activations between layers, distances
    cache_bytes: float  # through the second-level cache: the weights and windows that every tile loads

    def floor_us(self, tflops: float, tbytes: float) -> float:
        compute = (self.executed + self.projection) / tflops
        return 1e-6 * max(compute, self.memory_bytes / tbytes)


def query_work(config: NVFConfig, points: int, tiling: Tiling, element_bytes: int = 2) -> FieldWork:
    """The work of a network's field at a number of points."""
    centred = config.view == "hand"
    inputs = config.width + (3 if centred else 1 + config.hand_scale)
    channels = [*config.hidden, OUTPUTS]
    written = 2.0 * sum(
        out * (before + inputs) for before, out in zip([0, *channels], channels, strict=False)
    )
    least = written - 2.0 * inputs * sum(channels)
    widths = [max(32, triton.next_power_of_2(out)) for out in channels]
    slots = SLOTS.value
    executed = weights = activations = 0.0
    for layer, (size_in, size_out) in enumerate(pairwise(widths)):
        last = layer == len(widths) - 2
        columns = size_out if last else min(size_out, tiling.columns)
        launches = size_out // columns  # each makes the first layer anew
        executed += 2.0 * (size_in * size_out + slots * size_out)
        window = slots * size_out
        if layer == 0:
            executed += 2.0 * launches * slots * size_in
            window += launches * slots * size_in
        weights += (size_in * size_out + window) * element_bytes
        activations += 0.0 if last else 2.0 * size_out * element_bytes
        if not last and layer > 0:
            activations += (launches - 1) * size_in * element_bytes
    texels = config.feature_size**2
    projection = 2.0 * texels * config.width * sum(widths)
    extra = CENTRED_EXTRA_ROWS if centred else EXTRA_ROWS
    maps = (texels + extra.value) * sum(widths) * element_bytes
    tiles = -(-points // tiling.points)
    return FieldWork(
        written * points,
        least * points + projection,
        executed * tiles * tiling.points,
        projection,
        points * (3 * 4 + 8 + 4 + activations) + maps + texels * config.width * element_bytes,
        tiles * weights,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    device, tflops, tbytes = "an H200 by its reports", H200_TFLOPS, H200_TBYTES
    if (measured := RESULTS / "ceilings_gpu.json").exists():
        ceilings = read_ceilings(measured)
        device = ceilings.device
        tflops, tbytes = ceilings.products["float16"] / 1e12, ceilings.memory / 1e12
    parser.add_argument("--tflops", type=float, default=tflops, help=f"matrix rate, TFLOP/s; of {device}")
    parser.add_argument("--tbytes", type=float, default=tbytes, help="memory bandwidth, TB/s")
    options = parser.parse_args(arguments)
    tiling = tilings(torch.float16, "cuda", 90)[0]
    print(f"float16, tiles of {tiling.points} x {tiling.columns}, {options.tflops:g} TFLOP/s, ", end="")
    print(f"{options.tbytes:g} TB/s")
    print(f"{'step':>6}{'points':>11}{'as written':>13}{'least':>9}{'executed':>10}{'maps':>8}", end="")
    print(f"{'memory':>10}{'cache':>10}{'floor':>11}")
    for step in (4, 8, 16, 24, 32):
        points = len(Lattice(step))
        work = query_work(NVFConfig(), points, tiling)
        flops = [value / 1e9 for value in (work.written, work.least, work.executed, work.projection)]
        print(
            f"{step:>3} mm{points:>11,}{flops[0]:>7.1f} GFLOP"
            f"{flops[1]:>9.1f}{flops[2]:>10.1f}{flops[3]:>8.1f}"
            f"{work.memory_bytes / 2**20:>6.0f} MiB{work.cache_bytes / 2**20:>6.0f} MiB"
            f"{work.floor_us(options.tflops, options.tbytes):>8.1f} us"
        )


if __name__ == "__main__":
    main()
