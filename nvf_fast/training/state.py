"""Saving and exactly resuming a training, or listing the differences that prevent it."""

from __future__ import annotations

import io
import json
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from nvf_fast.checkpoint import load_checkpoint, save_checkpoint
from nvf_fast.config import NVFConfig
from nvf_fast.model import check_entries
from nvf_fast.runtime.store import DamagedRecordError, ResumeError, Store, differences
from nvf_fast.training.log import DamagedImages
from nvf_fast.training.replay import ReplayConfig
from nvf_fast.training.trainer import Trainer
from nvf_fast.training.transfer import transfer

STATE_VERSION = 2
# Fields of the configuration that may change when a training resumes.
WITHOUT_INFLUENCE = ("log_every", "save_every", "evaluate_every", "evaluation_images")


class SavedTraining:
    """A trainer in its folder, where the first process keeps the last two states and `checkpoint/`.

    Args:
        folder: of the training, accessible to all processes.
        trainer: at its first step.
        fingerprint: of the data set's contents; None where it has none.
        credits: where the images come from, for the checkpoint's metadata.
    """

    def __init__(
        self,
        folder: Path,
        trainer: Trainer,
        fingerprint: str | None = None,
        credits: dict[str, Any] | None = None,
    ) -> None:
        self.folder, self.trainer, self.fingerprint, self.credits = folder, trainer, fingerprint, credits
        self.store = Store(folder, "state", ".pt")
        self.seconds = 0.0  # of training, over all calls
        self.started_from: dict[str, Any] | None = None  # metadata and hash of the checkpoint it began from
        self.damaged = DamagedImages()
        self.damaged_states: list[str] = []  # newer than the one that was resumed

    def save(self) -> None:
        """Write the checkpoint and the state; a crash at any moment leaves one complete copy of each."""
        if self.trainer.processes.rank == 0:
            save_checkpoint(self.trainer.exported, self.folder / "checkpoint", self.metadata())
            buffer = io.BytesIO()
            torch.save(self._state(), buffer)
            self.store.write(buffer.getbuffer(), f"{self.trainer.step:09d}")

    def resume(self, inexact: bool = False) -> bool:
        """Restore the newest complete state. Returns whether the folder holds one.

        Args:
            inexact: resume in a changed environment too, with results that are equal only up to rounding.

        Raises:
            ResumeError: the states are damaged or of another training run, or the processes disagree.
        """
        trainer = self.trainer
        try:
            record = self.store.newest()
        except DamagedRecordError as error:
            hint = "restore one of them from a copy, or remove them to start again"
            raise ResumeError(f"{error}; {hint}") from error
        trainer.processes.agree("state to resume", record and record.name)
        trainer.processes.agree("training", self._identity())
        if record is None:
            return False
        if record.damaged:
            names = ", ".join(record.damaged)
            warnings.warn(f"{self.folder}: damaged: {names}; resuming from {record.name}")
        state = torch.load(io.BytesIO(record.content), map_location="cpu", weights_only=True)
        self._check(state, inexact)
        trainer.load_state_dict(state)
        self.seconds, self.started_from = state["seconds"], json.loads(state["started_from"])
        self.damaged = DamagedImages(state["damaged"], dict.fromkeys(state["damaged_names"]))
        self.damaged_states = record.damaged
        return True

    def start_from(self, checkpoint: Path | str) -> None:
        """Begin from a checkpoint's weights (`nvf_fast.training.transfer`), or check that a resumed run did.

        Raises:
            ResumeError: the checkpoint does not fit the network, differs between the processes, or is not the
                one that the resumed run began from.
        """
        trainer = self.trainer
        weights, info = load_checkpoint(checkpoint, device=trainer.device, dtype=torch.float32)
        found = info["sha256"]
        trainer.processes.agree("starting checkpoint", found)
        if trainer.step > 0:
            began = self.started_from or {"sha256": None}
            if began.get("sha256", found) != found:  # states of earlier versions hold no hash
                raise ResumeError(
                    f"{self.folder} holds a run that did not begin from {checkpoint}: resume it without a "
                    "starting checkpoint, or choose another folder"
                )
            return
        try:
            transfer(weights, trainer.model)
        except ValueError as error:
            raise ResumeError(f"{checkpoint}: {error}") from error
        trainer.averaged.load_state_dict(trainer.model.state_dict())
        self.started_from = {**info["training"], "sha256": found}

    def metadata(self) -> dict[str, Any]:
        """The checkpoint's metadata about its training."""
        trainer = self.trainer
        return {
            "preset": trainer.config.preset,
            "steps": trainer.step,
            "total_steps": trainer.total,
            "images_seen": trainer.step * trainer.options.batch,
            "damaged_images": self.damaged.total,
            "minutes": round(self.seconds / 60, 2),
            "processes": trainer.processes.count,
            "config": asdict(trainer.config),
            "started_from": self.started_from,
            **({"credits": self.credits} if self.credits else {}),
        }

    def _state(self) -> dict[str, Any]:
        return {
            "version": STATE_VERSION,
            "identity": self._identity(),
            "environment": self._environment(),
            "seconds": self.seconds,
            "started_from": json.dumps(self.started_from),
            "damaged": self.damaged.total,
            "damaged_names": [*self.damaged.names],
            **self.trainer.state_dict(),
        }

    def _identity(self) -> str:
        """Everything that determines the weights, as JSON: the data, and most of the configuration."""
        config = asdict(self.trainer.config)
        for name in WITHOUT_INFLUENCE:
            del config[name]
        data = {"count": self.trainer.images, "fingerprint": self.fingerprint}
        return json.dumps({"config": config, "images": data})

    def _environment(self) -> str:
        """The environment that determines the last bits, as JSON."""
        device, threads = self.trainer.device, None
        if device.type == "cpu":
            name, threads = torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()
        else:
            name = torch.cuda.get_device_name(device)
        environment = {"torch": torch.__version__, "device": name, "threads": threads}
        return json.dumps(environment | {"processes": self.trainer.processes.count})

    def _check(self, state: dict[str, Any], inexact: bool) -> None:
        """Refuse a state that the training cannot resume exactly."""
        if state["version"] != STATE_VERSION:
            version = f"version {state['version']}, this library reads {STATE_VERSION}"
            raise ResumeError(f"{self.folder} holds a state of {version}")
        missing = sorted(self._state().keys() - state.keys())
        if missing:
            raise ResumeError(f"{self.folder} holds a state without {', '.join(missing)}")
        changed = differences(_with_new_names(state["identity"]), json.loads(self._identity()))
        for name, tensors in self.trainer.weights().items():
            try:
                check_entries({entry: tensor.shape for entry, tensor in tensors.items()}, state[name], name)
            except ValueError as error:
                changed.append(str(error))
        moved = differences(json.loads(state["environment"]), json.loads(self._environment()))
        if changed:
            listed = "; ".join(changed + moved)
            raise ResumeError(f"{self.folder} holds another training run; differing: {listed}")
        if moved and not inexact and state["step"] < self.trainer.total:
            raise ResumeError(
                f"{self.folder} would not resume bit for bit; `inexact` allows results equal up to rounding: "
                f"{'; '.join(moved)}"
            )


def _with_new_names(identity: str) -> dict[str, Any]:
    """The identity of a state, with the present names and the later entries of configurations."""
    found: dict[str, Any] = json.loads(identity)
    found["config"]["model"] = NVFConfig.from_dict(found["config"]["model"]).to_dict()
    options = found["config"]["optimisation"]
    for entries, old, new in ((found, "pictures", "images"), (options, "final_share", "final_ratio")):
        if old in entries:
            entries[new] = entries.pop(old)
    found["config"].setdefault("replay", asdict(ReplayConfig()))
    return found
