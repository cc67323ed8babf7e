"""An untrained network with the predictions of a trained one, for searches."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from nvf_fast.data.surfaces import MeshHands
from nvf_fast.estimator import PoseEstimator
from nvf_fast.grid import Lattice
from nvf_fast.ops import FieldQuery
from nvf_fast.training.losses import voting_labels

CLAMP_MM = 5.0  # of the distances in training


def teach(estimator: PoseEstimator, hand: MeshHands) -> None:
    """Replace the predictions of an estimator's network, which still computes, by the labels of a hand."""
    pipeline = estimator.runner.pipeline
    assert isinstance(estimator.lattice, Lattice)
    pipeline.query = _TaughtQuery(pipeline.query, estimator.lattice, hand)  # type: ignore[attr-defined]


class _TaughtQuery:
    """`FieldQuery` with computed but replaced results, for single images, within 5 mm of the surface."""

    def __init__(self, query: FieldQuery, lattice: Lattice, hand: MeshHands) -> None:
        self._query, self._lattice = query, lattice
        nodes, joints = lattice.every(1), hand.joints[0]
        points = lattice.points(nodes).cpu()
        close = ((points > joints.amin(0) - 60) & (points < joints.amax(0) + 60)).all(-1)
        points = points[close][None]
        sdf = hand.signed_distance(points).clamp(-CLAMP_MM, CLAMP_MM)
        weight, direction = voting_labels(points, hand.joints, sdf.abs() < CLAMP_MM, nearest=points.shape[1])
        votes = torch.cat([weight[..., None], direction], -1)[0]
        # Two more rows: far from the hand, and out of view.
        self._votes = torch.cat([votes, torch.zeros_like(votes[:2])]).to(lattice.device)
        self._sdf = torch.cat([sdf[0], torch.tensor([CLAMP_MM, torch.inf])]).to(lattice.device)
        self._row_of = torch.full(lattice.visible.shape, len(votes), device=lattice.device)
        self._row_of[lattice.nowhere] += 1
        self._row_of[nodes[close.to(lattice.device)]] = torch.arange(len(votes), device=lattice.device)

    def locate(self, points: Tensor, intrinsics: Tensor, map_size: tuple[int, int]) -> Any:
        rows = self._row_of[self._lattice.nodes(points).view(-1)]
        return self._query.locate(points, intrinsics, map_size), rows

    def project(self, features: Tensor, hand_scale: Tensor | None) -> Any:
        return self._query.project(features, hand_scale)

    def image_maps(self, maps: Any, image: int) -> Any:
        return self._query.image_maps(maps, image)

    def sample(self, maps: Any, places: Any) -> Any:
        places, rows = places
        self._query.sample(maps, places)
        return SimpleNamespace(sdf=self._sdf[rows][None])

    def evaluate(self, maps: Any, places: Any) -> tuple[Tensor, Tensor]:
        places, rows = places
        self._query.evaluate(maps, places)
        return self._sdf[rows][None], self._votes[rows][None]
