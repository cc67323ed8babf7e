"""An interactive 3D page of an image and its hands: the camera's frustum, meshes, joints and voters.

The scene's unit is the metre, its frame the camera's (x right, y down, z forward).
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from nvf_fast.overlay import FINGER_COLOURS, description
from nvf_fast.pose import BONES, JOINT_NAMES, HandPose, Votes
from nvf_fast.runtime.extras import extra

if TYPE_CHECKING:
    import viser

MM = 1e-3  # in m
LARGEST_IMAGE = 1280  # px, longer side of the shown image
BEHIND = 1.15  # depth of the image over that of the farthest joint
EMPTY_DEPTH_MM = 600.0  # of the image where no hand is shown
SKIN = (214, 160, 135)
VOTER_MM, JOINT_MM, BONE_MM, LINE_MM = 2.5, 8.0, 3.5, 0.6
NO_JOINT = "none"
FOV = 50.0  # degrees, of the first view
FROM = np.array([0.45, -0.3, 0.0])  # its direction, relative to the camera's
MARGIN = 1.25  # its extent over that of the hands


class HandScene:
    """Add an image and the hands in it to a viser server.

    Args:
        server: a viser server.
        image: (H, W, 3) uint8 RGB.
        K: (3, 3) intrinsics in px, without distortion.
        poses: one pose each, in the camera's frame, with or without votes; invalid ones are not shown.
    """

    def __init__(
        self, server: viser.ViserServer, image: np.ndarray, K: np.ndarray, poses: Sequence[HandPose]
    ) -> None:
        self._scene, self._image, self._K = server.scene, image, np.asarray(K, np.float64)
        self._handles: dict[str, Any] = {}  # of the parts that can be hidden
        self._poses = [pose for pose in poses if pose.valid]
        farthest = max((float(pose.joints[:, 2].max()) for pose in self._poses), default=EMPTY_DEPTH_MM)
        self._add_camera(BEHIND * farthest * MM)
        self._add_hands()
        joints = np.concatenate([pose.joints * MM for pose in self._poses] or [self._corners])
        middle = (joints.min(0) + joints.max(0)) / 2
        self._scene.set_up_direction("-y")
        self._scene.configure_default_lights()
        # From the camera's side, turned to the right and up, so that the depths of hands are visible.
        axis = FROM - middle / np.linalg.norm(middle)
        axis /= np.linalg.norm(axis)
        along = (joints - middle) @ axis
        beside = np.linalg.norm(joints - middle - along[:, None] * axis, axis=1)
        distance = (along + MARGIN * beside / math.tan(math.radians(FOV) / 2)).max()
        server.initial_camera.look_at = middle
        server.initial_camera.position = middle + distance * axis
        server.initial_camera.fov = math.radians(FOV)

    def add_controls(self, server: viser.ViserServer) -> None:
        """Add controls: what is shown, the joint whose votes are drawn, and the image's depth."""
        for part in ("image", "mesh", "joints", "voters"):
            box = server.gui.add_checkbox(part, part != "voters")
            box.on_update(lambda event: self._show(event.target.label, event.target.value))
        joint = server.gui.add_dropdown("votes for", (NO_JOINT, *JOINT_NAMES))
        joint.on_update(lambda event: self.draw_votes(event.target.value))
        depth = round(1e3 * self._depth)
        slider = server.gui.add_slider("image at (mm)", depth // 4, 2 * depth, 1, depth)
        slider.on_update(lambda event: self._add_camera(event.target.value * MM))

    def draw_votes(self, joint: str) -> None:
        """Draw lines from voters to a joint, brighter for larger weights; none for `NO_JOINT`."""
        for row, pose in enumerate(self._poses):
            if not isinstance(pose.votes, Votes):
                continue
            name = f"/hand {row}/voters/votes"
            if joint == NO_JOINT:
                self._scene.remove_by_name(name)
                continue
            index = JOINT_NAMES.index(joint)
            weight = np.clip(pose.votes.weights[:, index], 0, 1)[:, None, None]
            points = pose.votes.points
            ends = np.stack([points, np.broadcast_to(pose.joints[index], points.shape)], 1)
            colours = np.repeat(weight * _finger_colour(index) + (1 - weight) * 60, 2, 1).astype(np.uint8)
            self._scene.add_line_segments(name, ends * MM, colours, thickness=LINE_MM * MM)

    def _show(self, part: str, visible: bool) -> None:
        names = ["/image"] if part == "image" else [f"/hand {row}/{part}" for row in range(len(self._poses))]
        for handle in (self._handles[name] for name in names if name in self._handles):
            handle.visible = visible

    def _add_camera(self, depth: float) -> None:
        """Draw the frustum and the image at a depth in m."""
        self._depth = depth
        height, width = self._image.shape[:2]
        corners = np.array([[0, 0], [width, 0], [width, height], [0, height]]) - 0.5
        rays = np.append(corners, np.ones((4, 1)), 1) @ np.linalg.inv(self._K).T * depth
        self._corners = rays
        edges = [(np.zeros(3), ray) for ray in rays] + list(zip(rays, np.roll(rays, -1, 0), strict=True))
        self._scene.add_line_segments("/camera", np.array(edges), (90, 90, 90), thickness=MM)
        shown = Image.fromarray(self._image)
        shown.thumbnail((LARGEST_IMAGE, LARGEST_IMAGE))
        size = rays[2] - rays[0]
        self._handles["/image"] = self._scene.add_image(
            "/image", np.asarray(shown), size[0], size[1], format="jpeg", position=rays[[0, 2]].mean(0)
        )

    def _add_hands(self) -> None:
        for row, pose in enumerate(self._poses):
            name, mesh = f"/hand {row}", pose.mesh()
            self._handles[f"{name}/mesh"] = self._scene.add_mesh_simple(
                f"{name}/mesh", mesh.vertices * MM, mesh.faces, color=SKIN, opacity=0.5
            )
            self._handles[f"{name}/joints"] = self._scene.add_frame(f"{name}/joints", show_axes=False)
            joints = pose.joints * MM
            colours = np.array([_finger_colour(joint) for joint in range(21)], np.uint8)
            self._scene.add_point_cloud(
                f"{name}/joints/points", joints, colours, point_size=JOINT_MM * MM, point_shape="circle",
                precision="float32",
            )  # fmt: skip
            ends = np.array(BONES)
            bones = np.repeat(colours[ends[:, 1:]], 2, 1)
            self._scene.add_line_segments(f"{name}/joints/bones", joints[ends], bones, thickness=BONE_MM * MM)
            self._scene.add_label(f"{name}/joints/label", description(pose), position=joints[0])
            if isinstance(pose.votes, Votes) and len(pose.votes.points):
                self._handles[f"{name}/voters"] = self._scene.add_point_cloud(
                    f"{name}/voters", pose.votes.points * MM, (30, 30, 30), point_size=VOTER_MM * MM,
                    point_shape="circle", precision="float32", visible=False,
                )  # fmt: skip


def open_server(port: int) -> viser.ViserServer:
    """Start a viser server on a port of this machine, or on the next free one.

    Raises:
        ImportError: viser is not installed (`pip install nvf-fast[viz]`).
    """
    with extra("viz", "the page needs viser"):
        import viser
    with redirect_stdout(io.StringIO()):  # viser prints its address, verbose or not
        return viser.ViserServer("127.0.0.1", port, label="nvf-fast", verbose=False)


def stop_server(server: viser.ViserServer) -> None:
    """Stop a viser server without viser's message."""
    with redirect_stdout(io.StringIO()):
        server.stop()


def make_page(image: np.ndarray, K: np.ndarray, poses: Sequence[HandPose]) -> str:
    """Make a self-contained HTML page of the scene, which needs no server.

    Its button at the top right lists the parts of the scene to show or hide; voters are hidden at first.

    Args:
        image, K, poses: as in `HandScene`.
    """
    server = open_server(0)
    try:
        HandScene(server, image, K, poses)
        server.flush()
        page: str = server.get_scene_serializer().as_html()
        return page
    finally:
        stop_server(server)


def _finger_colour(joint: int) -> Any:
    return np.array((255, 255, 255) if joint == 0 else FINGER_COLOURS[(joint - 1) // 4])
