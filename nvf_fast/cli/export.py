"""`nvf-fast export`: write a network as ONNX files or exported PyTorch programs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from nvf_fast.cli import user_errors
from nvf_fast.cli.options import Optional
from nvf_fast.cli.outputs import check_output_folder


@dataclass(frozen=True)
class Export:
    """Export a network as functions of tensors that run without this library.

    The folder holds the functions `encoder` and `voting`, for any batch size and number of query points, the
    query points in lattice.npy, and interface.json with all inputs, outputs and constants.
    """

    out: Path  # new folder of the export
    # an embedded checkpoint, a checkpoint folder or a hub id; the embedded one when absent
    checkpoint: Annotated[Optional[str], tyro.conf.Positional] = None
    # "onnx" for ONNX files (extra `export`), "torch" for files of torch.export
    format: Literal["onnx", "torch"] = "onnx"
    step: float = 16.0  # mm, spacing of the query points
    surface: float = 5.0  # mm; a point votes where its distance from the surface is smaller
    fraction: float = 0.5  # ratio of the voters that count for each joint, in (0, 1]

    def run(self) -> None:
        from nvf_fast.export import export_checkpoint

        check_output_folder("--out", self.out)
        options = {"step_mm": self.step, "surface_mm": self.surface, "fraction": self.fraction}
        with user_errors():
            export_checkpoint(self.checkpoint, self.out, self.format, **options, progress=True)
        for path in sorted(self.out.iterdir()):
            print(f"{path}  {path.stat().st_size:,} bytes")
