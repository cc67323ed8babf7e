"""place_hands: by hand, and the kernels against float64."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pytest
import torch

from nvf_fast import ops
from nvf_fast.kernels.place_hands.reference import place_hands as reference
from nvf_fast.kernels.place_hands.triton import place_hands as kernel
from nvf_fast.volumes import HandVolume
from tests.kernel_cases import rms

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Without a GPU kernels run in Triton's interpreter, whose bfloat16 products are wrong.
DTYPES = [torch.float32, torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.cuda)]
FLOAT = torch.finfo(torch.float32)
pytestmark = pytest.mark.usefixtures("poisoned_memory")


class Case(NamedTuple):
    """A number of views, and of an optional mirror image of each; channels, sides and sizes of the layers."""

    batch: int = 2
    paired: bool = True
    channels: int = 20
    side: int = 9
    features: int = 37
    joints: int = 5
    code: int = 11
    biases: int = 70
    step_mm: float = 60.0


CASES = {
    "odd": Case(),
    "one view of the default network": Case(1, False, 64, 32, 64, 21, 128, 597, 16.0),
    "no layer of features, no code": Case(3, True, 70, 12, 0, 21, 0, 9),
    "more tiles than are combined at a time": Case(1, False, 16, 37, 0, 3, 0, 9),
}


def arguments(case: Case, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    rows, lattice = case.batch * (1 + case.paired), HandVolume().lattice(case.step_mm)
    maps = torch.randn(rows, case.channels, case.side, case.side).to(dtype)
    width, code = 3 * case.joints, case.code
    given: dict[str, Any] = {
        "maps": maps.contiguous(memory_format=torch.channels_last),
        "views": torch.randn(rows, 3 + case.joints),
        "slopes": torch.linspace(0.1, 0.4, case.batch),
        "features": [
            torch.randn(case.features, case.channels).to(dtype),
            torch.randn(case.features).to(dtype),
        ],
        "joints": [torch.randn(2 * case.joints, case.channels) / 4, torch.randn(2 * case.joints)],
        "places": torch.linspace(-1, 1, case.side),
        "uv": lattice.uv,
        "depths": lattice.depths,
        "code": [torch.randn(code, width) / 9, torch.randn(code), torch.randn(case.biases, code) / 9],
        "biases": torch.randn(case.biases),
    }
    given |= {} if case.features else {"features": []}
    given |= {} if code else {"code": []}
    moved = {name: each.to(DEVICE) for name, each in given.items() if not isinstance(each, list)}
    lists = {
        name: [part.to(DEVICE) for part in each] for name, each in given.items() if isinstance(each, list)
    }
    return given | moved | lists | {"image_size": 4 * case.side}


def doubled(given: Any) -> Any:
    """The same in float64."""
    if isinstance(given, dict):
        return {name: doubled(value) for name, value in given.items()}
    if isinstance(given, list):
        return [each.double() for each in given]
    return given.double() if isinstance(given, torch.Tensor) else given


@pytest.mark.parametrize("function", [kernel, reference, ops.place_hands])
def test_by_hand(function: Any) -> None:
    """One joint at a peak of the heat; the mirror image is the likelier right hand, and its map is used."""
    maps = torch.zeros(2, 2, 2, 2)
    maps[1, 0, 0, 1], maps[1, 1] = 1e3, 0.5
    given: dict[str, Any] = {
        "maps": maps, "slopes": torch.tensor([0.25]), "views": torch.tensor([[0.0, 5, 2, 0], [0, 4, 1, 9]]),
        "features": [torch.tensor([[0.0, 2.0]]), torch.tensor([1.0])],
        "joints": [torch.eye(2), torch.zeros(2)], "places": torch.tensor([-0.5, 0.75]),
        "uv": torch.tensor([[0.5, -1.0]]), "depths": torch.tensor([10.0]),
        "code": [], "biases": torch.tensor([7.0]),
    }  # fmt: skip
    given = {
        name: [each.to(DEVICE) for each in value] if isinstance(value, list) else value.to(DEVICE)
        for name, value in given.items()
    }
    found = ops.PlacedHands(*function(**given, image_size=8))
    depth = 1.7 * 4 / 0.25 + 60 * 0.5
    expected = {
        "features": [2, 2, 2, 2], "errors": [30 * math.exp(4)], "presence": [4], "left": [1],
        "coarse": [0.75 * 0.25 * depth, -0.5 * 0.25 * depth, depth], "biases": [7.0],
        "points": [0.5 * 0.25 * (depth + 10), -0.25 * (depth + 10), depth + 10],
        "centres": [0.75 * 0.25 * depth, -0.5 * 0.25 * depth, depth],
        "intrinsics": [16, 0, 4, 0, 16, 4, 0, 0, 1],
    }  # fmt: skip
    for name, value in found._asdict().items():
        torch.testing.assert_close(
            value.flatten().float().cpu(), torch.tensor(expected[name], dtype=torch.float32)
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_kernels_err_at_most_twice_as_much_as_pytorch(case: Case, dtype: torch.dtype) -> None:
    given = arguments(case, dtype)
    exact, found, by_torch = (
        ops.PlacedHands(*function(**inputs))
        for function, inputs in ((reference, doubled(given)), (kernel, given), (reference, given))
    )
    for name, right in exact._asdict().items():
        own, value = getattr(found, name), getattr(by_torch, name)
        assert own.dtype == value.dtype and own.shape == right.shape, name
        right, own, value = (each.double() for each in (right, own, value))
        # All joints of a view share its scale, an exponential, a product and a quotient, whose few roundings
        # may cancel in PyTorch's result; the kernel errs by 1.7 eps at most over six seeds.
        assert rms(own - right) <= max(2 * rms(value - right), 4 * FLOAT.eps * rms(right)), name
    assert found.features.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("function", [kernel, reference])
@pytest.mark.parametrize("logit", [2.0, math.nan])
def test_of_equally_likely_sides_the_view_is_used(function: Any, logit: float) -> None:
    """Also if the logits cannot be compared."""
    given = arguments(CASES["odd"])
    given["views"][:, 2] = logit
    alone = given | {name: given[name][:2] for name in ("maps", "views")}
    found, expected = (ops.PlacedHands(*function(**each)) for each in (given, alone))
    assert not found.left.any()
    assert torch.equal(found.features, expected.features) and torch.equal(found.coarse, expected.coarse)


@pytest.mark.parametrize("name", ["views", "maps"])
def test_keeps_nan(name: str) -> None:
    """In the outputs of one view, or in a texel of its map."""
    given = arguments(CASES["more tiles than are combined at a time"]._replace(batch=2, code=11))
    if name == "views":
        given["views"][1] = math.nan
    else:
        given["maps"][1, 3, 30, 2] = math.nan
    found, expected = (ops.PlacedHands(*function(**given)) for function in (kernel, reference))
    for own, right in zip(found, expected, strict=True):
        assert torch.equal(own.isnan(), right.isnan())
    assert (
        found.coarse[1].isnan().all() and found.biases[1].isnan().all() and not found.coarse[0].isnan().any()
    )


def test_other_layouts_and_no_views() -> None:
    given = arguments(CASES["odd"])
    expected = kernel(**given)
    others = given | {"maps": given["maps"].contiguous(), "views": torch.cat([given["views"]] * 2, 1)[:, :8]}
    assert all(torch.equal(*pair) for pair in zip(kernel(**others), expected, strict=True))
    none = given | {name: given[name][:0] for name in ("maps", "views", "slopes")}
    for function in (kernel, ops.place_hands):
        assert [each.shape for each in function(**none)] == [(0, *each.shape[1:]) for each in expected]


def test_refuses_other_shapes_and_dtypes() -> None:
    given = arguments(CASES["odd"])
    for name, value, error, message in (
        (
            "maps",
            given["maps"][:3],
            ValueError,
            r"maps must be square, 2 or twice as many, got \(3, 20, 9, 9\)",
        ),
        ("views", given["views"][:, :7], ValueError, r"views must be \(4, 8\), got \(4, 7\)"),
        ("code", given["code"][:2], ValueError, "code 0 or 3, got 2, 2 and 2"),
        ("biases", given["biases"].half(), TypeError, "biases must be float32, got torch.float16"),
    ):
        with pytest.raises(error, match=f"place_hands: .*{message}"):
            ops.place_hands(**given | {name: value})
