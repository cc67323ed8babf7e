"""Attainable rates of the device: bandwidths of memory and last-level cache, products of the matrix unit.

    python benchmarks/ceilings.py     prints them and writes benchmarks/results/ceilings_gpu.json (or _cpu)

`benchmarks/floors.py` and the ratios to the ceiling in the tables of speed use this file. Values are medians;
the operands are random, since zeros run faster.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.timing import CUDA, DEVICE, device_name, dtype_name

RESULTS = Path(__file__).parent / "results"
COLUMNS = ["what", "unit", "reached"]
MEMORY, CACHE = "copy through memory", "read through the last cache"
PRODUCT = "matrix product, "
# Bytes copied; bytes read again and again, which fit an H100's 50 MB cache and no multiprocessor's; side of
# the matrices.
SIZES = {"cuda": (2**32, 2**24, 8192), "cpu": (2**28, 2**24, 2048)}
READERS, BLOCK = 1024, 4096


class Ceilings(NamedTuple):
    """Attainable rates of one device.

    device: its name.
    memory: bytes per second, read and written counted.
    cache: bytes per second; None where it is not measured.
    products: FLOPs per second by dtype name.
    """

    device: str
    memory: float
    cache: float | None
    products: dict[str, float]

    def floor_seconds(self, flops: float, dtype: str, moved_bytes: float, cached: bool = False) -> float:
        """Lower bound of a time: the larger of the products' and the bytes', from memory or the cache."""
        rate = self.cache if cached and self.cache is not None else self.memory
        return max(flops / self.products[dtype] if flops else 0.0, moved_bytes / rate)


def read_ceilings(path: Path) -> Ceilings:
    """Read a file of `main`."""
    result = json.loads(path.read_text())
    reached = {what: 1e12 * value for what, _, value in result["rows"]}
    products = {
        what.removeprefix(PRODUCT): rate for what, rate in reached.items() if what.startswith(PRODUCT)
    }
    return Ceilings(result["context"]["device"], reached[MEMORY], reached.get(CACHE), products)


@triton.jit  # type: ignore[untyped-decorator]
def read_again(values_ptr, sums_ptr, blocks, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Every program reads all blocks, each from a different start."""
    total = tl.zeros((BLOCK,), tl.float32)
    for step in range(blocks):
        block = (tl.program_id(0) + step) % blocks
        total += tl.load(values_ptr + block * BLOCK + tl.arange(0, BLOCK))
    tl.store(sums_ptr + tl.program_id(0), tl.sum(total, 0))


def measure() -> list[list[Any]]:
    """Rows under `COLUMNS`."""
    copied, cached, side = SIZES[DEVICE]
    rows: list[list[Any]] = [[MEMORY, "TB/s", _copy(copied) / 1e12]]
    if CUDA:
        rows.append([CACHE, "TB/s", _read(cached) / 1e12])
    for dtype in (torch.bfloat16, torch.float16, torch.float32) if CUDA else (torch.float32,):
        rows.append([PRODUCT + dtype_name(dtype), "TFLOP/s", _product(side, dtype) / 1e12])
    return rows


def _copy(count: int) -> float:
    """Bytes per second, for a number of bytes read and written."""
    source = torch.rand(count // 8, device=DEVICE)
    target = torch.empty_like(source)
    return count / _seconds(lambda: target.copy_(source))


def _read(count: int, readers: int = READERS) -> float:
    """Bytes per second, for a number of bytes read by every program."""
    values, sums = torch.rand(count // 4, device=DEVICE), torch.empty(readers, device=DEVICE)
    seconds = _seconds(lambda: read_again[readers,](values, sums, len(values) // BLOCK, BLOCK=BLOCK))
    expected = values.double().sum()
    assert ((sums.double() - expected).abs() < 1e-4 * expected).all(), "not everything was read"
    return readers * count / seconds


def _product(side: int, dtype: torch.dtype) -> float:
    """FLOPs per second."""
    a, b = torch.randn(2, side, side, device=DEVICE).to(dtype)
    return 2 * side**3 / _seconds(lambda: a @ b)


def _seconds(run: Callable[[], object]) -> float:
    """Median seconds of a call."""
    if CUDA:
        return float(triton.testing.do_bench(run, warmup=100, rep=500, return_mode="median")) / 1e3
    times = []
    for _ in range(12):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return statistics.median(times[2:])


def main() -> None:
    rows = measure()
    for what, unit, value in rows:
        print(f"{what:32}{value:10.4g} {unit}")
    context = {"device": device_name(), "torch": torch.__version__, "triton": triton.__version__}
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"ceilings_{'gpu' if CUDA else 'cpu'}.json"
    path.write_text(json.dumps({"columns": COLUMNS, "rows": rows, "context": context}, indent=1) + "\n")


if __name__ == "__main__":
    main()
