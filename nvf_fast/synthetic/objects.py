"""Objects in synthetic images: held, lying about, or mistakable for hands; solids with their materials."""

from __future__ import annotations

import numpy as np
from trimesh.transformations import quaternion_matrix, rotation_matrix

from nvf_fast.data.draws import Stream
from nvf_fast.data.rotations import about_axis
from nvf_fast.synthetic import forearm
from nvf_fast.synthetic.forearm import SKIN, SLEEVE
from nvf_fast.synthetic.posed_hands import PosedHand
from nvf_fast.synthetic.rig import Rig
from nvf_fast.synthetic.skin import draw_tone
from nvf_fast.synthetic.solids import Solid, box, capsule, cylinder, ellipsoid, rounded_box

FIRST_OBJECT = 3  # material; before it are those of the forearm


def held_solid(stream: Stream, hand: PosedHand) -> Solid | None:
    """A solid before the palm, limited by the room between the fingers; None without enough room."""
    knuckles = hand.joints[[5, 9, 13, 17]]
    across = knuckles[0] - knuckles[3]
    across /= np.linalg.norm(across)
    ahead = np.cross(hand.palm, across)
    across = across + 0.35 * stream.normal() * ahead + 0.15 * stream.normal() * hand.palm
    across /= np.linalg.norm(across)
    middle = 0.3 * hand.joints[0] + 0.7 * knuckles.mean(0) + stream.normal(6) * ahead
    skin = hand.vertices[:: max(len(hand.vertices) // 2500, 1)]
    best, place = 0.0, middle
    for height in np.arange(14.0, 60.0, 5.0):
        at = middle + height * hand.palm
        gap = skin - at
        along = np.clip(gap @ across, -45, 45)
        room = np.linalg.norm(gap - along[:, None] * across, axis=1).min()
        if room > best:
            best, place = room, at
    if best < 4:
        return None
    radius = (best - 1.0) * stream.uniform(0.8, 1.0)
    kind = stream.below(3)
    if kind == 0:
        solid = cylinder(radius, stream.uniform(70, 220), taper=stream.uniform(0.75, 1.0))
    elif kind == 1:
        flat = stream.uniform(0.35, 1.0)
        solid = box(np.array([stream.uniform(60, 170), 1.4 * radius, 1.4 * radius * flat]))
    else:
        solid = ellipsoid(np.array([stream.uniform(1, 2.2), 1, 1]) * radius)
    basis = np.stack([across, np.cross(hand.palm, across), hand.palm])
    basis[1] /= np.linalg.norm(basis[1])
    basis[2] = np.cross(basis[0], basis[1])
    return solid.moved(place, basis.T)


def any_solid(stream: Stream, size: float) -> Solid:
    """A solid of a given approximate half size, mm, randomly rotated about the origin."""
    kind, sizes = stream.below(3), size * 3 ** stream.uniforms(-0.5, 0.5, 3)
    if kind == 0:
        solid = cylinder(sizes[0], 2 * sizes[1] * stream.uniform(1, 3), taper=stream.uniform(0.4, 1))
    elif kind == 1:
        solid = box(2 * sizes)
    else:
        solid = ellipsoid(sizes)
    return solid.moved(np.zeros(3), draw_orientation(stream, 1.0).T)


def lying_about(
    stream: Stream, half: float, depth: float, *, skin_chance: float, behind: bool = False
) -> tuple[Solid, int]:
    """A solid somewhere in the view, of skin or of an object's material."""
    factor = stream.uniform(1.25, 2.2) if behind else stream.uniform(0.8, 1.3)
    solid = any_solid(stream, factor * half * 0.05 * 12 ** stream.random())
    place = np.append(stream.uniforms(-1, 1, 2) * half, depth) * factor
    material = 0 if stream.chance(skin_chance) else FIRST_OBJECT + 2 + stream.below(3)
    return solid.moved(place), material


def forearm_alone(stream: Stream, rig: Rig, half: float, depth: float) -> list[tuple[Solid, int]]:
    """A forearm that crosses the view, its hand outside."""
    arm = forearm.draw_forearm(stream, 0.5)
    rim = rig.vertices[rig.rim]
    vertices = np.concatenate([rim, forearm.forearm_vertices(rim, arm)])
    faces = forearm.forearm_faces(np.arange(len(rim), dtype=np.int32), len(rim))
    materials = forearm.face_materials(arm, len(rim))
    start = stream.uniform(90, 200)
    scale = 1.6 * half / start  # the wrist is outside, however the arm is turned in the view
    turned = (vertices + [0, start, 0]) * min(scale, 1.4) @ draw_orientation(stream, 0.0).T
    turned[:, 2] *= 0.5
    placed = turned + [0.0, 0.0, depth]
    return [(Solid(placed, faces[materials == kind]), kind) for kind in np.unique(materials).tolist()]


def like_fingers(stream: Stream, half: float, depth: float) -> list[tuple[Solid, int]]:
    """Two to five capsules of skin side by side, as a distractor."""
    radius = half * stream.uniform(0.05, 0.17)
    count, length = 2 + stream.below(4), radius * stream.uniform(4, 11)
    turn, place = draw_orientation(stream, 0.5), np.append(stream.uniforms(-0.6, 0.6, 2) * half, depth)
    solids = []
    for row in range(count):
        solid = capsule(radius, length * stream.uniform(0.75, 1.1), taper=stream.uniform(0.8, 1.0))
        beside = [0.15 * length * stream.normal(), radius * (2.1 + stream.random()) * (row - count / 2), 0.0]
        fanned = solid.moved(np.array(beside), about_axis(0.07 * stream.normal()))
        solids.append((fanned.moved(place, turn), SKIN))
    return solids


def elbow(stream: Stream, half: float, depth: float) -> list[tuple[Solid, int]]:
    """A bent arm, bare or in a sleeve, whose hand and shoulder lie outside the view."""
    radius, sleeve = half * stream.uniform(0.15, 0.45), stream.chance(0.5)
    turn, place = stream.uniform(-np.pi, np.pi), np.append(stream.uniforms(-0.4, 0.4, 2) * half, depth)
    solids, bend = [], stream.uniform(0.6, 2.4)
    for angle, taper in ((turn, 0.75), (turn + bend, 1.15)):
        solid = capsule(radius, 4 * half, taper).moved(np.array([2 * half, 0, 0]))
        solids.append((solid.moved(place, about_axis(angle)), SLEEVE if sleeve else SKIN))
    return solids


def skin_lump(stream: Stream, half: float, depth: float) -> list[tuple[Solid, int]]:
    """A heap of one to four rounded solids of skin."""
    place, size = np.append(stream.uniforms(-0.7, 0.7, 2) * half, depth), half * stream.uniform(0.15, 0.5)
    solids = []
    for _ in range(1 + stream.below(4)):
        edges = 2 * size * 2.5 ** stream.uniforms(-0.6, 0.4, 3)
        solid = rounded_box(edges, stream.uniform(0.2, 1.0))
        shift = 0.7 * size * stream.normals(3) * [1, 1, 0.3]
        solids.append((solid.moved(shift, draw_orientation(stream, 1.0).T).moved(place), SKIN))
    return solids


def face_solids(stream: Stream, half: float, depth: float) -> list[tuple[Solid, int]]:
    """An ellipsoid of skin with two dark eyes, a mouth and hair."""
    radius = half * stream.uniform(0.25, 0.9)
    features = [(ellipsoid(radius * np.array([0.75, 1.0, 0.8]), 16, 24), SKIN)]
    for size, middle, look in (
        ([0.12, 0.06, 0.06], [-0.3, -0.1, -0.72], 2),
        ([0.12, 0.06, 0.06], [0.3, -0.1, -0.72], 2),
        ([0.25, 0.06, 0.08], [0, 0.5, -0.66], 3),
        ([0.82, 0.8, 0.8], [0, -0.45, 0.2], 4),
    ):
        feature = ellipsoid(radius * np.array(size)).moved(radius * np.array(middle))
        features.append((feature, FIRST_OBJECT + look))
    place = np.append(stream.uniforms(-0.8, 0.8, 2) * half, depth)
    turn = about_axis(stream.normal(0.4))
    return [(solid.moved(place, turn), material) for solid, material in features]


def draw_looks(stream: Stream, count: int) -> np.ndarray:
    """(count, 9) of each material other than skin: red, green, blue, noise and stripes, each by strength and
    wave number (1/mm), gloss and shine."""
    looks = np.zeros((max(count, FIRST_OBJECT), 9))
    for material in range(1, len(looks)):
        if material >= FIRST_OBJECT and stream.chance(0.15):
            colour = draw_tone(stream)
        else:
            grey = 0.03 * 25 ** stream.random()
            colour = grey * np.exp((0.7 if stream.chance(0.35) else 0.15) * stream.normals(3))
        striped = stream.chance(0.25)
        looks[material] = [
            *colour.clip(0.01, 0.9),
            stream.uniform(0.02, 0.3),
            1 / stream.uniform(0.8, 12),
            stream.normal(0.8) if striped else 0.0,
            1 / stream.uniform(3, 30),
            0.25 * stream.random() ** 2 if material >= FIRST_OBJECT else 0.0,
            stream.uniform(5, 60),
        ]
    return looks


def draw_orientation(stream: Stream, any_chance: float) -> np.ndarray:
    """(3, 3) from the hand frame to the camera's: any, or fingers up with a spread, palm or back ahead."""
    if stream.chance(any_chance):
        return quaternion_matrix(stream.normals(4))[:3, :3]
    facing = 1.0 if stream.chance(0.55) else -1.0
    towards, tilt = stream.uniform(0, 2 * np.pi), stream.normal(np.radians(35))
    tilted = rotation_matrix(tilt, [np.cos(towards), np.sin(towards), 0])[:3, :3]
    return about_axis(stream.normal(np.radians(50))) @ tilted @ np.diag([facing, -1, -facing])
