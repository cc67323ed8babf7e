"""Numbers from arguments."""

from __future__ import annotations

from numbers import Real
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import torch
from torch import Tensor

MOST_NUMBERS = 2**20  # of an argument other than images, meshes and batches of poses


def check_number(name: str, value: Any) -> None:
    """Refuse all but a real number, with a `TypeError`."""
    if not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r}")


def check_dense(name: str, tensor: Tensor) -> None:
    """Refuse tensors whose values cannot be read as an array, with a `TypeError`."""
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
        kind = "quantized" if tensor.is_quantized else tensor.layout
        raise TypeError(f"{name} must be a dense tensor with values, got a {kind} one on {tensor.device}")


def check_choices(config: object) -> None:
    """Check the fields of a dataclass whose type is a `Literal`.

    Raises:
        ValueError: one has another value.
    """
    for name, hint in get_type_hints(type(config)).items():
        if get_origin(hint) is Literal and (value := getattr(config, name)) not in get_args(hint):
            raise ValueError(f"{name} must be one of {get_args(hint)}, got {value!r}")


def check_ranges(config: object, **intervals: str) -> None:
    """Check numbers of a configuration by name against intervals such as "[0, 1)"; None is in each.

    Raises:
        ValueError: a number lies outside.
    """
    for name, interval in intervals.items():
        value = getattr(config, name)
        low, high = map(float, interval[1:-1].split(","))
        open_ends = (interval[0] == "(" and value == low) or (interval[-1] == ")" and value == high)
        if value is not None and (open_ends or not low <= value <= high):
            raise ValueError(f"{name} must lie in {interval}, got {value}")


def read_numbers(name: str, value: Any, expected: str, most: int = MOST_NUMBERS) -> np.ndarray:
    """A new float64 array of integers or floats. NumPy would also read strings and drop imaginary parts.

    Args:
        name: of the argument, for messages.
        value: numbers, lists of them, or an array, numpy or torch on any device.
        expected: description for messages.
        most: numbers. They are counted before they are copied, since the array may be a small one, broadcast.

    Raises:
        TypeError: it holds something else.
        ValueError: they are too many.
    """
    try:
        given = value.detach() if isinstance(value, Tensor) else np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be {expected}, got {value!r}") from error
    if isinstance(given, Tensor):
        numbers, count = given.dtype != torch.bool and not given.is_complex(), given.numel()
    else:
        numbers, count = given.dtype.kind in "iuf", given.size
    if not numbers:
        raise TypeError(f"{name} must be {expected}, got {value!r}")
    if count > most:
        raise ValueError(f"{name} must be {expected}, got shape {tuple(given.shape)}")
    if isinstance(given, Tensor):
        check_dense(name, given)
        return given.cpu().double().numpy().copy()
    return np.array(given, dtype=np.float64)
