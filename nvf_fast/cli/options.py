"""Types of command-line options that show only informative defaults in their help."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

import tyro

T = TypeVar("T")


def _default_hint(default: str) -> str:
    return "" if default in ("", "None", "False") else f"(default: {default})"


Optional = Annotated[T | None, tyro.conf.DisallowNone, tyro.conf.arg(help_behavior_hint=_default_hint)]
"""An option that may be absent; its help text describes that case."""

Several = Annotated[tuple[T, ...], tyro.conf.arg(help_behavior_hint=_default_hint)]
"""An option of any number of values, by default none."""

Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(help_behavior_hint=_default_hint)]
"""An option without a value, by default off."""


@dataclass(frozen=True)
class ViewMaterial:
    """Images and hands for the views of a default network."""

    # for hand views, folder of labelled photographs (docs/datasets.md), whose training split is used
    photographs: Optional[Path] = None
    leave_out: Several[str] = ()  # groups of photographs to exclude
    backgrounds: Optional[Path] = None  # for hand views, folder of images and panoramas behind hands
    rigs: Several[Path] = ()  # for hand views, rigged right hands (glTF) in addition to the built-in one
    textures: Several[Path] = ()  # images of skin for the rigs' texture coordinates
