"""The configuration of the network: every number that shapes it, named."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

Method = Literal["nvf", "holistic", "dense"]
Task = Literal["camera-space", "root-relative"]


@dataclass(frozen=True)
class NVFConfig:
    """Shape of an NVF network; the defaults are the released one (Sec. 4.1).

    Args:
        input_size: px, side of the square reference view that the encoder sees.
        stem: channels after the first convolution.
        width: channels of the hourglasses and of `features`.
        widen: channels added per hourglass level going down; 0 as released.
        stacks: number of hourglasses.
        depth: levels of each hourglass; each halves the map once.
        groups: GroupNorm groups; a layer whose channels do not divide takes the largest divisor below.
        hidden: channels of the MLP's hidden layers.
        hand_scale: whether the MLP takes the hand scale.
        scale_optional: trained with the hand scale dropped at random, so that None is a fair input.
        method: "nvf", the field; or a baseline of Sec. 4.1 that shares encoder and MLP: "holistic" regresses
            the joints from the pooled features, "dense" votes from the hand's pixels.
        task: "camera-space" (CS-NVF), or "root-relative" (RS-NVF, joints relative to a known wrist).

    Raises:
        TypeError: a value is not of its field's type.
        ValueError: a value is out of range, or the sizes do not divide as the encoder needs.
    """

    input_size: int = 224
    stem: int = 64
    width: int = 256
    widen: int = 0
    stacks: int = 4
    depth: int = 2
    groups: int = 32
    hidden: tuple[int, ...] = (1024, 512, 256, 128)
    hand_scale: bool = True
    scale_optional: bool = False
    method: Method = "nvf"
    task: Task = "camera-space"

    def __post_init__(self) -> None:
        for name in ("hand_scale", "scale_optional"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, got {getattr(self, name)!r}")
        for name, known in (("method", get_args(Method)), ("task", get_args(Task))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {known}, got {getattr(self, name)!r}")
        if not isinstance(self.hidden, tuple) or not self.hidden:
            raise TypeError(f"hidden must be a non-empty tuple of channels, got {self.hidden!r}")
        for name in ("input_size", "stem", "width", "widen", "stacks", "depth", "groups"):
            _check_count(name, getattr(self, name), least=0 if name == "widen" else 1)
        for channels in self.hidden:
            _check_count("hidden", channels, least=1)
        if self.width % 8:
            raise ValueError(
                f"width must be a multiple of 8: blocks quarter it and its half; got {self.width}"
            )
        if self.widen % 4:
            raise ValueError(
                f"widen must be a multiple of 4: blocks quarter their channels; got {self.widen}"
            )
        if self.input_size % (4 * 2**self.depth):
            raise ValueError(
                f"input_size must be a multiple of {4 * 2**self.depth} px: the feature map has a quarter of "
                f"its side, and depth = {self.depth} halves it {self.depth} times; got {self.input_size} px"
            )
        narrowest = (self.width + self.widen * (self.depth - 1)) // 4
        if self.feature_size == 2**self.depth and self.groups >= narrowest:
            raise ValueError(
                f"groups must be below {narrowest}, the fewest channels on the hourglass's 1 x 1 map: "
                f"a group of one value always normalises to 0; got {self.groups}"
            )
        if self.scale_optional and not self.hand_scale:
            raise ValueError("scale_optional=True needs hand_scale=True: there is no hand scale to leave out")

    @property
    def feature_size(self) -> int:
        """Side of the feature map, in texels."""
        return self.input_size // 4

    def to_dict(self) -> dict[str, Any]:
        """The configuration as values that JSON knows."""
        return asdict(self) | {"hidden": list(self.hidden)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> NVFConfig:
        """The inverse of `to_dict`.

        Args:
            values: one entry for each field, `hidden` as a list or tuple.

        Raises:
            ValueError: an entry is unknown or missing; the message names it.
        """
        names = {field.name for field in fields(cls)}
        if values.keys() != names:
            unknown, missing = sorted(values.keys() - names), sorted(names - values.keys())
            raise ValueError(f"NVFConfig: unknown entries {unknown}, missing entries {missing}")
        hidden = values["hidden"]
        return cls(**values | {"hidden": tuple(hidden) if isinstance(hidden, list) else hidden})


def _check_count(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
