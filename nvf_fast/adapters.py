"""Results with the names and units of other libraries: MediaPipe's Hand Landmarker, and HaMeR.

Only the layout is converted: joints stay in FreiHAND's definition. Neither library needs to be installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nvf_fast.camera_model import checked_size
from nvf_fast.finding import FoundHands, pixel_boxes, squared
from nvf_fast.inputs import read_cameras
from nvf_fast.pose import HandPose

MM_PER_M = 1000.0
HAMER_FOCAL, HAMER_SIZE = 5000.0, 256  # px, of HaMeR's camera before a crop
HAMER_PADDING = 2.0  # side of HaMeR's crop, in longer sides of the joints' box


@dataclass(frozen=True)
class Category:
    """Side of a hand: index 0 and "Right", or 1 and "Left"."""

    index: int
    score: float
    display_name: str
    category_name: str


@dataclass(frozen=True)
class Landmark:
    """A joint, normalised to the image or in metres; the hand landmarker predicts no further attributes."""

    x: float
    y: float
    z: float
    visibility: float | None = None
    presence: float | None = None
    name: str | None = None


@dataclass(frozen=True)
class HandLandmarkerResult:
    """The hands of one image, as `mediapipe.tasks.vision.HandLandmarkerResult`.

    Attributes:
        handedness: one `Category` of each hand, in a list.
        hand_landmarks: 21 of each hand. x and y are 0 and 1 at the image's borders; z is the distance beyond
            the wrist along the optical axis, in image widths at the wrist's depth, negative towards the
            camera.
        hand_world_landmarks: 21 of each hand, in metres about the mean of its joints, with the camera's axes.
    """

    handedness: list[list[Category]]
    hand_landmarks: list[list[Landmark]]
    hand_world_landmarks: list[list[Landmark]]


def to_mediapipe(
    pose: HandPose[Any], K: Any, size: Sequence[int], *, mirrored: bool = False
) -> HandLandmarkerResult:
    """Convert the poses of one image to MediaPipe's structure.

    Args:
        pose: one pose or a batch; poses that are not valid are left out.
        K: intrinsics of the image, as the estimator takes them.
        size: (width, height) of the image in px.
        mirrored: whether to swap "Left" and "Right", as `mediapipe.solutions.hands` and older versions of
            the Tasks do, which assume that every image is mirrored.

    Returns:
        The hands in the order of the poses. The score of a side is the presence of the hand, since a pose
        holds no probability of its side.

    Raises:
        ValueError, TypeError: the size is not (width, height) px, or K cannot belong to it.

    Examples:
        >>> import nvf_fast
        >>> from nvf_fast.image_files import demo_image
        >>> image, K = demo_image()
        >>> result = to_mediapipe(nvf_fast.load(device="cpu")(image, K), K, size=(960, 540))
        >>> sorted(side.category_name for (side,) in result.handedness)
        ['Left', 'Right']
        >>> 0 < result.hand_landmarks[0][8].x < 1
        True
    """
    width, height = checked_size(size)
    focal = float(read_cameras(K, [(height, width)]).intrinsics[0, 0, 0])
    result = HandLandmarkerResult([], [], [])
    pose = pose.numpy()
    for each in [pose] if pose.joints.ndim == 2 else pose:
        if not each.valid:
            continue
        joints = each.joints.astype(np.float64)
        beyond = (joints[:, 2] - joints[0, 2]) * (focal / joints[0, 2] / width)
        flat = np.concatenate([(each.joints_2d + 0.5) / [width, height], beyond[:, None]], 1)
        name = "Left" if (each.side == "left") != mirrored else "Right"
        result.handedness.append([Category(int(name == "Left"), float(each.presence), name, name)])
        result.hand_landmarks.append([Landmark(*mark) for mark in flat.tolist()])
        world = (joints - joints.mean(0)) / MM_PER_M
        result.hand_world_landmarks.append([Landmark(*mark) for mark in world.tolist()])
    return result


def from_mediapipe(result: Any, size: Sequence[int], *, mirrored: bool = False) -> FoundHands:
    """Read boxes, sides and scores from MediaPipe's result, for `box=` of the estimator.

    Args:
        result: result of the Hand Landmarker (`hand_landmarks`, `handedness`), or of
            `mediapipe.solutions.hands` (`multi_hand_landmarks`, `multi_handedness`).
        size: (width, height) of the image in px.
        mirrored: as in `to_mediapipe`; True for `mediapipe.solutions.hands` on images that are not mirrored.

    Raises:
        ValueError: the size is not positive whole numbers.
        TypeError: the result has other attributes, or the size is not (width, height).
    """
    if hasattr(result, "hand_landmarks"):
        hands, tops = result.hand_landmarks, [each[0] for each in result.handedness]
        sides = [(top.category_name, top.score) for top in tops]
    elif hasattr(result, "multi_hand_landmarks"):
        hands = [hand.landmark for hand in result.multi_hand_landmarks or []]
        tops = [each.classification[0] for each in result.multi_handedness or []]
        sides = [(top.label, top.score) for top in tops]
    else:
        raise TypeError(
            "result must be MediaPipe's, with hand_landmarks or multi_hand_landmarks, got "
            f"{type(result).__name__}"
        )
    marks = [[(mark.x, mark.y) for mark in hand] for hand in hands]
    pixels = np.array(marks, np.float64).reshape(-1, 21, 2) * checked_size(size) - 0.5
    boxes = squared(pixel_boxes(torch.from_numpy(pixels)))
    left = [(name == "Left") != mirrored for name, _ in sides]
    return FoundHands(
        boxes.float().numpy(),
        tuple("left" if each else "right" for each in left),
        np.array([score for _, score in sides], np.float32),
    )


def to_hamer(
    pose: HandPose[Any], K: Any, size: Sequence[int], *, mirror_left: bool = False
) -> dict[str, Any]:
    """Convert poses to the fields of HaMeR's `demo.py`, with N hands along the first axis.

    Joints in the camera's frame are `pred_keypoints_3d + pred_cam_t_full`, in metres, at the distance for the
    given K. HaMeR's own distances are those for its assumed focal length.

    Args:
        pose: one pose or a batch from one image; a pose that is not valid gives NaN.
        K: intrinsics of the image, as the estimator takes them.
        size: (width, height) of the image in px.
        mirror_left: whether to mirror left hands in all fields but `pred_cam_t_full`. HaMeR's network returns
            them so, and its demo mirrors them back.

    Returns:
        float32 arrays of the pose's type:

        - `pred_keypoints_3d` (N, 21, 3) m from the wrist, where HaMeR's origin is MANO's, 0.1 m beside it;
        - `pred_cam_t_full` (N, 3) m, the wrist in the camera's frame;
        - `pred_keypoints_2d` (N, 21, 2), (px - box_center) / box_size;
        - `pred_cam` (N, 3), scale and translation before the crop, from which HaMeR's `cam_crop_to_full`
          computes `pred_cam_t_full`; `pred_cam_t` (N, 3), the same as a translation for `focal_length`;
        - `is_right` (N,), 1 or 0; `box_center` (N, 2), `box_size` (N,) and `img_size` (N, 2) px;
        - `scaled_focal_length` px of K, a number; `focal_length` (N, 2) px of a crop of 256 px, HaMeR's 5000.

    Raises:
        ValueError, TypeError: the size is not (width, height) px, or K cannot belong to it.
    """
    width, height = checked_size(size)
    K = read_cameras(K, [(height, width)]).intrinsics[0]
    focal = float(K[0, 0] + K[1, 1]) / 2
    arrays = pose.numpy()
    joints = arrays.joints.astype(np.float64).reshape(-1, 21, 3) / MM_PER_M
    pixels = arrays.joints_2d.astype(np.float64).reshape(-1, 21, 2)
    count = len(joints)
    sides = [pose.side] * count if pose.side is None or isinstance(pose.side, str) else pose.side
    right = np.array([side != "left" for side in sides], np.float64)
    low, high = pixels.min(1), pixels.max(1)
    centre, extent = (low + high) / 2, HAMER_PADDING * (high - low).max(1)
    move = joints[:, 0]
    scale = 2 * focal / (extent * move[:, 2])
    across = move[:, :2] - (centre - np.array([width, height]) / 2) * move[:, 2:] / focal
    keypoints, flat = joints - move[:, None], (pixels - centre[:, None]) / extent[:, None, None]
    if mirror_left:
        sign = 2 * right - 1
        keypoints[..., 0] *= sign[:, None]
        flat[..., 0] *= sign[:, None]
        across[:, 0] *= sign
    fields = {
        "pred_keypoints_3d": keypoints,
        "pred_cam_t_full": move,
        "pred_keypoints_2d": flat,
        "pred_cam": np.column_stack([scale, across]),
        "pred_cam_t": np.column_stack([across, 2 * HAMER_FOCAL / (HAMER_SIZE * scale)]),
        "is_right": right,
        "box_center": centre,
        "box_size": extent,
        "img_size": np.tile([width, height], (count, 1)),
        "focal_length": np.full((count, 2), HAMER_FOCAL),
    }
    converted: dict[str, Any] = {name: values.astype(np.float32) for name, values in fields.items()}
    if isinstance(pose.joints, Tensor):
        device = pose.joints.device
        converted = {name: torch.from_numpy(values).to(device) for name, values in converted.items()}
    return converted | {"scaled_focal_length": focal}
