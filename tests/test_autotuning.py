"""Autotuning: interleaved timing, caching of the fastest tiling, damaged cache files."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from nvf_fast.kernels.query_field.triton import Tiling, tilings
from nvf_fast.runtime import autotuning, cuda_graph
from nvf_fast.runtime.autotuning import remember, tuned
from tests.kernel_cases import FieldCase, field_inputs

CUDA = torch.device("cuda")
SPACE = tilings(torch.float16, "cuda", 90)


@pytest.fixture(autouse=True)
def device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A device of compute capability 9.0 with an empty cache."""
    monkeypatch.setattr(autotuning, "CACHE", tmp_path / "made" / "tilings.json")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))


def test_caches_the_fastest_tiling_per_device_dtype_and_network() -> None:
    times = dict(zip(SPACE, (1.0, 0.9, 0.8), strict=True))
    assert tuned(CUDA, torch.float16, [64, 85], 28_351) is None
    assert remember(CUDA, torch.float16, [64, 85], 28_351, times) == SPACE[2]
    assert remember(CUDA, torch.float16, [128, 85], 28_351, times | {SPACE[1]: 0.1}) == SPACE[1]
    assert tuned(CUDA, torch.float16, [64, 85], 28_351) == SPACE[2]
    assert tuned(CUDA, torch.float16, [128, 85], 28_351) == SPACE[1]
    assert tuned(CUDA, torch.bfloat16, [64, 85], 28_351) is None
    assert tuned(torch.device("cpu"), torch.float16, [64, 85], 28_351) is None
    assert tuned(CUDA, torch.float16, [64, 85], 20_000) == SPACE[2], "about as many points"
    assert tuned(CUDA, torch.float16, [64, 85], 230_475) is None
    assert remember(CUDA, torch.float16, [64, 85], 230_475, times | {SPACE[1]: 0.1}) == SPACE[1]
    assert tuned(CUDA, torch.float16, [64, 85], 28_351) == SPACE[2]
    assert [path.name for path in autotuning.CACHE.parent.iterdir()] == ["tilings.json"]


def test_keeps_the_default_within_noise() -> None:
    assert (
        remember(CUDA, torch.float16, [64, 85], 28_351, dict(zip(SPACE, (1.0, 0.99, 1.2), strict=True)))
        == SPACE[0]
    )


def test_ignores_tilings_of_another_device_compiler_or_kernel(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    remember(CUDA, torch.float16, [64, 85], 28_351, dict(zip(SPACE, (1.0, 0.5, 0.8), strict=True)))
    assert tuned(CUDA, torch.float16, [64, 85], 28_351) == SPACE[1]
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "get_device_name", lambda device: "Another GPU")
        assert tuned(CUDA, torch.float16, [64, 85], 28_351) is None
    with monkeypatch.context() as patch:
        patch.setattr(autotuning.triton, "__version__", "0.1")
        assert tuned(CUDA, torch.float16, [64, 85], 28_351) is None
    with monkeypatch.context() as patch:  # its capability has other tilings
        patch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
        assert tuned(CUDA, torch.float16, [64, 85], 28_351) is None
    changed = tmp_path / "changed.py"
    changed.write_text("# another kernel")
    monkeypatch.setattr(autotuning.kernel, "__file__", str(changed))
    assert tuned(CUDA, torch.float16, [64, 85], 28_351) is None


def test_ignores_tilings_of_another_length() -> None:
    remember(CUDA, torch.float16, [64, 85], 28_351, dict(zip(SPACE, (1.0, 0.5, 0.8), strict=True)))
    known = json.loads(autotuning.CACHE.read_text())
    autotuning.CACHE.write_text(json.dumps({key: numbers[:4] for key, numbers in known.items()}))
    assert tuned(CUDA, torch.float16, [64, 85], 28_351) is None


@pytest.mark.parametrize("text", ["{", "[1, 2]", '{"a": 5}', '{"a": ["x", 1, 1, 1, 1]}'])
def test_replaces_a_damaged_file_with_a_warning(text: str, caplog: pytest.LogCaptureFixture) -> None:
    autotuning.CACHE.parent.mkdir()
    autotuning.CACHE.write_text(text)
    with caplog.at_level(logging.WARNING, "nvf_fast"):
        assert tuned(CUDA, torch.float16, [64, 85], 28_351) is None
    assert "is damaged" in caplog.text
    remember(CUDA, torch.float16, [64, 85], 28_351, dict(zip(SPACE, (1.0, 0.5, 0.8), strict=True)))
    caplog.clear()
    assert tuned(CUDA, torch.float16, [64, 85], 28_351) == SPACE[1] and not caplog.text


def field_query() -> autotuning.Query:
    """A query of 5 points."""
    inputs = field_inputs(FieldCase(1, 5, 8, (9, 7), (40, 24)), torch.float16)
    points, size = inputs.points[0], inputs.image_size
    return autotuning.Query(inputs.features, points, inputs.intrinsics, inputs.weights, inputs.biases, size)


def run_or_fail(query: autotuning.Query, tiling: Tiling, device: torch.device) -> float:
    """One tiling ends its process, one raises, one runs."""
    assert query.features.device.type == "cpu"
    if tiling == SPACE[0]:
        os._exit(1)
    if tiling == SPACE[1]:
        raise RuntimeError("an illegal memory access was encountered")
    return float(tiling.points)


@pytest.mark.slow
def test_leaves_out_tilings_that_fail(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(autotuning, "median_ms", run_or_fail)
    monkeypatch.setattr(autotuning.kernel, "device_tilings", lambda device, dtype: SPACE)
    assert autotuning.tune(field_query()) == {SPACE[2]: SPACE[2].points}
    assert next(iter(json.loads(autotuning.CACHE.read_text()))).endswith("up to 8 points")
    assert caplog.text.count("is left out") == 2 and "illegal memory access" in caplog.text
    monkeypatch.setattr(autotuning.kernel, "device_tilings", lambda device, dtype: SPACE[1:2])
    with pytest.raises(RuntimeError, match="no tiling of the field's kernel runs on cpu"):
        autotuning.tune(field_query())


@pytest.mark.filterwarnings("ignore:invalid value encountered in divide:RuntimeWarning")  # interpreter
def test_times_replays_of_several_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each tiling's queries are recorded once and only replayed afterwards, on a stand-in for a device.

    Triton and events use the current device, which may be another one.
    """
    log: list[str] = []

    class Recorder:
        def __init__(self, device: torch.device) -> None:
            pass

        def record(self, run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
            return lambda: log.append("replay"), run()

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            log.append("event")

        def synchronize(self) -> None:
            pass

        def elapsed_time(self, end: Event) -> float:
            return 20.0

    sampled: list[Tiling] = []

    def sample(maps: Tensor, places: Any, layers: Any) -> Any:
        sampled.append(layers.tiling)
        return SimpleNamespace(sdf=maps)

    @contextmanager
    def launching_on(device: torch.device) -> Iterator[None]:
        log.append(f"on {device}")
        yield
        log.append("end")

    def locate(*arguments: Any) -> Any:
        log.append("locate")
        return locate_points(*arguments)

    locate_points = autotuning.kernel.locate
    monkeypatch.setattr(autotuning.kernel, "locate", locate)
    monkeypatch.setattr(autotuning, "launching_on", launching_on)
    monkeypatch.setattr(cuda_graph, "CudaRecorder", Recorder)
    monkeypatch.setattr(autotuning, "ROUNDS", 1)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(autotuning.kernel, "sample", sample)
    found = [autotuning.median_ms(field_query(), tiling, torch.device("cpu")) for tiling in SPACE]
    assert found == [20.0 / autotuning.REPEATS] * len(SPACE)
    assert sampled == [tiling for tiling in SPACE for _ in range(autotuning.REPEATS)]
    assert log == ["on cpu", "locate", *["event", "replay", "event"] * 3, "end"] * len(SPACE)
