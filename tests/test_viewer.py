"""The interactive page: its scene, its file, and a browser that draws it."""

from __future__ import annotations

import base64
import io
import re
import shutil
import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from nvf_fast.pose import HandPose, Votes

viser = pytest.importorskip("viser", reason="viser is not installed")
zstandard = pytest.importorskip("zstandard", reason="viser is not installed")

from nvf_fast.viewer import HandScene, make_page, open_server, stop_server  # noqa: E402

K = np.array([[500.0, 0, 79.5], [0, 500.0, 59.5], [0, 0, 1]])
IMAGE = np.full((120, 160, 3), (40, 90, 60), np.uint8)


def posed() -> HandPose:
    """Return a pose half a metre away with 50 voters about its joints."""
    random = np.random.default_rng(0)
    joints = np.zeros((21, 3), np.float32)
    for joint in range(1, 21):
        finger, part = divmod(joint - 1, 4)
        joints[joint] = (finger - 2) * (15 + 4 * part), -60 - 25 * part, 10 * part
    joints += [0, 60, 500]
    pixels = joints @ K.T.astype(np.float32)
    points = (joints[random.integers(0, 21, 50)] + random.normal(0, 5, (50, 3))).astype(np.float32)
    votes = Votes(points, random.random((50, 21), np.float32), np.zeros((50, 21, 3), np.float32))
    return HandPose(
        joints, pixels[:, :2] / pixels[:, 2:], np.ones(21), np.array(50), np.array(True), np.array(99),
        np.array(1.0), votes=votes, expected_error=np.full(21, 12.0), side="left",
        hand_scale=np.float32(30),
    )  # fmt: skip


def scene_of(page: str) -> bytes:
    """Return the recorded scene in a page."""
    (embedded,) = re.findall(r'__VISER_EMBED_DATA__="([^"]*)"', page)
    content = base64.b64decode(embedded)[8:]
    scene: bytes = zstandard.ZstdDecompressor().decompressobj().decompress(content)
    return scene


def test_page_holds_the_scene() -> None:
    scene = scene_of(make_page(IMAGE, K, [posed()]))
    for part in (b"/camera", b"/image", b"/hand 0/mesh", b"/hand 0/joints/bones", b"/hand 0/voters"):
        assert part in scene, part
    assert "left ±12 mm".encode() in scene and b"/hand 1" not in scene
    empty = scene_of(make_page(IMAGE, K, []))
    assert b"/image" in empty and b"/hand" not in empty


def test_image_covers_the_rays_of_its_pixels() -> None:
    server = open_server(0)
    try:
        scene = HandScene(server, IMAGE, K, [posed()])
        handle = scene._handles["/image"]
        depth = handle.position[2]
        assert depth == pytest.approx(1.15 * 0.53)
        size = np.array([handle.render_width, handle.render_height])
        np.testing.assert_allclose(size, depth * np.array([160, 120]) / 500, rtol=1e-6)
        # The middle of the image is pixel (79.5, 59.5), the principal point.
        np.testing.assert_allclose(handle.position[:2], 0, atol=1e-9)
    finally:
        server.stop()


def test_first_view_shows_the_hands_without_voters(capsys: pytest.CaptureFixture[str]) -> None:
    near = replace(posed(), joints=posed().joints + np.array([150, 0, -200], np.float32))
    for poses in ([], [posed()], [posed(), near]):
        server = open_server(0)
        try:
            scene, camera = HandScene(server, IMAGE, K, poses), server.initial_camera
            for row in range(len(poses)):
                shown = {part: scene._handles[f"/hand {row}/{part}"].visible for part in ("mesh", "joints")}
                assert all(shown.values()) and not scene._handles[f"/hand {row}/voters"].visible
            axis = np.asarray(camera.look_at) - camera.position
            offsets = (
                np.concatenate([each.joints for each in poses] or [[[0, 0, 600]]]) / 1000 - camera.position
            )
            along = offsets @ axis / np.linalg.norm(axis)
            beside = np.sqrt((offsets**2).sum(1) - along**2)
            slopes = beside / along / np.tan(camera.fov / 2)
            assert (along > 0).all() and slopes.max() <= 0.8 + 1e-6, "in the middle of the view"
            assert not poses or slopes.max() > 0.5, "and not small"
        finally:
            stop_server(server)
    assert capsys.readouterr().out == ""


def is_drawn(screenshot: bytes) -> bool:
    """Whether a page shows the image, which is green, and the skin, which is reddish."""
    shown = np.array(Image.open(io.BytesIO(screenshot)).convert("RGB")).astype(int)
    red, green, blue = shown[220:].transpose(2, 0, 1)  # below controls and notices
    return bool((green - red > 25).mean() > 0.02 and (red - blue > 25).mean() > 0.002)


@pytest.mark.slow
def test_browser_draws_the_served_scene() -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    server = open_server(0)
    try:
        scene = HandScene(server, IMAGE, K, [posed()])
        scene.add_controls(server)
        scene.draw_votes("INDEX_FINGER_TIP")
        drawing = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
        with playwright.sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=chromium, args=drawing)
            page = browser.new_page(viewport={"width": 800, "height": 560})
            page.set_default_timeout(240_000)
            page.goto(f"http://{server.get_host()}:{server.get_port()}")
            page.get_by_text("votes for").wait_for()
            assert page.get_by_role("checkbox").count() == 4
            deadline = time.monotonic() + 240
            while not (drawn := is_drawn(page.screenshot())) and time.monotonic() < deadline:
                page.wait_for_timeout(500)
            browser.close()
    finally:
        server.stop()
    assert drawn
