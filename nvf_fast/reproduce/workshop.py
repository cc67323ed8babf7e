"""Trained networks of the tables and their evaluations, stored for all tables."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch
from tqdm import tqdm

from nvf_fast.baselines import Network
from nvf_fast.checkpoint import load_checkpoint
from nvf_fast.data.catalogue import Folders, Split, open_dataset
from nvf_fast.data.sample import FirstSamples, HandDataset
from nvf_fast.estimator import PoseEstimator
from nvf_fast.evaluation.dataset_predictions import SETTINGS
from nvf_fast.evaluation.mean_pose import fallback_pose
from nvf_fast.evaluation.predictors import NetworkPredictor
from nvf_fast.evaluation.report import report_on
from nvf_fast.evaluation.run import predict
from nvf_fast.reproduce.recipes import Role, Size, Stage, Variant, data_for, stages
from nvf_fast.synthetic.dataset import render_ahead
from nvf_fast.training.images import TaskImages
from nvf_fast.training.loop import train

EVALUATED_ON: dict[str, Role] = {"camera-space": "freihand", "root-relative": "ho3d"}


class StoppedError(Exception):
    """A training was interrupted; the same command resumes it."""


@dataclass(frozen=True)
class Workshop:
    """Environment of the trainings and evaluations."""

    runs: Path  # folder for trainings, predictions and rendered images; existing ones are reused
    size: Size  # of trainings and evaluations
    # folders of the available real data sets, by role; synthetic images replace the others
    data: Mapping[Role, Path] = field(default_factory=dict)
    evaluation_data: Path | None = None  # FreiHAND's released evaluation annotations
    mano: Path | None = None  # the user's MANO_RIGHT.pkl
    seed: int = 0  # of all trainings
    device: str = "cpu"  # where to compute
    workers: int = 0  # processes that read images ahead

    def dataset(self, role: Role, split: Split) -> HandDataset:
        """Open the images of a role for trainings or evaluations of this size."""
        real = role in self.data
        folders = Folders(
            data=self.data.get(role),
            evaluation=self.evaluation_data if real and role == "freihand" else None,
            mano=self.mano if real else None,
            cache=self.runs / "images",
        )
        dataset = open_dataset(data_for(role, self.size, frozenset(self.data)), split, folders)
        count = self.size.images if split == "training" else self.size.evaluated
        render_ahead(dataset, processes=os.cpu_count() or 1, count=count)
        return dataset if count is None else FirstSamples(dataset, count)

    def network(self, variant: Variant) -> tuple[Network, dict[str, Any]]:
        """Return a variant's network, trained if it is missing, and its checkpoint's metadata.

        Raises:
            StoppedError: the training was interrupted.
            ResumeError: the folder holds other trainings.
        """
        expected = stages(variant, self.size, frozenset(self.data), self.seed)
        for stage in expected:
            self._train(stage)
        return load_checkpoint(self._folder(expected[-1].name) / "checkpoint", self.device)

    def estimator(self, variant: Variant) -> PoseEstimator:
        """Return an estimator of a variant's network, with the paper's options."""
        return PoseEstimator(self.network(variant)[0])

    def report(self, variant: Variant, **options: Any) -> dict[str, Any]:
        """Evaluate a variant's network on its task's evaluation images, as `report_on` does.

        Args:
            variant: of the network.
            options: of its estimator, such as fraction.

        Returns:
            scores, curves and so on of the variant's one setting; and `counts`.
        """
        network, info = self.network(variant)
        if variant.method == "nvf":
            options = {"surface_mm": variant.surface_mm, **options}
        name = "-".join([variant.name, *(f"{key}{value:g}" for key, value in sorted(options.items()))])
        metadata = {"checkpoint": info["sha256"], "size": self.size.name, **options}
        role = EVALUATED_ON[variant.task]
        dataset = self.dataset(role, "evaluation")
        predictions = predict(
            NetworkPredictor(PoseEstimator(network, **options)),
            dataset,
            self.runs / "predictions" / name,
            metadata,
            progress=True,
            workers=self.workers,
        )
        fallback = fallback_pose(data_for(role, self.size, frozenset(self.data)))
        report = report_on(predictions, fallback, {})
        if "settings" not in report:
            raise ValueError(
                f"{dataset.name}: the joints of the evaluation split are missing: nothing to score"
            )
        return report["settings"][SETTINGS[variant.hand_scale]] | {"counts": report["counts"]}

    def context(self) -> dict[str, Any]:
        """Metadata of a result: size, data, seed and device."""
        kind = torch.device(self.device).type
        return {
            "size": self.size.name,
            "data": {role: "real" if role in self.data else "synthetic" for role in get_args(Role)},
            "seed": self.seed,
            "device": torch.cuda.get_device_name(self.device) if kind == "cuda" else "CPU",
        }

    def _train(self, stage: Stage) -> None:
        tqdm.write(f"training {stage.name}", file=sys.stderr)
        result = train(
            stage.config,
            TaskImages(self.dataset(stage.role, "training"), stage.config.model),
            self._folder(stage.name),
            start=None if stage.after is None else self._folder(stage.after) / "checkpoint",
            device=self.device,
            workers=self.workers,
        )
        if not result.finished:
            raise StoppedError(f"{stage.name} stopped at step {result.step}; the same command resumes it")

    def _folder(self, name: str) -> Path:
        return self.runs / "trainings" / name
