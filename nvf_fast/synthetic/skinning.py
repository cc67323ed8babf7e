"""Skinning of a hand in two steps: shape at rest by blended affine maps, pose by blended dual quaternions.

Linear blend skinning collapses the skin inside a bent finger; dual quaternions keep its volume (L. Kavan et
al., "Skinning with dual quaternions", I3D 2007). They represent rigid motions only, so that bones change
their lengths and girths first, in the rest pose, where blending affine maps causes no artefacts.
"""

from __future__ import annotations

import numpy as np

from nvf_fast.runtime.compiled import compiled


@compiled()
def blend_maps(
    vertices: np.ndarray, indices: np.ndarray, weights: np.ndarray, linear: np.ndarray, offset: np.ndarray
) -> np.ndarray:
    """Move vertices (V, 3) by affine maps, linear (J, 3, 3) and offset (J, 3), of the joints `indices`
    (V, K), blended by `weights` (V, K) with sums of one."""
    out = np.zeros_like(vertices)
    for i in range(len(vertices)):
        x, y, z = vertices[i]
        for k in range(indices.shape[1]):
            w, j = weights[i, k], indices[i, k]
            for d in range(3):
                moved = linear[j, d, 0] * x + linear[j, d, 1] * y + linear[j, d, 2] * z + offset[j, d]
                out[i, d] += w * moved
    return out


@compiled()
def blend_motions(
    vertices: np.ndarray, indices: np.ndarray, weights: np.ndarray, rotation: np.ndarray, offset: np.ndarray
) -> np.ndarray:
    """Move vertices (V, 3) by rigid motions, rotation (J, 3, 3) and offset (J, 3), of the joints `indices`
    (V, K), that of the largest weight first, blended as dual quaternions by `weights` (V, K)."""
    real, dual = np.empty((len(rotation), 4)), np.empty((len(rotation), 4))
    for j in range(len(rotation)):
        real[j] = _quaternion(rotation[j])
        w, x, y, z = real[j]
        u, v, t = offset[j]
        dual[j, 0] = -0.5 * (u * x + v * y + t * z)
        dual[j, 1] = 0.5 * (u * w + v * z - t * y)
        dual[j, 2] = 0.5 * (v * w + t * x - u * z)
        dual[j, 3] = 0.5 * (t * w + u * y - v * x)
    out = np.empty_like(vertices)
    for i in range(len(vertices)):
        r0 = r1 = r2 = r3 = d0 = d1 = d2 = d3 = 0.0
        first = real[indices[i, 0]]
        for k in range(indices.shape[1]):
            r, d, w = real[indices[i, k]], dual[indices[i, k]], weights[i, k]
            if r[0] * first[0] + r[1] * first[1] + r[2] * first[2] + r[3] * first[3] < 0:
                w = -w  # q and -q are one rotation; blend on the side of the largest weight
            r0 += w * r[0]
            r1 += w * r[1]
            r2 += w * r[2]
            r3 += w * r[3]
            d0 += w * d[0]
            d1 += w * d[1]
            d2 += w * d[2]
            d3 += w * d[3]
        n = np.sqrt(r0 * r0 + r1 * r1 + r2 * r2 + r3 * r3)
        r0, r1, r2, r3, d0, d1, d2, d3 = r0 / n, r1 / n, r2 / n, r3 / n, d0 / n, d1 / n, d2 / n, d3 / n
        x, y, z = vertices[i]
        cx, cy, cz = r2 * z - r3 * y, r3 * x - r1 * z, r1 * y - r2 * x  # q x v
        out[i, 0] = x + 2 * (r0 * cx + r2 * cz - r3 * cy + r0 * d1 - d0 * r1 + r2 * d3 - r3 * d2)
        out[i, 1] = y + 2 * (r0 * cy + r3 * cx - r1 * cz + r0 * d2 - d0 * r2 + r3 * d1 - r1 * d3)
        out[i, 2] = z + 2 * (r0 * cz + r1 * cy - r2 * cx + r0 * d3 - d0 * r3 + r1 * d2 - r2 * d1)
    return out


@compiled()
def _quaternion(m: np.ndarray) -> np.ndarray:
    """(4,) w, x, y, z of a rotation matrix (3, 3), by its largest component."""
    q = np.empty(4)
    trace = m[0, 0] + m[1, 1] + m[2, 2]
    if trace > 0:
        s = 2 * np.sqrt(trace + 1)
        q[0] = s / 4
        q[1] = (m[2, 1] - m[1, 2]) / s
        q[2] = (m[0, 2] - m[2, 0]) / s
        q[3] = (m[1, 0] - m[0, 1]) / s
        return q
    i = 0
    if m[1, 1] > m[0, 0]:
        i = 1
    if m[2, 2] > m[i, i]:
        i = 2
    j, k = (i + 1) % 3, (i + 2) % 3
    s = 2 * np.sqrt(1 + m[i, i] - m[j, j] - m[k, k])
    q[0] = (m[k, j] - m[j, k]) / s
    q[1 + i] = s / 4
    q[1 + j] = (m[j, i] + m[i, j]) / s
    q[1 + k] = (m[k, i] + m[i, k]) / s
    return q
