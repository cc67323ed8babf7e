"""Query points around each hand for supervision (Sec. 3.3, "Sampling of 3D Query Points")."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from nvf_fast.data.surfaces import MeshHands
from nvf_fast.runtime.arguments import check_ranges
from nvf_fast.volumes import Volume

SPHERE_JOINT = 9


@dataclass(frozen=True)
class PointSampling:
    """Counts and ranges of the query points of an image. The defaults are the paper's."""

    surface: int = 12_500  # points drawn on the surface, then moved by a Gaussian
    surface_sigma_mm: float = 3.0  # that Gaussian's standard deviation, per axis
    sphere: int = 1_000  # points uniform in a ball around joint 9
    sphere_radius_mm: float = 170.0  # that ball's radius
    frustum: int = 1_000  # points uniform in the task's volume: the camera frustum, or the cube at the root
    inside: int | None = 2_500  # number of all these points to keep inside the hand; None keeps every point
    outside: int | None = 2_500  # number to keep outside the hand; None if and only if `inside` is None
    # addition to the paper: further points on camera rays through the surface, in front of it and behind it;
    # without them, a network trained only briefly predicts the surface along whole rays
    ray_points: int = 0
    # half of them at the surface's depth times exp(u), u uniform in plus or minus this; on the parallel rays
    # of root-relative training, anywhere in the cube
    ray_log_depth: float = 0.7
    # the other half at the surface's depth plus a Gaussian of this standard deviation
    ray_sigma_mm: float = 40.0

    def __post_init__(self) -> None:
        least = dict.fromkeys(vars(self), "[0, inf)")
        check_ranges(self, **least | {"surface": "[1, inf)", "frustum": "[1, inf)"})
        if (self.inside is None) != (self.outside is None):
            given = f"{self.inside} and {self.outside}"
            raise ValueError(f"inside and outside must both be numbers or both None, got {given}")

    @property
    def total(self) -> int:
        """Points per image."""
        drawn = self.surface + self.sphere + self.frustum
        kept = drawn if self.inside is None or self.outside is None else self.inside + self.outside
        return kept + self.ray_points


def sample_points(
    hands: MeshHands, volume: Volume, sampling: PointSampling, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Sample query points around each hand.

    Every point lies inside the network's view. To keep the shape fixed, the points of a kind are repeated
    where an image has too few of them (a hand half out of the image); other points of the image replace a
    kind without any.

    Args:
        hands: B hands in the task's frame.
        volume: the region that the network is queried in.
        sampling: counts and ranges; N = `sampling.total`.
        generator: source of every random number, on the hands' device.

    Returns:
        points (B, N, 3) float32 mm and their signed distance (B, N) mm, negative inside.
    """
    surface = hands.sample_surface(sampling.surface, generator)
    moved = surface + sampling.surface_sigma_mm * _normal(surface.shape, surface, generator)
    anywhere = _uniform((len(surface), sampling.frustum, 3), surface, generator)
    drawn = torch.cat([moved, _in_sphere(hands.joints, sampling, generator), volume.spread(anywhere)], 1)
    visible = volume.contains(drawn)
    if sampling.inside is None or sampling.outside is None:
        points = _take(drawn, _choose(visible, visible, drawn.shape[1], generator))
        distance = hands.signed_distance(points)
    else:
        distance = hands.signed_distance(drawn)
        inside = _choose(visible & (distance < 0), visible, sampling.inside, generator)
        outside = _choose(visible & (distance >= 0), visible, sampling.outside, generator)
        chosen = torch.cat([inside, outside], 1)
        points, distance = _take(drawn, chosen), distance.gather(1, chosen)
    if sampling.ray_points:
        seen = torch.cat([volume.contains(surface), torch.zeros_like(visible[:, sampling.surface :])], 1)
        start = torch.cat([surface, drawn[:, sampling.surface :]], 1)
        start = _take(start, _choose(seen, visible, sampling.ray_points, generator))
        on_rays = _along_rays(start, volume, sampling, generator)
        points = torch.cat([points, on_rays], 1)
        distance = torch.cat([distance, hands.signed_distance(on_rays)], 1)
    return points, distance


def _uniform(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.rand(shape, generator=generator, device=like.device, dtype=like.dtype)


def _normal(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(shape, generator=generator, device=like.device, dtype=like.dtype)


def _in_sphere(joints: Tensor, sampling: PointSampling, generator: torch.Generator | None) -> Tensor:
    shape = (joints.shape[0], sampling.sphere, 3)
    direction = normalize(_normal(shape, joints, generator), dim=-1)
    radius = sampling.sphere_radius_mm * _uniform((*shape[:2], 1), joints, generator).pow(1 / 3)
    return joints[:, SPHERE_JOINT, None] + radius * direction


def _along_rays(
    start: Tensor, volume: Volume, sampling: PointSampling, generator: torch.Generator | None
) -> Tensor:
    """Move points (B, N, 3) along their rays, inside the volume."""
    depth = start[..., 2]
    half = depth.shape[1] // 2
    anywhere = _uniform((len(depth), half), depth, generator)
    offset = sampling.ray_sigma_mm * _normal((len(depth), depth.shape[1] - half), depth, generator)
    other = volume.other_depths(depth[:, :half], anywhere, sampling.ray_log_depth)
    return volume.moved_to(start, torch.cat([other, depth[:, half:] + offset], 1))


def _choose(preferred: Tensor, otherwise: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """Random indices (B, count) into the set columns of `preferred` (B, M), of a row without any into those
    of `otherwise`, if possible without replacement."""
    mask = torch.where(preferred.any(1, keepdim=True), preferred, otherwise)
    key = torch.rand(mask.shape, generator=generator, device=mask.device) + ~mask
    order = key.topk(min(count, mask.shape[1]), largest=False).indices
    available = mask.sum(1, keepdim=True).clamp(1, order.shape[1])
    return order.gather(1, torch.arange(count, device=mask.device) % available)


def _take(points: Tensor, index: Tensor) -> Tensor:
    return points.gather(1, index[..., None].expand(-1, -1, 3))
