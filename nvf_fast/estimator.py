"""The estimator: pictures in, poses out. It owns pixels, cameras and the order of the stages."""

from __future__ import annotations

import copy
import logging
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from nvf_fast import ops
from nvf_fast.camera import (
    ViewPlan,
    look_at_rotation,
    plan_view,
    project,
    reference_homography,
    view_frame,
)
from nvf_fast.frame import Answers, Frame, unpacked
from nvf_fast.inputs import (
    check_voting,
    read_box_middles,
    read_hand_scale,
    read_images,
    read_intrinsics,
    read_left,
    read_previous,
)
from nvf_fast.model import NVF
from nvf_fast.pose import HandPose, Votes
from nvf_fast.replay import CudaRecorder, Replay
from nvf_fast.search import Search
from nvf_fast.stages import Stages

CUT_PX = 64  # on CUDA cut-outs are filled up to multiples of it, so that few graphs serve many of them
_Votes = dict[int, tuple[Tensor, Tensor]]  # by picture: points (V, 3) mm and votes (V, 21, 4)
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
            products; sums, depths and votes stay float32. None is float32 on a CPU, float16 on CUDA, where
            float32 convolutions are TF32 unless `torch.backends.cudnn.allow_tf32` is off.
        backend: of asking, selecting and voting (`nvf_fast.ops`); None chooses by device, "triton" or "torch"
            forces one. The encoder's norms go by the device.

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
        if model.config.task != "camera-space":
            raise ValueError(
                f"wanted a camera-space network, got a {model.config.task} one: see RootRelativeEstimator"
            )
        check_voting(surface_mm, fraction)
        if search not in get_args(Search):
            raise ValueError(f"search must be one of {get_args(Search)}, got {search!r}")
        self.device = torch.device(device) if device is not None else model.reference_intrinsics.device
        self.dtype = dtype or (torch.float16 if self.device.type == "cuda" else torch.float32)
        if self.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise TypeError(f"dtype must be torch.float32, float16 or bfloat16, got {self.dtype}")
        self.step_mm, self.surface_mm, self.fraction = step_mm, surface_mm, fraction
        self.search, self.backend = search, backend
        self.model = copy.deepcopy(model).to(self.device).eval().requires_grad_(False)
        self.model.encoder.to(self.dtype)
        self.model.encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        # PyTorch's forms read back by themselves: nothing is won by not looking.
        self._settle = self.device.type != "cuda" or backend == "torch"
        self.redone = 0  # pictures asked again, since fixed sizes or a search's guard did not hold
        self._stages = Stages(self.device)
        self._frame = Frame(
            self.model, step_mm, surface_mm, fraction, search, self.dtype, backend, self._stages
        )
        self.lattice = self._frame.lattice
        self._replay = None
        if not self._settle:
            self._replay = Replay(self._launch, CudaRecorder(self.device))

    @torch.no_grad()
    def __call__(
        self,
        image: Any,
        K: Any,
        hand_scale: Any = None,
        box: Any = None,
        side: str | Sequence[str] = "right",
        return_votes: bool = False,
        previous: HandPose | None = None,
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
            previous: with search="guided", the answer about the frame before, in the same camera's frame: the
                search then begins about that pose instead of with a sparse pass. One that is not valid, or
                that the guard finds to be far off, costs time only.

        Returns:
            One pose, or a batch where several pictures came; numpy arrays for numpy pictures, torch tensors
            on the pictures' device for torch ones. Where no point votes, `valid` is false and joints are NaN.

        Raises:
            ValueError: a shape or a value is not as above; the message says what came and what was wanted.
            TypeError: so is a type or a dtype.
        """
        with self._stages("prepare"):
            groups, single = read_images(image)
            pictures = [picture for group in groups for picture in group]
            count, sizes = len(pictures), [picture.shape[:2] for picture in pictures]
            intrinsics = read_intrinsics(K, count)
            scale = read_hand_scale(hand_scale, count, self.model.config)
            rotations = look_at_rotation(read_box_middles(box, intrinsics, sizes), intrinsics)
            frames = view_frame(rotations, read_left(side, count))
            if previous is not None and self.search != "guided":
                raise ValueError(f'previous is of use to search="guided" only, this is {self.search!r}')
            before = read_previous(previous, frames)
            size = self.model.config.input_size
            homographies = reference_homography(intrinsics, size, frames)
            plans = [
                plan_view(homography, size, *shape)
                for homography, shape in zip(homographies, sizes, strict=True)
            ]
        answers = self._answers(_Inputs(pictures, plans, scale, before), return_votes)
        with self._stages("read"):
            numpy = isinstance(groups[0], np.ndarray)
            pose = _pose(answers, frames, intrinsics, return_votes)
            pose = pose.numpy() if numpy else pose.to(groups[0].device)
        return pose[0] if single else pose

    def timed(self) -> AbstractContextManager[dict[str, float]]:
        """Measures the calls made inside: a dict that fills with each stage's total milliseconds, in order.

        Each stage then waits for the device and is launched by itself, so that on CUDA the sum exceeds an
        unmeasured call's time.
        """
        return self._stages.timed()

    def _answers(self, inputs: _Inputs, return_votes: bool) -> Answers:
        """The answers about all pictures, on the CPU but for the votes."""
        order: list[int] = []
        every_packed: list[Tensor] = []
        votes: dict[int, tuple[Tensor, Tensor]] = {}
        for members, packed, its_votes in self._in_parts(inputs, return_votes):
            order += members
            every_packed.append(packed)
            votes |= its_votes
        with self._stages("read"):
            rows = torch.cat(every_packed).cpu()  # the one wait for the device
            rows = rows if len(order) == 1 else rows[torch.tensor(order).argsort()]
        for picture in (index for index, doubt in enumerate(unpacked(rows).doubt.tolist()) if doubt):
            self.redone += 1
            packed, its_votes = self._run(inputs, [picture], return_votes, settle=True)
            rows[picture] = packed[0].cpu()
            votes |= its_votes
        return unpacked(rows)._replace(votes=[votes[picture] for picture in sorted(votes)])

    def _in_parts(self, inputs: _Inputs, return_votes: bool) -> Iterator[tuple[list[int], Tensor, _Votes]]:
        """Pictures that are alike and fit into memory together, and what `_run` gives of them."""
        together = self._frame.together(self._settle)
        for rest in self._alike(inputs.plans):
            while rest:
                members = rest[:together]
                try:
                    answer = self._run(inputs, members, return_votes)
                except torch.OutOfMemoryError:
                    if len(members) == 1:
                        raise
                    together = len(members) // 2
                    LOG.warning(
                        "out of memory on %s: going on with %d pictures at a time", self.device, together
                    )
                    continue
                yield members, *answer
                rest = rest[len(members) :]

    def _alike(self, plans: list[ViewPlan]) -> list[list[int]]:
        """The pictures in groups whose cut-outs have one shape and one factor."""
        groups = defaultdict(list)
        for picture, plan in enumerate(plans):
            groups[self._cut_shape(plan), plan.factor].append(picture)
        return list(groups.values())

    def _cut_shape(self, plan: ViewPlan) -> tuple[int, int]:
        """Rows and columns of a cut-out, with those it is filled up with."""
        height, width = (part.stop - part.start for part in (plan.rows, plan.columns))
        if self.device.type != "cuda":
            return height, width
        unit = CUT_PX * plan.factor
        return -(-height // unit) * unit, -(-width // unit) * unit

    def _run(
        self, inputs: _Inputs, members: list[int], return_votes: bool, settle: bool = False
    ) -> tuple[Tensor, _Votes]:
        """`Answers.packed` of pictures that are alike, on the device, and their votes if wanted."""
        plans = [inputs.plans[picture] for picture in members]
        factor = plans[0].factor
        with self._stages("remap"):
            cuts = self._cuts([inputs.pictures[picture] for picture in members], plans)
            matrices = self._sent(torch.stack([plan.matrix for plan in plans]))
            scale = None if inputs.scale is None else self._sent(inputs.scale[members])
            previous = None if inputs.previous is None else self._sent(inputs.previous[members])
        if self._replay is not None and not (settle or return_votes or self._stages.measuring):
            key = _Key(tuple(cuts.shape), factor, scale is not None, previous is not None)
            given = [tensor for tensor in (cuts, matrices, scale, previous) if tensor is not None]
            return self._replay(key, *given), {}
        answers = self._frame(cuts, matrices, factor, scale, previous, settle or self._settle)
        return answers.packed(), dict(zip(members, answers.votes, strict=True)) if return_votes else {}

    def _launch(self, key: _Key, cuts: Tensor, matrices: Tensor, *others: Tensor) -> Tensor:
        """The frame as `Replay` calls it."""
        scale = others[0] if key.scale else None
        previous = others[-1] if key.previous else None
        return self._frame(cuts, matrices, key.factor, scale, previous).packed()

    def _cuts(self, pictures: list[Any], plans: list[ViewPlan]) -> Tensor:
        """(B, h, w, 3) uint8 on the device: what the views see of their pictures."""
        parts = [
            _tensor(picture)[plan.rows, plan.columns] for picture, plan in zip(pictures, plans, strict=True)
        ]
        shape = self._cut_shape(plans[0])
        if len(parts) == 1 and parts[0].shape[:2] == shape and parts[0].device == self.device:
            return parts[0][None]
        pinned = self.device.type == "cuda" and not parts[0].is_cuda
        cuts = torch.zeros(
            len(parts), *shape, 3, dtype=torch.uint8, device=parts[0].device, pin_memory=pinned
        )
        for cut, part in zip(cuts, parts, strict=True):
            cut[: part.shape[0], : part.shape[1]] = part
        return cuts.to(self.device, non_blocking=True)

    def _sent(self, tensor: Tensor) -> Tensor:
        """A small tensor on the device, without waiting for it."""
        tensor = tensor.pin_memory() if self.device.type == "cuda" else tensor
        return tensor.to(self.device, non_blocking=True)


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
    if not isinstance(model, NVF):
        raise ValueError(f"{name} holds a {model.config.method!r} baseline: nvf_fast.baselines runs it")
    return PoseEstimator(model, dtype=dtype, **options)


class _Key(NamedTuple):
    """What one graph serves: the cut-outs' shape and factor, and whether more is given."""

    shape: tuple[int, ...]
    factor: int
    scale: bool
    previous: bool


class _Inputs(NamedTuple):
    """Pictures, and what is known about each."""

    pictures: list[Any]  # (H, W, 3) uint8
    plans: list[ViewPlan]
    scale: Tensor | None  # (B,) float32 mm
    previous: Tensor | None  # (B, 21, 3) float32 mm, in the view's frame


def _tensor(picture: Any) -> Tensor:
    if isinstance(picture, Tensor):
        return picture
    # torch takes no negative strides, and warns of arrays that cannot be written to.
    return torch.from_numpy(np.require(picture, requirements=["C", "W"]))


def _pose(answers: Answers, frames: Tensor, intrinsics: Tensor, with_votes: bool) -> HandPose:
    """The batch of poses on the CPU, in the frames of the cameras that took the pictures."""
    joints = answers.joints.double() @ frames  # rows; the inverse of a frame is its transpose
    valid = joints.isfinite().all(-1).all(-1)
    joints = torch.where(valid[:, None, None], joints, math.nan)
    votes = []
    for (points, cast), frame, count in zip(
        answers.votes, frames.float(), answers.voters.tolist(), strict=False
    ):
        points, cast = points[:count].cpu(), cast[:count].cpu()
        votes.append(Votes(points @ frame, cast[..., 0], cast[..., 1:] @ frame))
    return HandPose(
        joints=joints.float(),
        joints_2d=project(joints, intrinsics).float(),
        scores=torch.where(valid[:, None], answers.scores, 0.0),
        voters=answers.voters,
        valid=valid,
        points_evaluated=answers.points_evaluated,
        votes=tuple(votes) if with_votes else None,
    )
