"""The configuration of a network."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from nvf_fast.runtime.arguments import check_choices

Method = Literal["nvf", "holistic", "dense"]
Task = Literal["camera-space", "root-relative"]
Encoder = Literal["hourglass", "unet"]
View = Literal["reference", "hand"]

HAND_JOINTS = 21  # of a hand, named in `nvf_fast.pose.JOINT_NAMES`
# Largest numbers of channels, layers and px, so that a damaged configuration cannot fill the memory.
MOST_CHANNELS, MOST_LAYERS, LARGEST_VIEW = 4096, 16, 1024
# Entries missing from older configurations, which then take their defaults.
LATER_ENTRIES = (
    "encoder", "view", "channels", "pose_code", "presence_threshold", "finding_weights",
    "finding_threshold", "joints", "image_channels",
)  # fmt: skip


@dataclass(frozen=True)
class NVFConfig:
    """Shape of an NVF network; the defaults are those of the released network (Sec. 4.1).

    Args:
        input_size: px, side of the encoder's square input view.
        stem: channels after the first convolution.
        width: channels of the hourglasses and of `features`.
        widen: channels added per hourglass level; 0 as released.
        stacks: number of hourglasses.
        depth: levels of each hourglass; each halves the map once.
        groups: GroupNorm groups; a layer uses the largest number up to this that divides its channels.
        hidden: channels of the MLP's hidden layers.
        hand_scale: whether the MLP takes the hand scale as an input.
        scale_optional: whether training omitted the hand scale at random, so that it may be None.
        method: "nvf", the field; or a baseline of Sec. 4.1 with the same encoder and MLP: "holistic"
            regresses the joints from the pooled features, "dense" votes from the hand's pixels.
        task: "camera-space" (CS-NVF), or "root-relative" (RS-NVF, joints relative to a known wrist).
        encoder: "hourglass", the paper's; or "unet", a small foldable one for CPUs.
        view: "reference", the paper's camera; or "hand", a virtual camera turned and zoomed to a hand's box,
            whose network has coarse heads and predicts in the unit hand's millimetres; "unet" needs "hand".
        channels: channels of the U-Net's maps at 1/2, 1/4, 1/8, 1/16 and 1/32 of the view's size.
        pose_code: channels of the hidden layer between the coarse pose and the field's biases; 0 for a field
            without this input.
        presence_threshold: lowest probability of presence at which a view counts as showing a hand.
        finding_weights: of the logit of a found hand's centre in the whole image, the logit of its presence
            in a closer view, and the log of its mean expected error in mm of the unit hand; then a constant.
            The sigmoid of the sum is the hand's presence.
        finding_threshold: lowest presence at which a hand found in a whole image counts.
        joints: number of joints that the field votes for. Hand views and the hand scale need a hand's 21.
        image_channels: channels of the images, 3 for RGB.

    Raises:
        TypeError: a value does not have its field's type.
        ValueError: a value is out of range, or a size is not divisible as the encoder requires.
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
    encoder: Encoder = "hourglass"
    view: View = "reference"
    channels: tuple[int, ...] = (16, 32, 64, 128, 192)
    pose_code: int = 0
    presence_threshold: float = 0.5
    finding_weights: tuple[float, ...] = (1.0, 1.0, 0.0, 0.0)
    finding_threshold: float = 0.5
    joints: int = HAND_JOINTS
    image_channels: int = 3

    def __post_init__(self) -> None:
        for name in ("hand_scale", "scale_optional"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, got {getattr(self, name)!r}")
        check_choices(self)
        for name in (
            "input_size", "stem", "width", "widen", "stacks", "depth", "groups", "pose_code", "joints",
            "image_channels",
        ):  # fmt: skip
            most = {"input_size": LARGEST_VIEW, "stacks": MOST_LAYERS, "depth": MOST_LAYERS}
            least = 0 if name in ("widen", "pose_code") else 1
            _check_count(name, getattr(self, name), least, most.get(name, MOST_CHANNELS))
        for name in ("hidden", "channels"):
            if not isinstance(getattr(self, name), tuple) or not getattr(self, name):
                raise TypeError(f"{name} must be a non-empty tuple of channels, got {getattr(self, name)!r}")
            if len(getattr(self, name)) > MOST_LAYERS:
                raise ValueError(
                    f"{name} must name up to {MOST_LAYERS} layers, got {len(getattr(self, name))}"
                )
            for channels in getattr(self, name):
                _check_count(name, channels, 1, MOST_CHANNELS)
        for name in ("presence_threshold", "finding_threshold"):
            value = getattr(self, name)
            if not _is_number(value) or not 0 <= value <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {value!r}")
        weights = self.finding_weights
        if not isinstance(weights, tuple) or len(weights) != 4 or not all(map(_is_number, weights)):
            raise ValueError(f"finding_weights must be a tuple of 4 finite numbers, got {weights!r}")
        if self.scale_optional and not self.hand_scale:
            raise ValueError("scale_optional=True requires hand_scale=True")
        if self.joints != HAND_JOINTS and (self.hand_scale or self.view == "hand"):
            needs = 'view="hand"' if self.view == "hand" else "hand_scale=True"
            raise ValueError(f"{needs} needs a hand's joints={HAND_JOINTS}, got joints={self.joints}")
        if self.view == "hand" or self.encoder == "unet":
            self._check_hand_view()
        elif self.pose_code:
            raise ValueError('pose_code needs view="hand", whose network has a coarse pose to encode')
        if self.encoder == "unet":
            self._check_unet()
        else:
            self._check_hourglass()

    def _check_hourglass(self) -> None:
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

    def _check_hand_view(self) -> None:
        given = {"view": self.view, "method": self.method, "task": self.task}
        if given != {"view": "hand", "method": "nvf", "task": "camera-space"}:
            raise ValueError(
                f"hand views need view='hand', method='nvf', task='camera-space', and the U-Net hand views; "
                f"got {given}"
            )
        if self.hand_scale:
            raise ValueError("hand_scale must be False for hand views: a known scale multiplies the result")

    def _check_unet(self) -> None:
        if len(self.channels) != 5:
            raise ValueError(f"channels must be 5 numbers, one per halving of the view, got {self.channels}")
        if self.input_size % 32:
            raise ValueError(f"input_size must be a multiple of 32 px for a U-Net, got {self.input_size}")

    @property
    def feature_size(self) -> int:
        """Side of the feature map, in texels."""
        return self.input_size // 4

    def to_dict(self) -> dict[str, Any]:
        """The configuration as JSON values."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> NVFConfig:
        """The inverse of `to_dict`.

        Args:
            values: one entry per field, lists or tuples of numbers; those of `LATER_ENTRIES` are optional.

        Raises:
            ValueError: an entry is unknown or missing; the message names it.
            TypeError: the values are not a dictionary, or a value does not have its field's type.
        """
        if not isinstance(values, dict):
            raise TypeError(f"NVFConfig: expected a dictionary of entries, got {type(values).__name__}")
        names = {field.name for field in fields(cls)}
        unknown, missing = sorted(values.keys() - names), sorted(names - values.keys() - {*LATER_ENTRIES})
        if unknown or missing:
            raise ValueError(f"NVFConfig: unknown entries {unknown}, missing entries {missing}")
        read: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
        }
        return cls(**read)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_count(name: str, value: object, least: int, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    if value > most:
        raise ValueError(f"{name} must be at most {most}, got {value}")
