"""Independence of the caller's autocast and default device.

PyTorch's default dtype belongs to the whole process, not to a thread: instead of changing it, the library
names the dtype of every tensor that it makes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

import torch

DEVICES = ("cpu", "cuda")  # types of those that the library computes on


def autocast_off(device: str) -> AbstractContextManager[object]:
    """A context without the caller's autocast on a type of device."""
    if device in DEVICES and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()


@contextmanager
def unaffected() -> Iterator[None]:
    """A context, or a decorator, without the caller's autocast and default device."""
    with ExitStack() as stack:
        for device in DEVICES:
            stack.enter_context(autocast_off(device))
        if torch.empty(0).device.type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield
