"""`nvf-fast tune`: find the fastest block shapes of the field kernel on this device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from nvf_fast.cli import UserError
from nvf_fast.cli.options import NetworkOptions


@dataclass(frozen=True)
class Tune:
    """Time the block shapes of the field kernel on this CUDA device, and store the fastest.

    Later runs with a similar number of points use it.
    """

    # a checkpoint folder or a hub id of a network of the reference view or of root-relative cubes; "released"
    # is the paper's network with random weights, which do not affect times. Networks of hand views, such as
    # the embedded one, keep the untuned block shapes.
    checkpoint: Annotated[str, tyro.conf.Positional] = "released"
    step: float = 16.0  # mm, spacing of the query points
    dtype: Literal["float16", "bfloat16", "float32"] = "float16"  # precision of the field's matrix products

    def run(self) -> None:
        import torch

        if not torch.cuda.is_available():
            raise UserError("tuning needs a CUDA device: on a CPU the field runs in PyTorch")
        from nvf_fast.estimator import PoseEstimator
        from nvf_fast.grid import Lattice
        from nvf_fast.model import NVF
        from nvf_fast.runtime import autotuning

        options = {"step_mm": self.step, "dtype": getattr(torch, self.dtype)}
        if self.checkpoint == "released":
            estimator = PoseEstimator(NVF(), device="cuda", **options)
        else:
            estimator = NetworkOptions(self.checkpoint, "cuda").estimator(**options)
        model = estimator.model
        if not isinstance(model, NVF):
            raise UserError(f"a {model.config.method!r} baseline has no field to tune")
        lattice = estimator.lattice
        if not isinstance(lattice, Lattice):
            raise UserError("a network of hand views cannot be tuned: its points differ between views")
        size = model.config.input_size
        generator = torch.Generator("cuda").manual_seed(0)
        view = torch.randn(1, 3, size, size, device="cuda", generator=generator).to(estimator.dtype)
        with torch.no_grad():
            query = autotuning.Query(
                model.encode(view),
                lattice.points(lattice.every(1)),
                model.reference_intrinsics,
                list(model.field.weights),
                list(model.field.biases),
                size,
            )
            milliseconds = autotuning.tune(query)
        print("points x columns x depth, warps, stages    ms")
        for tiling, time in milliseconds.items():
            shape = f"{tiling.points} x {tiling.columns} x {tiling.depth}, {tiling.warps}, {tiling.stages}"
            print(f"{shape:40} {time:7.3f}")
        print(f"stored in {autotuning.CACHE}")
