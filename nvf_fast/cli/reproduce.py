"""`nvf-fast reproduce`: make the paper's tables and figures."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import tyro

from nvf_fast.cli import UserError, check_device, user_errors
from nvf_fast.cli.options import Flag, NetworkOptions, Optional
from nvf_fast.cli.outputs import check_output_folder
from nvf_fast.runtime.extras import extra

if TYPE_CHECKING:
    from nvf_fast.reproduce.results import Result
    from nvf_fast.reproduce.workshop import Workshop

Target = Literal[
    "table2", "table3", "table4", "table5", "table6", "table7", "table8",
    "figure3", "figure4", "figure5", "figure6", "figure7", "figure8",
]  # fmt: skip


@dataclass(frozen=True)
class Reproduce:
    """Make a table or figure of the paper: train its networks, measure, write Markdown, JSON and plots.

    Synthetic images replace missing data sets, with a note in the result. Trained networks are stored in the
    folder of runs and reused by all tables; the same command resumes a stopped run. Figure 8, and table 6
    with a checkpoint, need no training.
    """

    target: Annotated[Target, tyro.conf.Positional]  # table or figure
    # train tiny networks, to check that everything runs: on one core of a CPU a minute or two each, 3 minutes
    # for the two of table4 and half an hour for the 18 of table2
    smoke: Flag = False
    freihand: Optional[Path] = None  # folder of FreiHAND_pub_v2
    freihand_evaluation: Optional[Path] = None  # folder of FreiHAND_pub_v2_eval, the released joints
    complement: Optional[Path] = None  # folder of Complement
    ho3d: Optional[Path] = None  # folder of HO-3D v2, with the released evaluation_xyz.json
    mano: Optional[Path] = None  # the user's MANO_RIGHT.pkl, which FreiHAND, Complement and HO-3D need
    # a trained network: for table 6 a camera-space one of the reference view, for figure 8 any camera-space
    # one, the embedded default when absent
    checkpoint: Optional[str] = None
    trained: Flag = False  # train the networks of table 6, CS-NVF and RS-NVF, as the paper does
    # for figures 3 and 5, other methods' pred.json by name
    predictions: Annotated[dict[str, Path], tyro.conf.arg(help_behavior_hint="", metavar="NAME PATH ...")] = (
        field(default_factory=dict)
    )
    photographs: Optional[Path] = None  # for figure 8, folder of photographs with an intrinsics.json
    samples: tuple[int, ...] = (0, 1, 2)  # for figures 4 to 7, indices of evaluation images
    images: int = 100  # for table 6 with a checkpoint, number of evaluation images
    runs: Path = Path("runs/reproduce")  # folder for training runs, predictions and rendered images
    out: Path = Path("benchmarks/results")  # folder for the results
    seed: int = 0  # seed of all training runs
    # device to compute on, for example cpu or cuda:1; by default a GPU if available
    device: Optional[str] = None
    workers: int = 0  # processes that load images ahead
    precision: Literal["float32", "bfloat16"] = "float32"  # precision in training; float32 in the paper
    compile: Flag = False  # compile the training steps with torch.compile

    def run(self) -> None:
        import torch

        from nvf_fast.reproduce import recipes
        from nvf_fast.reproduce.results import write_result
        from nvf_fast.reproduce.workshop import StoppedError, Workshop

        check_output_folder("--out", self.out)
        check_output_folder("--runs", self.runs)
        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        check_device(device)
        size = (
            recipes.SMOKE
            if self.smoke
            else replace(recipes.PAPER, precision=self.precision, compile=self.compile)
        )
        given = {role: getattr(self, role) for role in get_args(recipes.Role)}
        workshop = Workshop(
            self.runs / size.name.replace(" ", "_"),
            size,
            {role: path for role, path in given.items() if path is not None},
            self.freihand_evaluation,
            self.mano,
            self.seed,
            device,
            self.workers,
        )
        with user_errors():
            try:
                result, context = self._made(workshop), workshop.context()
            except StoppedError as stopped:
                raise UserError(str(stopped)) from stopped
            if self._untrained:
                del context["data"]
                context |= {"size": "paper", "checkpoint": self.checkpoint or "embedded default"}
            files = write_result(self.out, result, context)
        print("wrote " + ", ".join(map(str, [*files, *(self.out / name for name in result.images)])))

    @property
    def _untrained(self) -> bool:
        """Whether the target uses an existing network."""
        return self.target == "figure8" or (self.target == "table6" and not self.trained)

    def _made(self, workshop: Workshop) -> Result:
        from nvf_fast.reproduce import figures
        from nvf_fast.reproduce.results import file_stem
        from nvf_fast.reproduce.tables import TABLES

        if self.target == "table6" and not self.trained:
            return self._steps(workshop)
        if self.target in TABLES:
            return TABLES[self.target](workshop)
        with extra("viz", "figures need matplotlib and scikit-image"):  # known before the networks train
            import matplotlib  # noqa: F401
            import skimage  # noqa: F401
        size = "paper" if self._untrained else workshop.size.name
        plot = self.out / f"{file_stem(self.target, size)}.png"
        self.out.mkdir(parents=True, exist_ok=True)
        if self.target == "figure3":
            return figures.figure3(workshop, plot, self.predictions)
        if self.target == "figure5":
            return figures.figure5(workshop, plot, self.samples, self.predictions)
        if self.target == "figure8":
            if self.photographs is None:
                raise UserError("figure8 needs photographs: --photographs FOLDER, with an intrinsics.json")
            estimator = NetworkOptions(self.checkpoint, workshop.device).estimator()
            return figures.figure8(estimator, self.photographs, plot)
        make = {"figure4": figures.figure4, "figure6": figures.figure6, "figure7": figures.figure7}
        return make[self.target](workshop, plot, self.samples)

    def _steps(self, workshop: Workshop) -> Result:
        """Table 6 of a trained network."""
        from nvf_fast.data.sample import FirstSamples
        from nvf_fast.model import NVF
        from nvf_fast.reproduce.tables import step_sizes

        if self.checkpoint is None:
            raise UserError(
                "table 6 varies the grid of the paper's reference view, which the embedded network does not "
                "use: give --checkpoint with a trained network of that view, or --trained"
            )
        network = NetworkOptions(self.checkpoint, workshop.device).estimator().model
        config = network.config
        if not isinstance(network, NVF) or (config.view, config.task) != ("reference", "camera-space"):
            raise UserError(
                f"table 6 needs a camera-space field of the reference view, {self.checkpoint} has "
                f"method={config.method!r}, view={config.view!r}, task={config.task!r}"
            )
        dataset = FirstSamples(workshop.dataset("freihand", "evaluation"), self.images)
        result = step_sizes(network, dataset, use_scale=config.hand_scale)
        note = f"The network was not trained for this table. Images: {dataset.name}, {dataset.split}."
        return replace(result, notes=[note, *result.notes])
