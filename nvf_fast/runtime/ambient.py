"""Independence of the caller's autocast and default device.

PyTorch's default dtype belongs to the whole process, not to a thread: instead of changing it, the library
names the dtype of every tensor that it makes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial

import torch

DEVICES = ("cpu", "cuda")  # types of those that the library computes on

if hasattr(os, "register_at_fork"):
    # A fork computes in one thread: OpenMP's others do not exist in it, and it would wait for them.
    os.register_at_fork(after_in_child=partial(torch.set_num_threads, 1))


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
        if not torch.empty(0).is_cpu:
            stack.enter_context(torch.device("cpu"))
        yield
