"""RS-NVF: joints relative to a wrist whose place is known, from a picture cut about it (Sec. 4.5)."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nvf_fast import ops
from nvf_fast.camera import project
from nvf_fast.frame import VOTE_BYTES
from nvf_fast.inputs import (
    check_voting,
    read_hand_scale,
    read_images,
    read_intrinsics,
    read_left,
    read_roots,
)
from nvf_fast.model import NVF
from nvf_fast.pose import HandPose, Votes, joint_scores
from nvf_fast.stages import Stages
from nvf_fast.views import RootView, mirrored, seen

MIRROR = (-1.0, 1.0, 1.0)


class RootRelativeEstimator:
    """Finds the pose of a hand whose wrist is known, as HO-3D gives it at test time.

    The field is asked at the voxels of a cube of 340 mm about the wrist (`nvf_fast.views.RootView`).

    Args:
        model: a network of task "root-relative"; the estimator works on a copy of it.
        step_mm: mm, spacing of the query points.
        surface_mm: mm; a point votes where abs(sdf) is smaller.
        fraction: in (0, 1], share of the voters that counts for each joint, largest weights first (Sec. 4.7).
        device: where to compute; None is where the model is.
        dtype: torch.float32, float16 or bfloat16; None is float32 on a CPU, float16 on CUDA.
        backend: of asking, selecting and voting (`nvf_fast.ops`).

    Raises:
        ValueError: a number is out of its range, or the network is of the other task.
    """

    def __init__(
        self,
        model: NVF,
        step_mm: float = 16.0,
        surface_mm: float = 5.0,
        fraction: float = 0.5,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        backend: ops.Backend | None = None,
    ) -> None:
        if model.config.task != "root-relative":
            raise ValueError(
                f"wanted a root-relative network, got a {model.config.task} one: see PoseEstimator"
            )
        check_voting(surface_mm, fraction)
        self.device = torch.device(device) if device is not None else model.reference_intrinsics.device
        self.dtype = dtype or (torch.float16 if self.device.type == "cuda" else torch.float32)
        self.step_mm, self.surface_mm, self.fraction, self.backend = step_mm, surface_mm, fraction, backend
        self.model = copy.deepcopy(model).to(self.device).eval().requires_grad_(False)
        self.model.encoder.to(self.dtype)
        self.model.encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.view = RootView()
        self.points = self.view.grid(step_mm, self.device)
        self._stages = Stages(self.device)
        config = self.model.config
        self._query = ops.FieldQuery(
            list(self.model.field.weights),
            list(self.model.field.biases),
            channels=config.width,
            image_size=config.input_size,
            dtype=self.dtype,
            backend=backend,
        )
        self._places = self._query.locate(
            self.view.asked_at(self.points), self.model.reference_intrinsics, (config.feature_size,) * 2
        )

    @torch.no_grad()
    def __call__(
        self,
        image: Any,
        K: Any,
        root: Any,
        hand_scale: Any = None,
        side: str | list[str] = "right",
        return_votes: bool = False,
    ) -> HandPose:
        """Finds the hand in one picture, or one hand in each of several.

        Args:
            image, K, hand_scale, side, return_votes: as in `PoseEstimator`.
            root: (3,) or (B, 3) mm, the wrist in the frame of the camera that took `image`.

        Returns:
            One pose, or a batch, in the camera's frame: relative joints plus the root. Where no point votes,
            `valid` is false and joints are NaN.

        Raises:
            ValueError: a shape or a value is not as above; the message says what came and what was wanted.
            TypeError: so is a type or a dtype.
        """
        with self._stages("prepare"):
            groups, single = read_images(image)
            pictures = [torch.as_tensor(picture) for group in groups for picture in group]
            intrinsics = read_intrinsics(K, len(pictures))
            scale = read_hand_scale(hand_scale, len(pictures), self.model.config)
            roots = read_roots(root, len(pictures))
            left = read_left(side, len(pictures))
            homographies = mirrored(self.view.homographies(intrinsics, roots, self._size), left, self._size)
        with self._stages("remap"):
            views = [
                seen(picture.to(self.device), homography, self._size)
                for picture, homography in zip(pictures, homographies, strict=True)
            ]
            images = torch.cat(views).to(dtype=self.dtype, memory_format=torch.channels_last)
        with self._stages("encode"):
            features = self.model.encode(images)
        together = max(1, VOTE_BYTES // (len(self.points) * 21 * 4 * 4))
        poses = []
        for start in range(0, len(pictures), together):
            part = slice(start, start + together)
            found = self._ask(features[part], None if scale is None else scale[part])
            with self._stages("read"):
                given = roots[part].float(), left[part], intrinsics[part].float()
                poses.append(self._pose(found, *given, return_votes))
        with self._stages("read"):
            pose = _joined(poses)
            pose = pose.numpy() if isinstance(groups[0], np.ndarray) else pose.to(groups[0].device)
        return pose[0] if single else pose

    @property
    def _size(self) -> int:
        return self.model.config.input_size

    def timed(self) -> Any:
        """Measures the calls made inside, as `PoseEstimator.timed` does."""
        return self._stages.timed()

    def _ask(self, features: Tensor, scale: Tensor | None) -> _Found:
        with self._stages("query"):
            scale = None if scale is None else scale.to(self.device)
            maps = self._query.project(features, scale)
            sdf, votes, slots = self._query(maps, self._places, self.surface_mm, len(self.points))
        with self._stages("select"):
            size = max(1, int((sdf.abs() < self.surface_mm).sum(1).max()))
            indices, counts, _ = ops.select_voters(sdf, self.surface_mm, size, backend=self.backend)
            chosen = indices.clamp(min=0)
            rows = slots.gather(1, chosen).masked_fill(indices < 0, 0).long()
            votes = votes.gather(1, rows[..., None, None].expand(-1, -1, *votes.shape[2:]))
            points = self.points[chosen]
        with self._stages("vote"):
            everyone = torch.arange(size, device=self.device).expand(len(points), -1)
            joints, weight, spread = ops.cast_votes(
                points, votes, everyone, counts, fraction=self.fraction, backend=self.backend
            )
        return _Found(joints, joint_scores(weight, spread), counts, points, votes)

    def _pose(
        self, found: _Found, roots: Tensor, left: Tensor, intrinsics: Tensor, return_votes: bool
    ) -> HandPose:
        """What was found relative to roots (B, 3), mirrored where `left` (B,), in the cameras' frames."""
        joints, scores, counts, points, votes = (each.cpu() for each in found)
        turn = torch.where(left[:, None], torch.tensor(MIRROR), 1.0)[:, None]
        joints, points = joints * turn + roots[:, None], points * turn + roots[:, None]
        weights, directions = votes[..., 0], votes[..., 1:] * turn[:, None]
        each = [
            Votes(points[i, :n], weights[i, :n], directions[i, :n]) for i, n in enumerate(counts.tolist())
        ]
        return HandPose(
            joints=joints,
            joints_2d=project(joints, intrinsics),
            scores=scores,
            voters=counts,
            valid=counts > 0,
            points_evaluated=torch.full_like(counts, len(self.points)),
            votes=tuple(each) if return_votes else None,
        )


class _Found(NamedTuple):
    """On the device, relative to the roots; of B images, V at least the voters of each."""

    joints: Tensor  # (B, 21, 3) mm
    scores: Tensor  # (B, 21)
    counts: Tensor  # (B,)
    points: Tensor  # (B, V, 3) mm
    votes: Tensor  # (B, V, 21, 4)


def _joined(poses: list[HandPose]) -> HandPose:
    """One batch of several."""
    names = ("joints", "joints_2d", "scores", "voters", "valid", "points_evaluated")
    arrays = {name: torch.cat([getattr(pose, name) for pose in poses]) for name in names}
    every = [pose.votes for pose in poses]
    votes = tuple(vote for part in every if isinstance(part, tuple) for vote in part)
    return HandPose(**arrays, votes=None if every[0] is None else votes)
