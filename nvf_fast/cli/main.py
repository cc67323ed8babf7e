"""`nvf-fast`: chooses the subcommand and imports nothing but it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

import nvf_fast
from nvf_fast.cli import UserError

COMMANDS = {
    "demo": "run the model on the picture that comes with it",
    "predict": "find the hand in pictures",
    "train": "train a network on a data set",
    "calibrate": "fit vote weights, expected errors and the threshold of presence of a trained network",
    "eval": "measure a checkpoint on a data set",
    "reproduce": "make a table or a figure of the paper",
    "tune": "find the fastest block shapes of the field kernel on this device",
    "info": "say what a checkpoint is and how it was trained",
}
USAGE = """usage: nvf-fast COMMAND [OPTIONS]

Camera-space 3D hand pose from one RGB picture; lengths in mm, pixels counted from the centre of the first.

{commands}

nvf-fast COMMAND --help prints a command's options with their units; nvf-fast --version the version.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs `nvf-fast ARGUMENTS`, by default those of the process. Ends with status 2 where the user erred."""
    name, *rest = [*(sys.argv[1:] if arguments is None else arguments)] or ["--help"]
    if name in ("-h", "--help"):
        commands = "\n".join(f"  {key:10} {text}" for key, text in COMMANDS.items())
        print(USAGE.format(commands=commands), end="")
        return
    if name == "--version":
        print(nvf_fast.__version__)
        return
    if name not in COMMANDS:
        _end("", f"no command {name!r}; there are {', '.join(COMMANDS)}")

    import tyro

    command = getattr(importlib.import_module(f"nvf_fast.cli.{name}"), name.capitalize())
    options = tyro.cli(command, prog=f"nvf-fast {name}", args=rest)
    try:
        options.run()
    except UserError as error:
        _end(f" {name}", str(error))
    except FileNotFoundError as error:
        _end(f" {name}", f"{error.filename}: {error.strerror}" if error.filename else str(error))


def _end(command: str, message: str) -> None:
    lines = [line.rstrip() for line in message.splitlines() if line.strip()]
    print(f"nvf-fast{command}: " + "\n".join(lines), file=sys.stderr)
    raise SystemExit(2)
