"""First intersections of rays with a triangle mesh: a program processes a block of rays and loops over faces.

Faces lie along the lanes, which are reduced only at the end.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from nvf_fast.kernels.mesh_distance.triton import load_corner, mesh_corners

_RAYS = 16
_FACES = 32
_WARPS = 4


@triton.jit
def _load_rows(ptr, row, mask):
    """x, y and z, each (n, 1), of rows of three."""
    ptr += row[:, None] * 3
    x = tl.load(ptr, mask=mask[:, None], other=0.0)
    y = tl.load(ptr + 1, mask=mask[:, None], other=0.0)
    z = tl.load(ptr + 2, mask=mask[:, None], other=0.0)
    return x, y, z


@triton.jit
def _project(x, y, z, row_x, row_y, row_z):
    """Fused as it is written: a vertex comes out the same in each of its faces, whatever the compiler."""
    return tl.fma(z, row_z, tl.fma(y, row_y, x * row_x))


@triton.jit
def _shear(x, y, z, ux, uy, uz, vx, vy, vz, tx, ty, tz):
    u = _project(x, y, z, ux, uy, uz)
    v = _project(x, y, z, vx, vy, vz)
    return u, v, _project(x, y, z, tx, ty, tz)


@triton.jit
def find_hits(
    corners_ptr,
    origins_ptr,
    directions_ptr,
    t_ptr,
    face_ptr,
    face_count,
    ray_count,
    RAYS: tl.constexpr,
    FACES: tl.constexpr,
):
    # One axis for images and blocks: CUDA allows only 65535 programs along the others.
    blocks = tl.cdiv(ray_count, RAYS)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    corners_ptr += image * face_count * 9
    ray = (tl.program_id(0) % blocks).to(tl.int64) * RAYS + tl.arange(0, RAYS)
    valid = ray < ray_count
    ox, oy, oz = _load_rows(origins_ptr + image * ray_count * 3, ray, valid)
    dx, dy, dz = _load_rows(directions_ptr + image * ray_count * 3, ray, valid)

    # Rows that map a corner, relative to the origin, to u and v across the ray and t along it: a shear along
    # the direction's longest axis. For a direction of zero they are NaN, and no face is hit.
    along_x = (tl.abs(dx) >= tl.abs(dy)) & (tl.abs(dx) >= tl.abs(dz))
    along_y = (tl.abs(dy) >= tl.abs(dz)) & (along_x == 0)
    along_z = (along_x | along_y) == 0
    scale = 1.0 / tl.where(along_x, dx, tl.where(along_y, dy, dz))
    tx, ty, tz = tl.where(along_x, scale, 0.0), tl.where(along_y, scale, 0.0), tl.where(along_z, scale, 0.0)
    ux = tl.where(along_x, -dy * scale, 1.0)
    uy = tl.where(along_x, 1.0, tl.where(along_y, -dx * scale, 0.0))
    uz = tl.where(along_z, -dx * scale, 0.0)
    vx = tl.where(along_x, -dz * scale, 0.0)
    vy = tl.where(along_z, 1.0, tl.where(along_y, -dz * scale, 0.0))
    vz = tl.where(along_z, -dy * scale, 1.0)

    nearest = tl.full((RAYS, FACES), float("inf"), tl.float32)
    hit = tl.full((RAYS, FACES), -1, tl.int32)
    first = 0
    while first < face_count:
        # A tile that extends past the last face repeats it.
        face = tl.minimum(first + tl.arange(0, FACES), face_count - 1)[None, :]
        x, y, z = load_corner(corners_ptr, face, face_count)
        au, av, at = _shear(x - ox, y - oy, z - oz, ux, uy, uz, vx, vy, vz, tx, ty, tz)
        x, y, z = load_corner(corners_ptr + face_count, face, face_count)
        bu, bv, bt = _shear(x - ox, y - oy, z - oz, ux, uy, uz, vx, vy, vz, tx, ty, tz)
        x, y, z = load_corner(corners_ptr + 2 * tl.cast(face_count, tl.int64), face, face_count)
        cu, cv, ct = _shear(x - ox, y - oy, z - oz, ux, uy, uz, vx, vy, vz, tx, ty, tz)

        # The products are compared, not subtracted, so that nothing can be fused and both faces of an edge
        # get exactly opposite results.
        ab, ba = au * bv, av * bu
        bc, cb = bu * cv, bv * cu
        ca, ac = cu * av, cv * au
        within = ((ab >= ba) & (bc >= cb) & (ca >= ac)) | ((ab <= ba) & (bc <= cb) & (ca <= ac))
        a_weight, b_weight, c_weight = tl.abs(bc - cb), tl.abs(ca - ac), tl.abs(ab - ba)
        t = (a_weight * at + b_weight * bt + c_weight * ct) / (a_weight + b_weight + c_weight)  # edge-on: NaN
        closer = within & (t > 0) & (t < nearest)
        nearest = tl.where(closer, t, nearest)
        hit = tl.where(closer, face, hit)
        first += FACES

    t = tl.min(nearest, 1)
    face = tl.min(tl.where((nearest == t[:, None]) & (hit >= 0), hit, face_count), 1)
    tl.store(t_ptr + image * ray_count + ray, t, mask=valid)
    tl.store(
        face_ptr + image * ray_count + ray, tl.where(face < face_count, face, -1).to(tl.int64), mask=valid
    )


def ray_mesh(vertices: Tensor, faces: Tensor, origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """t (B, R) and face (B, R), as in the reference; all float32."""
    batch, ray_count, _ = origins.shape
    t = origins.new_empty(batch, ray_count)
    face = torch.empty_like(t, dtype=torch.int64)
    if t.numel() > 0:
        find_hits[(batch * triton.cdiv(ray_count, _RAYS),)](
            mesh_corners(vertices, faces),
            origins.contiguous(),
            directions.contiguous(),
            t,
            face,
            len(faces),
            ray_count,
            RAYS=_RAYS,
            FACES=_FACES,
            num_warps=_WARPS,
            enable_fp_fusion=True,
        )
    return t, face
