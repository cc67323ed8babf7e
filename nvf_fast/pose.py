"""The estimator's result: 21 joints, their confidence, and the voters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic

import numpy as np
import torch
from torch import Tensor
from typing_extensions import TypeVar

from nvf_fast.runtime.arguments import read_numbers

if TYPE_CHECKING:
    import trimesh

A = TypeVar("A", np.ndarray, Tensor, default=np.ndarray)

FINGERS = ("THUMB", "INDEX_FINGER", "MIDDLE_FINGER", "RING_FINGER", "PINKY")
JOINT_NAMES = (
    "WRIST",
    *("THUMB_CMC", "THUMB_MCP", "THUMB_IP", "THUMB_TIP"),
    *(f"{finger}_{part}" for finger in FINGERS[1:] for part in ("MCP", "PIP", "DIP", "TIP")),
)
# Edges of the skeleton, (joint nearer to the wrist, joint farther from it), finger after finger.
BONES = tuple((0 if part == 0 else 4 * f + part, 4 * f + part + 1) for f in range(5) for part in range(4))

SPREAD_MM = 20.0  # votes scattered this far about their joint, or as large an expected error, halve its score


@dataclass(frozen=True, eq=False)  # arrays have no single truth value
class Votes(Generic[A]):
    """The points that voted for one hand, in the frame of the image's camera.

    Attributes:
        points: (V, 3) float32 mm.
        weights: (V, 21) float32, predicted closeness to each joint, not clamped.
        directions: (V, 21, 3) float32, predicted directions to each joint, not normalised; where a known hand
            scale multiplied the pose, it multiplied them too, so that votes lie at p + 80 (1 - w) d mm.
    """

    points: A
    weights: A
    directions: A


@dataclass(frozen=True, repr=False, eq=False)
class HandPose(Generic[A]):
    """One hand's pose, or a batch of them, in the image's array type.

    Attributes:
        joints: (..., 21, 3) float32 mm, in the frame of the camera that took the image (x right, y down, z
            forward), ordered as `JOINT_NAMES`; NaN where not valid.
        joints_2d: (..., 21, 2) float32 px of the image; NaN where not valid.
        scores: (..., 21) float32 in [0, 1], by `joint_scores` or `error_scores`; 0 where not valid.
        voters: (...) int, points that voted.
        valid: (...) bool, false where a joint lies behind the camera; in a hand view where `presence` is
            below the configuration's `presence_threshold`, as for a box without a hand, of a few px, or far
            larger than a hand; in other views where no point voted, so that `voters` is 0.
        points_evaluated: (...) int, number of queried points.
        presence: (...) float32 in [0, 1], probability of a hand in the view; for a hand found in a whole
            image, combined with that of its centre there and with the expected error. 1 from a network that
            predicts none.
        votes: the voters if requested: `Votes`, or a tuple of them for a batch.
        expected_error: (..., 21) float32 mm, expected distance of each joint from the truth, NaN where not
            valid; None from a network that predicts none.
        side: "right" or "left", as given or as predicted; a tuple of them for a batch; None where unknown.
        box: (..., 4) float32 px, (x0, y0, x1, y1) that placed the view; None where no box did.
        hand_scale: (...) float32 mm, of these joints: the given one, the unit hand's, or a depth image's;
            None from a network without hand views.
        image_index: (...) int64, index of the hand's image among the given ones; None in a pose that the
            estimator did not make.
    """

    joints: A
    joints_2d: A
    scores: A
    voters: A
    valid: A
    points_evaluated: A
    presence: A
    votes: Votes[A] | tuple[Votes[A], ...] | None = None
    expected_error: A | None = None
    side: str | tuple[str, ...] | None = None
    box: A | None = None
    hand_scale: A | None = None
    image_index: A | None = None

    def __len__(self) -> int:
        """Poses in the batch.

        Raises:
            TypeError: this is one pose, not a batch.
        """
        if self.joints.ndim < 3:
            raise TypeError("this is one pose, not a batch of them")
        return len(self.joints)

    def __repr__(self) -> str:
        pose = self.numpy()
        presence = np.asarray(pose.presence, np.float64).round(2).tolist()
        return (
            f"HandPose(joints={tuple(self.joints.shape)}, side={self.side!r}, presence={presence}, "
            f"valid={np.asarray(pose.valid).tolist()})"
        )

    def __getitem__(self, index: int | slice | Sequence[int | bool] | np.ndarray | Tensor) -> HandPose[A]:
        """One pose of a batch, a slice of the batch, or the poses of several indices or of a mask.

        Examples:
            >>> import nvf_fast
            >>> from nvf_fast.image_files import demo_image
            >>> image, K = demo_image()
            >>> hands = nvf_fast.load(device="cpu")(image, K)
            >>> hands[0].joints.shape, hands[:1].joints.shape, hands[hands.presence > 0.5].joints.shape
            ((21, 3), (1, 21, 3), (2, 21, 3))
        """
        if self.joints.ndim < 3:
            raise TypeError("this is one pose, not a batch of them")
        if not isinstance(index, int | slice) or isinstance(index, bool):
            rows: Any = index.numpy(force=True) if isinstance(index, Tensor) else index
            chosen_rows = np.arange(len(self))[rows]
            if chosen_rows.ndim > 1:
                raise IndexError(f"poses are chosen by a number, a slice, a list or a mask, got {index!r}")
            index = chosen_rows.tolist()
        elif isinstance(index, slice) and (index.step or 1) < 0:  # torch has no negative strides
            index = list(range(len(self)))[index]

        def chosen(values: Any) -> Any:
            if isinstance(values, tuple) and isinstance(index, list):
                return tuple(values[row] for row in index)
            return None if values is None else values[index]

        return HandPose(*map(chosen, vars(self).values()))  # in the order of the fields

    @staticmethod
    def none(votes: bool = False) -> HandPose[Tensor]:
        """An empty batch of torch poses, of images in which no hand was found."""
        box = torch.empty(0, 4, dtype=torch.float32, device="cpu")
        joints, counts = box.new_empty(0, 21, 3), box.new_empty(0, dtype=torch.int32)
        return HandPose(
            joints=joints,
            joints_2d=joints[..., :2],
            scores=joints[..., 0],
            voters=counts,
            valid=counts.bool(),
            points_evaluated=counts,
            presence=joints[:, 0, 0],
            expected_error=joints[..., 0],
            side=(),
            box=box,
            hand_scale=joints[:, 0, 0],
            image_index=counts.long(),
            votes=() if votes else None,
        )

    def __iter__(self) -> Iterator[HandPose[A]]:
        return (self[index] for index in range(len(self)))

    def numpy(self) -> HandPose[np.ndarray]:
        """Convert a pose to numpy arrays; a pose of numpy arrays is unchanged."""
        return _mapped(
            self, lambda array: array.numpy(force=True)[()] if isinstance(array, Tensor) else array
        )

    def tensors(self, device: torch.device | str) -> HandPose[Tensor]:
        """Convert a batch of numpy arrays to torch tensors on a device."""
        return _mapped(self, lambda array: torch.from_numpy(array).to(device))

    def to(self, device: torch.device | str) -> HandPose[Tensor]:
        """Move a torch pose to another device."""
        return _mapped(self, lambda tensor: tensor.to(device))

    def scaled(self, ratio: Any) -> HandPose[A]:
        """Scale joints, votes, expected errors and hand scale about the camera; `joints_2d` does not change.

        Args:
            ratio: a positive number, or (N,) one per pose of a batch, numpy or torch.

        Raises:
            ValueError: the ratio is not positive and finite, or has another shape.
            TypeError: the ratio is not a number.
        """
        ratio = read_numbers("ratio", ratio, "a positive number, or one per pose")
        shapes = ((), self.joints.shape[:-2])
        if ratio.shape not in shapes or not ((ratio > 0) & np.isfinite(ratio)).all():
            raise ValueError(f"ratio must be a positive number, or one per pose {shapes[1]}, got {ratio}")
        if isinstance(self.joints, Tensor):
            ratio = torch.from_numpy(ratio).to(self.joints.device)

        def sized(votes: Votes[A], factor: Any) -> Votes[A]:
            points, directions = (_times(each, factor) for each in (votes.points, votes.directions))
            return Votes(points, votes.weights, directions)

        votes, scores, errors = self.votes, self.scores, self.expected_error
        if isinstance(votes, tuple):
            votes = tuple(map(sized, votes, ratio if ratio.ndim else [ratio] * len(votes)))
        elif votes is not None:
            votes = sized(votes, ratio)
        if errors is not None:
            errors = _times(errors, ratio[..., None])
            scores = error_scores(errors)
        return replace(
            self,
            joints=_times(self.joints, ratio[..., None, None]),
            scores=scores,
            votes=votes,
            expected_error=errors,
            hand_scale=None if self.hand_scale is None else _times(self.hand_scale, ratio),
        )

    def to_dict(self) -> dict[str, Any]:
        """Convert one pose to JSON values; joints, joints_2d and expected_error are None if it is not valid.

        `score` is the pose's `presence`.

        Raises:
            TypeError: this is a batch.
        """
        if self.joints.ndim != 2:
            raise TypeError(f"to_dict takes one pose, got a batch of {len(self)}: call it on each pose")
        valid = bool(self.valid)
        return {
            "valid": valid,
            "joints": self.joints.tolist() if valid else None,
            "joints_2d": self.joints_2d.tolist() if valid else None,
            "scores": self.scores.tolist(),
            "expected_error": self.expected_error.tolist()
            if valid and self.expected_error is not None
            else None,
            "voters": int(self.voters),
            "points_evaluated": int(self.points_evaluated),
            "score": float(self.presence),
            "side": self.side,
            "box": None if self.box is None else self.box.tolist(),
        }

    def mesh(self, step_mm: float = 2.0) -> trimesh.Trimesh:
        """Mesh a hand's surface around the joints of one pose, in the frame of its camera.

        The surface is a smooth union of round cones along the bones, of mean thickness for the hand's size.
        It is closed, and its faces point outward. `mesh.export("hand.glb")` writes GLB, PLY, OBJ or STL;
        `volume` is in mm³.
        `nvf_fast.surface.field_mesh` meshes the field of a network instead.

        Args:
            step_mm: mm, spacing of the lattice for marching cubes.

        Raises:
            TypeError: this is a batch, or the step is not a number.
            ValueError: the pose is not valid or not of a hand, or the step is out of range.
            ImportError: scikit-image is not installed (`pip install nvf-fast[viz]`).
        """
        from nvf_fast.hand_surface import hand_mesh

        if self.joints.ndim != 2:
            raise TypeError(f"mesh takes one pose, got a batch of {len(self)}: call it on each pose")
        if not self.valid:
            raise ValueError("the pose is not valid: it has no joints to mesh")
        if len(self.joints) != len(JOINT_NAMES):
            raise ValueError(f"a mesh requires the 21 joints of a hand, the pose has {len(self.joints)}")
        joints = self.joints.numpy(force=True) if isinstance(self.joints, Tensor) else self.joints
        return hand_mesh(joints, step_mm)


def joint_scores(weight: Tensor, spread: Tensor) -> Tensor:
    """Confidence of joints in [0, 1]: clamp(weight, 0, 1) / (1 + (spread / 20 mm)^2).

    It is high where the counted votes have high weights and agree, and halved where they scatter by 20 mm. It
    ranks joints and poses but is not a probability: choose thresholds on data.

    Args:
        weight: (...) mean weight of the counted votes, as from `ops.cast_votes`.
        spread: (...) mm, their weighted distance to the joint; NaN without voters.

    Returns:
        (...) scores; 0 without voters.
    """
    return (weight.clamp(0, 1) / (1 + (spread / SPREAD_MM) ** 2)).nan_to_num(0)


def error_scores(expected_error: Any) -> Any:
    """Scores in [0, 1] of joints with expected errors (...) mm: 1 / (1 + (error / 20 mm)^2), 0 for NaN."""
    scores = 1 / (1 + (expected_error / SPREAD_MM) ** 2)
    return (
        scores.nan_to_num(0)
        if isinstance(scores, Tensor)
        else np.where(np.isnan(scores), scores.dtype.type(0), scores)
    )


def _times(array: Any, factor: Any) -> Any:
    """A product in the dtype of the array."""
    product = array * factor
    return product.to(array.dtype) if isinstance(product, Tensor) else product.astype(array.dtype)


def _mapped(value: Any, change: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_mapped(part, change) for part in value)
    if isinstance(value, Votes | HandPose):
        return type(value)(**{name: _mapped(part, change) for name, part in vars(value).items()})
    return value if value is None or isinstance(value, str) else change(value)
