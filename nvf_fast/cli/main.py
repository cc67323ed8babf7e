"""`nvf-fast`: choose a command and import only its module."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import re
import shutil
import sys
import textwrap
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

import nvf_fast
from nvf_fast.cli import UserError, user_errors
from nvf_fast.runtime.extras import MissingExtraError

COMMANDS = {
    "demo": "find the hands of the included image",
    "predict": "find hands in images",
    "track": "follow hands through a video",
    "view": "show the hands of an image as an interactive 3D page",
    "train": "train a network",
    "calibrate": "fit vote weights, expected errors and thresholds of a trained network",
    "eval": "measure a checkpoint on a data set",
    "export": "write a network as ONNX files or exported PyTorch programs",
    "reproduce": "make a table or a figure of the paper",
    "tune": "find the fastest block shapes of the field kernel on this device",
    "info": "describe a checkpoint",
}
USAGE = """usage: nvf-fast COMMAND [OPTIONS]

Camera-space 3D hand pose from one RGB image. Lengths are mm. Pixel (0, 0) is the centre of the first pixel.

{commands}

nvf-fast COMMAND --help lists the command's options with their units; nvf-fast --version prints the version.
"""
ANSI_CODE = re.compile(r"\033\[[\d;]*m")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `nvf-fast ARGUMENTS`, by default those of the process.

    A user's error ends with status 2, Ctrl-C with 130, and output that is closed early with 141, the statuses
    of programs that SIGINT or SIGPIPE stops.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # code pages of Windows lack most letters
    try:
        try:
            _run(*(sys.argv[1:] if arguments is None else arguments))
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        _end("", "interrupted", 130)
    except BrokenPipeError:
        _discard_output()
        raise SystemExit(141) from None
    except OSError as error:
        _discard_output()
        _end("", f"standard output: {error.strerror}")


def _run(name: str = "--help", *rest: str) -> None:
    if name in ("-h", "--help"):
        commands = "\n".join(f"  {key:10} {text}" for key, text in COMMANDS.items())
        print(_wrap(USAGE.format(commands=commands)), end="")
        return
    if name == "--version":
        print(nvf_fast.__version__)
        return
    if name not in COMMANDS:
        _end("", f"unknown command {name!r}; the commands are {', '.join(COMMANDS)}")

    twice = sorted(option for option, count in Counter(map(_option, rest)).items() if option and count > 1)
    if twice:
        _end(f" {name}", f"{', '.join(twice)} given more than once: pass several values after one option")

    option = "an argument"
    for argument in rest:
        option = _option(argument) or option
        if not argument or (argument.startswith("--") and argument.partition("=")[1:] == ("=", "")):
            _end(f" {name}", f"{option} is an empty string: expected a path or another value")

    import tyro

    from nvf_fast.cli.options import REGISTRY

    command = getattr(importlib.import_module(f"nvf_fast.cli.{name}"), name.capitalize())
    try:
        with REGISTRY, contextlib.redirect_stdout(_WrappedOutput(sys.stdout)), user_errors():
            options = tyro.cli(command, prog=f"nvf-fast {name}", args=rest)
        with _messages(name):
            options.run()
    except (UserError, MissingExtraError) as error:
        _end(f" {name}", str(error))
    except BrokenPipeError:
        raise
    except OSError as error:
        named = error.filename is not None and error.strerror
        _end(f" {name}", f"{error.filename}: {error.strerror}" if named else str(error))


@contextlib.contextmanager
def _messages(command: str) -> Iterator[None]:
    """Write warnings and records of the library's log as lines of their own, above a progress bar."""
    from tqdm import tqdm

    def write(message: object, *_: object) -> None:
        tqdm.write(f"nvf-fast {command}: {' '.join(str(message).split())}", file=sys.stderr)

    handler, log = logging.Handler(), logging.getLogger("nvf_fast")
    handler.emit = lambda record: write(record.getMessage())  # type: ignore[method-assign]
    log.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = write  # type: ignore[assignment]
            yield
    finally:
        log.removeHandler(handler)


class _WrappedOutput:
    """Standard output with wrapped lines: tyro wraps only the options, not the text above them."""

    def __init__(self, output: TextIO) -> None:
        self._output = output

    def write(self, text: str) -> int:
        return self._output.write(_wrap(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._output, name)


def _wrap(text: str) -> str:
    """Wrap lines to the width of the terminal."""
    width = shutil.get_terminal_size().columns
    lines = []
    for line in text.split("\n"):
        if len(ANSI_CODE.sub("", line)) > width:
            usage = "usage: " in line
            indent = 7 if usage else 13 if line.startswith("  ") else 0
            line = textwrap.fill(
                line.replace(",", ", ") if usage else line,
                width,
                subsequent_indent=indent * " ",
                break_on_hyphens=False,
                break_long_words=False,
            )
        lines.append(line)
    return "\n".join(lines)


def _option(argument: str) -> str:
    """The option that an argument names, as `--some-name`, or an empty string."""
    return argument.split("=")[0].replace("_", "-") if argument.startswith("--") else ""


def _discard_output() -> None:
    """Discard standard output, since Python tries to write the remaining output again when it exits."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _end(command: str, message: str, status: int = 2) -> None:
    lines = [line.rstrip() for line in message.splitlines() if line.strip()]
    print(f"nvf-fast{command}: " + "\n".join(lines), file=sys.stderr)
    raise SystemExit(status)
