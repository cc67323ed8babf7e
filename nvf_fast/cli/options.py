"""Types of command-line options that show only informative defaults in their help."""

from __future__ import annotations

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
