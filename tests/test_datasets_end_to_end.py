"""Training and evaluation from the command line on every data set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import pytest

from nvf_fast.baselines import build
from nvf_fast.checkpoint import load_checkpoint, save_checkpoint
from nvf_fast.cli.main import main
from nvf_fast.config import Method, NVFConfig
from nvf_fast.synthetic import dataset
from nvf_fast.synthetic.dataset import SyntheticHands
from tests.photograph_cases import photograph_labels, write_photographs

TINY = {
    "model.stem": 8, "model.width": 16, "model.stacks": 1, "model.groups": 4, "model.input-size": 32,
    "sampling.surface": 60, "sampling.sphere": 10, "sampling.frustum": 10,
    "sampling.inside": 20, "sampling.outside": 20,
    "optimisation.epochs": 1, "optimisation.batch": 2, "optimisation.parts": 2, "log-every": 1,
}  # fmt: skip


def options(**values: object) -> list[str]:
    return [part for name, value in values.items() for part in (f"--{name.replace('_', '-')}", str(value))]


def train(preset: str, out: Path, *more: str) -> dict:
    """Train for one epoch; fine-tuning without an initial checkpoint begins from random weights."""
    if "finetune" in preset and "--initial" not in more:
        method = cast(Method, more[more.index("--model.method") + 1] if "--model.method" in more else "nvf")
        network = NVFConfig(
            input_size=32, stem=8, width=16, stacks=1, groups=4, hidden=(32, 16), hand_scale=False,
            task="root-relative", method=method,
        )  # fmt: skip
        save_checkpoint(build(network), out / "initial", {})
        more = (*more, *options(initial=out / "initial"))
    numbers = [part for name, value in TINY.items() for part in (f"--{name}", str(value))]
    main(["train", preset, "--out", str(out), *numbers, "--model.hidden", "32", "16", *more])
    model, info = load_checkpoint(out / "checkpoint")
    assert model.config.width == 16 and info["training"]["preset"] == preset.replace("-", "_")
    return info["training"]


@pytest.mark.slow
def test_pre_training_fine_tuning_and_evaluation(trees: Path, tmp_path: Path) -> None:
    mano = options(mano=trees / "MANO_RIGHT.pkl")
    freihand = options(data=trees / "freihand", evaluation_data=trees / "freihand_eval")
    relative = train("relative-freihand", tmp_path / "relative", *mano, *options(data=trees / "freihand"))
    assert relative["config"]["losses"]["vote_weight"] == 10
    tuned = train(
        "camera-space-finetune", tmp_path / "tuned", *mano, *freihand, "--model.hand-scale",
        *options(initial=tmp_path / "relative/checkpoint", workers=1), "--evaluate-every", "1",
    )  # fmt: skip
    assert tuned["started_from"]["preset"] == "relative_freihand"
    lines = [json.loads(line) for line in (tmp_path / "tuned/log.jsonl").read_text().splitlines()]
    assert lines[-1]["evaluation"]["with_hand_scale_invalid"] >= 0
    checkpoint = options(checkpoint=tmp_path / "tuned/checkpoint", out=tmp_path / "report")
    main(["eval", "freihand", *freihand, *checkpoint])
    report = json.loads((tmp_path / "report/report.json").read_text())
    assert report["counts"]["scored"] > 0
    assert (tmp_path / "report/with_hand_scale/pred.zip").exists()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["nvf", "dense"])
def test_root_relative_on_ho3d(trees: Path, tmp_path: Path, method: str) -> None:
    mano = options(mano=trees / "MANO_RIGHT.pkl")
    train(
        "relative-ho3d-finetune",
        tmp_path / "run",
        *mano,
        *options(data=trees / "v2"),
        "--model.method",
        method,
    )
    main(
        [
            "eval",
            "ho3d",
            *options(data=trees / "v2", checkpoint=tmp_path / "run/checkpoint", out=tmp_path / "report"),
        ]
    )
    scores = json.loads((tmp_path / "report/report.json").read_text())["settings"]["without_hand_scale"][
        "scores"
    ]
    assert {"mje", "auc", "rs_mje"} <= scores.keys() and "cs_mje" not in scores


@pytest.mark.slow
def test_complement_and_v3_train(trees: Path, tmp_path: Path) -> None:
    mano = options(mano=trees / "MANO_RIGHT.pkl")
    train("relative-complement", tmp_path / "complement", *mano, *options(data=trees / "complement"))
    v3 = ("--data.ho3d-version", "v3", *options(data=trees / "v3"))
    train("relative-ho3d-finetune", tmp_path / "v3", *mano, *v3)


@pytest.mark.slow
def test_photographs_continue_the_embedded_network(tmp_path: Path) -> None:
    photographs = write_photographs(tmp_path / "photographs", photograph_labels(8))
    sizes = {"optimisation.batch": 2, "optimisation.parts": 1, "optimisation.steps": 1}
    more = [part for name, value in sizes.items() for part in (f"--{name}", str(value))]
    places = options(photographs=photographs, out=tmp_path / "run", initial="default")
    main(["train", "default", *places, *more])
    started_from = load_checkpoint(tmp_path / "run/checkpoint")[1]["training"]["started_from"]
    assert started_from["images_seen"] == load_checkpoint("default")[1]["training"]["images_seen"]
    few = options(photographs=photographs, out=tmp_path / "calibrated", views=8, wide=1)
    main(["calibrate", "default", *few])
    assert "calibration" in load_checkpoint(tmp_path / "calibrated")[1]["training"]


def test_synthetic_images_are_rendered_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rendered: list[int] = []
    make = SyntheticHands._make_chunk
    monkeypatch.setattr(SyntheticHands, "_make_chunk", lambda *args: rendered.append(args[1]) or make(*args))
    monkeypatch.setattr(dataset, "CHUNK", 2)
    monkeypatch.setattr("os.cpu_count", lambda: 1)  # renders in this process
    more = [
        "--optimisation.steps",
        "None",
        "--evaluate-every",
        "0",
        "--data.synthetic.count",
        "6",
        "--model.depth",
        "2",
    ]
    train("small", tmp_path / "run", *more, "--minutes", "0")
    assert rendered == [0, 1, 2]
    assert len(list((tmp_path / "run/cache").rglob("*.safetensors"))) == 3
    resumed = train("small", tmp_path / "run", *more)
    assert resumed["steps"] == 3 and rendered == [0, 1, 2]
    train("small", tmp_path / "other", *more, "--minutes", "0", "--data-cache", str(tmp_path / "cache"))
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 3
    assert not (tmp_path / "other/cache").exists()


def test_refuses_data_without_surfaces(
    trees: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for preset, more, message in (
        ("camera-space", [], "the data set 'freihand' needs its folder (--data)"),
        ("small", options(data=trees), "the data set 'synthetic' is made on demand and has no folder"),
        ("camera-space", options(data=trees / "freihand"), "'nvf' learns from surfaces"),
        ("camera-space", options(data=trees / "v2"), "FreiHAND in"),
        ("default", ["--data.dataset", "ho3d"], "the data set 'ho3d' needs its folder (--data)"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["train", preset, "--out", str(tmp_path / "run"), *more])
        assert ended.value.code == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("preset", "given", "message"),
    [
        ("camera-space", {"augmentation.scale-dropout": 0.5}, "scale_dropout needs a model with hand_scale"),
        ("camera-space", {"replay.uses": 4}, "only hand views are reused, got replay.uses = 4"),
        (
            "default",
            {"model.input-size": 64},
            "hand views have 128 px: model.input_size must be that, got 64",
        ),
        ("small", {"threads": 0}, "threads must lie in [1, inf), got 0"),
        ("small", {"workers": -1}, "workers must lie in [0, inf), got -1"),
        ("small", {"minutes": "nan"}, "minutes must lie in [0, inf), got nan"),
        ("small", {"timeout_s": 0}, "timeout_s must lie in (0, inf), got 0"),
        ("small", {"photographs": "photographs"}, "only networks of hand views train on photographs, this"),
        (
            "camera-space",
            {"leave_out": "a", "textures": "b.png"},
            "train on leave_out, textures, this one",
        ),
        ("camera-space-finetune", {}, "continues a pre-training: give its checkpoint as --initial"),
        ("relative-ho3d-finetune", {}, "continues a pre-training: give its checkpoint as --initial"),
    ],
)
def test_refuses_options_that_do_not_fit(
    preset: str, given: dict, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["train", preset, "--out", str(tmp_path / "run"), *options(**given)])
    printed = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert ended.value.code == 2 and message in printed
    assert not (tmp_path / "run").exists()
