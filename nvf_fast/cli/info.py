"""`nvf-fast info`: what a checkpoint is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from nvf_fast.cli import user_errors


@tyro.conf.configure(tyro.conf.DisallowNone)
@dataclass(frozen=True)
class Info:
    """Say what a checkpoint is: the network, how it was trained, on what, and its scores. Checks the weights.

    Attributes:
        checkpoint: an embedded checkpoint, a checkpoint folder or a hub id; the embedded one when absent.
    """

    checkpoint: Annotated[str | None, tyro.conf.Positional] = None

    def run(self) -> None:
        from nvf_fast.checkpoint import load_checkpoint, resolve

        with user_errors():
            folder = resolve(self.checkpoint)
            model, info = load_checkpoint(folder)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        lines = {"checkpoint": str(folder), "parameters": f"{parameters:,}", **dict(_flat("", info))}
        width = max(map(len, lines))
        for name, value in lines.items():
            print(f"{name:{width}}  {value}")


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(f"{prefix}.{key}" if prefix else str(key), inner)
    else:
        yield prefix, value
