"""Types of command-line options that show only informative defaults in their help."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from nvf_fast.cli import check_device, user_errors

if TYPE_CHECKING:
    from nvf_fast.estimator import PoseEstimator

T = TypeVar("T")
Spec = PrimitiveConstructorSpec[Any]
REGISTRY = ConstructorRegistry()  # of tyro, with the rules below


@REGISTRY.primitive_rule
def _optional(option: PrimitiveTypeInfo) -> Spec | None:
    """Read `T | None` as T: tyro's own rule writes {FLOAT FLOAT} in help and markup in errors."""
    kinds = get_args(option.type)
    if tyro.conf.DisallowNone not in option.markers or len(kinds) != 2 or kinds[1] is not NoneType:
        return None
    spec = _spec(kinds[0], option)
    return replace(
        spec,
        instance_from_str=_reader(spec, spec.metavar),
        is_instance=lambda value: value is None or spec.is_instance(value),
        str_from_instance=lambda value: ["None"] if value is None else spec.str_from_instance(value),
    )


@REGISTRY.primitive_rule
def _several(option: PrimitiveTypeInfo) -> Spec | None:
    """Read `tuple[T, ...]` as tyro does, with "T ..." in help instead of "[T [T ...]]"."""
    if option.type_origin is not tuple or get_args(option.type)[1:] != (...,):
        return None
    kind = get_args(option.type)[0]
    one, several = _spec(kind, option), _spec(list[kind], option)  # type: ignore[valid-type]
    metavar = f"{one.metavar} ..."
    return replace(
        several,
        metavar=metavar,
        instance_from_str=lambda texts: tuple(_reader(several, metavar)(texts)),
        is_instance=lambda value: isinstance(value, tuple) and all(map(one.is_instance, value)),
    )


def _spec(kind: Any, option: PrimitiveTypeInfo) -> Spec:
    spec = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(kind, option.markers))
    assert isinstance(spec, PrimitiveConstructorSpec)
    return spec


def _reader(spec: Spec, expected: str) -> Callable[[list[str]], Any]:
    """The spec's function that reads texts, with an error that gives the expected ones."""

    def read(texts: list[str]) -> Any:
        try:
            return spec.instance_from_str(texts)
        except ValueError as error:
            raise ValueError(f"expected {expected}, got {' '.join(texts)}") from error

    return read


def _default_hint(default: str) -> str:
    return "" if default in ("", "None", "False") else f"(default: {default})"


Optional = Annotated[T | None, tyro.conf.DisallowNone, tyro.conf.arg(help_behavior_hint=_default_hint)]
"""An option that may be absent; its help text describes that case."""

Several = Annotated[tuple[T, ...], tyro.conf.arg(help_behavior_hint=_default_hint)]
"""An option of any number of values, by default none."""

Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(help_behavior_hint=_default_hint)]
"""An option without a value, by default off."""


@dataclass(frozen=True)
class NetworkOptions:
    """The network, and how it computes."""

    # an embedded checkpoint, a checkpoint folder or a hub id; the embedded one when absent
    checkpoint: Optional[str] = None
    # device to compute on, for example cpu or cuda:1; by default a GPU if available
    device: Optional[str] = None
    # precision of the network; float16 on a GPU and float32 on a CPU when absent. On an x86 CPU,
    # int8 takes 50 to 70 % of the time.
    precision: Optional[Literal["float32", "float16", "bfloat16", "int8"]] = None

    def estimator(self, **options: Any) -> PoseEstimator:
        """Call `nvf_fast.load` and raise its errors as `UserError`."""
        import torch

        from nvf_fast.estimator import load

        check_device(self.device)
        dtype = None if self.precision is None else getattr(torch, self.precision)
        with user_errors():
            return load(self.checkpoint, device=self.device, dtype=dtype, **options)


@dataclass(frozen=True)
class ViewMaterial:
    """Images and hands for the views of a default network."""

    # for hand views, folder of labelled photographs (docs/datasets.md), whose training split is used
    photographs: Optional[Path] = None
    leave_out: Several[str] = ()  # groups of photographs to exclude
    backgrounds: Optional[Path] = None  # for hand views, folder of images and panoramas behind hands
    rigs: Several[Path] = ()  # for hand views, rigged right hands (glTF) in addition to the built-in one
    textures: Several[Path] = ()  # images of skin for the rigs' texture coordinates
