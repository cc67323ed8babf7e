"""Pickles made to crash the process, to fill its memory or to change it."""

from __future__ import annotations

import pickle
import struct
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvf_fast.data import pickles
from nvf_fast.data.pickles import dense, load_pickle

NESTED = b")" + b"\x85" * 5_000  # a tuple in a tuple in ..., whose hash recurses in C
# A list of two references to a list of two references to ...: 2^60 numbers.
SHARED = b"]q\x00(K\x01K\x02e" + b"".join(
    b"]" + b"r" + struct.pack("<I", i + 1) + b"(" + 2 * (b"j" + struct.pack("<I", i)) + b"e"
    for i in range(60)
)
FUNCTION = b"c_codecs\nencode\n"
HOSTILE = {
    "tuples as a key": b"}" + NESTED + b"K\x01s.",
    "tuples in a set": b"\x80\x04\x8f(" + NESTED + b"\x90.",
    "tuples in a frozen set": b"\x80\x04(" + NESTED + b"\x91.",
    "tuples in a call of set": b"cbuiltins\nset\n(](" + NESTED + b"etR.",
    "a far entry of the memo": b"K\x01r\xff\xff\xff\x0f0.",
    "a length of 8 EB": b"\x80\x05\x96" + struct.pack("<Q", 2**63 - 1) + b"x.",
    "a string of 2 GB": b"X\xff\xff\xff\x7fabc.",
    "a number of 2 GB": b"\x8b\xff\xff\xff\x7f\x01.",
    "a state of a function": FUNCTION + b"N}S'__defaults__'\n(S'zip'\ntsS'x'\n\x86b.",
    "a state of a class": b"cnumpy\nndarray\n}S'dense'\nNsb.",
    "a state of a dictionary": b"}}S'x'\nK\x01sb.",
    "items of a class": b"cnumpy\nndarray\nK\x01a.",
    "text encoded again and again": b"(" + b"S'" + b"x" * 10_000 + b"'\nq\x000"
    + (FUNCTION + b"(h\x00tR") * 1000 + b"l.",
    "a set of a list again and again": b"(" + b"(" + b"K\x01" * 10_000 + b"lq\x000"
    + b"cbuiltins\nset\n(h\x00tR" * 1000 + b"l.",
    "an object of another kind": b"\x80\x02c_codecs\nencode\n)\x81.",
    "an old-style instance": b"(inumpy\nndarray\n.",
    "a registered extension": b"\x82\x01.",
    "a persistent object": b"Px\n.",
    "a value popped from nothing": b"0.",
    "no value": b".",
    "items below a mark": b"](K\x01(e.",
    "half a pair": b"}(K\x01u.",
}  # fmt: skip


def written(folder: Path, data: bytes) -> Path:
    path = folder / "hostile.pkl"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_refuses(tmp_path: Path, data: bytes) -> None:
    defaults = pickles._encoded.__defaults__
    tracemalloc.start()
    try:
        with pytest.raises(ValueError):
            load_pickle(written(tmp_path, data))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert pickles._encoded.__defaults__ == defaults and callable(pickles.Array.dense)
    assert peak < 100 * len(data) + 2**20  # bytes


def test_refuses_shared_and_cyclic_lists_as_numbers(tmp_path: Path) -> None:
    started = time.process_time()
    for data in (SHARED + b".", b"]q\x00h\x00a."):
        with pytest.raises(ValueError, match="expected an array of numbers"):
            dense(load_pickle(written(tmp_path, data)))
    assert time.process_time() - started < 10  # s; it takes 0.3


@pytest.mark.parametrize(
    "state",
    [
        {"_shape": (10**6, 10**6), "indptr": [0], "indices": [], "data": []},
        {"_shape": (0, 2**40), "indptr": [0], "indices": [], "data": []},
        {"_shape": (2, 2), "indptr": [0, 2**40, 1], "indices": [0], "data": [1.0]},
        {"_shape": (2, 2), "indptr": [0, 0, 1], "indices": [-1], "data": [1.0]},
        {"_shape": (2, 2), "indptr": [0, 0, 1], "indices": [2], "data": [1.0]},
    ],
)
def test_refuses_sparse_matrices_that_do_not_fit(state: dict[str, Any]) -> None:
    matrix = pickles.SparseMatrix()
    matrix.state = state | {name: stand_in(np.array(state[name])) for name in ("indptr", "indices", "data")}
    with pytest.raises(ValueError, match="expected an array of numbers"):
        dense(matrix)


def stand_in(array: np.ndarray) -> pickles.Array:
    return pickles._from_buffer(array.tobytes(), pickles.Kind(array.dtype.str[1:]), array.shape, "C")


def test_refuses_objects_that_refer_to_themselves() -> None:
    cyclic = pickles.Chumpy()
    cyclic.state = {"a": cyclic, "idxs": stand_in(np.zeros(1, np.int64)), "preferred_shape": (1,)}
    with pytest.raises(ValueError, match="expected an array of numbers"):
        dense(cyclic)
    cyclic.state["idxs"] = cyclic
    with pytest.raises(ValueError, match="expected an array, got Chumpy"):
        dense(cyclic)


def test_refuses_long_strings_among_short_ones() -> None:
    """NumPy would make an array whose every item has the longest one's length."""
    with pytest.raises(ValueError, match="a value of type str"):
        dense(["x" * 10**6, *["y"] * 10**6])


def test_refuses_large_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, b"")
    with path.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(ValueError, match=f"up to {2**26} bytes, got {2**40}"):
        load_pickle(path)
    monkeypatch.setattr(pickles, "MOST_OPCODES", 10)
    with pytest.raises(ValueError, match="more than 10 opcodes"):
        load_pickle(written(tmp_path, pickle.dumps(list(range(10)))))


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=4,
)


@given(PLAIN, st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_reads_data_as_python_does(
    tmp_path_factory: pytest.TempPathFactory, value: Any, protocol: int
) -> None:
    path = written(tmp_path_factory.getbasetemp(), pickle.dumps(value, protocol))
    assert load_pickle(path) == value


# Opcodes with arguments, of which most sequences are damaged pickles.
PIECES = [bytes([code]) for code in b"(.0]})tldeausRb\x81\x85\x90\x91\x94N"] + [b"h\x00", b"q\x00", b"K\x01"]
PIECES += [b"U\x01x", FUNCTION, b"cnumpy\nndarray\n", b"cnumpy\ndtype\n", b"cbuiltins\nset\n"]
PIECES += [b"ccollections\nOrderedDict\n", b"cscipy.sparse\ncsc_matrix\n", b"cchumpy.ch\nCh\n"]


@given(st.binary(max_size=40) | st.lists(st.sampled_from(PIECES), max_size=20).map(b"".join))
def test_any_bytes_are_data_or_one_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = written(tmp_path_factory.getbasetemp(), data + b".")
    try:
        dense(load_pickle(path))
    except ValueError:
        return
