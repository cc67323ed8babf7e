"""Edges and openings of triangle meshes."""

from __future__ import annotations

import numpy as np


def directed_edges(faces: np.ndarray) -> np.ndarray:
    """(3 F, 2) edges of faces (F, 3): all first edges, then all second and all third ones."""
    return np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])


def openings(faces: np.ndarray) -> list[list[int]]:
    """Vertices around each opening of a surface of faces (F, 3), in the order in which faces pass them."""
    edges = {(int(start), int(end)) for start, end in directed_edges(faces)}
    after = {start: end for start, end in edges if (end, start) not in edges}
    loops: list[list[int]] = []
    while after:
        loops.append([min(after)])
        while (vertex := after.pop(loops[-1][-1], None)) is not None and vertex != loops[-1][0]:
            loops[-1].append(vertex)
    return loops
