"""The comparison of the searches with the dense grid."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.searches import COLUMNS, compare, released


@pytest.mark.slow
def test_search_misses_no_voter() -> None:
    row = dict(zip(COLUMNS, compare("released", 32, "guided", 1, released(32)), strict=True))
    assert row["voters missed"].startswith("0 of ") and row["largest (mm)"] < 1e-3
    assert row["images"] == 1 and np.isfinite(row["times as fast"])
    # A grid no finer than the first level of a guided search is queried whole.
    assert row["all queried"] == 1 and row["points queried"] == 3183
