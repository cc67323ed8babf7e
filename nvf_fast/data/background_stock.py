"""Square backgrounds for composites: views of panoramas, parts of pictures, or smooth random colours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from nvf_fast.data.image_warp import gaussian_blur, panorama_view, warp_perspective

ENDINGS = (".jpg", ".jpeg", ".png")
STOCK, STOCK_SIZE = 256, 160  # backgrounds drawn ahead, px
FIELD_OF_VIEW = (40.0, 90.0)  # degrees, of a panorama's view
ELEVATION = 20.0  # degrees, standard deviation


class BackgroundStock:
    """A stock of backgrounds drawn ahead, of which parts are taken.

    Args:
        files: a folder of pictures, or the pictures. One that is twice as wide as high is taken for an
            equirectangular panorama. Without any, backgrounds are smooth random colours with a few edges.
        seed: of the stock.
        count: size of the stock.

    Raises:
        ValueError: there is no picture among the files.
    """

    def __init__(
        self, files: Path | str | Sequence[Path] | None = None, seed: int = 0, count: int = STOCK
    ) -> None:
        random = np.random.default_rng(seed)
        if files is None:
            self.stock = np.stack([_random_colours(random) for _ in range(count)])
            return
        if isinstance(files, Path | str):
            folder = Path(files)
            files = sorted(path for path in folder.glob("*") if path.suffix.lower() in ENDINGS)
            if not files:
                raise ValueError(
                    f"backgrounds must be a folder with {', '.join(ENDINGS)} files, got {folder}"
                )
        if not files:
            raise ValueError("backgrounds must be at least one picture, got none")
        shares = [len(part) for part in np.array_split(np.arange(count), len(files))]
        views: list[np.ndarray] = []
        for path, share in zip(files, shares, strict=True):
            if share:
                with Image.open(path) as opened:
                    picture = np.array(opened.convert("RGB"))
                views.extend(_view(picture, random) for _ in range(share))
        self.stock = np.stack(views)

    def draw(self, size: int, random: np.random.Generator) -> np.ndarray:
        """Take a part of one background, (size, size, 3) uint8, mirrored half of the times."""
        view = self.stock[random.integers(len(self.stock))]
        if size > STOCK_SIZE:
            view = warp_perspective(view, np.diag([size / STOCK_SIZE, size / STOCK_SIZE, 1.0]), size)
        row, column = random.integers(0, len(view) - size + 1, 2)
        part = view[row : row + size, column : column + size]
        return part[:, ::-1] if random.random() < 0.5 else part


def _view(picture: np.ndarray, random: np.random.Generator) -> np.ndarray:
    height, width = picture.shape[:2]
    if width == 2 * height:
        angle = np.deg2rad(random.uniform(*FIELD_OF_VIEW))
        yaw, pitch = random.uniform(-np.pi, np.pi), np.deg2rad(ELEVATION) * random.standard_normal()
        turn = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
        tilt = np.array([[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]])
        return panorama_view(picture, turn @ tilt, STOCK_SIZE / 2 / np.tan(angle / 2), STOCK_SIZE)
    side = min(height, width) * random.uniform(0.4, 1.0)
    left, top = random.uniform(0, width - side), random.uniform(0, height - side)
    scale = STOCK_SIZE / side
    return warp_perspective(
        picture, np.array([[scale, 0, -scale * left], [0, scale, -scale * top], [0, 0, 1]]), STOCK_SIZE
    )


def _random_colours(random: np.random.Generator) -> np.ndarray:
    image = np.full((STOCK_SIZE, STOCK_SIZE, 3), random.uniform(0.15, 0.85), np.float32)
    image += random.normal(0, 0.1, 3).astype(np.float32)
    for cells in (3, 6, 12, 24):
        grid = random.normal(0, 0.25 / np.sqrt(cells), (cells, cells, 3)).astype(np.float32)
        grid += random.normal(0, 0.25 / np.sqrt(cells), (cells, cells, 1)).astype(np.float32)
        scale = STOCK_SIZE / (cells - 1)
        image += warp_perspective(grid, np.diag([scale, scale, 1.0]), STOCK_SIZE)
    for _ in range(random.integers(0, 8)):
        corners = np.sort(random.integers(0, STOCK_SIZE, (2, 2)), axis=0)
        patch = image[corners[0, 0] : corners[1, 0], corners[0, 1] : corners[1, 1]]
        patch += random.normal(0, 0.2, 3).astype(np.float32)
    image = gaussian_blur(image, random.uniform(0.3, 2.0))
    return (np.clip(image, 0, 1) * 255).astype(np.uint8)
