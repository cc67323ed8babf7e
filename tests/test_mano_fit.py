"""MANO fitted to joints, on a stand-in for the user's file."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from nvf_fast.evaluation.mano_fit import fit_mano, fitted_vertices
from tests.dataset_trees import mano, posed

COUNT = 4


@pytest.fixture(scope="module")
def hands() -> tuple[np.ndarray, np.ndarray]:
    """Vertices and joints of hands in random shapes, poses and orientations, half a metre away."""
    pose, shape = (torch.cat(part) for part in zip(*(posed(seed) for seed in range(COUNT)), strict=True))
    pose[:, :3] *= torch.tensor([[8.0], [15.0], [1.0], [0.0]])  # up to half a turn
    vertices, _ = mano()(pose, shape, flat_hand_mean=False)
    vertices = vertices + torch.tensor([30.0, -80.0, 500.0])
    return vertices.numpy(), mano().regress(vertices, "freihand").numpy()


def distances(first: np.ndarray, second: np.ndarray) -> Any:
    return np.linalg.norm(first - second, axis=-1).mean(-1)


def test_fit_recovers_hands(hands: tuple[np.ndarray, np.ndarray]) -> None:
    vertices, joints = hands
    fit = fit_mano(mano(), joints)
    # The priors leave 0.4 to 0.7 mm on joints; twists and thickness, which joints do not show, 1.8 to 3 mm.
    assert fit.error_mm.max() < 1.0
    assert distances(fit.vertices, vertices).max() < 4.0
    np.testing.assert_allclose(fit.error_mm, distances(fit.joints, joints))
    remade, _ = mano()(torch.tensor(fit.pose), torch.tensor(fit.shape), flat_hand_mean=False)
    np.testing.assert_allclose(remade.numpy() + fit.translation[:, None], fit.vertices, atol=1e-9)
    np.testing.assert_allclose(mano().regress(torch.tensor(fit.vertices), "freihand"), fit.joints, atol=1e-9)


def test_fit_reduces_noise(hands: tuple[np.ndarray, np.ndarray]) -> None:
    _, joints = hands
    noisy = joints + np.random.default_rng(0).normal(0, 5, joints.shape)
    fit = fit_mano(mano(), noisy)
    assert (distances(fit.joints, joints) < 0.7 * distances(noisy, joints)).all()  # 0.5 measured
    assert np.abs(fit.shape).max() < 5 and np.abs(fit.pose[:, 3:]).max() < 2


def test_left_hands_are_mirrored(hands: tuple[np.ndarray, np.ndarray]) -> None:
    right = fit_mano(mano(), hands[1][:1])
    left = fit_mano(mano(), hands[1][:1] * [-1, 1, 1], side="left")
    np.testing.assert_array_equal(left.vertices, right.vertices * [-1, 1, 1])
    np.testing.assert_array_equal(left.pose, right.pose)


def test_fingertips_of_another_data_set(hands: tuple[np.ndarray, np.ndarray]) -> None:
    joints = mano().regress(torch.from_numpy(hands[0]), "ho3d").numpy()
    assert fit_mano(mano(), joints, "ho3d").error_mm.max() < 1.0
    every = list(fitted_vertices(mano(), joints, "ho3d"))
    assert len(every) == COUNT and every[0].shape == (778, 3)


def test_joints_without_a_fit(hands: tuple[np.ndarray, np.ndarray]) -> None:
    for wrong in (hands[1][0], np.full((1, 21, 3), np.nan)):
        with pytest.raises(ValueError, match=r"joints_mm must be \(B, 21, 3\) finite mm"):
            fit_mano(mano(), wrong)
    with pytest.raises(ValueError, match=r"joints_mm must be in mm, .* multiply metres by 1000"):
        fit_mano(mano(), np.random.default_rng(0).uniform(0, 0.2, (1, 21, 3)))
