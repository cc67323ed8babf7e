"""RS-NVF: joints relative to a wrist whose place is known, from a picture cut about it (Sec. 4.5)."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nvf_fast import ops
from nvf_fast.camera import project, remap
from nvf_fast.inputs import read_hand_scale, read_images, read_intrinsics, read_left, read_roots
from nvf_fast.model import NVF
from nvf_fast.pose import HandPose, Votes, joint_scores
from nvf_fast.stages import Stages
from nvf_fast.views import RootView

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
        if not surface_mm > 0:
            raise ValueError(f"surface_mm must be a positive number of mm, got {surface_mm}")
        if not 0 < fraction <= 1:
            raise ValueError(f"fraction must be in (0, 1], got {fraction}")
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
            mirror = torch.where(
                read_left(side, len(pictures))[:, None], torch.tensor(MIRROR, dtype=torch.float64), 1.0
            )
            homographies = _mirrored(
                self.view.homographies(intrinsics, roots, self._size), mirror, self._size
            )
        with self._stages("remap"):
            views = torch.cat(
                [
                    remap(picture.permute(2, 0, 1)[None].to(self.device), homography[None], self._size)
                    for picture, homography in zip(pictures, homographies, strict=True)
                ]
            )
            views = views.div_(127.5).sub_(1).to(dtype=self.dtype, memory_format=torch.channels_last)
        with self._stages("encode"):
            features = self.model.encode(views)
        joints, scores, counts, votes = self._ask(features, scale, return_votes)
        with self._stages("read"):
            offset, turn = roots.float()[:, None], mirror.float()[:, None]
            joints = joints.cpu() * turn + offset
            pose = HandPose(
                joints=joints,
                joints_2d=project(joints, intrinsics.float()),
                scores=scores.cpu(),
                voters=counts.cpu(),
                valid=counts.cpu() > 0,
                points_evaluated=torch.full_like(counts.cpu(), len(self.points)),
                votes=tuple(
                    Votes(points.cpu() * mirror[i].float() + offset[i], vote[..., 0].cpu(),
                          vote[..., 1:].cpu() * mirror[i].float())
                    for i, (points, vote) in enumerate(votes)
                ) if return_votes else None,
            )  # fmt: skip
            numpy = isinstance(groups[0], np.ndarray)
            pose = pose.numpy() if numpy else pose.to(groups[0].device)
        return pose[0] if single else pose

    @property
    def _size(self) -> int:
        return self.model.config.input_size

    def timed(self) -> Any:
        """Measures the calls made inside, as `PoseEstimator.timed` does."""
        return self._stages.timed()

    def _ask(
        self, features: Tensor, scale: Tensor | None, return_votes: bool
    ) -> tuple[Tensor, Tensor, Tensor, list[tuple[Tensor, Tensor]]]:
        """Relative joints (B, 21, 3) mm, scores (B, 21), voters (B,), and per image the votes if wanted."""
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
        each = []
        if return_votes:
            each = [(points[i, :n], votes[i, :n]) for i, n in enumerate(counts.tolist())]
        return joints, joint_scores(weight, spread), counts, each


def _mirrored(homographies: Tensor, mirror: Tensor, size: int) -> Tensor:
    """Views about the root, mirrored where `mirror` (B, 3) is: x of the view becomes size - x."""
    flip = torch.eye(3, dtype=torch.float64).repeat(len(mirror), 1, 1)
    flip[:, 0, 0] = mirror[:, 0]
    flip[:, 0, 2] = torch.where(mirror[:, 0] < 0, float(size), 0.0)
    return flip @ homographies
