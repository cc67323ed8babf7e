"""Forked children with limits: of memory, of the size of files, of permissions; killed at chosen moments."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from nvf_fast.cli.main import main

MINUTE = 60.0
DAC_OVERRIDE = 1  # the capability by which root writes into folders without permission
INTERRUPTS = {signal.SIGINT, signal.SIGTERM}
OPERATIONS = ("open", "os.rename", "os.remove", "os.mkdir", "fsync")


class Child:
    """A forked child that runs a function and writes into a file what it would print.

    Args:
        work: the function; its result is the exit status.
        prepare: runs before it, such as a limit.
    """

    def __init__(self, work: Callable[[], int], prepare: Callable[[], None] = lambda: None) -> None:
        self._status: int | None = None
        self._output = tempfile.TemporaryFile()  # noqa: SIM115, it is read after the end
        # A child must not be interrupted outside of `try`, where it would go on as the parent does.
        signal.pthread_sigmask(signal.SIG_BLOCK, INTERRUPTS)
        self.process = os.fork()
        if self.process > 0:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, INTERRUPTS)
        else:
            status = 99
            try:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, INTERRUPTS)
                os.dup2(self._output.fileno(), 1)
                os.dup2(self._output.fileno(), 2)
                sys.stdout = sys.stderr = open(1, "w", closefd=False)  # noqa: SIM115
                prepare()
                status = work()
            except SystemExit as end:
                status = int(end.code or 0)
            except KeyboardInterrupt:
                status = 130
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(status)

    def kill(self, after: float, by: signal.Signals) -> None:
        """Send a signal after some seconds."""
        time.sleep(after)
        if self._status is None:
            os.kill(self.process, by)

    def wait(self, limit: float = 10 * MINUTE) -> int:
        """The exit status, negative for a signal; a child that does not end in time counts as SIGALRM."""
        until = time.monotonic() + limit
        while self._status is None:
            process, status = os.waitpid(self.process, os.WNOHANG)
            if process:
                self._status = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > until:
                os.kill(self.process, signal.SIGKILL)
                os.waitpid(self.process, 0)
                self._status = -signal.SIGALRM
            else:
                time.sleep(0.005)
        return self._status

    def output(self) -> str:
        self._output.seek(0)
        return self._output.read().decode(errors="replace")


def command(*arguments: object) -> Callable[[], int]:
    """A function that runs `nvf-fast ARGUMENTS`."""

    def run() -> int:
        main([str(argument) for argument in arguments])
        return 0

    return run


def killed_at(operation: int) -> Callable[[], None]:
    """Kill this process before its n-th operation on files."""

    def prepare() -> None:
        left = operation

        def strike(event: str, arguments: object = ()) -> None:
            nonlocal left
            if event in OPERATIONS:
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sync = os.fsync
        os.fsync = lambda handle: (strike("fsync"), sync(handle))[1]  # type: ignore[assignment]
        sys.addaudithook(strike)

    return prepare


def count_operations(work: Callable[[], int]) -> int:
    """Operations on files of an undisturbed run."""
    low, high = 1, 2
    while Child(work, killed_at(high)).wait() == -signal.SIGKILL:
        low, high = high, 2 * high
    return low


def largest_file(size: int) -> Callable[[], None]:
    """Let writes beyond a size of files fail, as on a full disk."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def more_memory(size: int) -> Callable[[], None]:
    """Let allocations fail that exceed the present memory by a number of bytes."""

    def prepare() -> None:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + size, used + size))

    return prepare


def without_override() -> None:
    """Let root obey the permissions of files."""

    class Header(ctypes.Structure):
        _fields_ = (("version", ctypes.c_uint32), ("process", ctypes.c_int))

    header, data, libc = Header(0x20080522, 0), (ctypes.c_uint32 * 6)(), ctypes.CDLL(None)
    libc.capget(ctypes.byref(header), data)
    data[0] &= ~(1 << DAC_OVERRIDE)
    libc.capset(ctypes.byref(header), data)
