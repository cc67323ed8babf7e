"""Progress bars on standard error."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress_bar(iterable: Iterable[Any] | None = None, *, hidden: bool = False, **options: Any) -> Any:
    """Make a tqdm bar, which is shown only on a terminal: a log file would hold a line per update.

    Args:
        iterable: to count; without one, `total` is an option and `update` moves the bar.
        hidden: shows no bar on a terminal either.
        options: of tqdm.
    """
    return tqdm(iterable, disable=hidden or None, dynamic_ncols=True, **options)
