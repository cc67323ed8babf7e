"""Mutated files of every format, read in children with a memory limit."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from nvf_fast.checkpoint import load_checkpoint, save_checkpoint
from nvf_fast.cli import UserError
from nvf_fast.cli.cameras import CameraOptions
from nvf_fast.cli.predict import Predict
from nvf_fast.cli.records import RecordWriter
from nvf_fast.data.complement import Complement
from nvf_fast.data.faults import DatasetError
from nvf_fast.data.freihand import FreiHAND
from nvf_fast.data.ho3d import HO3D
from nvf_fast.data.mano import Mano
from nvf_fast.data.photographs import Photographs
from nvf_fast.data.sample import DamagedImageError
from nvf_fast.evaluation.dataset_predictions import load_predictions, save_predictions
from nvf_fast.evaluation.run import predict
from nvf_fast.evaluation.submission import read_submission, write_submission
from nvf_fast.image_files import exif_focal, read_depth, read_image
from nvf_fast.reproduce.inputs import read_photographs, read_predictions
from nvf_fast.runtime import autotuning
from nvf_fast.runtime.store import ResumeError, Store
from nvf_fast.synthetic.rig import load_rig
from nvf_fast.training.log import forget_after
from nvf_fast.video import VideoWriter, read_frames
from tests import dataset_trees, photograph_cases, test_glb
from tests.evaluation_cases import Fixed, Images
from tests.faults.children import Child, more_memory
from tests.faults.promises import Outcome, Promise
from tests.reference_cases import reference_network

MEMORY = 1 << 30  # bytes beyond those of the imports
BATCH = 25  # cases of one child
TOKENS = (
    b"null", b"NaN", b"-1", b"1e999", b"9" * 400, b'"a"', b"[]", b"{}", b"[" * 3000, b'"\\ud800"', b"\0" * 64,
    b"\xff" * 64, b"true", b"0", b"\n", b'{"K": 1}', b"../", b"\x80\x04", b"(" * 200,
)  # fmt: skip


@dataclass(frozen=True)
class Reader:
    """A function of a folder, files in it to mutate, and the documented exceptions."""

    read: Callable[[Path], object]
    files: tuple[str, ...]
    errors: tuple[type[Exception], ...]


def mutated(content: bytes, random: random.Random) -> bytes:
    """Content with one to four changes: flipped, removed, doubled or foreign bytes, or cut off."""
    for _ in range(random.choice((1, 1, 2, 4))):
        at = random.randrange(len(content) + 1)
        end = min(len(content), at + random.choice((1, 1, 2, 8, 64, 1000)))
        change = random.randrange(6)
        if change == 0:
            content = content[:at]
        elif change == 1:
            content = content[:at] + content[end:]
        elif change == 2:
            content = content[:end] + content[at:]
        elif change == 3:
            content = content[:at] + random.choice(TOKENS) + content[end:]
        elif at < len(content):
            byte = random.choice((content[at] ^ 1 << random.randrange(8), random.randrange(256), 0, 255))
            content = content[:at] + bytes([byte]) + content[at + 1 :]
    return content


def tried(count: int, seed: int = 0) -> Outcome:
    """Read mutated files, as often with each reader."""
    outcome = Outcome()
    with tempfile.TemporaryDirectory() as place:
        readers = make_readers(Path(place))
        for name, reader in readers.items():
            folder, each = Path(place) / name, -(-count // len(readers))
            for start in range(0, each, BATCH):
                _read_batch(name, reader, folder, range(start, min(start + BATCH, each)), seed, outcome)
    return outcome


def _read_batch(name: str, reader: Reader, folder: Path, cases: range, seed: int, outcome: Outcome) -> None:
    """Read some cases in a child; where it crashes, the cases after the crash in another."""
    while cases:
        with tempfile.TemporaryDirectory() as place:
            noted = Path(place) / "noted"
            child = Child(partial(_read_cases, name, reader, folder, cases, seed, noted), more_memory(MEMORY))
            status = child.wait(limit=300)
            lines = noted.read_text().splitlines() if noted.exists() else []
        for line in lines:
            number, failure = json.loads(line)
            outcome.check(failure is None, f"{name}, case {number}: {failure}")
        if status == 0:
            return
        crashed = cases[len(lines)] if len(lines) < len(cases) else cases[-1]
        cause = signal.Signals(-status).name if status < 0 else f"status {status}"
        outcome.check(False, f"{name}, case {crashed}: the process ended by {cause}: {child.output()[-300:]}")
        cases = range(crashed + 1, cases.stop)


def _read_cases(name: str, reader: Reader, folder: Path, cases: range, seed: int, noted: Path) -> int:
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as place, noted.open("w") as lines:
        for case in cases:
            draw = random.Random(f"{seed} {name} {case}")
            copy = Path(place) / f"case{case}"
            shutil.copytree(folder, copy)
            file = copy / draw.choice(reader.files)
            file.write_bytes(mutated(file.read_bytes(), draw))
            lines.write(json.dumps([case, _fault_of(reader, copy, file)]) + "\n")
            lines.flush()
            shutil.rmtree(copy)
    return 0


def _fault_of(reader: Reader, folder: Path, file: Path) -> str | None:
    """The fault of a reader: an undocumented error, or one that does not name the file."""
    try:
        reader.read(folder)
    except reader.errors as error:
        text = f"{error} {getattr(error, 'filename', '')}"
        named = any(part in text for part in (file.name, file.stem, str(file.parent)))
        return None if named else f"{type(error).__name__} does not name the file: {text[:200]}"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    return None


def make_readers(place: Path) -> dict[str, Reader]:
    """Readers of all formats, and a folder of sound files for each."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    photograph, readers = Image.fromarray(pixels), dict[str, Reader]()

    def add(
        name: str, read: Callable[[Path], object], files: tuple[str, ...], *errors: type[Exception]
    ) -> Path:
        folder = place / name
        folder.mkdir()
        readers[name] = Reader(read, files, errors)
        return folder

    Image.init()
    for suffix in ("jpg", "png", "webp", "tiff", "bmp", "gif", "ppm", "avif", "jp2"):
        if Image.registered_extensions()[f".{suffix}"] in Image.SAVE:
            folder = add(f"images {suffix}", _image(suffix), (f"image.{suffix}",), OSError, ValueError)
            exif = Image.Exif()
            exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.FocalLengthIn35mmFilm] = 28
            options = {"exif": exif} if suffix in ("jpg", "png", "webp", "avif") else {}
            photograph.save(folder / f"image.{suffix}", **options)
    for suffix, kind in (("png", np.uint16), ("tiff", np.float32)):
        folder = add(f"depth {suffix}", _depth(suffix), (f"image.{suffix}",), OSError, ValueError)
        Image.fromarray(pixels[..., 0].astype(kind)).save(folder / f"image.{suffix}")
    folder = add("checkpoint", load_checkpoint, ("config.json", "weights.safetensors"), OSError, ValueError)
    save_checkpoint(reference_network(stem=8, width=16), folder)
    folder = add("intrinsics", _intrinsics, ("cameras.json",), UserError)
    K = [[500.0, 0, 16], [0, 500.0, 12], [0, 0, 1]]
    entry = {"K": K, "size": [32, 24], "distortion": [0.1, -0.2, 0, 0, 0.1], "model": "plumb_bob"}
    (folder / "cameras.json").write_text(json.dumps({"a.png": entry, "b.png": K}))
    folder = add("boxes", _boxes, ("boxes.json",), UserError)
    (folder / "boxes.json").write_text(json.dumps({"a.png": [{"box": [1, 2, 30, 40], "side": "left"}]}))
    for suffix in ("jsonl", "json"):
        folder = add(f"records {suffix}", _records(suffix), (f"out.{suffix}",), UserError)
        with RecordWriter(folder / f"out.{suffix}", "s", {"joint_names": []}) as records:
            for image in "abc":
                records.write(records.line({"image": image, "hands": []}))
    folder = add("training log", _log, ("log.jsonl",), OSError)
    (folder / "log.jsonl").write_text("".join(json.dumps({"step": step}) + "\n" for step in range(9)))
    folder = add("training state", _state, ("state.pt",), ResumeError)
    (folder / "state.pt").write_bytes(os.urandom(500))
    folder = add("tilings", _tilings, ("tilings.json",))
    (folder / "tilings.json").write_text(json.dumps({"a device": [16, 32, 32, 4, 2]}))
    folder = add("predictions", _predictions, ("some.safetensors",), ValueError)
    joints = np.random.default_rng(1).normal(size=(3, 21, 3)) * 50 + [0, 0, 500]
    save_predictions(folder / "some.safetensors", predict(Fixed(joints), Images(3)))
    folder = add("submission", _submission, ("pred.zip",), OSError, ValueError)
    write_submission(folder / "pred.zip", joints, "freihand", official=False)
    folder = add("predictions of others", _others, ("pred.json",), OSError, ValueError)
    meshes = np.zeros((3, 778, 3))
    (folder / "pred.json").write_text(json.dumps([(joints / 1000).tolist(), meshes.tolist()]))
    folder = add(
        "photographs of figures", read_photographs, ("intrinsics.json", "a.png"), OSError, ValueError
    )
    photograph.save(folder / "a.png")
    (folder / "intrinsics.json").write_text(json.dumps({"a.png": {"K": K, "box": [1, 2, 30, 20]}}))
    folder = add("labelled photographs", _labelled, ("labels.json",), DatasetError, DamagedImageError)
    photograph_cases.write_photographs(folder, photograph_cases.photograph_labels(2))
    folder = add("rigged hand", lambda each: load_rig(each / "hand.glb"), ("hand.glb",), DatasetError)
    test_glb.glb(test_glb.source()).save(folder / "hand.glb")
    if find_spec("av"):
        folder = add("video", lambda each: list(read_frames(each / "clip.mp4")), ("clip.mp4",), OSError)
        with VideoWriter(folder / "clip.mp4") as video:
            for time in range(3):
                video.write(pixels, time)
    _add_data_sets(place, add)
    return readers


def _add_data_sets(place: Path, add: Any) -> None:
    trees = place / "trees"
    trees.mkdir()
    dataset_trees.write_trees(trees)
    folder = add("MANO", lambda each: Mano.load(each / "MANO_RIGHT.pkl"), ("MANO_RIGHT.pkl",), DatasetError)
    shutil.copy(trees / "MANO_RIGHT.pkl", folder)
    mano = dataset_trees.mano()
    errors = DatasetError, DamagedImageError
    sets: dict[str, tuple[str, Callable[[Path], Any]]] = {
        "FreiHAND": ("freihand", lambda each: FreiHAND(each / "freihand", cache=each / "cache")),
        "HO-3D": ("v2", lambda each: HO3D(each / "v2", mano=mano)),
        "HO-3D evaluation": ("v2", lambda each: HO3D(each / "v2", "evaluation")),
        "Complement": ("complement", lambda each: Complement(each / "complement", mano)),
    }
    for name, (tree, open_set) in sets.items():
        files = [path for path in sorted((trees / tree).rglob("*")) if path.is_file()]
        if name == "HO-3D":
            files = [path for path in files if "evaluation" not in str(path.relative_to(trees))]
        kinds = {path.suffix: [other for other in files if other.suffix == path.suffix] for path in files}
        chosen = [str(path.relative_to(trees)) for each in kinds.values() for path in each[:3]]
        folder = add(name, partial(_samples, open_set), tuple(chosen), *errors)
        shutil.copytree(trees / tree, folder / tree)
    shutil.rmtree(trees)


def _samples(open_set: Callable[[Path], Any], folder: Path) -> None:
    data = open_set(folder)
    for index in range(len(data)):
        data[index]


def _image(suffix: str) -> Callable[[Path], object]:
    return lambda folder: (exif_focal(folder / f"image.{suffix}"), read_image(folder / f"image.{suffix}"))


def _depth(suffix: str) -> Callable[[Path], object]:
    return lambda folder: read_depth(folder / f"image.{suffix}")


def _intrinsics(folder: Path) -> None:
    images = [Path("a.png"), Path("b.png")]
    for image in images:
        options = CameraOptions(intrinsics=folder / "cameras.json")
        options.check(images)
        options.of(image, 24, 32)


def _boxes(folder: Path) -> None:
    options = Predict((Path("a.png"),), boxes=folder / "boxes.json")
    listed = options._read_boxes()
    assert listed is not None
    options._listed(Path("a.png"), listed)


def _records(suffix: str) -> Callable[[Path], object]:
    def read(folder: Path) -> None:
        with RecordWriter(folder / f"out.{suffix}", "s", {}) as records:
            records.write(records.line({"image": "d"}))

    return read


def _log(folder: Path) -> None:
    forget_after(folder, 5)
    assert all(json.loads(line)["step"] <= 5 for line in (folder / "log.jsonl").read_text().splitlines())


def _state(folder: Path) -> None:
    """Damage the newest of two states, or both."""
    store = Store(folder, "state", ".pt")
    for content in (b"old", b"new"):
        store.write(content)
    newest = max(folder.glob("state-*.pt"))
    damage = (folder / "state.pt").read_bytes()
    newest.write_bytes(damage)
    record = Store(folder, "state", ".pt").newest()
    assert record is not None and record.content == b"old" and record.damaged == [newest.name]
    for path in folder.glob("state-*.pt"):
        path.write_bytes(damage)
    Store(folder, "state", ".pt").newest()


def _tilings(folder: Path) -> None:
    autotuning.CACHE = folder / "tilings.json"
    autotuning._read()


def _predictions(folder: Path) -> None:
    load_predictions(folder / "some.safetensors")


def _submission(folder: Path) -> None:
    read_submission(folder / "pred.zip", "freihand")


def _others(folder: Path) -> None:
    read_predictions(folder / "pred.json", 3)


def _labelled(folder: Path) -> None:
    _samples(lambda each: Photographs(each, "all"), folder)


PROMISES = [
    Promise(
        "Any bytes in any file that is read end in a result or in a documented error that names the file",
        tried, long=5000, short=35,
    )
]  # fmt: skip
