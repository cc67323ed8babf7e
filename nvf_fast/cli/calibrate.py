"""`nvf-fast calibrate`: fit the weights and thresholds that combine a trained network's predictions."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from nvf_fast.cli import UserError, user_errors
from nvf_fast.cli.options import ViewMaterial
from nvf_fast.cli.outputs import check_output_folder

SEED = 3_000_017  # its views do not occur in training runs with smaller seeds


@dataclass(frozen=True)
class Calibrate:
    """Fit vote weights, the scale of expected errors, and the acceptance of views and of found hands."""

    # network of hand views: an embedded checkpoint, a checkpoint folder or a hub id
    checkpoint: Annotated[str, tyro.conf.Positional]
    out: Path  # folder for the calibrated checkpoint; may be the same folder
    material: Annotated[ViewMaterial, tyro.conf.arg(name="")] = field(default_factory=ViewMaterial)
    # number of views with a hand, half of them photographs if given, and of views without a hand
    views: int = 2000
    wide: int = 100  # number of wide images for the built-in hand and for each rigged one
    seed: int = SEED  # seed of the views

    def run(self) -> None:
        from nvf_fast.checkpoint import load_checkpoint, save_checkpoint
        from nvf_fast.data.hand_views import HandViews
        from nvf_fast.model import NVF
        from nvf_fast.synthetic.wide_images import WideImages
        from nvf_fast.training.calibration import calibrate
        from nvf_fast.training.view_mixture import ViewMixtureConfig
        from nvf_fast.training.view_sources import ViewFolders, open_views

        if self.views < 2:
            raise UserError(f"--views must be at least 2, got {self.views}")
        if self.wide < 1:
            raise UserError(f"--wide must be at least 1, got {self.wide}")
        if self.seed < 0:
            raise UserError(f"--seed must be 0 or more, got {self.seed}")
        check_output_folder("--out", self.out)
        folders = ViewFolders(**vars(self.material))
        with user_errors():
            model, info = load_checkpoint(self.checkpoint)
            if not isinstance(model, NVF) or model.config.view != "hand":
                raise UserError(f"calibrate needs a network of hand views; {self.checkpoint} is not one")
            sources = open_views(ViewMixtureConfig(), folders, self.seed).sources
            random = np.random.default_rng(self.seed)
            names = [name for name in ("rendered", "photographs") if name in sources]
            hands = HandViews.concatenate([sources[name](self.views // len(names), random) for name in names])
            makers = [WideImages(self.seed, backgrounds=folders.backgrounds)] + [
                WideImages(self.seed, rig=rig, textures=folders.textures, backgrounds=folders.backgrounds)
                for rig in folders.rigs
            ]
            wide = (maker.draw(index) for maker in makers for index in range(self.wide))
            model, found = calibrate(
                model, hands[hands.trust > 0], sources["empty"](self.views, random), wide
            )
            save_checkpoint(model, self.out, info["training"] | {"calibration": found})
        for name, value in found.items():
            print(f"{name:20} {value:.4g}")
