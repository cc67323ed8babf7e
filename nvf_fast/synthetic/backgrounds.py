"""Backgrounds of hands: crops of panoramas and images in a folder, and procedural surroundings."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps
from trimesh.transformations import euler_matrix

from nvf_fast.data.draws import Stream
from nvf_fast.data.image_warp import gaussian_blur, panorama_view, warp_perspective
from nvf_fast.data.rotations import about_axis
from nvf_fast.image_files import read_image
from nvf_fast.runtime.compiled import compiled
from nvf_fast.runtime.files import read_path
from nvf_fast.synthetic.shading import noise_at, noise_volume
from nvf_fast.synthetic.skin import draw_tone

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
LARGEST = 1024  # px, of an image's longer side in memory
SMALLEST = 32  # px, of its shorter side: a panorama's light is averaged over 8 rows of a quarter of its size
KEPT = 256  # images in memory
PANORAMA_SIZES = 3  # each half as wide as the one before
PROCEDURAL, PROCEDURAL_SIZE = 256, 192  # number and side of the procedural images
IMAGE_CHANCE = 0.8  # of an image, given a folder
SHADOW_REACH = 0.025  # of a painted shape, relative to the image's side
FIELD_OF_VIEW = (40.0, 90.0)  # degrees, of a crop of a panorama


class Surroundings(NamedTuple):
    """Light of the surroundings, linear RGB with a mean of about one."""

    # (3,) from above and from below
    sky: np.ndarray
    ground: np.ndarray
    direction: np.ndarray  # (3,) unit, towards the brightest part; x right, y down, z forward
    colour: np.ndarray  # (3,) of that part


class Backgrounds:
    """A source of backgrounds.

    Args:
        folder: of images and further folders, read on demand; images twice as wide as high are
            equirectangular panoramas, and hidden files are skipped. None makes all surroundings procedural.

    Raises:
        ValueError: the folder holds no image.
    """

    def __init__(self, folder: Path | str | None = None) -> None:
        self._paths = [] if folder is None else background_files(folder)

    def draw(self, stream: Stream, size: int) -> np.ndarray:
        """Draw one background, (size, size, 3) float32 display RGB in [0, 1]."""
        if self._paths and stream.chance(IMAGE_CHANCE):
            crop = _crop(_load(stream.choose(self._paths)), stream, size)
        else:
            crop = _turned(procedural_image(stream.below(PROCEDURAL)), stream, size)
        image = crop.astype(np.float32) / 255
        if stream.chance(0.5):
            image = image[:, ::-1]
        if stream.chance(0.5):
            image = gaussian_blur(image, stream.uniform(0.3, 1.0) * 3 ** stream.uniform(0, 1))
        gain = np.exp(stream.normal(0.2) + stream.normal(0.05) * np.array([1, 0, -1]))
        return np.minimum(image * gain.astype(np.float32), 1)

    def draw_view(self, stream: Stream, focal: float, shape: tuple[int, int]) -> np.ndarray:
        """Draw the background of a camera's image, (height, width, 3) float32 display RGB in [0, 1].

        Args:
            stream: source of all randomness.
            focal: px; the principal point is the middle of the image.
            shape: height and width in px.
        """
        height, width = shape
        if self._paths:
            image, *_ = _load(stream.choose(self._paths))
        else:
            image = paint_image(stream.below(2**31), max(shape))
        if _is_panorama(image):
            turn = _draw_turn(stream, 0.2, 0.05)
            return panorama_view(image, turn, focal, shape).astype(np.float32) / 255
        covering = ImageOps.fit(Image.fromarray(image), (width, height), Image.Resampling.BILINEAR)
        return np.asarray(covering, np.float32) / 255

    def draw_surroundings(self, stream: Stream) -> Surroundings | None:
        """Light of one panorama; None if the folder has none."""
        if not self._paths:
            return None
        path = stream.choose(self._paths)
        return _surroundings(path) if _is_panorama(_load(path)[0]) else None


def background_files(folder: Path | str) -> list[Path]:
    """List the images in a folder of backgrounds and in its subfolders, sorted.

    Raises:
        ValueError: there are none.
    """
    files = (path for path in read_path("folder", folder).rglob("*") if path.suffix.lower() in SUFFIXES)
    paths = sorted(path for path in files if path.is_file() and not path.name.startswith("."))
    if not paths:
        raise ValueError(f"no images ({', '.join(sorted(SUFFIXES))}) in {folder}")
    return paths


@lru_cache(maxsize=PROCEDURAL)
def procedural_image(index: int) -> np.ndarray:
    """`paint_image`, cached, (192, 192, 3) uint8."""
    return paint_image(index, PROCEDURAL_SIZE)


def paint_image(index: int, size: int) -> np.ndarray:
    """Paint coloured, textured shapes before two textured planes, (size, size, 3) uint8."""
    stream, noise = Stream(0, "procedural background", index), noise_volume()
    image = np.empty((size, size, 3))
    slopes = np.array([stream.uniform(-0.7, 0.7), *map(stream.normal, (0.15, 0.25, 0.25))])
    _paint_planes(image, _colour(stream), _colour(stream), slopes)
    for _ in range(stream.below(24)):
        skin = stream.chance(0.25)
        colour = draw_tone(stream) ** (1 / 2.2) if skin else _colour(stream)
        shape = np.concatenate(
            [
                stream.uniforms(-0.6, 0.6, 2),
                0.02 * 20 ** stream.uniforms(0, 1, 2),
                [stream.uniform(0, np.pi), stream.normal(0.5)],
                stream.normals(2) * 0.5,
                [stream.uniform(0.6, 1), stream.uniform(0.5, 2.5) / size, stream.uniform(0, 0.35)],
                [stream.uniform(0, 0.12), stream.uniform(3, 60), stream.uniform(0, 50)],
            ]
        )
        _paint_shape(image, stream.below(4), shape, colour, noise)
    for _ in range(2):
        _paint_noise(image, stream.uniform(0.01, 0.1), stream.uniform(3, 60), stream.uniform(0, 50), noise)
    return np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8)


@compiled()
def _paint_planes(image: np.ndarray, wall: np.ndarray, floor: np.ndarray, slopes: np.ndarray) -> None:
    """Fill an image with a wall above a horizon and a floor below, each with a gradient."""
    size = len(image)
    for row in range(size):
        for column in range(size):
            x, y = column / size - 0.5, row / size - 0.5
            below = min(max((y - slopes[0] - slopes[1] * x) * 2 * size + 0.5, 0.0), 1.0)
            light = 1 + slopes[2] * x + slopes[3] * y
            for k in range(3):
                image[row, column, k] = light * (wall[k] + below * (floor[k] - wall[k]))


@compiled()
def _paint_shape(
    image: np.ndarray, kind: int, shape: np.ndarray, colour: np.ndarray, noise: np.ndarray
) -> None:
    """Paint a box, an ellipse, a stroke or a row of bars with a soft shadow around.

    Args:
        image: (S, S, 3) float64.
        kind: 0 to 3.
        shape: middle (2), half sizes (2), angle, bend, slopes of its light (2), opacity, width of its edge,
            strength of its shadow; strength, wave number and place of its noise.
        colour: (3,) display RGB.
        noise: from `noise_volume`.
    """
    size = len(image)
    cosine, sine = np.cos(shape[4]), np.sin(shape[4])
    half_x, half_y = shape[2], shape[3]
    reach_x, reach_y = half_x + SHADOW_REACH, half_y + SHADOW_REACH
    if kind == 1:
        wider = 1 + SHADOW_REACH / min(half_x, half_y)
        reach_x, reach_y = half_x * wider, half_y * wider
    elif kind == 2:
        reach_x = reach_y = 2.0
    elif kind == 3:
        reach_x += half_x
    across, high = abs(cosine) * reach_x + abs(sine) * reach_y, abs(sine) * reach_x + abs(cosine) * reach_y
    left, right_end = (0.5 + shape[0] - across) * size, (0.5 + shape[0] + across) * size
    top, bottom = (0.5 + shape[1] - high) * size, (0.5 + shape[1] + high) * size
    for row in range(max(int(top), 0), min(int(bottom) + 2, size)):
        for column in range(max(int(left), 0), min(int(right_end) + 2, size)):
            right, down = column / size - 0.5 - shape[0], row / size - 0.5 - shape[1]
            x, y = right * cosine + down * sine, down * cosine - right * sine
            if kind == 0:
                gap = max(abs(x) - half_x, abs(y) - half_y)
            elif kind == 1:
                gap = (np.sqrt((x / half_x) ** 2 + (y / half_y) ** 2) - 1) * min(half_x, half_y)
            elif kind == 2:
                gap = abs(y + shape[5] * x * x) - 0.2 * half_x * np.sqrt(half_x)
            else:
                phase = x / half_x / 0.7
                gap = (abs(phase - np.floor(phase) - 0.5) * 0.7 - 0.15) * half_x
                gap = max(gap, abs(x) - 2 * half_x, abs(y) - half_y)
            shadow = shape[10] * min(max((SHADOW_REACH - gap) / 0.03, 0.0), 1.0)
            cover = shape[8] * min(max(-gap / shape[9] + 0.5, 0.0), 1.0)
            if shadow == 0 and cover == 0:
                continue
            texture = noise_at(noise, right * shape[12], down * shape[12], shape[13])
            light = (1 + shape[6] * x + shape[7] * y) * (1 + shape[11] * texture)
            for k in range(3):
                under = image[row, column, k] * (1 - shadow)
                image[row, column, k] = under + cover * (colour[k] * light - under)


@compiled()
def _paint_noise(image: np.ndarray, strength: float, waves: float, place: float, noise: np.ndarray) -> None:
    """Multiply an image (S, S, 3) by two octaves of noise."""
    size = len(image)
    for row in range(size):
        for column in range(size):
            x, y = waves * column / size, waves * row / size
            value = noise_at(noise, x, y, place) + 0.5 * noise_at(noise, 2.1 * x, 2.1 * y, place + 9)
            for k in range(3):
                image[row, column, k] *= 1 + strength * value


@lru_cache(maxsize=KEPT)
def _load(path: Path) -> list[np.ndarray]:
    """Read an image; for a panorama, also halves, quarters and so on, for wide views without aliasing."""
    image = Image.fromarray(read_image(path))
    got = f"{image.width} x {image.height} px"
    image.thumbnail((LARGEST, LARGEST), Image.Resampling.BOX)
    if min(image.size) < SMALLEST:
        expected = f"sides of at least {SMALLEST} px once the longer one is at most {LARGEST} px"
        raise ValueError(f"{path}: the background has {got}; expected {expected}")
    sizes = [np.asarray(image)]
    while _is_panorama(sizes[0]) and len(sizes) < PANORAMA_SIZES:
        sizes.append(np.asarray(image.reduce(2 ** len(sizes))))
    return sizes


def _is_panorama(image: np.ndarray) -> bool:
    return image.shape[1] == 2 * image.shape[0]


@lru_cache(maxsize=KEPT)
def _surroundings(path: Path) -> Surroundings:
    image, rows, columns = _load(path)[-1], 8, 16
    height, width = image.shape[0] // rows * rows, image.shape[1] // columns * columns
    light = (np.arange(256) / 255.0)[image[:height, :width]] ** 2.2
    light = light.reshape(rows, height // rows, columns, width // columns, 3).mean((1, 3))
    weight = np.cos((np.arange(rows) + 0.5) / rows * np.pi - np.pi / 2)[:, None, None]
    mean = max((weight * light).sum() / (3 * columns * weight.sum()), 1e-3)
    row, column = divmod(int(light.mean(-1).argmax()), columns)
    latitude, longitude = (row + 0.5) / rows * np.pi - np.pi / 2, ((column + 0.5) / columns - 0.5) * 2 * np.pi
    level = np.cos(latitude)
    direction = np.array([level * np.sin(longitude), np.sin(latitude), level * np.cos(longitude)])
    half = rows // 2
    return Surroundings(
        sky=(weight[:half] * light[:half]).sum((0, 1)) / (columns * weight[:half].sum()) / mean,
        ground=(weight[half:] * light[half:]).sum((0, 1)) / (columns * weight[half:].sum()) / mean,
        direction=direction,
        colour=light[row, column] / mean,
    )


def _draw_turn(stream: Stream, pitch: float, roll: float) -> np.ndarray:
    """(3, 3) from a camera's frame to a panorama's, by any yaw and normal pitch and roll, radians."""
    yaw = stream.uniform(0, 2 * np.pi)
    return euler_matrix(yaw, stream.normal(pitch), stream.normal(roll), "ryxz")[:3, :3]


def _crop(sizes: list[np.ndarray], stream: Stream, size: int) -> np.ndarray:
    """(size, size, 3) uint8: a perspective view of a panorama, or a part of a plain image."""
    if not _is_panorama(sizes[0]):
        return _turned(sizes[0], stream, size)
    half = np.tan(np.radians(stream.uniform(*FIELD_OF_VIEW)) / 2)
    turn, focal = _draw_turn(stream, 0.35, 0.12), size / 2 / half
    fine = (smaller for smaller in sizes if smaller.shape[1] / (2 * np.pi * focal) <= 1.25)
    return panorama_view(next(fine, sizes[-1]), turn, focal, size)


def _turned(image: np.ndarray, stream: Stream, size: int) -> np.ndarray:
    """(size, size, 3) uint8: a slightly rotated square crop of an image."""
    height, width = image.shape[:2]
    turn = stream.normal(0.15)
    widening = abs(np.cos(turn)) + abs(np.sin(turn))
    reach = min(min(height, width) / 2 * stream.uniform(0.35, 1.0) * widening, min(height, width) / 2 - 1)
    middle = np.array([stream.uniform(reach, width - reach), stream.uniform(reach, height - reach)])
    scale = 2 * reach / widening / size
    to_image = about_axis(turn) @ np.diag([scale, scale, 1])
    to_image[:2, 2] = middle - 0.5 - to_image[:2, :2].sum(1) * (size - 1) / 2
    return warp_perspective(image, np.linalg.inv(to_image), size)


def _colour(stream: Stream) -> np.ndarray:
    """(3,) display RGB, mostly muted."""
    grey = stream.uniform(0.08, 0.9)
    return np.clip(grey * np.exp((0.45 if stream.chance(0.2) else 0.1) * stream.normals(3)), 0, 1)
