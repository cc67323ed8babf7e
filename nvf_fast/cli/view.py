"""`nvf-fast view`: show the hands of an image as an interactive 3D page."""

from __future__ import annotations

import warnings
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from nvf_fast.cli import UserError, user_errors
from nvf_fast.cli.cameras import ASSUMED, CameraOptions, without_errors
from nvf_fast.cli.options import NetworkOptions, Optional
from nvf_fast.cli.outputs import check_output_file, check_replaced
from nvf_fast.cli.records import missing_hand
from nvf_fast.image_files import read_image
from nvf_fast.overlay import undistorted
from nvf_fast.runtime.files import write_file


@dataclass(frozen=True)
class View:
    """Show the hands of an image in a browser: the camera's frustum, meshes, joints, voters and their votes.

    Serves the page on this machine until Ctrl-C, or writes it into a file.
    """

    image: Annotated[Path, tyro.conf.Positional]  # image file
    camera: Annotated[CameraOptions, tyro.conf.arg(name="")] = field(default_factory=CameraOptions)
    # px, X0 Y0 X1 Y1 around one hand; when absent, every hand is found
    box: Optional[tuple[float, float, float, float]] = None
    side: Optional[Literal["right", "left"]] = None  # side of the hand, predicted when absent
    # mm between joints 9 and 10 of the hand, on average 31.7 (docs/usage.md), if known
    hand_scale: Optional[float] = None
    port: int = 8080  # port of the page; if it is taken, the next free one is used, for 0 any
    # .html file, which must not exist, for a self-contained page instead of serving
    out: Optional[Path] = None
    network: Annotated[NetworkOptions, tyro.conf.arg(name="")] = field(default_factory=NetworkOptions)

    def run(self) -> None:
        from nvf_fast.viewer import HandScene, make_page, open_server, stop_server

        self.camera.check([self.image])
        if not 0 <= self.port < 65536:
            raise UserError(f"--port must be 0 to 65535, got {self.port}")
        check_replaced([("--out", self.out)], (self.image, self.camera.intrinsics))
        check_output_file("--out", self.out, (".html",), new=True)
        estimator = self.network.estimator()
        with user_errors(), warnings.catch_warnings():
            warnings.simplefilter("default")
            image = read_image(self.image)
            camera, source = self.camera.of(self.image, *image.shape[:2])
            if source == "default":
                warnings.warn(f"no focal length given or in the EXIF data: {ASSUMED}", stacklevel=1)
            found = estimator(image, camera, self.hand_scale, self.box, self.side, return_votes=True)
            poses = without_errors([found] if found.joints.ndim == 2 else found, source)
            for pose in poses:
                if not pose.valid:
                    threshold = estimator.model.config.presence_threshold
                    warnings.warn(missing_hand(pose.to_dict(), threshold), stacklevel=1)
            image = undistorted(image, camera)
            if self.out is not None:
                write_file(self.out, make_page(image, camera.K, poses).encode())
                print(f"wrote {self.out}: {len(poses)} hands")
                return
            server = open_server(self.port)
        HandScene(server, image, camera.K, poses).add_controls(server)
        address = f"http://{server.get_host()}:{server.get_port()}"
        print(f"{len(poses)} hands on {address}; press Ctrl-C to stop", flush=True)
        with suppress(KeyboardInterrupt):
            server.sleep_forever()
        stop_server(server)
