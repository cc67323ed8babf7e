"""Network, field and voting against the authors' release, in float32 on a CPU."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nvf_fast import ops
from nvf_fast.grid import frustum_grid
from nvf_fast.model import NVF

# Spec file, data file, seed of the weights, hand scale in mm (0.4 and -0.2 after normalisation).
CASES = {
    "one stack": ("spec_stack1_scale.json", "public_stack1_scale.npz", 11, 25.0),
    "four stacks": ("spec_stack4_scale.json", "public_stack4_scale_remap.npz", 12, 10.0),
}
# Largest differences measured: features 2e-6, sdf / 50 mm 3e-6, votes 8e-6.
TOLERANCE = 2e-4


@dataclass
class Oracle:
    model: NVF
    data: dict[str, np.ndarray]
    features: Tensor
    hand_scale: Tensor

    def query(self, points: Tensor) -> tuple[Tensor, Tensor]:
        field = self.model.query(self.features, points, self.model.reference_intrinsics, self.hand_scale)
        return field.sdf, torch.cat([field.weight[..., None], field.direction], -1)


@pytest.fixture(scope="module", params=CASES.values(), ids=list(CASES))
def oracle(request: pytest.FixtureRequest, shared_dir: Path) -> Oracle:
    spec_file, data_file, seed, hand_scale = request.param
    folder = shared_dir / "oracle"
    state = _weights_module(folder).synth_state(json.loads((folder / spec_file).read_text()), seed)
    data = dict(np.load(folder / data_file))
    model = NVF.from_authors({name: torch.from_numpy(value) for name, value in state.items()})
    image = torch.from_numpy(data.get("remapped", data["image"])).permute(2, 0, 1)[None]
    with torch.no_grad():
        features = model.requires_grad_(False).encode((image / 255 - 0.5) / 0.5)
    return Oracle(model, data, features, torch.tensor([hand_scale]))


def _weights_module(folder: Path) -> Any:
    spec = importlib.util.spec_from_file_location("oracle_weights", folder / "weights.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_features(oracle: Oracle) -> None:
    channels, rows, columns = oracle.data["feat_idx"].T
    np.testing.assert_allclose(
        oracle.features[0, channels, rows, columns], oracle.data["feat_val"], rtol=0, atol=TOLERANCE
    )
    moments = [oracle.features.mean(), oracle.features.std()]
    np.testing.assert_allclose(moments, oracle.data["feat_mean_std"], rtol=0, atol=TOLERANCE)


def test_field(oracle: Oracle) -> None:
    sdf, votes = oracle.query(torch.from_numpy(oracle.data["q_points"])[None])
    outside = oracle.data["q_sdf"] == 10
    assert 0 < outside.sum() < len(outside)
    np.testing.assert_array_equal(sdf[0].isinf(), outside)
    np.testing.assert_allclose(sdf[0][~outside] / 50, oracle.data["q_sdf"][~outside], rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(votes[0], oracle.data["q_votes"], rtol=0, atol=TOLERANCE)


def test_pose(oracle: Oracle) -> None:
    steps = sorted(int(key[1:3]) for key in oracle.data if key.endswith("_count"))
    assert len(steps) == 2
    for step in steps:
        points = frustum_grid(step)
        assert len(points) == oracle.data[f"g{step}_count"]
        sdf, votes = oracle.query(points)
        for i in (0, 1):
            name = f"g{step}_t{i}"
            surface_mm = 50 * float(oracle.data[f"{name}_thr"])
            indices, counts, _ = ops.select_voters(sdf, surface_mm, capacity=4096)
            assert counts.item() == oracle.data[f"{name}_voters"]
            for fraction in (0.25, 0.5, 0.75, 1.0):
                voters = indices[:, : int(counts)]
                at_voters = points[voters], votes[:, voters[0]], counts
                joints, weight, _ = ops.cast_votes(*at_voters, fraction=fraction)
                errors = (joints[0] - torch.from_numpy(oracle.data[f"{name}_f{fraction}_joints"])).norm(
                    dim=-1
                )
                if fraction == 1:
                    # Untrained vote weights have both signs; where they cancel, a joint divides by nearly 0.
                    errors = errors[weight[0].abs() > 0.05]
                    assert len(errors) > 10
                # Largest measured: median 0.0002 mm, maximum 0.06 mm.
                assert errors.median() < 0.05 and errors.max() < 1, (
                    f"{name}, fraction {fraction}: {errors} mm"
                )
