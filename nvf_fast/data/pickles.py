"""Reading untrusted pickles without executing anything in them.

Numbers, strings and containers are returned unchanged; arrays, sparse matrices and objects of chumpy as their
bare state, which `dense` converts to arrays. Any other class is refused.

The interpreter is Python's own neither in C nor in Python: those set states and attributes on whatever a
pickle names, allocate what it announces, and hash nested tuples without a limit. NumPy's own classes are not
used, since a damaged state could crash the process.
"""

from __future__ import annotations

import codecs
import io
import pickle
import pickletools
import re
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

FAILURES = (
    pickle.UnpicklingError, AttributeError, EOFError, ImportError, IndexError,
    KeyError, MemoryError, OverflowError, RecursionError, TypeError, ValueError,
)  # fmt: skip
"""Exceptions of damaged pickles."""

LARGEST_BYTES = 2**26  # of a file; MANO's takes 2^22
MOST_OPCODES = 2**20  # of a pickle, each of which may take some 200 bytes
MOST_NUMBERS = 2**24  # of a list or sparse matrix, which may take far fewer bytes in a pickle
DEEPEST = 16  # nested lists of an array of numbers
_KEYS = (str, bytes, int, float, bool, type(None))  # hashed without recursion


def load_pickle(path: Path) -> Any:
    """Read a pickle of Python 2 or 3 that holds nothing but data.

    Time and memory are bounded by the size of the file.

    Raises:
        ValueError: the file cannot be read as a pickle, is too large, or holds more than data.
        OSError: the file is missing or cannot be read.
    """
    if (size := path.stat().st_size) > LARGEST_BYTES:
        raise ValueError(f"expected a pickle of up to {LARGEST_BYTES} bytes, got {size}")
    try:
        return _Interpreter(path.read_bytes()).run()
    except FAILURES as error:
        raise ValueError(f"{type(error).__name__}: {error}".removesuffix(": ")) from error


def dense(value: Any) -> np.ndarray:
    """Convert a value to a float64 array: numbers, or an unpickled array, sparse matrix or chumpy object.

    Raises:
        ValueError: it is none of these, or damaged.
    """
    try:
        array = value.dense() if isinstance(value, Inert) else _numbers(value)
    except FAILURES as error:
        raise ValueError(f"expected an array of numbers, got {type(value).__name__}: {error}") from error
    if array.dtype.kind not in "iuf":
        raise ValueError(f"expected an array of numbers, got {type(value).__name__}")
    return array.astype(np.float64)


def _numbers(value: Any) -> np.ndarray:
    """An array from a number or nested lists of equal lengths, whose inner lists may be shared."""
    if isinstance(value, np.ndarray):
        return value
    leaves: list[Any] = [value]
    shape = list[int]()
    while leaves and isinstance(leaves[0], list | tuple):
        lengths = {len(each) if isinstance(each, list | tuple) else -1 for each in leaves}
        shape.append(lengths.pop())
        if lengths or len(shape) > DEEPEST or shape[-1] * len(leaves) > MOST_NUMBERS:
            raise ValueError(f"lists of unequal lengths, deeper than {DEEPEST}, or too many numbers")
        leaves = [leaf for each in leaves for leaf in each]
    if kinds := set(map(type, leaves)) - {int, float}:
        raise ValueError(f"a value of type {kinds.pop().__name__}")
    return np.array(leaves, dtype=np.float64).reshape(shape)


class Inert:
    """A stand-in for an object of a class that is not imported, with its arguments and state."""

    def __init__(self, *given: Any) -> None:
        self.given = given
        self.state: Any = None

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
        height, width = self.state["_shape"] if "_shape" in self.state else self.state["shape"]
        starts, rows = (_stored(self.state[name]).astype(np.int64) for name in ("indptr", "indices"))
        counts = np.diff(starts)
        fits = 0 < height * width <= MOST_NUMBERS and starts.shape == (width + 1,) and (rows >= 0).all()
        if not (fits and starts[0] == 0 and starts[-1] == len(rows) and (counts >= 0).all()):
            raise ValueError(f"damaged columns of a matrix of {height} x {width}")
        matrix = np.zeros((height, width))
        np.add.at(matrix, (rows, np.repeat(np.arange(width), counts)), _stored(self.state["data"]))
        return matrix


class Chumpy(Inert):
    """chumpy's array, or a selection from one: the two kinds that MANO's file holds."""

    def dense(self) -> np.ndarray:
        if "x" in self.state:
            return _stored(self.state["x"])
        chosen = _stored(self.state["idxs"]).astype(np.int64)
        return dense(self.state["a"]).reshape(-1)[chosen].reshape(self.state["preferred_shape"])


def _stored(value: Any) -> np.ndarray:
    """The numbers of an array; other objects could refer to each other without end."""
    if not isinstance(value, Array):
        raise ValueError(f"expected an array, got {type(value).__name__}")
    return dense(value)


def _new(kind: Any, *given: Any) -> Inert:
    """A stand-in of a class."""
    if not (isinstance(kind, type) and issubclass(kind, Inert)):
        raise pickle.UnpicklingError(f"an object of {kind!r} is not data")
    return kind(*given)


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
    if base is not object:
        raise pickle.UnpicklingError(f"an object derived from {base} is not data")
    return _new(kind)


def _encoded(text: str = "", encoding: str = "latin1") -> bytes:
    """Bytes as protocol 2 stores them, and empty ones as protocols 0 to 2 do."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes encoded in {encoding!r}, expected latin1")
    return text.encode("latin1")


_CORE = {"multiarray._reconstruct": Array, "multiarray.scalar": _scalar, "numeric._frombuffer": _from_buffer}
_PLAIN = (set, frozenset, object)
_ALLOWED: dict[str, Any] = {
    "numpy.ndarray": Array,
    "numpy.dtype": Kind,
    "_codecs.encode": _encoded,
    "collections.OrderedDict": OrderedDict,
    "copy_reg._reconstructor": _object,
    "copyreg._reconstructor": _object,
    **{f"{core}.{name}": item for core in ("numpy.core", "numpy._core") for name, item in _CORE.items()},
    **{f"{module}.{kind.__name__}": kind for module in ("builtins", "__builtin__") for kind in _PLAIN},
    **{f"{module}.bytes": _encoded for module in ("builtins", "__builtin__")},
}
_FUNCTIONS = (_scalar, _from_buffer, _encoded, _object)
_OPCODES = {opcode.code.encode("latin1"): opcode for opcode in pickletools.opcodes}
_LITERALS = frozenset(
    opcode.name
    for opcode in pickletools.opcodes
    if opcode.arg and not opcode.stack_before and opcode.stack_after not in ([], [pickletools.anyobject])
)


class _Interpreter:
    """The opcodes of pickles that standard picklers write for data, without those that pop or copy."""

    def __init__(self, data: bytes) -> None:
        self._file, self._budget = io.BytesIO(data), len(data)
        self._stack: list[Any] = []  # since the last mark
        self._below: list[list[Any]] = []  # the stacks before each mark
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        """Interpret up to STOP."""
        for _ in range(MOST_OPCODES):
            code = self._file.read(1)
            opcode = _OPCODES.get(code)
            if opcode is None:
                raise EOFError if not code else pickle.UnpicklingError(f"opcode {code!r} is unknown")
            if opcode.name == "STOP":
                return self._pop()
            self._apply(opcode.name, self._argument(opcode))
        raise pickle.UnpicklingError(f"more than {MOST_OPCODES} opcodes")

    def _argument(self, opcode: Any) -> Any:
        """The argument that follows an opcode; one longer than the data is refused before it is read."""
        if opcode.name == "STRING":  # pickletools reads ASCII alone, Python 2 wrote bytes
            quoted = pickletools.read_stringnl(self._file, decode=False)
            return codecs.escape_decode(quoted)[0].decode("latin1")
        return None if opcode.arg is None else opcode.arg.reader(self._file)

    def _apply(self, name: str, argument: Any) -> None:
        if name in _LITERALS:
            self._stack.append(argument)
            return
        push = self._push
        match name:
            case "PROTO" | "FRAME":
                pass
            case "NONE":
                push(None)
            case "NEWTRUE" | "NEWFALSE":
                push(name == "NEWTRUE")
            case "MARK":
                self._below.append(self._stack)
                self._stack = []
            case "GET" | "BINGET" | "LONG_BINGET":
                push(self._memo[argument])
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self._memo[argument] = self._top()
            case "MEMOIZE":
                self._memo[len(self._memo)] = self._top()
            case "EMPTY_LIST" | "EMPTY_DICT" | "EMPTY_SET" | "EMPTY_TUPLE":
                push({"L": list, "D": dict, "S": set, "T": tuple}[name[6]]())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                push(tuple(reversed([self._pop() for _ in range(int(name[-1]))])))
            case "TUPLE":
                push(tuple(self._marked()))
            case "LIST":
                push(self._marked())
            case "DICT":
                push(_pairs(self._marked()))
            case "FROZENSET":
                push(frozenset(_keys(self._marked())))
            case "APPEND" | "APPENDS":
                items = [self._pop()] if name == "APPEND" else self._marked()
                self._top(list).extend(items)
            case "SETITEM" | "SETITEMS":
                items = [self._pop(), self._pop()][::-1] if name == "SETITEM" else self._marked()
                self._top(dict, OrderedDict).update(_pairs(items))
            case "ADDITEMS":
                items = self._marked()
                self._top(set).update(_keys(items))
            case "GLOBAL":
                push(_named(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                attribute, module = self._pop(), self._pop()
                push(_named(module, attribute))
            case "REDUCE":
                given, function = self._pop(), self._pop()
                push(self._called(function, given))
            case "NEWOBJ":
                given, kind = self._pop(), self._pop()
                push(_new(kind, *given))
            case "BUILD":
                state = self._pop()
                target = self._top()
                if not isinstance(target, Inert):
                    raise pickle.UnpicklingError(f"no state is set on {type(target).__name__}")
                target.state = state
            case _:
                raise pickle.UnpicklingError(f"opcode {name}, which data does not need")

    def _called(self, function: Any, given: Any) -> Any:
        """The value of a call, which may copy no more than the whole data in all calls."""
        if not isinstance(given, tuple):
            raise pickle.UnpicklingError(f"arguments of type {type(given).__name__}")
        sized = (each for each in given if isinstance(each, str | bytes | list | tuple | dict))
        self._budget -= sum(map(len, sized))
        if self._budget < 0:
            raise pickle.UnpicklingError("calls that copy data again and again")
        if function in (set, frozenset):
            return function(_keys(*given))
        if function is OrderedDict:
            return OrderedDict(_pairs([item for pair in (given[0] if given else ()) for item in pair]))
        return function(*given) if function in _FUNCTIONS else _new(function, *given)

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop(self) -> Any:
        self._top()
        return self._stack.pop()

    def _top(self, *kinds: type) -> Any:
        """The topmost value above the last mark, of one of the given types if any."""
        if not self._stack:
            raise pickle.UnpicklingError("a value is missing")
        if kinds and type(self._stack[-1]) not in kinds:
            raise pickle.UnpicklingError(f"items of {type(self._stack[-1]).__name__}")
        return self._stack[-1]

    def _marked(self) -> list[Any]:
        """Pop the values above the last mark."""
        values, self._stack = self._stack, self._below.pop()
        return values


def _keys(values: Sequence[Any]) -> Sequence[Any]:
    if kinds := set(map(type, values)) - set(_KEYS):
        raise pickle.UnpicklingError(f"a key of type {kinds.pop().__name__}, expected a string or a number")
    return values


def _pairs(items: Sequence[Any]) -> dict[Any, Any]:
    return dict(zip(_keys(items[::2]), items[1::2], strict=True))


def _named(module: Any, name: Any) -> Any:
    """The stand-in or function of a name in a pickle."""
    if f"{module}.{name}" in _ALLOWED:
        return _ALLOWED[f"{module}.{name}"]
    if str(module).split(".")[0] == "chumpy":
        return Chumpy
    if str(module).startswith("scipy.sparse") and name == "csc_matrix":
        return SparseMatrix
    raise pickle.UnpicklingError(f"it refers to {module}.{name}, which is not data; nothing was executed")
