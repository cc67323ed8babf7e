"""The estimator: pictures in, poses out. It owns pixels, cameras and the order of the stages."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import nvtx
import torch
from torch import Tensor

from nvf_fast import ops
from nvf_fast.camera import look_at_rotation, project, reference_homography, remap, view_frame
from nvf_fast.grid import Lattice
from nvf_fast.inputs import read_box_middles, read_hand_scale, read_images, read_intrinsics, read_left
from nvf_fast.model import NVF
from nvf_fast.pose import HandPose, Votes, joint_scores
from nvf_fast.search import Search, dense, guided, octree

CAPACITY = 8192  # voters per image before the selection is redone; a hand has some 150 at 16 mm
VOTE_BYTES = 2**30  # of votes at a time; larger batches, and grids larger by themselves, go in parts
LOG = logging.getLogger("nvf_fast")


class PoseEstimator:
    """Finds the camera-space pose of the hand in a picture.

    Args:
        model: the network; the estimator works on a copy of it.
        step_mm: mm, spacing of the query points.
        surface_mm: mm; a point votes where abs(sdf) is smaller.
        fraction: in (0, 1], share of the voters that counts for each joint, largest weights first (Sec. 4.7).
        search: which points of the grid are asked: "dense" all of them; "octree" those that subdivision
            from 16 mm leads to, for steps of 8 mm and less; "guided" those about the bones of a provisional
            pose. The last two ask image by image, and may miss voters; see `nvf_fast.search`.
        device: where to compute; None is where the model is.
        dtype: torch.float32, float16 or bfloat16, precision of the encoder and of the field's matrix
            products; sums, depths and votes stay float32. None is float32 on a CPU, float16 on CUDA.
        backend: of the operations in `nvf_fast.ops`; None chooses by device, "triton" or "torch" forces one.

    Raises:
        ValueError: a number is out of its range.
        TypeError: the dtype is none of the three.
    """

    def __init__(
        self,
        model: NVF,
        step_mm: float = 16.0,
        surface_mm: float = 5.0,
        fraction: float = 0.5,
        search: Search = "dense",
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        backend: ops.Backend | None = None,
    ) -> None:
        if not surface_mm > 0:
            raise ValueError(f"surface_mm must be a positive number of mm, got {surface_mm}")
        if not 0 < fraction <= 1:
            raise ValueError(f"fraction must be in (0, 1], got {fraction}")
        if search not in get_args(Search):
            raise ValueError(f"search must be one of {get_args(Search)}, got {search!r}")
        self.device = torch.device(device) if device is not None else model.reference_intrinsics.device
        self.dtype = dtype or (torch.float16 if self.device.type == "cuda" else torch.float32)
        if self.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise TypeError(f"dtype must be torch.float32, float16 or bfloat16, got {self.dtype}")
        self.step_mm, self.surface_mm, self.fraction = step_mm, surface_mm, fraction
        self.search, self.backend = search, backend
        self.lattice = Lattice(step_mm, self.device)
        self.points = self.lattice.points(self.lattice.every(1))
        self.model = copy.deepcopy(model).to(self.device).eval().requires_grad_(False)
        self.model.encoder.to(self.dtype)
        self.model.encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._view_intrinsics = self.model.reference_intrinsics
        self._milliseconds: dict[str, float] | None = None

    @torch.no_grad()
    def __call__(
        self,
        image: Any,
        K: Any,
        hand_scale: Any = None,
        box: Any = None,
        side: str | Sequence[str] = "right",
        return_votes: bool = False,
    ) -> HandPose:
        """Finds the hand in one picture, or one hand in each of several.

        A picture is looked at through the reference camera, which spans 26.3 degrees: along the optical axis,
        or turned to the middle of `box`.

        Args:
            image: (H, W, 3) uint8 RGB, numpy or torch; or several: (B, H, W, 3), or a list of (H, W, 3) of
                any sizes.
            K: (3, 3), or (B, 3, 3) one per image; intrinsics in px, the first pixel of a row centred at 0.
            hand_scale: mm, length of the middle finger's proximal phalanx (joints 9 to 10): a number, or
                (B,). None where it is unknown; a model trained with it always given refuses that.
            box: px, (x0, y0, x1, y1) around the hand, or (B, 4). Only its middle counts; a box wider than the
                view is reported by a warning.
            side: "right" or "left", or one per image.
            return_votes: whether the pose also holds its voters.

        Returns:
            One pose, or a batch where several pictures came; numpy arrays for numpy pictures, torch tensors
            on the pictures' device for torch ones. Where no point votes, `valid` is false and joints are NaN.

        Raises:
            ValueError: a shape or a value is not as above; the message says what came and what was wanted.
            TypeError: so is a type or a dtype.
        """
        with self._stage("prepare"):
            groups, single = read_images(image)
            sizes = [size for group in groups for size in [group.shape[1:3]] * len(group)]
            intrinsics = read_intrinsics(K, len(sizes))
            scale = read_hand_scale(hand_scale, len(sizes), self.model.config)
            rotations = look_at_rotation(read_box_middles(box, intrinsics, sizes), intrinsics)
            frames = view_frame(rotations, read_left(side, len(sizes)))
        with self._stage("remap"):
            size = self.model.config.input_size
            views = self._views(groups, reference_homography(intrinsics, size, frames))
            scale = None if scale is None else scale.to(self.device)
        answers = self._answers(views, scale, return_votes)
        with self._stage("read"):
            numpy = isinstance(groups[0], np.ndarray)
            pose = _pose(answers, frames, intrinsics, torch.device("cpu") if numpy else groups[0].device)
            pose = pose.numpy() if numpy else pose
        return pose[0] if single else pose

    @contextmanager
    def timed(self) -> Iterator[dict[str, float]]:
        """Measures the calls made inside: a dict that fills with each stage's total milliseconds, in order.

        Each stage then waits for the device, so that the sum exceeds an unmeasured call's time a little.
        """
        milliseconds: dict[str, float] = {}
        self._milliseconds = milliseconds
        try:
            yield milliseconds
        finally:
            self._milliseconds = None

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        """A range for profilers (NVTX, about 1 us when none listens), measured inside `timed`."""
        with nvtx.annotate(name, domain="nvf_fast"):
            if self._milliseconds is None:
                yield
                return
            start = self._now()
            yield
            self._milliseconds[name] = self._milliseconds.get(name, 0.0) + 1e3 * (self._now() - start)

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _views(self, groups: list[Any], homographies: Tensor) -> Tensor:
        """(B, 3, S, S) normalised reference views, in the encoder's dtype and memory format."""
        size = self.model.config.input_size
        own = homographies.split([len(group) for group in groups])
        views = [
            remap(_tensor(group).to(self.device).permute(0, 3, 1, 2), homography, size)
            for group, homography in zip(groups, own, strict=True)
        ]
        normalised = torch.cat(views) / 127.5 - 1  # (x / 255 - 0.5) / 0.5
        return normalised.to(dtype=self.dtype, memory_format=torch.channels_last)

    def _answers(self, views: Tensor, scale: Tensor | None, return_votes: bool) -> list[_Answer]:
        """Encodes and asks in parts that fit into memory."""
        together = VOTE_BYTES // (len(self.points) * 21 * 4 * 4)
        answer = self._dense if self.search == "dense" and together else self._searched
        part, done = max(1, together), 0
        answers: list[_Answer] = []
        while done < len(views):
            some = slice(done, done + part)
            try:
                with self._stage("encode"):
                    features = self.model.encode(views[some])
                answers += answer(features, None if scale is None else scale[some], return_votes)
                done += part
            except torch.OutOfMemoryError:
                if part == 1:
                    raise
                part = min(part, len(views) - done) // 2
                LOG.warning("out of memory on %s: going on with %d pictures at a time", self.device, part)
        return answers

    def _dense(self, features: Tensor, scale: Tensor | None, return_votes: bool) -> list[_Answer]:
        """Asks the field at every point of the grid and casts the votes."""
        with self._stage("query"):
            sdf, votes = self._ask(features, self.points, scale, self.surface_mm)
        capacity = min(CAPACITY, len(self.points))
        answer, indices, overflow = self._cast(sdf, votes, capacity)
        if bool(overflow.any()):  # the one wait for the device
            answer, indices, _ = self._cast(sdf, votes, int(answer.voters.max()))
        if return_votes:
            chosen = [rows[rows >= 0] for rows in indices]
            answer = answer._replace(
                votes=[(self.points[rows], cast[rows]) for rows, cast in zip(chosen, votes, strict=True)]
            )
        return [answer]

    def _searched(self, features: Tensor, scale: Tensor | None, return_votes: bool) -> list[_Answer]:
        """Asks the field where the search leads, image by image, and casts the votes."""
        scales = [None] * len(features) if scale is None else scale.split(1)
        return [
            self._searched_one(image, its_scale, return_votes)
            for image, its_scale in zip(features.split(1), scales, strict=True)
        ]

    def _searched_one(self, features: Tensor, scale: Tensor | None, return_votes: bool) -> _Answer:
        def ask(points: Tensor, within_mm: float) -> tuple[Tensor, Tensor]:
            sdf, votes = self._ask(features, points, scale, within_mm)
            return sdf[0], votes[0]

        def cast(points: Tensor, votes: Tensor) -> Tensor:
            return self._vote(points, votes)[0][0]

        with self._stage("query"):
            if self.search == "guided":
                found = guided(ask, self.lattice, self.surface_mm, cast)
            else:
                found = (octree if self.search == "octree" else dense)(ask, self.lattice, self.surface_mm)
        with self._stage("vote"):
            joints, weight, spread = self._vote(found.points, found.votes)
            counts = torch.tensor([[len(found.points)], [found.evaluated]], dtype=torch.int32)
            answer = _Answer(joints, joint_scores(weight, spread), *counts)
        return answer._replace(votes=[(found.points, found.votes)]) if return_votes else answer

    def _ask(
        self, features: Tensor, points: Tensor, scale: Tensor | None, surface_mm: float
    ) -> tuple[Tensor, Tensor]:
        return ops.query_field(
            features,
            points,
            self._view_intrinsics,
            scale,
            list(self.model.field.weights),
            list(self.model.field.biases),
            image_size=self.model.config.input_size,
            surface_mm=surface_mm,
            backend=self.backend,
        )

    def _vote(self, points: Tensor, votes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What `ops.cast_votes` makes of one image's voters (V, 3) and their votes (V, 21, 4)."""
        everyone = torch.arange(len(points), device=self.device)[None]
        count = torch.full((1,), len(points), dtype=torch.int32, device=self.device)
        return ops.cast_votes(
            points, votes[None], everyone, count, fraction=self.fraction, backend=self.backend
        )

    def _cast(self, sdf: Tensor, votes: Tensor, capacity: int) -> tuple[_Answer, Tensor, Tensor]:
        """The answer without its votes, the voters' indices (B, capacity), and whether there were more."""
        with self._stage("select"):
            indices, counts, overflow = ops.select_voters(
                sdf, self.surface_mm, capacity, backend=self.backend
            )
        with self._stage("vote"):
            joints, weight, spread = ops.cast_votes(
                self.points, votes, indices, counts, fraction=self.fraction, backend=self.backend
            )
            asked = torch.full_like(counts, len(self.points))
            answer = _Answer(joints, joint_scores(weight, spread), counts, asked)
        return answer, indices, overflow


def load(
    name: str | Path | None = None,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> PoseEstimator:
    """An estimator with trained weights.

    Args:
        name: an embedded checkpoint, the path of a checkpoint folder, or a hub id; None is the embedded one.
        device: where to compute; None is CUDA where there is a device, else the CPU.
        dtype: as in `PoseEstimator`; None is float32 on a CPU, float16 on CUDA.
        options: further arguments of `PoseEstimator`, such as step_mm.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: the checkpoint is damaged, or an option is out of its range.
    """
    from nvf_fast.checkpoint import load_checkpoint

    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    model, _ = load_checkpoint(name, device)
    return PoseEstimator(model, dtype=dtype, **options)


class _Answer(NamedTuple):
    """About a part of a batch, in the frames of the reference views."""

    joints: Tensor  # (B, 21, 3) mm
    scores: Tensor  # (B, 21)
    voters: Tensor  # (B,)
    points_evaluated: Tensor  # (B,)
    votes: Sequence[tuple[Tensor, Tensor]] = ()  # per image the voters' points (V, 3) mm and votes (V, 21, 4)


def _tensor(group: Any) -> Tensor:
    if isinstance(group, Tensor):
        return group
    # torch takes no negative strides, and warns of arrays that cannot be written to.
    return torch.from_numpy(np.require(group, requirements=["C", "W"]))


def _pose(answers: list[_Answer], frames: Tensor, intrinsics: Tensor, device: torch.device) -> HandPose:
    """The batch of poses on `device`, in the frames of the cameras that took the pictures."""
    joints = torch.cat([answer.joints for answer in answers]).to(device)
    scores = torch.cat([answer.scores for answer in answers]).to(device)
    voters = torch.cat([answer.voters for answer in answers]).to(device)
    asked = torch.cat([answer.points_evaluated for answer in answers]).to(device)
    frames = frames.to(device)
    joints = joints.double() @ frames  # rows; the inverse of a frame is its transpose
    valid = joints.isfinite().all(-1).all(-1)
    joints = torch.where(valid[:, None, None], joints, math.nan)
    chosen = [vote for answer in answers for vote in answer.votes]
    votes = tuple(
        Votes((points.to(device) @ frame), cast[..., 0].to(device), cast[..., 1:].to(device) @ frame)
        for (points, cast), frame in zip(chosen, frames.float(), strict=True)
    ) if chosen else None  # fmt: skip
    return HandPose(
        joints=joints.float(),
        joints_2d=project(joints, intrinsics.to(device)).float(),
        scores=torch.where(valid[:, None], scores, 0.0),
        voters=voters,
        valid=valid,
        points_evaluated=asked,
        votes=votes,
    )
