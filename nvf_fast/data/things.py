"""What a hand holds: spheres, boxes, cylinders and bottles as signed distances."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from nvf_fast.data.scenes import Things
from nvf_fast.data.textures import texture

EDGE_MM = 3.0  # rounding of the edges


@dataclass(frozen=True)
class ThingSolid:
    """Things placed in hands. centre (B, 3) mm; axes (B, 3, 3), rows the thing's axes in the camera's frame;
    radius, half_length (B,) mm."""

    things: Things
    centre: Tensor
    axes: Tensor
    radius: Tensor
    half_length: Tensor

    @classmethod
    def held(cls, things: Things, room: Tensor, frame: Tensor, centre: Tensor) -> ThingSolid:
        """Things as large as the room between palm and fingers lets them be.

        Args:
            things: B things.
            room: (B,) mm, distance from centre to the hand.
            frame: (B, 3, 3), rows the hand's axes: towards the thumb, the fingertips, out of the palm.
            centre: (B, 3) mm.
        """
        radius = torch.minimum(room, things.reach).clamp_min(7)
        # Boxes touch with their edges, which are farther out than their sides.
        radius = torch.where(things.kind == 2, 0.8 * radius, radius)
        first = (things.axis[:, None] @ frame)[:, 0]
        side = torch.linalg.cross(first, frame[:, 2])
        side = normalize(side + 1e-3 * frame[:, 1], dim=-1)
        second = normalize(side - (side * first).sum(-1, keepdim=True) * first, dim=-1)
        third = torch.linalg.cross(first, second)
        cosine, sine = torch.cos(things.turn)[:, None], torch.sin(things.turn)[:, None]
        axes = torch.stack([first, cosine * second + sine * third, cosine * third - sine * second], 1)
        return cls(things, centre, axes, radius, radius * things.length)

    @property
    def reach(self) -> Tensor:
        """(B,) mm."""
        return (1.4 * self.radius).hypot(1.7 * self.half_length)

    def distance(self, points: Tensor) -> Tensor:
        local = self.local(points)
        along, across = local[..., 0].abs(), local[..., 1:].norm(dim=-1)
        radius, half = self.radius[:, None], self.half_length[:, None]
        y, z = local[..., 1].abs(), local[..., 2].abs()
        box = torch.stack([along - half, y - radius, z - 0.6 * radius], -1)
        body = _rounded(torch.stack([along - half, across - radius], -1))
        neck = torch.stack([(local[..., 0] - 1.2 * half).abs() - 0.4 * half, across - 0.42 * radius], -1)
        bottle = torch.minimum(body, _rounded(neck))
        choices = torch.stack([local.norm(dim=-1) - radius, _rounded(box), body, bottle], -1)
        kind = (self.things.kind - 1).clamp_min(0)[:, None, None].expand(*choices.shape[:2], 1)
        # Where there is nothing, it is far from everywhere.
        return choices.gather(-1, kind)[..., 0] + 1e4 * (self.things.kind == 0)[:, None]

    def distance_and_normal(self, points: Tensor) -> tuple[Tensor, Tensor]:
        step = 0.5
        offsets = step * torch.eye(3, device=points.device, dtype=points.dtype)
        slopes = [self.distance(points + offset) - self.distance(points - offset) for offset in offsets]
        return self.distance(points), normalize(torch.stack(slopes, -1), dim=-1)

    def local(self, points: Tensor) -> Tensor:
        """(B, N, 3) mm: points in the things' own frames, the long axis first."""
        return (points - self.centre[:, None]) @ self.axes.transpose(1, 2)

    def albedo(self, points: Tensor) -> Tensor:
        """(B, N, 3)."""
        pattern, local = self.things.texture, self.local(points)
        x = pattern.periods[:, None] * local[..., 0]
        y = pattern.periods[:, None] * (local[..., 1] + local[..., 2])
        share = texture(pattern.kind[:, None], pattern.seed[:, None], x, y)[..., None]
        return torch.lerp(self.things.colour[:, None], pattern.colour[:, None], share)


def _rounded(excess: Tensor) -> Tensor:
    """Distance to a box of one or more axes from how far points are beyond each of its sides."""
    excess = excess + EDGE_MM
    return excess.clamp_min(0).norm(dim=-1) + excess.amax(-1).clamp_max(0) - EDGE_MM
