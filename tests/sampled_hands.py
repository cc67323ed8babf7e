"""Random hands before the reference camera, without images, for tests and benchmarks."""

from __future__ import annotations

from dataclasses import replace

import torch

from nvf_fast.data.draws import Draws
from nvf_fast.data.surfaces import MeshHands
from nvf_fast.synthetic.placement import HandDistribution, draw_places
from nvf_fast.synthetic.posed_hands import posed_vertices
from nvf_fast.synthetic.reference_images import draw_people
from nvf_fast.synthetic.rig import Rig, built_in_surface


def sample_hands(
    count: int,
    generator: torch.Generator,
    distribution: HandDistribution | None = None,
    surface: Rig | None = None,
) -> MeshHands:
    """Draw hands of varied people in varied poses before the reference camera, without images.

    Args:
        count: number of hands B.
        generator: its next number seeds the hands (CPU).
        distribution: orientations and distances; `HandDistribution()` when absent.
        surface: the built-in hand as another mesh; `built_in_surface()` when absent.

    Returns:
        B right hands in the camera frame, mm.
    """
    surface, key = surface or built_in_surface(), int(torch.randint(2**62, (), generator=generator))
    draws = Draws(key, "mesh hand", range(count))
    shapes, size = draw_people(surface, draws)
    vertices, joints = (torch.from_numpy(size * points) for points in posed_vertices(surface, shapes))
    rotation, offset, _ = draw_places(joints, draws, distribution or HandDistribution())
    faces = torch.from_numpy(surface.closed_faces).long()
    hands = MeshHands(vertices, faces, joints).rotated(rotation).translated(offset)
    return replace(hands, vertices=hands.vertices.float(), joints=hands.joints.float())
