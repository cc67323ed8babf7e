"""The data sets by name."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from nvf_fast.data.sample import HandDataset
from nvf_fast.synthetic.dataset import SyntheticConfig, SyntheticHands, synthetic_v2

Name = Literal["synthetic", "synthetic-v2", "freihand", "ho3d", "complement"]
Split = Literal["training", "evaluation"]
NEEDS_FOLDER = ("freihand", "ho3d", "complement")


@dataclass(frozen=True)
class DataConfig:
    """The choice of a data set."""

    # "synthetic", any seeded set of rendered hands; "synthetic-v2", the fixed one; or a real set, opened from
    # a folder
    dataset: Name = "synthetic"
    # which set, where `dataset` is "synthetic"
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)
    ho3d_version: Literal["v2", "v3"] = "v2"  # of HO-3D, "v2" or "v3"


@dataclass(frozen=True)
class Folders:
    """Folders of data."""

    data: Path | None = None  # the real data set's folder
    evaluation: Path | None = None  # FreiHAND's evaluation annotations, released separately
    # the user's MANO_RIGHT.pkl, for faces, and for HO-3D's and Complement's meshes and joints
    mano: Path | None = None
    cache: Path | None = None  # for rendered images, and long annotation files as arrays


def open_dataset(config: DataConfig, split: Split, folders: Folders) -> HandDataset:
    """Open a data set.

    Args:
        config: the data set.
        split: training or evaluation; Complement has a training split only.
        folders: of its files.

    Raises:
        ValueError: a folder is missing or superfluous, or the data set lacks the split.
        DatasetError: the folder does not hold the data set as published; the message lists all faults.
    """
    name = config.dataset
    if (folders.data is None) == (name in NEEDS_FOLDER):
        fault = "needs its folder" if folders.data is None else "is made on demand and has no folder"
        raise ValueError(f"the data set {name!r} {fault} (--data)")
    if name == "synthetic":
        return SyntheticHands(config.synthetic, folders.cache)
    if name == "synthetic-v2":
        return synthetic_v2("train" if split == "training" else "test", folders.cache)
    assert folders.data is not None
    mano, cache = folders.mano, folders.cache
    if name == "freihand":
        from nvf_fast.data.freihand import FreiHAND

        released = folders.evaluation if split == "evaluation" else None
        return FreiHAND(folders.data, split, evaluation_folder=released, mano=mano, cache=cache)
    if name == "ho3d":
        from nvf_fast.data.ho3d import HO3D

        part: Literal["train", "evaluation"] = "train" if split == "training" else "evaluation"
        return HO3D(folders.data, part, config.ho3d_version, mano=mano, cache=cache)
    if split == "evaluation":
        raise ValueError("Complement has no evaluation part")
    from nvf_fast.data.complement import Complement

    return Complement(folders.data, mano=mano)
