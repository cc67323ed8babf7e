"""`nvf-fast train`: trains a network on synthetic hands."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
import torch.distributed
import tyro

from nvf_fast.cli import UserError
from nvf_fast.training.config import PRESETS, TrainingConfig

EVALUATION_SEED = 1_000_003  # pictures that no training on a smaller seed sees
EVALUATED = ("cs_mje", "te", "de", "pa_mpjpe", "voters", "invalid")


@dataclass(frozen=True)
class Run:
    """Train, or go on where the folder's training stopped. Ctrl-C saves and stops.

    Attributes:
        config: every number of the training.
        out: folder for the state, the log and the checkpoint.
        minutes: minutes of wall time after which to save and stop; the same command later goes on.
        data_cache: folder that keeps rendered pictures; without one they are made anew and kept in memory.
        initial: checkpoint folder whose weights to begin from.
        device: where to train, for example cpu or cuda:1; the GPU where there is one.
        threads: CPU threads of each process.
    """

    config: Annotated[TrainingConfig, tyro.conf.arg(name="")]
    out: Path
    minutes: float | None = None
    data_cache: Path | None = None
    initial: Path | None = None
    device: str | None = None
    threads: int = 1

    def run(self) -> None:
        from nvf_fast.data.synthetic import SyntheticHands
        from nvf_fast.training.loop import CannotStart, NonFiniteLoss, train

        config = self.config
        torch.set_num_threads(self.threads)
        with _process_group(self.device) as device:
            dataset = SyntheticHands(config.data, self.data_cache)
            first = int(os.environ.get("RANK", 0)) == 0
            evaluate = _evaluation(config, self.data_cache) if first and config.evaluate_every else None
            try:
                result = train(
                    config,
                    dataset,
                    self.out,
                    minutes=self.minutes,
                    evaluate=evaluate,
                    start=self.initial,
                    device=device,
                )
            except (CannotStart, NonFiniteLoss) as error:
                raise UserError(str(error)) from error
        if first:
            state = "finished" if result.finished else "stopped; the same command goes on"
            print(f"{state}: step {result.step}, {result.minutes:.1f} minutes, {self.out / 'checkpoint'}")


if TYPE_CHECKING:
    from nvf_fast.training.loop import Evaluate

    Presets = Run
else:
    Presets = tyro.extras.subcommand_type_from_defaults(
        {name: Run(make(), out=tyro.MISSING) for name, make in PRESETS.items()}
    )


@dataclass(frozen=True)
class Train:
    """Train on synthetic hands, or go on where the folder's training stopped.

    Several processes share each batch under torchrun:
    torchrun --nproc-per-node 2 --no-python nvf-fast train ...
    """

    preset: Annotated[Presets, tyro.conf.arg(name="")]
    """What to train; `train PRESET --help` lists its numbers, all of which can be changed."""

    def run(self) -> None:
        self.preset.run()


def _evaluation(config: TrainingConfig, cache: Path | None) -> Evaluate:
    """Scores on pictures of their own, with the hand scale and without it where the network takes both."""
    from nvf_fast.data.synthetic import SyntheticHands
    from nvf_fast.estimator import PoseEstimator
    from nvf_fast.evaluation.synthetic import constant_scores, predict_set, score_predictions
    from nvf_fast.model import NVF

    data = SyntheticHands(replace(config.data, seed=EVALUATION_SEED, count=config.evaluation_images), cache)
    truth = data.hands(range(len(data))).joints.double().numpy()
    constant = constant_scores(config.data.distribution, truth)
    settings = {"with_scale": True} if config.model.hand_scale else {}
    if config.model.scale_optional or not config.model.hand_scale:
        settings["without_scale"] = False

    def scores(model: NVF) -> dict[str, float]:
        estimator = PoseEstimator(model)
        numbers: dict[str, float] = {}
        for setting, given in settings.items():
            found = score_predictions(predict_set(estimator, data, given), constant["pose"])
            numbers |= {f"{setting}_{name}": found[name] for name in EVALUATED}
        return numbers

    return scores


@contextmanager
def _process_group(device: str | None) -> Iterator[str]:
    """Joins the processes that torchrun started, if it did; gives the device of this one."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield device
        return
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield device
    finally:
        torch.distributed.destroy_process_group()
