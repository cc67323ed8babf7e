"""`nvf-fast train`: train a network."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import tyro

from nvf_fast.cli import UserError, check_device, user_errors
from nvf_fast.cli.options import Flag, Optional, ViewMaterial
from nvf_fast.cli.outputs import check_output_folder
from nvf_fast.data.catalogue import NEEDS_FOLDER, Folders, open_dataset
from nvf_fast.data.hand_views import VIEW_SIZE
from nvf_fast.runtime.arguments import check_ranges
from nvf_fast.synthetic.dataset import render_ahead
from nvf_fast.training.config import PRESETS, TrainingConfig
from nvf_fast.training.loader import TrainingData


@dataclass(frozen=True)
class Run:
    """Train, or resume the run in the folder. Ctrl-C saves and stops."""

    config: Annotated[TrainingConfig, tyro.conf.arg(name="")]  # every parameter of the training
    out: Path  # folder for the states, the log and the checkpoint
    # folder of FreiHAND, HO-3D or Complement; synthetic images are rendered
    data: Optional[Path] = None
    evaluation_data: Optional[Path] = None  # FreiHAND's released evaluation annotations, for evaluate_every
    # the user's MANO_RIGHT.pkl: faces for FreiHAND, meshes for HO-3D, joints for Complement
    mano: Optional[Path] = None
    # folder for rendered images (74 kB each at 128 px, 176 kB at 224 px) and for FreiHAND's lists as arrays,
    # which several runs can share; cache/ of --out when absent. The default network trains on a data set's
    # images only if this or `data` is given.
    data_cache: Optional[Path] = None
    material: Annotated[ViewMaterial, tyro.conf.arg(name="")] = field(default_factory=ViewMaterial)
    # checkpoint with the initial weights, of either task: an embedded one, a folder or a hub id; random ones
    # when absent, except for fine-tuning. A resumed run needs none, and accepts no other.
    initial: Optional[str] = None
    # minutes of wall time after which training saves and stops; the same command resumes it
    minutes: Optional[float] = None
    # device to train on, for example cpu or cuda:1; by default a GPU if available
    device: Optional[str] = None
    threads: int = 1  # CPU threads of each process
    workers: int = 0  # additional processes per process that load images ahead
    tensorboard: Flag = False  # also write TensorBoard files (extra `train`)
    timeout_s: float = 600.0  # longest wait for another process, in seconds
    # resume even if PyTorch, the device, or the number of processes or threads has changed, with results that
    # are equal only up to rounding
    inexact: Flag = False

    def __post_init__(self) -> None:
        check_ranges(self, minutes="[0, inf)", threads="[1, inf)", workers="[0, inf)", timeout_s="(0, inf)")
        if self.config.model.view != "hand" and any(vars(self.material).values()):
            given = ", ".join(name for name, value in vars(self.material).items() if value)
            raise ValueError(f"only networks of hand views train on {given}, this one is of reference views")

    def run(self) -> None:
        from nvf_fast.runtime.processes import Processes, ProcessLostError, process_group
        from nvf_fast.training.images import TaskImages
        from nvf_fast.training.log import NonFiniteLossError
        from nvf_fast.training.loop import train
        from nvf_fast.training.validation import validation

        config = self.config
        check_output_folder("--out", self.out)
        check_output_folder("--data-cache", self.data_cache)
        if config.preset.endswith("_finetune") and self.initial is None and not any(self.out.glob("state-*")):
            raise UserError(f"{config.preset} continues a pre-training: give its checkpoint as --initial")
        torch.set_num_threads(self.threads)
        folders = Folders(self.data, self.evaluation_data, self.mano, self.data_cache or self.out / "cache")
        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        check_device(device)
        with process_group(device, self.timeout_s) as place:
            first = Processes.joined().rank == 0
            with user_errors():
                evaluate, data, credits = None, None, None
                if config.model.view == "hand":
                    data, credits = self._hand_views(folders)
                else:
                    dataset = open_dataset(config.data, "training", folders)
                    _render_ahead(dataset)
                    data = TaskImages(dataset, config.model)
                    if first and config.evaluate_every > 0:
                        evaluate = validation(config.data, folders, config.evaluation_images)
                try:
                    result = train(
                        config,
                        data,
                        self.out,
                        minutes=self.minutes,
                        evaluate=evaluate,
                        start=self.initial,
                        credits=credits,
                        device=place,
                        workers=self.workers,
                        tensorboard=self.tensorboard,
                        timeout_s=self.timeout_s,
                        inexact=self.inexact,
                    )
                except (NonFiniteLossError, ProcessLostError) as error:
                    raise UserError(str(error)) from error
        if first:
            state = "finished" if result.finished else "stopped; the same command resumes"
            print(f"{state}: step {result.step}, {result.minutes:.1f} minutes, {self.out / 'checkpoint'}")

    def _hand_views(self, images: Folders) -> tuple[TrainingData, dict[str, Any]]:
        """Open the views to train on, and their credits."""
        from nvf_fast.training.view_sources import ViewFolders, open_views, view_credits

        if (size := self.config.model.input_size) != VIEW_SIZE:
            raise ValueError(f"hand views have {VIEW_SIZE} px: model.input_size must be that, got {size}")
        if self.config.evaluate_every or self.evaluation_data:
            raise ValueError(
                "evaluate_every must be 0 for hand views: nvf-fast eval hand-views measures their network"
            )
        folders = ViewFolders(**vars(self.material))
        dataset = None
        if self.data or self.data_cache or self.config.data.dataset in NEEDS_FOLDER:
            dataset = open_dataset(self.config.data, "training", images)
            _render_ahead(dataset)
        views = open_views(self.config.views, folders, self.config.seed, dataset)
        return views, view_credits(folders, dataset)


def _render_ahead(dataset: object) -> None:
    """Render this process's part of the images missing from a cache, on all cores."""
    from nvf_fast.runtime.processes import Processes

    group = Processes.joined()
    cores = max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    render_ahead(dataset, progress=group.rank == 0, share=(group.rank, group.count), processes=cores)


if TYPE_CHECKING:
    Presets = Run
else:
    Presets = tyro.extras.subcommand_type_from_defaults(
        {name.replace("_", "-"): Run(make(), out=tyro.MISSING) for name, make in PRESETS.items()}
    )


@dataclass(frozen=True)
class Train:
    """Train on FreiHAND, HO-3D, Complement or synthetic hands, or resume the run in the folder.

    Under torchrun each batch is divided between processes, on one machine or several:
    torchrun --nproc-per-node 2 --no-python nvf-fast train ...
    """

    preset: Annotated[Presets, tyro.conf.arg(name="")]
    """Recipe; `nvf-fast train PRESET --help` lists its parameters, all of which can be changed."""

    def run(self) -> None:
        self.preset.run()
