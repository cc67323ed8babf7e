"""The estimator: images in, poses out. It owns pixels, cameras and the order of the stages."""

from __future__ import annotations

import copy
import logging
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nvf_fast import ops
from nvf_fast.baselines import DenseBaseline, HolisticBaseline, Network
from nvf_fast.camera import ViewPlan, plan_view, project, view_frame
from nvf_fast.finding import (
    FOUND_SCORE,
    LEAST,
    SMALLEST,
    FoundHands,
    boxes_in_image,
    distinct,
    read_peaks,
    search_windows,
    shrink,
    squared,
)
from nvf_fast.grid import Lattice
from nvf_fast.hand_pipeline import HandPipeline
from nvf_fast.inputs import (
    WIDEST_SLOPE,
    check_hand_views,
    check_middles,
    previous_boxes,
    read_boxes,
    read_hand_scale,
    read_images,
    read_intrinsics,
    read_previous,
    read_roots,
    read_sides,
    warn_of_wide_boxes,
)
from nvf_fast.joint_definitions import UNIT_SCALE_MM
from nvf_fast.model import NVF
from nvf_fast.pipeline import (
    BaselinePipeline,
    Estimates,
    FieldPipeline,
    Pipeline,
    QueryOptions,
    Views,
    network_images,
)
from nvf_fast.pose import HandPose, Votes, error_scores
from nvf_fast.runtime.cuda_graph import CudaRecorder, Replay
from nvf_fast.runtime.profiling import Stages
from nvf_fast.search import Search
from nvf_fast.volumes import FrustumVolume, HandLattice, HandVolume, Placement, RootCube, volume_of

CUT_PX = 64  # on CUDA crops are padded to multiples of it, so that few graphs serve many of them
PASSES = 2  # poses of a hand that was found: by the box found, then by the box of that pose
_Votes = dict[int, tuple[Tensor, Tensor]]  # by image: points (V, 3) mm and votes (V, 21, 4)
LOG = logging.getLogger("nvf_fast")


class PoseEstimator:
    """Estimates the camera-space pose of the hand in an image.

    The network's configuration decides where it looks and what it needs. A network of hand views looks
    through a virtual camera that turns to a box and zooms to its size. A camera-space network of the paper
    looks through the reference camera, along the optical axis or turned to a box; a root-relative one at a
    cube about the wrist, which the caller knows. The baselines of Sec. 4.1 are used in the same way.

    Args:
        model: the network; the estimator works on a copy of it.
        step_mm: mm, spacing of the query points.
        surface_mm: mm; a point votes where abs(sdf) is smaller.
        fraction: in (0, 1], ratio of the voters that count for each joint, largest weights first (Sec. 4.7).
        search: which points of the grid are queried: "dense" all of them; "octree" those that subdivision
            from 16 mm leads to, for steps of 8 mm and less; "guided" those about the bones of a provisional
            pose. The last two query image by image, and may miss voters; see `nvf_fast.search`. A hand view
            takes "dense" alone.
        device: where to compute; None is where the model is.
        dtype: torch.float32, float16 or bfloat16, precision of the encoder and of the field's matrix
            products; sums, depths and votes stay float32. None is float32 on a CPU, float16 on CUDA, where
            float32 convolutions are TF32 unless `torch.backends.cudnn.allow_tf32` is off.
        backend: of querying, selecting and voting (`nvf_fast.ops`); None chooses by device, "triton" or
            "torch" forces one. The encoder's norms go by the device.

    Raises:
        ValueError: a number is out of its range, or an option of the field is given to a baseline.
        TypeError: the dtype is none of the three.
    """

    def __init__(
        self,
        model: Network,
        step_mm: float = 16.0,
        surface_mm: float = 5.0,
        fraction: float = 0.5,
        search: Search = "dense",
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        backend: ops.Backend | None = None,
    ) -> None:
        self.device = torch.device(device) if device is not None else model.field.biases[0].device
        self.dtype = dtype or (torch.float16 if self.device.type == "cuda" else torch.float32)
        if self.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise TypeError(f"dtype must be torch.float32, float16 or bfloat16, got {self.dtype}")
        self.options = QueryOptions(step_mm, surface_mm, fraction, search, self.dtype, backend)
        model = model.for_inference() if isinstance(model, NVF) else copy.deepcopy(model)
        self.model = model.to(self.device).eval().requires_grad_(False)
        self.model.encoder.to(self.dtype)
        self.model.encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        # The PyTorch path synchronises anyway, so lists are sized exactly.
        self._exact = self.device.type != "cuda" or backend == "torch"
        self.redone = 0  # images run again, since fixed sizes or a search's guard did not hold
        hand = model.config.view == "hand"
        self.volume: FrustumVolume | RootCube | HandVolume = HandVolume() if hand else volume_of(model.config)
        self._stages = Stages(self.device)
        self._pipeline = self._make_pipeline()
        self._replay = None
        if not self._exact:
            self._replay = Replay(self._launch, CudaRecorder(self.device))

    def _make_pipeline(self) -> Pipeline:
        if isinstance(self.volume, HandVolume):
            assert isinstance(self.model, NVF)
            return HandPipeline(self.model, self.volume, self.options, self._stages)
        if not isinstance(self.model, HolisticBaseline | DenseBaseline):
            return FieldPipeline(self.model, self.volume, self.options, self._stages)
        default = QueryOptions(dtype=self.dtype, backend=self.options.backend)
        given = [
            field.name
            for field in fields(default)
            if getattr(self.options, field.name) != getattr(default, field.name)
        ]
        if given:
            raise ValueError(
                f"{given} are options of a field, this is a {self.model.config.method!r} baseline without one"
            )
        return BaselinePipeline(self.model, self.dtype, self._stages)

    def __call__(
        self,
        image: Any,
        K: Any,
        hand_scale: Any = None,
        box: Any = None,
        side: str | Sequence[str | None] | None = None,
        return_votes: bool = False,
        previous: HandPose | None = None,
        root: Any = None,
    ) -> HandPose:
        """Estimate the pose of the hand in one image, or of one hand in each of several.

        Args:
            image: (H, W, 3) uint8 RGB, numpy or torch; or several: (B, H, W, 3), or a list of (H, W, 3) of
                any sizes.
            K: (3, 3), or (B, 3, 3) one per image; intrinsics in px, the first pixel of a row centred at 0.
            hand_scale: mm, length of the middle finger's proximal phalanx (joints 9 to 10): a number, or
                (B,). None where it is unknown; a model trained with it always given refuses that. The pose of
                a hand view is that of a unit hand (`joint_definitions.UNIT_SCALE_MM`), which a given scale
                multiplies exactly.
            box: px, (x0, y0, x1, y1) around the hand, or (B, 4). A hand view turns to its centre and zooms so
                that its longer side spans 75 %; without a box and `previous` it finds every hand of one
                image. The reference camera, which spans 26.3 degrees, turns to its centre, and a warning
                reports a box wider than the view; None looks along the optical axis.
            side: "right", "left" or None, or one per image. With None a network of hand views predicts the
                side, and any other network, which knows right hands alone, takes the hand for a right one.
            return_votes: whether the pose also holds its voters.
            previous: the pose estimated in the frame before, in the same camera's frame, or a batch of them.
                It places a hand view as the box of its projected joints would, in place of `box`; a pose that
                is not valid cannot. With search="guided" the search begins about it instead of with a sparse
                pass; one that is not valid, or that the guard finds to be far off, then costs time only.
            root: mm, (3,) or (B, 3), the wrist in the frame of the camera that took the image, for a
                root-relative network.

        Returns:
            One pose, or a batch where several images came, or where the hands of one were to be found: then
            all that are there, best first, maybe none. numpy arrays for numpy images, torch tensors on the
            images' device for torch ones. Where no point votes, or where the view of a given box shows no
            hand, `valid` is false and joints are NaN.

        Raises:
            ValueError: a shape or a value is not as above; the message says what came and what was expected.
            TypeError: an argument has the wrong type or dtype.
        """
        if box is None and root is None and previous is None and isinstance(self.volume, HandVolume):
            return self._found_poses(image, K, hand_scale, side, return_votes)
        # On a CPU, where what the host does is felt, a call in inference mode takes 4 % less.
        with torch.inference_mode() if self.device.type == "cpu" else torch.no_grad():
            pose = self._estimated(image, K, hand_scale, box, side, return_votes, previous, root)
        # What is made in that mode could not take part in a caller's gradients.
        return pose.clone() if isinstance(pose.joints, Tensor) and self.device.type == "cpu" else pose

    def _estimated(
        self,
        image: Any,
        K: Any,
        hand_scale: Any,
        box: Any,
        side: Any,
        return_votes: bool,
        previous: HandPose | None,
        root: Any,
    ) -> HandPose:
        """The pose of `__call__`, by a box, by a root or along the optical axis."""
        with self._stages("prepare"):
            groups, single = read_images(image)
            images = [each for group in groups for each in group]
            count, sizes = len(images), [each.shape[:2] for each in images]
            intrinsics = read_intrinsics(K, count)
            scale = read_hand_scale(hand_scale, count, self.model.config)
            self._check_field_arguments(return_votes, box, previous)
            if previous is not None and isinstance(self.volume, HandVolume):
                box, previous = previous_boxes(previous, intrinsics), None
            boxes, roots = self._read_place(box, root, sizes)
            left, unknown = read_sides(side, count)
            size = self.model.config.input_size
            placement = self.volume.place(intrinsics, size, left, boxes=boxes, roots=roots)
            hand = placement.slopes is not None
            if hand and boxes is not None:
                check_hand_views(placement, boxes, intrinsics, sizes)
            elif boxes is not None:
                warn_of_wide_boxes(boxes, intrinsics)
            before = read_previous(previous, placement)
            both_sides = (unknown & hand).tolist()
            plans = [
                # The mirrored view, about pixel size / 2, reaches one pixel farther.
                plan_view(homography, size, height, width, margin=float(both))
                for homography, (height, width), both in zip(
                    placement.homographies, sizes, both_sides, strict=True
                )
            ]
            inputs = _Inputs(
                images,
                plans,
                None if hand else scale,
                before,
                None if placement.slopes is None else placement.slopes.float(),
                both_sides,
            )
        estimates = self._estimates(inputs, return_votes)
        with self._stages("read"):
            left = left | estimates.left
            frames = view_frame(placement.frames, estimates.left)
            pose = _pose(estimates, placement._replace(frames=frames), intrinsics, return_votes)
            sides = tuple("left" if each else "right" for each in left.tolist())
            pose = replace(pose, side=sides, box=None if boxes is None else boxes.float())
            if hand:
                pose = _sized(pose, estimates.errors, scale)
            pose = pose.numpy() if isinstance(groups[0], np.ndarray) else pose.to(groups[0].device)
        return pose[0] if single else pose

    @torch.no_grad()
    def find(self, image: Any, K: Any, score: float = FOUND_SCORE, smallest: float = SMALLEST) -> FoundHands:
        """Find the hands of one image.

        Square windows over the image are viewed as hands are, and the network's maps of hands' centres are
        read. What is found is not yet verified: the pose of a box is valid only where its closer view shows a
        hand too.

        Args:
            image: (H, W, 3) uint8 RGB, numpy or torch.
            K: (3, 3) intrinsics in px.
            score: least score in [0, 1].
            smallest: side of the smallest box to look for, relative to the image's longer side. Smaller
                ones need finer windows, whose number the time grows with.

        Raises:
            ValueError: the network does not find hands, several images came, or a value is out of its range.
            TypeError: an argument has the wrong type or dtype.
        """
        return self._find(image, K, score, smallest)

    def _find(
        self, image: Any, K: Any, score: float, smallest: float, keep_around: bool = False
    ) -> FoundHands:
        """`find`; with `keep_around`, boxes around better ones too."""
        if not isinstance(self.volume, HandVolume):
            raise ValueError("find is for networks of hand views; this one is told where the hand is")
        if not 0 <= score <= 1:
            raise ValueError(f"score must be in [0, 1], got {score}")
        if not LEAST <= smallest <= 1:
            raise ValueError(f"smallest must be {LEAST:g} to 1 of the image's longer side, got {smallest}")
        with self._stages("prepare"):
            groups, single = read_images(image)
            if not single:
                raise ValueError("find takes one image, got several: find the hands of each in turn")
            (image,) = groups[0]
            height, width = image.shape[:2]
            windows = search_windows(height, width, smallest)
            intrinsics = read_intrinsics(K, 1).expand(len(windows), 3, 3)
            placement = HandVolume(fill=1.0).place(intrinsics, self.model.config.input_size, boxes=windows)
            assert placement.slopes is not None
            seen = placement.slopes <= WIDEST_SLOPE
            homographies, slopes = placement.homographies[seen], placement.slopes[seen].float()
        size = self.model.config.input_size
        with self._stages("remap"):
            # Once as fine as the smallest window needs it, instead of once for each window.
            fine = int((windows[:, 2] - windows[:, 0]).min() / size)
            shrunk, to_image = shrink(_tensor(image), max(1, fine))
        plans = [plan_view(each @ to_image, size, *shrunk.shape[:2]) for each in homographies]
        inputs = _Inputs([shrunk] * len(plans), plans, None, None, slopes, [False] * len(plans))
        order, views = [], []
        for members in self._alike(inputs):
            parts = self._views(inputs, members)
            order += members
            with self._stages("remap"):
                views.append(network_images(parts, size, plans[members[0]].factor, self.dtype))
        with self._stages("encode"):
            assert isinstance(self.model, NVF)
            maps = self.model.look(torch.cat(views), self._sent(slopes[order])).hands
        with self._stages("read"):
            peaks = read_peaks(maps.cpu(), score)
            peaks = peaks._replace(window=torch.tensor(order)[peaks.window])
            boxes = boxes_in_image(peaks, homographies)
            kept = distinct(boxes, peaks.scores, keep_around)
            boxes, scores = boxes[kept].float(), peaks.scores[kept]
        sides = tuple("left" if left > 0.5 else "right" for left in peaks.left[kept].tolist())
        if isinstance(image, np.ndarray):
            return FoundHands(boxes.numpy(), sides, scores.numpy())
        return FoundHands(boxes.to(image.device), sides, scores.to(image.device))

    def _found_poses(
        self,
        image: Any,
        K: Any,
        hand_scale: Any,
        side: Any,
        return_votes: bool,
    ) -> HandPose:
        """The poses of every hand found in one image, each viewed again by the box of its first pose."""
        (images, *_), single = read_images(image)
        if not single:
            raise ValueError(
                "box must be (B, 4) px where several images are given: `find` finds the hands of one image"
            )
        found = self._find(image, K, FOUND_SCORE, SMALLEST, keep_around=True)
        # The closer view tells the side better than the one that the hand was found in.
        box, sides = found.boxes, [side] * len(found)
        for _ in range(PASSES):
            if not len(box):
                pose = HandPose.none(return_votes)
                return pose.numpy() if isinstance(images, np.ndarray) else pose.to(images.device)
            pose = self([images[0]] * len(box), K, hand_scale, box, sides, return_votes)
            valid = torch.as_tensor(pose.valid).nonzero()[:, 0]
            pixels = torch.as_tensor(pose.joints_2d)[valid].double().cpu()
            boxes = squared(torch.cat([pixels.amin(1), pixels.amax(1)], 1))
            # Two boxes may have led to one hand, or one to a part of another's: the surer pose stays.
            errors, depths = (
                torch.as_tensor(each)[valid].cpu() for each in (pose.expected_error, pose.joints[..., 2])
            )
            kept = distinct(boxes, -errors.mean(1) / depths.mean(1))
            rows = valid.cpu()[kept].tolist()
            pose, box = pose[rows], boxes[kept]
            sides = [*(pose.side or ())]
        return pose

    def _read_place(
        self, box: Any, root: Any, sizes: Sequence[Sequence[int]]
    ) -> tuple[Tensor | None, Tensor | None]:
        """Boxes (B, 4) px or None, and roots (B, 3) mm or None, as the volume needs them."""
        if not self.volume.needs_root:
            if root is not None:
                raise ValueError(
                    "root must be None: it is for root-relative networks, this one is camera-space"
                )
            boxes = read_boxes(box, sizes)
            if boxes is not None and not isinstance(self.volume, HandVolume):
                check_middles(boxes, sizes)
            return boxes, None
        if box is not None:
            raise ValueError("box must be None: the root places the view of a root-relative network")
        if root is None:
            raise ValueError(
                "a root-relative network needs root, the wrist (3,) or (B, 3) mm in the camera's frame, "
                "got None"
            )
        return None, read_roots(root, len(sizes))

    def _check_field_arguments(self, return_votes: bool, box: Any, previous: HandPose | None) -> None:
        method = self.model.config.method
        if return_votes and method != "nvf":
            raise ValueError(f"return_votes must be False: a {method!r} baseline has no voting points")
        if isinstance(self.volume, HandVolume):
            if box is not None and previous is not None:
                raise ValueError("box and previous both place a hand view: one of them must be None")
        elif previous is not None and self.options.search != "guided":
            raise ValueError(f'previous is for search="guided" only, this is {self.options.search!r}')

    @property
    def takes_hand_scale(self) -> bool:
        """Whether a hand scale may be given: an input of the network, or a factor of a hand view's pose."""
        return self.model.config.hand_scale or isinstance(self.volume, HandVolume)

    @property
    def lattice(self) -> Lattice | HandLattice:
        """The points that the field is queried at.

        Raises:
            AttributeError: the network has no field.
        """
        return self._pipeline.lattice  # type: ignore[attr-defined]

    def timed(self) -> AbstractContextManager[dict[str, float]]:
        """Measure the calls made inside: a dict that fills with each stage's total milliseconds, in order.

        Each stage then waits for the device and is launched by itself, so that on CUDA the sum exceeds an
        unmeasured call's time.
        """
        return self._stages.timed()

    def _estimates(self, inputs: _Inputs, return_votes: bool) -> Estimates:
        """The estimates of all images, on the CPU but for the votes."""
        order: list[int] = []
        every_packed: list[Tensor] = []
        votes: dict[int, tuple[Tensor, Tensor]] = {}
        for members, packed, their_votes in self._in_parts(inputs, return_votes):
            order += members
            every_packed.append(packed)
            votes |= their_votes
        with self._stages("read"):
            rows = torch.cat(every_packed).cpu()  # the one wait for the device
            rows = rows if len(order) == 1 else rows[torch.tensor(order).argsort()]
        for image, needs_retry in enumerate(Estimates.unpacked(rows).needs_retry.tolist()):
            if needs_retry:
                self.redone += 1
                packed, its_votes = self._run(inputs, [image], return_votes, exact=True)
                rows[image] = packed[0].cpu()
                votes |= its_votes
        return Estimates.unpacked(rows)._replace(votes=[votes[image] for image in sorted(votes)])

    def _in_parts(self, inputs: _Inputs, return_votes: bool) -> Iterator[tuple[list[int], Tensor, _Votes]]:
        """Images that are alike and fit into memory together, and the result of `_run` for them."""
        together = self._pipeline.together(self._exact)
        for rest in self._alike(inputs):
            while rest:
                members = rest[:together]
                try:
                    result = self._run(inputs, members, return_votes)
                except torch.OutOfMemoryError:
                    if len(members) == 1:
                        raise
                    together = len(members) // 2
                    LOG.warning(
                        "out of memory on %s: going on with %d images at a time", self.device, together
                    )
                    continue
                yield members, *result
                rest = rest[len(members) :]

    def _alike(self, inputs: _Inputs) -> list[list[int]]:
        """The images in groups whose crops have one shape and one factor, of known or of unknown sides."""
        groups = defaultdict(list)
        for image, (plan, both_sides) in enumerate(zip(inputs.plans, inputs.both_sides, strict=True)):
            groups[self._cut_shape(plan), plan.factor, both_sides].append(image)
        return list(groups.values())

    def _cut_shape(self, plan: ViewPlan) -> tuple[int, int]:
        """Rows and columns of a crop, padding included."""
        height, width = (part.stop - part.start for part in (plan.rows, plan.columns))
        if self.device.type != "cuda":
            return height, width
        unit = CUT_PX * plan.factor
        return -(-height // unit) * unit, -(-width // unit) * unit

    def _run(
        self, inputs: _Inputs, members: list[int], return_votes: bool, exact: bool = False
    ) -> tuple[Tensor, _Votes]:
        """`Estimates.packed` of images that are alike, on the device, and their votes if requested."""
        views, factor = self._views(inputs, members), inputs.plans[members[0]].factor
        if self._replay is not None and not (exact or return_votes or self._stages.measuring):
            given = tuple(tensor is not None for tensor in views)
            key = _Key(tuple(views.cuts.shape), factor, given)
            return self._replay(key, *(tensor for tensor in views if tensor is not None)), {}
        estimates = self._pipeline(views, factor, exact or self._exact)
        return estimates.packed(), dict(zip(members, estimates.votes, strict=True)) if return_votes else {}

    def _views(self, inputs: _Inputs, members: list[int]) -> Views:
        """What the pipeline takes of images that are alike, on the device."""
        plans = [inputs.plans[image] for image in members]
        matrices = torch.stack([plan.matrix for plan in plans])
        known = [inputs.scale, inputs.previous, inputs.slopes]
        with self._stages("remap"):
            views = Views(
                self._cuts([inputs.images[image] for image in members], plans),
                self._sent(matrices),
                *(None if tensor is None else self._sent(tensor[members]) for tensor in known),
            )
            if inputs.both_sides[members[0]]:
                mirror = matrices.new_tensor(
                    [[-1.0, 0.0, self.model.config.input_size], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
                )
                views = views._replace(mirrored=self._sent(matrices @ mirror))
        return views

    def _launch(self, key: _Key, *tensors: Tensor) -> Tensor:
        """The pipeline as `Replay` calls it."""
        remaining = iter(tensors)
        views = Views(*(next(remaining) if given else None for given in key.given))  # type: ignore[arg-type]
        return self._pipeline(views, key.factor).packed()

    def _cuts(self, images: list[Any], plans: list[ViewPlan]) -> Tensor:
        """(B, h, w, 3) uint8 on the device: the crops of the images that their views show."""
        parts = [_tensor(image[plan.rows, plan.columns]) for image, plan in zip(images, plans, strict=True)]
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
    """Load an estimator with trained weights.

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


class _Key(NamedTuple):
    """What one graph serves: the crops' shape and factor, and which of the `Views` are given."""

    shape: tuple[int, ...]
    factor: int
    given: tuple[bool, ...]


class _Inputs(NamedTuple):
    """Images, and what is known about each."""

    images: list[Any]  # (H, W, 3) uint8
    plans: list[ViewPlan]
    scale: Tensor | None  # (B,) float32 mm, for the network
    previous: Tensor | None  # (B, 21, 3) float32 mm, in the volume's frame
    slopes: Tensor | None  # (B,) float32, of hand views
    both_sides: list[bool]  # whether the mirrored hand view may be the one that counts


def _tensor(image: Any) -> Tensor:
    if isinstance(image, Tensor):
        return image
    # torch takes no negative strides, and warns of arrays that cannot be written to.
    return torch.from_numpy(image if image.flags.writeable and min(image.strides) >= 0 else image.copy())


def _sized(pose: HandPose, errors: Tensor, scale: Tensor | None) -> HandPose:
    """The pose in a hand view, for hand scales (B,) mm or the unit hand, with expected errors (B, 21) mm."""
    valid = pose.valid[:, None]
    if scale is not None:
        ratio = scale.double() / UNIT_SCALE_MM
        size = ratio[:, None, None]
        votes = pose.votes
        if isinstance(votes, tuple):
            votes = tuple(
                Votes((each.points * r).float(), each.weights, (each.directions * r).float())
                for each, r in zip(votes, ratio, strict=True)
            )
        errors = (errors * ratio[:, None]).float()
        pose = replace(pose, joints=(pose.joints * size).float(), votes=votes)
    return replace(
        pose,
        expected_error=torch.where(valid, errors, math.nan),
        scores=torch.where(valid, error_scores(errors), 0.0),
    )


def _pose(estimates: Estimates, placement: Placement, intrinsics: Tensor, with_votes: bool) -> HandPose:
    """The batch of poses on the CPU, in the frames of the cameras that took the images."""
    # Points are rows, and the inverse of a frame is its transpose.
    joints = estimates.joints.double() @ placement.frames + placement.origins[:, None]
    valid = joints.isfinite().all(-1).all(-1)
    joints = torch.where(valid[:, None, None], joints, math.nan)
    votes = []
    for (points, cast), frame, origin, count in zip(
        estimates.votes,
        placement.frames.float(),
        placement.origins.float(),
        estimates.voters.tolist(),
        strict=False,
    ):
        points, cast = points[:count].cpu(), cast[:count].cpu()
        votes.append(Votes(points @ frame + origin, cast[..., 0], cast[..., 1:] @ frame))
    return HandPose(
        joints=joints.float(),
        joints_2d=project(joints, intrinsics).float(),
        scores=torch.where(valid[:, None], estimates.scores, 0.0),
        voters=estimates.voters,
        valid=valid,
        points_evaluated=estimates.points_evaluated,
        votes=tuple(votes) if with_votes else None,
    )
