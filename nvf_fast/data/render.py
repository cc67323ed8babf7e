"""Pictures of synthetic hands: sphere tracing of the same surface that the labels come from.

One hand at a time, since the rays that still march differ from picture to picture. Everything is drawn from
one generator, so a seed gives one picture.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .hand import CAPSULES, Hands

MARCHES = 40
OUTSIDE, INSIDE = 0.5, -0.2  # in pixel widths: nearest approach of a ray that sees none, or only, hand


def render_hand(hand: Hands, size: int, generator: torch.Generator) -> Tensor:
    """Draws one hand as the reference camera of `size` pixels sees it.

    Args:
        hand: a batch of exactly one hand, camera frame, mm.
        size: side of the square picture in pixels; the focal length is 480 * size / 224.
        generator: source of skin, light, background, occluders and noise (CPU).

    Returns:
        (3, size, size) uint8, RGB.
    """
    if len(hand) != 1:
        raise ValueError(f"render_hand draws one hand at a time, got a batch of {len(hand)}")
    random = _Random(generator)
    picture = _background(size, random)
    skin, sleeve = _skin(random), random.colour()
    light = _lights(random)
    picture = _draw_forearm(picture, hand, skin if random.chance(0.6) else sleeve, light, random)
    picture = _draw_hand(picture, hand, skin, light, random)
    if random.chance(0.25):
        picture = _occlude(picture, random)
    return _expose(picture, random)


class _Random:
    """Short names for the draws of one picture."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=self.generator)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    def number(self, low: float, high: float) -> float:
        return float(self.uniform(low, high))

    def chance(self, probability: float) -> bool:
        return self.number(0, 1) < probability

    def colour(self) -> Tensor:
        return (self.number(0.05, 0.95) + self.uniform(-0.35, 0.35, 3)).clamp(0.02, 0.98)


def _rays(size: int) -> Tensor:
    """(size * size, 3) directions through the pixels' centres, z = 1."""
    focal, centre = 480 * size / 224, size / 2
    line = (torch.arange(size) - centre) / focal
    y, x = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([x, y, torch.ones_like(x)], -1).reshape(-1, 3)


def _skin(random: _Random) -> Tensor:
    """Albedo between very fair and very dark, with some variation of hue."""
    fair, dark = torch.tensor([0.93, 0.75, 0.66]), torch.tensor([0.24, 0.14, 0.10])
    share = random.number(0, 1) ** 1.3
    return (fair * (1 - share) + dark * share) * (1 + random.uniform(-0.07, 0.07, 3))


def _lights(random: _Random) -> tuple[Tensor, Tensor, float]:
    """Two directions towards the light (2, 3), their colours (2, 3) and the ambient share."""
    directions = random.normal(2, 3)
    directions[:, 2] = -directions[:, 2].abs() - 0.2
    colours = (1 + random.uniform(-0.12, 0.12, 2, 3)) * torch.tensor([[1.0], [random.number(0, 0.6)]])
    return F.normalize(directions, dim=-1), colours, random.number(0.2, 0.55)


def _shade(
    albedo: Tensor,
    normal: Tensor,
    view: Tensor,
    openness: Tensor,
    light: tuple[Tensor, Tensor, float],
    gloss: Tensor,
) -> Tensor:
    directions, colours, ambient = light
    facing = (normal @ directions.T).clamp_min(0)
    half = F.normalize(directions[None] - view[:, None], dim=-1)
    highlight = (normal[:, None] * half).sum(-1).clamp_min(0) ** 24
    lit = ambient + (1.15 - ambient) * facing @ colours
    return albedo * lit * openness[:, None] + gloss[:, None] * (highlight @ colours) * openness[:, None]


def _march(hand: Hands, rays: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Which rays meet the hand: their index, the point (M, 3) and how much of the pixel is covered (M,)."""
    index = _silhouette(hand, size)
    unit = F.normalize(rays[index], dim=-1)
    depths = hand.nodes[0, :, 2]
    stretch = 1 / unit[:, 2]
    travelled, end = (float(depths.min()) - 18) * stretch, (float(depths.max()) + 18) * stretch
    pixel = 224 / 480 / size  # width of a pixel at unit depth
    closest = torch.full_like(travelled, math.inf)
    best = travelled.clone()
    alive = torch.arange(len(index))
    for _ in range(MARCHES):
        if not len(alive):
            break
        at = travelled[alive]
        width = at * pixel
        distance = hand.signed_distance((unit[alive] * at[:, None])[None])[0]
        share = distance / width
        nearer = share < closest[alive]
        closest[alive] = torch.where(nearer, share, closest[alive])
        best[alive] = torch.where(nearer, at, best[alive])
        travelled[alive] = at + distance.clamp_min(0.25 * width)
        alive = alive[(share > INSIDE) & (travelled[alive] < end[alive])]
    coverage = ((OUTSIDE - closest) / (OUTSIDE - INSIDE)).clamp(0, 1)
    hit = torch.nonzero(coverage > 0)[:, 0]
    return index[hit], unit[hit] * best[hit, None], coverage[hit]


def _silhouette(hand: Hands, size: int) -> Tensor:
    """Pixels that may show the hand: a cheap outline with a margin, before any ray marches."""
    ends = hand.nodes[0, torch.tensor(CAPSULES)]
    focal, centre = 480 * size / 224, size / 2
    pixels = focal * ends[..., :2] / ends[..., 2:] + centre
    radii = 1.2 * focal * hand.radii[0] / ends[..., 2] + 2
    low = (pixels - radii[..., None]).amin((0, 1)).floor().clamp(0, size - 1).int().tolist()
    high = (pixels + radii[..., None]).amax((0, 1)).ceil().clamp(0, size - 1).int().tolist()
    y, x = torch.meshgrid(torch.arange(low[1], high[1] + 1), torch.arange(low[0], high[0] + 1), indexing="ij")
    grid = torch.stack([x, y], -1).reshape(-1, 2).float()
    axis = pixels[:, 1] - pixels[:, 0]
    offset = grid @ axis.T - (pixels[:, 0] * axis).sum(-1)
    squared_length = axis.square().sum(-1).clamp_min(1e-6)
    along = (offset / squared_length).clamp(0, 1)
    squared = grid.square().sum(-1, keepdim=True) - 2 * grid @ pixels[:, 0].T + pixels[:, 0].square().sum(-1)
    squared = squared - 2 * along * offset + along.square() * squared_length
    reach = radii[:, 0] + along * (radii[:, 1] - radii[:, 0])
    inside = (squared < reach.square()).any(-1)
    return (y * size + x).reshape(-1)[inside]


def _draw_hand(
    picture: Tensor, hand: Hands, skin: Tensor, light: tuple[Tensor, Tensor, float], random: _Random
) -> Tensor:
    size = picture.shape[-1]
    index, points, coverage = _march(hand, _rays(size), size)
    if not len(index):
        return picture
    _, normal = hand.distance_and_normal(points[None])
    normal = normal[0]
    near, far = (hand.signed_distance((points + step * normal)[None])[0] / step for step in (3.0, 11.0))
    openness = (0.25 + 0.4 * near + 0.35 * far).clamp(0.25, 1)

    albedo = skin.expand(len(index), 3)
    palmar = (normal @ hand.palm[0]).clamp(-1, 1)[:, None]
    albedo = albedo * (1 + (0.10 + 0.25 * (1 - skin.mean())) * palmar * torch.tensor([1.0, 0.92, 0.9]))
    relative = points - hand.nodes[0, 0]
    waves = random.normal(6, 3) * torch.tensor([0.03, 0.05, 0.08, 0.13, 0.2, 0.3])[:, None]
    mottle = torch.sin(relative @ waves.T + random.uniform(0, 6.3, 6)).mean(-1, keepdim=True)
    albedo = albedo * (1 + random.number(0.02, 0.14) * mottle)
    albedo = albedo * _creases(hand, points, random.number(0.05, 0.3))[:, None]
    nail = _nails(hand, points, normal)
    pink = (0.5 * skin + 0.5 * torch.tensor([0.85, 0.62, 0.58])) if random.chance(0.85) else random.colour()
    albedo = albedo * (1 - nail[:, None]) + pink * nail[:, None]
    gloss = random.number(0, 0.12) + 0.25 * nail
    colour = _shade(albedo, normal, F.normalize(points, dim=-1), openness, light, gloss)
    return _blend(picture, index, colour, coverage)


def _creases(hand: Hands, points: Tensor, strength: float) -> Tensor:
    """Darkening along the folds at the finger joints, (M,)."""
    inner = [2, 3, 5, 6, 7, 9, 10, 11, 13, 14, 15, 17, 18, 19]
    joints = hand.nodes[0, inner]
    bones = F.normalize(hand.nodes[0, [joint + 1 for joint in inner]] - joints, dim=-1)
    offset = points[:, None] - joints
    along = (offset * bones).sum(-1)
    close = (offset.square().sum(-1) < 14**2).float()
    return 1 - strength * (torch.exp(-((along / 0.9) ** 2)) * close).amax(-1)


def _nails(hand: Hands, points: Tensor, normal: Tensor) -> Tensor:
    """Share of nail at each point, (M,): an oval on the back of every fingertip."""
    caps = hand.nodes[0, 30:35]
    radius = hand.radii[0, [2, 5, 8, 11, 14], 1]
    centre = caps + 0.75 * radius[:, None] * hand.dorsal[0]
    reach = (points[:, None] - centre).norm(dim=-1) / (0.95 * radius)
    facing = normal @ hand.dorsal[0].T
    return (torch.sigmoid(12 * (1 - reach)) * (facing > 0.45)).amax(-1)


def _draw_forearm(
    picture: Tensor, hand: Hands, albedo: Tensor, light: tuple[Tensor, Tensor, float], random: _Random
) -> Tensor:
    """A sleeve or bare forearm behind the wrist: one tapered stroke, shaded as a cylinder."""
    size = picture.shape[-1]
    wrist, stump = hand.nodes[0, 0], hand.nodes[0, 28:30].mean(0)
    bend = F.normalize(stump - wrist, dim=0) + 0.35 * random.normal(3)
    elbow = stump + 260 * F.normalize(bend, dim=0)
    if float(elbow[2]) < 120:  # an arm that would end behind the camera
        return picture
    focal, centre = 480 * size / 224, size / 2
    ends = torch.stack([stump, elbow])
    pixels = focal * ends[:, :2] / ends[:, 2:] + centre
    scale = float(hand.hand_scale[0]) / 44.6
    radii = focal * scale * torch.tensor([25.0, random.number(36, 46)]) / ends[:, 2]
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    grid = torch.stack([x, y], -1).reshape(-1, 2).float()
    axis = pixels[1] - pixels[0]
    along = ((grid - pixels[0]) @ axis / axis.square().sum().clamp_min(1)).clamp(0, 1)
    offset = grid - pixels[0] - along[:, None] * axis
    radius = radii[0] + along * (radii[1] - radii[0])
    across = offset.norm(dim=-1) / radius
    index = torch.nonzero(across < 1 + 1 / radius)[:, 0]
    if not len(index):
        return picture
    side = offset[index] / radius[index, None]
    normal = F.normalize(
        torch.cat([side, -(1 - across[index].clamp(max=1) ** 2).sqrt()[:, None]], -1), dim=-1
    )
    folds = 1 + random.number(0, 0.15) * torch.sin(along[index] * random.number(10, 60) + 3 * side[:, 0])
    colour = _shade(
        albedo * folds[:, None],
        normal,
        torch.tensor([[0.0, 0.0, 1.0]]),
        torch.full((len(index),), 0.9),
        light,
        torch.zeros(len(index)),
    )
    return _blend(picture, index, colour, ((1 - across[index]) * radius[index] + 0.5).clamp(0, 1))


def _blend(picture: Tensor, index: Tensor, colour: Tensor, coverage: Tensor) -> Tensor:
    flat = picture.reshape(3, -1).clone()
    flat[:, index] = flat[:, index] * (1 - coverage) + colour.T * coverage
    return flat.reshape(picture.shape)


def _background(size: int, random: _Random) -> Tensor:
    """Blurred rooms, hard-edged shapes and fine texture in random proportions, (3, size, size)."""
    picture = random.colour()[:, None, None] + torch.zeros(3, size, size)
    for cells in (2, 5, 13, 40):
        mode = "bilinear" if random.chance(0.7) else "nearest"
        layer = random.uniform(-0.5, 0.5, 1, 3, cells, cells)
        layer = layer + 2 * random.uniform(-0.5, 0.5, 1, 1, cells, cells) * random.number(0, 1)
        picture = (
            picture
            + random.number(0, 0.6) / cells**0.3 * F.interpolate(layer, size=(size, size), mode=mode)[0]
        )
    y, x = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
    for _ in range(int(random.number(0, 7))):
        angle, centre, reach = (
            random.number(0, math.pi),
            random.uniform(-1, 1, 2),
            random.uniform(0.05, 0.7, 2),
        )
        picture = _shape_over(picture, x, y, angle, centre, reach, random)
    grey = picture.mean(0, keepdim=True)
    return grey + random.number(0.05, 1) * (picture - grey)


def _shape_over(
    picture: Tensor, x: Tensor, y: Tensor, angle: float, centre: Tensor, reach: Tensor, random: _Random
) -> Tensor:
    """A turned rectangle or ellipse, flat or striped; some are skin-coloured, so that colour is no proof."""
    across = ((x - centre[0]) * math.cos(angle) + (y - centre[1]) * math.sin(angle)) / reach[0]
    along = ((y - centre[1]) * math.cos(angle) - (x - centre[0]) * math.sin(angle)) / reach[1]
    extent = (
        (across.square() + along.square()).sqrt()
        if random.chance(0.5)
        else torch.maximum(across.abs(), along.abs())
    )
    mask = ((1 - extent) * float(reach.min()) * picture.shape[-1] / 2 + 0.5).clamp(0, 1)
    colour = (_skin(random) if random.chance(0.25) else random.colour())[:, None, None]
    stripes = 1 + random.number(0, 0.5) * torch.sin(across * random.number(2, 30)) * (
        random.number(0, 1) < 0.4
    )
    shading = 1 + random.number(-0.4, 0.4) * along
    return picture * (1 - mask) + colour * stripes * shading * mask


def _occlude(picture: Tensor, random: _Random) -> Tensor:
    """One or two things between the camera and the hand."""
    size = picture.shape[-1]
    y, x = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
    for _ in range(1 + random.chance(0.3)):
        angle, centre = random.number(0, math.pi), random.uniform(-0.9, 0.9, 2)
        picture = _shape_over(picture, x, y, angle, centre, random.uniform(0.05, 0.28, 2), random)
    return picture


def _expose(picture: Tensor, random: _Random) -> Tensor:
    """White balance, exposure, gamma, slight defocus, sensor noise; to uint8."""
    picture = (
        picture.clamp(0, 1.3) * random.number(0.65, 1.2) * (1 + random.uniform(-0.08, 0.08, 3))[:, None, None]
    )
    picture = picture.clamp(1e-4, 1) ** random.number(0.8, 1.25)
    if random.chance(0.3):
        spread = random.number(0.3, 0.9)
        taps = torch.exp(-0.5 * (torch.arange(-2, 3) / spread) ** 2)
        taps = (taps / taps.sum()).reshape(1, 1, 1, 5)
        padded = F.pad(picture[:, None], (2, 2, 2, 2), mode="replicate")
        picture = F.conv2d(F.conv2d(padded, taps), taps.transpose(2, 3))[:, 0]
    picture = picture + random.number(0, 0.03) * random.normal(*picture.shape)
    return (picture.clamp(0, 1) * 255 + 0.5).to(torch.uint8)
