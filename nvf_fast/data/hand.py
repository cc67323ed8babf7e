"""A parametric right hand of our own: skeleton, joint limits, surface, signed distance.

The hand is a smooth union of round cones (tapered capsules) hung on a posed skeleton, so one closed form
gives the signed distance, the surface points and the rendered image: labels and pictures cannot disagree.

Bone lengths and the spread between people: A. Buryanov and V. Kotiuk, "Proportions of Hand Segments",
International Journal of Morphology 28(3), 2010 (radiographs of 66 adults): mean lengths of metacarpals and
phalanges and of the soft tissue beyond the last bone, standard deviations about 8.5 % of the mean.
Ranges of motion are the textbook ones of the MCP, PIP, DIP, CMC and IP joints.

Hand frame (mm): origin at the wrist, x towards the thumb, y towards the fingertips, z out of the palm.
For a right hand this frame is right-handed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

import torch
from torch import Tensor

from nvf_fast.data.draws import Draws

FINGERS = ("thumb", "index", "middle", "ring", "little")

# Metacarpal, then the phalanges from base to tip (mm). The last one includes the soft tissue.
THUMB_BONES = (46.22, 31.57, 21.67 + 5.67)
FINGER_METACARPALS = (68.12, 64.60, 58.00, 53.69)
FINGER_PHALANGES = (
    (39.78, 22.38, 15.82 + 3.84),
    (44.63, 26.33, 17.40 + 3.95),
    (41.37, 25.65, 17.30 + 3.95),
    (32.74, 18.11, 15.96 + 3.73),
)
# 8.5 % in all: what a person's bones share, and what each bone adds on its own.
SIZE_SPREAD = 0.075
BONE_SPREAD = 0.04

# Carpal ends of the metacarpals (mm, hand frame), and their directions in the palm's plane (degrees towards
# the thumb).
METACARPAL_BASES = ((11.0, 26.0, 1.0), (2.0, 27.0, 0.0), (-7.0, 25.0, 0.0), (-14.0, 22.0, 2.0))
METACARPAL_ANGLES = (8.0, 0.0, -8.0, -17.0)
THUMB_BASE = (17.0, 20.0, 7.0)
FINGER_SPLAY = (5.0, 0.0, -5.0, -11.0)
# Where the unturned thumb points, and where its flexion carries it.
THUMB_AHEAD, THUMB_ACROSS = (0.66, 0.62, 0.42), (-0.75, 0.35, 0.55)

# Nodes beyond the 21 joints: carpal ends of the metacarpals, two wrist corners, the heel of the palm,
# two ends of the forearm's stump, and the centres of the five fingertip caps.
ORIGIN = slice(9, 10)  # distances are computed from this knuckle, in the hand's middle, for precision
BASES, CORNERS, HEEL, STUMP, CAPS = range(21, 25), range(25, 27), 27, range(28, 30), range(30, 35)
NODES = 35


def _capsules() -> tuple[list[tuple[int, int]], list[tuple[float, float]]]:
    pairs: list[tuple[int, int]] = []
    radii: list[tuple[float, float]] = []

    def add(start: int, end: int, start_radius: float, end_radius: float) -> None:
        pairs.append((start, end))
        radii.append((start_radius, end_radius))

    finger_radii = (
        (10.8, 10.2, 8.6, 6.6),
        (9.6, 8.4, 7.3, 5.9),
        (9.8, 8.6, 7.5, 6.1),
        (9.2, 8.0, 7.0, 5.7),
        (8.2, 7.0, 6.2, 5.0),
    )
    for finger, (r0, r1, r2, r3) in enumerate(finger_radii):
        joint = 1 + 4 * finger
        add(joint, joint + 1, r0, r1)
        add(joint + 1, joint + 2, r1, r2)
        add(joint + 2, CAPS[finger], r2, r3)
    for finger, base in enumerate(BASES):
        add(base, 5 + 4 * finger, 11.0, 9.8)
    for first, second in ((5, 9), (9, 13), (13, 17)):
        add(first, second, 9.4, 9.4)
    add(1, 5, 11.5, 8.0)  # thenar: the web between thumb and index
    add(CORNERS[0], 1, 12.5, 12.0)
    add(HEEL, 17, 11.5, 9.0)  # hypothenar
    add(CORNERS[0], BASES[0], 12.5, 11.0)
    add(CORNERS[1], BASES[3], 12.5, 11.0)
    add(CORNERS[1], HEEL, 12.5, 11.5)
    add(CORNERS[0], STUMP[0], 13.0, 13.5)
    add(CORNERS[1], STUMP[1], 13.0, 13.5)
    add(0, BASES[1], 14.0, 11.0)
    return pairs, radii


CAPSULES, CAPSULE_RADII = _capsules()
BLEND_MM = 2.0  # smoothness of the union
CPU_POINTS = 2048  # measured at once on a CPU, so that what lies between stays in its caches

POSES, PLACES = 13, 40  # tries of each hand
DEEPEST_OVERLAP = 0.35  # of fingers, as a share of their radii's sum
MARCHES, HIT_MM = 64, 0.01  # of `first_hit`; a ray that still marches then grazes the surface and misses


@dataclass(frozen=True)
class HandDistribution:
    """Which hands, seen how. Angles in degrees, distances in mm.

    facing: "palm", "back" (turned to the camera, within `tilt_deg`) or "any" (uniform over the sphere).
    tilt_deg: largest angle between the palm's normal and the optical axis.
    roll_deg: largest rotation about the optical axis from fingers-up.
    nearest_mm, farthest_mm: range of the depth of the joints' mean.
    visible_joints: at least so many of the 21 joints lie inside the picture.
    """

    facing: str = "palm"
    tilt_deg: float = 60.0
    roll_deg: float = 60.0
    nearest_mm: float = 350.0
    farthest_mm: float = 1000.0
    visible_joints: int = 15

    def __post_init__(self) -> None:
        if self.facing not in ("palm", "back", "any"):
            raise ValueError(f"facing must be 'palm', 'back' or 'any', got {self.facing!r}")
        if not 0 < self.tilt_deg <= 180 or not 0 <= self.roll_deg <= 180:
            raise ValueError(
                "tilt_deg must lie in (0, 180] and roll_deg in [0, 180], "
                f"got {self.tilt_deg} and {self.roll_deg}"
            )
        if not 150 < self.nearest_mm < self.farthest_mm < 1200:
            raise ValueError(
                "depths must lie inside the frustum, 150 < nearest_mm < farthest_mm < 1200 mm, "
                f"got {self.nearest_mm} and {self.farthest_mm}"
            )
        if not 0 <= self.visible_joints <= 21:
            raise ValueError(f"visible_joints must lie in [0, 21], got {self.visible_joints}")


UNIFORM = HandDistribution(facing="any", tilt_deg=180.0, roll_deg=180.0)


@dataclass(frozen=True)
class Hands:
    """A batch of posed right hands in the camera frame (x right, y down, z forward), in mm.

    nodes: (B, 35, 3) skeleton nodes, the 21 joints first.
    radii: (B, C, 2) radii at both ends of each round cone.
    dorsal: (B, 5, 3) unit normals of the back of each finger's last phalanx.
    palm: (B, 3) unit normal out of the palm.
    """

    nodes: Tensor
    radii: Tensor
    dorsal: Tensor
    palm: Tensor

    def __len__(self) -> int:
        return len(self.nodes)

    def __getitem__(self, index: slice | Tensor) -> Hands:
        return Hands(**{field.name: getattr(self, field.name)[index] for field in fields(self)})

    @property
    def joints(self) -> Tensor:
        """(B, 21, 3) mm, FreiHAND order."""
        return self.nodes[:, :21]

    @property
    def hand_scale(self) -> Tensor:
        """(B,) mm: length of the middle finger's proximal phalanx, joints 9-10."""
        return (self.nodes[:, 10] - self.nodes[:, 9]).norm(dim=-1)

    def to(self, device: torch.device | str) -> Hands:
        return Hands(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})

    def rotated(self, rotation: Tensor) -> Hands:
        """Turns each hand about the camera's centre by rotation (B, 3, 3)."""
        transposed = rotation.transpose(1, 2)
        return Hands(
            self.nodes @ transposed,
            self.radii,
            self.dorsal @ transposed,
            (self.palm[:, None] @ transposed)[:, 0],
        )

    def scaled(self, factor: Tensor) -> Hands:
        """Grows hand and distance together by factor (B,): the picture stays, the millimetres change."""
        return Hands(
            self.nodes * factor[:, None, None], self.radii * factor[:, None, None], self.dorsal, self.palm
        )

    def translated(self, offset: Tensor) -> Hands:
        """Moves each hand by offset (B, 3) mm."""
        return Hands(self.nodes + offset[:, None], self.radii, self.dorsal, self.palm)

    @classmethod
    def stack(cls, hands: Sequence[Hands]) -> Hands:
        """One batch of several."""
        return cls(
            **{field.name: torch.cat([getattr(h, field.name) for h in hands]) for field in fields(cls)}
        )

    def signed_distance(self, points: Tensor) -> Tensor:
        """Signed distance of points (B, N, 3) to the surface, (B, N) mm, negative inside.

        Exact for each round cone; where cones blend (`BLEND_MM`) it is a lower bound that is off by a
        fraction of a millimetre at the surface.
        """
        if points.device.type == "cpu" and points.shape[1] > CPU_POINTS:
            return torch.cat([self.signed_distance(part) for part in points.split(CPU_POINTS, 1)], 1)
        return -BLEND_MM * torch.logsumexp(self._cone_distances(points)[0] * (-1 / BLEND_MM), -1)

    def distance_and_normal(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Signed distance (B, N) mm and outward unit normal (B, N, 3) of the field at points (B, N, 3)."""
        distances, along, gap = self._cone_distances(points)
        share = torch.softmax(distances * (-1 / BLEND_MM), -1)
        start, axis = self._cones()
        # A cone's gradient is (p - q) / |p - q|, q = start + along * axis on its axis; the blend is a matmul.
        weight = share / gap
        normal = weight.sum(-1, keepdim=True) * (points - self.nodes[:, ORIGIN])
        normal = normal - weight @ start - (weight * along) @ axis
        value = -BLEND_MM * torch.logsumexp(distances * (-1 / BLEND_MM), -1)
        return value, torch.nn.functional.normalize(normal, dim=-1)

    def first_hit(self, origins: Tensor, directions: Tensor) -> Tensor:
        """Where rays origins + t * directions, both (B, R, 3), first meet the surface (sphere tracing).

        Returns:
            (B, R) t, to `HIT_MM` mm; +inf where a ray misses. A ray that starts inside hits at 0.
        """
        length = directions.norm(dim=-1)
        unit = directions / length[..., None]
        # The ray's part inside a sphere about the hand: elsewhere there is nothing to meet.
        middle = self.nodes.mean(1, keepdim=True)
        reach = (self.nodes - middle).norm(dim=-1).amax(1) + self.radii.amax((1, 2))
        along = ((middle - origins) * unit).sum(-1)
        aside = (origins + along[..., None] * unit - middle).square().sum(-1)
        half = (reach[:, None].square() - aside).clamp_min(0).sqrt()
        travelled, end = (along - half).clamp_min(0), along + half
        for _ in range(MARCHES):
            distance = self.signed_distance(origins + travelled[..., None] * unit)
            travelled = travelled + torch.where(distance > HIT_MM, distance, 0.0)
        distance = self.signed_distance(origins + travelled[..., None] * unit)
        hit = (distance <= HIT_MM) & (travelled <= end) & (half > 0)
        return torch.where(hit, travelled / length, math.inf)

    def sample_surface(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Draws `count` points on each hand's surface, (B, count, 3) mm, roughly uniform by area."""
        batch, device = len(self), self.nodes.device
        start, axis = self._cones()
        length = axis.norm(dim=-1)
        area = (length + 0.5 * self.radii.sum(-1)) * self.radii.sum(-1)
        cone = torch.multinomial(area, count, replacement=True, generator=generator)

        def pick(values: Tensor) -> Tensor:
            return torch.gather(values, 1, cone[..., None].expand(-1, -1, values.shape[-1]))

        radius = pick(self.radii)
        along = torch.rand(batch, count, 1, generator=generator, device=device)
        direction = torch.nn.functional.normalize(
            torch.randn(batch, count, 3, generator=generator, device=device), dim=-1
        )
        cone_axis = pick(torch.nn.functional.normalize(axis, dim=-1))
        direction = torch.nn.functional.normalize(
            direction - 0.9 * (direction * cone_axis).sum(-1, True) * cone_axis, dim=-1
        )
        points = self.nodes[:, ORIGIN] + pick(start) + along * pick(axis)
        points = points + direction * (radius[..., :1] + along * (radius[..., 1:] - radius[..., :1]))
        for _ in range(4):  # out of the other cones and onto the blended surface
            distance, normal = self.distance_and_normal(points)
            points = points - distance[..., None] * normal
        return points

    def _cones(self) -> tuple[Tensor, Tensor]:
        """Start, relative to the origin, and axis of each cone, both (B, C, 3)."""
        first, second = capsule_ends(self.nodes.device)
        start = self.nodes[:, first]
        return start - self.nodes[:, ORIGIN], self.nodes[:, second] - start

    def _cone_distances(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Per cone, all (B, N, C): distance, nearest axis point in [0, 1], distance to that axis point."""
        start, axis = self._cones()
        points = points - self.nodes[:, ORIGIN]
        squared_length = (axis * axis).sum(-1)
        difference = self.radii[..., 0] - self.radii[..., 1]
        slope = (
            difference
            / (squared_length - difference * difference).clamp_min(1e-6).sqrt()
            / squared_length.sqrt()
        )
        projection = points @ axis.transpose(1, 2) - (start * axis).sum(-1)[:, None]
        squared = (points * points).sum(-1, keepdim=True) - 2 * points @ start.transpose(1, 2)
        squared = squared + (start * start).sum(-1)[:, None]
        share = projection / squared_length[:, None]
        radial = (squared - projection * share).clamp_min(0).sqrt()
        # The nearest sphere of the cone lies where the surface's normal meets the axis: shifted by the slope.
        along = (share - radial * slope[:, None]).clamp(0, 1)
        gap = (
            (squared - 2 * along * projection + along * along * squared_length[:, None])
            .clamp_min(1e-6)
            .sqrt()
        )
        distance = gap - self.radii[:, None, :, 0] + along * difference[:, None]
        return distance, along, gap


@cache
def capsule_ends(device: torch.device) -> Tensor:
    """(2, C) int64, the nodes at both ends of each cone; made once, since a GPU would wait for it."""
    return torch.tensor(CAPSULES, device=device).T.contiguous()


def sample_hands(
    count: int, generator: torch.Generator, distribution: HandDistribution | None = None
) -> Hands:
    """Draws hands of varied people in varied poses, placed before the reference camera.

    Args:
        count: number of hands B.
        generator: its next number names the hands (CPU).
        distribution: orientations and distances; `HandDistribution()` when absent.

    Returns:
        B right hands in the camera frame, mm. Poses whose fingers run through each other are drawn again.
    """
    return draw_hands(Draws.from_generator(generator, "hand", count), distribution)[0]


def draw_hands(draws: Draws, distribution: HandDistribution | None = None) -> tuple[Hands, Tensor]:
    """Draws one hand per stream, in float64, so that machines agree on which tries are rejected.

    Args:
        draws: B streams.
        distribution: orientations and distances; `HandDistribution()` when absent.

    Returns:
        B hands, float32, and (B, 2) int64: which of its poses and which of its places each hand has.
    """
    shape, angles = _sample_shapes(draws), draw_angles(draws)
    hands = _pose(shape, {name: value[:, 0] for name, value in angles.items()})
    tries = torch.zeros(len(draws), 2, dtype=torch.int64)
    for attempt in range(1, POSES):
        bad = torch.nonzero(_self_intersection(hands) > DEEPEST_OVERLAP)[:, 0]
        if not len(bad):
            break
        tries[bad, 0] = attempt
        again = _pose(
            {name: value[bad] for name, value in shape.items()},
            {name: value[bad, attempt] for name, value in angles.items()},
        )
        for field in fields(hands):
            getattr(hands, field.name)[bad] = getattr(again, field.name)
    rotation, offset, tries[:, 1] = draw_places(hands.joints, draws, distribution or HandDistribution())
    hands = hands.rotated(rotation).translated(offset)
    return Hands(**{field.name: getattr(hands, field.name).float() for field in fields(hands)}), tries


def _sample_shapes(draws: Draws) -> dict[str, Tensor]:
    """People: size, bone lengths, thickness."""
    size = (1 + SIZE_SPREAD * draws.normal()).clamp(0.8, 1.22)

    def spread(*shape: int) -> Tensor:
        return 1 + BONE_SPREAD * draws.normal(*shape).clamp(-2.5, 2.5)

    thickness = 1 + 0.07 * draws.normal(1, 1).clamp(-2, 2)
    return {
        "size": size,
        "thumb": _constant(THUMB_BONES) * spread(3),
        "metacarpals": _constant(FINGER_METACARPALS) * spread(4),
        "phalanges": _constant(FINGER_PHALANGES) * spread(4, 3),
        "palm_width": spread(1),
        "radii": _constant(CAPSULE_RADII) * thickness * spread(len(CAPSULE_RADII), 1),
    }


def draw_angles(draws: Draws) -> dict[str, Tensor]:
    """Poses inside the joints' ranges of motion, in radians: (B, POSES, 4) of the fingers' joints and
    (B, POSES) of the thumb's. Curl 0 is a stretched finger, 1 a closed one."""
    together = draws.uniform(0, 1, POSES, 1) ** 1.3
    alone = draws.uniform(0, 1, POSES, 4) ** 1.3
    mixing = draws.uniform(0, 1, POSES, 1)
    curl = mixing * together + (1 - mixing) * alone
    flexion = curl + 0.35 * draws.uniform(-0.5, 0.5, POSES, 4) * (1 - mixing)
    bend = curl + 0.35 * draws.uniform(-0.5, 0.5, POSES, 4)
    degrees = {
        "mcp": (-18 + 103 * flexion).clamp(-22, 88),
        "pip": (105 * bend).clamp(0, 108),
        "dip": (70 * bend + 14 * draws.normal(POSES, 4)).clamp(-6, 78),
        "abduction": 7 * draws.normal(POSES, 4).clamp(-2, 2)
        + _constant(FINGER_SPLAY) * draws.uniform(-0.3, 2, POSES, 1),
        "thumb_abduction": draws.uniform(-12, 28, POSES),
        "thumb_opposition": draws.uniform(-15, 48, POSES),
        "thumb_mcp": draws.uniform(-8, 52, POSES),
        "thumb_ip": draws.uniform(-12, 72, POSES),
    }
    # Fingers cannot spread when the knuckles are bent.
    degrees["abduction"] = degrees["abduction"] * torch.cos(torch.deg2rad(degrees["mcp"].clamp(0, 88)))
    return {name: torch.deg2rad(value) for name, value in degrees.items()}


def _constant(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def rotation_about(axis: Tensor, angle: Tensor) -> Tensor:
    """Rotation matrices (..., 3, 3) about unit axes (..., 3) by angle (...) radians (Rodrigues)."""
    x, y, z = axis.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(*axis.shape, 3)
    sine, cosine = torch.sin(angle)[..., None, None], torch.cos(angle)[..., None, None]
    return torch.eye(3, device=axis.device, dtype=sine.dtype) + sine * cross + (1 - cosine) * (cross @ cross)


def _axis_rotation(axis: tuple[float, float, float], angle: Tensor) -> Tensor:
    return rotation_about(torch.tensor(axis, dtype=angle.dtype).expand(*angle.shape, 3), angle)


def _pose(shape: dict[str, Tensor], angles: dict[str, Tensor]) -> Hands:
    """Forward kinematics in the hand frame."""
    count = len(shape["size"])
    nodes = torch.zeros(count, NODES, 3, dtype=torch.float64)
    dorsal = torch.zeros(count, 5, 3, dtype=torch.float64)
    bases = (
        _constant(METACARPAL_BASES).expand(count, 4, 3)
        * torch.cat([shape["palm_width"], torch.ones(count, 2, dtype=torch.float64)], 1)[:, None]
    )
    ahead = _constant([0.0, 1.0, 0.0])
    radius_tip = shape["radii"]

    palm_angle = -torch.deg2rad(_constant(METACARPAL_ANGLES)).expand(count, 4)
    palm_direction = (_axis_rotation((0, 0, 1), palm_angle) @ ahead) * shape["palm_width"][:, None]
    nodes[:, list(BASES)] = bases
    for finger in range(4):
        joint = 5 + 4 * finger
        knuckle = bases[:, finger] + shape["metacarpals"][:, finger, None] * palm_direction[:, finger]
        knuckle = knuckle + _constant([0.0, 0.0, (0.0, -2.0, -0.5, 3.0)[finger]])
        turn = _axis_rotation((0, 0, 1), -angles["abduction"][:, finger])
        nodes[:, joint] = knuckle
        for phalanx, name in enumerate(("mcp", "pip", "dip")):
            turn = turn @ _axis_rotation((1, 0, 0), angles[name][:, finger])
            nodes[:, joint + phalanx + 1] = nodes[:, joint + phalanx] + shape["phalanges"][
                :, finger, phalanx, None
            ] * (turn @ ahead)
        cap = radius_tip[:, 3 * (finger + 1) + 2, 1, None]
        nodes[:, CAPS[finger + 1]] = nodes[:, joint + 3] - 0.9 * cap * (turn @ ahead)
        dorsal[:, finger + 1] = turn @ _constant([0.0, 0.0, -1.0])

    nodes[:, 1] = _constant(THUMB_BASE)
    rest = torch.nn.functional.normalize(_constant(THUMB_AHEAD), dim=0)
    across = _constant(THUMB_ACROSS)
    across = torch.nn.functional.normalize(across - (across @ rest) * rest, dim=0)
    hinge = torch.linalg.cross(rest, across)
    turn = _axis_rotation((0, 1, 0), -angles["thumb_opposition"]) @ _axis_rotation(
        (0, 0, 1), angles["thumb_abduction"]
    )
    for bone, joint_name in enumerate((None, "thumb_mcp", "thumb_ip")):
        if joint_name is not None:
            turn = turn @ rotation_about(hinge.expand(count, 3), angles[joint_name])
        nodes[:, bone + 2] = nodes[:, bone + 1] + shape["thumb"][:, bone, None] * (turn @ rest)
    nodes[:, CAPS[0]] = nodes[:, 4] - 0.9 * radius_tip[:, 2, 1, None] * (turn @ rest)
    dorsal[:, 0] = -(turn @ across)

    nodes[:, CORNERS[0]] = _constant([9.0, 5.0, 1.0])
    nodes[:, CORNERS[1]] = _constant([-9.0, 5.0, 1.0])
    nodes[:, HEEL] = _constant([-16.0, 18.0, 6.0])
    nodes[:, STUMP[0]] = _constant([9.0, -12.0, -1.0])
    nodes[:, STUMP[1]] = _constant([-9.0, -12.0, -1.0])
    size = shape["size"][:, None, None]
    return Hands(nodes * size, shape["radii"] * size, dorsal, _constant([0.0, 0.0, 1.0]).repeat(count, 1))


def _self_intersection(hands: Hands) -> Tensor:
    """(B,) deepest overlap of two fingers, or of fingertip and palm, as a share of their radii's sum."""
    return deepest_overlap(hands.nodes[:, capsule_ends(hands.nodes.device).T], hands.radii)


def deepest_overlap(ends: Tensor, radii: Tensor) -> Tensor:
    """How deep fingers run into each other or into the palm.

    Args:
        ends: (B, C, 2, 3) mm, of round cones: three from base to tip of each finger, thumb first, then the
            palm's.
        radii: (B, C, 2) mm.

    Returns:
        (B,) the deepest overlap as a share of the two radii's sum.
    """
    at = torch.linspace(0, 1, 5, dtype=ends.dtype)[:, None]
    centres = ends[:, :, None, 0] + at * (ends[:, :, None, 1] - ends[:, :, None, 0])
    radii = radii[:, :, None, 0] + at[:, 0] * (radii[:, :, None, 1] - radii[:, :, None, 0])
    phalanges = list(range(15))
    moving = centres[:, phalanges].flatten(1, 2)
    moving_radii = radii[:, phalanges].flatten(1, 2)
    others, other_radii = centres.flatten(1, 2), radii.flatten(1, 2)
    reach = moving_radii[:, :, None] + other_radii[:, None]
    overlap = 1 - torch.cdist(moving, others) / reach
    owner = torch.tensor([cone // 3 for cone in phalanges]).repeat_interleave(5)
    # Palm cones touch the first phalanges they carry: only middle and last phalanges are tested against them.
    other_owner = torch.tensor(
        [cone // 3 if cone < 15 else -1 for cone in range(ends.shape[1])]
    ).repeat_interleave(5)
    first = torch.tensor([cone % 3 == 0 for cone in phalanges]).repeat_interleave(5)
    thumb_second = torch.tensor([cone == 1 for cone in phalanges]).repeat_interleave(5)
    ignored = (owner[:, None] == other_owner[None]) | (
        (first | thumb_second)[:, None] & (other_owner < 0)[None]
    )
    knuckles = (
        first[:, None]
        & torch.cat([first, torch.zeros(len(other_owner) - len(first), dtype=torch.bool)])[None]
    )
    return overlap.masked_fill(ignored | knuckles, 0).amax((1, 2))


def draw_places(
    joints: Tensor, draws: Draws, distribution: HandDistribution
) -> tuple[Tensor, Tensor, Tensor]:
    """Places hands before the reference camera.

    Args:
        joints: (B, 21, 3) float64 mm, hand frame.
        draws: B streams.
        distribution: orientations and distances.

    Returns:
        Rotation (B, 3, 3), then offset (B, 3) mm, that bring the hands into the camera frame, and which try
        (B,) each place is.
    """
    count = len(joints)
    towards_camera = draws.chance(0.5)
    if distribution.facing != "any":
        towards_camera = torch.full((count,), distribution.facing == "palm")
    facing = torch.where(towards_camera, 1.0, -1.0).double()
    upright = torch.diag_embed(torch.stack([facing, -torch.ones_like(facing), -facing], -1))
    tilt_limit = math.radians(
        min(distribution.tilt_deg, 90.0) if distribution.facing == "any" else distribution.tilt_deg
    )
    tilt = torch.acos(draws.uniform(math.cos(tilt_limit), 1.0))
    towards = draws.uniform(0, 2 * math.pi)
    axis = torch.stack([torch.cos(towards), torch.sin(towards), torch.zeros_like(towards)], -1)
    roll = math.radians(distribution.roll_deg) * draws.uniform(-1, 1)
    rotation = _axis_rotation((0, 0, 1), roll) @ rotation_about(axis, tilt) @ upright

    joints = joints @ rotation.transpose(1, 2)
    middle = joints.mean(1)
    depth = draws.uniform(distribution.nearest_mm, distribution.farthest_mm)
    reach = torch.linspace(1, 0, PLACES, dtype=depth.dtype)[:, None]
    pixels = 112 * reach * draws.uniform(-1, 1, PLACES, 2)
    depths = depth[:, None].repeat(1, PLACES)
    depths[:, -1] = distribution.farthest_mm  # near the camera a spread hand may not fit: then farther off
    places = torch.cat([pixels * depths[..., None] / 480, depths[..., None]], -1)
    seen = (joints - middle[:, None])[:, None] + places[:, :, None]
    inside = ((480 * seen[..., :2] / seen[..., 2:]).abs() <= 112).all(-1).sum(
        -1
    ) >= distribution.visible_joints
    first = torch.where(inside, torch.arange(PLACES), PLACES - 1).amin(1)
    return rotation, places[torch.arange(count), first] - middle, first
