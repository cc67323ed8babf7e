"""Calibration on views: vote weights, scale of expected errors and presence threshold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from nvf_fast.checkpoint import load_checkpoint, save_checkpoint
from nvf_fast.cli.main import main
from nvf_fast.config import NVFConfig
from nvf_fast.data.hand_views import HandViews
from nvf_fast.model import NVF
from nvf_fast.pose import HandPose
from nvf_fast.synthetic.wide_images import WideHand, WideImage
from nvf_fast.training import calibration
from nvf_fast.training.calibration import ViewPredictions, calibrate, fit_logits, predict_views
from tests.hand_cases import hand_network
from tests.test_hand_losses import views


def sized(count: int) -> HandViews:
    """Return views of the network's input size."""
    drawn = views(count)
    images = np.repeat(np.repeat(drawn.images, 2, 1), 2, 2)
    return replace(drawn, images=images, focal=2 * drawn.focal)


def test_predictions_do_not_depend_on_the_batch_size(monkeypatch: pytest.MonkeyPatch) -> None:
    model, drawn = hand_network(), sized(5)
    whole = predict_views(model, drawn)
    monkeypatch.setattr(calibration, "BATCH", 2)
    for name, value in predict_views(model, drawn)._asdict().items():
        assert len(value) == 5 and value.isfinite().all(), name
        # Batched convolutions sum in another order: measured 2e-4 mm of 400 mm.
        torch.testing.assert_close(value, getattr(whole, name), rtol=1e-4, atol=1e-3)


def test_finds_the_best_combination_on_the_views(monkeypatch: pytest.MonkeyPatch) -> None:
    """Votes are exact for the centre alone; coarse joints are exact for the rest."""
    generator = torch.Generator().manual_seed(0)
    drawn = sized(60)
    joints = torch.from_numpy(drawn.joints)
    shift = 30 * torch.randn(60, 1, 3, generator=generator)
    noise = 10 * torch.randn(60, 21, 3, generator=generator)
    voted = joints + noise - noise.mean(1, keepdim=True)
    predictions = ViewPredictions(
        joints + shift, voted, torch.linspace(0.6, 1, 60), torch.zeros(60), torch.full((60, 21), 8.0)
    )
    # Half of the views are used to fit the logits, which another test covers.
    predictions = ViewPredictions(*(each[1::2] for each in predictions))
    fitted_on: list[HandViews] = []
    monkeypatch.setattr(calibration, "fit_logits", lambda model, *given: fitted_on.extend(given))
    hidden = predictions._replace(presence=torch.linspace(0, 0.5, 30))
    monkeypatch.setattr(
        calibration, "predict_views", lambda model, given: predictions if len(given) == 30 else hidden
    )
    model = hand_network()
    fitted, found = calibrate(model, drawn, sized(4), [])
    assert (fitted_on[0].joints == drawn.joints[::2]).all(), "the other half of the views"
    assert fitted.heads is not None and model.heads is not None
    assert fitted.heads.vote_weight[0] == 1 and (fitted.heads.vote_weight[1:] == 0).all()
    assert found["combined_mm"] < 1e-3 < found["voted_mm"] < found["coarse_mm"]
    assert 0.5 < fitted.config.presence_threshold < 0.6068 and found["lost"] == found["accepted"] == 0
    assert model.config.presence_threshold == hand_network().config.presence_threshold


def test_expected_errors_match_true_ones_on_average(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = sized(40)
    joints = torch.from_numpy(drawn.joints)
    offset = torch.zeros(21, 3)
    offset[:, 0] = torch.linspace(5, 25, 21)
    coarse = joints + offset
    predictions = ViewPredictions(coarse, coarse, torch.ones(40), torch.zeros(40), torch.full((40, 21), 10.0))
    predictions = ViewPredictions(*(each[1::2] for each in predictions))
    monkeypatch.setattr(calibration, "predict_views", lambda model, given: predictions)
    model = hand_network()
    fitted, _ = calibrate(model, drawn, drawn, [])
    assert fitted.heads is not None and model.heads is not None
    factor = (fitted.heads.view.bias - model.heads.view.bias)[3:].exp()
    torch.testing.assert_close(factor, offset[:, 0] / 10, rtol=1e-4, atol=0)
    assert fitted.heads.view.bias[0] == model.heads.view.bias[0]


def test_threshold_accepts_half_a_percent_of_empty_views() -> None:
    shown, hidden = np.linspace(0.2, 1, 801), np.linspace(0, 0.9, 1001)
    threshold, lost, accepted = calibration._threshold(shown, hidden)
    # Five of 1001 views lie above 0.9 * 995.5 / 1000.
    assert accepted == 5 / 1001 and abs(threshold - 0.9 * 0.9955) < 1e-3
    assert abs(lost - (threshold - 0.2) / 0.8) < 2e-3
    # Separable classes: the middle of the gap.
    assert calibration._threshold(np.array([0.8, 0.9]), np.array([0.1, 0.2])) == (0.5, 0.0, 0.0)


HAND = WideHand("right", np.zeros((21, 3), np.float32), np.array([10, 10, 60, 60], np.float32))
ELSEWHERE = replace(HAND, box=np.array([100, 100, 160, 160], np.float32))


def wide_images(count: int, *hands: WideHand) -> list[WideImage]:
    return [WideImage(np.zeros((1, 1, 3), np.uint8), np.eye(3), hands)] * count


def proposed(evidence: np.ndarray, hands: list[WideHand]) -> tuple[HandPose[np.ndarray], np.ndarray]:
    """One proposal in the box of each hand, with evidence (N, 3)."""
    pixels = np.repeat([hand.box.reshape(2, 2) for hand in hands], [1, 20], 1)
    count, valid = np.zeros(len(hands), int), np.ones(len(hands), bool)
    pose = HandPose(np.zeros((len(hands), 21, 3)), pixels, pixels[..., 0], count, valid, count, count)
    return pose, evidence


def test_finding_threshold_accepts_few_false_hands() -> None:
    """Each image shows one hand at equal evidence, and 4 false hands, ever less likely."""

    def propose(image: np.ndarray, intrinsics: np.ndarray) -> tuple[HandPose[np.ndarray], np.ndarray]:
        centres = np.array([0.9, *next(false)])
        evidence = np.stack([np.log(centres / (1 - centres)), 0 * centres, 0 * centres], 1)
        return proposed(evidence, [HAND] + 4 * [ELSEWHERE])

    def score(centre: float) -> float:
        return 1 / (1 + np.exp(-weights[0] * np.log(centre / (1 - centre)) - weights[3]))

    # The best of an image's four false hands, which share a box, is found.
    best = np.linspace(0.99, 0.5, 50)
    false = iter(np.stack([best, best - 0.01, best - 0.02, best - 0.03], 1))
    weights, threshold, recall, false_hands = calibration.fit_finding(propose, wide_images(50, HAND))
    assert weights[0] > 0, "false hands have less likely centres on average"
    # 0.045 of 50 images are 2 false hands: between the second and the third.
    assert threshold == pytest.approx((score(best[1]) + score(best[2])) / 2)
    assert (recall, false_hands) == (0, 2 / 50)
    # One of the equal boxes shows the second hand, and no other is distinct from it.
    false = iter(np.linspace(0.99, 0.5, 8).reshape(2, 4))
    weights, threshold, recall, false_hands = calibration.fit_finding(
        propose, wide_images(2, HAND, ELSEWHERE)
    )
    assert (threshold, recall, false_hands) == (0, 1, 0) and weights == NVFConfig.finding_weights
    assert calibration.fit_finding(propose, []) == (NVFConfig.finding_weights, 0, 0, 0)


def test_expected_errors_distinguish_false_hands() -> None:
    """Centres and presences of hands and false hands are alike, expected errors are not."""
    random = np.random.default_rng(0)

    def propose(image: np.ndarray, intrinsics: np.ndarray) -> tuple[HandPose[np.ndarray], np.ndarray]:
        errors = np.array([30, 150]) * np.exp(0.2 * random.standard_normal(2))
        return proposed(np.stack([*random.standard_normal((2, 2)), np.log(errors)], 1), [HAND, ELSEWHERE])

    weights, threshold, recall, false_hands = calibration.fit_finding(propose, wide_images(40, HAND))
    assert weights[2] < 0 and abs(weights[0]) < 0.2 * abs(weights[2]) and 0 < threshold < 1
    assert recall >= 39 / 40 and false_hands <= 1 / 40


def test_without_voters_the_coarse_joints_stand_for_the_voted_ones() -> None:
    model = hand_network()
    with torch.no_grad():
        model.field.biases[-1][0] = 5.0  # far from the surface everywhere
    found = predict_views(model, sized(2))
    assert found.coarse.isfinite().all() and torch.equal(found.voted, found.coarse)


def test_logits_do_not_follow_the_frequency_of_hands() -> None:
    """Equal images with and without hands leave both probabilities at a half, whichever is more frequent."""
    model, drawn = hand_network(), sized(12)
    drawn.images[:] = drawn.images[:1]
    fit_logits(model, drawn[:2], drawn)
    torch.testing.assert_close(
        predict_views(model, drawn[:2]).presence, torch.full((2,), 0.5), rtol=0, atol=0.02
    )


def test_logits_separate_separable_features() -> None:
    """Hands are bright on the left of the view, mirrored hands on the right; empty views are dark."""
    drawn = sized(24)
    drawn.images[:] = 60 + drawn.images // 16
    shown = replace(drawn, images=drawn.images.copy())
    shown.images[:, 20:100, 10:60] += 120
    model = hand_network()
    fit_logits(model, shown, drawn)
    mirrored = replace(shown, images=np.ascontiguousarray(shown.images[:, :, ::-1]))
    right, left, none = (predict_views(model, views) for views in (shown, mirrored, drawn))
    assert right.presence.min() > 0.5 > none.presence.max() and left.presence.min() > 0.5
    assert left.left.min() > 0.5 > right.left.max()


def test_command_writes_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = hand_network()
    save_checkpoint(model, tmp_path / "trained", {"steps": 3})
    main(
        [
            "calibrate",
            str(tmp_path / "trained"),
            "--out",
            str(tmp_path / "fitted"),
            "--views",
            "8",
            "--wide",
            "1",
        ]
    )
    assert "presence_threshold" in capsys.readouterr().out
    fitted, info = load_checkpoint(tmp_path / "fitted")
    assert isinstance(fitted, NVF) and fitted.heads is not None
    assert info["training"]["steps"] == 3
    for name in ("presence_threshold", "finding_threshold"):
        assert getattr(fitted.config, name) == info["training"]["calibration"][name]
    assert len(fitted.config.finding_weights) == 4
    reference = NVFConfig(input_size=64, stem=8, width=16, stacks=1, depth=1, groups=2, hidden=(8,))
    save_checkpoint(NVF(reference), tmp_path / "paper", {})
    with pytest.raises(SystemExit):
        main(["calibrate", str(tmp_path / "paper"), "--out", str(tmp_path / "fitted")])
    assert "needs a network of hand views" in capsys.readouterr().err
