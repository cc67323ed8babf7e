"""The definition of the 21 joints, and the size of the unit hand."""

from __future__ import annotations

# Length of bone 9-10 of a mean adult hand in FreiHAND's (MANO's) definition of the joints.
UNIT_SCALE_MM = 31.0
