"""`nvf-fast eval`: measure a checkpoint on a data set."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from nvf_fast.cli import UserError, check_device, user_errors
from nvf_fast.cli.options import NetworkOptions, Optional, Several
from nvf_fast.cli.outputs import check_output_folder
from nvf_fast.data.catalogue import DataConfig, Folders, Split, open_dataset
from nvf_fast.evaluation.hand_view_report import (
    check_hand_views,
    report_lines,
    write_hand_view_report,
)
from nvf_fast.evaluation.report_files import surroundings, table_lines
from nvf_fast.runtime.arguments import check_ranges
from nvf_fast.runtime.files import locked
from nvf_fast.search import Search
from nvf_fast.synthetic.dataset import SyntheticHands, render_ahead

if TYPE_CHECKING:
    from nvf_fast.evaluation.predictors import NetworkPredictor
    from nvf_fast.evaluation.submission import Server

LOCK_FILE = ".lock"  # of a report's folder


@dataclass(frozen=True)
class Prediction(NetworkOptions):
    """The network, and the options of its predictions."""

    step: float = 16.0  # mm, spacing of the query points
    # points to query: "dense" all, "octree" (for steps up to 8 mm) and "guided" a part of them
    search: Search = "dense"
    threads: Optional[int] = None  # CPU threads of each process; PyTorch's choice when absent

    def __post_init__(self) -> None:
        check_ranges(self, threads="[1, inf)")

    def load(self) -> tuple[NetworkPredictor, dict[str, Any]]:
        """Load the predictor, and the metadata that determine its predictions."""
        import torch

        from nvf_fast import __version__
        from nvf_fast.checkpoint import load_checkpoint
        from nvf_fast.estimator import PoseEstimator
        from nvf_fast.evaluation.predictors import NetworkPredictor

        if self.threads is not None:
            torch.set_num_threads(self.threads)
        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        if device == "cuda":
            device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
        check_device(device)
        kind = torch.device(device).type
        precision = self.precision or ("float16" if kind == "cuda" else "float32")
        with user_errors():
            model, info = load_checkpoint(self.checkpoint, device)
            dtype = getattr(torch, precision)
            estimator = PoseEstimator(model, self.step, search=self.search, dtype=dtype)
        return NetworkPredictor(estimator), {
            "checkpoint": info["sha256"],
            "step": f"{self.step:g} mm",
            "search": self.search,
            "precision": precision,
            "device": kind,
            "nvf_fast": __version__,
        }


@dataclass(frozen=True)
class Output:
    """The report's folder, and the reading of the data set."""

    # folder for report.md, report.json, pck.png, predictions.safetensors and submissions. Finished parts are
    # stored in its shards/, so that the same command resumes.
    out: Path
    batch: int = 16  # images per batch
    workers: int = 0  # processes that load images ahead
    wait_minutes: float = 30.0  # minutes that each of several processes waits for the shards of the others

    def __post_init__(self) -> None:
        check_ranges(self, batch="[1, inf)", workers="[0, inf)", wait_minutes="(0, inf)")


@dataclass(frozen=True)
class SyntheticV2:
    """Measure on synthetic-v2, the fixed set, with the mean pose of such hands as baseline."""

    output: Annotated[Output, tyro.conf.arg(name="")]
    prediction: Annotated[Prediction, tyro.conf.arg(name="")] = field(default_factory=Prediction)
    split: Split = "evaluation"  # part of the data set
    count: Optional[int] = None  # number of images, the first ones of the part; all when absent
    data_cache: Optional[Path] = None  # folder for rendered images

    def run(self) -> None:
        check_output_folder("--data-cache", self.data_cache)
        folders, config = Folders(cache=self.data_cache), DataConfig("synthetic-v2")
        _evaluate(self.prediction, self.output, config, self.split, folders, count=self.count)


@dataclass(frozen=True)
class FreiHAND:
    """Measure on FreiHAND, and write the submission of its evaluation split."""

    output: Annotated[Output, tyro.conf.arg(name="")]
    data: Path  # folder of FreiHAND_pub_v2
    prediction: Annotated[Prediction, tyro.conf.arg(name="")] = field(default_factory=Prediction)
    split: Split = "evaluation"  # part of the data set
    # folder of FreiHAND_pub_v2_eval, the released joints; when absent only the submission of the evaluation
    # split is written
    evaluation_data: Optional[Path] = None
    # the user's MANO_RIGHT.pkl, which is fitted to the poses for the submission's vertices; they are zeros
    # when absent
    mano: Optional[Path] = None
    cache: Optional[Path] = None  # folder for long annotation files as arrays

    def run(self) -> None:
        check_output_folder("--cache", self.cache)
        folders = Folders(data=self.data, evaluation=self.evaluation_data, cache=self.cache)
        config = DataConfig("freihand")
        _evaluate(self.prediction, self.output, config, self.split, folders, "freihand", self.mano)


@dataclass(frozen=True)
class HO3D:
    """Measure on HO-3D, and write the submission of its evaluation split."""

    output: Annotated[Output, tyro.conf.arg(name="")]
    data: Path  # folder of HO-3D with evaluation.txt and, if available, evaluation_xyz.json
    prediction: Annotated[Prediction, tyro.conf.arg(name="")] = field(default_factory=Prediction)
    version: Literal["v2", "v3"] = "v2"  # version of the data set
    split: Split = "evaluation"  # part of the data set
    # the user's MANO_RIGHT.pkl, which is fitted to the poses for the submission's vertices; they are zeros
    # when absent
    mano: Optional[Path] = None

    def run(self) -> None:
        config = DataConfig("ho3d", ho3d_version=self.version)
        server: Server = "ho3d-v2" if self.version == "v2" else "ho3d-v3"
        folders = Folders(data=self.data)
        _evaluate(self.prediction, self.output, config, self.split, folders, server, self.mano)


@dataclass(frozen=True)
class Complement:
    """Measure on the whole Complement set; joints are regressed from its meshes with MANO."""

    output: Annotated[Output, tyro.conf.arg(name="")]
    data: Path  # folder of the set
    mano: Path  # the user's MANO_RIGHT.pkl
    prediction: Annotated[Prediction, tyro.conf.arg(name="")] = field(default_factory=Prediction)

    def run(self) -> None:
        folders = Folders(data=self.data, mano=self.mano)
        _evaluate(self.prediction, self.output, DataConfig("complement"), "training", folders)


@dataclass(frozen=True)
class LabelledPhotographs:
    """Measure on labelled photographs by group, with the mean pose as baseline.

    Hands are scaled to the unit hand, since labels from a teacher network have no scale: the measured network
    must work without hand scale. The mean pose is fitted on the training split of the same folder.
    """

    data: Path  # folder with labels.json and crops (docs/datasets.md)
    out: Path  # folder for report.json and report.md
    prediction: Annotated[Prediction, tyro.conf.arg(name="")] = field(default_factory=Prediction)
    split: Literal["train", "val", "all"] = "val"  # part of the photographs
    leave_out: Several[str] = ()  # groups to exclude, such as xmore_gestures
    batch: int = 32  # photographs per batch

    def run(self) -> None:
        from nvf_fast.data.photographs import Photographs
        from nvf_fast.evaluation import photographs

        with user_errors():
            check_ranges(self, batch="[1, inf)")
        check_output_folder("--out", self.out)
        predictor, conditions = _load_alone("photographs", self.prediction)
        if predictor.task != "camera-space" or False not in predictor.scale_choices:
            raise UserError("eval photographs needs a camera-space network that works without hand scale")
        estimator = predictor.estimator
        options = {"split": self.split, "leave out": ", ".join(self.leave_out) or "nothing"}
        with user_errors(), locked(self.out / LOCK_FILE):
            scores = photographs.evaluate_photographs(
                photographs.predict_with(estimator),
                Photographs(self.data, self.split, self.leave_out),
                Photographs(self.data, "train"),
                batch=self.batch,
                predicts_sides=estimator.model.config.view == "hand",
            )
            lines = table_lines(*photographs.score_rows(scores))
            context = {**conditions, **options, **surroundings()}
            _print(lines, photographs.write_photograph_report(self.out, scores, context))


@dataclass(frozen=True)
class HandViewChecks:
    """Material and extent of the checks."""

    # folder of labelled photographs (docs/datasets.md), whose validation split is used
    photographs: Optional[Path] = None
    # folder of held-out images and panoramas, for empty views and wide images; procedural surroundings when
    # absent
    backgrounds: Optional[Path] = None
    # glTF file of a rigged right hand, for wide images; the built-in hand when absent
    rig: Optional[Path] = None
    data_cache: Optional[Path] = None  # folder for synthetic-v2
    count: int = 2000  # number of synthetic-v2's hands; 0 skips their poses and stability
    stable: int = 200  # number of these used for stability
    empty: int = 2000  # number of views without a hand
    wide: int = 200  # number of wide images
    seed: int = 9_000_002  # seed of empty views and wide images; trainings use others

    def __post_init__(self) -> None:
        from_one = dict.fromkeys(("stable", "empty", "wide"), "[1, inf)")
        check_ranges(self, count="[0, inf)", seed="[0, inf)", **from_one)

    def conditions(self) -> dict[str, Any]:
        """Metadata for the report's context."""
        return {
            "backgrounds": "a folder" if self.backgrounds else "procedural",
            "rig": self.rig.name if self.rig else "built-in",
            "seed": self.seed,
        }


@dataclass(frozen=True)
class HandViews:
    """Check a network of hand views, such as the embedded default, errors in mm.

    The checks are: poses of synthetic-v2's hands by the final joints, the coarse joints and the votes alone,
    with the mean pose as baseline; expected against true errors; presence and side on photographs; presence
    in empty views; stability under rotation, moved boxes and batches; finding in wide images; and time.
    """

    out: Path  # folder for report.json, report.md and calibration.png
    prediction: Annotated[Prediction, tyro.conf.arg(name="")] = field(default_factory=Prediction)
    checks: Annotated[HandViewChecks, tyro.conf.arg(name="")] = field(default_factory=HandViewChecks)

    def run(self) -> None:
        check_output_folder("--out", self.out)
        check_output_folder("--data-cache", self.checks.data_cache)
        predictor, conditions = _load_alone("hand-views", self.prediction)
        if predictor.estimator.model.config.view != "hand":
            raise UserError("eval hand-views needs a network of hand views")
        with user_errors(), locked(self.out / LOCK_FILE):
            report = check_hand_views(predictor.estimator, **vars(self.checks))
            context = {**conditions, **self.checks.conditions(), **surroundings()}
            _print(report_lines(report), write_hand_view_report(self.out, report, context))


@tyro.conf.configure(tyro.conf.ConsolidateSubcommandArgs)
@dataclass(frozen=True)
class Eval:
    """Measure a checkpoint on a data set, lengths in mm.

    All but `photographs` and `hand-views` divide the images between processes under torchrun, each on the GPU
    of its local rank if there are GPUs: torchrun --nproc-per-node 2 --no-python nvf-fast eval ...
    """

    data: Annotated[
        Annotated[SyntheticV2, tyro.conf.subcommand("synthetic-v2")]
        | Annotated[FreiHAND, tyro.conf.subcommand("freihand")]
        | Annotated[HO3D, tyro.conf.subcommand("ho3d")]
        | Annotated[Complement, tyro.conf.subcommand("complement")]
        | Annotated[LabelledPhotographs, tyro.conf.subcommand("photographs")]
        | Annotated[HandViews, tyro.conf.subcommand("hand-views")],
        tyro.conf.arg(name=""),
    ]

    def run(self) -> None:
        self.data.run()


def _evaluate(
    prediction: Prediction,
    output: Output,
    config: DataConfig,
    split: Split,
    folders: Folders,
    server: Server | None = None,
    fitted: Path | None = None,
    count: int | None = None,
) -> None:
    """Predict every image and write the report, in the first of several processes.

    Args:
        prediction, output: options.
        config, split, folders: of the data set.
        server: for which submissions are written.
        fitted: MANO's file for their vertices.
        count: of a synthetic set's images, the first ones; None is all.
    """
    from nvf_fast.data.mano import Mano
    from nvf_fast.evaluation.mean_pose import fallback_pose
    from nvf_fast.evaluation.report import report_on, score_table, write_report
    from nvf_fast.evaluation.run import predict
    from nvf_fast.runtime.processes import Processes, ProcessLostError, process_group

    check_output_folder("--out", output.out)
    with user_errors():
        mano = None if fitted is None else Mano.load(fitted)
    predictor, conditions = prediction.load()
    given = {"data": folders.data, "evaluation data": folders.evaluation, "MANO": folders.mano}
    conditions |= {name: str(path.resolve()) for name, path in given.items() if path is not None}
    with ExitStack() as stack:
        try:
            with process_group("cpu", 60 * output.wait_minutes), user_errors():
                processes = Processes.joined()
                if processes.rank == 0:
                    stack.enter_context(locked(output.out / LOCK_FILE))
                dataset = open_dataset(config, split, folders)
                if count is not None and isinstance(dataset, SyntheticHands):
                    if not 1 <= count <= len(dataset):
                        raise ValueError(f"--count must be 1 to {len(dataset)}, got {count}")
                    dataset.config = replace(dataset.config, count=count)
                    conditions["images"] = f"first {count} of the part"
                render_ahead(dataset, share=(processes.rank, processes.count), progress=processes.rank == 0)
                predictions = predict(
                    predictor, dataset, output.out / "shards", conditions, batch=output.batch,
                    shard=8 * output.batch, workers=output.workers, progress=True, processes=processes,
                )  # fmt: skip
        except ProcessLostError as error:
            raise UserError(str(error)) from error
        if processes.rank > 0:
            return
        context = {
            "from": prediction.checkpoint or "embedded default",
            "fallback": "the mean pose of the synthetic hands",
            "processes": processes.count,
            **surroundings(),
        }
        fallback = fallback_pose(config)
        report = report_on(predictions, fallback, context, server)
        with user_errors():
            submit_to = server if split == "evaluation" else None
            files = write_report(output.out, report, predictions, fallback, submit_to, mano)
    table = table_lines(*score_table(report)) if "settings" in report else []
    _print([*table, *report["notes"]], files)


def _load_alone(command: str, prediction: Prediction) -> tuple[NetworkPredictor, dict[str, Any]]:
    """Load the predictor of a command that runs in one process, and its metadata."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError(f"eval {command} runs in one process")
    return prediction.load()


def _print(lines: Iterable[str], files: Iterable[Path]) -> None:
    print(*lines, "wrote " + ", ".join(map(str, files)), sep="\n")
