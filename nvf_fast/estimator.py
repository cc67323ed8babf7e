"""The estimator: images in, poses out."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np
import torch
from torch import Tensor

from nvf_fast import ops
from nvf_fast.baselines import DenseBaseline, HolisticBaseline, Network
from nvf_fast.batches import BatchRunner, as_tensor
from nvf_fast.camera import project
from nvf_fast.camera_poses import camera_poses
from nvf_fast.finding import (
    FOUND_SCORE,
    LEAST,
    MOST_CANDIDATES,
    SMALLEST,
    Candidates,
    FoundHands,
    HandFinder,
    distinct,
    pixel_boxes,
    squared,
    viewable,
)
from nvf_fast.grid import Lattice
from nvf_fast.hand_pipeline import HandPipeline
from nvf_fast.inputs import read_images, read_intrinsics
from nvf_fast.model import NVF
from nvf_fast.pipeline import BaselinePipeline, FieldPipeline, Pipeline, QueryOptions
from nvf_fast.pose import A, HandPose
from nvf_fast.requests import RequestReader
from nvf_fast.runtime.cuda_graph import CudaRecorder
from nvf_fast.runtime.profiling import Profiler
from nvf_fast.search import Search
from nvf_fast.surface import Distance, field_distance
from nvf_fast.volumes import FrustumVolume, HandLattice, HandVolume, RootCube, volume_of


class PoseEstimator:
    """Estimator of the camera-space poses of hands in images.

    The network's configuration determines the view and the required arguments. A network of hand views uses a
    virtual camera that turns to a box and zooms to its size. A camera-space network of the paper uses the
    reference camera, along the optical axis or turned to a box; a root-relative one a cube about a given
    wrist. The baselines of Sec. 4.1 are used in the same way.

    Args:
        model: the network, which is copied.
        step_mm: mm, spacing of the query points.
        surface_mm: mm; a point votes where abs(sdf) is smaller.
        fraction: in (0, 1], ratio of the voters that count for each joint, largest weights first (Sec. 4.7).
        search: the queried points of the grid: "dense", all of them; "octree", those that subdivision from 16
            mm reaches, for steps of 8 mm and less; "guided", those about the bones of a provisional pose. The
            last two query image by image and may miss voters (`nvf_fast.search`). Hand views support "dense"
            only.
        device: where to compute; None is the model's device.
        dtype: torch.float32, float16 or bfloat16, precision of the encoder and of the field's matrix
            products; sums, depths and votes stay float32. None is float32 on a CPU, float16 on CUDA, where
            float32 convolutions are TF32 unless `torch.backends.cudnn.allow_tf32` is off.
        backend: of querying, selecting and voting (`nvf_fast.ops`), "triton" or "torch"; None chooses by
            device, as the encoder's norms always do.

    Raises:
        ValueError: a number is out of range, or an option of the field is given to a baseline.
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
        hand = model.config.view == "hand"
        self.volume: FrustumVolume | RootCube | HandVolume = HandVolume() if hand else volume_of(model.config)
        self._profiler = Profiler(self.device)
        self._read = RequestReader(model.config, self.volume, search)
        # The PyTorch path synchronises anyway, so lists are sized exactly.
        recorder = CudaRecorder(self.device) if self.device.type == "cuda" and backend != "torch" else None
        self.runner = BatchRunner(
            self._make_pipeline(), model.config.input_size, self.device, self._profiler, recorder
        )
        self._finder = (
            HandFinder(self.model, self.dtype, self._profiler) if isinstance(self.model, NVF) else None
        )

    def _make_pipeline(self) -> Pipeline:
        if isinstance(self.volume, HandVolume):
            assert isinstance(self.model, NVF)
            return HandPipeline(self.model, self.volume, self.options, self._profiler)
        if not isinstance(self.model, HolisticBaseline | DenseBaseline):
            return FieldPipeline(self.model, self.volume, self.options, self._profiler)
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
        return BaselinePipeline(self.model, self.dtype, self._profiler)

    def __call__(
        self,
        image: A | Sequence[A],
        K: Any,
        hand_scale: Any = None,
        box: Any = None,
        side: str | Sequence[str | None] | None = None,
        return_votes: bool = False,
        previous: HandPose[Any] | None = None,
        root: Any = None,
    ) -> HandPose[A]:
        """Estimate the pose of the hand in one image, or of one hand in each of several.

        Args:
            image: (H, W, 3) uint8 RGB, numpy or torch; or several: (B, H, W, 3), or a list of (H, W, 3) of
                any sizes.
            K: (3, 3), or (B, 3, 3) one per image; intrinsics in px, the first pixel of a row centred at 0.
            hand_scale: mm, length of the middle finger's proximal phalanx (joints 9 to 10): a number, or
                (B,). None where it is unknown, which a model trained with it always given rejects. Hand views
                yield the pose of a unit hand (`joint_definitions.UNIT_SCALE_MM`), which a given scale
                multiplies exactly.
            box: px, (x0, y0, x1, y1) around the hand, or (B, 4). A hand view turns to its centre and zooms so
                that its longer side spans 75 %; without a box and `previous` it finds every hand of one
                image. The reference camera, which spans 26.3 degrees, turns to its centre, and a warning
                reports a box wider than the view; None looks along the optical axis.
            side: "right", "left" or None, or one per image. With None a network of hand views predicts the
                side; other networks assume a right hand.
            return_votes: whether the pose also holds its voters.
            previous: the pose of the preceding frame in the same camera's frame, or a batch of them. The box
                of its projected joints replaces `box` for a hand view, for which it must be valid. With
                search="guided" it replaces the sparse pass; an invalid or distant pose then costs only time.
            root: mm, (3,) or (B, 3), the wrist in the frame of the camera that took the image, for a
                root-relative network.

        Returns:
            One pose, or a batch for several images; without a box, all hands found in the image, best first,
            possibly none. numpy arrays for numpy images, torch tensors on the images' device for torch ones.
            Where no point votes, or where the view of a given box shows no hand, `valid` is false and joints
            are NaN.

        Raises:
            ValueError: a shape or a value is invalid; the message compares it with the expected one.
            TypeError: an argument has the wrong type or dtype.
        """
        if box is None and root is None and previous is None and isinstance(self.volume, HandVolume):
            return self._every_hand(image, K, hand_scale, side, return_votes)
        # On a CPU, inference mode saves 4 % of a call.
        with torch.inference_mode() if self.device.type == "cpu" else torch.no_grad():
            with self._profiler.stage("prepare"):
                request = self._read(image, K, hand_scale, box, side, return_votes, previous, root)
            estimates = self.runner(request, return_votes)
            with self._profiler.stage("read"):
                pose = camera_poses(estimates, request, return_votes, self.model.config.presence_threshold)
        result = _like(pose, request.groups[0])
        return result[0] if request.single else result

    @torch.no_grad()
    def find(self, image: Any, K: Any, score: float = FOUND_SCORE, smallest: float = SMALLEST) -> FoundHands:
        """Find the hands of one image.

        Candidates are peaks of the network's maps of hands' centres in views of the whole image at several
        sizes. Unlike a call without a box, this does not verify them in closer views.

        Args:
            image: (H, W, 3) uint8 RGB, numpy or torch.
            K: (3, 3) intrinsics in px.
            score: least score in [0, 1].
            smallest: side of the smallest box to look for, relative to the image's longer side. Smaller
                ones need a finer view; the time grows with its area.

        Raises:
            ValueError: the network does not find hands, several images came, or a value is out of its range.
            TypeError: an argument has the wrong type or dtype.
        """
        image, intrinsics = self._read_one(image, K)
        found = self._candidates(image, intrinsics, score, smallest)
        found = found.chosen(distinct(found.boxes, found.scores))
        sides = tuple("left" if left > 0.5 else "right" for left in found.left.tolist())
        if isinstance(image, np.ndarray):
            return FoundHands(found.boxes.numpy(), sides, found.scores.numpy())
        return FoundHands(found.boxes.to(image.device), sides, found.scores.to(image.device))

    def _read_one(self, image: Any, K: Any) -> tuple[Any, Tensor]:
        """A single image (H, W, 3) and its intrinsics (1, 3, 3)."""
        (images, *_), single = read_images(image)
        if not single:
            raise ValueError(
                "hands are found in one image, got several: pass one at a time, or box as (B, 4) px"
            )
        return images[0], read_intrinsics(K, 1)

    def _candidates(self, image: Any, intrinsics: Tensor, score: float, smallest: float) -> Candidates:
        if self._finder is None or not isinstance(self.volume, HandVolume):
            raise ValueError("find requires a network of hand views")
        if not 0 <= score <= 1:
            raise ValueError(f"score must be in [0, 1], got {score}")
        if not LEAST <= smallest <= 1:
            raise ValueError(f"smallest must be {LEAST:g} to 1 of the image's longer side, got {smallest}")
        focal = float(intrinsics[0, :2, :2].diagonal().mean())
        return self._finder(as_tensor(image).to(self.device), focal, score, smallest)

    def _every_hand(
        self, image: Any, K: Any, hand_scale: Any, side: Any, return_votes: bool
    ) -> HandPose[Any]:
        """Estimate the poses of all hands found in one image.

        A closer view of each candidate yields coarse joints, whose box places the view for the pose.
        """
        image, intrinsics = self._read_one(image, K)
        config = self.model.config
        with torch.inference_mode() if self.device.type == "cpu" else torch.no_grad():
            found = self._candidates(image, intrinsics, FOUND_SCORE, SMALLEST)
            found = found.chosen(viewable(found.boxes, intrinsics[0], *image.shape[:2]))
            found = found.chosen(distinct(found.boxes, found.scores, nested=1.0)[:MOST_CANDIDATES])
            if len(found.boxes):
                found = self._verified(image, intrinsics, found, side)
            if not len(found.boxes):
                return _like(HandPose.none(return_votes), image)
            count = len(found.boxes)
            with self._profiler.stage("prepare"):
                request = self._read(
                    [image] * count, intrinsics[0], hand_scale, found.boxes, [side] * count, return_votes
                )
            estimates = self.runner(request, return_votes)
            with self._profiler.stage("read"):
                presence = (estimates.presence.logit(1e-6) + found.scores.logit(1e-6)).sigmoid()
                pose = camera_poses(estimates, request, return_votes, config.presence_threshold)
                pose = replace(pose, presence=presence)
                rows = (pose.valid & (presence >= config.finding_threshold)).nonzero()[:, 0]
                boxes = squared(pixel_boxes(pose.joints_2d[rows]))
                # Two boxes may lead to one hand, or one box to a part of another hand.
                rows = rows[distinct(boxes, presence[rows])]
        return _like(pose[rows.tolist()], image)

    def _verified(self, image: Any, intrinsics: Tensor, found: Candidates, side: Any) -> Candidates:
        """Verify candidates in a closer view and return the boxes of their coarse joints."""
        assert isinstance(self.model, NVF)
        count = len(found.boxes)
        with self._profiler.stage("prepare"):
            # One view of each suffices, since the network's presence covers hands of either side.
            request = self._read([image] * count, intrinsics[0], None, found.boxes, [side or "right"] * count)
        images = self.runner.network_images(request, self.dtype)
        with self._profiler.stage("encode"):
            slopes = request.slopes.to(self.device)  # type: ignore[union-attr]
            encoding = self.model.encode_hands(images, slopes)
        with self._profiler.stage("read"):
            present = encoding.presence.sigmoid() >= self.model.config.presence_threshold
            joints = encoding.joints(slopes).double().cpu() @ request.placement.frames
            boxes = squared(pixel_boxes(project(joints, request.intrinsics))).float()
            verified = present.cpu() & viewable(boxes, intrinsics[0], *image.shape[:2])
            return found._replace(boxes=boxes).chosen(verified)

    @torch.no_grad()
    def field_distance(
        self, image: Any, K: Any, pose: HandPose[Any], hand_scale: float | None = None, root: Any = None
    ) -> Distance:
        """The field's signed distance to one hand, as a function of points.

        `nvf_fast.surface.field_mesh` meshes its zero level.

        Args:
            image, K, hand_scale, root: as the pose was estimated from.
            pose: one pose in the image, whose side and box place the view.

        Returns:
            A function of points (N, 3) float32 mm in the frame of the camera that took the image, on the
            estimator's device, to (N,) mm, negative inside, +inf outside the view.

        Raises:
            ValueError: the network has no field, the pose is a batch, or an argument is invalid.
        """
        if not isinstance(self.model, NVF):
            raise ValueError(f"a {self.model.config.method!r} baseline has no field")
        if pose.joints.ndim != 2:
            raise ValueError(f"pose must be one pose, got a batch of {len(pose)}")
        request = self._read(image, K, hand_scale, pose.box, pose.side, root=root)
        view = self.runner.network_images(request, self.dtype)
        return field_distance(self.model, self.volume, view, request)

    @property
    def retried(self) -> int:
        """Number of images that ran again because of a fixed size or a search's guard."""
        return self.runner.retried

    @property
    def takes_hand_scale(self) -> bool:
        """Whether a hand scale may be given: an input of the network, or a factor of a hand view's pose."""
        return self.model.config.hand_scale or isinstance(self.volume, HandVolume)

    @property
    def lattice(self) -> Lattice | HandLattice:
        """The query points of the field.

        Raises:
            AttributeError: the network has no field.
        """
        return self.runner.pipeline.lattice  # type: ignore[attr-defined]

    def timed(self) -> AbstractContextManager[dict[str, float]]:
        """Measure the enclosed calls: a dict of each stage's total milliseconds, in order.

        Each stage is then launched separately and synchronises, so that on CUDA the sum exceeds the time of
        an unmeasured call.
        """
        return self._profiler.timed()


class EstimatorOptions(TypedDict, total=False):
    """Options of `load`, as in `PoseEstimator`."""

    step_mm: float
    surface_mm: float
    fraction: float
    search: Search
    backend: ops.Backend | None


def load(
    name: str | Path | None = None,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **options: Unpack[EstimatorOptions],
) -> PoseEstimator:
    """Load an estimator with trained weights.

    Args:
        name: an embedded checkpoint, the path of a checkpoint folder, or a hub id; None is the embedded one.
        device: where to compute; None is CUDA if available, else the CPU.
        dtype: as in `PoseEstimator`; None is float32 on a CPU, float16 on CUDA.
        options: further arguments of `PoseEstimator`: step_mm, surface_mm, fraction, search and backend.

    Raises:
        FileNotFoundError: the checkpoint does not exist.
        ValueError: the checkpoint is damaged, or an option is out of range.
    """
    from nvf_fast.checkpoint import load_checkpoint

    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    model, _ = load_checkpoint(name, device)
    return PoseEstimator(model, dtype=dtype, **options)


def _like(pose: HandPose[Tensor], image: Any) -> HandPose[Any]:
    """Convert a torch pose on the CPU to numpy arrays, or to new tensors on the device of a torch image.

    New ones, since tensors created in inference mode cannot take part in a caller's gradients.
    """
    if isinstance(image, np.ndarray):
        return pose.numpy()
    return pose.clone() if image.device.type == "cpu" else pose.to(image.device)
