"""FLOPs counted by the floors, against the layers."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.floors import main, query_work
from nvf_fast.config import NVFConfig
from nvf_fast.kernels.query_field.reference import query_field
from nvf_fast.kernels.query_field.triton import tilings
from nvf_fast.model import NVF

TILING = tilings(torch.float16, "cuda", 90)[0]


def test_flops_match_the_reference() -> None:
    config = NVFConfig(stacks=1)
    model, points = NVF(config), 256
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        query_field(
            torch.zeros(1, config.width, 8, 8),
            torch.ones(points, 3),
            model.reference_intrinsics,
            None,
            list(model.field.weights),
            list(model.field.biases),
        )
    projection = 2 * points * 3 * 3
    assert query_work(config, points, TILING).written == counter.get_total_flops() - projection
    # The hat matrix's 32 products per channel replace 258: 1.6 instead of 2.43 MFLOP per point.
    work = query_work(config, 128 * 100, TILING)
    assert work.executed / work.written == pytest.approx(0.66, abs=0.01)


def test_partial_tiles_count_as_full() -> None:
    one, full = (query_work(NVFConfig(), points, TILING) for points in (1, TILING.points))
    assert one.executed == full.executed and one.written < full.written


def test_floor_is_the_larger_bound() -> None:
    work = query_work(NVFConfig(), 28_351, TILING)
    assert work.floor_us(1e9, 4.3) == pytest.approx(work.memory_bytes / 4.3e6)
    assert work.floor_us(790, 1e9) == pytest.approx((work.executed + work.projection) / 790e6)


def test_table_has_the_point_counts_of_the_paper(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--tflops", "660"])
    text = capsys.readouterr().out
    assert "660 TFLOP/s" in text and all(count in text for count in ("1,882,292", "230,475", "28,351"))
