"""The sources of training views: rendered hands, and optional labelled photographs."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nvf_fast.data.hand_views import HandViews
from nvf_fast.data.photograph_views import PhotographViews
from nvf_fast.data.photographs import Photographs
from nvf_fast.data.sample import HandDataset
from nvf_fast.data.sample_views import SampleViews
from nvf_fast.synthetic.backgrounds import background_files
from nvf_fast.synthetic.rendered_views import Kind, SyntheticViews
from nvf_fast.training.view_mixture import Source, ViewMixture, ViewMixtureConfig

SEEDS = 2**62


@dataclass(frozen=True)
class ViewFolders:
    """Folders and files with the material of training views, all optional."""

    photographs: Path | None = None  # labelled photographs, as docs/datasets.md describes them
    backgrounds: Path | None = None  # a folder of images and panoramas
    # rigged right hands, glTF files; the built-in hand is rendered in turn with them
    rigs: tuple[Path, ...] = ()
    textures: tuple[Path, ...] = ()  # images of skin, for every rig with texture coordinates
    leave_out: tuple[str, ...] = ()  # groups of photographs to exclude


def open_views(
    config: ViewMixtureConfig, folders: ViewFolders, seed: int, dataset: HandDataset | None = None
) -> ViewMixture:
    """Open the sources of training views.

    Args:
        config: their proportions.
        folders: of rendered hands and photographs.
        seed: of all views.
        dataset: for views of its images' boxes, or None.

    Raises:
        DatasetError: the photographs' folder or a rig is not as described; the message lists all faults.
        ValueError: textures are given without a rig with texture coordinates, or the data set has no
            surfaces.
    """
    textures, backgrounds = folders.textures, folders.backgrounds
    makers = [SyntheticViews(seed, backgrounds=backgrounds)]
    makers += [
        SyntheticViews(seed, rig=rig, textures=textures, backgrounds=backgrounds) for rig in folders.rigs
    ]
    sources: dict[str, Source] = {
        "rendered": partial(_rendered, makers, "close"),
        "rendered_wide": partial(_rendered, makers, "wide"),
        "empty": partial(_rendered, makers, "empty"),
    }
    identity: list[Any] = [_identity(path) for path in (*folders.rigs, *folders.textures)]
    identity.append(_identity(folders.backgrounds))
    if folders.photographs is not None:
        photographs = Photographs(folders.photographs, "train", folders.leave_out)
        views = PhotographViews(photographs, backgrounds=folders.backgrounds)
        sources |= {"photographs": views.draw, "photographs_wide": views.wide}
        identity.append(photographs.fingerprint)
    if dataset is not None:
        sources["dataset"] = SampleViews(dataset)
        identity.append(dataset.fingerprint)
    return ViewMixture(config, sources, seed, repr(identity))


def _rendered(
    makers: Sequence[SyntheticViews], kind: Kind, count: int, random: np.random.Generator
) -> HandViews:
    """Views of one kind, of the built-in hand and of each rig in turn."""
    maker = makers[int(random.integers(len(makers)))]
    maker.restart(int(random.integers(SEEDS)), batch=-(-count // maker.options.compositions))
    return maker.draw(count, kind)


def view_credits(folders: ViewFolders, dataset: HandDataset | None = None) -> dict[str, Any]:
    """The collections of a training and their licences, for the checkpoint's metadata."""
    found: dict[str, Any] = {
        "rigs": [path.name for path in folders.rigs],
        "textures": [path.name for path in folders.textures],
        "backgrounds": len(background_files(folders.backgrounds)) if folders.backgrounds else 0,
    }
    if dataset is not None:
        found["dataset"] = f"{dataset.name} {dataset.split}"
    if folders.photographs is not None:
        labels = Photographs(folders.photographs, "train", folders.leave_out).labels
        counts = Counter((label.source, label.licence) for label in labels)
        found["photographs"] = [
            {"source": source, "licence": licence, "photographs": count}
            for (source, licence), count in sorted(counts.items())
        ]
    return found


def _identity(path: Path | None) -> str | None:
    """A digest of a file's contents, or of the names and sizes in a folder and its subfolders.

    Hidden files, which macOS adds to the folders that it shows, are left out.
    """
    if path is None:
        return None
    if path.is_dir():
        files = sorted(file for file in path.rglob("[!.]*") if file.is_file())
        content = repr([(file.relative_to(path).as_posix(), file.stat().st_size) for file in files]).encode()
    else:
        content = path.read_bytes()
    return hashlib.sha256(content).hexdigest()[:16]
