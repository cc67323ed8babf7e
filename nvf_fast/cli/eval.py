"""`nvf-fast eval`: measure a checkpoint on a data set."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from nvf_fast.cli import UserError, check_device, user_errors
from nvf_fast.cli.options import Flag, Optional, Several
from nvf_fast.data.catalogue import DataConfig, Folders, Split, open_dataset
from nvf_fast.runtime.files import locked, whole_file
from nvf_fast.search import Search
from nvf_fast.synthetic.dataset import SyntheticConfig, SyntheticHands, render_ahead, synthetic_v2
from nvf_fast.synthetic.placement import UNIFORM, HandDistribution

if TYPE_CHECKING:
    from nvf_fast.estimator import PoseEstimator
    from nvf_fast.evaluation.predictors import NetworkPredictor
    from nvf_fast.evaluation.submission import Server

LOCK_FILE = ".lock"  # of a report's folder
COLUMNS = {
    "cs_mje": "CS-MJE mm",
    "cs_auc": "CS-AUC",
    "te": "TE mm",
    "de": "DE mm",
    "pa_mpjpe": "PA-MPJPE mm",
    "score_correlation": "score vs error",
    "invalid": "no prediction",
}
SETTINGS = {"mean_pose": "mean pose", "with_hand_scale": "given", "without_hand_scale": "not given"}


@dataclass(frozen=True)
class Prediction:
    """The checkpoint, and the options of its predictions."""

    # an embedded checkpoint, a checkpoint folder or a hub id; the embedded one when absent
    checkpoint: Optional[str] = None
    step: float = 16.0  # mm, spacing of the query points
    # points to query: "dense" all, "octree" (for steps up to 8 mm) and "guided" a part of them
    search: Search = "dense"
    # precision of the network; float16 on a GPU and float32 on a CPU when absent
    precision: Optional[Literal["float32", "float16", "bfloat16"]] = None
    # device to compute on, for example cpu or cuda:1; when absent a GPU if present, under torchrun that of
    # the process's local rank
    device: Optional[str] = None
    threads: Optional[int] = None  # CPU threads of each process; PyTorch's choice when absent

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


@dataclass(frozen=True)
class Synthetic:
    """Measure on unseen synthetic images, with the mean pose as baseline.

    Two sets: palms towards the camera within 60 degrees and fingers up within 60, and hands turned uniformly
    over the sphere. "score vs error" is Spearman's rank correlation of a joint's score with its error. Images
    without a prediction count with the mean pose.
    """

    # the checkpoint and its options
    prediction: Annotated[Prediction, tyro.conf.arg(name="")] = field(default_factory=Prediction)
    count: int = 500  # images per set
    seed: int = 9_000_001  # seed of the images; trainings use others
    size: int = 224  # px, side of the images
    data_cache: Optional[Path] = None  # folder for rendered images
    out: Optional[Path] = None  # JSON file for the table and the whole report
    record: Flag = False  # store the scores in the checkpoint, for `nvf-fast info --all`

    def run(self) -> None:
        from nvf_fast.checkpoint import record_scores, recordable
        from nvf_fast.evaluation.report import finite, surroundings
        from nvf_fast.evaluation.synthetic import evaluate

        _refuse_several_processes("synthetic")
        if self.record:
            with user_errors():
                recordable(self.prediction.checkpoint)
        predictor, conditions = self.prediction.load()
        if predictor.task != "camera-space":
            raise UserError(f"eval synthetic needs a camera-space network, this one is {predictor.task}")
        report: dict[str, Any] = {}
        for name, distribution in (("palm within 60°", HandDistribution()), ("any orientation", UNIFORM)):
            config = SyntheticConfig(
                count=self.count, seed=self.seed, size=self.size, distribution=distribution
            )
            images = SyntheticHands(config, self.data_cache)
            render_ahead(images)
            report[name] = finite(evaluate(predictor, images, progress=True))
        machine = surroundings()
        columns = ["images", "hand scale", *COLUMNS.values()]
        rows = [row for name, scores in report.items() for row in _rows(name, scores)]
        result = {
            "columns": columns,
            "rows": rows,
            "context": {
                "checkpoint": self.prediction.checkpoint or "embedded default",
                "images": self.count,
                "seed": self.seed,
                **{name: conditions[name] for name in ("step", "search", "device", "precision")},
                **{name: machine[name] for name in ("machine", "nvf_fast")},
            },
            "report": report,
        }
        _print_table(columns, rows)
        if self.out is not None:
            with user_errors(), whole_file(self.out) as file:
                file.write((json.dumps(result, indent=1, allow_nan=False) + "\n").encode())
        if self.record:
            measured = {
                name: {setting: scores for setting, scores in settings.items() if setting != "data"}
                for name, settings in report.items()
            }
            with user_errors():
                record_scores(
                    self.prediction.checkpoint, {"images": self.count, "seed": self.seed, **measured}
                )


@dataclass(frozen=True)
class SyntheticV2:
    """Measure on synthetic-v2, the fixed set, with the mean pose of such hands as baseline."""

    output: Annotated[Output, tyro.conf.arg(name="")]  # the report's folder, and the reading of the data set
    # the checkpoint and its options
    prediction: Annotated[Prediction, tyro.conf.arg(name="")] = field(default_factory=Prediction)
    split: Split = "evaluation"  # part of the data set
    data_cache: Optional[Path] = None  # folder for rendered images

    def run(self) -> None:
        folders = Folders(cache=self.data_cache)
        _evaluate(self.prediction, self.output, DataConfig("synthetic-v2"), self.split, folders)


@dataclass(frozen=True)
class FreiHAND:
    """Measure on FreiHAND, and write the submission of its evaluation split."""

    output: Annotated[Output, tyro.conf.arg(name="")]  # the report's folder, and the reading of the data set
    data: Path  # folder of FreiHAND_pub_v2
    # the checkpoint and its options
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
        folders = Folders(data=self.data, evaluation=self.evaluation_data, cache=self.cache)
        config = DataConfig("freihand")
        _evaluate(self.prediction, self.output, config, self.split, folders, "freihand", self.mano)


@dataclass(frozen=True)
class HO3D:
    """Measure on HO-3D, and write the submission of its evaluation split."""

    output: Annotated[Output, tyro.conf.arg(name="")]  # the report's folder, and the reading of the data set
    data: Path  # folder of HO-3D with evaluation.txt and, if available, evaluation_xyz.json
    # the checkpoint and its options
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

    output: Annotated[Output, tyro.conf.arg(name="")]  # the report's folder, and the reading of the data set
    data: Path  # folder of the set
    mano: Path  # the user's MANO_RIGHT.pkl
    # the checkpoint and its options
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
    # the checkpoint and its options
    prediction: Annotated[Prediction, tyro.conf.arg(name="")] = field(default_factory=Prediction)
    split: Literal["train", "val", "all"] = "val"  # part of the photographs
    leave_out: Several[str] = ()  # groups to exclude, such as xmore_gestures
    batch: int = 32  # photographs per batch

    def run(self) -> None:
        from nvf_fast.data.photographs import Photographs
        from nvf_fast.evaluation.photographs import (
            evaluate_photographs,
            predict_with,
            score_rows,
            write_photograph_report,
        )
        from nvf_fast.evaluation.report import surroundings

        _refuse_several_processes("photographs")
        predictor, conditions = self.prediction.load()
        if predictor.task != "camera-space" or False not in predictor.scale_choices:
            raise UserError("eval photographs needs a camera-space network that works without hand scale")
        with user_errors(), locked(self.out / LOCK_FILE):
            data = Photographs(self.data, self.split, self.leave_out)
            others = Photographs(self.data, "train")
            scores = evaluate_photographs(
                predict_with(predictor.estimator),
                data,
                others,
                batch=self.batch,
                predicts_sides=predictor.estimator.model.config.view == "hand",
            )
            options = {"split": self.split, "leave out": ", ".join(self.leave_out) or "nothing"}
            files = write_photograph_report(self.out, scores, {**conditions, **options, **surroundings()})
        _print_table(*score_rows(scores))
        print("wrote " + ", ".join(map(str, files)))


@dataclass(frozen=True)
class HandViews:
    """Check a network of hand views, such as the embedded default, errors in mm.

    The checks are: poses of synthetic-v2's hands by the final joints, the coarse joints and the votes alone,
    with the mean pose as baseline; expected against true errors; presence and side on photographs; presence
    in empty views; stability under rotation, moved boxes and batches; finding in wide images; and time.
    """

    out: Path  # folder for report.json, report.md and calibration.png
    # the checkpoint and its options
    prediction: Annotated[Prediction, tyro.conf.arg(name="")] = field(default_factory=Prediction)
    # folder of labelled photographs (docs/datasets.md), whose validation split is used
    photographs: Optional[Path] = None
    # folder of held-out images and panoramas, for empty views and wide images; procedural surroundings when
    # absent
    backgrounds: Optional[Path] = None
    # glTF file of a rigged right hand, for wide images; the built-in hand when absent
    rig: Optional[Path] = None
    data_cache: Optional[Path] = None  # folder for synthetic-v2
    count: int = 2000  # number of synthetic-v2's hands
    stable: int = 200  # number of these used for stability
    empty: int = 2000  # number of views without a hand
    wide: int = 200  # number of wide images
    seed: int = 9_000_002  # seed of empty views and wide images; trainings use others

    def run(self) -> None:
        from nvf_fast.evaluation.hand_view_report import report_tables, write_hand_view_report
        from nvf_fast.evaluation.report import surroundings

        _refuse_several_processes("hand-views")
        predictor, conditions = self.prediction.load()
        if predictor.estimator.model.config.view != "hand":
            raise UserError("eval hand-views needs a network of hand views")
        with user_errors(), locked(self.out / LOCK_FILE):
            report = self._measure(predictor.estimator)
            options = {
                "backgrounds": "a folder" if self.backgrounds else "procedural",
                "rig": self.rig.name if self.rig else "built-in",
                "seed": self.seed,
            }
            files = write_hand_view_report(self.out, report, {**conditions, **options, **surroundings()})
        for columns, rows in report_tables(report).values():
            _print_table(columns, rows)
            print()
        for part, reason in report["skipped"].items():
            print(f"skipped {part}: {reason}")
        print("wrote " + ", ".join(map(str, files)))

    def _measure(self, estimator: PoseEstimator) -> dict[str, Any]:
        from nvf_fast.data.photograph_views import PhotographViews
        from nvf_fast.data.photographs import Photographs
        from nvf_fast.evaluation import hand_views
        from nvf_fast.evaluation.finding import score_finding
        from nvf_fast.evaluation.mean_pose import other_hands
        from nvf_fast.evaluation.photographs import predict_with, predicted
        from nvf_fast.model import NVF
        from nvf_fast.synthetic.rendered_views import SyntheticViews
        from nvf_fast.synthetic.wide_images import WideImages
        from nvf_fast.training.calibration import predict_views

        assert isinstance(estimator.model, NVF)
        predict, heads = predict_with(estimator), partial(predict_views, estimator.model)
        report: dict[str, Any] = {"skipped": {}}
        if self.count:
            data = synthetic_v2("test", self.data_cache)
            render_ahead(data, count=self.count)
            samples = [data[index] for index in range(min(self.count, len(data)))]
            parts = hand_views.part_joints(heads, samples)
            poses = predicted(predict, samples)
            report["poses"] = hand_views.score_poses(poses, parts, samples, other_hands(UNIFORM))
            few = samples[: self.stable]
            report["stability"] = hand_views.score_stability(predict, few) | {"hands": len(few)}
        else:
            report["skipped"]["poses and stability"] = "--count is 0"
        empty = SyntheticViews(self.seed, backgrounds=self.backgrounds).draw(self.empty, "empty")
        threshold = estimator.model.config.presence_threshold
        report["empty"] = hand_views.score_empty(heads, empty, threshold)
        if self.photographs is None:
            report["skipped"]["lost photographs and sides"] = "--photographs is not given"
        else:
            views = PhotographViews(Photographs(self.photographs, "val")).exact(keep_sides=True)
            report["presence"] = hand_views.score_presence(heads, views, threshold)
        images = WideImages(self.seed, rig=self.rig, backgrounds=self.backgrounds)
        wide = (images.draw(index) for index in range(self.wide))
        report["finding"] = score_finding(estimator, wide)
        shown = images.draw(0, ["right"])
        box, side = shown.hands[0].box, shown.hands[0].side
        report["time"] = hand_views.measure_times(
            lambda: estimator(shown.image, shown.intrinsics, box=box, side=side),
            lambda: estimator(shown.image, shown.intrinsics),
        ) | {"device": str(estimator.device)}
        return report


@tyro.conf.configure(tyro.conf.ConsolidateSubcommandArgs)
@dataclass(frozen=True)
class Eval:
    """Measure a checkpoint on a data set, lengths in mm.

    All but `synthetic`, `photographs` and `hand-views` divide the images between processes under torchrun:
    torchrun --nproc-per-node 2 --no-python nvf-fast eval ...
    """

    data: Annotated[
        Annotated[Synthetic, tyro.conf.subcommand("synthetic")]
        | Annotated[SyntheticV2, tyro.conf.subcommand("synthetic-v2")]
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
) -> None:
    """Predict every image and write the report, in the first of several processes.

    Args:
        prediction, output: options.
        config, split, folders: of the data set.
        server: for which submissions are written.
        fitted: MANO's file for their vertices.
    """
    from nvf_fast.data.mano import Mano
    from nvf_fast.evaluation.mean_pose import fallback_pose
    from nvf_fast.evaluation.report import report_on, score_table, surroundings, write_report
    from nvf_fast.evaluation.run import predict
    from nvf_fast.runtime.processes import Processes, ProcessLostError, process_group

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
    if "settings" in report:
        _print_table(*score_table(report))
    for note in report["notes"]:
        print(note)
    print("wrote " + ", ".join(map(str, files)))


def _refuse_several_processes(command: str) -> None:
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError(f"eval {command} runs in one process")


def _print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    for line in (columns, *rows):
        print("  ".join(f"{_text(value):>18}" for value in line))


def _rows(name: str, scores: dict[str, Any]) -> list[list[Any]]:
    return [
        [name, setting, *(None if scores[key].get(column) is None else round(scores[key][column], 3)
                          for column in COLUMNS)]
        for key, setting in SETTINGS.items()
        if key in scores
    ]  # fmt: skip


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}" if math.isfinite(value) else "-"
    return "-" if value is None else str(value)
