"""pack_poses: by hand, and the kernel against float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from nvf_fast import ops
from nvf_fast.kernels.pack_poses.reference import pack_poses as reference
from nvf_fast.kernels.pack_poses.triton import pack_poses as kernel
from nvf_fast.pipeline import Results
from tests.kernel_cases import rms

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = [
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),  # voted joints are NaN
    pytest.mark.usefixtures("poisoned_memory"),
]


def arguments(batch: int, joints: int = 21) -> tuple[Any, ...]:
    coarse = 60 * torch.randn(batch, joints, 3, device=DEVICE) + 400
    voted = coarse + 10 * torch.randn_like(coarse)
    voted[1::3] = math.nan
    voted[2::3, -1, 1] = math.inf
    return (
        coarse,
        voted,
        torch.rand(1 + joints, device=DEVICE),
        40 * torch.rand(batch, joints, device=DEVICE),
        3 * torch.randn(batch, device=DEVICE),
        torch.arange(batch, dtype=torch.int32, device=DEVICE),
        torch.arange(batch, device=DEVICE) % 2 == 0,
        torch.arange(batch, device=DEVICE) % 3 == 0,
        2744,
        20.0,
    )


@pytest.mark.parametrize("function", [kernel, reference, ops.pack_poses])
def test_by_hand(function: Any) -> None:
    coarse = torch.tensor([[[0.0, 0, 300], [20, 0, 300]]], device=DEVICE)
    voted = torch.tensor([[[4.0, 8, 300], [40, 8, 300]]], device=DEVICE)
    weight = torch.tensor([0.5, 1.0, 0.0], device=DEVICE)
    rest = (
        torch.tensor([[20.0, 40.0]], device=DEVICE), torch.zeros(1, device=DEVICE),
        torch.tensor([7], dtype=torch.int32, device=DEVICE), torch.tensor([True], device=DEVICE),
        torch.tensor([False], device=DEVICE), 9, 20.0,
    )  # fmt: skip
    packed = function(coarse, voted, weight, *rest)
    results = Results.unpacked(packed.cpu().numpy())
    # The middle lies between (10, 0) and (22, 8), the joints 18 mm before it, as voted, and 10 mm behind.
    assert results.joints[0].tolist() == [[-2, 4, 300], [26, 4, 300]]
    assert results.scores[0].tolist() == pytest.approx([0.5, 0.2])
    assert results.errors[0].tolist() == [20, 40] and results.presence.tolist() == [0.5]
    assert (results.voters, results.points_evaluated, results.left, results.needs_retry) == (
        7,
        9,
        True,
        False,
    )
    packed = function(coarse, voted * math.nan, weight, *rest)
    assert packed[0, :6].tolist() == coarse.flatten().tolist()


@pytest.mark.parametrize(("batch", "joints"), [(1, 21), (7, 21), (3, 5), (2, 64)])
def test_kernel_errs_at_most_twice_as_much_as_pytorch(batch: int, joints: int) -> None:
    given = arguments(batch, joints)
    exact = reference(*(x.double() if getattr(x, "is_floating_point", bool)() else x for x in given))
    # One rounding, in case PyTorch's result is exact.
    limit = max(2 * rms(reference(*given) - exact), torch.finfo(torch.float32).eps * rms(exact))
    assert rms(kernel(*given) - exact) <= limit
    assert torch.equal(kernel(*given)[:, 5 * joints + 1 :].double(), exact[:, 5 * joints + 1 :])


def test_no_views() -> None:
    assert kernel(*arguments(0)).shape == reference(*arguments(0)).shape == (0, 110)


def test_refuses_other_shapes_and_dtypes() -> None:
    given = arguments(2)
    with pytest.raises(ValueError, match=r"pack_poses: voted must be \(2, 21, 3\) mm"):
        ops.pack_poses(given[0], given[1][:1], *given[2:])
    with pytest.raises(TypeError, match=r"pack_poses: voters must be int32"):
        ops.pack_poses(*given[:5], given[5].long(), *given[6:])
