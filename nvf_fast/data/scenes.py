"""What surrounds a synthetic hand: skin, light, background, things in the way, camera. Numbers, no pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor

from nvf_fast.data.draws import Draws
from nvf_fast.data.textures import TEXTURES

THINGS = ("nothing", "sphere", "box", "cylinder", "bottle")
SHAPES, CLUTTER = (6, 2), (10, 2)  # slots behind and before the hand, in plain scenes and added by clutter


@dataclass(frozen=True)
class SceneDistribution:
    """How often a picture has what; everything is off in the plain scene. Probabilities in [0, 1].

    objects: a sphere, box, cylinder or bottle between palm and fingers.
    clutter: up to 10 more shapes behind the hand and 2 more before it.
    textures: checkers, stripes, noise or wood on shapes, sleeve and object (each with this probability).
    coloured_lights: lamps and surroundings of strong colour.
    shadows: soft shadows that hand and object cast on themselves and each other.
    motion_blur: a smear of 2 to 9 px in one direction, at 224 px.
    defocus: a blur of 0.8 to 2 px, at 224 px.
    sensor_noise: noise up to three times as strong, part of it growing with the light.
    exposure: exposure from 0.35 to 1.7 instead of 0.65 to 1.2, and a strong cast of the white balance.
    compression: blocks of 8 x 8 pixels that lack their fine detail, as strong JPEG leaves them.
    """

    objects: float = 0.0
    clutter: float = 0.0
    textures: float = 0.0
    coloured_lights: float = 0.0
    shadows: float = 0.0
    motion_blur: float = 0.0
    defocus: float = 0.0
    sensor_noise: float = 0.0
    exposure: float = 0.0
    compression: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            if not 0 <= (value := getattr(self, field.name)) <= 1:
                raise ValueError(f"{field.name} is a probability and must lie in [0, 1], got {value}")


class Rows:
    """A dataclass of tensors (or of such dataclasses) whose first axis counts pictures."""

    def __getitem__(self, index: slice | Tensor) -> Self:
        return type(self)(**{name: value[index] for name, value in vars(self).items()})

    def to(self, device: torch.device | str) -> Self:
        return type(self)(**{name: value.to(device) for name, value in vars(self).items()})

    def float(self) -> Self:
        """Float64 made float32; whole numbers stay."""
        return type(self)(
            **{
                name: value if isinstance(value, Tensor) and not value.is_floating_point() else value.float()
                for name, value in vars(self).items()
            }
        )


@dataclass(frozen=True)
class Textures(Rows):
    """kind (B, ...) index into `TEXTURES`; seed (B, ...) int64; periods (B, ...) per unit of length; colour
    (B, ..., 3) of the pattern."""

    kind: Tensor
    seed: Tensor
    periods: Tensor
    colour: Tensor


@dataclass(frozen=True)
class Shapes(Rows):
    """Flat turned rectangles and ellipses, n slots; lengths in halves of the picture's side.

    count (B,): slots in use, the first ones. angle (B, n) rad; centre, reach (B, n, 2); ellipse (B, n) bool;
    colour (B, n, 3); stripes, stripe_frequency, shading (B, n).
    """

    count: Tensor
    angle: Tensor
    centre: Tensor
    reach: Tensor
    ellipse: Tensor
    colour: Tensor
    stripes: Tensor
    stripe_frequency: Tensor
    shading: Tensor
    texture: Textures


@dataclass(frozen=True)
class Backgrounds(Rows):
    """tone (B, 3); strength, grey (B, 4) and sharp (B, 4) bool of the layers of 2, 5, 13 and 40 cells; seed
    (B,) int64; saturation (B,)."""

    tone: Tensor
    strength: Tensor
    grey: Tensor
    sharp: Tensor
    seed: Tensor
    saturation: Tensor


@dataclass(frozen=True)
class Skins(Rows):
    """colour, nail (B, 3) albedo; gloss, mottle, crease (B,) strengths; waves (B, 6, 3) rad / mm and phases
    (B, 6) of the mottling."""

    colour: Tensor
    nail: Tensor
    gloss: Tensor
    mottle: Tensor
    crease: Tensor
    waves: Tensor
    phases: Tensor


@dataclass(frozen=True)
class Lights(Rows):
    """direction (B, 2, 3) unit vectors towards the lamps, their colour (B, 2, 3), ambient (B, 3); shadow (B,)
    share of the first lamp's light that a shadow takes."""

    direction: Tensor
    colour: Tensor
    ambient: Tensor
    shadow: Tensor


@dataclass(frozen=True)
class Forearms(Rows):
    """colour (B, 3); bend (B, 3) added to the wrist's direction; radius (B,) mm at the elbow; folds,
    fold_frequency (B,)."""

    colour: Tensor
    bend: Tensor
    radius: Tensor
    folds: Tensor
    fold_frequency: Tensor
    texture: Textures


@dataclass(frozen=True)
class Things(Rows):
    """What the hand holds. kind (B,) index into `THINGS`; reach (B,) mm, its largest radius; length (B,) in
    radii; place (B, 2) along and across the palm, mm; axis (B, 3) in the hand's frame; turn (B,) rad about
    it; colour (B, 3); gloss (B,)."""

    kind: Tensor
    reach: Tensor
    length: Tensor
    place: Tensor
    axis: Tensor
    turn: Tensor
    colour: Tensor
    gloss: Tensor
    texture: Textures


@dataclass(frozen=True)
class Cameras(Rows):
    """exposure, gamma (B,); balance (B, 3); blur (B,) px², variance at any size; smear (B, 3) px², xx, xy and
    yy of a covariance at 224 px; noise (B,), and shot_noise (B,) at full light; noise_seed (B,) int64; blocks
    (B,) share of the detail that 8 x 8 blocks lack."""

    exposure: Tensor
    gamma: Tensor
    balance: Tensor
    blur: Tensor
    smear: Tensor
    noise: Tensor
    shot_noise: Tensor
    noise_seed: Tensor
    blocks: Tensor


@dataclass(frozen=True)
class Scenes(Rows):
    """Everything about B pictures but the hands."""

    background: Backgrounds
    behind: Shapes
    before: Shapes
    skin: Skins
    light: Lights
    forearm: Forearms
    thing: Things
    camera: Cameras

    def __len__(self) -> int:
        return len(self.background.tone)


def draw_scenes(draws: Draws, distribution: SceneDistribution | None = None) -> Scenes:
    """Draws one scene per stream. What is switched on changes nothing of the rest.

    Args:
        draws: B streams.
        distribution: how often there is what; the plain scene when absent.

    Returns:
        B scenes, float32 on the CPU.
    """
    chances = distribution or SceneDistribution()
    background = Backgrounds(
        tone=_colour(draws),
        strength=draws.uniform(0, 0.6, 4),
        grey=draws.uniform(0, 1, 4),
        sharp=draws.chance(0.3, 4),
        seed=draws.below(2**32),
        saturation=draws.uniform(0.05, 1),
    )
    skin = _skins(draws)
    clutter = draws.chance(chances.clutter)
    behind = draws.below(SHAPES[0] + 1) + clutter * (1 + draws.below(CLUTTER[0]))
    before = draws.chance(0.25) * (1 + draws.chance(0.3).long()) + clutter * draws.below(CLUTTER[1] + 1)
    return Scenes(
        background,
        behind=_shapes(draws, behind, SHAPES[0] + CLUTTER[0], 1.0, 0.7, chances.textures),
        before=_shapes(draws, before, SHAPES[1] + CLUTTER[1], 0.9, 0.28, chances.textures),
        skin=skin,
        light=_lights(draws, chances),
        forearm=_forearms(draws, skin.colour, chances.textures),
        thing=_things(draws, chances),
        camera=_cameras(draws, chances),
    ).float()


def _colour(draws: Draws, *shape: int) -> Tensor:
    return (draws.uniform(0.05, 0.95, *shape, 1) + draws.uniform(-0.35, 0.35, *shape, 3)).clamp(0.02, 0.98)


def _skin_colour(draws: Draws, *shape: int) -> Tensor:
    """Albedo between very fair and very dark, with some variation of hue."""
    fair, dark = torch.tensor([0.93, 0.75, 0.66]), torch.tensor([0.24, 0.14, 0.10])
    share = draws.uniform(0, 1, *shape, 1) ** 1.3
    return (fair * (1 - share) + dark * share) * (1 + draws.uniform(-0.07, 0.07, *shape, 3))


def _textures(draws: Draws, probability: float, periods: tuple[float, float], *shape: int) -> Textures:
    kind = 1 + draws.below(len(TEXTURES) - 1, *shape)
    return Textures(
        kind=torch.where(draws.chance(probability, *shape), kind, 0),
        seed=draws.below(2**32, *shape),
        periods=draws.uniform(*periods, *shape),
        colour=_colour(draws, *shape),
    )


def _shapes(
    draws: Draws, count: Tensor, slots: int, spread: float, largest: float, textures: float
) -> Shapes:
    """Some are skin-coloured, so that colour is no proof of a hand."""
    skin = draws.chance(0.25, slots, 1)
    return Shapes(
        count=count,
        angle=draws.uniform(0, math.pi, slots),
        centre=draws.uniform(-spread, spread, slots, 2),
        reach=draws.uniform(0.05, largest, slots, 2),
        ellipse=draws.chance(0.5, slots),
        colour=torch.where(skin, _skin_colour(draws, slots), _colour(draws, slots)),
        stripes=draws.uniform(0, 0.5, slots) * draws.chance(0.4, slots),
        stripe_frequency=draws.uniform(2, 30, slots),
        shading=draws.uniform(-0.4, 0.4, slots),
        texture=_textures(draws, textures, (3, 20), slots),
    )


def _skins(draws: Draws) -> Skins:
    colour = _skin_colour(draws)
    pink = 0.5 * colour + 0.5 * torch.tensor([0.85, 0.62, 0.58])
    wavelengths = torch.tensor([0.03, 0.05, 0.08, 0.13, 0.2, 0.3])[:, None]
    return Skins(
        colour=colour,
        nail=torch.where(draws.chance(0.85, 1), pink, _colour(draws)),
        gloss=draws.uniform(0, 0.12),
        mottle=draws.uniform(0.02, 0.14),
        crease=draws.uniform(0.05, 0.3),
        waves=draws.normal(6, 3) * wavelengths,
        phases=draws.uniform(0, 2 * math.pi, 6),
    )


def _lights(draws: Draws, chances: SceneDistribution) -> Lights:
    direction = draws.normal(2, 3)
    direction[..., 2] = -direction[..., 2].abs() - 0.2
    strength = torch.stack([torch.ones(len(draws)), draws.uniform(0, 0.6)], -1)[..., None]
    colour = 1 + draws.uniform(-0.12, 0.12, 2, 3)
    ambient = draws.uniform(0.2, 0.55, 1).expand(-1, 3)
    coloured = draws.chance(chances.coloured_lights)
    colour = colour * torch.where(coloured[:, None, None], 1 + draws.uniform(-0.45, 0.35, 2, 3), 1.0)
    ambient = ambient * torch.where(coloured[:, None], 1 + draws.uniform(-0.4, 0.4, 3), 1.0)
    return Lights(
        direction=torch.nn.functional.normalize(direction, dim=-1),
        colour=colour * strength,
        ambient=ambient,
        shadow=draws.chance(chances.shadows) * draws.uniform(0.4, 0.95),
    )


def _forearms(draws: Draws, skin: Tensor, textures: float) -> Forearms:
    bare = draws.chance(0.6)
    texture = _textures(draws, textures, (0.03, 0.12))
    texture.kind[bare] = 0
    return Forearms(
        colour=torch.where(bare[:, None], skin, _colour(draws)),
        bend=0.35 * draws.normal(3),
        radius=draws.uniform(36, 46),
        folds=draws.uniform(0, 0.15),
        fold_frequency=draws.uniform(10, 60),
        texture=texture,
    )


def _things(draws: Draws, chances: SceneDistribution) -> Things:
    kind = 1 + draws.below(len(THINGS) - 1)
    across = torch.tensor([1.0, 0.0, 0.0])  # a bottle lies across the palm, give or take
    return Things(
        kind=torch.where(draws.chance(chances.objects), kind, 0),
        reach=draws.uniform(14, 42),
        length=draws.uniform(1.2, 3.5),
        place=draws.uniform(-12, 12, 2),
        axis=torch.nn.functional.normalize(across + 0.45 * draws.normal(3), dim=-1),
        turn=draws.uniform(0, math.pi),
        colour=_colour(draws),
        gloss=draws.uniform(0, 0.4),
        texture=_textures(draws, chances.textures, (0.04, 0.15)),
    )


def _cameras(draws: Draws, chances: SceneDistribution) -> Cameras:
    extreme = draws.chance(chances.exposure)
    exposure = torch.where(extreme, draws.uniform(0.35, 1.7), draws.uniform(0.65, 1.2))
    cast = torch.where(extreme[:, None], draws.uniform(-0.25, 0.25, 3), draws.uniform(-0.08, 0.08, 3))
    length = draws.chance(chances.motion_blur) * draws.uniform(2, 9)
    angle = draws.uniform(0, math.pi)
    focus = draws.chance(chances.defocus) * draws.uniform(0.8, 2)
    along = length.square() / 12  # the variance of a smear is that of a uniform distribution
    noisy = draws.chance(chances.sensor_noise)
    return Cameras(
        exposure=exposure,
        gamma=draws.uniform(0.8, 1.25),
        balance=1 + cast,
        blur=draws.chance(0.3) * draws.uniform(0.3, 0.9).square(),
        smear=torch.stack(
            [
                focus.square() + along * angle.cos().square(),
                along * angle.cos() * angle.sin(),
                focus.square() + along * angle.sin().square(),
            ],
            -1,
        ),
        noise=torch.where(noisy, draws.uniform(0.02, 0.07), draws.uniform(0, 0.03)),
        shot_noise=noisy * draws.uniform(0, 0.08),
        noise_seed=draws.below(2**32),
        blocks=draws.chance(chances.compression) * draws.uniform(0.3, 0.9),
    )
