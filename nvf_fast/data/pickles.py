"""Reading untrusted pickles without executing anything in them.

Numbers, strings and containers are returned unchanged; arrays, sparse matrices and objects of chumpy as their
bare state, which `dense` converts to arrays. Any other class is refused.

NumPy's own classes are not used, since a damaged state could crash the process.
"""

from __future__ import annotations

import pickle
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

FAILURES = (
    pickle.UnpicklingError, AttributeError, EOFError, ImportError, IndexError,
    KeyError, MemoryError, OverflowError, TypeError, ValueError,
)  # fmt: skip
"""Exceptions of the unpickler for damaged pickles; Python's manual names the first line."""


def load_pickle(path: Path) -> Any:
    """Read a pickle of Python 2 or 3 that holds nothing but data.

    Raises:
        ValueError: the file cannot be read as a pickle, or holds more than data.
    """
    try:
        with open(path, "rb") as file:
            return _DataOnly(file, encoding="latin1").load()
    except FAILURES as error:
        raise ValueError(f"{type(error).__name__}: {error}".removesuffix(": ")) from error


def dense(value: Any) -> np.ndarray:
    """Convert a value to a float64 array: numbers, or an unpickled array, sparse matrix or chumpy object.

    Raises:
        ValueError: it is none of these, or damaged.
    """
    try:
        array = value.dense() if isinstance(value, Inert) else np.array(value)
    except FAILURES as error:
        raise ValueError(f"expected an array of numbers, got {type(value).__name__}: {error}") from error
    if array.dtype.kind not in "iuf":
        raise ValueError(f"expected an array of numbers, got {type(value).__name__}")
    return array.astype(np.float64)


class Inert:
    """A stand-in for an object of a class that is not imported, with its arguments and state."""

    def __init__(self, *given: Any) -> None:
        self.given = given
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def dense(self) -> np.ndarray:
        raise ValueError("no numbers")


class Kind(Inert):
    """A stand-in for numpy's dtype: its argument is its code, its state holds the byte order."""

    def numpy(self) -> np.dtype:
        code, order = self.given[0], "=" if self.state is None else self.state[1]
        if not re.fullmatch(r"(b1|[iu][1248]|f[248])", code) or order not in ("<", ">", "=", "|"):
            raise ValueError(f"numbers of kind {order!r} {code!r}")
        return np.dtype(order.replace("|", "=") + code)


class Array(Inert):
    """numpy's array: its state is its version, shape, kind, order and bytes."""

    def dense(self) -> np.ndarray:
        shape, kind, fortran, data = self.state[-4:]
        data = data.encode("latin1") if isinstance(data, str) else data
        return np.frombuffer(data, kind.numpy()).reshape(shape, order="F" if fortran else "C")


class SparseMatrix(Inert):
    """scipy's compressed sparse column matrix."""

    def dense(self) -> np.ndarray:
        shape = self.state["_shape"] if "_shape" in self.state else self.state["shape"]
        starts, rows = (dense(self.state[name]).astype(np.int64) for name in ("indptr", "indices"))
        matrix = np.zeros(shape)
        columns = np.repeat(np.arange(shape[1]), np.diff(starts))
        np.add.at(matrix, (rows, columns), dense(self.state["data"]))
        return matrix


class Chumpy(Inert):
    """chumpy's array, or a selection from one: the two kinds that MANO's file holds."""

    def dense(self) -> np.ndarray:
        if "x" in self.state:
            return dense(self.state["x"])
        chosen = dense(self.state["idxs"]).astype(np.int64)
        return dense(self.state["a"]).reshape(-1)[chosen].reshape(self.state["preferred_shape"])


def _array(*given: Any) -> Array:
    """An array before its state is set."""
    return Array()


def _from_buffer(buffer: bytes | str, kind: Kind, shape: tuple[int, ...], order: str) -> Array:
    """An array as protocol 5 stores it."""
    array = Array()
    array.state = (shape, kind, order == "F", buffer)
    return array


def _scalar(kind: Kind, data: bytes | str) -> Array:
    """One number."""
    return _from_buffer(data, kind, (), "C")


def _object(kind: type, base: type, state: Any) -> Any:
    """An object as protocols 0 and 1 store it; only stand-ins are allowed."""
    if not issubclass(kind, Inert):
        raise pickle.UnpicklingError(f"an object of {kind.__name__} is not data")
    return kind()


def _encoded(text: str, encoding: str = "latin1") -> bytes:
    """Bytes as protocol 2 stores them."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes encoded in {encoding!r}, expected latin1")
    return text.encode("latin1")


_CORE = {"multiarray._reconstruct": _array, "multiarray.scalar": _scalar, "numeric._frombuffer": _from_buffer}
_PLAIN = (set, frozenset, list, tuple, dict, object, complex, int, float, bool, str)
_ALLOWED: dict[str, Any] = {
    "numpy.ndarray": Array,
    "numpy.dtype": Kind,
    "_codecs.encode": _encoded,
    "collections.OrderedDict": OrderedDict,
    "copy_reg._reconstructor": _object,
    "copyreg._reconstructor": _object,
    **{f"{core}.{name}": item for core in ("numpy.core", "numpy._core") for name, item in _CORE.items()},
    **{f"{module}.{kind.__name__}": kind for module in ("builtins", "__builtin__") for kind in _PLAIN},
}


class _DataOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" in _ALLOWED:
            return _ALLOWED[f"{module}.{name}"]
        if module.split(".")[0] == "chumpy":
            return Chumpy
        if module.startswith("scipy.sparse") and name == "csc_matrix":
            return SparseMatrix
        raise pickle.UnpicklingError(f"it refers to {module}.{name}, which is not data; nothing was executed")
