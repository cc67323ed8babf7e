"""The estimator: images in, poses out."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypedDict, Unpack

import numpy as np
import torch

from nvf_fast import ops
from nvf_fast.baselines import DenseBaseline, HolisticBaseline, Network
from nvf_fast.batches import BatchRunner, as_tensor
from nvf_fast.camera_model import Cameras
from nvf_fast.camera_poses import camera_poses
from nvf_fast.depth import read_depths, scaled_to_depth
from nvf_fast.finding import (
    CERTAIN_SIDE,
    FOUND_SCORE,
    LEAST,
    LEAST_LOGIT,
    MOST_CANDIDATES,
    SMALLEST,
    Candidates,
    Detector,
    FoundHands,
    HandFinder,
    detected,
    distinct,
    distinct_hands,
    finding_logits,
    hand_evidence,
    pixel_boxes,
    squared,
    thinning,
    viewable,
)
from nvf_fast.grid import Lattice
from nvf_fast.hand_pipeline import HandPipeline
from nvf_fast.inputs import read_cameras, read_hand_scale, read_images, read_one_image, read_sides
from nvf_fast.joint_definitions import UNIT_SCALE_MM
from nvf_fast.model import NVF
from nvf_fast.pipeline import BaselinePipeline, FieldPipeline, Pipeline, QueryOptions, Results
from nvf_fast.pose import A, HandPose
from nvf_fast.quantisation import is_quantised
from nvf_fast.requests import Request, RequestReader
from nvf_fast.runtime.ambient import unaffected
from nvf_fast.runtime.arguments import check_number
from nvf_fast.runtime.cuda_graph import CudaRecorder
from nvf_fast.runtime.devices import PRECISIONS, check_precision, read_device
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
            float32 convolutions are TF32 unless `torch.backends.cudnn.allow_tf32` is off. On an x86 CPU,
            torch.int8 quantises the convolutions of a U-Net and leaves the rest in float32: hands are found
            and posed in 50 to 70 % of the time, and joints move by some tenths of a millimetre.
        backend: of querying, selecting and voting (`nvf_fast.ops`), "triton" or "torch"; None chooses by
            device, as the encoder's norms always do.
        min_presence: in [0, 1], lowest `presence` of a hand found in a whole image; None is the network's
            `finding_threshold`, and 0 for the boxes of a detector.

    Raises:
        ValueError: a number is out of range, an option of the field is given to a baseline, or the dtype
            torch.int8 is not supported by the network, the device or this build of PyTorch.
        TypeError: the dtype is not one of the four.
    """

    @unaffected()
    @torch.inference_mode(False)
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
        min_presence: float | None = None,
    ) -> None:
        if min_presence is not None:
            check_number("min_presence", min_presence)
            if not 0 <= min_presence <= 1:
                raise ValueError(f"min_presence must be in [0, 1], got {min_presence}")
        self.min_presence = min_presence
        self.device = model.field.biases[0].device if device is None else read_device(device)
        self.dtype = dtype or (torch.float16 if self.device.type == "cuda" else torch.float32)
        check_precision(self.dtype, (*PRECISIONS, torch.int8))
        quantised = self.dtype == torch.int8
        if quantised and (self.device.type != "cpu" or model.config.encoder != "unet"):
            given = f"encoder={model.config.encoder!r} on {self.device}"
            raise ValueError(f"dtype torch.int8 needs encoder='unet' on a CPU, got {given}")
        if is_quantised(model.encoder) and not quantised:
            raise ValueError(f"the network is quantised for dtype torch.int8, got {self.dtype}")
        computed = torch.float32 if quantised else self.dtype
        self.options = QueryOptions(step_mm, surface_mm, fraction, search, computed, backend)
        model = copy.deepcopy(model).float()  # folded in float32, and only the encoder has another dtype
        model = model.for_inference(quantised) if isinstance(model, NVF) else model
        self.model = model.to(self.device).eval().requires_grad_(False)
        self.model.encoder.to(computed)
        self.model.encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        hand = model.config.view == "hand"
        self.volume: FrustumVolume | RootCube | HandVolume = HandVolume() if hand else volume_of(model.config)
        self._profiler = Profiler(self.device)
        self._read = RequestReader(model.config, self.volume, search)
        # The PyTorch path synchronises anyway, so lists are sized exactly.
        recorder = CudaRecorder(self.device) if self.device.type == "cuda" and backend != "torch" else None
        self.runner = BatchRunner(
            self._make_pipeline(), model.config, self.device, self.options, self._profiler, recorder
        )
        self._finder = (
            HandFinder(self.model, computed, self._profiler) if isinstance(self.model, NVF) else None
        )

    def __repr__(self) -> str:
        config = self.model.config
        return (
            f"PoseEstimator({type(self.model).__name__}, {config.view} view of {config.input_size} px, "
            f"step_mm={self.options.step_mm:g}, device={self.device}, dtype={self.dtype})"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy the network and the options; profilers, CUDA graphs and caches are recreated."""
        options = vars(self.options) | {
            "device": self.device,
            "dtype": self.dtype,
            "min_presence": self.min_presence,
        }
        return partial(PoseEstimator, **options), (self.model,)

    def _make_pipeline(self) -> Pipeline:
        if isinstance(self.volume, HandVolume):
            assert isinstance(self.model, NVF)
            return HandPipeline(self.model, self.volume, self.options, self._profiler)
        if not isinstance(self.model, HolisticBaseline | DenseBaseline):
            return FieldPipeline(self.model, self.volume, self.options, self._profiler)
        default = QueryOptions(dtype=self.options.dtype, backend=self.options.backend)
        given = [
            field.name
            for field in fields(default)
            if getattr(self.options, field.name) != getattr(default, field.name)
        ]
        if given:
            raise ValueError(
                f"{given} are options of a field, but a {self.model.config.method!r} baseline has no field"
            )
        return BaselinePipeline(self.model, self._profiler)

    @unaffected()
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
        depth: Any = None,
    ) -> HandPose[A]:
        """Estimate the poses of the hands in one image, or in each of several.

        Args:
            image: (H, W, 3) uint8 RGB, numpy or torch; or several: (B, H, W, 3), or a list of (H, W, 3) of
                any sizes.
            K: (3, 3), or (B, 3, 3) one per image; intrinsics in px, the first pixel of a row centred at 0. Or
                a `Camera`, or a list with one per image, whose lens distortion is undone.
            hand_scale: mm between joints 9 and 10, the ends of the middle finger's proximal phalanx as
                FreiHAND defines them, on average 31.7: a number, or a list with one per box, without boxes
                one per image. None where it is unknown; a model that was
                always given it in training requires it. Hand views yield the pose of a unit hand
                (`joint_definitions.UNIT_SCALE_MM`), which a given scale multiplies exactly.
            box: px, (x0, y0, x1, y1) around the hand, or (N, 4) around several of one image; for B images
                (B, 4), or a list with one or several boxes of each. Or a `FoundHands` for each image, whose
                sides replace an absent `side`. A hand view turns to the box's centre and
                zooms so that its longer side spans 75 %; a warning reports a box more than four times as long
                as the image. The reference camera, which spans 26.3 degrees,
                turns to its centre, and a warning reports a box wider than the view; None looks along the
                optical axis. Without a box and `previous`, a network of hand views finds every hand. A
                callable finds them instead (`finding.Detector`): it takes an image and returns boxes, boxes
                and sides, or boxes, sides and scores; closer views then verify and improve its boxes, of
                which the best 32 are used, with a warning if it returns more.
            side: "right", "left" or None, or a list with one per box, without boxes one per image, of all its
                hands. With None a network of hand views predicts the side; other networks assume a right
                hand.
            return_votes: whether the pose also holds its voters.
            previous: the pose of the preceding frame in the same camera's frame, or a batch of them. The box
                of its projected joints replaces `box` for a hand view, for which it must be valid. With
                search="guided" it replaces the sparse pass; an invalid or distant pose then costs only time.
            root: mm, (3,) or (B, 3), the wrist in the frame of the camera that took the image, for a
                root-relative network.
            depth: mm along the optical axis, (H, W) aligned with the image, or one per image; 0 or NaN where
                nothing was measured. Where it shows the hand, the pose is scaled about the camera to the
                measured depth; otherwise a warning gives the reason (`nvf_fast.depth`).

        Returns:
            One pose for one image with one box (4,), else a batch, in the order of the boxes. Found hands, at
            most 32 in an image, are ordered by image, then by presence, and the batch may be empty;
            `image_index` is the index of each hand's image. numpy images give numpy arrays, and torch images
            give torch tensors on their device.
            Where no point votes, or where the view of a given box shows no hand, `valid` is false and joints
            are NaN. A warning reports a hand at the end of the queried depths.

        Raises:
            ValueError: a shape or a value is invalid; the message compares it with the expected one.
            TypeError: an argument has the wrong type or dtype.
        """
        if depth is not None:
            images, _ = read_images(image, self.model.config.image_channels)
            depths = read_depths(depth, [each.shape[:2] for each in images])
            unscaled = self(image, K, hand_scale, box, side, return_votes, previous, root)
            return scaled_to_depth(unscaled, depths, K)
        if self._finds_hands(box, previous, root):
            return self._every_hand(image, K, hand_scale, side, return_votes, box)
        # On a CPU, inference mode saves 4 % of a call.
        with torch.inference_mode() if self.device.type == "cpu" else torch.no_grad():
            with self._profiler.stage("prepare"):
                request = self._read(image, K, hand_scale, box, side, return_votes, previous, root)
            pose = self._posed(request, return_votes)
        result = _like(pose, image if hasattr(image, "ndim") else image[0])
        return result[0] if request.single else result

    @unaffected()
    def submit(
        self,
        image: A | Sequence[A],
        K: Any,
        hand_scale: Any = None,
        box: Any = None,
        side: str | Sequence[str | None] | None = None,
        previous: HandPose[Any] | None = None,
        root: Any = None,
    ) -> PendingPose[A]:
        """Begin a call, so that on CUDA the next image is prepared while this one is processed.

        Args:
            image, K, hand_scale, box, side, previous, root: as in a call. A network of hand views needs `box`
                or `previous`, since finding hands waits for the device.

        Returns:
            The pending pose; its `result()` waits and returns the result of a call. At most two poses are
            pending: a third `submit` first waits for the oldest. On a CPU everything happens inside `submit`.

        Raises:
            ValueError: a shape or a value is invalid, or hands would have to be found.
            TypeError: an argument has the wrong type or dtype.

        Examples:
            >>> import nvf_fast
            >>> from nvf_fast.image_files import demo_image
            >>> image, K = demo_image()
            >>> estimator = nvf_fast.load(device="cpu")
            >>> boxes = [(722, 281, 895, 454), (510, 51, 698, 239)]
            >>> pending = [estimator.submit(image, K, box=box, side="right") for box in boxes]
            >>> [pose.result().joints.shape for pose in pending]
            [(21, 3), (21, 3)]
        """
        if self._finds_hands(box, previous, root):
            raise ValueError(
                "submit needs a box or a previous pose, since finding hands waits for the device"
            )
        with torch.inference_mode() if self.device.type == "cpu" else torch.no_grad():
            with self._profiler.stage("prepare"):
                request = self._read(image, K, hand_scale, box, side, False, previous, root)
            launched = self.runner.submit(request) if request.images else None
        given: Any = image if hasattr(image, "ndim") else image[0]
        return PendingPose(partial(self._awaited, request, launched, given))

    @unaffected()
    def _awaited(self, request: Request, launched: Callable[[], Results] | None, image: Any) -> HandPose[Any]:
        """The poses of a submitted request."""
        with torch.inference_mode() if self.device.type == "cpu" else torch.no_grad():
            pose = self._posed(request, False, launched)
        result = _like(pose, image)
        return result[0] if request.single else result

    def _finds_hands(self, box: Any, previous: Any, root: Any) -> bool:
        """Whether the network or a detector finds the hands, since no argument places them."""
        searched = callable(box) or (box is None and isinstance(self.volume, HandVolume))
        return searched and previous is None and root is None

    def _posed(
        self, request: Request, return_votes: bool, launched: Callable[[], Results] | None = None
    ) -> HandPose[np.ndarray]:
        """The poses of a request, which is launched here if it was not yet."""
        if not request.images:
            return HandPose.none(return_votes).numpy()
        results = (launched or self.runner.submit(request, return_votes))()
        with self._profiler.stage("read"):
            pose = camera_poses(results, request, return_votes, self.model.config.presence_threshold)
        if isinstance(self.volume, FrustumVolume):
            self.volume.warn_at_ends(results.joints[pose.valid])
        return pose

    @unaffected()
    @torch.no_grad()
    def find(self, image: Any, K: Any, score: float = FOUND_SCORE, smallest: float = SMALLEST) -> FoundHands:
        """Find the hands of one image.

        Candidates are peaks of the network's maps of hands' centres in views of the whole image at several
        sizes. Unlike a call without a box, this does not verify them in closer views.

        Args:
            image: (H, W, 3) uint8 RGB, numpy or torch.
            K: (3, 3) intrinsics in px, or a `Camera`.
            score: least score in [0, 1].
            smallest: side of the smallest box to look for, relative to the image's longer side. Smaller
                boxes need a finer view, and the time grows with the area of the view. Boxes of fewer than
                14 px are not searched for.

        Raises:
            ValueError: the network does not find hands, several images are given, or a value is out of range.
            TypeError: an argument has the wrong type or dtype.

        Examples:
            >>> import nvf_fast
            >>> from nvf_fast.image_files import demo_image
            >>> image, K = demo_image()
            >>> estimator = nvf_fast.load(device="cpu")
            >>> found = estimator.find(image, K)
            >>> pose = estimator(image, K, box=found)
            >>> pose[pose.valid].joints.shape
            (2, 21, 3)
        """
        image = read_one_image("find", image, self.model.config.image_channels)
        check_number("score", score)
        check_number("smallest", smallest)
        if not 0 <= score <= 1:
            raise ValueError(f"score must be in [0, 1], got {score}")
        if not LEAST <= smallest <= 1:
            raise ValueError(f"smallest must be {LEAST:g} to 1 of the image's longer side, got {smallest}")
        found = self._candidates(image, read_cameras(K, [image.shape[:2]]), score, smallest)
        found = found.chosen(distinct(found.boxes, found.scores))
        sides = tuple(found.sides())
        if isinstance(image, np.ndarray):
            return FoundHands(found.boxes.numpy(), sides, found.scores.numpy())
        return FoundHands(found.boxes.to(image.device), sides, found.scores.to(image.device))

    def _candidates(self, image: Any, camera: Cameras, score: float, smallest: float) -> Candidates:
        if self._finder is None or not isinstance(self.volume, HandVolume):
            raise ValueError("finding hands requires a network of hand views: this one needs a box")
        focal = float(camera.intrinsics[0, :2, :2].diagonal().mean())
        step = thinning(*image.shape[:2])
        top, left = (min(step, extent) // 2 for extent in image.shape[:2])
        thinned = as_tensor(image[top::step, left::step]).to(self.device)
        found = self._finder(thinned, focal / step, score, smallest)
        return found._replace(boxes=found.boxes * step + torch.tensor([left, top, left, top]))

    def _every_hand(
        self,
        image: Any,
        K: Any,
        hand_scale: Any,
        side: Any,
        return_votes: bool,
        detector: Detector | None,
    ) -> HandPose[Any]:
        """Estimate the poses of all hands found in images.

        A closer view of each candidate yields coarse joints, whose box places the view for the pose.
        """
        if not isinstance(self.volume, HandVolume):
            raise ValueError(
                "a detector as box requires a network of hand views: call the detector and pass its boxes"
            )
        images, _ = read_images(image, self.model.config.image_channels)
        count, config = len(images), self.model.config
        cameras = read_cameras(K, [each.shape[:2] for each in images])
        sides = read_sides(side, count, of="image")
        scales = read_hand_scale(hand_scale, count, config, of="image")
        with torch.inference_mode() if self.device.type == "cpu" else torch.no_grad():
            pose, centres = self._proposed(images, cameras, scales, sides, return_votes, detector)
            with self._profiler.stage("read"):
                if detector is None:
                    logits = finding_logits(_evidence(pose, centres), config.finding_weights)
                    pose = replace(pose, presence=logits.sigmoid().float().numpy())
                assert pose.image_index is not None
                accepted = pose.valid & (pose.presence >= self._least_presence(detector))
                rows = [(accepted & (pose.image_index == i)).nonzero()[0] for i in range(count)]
                pose = pose[[row for each in rows for row in distinct_hands(pose, pose.presence, each)]]
        return _like(pose, images[0])

    @unaffected()
    def proposals(self, image: np.ndarray, K: Any) -> tuple[HandPose[np.ndarray], np.ndarray]:
        """Estimate the poses of all candidates in one image that a closer view verifies, with their evidence.

        A call without a box combines this evidence into `presence` and returns the distinct hands that reach
        `min_presence`.

        Args:
            image: (H, W, 3) uint8 RGB.
            K: (3, 3) intrinsics in px, or a `Camera`.

        Returns:
            The poses of N candidates, several of which may show one hand, and `finding.hand_evidence`,
            (N, 3).

        Raises:
            ValueError: the network does not find hands, or a value is out of its range.
            TypeError: an argument has the wrong type or dtype.
        """
        image = read_one_image("proposals", image, self.model.config.image_channels)
        cameras = read_cameras(K, [image.shape[:2]])
        with torch.inference_mode() if self.device.type == "cpu" else torch.no_grad():
            pose, centres = self._proposed([image], cameras, None, [None], False, None)
        return pose, _evidence(pose, centres).numpy()

    def _least_presence(self, detector: Detector | None) -> float:
        """Lowest presence of a hand found by the network, or by a detector."""
        if self.min_presence is not None:
            return self.min_presence
        return self.model.config.finding_threshold if detector is None else 0.0

    def _proposed(
        self,
        images: Sequence[Any],
        cameras: Cameras,
        scales: np.ndarray | None,
        sides: Sequence[str | None],
        return_votes: bool,
        detector: Detector | None,
    ) -> tuple[HandPose[np.ndarray], torch.Tensor]:
        """The poses of all verified candidates in images, and the probabilities (N,) of their centres."""
        found = [
            self._verified(each, cameras.chosen([i]), given, detector)
            for i, (each, given) in enumerate(zip(images, sides, strict=True))
        ]
        centres = torch.cat([hands.scores for hands in found])
        image_index = [i for i, hands in enumerate(found) for _ in hands.boxes]
        if not image_index:
            return HandPose.none(return_votes).numpy(), centres
        seen = [each for hands in found for each in hands.sides()]
        with self._profiler.stage("prepare"):
            request = self._read(
                images,
                cameras,
                None if scales is None else scales[image_index],
                [hands.boxes for hands in found],
                [sides[i] or each for i, each in zip(image_index, seen, strict=True)],
                return_votes,
            )
        return self._posed(request, return_votes), centres

    def _verified(
        self, image: Any, camera: Cameras, side: str | None, detector: Detector | None
    ) -> Candidates:
        """The candidates of one image that closer views verify, with their coarse joints' boxes and the sides
        that are certain."""
        assert isinstance(self.model, NVF)
        size, config = image.shape[:2], self.model.config
        if detector is None:
            found = self._candidates(image, camera, FOUND_SCORE, SMALLEST)
        else:
            found = detected(detector, image)
        found = found.chosen(viewable(found.boxes, camera, *size))
        best = distinct(found.boxes, found.scores, nested=1.0)
        if detector is not None and len(best) > MOST_CANDIDATES:
            warnings.warn(f"of {len(best)} detected boxes the best {MOST_CANDIDATES} are used", stacklevel=2)
        found = found.chosen(best[:MOST_CANDIDATES])
        if not len(found.boxes):
            return found
        with self._profiler.stage("prepare"):
            # One view of each suffices, since the network's presence covers hands of either side.
            request = self._read(image, camera, None, found.boxes, side or "right")
        images = self.runner.network_images(request)
        with self._profiler.stage("encode"):
            slopes = torch.from_numpy(request.slopes).to(self.device)
            encoding = self.model.encode_hands(images, slopes)
        with self._profiler.stage("read"):
            presence = encoding.presence.sigmoid().cpu()
            joints = encoding.joints(slopes).double().cpu() @ torch.from_numpy(request.placement.frames)
            boxes = squared(pixel_boxes(request.cameras.project(joints))).float()
            verified = (presence >= config.presence_threshold) & viewable(boxes, camera, *size)
            left = encoding.left.cpu()
            left = torch.where(left.abs() >= CERTAIN_SIDE, left.sigmoid(), torch.nan)
            if detector is not None:
                left = torch.where(found.left.isnan(), left, found.left)
                return found._replace(boxes=boxes, left=left).chosen(verified)
            evidence = hand_evidence(found.scores, presence, encoding.error.cpu())
            logits = finding_logits(evidence, config.finding_weights)
            least = float(torch.tensor(self._least_presence(None)).logit(1e-6))
            verified &= logits >= LEAST_LOGIT + least
            found, logits = found._replace(boxes=boxes, left=left).chosen(verified), logits[verified]
            return found.chosen(distinct(found.boxes, logits))

    @unaffected()
    @torch.no_grad()
    def field_distance(
        self, image: Any, K: Any, pose: HandPose[Any], hand_scale: float | None = None, root: Any = None
    ) -> Distance:
        """The field's signed distance to one hand, as a function of points.

        `nvf_fast.surface.field_mesh` meshes its zero level.

        Args:
            image, K, hand_scale, root: as in the call that estimated the pose. For hand views, None is the
                pose's hand scale.
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
        if hand_scale is None and isinstance(self.volume, HandVolume):
            hand_scale = pose.hand_scale
        request = self._read(image, K, hand_scale, pose.box, pose.side, root=root)
        view = self.runner.network_images(request)
        return field_distance(self.model, self.volume, view, request)

    @property
    def retried(self) -> int:
        """Number of images that were run again, after a full buffer or a failed check of a search."""
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

        Meanwhile, each stage is launched separately and synchronises. On CUDA the sum therefore exceeds the
        time of an unmeasured call.
        """
        return self._profiler.timed()


class PendingPose(NamedTuple, Generic[A]):
    """A submitted pose.

    Attributes:
        result: function that waits for the pose, or the batch, and returns it.
    """

    result: Callable[[], HandPose[A]]


class EstimatorOptions(TypedDict, total=False):
    """Options of `load`, as in `PoseEstimator`."""

    step_mm: float
    surface_mm: float
    fraction: float
    search: Search
    backend: ops.Backend | None
    min_presence: float | None


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
        options: further arguments of `PoseEstimator`: step_mm, surface_mm, fraction, search, backend and
            min_presence.

    Raises:
        FileNotFoundError: the checkpoint does not exist.
        ValueError: the checkpoint is damaged, or an option is out of range.

    Examples:
        >>> import numpy as np, nvf_fast
        >>> from importlib.resources import files
        >>> from nvf_fast.image_files import read_image
        >>> image = read_image(files("nvf_fast") / "assets/demo.jpg")
        >>> K = np.array([[831.4, 0, 479.5], [0, 831.4, 269.5], [0, 0, 1]])
        >>> hands = nvf_fast.load(device="cpu")(image, K)
        >>> hands.joints.shape, sorted(hands.side)
        ((2, 21, 3), ['left', 'right'])
    """
    from nvf_fast.checkpoint import load_checkpoint

    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    model, _ = load_checkpoint(name, device)
    return PoseEstimator(model, dtype=dtype, **options)


def _evidence(pose: HandPose[np.ndarray], centres: torch.Tensor) -> torch.Tensor:
    """`hand_evidence` of final poses; NaN where they are not valid."""
    assert pose.expected_error is not None and pose.hand_scale is not None
    errors = pose.expected_error * (UNIT_SCALE_MM / pose.hand_scale)[:, None]
    return hand_evidence(centres, torch.from_numpy(pose.presence), torch.from_numpy(errors))


def _like(pose: HandPose[np.ndarray], image: Any) -> HandPose[Any]:
    """Convert a pose to the array type and the device of an image."""
    return pose if isinstance(image, np.ndarray) else pose.to(image.device)
