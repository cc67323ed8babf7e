"""The trained networks of the tables and what they answer: made once, kept in a folder, shared by all."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch

from nvf_fast.baselines import Network
from nvf_fast.checkpoint import load_checkpoint
from nvf_fast.data.catalogue import Folders, Split, open_dataset
from nvf_fast.data.sample import FirstSamples, HandDataset
from nvf_fast.estimator import PoseEstimator
from nvf_fast.evaluation.dataset_predictions import SETTINGS
from nvf_fast.evaluation.mean_pose import fallback_pose
from nvf_fast.evaluation.predictors import NetworkPredictor
from nvf_fast.evaluation.report import report_on
from nvf_fast.evaluation.run import Options, predict
from nvf_fast.reproduce.recipes import Role, Size, Stage, Variant, data_for, stages
from nvf_fast.synthetic.dataset import SyntheticHands
from nvf_fast.training.images import task_images
from nvf_fast.training.loop import train

LOG = logging.getLogger("nvf_fast")
EVALUATED_ON: dict[str, Role] = {"camera-space": "freihand", "root-relative": "ho3d"}


class Stopped(Exception):
    """A training was asked to stop; the same command goes on."""


@dataclass(frozen=True)
class Workshop:
    """Where the networks are trained and asked.

    Attributes:
        runs: folder that keeps trainings, answers and rendered pictures; what is there is not made again.
        size: how large trainings and evaluations are.
        data: folders of the real data sets at hand, by role; synthetic pictures stand for the others.
        evaluation_data: FreiHAND's released evaluation annotations.
        mano: the user's MANO_RIGHT.pkl.
        seed: of all trainings.
        device: where to compute.
        workers: processes that read pictures ahead.
    """

    runs: Path
    size: Size
    data: Mapping[Role, Path] = field(default_factory=dict)
    evaluation_data: Path | None = None
    mano: Path | None = None
    seed: int = 0
    device: str = "cpu"
    workers: int = 0

    def dataset(self, role: Role, split: Split) -> HandDataset:
        """The pictures of a role that trainings or evaluations of this size look at."""
        real = role in self.data
        folders = Folders(
            data=self.data.get(role),
            evaluation=self.evaluation_data if real and role == "freihand" else None,
            mano=self.mano if real else None,
            cache=self.runs / "pictures",
        )
        dataset = open_dataset(data_for(role, self.size, frozenset(self.data)), split, folders)
        count = self.size.pictures if split == "training" else self.size.evaluated
        if isinstance(dataset, SyntheticHands):
            dataset.render(os.cpu_count() or 1, count=count)
        return dataset if count is None else FirstSamples(dataset, count)

    def network(self, variant: Variant) -> tuple[Network, dict[str, Any]]:
        """A variant's network, trained where it is not yet, and its checkpoint's facts.

        Raises:
            Stopped: the training was asked to stop.
            ResumeError: the folder holds other trainings.
        """
        wanted = stages(variant, self.size, frozenset(self.data), self.seed)
        for stage in wanted:
            self._train(stage)
        return load_checkpoint(self._folder(wanted[-1].name) / "checkpoint", self.device)

    def report(self, variant: Variant, **options: Any) -> dict[str, Any]:
        """What a variant's network answers on its task's evaluation pictures, as `report_on` says it.

        Args:
            variant: which.
            options: of its estimator, such as fraction.

        Returns:
            scores, curves and so on of the variant's one setting; and `counts`.
        """
        network, info = self.network(variant)
        if variant.method == "nvf":
            options = {"surface_mm": variant.surface_mm, **options}
        name = "-".join([variant.name, *(f"{key}{value:g}" for key, value in sorted(options.items()))])
        facts = {"checkpoint": info["sha256"], "size": self.size.name, **options}
        role = EVALUATED_ON[variant.task]
        dataset = self.dataset(role, "evaluation")
        answers = predict(
            NetworkPredictor(PoseEstimator(network, **options)),
            dataset,
            self.runs / "answers" / name,
            facts,
            Options(progress=True, workers=self.workers),
        )
        assert answers is not None
        fallback = fallback_pose(data_for(role, self.size, frozenset(self.data)))
        report = report_on(answers, fallback, {})
        if "settings" not in report:
            raise ValueError(f"{dataset.name}: the evaluation part's joints are not there: nothing to score")
        return report["settings"][SETTINGS[variant.hand_scale]] | {"counts": report["counts"]}

    def _train(self, stage: Stage) -> None:
        LOG.info("training %s", stage.name)
        result = train(
            stage.config,
            task_images(self.dataset(stage.role, "training"), stage.config.model),
            self._folder(stage.name),
            start=None if stage.after is None else self._folder(stage.after) / "checkpoint",
            device=self.device,
            workers=self.workers,
        )
        if not result.finished:
            raise Stopped(f"{stage.name} stopped at step {result.step}; the same command goes on")

    def _folder(self, name: str) -> Path:
        return self.runs / "trainings" / name


def described(workshop: Workshop) -> dict[str, Any]:
    """What a reader must know of a result: its size, data, seed and device."""
    kind = torch.device(workshop.device).type
    return {
        "size": workshop.size.name,
        "data": {role: "real" if role in workshop.data else "synthetic" for role in get_args(Role)},
        "seed": workshop.seed,
        "device": torch.cuda.get_device_name(workshop.device) if kind == "cuda" else "CPU",
    }
