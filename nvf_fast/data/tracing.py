"""Rays that meet surfaces: sphere tracing of signed distances, meshes by triangles, pixels covered in part.

Two machines round differently, so nothing here hangs on a comparison whose two outcomes look different: a
ray's path, where it enters the half pixel around a surface and how much of its pixel is covered are
continuous functions of hand and ray.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import normalize

from nvf_fast import ops
from nvf_fast.data.hand import BLEND_MM, ORIGIN, Hands, capsule_ends
from nvf_fast.data.surfaces import MeshHands

OUTSIDE, INSIDE = 0.5, -0.2  # in pixel widths: nearest approach of a ray that sees none, or only, surface
LEAST_STEP = 0.5  # in pixel widths; the nearest approach is then known to 1 % of a pixel
PATIENCE = 10  # marches after which the least step grows, for rays along a surface
MARCHES, APPROACHES = 48, 6
CPU_POINTS = 2048  # at a time: what a distance needs meanwhile then stays in the cache, 2.5 times as fast
BLOCK = 4  # pixels on a side that share a first approach
# In pixel widths: from a block's middle to its outermost ray's half pixel, and some room.
BLOCK_REACH = 1.5 * 2**0.5 + OUTSIDE + 0.2


class Solid(Protocol):
    """One closed surface per picture."""

    @property
    def centre(self) -> Tensor:
        """(B, 3) mm, of a ball that holds the surface."""
        ...

    @property
    def reach(self) -> Tensor:
        """(B,) mm, that ball's radius."""
        ...

    def distance(self, points: Tensor) -> Tensor:
        """Signed distance (B, N) mm of points (B, N, 3), or less."""
        ...

    def distance_and_normal(self, points: Tensor) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class Layer:
    """What R pixels of each picture show of a surface; rows are padded with pixels of coverage 0.

    pixel (B, R) int64, row * size + column; along (B, R) mm from the camera; coverage (B, R) in [0, 1];
    points, on the surface, and normals (B, R, 3).
    """

    pixel: Tensor
    along: Tensor
    coverage: Tensor
    points: Tensor
    normals: Tensor


@dataclass(frozen=True)
class ConeSolid:
    """The surface of round-cone hands, made ready for many rays; `of` makes it.

    origin (B, 1, 3) mm; linear (B, 5, 2 C), which takes (p, |p|², 1), p from the origin, to each cone's
    coordinate along its axis and squared distance from its start; length, slope, radius and taper (B, 1, C).
    """

    hands: Hands
    origin: Tensor
    linear: Tensor
    length: Tensor
    slope: Tensor
    radius: Tensor
    taper: Tensor

    @classmethod
    def of(cls, hands: Hands) -> ConeSolid:
        origin = hands.nodes[:, ORIGIN]
        ends = (hands.nodes - origin)[:, capsule_ends(origin.device).T]
        start, axis = ends[:, :, 0], ends[:, :, 1] - ends[:, :, 0]
        length = axis.norm(dim=-1)
        axis = axis / length[..., None]
        zero, one = torch.zeros_like(length), torch.ones_like(length)
        along = torch.stack([*axis.unbind(-1), zero, -(start * axis).sum(-1)], 1)
        squared = torch.stack([*(-2 * start).unbind(-1), one, start.square().sum(-1)], 1)
        shrinking = hands.radii[..., 0] - hands.radii[..., 1]
        slope = shrinking / (length.square() - shrinking.square()).clamp_min(1e-6).sqrt()
        rows = (length, slope, hands.radii[..., 0], shrinking / length)
        return cls(hands, origin, torch.cat([along, squared], 2), *(row[:, None] for row in rows))

    @property
    def centre(self) -> Tensor:
        return self.hands.nodes.mean(1)

    @property
    def reach(self) -> Tensor:
        arm = (self.hands.nodes - self.centre[:, None]).norm(dim=-1).amax(1)
        return arm + self.hands.radii.amax((1, 2)) + 4  # the blend swells a little

    def distance(self, points: Tensor) -> Tensor:
        """`Hands.signed_distance`, in half the passes over memory."""
        return torch.cat([self._distance(part) for part in _portions(points)], 1)

    def distance_and_normal(self, points: Tensor) -> tuple[Tensor, Tensor]:
        parts = [self.hands.distance_and_normal(part) for part in _portions(points)]
        distances, normals = zip(*parts, strict=True)
        return torch.cat(distances, 1), torch.cat(normals, 1)

    def _distance(self, points: Tensor) -> Tensor:
        offset = points - self.origin
        squared = offset.square().sum(-1, keepdim=True)
        coordinates = torch.cat([offset, squared, torch.ones_like(squared)], -1) @ self.linear
        along, radial = coordinates.split(self.length.shape[-1], -1)
        radial = torch.addcmul(radial, along, along, value=-1).clamp_min_(1e-6)
        # The nearest sphere of the cone lies where the surface's normal meets the axis: shifted by the slope.
        foot = torch.addcmul(along, radial.sqrt(), self.slope, value=-1).clamp_min_(0).minimum(self.length)
        beyond = along - foot
        distance = radial.addcmul_(beyond, beyond).sqrt_().sub_(self.radius).addcmul_(foot, self.taper)
        return -BLEND_MM * torch.logsumexp(distance.mul_(-1 / BLEND_MM), -1)


def pixel_width(size: int) -> float:
    """Width of a pixel of the reference camera at unit depth."""
    return 224 / 480 / size


def unit_rays(size: int, like: Tensor, per_pixel: int = 1) -> Tensor:
    """(size * size * per_pixel², 3) unit directions through pixels' even parts, those of a pixel together."""
    parts = torch.arange(size * per_pixel, device=like.device, dtype=like.dtype)
    line = ((parts + 0.5) / per_pixel - 0.5 - size / 2) * pixel_width(size)
    y, x = torch.meshgrid(line, line, indexing="ij")
    rays = normalize(torch.stack([x, y, torch.ones_like(x)], -1), dim=-1)
    return rays.unflatten(0, (size, per_pixel)).unflatten(2, (size, per_pixel)).transpose(1, 2).reshape(-1, 3)


def trace_layers(solid: Solid, size: int) -> list[Layer]:
    """The nearest surface of each pixel, and what shows beside it where it covers a pixel in part."""
    pixel, start, end = _candidates(solid, size)
    unit = unit_rays(size, start)[pixel]
    layers = []
    for along, coverage in _trace(solid, unit, start, end, pixel_width(size)):
        seen = _front(coverage > 0)
        layers.append(_layer(solid, *(_take(each, seen) for each in (pixel, unit, along, coverage))))
    return layers


def trace_mesh(hands: MeshHands, size: int) -> list[Layer]:
    """Meshes by the first triangle that each of four rays per pixel meets, normals interpolated."""
    vertices, faces = hands.vertices, hands.faces
    projected = vertices[..., :2] / vertices[..., 2:] / pixel_width(size) + size / 2
    low, high = projected.amin(1)[:, None] - 1, projected.amax(1)[:, None] + 1
    line = torch.arange(size, device=vertices.device)
    places = torch.stack([line.repeat(size), line.repeat_interleave(size)], -1)
    pixel = _front(((places > low) & (places < high)).all(-1))
    directions = unit_rays(size, vertices, per_pixel=2).unflatten(0, (-1, 4))[pixel].flatten(1, 2)
    along, face = ops.ray_mesh(vertices, faces, torch.zeros_like(directions), directions)
    hit = face >= 0
    points = directions * torch.where(hit, along, 0.0)[..., None]
    corner = (torch.arange(len(vertices), device=face.device)[:, None, None], faces[face.clamp_min(0)])
    share = _barycentric(vertices[corner], points)
    normals = vertex_normals(vertices, faces)[corner]
    weight = hit.unflatten(1, (-1, 4)).to(vertices.dtype)
    total = weight.sum(-1).clamp_min(1)

    def mean(values: Tensor) -> Tensor:
        return (values.unflatten(1, (-1, 4)) * weight[..., None]).sum(2) / total[..., None]

    points = mean(points)
    normals = normalize(mean((share[..., None] * normals).sum(2)), dim=-1)
    return [Layer(pixel, points.norm(dim=-1), weight.mean(-1), points, normals)]


def vertex_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """(B, V, 3) unit normals: the mean of the faces around a vertex, weighted by area."""
    corners = vertices[:, faces]
    normal = torch.linalg.cross(corners[:, :, 1] - corners[:, :, 0], corners[:, :, 2] - corners[:, :, 0])
    summed = torch.zeros_like(vertices)
    for corner in range(3):
        summed.index_add_(1, faces[:, corner], normal)
    return normalize(summed, dim=-1)


def _barycentric(corners: Tensor, points: Tensor) -> Tensor:
    """(B, R, 3) shares of the corners (B, R, 3, 3) at points (B, R, 3) in their triangles."""
    first, second = corners[:, :, 1] - corners[:, :, 0], corners[:, :, 2] - corners[:, :, 0]
    normal = torch.linalg.cross(first, second)
    offset = points - corners[:, :, 0]
    area = normal.square().sum(-1).clamp_min(1e-12)
    v = (torch.linalg.cross(offset, second) * normal).sum(-1) / area
    w = (torch.linalg.cross(first, offset) * normal).sum(-1) / area
    return torch.stack([1 - v - w, v, w], -1)


def _layer(solid: Solid, pixel: Tensor, unit: Tensor, along: Tensor, coverage: Tensor) -> Layer:
    entered = unit * along[..., None]
    distance, normals = solid.distance_and_normal(entered)
    return Layer(pixel, along, coverage, entered - distance[..., None] * normals, normals)


def _portions(points: Tensor) -> tuple[Tensor, ...]:
    size = max(1, CPU_POINTS // len(points)) if points.device.type == "cpu" else max(1, points.shape[1])
    return points.split(size, 1)


def _front(chosen: Tensor) -> Tensor:
    """(B, n) places of the chosen ones of (B, R), in order; shorter rows go on with places not chosen."""
    if len(chosen) == 1:
        return chosen.nonzero()[None, :, 1]
    most = int(chosen.sum(1).max())
    return chosen.byte().sort(dim=1, descending=True, stable=True).indices[:, :most]


def _take(values: Tensor, places: Tensor) -> Tensor:
    """values (B, R) or (B, R, 3) at places (B, n)."""
    if values.dim() == 2:
        return values.gather(1, places)
    return values.gather(1, places[..., None].expand(-1, -1, values.shape[-1]))


def _candidates(solid: Solid, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels (B, R) that may show the solid, and how far along their rays to begin and to end, mm."""
    rays = unit_rays(size, solid.centre)
    blocks = -(-size // BLOCK)
    first = torch.arange(blocks, device=rays.device) * BLOCK
    middle = (first + (BLOCK - 1) / 2 - size / 2).to(rays.dtype) * pixel_width(size)
    y, x = torch.meshgrid(middle, middle, indexing="ij")
    unit = normalize(torch.stack([x, y, torch.ones_like(x)], -1).reshape(-1, 3), dim=-1)
    start, end = _through_ball(solid, unit, BLOCK_REACH * pixel_width(size))
    block = _front(start < end)
    start, end = _take(start, block), _take(end, block)
    alive = start < end
    for _ in range(APPROACHES):
        kept = _front(alive)
        if not kept.shape[1]:
            break
        at = _take(start, kept)
        distance = solid.distance(unit[_take(block, kept)] * at[..., None])
        # Without a least step the blocks settle at their distance, whatever the rounding on the way there.
        onward = at + (distance - BLOCK_REACH * pixel_width(size) * at).clamp_min(0)
        start = start.scatter(1, kept, onward)
        alive = alive & (start < end)
    kept = _front(alive)
    block, start, end = _take(block, kept), _take(start, kept), _take(end, kept)
    end = torch.where(_take(alive, kept), end, start)
    within = torch.arange(BLOCK, device=rays.device)
    row = first[block // blocks, None, None] + within[:, None]
    column = first[block % blocks, None, None] + within
    row, column = (each.flatten(1) for each in torch.broadcast_tensors(row, column))
    start, end = (each.repeat_interleave(BLOCK**2, 1) for each in (start, end))
    end = torch.where((row < size) & (column < size), end, start)
    return (row * size + column).clamp_max(size * size - 1), start, end


def _through_ball(solid: Solid, unit: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """Where rays unit (R, 3) enter and leave the solid's ball, (B, R) mm each; equal where they miss it."""
    along = solid.centre @ unit.T
    reach = solid.reach[:, None] + margin * solid.centre.norm(dim=-1, keepdim=True)
    half = (reach.square() - solid.centre.square().sum(-1, keepdim=True) + along.square()).clamp_min(0).sqrt()
    return (along - half).clamp_min(1), (along + half).clamp_min(1)


def _trace(
    solid: Solid, unit: Tensor, start: Tensor, end: Tensor, width: float
) -> list[tuple[Tensor, Tensor]]:
    """Follows rays unit (B, R, 3) from start to end (B, R) mm until they are inside or past the solid.

    Returns:
        Twice, for the nearest surface and the next one: where a ray came within half a pixel, and how much of
        its pixel is covered; both (B, R).
    """
    far = torch.full_like(start, torch.inf)
    result = torch.stack([far] * 4, -1)
    place = torch.arange(start.shape[1], device=start.device).expand_as(start)
    at, last_at, last_share = start, start, far  # this step, and the one before it in pixel widths
    entered, closest, first_entered, first_closest = far, far, far, far
    alive, second = start < end, torch.zeros_like(start, dtype=torch.bool)
    for march in range(MARCHES + 1):
        found = torch.stack([first_entered, first_closest, entered, closest], -1)
        result = result.scatter(1, place[..., None].expand(-1, -1, 4), found)
        kept = _front(alive)
        if march == MARCHES or not kept.shape[1]:
            break
        state = _take(torch.stack([end, at, last_at, last_share], -1), kept)
        end, at, last_at, last_share = state.unbind(-1)
        first_entered, first_closest, entered, closest = _take(found, kept).unbind(-1)
        place, alive, second, unit = (_take(each, kept) for each in (place, alive, second, unit))
        distance = solid.distance(unit * at[..., None])
        share = distance / (width * at)
        crossing = last_at + (at - last_at) * ((last_share - OUTSIDE) / (last_share - share))
        crossing = torch.where(last_share.isinf(), at, crossing)
        near = alive & (share < OUTSIDE)
        entered = torch.where(near & entered.isinf(), crossing, entered)
        closest = torch.where(near, torch.minimum(closest, share), closest)
        passed = alive & entered.isfinite() & (share >= OUTSIDE)
        alive = alive & (closest > INSIDE)
        passed = passed & ~second  # what follows the second surface counts as part of it
        first_entered = torch.where(passed, entered, first_entered)
        first_closest = torch.where(passed, closest, first_closest)
        entered, closest = (torch.where(passed, torch.inf, each) for each in (entered, closest))
        second = second | passed
        last_at, last_share = at, share
        at = at + torch.maximum(distance, LEAST_STEP * max(1.0, march / PATIENCE) * width * at)
        alive = alive & (at < end)
    first_entered, first_closest, entered, closest = result.unbind(-1)
    alone = first_entered.isinf()
    layers = (
        (torch.where(alone, entered, first_entered), torch.where(alone, closest, first_closest)),
        (torch.where(alone, torch.inf, entered), torch.where(alone, torch.inf, closest)),
    )
    return [
        (torch.where(along.isinf(), start, along), ((OUTSIDE - nearest) / (OUTSIDE - INSIDE)).clamp(0, 1))
        for along, nearest in layers
    ]
