"""The skeleton of a rigged hand: WebXR's 25 joints, bent by the angles that `draw_angles` draws."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import normalize

from nvf_fast.data.rotations import rotation_about

JOINTS = (
    "wrist",
    *(f"thumb-{bone}" for bone in ("metacarpal", "phalanx-proximal", "phalanx-distal", "tip")),
    *(
        f"{finger}-finger-{bone}"
        for finger in ("index", "middle", "ring", "pinky")
        for bone in ("metacarpal", "phalanx-proximal", "phalanx-intermediate", "phalanx-distal", "tip")
    ),
)
METACARPALS = (5, 10, 15, 20)
CHAINS = torch.tensor([[first, first + 1, first + 2, first + 3] for first in (1, 6, 11, 16, 21)])
"""Thumb, index, middle, ring and little finger, from base to tip."""
_FINGER_BONES = torch.stack([CHAINS[:, :-1], CHAINS[:, 1:]], -1).flatten(0, 1)
BONES = torch.cat([_FINGER_BONES, torch.tensor([[base, base + 1] for base in METACARPALS])])
"""Both joints of each bone: three bones of each finger, thumb first, then the palm's."""
PARENTS = [0 if joint in (0, 1, *METACARPALS) else joint - 1 for joint in range(25)]
OURS = [joint for joint in range(25) if joint not in METACARPALS]
"""Indices of FreiHAND's 21 joints among the 25."""

# The thumb's direction at abduction and opposition 0, and the direction in which it bends (hand frame).
THUMB_AHEAD, THUMB_ACROSS = (0.66, 0.62, 0.42), (-0.75, 0.35, 0.55)
DEEPEST_OVERLAP, SPHERES = 0.35, 5  # of fingers, against the radii's sum; spheres along each bone
PALM_WEIGHT = 0.5  # of the palm's normal in a finger's hinge, beside the sine of the finger's own bend


@dataclass(frozen=True)
class HandSkeleton:
    """A right hand's joints at rest and the skin around them, float64, joints in the order of `JOINTS`.

    Hand frame (mm): origin at the wrist, y towards the middle knuckle, x towards the thumb's side, z out of
    the palm.
    """

    vertices: Tensor  # (V, 3) mm
    weights: Tensor  # (V, 25) of each joint on each vertex
    rest: Tensor  # (25, 3) mm

    @cached_property
    def angles(self) -> dict[str, Tensor]:
        """The pose at rest in the form of `draw_angles`: (1, 4) and (1,) radians."""
        first, bends = self._bones[1:, 0], self._bends
        abduction, opposition = _thumb_angles(self._bones[0, 0])
        return {
            "mcp": first[None, :, 2].asin(),
            "pip": bends[None, 1:, 0],
            "dip": bends[None, 1:, 1],
            "abduction": torch.atan2(first[:, 0], first[:, 1])[None],
            "thumb_abduction": abduction[None],
            "thumb_opposition": opposition[None],
            "thumb_mcp": bends[:1, 0],
            "thumb_ip": bends[:1, 1],
        }

    @cached_property
    def _bones(self) -> Tensor:
        """(5, 3, 3) directions of each finger's bones at rest, from base to tip."""
        chains = self.rest[CHAINS]
        return normalize(chains[:, 1:] - chains[:, :-1], dim=-1)

    @cached_property
    def hinges(self) -> Tensor:
        """(5, 3) axes of flexion at rest, across the first bone: across the plane in which a finger is bent,
        and the straighter it is the more across the palm's normal."""
        across = torch.tensor(THUMB_ACROSS, dtype=torch.float64)
        across = _thumb_turn(*_thumb_angles(self._bones[0, 0])) @ across
        palmar = torch.cat([across[None], across.new_tensor([[0.0, 0.0, 1.0]]).expand(4, 3)])
        first, last = self._bones[:, 0], self._bones[:, 2]
        by_palm = normalize(torch.linalg.cross(first, palmar), dim=-1)
        return normalize(torch.linalg.cross(first, last) + PALM_WEIGHT * by_palm, dim=-1)

    @cached_property
    def _bends(self) -> Tensor:
        """(5, 2) radians at rest, about the hinge, of each finger's second and third bone against the one
        before."""
        before, after = self._bones[:, :-1], self._bones[:, 1:]
        sine = (torch.linalg.cross(before, after) * self.hinges[:, None]).sum(-1)
        return torch.atan2(sine, (before * after).sum(-1))

    @cached_property
    def radii(self) -> Tensor:
        """(19,) mm of the flesh around `BONES`: the median over the vertices that a bone moves most."""
        mover = self.weights.argmax(1)
        start, end = self.rest[BONES].unbind(1)
        radii = torch.zeros(len(BONES), dtype=torch.float64)
        for bone, joint in enumerate(BONES[:, 0].tolist()):
            offset, axis = self.vertices[mover == joint] - start[bone], end[bone] - start[bone]
            along = ((offset @ axis) / axis.square().sum()).clamp(0, 1)
            if len(offset):  # a metacarpal may move none
                radii[bone] = (offset - along[:, None] * axis).norm(dim=-1).median()
        return radii

    def turns(self, angles: Mapping[str, Tensor]) -> Tensor:
        """(B, 25, 3, 3) rotations of the joints, against the pose at rest."""
        angles = {name: angles[name].double() for name in self.angles}
        change = {name: angles[name] - rest for name, rest in self.angles.items()}
        turns = torch.eye(3, dtype=torch.float64).repeat(len(change["thumb_ip"]), 25, 1, 1)
        at_rest = _thumb_turn(self.angles["thumb_abduction"], self.angles["thumb_opposition"])
        turn = _thumb_turn(angles["thumb_abduction"], angles["thumb_opposition"]) @ at_rest.mT
        bends = [torch.zeros_like(change["thumb_mcp"]), change["thumb_mcp"], change["thumb_ip"]]
        for finger, chain in enumerate(CHAINS.tolist()):
            if finger > 0:
                turn = rotation_about((0, 0, 1), -change["abduction"][:, finger - 1])
                bends = [change[name][:, finger - 1] for name in ("mcp", "pip", "dip")]
            for joint, bend in zip(chain[:3], bends, strict=True):
                turn = turn @ rotation_about(self.hinges[finger], bend)
                turns[:, joint] = turn
            turns[:, chain[-1]] = turn
        return turns

    def joint_positions(self, turns: Tensor, stretch: Tensor) -> Tensor:
        """(B, 25, 3) mm, hand frame."""
        joints = [self.rest[0].expand(len(turns), 3)]
        for joint, parent in enumerate(PARENTS[1:], 1):
            bone = turns[:, parent] @ (self.rest[joint] - self.rest[parent])
            joints.append(joints[parent] + stretch[:, joint, None] * bone)
        return torch.stack(joints, 1)

    def first_free_pose(
        self, angles: Mapping[str, Tensor], stretch: Tensor
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Choose each hand's first pose without intersecting fingers among T poses.

        Args:
            angles: (B, T, 4) and (B, T) radians, as `draw_angles` draws them.
            stretch: (B, 25), factors of the bones that end at each joint.

        Returns:
            The chosen angles, (B, 4) and (B,), and the index of the pose (B,) int64; the last if all overlap.
        """
        count, tries = angles["thumb_ip"].shape
        rows, chosen = torch.arange(count), torch.zeros(count, dtype=torch.int64)
        # First candidates, then all others of the hands whose first overlaps.
        again = rows[self._overlaps({name: value[:, 0] for name, value in angles.items()}, stretch)]
        if tries > 1 and len(again):
            others = {name: value[again, 1:].flatten(0, 1) for name, value in angles.items()}
            free = ~self._overlaps(others, stretch[again].repeat_interleave(tries - 1, 0))
            free = free.reshape(-1, tries - 1)
            free[:, -1] = True
            chosen[again] = 1 + free.int().argmax(1)
        return {name: value[rows, chosen] for name, value in angles.items()}, chosen

    def _overlaps(self, angles: Mapping[str, Tensor], stretch: Tensor) -> Tensor:
        """(B,) bool, whether fingers intersect each other or the palm."""
        start, end = self.joint_positions(self.turns(angles), stretch)[:, BONES].unbind(2)
        along = torch.linspace(0, 1, SPHERES, dtype=start.dtype)[:, None]
        centres = (start[:, :, None] + along * (end - start)[:, :, None]).flatten(1, 2)
        bone, radii = (of.repeat_interleave(SPHERES) for of in (torch.arange(len(BONES)), self.radii))
        finger, first, palm = bone // 3, bone % 3 == 0, bone >= 15
        moving = slice(15 * SPHERES)
        overlap = 1 - torch.cdist(centres[:, moving], centres) / (radii[moving, None] + radii)
        # First phalanges always touch the palm: only middle and last ones are tested against it.
        ignored = (finger[moving, None] == finger) & ~palm
        ignored |= (first | (bone == 1))[moving, None] & palm
        ignored |= first[moving, None] & first & ~palm
        return overlap.masked_fill(ignored, 0).amax((1, 2)) > DEEPEST_OVERLAP

    def with_tips_on_the_skin(self) -> HandSkeleton:
        """Move the tip joints along the last bones to where these leave the skin."""
        rest, mover = self.rest.clone(), self.weights.argmax(1)
        for (last, tip), ahead in zip(CHAINS[:, 2:].tolist(), self._bones[:, 2], strict=True):
            finger = self.vertices[(mover == last) | (mover == tip)]
            rest[tip] = rest[last] + ahead * ((finger - rest[last]) @ ahead).amax()
        return replace(self, rest=rest)


def _thumb_turn(abduction: Tensor, opposition: Tensor) -> Tensor:
    """(..., 3, 3) rotation of the thumb's first joint, applied to `THUMB_AHEAD`."""
    return rotation_about((0, 1, 0), -opposition) @ rotation_about((0, 0, 1), abduction)


def _thumb_angles(bone: Tensor) -> tuple[Tensor, Tensor]:
    """Abduction and opposition that bring `THUMB_AHEAD` onto a unit bone (3,), or as near as they can."""
    x, y, z = normalize(torch.tensor(THUMB_AHEAD, dtype=bone.dtype), dim=0)
    level = torch.hypot(x, y)
    turned = (bone[1] / level).clamp(-1, 1).asin()
    opposition = torch.atan2(bone[2], bone[0]) - torch.atan2(z, level * turned.cos())
    return turned - torch.atan2(y, x), opposition
