"""The comparison of the searches with the dense grid."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.searches import COLUMNS, compare, released


@pytest.mark.slow
@pytest.mark.parametrize(("search", "step"), [("guided", 32), ("dense", 32)])
def test_rows_say_how_far_a_search_is_from_the_dense_grid(search: str, step: float) -> None:
    row = dict(zip(COLUMNS, compare("released", step, search, 1, released(step)), strict=True))
    assert row["pictures"] == 1 and row["points asked"] <= 3183 and np.isfinite(row["times as fast"])
    assert row["voters missed"].startswith("0 of ") and row["largest (mm)"] < 1e-3
    assert row["all asked"] == (search == "dense")
