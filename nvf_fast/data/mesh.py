"""Openings of triangle meshes."""

from __future__ import annotations

import numpy as np
from trimesh.geometry import faces_to_edges


def openings(faces: np.ndarray) -> list[list[int]]:
    """Vertices around each opening of a surface of faces (F, 3), in the order in which faces pass them."""
    edges = {(int(start), int(end)) for start, end in faces_to_edges(faces)}
    after = {start: end for start, end in edges if (end, start) not in edges}
    loops: list[list[int]] = []
    while after:
        loops.append([min(after)])
        while (vertex := after.pop(loops[-1][-1], None)) is not None and vertex != loops[-1][0]:
            loops[-1].append(vertex)
    return loops
