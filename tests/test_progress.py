"""Progress bars, and the messages beside them."""

from __future__ import annotations

import io
import sys

import pytest

from nvf_fast.runtime.progress import progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("kind", "hidden", "shown"), [
    (Terminal, False, True), (Terminal, True, False), (io.StringIO, False, False),
])  # fmt: skip
def test_bars_are_shown_on_terminals_only(
    kind: type[io.StringIO], hidden: bool, shown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", kind())
    assert list(progress_bar(range(3), desc="hands", hidden=hidden)) == [0, 1, 2]
    assert ("hands" in sys.stderr.getvalue()) == shown
