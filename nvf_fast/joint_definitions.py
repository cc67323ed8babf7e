"""The definition of the 21 joints, and the size of the unit hand.

FreiHAND's definition is MANO's: the wrist and the three joints of each finger are the pivots of MANO's
skeleton, the fingertips are points on its skin. The figures below are those of MANO's mean shape (all shape
coefficients zero) in its flat pose: J. Romero, D. Tzionas and M. J. Black, "Embodied Hands", ACM Transactions
on Graphics 36(6), 2017, measured between the mean joint positions that public users of MANO quote.
"""

from __future__ import annotations

import numpy as np

PARENTS = (-1, 0, 1, 2, 3, 0, 5, 6, 7, 0, 9, 10, 11, 0, 13, 14, 15, 0, 17, 18, 19)
"""The joint before each of the 21, on the way to the wrist; bone j runs from `PARENTS[j]` to j."""

UNIT_SCALE_MM = 31.74
"""Length of bone 9-10 of the unit hand."""

UNIT_BONES_MM = np.array(
    [
        *(38.57, 30.79, 27.09, 34.70),
        *(90.64, 33.00, 22.19, 23.62),
        *(94.73, 31.74, 23.28, 26.47),
        *(86.07, 28.84, 24.79, 24.37),
        *(81.84, 21.11, 18.95, 19.11),
    ],
    dtype=np.float32,
)
"""(20,) lengths of the unit hand's bones; bone j ends at joint j + 1."""
