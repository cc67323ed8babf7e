"""`nvf-fast info`: describe a checkpoint."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from nvf_fast.cli import user_errors
from nvf_fast.cli.options import Flag, Optional
from nvf_fast.config import NVFConfig

NOT_RECORDED = "not recorded"
METHODS = {"nvf": "neural voting field", "holistic": "Baseline-Holistic", "dense": "Baseline-2D-Dense"}
ENCODERS = {"hourglass": "stacked hourglass", "unet": "U-Net"}


@dataclass(frozen=True)
class Info:
    """Describe a checkpoint in ten lines, after checking its weights."""

    # an embedded checkpoint, a checkpoint folder or a hub id; the embedded one when absent
    checkpoint: Annotated[Optional[str], tyro.conf.Positional] = None
    all: Flag = False  # print config.json instead: configuration, training, sources and scores

    def run(self) -> None:
        from nvf_fast.checkpoint import load_checkpoint, resolve

        with user_errors():
            folder = resolve(self.checkpoint)
            model, info = load_checkpoint(folder)
        if self.all:
            print(json.dumps(info, indent=1))
            return
        parameters = sum(parameter.numel() for parameter in model.parameters())
        lines = {"checkpoint": str(folder), "parameters": f"{parameters:,}"}
        lines |= _summary(model.config, info)
        name = "" if self.checkpoint is None else f" {self.checkpoint}"
        lines["everything else"] = f"nvf-fast info{name} --all"
        width = max(map(len, lines))
        for name, value in lines.items():
            print(f"{name:{width}}  {value}")


def _summary(config: NVFConfig, info: dict[str, Any]) -> dict[str, str]:
    training = info["training"]
    size = f"{config.input_size} x {config.input_size} px"
    view = f"hand view of {size}" if config.view == "hand" else f"reference view of {size}"
    return {
        "sha256": info["sha256"],
        "network": f"{METHODS[config.method]} on a {ENCODERS[config.encoder]}, {view}",
        "task": f"{config.task}, {_hand_scale(config)}",
        "training": _training(training),
        "sources": _sources(training),
        "photographs": _photograph_scores(training),
        "rendered hands": _rendered_scores(training),
    }


def _hand_scale(config: NVFConfig) -> str:
    if config.view == "hand":
        return "a known hand scale multiplies the result"
    if config.hand_scale:
        return f"hand scale {'optional' if config.scale_optional else 'required'}"
    return "without hand scale"


def _training(training: dict[str, Any]) -> str:
    entries = {"preset": "preset {}", "images_seen": "{:,} images", "minutes": "{:.0f} minutes"}
    known = [text.format(training[name]) for name, text in entries.items() if name in training]
    return ", ".join(known) or NOT_RECORDED


def _sources(training: dict[str, Any]) -> str:
    credits = training.get("credits", {})
    photographs = credits.get("photographs", [])
    parts = []
    if photographs:
        count = sum(source["photographs"] for source in photographs)
        parts.append(f"{count:,} photographs of {len(photographs)} sources")
    if credits.get("rigs"):
        parts.append(f"{len(credits['rigs'])} rigged hands")
    if credits.get("backgrounds"):
        parts.append(f"{credits['backgrounds']} backgrounds")
    dataset = training.get("config", {}).get("data", {}).get("dataset")
    return ", ".join(parts) or dataset or NOT_RECORDED


def _photograph_scores(training: dict[str, Any]) -> str:
    recorded = training.get("scores", {})
    scores = recorded.get("photographs", {}).get("all")
    if scores is None:
        return NOT_RECORDED
    groups = " ".join(recorded.get("left_out", ()))
    return (
        f"aligned error {scores['aligned']:.1f} mm in boxes ({scores['photographs']} photographs; "
        f"eval photographs{' --leave-out ' if groups else ''}{groups})"
    )


def _rendered_scores(training: dict[str, Any]) -> str:
    poses = training.get("scores", {}).get("hand views", {}).get("poses")
    if poses is None:
        return NOT_RECORDED
    final = poses["methods"]["final"]
    return (
        f"aligned error {final['aligned']:.1f} mm, camera-space error {final['camera']:.1f} mm "
        f"({poses['hands']:,} hands; eval hand-views)"
    )
