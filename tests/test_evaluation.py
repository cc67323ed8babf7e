"""Evaluation: resumable shards, several processes, scores, and reports."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from nvf_fast.data.sample import DamagedImageError, HandSample
from nvf_fast.evaluation import metrics
from nvf_fast.evaluation.dataset_predictions import (
    SETTINGS,
    DatasetPredictions,
    load_predictions,
    save_predictions,
)
from nvf_fast.evaluation.mano_fit import fit_mano
from nvf_fast.evaluation.mean_pose import mean_pose, mean_shape
from nvf_fast.evaluation.predictors import NetworkPredictor, Predictions
from nvf_fast.evaluation.report import report_on, write_report
from nvf_fast.evaluation.run import predict
from nvf_fast.evaluation.scores import rank_correlation, score_predictions, server_scores
from nvf_fast.evaluation.submission import read_submission
from nvf_fast.pose import JOINT_NAMES
from nvf_fast.runtime.store import ResumeError
from tests.dataset_trees import mano
from tests.evaluation_cases import Fixed, Images, predictor
from tests.sampled_hands import sample_hands
from tests.training_cases import free_port, output_of

SMALL = {"batch": 2, "shard": 4}
FALLBACK = np.full((21, 3), 500.0) + 10 * np.arange(63.0).reshape(21, 3)


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    return sample_hands(256, torch.Generator().manual_seed(0)).joints.double().numpy()


@pytest.fixture(scope="module")
def network() -> NetworkPredictor:
    return predictor()


@pytest.fixture(scope="module")
def results(network: NetworkPredictor) -> DatasetPredictions:
    """Predictions on six images; the fourth is damaged."""
    return predict_all(network, Images(6, damaged=(3,)))


def predict_all(*arguments: object, **options: object) -> DatasetPredictions:
    return predict(*arguments, **SMALL | options)  # type: ignore[arg-type]


def assert_same(first: DatasetPredictions, second: DatasetPredictions) -> None:
    """Compare everything but the times."""
    assert (first.ids, first.faults, first.metadata) == (second.ids, second.faults, second.metadata)
    np.testing.assert_array_equal(first.truth, second.truth)
    np.testing.assert_array_equal(first.roots, second.roots)
    assert first.predictions.keys() == second.predictions.keys()
    for setting, predictions in first.predictions.items():
        for name, array in vars(predictions).items():
            np.testing.assert_array_equal(array, getattr(second.predictions[setting], name), err_msg=name)


def test_predictions_equal_the_estimators(network: NetworkPredictor, results: DatasetPredictions) -> None:
    data = Images(6)
    for index in (0, 1, 2, 4, 5):
        sample = data[index]
        for given in (True, False):
            pose = network.estimator(
                sample.image,
                sample.intrinsics,
                sample.hand_scale if given else None,
                None if sample.box is None else sample.box.numpy(),
                sample.side,
            )
            found = results.predictions[SETTINGS[given]]
            assert found.valid[index] and found.voters[index] == pose.voters > 0
            # A single image sums in another order than a batch: measured 2e-4 mm and 2e-9.
            np.testing.assert_allclose(found.joints[index], pose.joints, atol=2e-3)
            np.testing.assert_allclose(found.scores[index], pose.scores, atol=1e-6)
        np.testing.assert_array_equal(results.truth[index], sample.joints)
        np.testing.assert_array_equal(results.roots[index], sample.joints[0])
    given, absent = (results.predictions[setting].joints for setting in SETTINGS.values())
    assert np.abs(given - absent)[0].max() > 1


def test_hand_scales_of_the_data_set_are_not_reported_as_unusual(
    network: NetworkPredictor, recwarn: pytest.WarningsRecorder
) -> None:
    images = Images(2)
    images.joints = images.joints.clone()
    images.joints[:, 10] = images.joints[:, 9] + torch.tensor([0.0, 50.0, 0.0])  # mm
    assert images[0].hand_scale == pytest.approx(50)
    predict_all(network, images)
    assert not [str(each.message) for each in recwarn if "hand_scale" in str(each.message)]


def test_skips_and_records_damaged_images(results: DatasetPredictions) -> None:
    assert results.damaged.tolist() == [False, False, False, True, False, False]
    assert results.faults[3] == "3.png cannot be read" and results.ids[3] == "sample 3"
    found = results.predictions["with_hand_scale"]
    assert not found.valid[3] and np.isnan(found.joints[3]).all() and found.valid.sum() == 5
    with pytest.raises(ValueError, match="none of 2 images can be read"):
        predict(predictor(), Images(2, damaged=(0, 1)))


def test_resumes_an_interrupted_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = Images(10, damaged=(1,))
    readable = [index for index in range(10) if index != 1]
    whole = Fixed(data.joints.numpy())
    in_memory = predict_all(whole, data)
    assert whole.predicted == readable

    class Interrupted(Fixed):
        def __call__(self, samples: list[HandSample], use_scale: bool) -> Predictions:
            if samples[-1].id == "0007":
                raise KeyboardInterrupt
            return super().__call__(samples, use_scale)

    with pytest.raises(KeyboardInterrupt):
        predict(Interrupted(data.joints.numpy()), data, tmp_path, **SMALL)
    assert [path.name[:12] for path in tmp_path.iterdir()] == ["shard-00000-"]
    rest = Fixed(data.joints.numpy())
    assert_same(predict_all(rest, data, tmp_path), in_memory)
    assert rest.predicted == list(range(4, 10))

    # A truncated shard and one with a changed bit are predicted again, with a warning each.
    first, second, _ = sorted(tmp_path.iterdir())
    first.write_bytes(first.read_bytes()[:-100])
    content = bytearray(second.read_bytes())
    content[-30] ^= 1
    second.write_bytes(content)
    again = Fixed(data.joints.numpy())
    assert_same(predict_all(again, data, tmp_path), in_memory)
    assert again.predicted == [index for index in readable if index < 8]
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2 and first.name in messages[0] and second.name in messages[1]
    assert all("the shard is done again" in message for message in messages)
    assert len(list(tmp_path.iterdir())) == 3, "the damaged shards have made way"


@pytest.mark.parametrize("change", ["metadata", "samples", "number of shards", "batch", "method"])
def test_refuses_shards_of_another_run(tmp_path: Path, change: str) -> None:
    data = Images(6)
    method = Fixed(data.joints.numpy())
    predict_all(method, data, tmp_path, {"checkpoint": "aa"})
    metadata, options = {"checkpoint": "aa"}, SMALL
    if change == "metadata":
        metadata, expected = {"checkpoint": "bb"}, "checkpoint was 'aa', now 'bb'"
    elif change == "samples":
        data, expected = Images(5), "samples was 6, now 5"
    elif change == "number of shards":
        data, expected = Images(60), "samples was 6, now 60"
    elif change == "batch":
        options, expected = {"batch": 4, "shard": 4}, "batch was 2, now 4"
    else:
        method.method, expected = "other", "method was 'fixed', now 'other'"
    with pytest.raises(ResumeError, match=re.escape(f"of another run ({expected})")):
        predict(method, data, tmp_path, metadata, **options)


TWO_PROCESSES = """
from nvf_fast.evaluation.dataset_predictions import save_predictions
from nvf_fast.evaluation.run import predict
from tests.evaluation_cases import Fixed, Images, predictor

class Mortal(Fixed):
    def __call__(self, samples, use_scale):
        os.kill(os.getpid(), signal.SIGKILL)

folder, data = Path(sys.argv[1]), Images(10, damaged=(5,))
joints = data.joints.numpy()

def run(rank, name, method):
    with process_group("cpu", 60):
        processes = Processes.joined()
        results = predict(method, data, folder / name, batch=2, shard=4, processes=processes)
    if rank == 0:
        save_predictions(folder / name / "predictions.safetensors", results, with_times=False)

def whole(rank):
    run(rank, "network", predictor())
    method = Fixed(joints)
    run(rank, "fixed", method)
    (folder / f"{rank}.json").write_text(json.dumps(method.predicted))

whole = launch(whole, sys.argv[2])
began = time.monotonic()
killed = launch(lambda rank: run(rank, "killed", [Fixed, Mortal][rank](joints)), sys.argv[3])
seconds = time.monotonic() - began
print(json.dumps([*([ended[rank][0] for rank in (0, 1)] for ended in (whole, killed)), seconds]))
"""


def test_two_processes_equal_one_and_survive_a_crash(tmp_path: Path, network: NetworkPredictor) -> None:
    whole, killed, seconds = json.loads(output_of(TWO_PROCESSES, tmp_path, free_port(), free_port()))
    assert whole == [0, 0]
    predicted = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert predicted == [[0, 1, 2, 3, 8, 9], [4, 6, 7]]
    data = Images(10, damaged=(5,))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for name, method in (("network", network), ("fixed", Fixed(data.joints.numpy()))):
        expected = predict_all(method, data)
        found = (tmp_path / name / "predictions.safetensors").read_bytes()
        assert found == expected.to_bytes(with_times=False), "equal bit for bit"
    torch.set_num_threads(threads)
    assert killed == [1, -9] and seconds < 30  # the survivor does not wait for its 60 s
    rest = Fixed(data.joints.numpy())
    assert_same(predict_all(rest, data, tmp_path / "killed"), expected)
    assert rest.predicted == [4, 6, 7]


def test_one_training_process_evaluates_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    exchange = "torch.distributed.all_gather_object"
    monkeypatch.setattr(exchange, lambda *_: pytest.fail("the others would never come"))
    data = Images(2)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        assert len(predict_all(Fixed(data.joints.numpy()), data)) == 2
    finally:
        torch.distributed.destroy_process_group()


def test_workers_preserve_predictions(network: NetworkPredictor, results: DatasetPredictions) -> None:
    assert_same(predict_all(network, Images(6, damaged=(3,)), workers=1), results)


def test_other_dataset_errors_stop_the_run(network: NetworkPredictor) -> None:
    class Faulty(Images):
        def __getitem__(self, index: int) -> HandSample:
            if index == 2:
                raise RuntimeError("a bug is no damaged image")
            return super().__getitem__(index)

    assert issubclass(DamagedImageError, ValueError)
    with pytest.raises(RuntimeError, match="a bug"):
        predict(network, Faulty(4), **SMALL)


def test_passes_known_hand_scales(network: NetworkPredictor, caplog: pytest.LogCaptureFixture) -> None:
    assert list(predict_all(predictor(scale_optional=False), Images(2)).predictions) == ["with_hand_scale"]
    without = predictor(hand_scale=False, scale_optional=False)
    assert list(predict_all(without, Images(2)).predictions) == ["without_hand_scale"]
    assert caplog.records == []
    assert list(predict_all(network, Images(2, released=False)).predictions) == ["without_hand_scale"]
    assert "evaluating without the hand scale only" in caplog.text
    with pytest.raises(ValueError, match="images, evaluation has no hand scales, and this network"):
        predict(predictor(scale_optional=False), Images(2, released=False))


def test_refuses_shards_of_partial_batches(network: NetworkPredictor) -> None:
    with pytest.raises(ValueError, match="multiple of batch, got 5 and 2"):
        predict(network, Images(6), batch=2, shard=5)


def test_validates_saved_predictions(tmp_path: Path, results: DatasetPredictions) -> None:
    path = tmp_path / "predictions.safetensors"
    save_predictions(path, results)
    found = load_predictions(path)
    assert_same(found, results)
    assert found.times == results.times
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"0004", b"0009"))
    with pytest.raises(ValueError, match="does not match its sha256"):
        load_predictions(path)
    for damaged in (whole[:200], whole[:-1], b"", b"{}" * 100):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="not a complete file of predictions"):
            load_predictions(path)


def test_times_exclude_warm_up_batches(network: NetworkPredictor, results: DatasetPredictions) -> None:
    # Shards of two batches and of one: one batch is the first, and two are the last of a shard.
    data = Images(6)
    times = predict_all(Fixed(data.joints.numpy()), data).times
    assert (times.images, times.staged) == (0, 4)
    assert times.milliseconds == {"without_hand_scale/think": 4.0}
    data = Images(8)
    times = predict_all(Fixed(data.joints.numpy()), data).times
    assert (times.images, times.staged) == (2, 4) and times.seconds.keys() == {"read", "without_hand_scale"}
    stages = [name.split("/")[1] for name in results.times.milliseconds if name.startswith("with_hand")]
    assert {"prepare", "encode", "query", "vote"} <= set(stages)


def test_score_that_follows_the_error_correlates(truth: np.ndarray) -> None:
    joints = truth + 30 * np.random.default_rng(0).standard_normal(truth.shape)
    errors = metrics.joint_errors(joints, truth)
    everyone = np.ones(len(truth), bool)
    result = score_predictions(Predictions(joints, -errors, everyone, everyone), truth, truth[0])
    assert result["score_correlation"] == pytest.approx(-1) == result["frame_score_correlation"]


def test_report_holds_scores_counts_and_conditions(tmp_path: Path) -> None:
    data = Images(8, damaged=(2,))
    joints = data.joints.numpy() + np.array([3.0, 0, -4])
    joints[5] = np.nan
    results = predict_all(Fixed(joints), data)
    report = report_on(results, FALLBACK, {"from": "a test"}, "ho3d-v2")
    files = write_report(tmp_path, report, results, FALLBACK)
    assert {"predictions.safetensors", "report.json", "report.md"} <= {path.name for path in files}
    assert_same(load_predictions(tmp_path / "predictions.safetensors"), results)

    written = json.loads((tmp_path / "report.json").read_text())
    assert written["counts"] == {
        "images": 8, "damaged": 1, "scored": 7, "invalid": {"without_hand_scale": 1}
    }  # fmt: skip
    assert written["context"]["from"] == "a test" and written["context"]["data set"] == "images"
    assert written["damaged"] == {"sample 2": "2.png cannot be read"}
    kept = np.arange(8) != 2
    true = data.joints.double().numpy()[kept]
    completed = np.where(np.isnan(joints), FALLBACK, joints)[kept]
    found = written["settings"]["without_hand_scale"]
    assert found["scores"]["cs_mje"] == pytest.approx(metrics.mpjpe(completed, true), abs=1e-4)
    # Areas count errors below thresholds; errors of 0 up to float32 rounding lie next to one of them.
    expected = server_scores(completed, true, "ho3d-v2")
    assert found["server"].keys() == expected.keys()
    for name, value in expected.items():
        assert found["server"][name] == pytest.approx(value, abs=2e-3 if "auc" in name else 1e-4), name
    assert found["server"]["xyz_mean3d"] == pytest.approx(found["scores"]["cs_mje"])
    # Six predictions are 5 mm off, the seventh is the mean pose.
    errors = metrics.joint_errors(completed, true)
    assert list(found["joints"]) == list(JOINT_NAMES)
    for index, statistics in enumerate(found["joints"].values()):
        assert statistics["mean"] == pytest.approx(errors[:, index].mean(), abs=1e-4)
        assert statistics["median"] == pytest.approx(5, abs=1e-4)
        assert statistics["root_relative_median"] == pytest.approx(0, abs=1e-3)
    curve = written["settings"]["without_hand_scale"]["curves"]["camera space"]
    assert len(curve["pck"]) == len(curve["thresholds"]) == 100 and curve["pck"][-1] == pytest.approx(6 / 7)
    assert curve["auc"] == pytest.approx(found["scores"]["cs_auc"])
    assert written["mean_pose"]["cs_mje"] == pytest.approx(
        metrics.mpjpe(np.broadcast_to(FALLBACK, true.shape), true), abs=1e-4
    )
    text = " ".join((tmp_path / "report.md").read_text().split())
    for line in (
        "8 images, 1 damaged, 7 scored", "1 image(s) without a valid prediction count with the mean pose",
        "| CS-MJE mm |", "| xyz_procrustes_al_mean3d |", "| PINKY_TIP | ", "- from: a test", "2.png cannot",
    ):  # fmt: skip
        assert line in text
    assert "nan" not in text


def test_curves_need_matplotlib(
    tmp_path: Path, results: DatasetPredictions, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = report_on(results, FALLBACK, {})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    write_report(tmp_path, report, results, FALLBACK)
    assert not (tmp_path / "pck.png").exists()
    assert "No pck.png: it needs matplotlib" in (tmp_path / "report.md").read_text()
    monkeypatch.undo()
    pytest.importorskip("matplotlib")
    assert tmp_path / "pck.png" in write_report(tmp_path, report_on(results, FALLBACK, {}), results, FALLBACK)
    assert (tmp_path / "pck.png").read_bytes().startswith(b"\x89PNG")


def test_root_relative_fallback_is_moved_onto_the_true_wrist(tmp_path: Path) -> None:
    data = Images(4)
    joints = data.joints.numpy().copy()
    joints[1] = np.nan
    results = predict_all(Fixed(joints, "root-relative"), data)
    report = report_on(results, FALLBACK, {})
    moved = data.joints.double().numpy()
    moved[1] = FALLBACK - FALLBACK[0] + moved[1, 0]
    expected = metrics.mpjpe(moved, data.joints.double().numpy())
    scores = report["settings"]["without_hand_scale"]["scores"]
    assert scores["rs_mje"] == pytest.approx(expected, abs=1e-4) and "cs_mje" not in scores


def test_writes_only_a_submission_without_released_joints(tmp_path: Path) -> None:
    data = Images(4, damaged=(1,), released=False)
    joints = data.joints.numpy().copy()
    joints[2] = np.nan
    results = predict_all(Fixed(joints), data)
    report = report_on(results, FALLBACK, {}, "freihand")
    assert "settings" not in report and "mean_pose" not in report
    files = write_report(tmp_path, report, results, FALLBACK, "freihand")
    names = [str(path.relative_to(tmp_path)) for path in files]
    assert names == ["predictions.safetensors", "without_hand_scale/pred.zip", "report.json", "report.md"]
    text = (tmp_path / "report.md").read_text()
    assert "No joints are released for this split, so that it has no scores." in text
    assert "## Scores" not in text and "ignore their mesh scores" in text
    submitted, _ = read_submission(tmp_path / "without_hand_scale/pred.zip", "freihand")
    np.testing.assert_allclose(submitted[[0, 3]], joints[[0, 3]], rtol=1e-12)
    np.testing.assert_allclose(submitted[[1, 2]], [FALLBACK, FALLBACK])
    report = report_on(results, FALLBACK, {}, "freihand")
    write_report(tmp_path, report, results, FALLBACK, "freihand", mano())
    again, vertices = read_submission(tmp_path / "without_hand_scale/pred.zip", "freihand")
    np.testing.assert_array_equal(again, submitted)
    # 0.003 mm measured: these joints are no hand's, and rounding to metres moves their fit.
    np.testing.assert_allclose(vertices, fit_mano(mano(), submitted).vertices, rtol=0, atol=0.1)
    assert "vertices are MANO's" in (tmp_path / "report.md").read_text()


def test_mean_pose_has_the_least_error(truth: np.ndarray) -> None:
    best = mean_pose(truth)
    error = metrics.mpjpe(np.broadcast_to(best, truth.shape), truth)
    random = np.random.default_rng(0)
    for size in (0.5, 5.0, 50.0):
        moved = best + size * random.standard_normal(best.shape)
        assert metrics.mpjpe(np.broadcast_to(moved, truth.shape), truth) > error
    assert error < metrics.mpjpe(np.broadcast_to(truth.mean(0), truth.shape), truth)


def test_mean_shape_beats_single_poses_after_alignment(truth: np.ndarray) -> None:
    error = metrics.pa_mpjpe(np.broadcast_to(mean_shape(truth), truth.shape), truth)
    for pose in (*truth[:5], mean_pose(truth)):
        assert metrics.pa_mpjpe(np.broadcast_to(pose, truth.shape), truth) > error


def test_rank_correlation_is_spearmans() -> None:
    stats = pytest.importorskip("scipy.stats")
    random = np.random.default_rng(1)
    first = random.integers(0, 20, 200).astype(float)  # many ties
    second = first + random.standard_normal(200) * 8
    assert rank_correlation(first, second) == pytest.approx(
        stats.spearmanr(first, second).statistic, abs=1e-12
    )
    assert rank_correlation(np.arange(5.0), -np.arange(5.0)) == pytest.approx(-1)
    assert np.isnan(rank_correlation(np.ones(4), np.arange(4.0)))
