"""Pictures of synthetic hands: the surface that the labels come from, lit, before and behind other things.

`render` is a pure function of hands and scenes, batched, for any device; see `tracing` for why every machine
draws the same picture.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize

from nvf_fast.data.camera_effects import develop
from nvf_fast.data.draws import Draws
from nvf_fast.data.hand import Hands
from nvf_fast.data.scenes import Backgrounds, Forearms, Lights, Scenes, Shapes, Skins, draw_scenes
from nvf_fast.data.surfaces import MeshHands
from nvf_fast.data.textures import cells, texture
from nvf_fast.data.things import ThingSolid
from nvf_fast.data.tracing import ConeSolid, Layer, pixel_width, trace_layers, trace_mesh

CELLS = (2, 5, 13, 40)  # of the background's layers, on a side
AT_ONCE = {"cpu": 1, "cuda": 32}  # pictures drawn together
SHADOW_STEPS_MM = (5.0, 10.0, 18.0, 30.0, 48.0)
PALM_DEPTH_MM = 12.0

Distance = Callable[[Tensor], Tensor]


@torch.no_grad()
def render(hands: Hands | MeshHands, scenes: Scenes, size: int) -> Tensor:
    """Draws hands as the reference camera of `size` pixels sees them.

    The same hands and scenes give the same picture on every machine, give or take one grey level, where
    float32 matrix products are exact (PyTorch's default).

    Args:
        hands: B hands, camera frame, mm.
        scenes: B scenes on the same device.
        size: side of the square pictures in pixels; the focal length is 480 * size / 224.

    Returns:
        (B, 3, size, size) uint8, RGB, on the same device.
    """
    if len(hands) != len(scenes):
        raise ValueError(f"each hand needs a scene, got {len(hands)} hands and {len(scenes)} scenes")
    device = hands.joints.device
    pictures = torch.empty(len(hands), 3, size, size, dtype=torch.uint8, device=device)
    step = AT_ONCE.get(device.type, 1)
    # Pictures of like size together, since rays are padded to the most of any picture.
    order = hands.joints[..., 2].mean(1).argsort()
    for start in range(0, len(hands), step):
        rows = order[start : start + step]
        pictures[rows] = _render(hands[rows], scenes[rows], size)
    return pictures


def render_hand(hand: Hands | MeshHands, size: int, generator: torch.Generator) -> Tensor:
    """One hand in a plain scene that the next number of `generator` names; (3, size, size) uint8, RGB."""
    if len(hand) != 1:
        raise ValueError(f"render_hand draws one hand at a time, got a batch of {len(hand)}")
    scenes = draw_scenes(Draws.from_generator(generator, "scene", 1)).to(hand.joints.device)
    return render(hand, scenes, size)[0]


def _render(hands: Hands | MeshHands, scenes: Scenes, size: int) -> Tensor:
    light = scenes.light
    picture = _background(scenes.background, size)
    picture = _draw_shapes(picture, scenes.behind)
    grey = picture.mean(1, keepdim=True)
    picture = grey + scenes.background.saturation[:, None, None, None] * (picture - grey)
    picture = _draw_forearm(picture, hands, scenes.forearm, light).flatten(2)

    if isinstance(hands, MeshHands):
        layers, distance = trace_mesh(hands, size), hands.signed_distance
    else:
        solid = ConeSolid.of(hands)
        layers, distance = trace_layers(solid, size), solid.distance
    frame = _frame(hands.joints)
    thing = None
    if (scenes.thing.kind > 0).any():
        thing = _held(hands, scenes, frame, distance)
    shades = [_hand_colour(hands, frame[:, 2], each, scenes, distance, thing) for each in layers]
    picture = _compose(picture, layers, shades, thing, scenes, distance, size)
    picture = _draw_shapes(picture.unflatten(2, (size, size)), scenes.before)
    return develop(picture, scenes.camera)


def _background(background: Backgrounds, size: int) -> Tensor:
    """Blurred rooms and hard-edged cells in random proportions, (B, 3, size, size)."""
    picture = background.tone[:, :, None, None].expand(-1, -1, size, size)
    for layer, count in enumerate(CELLS):
        seed, sharp, grey = background.seed + layer, background.sharp[:, layer], background.grey[:, layer]
        strength = (background.strength[:, layer] / count**0.3)[:, None, None, None]
        picture = picture + strength * cells(seed, count, size, sharp, grey)
    return picture


def _draw_shapes(picture: Tensor, shapes: Shapes) -> Tensor:
    size = picture.shape[-1]
    line = torch.linspace(-1, 1, size, device=picture.device, dtype=picture.dtype)
    for slot in range(int(shapes.count.max())):
        in_use = (shapes.count > slot)[:, None, None]
        turn = shapes.angle[:, slot, None, None]
        (cosine, sine), reach = (turn.cos(), turn.sin()), shapes.reach[:, slot, :, None, None]
        x = line - shapes.centre[:, slot, 0, None, None]
        y = line[:, None] - shapes.centre[:, slot, 1, None, None]
        across = (x * cosine + y * sine) / reach[:, 0]
        along = (y * cosine - x * sine) / reach[:, 1]
        extent = torch.where(
            shapes.ellipse[:, slot, None, None], across.hypot(along), torch.maximum(across.abs(), along.abs())
        )
        mask = ((1 - extent) * reach.amin(1) * size / 2 + 0.5).clamp(0, 1) * in_use
        wave = torch.sin(across * shapes.stripe_frequency[:, slot, None, None])
        shade = 1 + shapes.stripes[:, slot, None, None] * wave
        shade = shade * (1 + shapes.shading[:, slot, None, None] * along)
        colour = shapes.colour[:, slot, :, None, None]
        if (shapes.texture.kind[:, slot] > 0).any():
            pattern = shapes.texture
            periods = pattern.periods[:, slot, None, None]
            kind, seed = pattern.kind[:, slot, None, None], pattern.seed[:, slot, None, None]
            share = texture(kind, seed, periods * across * reach[:, 0], periods * along * reach[:, 1])
            colour = torch.lerp(colour, pattern.colour[:, slot, :, None, None], share[:, None])
        picture = torch.lerp(picture, colour * shade[:, None], mask[:, None])
    return picture


def _shade(
    albedo: Tensor, normals: Tensor, view: Tensor, openness: Tensor, lit: Tensor, light: Lights, gloss: Tensor
) -> Tensor:
    """(B, N, 3) of albedo, normals, view (B, N, 3), openness, gloss and lit (B, N), the first lamp's share
    that arrives."""
    facing = (normals @ light.direction.transpose(1, 2)).clamp_min(0)
    half = normalize(light.direction[:, None] - view[:, :, None], dim=-1)
    highlight = (normals[:, :, None] * half).sum(-1).clamp_min(0) ** 24
    arriving = torch.stack([lit, torch.ones_like(lit)], -1)
    diffuse = light.ambient[:, None] + (1.15 - light.ambient[:, None]) * ((facing * arriving) @ light.colour)
    shine = gloss[..., None] * ((highlight * arriving) @ light.colour)
    return (albedo * diffuse + shine) * openness[..., None]


def _lit(
    points: Tensor, normals: Tensor, light: Lights, distance: Distance, thing: ThingSolid | None
) -> Tensor:
    """Share of the first lamp's light, (B, N): a soft shadow by the nearest pass of the ray to the lamp."""
    if not (light.shadow > 0).any():
        return torch.ones_like(points[..., 0])
    clear = torch.ones_like(points[..., 0])
    for step in SHADOW_STEPS_MM:
        at = points + normals + step * light.direction[:, :1]
        beside = distance(at)
        if thing is not None:
            beside = torch.minimum(beside, thing.distance(at))
        clear = torch.minimum(clear, 0.5 + beside / (0.35 * step))
    clear = clear.clamp(0, 1)
    return 1 - light.shadow[:, None] * (1 - clear * clear * (3 - 2 * clear))


def _hand_colour(
    hands: Hands | MeshHands,
    palm: Tensor,
    layer: Layer,
    scenes: Scenes,
    distance: Distance,
    thing: ThingSolid | None,
) -> Tensor:
    skin, points, normals = scenes.skin, layer.points, layer.normals
    near, far = (distance(points + step * normals) / step for step in (3.0, 11.0))
    openness = (0.25 + 0.4 * near + 0.35 * far).clamp(0.25, 1)

    colour = skin.colour[:, None]
    palmar = (normals @ palm[..., None]) * colour.new_tensor([1.0, 0.92, 0.9])
    albedo = colour * (1 + (0.10 + 0.25 * (1 - colour.mean(-1, keepdim=True))) * palmar)
    mottle = torch.sin(
        (points - hands.joints[:, :1]) @ skin.waves.transpose(1, 2) + skin.phases[:, None]
    ).mean(-1, keepdim=True)
    albedo = albedo * (1 + skin.mottle[:, None, None] * mottle)
    albedo = albedo * _creases(hands.joints, points, skin)[..., None]
    gloss = skin.gloss[:, None].expand_as(openness)
    if isinstance(hands, Hands):
        nail = _nails(hands, points, normals)
        albedo = torch.lerp(albedo, skin.nail[:, None], nail[..., None])
        gloss = gloss + 0.25 * nail
    lit = _lit(points, normals, scenes.light, distance, thing)
    return _shade(albedo, normals, normalize(points, dim=-1), openness, lit, scenes.light, gloss)


def _creases(joints: Tensor, points: Tensor, skin: Skins) -> Tensor:
    """Darkening along the folds at the finger joints, (B, N)."""
    inner = [2, 3, 5, 6, 7, 9, 10, 11, 13, 14, 15, 17, 18, 19]
    at = joints[:, inner]
    bones = normalize(joints[:, [joint + 1 for joint in inner]] - at, dim=-1)
    relative, at = points - joints[:, :1], at - joints[:, :1]
    along = relative @ bones.transpose(1, 2) - (at * bones).sum(-1)[:, None]
    close = ((15 - torch.cdist(relative, at, compute_mode="donot_use_mm_for_euclid_dist")) / 2).clamp(0, 1)
    fold = torch.exp(-((along / 0.9) ** 2)) * close
    return 1 - skin.crease[:, None] * fold.amax(-1)


def _nails(hands: Hands, points: Tensor, normals: Tensor) -> Tensor:
    """Share of nail, (B, N): an oval on the back of every fingertip."""
    radius = hands.radii[:, [2, 5, 8, 11, 14], 1]
    centre = hands.nodes[:, 30:35] + 0.75 * radius[..., None] * hands.dorsal
    gap = torch.cdist(points, centre, compute_mode="donot_use_mm_for_euclid_dist")
    facing = (normals @ hands.dorsal.transpose(1, 2) - 0.4) / 0.1
    return (torch.sigmoid(12 * (1 - gap / (0.95 * radius[:, None]))) * facing.clamp(0, 1)).amax(-1)


def _frame(joints: Tensor) -> Tensor:
    """(B, 3, 3) rows: towards the thumb's side, towards the fingers, out of the palm; from joints alone."""
    ahead = normalize(joints[:, 9] - joints[:, 0], dim=-1)
    palm = normalize(torch.linalg.cross(joints[:, 5] - joints[:, 17], ahead), dim=-1)
    return torch.stack([torch.linalg.cross(ahead, palm), ahead, palm], 1)


def _held(hands: Hands | MeshHands, scenes: Scenes, frame: Tensor, distance: Distance) -> ThingSolid:
    things, joints = scenes.thing, hands.joints
    middle = 0.35 * joints[:, 0] + 0.65 * joints[:, [5, 9, 13, 17]].mean(1)
    middle = middle + things.place[:, :1] * frame[:, 1] + things.place[:, 1:] * frame[:, 0]
    centre = middle + (PALM_DEPTH_MM + things.reach[:, None]) * frame[:, 2]
    return ThingSolid.held(things, distance(centre[:, None])[:, 0], frame, centre)


def _compose(
    picture: Tensor,
    layers: list[Layer],
    shades: list[Tensor],
    thing: ThingSolid | None,
    scenes: Scenes,
    distance: Distance,
    size: int,
) -> Tensor:
    """Lays hand and thing over the picture (B, 3, P), each before the other where it is nearer."""
    images = [_image(layer, shade, size) for layer, shade in zip(layers, shades, strict=True)]
    if thing is None:
        for image in reversed(images):
            picture = _over(picture, image)
        return picture
    held = _image(*_thing_colour(thing, scenes, distance, size), size)
    softness = pixel_width(size) * thing.centre.norm(dim=-1)[:, None]
    before = torch.ones_like(held[:, 4])  # share of the thing that is not yet drawn
    for image in reversed(images):
        # Where the two meet neither hides the other at once: a pixel's width of depth lies between.
        nearer = 0.5 + (image[:, 3] / image[:, 4] - held[:, 3] / held[:, 4]) / softness
        nearer = torch.where(image[:, 4] * held[:, 4] > 0, nearer.clamp(0, 1), 1.0).minimum(before)
        picture = _over(_over(picture, held, before - nearer), image)
        before = nearer
    return _over(picture, held, before)


def _image(layer: Layer, shade: Tensor, size: int) -> Tensor:
    """(B, 5, P): colour and distance from the camera, both times coverage, and coverage."""
    values = torch.cat([shade, layer.along[..., None], torch.ones_like(shade[..., :1])], -1)
    values = (values * layer.coverage[..., None]).transpose(1, 2)
    index = layer.pixel[:, None].expand_as(values)
    return values.new_zeros(len(values), 5, size * size).scatter_add(2, index, values)


def _over(picture: Tensor, image: Tensor, share: Tensor | None = None) -> Tensor:
    if share is not None:
        image = image * share[:, None]
    return picture * (1 - image[:, 4:]) + image[:, :3]


def _thing_colour(thing: ThingSolid, scenes: Scenes, distance: Distance, size: int) -> tuple[Layer, Tensor]:
    """What shows of the things, and its colour (B, R, 3)."""
    layer = trace_layers(thing, size)[0]
    points, normals = layer.points, layer.normals
    openness = (0.45 + 0.55 * distance(points + 6 * normals) / 6).clamp(0.25, 1)
    lit = _lit(points, normals, scenes.light, distance, thing)
    gloss = scenes.thing.gloss[:, None].expand_as(openness)
    view = normalize(points, dim=-1)
    return layer, _shade(thing.albedo(points), normals, view, openness, lit, scenes.light, gloss)


def _draw_forearm(picture: Tensor, hands: Hands | MeshHands, arm: Forearms, light: Lights) -> Tensor:
    """A sleeve or bare forearm behind the wrist: one tapered stroke, shaded as a cylinder."""
    size, joints = picture.shape[-1], hands.joints
    scale = (hands.hand_scale / 44.6)[:, None]
    back = normalize(joints[:, 0] - joints[:, 9], dim=-1)
    stump = joints[:, 0] + 12 * scale * back
    elbow = stump + 260 * normalize(back + arm.bend, dim=-1)
    ends = torch.stack([stump, elbow], 1)
    # An arm that would end behind the camera is not drawn; one that nearly does fades.
    visible = ((elbow[:, 2] - 110) / 20).clamp(0, 1)[:, None, None]
    depth = ends[..., 2].clamp_min(100)
    pixels = ends[..., :2] / depth[..., None] / pixel_width(size) + size / 2
    radii = scale * torch.stack([torch.full_like(arm.radius, 25), arm.radius], 1) / depth / pixel_width(size)
    axis = pixels[:, 1] - pixels[:, 0]
    line = torch.arange(size, device=picture.device, dtype=picture.dtype)
    x = line - pixels[:, 0, 0, None, None]
    y = line[:, None] - pixels[:, 0, 1, None, None]
    axis_x, axis_y = axis[:, 0, None, None], axis[:, 1, None, None]
    along = ((x * axis_x + y * axis_y) / axis.square().sum(-1).clamp_min(1)[:, None, None]).clamp(0, 1)
    radius = radii[:, 0, None, None] + along * (radii[:, 1] - radii[:, 0])[:, None, None]
    side_x, side_y = (x - along * axis_x) / radius, (y - along * axis_y) / radius
    across = side_x.hypot(side_y)
    mask = ((1 - across) * radius + 0.5).clamp(0, 1) * visible
    normals = torch.stack([side_x, side_y, -(1 - across.square()).clamp_min(0).sqrt()], -1)
    normals = normalize(normals, dim=-1).flatten(1, 2)
    wave = torch.sin(along * arm.fold_frequency[:, None, None] + 3 * side_x)
    folds = 1 + arm.folds[:, None, None] * wave
    colour = arm.colour[:, None]
    if (arm.texture.kind > 0).any():
        pattern = arm.texture
        periods = pattern.periods[:, None, None]
        kind, seed = pattern.kind[:, None, None], pattern.seed[:, None, None]
        share = texture(kind, seed, 260 * periods * along, 40 * periods * side_x).flatten(1)[..., None]
        colour = torch.lerp(colour, pattern.colour[:, None], share)
    albedo = colour * folds.flatten(1)[..., None]
    openness, lit = torch.full_like(folds, 0.9).flatten(1), torch.ones_like(folds).flatten(1)
    view = albedo.new_tensor([[[0.0, 0.0, 1.0]]])
    shade = _shade(albedo, normals, view, openness, lit, light, torch.zeros_like(lit))
    return torch.lerp(picture, shade.transpose(1, 2).unflatten(2, (size, size)), mask[:, None])
