"""Signed distance to a closed triangle mesh: a program processes a block of points and loops over all faces.

Faces lie along the lanes, so that values of a face are computed once for all the program's points, and the
lanes are reduced only at the end.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

_POINTS = 16
_FACES = 32
_WARPS = 4


@triton.jit
def load_corner(ptr, face, face_count):
    """x, y and z of one corner of each face, at `ptr` in an image of `mesh_corners`."""
    step = tl.cast(face_count, tl.int64) * 3
    face = face.to(tl.int64)
    return tl.load(ptr + face), tl.load(ptr + step + face), tl.load(ptr + 2 * step + face)


@triton.jit
def _dot(ax, ay, az, bx, by, bz):
    return ax * bx + ay * by + az * bz


@triton.jit
def _rotate(a, b, c, from_b, from_c):
    first = tl.where(from_b, b, tl.where(from_c, c, a))
    second = tl.where(from_b, c, tl.where(from_c, a, b))
    return first, second, tl.where(from_b, a, tl.where(from_c, b, c))


@triton.jit
def _to_edge(x, y, z, ex, ey, ez):
    """mm², squared distance from the origin to the edge (ex, ey, ez) that starts at (x, y, z)."""
    length = tl.maximum(_dot(ex, ey, ez, ex, ey, ez), 1.1754944e-38)  # 0 / tiny = 0, no NaN
    along = -_dot(x, y, z, ex, ey, ez) * (1.0 / length)
    along = tl.minimum(tl.maximum(along, 0.0), 1.0)
    x, y, z = x + along * ex, y + along * ey, z + along * ez
    return _dot(x, y, z, x, y, z)


@triton.jit
def _turn(x, y, x_next, y_next):
    """1 or -1 where an edge passes the origin's right from below or above, by half-open ends; else 0.

    The products are compared, not subtracted: nothing can be fused, and seen from the other face the edge
    gives exactly the opposite.
    """
    above, above_next = y > 0, y_next > 0
    one, other = x * y_next, y * x_next
    up = (above_next & (one > other)) & (above == 0)
    down = (above & (one < other)) & (above_next == 0)
    return up.to(tl.int32) - down.to(tl.int32)


@triton.jit
def measure_distance(
    corners_ptr, points_ptr, distance_ptr, face_count, point_count, POINTS: tl.constexpr, FACES: tl.constexpr
):
    # One axis for images and blocks: CUDA allows only 65535 programs along the others.
    blocks = tl.cdiv(point_count, POINTS)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    corners_ptr += image * face_count * 9
    points_ptr += image * point_count * 3
    distance_ptr += image * point_count
    point = (tl.program_id(0) % blocks).to(tl.int64) * POINTS + tl.arange(0, POINTS)
    valid = point < point_count
    px = tl.load(points_ptr + point * 3, mask=valid, other=0.0)[:, None]
    py = tl.load(points_ptr + point * 3 + 1, mask=valid, other=0.0)[:, None]
    pz = tl.load(points_ptr + point * 3 + 2, mask=valid, other=0.0)[:, None]
    nearest = tl.full((POINTS, FACES), float("inf"), tl.float32)
    winding = tl.zeros((POINTS, FACES), tl.int32)

    first = 0
    while first < face_count:
        face = first + tl.arange(0, FACES)
        # A tile that extends past the last face repeats it; only the distance may count a face twice.
        there = (face < face_count)[None, :]
        face = tl.minimum(face, face_count - 1)[None, :]
        ax, ay, az = load_corner(corners_ptr, face, face_count)
        bx, by, bz = load_corner(corners_ptr + face_count, face, face_count)
        cx, cy, cz = load_corner(corners_ptr + 2 * tl.cast(face_count, tl.int64), face, face_count)
        # The first corner is opposite the longest edge, which defines the plane of a sliver best.
        ab = _dot(bx - ax, by - ay, bz - az, bx - ax, by - ay, bz - az)
        bc = _dot(cx - bx, cy - by, cz - bz, cx - bx, cy - by, cz - bz)
        ca = _dot(ax - cx, ay - cy, az - cz, ax - cx, ay - cy, az - cz)
        from_b, from_c = (ca > ab) & (ca > bc), (ab >= bc) & (ab >= ca)
        ax, bx, cx = _rotate(ax, bx, cx, from_b, from_c)
        ay, by, cy = _rotate(ay, by, cy, from_b, from_c)
        az, bz, cz = _rotate(az, bz, cz, from_b, from_c)
        abx, aby, abz = bx - ax, by - ay, bz - az
        bcx, bcy, bcz = cx - bx, cy - by, cz - bz
        cax, cay, caz = ax - cx, ay - cy, az - cz
        nx, ny, nz = cay * abz - caz * aby, caz * abx - cax * abz, cax * aby - cay * abx
        per_area = 1.0 / _dot(nx, ny, nz, nx, ny, nz)  # for a face without area, `inside` is never true
        vx, vy, vz = (
            (cay * nz - caz * ny) * per_area,
            (caz * nx - cax * nz) * per_area,
            (cax * ny - cay * nx) * per_area,
        )
        wx, wy, wz = (
            (aby * nz - abz * ny) * per_area,
            (abz * nx - abx * nz) * per_area,
            (abx * ny - aby * nx) * per_area,
        )

        # Relative to the point: the difference of nearby numbers is exact.
        ax, ay, az = ax - px, ay - py, az - pz
        bx, by, bz = bx - px, by - py, bz - pz
        cx, cy, cz = cx - px, cy - py, cz - pz
        turns = _turn(ax, ay, bx, by) + _turn(bx, by, cx, cy) + _turn(cx, cy, ax, ay)
        # Corners that agree determine the result: rounding is unbounded on the plane of a vertical face.
        higher = turns.to(tl.float32) * _dot(ax, ay, az, nx, ny, nz) > 0
        low, high = tl.minimum(tl.minimum(az, bz), cz), tl.maximum(tl.maximum(az, bz), cz)
        winding += tl.where(there & ((low > 0) | ((high > 0) & higher)), turns, 0)

        # The foot on the plane from its barycentric coordinates, as in the reference.
        v, w = _dot(ax, ay, az, vx, vy, vz), _dot(ax, ay, az, wx, wy, wz)
        fx, fy, fz = ax + v * abx - w * cax, ay + v * aby - w * cay, az + v * abz - w * caz
        inside = (v >= 0) & (w >= 0) & (v + w <= 1)
        squared = tl.where(inside, _dot(fx, fy, fz, fx, fy, fz), float("inf"))
        squared = tl.minimum(squared, _to_edge(ax, ay, az, abx, aby, abz))
        squared = tl.minimum(squared, _to_edge(bx, by, bz, bcx, bcy, bcz))
        squared = tl.minimum(squared, _to_edge(cx, cy, cz, cax, cay, caz))
        nearest = tl.minimum(nearest, squared)

        first += FACES

    distance = tl.sqrt(tl.min(nearest, 1))[:, None]
    distance = tl.where(tl.sum(winding, 1)[:, None] != 0, -distance, distance)
    # Infinity and NaN minus themselves are NaN; the minimum may have dropped these.
    distance += (px - px) + (py - py) + (pz - pz)
    tl.store(distance_ptr + point[:, None], distance, mask=valid[:, None])


def mesh_distance(vertices: Tensor, faces: Tensor, points: Tensor) -> Tensor:
    """Signed distances (B, N) mm, as in the reference; all float32."""
    batch, point_count, _ = points.shape
    distance = points.new_empty(batch, point_count)
    if distance.numel() > 0:
        measure_distance[(batch * triton.cdiv(point_count, _POINTS),)](
            mesh_corners(vertices, faces),
            points.contiguous(),
            distance,
            len(faces),
            point_count,
            POINTS=_POINTS,
            FACES=_FACES,
            num_warps=_WARPS,
            enable_fp_fusion=True,
        )
    return distance


def mesh_corners(vertices: Tensor, faces: Tensor) -> Tensor:
    """Corners (B, xyz, 3 F) of faces, the first ones of all faces before the second ones."""
    # CUDA asserts that indices are in range, without synchronisation.
    return vertices.mT.index_select(2, faces.T.flatten())
