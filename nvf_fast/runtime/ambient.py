"""Independence of the caller's autocast and default device.

PyTorch's default dtype belongs to the whole process, not to a thread: instead of changing it, the library
names the dtype of every tensor that it makes.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, ContextDecorator, ExitStack, nullcontext

import torch

DEVICES = ("cpu", "cuda")  # types of those that the library computes on


def _use_one_thread() -> None:
    """Compute in this thread alone: OpenMP's others do not exist in a fork, which would wait for them."""
    torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_use_one_thread)


def autocast_off(device: str) -> AbstractContextManager[object]:
    """A context without the caller's autocast on a type of device."""
    if device in DEVICES and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()


class unaffected(ContextDecorator):
    """A context, or a decorator, without the caller's autocast and default device."""

    _changed: ExitStack | None = None

    def __enter__(self) -> None:
        autocast = [device for device in DEVICES if torch.is_autocast_enabled(device)]
        elsewhere = not torch.empty(0).is_cpu
        if not (autocast or elsewhere):
            return
        self._changed = ExitStack()
        for device in autocast:
            self._changed.enter_context(torch.autocast(device, enabled=False))
        if elsewhere:
            self._changed.enter_context(torch.device("cpu"))

    def __exit__(self, *error: object) -> None:
        if self._changed is not None:
            self._changed.close()

    def _recreate_cm(self) -> unaffected:
        return unaffected()
