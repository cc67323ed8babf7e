"""Exported networks: ONNX files, programs of torch.export, and the numpy session of the examples."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from nvf_fast import export, ops
from nvf_fast.baselines import build
from nvf_fast.camera import project, reference_intrinsics
from nvf_fast.checkpoint import load_checkpoint, save_checkpoint
from nvf_fast.cli.main import main
from nvf_fast.config import NVFConfig
from nvf_fast.estimator import PoseEstimator, load
from nvf_fast.export import export_checkpoint, exported_functions, query_points, traced, voted_joints
from nvf_fast.hand_pipeline import HandPipeline
from nvf_fast.model import NVF, FieldValues
from nvf_fast.pipeline import QueryOptions
from nvf_fast.pose import JOINT_NAMES, joint_scores
from nvf_fast.runtime.profiling import Profiler
from nvf_fast.synthetic.dataset import SyntheticConfig, SyntheticHands
from nvf_fast.volumes import HandVolume
from tests.hand_cases import hand_network
from tests.reference_cases import SHAPE, reference_network

ROOT = Path(__file__).resolve().parent.parent
CLOSE_MM = 0.01  # 0.0003 mm between ONNX Runtime and the library with some 700 voters; 0.002 mm with 26 000
# All voters count in random networks, whose 26 000 voters fill the frustum. If half of them counted, rounding
# that exchanges two of equal rank would move a joint by up to 0.03 mm.
EVERY = QueryOptions(fraction=1.0)
ROOT_DISTANCE = 340 * 480 / 224  # at which the crop about the wrist is as large as the reference view
PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def need_onnx() -> None:
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"needs the extra export: {', '.join(missing)}")


@pytest.fixture(scope="module")
def default_export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ONNX files of the embedded network, from the command line."""
    need_onnx()
    folder = tmp_path_factory.mktemp("exports") / "default"
    main(["export", "--out", str(folder)])
    return folder


@pytest.fixture(scope="module")
def session_program() -> ModuleType:
    """The example program as a module."""
    need_onnx()
    spec = importlib.util.spec_from_file_location("onnx_session", ROOT / "examples/onnx_session.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def onnx_outputs(folder: Path, name: str, arrays: dict[str, Any]) -> dict[str, np.ndarray]:
    """Run a function of an export by ONNX Runtime."""
    import onnxruntime

    function = json.loads((folder / "interface.json").read_text())["functions"][name]
    session = onnxruntime.InferenceSession(str(folder / function["file"]))
    inputs = {key: np.asarray(arrays[key]) for key in function["inputs"]}
    outputs = session.run(None, inputs)
    assert [output.name for output in session.get_outputs()] == list(function["outputs"])
    for output, variable in zip(outputs, function["outputs"].values(), strict=True):
        sizes = {"batch": len(next(iter(inputs.values())))}
        assert list(output.shape) == [sizes.get(n, n) for n in variable["shape"]]
        assert output.dtype == variable["dtype"]
    return dict(zip(function["outputs"], outputs, strict=True))


def reference_inputs(model: NVF, batch: int) -> tuple[np.ndarray, dict[str, Tensor]]:
    """Images that are reference views already, and the inputs of an exported paper's network for them."""
    size = model.config.input_size
    images = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
    views = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
    inputs = {"images": views, "lattice": query_points(model, 16.0)}
    if model.config.hand_scale:
        inputs["hand_scale"] = torch.linspace(22, 30, batch)
    return images, inputs


def estimated(model: NVF, images: np.ndarray, inputs: dict[str, Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """Joints in the view's frame and numbers of voters by the library's estimator."""
    K = reference_intrinsics(model.config.input_size).numpy()
    root, scale = None, inputs.get("hand_scale")
    if model.config.task == "root-relative":
        root = np.array([[0.0, 0, ROOT_DISTANCE]] * len(images))
    pose = PoseEstimator(model, fraction=EVERY.fraction)(
        images, np.stack([K] * len(images)), None if scale is None else scale.numpy(), root=root
    )
    return pose.joints - (0 if root is None else root[:, None]), pose.voters


@pytest.mark.slow
def test_session_equals_the_library_on_the_included_image(
    default_export: Path, session_program: ModuleType
) -> None:
    network = session_program.HandNetwork(default_export)
    image = np.array(Image.open(ROOT / "nvf_fast/assets/demo.jpg").convert("RGB"))
    truth = json.loads((ROOT / "nvf_fast/assets/demo.json").read_text())
    K = np.array(truth["K"])
    estimator = load(device="cpu")
    fine = np.array([[3.0, 0, 1], [0, 3, 1], [0, 0, 1]])  # three times as fine: views of averaged pixels
    large = image.repeat(3, 0).repeat(3, 1)
    for hand in truth["hands"]:
        box = np.array(hand["box"])
        cases = (image, K, box, None), (image, K, box, hand["side"]), (large, fine @ K, 3 * box + 1, None)
        for case in cases:
            got, expected = network(*case), estimator(case[0], case[1], box=case[2], side=case[3])
            assert got.side == expected.side == hand["side"]
            assert got.voters == expected.voters > 100
            np.testing.assert_allclose(got.joints, expected.joints, atol=CLOSE_MM, rtol=0)
            np.testing.assert_allclose(got.expected_error, expected.expected_error, atol=CLOSE_MM, rtol=0)
            assert got.presence == pytest.approx(float(expected.presence), abs=1e-5)


@pytest.mark.slow
def test_session_equals_the_library_on_rendered_hands(
    default_export: Path, session_program: ModuleType
) -> None:
    network = session_program.HandNetwork(default_export)
    estimator = load(device="cpu")
    hands, valid = SyntheticHands(SyntheticConfig(4)), 0
    for index in range(4):
        image, K, joints = hands[index].image, hands[index].intrinsics, hands[index].joints
        assert joints is not None
        pixels = project(joints.numpy().astype(float), K)
        case = image, K, [*pixels.min(0) - 10, *pixels.max(0) + 10]
        got, expected = network(*case), estimator(*case[:2], box=case[2])
        assert got.side == expected.side and got.voters == expected.voters
        if expected.valid:
            valid += 1
            np.testing.assert_allclose(got.joints, expected.joints, atol=CLOSE_MM, rtol=0)
    assert valid > 1


@pytest.mark.slow
def test_example_prints_joints(default_export: Path, session_program: ModuleType, capsys: Any) -> None:
    image = str(ROOT / "nvf_fast/assets/demo.jpg")
    truth = json.loads((ROOT / "nvf_fast/assets/demo.json").read_text())
    box = [str(value) for value in truth["hands"][0]["box"]]
    arguments = ["onnx_session.py", str(default_export), image, str(truth["K"][0][0]), "--box", *box]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", arguments)
        session_program.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"a {truth['hands'][0]['side']} hand")
    assert [line.split()[0] for line in lines[1:]] == list(JOINT_NAMES)


@pytest.mark.slow
def test_onnx_files_describe_themselves(default_export: Path) -> None:
    import onnx

    _, info = load_checkpoint(None)
    for name in ("encoder", "voting"):
        model = onnx.load(default_export / f"{name}.onnx")
        metadata = {entry.key: entry.value for entry in model.metadata_props}
        assert metadata["sha256"] == info["sha256"]
        assert json.loads(metadata["joint_names"]) == list(JOINT_NAMES)
        assert json.loads(metadata["view"])["size_px"] == 128
        thresholds = json.loads(metadata["thresholds"])
        assert thresholds["presence"] == info["model"]["presence_threshold"]
        assert (thresholds["surface_mm"], thresholds["fraction"], thresholds["ball_mm"]) == (5.0, 0.5, 80.0)
        assert {node.domain for node in model.graph.node} == {""}, "operators of ONNX only"
        assert "K @ xyz" in metadata["camera"] and "127" not in metadata["normalisation"]


@pytest.mark.slow
def test_onnx_of_the_papers_network_equals_the_library(tmp_path: Path) -> None:
    need_onnx()
    model = reference_network(1.0, depth=1)
    save_checkpoint(model, tmp_path / "checkpoint", dtype=torch.float32)
    export_checkpoint(tmp_path / "checkpoint", tmp_path / "onnx", fraction=EVERY.fraction)
    lattice = np.load(tmp_path / "onnx/lattice.npy")
    for batch in (1, 3):
        images, inputs = reference_inputs(model, batch)
        np.testing.assert_array_equal(lattice, inputs["lattice"])
        features = onnx_outputs(tmp_path / "onnx", "encoder", inputs)
        found = onnx_outputs(tmp_path / "onnx", "voting", inputs | features)
        joints, voters = estimated(model, images, inputs)
        assert (found["voters"] == voters).all() and (voters > 1000).all()
        np.testing.assert_allclose(found["joints"], joints, atol=CLOSE_MM, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["camera-space", "root-relative"])
def test_programs_of_the_papers_networks_equal_the_library(task: str) -> None:
    changes = {} if task == "camera-space" else {"hand_scale": False, "scale_optional": False}
    model = reference_network(1.0, depth=1, task=task, **changes).for_inference()
    function = exported_functions(model, EVERY)["voting"]
    program = traced(function)
    assert {name.split(".")[2] for name in program.state_dict} == {"weights", "biases"}, "the field's alone"
    vote = program.module()
    for batch in (1, 3):
        images, inputs = reference_inputs(model, batch)
        with torch.no_grad():
            inputs["features"] = model.encode(inputs["images"])
            joints, scores, counts = vote(*(inputs[key] for key in function.inputs))
        expected, voters = estimated(model, images, inputs)
        assert (counts.numpy() == voters).all() and (voters > 1000).all()
        assert ((scores >= 0) & (scores <= 1)).all()
        np.testing.assert_allclose(joints, expected, atol=CLOSE_MM, rtol=0)


@pytest.mark.slow
def test_saved_programs_of_hand_views_equal_the_library(tmp_path: Path) -> None:
    model = hand_network()
    save_checkpoint(model, tmp_path / "checkpoint", dtype=torch.float32)
    folder = tmp_path / "programs"
    export_checkpoint(tmp_path / "checkpoint", folder, "torch")
    content = {"interface.json": ""}
    encode = torch.export.load(folder / "encoder.pt2", extra_files=content).module()
    vote = torch.export.load(folder / "voting.pt2").module()
    assert content["interface.json"] + "\n" == (folder / "interface.json").read_text()
    assert not any("nvf_fast" in str(node.target) for node in encode.graph.nodes)

    model, lattice = model.for_inference(), torch.from_numpy(np.load(folder / "lattice.npy"))
    pipeline = HandPipeline(model, HandVolume(), QueryOptions(), Profiler(torch.device("cpu")))
    for batch in (1, 3):
        images, slopes = torch.rand(batch, 3, 128, 128) * 2 - 1, torch.linspace(0.15, 0.25, batch)
        with torch.no_grad():
            encoding = model.encode_hands(images, slopes)
            coarse, voted, voters = pipeline.vote(encoding, slopes)
            features, got_coarse, errors, presence, left = encode(images, slopes)
            joints, counts = vote(features, got_coarse, slopes, lattice)
        assert torch.equal(counts, voters.counts.long()) and (counts > 100).all()
        torch.testing.assert_close(got_coarse, coarse, atol=CLOSE_MM, rtol=0)
        torch.testing.assert_close(joints, model.heads.combine(coarse, voted), atol=CLOSE_MM, rtol=0)
        torch.testing.assert_close(errors, encoding.error, atol=CLOSE_MM, rtol=0)
        torch.testing.assert_close(presence, encoding.presence.sigmoid())
        torch.testing.assert_close(left, encoding.left)
    # The field is far from the surface behind the hand: no voter, the coarse joints remain.
    behind = torch.tensor([[2.0, 0.0, 0.0]])
    joints, counts = vote(features, got_coarse, slopes, behind)
    assert counts.eq(0).all() and torch.equal(joints, got_coarse)


@pytest.mark.parametrize("fraction", [1e-6, 0.29, 0.5, 1.0])
def test_the_same_voters_count_as_in_the_operations(fraction: float) -> None:
    random = np.random.default_rng(1)
    points = torch.from_numpy(random.normal(0, 100, (4, 57, 3))).float()
    sdf = torch.from_numpy(random.uniform(-12, 12, (4, 57))).float()
    sdf[1], sdf[2] = torch.inf, 0.0  # no voter; only voters
    sdf[3, 1:] = torch.inf  # a single one
    weight = torch.from_numpy(random.integers(-2, 6, (4, 57, 21)) / 4).float()  # many equal weights
    direction = torch.from_numpy(random.normal(0, 1, (4, 57, 21, 3))).float()
    sdf[3, 0], weight[0, :, 0] = 0.0, -0.5
    joints, scores, voters = voted_joints(
        points, FieldValues(sdf, weight, direction), QueryOptions(surface_mm=5.0, fraction=fraction)
    )

    selection = ops.select_voters(sdf, 5.0, None)
    rows = selection.indices.clamp(min=0)
    votes = torch.cat([weight[..., None], direction], -1)
    chosen = [torch.stack([each[row] for each, row in zip(of, rows, strict=True)]) for of in (points, votes)]
    expected, mean, spread = ops.cast_votes(*chosen, selection.counts, fraction=fraction)
    assert torch.equal(voters, selection.counts.long())
    totals = mean.abs() > 0.05  # a sum of weights near zero amplifies rounding without bound
    assert totals.sum() > 50
    torch.testing.assert_close(joints[totals], expected[totals], atol=1e-3, rtol=1e-5)
    torch.testing.assert_close(scores[totals], joint_scores(mean, spread)[totals], atol=1e-4, rtol=1e-4)
    assert joints[1].isnan().all() and scores[1].eq(0).all()


def test_refuses_what_it_cannot_export(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileExistsError, match="already exists: name a new folder"):
        export_checkpoint(None, tmp_path, "torch")
    with pytest.raises(ValueError, match="format must be one of"):
        export_checkpoint(None, tmp_path / "new", "tflite")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="fraction must be in"):
        export_checkpoint(None, tmp_path / "new", "torch", fraction=0.0)
    save_checkpoint(build(NVFConfig(**SHAPE | {"method": "dense"})), tmp_path / "dense")
    with pytest.raises(ValueError, match="with a field, got a 'dense' baseline"):
        export_checkpoint(tmp_path / "dense", tmp_path / "new", "torch")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(SystemExit) as end:
        main(["export", "--out", str(tmp_path / "new")])
    assert end.value.code == 2
    assert "pip install 'nvf-fast[export]'" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_interrupted_export_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    def fill(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "traced", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export_checkpoint(None, tmp_path / "new", "torch")
    monkeypatch.setattr(export, "traced", fill)
    with pytest.raises(OSError, match=r"No space left on device: '.*/new'"):
        export_checkpoint(None, tmp_path / "new", "torch")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="limits of file sizes")
@pytest.mark.parametrize("format", ["onnx", "torch"])
def test_a_full_disk_is_an_error(tmp_path: Path, format: str) -> None:
    if format == "onnx":
        need_onnx()
    script = """
import resource, sys
from nvf_fast.cli.main import main
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000,) * 2)
main(sys.argv[1:])
"""
    command = [sys.executable, "-c", script, "export", "--format", format, "--out", tmp_path / "full"]
    ended = subprocess.run(command, capture_output=True, text=True)
    error = f"nvf-fast export: {tmp_path / 'full'}: File too large"
    assert (ended.returncode, ended.stderr.strip().splitlines()[-1]) == (2, error)
    assert "Traceback" not in ended.stderr and not list(tmp_path.iterdir())
