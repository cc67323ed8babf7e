"""Common configuration of tests: the data option, seeds, threads, and skipping without a GPU."""

from __future__ import annotations

import importlib.util
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import torch

if not torch.cuda.is_available():
    # Run kernels in Triton's interpreter. Triton reads this variable once, on first import, so it is set
    # before all other imports. Tests that compile for a real target do so in a subprocess without it.
    os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest

ROOT = Path(__file__).resolve().parent.parent

torch.backends.cudnn.allow_tf32 = False  # float32 references must not use TF32

if importlib.util.find_spec("hypothesis"):
    from hypothesis import settings

    # Deadlines depend on the machine's load, and random examples cause failures that cannot be reproduced.
    settings.register_profile("nvf_fast", deadline=None, derandomize=True, max_examples=50)
    settings.load_profile("nvf_fast")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--shared",
        metavar="DIR",
        type=Path,
        default=ROOT.parent / "shared",
        help="folder with oracle/, protocol/ and real/; tests that read it skip when it is absent",
    )


def pytest_configure(config: pytest.Config) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)  # the workers share the cores
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as for background commands of a shell
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "cuda" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """Fill memory from `empty` with NaN, so that an unwritten element fails."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(1).isnan()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def own_blocks() -> None:
    """Mark tests that use a kernel's own block sizes."""


@pytest.fixture(scope="session")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with small data sets, which tests only read."""
    from tests.dataset_trees import write_trees

    folder = tmp_path_factory.mktemp("trees")
    write_trees(folder)
    return folder


@pytest.fixture(scope="session")
def shared_dir(request: pytest.FixtureRequest) -> Path:
    """Return the folder given by --shared."""
    folder: Path = request.config.getoption("--shared")
    if not folder.is_dir():
        pytest.skip(f"no folder of shared data at {folder} (give one with --shared)")
    return folder
